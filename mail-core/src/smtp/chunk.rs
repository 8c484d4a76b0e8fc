//! Message data as BDAT sends it (RFC 3030 §2): chunks of counted octets, neither stuffed nor ended by a dot.

use bytes::{Bytes, BytesMut};
use memchr::memchr2;

use super::data::{Data, DataFault, MAX_DATA_LINE, MAX_RESERVE};

/// Takes a message's chunks at any cuts and gives the message.
///
/// A chunk is read to its last octet whatever is wrong with it, so that what follows is a command as the client means it.
/// The text has DATA's rules, since BINARYMIME is not spoken: lines end in CRLF, and in nothing else. A message may end
/// within a line; whoever sends it on by DATA adds the CRLF then.
#[derive(Debug)]
pub struct Chunks {
    /// Octets of the present chunk that are still to come.
    left: u64,
    body: BytesMut,
    max_bytes: u64,
    /// Octets of the message so far, kept or not.
    bytes: u64,
    /// Octets of the line so far, CR included.
    line: usize,
    /// The last octet was a CR.
    after_cr: bool,
    eight_bit: bool,
    fault: Option<DataFault>,
}

impl Chunks {
    /// For a message of at most `max_bytes` (0: no limit), of which `expected` were announced.
    pub fn new(max_bytes: u64, expected: Option<u64>) -> Self {
        let reserve = expected.unwrap_or(0).min(MAX_RESERVE) as usize;
        Self {
            left: 0,
            body: BytesMut::with_capacity(reserve),
            max_bytes,
            bytes: 0,
            line: 0,
            after_cr: false,
            eight_bit: false,
            fault: None,
        }
    }

    /// A chunk of so many octets follows. One that cannot fit any more is not kept from its first octet on.
    pub fn begin(&mut self, octets: u64) {
        self.left = octets;
        if self.max_bytes != 0 && self.bytes.saturating_add(octets) > self.max_bytes {
            self.fail(DataFault::TooBig);
        }
    }

    /// Takes octets from `input`'s front and tells how many: all of them, or those up to the chunk's end.
    pub fn take(&mut self, input: &[u8]) -> usize {
        let taken = usize::try_from(self.left).map_or(input.len(), |left| left.min(input.len()));
        self.left -= taken as u64;
        self.bytes = self.bytes.saturating_add(taken as u64);
        if self.fault.is_none() {
            self.check(&input[..taken]);
        }
        if self.fault.is_none() {
            self.body.extend_from_slice(&input[..taken]);
            self.eight_bit |= !input[..taken].is_ascii();
        }
        taken
    }

    /// Whether the present chunk has been read.
    pub fn is_at_end(&self) -> bool {
        self.left == 0
    }

    /// Octets kept in memory now.
    pub fn kept(&self) -> usize {
        self.body.len()
    }

    /// What has been kept since the last [`drain`](Self::drain).
    pub fn so_far(&self) -> &[u8] {
        &self.body
    }

    /// Takes out what has been kept so far; the rest of the message follows it, and alone is given at the end. A fault that
    /// is found later concerns it, too.
    pub fn drain(&mut self) -> Bytes {
        self.body.split().freeze()
    }

    /// Keeps nothing more; the chunk is still read to its end and then refused.
    pub fn abandon(&mut self) {
        self.fail(DataFault::NoRoom);
    }

    /// What is wrong with the message so far.
    pub fn fault(&self) -> Option<DataFault> {
        self.fault
    }

    /// The message, or what is wrong with it. To be asked behind the last chunk.
    pub fn finish(mut self) -> Result<Data, DataFault> {
        if self.after_cr {
            self.fail(DataFault::BareNewline);
        }
        match self.fault {
            Some(fault) => Err(fault),
            None => Ok(Data {
                octets: self.body.freeze(),
                eight_bit: self.eight_bit,
            }),
        }
    }

    /// Looks at each CR and LF: both stand together or not at all.
    fn check(&mut self, octets: &[u8]) {
        let mut at = 0;
        while at < octets.len() {
            if self.after_cr && octets[at] != b'\n' {
                return self.fail(DataFault::BareNewline);
            }
            let found = memchr2(b'\r', b'\n', &octets[at..]);
            self.line += found.map_or(octets.len() - at, |found| found + 1);
            if self.line > MAX_DATA_LINE {
                return self.fail(DataFault::LongLine);
            }
            let Some(found) = found else { return };
            at += found + 1;
            match (self.after_cr, octets[at - 1]) {
                (false, b'\r') => self.after_cr = true,
                (true, b'\n') => (self.after_cr, self.line) = (false, 0),
                _ => return self.fail(DataFault::BareNewline),
            }
        }
    }

