//! The messages of a proof. Each is a function of the plan and its number, so that what arrives can be compared with what was
//! sent without keeping it.

use bytes::Bytes;
use rand::rngs::SmallRng;
use rand::{Rng, RngCore, SeedableRng};

/// Where failure reports go; a mailbox of the lab.
pub(crate) const SENDER: &str = "load@second.test";
/// The one address the lab's `reject.test` does not know.
pub(crate) const UNKNOWN: &str = "nobody@reject.test";

/// The header field that carries a message's number.
const NUMBER: &str = "X-Load";

/// What a run sends.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Plan {
    pub(crate) seed: u64,
    pub(crate) sizes: Sizes,
}

/// How large messages are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Sizes {
    /// Some 1 KiB, now and then 64 KiB: bodies that end in one write and bodies that don't.
    Small,
    /// Half of them so; the others 64 KiB, and one in forty over 512 KiB, which the relay stores in chunks as they come. So
    /// a few thousand fill memtables and logs several times.
    Mixed,
}

/// A message and whom it is for.
#[derive(Debug)]
pub(crate) struct Message {
    /// Unique within the run, from 0.
    pub(crate) number: u64,
    /// One to four, all different.
    pub(crate) recipients: Vec<String>,
    /// As sent: CRLF lines, no dot-stuffing, no final dot.
    pub(crate) raw: Bytes,
}

impl Plan {
    /// The `number`th message.
    pub(crate) fn message(self, number: u64) -> Message {
        let mut rng = self.rng(number);
        let recipients = recipients(&mut rng, number);
        let seed = self.seed;
        let mut raw = format!(
            "From: <{SENDER}>\r\nTo: undisclosed-recipients:;\r\nSubject: load {number}\r\n\
             Date: Mon, 23 Nov 2026 12:00:00 +0000\r\nMessage-ID: <{seed:x}.{number}@load.test>\r\n{NUMBER}: {number}\r\n\r\n"
        )
        .into_bytes();
        for _ in 0..self.lines(&mut rng) {
            // Lines of dots among them; what a decoder loses, it loses there.
            let dots = if rng.random_ratio(1, 8) {
                rng.random_range(1..4)
            } else {
                0
            };
            raw.extend(std::iter::repeat_n(b'.', dots));
            let text = rng.random_range(0..72);
            let begin = raw.len();
            raw.resize(begin + text, 0);
            rng.fill_bytes(&mut raw[begin..]);
            for octet in &mut raw[begin..] {
                *octet = b' ' + (*octet & 0x3f); // from the space to the underscore
            }
            raw.extend_from_slice(b"\r\n");
        }
        Message {
            number,
            recipients,
            raw: raw.into(),
        }
    }

    /// Its recipients alone, which costs little.
    pub(crate) fn recipients(self, number: u64) -> Vec<String> {
        recipients(&mut self.rng(number), number)
    }

    fn rng(self, number: u64) -> SmallRng {
        SmallRng::seed_from_u64(self.seed ^ number.wrapping_mul(0x9E37_79B9_7F4A_7C15))
    }

    fn lines(self, rng: &mut SmallRng) -> usize {
        const OF_64_KIB: usize = 1_700;
        match self.sizes {
            Sizes::Mixed if rng.random_ratio(1, 40) => rng.random_range(15_000..40_000),
            Sizes::Mixed if rng.random_ratio(1, 2) => OF_64_KIB,
            Sizes::Small if rng.random_ratio(1, 50) => OF_64_KIB,
            Sizes::Small | Sizes::Mixed => rng.random_range(1..30),
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
pub(crate) fn number_in(raw: &[u8]) -> Option<u64> {
    let field = format!("\r\n{NUMBER}: ");
    let at = raw
        .windows(field.len())
        .position(|window| window == field.as_bytes())?;
    let digits = &raw[at + field.len()..];
    let end = digits.iter().position(|octet| !octet.is_ascii_digit())?;
    std::str::from_utf8(&digits[..end]).ok()?.parse().ok()
}

/// Dot-stuffed and ended, ready to be sent after 354.
pub(crate) fn as_data(raw: &[u8]) -> Vec<u8> {
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

    const PLAN: Plan = Plan {
        seed: 7,
        sizes: Sizes::Small,
    };

    #[test]
    fn a_message_is_a_function_of_plan_and_number() {
        let other = Plan { seed: 8, ..PLAN };
        let (one, again, other) = (PLAN.message(3), PLAN.message(3), other.message(3));
        assert_eq!(one.raw, again.raw);
        assert_eq!(one.recipients, again.recipients);
        assert_eq!(one.recipients, PLAN.recipients(3));
        assert_ne!(one.raw, other.raw);
    }

    #[test]
    fn its_number_is_found_again() {
        let message = PLAN.message(4711);
        assert_eq!(number_in(&message.raw), Some(4711));
        assert_eq!(number_in(b"Subject: none\r\n\r\n"), None);
    }

    #[test]
    fn mixed_messages_are_of_all_sizes() {
        let plan = Plan {
            sizes: Sizes::Mixed,
            ..PLAN
        };
        let sizes: Vec<usize> = (0..200).map(|number| plan.message(number).raw.len()).collect();
        for (from, to) in [(0, 2 << 10), (32 << 10, 128 << 10), (512 << 10, 2 << 20)] {
            assert!(sizes.iter().any(|size| (from..to).contains(size)), "{from}..{to}");
        }
    }

    #[test]
    fn recipients_differ_and_are_never_none() {
        for number in 0..2000 {
            let mut recipients = PLAN.recipients(number);
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
