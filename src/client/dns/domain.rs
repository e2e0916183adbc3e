//! A name as records, lists and `split` see it: lower-case text whose suffixes are looked up one after the other.

use hickory_proto::rr::Name;

/// A name in lower case, labels between dots and none at the end, on the stack.
#[derive(Clone, Copy)]
pub struct Domain {
    text: [u8; MAX_TEXT],
    len: usize,
}

impl Domain {
    /// Takes a name from a message.
    ///
    /// A byte that would change the text's meaning (a dot inside a label, what is not ASCII) becomes one that no record
    /// and no list has, so that such a name matches its honest suffixes only.
    pub fn new(name: &Name) -> Self {
        let mut domain = Self {
            text: [0; MAX_TEXT],
            len: 0,
        };
        for (index, label) in name.iter().enumerate() {
            if index > 0 {
                domain.push(b'.');
            }
            for byte in label {
                let strange = !byte.is_ascii_graphic() || *byte == b'.';
                domain.push(if strange {
                    STRANGE
                } else {
                    byte.to_ascii_lowercase()
                });
            }
        }
        domain
    }

    fn push(&mut self, byte: u8) {
        // A name on the wire has 255 bytes with its lengths: its text always fits.
        if let Some(slot) = self.text.get_mut(self.len) {
            *slot = byte;
            self.len += 1;
        }
    }

    /// The text.
    pub fn as_bytes(&self) -> &[u8] {
        self.text.get(..self.len).unwrap_or_default()
    }

    /// The name itself, then what is left without its first label, and so on; never the root.
    pub fn suffixes(&self) -> impl Iterator<Item = &[u8]> {
        let text = self.as_bytes();
        let first = (!text.is_empty()).then_some(text);
        std::iter::successors(first, |text| {
            let dot = text.iter().position(|byte| *byte == b'.')?;
            text.get(dot + 1..)
        })
    }
}

impl std::fmt::Debug for Domain {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.as_bytes().escape_ascii())
    }
}

/// RFC 1035, section 2.3.4, is 255 bytes with a length before each label and one at the end.
const MAX_TEXT: usize = 255;
/// In no name of a record or a list, which are ASCII.
const STRANGE: u8 = 0xff;

#[cfg(test)]
mod tests {
    use super::*;

    fn suffixes(name: &Name) -> Vec<String> {
        Domain::new(name)
            .suffixes()
            .map(|suffix| suffix.escape_ascii().to_string())
            .collect()
    }

    #[test]
    fn suffixes_lose_a_label_at_a_time() {
        let name = Name::from_ascii("A.b.Example.COM.").unwrap();
        assert_eq!(
            suffixes(&name),
            ["a.b.example.com", "b.example.com", "example.com", "com"]
        );
        assert!(suffixes(&Name::root()).is_empty());
    }

    #[test]
    fn dot_inside_a_label_is_no_dot() {
        let name = Name::from_labels([&b"ads.example"[..], b"com"]).unwrap();
        assert_eq!(suffixes(&name), ["ads\\xffexample.com", "com"]);
    }

    #[test]
    fn longest_name_fits() {
        let label = [b'a'; 63];
        let name = Name::from_labels([&label[..], &label, &label, &label[..61]]).unwrap();
        assert_eq!(Domain::new(&name).as_bytes().len(), 253);
    }
}
