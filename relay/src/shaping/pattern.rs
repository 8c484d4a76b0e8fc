//! Patterns of replies: their codes, and what their text contains.

use std::fmt;
use std::str::FromStr;

use mail_core::{EnhancedCode, Reply};
use memchr::memmem::Finder;

/// Octets of a reply's text that are looked at. Replies have been bounded before, but not that tightly.
const LOOKED_AT: usize = 2_048;

/// Characters of a pattern.
const MAX_PATTERN: usize = 200;

/// Of them, the least that are no `*`: a shorter one would fit by accident.
const MIN_WORDS: usize = 3;

/// A reply, or a cause in our words, as logs and journal have it: on one line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Said<'a> {
    /// Its three digits; none where the words are ours.
    pub code: Option<u16>,
    /// RFC 3463.
    pub enhanced: Option<EnhancedCode>,
    /// What follows.
    pub text: &'a str,
}

impl<'a> Said<'a> {
    /// Takes it apart.
    pub fn read(said: &'a str) -> Self {
        let (first, rest) = said.split_once(' ').unwrap_or((said, ""));
        let code = (first.len() == 3)
            .then(|| first.parse().ok())
            .flatten()
            .filter(|code| (200..600).contains(code));
        let text = if code.is_some() { rest } else { said };
        let (first, rest) = text.split_once(' ').unwrap_or((text, ""));
        match enhanced(first) {
            Some(enhanced) => Self {
                code,
                enhanced: Some(enhanced),
                text: rest,
            },
            None => Self {
                code,
                enhanced: None,
                text,
            },
        }
    }

    /// It says "not now": 4yz from a peer.
    pub fn is_transient_reply(&self) -> bool {
        self.code.is_some_and(|code| code / 100 == 4)
    }

    /// As a reply again; `None` where the words are ours.
    pub fn to_reply(self) -> Option<Reply> {
        Some(Reply {
            code: self.code?,
            enhanced: self.enhanced,
            text: self.text.to_owned().into(),
        })
    }

    /// The text as patterns see it: in lower case, single spaces between words and around all of it, without addresses, which
    /// peers like to repeat and which may have any word in them.
    pub(super) fn plain(&self) -> String {
        let mut text = self.text;
        if text.len() > LOOKED_AT {
            let end = (0..=LOOKED_AT).rev().find(|&end| text.is_char_boundary(end));
            text = &text[..end.unwrap_or_default()];
        }
        let mut plain = String::with_capacity(text.len() + 2);
        plain.push(' ');
        for word in text.split_whitespace().filter(|word| !word.contains('@')) {
            plain.push_str(word);
            plain.push(' ');
        }
        plain.make_ascii_lowercase();
        plain
    }
}

fn enhanced(word: &str) -> Option<EnhancedCode> {
    let mut numbers = word.split('.');
    let (class, subject, detail) = (numbers.next()?, numbers.next()?, numbers.next()?);
    let number = |text: &str| {
        let is_number = (1..=3).contains(&text.len()) && text.bytes().all(|c| c.is_ascii_digit());
        is_number.then(|| text.parse::<u16>().ok()).flatten()
    };
    let code = EnhancedCode(class.parse().ok()?, number(subject)?, number(detail)?);
    (matches!(code.0, 2 | 4 | 5) && numbers.next().is_none()).then_some(code)
}

/// `550`, `55x`, `4xx`; or `5.1.1`, `x.1.1`, `x.7.x`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CodePattern {
    /// By the three digits; `None`: any.
    Reply([Option<u8>; 3]),
    /// By the enhanced code; `None`: any.
    Enhanced(Option<u16>, u16, Option<u16>),
}

impl CodePattern {
    /// Whether a reply has such a code.
    pub fn fits(&self, said: &Said<'_>) -> bool {
        match self {
            Self::Reply(digits) => said.code.is_some_and(|code| {
                let has = [code / 100, code / 10 % 10, code % 10];
                let mut both = digits.iter().zip(has);
                both.all(|(digit, has)| digit.is_none_or(|digit| u16::from(digit) == has))
            }),
            Self::Enhanced(class, subject, detail) => said.enhanced.is_some_and(|has| {
                class.is_none_or(|class| class == u16::from(has.0))
                    && *subject == has.1
                    && detail.is_none_or(|detail| detail == has.2)
            }),
        }
    }
}

impl fmt::Display for CodePattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let number = |number: &Option<u16>| number.map_or("x".to_owned(), |number| number.to_string());
        match self {
            Self::Reply(digits) => digits
                .iter()
                .try_for_each(|digit| f.write_str(&number(&digit.map(u16::from)))),
            Self::Enhanced(class, subject, detail) => {
                write!(f, "{}.{subject}.{}", number(class), number(detail))
            }
        }
    }
}

impl FromStr for CodePattern {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let wrong = "is no code of a refusal; write such as \"550\", \"45x\", \"5.1.1\", \"x.7.x\"";
        let parts: Vec<_> = text.split('.').collect();
        let number = |part: &str| match part {
            "x" => Ok(None),
            part if (1..=3).contains(&part.len()) && part.bytes().all(|c| c.is_ascii_digit()) => {
                part.parse().map(Some).map_err(|_| wrong)
            }
            _ => Err(wrong),
        };
        match parts[..] {
            [class, subject, detail] => {
                let class = number(class)?;
                let subject = number(subject)?.ok_or(wrong)?;
                if !matches!(class, None | Some(4 | 5)) {
                    return Err(wrong);
                }
                Ok(Self::Enhanced(class, subject, number(detail)?))
            }
            [code] if code.len() == 3 => {
                let mut digits = [None; 3];
                for (digit, c) in digits.iter_mut().zip(code.chars()) {
                    *digit = match c {
                        'x' => None,
                        c => Some(c.to_digit(10).ok_or(wrong)? as u8),
                    };
                }
                match digits {
                    [Some(4 | 5), second, third] if second.is_some() || third.is_none() => {
                        Ok(Self::Reply(digits))
                    }
                    _ => Err(wrong),
                }
            }
            _ => Err(wrong),
        }
    }
}

