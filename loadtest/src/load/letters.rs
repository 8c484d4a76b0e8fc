//! What a load sends: messages that cost next to nothing to make and to check.
//!
//! A message is a function of the load and its number. Its first field is a seal, the length and the CRC32C of all that follows it and
//! of what it says itself, so whoever takes the message tells by itself whether it is whole, below whatever fields a relay has put on top.

use std::str::FromStr;

use anyhow::{Context as _, bail, ensure};
use bytes::Bytes;
use rand::rngs::SmallRng;
use rand::{Rng, RngCore, SeedableRng};

/// The name of the seal's field.
const SEAL: &str = "X-Load";
/// How far into a message its seal is looked for. Relays add a few KiB of fields at the most.
const SEAL_WITHIN: usize = 64 << 10;
/// Octets of a line of a body, CRLF included.
const LINE: usize = 64;
/// Lines of which the last one begins with dots: what a decoder loses, it loses there.
const GROUP_LINES: usize = 16;
/// Octets of such a group, and as sent with its dot stuffed.
const GROUP: usize = LINE * GROUP_LINES;
const STUFFED: usize = GROUP + 1;
/// Groups of the block that all bodies are cut from.
const GROUPS: usize = 256;
/// The largest message, so that lengths stay within what tables and limits expect.
const MAX_SIZE: usize = 64 << 20;
/// The most domains of a load.
pub(crate) const MAX_DOMAINS: usize = 60_000;

/// Octets of a message: one size, or several by weight.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Sizes(Vec<(usize, u32)>);

impl Sizes {
    fn draw(&self, rng: &mut SmallRng) -> usize {
        if let [(only, _)] = self.0[..] {
            return only;
        }
        let mut left = rng.random_range(0..self.0.iter().map(|(_, weight)| weight).sum());
        for (octets, weight) in &self.0 {
            if left < *weight {
                return *octets;
            }
            left -= weight;
        }
        0 // not reached: left is below the sum
    }
}

impl FromStr for Sizes {
    type Err = anyhow::Error;

    /// `10KiB`, or `1KiB:50,10KiB:40,1MiB:10`.
    fn from_str(text: &str) -> anyhow::Result<Self> {
        let mut sizes = Vec::new();
        for part in text.split(',') {
            let (size, weight) = part.split_once(':').unwrap_or((part, "1"));
            let (octets, weight) = (octets(size)?, weight.trim().parse().ok());
            let weight = weight
                .filter(|weight| (1..=1_000_000).contains(weight))
                .with_context(|| format!("{part:?}: a weight is a number from 1 to 1000000"))?;
            ensure!(octets <= MAX_SIZE, "{size}: at most 64MiB");
            sizes.push((octets, weight));
            ensure!(sizes.len() <= 100, "at most 100 sizes");
        }
        Ok(Self(sizes))
    }
}

/// `512`, `10KiB` or `1MiB`.
fn octets(text: &str) -> anyhow::Result<usize> {
    let text = text.trim();
    let (digits, unit) = match (text.strip_suffix("KiB"), text.strip_suffix("MiB")) {
        (Some(digits), _) => (digits, 1 << 10),
        (_, Some(digits)) => (digits, 1 << 20),
        _ => (text, 1),
    };
    let number: usize = digits
        .trim()
        .parse()
        .with_context(|| format!("{text:?} is no size such as 512, 10KiB or 1MiB"))?;
    number.checked_mul(unit).context("too large")
}

/// To which of the domains `d0.SUFFIX`, `d1.SUFFIX`, … messages go.
#[derive(Clone, Debug)]
pub(crate) struct Spread {
    suffix: String,
    /// The number of the first domain.
    first: usize,
    /// The share of all up to and including the domain of this number; the last is 1.
    cumulative: Vec<f64>,
}

impl Spread {
    /// By Zipf's law: the nth domain gets 1/n^`exponent` of what the first does; 0 spreads evenly.
    pub(crate) fn zipf(domains: usize, exponent: f64, suffix: &str) -> anyhow::Result<Self> {
        ensure!(
            (1..=MAX_DOMAINS).contains(&domains),
            "from 1 to {MAX_DOMAINS} domains"
        );
        ensure!((0.0..=10.0).contains(&exponent), "an exponent is from 0 to 10");
        let mut sum = 0.0;
        let mut cumulative: Vec<f64> = (1..=domains)
            .map(|rank| {
                sum += (rank as f64).powf(-exponent);
                sum
            })
            .collect();
        for share in &mut cumulative {
            *share /= sum;
        }
        Ok(Self {
            suffix: suffix.to_owned(),
            first: 0,
            cumulative,
        })
    }