    fn fail(&mut self, fault: DataFault) {
        if self.fault.is_none() {
            self.fault = Some(fault);
            self.body = BytesMut::new();
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Feeds each chunk in pieces of `step` octets, with other octets behind it.
    fn read(chunks: &[&[u8]], step: usize, max: u64) -> Result<Vec<u8>, DataFault> {
        let mut reader = Chunks::new(max, None);
        for chunk in chunks {
            reader.begin(chunk.len() as u64);
            let wire = [chunk, &b"NOOP\r\n"[..]].concat();
            let mut at = 0;
            while !reader.is_at_end() {
                at += reader.take(&wire[at..wire.len().min(at + step)]);
            }
            assert_eq!(at, chunk.len(), "exactly its octets");
        }
        reader.finish().map(|data| data.octets.to_vec())
    }

    #[test]
    fn chunks_are_joined_to_the_octet() {
        // Dots stay as they are, and a line, even its CRLF, may be cut anywhere.
        let chunks: [&[u8]; 6] = [
            b"a: b\r\n\r\n.\r\n..x",
            b"\r",
            b"\n.",
            b"",
            b"\r\nQUIT\r\n",
            b"no end",
        ];
        for step in 1..10 {
            assert_eq!(read(&chunks, step, 0).unwrap(), chunks.concat(), "by {step}");
        }
        assert_eq!(read(&[b""], 1, 0).unwrap(), b"");
    }

    #[test]
    fn bare_cr_and_lf_are_refused() {
        for chunks in [
            &[&b"a\nb\r\n"[..]][..],
            &[b"a\rb\r\n"],
            &[b"a\r\r\n"],
            &[b"a\r", b"b\r\n"],
            &[b"a\r"],
            &[b"a\r\n", b"\n"],
            &[b"a\r\n\r\n.\n\r\n"],
        ] {
            for step in 1..5 {
                assert_eq!(read(chunks, step, 0), Err(DataFault::BareNewline), "{chunks:?}");
            }
        }
    }

    #[test]
    fn lines_and_size_have_their_limits() {
        let line = |text: usize| [vec![b'x'; text], b"\r\n".to_vec()].concat();
        for step in [1, 7, 998, 5_000] {
            assert!(read(&[&line(998), &line(998)], step, 0).is_ok());
            assert_eq!(read(&[&line(999)], step, 0), Err(DataFault::LongLine));
            let (half, rest) = (vec![b'x'; 600], line(600));
            assert_eq!(read(&[&half, &rest], step, 0), Err(DataFault::LongLine));
            assert_eq!(read(&[&vec![b'x'; 2_000]], step, 0), Err(DataFault::LongLine));
            assert!(read(&[b"12345678\r\n", b""], step, 10).is_ok());
            assert_eq!(read(&[b"12345678\r\n", b"x"], step, 10), Err(DataFault::TooBig));
        }
    }

    #[test]
    fn what_is_refused_is_not_kept() {
        let mut reader = Chunks::new(100, None);
        reader.begin(u64::MAX);
        for _ in 0..1_000 {
            assert_eq!(reader.take(&[b'x'; 1_000]), 1_000);
            assert_eq!(reader.kept(), 0);
        }
        assert!(!reader.is_at_end());
        reader.begin(u64::MAX);
        assert_eq!(reader.fault(), Some(DataFault::TooBig));
    }

    proptest! {
        #[test]
        fn cuts_make_no_difference(octets in "[ab\r\n.]{0,40}", cut in 0_usize..40, step in 1_usize..8) {
            let octets = octets.as_bytes();
            let (one, two) = octets.split_at(cut.min(octets.len()));
            let whole = read(&[octets], octets.len() + 6, 0);
            prop_assert_eq!(read(&[one, two], step, 0), whole.clone());
            if let Ok(kept) = whole {
                prop_assert_eq!(kept, octets);
            }
        }
    }
}
