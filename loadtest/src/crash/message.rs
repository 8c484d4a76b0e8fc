//! The messages of a crash run. Each is a function of the run's seed and its number, so that what arrives can be compared
//! with what was sent without keeping it.

use bytes::Bytes;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

/// Where failure reports go; a mailbox of the lab.
pub(super) const SENDER: &str = "load@second.test";
/// The one address the lab's `reject.test` does not know.
pub(super) const UNKNOWN: &str = "nobody@reject.test";

/// The header field that carries a message's number.
const NUMBER: &str = "X-Load";

/// A message and whom it is for.
#[derive(Debug)]
pub(super) struct Message {
    /// Unique within the run, from 0.
    pub(super) number: u64,
    /// One to four, all different.
    pub(super) recipients: Vec<String>,
    /// As sent: CRLF lines, no dot-stuffing, no final dot.
    pub(super) raw: Bytes,
}

impl Message {
    /// The `number`th message of the run with this `seed`.
    pub(super) fn new(seed: u64, number: u64) -> Self {
        let mut rng = SmallRng::seed_from_u64(seed ^ number.wrapping_mul(0x9E37_79B9_7F4A_7C15));
        let recipients = recipients(&mut rng, number);
        let mut raw = format!(
            "From: <{SENDER}>\r\nTo: undisclosed-recipients:;\r\nSubject: load {number}\r\n\
             Date: Mon, 23 Nov 2026 12:00:00 +0000\r\nMessage-ID: <{seed:x}.{number}@load.test>\r\n{NUMBER}: {number}\r\n\r\n"
        )
        .into_bytes();
        // Some 1 KiB mostly, now and then 64 KiB: bodies that end in one write and bodies that don't.
        let lines = if rng.random_ratio(1, 50) {
            900
        } else {
            rng.random_range(1..30)
        };
        for _ in 0..lines {
            // Lines of dots among them; what a decoder loses, it loses there.
            let dots = if rng.random_ratio(1, 8) {
                rng.random_range(1..4)
            } else {
                0
            };
            raw.extend(std::iter::repeat_n(b'.', dots));
            let text = rng.random_range(0..72);
            raw.extend((0..text).map(|_| rng.random_range(b' '..=b'~')));
            raw.extend_from_slice(b"\r\n");
        }
        Self {
            number,
            recipients,
            raw: raw.into(),
        }
    }
}

/// Mostly one domain that takes everything; some at a second one, greylisted, or unknown.
fn recipients(rng: &mut SmallRng, number: u64) -> Vec<String> {
    let box_number = number % 16;
    let mut chosen = vec![format!("load{box_number}@ok.test")];
    if rng.random_ratio(1, 4) {
        chosen.push(format!("load{box_number}@second.test"));
    }
    if rng.random_ratio(1, 10) {
        chosen.push(format!("load{number}@greylist.test"));
    }
    if rng.random_ratio(1, 20) {
        chosen.push(UNKNOWN.to_owned());
    }
    if chosen.len() > 1 && rng.random_ratio(1, 2) {
        chosen.remove(0);
    }
    chosen
}

/// The number within a message, or within the original that a report carries.
pub(super) fn number_in(raw: &[u8]) -> Option<u64> {
    let field = format!("\r\n{NUMBER}: ");
    let at = raw
        .windows(field.len())
        .position(|window| window == field.as_bytes())?;
    let digits = &raw[at + field.len()..];
    let end = digits.iter().position(|octet| !octet.is_ascii_digit())?;
    std::str::from_utf8(&digits[..end]).ok()?.parse().ok()
}

/// Dot-stuffed and ended, ready to be sent after 354.
pub(super) fn as_data(raw: &[u8]) -> Vec<u8> {
    let mut data = Vec::with_capacity(raw.len() + raw.len() / 64 + 3);
    for line in raw.split_inclusive(|octet| *octet == b'\n') {
        if line.first() == Some(&b'.') {
            data.push(b'.');
        }
        data.extend_from_slice(line);
    }
    data.extend_from_slice(b".\r\n");
    data
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_is_a_function_of_seed_and_number() {
        let (one, again, other) = (Message::new(7, 3), Message::new(7, 3), Message::new(8, 3));
        assert_eq!(one.raw, again.raw);
        assert_eq!(one.recipients, again.recipients);
        assert_ne!(one.raw, other.raw);
    }

    #[test]
    fn its_number_is_found_again() {
        let message = Message::new(1, 4711);
        assert_eq!(number_in(&message.raw), Some(4711));
        assert_eq!(number_in(b"Subject: none\r\n\r\n"), None);
    }

    #[test]
    fn recipients_differ_and_are_never_none() {
        for number in 0..2000 {
            let mut recipients = Message::new(5, number).recipients;
            assert!(!recipients.is_empty());
            let count = recipients.len();
            recipients.sort();
            recipients.dedup();
            assert_eq!(recipients.len(), count);
        }
    }

    #[test]
    fn dots_are_stuffed() {
        assert_eq!(as_data(b"a\r\n.\r\n..b\r\n"), b"a\r\n..\r\n...b\r\n.\r\n");
    }
}
