//! Streams: kinds of mail that share a lane by weight, so that a newsletter doesn't hold up a password reset.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use super::check::{EVER, MS, is_name, retry};
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
pub struct Streams(Vec<Stream>);

impl Streams {
    /// All of them.
    pub fn all(&self) -> &[Stream] {
        &self.0
    }

    /// The stream of this name.
    pub fn get(&self, name: &str) -> Option<&Stream> {
        self.0.iter().find(|stream| *stream.name == *name)
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
        Self(vec![new(DEFAULT, 10), new("bulk", 1)])
    }

    /// A stream's weight. One that is no longer configured may still have mail, and has the least.
    pub fn weight(&self, name: &str) -> u32 {
        self.get(name).map_or(1, |stream| stream.weight)
    }

    /// Whether some stream has a part of its own.
    pub fn any_reserved(&self) -> bool {
        self.0.iter().any(|stream| stream.reserved > 0.0)
    }

    /// Whether mail of stream `name` may take one more of `most` connections, of which each stream has so many at `busy`: those that
    /// are reserved for others are left to them. What a stream has of its own is rounded down.
    pub fn may_take(&self, name: &str, busy: impl Fn(&str) -> usize, total: usize, most: usize) -> bool {
        let others = self.0.iter().filter(|stream| *stream.name != *name);
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
        let all: Vec<_> = self.0.iter().map(|stream| stream.name.to_string()).collect();
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
    let Streams(mut streams) = Streams::usual(expire_after, usual);
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
        let stream = Stream {
            name: spot.value.into(),
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
    Streams(streams)
}
