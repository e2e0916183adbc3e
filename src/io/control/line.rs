//! Lines of a bounded length out of bytes as they come.

use thiserror::Error;

/// Bytes of a connection until a line is whole.
#[derive(Debug)]
pub struct Lines {
    bytes: Vec<u8>,
    /// How many of them have no line's end in them.
    searched: usize,
    /// How many a line has at most.
    most: usize,
}

/// A line has more bytes than are taken.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
#[error("a line has at most {most} bytes")]
pub struct TooLong {
    /// How many it may have.
    pub most: usize,
}

impl Default for Lines {
    /// Lines of orders.
    fn default() -> Self {
        Self::of(MAX_LINE)
    }
}

impl Lines {
    /// Takes lines of at most `most` bytes.
    pub fn of(most: usize) -> Self {
        Self {
            bytes: Vec::new(),
            searched: 0,
            most,
        }
    }

    /// Takes bytes that have come; to be followed by [`Lines::pop`] until there is no line.
    pub fn push(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    /// Takes out the first line that is whole, without its end.
    ///
    /// # Errors
    ///
    /// [`TooLong`], and from then on every time.
    pub fn pop(&mut self) -> Result<Option<Vec<u8>>, TooLong> {
        let end = self.bytes.iter().skip(self.searched);
        match end.clone().position(|&byte| byte == b'\n') {
            Some(at) if self.searched + at <= self.most => {
                let mut line: Vec<u8> = self.bytes.drain(..=self.searched + at).collect();
                line.pop();
                self.searched = 0;
                Ok(Some(line))
            }
            None if self.bytes.len() <= self.most => {
                self.searched = self.bytes.len();
                Ok(None)
            }
            Some(_) | None => Err(TooLong { most: self.most }),
        }
    }

    /// Whether no line has begun that is not whole.
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }
}

/// Bytes in the line of an answer: the status of a server that lists every session it can, several times over.
pub const MAX_ANSWER: usize = 64 << 20;

/// Bytes in a line: room for the longest list that anybody reads, a bound for what a fault can send.
pub const MAX_LINE: usize = 256 << 10;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_come_out_whole_however_they_were_cut() {
        let mut lines = Lines::default();
        let mut got = Vec::new();
        for byte in b"one\n\ntwo\nthr" {
            lines.push(&[*byte]);
            while let Ok(Some(line)) = lines.pop() {
                got.push(line);
            }
        }
        assert_eq!(got, [&b"one"[..], b"", b"two"]);
        assert!(!lines.is_empty());
        lines.push(b"ee\nfour\n");
        assert_eq!(lines.pop(), Ok(Some(b"three".to_vec())));
        assert_eq!(lines.pop(), Ok(Some(b"four".to_vec())));
        assert!(lines.is_empty());
    }

    #[test]
    fn line_of_the_greatest_length_passes_and_a_longer_one_does_not() {
        let longest = vec![b'x'; MAX_LINE];
        let mut lines = Lines::default();
        lines.push(&longest);
        assert_eq!(lines.pop(), Ok(None));
        lines.push(b"\n");
        assert_eq!(lines.pop(), Ok(Some(longest.clone())));
        lines.push(&longest);
        lines.push(b"x");
        assert_eq!(lines.pop(), Err(TooLong { most: MAX_LINE }));
        lines.push(b"\n");
        assert_eq!(
            lines.pop(),
            Err(TooLong { most: MAX_LINE }),
            "it stays lost"
        );
    }
}
