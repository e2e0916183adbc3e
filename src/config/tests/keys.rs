//! Keys in files: written whole and private, read only if nobody else can.

use super::*;

#[test]
fn new_keys_are_private_whole_and_never_overwrite() {
    let bench = Bench::new();
    let path = bench.path("new.key");
    let (first, second) = (&bench.own, &bench.other);
    write_key(&path, first, false).expect("written");
    assert_eq!(
        fs::metadata(&path).expect("a file").permissions().mode() & 0o777,
        0o600
    );
    assert_eq!(fs::read_to_string(&path).expect("text").len(), 45);
    let error = write_key(&path, second, false).expect_err("exists");
    assert!(
        error
            .to_string()
            .contains("exists already: name another file, or say --force"),
        "{error}"
    );
    assert_eq!(
        read_key::<SecretKey>(&path).expect("a key").public(),
        first.public()
    );
    write_key(&path, second, true).expect("replaced");
    assert_eq!(
        read_key::<SecretKey>(&path).expect("a key").public(),
        second.public()
    );
    let left: Vec<_> = fs::read_dir(bench.folder.path())
        .expect("a folder")
        .flatten()
        .map(|entry| entry.file_name())
        .collect();
    assert_eq!(left.len(), 3, "no half-written file is left: {left:?}");
    let error = write_key(&bench.path("none/new.key"), first, false).expect_err("no folder");
    assert!(
        error.to_string().contains("there is no such folder"),
        "{error}"
    );
}

#[test]
fn keys_that_others_can_use_are_refused() {
    let bench = Bench::new();
    let path = bench.path("own.key");
    for mode in [0o640, 0o604, 0o660, 0o777, 0o601] {
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).expect("mode");
        let error = read_key::<SecretKey>(&path)
            .expect_err("open to others")
            .to_string();
        assert!(
            error.contains(&format!("(its mode is {mode:04o}): run chmod 600")),
            "{error}"
        );
    }
    for mode in [0o600, 0o400] {
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).expect("mode");
        assert!(read_key::<SecretKey>(&path).is_ok(), "{mode:o}");
    }
}

#[test]
fn errors_about_keys_never_repeat_the_key() {
    let bench = Bench::new();
    let secret = bench.own.to_base64();
    let wrong = secret.replace('=', "A");
    let path = bench.write("wrong.key", &wrong);
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).expect("mode");
    let error = read_key::<SecretKey>(&path)
        .expect_err("no key")
        .to_string();
    assert!(error.contains("holds no key"), "{error}");
    assert!(!error.contains(wrong.as_str()), "{error}");
}

#[test]
fn key_is_made_where_that_is_wanted_and_written_by_nobody_yet() {
    let bench = Bench::new();
    let refused = bench
        .server("key_file: new.key\nclients: []\n")
        .expect_err("no key");
    assert!(refused.contains("cannot read new.key"), "{refused}");
    let loaded = bench
        .server("key_file: [new.key, own.key]\ngenerate_key: true\nclients: []\n")
        .expect("a configuration");
    assert_eq!(loaded.config.process.new_key, Some(bench.path("new.key")));
    assert_eq!(loaded.config.secret_keys.len(), 2);
    assert!(!bench.path("new.key").exists(), "reading writes nothing");
    // Only the first is made: a former key that is missing is a mistake.
    let refused = bench
        .server("key_file: [own.key, old.key]\ngenerate_key: true\nclients: []\n")
        .expect_err("a former key cannot be made");
    assert!(refused.contains("cannot read old.key"), "{refused}");
    let client = "server: tcp://127.0.0.1:1\nserver_key: OTHER\n";
    let loaded = bench
        .client(&format!(
            "{client}key_file: mine.key\ngenerate_key: yes\nuser: 5:6\n"
        ))
        .expect("a configuration");
    assert_eq!(loaded.config.process.new_key, Some(bench.path("mine.key")));
    assert_eq!(
        loaded.config.process.user,
        Some(Account { user: 5, group: 6 })
    );
    let loaded = bench
        .client(&format!("{client}key_file: own.key\ngenerate_key: yes\n"))
        .expect("a configuration");
    assert_eq!(loaded.config.process, ProcessConfig::default());
}