    /// The same, over the domains from this number on.
    pub(crate) fn from(self, first: usize) -> Self {
        Self { first, ..self }
    }

    pub(crate) fn domains(&self) -> usize {
        self.cumulative.len()
    }

    pub(crate) fn name(&self, domain: usize) -> String {
        format!("d{domain}.{}", self.suffix)
    }

    fn draw(&self, rng: &mut SmallRng) -> usize {
        if self.cumulative.len() == 1 {
            return self.first;
        }
        let at: f64 = rng.random();
        let number = self.cumulative.partition_point(|share| *share < at);
        self.first + number.min(self.cumulative.len() - 1)
    }
}

/// All messages of a load.
pub(crate) struct Letters {
    /// Which load it is: what arrives of another one is not this one's.
    run: u64,
    sender: String,
    sizes: Sizes,
    spread: Spread,
    /// Of each message.
    recipients: u32,
    plain: Bytes,
    stuffed: Bytes,
}

/// The number of the first recipient of a message; the others' follow.
pub(crate) fn first_mailbox(number: u32) -> u32 {
    number % 64
}

/// One of them.
pub(crate) struct Letter {
    /// The number of its recipients' domain.
    pub(crate) domain: u32,
    pub(crate) recipients: Vec<String>,
    /// The header section, its blank line included.
    header: String,
    /// The first group of its body, and octets of the body.
    first: usize,
    body: usize,
}

impl Letters {
    pub(crate) fn new(run: u64, sender: &str, sizes: Sizes, spread: Spread) -> Self {
        let mut rng = SmallRng::seed_from_u64(run);
        let mut plain = vec![0; GROUPS * GROUP];
        let mut stuffed = Vec::with_capacity(GROUPS * STUFFED);
        for (number, group) in plain.chunks_exact_mut(GROUP).enumerate() {
            rng.fill_bytes(group);
            for octet in &mut *group {
                *octet = b'0' + (*octet & 0x3f); // from the nought to the letter o
            }
            for line in group.chunks_exact_mut(LINE) {
                line[LINE - 2..].copy_from_slice(b"\r\n");
            }
            let last = GROUP - LINE;
            match number % 3 {
                // A line of nothing but a dot, one of two, one with a dot in front.
                0 => group[last..last + 3].copy_from_slice(b".\r\n"),
                1 => group[last..last + 4].copy_from_slice(b"..\r\n"),
                _ => group[last] = b'.',
            }
            stuffed.extend_from_slice(&group[..last]);
            stuffed.push(b'.');
            stuffed.extend_from_slice(&group[last..]);
        }
        Self {
            run,
            sender: sender.to_owned(),
            sizes,
            spread,
            recipients: 1,
            plain: plain.into(),
            stuffed: stuffed.into(),
        }
    }

    /// The same, each message to so many mailboxes of its domain.
    pub(crate) fn with_recipients(self, recipients: u32) -> Self {
        Self { recipients, ..self }
    }

    pub(crate) fn sender(&self) -> &str {
        &self.sender
    }

    pub(crate) fn letter(&self, number: u32) -> Letter {
        let mut rng =
            SmallRng::seed_from_u64(self.run ^ u64::from(number).wrapping_mul(0x9E37_79B9_7F4A_7C15));
        let domain = self.spread.draw(&mut rng);
        let size = self.sizes.draw(&mut rng);
        let name = self.spread.name(domain);
        let first = first_mailbox(number);
        let recipients = (0..self.recipients).map(|other| format!("u{}@{name}", first + other));
        let to = (domain as u32, recipients.collect());
        self.to(number, to, size, rng.random_range(0..GROUPS))
    }

