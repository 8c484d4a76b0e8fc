//! From text to steps, with the line of each mistake.

use std::time::Duration;

use super::{BadScript, Drip, Pattern, Script, Section, Step, What};

/// `repeat` within `repeat`.
const MAX_DEPTH: usize = 4;
/// The longest `delay`, which is also the longest that a connection lives.
pub(super) const MAX_DELAY: Duration = Duration::from_secs(3_600);
/// Octets of `take`.
const MAX_TAKE: usize = 1 << 30;

const STEPS: &str = "a step is one of: S: TEXT, raw: TEXT, C: PATTERN, take N bytes, delay TIME, drip N bytes every TIME, \
    drip off, starttls, implicit tls, close_notify, silence, stall, close, reset, repeat [N], end, connection N[..[M]]";

pub(super) fn script(text: &str) -> Result<Script, BadScript> {
    let mut parser = Parser {
        lines: text.lines().enumerate(),
        line: 0,
    };
    let mut sections: Vec<Section> = Vec::new();
    let mut heading = None;
    loop {
        let (steps, end) = parser.steps(0)?;
        let line = parser.line;
        if !steps.is_empty() {
            // Without a heading all connections are alike.
            let (first, last, _) = heading.unwrap_or((1, u64::MAX, 0));
            sections.push(Section { first, last, steps });
        } else if heading.is_some() || matches!(end, End::OfFile) {
            let line = heading.map_or(1, |(_, _, line)| line);
            let why = "no steps: a peer that only hangs up is `close`".into();
            return Err(BadScript { line, why });
        }
        match end {
            End::OfFile => return Ok(Script { sections }),
            End::Connection(first, last) => {
                let twice = sections
                    .iter()
                    .any(|section| section.first <= last && first <= section.last);
                if twice {
                    let why = format!("connection {first} has its steps already");
                    return Err(BadScript { line, why });
                }
                heading = Some((first, last, line));
            }
            End::OfRepeat => {
                let why = "`end` without `repeat`".into();
                return Err(BadScript { line, why });
            }
        }
    }
}

/// What ended a list of steps.
enum End {
    OfFile,
    OfRepeat,
    Connection(u64, u64),
}

struct Parser<'a> {
    lines: std::iter::Enumerate<std::str::Lines<'a>>,
    /// Of the line taken last.
    line: usize,
}

