//! What has come from a client and was not read yet, cut into lines and message data.

use std::fmt;

use bytes::{Buf, BytesMut};
use memchr::memchr;

use super::chunk::Chunks;
use super::command::MAX_LINE;
use super::data::Decoder;

/// Octets of one connection, between socket and session. Holds what one read brought beside at most one line.
#[derive(Default)]
pub struct Inbox {
    octets: BytesMut,
    /// Octets at the front that the last line took.
    taken: usize,
    /// Octets behind `taken` that hold no line end.
    scanned: usize,
    /// Within a line that is too long: its octets are dropped up to its end.
    dropping: bool,
}

/// A line without its CRLF.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Line<'a> {
    /// At most [`MAX_LINE`] with its CRLF. Bare CR and LF may be inside.
    Whole(&'a [u8]),
    /// It was longer, and is gone.
    TooLong,
}

impl Inbox {
    /// Where a shell puts what it reads: appended, and only while [`Inbox::line`] has nothing more to give.
    pub fn buffer(&mut self) -> &mut BytesMut {
        self.drop_taken();
        &mut self.octets
    }

    /// The next line that has come in whole. Only CRLF ends one (RFC 5321 §2.3.8).
    pub fn line(&mut self) -> Option<Line<'_>> {
        self.drop_taken();
        let mut from = self.scanned;
        while let Some(found) = memchr(b'\n', &self.octets[from..]) {
            let at = from + found;
            if at == 0 || self.octets[at - 1] != b'\r' {
                from = at + 1;
                continue;
            }
            self.taken = at + 1;
            self.scanned = 0;
            let too_long = std::mem::take(&mut self.dropping) || self.taken > MAX_LINE;
            return Some(if too_long {
                Line::TooLong
            } else {
                Line::Whole(&self.octets[..at - 1])
            });
        }
        self.scanned = self.octets.len();
        if self.dropping || self.octets.len() >= MAX_LINE {
            // The last octet stays: it may be the CR of the CRLF.
            self.dropping = true;
            self.octets.advance(self.octets.len().saturating_sub(1));
            self.scanned = 0;
        }
        None
    }

    /// Gives message data to `decoder`; what follows the final dot stays.
    pub fn decode(&mut self, decoder: &mut Decoder) {
        self.drop_taken();
        let used = decoder.decode(&self.octets);
        self.octets.advance(used);
        self.scanned = 0;
    }

    /// Gives a chunk's octets to `chunks`; what follows the chunk stays.
    pub fn take_chunk(&mut self, chunks: &mut Chunks) {
        self.drop_taken();
        let used = chunks.take(&self.octets);
        self.octets.advance(used);
        self.scanned = 0;
    }

    /// Whether the client has said more than was read.
    pub fn is_empty(&self) -> bool {
        self.octets.len() == self.taken
    }

    fn drop_taken(&mut self) {
        self.octets.advance(std::mem::take(&mut self.taken));
    }
}

impl fmt::Debug for Inbox {
    /// Without the octets: there may be a password among them.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Inbox({} octets)", self.octets.len() - self.taken)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(pieces: &[&[u8]]) -> Vec<Option<Vec<u8>>> {
        let mut inbox = Inbox::default();
        let mut found = Vec::new();
        for piece in pieces {
            inbox.buffer().extend_from_slice(piece);
            while let Some(line) = inbox.line() {
                found.push(match line {
                    Line::Whole(line) => Some(line.to_vec()),
                    Line::TooLong => None,
                });
            }
        }
        found
    }

    #[test]
    fn only_crlf_ends_a_line() {
        let wire = b"a\r\n\r\nb\nc\rd\r\r\n\n\r\ne";
        let expected: Vec<_> = [&b"a"[..], b"", b"b\nc\rd\r", b"\n"]
            .map(|l| Some(l.to_vec()))
            .to_vec();
        assert_eq!(lines(&[wire]), expected);
        let octets: Vec<_> = wire.chunks(1).collect();
        assert_eq!(lines(&octets), expected);
    }

    #[test]
    fn drops_long_lines_and_stays_in_step() {
        let fits = [vec![b'x'; MAX_LINE - 2], b"\r\n".to_vec()].concat();
        let long = [vec![b'x'; MAX_LINE - 1], b"\r\n".to_vec()].concat();
        let huge = [vec![b'\n'; 100 * MAX_LINE], b"\r\nquit\r\n".to_vec()].concat();
        let wire = [fits.clone(), long, huge].concat();
        let expected = vec![
            Some(fits[..MAX_LINE - 2].to_vec()),
            None,
            None,
            Some(b"quit".to_vec()),
        ];
        for step in [1_000, 1_001, MAX_LINE - 1, MAX_LINE, wire.len()] {
            let pieces: Vec<_> = wire.chunks(step).collect();
            assert_eq!(lines(&pieces), expected, "by {step}");
        }
        let mut inbox = Inbox::default();
        for _ in 0..10_000 {
            inbox.buffer().extend_from_slice(&[b'x'; 1_000]);
            assert!(inbox.line().is_none());
            assert!(inbox.octets.len() < MAX_LINE);
        }
    }
}
