//! The program as it is released runs where nothing else is: no library, no name service, no young processor.

use std::{fs, net::SocketAddr, process::Command, time::Duration};

use adit_integration::{
    adit::{User, Workdir, free_port, path},
    curl::{self, Via},
    namespaces::Place,
    origin::Origin,
    process::{self, Finished},
    skip::{Need, can_run},
};

/// Far beyond what any command here needs.
const LIMIT: Duration = Duration::from_secs(60);

fn run(program: &str, arguments: &[&str]) -> Finished {
    let mut command = Command::new(program);
    command.args(arguments);
    process::run(command, LIMIT)
}

fn program(workdir: &Workdir) -> String {
    workdir.path().join("adit").display().to_string()
}

#[test]
fn program_is_static() {
    if !can_run(&[Need::Tool("ldd")]) {
        return;
    }
    let workdir = Workdir::new();
    let told = run("ldd", &[&program(&workdir)]).text();
    let says = ["statically linked", "not a dynamic executable"];
    assert!(says.iter().any(|text| told.contains(text)), "{told}");
}

#[test]
fn program_runs_where_nothing_else_is() {
    if !can_run(&[Need::Root, Need::Tool("chroot")]) {
        return;
    }
    let workdir = Workdir::new();
    let root = workdir.path().join("root");
    fs::create_dir_all(root.join("dev")).expect("an own folder");
    // a static program has no other way to the kernel's random numbers; every container has it
    for (name, minor) in [("random", "8"), ("urandom", "9")] {
        let node = root.join("dev").join(name);
        let made = run("mknod", &[path(&node), "c", "1", minor]);
        assert!(made.status.success(), "{}", made.text());
    }
    fs::copy(program(&workdir), root.join("adit")).expect("the program can be copied");
    let made = run("chroot", &[path(&root), "/adit", "keygen", "-o", "/key"]);
    assert!(made.status.success(), "{}", made.text());
    let told = run("chroot", &[path(&root), "/adit", "pubkey", "/key"]);
    assert_eq!(told.stdout, made.stdout);
    let script = run("chroot", &[path(&root), "/adit", "completions", "bash"]);
    assert!(script.stdout.contains("_adit()"), "{}", script.text());
}

#[test]
fn completions_are_what_bash_reads() {
    let workdir = Workdir::new();
    let script = workdir.run(&["completions", "bash"]);
    let file = workdir.file("adit.bash", &script.stdout);
    // what is offered for `adit cl`
    let asked = format!(
        "set -e; . {}; COMP_WORDS=(adit cl); COMP_CWORD=1; _adit adit cl adit; echo \"${{COMPREPLY[@]}}\"",
        path(&file)
    );
    let offered = run("bash", &["-c", &asked]);
    assert!(
        offered
            .stdout
            .split_whitespace()
            .any(|word| word == "client"),
        "{}",
        offered.text()
    );
}

#[test]
fn processor_without_avx_and_aes_carries_a_session() {
    if !can_run(&[Need::Tool("qemu-x86_64"), Need::Tool("curl")]) {
        return;
    }
    let workdir = Workdir::new();
    let proxy = SocketAddr::from(([127, 0, 0, 1], free_port()));
    let mut command = workdir.program_as(&Place::here(), User::Same, "qemu-x86_64");
    // the oldest processor of that kind: SSE2 and nothing after it that programs must not count on
    command.args([
        "-cpu",
        "qemu64",
        &program(&workdir),
        "try",
        "--proxy",
        &proxy.to_string(),
    ]);
    let mut adit = workdir.start_command("adit try, emulated", command);
    adit.expect_ready();
    let place = Place::here();
    let origin = Origin::http(&place, SocketAddr::from(([127, 0, 0, 1], 0)));
    let got = curl::get(
        &place,
        Via::Socks5h(proxy),
        &origin.url("/bytes/100000"),
        &["--fail"],
    );
    assert!(got.status.success(), "{}", got.text());
}
