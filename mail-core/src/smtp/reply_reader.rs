//! Reads replies from a peer's octets, however they are cut (RFC 5321 §4.2).
//!
//! Peers err in many ways. What can be understood is: bare LF, no text, no space, an enhanced code that is short or belongs
//! to another class. What can't be is malformed, and mail waits.

use std::borrow::Cow;

use crate::{EnhancedCode, Reply};

/// Octets of text kept of one reply; the rest is read and dropped.
const MAX_TEXT: usize = 4_096;

/// Lines, and octets, after which a reply is not waited for any longer.
const MAX_LINES: usize = 1_000;
const MAX_OCTETS: usize = 256 * 1024;

/// Octets of one line looked at.
const MAX_LINE: usize = 2_048;

/// What a peer sent is no reply. Nothing can be concluded from it; the connection is out of step.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadReply {
    /// A line without a code of three digits from 200 to 599, or lines whose codes contradict each other.
    #[error("malformed reply {0:?}")]
    Malformed(String),
    /// More than anyone needs.
    #[error("endless reply")]
    Endless,
}

/// Gathers one reply after another. Memory is bounded by [`MAX_TEXT`] and [`MAX_LINE`].
#[derive(Clone, Debug, Default)]
pub struct ReplyReader {
    line: Vec<u8>,
    lines: usize,
    octets: usize,
    code: Option<u16>,
    enhanced: Option<EnhancedCode>,
    text: String,
}

impl ReplyReader {
    /// Takes in octets up to the end of a reply. Returns how many were taken, and the reply if it is whole.
    pub fn read(&mut self, octets: &[u8]) -> (usize, Option<Result<Reply, BadReply>>) {
        let mut taken = 0;
        while let Some(rest) = octets.get(taken..).filter(|rest| !rest.is_empty()) {
            let end = memchr::memchr(b'\n', rest);
            let part = &rest[..end.unwrap_or(rest.len())];
            let room = MAX_LINE - self.line.len();
            self.line.extend_from_slice(&part[..part.len().min(room)]);
            let step = part.len() + usize::from(end.is_some());
            taken += step;
            self.octets += step;
            if self.octets > MAX_OCTETS || self.lines > MAX_LINES {
                return (taken, Some(Err(BadReply::Endless)));
            }
            if end.is_some()
                && let Some(reply) = self.take_line()
            {
                *self = Self::default();
                return (taken, Some(reply));
            }
        }
        (taken, None)
    }

    /// The stream has ended: a last line without its line end still counts.
    pub fn end(&mut self) -> Option<Result<Reply, BadReply>> {
        if self.line.is_empty() {
            return None;
        }
        let reply = self.take_line();
        *self = Self::default();
        reply
    }

    /// Whether part of a reply has been read.
    pub fn is_within_reply(&self) -> bool {
        self.lines > 0 || !self.line.is_empty()
    }

    fn take_line(&mut self) -> Option<Result<Reply, BadReply>> {
        let line = std::mem::take(&mut self.line);
        let line = line.strip_suffix(b"\r").unwrap_or(&line);
        let Some((code, last, text)) = split(line) else {
            return Some(Err(BadReply::Malformed(clean(line, 100))));
        };
        match self.code.replace(code) {
            // Within a class the last line counts; of two classes none can be believed.
            Some(before) if before / 100 != code / 100 => {
                return Some(Err(BadReply::Malformed(format!(
                    "{before} and {code} in one reply"
                ))));
            }
            _ => {}
        }
        let (enhanced, text) = split_enhanced(code, text);
        if self.lines == 0 {
            self.enhanced = enhanced;
        } else {
            self.text.push('\n');
        }
        self.lines += 1;
        clean_into(&mut self.text, text, MAX_TEXT);
        if !last {
            return None;
        }
        let mut text = std::mem::take(&mut self.text);
        text.truncate(text.trim_end_matches('\n').len());
        Some(Ok(Reply {
            code,
            enhanced: self.enhanced,
            text: Cow::Owned(text),
        }))
    }
}

/// Code, whether the line is the last, text.
fn split(line: &[u8]) -> Option<(u16, bool, &[u8])> {
    let [
        first @ b'2'..=b'5',
        second @ b'0'..=b'9',
        third @ b'0'..=b'9',
        rest @ ..,
    ] = line
    else {
        return None;
    };
    let code = u16::from(first - b'0') * 100 + u16::from(second - b'0') * 10 + u16::from(third - b'0');
    match rest {
        [] => Some((code, true, rest)),
        [b' ', text @ ..] => Some((code, true, text)),
        [b'-', text @ ..] => Some((code, false, text)),
        _ => None,
    }
}

/// Takes off an enhanced code that is well-formed. One whose class contradicts the code is taken off and forgotten: the
/// reply's first digit decides (RFC 2034 §4).
fn split_enhanced(code: u16, text: &[u8]) -> (Option<EnhancedCode>, &[u8]) {
    let end = memchr::memchr(b' ', text).unwrap_or(text.len());
    let Some(enhanced) = parse_enhanced(&text[..end]) else {
        return (None, text);
    };
    let rest = text.get(end + 1..).unwrap_or_default();
    (
        Some(enhanced).filter(|enhanced| u16::from(enhanced.0) == code / 100),
        rest,
    )
}

