//! What users write, and what their programs write for them.

use crate::config::{Forward, read_text_alone};
use crate::io::control::{Lines, Request};

/// Reads a configuration as that of a server and as that of a client.
///
/// # Panics
///
/// A refusal has no words.
pub fn config(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    for error in read_text_alone(text) {
        assert!(!error.problems().is_empty());
        assert!(!error.to_string().is_empty());
    }
}

/// Reads lines to the control socket whole and byte by byte, and what they say of forwards.
///
/// # Panics
///
/// It matters how the bytes came, a refusal has no words, or a forward does not survive being written.
pub fn control(data: &[u8]) {
    let read = |pieces: usize| {
        let mut lines = Lines::default();
        let mut found = Vec::new();
        for piece in data.chunks(pieces.max(1)) {
            lines.push(piece);
            while let Ok(Some(line)) = lines.pop() {
                found.push(line);
            }
        }
        found
    };
    let lines = read(data.len());
    assert_eq!(lines, read(1));
    for line in &lines {
        match Request::parse(line) {
            Ok(request) => {
                let again = Request::parse(&request.line());
                assert_eq!(again.ok().as_ref(), Some(&request));
                if let Ok(text) = request.text("forward") {
                    forward(text);
                }
            }
            Err(error) => assert!(!error.to_string().is_empty()),
        }
    }
}

fn forward(text: &str) {
    match Forward::parse(text) {
        Ok(forward) => assert_eq!(Forward::parse(&forward.to_string()), Ok(forward)),
        Err(message) => assert!(!message.is_empty()),
    }
}
