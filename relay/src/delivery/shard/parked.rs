//! Queues that are suspended: they leave memory, and cost nothing until that is over.
//!
//! What ends by itself is found in the catalogue, as what is due is. Where there are fewer suspensions than before, whoever has ended one
//! wakes what it held; that may be cut short, by a crash or by a store that fails. So all that is parked is gone through after a start, and after each time
//! that suspensions have become fewer or the store has failed: a page each second, in which each queue costs one read, and one that nothing
//! suspends any more a write.

use mail_core::Timestamp;
use queue::QueueId;

use crate::delivery::parked::{FIRST, wake};

use super::scan::FAR_EVERY;
use super::{MAX_RESTING, Rests, SCAN_PAGE, Shard};

/// Going through all that is parked.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pass {
    /// When the next one begins.
    next: Option<Timestamp>,
    /// Another follows one that begins before this.
    last: Timestamp,
    /// How far this one has come.
    after: Option<(Timestamp, QueueId)>,
}

impl Default for Pass {
    /// That of a start.
    fn default() -> Self {
        Self {
            next: Some(Timestamp(0)),
            last: Timestamp(0),
            after: None,
        }
    }
}

impl Pass {
    /// All is gone through, and again in a while: a queue may be on its way to where it is parked.
    pub(super) fn begin_anew(&mut self, now: Timestamp) {
        *self = Self {
            next: Some(now),
            last: now + FAR_EVERY,
            after: None,
        };
    }

    /// After which key to go on; `None` where there is nothing to look for.
    fn begin(&mut self, now: Timestamp) -> Option<(Timestamp, QueueId)> {
        if self.after.is_none() && self.next.is_some_and(|next| next <= now) {
            self.next = (now < self.last).then_some(self.last);
            self.after = Some((FIRST, QueueId(0)));
        }
        self.after
    }
}

impl Shard {
    /// Takes a suspended queue out of its turn, and out of memory as soon as nothing of it is claimed. False where it isn't
    /// suspended.
    pub(super) fn park(&mut self, id: QueueId, now: Timestamp) -> bool {
        let Some(active) = self.active.get(&id) else {
            return false;
        };
        let Some(record) = self.suspension(id, &active.name, now) else {
            return false;
        };
        let until = record.until;
        let claims = active.agenda.claims();
        self.leave_turns(id);
        if claims > 0 {
            // It is looked at when they come back, too.
            self.set_queue_timer(id, until.unwrap_or(Timestamp::MAX));
            return true;
        }
        self.unload(id, Some(Rests::Until(wake(until))), now);
        if self.parked.len() < MAX_RESTING {
            self.parked.insert(id);
        }
        true
    }

    /// Has the next queues looked at that nothing suspends any more, or for not as long.
    pub(super) fn go_through_parked(&mut self, now: Timestamp) {
        let Some(mut after) = self.scans.pass.begin(now) else {
            return;
        };
        let Some(page) = self.read(now, |queue| queue.waking(Some(after), Timestamp::MAX, SCAN_PAGE)) else {
            return self.scans.pass.begin_anew(now);
        };
        let is_last = page.len() < SCAN_PAGE;
        for (sleeps_until, id) in page {
            if self.place.home_elsewhere(id).is_none() && !self.is_parked_until(id, sleeps_until, now) {
                // The catalogue finds it then. A note that is lost is made again.
                if !self.queue.try_wake(id, now) {
                    self.scans.pass.after = Some(after);
                    return;
                }
            }
            after = (sleeps_until, id);
        }
        self.scans.pass.after = (!is_last).then_some(after);
    }

    /// Whether a queue is suspended, and for as long as it sleeps.
    fn is_parked_until(&mut self, id: QueueId, sleeps_until: Timestamp, now: Timestamp) -> bool {
        if self.suspended.is_empty() {
            return false;
        }
        let info = self.read(now, |queue| queue.info(id)).flatten();
        info.is_some_and(|info| {
            let suspension = self.suspension(id, &info.name, now);
            suspension.is_some_and(|record| sleeps_until <= wake(record.until))
        })
    }
}

#[cfg(test)]
mod tests;