fn parse_enhanced(word: &[u8]) -> Option<EnhancedCode> {
    let mut parts = std::str::from_utf8(word).ok()?.split('.');
    let number = |part: Option<&str>| {
        part.filter(|part| (1..=3).contains(&part.len()) && part.bytes().all(|c| c.is_ascii_digit()))?
            .parse::<u16>()
            .ok()
    };
    let class = number(parts.next()).filter(|class| matches!(class, 2 | 4 | 5))?;
    let (subject, detail) = (number(parts.next())?, number(parts.next())?);
    parts
        .next()
        .is_none()
        .then_some(EnhancedCode(class as u8, subject, detail))
}

/// Text fit for logs and reports: at most `most` octets, no control characters.
fn clean(text: &[u8], most: usize) -> String {
    let mut out = String::new();
    clean_into(&mut out, text, most);
    out
}

/// The same behind what is in `out`, which has `most` octets then at the most.
fn clean_into(out: &mut String, text: &[u8], most: usize) {
    out.reserve(text.len().min(most.saturating_sub(out.len())));
    for c in String::from_utf8_lossy(text).chars() {
        let c = if c == '\t' {
            ' '
        } else if c.is_control() {
            '?'
        } else {
            c
        };
        if out.len() + c.len_utf8() > most {
            break;
        }
        out.push(c);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn read(octets: &[u8]) -> Option<Result<Reply, BadReply>> {
        ReplyReader::default().read(octets).1
    }

    fn text(octets: &[u8]) -> String {
        match read(octets) {
            Some(Ok(reply)) => format!(
                "{} {:?} {}",
                reply.code,
                reply.enhanced.map(|code| code.to_string()),
                reply.text
            ),
            other => format!("{other:?}"),
        }
    }

    #[test]
    fn reads_what_peers_send() {
        for (octets, expected) in [
            (&b"250 ok\r\n"[..], "250 None ok"),
            (b"250 2.0.0 queued as X\r\n", "250 Some(\"2.0.0\") queued as X"),
            (b"250-a\r\n250-b\r\n250 c\r\n", "250 None a\nb\nc"),
            (
                b"550-5.1.1 no\r\n550-5.1.1 such\r\n550 5.1.1 user\r\n",
                "550 Some(\"5.1.1\") no\nsuch\nuser",
            ),
            (b"250\r\n", "250 None "),
            (b"250-\r\n250 \r\n", "250 None "),
            (b"250 ok\n", "250 None ok"),
            (b"550 5.7\r\n", "550 None 5.7"),
            (b"550 5.7.2\r\n", "550 Some(\"5.7.2\") "),
            (b"550-5.7.2\r\n550\r\n", "550 Some(\"5.7.2\") "),
            (b"550 2.1.5 odd\r\n", "550 None odd"),
            (b"550 5.1.1.1 odd\r\n", "550 None 5.1.1.1 odd"),
            (b"450-first\r\n451 second\r\n", "451 None first\nsecond"),
            (b"250 a\x00b\x1b[31m\xff\r\n", "250 None a?b?[31m\u{fffd}"),
        ] {
            assert_eq!(text(octets), expected, "{:?}", String::from_utf8_lossy(octets));
        }
    }

    #[test]
    fn what_is_no_reply_is_malformed() {
        for octets in [
            &b"\r\n"[..],
            b"25\r\n",
            b"2500 ok\r\n",
            b"hello\r\n",
            b"650 x\r\n",
            b"999 x\r\n",
            b"150 x\r\n",
            b"250x\r\n",
            b"250-a\r\n550 b\r\n",
        ] {
            assert!(
                matches!(read(octets), Some(Err(BadReply::Malformed(_)))),
                "{:?}",
                String::from_utf8_lossy(octets)
            );
        }
    }

    #[test]
    fn a_last_line_without_its_end_counts_when_the_stream_ends() {
        let mut reader = ReplyReader::default();
        assert_eq!(reader.read(b"421 closing"), (11, None));
        assert_eq!(reader.end().unwrap().unwrap().code, 421);
        assert_eq!(reader.end(), None);
    }

    #[test]
    fn long_replies_are_bounded() {
        let mut many = b"250-x\r\n".repeat(150);
        many.extend_from_slice(b"250 end\r\n");
        assert!(matches!(read(&many), Some(Ok(_))));
        assert_eq!(read(&b"250-x\r\n".repeat(2_000)), Some(Err(BadReply::Endless)));
        assert_eq!(read(&vec![b'2'; 1 << 20]), Some(Err(BadReply::Endless)));
        let mut reader = ReplyReader::default();
        let long = [b"250-".to_vec(), vec![b'x'; 100_000], b"\r\n250 end\r\n".to_vec()].concat();
        let reply = reader.read(&long).1.unwrap().unwrap();
        assert!(reply.text.len() <= MAX_TEXT + 10);
    }

    proptest! {
        #[test]
        fn cuts_do_not_matter(garbage in proptest::collection::vec(prop_oneof![Just(b"250-a\r\n".to_vec()), Just(b"250 5.1.1 b\r\n".to_vec()), Just(b"421\n".to_vec()), proptest::collection::vec(any::<u8>(), 0..9)], 0..9), cut in 1usize..9) {
            let stream = garbage.concat();
            let all = |step: usize| {
                let mut reader = ReplyReader::default();
                let mut replies = Vec::new();
                for part in stream.chunks(step) {
                    let mut from = 0;
                    while from < part.len() {
                        let (taken, reply) = reader.read(&part[from..]);
                        prop_assert!(taken > 0);
                        from += taken;
                        replies.extend(reply);
                    }
                }
                Ok(replies)
            };
            prop_assert_eq!(all(cut)?, all(stream.len().max(1))?);
        }
    }
}
