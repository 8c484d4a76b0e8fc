//! The line in which shards stand at a budget.

use std::time::Duration;

use mail_core::Timestamp;

use super::Grant;

/// A shard comes this much later than it was told to at the most; what is busier than that is passed over once.
const LATE: Duration = Duration::from_millis(100);

/// When to ask again where there is something, but another shard goes first: less than what a [`Bucket`] saves up.
const ASK_AGAIN: Duration = Duration::from_millis(5);

/// Shards that were refused.
#[derive(Debug, Default)]
pub(super) struct Line(Vec<InLine>);

/// What a lane that waits has of what it waits for, by its weight.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Claim {
    /// Connections that it has.
    pub has: u64,
    /// Its stream's weight.
    pub weight: u32,
}

impl Claim {
    /// Where it does not matter what anybody has: who came first goes first.
    pub const ALIKE: Self = Self { has: 0, weight: 1 };

    /// Of a connection that is of no use to who has it: whoever waits goes before.
    pub const SPARE: Self = Self {
        has: u64::MAX,
        weight: 1,
    };

    /// Whether this one, with one more, would have no more than the other has now, by weight: so the two take turns at what can't be
    /// halved. Who has none has its turn whatever the weights.
    pub fn goes_before(self, holder: Self) -> bool {
        let with_one_more = Self {
            has: self.has + 1,
            ..self
        };
        self.has == 0 || !holder.is_less(with_one_more)
    }

    /// Who has less by weight is in front.
    fn is_less(self, other: Self) -> bool {
        u128::from(self.has) * u128::from(other.weight) < u128::from(other.has) * u128::from(self.weight)
    }
}

/// A shard that was refused; each stands there once.
#[derive(Debug)]
struct InLine {
    shard: usize,
    /// Of its lane that waits.
    claim: Claim,
    /// From when on it is passed over; `None`: it waits to be told.
    until: Option<Timestamp>,
    /// It has had something since it came to be first.
    served: bool,
}

impl Line {
    /// Who is refused stands at the end of those whose claim is as good; who is not, but comes before its turn, too.
    pub(super) fn admit(
        &mut self,
        shard: usize,
        claim: Claim,
        refused: Option<Grant>,
        now: Timestamp,
    ) -> Grant {
        while let Some(first) = self.0.first()
            && first.shard != shard
            && first.until.is_some_and(|until| until < now)
        {
            self.0.remove(0);
        }
        let is_first = self.0.first().is_none_or(|first| first.shard == shard);
        let grant = match refused {
            None if is_first => {
                if let Some(first) = self.0.first_mut() {
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
        let stays = known.filter(|&at| !self.0[at].served && self.0[at].claim == claim);
        match stays.and_then(|at| self.0.get_mut(at)) {
            Some(place) => place.until = until,
            None => {
                self.leave(shard);
                let behind = self.0.iter().position(|waiting| claim.is_less(waiting.claim));
                let place = InLine {
                    shard,
                    claim,
                    until,
                    served: false,
                };
                self.0.insert(behind.unwrap_or(self.0.len()), place);
            }
        }
        grant
    }

    /// Whether nobody else is first.
    pub(super) fn is_turn_of(&self, shard: usize, now: Timestamp) -> bool {
        let mut waiting = self.0.iter();
        let is_over = |waiting: &&InLine| waiting.until.is_some_and(|until| until < now);
        waiting
            .find(|waiting| !is_over(waiting))
            .is_none_or(|first| first.shard == shard)
    }

    /// There is room: who is first comes now.
    pub(super) fn freed(&mut self, now: Timestamp) -> Option<usize> {
        while self
            .0
            .first()
            .is_some_and(|first| first.until.is_some_and(|until| until < now))
        {
            self.0.remove(0);
        }
        let first = self.0.first_mut()?;
        // Who was told, and has not come, is not waited for any longer.
        let by = now + LATE;
        if first.until.is_none_or(|until| until > by) {
            first.until = Some(by);
        }
        Some(first.shard)
    }

    /// Whether somebody waits to be told.
    pub(super) fn is_waited_in(&self) -> bool {
        self.0.iter().any(|waiting| waiting.until.is_none())
    }

    /// How many other shards than this wait to be told whose claim goes before its own.
    pub(super) fn others_before(&self, shard: usize, own: Claim) -> usize {
        let waits = |waiting: &&InLine| {
            waiting.shard != shard && waiting.until.is_none() && waiting.claim.goes_before(own)
        };
        self.0.iter().filter(waits).count()
    }

    /// It wants nothing any more. Whether it stood there.
    pub(super) fn leave(&mut self, shard: usize) -> bool {
        let before = self.0.len();
        self.0.retain(|known| known.shard != shard);
        self.0.len() < before
    }
}
