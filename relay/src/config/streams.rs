//! Streams: kinds of mail that share a lane by weight, so that a newsletter doesn't hold up a password reset.

use std::collections::BTreeSet;
use std::ops::RangeInclusive;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use mail_core::Priority;

use super::check::{EVER, MS, is_name};
use super::delivery::retry;
use super::section::{Check, Section, Spot};
use super::settings::Retry;

/// What mail is in where nobody says otherwise.
pub const DEFAULT: &str = "transactional";

/// A stream.
#[derive(Clone, Debug, PartialEq)]
pub struct Stream {
    /// As queues, logs and headers say it.
    pub name: Arc<str>,
    /// Its share of a lane, beside the weights of the other streams that have mail for it.
    pub weight: u32,
    /// The part of each lane's connections, and of what limits allow in a minute, an hour and a day, that only its mail may use:
    /// 0 to 0.9.
    pub reserved: f64,
    /// How long its messages may stay in the queue.
    pub expire_after: Duration,
    /// Waits between attempts at its messages.
    pub retry: Retry,
}

/// All streams; [`DEFAULT`] and `bulk` are always among them.
#[derive(Clone, Debug, PartialEq)]
pub struct Streams {
    all: Vec<Stream>,
    /// Which stream mail of a priority is in: the first that fits.
    by_priority: Vec<(RangeInclusive<i8>, Arc<str>)>,
}

/// The stream that mail of a negative priority is in, unless another one asks for it.
const BULK: &str = "bulk";

impl Streams {
    /// All of them.
    pub fn all(&self) -> &[Stream] {
        &self.all
    }

    /// The stream of this name.
    pub fn get(&self, name: &str) -> Option<&Stream> {
        self.all.iter().find(|stream| *stream.name == *name)
    }

    /// The stream that mail of this priority is in, if its client says no more than that.
    pub fn of_priority(&self, priority: Priority) -> Option<&Arc<str>> {
        let fits = |(range, _): &&(RangeInclusive<i8>, Arc<str>)| range.contains(&priority.into());
        self.by_priority.iter().find(fits).map(|(_, name)| name)
    }

    /// Those that are always there.
    pub(crate) fn usual(expire_after: Duration, retry: &Retry) -> Self {
        let new = |name: &str, weight| Stream {
            name: name.into(),
            weight,
            reserved: 0.0,
            expire_after,
            retry: retry.clone(),
        };
        Self {
            all: vec![new(DEFAULT, 10), new(BULK, 1)],
            by_priority: vec![(-9..=-1, BULK.into())],
        }
    }

    /// A stream's weight. One that is no longer configured may still have mail, and has the least.
    pub fn weight(&self, name: &str) -> u32 {
        self.get(name).map_or(1, |stream| stream.weight)
    }

    /// Those that have a part of their own.
    pub fn reserved(&self) -> impl Iterator<Item = &Stream> + Clone {
        self.all.iter().filter(|stream| stream.reserved > 0.0)
    }

    /// Whether some stream has.
    pub fn any_reserved(&self) -> bool {
        self.reserved().next().is_some()
    }

    /// Whether mail of stream `name` may take one more of `most` connections, of which each stream has so many at `busy`: those that
    /// are reserved for others are left to them. What a stream has of its own is rounded down.
    pub fn may_take(&self, name: &str, busy: impl Fn(&str) -> usize, total: usize, most: usize) -> bool {
        let others = self.all.iter().filter(|stream| *stream.name != *name);
        let kept = others.map(|stream| {
            let own = (stream.reserved * most as f64) as usize;
            own.saturating_sub(busy(&stream.name))
        });
        total + kept.sum::<usize>() < most
    }

    /// Tells of a name that is no stream's.
    pub(super) fn check(&self, check: &Check<'_>, spot: &Spot<String>) {
        if let Some(text) = self.unknown(&spot.value) {
            check.problem(spot.at, &spot.key, text);
        }
    }

    /// What is wrong with a name that is no stream's.
    pub fn unknown(&self, name: &str) -> Option<String> {
        let all: Vec<_> = self.all.iter().map(|stream| stream.name.to_string()).collect();
        self.get(name).is_none().then(|| {
            format!(
                "there is no stream \"{name}\" among {}; it would be a [[stream]] of that name",
                all.join(", ")
            )
        })
    }
}

