//! How long the journal is. Its oldest entries are forgotten, by age and by number, in one piece each time.
//!
//! Nobody waits for it and nothing hangs on it, so it does not go through the committer: a power cut that brings entries back has them
//! forgotten again.

use std::time::Duration;

use mail_core::Timestamp;

use crate::committer::read_counters;
use crate::store::{Batch, Family};
use crate::{Queue, ReadError, keys};

/// What of the journal is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Retention {
    /// Entries that are older may go.
    pub age: Duration,
    /// So many at the most, some 200 octets each on the disk.
    pub entries: u64,
}

/// Which entries the journal has: numbers of `first..next`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// The oldest one's; `next` where there is none.
    pub first: u64,
    /// The one's to come.
    pub next: u64,
}

impl Extent {
    /// How many there are.
    pub fn entries(&self) -> u64 {
        self.next.saturating_sub(self.first)
    }
}

impl Queue {
    /// Which entries the journal has.
    pub fn journal(&self) -> Result<Extent, ReadError> {
        let next = read_counters(&*self.store)?.next_event;
        let mut first = next;
        self.store.scan_past(
            Family::Event,
            &keys::event(0),
            &keys::event(next),
            &mut |key, _| {
                first = keys::number(key).unwrap_or(first);
                false
            },
        )?;
        Ok(Extent { first, next })
    }

    /// Forgets the oldest entries beyond what is to be kept. How many.
    pub fn retire_events(&self, keep: Retention, now: Timestamp) -> Result<u64, ReadError> {
        let Extent { first, next } = self.journal()?;
        let too_old = self.first_event_at(Timestamp(now.0.saturating_sub(millis(keep.age))), next)?;
        let from = first.max(too_old).max(next.saturating_sub(keep.entries));
        if from <= first || self.is_failing() {
            return Ok(0);
        }
        let (begin, end) = (keys::event(0), keys::event(from));
        let mut batch = Batch::default();
        batch.delete_range(Family::Event, &begin, &end);
        self.store.write(&batch, false)?;
        self.store.reclaim(Family::Event, &begin, &end)?;
        Ok(from - first)
    }
}

fn millis(age: Duration) -> u64 {
    u64::try_from(age.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::intake::tests::message;
    use crate::store::MemoryStore;
    use crate::{HoldRecord, HoldScope};

    const SECOND: Duration = Duration::from_secs(1);
    const ALL: Retention = Retention {
        age: Duration::from_secs(1_000),
        entries: 1_000,
    };

    /// A journal with an entry of each second from 100 on.
    fn queue(entries: u64) -> Queue {
        let queue = Queue::in_memory(MemoryStore::new()).unwrap();
        for number in 0..entries {
            let record = HoldRecord {
                since: Timestamp(100_000) + SECOND * number as u32,
                until: Timestamp(0),
                failures: 1,
                cause: "a test".into(),
            };
            queue.hold(HoldScope::Lane("lane".into()), record);
        }
        queue
    }

    fn numbers(queue: &Queue) -> Vec<u64> {
        let all = queue.events(0, usize::MAX).unwrap();
        all.into_iter().map(|(number, _)| number).collect()
    }

    #[test]
    fn the_oldest_go_by_number() {
        let queue = queue(50);
        let now = Timestamp(150_000);
        assert_eq!(queue.retire_events(ALL, now).unwrap(), 0);
        let keep = Retention { entries: 20, ..ALL };
        assert_eq!(queue.retire_events(keep, now).unwrap(), 30);
        assert_eq!(numbers(&queue), (31..=50).collect::<Vec<_>>());
        assert_eq!(queue.journal().unwrap(), Extent { first: 31, next: 51 });
        assert_eq!(queue.retire_events(keep, now).unwrap(), 0);
        assert_eq!(
            queue.retire_events(Retention { entries: 0, ..ALL }, now).unwrap(),
            20
        );
        assert_eq!(queue.journal().unwrap().entries(), 0);
    }

    #[test]
    fn and_by_age() {
        let queue = queue(50);
        // Entries may be a minute out of order, so that those go which are a minute older.
        let keep = Retention {
            age: 20 * SECOND,
            ..ALL
        };
        assert_eq!(queue.retire_events(keep, Timestamp(150_000)).unwrap(), 0);
        assert_eq!(queue.retire_events(keep, Timestamp(210_000)).unwrap(), 30);
        assert_eq!(queue.journal().unwrap(), Extent { first: 31, next: 51 });
    }

    #[tokio::test]
    async fn what_is_kept_is_found_and_numbers_go_on() {
        let queue = queue(50);
        let message = message(7);
        let id = message.id;
        queue.accept(Arc::clone(&message)).await.unwrap();
        queue
            .retire_events(Retention { entries: 5, ..ALL }, Timestamp(1))
            .unwrap();
        assert_eq!(numbers(&queue), [47, 48, 49, 50, 51]);
        let last = queue.events(51, 9).unwrap();
        assert_eq!(last[0].1.id, Some(id));
        queue.hold(
            HoldScope::Lane("lane".into()),
            HoldRecord {
                since: Timestamp(1),
                until: Timestamp(2),
                failures: 1,
                cause: String::new(),
            },
        );
        assert_eq!(numbers(&queue).last(), Some(&52));
    }
}
