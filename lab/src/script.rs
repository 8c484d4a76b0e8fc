//! Scripted peers: a mail server's side of a conversation as a text file, for peers odder than any setting could make them.
//!
//! ```text
//! # A peer that greylists, and hangs up after the final dot when the client comes again.
//! connection 1
//! S: 220 mx.test
//! C: EHLO *
//! S: 250 mx.test
//! C: MAIL FROM:<*>
//! S: 450 4.7.1 come again
//!
//! connection 2..
//! S: 220 mx.test
//! C: EHLO *
//! S: 250 mx.test
//! C: MAIL FROM:<*>
//! S: 250 ok
//! C: RCPT TO:<*>
//! S: 250 ok
//! C: DATA
//! S: 354 go on
//! C: ...
//! C: .
//! close
//! ```
//!
//! Each line is a step, done in turn on each connection; at the end the peer hangs up. Blank lines and those that begin with
//! `#` say nothing.
//!
//! | step | what it does |
//! |---|---|
//! | `S: TEXT` | says a line; CRLF is added |
//! | `raw: TEXT` | says just that |
//! | `C: PATTERN` | reads a line, which must fit: `*` stands for anything, case does not matter |
//! | `C: ...` | reads lines until one fits the next step, a `C: PATTERN`; with `C: .` they are a message, kept without its stuffing |
//! | `take 100 bytes` | reads so many octets, lines or not |
//! | `delay 2s` | waits; `ms`, `s`, `m`, `h` |
//! | `drip 1 byte every 10ms` | from here on says everything so slowly, until `drip off` |
//! | `starttls` | the handshake, after the `S:` line that announces it |
//! | `implicit tls` | the handshake; comes first |
//! | `close_notify` | ends TLS, and goes on in clear on the same connection |
//! | `silence` | says nothing more, and reads until the client hangs up |
//! | `stall` | neither says nor reads anything more |
//! | `close` | hangs up |
//! | `reset` | hangs up with a TCP reset |
//! | `repeat 10`, `repeat` | does the steps up to `end` so often, or until the client hangs up |
//! | `connection 1`, `connection 2..4`, `connection 5..` | what follows is for these connections, counted from 1; others are hung up on |
//!
//! In the text of `S:`, `raw:` and `C:`, `\r`, `\n`, `\t`, `\0`, `\\`, `\*` and `\xHH` stand for octets.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

mod parse;
mod player;
mod server;

pub use player::{Ending, Record, play};
pub use server::Played;
pub(crate) use server::{Peers, ScriptedHost};

/// Octets of a script.
const MAX_SCRIPT: u64 = 1 << 20;

/// A peer's conversations.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Script {
    sections: Vec<Section>,
}

