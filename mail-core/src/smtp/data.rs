//! Message data as DATA sends it (RFC 5321 §4.1.1.4, §4.5.2): dots unstuffed, the end found, bad line ends refused.

use bytes::{Bytes, BytesMut};
use memchr::memchr2;

use crate::Reply;

/// The longest line, CRLF included and stuffing excluded (RFC 5321 §4.5.3.1.6).
pub const MAX_DATA_LINE: usize = 1_000;

/// Octets set aside at once on the word of SIZE; more come as the message does.
pub(super) const MAX_RESERVE: u64 = 256 * 1_024;

/// Takes message data at any cuts and gives the message behind it.
///
/// Data ends at CRLF `.` CRLF and nowhere else. Other things that some server somewhere takes for an end (`LF . LF`,
/// `CRLF . LF`, `CR . CR`, …) let a client hide a second message in a first (CVE-2023-51764 and its kin), so a bare CR or
/// LF is never kept or repaired: the message is read to its real end and refused. So are those too long or too big: what
/// follows is then read as commands, as the client means it.
#[derive(Debug)]
pub struct Decoder {
    place: Place,
    body: BytesMut,
    max_bytes: u64,
    /// Octets of the message so far, kept or not.
    bytes: u64,
    /// Octets of the line so far, CR included.
    line: usize,
    eight_bit: bool,
    fault: Option<DataFault>,
}

/// What stands before the next octet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    LineStart,
    /// A line's first octet was a dot, which is not kept.
    Dot,
    /// `.` CR.
    DotCr,
    Text,
    Cr,
    End,
}

/// Why a message is refused, known only at its end. Of several faults the greatest is told, so that the answer does not hang
/// on how the message was cut on its way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, thiserror::Error)]
pub enum DataFault {
    /// The shell had no room for more: see [`Decoder::abandon`].
    #[error("no room for the message now")]
    NoRoom,
    /// More octets than offered in SIZE.
    #[error("message too big")]
    TooBig,
    /// A line over [`MAX_DATA_LINE`].
    #[error("line over 1000 octets in message data")]
    LongLine,
    /// CR without LF or LF without CR.
    #[error("bare CR or LF in message data")]
    BareNewline,
}

impl DataFault {
    /// What the client is told.
    pub fn reply(self) -> Reply {
        match self {
            Self::BareNewline => Reply::new(550, 6, 0, "bare CR or LF in message data; lines end in CRLF"),
            Self::LongLine => Reply::new(554, 6, 0, "line over 1000 octets in message data"),
            Self::TooBig => Reply::new(552, 3, 4, "message too big"),
            Self::NoRoom => Reply::new(452, 3, 1, "no room for the message now"),
        }
    }
}

/// A message as it was sent, without stuffing and final dot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Data {
    /// CRLF lines; empty, or ending in CRLF, unless the last chunk of BDAT left it out.
    pub octets: Bytes,
    /// Some octet is over 127.
    pub eight_bit: bool,
}

impl Decoder {
    /// For a message of at most `max_bytes` (0: no limit), of which `expected` were announced.
    pub fn new(max_bytes: u64, expected: Option<u64>) -> Self {
        let reserve = expected.unwrap_or(0).min(MAX_RESERVE) as usize;
        Self {
            place: Place::LineStart, // DATA's own CRLF counts as the one before (RFC 5321 §4.1.1.4).
            body: BytesMut::with_capacity(reserve),
            max_bytes,
            bytes: 0,
            line: 0,
            eight_bit: false,
            fault: None,
        }
    }

    /// Takes octets from `input`'s front and tells how many; all of them, unless the end was among them.
    pub fn decode(&mut self, input: &[u8]) -> usize {
        let mut at = 0;
        while at < input.len() && self.place != Place::End {
            at += match self.place {
                Place::Text => self.text(&input[at..]),
                Place::LineStart if !matches!(input[at], b'.' | b'\r' | b'\n') => self.text(&input[at..]),
                place => self.octet(place, &input[at..]),
            };
        }
        at
    }