/// What a text contains: words in this order, anything in between.
#[derive(Clone)]
pub struct TextPattern {
    written: Box<str>,
    words: Vec<Finder<'static>>,
}

impl TextPattern {
    /// Whether a text that [`Said::plain`] made contains it.
    pub(super) fn fits(&self, plain: &str) -> bool {
        let mut rest = plain.as_bytes();
        self.words.iter().all(|word| match word.find(rest) {
            Some(at) => {
                rest = &rest[at + word.needle().len()..];
                true
            }
            None => false,
        })
    }
}

impl fmt::Display for TextPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.written)
    }
}

impl fmt::Debug for TextPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.written.fmt(f)
    }
}

impl FromStr for TextPattern {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let lower = text.to_ascii_lowercase();
        let words: Vec<_> = lower.split('*').filter(|word| !word.is_empty()).collect();
        if text.len() > MAX_PATTERN || words.iter().map(|word| word.trim().len()).sum::<usize>() < MIN_WORDS {
            return Err(format!(
                "is no text to look for: {MIN_WORDS} to {MAX_PATTERN} characters, \"*\" for anything in between"
            ));
        }
        if text.contains('@') {
            return Err("looks for an address; those are left out before a reply is looked at".into());
        }
        if text.contains("  ") || text.chars().any(char::is_control) {
            return Err("has more than one space in a row, which no reply has when it is looked at".into());
        }
        Ok(Self {
            written: text.into(),
            words: words
                .iter()
                .map(|word| Finder::new(word.as_bytes()).into_owned())
                .collect(),
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn replies_are_taken_apart_as_they_were_put_together() {
        for (said, code, enhanced, text) in [
            (
                "550 5.1.1 no such user",
                Some(550),
                Some((5, 1, 1)),
                "no such user",
            ),
            (
                "421 Too many connections",
                Some(421),
                None,
                "Too many connections",
            ),
            (
                "4.4.1 mx.test: connection refused",
                None,
                Some((4, 4, 1)),
                "mx.test: connection refused",
            ),
            ("connection lost at RCPT", None, None, "connection lost at RCPT"),
            ("554", Some(554), None, ""),
            ("550 1.2.3.4 is blocked", Some(550), None, "1.2.3.4 is blocked"),
            ("550 5.1.1.1 is blocked", Some(550), None, "5.1.1.1 is blocked"),
            ("", None, None, ""),
        ] {
            let read = Said::read(said);
            let enhanced = enhanced.map(|(a, b, c)| EnhancedCode(a, b, c));
            assert_eq!(
                (read.code, read.enhanced, read.text),
                (code, enhanced, text),
                "{said}"
            );
            if let Some(reply) = read.to_reply() {
                assert_eq!(reply.to_string(), said.trim_end());
            }
        }
    }

    #[test]
    fn codes_fit_where_they_should() {
        let fits = |pattern: &str, said| pattern.parse::<CodePattern>().unwrap().fits(&Said::read(said));
        for (pattern, said, expected) in [
            ("550", "550 no", true),
            ("55x", "552 5.2.2 no", true),
            ("4xx", "451 later", true),
            ("4xx", "550 no", false),
            ("5.1.1", "450 4.1.1 no", false),
            ("x.1.1", "450 4.1.1 no", true),
            ("x.7.x", "550 5.7.606 no", true),
            ("x.7.x", "550 no", false),
            ("550", "5.1.1 our words", false),
        ] {
            assert_eq!(fits(pattern, said), expected, "{pattern} {said}");
        }
        for pattern in ["550", "55x", "4xx", "5.1.1", "x.1.1", "x.7.x"] {
            assert_eq!(pattern.parse::<CodePattern>().unwrap().to_string(), pattern);
        }
        for wrong in [
            "", "2.1.1", "250", "5", "5.x.1", "5.1", "x5x", "5x1", "5.1.1.1", "55", "5500",
        ] {
            assert!(wrong.parse::<CodePattern>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn words_are_found_in_order_and_addresses_are_not_looked_at() {
        let fits = |pattern: &str, text: &str| {
            let said = Said {
                code: None,
                enhanced: None,
                text,
            };
            pattern.parse::<TextPattern>().unwrap().fits(&said.plain())
        };
        assert!(fits("Mailbox*full", "The  MAILBOX of bob is FULL"));
        assert!(!fits("full*mailbox", "mailbox full"));
        assert!(!fits("spam", "<spam@example.org>: no such user"));
        assert!(fits(" rbl ", "listed in an RBL"));
        assert!(!fits(" rbl ", "marble"));
        for wrong in ["", "*", "ab*", "a@b", "a  bc", &"x".repeat(201)] {
            assert!(wrong.parse::<TextPattern>().is_err(), "{wrong}");
        }
    }

    proptest! {
        /// Whatever a peer says: no panic, and bounded work.
        #[test]
        fn nothing_a_peer_says_hurts(said in "\\PC{0,400}", pattern in "[a-z* ]{3,20}") {
            let read = Said::read(&said);
            let plain = read.plain();
            if let Ok(pattern) = pattern.parse::<TextPattern>() {
                pattern.fits(&plain);
            }
            prop_assert!(plain.len() <= LOOKED_AT + 2);
        }
    }
}