impl<'a> Parser<'a> {
    fn next(&mut self) -> Option<&'a str> {
        for (number, line) in self.lines.by_ref() {
            let line = line.trim_start();
            if !line.is_empty() && !line.starts_with('#') {
                self.line = number + 1;
                return Some(line);
            }
        }
        None
    }

    fn bad<T>(&self, why: impl Into<String>) -> Result<T, BadScript> {
        Err(BadScript {
            line: self.line,
            why: why.into(),
        })
    }

    fn steps(&mut self, depth: usize) -> Result<(Vec<Step>, End), BadScript> {
        let mut steps: Vec<Step> = Vec::new();
        while let Some(text) = self.next() {
            let line = self.line;
            let what = match text.split_once(':') {
                Some(("S", said)) => {
                    let mut said = self.octets(said)?;
                    said.extend_from_slice(b"\r\n");
                    What::Say(said)
                }
                Some(("raw", said)) => What::Say(self.octets(said)?),
                Some(("C", " ...")) => self.hear_until()?,
                Some(("C", pattern)) => What::Hear(self.pattern(pattern)?),
                _ => {
                    let words: Vec<_> = text.split_ascii_whitespace().collect();
                    match words[..] {
                        ["end"] if depth > 0 => return Ok((steps, End::OfRepeat)),
                        ["end"] => return self.bad("`end` without `repeat`"),
                        ["connection", ..] if depth > 0 => return self.bad("`connection` within `repeat`"),
                        ["connection", range] => {
                            let (first, last) = self.range(range)?;
                            return Ok((steps, End::Connection(first, last)));
                        }
                        ["repeat", ref count @ ..] => self.repeat(count, depth)?,
                        ["implicit", "tls"] if depth == 0 && steps.is_empty() => What::StartTls,
                        ["implicit", "tls"] => {
                            return self.bad("`implicit tls` comes first; later it is `starttls`");
                        }
                        ref words => self.simple(words)?,
                    }
                }
            };
            let ended = steps.last().is_some_and(|step| {
                matches!(
                    step.what,
                    What::Close | What::Reset | What::Silence | What::Stall | What::Repeat(None, _)
                )
            });
            if ended {
                return self.bad("nothing can follow the end of the conversation in the step before");
            }
            steps.push(Step { line, what });
        }
        if depth > 0 {
            return self.bad("`repeat` without `end`");
        }
        Ok((steps, End::OfFile))
    }

    fn simple(&self, words: &[&str]) -> Result<What, BadScript> {
        Ok(match *words {
            ["take", octets, "byte" | "bytes"] => What::Take(self.count(octets, MAX_TAKE)?),
            ["delay", time] => What::Delay(self.time(time)?),
            ["drip", "off"] => What::Drip(None),
            ["drip", octets, "byte" | "bytes", "every", time] => What::Drip(Some(Drip {
                octets: self.count(octets, MAX_TAKE)?,
                every: self.time(time)?,
            })),
            ["starttls"] => What::StartTls,
            ["close_notify"] => What::CloseNotify,
            ["silence"] => What::Silence,
            ["stall"] => What::Stall,
            ["close"] => What::Close,
            ["reset"] => What::Reset,
            _ => return self.bad(format!("{:?} is no step; {STEPS}", words.join(" "))),
        })
    }

    fn repeat(&mut self, count: &[&str], depth: usize) -> Result<What, BadScript> {
        let begun = self.line;
        let times = match *count {
            [] => None,
            [times] => Some(u32::try_from(self.count(times, 1_000_000)?).unwrap_or(u32::MAX)),
            _ => return self.bad("`repeat N`, or `repeat` alone"),
        };
        if depth == MAX_DEPTH {
            return self.bad(format!("`repeat` within `repeat` goes {MAX_DEPTH} deep at most"));
        }
        let (steps, _) = self.steps(depth + 1)?;
        if steps.is_empty() {
            return Err(BadScript {
                line: begun,
                why: "nothing to repeat".into(),
            });
        }
        Ok(What::Repeat(times, steps))
    }

    fn hear_until(&mut self) -> Result<What, BadScript> {
        let begun = self.line;
        match self.next().and_then(|line| line.strip_prefix("C:")) {
            Some(pattern) if pattern != " ..." => Ok(What::HearUntil(self.pattern(pattern)?)),
            _ => Err(BadScript {
                line: begun,
                why: "after `C: ...` a `C: PATTERN` tells where it ends, such as `C: .`".into(),
            }),
        }
    }

    /// One space after the colon is not of the text.
    fn octets(&self, text: &str) -> Result<Vec<u8>, BadScript> {
        let pattern = self.unescape(text, false)?;
        Ok(pattern.parts.concat())
    }

    fn pattern(&self, text: &str) -> Result<Pattern, BadScript> {
        self.unescape(text, true)
    }

    fn unescape(&self, text: &str, stars: bool) -> Result<Pattern, BadScript> {
        let text = text.strip_prefix(' ').unwrap_or(text);
        let mut octets = text.bytes();
        let mut parts = vec![Vec::new()];
        let mut part = Vec::new();
        while let Some(octet) = octets.next() {
            match octet {
                b'*' if stars => {
                    if let Some(last) = parts.last_mut() {
                        *last = std::mem::take(&mut part);
                    }
                    parts.push(Vec::new());
                }
                b'\\' => part.push(match octets.next() {
                    Some(b'r') => b'\r',
                    Some(b'n') => b'\n',
                    Some(b't') => b'\t',
                    Some(b'0') => 0,
                    Some(octet @ (b'\\' | b'*')) => octet,
                    Some(b'x') => {
                        let digits = [octets.next(), octets.next()];
                        let digits =
                            digits.map(|digit| digit.and_then(|digit| char::from(digit).to_digit(16)));
                        match digits.map(|digit| digit.and_then(|digit| u8::try_from(digit).ok())) {
                            [Some(high), Some(low)] => high << 4 | low,
                            _ => return self.bad(r"`\x` takes two hexadecimal digits"),
                        }
                    }
                    _ => return self.bad(r"after `\` comes one of r n t 0 \ * xHH"),
                }),
                octet => part.push(octet),
            }
        }
        if let Some(last) = parts.last_mut() {
            *last = part;
        }
        Ok(Pattern { parts })
    }

    fn count(&self, text: &str, most: usize) -> Result<usize, BadScript> {
        match text.parse() {
            Ok(count) if (1..=most).contains(&count) => Ok(count),
            _ => self.bad(format!("{text:?} is no number from 1 to {most}")),
        }
    }

    fn time(&self, text: &str) -> Result<Duration, BadScript> {
        let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
        let unit = match &text[digits.len()..] {
            "ms" => Some(1),
            "s" => Some(1_000),
            "m" => Some(60_000),
            "h" => Some(3_600_000),
            _ => None,
        };
        let millis = unit.and_then(|unit| digits.parse::<u64>().ok()?.checked_mul(unit));
        match millis.map(Duration::from_millis) {
            Some(time) if !time.is_zero() && time <= MAX_DELAY => Ok(time),
            _ => self.bad(format!(
                "{text:?} is no time from 1ms to 1h, such as 10ms, 2s, 5m"
            )),
        }
    }

    fn range(&self, text: &str) -> Result<(u64, u64), BadScript> {
        let number = |text: &str| text.parse::<u64>().ok().filter(|&number| number > 0);
        let range = match text.split_once("..") {
            None => number(text).map(|only| (only, only)),
            Some((first, "")) => number(first).map(|first| (first, u64::MAX)),
            Some((first, last)) => number(first).zip(number(last)),
        };
        match range {
            Some((first, last)) if first <= last => Ok((first, last)),
            _ => self.bad(format!(
                "{text:?} names no connections; they are counted from 1: `connection 1`, `connection 2..4`, `connection 5..`"
            )),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_each_step() {
        let text = "# a comment\n\n  S: 220 hi\nraw: a\\r\\n\\x00\\\\\nC: MAIL FROM:<*>\nC: ...\nC: .\ntake 3 bytes\n\
            delay 2s\ndrip 1 byte every 10ms\ndrip off\nstarttls\nclose_notify\nrepeat 2\nS:\nend\nsilence\n";
        let script = script(text).unwrap();
        let steps = &script.sections[0].steps;
        assert_eq!(steps[0].line, 3);
        let whats: Vec<_> = steps.iter().map(|step| &step.what).collect();
        assert_eq!(whats[0], &What::Say(b"220 hi\r\n".to_vec()));
        assert_eq!(whats[1], &What::Say(b"a\r\n\0\\".to_vec()));
        assert!(matches!(whats[2], What::Hear(pattern) if pattern.parts == [&b"MAIL FROM:<"[..], b">"]));
        assert!(matches!(whats[3], What::HearUntil(pattern) if pattern.is_final_dot()));
        assert_eq!(whats[4], &What::Take(3));
        assert_eq!(whats[5], &What::Delay(Duration::from_secs(2)));
        let drip = Drip {
            octets: 1,
            every: Duration::from_millis(10),
        };
        assert_eq!(whats[6], &What::Drip(Some(drip)));
        assert_eq!(
            whats[7..10],
            [&What::Drip(None), &What::StartTls, &What::CloseNotify]
        );
        assert!(
            matches!(whats[10], What::Repeat(Some(2), steps) if steps[0].what == What::Say(b"\r\n".to_vec()))
        );
        assert_eq!(whats[11], &What::Silence);
    }

    #[test]
    fn tells_each_mistake_with_its_line() {
        for (text, line, why) in [
            ("", 1, "no steps"),
            ("# nothing\n", 1, "no steps"),
            ("S: a\n\nfoo bar\n", 3, "\"foo bar\" is no step; a step is one of"),
            ("s: a", 1, "is no step"),
            ("S: a\\q", 1, "after `\\` comes"),
            ("S: a\\", 1, "after `\\` comes"),
            ("raw: \\x4", 1, "two hexadecimal digits"),
            ("C: ...\nS: a", 1, "after `C: ...`"),
            ("C: ...\nC: ...", 1, "after `C: ...`"),
            ("C: ...", 1, "after `C: ...`"),
            ("delay 2", 1, "is no time"),
            ("delay -2s", 1, "is no time"),
            ("delay 99999999999999999999h", 1, "is no time"),
            ("delay 2h", 1, "is no time"),
            ("delay é", 1, "is no time"),
            ("take 0 bytes", 1, "is no number from 1"),
            ("drip 1 byte", 1, "is no step"),
            ("S: a\nimplicit tls", 2, "comes first"),
            ("close\nS: a", 2, "nothing can follow"),
            ("repeat\nS: a\nend\nS: b", 4, "nothing can follow"),
            ("repeat 2\nS: a", 2, "without `end`"),
            ("S: a\nend", 2, "without `repeat`"),
            ("S: x\nrepeat 2\nend", 2, "nothing to repeat"),
            ("repeat 0\nS: a\nend", 1, "is no number"),
            ("repeat 1 2\nS: a\nend", 1, "`repeat N`"),
            ("repeat\nrepeat\nrepeat\nrepeat\nrepeat\nS: a", 5, "4 deep"),
            ("repeat\nconnection 1\nend", 2, "within `repeat`"),
            ("connection 0\nS: a", 1, "counted from 1"),
            ("connection 4..2\nS: a", 1, "counted from 1"),
            ("connection x\nS: a", 1, "counted from 1"),
            (
                "connection 1..\nS: a\nconnection 2\nS: b",
                3,
                "connection 2 has its steps already",
            ),
            (
                "S: a\nconnection 2\nS: b",
                2,
                "connection 2 has its steps already",
            ),
            ("connection 1\nS: a\nconnection 2\n", 3, "no steps"),
            ("connection 1\nconnection 2\nS: a", 1, "no steps"),
        ] {
            let mistake = script(text).unwrap_err();
            assert_eq!(mistake.line, line, "{text:?}: {mistake}");
            assert!(mistake.why.contains(why), "{text:?}: {mistake}");
        }
    }
}
