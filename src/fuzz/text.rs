//! What users write.

use crate::config::read_text_alone;

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