    fn to(&self, number: u32, (domain, recipients): (u32, Vec<String>), size: usize, first: usize) -> Letter {
        let Self { run, sender, .. } = self;
        let recipient = recipients.first().map_or("", String::as_str);
        let rest = format!(
            "From: <{sender}>\r\nTo: <{recipient}>\r\nSubject: load {number}\r\n\
             Date: Mon, 23 Nov 2026 12:00:00 +0000\r\nMessage-ID: <{run:x}.{number}@load.test>\r\n\r\n"
        );
        // The body in whole lines, one at the least; its seal is some 50 octets long.
        let body = size.saturating_sub(rest.len() + 50).div_ceil(LINE).max(1) * LINE;
        let said = format!("{run:x} {number} {}", rest.len() + body);
        let mut crc = crc32c::crc32c_append(crc32c::crc32c(said.as_bytes()), rest.as_bytes());
        for piece in pieces(&self.plain, GROUP, first, body) {
            crc = crc32c::crc32c_append(crc, piece);
        }
        Letter {
            domain,
            header: format!("{SEAL}: {said} {crc:08x}\r\n{rest}"),
            recipients,
            first,
            body,
        }
    }

    /// As sent after 354: stuffed, with the final dot.
    pub(crate) fn data<'a>(&'a self, letter: &'a Letter) -> impl Iterator<Item = &'a [u8]> {
        let (groups, rest) = (letter.body / GROUP, letter.body % GROUP);
        // The dots stand in the last line of a group, so that a part of one needs no stuffing.
        let body = pieces(&self.stuffed, STUFFED, letter.first, groups * STUFFED + rest);
        std::iter::once(letter.header.as_bytes())
            .chain(body)
            .chain(std::iter::once(&b".\r\n"[..]))
    }

    /// As sent by BDAT.
    pub(crate) fn raw<'a>(&'a self, letter: &'a Letter) -> impl Iterator<Item = &'a [u8]> {
        std::iter::once(letter.header.as_bytes()).chain(pieces(&self.plain, GROUP, letter.first, letter.body))
    }
}

impl Letter {
    /// Octets of the message.
    pub(crate) fn octets(&self) -> usize {
        self.header.len() + self.body
    }
}

/// So many octets of the block from a group on, and from its begin again where it ends.
fn pieces(block: &[u8], group: usize, first: usize, octets: usize) -> impl Iterator<Item = &[u8]> {
    let (mut at, mut left) = (first * group, octets);
    std::iter::from_fn(move || {
        let piece = left.min(block.len() - at);
        let taken = (piece > 0).then(|| &block[at..at + piece]);
        (at, left) = (0, left - piece);
        taken
    })
}

/// What a message that has arrived says of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Seal {
    Intact {
        run: u64,
        number: u32,
    },
    /// Its octets are not those that were sealed.
    Damaged {
        run: u64,
        number: u32,
    },
    /// No message of a load's, or none any more.
    None,
}

/// Looks at a message without dot-stuffing.
pub(crate) fn seal(message: &[u8]) -> Seal {
    let within = &message[..message.len().min(SEAL_WITHIN)];
    match seal_in(within) {
        Ok((run, number, octets, crc, begin)) => {
            let sealed = &message[begin..];
            let said = crc32c::crc32c(format!("{run:x} {number} {octets}").as_bytes());
            if sealed.len() == octets && crc32c::crc32c_append(said, sealed) == crc {
                Seal::Intact { run, number }
            } else {
                Seal::Damaged { run, number }
            }
        }
        Err(_) => Seal::None,
    }
}

fn seal_in(message: &[u8]) -> anyhow::Result<(u64, u32, usize, u32, usize)> {
    let name = format!("{SEAL}: ");
    let at = memchr::memmem::find_iter(message, name.as_bytes())
        .find(|at| *at == 0 || message[at - 1] == b'\n')
        .context("no seal")?
        + name.len();
    let end = memchr::memmem::find(&message[at..], b"\r\n").context("no end")?;
    let text = std::str::from_utf8(&message[at..at + end])?;
    let mut words = text.split(' ');
    let mut word = || words.next().context("too few words");
    let run = u64::from_str_radix(word()?, 16)?;
    let (number, octets) = (word()?.parse()?, word()?.parse()?);
    let crc = u32::from_str_radix(word()?, 16)?;
    if words.next().is_some() {
        bail!("too many words");
    }
    Ok((run, number, octets, crc, at + end + 2))
}

#[cfg(test)]
mod tests {
    use mail_core::smtp::data::Decoder;

