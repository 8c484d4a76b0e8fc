//! The connections of all shards together: how many there are, and who waits for one.

use std::sync::atomic::{AtomicUsize, Ordering};

/// Slots for connections, as many as `delivery.max_connections` says. Lanes without any that wait for one are *hungry*: what is free is
/// for them, and lanes that have some hand theirs on.
#[derive(Debug)]
pub(super) struct Slots {
    open: AtomicUsize,
    /// Of those, which are being closed.
    closing: AtomicUsize,
    /// Free ones of which another shard has been told, and has not heard yet.
    promised: AtomicUsize,
    /// All lanes that are hungry.
    hungry: AtomicUsize,
    /// The same by shard.
    hungry_of: Box<[AtomicUsize]>,
    /// The shard that was told last of a free one.
    told: AtomicUsize,
}

impl Slots {
    /// For so many shards.
    pub(super) fn of(shards: usize) -> Self {
        Self {
            open: AtomicUsize::new(0),
            closing: AtomicUsize::new(0),
            promised: AtomicUsize::new(0),
            hungry: AtomicUsize::new(0),
            hungry_of: (0..shards).map(|_| AtomicUsize::new(0)).collect(),
            told: AtomicUsize::new(0),
        }
    }

    /// How many of `most` are free, and promised to nobody.
    pub(super) fn free(&self, most: usize) -> usize {
        let promised = self.promised.load(Ordering::Acquire);
        most.saturating_sub(self.open.load(Ordering::Acquire) + promised)
    }

    /// A free one is for another shard, which is told.
    pub(super) fn promise(&self) {
        self.promised.fetch_add(1, Ordering::AcqRel);
    }

    /// It has heard.
    pub(super) fn promise_kept(&self) {
        self.promised.fetch_sub(1, Ordering::AcqRel);
    }

    /// Takes one of at most `most`.
    pub(super) fn take(&self, most: usize) -> bool {
        let take = |open: usize| (open < most).then_some(open + 1);
        self.open
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, take)
            .is_ok()
    }

    /// One is to be closed.
    pub(super) fn closes(&self) {
        self.closing.fetch_add(1, Ordering::AcqRel);
    }

    /// Gives one back; `was_closing` says that [`Self::closes`] was told of it.
    pub(super) fn give_back(&self, was_closing: bool) {
        self.open.fetch_sub(1, Ordering::AcqRel);
        if was_closing {
            self.closing.fetch_sub(1, Ordering::AcqRel);
        }
    }

    /// A lane of this shard is hungry.
    pub(super) fn hungers(&self, shard: usize) {
        self.hungry_of[shard].fetch_add(1, Ordering::AcqRel);
        self.hungry.fetch_add(1, Ordering::AcqRel);
    }

    /// It is not any more.
    pub(super) fn hungers_no_more(&self, shard: usize) {
        self.hungry_of[shard].fetch_sub(1, Ordering::AcqRel);
        self.hungry.fetch_sub(1, Ordering::AcqRel);
    }

    /// How many lanes are hungry.
    pub(super) fn hungry(&self) -> usize {
        self.hungry.load(Ordering::Acquire)
    }

    /// Whether more are hungry than can be fed of what is free or will be.
    pub(super) fn more_are_hungry(&self, most: usize) -> bool {
        let hungry = self.hungry();
        let coming = self.closing.load(Ordering::Acquire) + self.promised.load(Ordering::Acquire);
        hungry > 0 && hungry > self.free(most) + coming
    }

    /// The shard that is to be told of a free one: those with hungry lanes take turns.
    pub(super) fn next_hungry(&self) -> Option<usize> {
        if self.hungry() == 0 {
            return None;
        }
        let (shards, last) = (self.hungry_of.len(), self.told.load(Ordering::Acquire));
        let mut in_turn = (1..=shards).map(|step| (last + step) % shards);
        let next = in_turn.find(|&shard| self.hungry_of[shard].load(Ordering::Acquire) > 0)?;
        self.told.store(next, Ordering::Release);
        Some(next)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shards_with_hungry_lanes_take_turns() {
        let slots = Slots::of(3);
        assert_eq!(slots.next_hungry(), None);
        slots.hungers(0);
        slots.hungers(2);
        slots.hungers(2);
        assert_eq!([(); 3].map(|()| slots.next_hungry()), [Some(2), Some(0), Some(2)]);
        slots.hungers_no_more(0);
        assert_eq!(slots.next_hungry(), Some(2));
    }

    #[test]
    fn as_many_are_closed_as_are_hungry() {
        let slots = Slots::of(1);
        assert!(slots.take(2) && slots.take(2) && !slots.take(2));
        assert!(!slots.more_are_hungry(2));
        slots.hungers(0);
        assert!(slots.more_are_hungry(2));
        slots.closes();
        assert!(!slots.more_are_hungry(2), "one is on its way");
        slots.give_back(true);
        assert!(!slots.more_are_hungry(2), "one is free");
        assert_eq!(slots.free(2), 1);
    }
}