/// Reads all `[[stream]]` tables. What they leave out is as for all mail.
pub(super) fn streams(
    check: &Check<'_>,
    top: &mut Section<'_>,
    expire_after: Duration,
    usual: &Retry,
) -> Streams {
    /// Streams there may be: each is a part of every queue's name.
    const MOST: usize = 100;
    let Streams {
        all: mut streams,
        by_priority: shipped,
    } = Streams::usual(expire_after, usual);
    let mut by_priority: Vec<(RangeInclusive<i8>, Arc<str>)> = Vec::new();
    let mut bulk_says = false;
    let mut seen = BTreeSet::new();
    let mut all_reserved = 0.0;
    for (number, mut section) in top.sections("stream").into_iter().enumerate() {
        let name = section.string("name");
        let name = section.required("name", name, "what queues, credentials and rules call the stream");
        let known = name
            .as_ref()
            .and_then(|spot| streams.iter().position(|stream| *stream.name == *spot.value));
        let weight = known.map_or(1, |at| streams[at].weight);
        let weight = section.integer("weight", 1..=1_000, weight.into());
        let reserved = section.number_or("reserved", 0.0..=0.9, 0.0);
        all_reserved += reserved;
        if reserved > 0.0 && all_reserved > 0.9 {
            let text = format!(
                "makes {all_reserved} with the streams before it: 0.9 at the most, so that something is left for all"
            );
            section.problem("reserved", text);
        }
        let priority = section.parsed::<Priorities>("priority");
        let expire_after = section.duration("expire_after", MS..=EVER, expire_after);
        let retry = retry(section.section("retry"), Some(usual));
        if number == MOST {
            section.problem("", format!("is one too many: there may be {MOST} at the most"));
        }
        section.end();
        let Some(spot) = name else { continue };
        if !is_name(&spot.value) {
            let text = "a stream's name is made of letters, digits, '-', '_' and '.', 64 at the most";
            check.problem(spot.at, &spot.key, text);
            continue;
        }
        if !seen.insert(spot.value.clone()) {
            let text = format!("there is another stream \"{}\" already", spot.value);
            check.problem(spot.at, &spot.key, text);
        }
        let name: Arc<str> = spot.value.into();
        if let Some(spot) = priority {
            bulk_says |= *name == *BULK;
            if let Some(range) = spot.value.0 {
                let is_taken = |(other, _): &&(RangeInclusive<i8>, Arc<str>)| {
                    range.start() <= other.end() && other.start() <= range.end()
                };
                if let Some((_, other)) = by_priority.iter().find(is_taken) {
                    let text = format!("has a priority that stream \"{other}\" has, too");
                    check.problem(spot.at, &spot.key, text);
                }
                by_priority.push((range, name.clone()));
            }
        }
        let stream = Stream {
            name,
            weight: u32::try_from(weight).unwrap_or(1),
            reserved,
            expire_after,
            retry,
        };
        match known {
            Some(at) => streams[at] = stream,
            None => streams.push(stream),
        }
    }
    if !bulk_says {
        by_priority.extend(shipped);
    }
    Streams {
        all: streams,
        by_priority,
    }
}

/// Some of the numbers from -9 to 9 (RFC 6710 §3), or none.
struct Priorities(Option<RangeInclusive<i8>>);

impl FromStr for Priorities {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let wrong = "is no range of priorities; write such as \"4..9\", \"-9..-1\", \"0\" or \"none\", within -9 and 9";
        if text == "none" {
            return Ok(Self(None));
        }
        let (first, last) = text.split_once("..").unwrap_or((text, text));
        let number = |text: &str| {
            let number = text.parse::<i8>().ok()?;
            Priority::try_from(number).is_ok().then_some(number)
        };
        let (first, last) = (number(first).ok_or(wrong)?, number(last).ok_or(wrong)?);
        if first > last {
            return Err(wrong);
        }
        Ok(Self(Some(first..=last)))
    }
}

#[cfg(test)]
mod tests {
    use crate::delivery::shard::test_settings;

    use super::*;

    fn streams(more: &str) -> Streams {
        test_settings(more).delivery.streams.clone()
    }

    fn of(streams: &Streams) -> String {
        let each = (-9..=9).map(|number| {
            let name = streams.of_priority(Priority::try_from(number).unwrap());
            name.and_then(|name| name.chars().next()).unwrap_or('-')
        });
        each.collect()
    }

    /// RFC 6710.
    #[test]
    fn priorities_belong_to_streams() {
        for (more, each) in [
            ("", "bbbbbbbbb----------"),
            (
                "[[stream]]\nname = \"bulk\"\npriority = \"none\"\n",
                "-------------------",
            ),
            (
                "[[stream]]\nname = \"bulk\"\npriority = \"-9..-5\"\n",
                "bbbbb--------------",
            ),
            (
                "[[stream]]\nname = \"news\"\npriority = \"-4..0\"\n",
                "bbbbbnnnnn---------",
            ),
            (
                "[[stream]]\nname = \"urgent\"\nweight = 50\npriority = \"4..9\"\n\
                 [[stream]]\nname = \"flash\"\npriority = \"3\"\n",
                "bbbbbbbbb---fuuuuuu",
            ),
        ] {
            assert_eq!(of(&streams(more)), each, "{more}");
        }
        for text in ["10", "-10..0", "4..", "..4", "5..4", "", "1-3", "all"] {
            assert!(Priorities::from_str(text).is_err(), "{text}");
        }
    }
}
