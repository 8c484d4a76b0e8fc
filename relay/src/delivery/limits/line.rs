//! The line in which shards stand at a budget.

use std::collections::VecDeque;
use std::time::Duration;

use mail_core::Timestamp;

use super::Grant;

/// A shard comes this much later than it was told to at the most; what is busier than that is passed over once.
const LATE: Duration = Duration::from_millis(100);

/// When to ask again where there is something, but another shard goes first: less than what a [`Bucket`] saves up.
const ASK_AGAIN: Duration = Duration::from_millis(5);

/// Shards that were refused.
#[derive(Debug, Default)]
pub(super) struct Line(VecDeque<InLine>);

/// A shard that was refused; each stands there once.
#[derive(Debug)]
struct InLine {
    shard: usize,
    /// From when on it is passed over; `None`: it waits to be told.
    until: Option<Timestamp>,
    /// It has had something since it came to be first.
    served: bool,
}

impl Line {
    /// Who is refused stands at the end; who is not, but comes before its turn, too.
    pub(super) fn admit(&mut self, shard: usize, refused: Option<Grant>, now: Timestamp) -> Grant {
        while let Some(first) = self.0.front()
            && first.shard != shard
            && first.until.is_some_and(|until| until < now)
        {
            self.0.pop_front();
        }
        let is_first = self.0.front().is_none_or(|first| first.shard == shard);
        let grant = match refused {
            None if is_first => {
                if let Some(first) = self.0.front_mut() {
                    first.until = Some(now + ASK_AGAIN);
                    first.served = true;
                }
                return Grant::Granted;
            }
            None => Grant::NotBefore {
                at: now + ASK_AGAIN,
                held_by: "turn",
            },
            Some(refused) => refused,
        };
        let until = match &grant {
            Grant::NotBefore { at, .. } => Some(*at + LATE),
            Grant::WhenFreed { .. } | Grant::Granted => None,
        };
        let known = self.0.iter().position(|known| known.shard == shard);
        // Who has had what there was goes behind the others.
        let stays = known.filter(|&at| !self.0[at].served);
        match stays.and_then(|at| self.0.get_mut(at)) {
            Some(place) => place.until = until,
            None => {
                self.leave(shard);
                self.0.push_back(InLine {
                    shard,
                    until,
                    served: false,
                });
            }
        }
        grant
    }

    /// There is room: who is first comes now.
    pub(super) fn freed(&mut self, now: Timestamp) -> Option<usize> {
        while self
            .0
            .front()
            .is_some_and(|first| first.until.is_some_and(|until| until < now))
        {
            self.0.pop_front();
        }
        let first = self.0.front_mut()?;
        // Who was told, and has not come, is not waited for any longer.
        let by = now + LATE;
        if first.until.is_none_or(|until| until > by) {
            first.until = Some(by);
        }
        Some(first.shard)
    }

    /// Whether another shard than this waits to be told.
    pub(super) fn has_other(&self, shard: usize) -> bool {
        let mut line = self.0.iter();
        line.any(|waiting| waiting.shard != shard && waiting.until.is_none())
    }

    /// It wants nothing any more. Whether it stood there.
    pub(super) fn leave(&mut self, shard: usize) -> bool {
        let before = self.0.len();
        self.0.retain(|known| known.shard != shard);
        self.0.len() < before
    }
}
