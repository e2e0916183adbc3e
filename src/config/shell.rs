//! Texts as words of a command that a message tells the user to run.
//!
//! Whoever has made a folder has chosen its name: blanks would make two words of it, `$(…)` a command, and control characters
//! would tell the terminal something.

use std::fmt::Write as _;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

/// Writes a path as one word of a shell's command: as it is, in single quotes, or as `$'…'` where something in it is not to
/// be seen, which bash, zsh, ksh and POSIX of 2024 read. The word has no control character and no blank line in it.
pub fn shell_word(path: &Path) -> String {
    let bytes = path.as_os_str().as_bytes();
    let plain = |byte: &u8| byte.is_ascii_alphanumeric() || b"/._-+:@%,=".contains(byte);
    let text = path.to_str();
    match text {
        Some(text) if !bytes.is_empty() && bytes.iter().all(plain) => text.to_owned(),
        Some(text) if text.chars().all(is_seen) => format!("'{}'", text.replace('\'', r"'\''")),
        _ => escaped(bytes),
    }
}

fn escaped(bytes: &[u8]) -> String {
    let mut word = String::from("$'");
    for chunk in bytes.utf8_chunks() {
        for c in chunk.valid().chars() {
            if matches!(c, '\'' | '\\') {
                word.push('\\');
            }
            if is_seen(c) {
                word.push(c);
            } else {
                octal(&mut word, c.encode_utf8(&mut [0; 4]).as_bytes());
            }
        }
        octal(&mut word, chunk.invalid());
    }
    word.push('\'');
    word
}

/// Three octal digits each, which whatever follows cannot be taken for a part of.
fn octal(word: &mut String, bytes: &[u8]) {
    for byte in bytes {
        // A text takes whatever is written.
        let _ = write!(word, "\\{byte:03o}");
    }
}

/// Whether a character is printed as itself: no control character, and none that turns the direction of the text.
fn is_seen(c: char) -> bool {
    matches!(c, '\'' | '"' | '\\') || c.escape_debug().eq([c])
}

#[cfg(test)]
mod tests {
    use std::ffi::{OsStr, OsString};
    use std::os::unix::ffi::OsStringExt as _;
    use std::process::Command;

    use super::*;

    #[test]
    fn usual_path_is_as_it_is_and_no_other_is_bare() {
        let word = |text: &str| shell_word(Path::new(text));
        assert_eq!(word("/var/lib/adit/0a-b"), "/var/lib/adit/0a-b");
        assert_eq!(word("/home/a b/$(id)"), "'/home/a b/$(id)'");
        assert_eq!(word("it's"), r"'it'\''s'");
        assert_eq!(word(""), "''");
        assert_eq!(word("a\u{1b}[2J\n\u{202e}"), r"$'a\033[2J\012\342\200\256'");
    }

    #[test]
    fn shell_reads_back_every_path_and_nothing_of_it_is_a_control_character() {
        let mut paths: Vec<OsString> = [
            "a b",
            "~x",
            "-n",
            "*",
            "a'b\"c\\d",
            "ü",
            "é\t'\\",
            "$(exit 3)`exit 4`",
        ]
        .into_iter()
        .map(OsString::from)
        .collect();
        paths.extend((1..=255).map(|byte| OsString::from_vec(vec![b'x', byte, b'7'])));
        for path in paths {
            let word = shell_word(Path::new(&path));
            assert!(!word.chars().any(char::is_control), "{word:?}");
            let script = format!("printf %s {word}");
            let printed = Command::new("bash").arg("-c").arg(script).output().unwrap();
            assert_eq!(OsStr::from_bytes(&printed.stdout), path, "{word}");
        }
    }
}
