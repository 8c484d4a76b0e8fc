//! The hour that mail has left to be tried in whose deadline passed while the relay was away. Else mail would be returned that nobody
//! tried, because the relay was not running, or because the clock was set ahead meanwhile.

use std::time::Duration;

use mail_core::Timestamp;
use queue::{PresenceRecord, Queue};

use crate::world::log_time;

/// What is left, counted while the relay runs: one that starts again and again would else return nothing ever.
const GRACE: Duration = Duration::from_secs(3_600);

/// One that is back sooner was not away: what waits has been tried until then.
const AWAY: Duration = Duration::from_secs(600);

/// So often is noted that the relay runs.
const NOTED_EVERY: Duration = Duration::from_secs(30);

/// What of the grace is left.
pub(super) struct Grace {
    hour: Hour,
    noted: Option<Timestamp>,
}

/// The hour itself, for whoever has to know whose time is up.
#[derive(Clone, Copy, Debug)]
pub(in crate::delivery) struct Hour {
    began: Timestamp,
    until: Timestamp,
}

impl Hour {
    /// Whether what expires then has no time left now.
    pub(in crate::delivery) fn is_over_for(self, expires_at: Timestamp, now: Timestamp) -> bool {
        expires_at <= now && (now >= self.until || expires_at >= self.began)
    }
}

impl Grace {
    /// That of a relay which starts now.
    pub(super) fn begin(queue: &Queue, now: Timestamp) -> Self {
        let last = queue.presence().unwrap_or_else(|error| {
            tracing::error!(%error, "when the relay last ran can't be read: overdue mail is left an hour");
            None
        });
        Self {
            hour: Hour {
                began: now,
                until: now + left(last, now),
            },
            noted: None,
        }
    }

    /// See there.
    pub(super) fn hour(&self) -> Hour {
        self.hour
    }

    /// Deadlines before this moment count for nothing yet.
    pub(super) fn holds_before(&self, now: Timestamp) -> Option<Timestamp> {
        (now < self.hour.until).then_some(self.hour.began)
    }

    /// Notes that the relay runs, where that is due.
    pub(super) fn note(&mut self, queue: &Queue, now: Timestamp) {
        if self.noted.is_some_and(|noted| now < noted + NOTED_EVERY) {
            return;
        }
        if self.noted.is_none() && self.holds_before(now).is_some() {
            tracing::info!(until = %log_time(self.hour.until), "mail past its deadline is left to be tried in first");
        }
        self.noted = Some(now);
        queue.note_presence(PresenceRecord {
            last: now,
            // What it runs until the next note is used up already: else one that ends sooner each time would have the same hour for ever.
            grace: self.hour.until.since(now + NOTED_EVERY),
        });
    }
}

/// A grace that was not used up goes on; only what had none left when it went away gets another.
fn left(last: Option<PresenceRecord>, now: Timestamp) -> Duration {
    match last {
        _ if crate::sabotage::is_on("no-grace") => Duration::ZERO,
        Some(last) if !last.grace.is_zero() => last.grace.min(GRACE),
        Some(last) if now.since(last.last) <= AWAY => Duration::ZERO,
        _ => GRACE,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use queue::store::MemoryStore;

    const START: Timestamp = Timestamp(1_800_000_000_000);
    const MINUTE: Duration = Duration::from_secs(60);

    /// A relay that starts at a minute and runs until another: which of them hold what was overdue at its start.
    fn run(queue: &Queue, from: u32, to: u32) -> u32 {
        let mut grace = Grace::begin(queue, START + MINUTE * from);
        let held = (from..to).filter(|&minute| {
            let now = START + MINUTE * minute;
            grace.note(queue, now);
            grace.holds_before(now) == Some(START + MINUTE * from)
        });
        u32::try_from(held.count()).unwrap()
    }

    #[test]
    fn an_hour_is_left_however_often_the_relay_starts_in_it() {
        let queue = Queue::in_memory(MemoryStore::new()).unwrap();
        assert_eq!(run(&queue, 0, 26), 26, "a new store may have been restored");
        assert_eq!(run(&queue, 26, 46), 20);
        // Away for long, and little of the hour used: it goes on, and no other begins.
        assert_eq!(
            run(&queue, 4_000, 4_030),
            15,
            "each note has used up half a minute more"
        );
        assert_eq!(run(&queue, 4_031, 4_040), 0, "restarted");
        assert_eq!(run(&queue, 8_000, 8_100), 60, "away");
        assert_eq!(run(&queue, 8_109, 8_200), 0, "back within ten minutes");
        // The clock was ahead, and has been put right.
        assert_eq!(run(&queue, 5_000, 5_010), 0);
    }
}
