//! What a disk does wrong, on command. Pure.

use std::time::Duration;

use rustix::io::Errno;

/// Rules at once.
const MAX_RULES: usize = 64;

/// What is asked of the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Asked {
    Read,
    /// Octets and sizes of files.
    Write,
    /// fsync and fdatasync, of files and folders.
    Sync,
    /// To make, rename or remove a name.
    Name,
}

/// Things asked of the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Which {
    asked: &'static [Asked],
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Rule {
    which: Which,
    does: Does,
    /// Only files with this in their name.
    of: Option<String>,
    /// So many times; for good if not said.
    times: Option<u64>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Does {
    Fail(Errno),
    Delay(Duration),
}

/// See the module.
#[derive(Clone, Debug, Default)]
pub(crate) struct Faults {
    rules: Vec<Rule>,
    /// How often each thing was asked, refused ones too: read, write, sync, name.
    asked: [u64; 4],
    failed: u64,
}

/// A command of the control socket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Order {
    Rule(NewRule),
    /// No rule any more; the capacity stays.
    Heal,
    /// The capacity in octets.
    Fill(u64),
    Stats,
}

/// See [`Order::Rule`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct NewRule(Rule);

/// What each word of an order is.
pub(crate) const GRAMMAR: &str = "fail OPS ERRNO [of TEXT] [times N] | delay OPS MILLISECONDS [of TEXT] [times N] | \
     capacity BYTES | heal | stats; OPS is read, write, sync, name, or all but read: change; ERRNO is EIO, ENOSPC, EROFS or EDQUOT; \
     TEXT is a part of a file's name";

impl Order {
    /// Reads a line; an error tells what would be right.
    pub(crate) fn read(line: &str) -> Result<Self, String> {
        let mut words = line.split_ascii_whitespace();
        let wrong = || format!("{line:?} is no order: {GRAMMAR}");
        let order = match words.next().ok_or_else(wrong)? {
            verb @ ("fail" | "delay") => {
                let which = words.next().and_then(Which::read).ok_or_else(wrong)?;
                let what = words.next().ok_or_else(wrong)?;
                let does = if verb == "fail" {
                    Does::Fail(errno(what).ok_or_else(wrong)?)
                } else {
                    Does::Delay(Duration::from_millis(what.parse().map_err(|_| wrong())?))
                };
                let (mut of, mut times) = (None, None);
                while let Some(word) = words.next() {
                    let value = words.next().ok_or_else(wrong)?;
                    match word {
                        "of" => of = Some(value.to_owned()),
                        "times" => times = Some(value.parse().map_err(|_| wrong())?),
                        _ => return Err(wrong()),
                    }
                }
                let rule = Rule {
                    which,
                    does,
                    of,
                    times,
                };
                Self::Rule(NewRule(rule))
            }
            "capacity" => Self::Fill(words.next().and_then(|n| n.parse().ok()).ok_or_else(wrong)?),
            "heal" => Self::Heal,
            "stats" => Self::Stats,
            _ => return Err(wrong()),
        };
        if words.next().is_some() {
            return Err(wrong());
        }
        Ok(order)
    }
}

impl Which {
    fn read(word: &str) -> Option<Self> {
        let asked: &[Asked] = match word {
            "read" => &[Asked::Read],
            "write" => &[Asked::Write],
            "sync" => &[Asked::Sync],
            "name" => &[Asked::Name],
            "change" => &[Asked::Write, Asked::Sync, Asked::Name],
            _ => return None,
        };
        Some(Self { asked })
    }
}

fn errno(word: &str) -> Option<Errno> {
    Some(match word {
        "EIO" => Errno::IO,
        "ENOSPC" => Errno::NOSPC,
        "EROFS" => Errno::ROFS,
        "EDQUOT" => Errno::DQUOT,
        _ => return None,
    })
}

impl Faults {
    /// Adds a rule.
    pub(crate) fn add(&mut self, rule: NewRule) -> Result<(), String> {
        if self.rules.len() >= MAX_RULES {
            return Err(format!("there are {MAX_RULES} rules already"));
        }
        self.rules.push(rule.0);
        Ok(())
    }

    pub(crate) fn heal(&mut self) {
        self.rules.clear();
    }

    /// How long it takes, and whether it fails. All delays add up; the first failure counts.
    pub(crate) fn ask(&mut self, asked: Asked, name: &str) -> (Duration, Result<(), Errno>) {
        self.asked[asked as usize] += 1;
        let (mut delay, mut result) = (Duration::ZERO, Ok(()));
        for rule in &mut self.rules {
            let about_it = rule.which.asked.contains(&asked)
                && rule.of.as_ref().is_none_or(|text| name.contains(text))
                && rule.times != Some(0);
            if !about_it || (matches!(rule.does, Does::Fail(_)) && result.is_err()) {
                continue;
            }
            if let Some(times) = &mut rule.times {
                *times -= 1;
            }
            match rule.does {
                Does::Fail(errno) => result = Err(errno),
                Does::Delay(more) => delay += more,
            }
        }
        self.failed += u64::from(result.is_err());
        (delay, result)
    }

    /// How often it failed.
    pub(crate) fn failed(&self) -> u64 {
        self.failed
    }

    /// Counts as a JSON object's members.
    pub(crate) fn stats(&self) -> String {
        let [read, write, sync, name] = self.asked;
        let failed = self.failed;
        format!("\"read\":{read},\"write\":{write},\"sync\":{sync},\"name\":{name},\"failed\":{failed}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(lines: &[&str]) -> Faults {
        let mut faults = Faults::default();
        for line in lines {
            match Order::read(line) {
                Ok(Order::Rule(rule)) => faults.add(rule).expect("few rules"),
                other => panic!("{line}: {other:?}"),
            }
        }
        faults
    }

    #[test]
    fn rules_are_about_what_they_name() {
        let mut faults = with(&["fail sync EIO of .log times 2", "delay change 5"]);
        let five = Duration::from_millis(5);
        assert_eq!(faults.ask(Asked::Read, "1.log"), (Duration::ZERO, Ok(())));
        assert_eq!(faults.ask(Asked::Sync, "1.sst"), (five, Ok(())));
        assert_eq!(faults.ask(Asked::Sync, "1.log"), (five, Err(Errno::IO)));
        assert_eq!(faults.ask(Asked::Sync, "2.log"), (five, Err(Errno::IO)));
        assert_eq!(faults.ask(Asked::Sync, "2.log"), (five, Ok(())));
        faults.heal();
        assert_eq!(faults.ask(Asked::Sync, "2.log"), (Duration::ZERO, Ok(())));
        assert_eq!(
            faults.stats(),
            "\"read\":1,\"write\":0,\"sync\":5,\"name\":0,\"failed\":2"
        );
    }

    #[test]
    fn what_is_no_order_is_told_what_would_be() {
        for line in [
            "",
            "fail",
            "fail sync",
            "fail sync EX",
            "fail all EIO",
            "delay sync x",
            "heal now",
            "capacity",
            "fail sync EIO of",
        ] {
            let error = Order::read(line).expect_err(line);
            assert!(error.contains("ENOSPC"), "{error}");
        }
        assert_eq!(Order::read("capacity 4096"), Ok(Order::Fill(4096)));
        assert_eq!(Order::read(" heal "), Ok(Order::Heal));
    }
}