    use super::*;

    fn letters(sizes: &str, domains: usize) -> Letters {
        Letters::new(
            7,
            "load@sender.test",
            sizes.parse().unwrap(),
            Spread::zipf(domains, 1.0, "load.test").unwrap(),
        )
    }

    #[test]
    fn what_is_sent_decodes_to_an_intact_message() {
        // Larger than the block, too.
        for size in ["1", "1KiB", "10KiB", "100KiB", "700KiB"] {
            let letters = letters(size, 3);
            for number in 0..40 {
                let letter = letters.letter(number);
                let raw: Vec<u8> = letters.raw(&letter).flatten().copied().collect();
                assert_eq!(raw.len(), letter.octets());
                assert_eq!(seal(&raw), Seal::Intact { run: 7, number }, "{size} {number}");
                let mut decoder = Decoder::new(0, None);
                let sent: Vec<u8> = letters.data(&letter).flatten().copied().collect();
                assert_eq!(decoder.decode(&sent), sent.len(), "no end before the end");
                assert!(decoder.is_at_end());
                assert_eq!(decoder.finish().unwrap().octets, raw);
            }
        }
    }

    #[test]
    fn a_message_goes_to_as_many_as_it_is_meant_to() {
        let spread = Spread::zipf(2, 0.0, "load.test").unwrap().from(5);
        let letters = Letters::new(7, "a@sender.test", "1KiB".parse().unwrap(), spread).with_recipients(3);
        for number in 0..40 {
            let recipients = letters.letter(number).recipients;
            let domains: Vec<_> = recipients
                .iter()
                .map(|one| one.split_once('@').unwrap().1)
                .collect();
            assert!(["d5.load.test", "d6.load.test"].contains(&domains[0]));
            assert!(domains.iter().all(|domain| *domain == domains[0]));
            let different: std::collections::HashSet<_> = recipients.iter().collect();
            assert_eq!(different.len(), 3);
        }
    }

    #[test]
    fn fields_on_top_do_no_harm_and_anything_else_does() {
        let letters = letters("2KiB", 1);
        let raw: Vec<u8> = letters.raw(&letters.letter(3)).flatten().copied().collect();
        let below = [b"Received: by x; for X-Load: 1\r\n".to_vec(), raw.clone()].concat();
        assert_eq!(seal(&below), Seal::Intact { run: 7, number: 3 });
        for cut in [raw.len() - 1, raw.len() - 64, 200] {
            assert_eq!(seal(&raw[..cut]), Seal::Damaged { run: 7, number: 3 });
        }
        let mut changed = raw.clone();
        changed[1_500] ^= 1;
        assert_eq!(seal(&changed), Seal::Damaged { run: 7, number: 3 });
        assert_eq!(
            seal(&[&raw[..], b"\r\n"].concat()),
            Seal::Damaged { run: 7, number: 3 }
        );
        assert_eq!(seal(&raw[10..]), Seal::None);
        assert_eq!(seal(b""), Seal::None);
    }

    #[test]
    fn sizes_come_by_weight() {
        let letters = letters("1KiB:3,100KiB:1", 1);
        let large = (0..1000)
            .filter(|number| letters.letter(*number).octets() > 50_000)
            .count();
        assert!((200..300).contains(&large), "{large}");
        let one = letters.letter(1).octets();
        assert!((1_000..110_000).contains(&one));
        for wrong in [
            "",
            "x",
            "10KB",
            "1KiB:0",
            "1KiB:",
            "65MiB",
            "99999999999999999999MiB",
        ] {
            assert!(wrong.parse::<Sizes>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn domains_come_by_zipf() {
        let letters = letters("1KiB", 100);
        let mut counts = [0; 100];
        for number in 0..20_000 {
            let recipient = letters.letter(number).recipients.remove(0);
            let domain = recipient.split_once("@d").unwrap().1.split_once('.').unwrap().0;
            counts[domain.parse::<usize>().unwrap()] += 1;
        }
        // 1/H(100) of all is 0.193; the tenth a tenth of it.
        assert!((3_600..4_100).contains(&counts[0]), "{}", counts[0]);
        assert!((300..480).contains(&counts[9]), "{}", counts[9]);
        assert!(counts[99] > 0);
    }
}