/// The steps for one connection, or some.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Section {
    first: u64,
    last: u64,
    steps: Vec<Step>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Step {
    /// Of the file, from 1.
    line: usize,
    what: What,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum What {
    Say(Vec<u8>),
    Hear(Pattern),
    /// Lines up to one that fits.
    HearUntil(Pattern),
    Take(usize),
    Delay(Duration),
    Drip(Option<Drip>),
    StartTls,
    CloseNotify,
    Silence,
    Stall,
    Close,
    Reset,
    Repeat(Option<u32>, Vec<Step>),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Drip {
    octets: usize,
    every: Duration,
}

/// Text with `*` for anything.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Pattern {
    /// What stands between the stars; at least one.
    parts: Vec<Vec<u8>>,
}

/// A mistake in a script.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("line {line}: {why}")]
pub struct BadScript {
    /// From 1.
    pub line: usize,
    /// What is wrong, and what would be right.
    pub why: String,
}

/// A script file that can't be used.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say all")]
pub enum UnusableScript {
    #[error("{}: {cause}", file.display())]
    Unreadable { file: PathBuf, cause: io::Error },
    #[error("{}:{}: {}", file.display(), mistake.line, mistake.why)]
    Bad { file: PathBuf, mistake: BadScript },
}

impl Script {
    /// Reads a file.
    pub fn load(file: &Path) -> Result<Self, UnusableScript> {
        let unreadable = |cause| UnusableScript::Unreadable {
            file: file.to_owned(),
            cause,
        };
        let size = std::fs::metadata(file).map_err(unreadable)?.len();
        if size > MAX_SCRIPT {
            return Err(unreadable(io::Error::other(format!(
                "more than {MAX_SCRIPT} octets"
            ))));
        }
        let text = std::fs::read_to_string(file).map_err(unreadable)?;
        text.parse().map_err(|mistake| UnusableScript::Bad {
            file: file.to_owned(),
            mistake,
        })
    }

    /// What is played on a connection, counted from 1. `None`: it is hung up on.
    pub fn connection(&self, number: u64) -> Option<&Section> {
        self.sections
            .iter()
            .find(|section| (section.first..=section.last).contains(&number))
    }
}

impl FromStr for Script {
    type Err = BadScript;

    fn from_str(text: &str) -> Result<Self, BadScript> {
        parse::script(text)
    }
}

impl Pattern {
    /// Whether a line, without its end, fits.
    fn fits(&self, line: &[u8]) -> bool {
        let Some((first, rest)) = self.parts.split_first() else {
            return false;
        };
        let Some((last, middle)) = rest.split_last() else {
            return line.eq_ignore_ascii_case(first);
        };
        if line.len() < first.len() + last.len() {
            return false;
        }
        let (head, line) = line.split_at(first.len());
        let (mut line, tail) = line.split_at(line.len() - last.len());
        if !head.eq_ignore_ascii_case(first) || !tail.eq_ignore_ascii_case(last) {
            return false;
        }
        // Between two stars the first place that fits leaves the most for those after it.
        for part in middle.iter().filter(|part| !part.is_empty()) {
            let place = line
                .windows(part.len())
                .position(|window| window.eq_ignore_ascii_case(part));
            let Some(place) = place else { return false };
            line = &line[place + part.len()..];
        }
        true
    }

    fn is_final_dot(&self) -> bool {
        self.parts == [b"."]
    }
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (number, part) in self.parts.iter().enumerate() {
            if number > 0 {
                f.write_str("*")?;
            }
            write!(f, "{}", part.escape_ascii())?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns() {
        for (pattern, fits, does_not) in [
            ("QUIT", &["QUIT", "quit"][..], &["QUIT ", "QUI", ""][..]),
            ("EHLO *", &["EHLO a", "ehlo "], &["EHLO", "HELO a"]),
            (
                "MAIL FROM:<*>*",
                &["MAIL FROM:<>", "mail from:<a@b> SIZE=1"],
                &["MAIL FROM:<a"],
            ),
            ("*a*b*", &["ab", "xaxbx", "aab"], &["ba", "a", ""]),
            ("a*a", &["aa", "aXa"], &["a", "ab"]),
            ("*", &["", "all"], &[]),
            (r"\*", &["*"], &["a"]),
            ("", &[""], &["a"]),
        ] {
            let script: Script = format!("C: {pattern}").parse().unwrap();
            let What::Hear(read) = &script.sections[0].steps[0].what else {
                panic!()
            };
            for line in fits {
                assert!(read.fits(line.as_bytes()), "{pattern:?} fits {line:?}");
            }
            for line in does_not {
                assert!(!read.fits(line.as_bytes()), "{pattern:?} does not fit {line:?}");
            }
        }
    }

    #[test]
    fn sections_by_number() {
        let script: Script = "connection 1\nS: a\nconnection 3..4\nS: b\nconnection 6..\nS: c"
            .parse()
            .unwrap();
        let said = |number| {
            script
                .connection(number)
                .map(|section| match &section.steps[0].what {
                    What::Say(text) => text[0],
                    other => panic!("{other:?}"),
                })
        };
        let all: Vec<_> = (1..8).map(said).collect();
        assert_eq!(
            all,
            [
                Some(b'a'),
                None,
                Some(b'b'),
                Some(b'b'),
                None,
                Some(b'c'),
                Some(b'c')
            ]
        );
        let plain: Script = "S: a".parse().unwrap();
        assert!(plain.connection(1).is_some() && plain.connection(1_000_000).is_some());
    }
}