    /// Whether the final dot has been read.
    pub fn is_at_end(&self) -> bool {
        self.place == Place::End
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

    /// Keeps nothing more; the message is still read to its end and then refused.
    pub fn abandon(&mut self) {
        self.fail(DataFault::NoRoom);
    }

    /// The message, or what is wrong with it. To be asked at the end.
    pub fn finish(self) -> Result<Data, DataFault> {
        match self.fault {
            Some(fault) => Err(fault),
            None => Ok(Data {
                octets: self.body.freeze(),
                eight_bit: self.eight_bit,
            }),
        }
    }

    /// A run of whole lines and text, up to a dot or a stray line end or the input's end: one look at each CR, one copy.
    fn text(&mut self, input: &[u8]) -> usize {
        let mut at = 0;
        let (end, place) = loop {
            let Some(found) = memchr2(b'\r', b'\n', &input[at..]) else {
                self.line += input.len() - at;
                break (input.len(), Place::Text);
            };
            self.line += found;
            at += found;
            if input[at] == b'\n' {
                break (at, Place::Text);
            }
            match input.get(at + 1) {
                Some(b'\n') => {}
                _ => break (at, Place::Text),
            }
            self.line += 2;
            at += 2;
            self.end_line();
            match input.get(at) {
                None | Some(b'.') => break (at, Place::LineStart),
                Some(_) => {}
            }
        };
        self.keep(&input[..end]);
        self.place = place;
        // A CR or LF that does not belong to a CRLF within this input is looked at alone.
        if place == Place::Text && end < input.len() {
            return end + self.octet(Place::Text, &input[end..]);
        }
        end
    }

    /// One octet of those that matter.
    fn octet(&mut self, place: Place, input: &[u8]) -> usize {
        let octet = input[0];
        self.place = match (place, octet) {
            (Place::LineStart, b'.') => Place::Dot,
            (Place::Dot, b'\r') => Place::DotCr,
            (Place::DotCr, b'\n') => Place::End,
            (Place::Cr, b'\n') => {
                self.keep(b"\r\n");
                self.line += 1;
                self.end_line();
                Place::LineStart
            }
            // CR is kept with its LF, so that a bare one never is.
            (Place::LineStart | Place::Text, b'\r') => {
                self.line += 1;
                Place::Cr
            }
            (Place::Cr | Place::DotCr, b'\r') => {
                self.fail(DataFault::BareNewline);
                Place::Cr
            }
            (_, b'\n') => {
                self.fail(DataFault::BareNewline);
                Place::Text
            }
            (Place::Cr | Place::DotCr, _) => {
                self.fail(DataFault::BareNewline);
                Place::Text
            }
            // The dot before was stuffing.
            (_, _) => return self.text(input),
        };
        1
    }

    fn keep(&mut self, octets: &[u8]) {
        self.check_line(); // here too, so that a line without end is not kept
        self.bytes += octets.len() as u64;
        if self.max_bytes != 0 && self.bytes > self.max_bytes {
            self.fail(DataFault::TooBig);
        }
        if self.fault.is_none() {
            self.body.extend_from_slice(octets);
            self.eight_bit |= !octets.is_ascii();
        }
    }

    fn end_line(&mut self) {
        self.check_line();
        self.line = 0;
    }

    fn check_line(&mut self) {
        if self.line > MAX_DATA_LINE {
            self.fail(DataFault::LongLine);
        }
    }

    fn fail(&mut self, fault: DataFault) {
        if self.fault.is_none() {
            self.body = BytesMut::new();
        }
        self.fault = self.fault.max(Some(fault));
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Feeds `wire` in pieces of `step` octets; gives the outcome and what is left behind the end.
    fn read(wire: &[u8], step: usize) -> (Result<Vec<u8>, DataFault>, Vec<u8>) {
        read_within(wire, step, 0)
    }

    fn read_within(wire: &[u8], step: usize, max: u64) -> (Result<Vec<u8>, DataFault>, Vec<u8>) {
        let mut decoder = Decoder::new(max, None);
        let mut used = 0;
        for piece in wire.chunks(step) {
            let taken = decoder.decode(piece);
            used += taken;
            if decoder.is_at_end() {
                break;
            }
            assert_eq!(taken, piece.len());
        }
        assert!(
            decoder.is_at_end(),
            "no end in {:?}",
            String::from_utf8_lossy(wire)
        );
        (decoder.finish().map(|d| d.octets.to_vec()), wire[used..].to_vec())
    }

    /// As a client sends `message` (RFC 5321 §4.5.2).
    fn stuff(message: &[u8]) -> Vec<u8> {
        let mut wire = Vec::new();
        let mut line_start = true;
        for (at, &octet) in message.iter().enumerate() {
            if line_start && octet == b'.' {
                wire.push(b'.');
            }
            wire.push(octet);
            line_start = octet == b'\n' && at > 0 && message[at - 1] == b'\r';
        }
        wire.extend_from_slice(b".\r\n");
        wire
    }

    #[test]
    fn unstuffs_and_ends() {
        for (wire, message) in [
            (&b".\r\n"[..], &b""[..]),
            (b"\r\n.\r\n", b"\r\n"),
            (b"a\r\n.\r\n", b"a\r\n"),
            (b"..\r\n.\r\n", b".\r\n"),
            (b"...\r\n.\r\n", b"..\r\n"),
            (b"..a\r\n.b\r\na.\r\n.\r\n", b".a\r\nb\r\na.\r\n"),
            (b"a\0b\r\n.\r\n", b"a\0b\r\n"),
        ] {
            for step in 1..=wire.len() {
                let mut long = wire.to_vec();
                long.extend_from_slice(b"QUIT\r\n");
                let (got, rest) = read(&long, step);
                assert_eq!(got.as_deref(), Ok(message), "{wire:?} by {step}");
                assert!(b"QUIT\r\n".ends_with(&rest) || rest.len() >= 6, "{rest:?}");
            }
        }
    }

    #[test]
    fn smuggled_ends_are_no_ends() {
        for fake in [
            "\n.\n",
            "\n.\r\n",
            "\r\n.\n",
            "\r.\r",
            "\r\n.\r",
            "\r.\r\n",
            "\n.\r",
            "\r\r\n.\r",
            "\r\n.\r\r\n",
            "\n\r.\r\n",
            "\n\n.\r\n",
            "\r\n.\0\r\n\n",
            "\0\n.\n",
            "\r\n.\n\r\n",
        ] {
            let wire = format!("Subject: a\r\n\r\nx{fake}MAIL FROM:<b@bank.test>\r\nDATA\r\n.\r\nNOOP\r\n");
            for step in 1..wire.len() {
                let (got, rest) = read(wire.as_bytes(), step);
                assert_eq!(got, Err(DataFault::BareNewline), "{fake:?} by {step}");
                if step == wire.len() - 1 {
                    assert_eq!(rest, b"NOOP\r\n", "{fake:?}");
                }
            }
        }
        // CR CR LF holds a bare CR, but its CRLF is one: the dot line behind it does end the data.
        let (got, rest) = read(b"x\r\r\n.\r\nNOOP\r\n", 100);
        assert_eq!((got, &rest[..]), (Err(DataFault::BareNewline), &b"NOOP\r\n"[..]));
    }

    #[test]
    fn holds_the_line_limit() {
        for (content, fits) in [
            (996, true),
            (998, true),
            (999, false),
            (1000, false),
            (1001, false),
        ] {
            for dots in [0, 1, 2] {
                // Dots of the message's own; the stuffing does not count.
                let line = [".".repeat(dots), "x".repeat(content - dots), "\r\n".to_owned()].concat();
                let message = ["a\r\n", &line, "b\r\n"].concat();
                for step in [1, 7, 500, 998, 999, 1000, 1001, 5000] {
                    let (got, _) = read(&stuff(message.as_bytes()), step);
                    let expected = if fits {
                        Ok(message.clone().into_bytes())
                    } else {
                        Err(DataFault::LongLine)
                    };
                    assert_eq!(got, expected, "{content} by {step}");
                }
            }
        }
    }

    #[test]
    fn counts_without_stuffing() {
        let message = b".a\r\n.b\r\n"; // 8 octets, 10 on the wire
        for step in [1, 3, 100] {
            assert_eq!(
                read_within(&stuff(message), step, 8).0.as_deref(),
                Ok(&message[..])
            );
            let (got, rest) = read_within(&[stuff(message), b"NOOP\r\n".to_vec()].concat(), step, 7);
            assert_eq!(got, Err(DataFault::TooBig));
            assert!(step < 100 || rest == b"NOOP\r\n");
        }
    }

    #[test]
    fn of_several_faults_the_same_is_told_at_any_cuts() {
        let long = "x".repeat(1_200);
        for (message, fault) in [
            (format!("{long}\r\n"), DataFault::LongLine),
            (format!("{long}\r\na\rb\r\n"), DataFault::BareNewline),
            (format!("a\rb\r\n{long}\r\n"), DataFault::BareNewline),
        ] {
            for step in [1, 7, 100, 999, 5_000] {
                let got = read_within(&stuff(message.as_bytes()), step, 500).0;
                assert_eq!(got, Err(fault), "{step}");
            }
        }
    }

    #[test]
    fn keeps_nothing_of_what_it_refuses() {
        let mut decoder = Decoder::new(1_000, Some(u64::MAX));
        for _ in 0..1_000 {
            decoder.decode(b"0123456789\r\n");
        }
        assert_eq!(decoder.kept(), 0);
        decoder.decode(b".\r\n");
        assert_eq!(decoder.finish(), Err(DataFault::TooBig));
        let mut decoder = Decoder::new(0, None);
        decoder.decode(b"abc\r\n");
        decoder.abandon();
        decoder.decode(b"def\r\n.\r\n");
        assert_eq!(decoder.finish(), Err(DataFault::NoRoom));
    }

    #[test]
    fn dots_at_buffer_edges() {
        for edge in [4_095, 4_096, 8_191, 16_384] {
            for shift in 0..6 {
                for dots in 1..4 {
                    let mut message = Vec::new();
                    while message.len() + 100 < edge - shift {
                        message.extend_from_slice(&[b'x'; 70]);
                        message.extend_from_slice(b"\r\n");
                    }
                    message.resize(edge - shift - 2, b'y');
                    message.extend_from_slice(b"\r\n");
                    message.extend_from_slice(&b"..."[..dots]);
                    message.extend_from_slice(b"\r\n.\r\n..z\r\n");
                    assert_eq!(read(&stuff(&message), edge).0.as_deref(), Ok(&message[..]));
                }
            }
        }
    }

    #[test]
    fn every_octet_passes() {
        let mut message = Vec::new();
        for octet in (0..=255).filter(|o| !b"\r\n".contains(o)) {
            message.extend_from_slice(&[octet, octet, b'\r', b'\n', b'.', octet, b'\r', b'\n']);
        }
        let mut decoder = Decoder::new(0, None);
        decoder.decode(&stuff(&message));
        let data = decoder.finish().unwrap();
        assert_eq!(data.octets, message);
        assert!(data.eight_bit);
        assert!(!Decoder::new(0, None).finish().unwrap().eight_bit);
    }

    proptest! {
        #[test]
        fn any_cuts_give_the_same(
            parts in proptest::collection::vec(
                prop_oneof![Just("\r\n"), Just("."), Just("\r"), Just("\n"), Just("a"), Just("\r\n."), Just("\u{fc}"), Just("\0")],
                0..60,
            ),
            steps in proptest::collection::vec(1usize..9, 1..80),
        ) {
            let mut wire = parts.concat().into_bytes();
            wire.extend_from_slice(b"\r\n.\r\n");
            let (whole, rest) = read(&wire, wire.len());
            let mut decoder = Decoder::new(0, None);
            let (mut at, mut n) = (0, 0);
            while !decoder.is_at_end() {
                let end = (at + steps[n % steps.len()]).min(wire.len());
                at += decoder.decode(&wire[at..end]);
                n += 1;
            }
            prop_assert_eq!(decoder.finish().map(|d| d.octets.to_vec()), whole);
            prop_assert_eq!(&wire[at..], &rest[..]);
        }

        #[test]
        fn what_was_stuffed_comes_back(
            lines in proptest::collection::vec("[.a-c\u{0}\u{e9}]{0,12}", 0..30),
            step in 1usize..40,
        ) {
            let message: String = lines.iter().flat_map(|line| [line, "\r\n"]).collect();
            prop_assert_eq!(read(&stuff(message.as_bytes()), step).0, Ok(message.into_bytes()));
        }
    }
}
