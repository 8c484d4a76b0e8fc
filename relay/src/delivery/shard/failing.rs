//! Sources that fail: an address that can't be had, a proxy that does not serve us. Such a source leaves its pools for a while, at all sites at
//! once, as a suspension that all shards know and the store keeps; then one connection tries whether it serves again.

use std::sync::Arc;
use std::time::Duration;

use mail_core::Timestamp;
use queue::{AdjustmentKey, AdjustmentRecord, BY_FAILURE, Scope};

use crate::delivery::exchange::Word;
use crate::delivery::lane::ConnectionId;
use crate::world::log_time;

use super::{LaneId, Shard};

/// How long a source is left alone that fails for the first time; twice as long each further time in a row.
const FIRST: Duration = Duration::from_secs(30);

/// And no longer than this.
const LONGEST: Duration = Duration::from_secs(600);

/// Lanes that wait for a trial's end are told of it; they ask by themselves this often, should that be lost.
const ASKS_AGAIN: Duration = Duration::from_secs(5);

/// Whether a connection may be begun from a lane's source.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Trial {
    /// As any other.
    NotNeeded,
    /// As the one that tries whether this source serves.
    Begun(Arc<str>),
    /// Another one does.
    Taken,
}

impl Shard {
    /// What a lane sends from has failed, whatever the host: said of a connection that was begun then. The connection is reported
    /// closed apart from this.
    pub fn source_failed(
        &mut self,
        lane: LaneId,
        connection: ConnectionId,
        cause: &str,
        begun: Timestamp,
        now: Timestamp,
    ) {
        let source = self.lanes.get(lane).and_then(|lane| lane.key.source.clone());
        let Some(source) = source else {
            return self.lane_failed(lane, cause, false, now);
        };
        self.end_trial(&source, connection);
        let key = of_source(&source);
        let last = self.adjustments.get(&key).cloned();
        // Begun before it was suspended: that is known.
        if last
            .as_ref()
            .is_some_and(|last| last.holds(now) || begun <= last.since)
        {
            return;
        }
        let last = last.filter(|last| last.by == BY_FAILURE);
        let time = last.and_then(|last| Some(last.until?.since(last.since) * 2));
        let until = now + time.unwrap_or(FIRST).min(LONGEST);
        let record = AdjustmentRecord {
            key,
            since: now,
            changed: now,
            until: Some(until),
            connections: None,
            rate: None,
            refused: None,
            cause: AdjustmentRecord::cut(cause),
            host: None,
            class: None,
            by: BY_FAILURE.to_owned(),
        };
        tracing::warn!(source = &*source, cause, until = %log_time(until), "source does not serve");
        self.stands(record, now);
    }

    /// When a lane is to ask again whose source another connection tries.
    pub(super) fn waits_for_trial(&self, lane: LaneId, now: Timestamp) -> Option<Timestamp> {
        let source = self.on_trial(lane, now)?;
        (!self.place.trials().may_begin(&source, now)).then(|| now + ASKS_AGAIN)
    }

    /// A connection of the lane is about to be made.
    pub(super) fn begin_trial(&self, lane: LaneId, now: Timestamp) -> Trial {
        match self.on_trial(lane, now) {
            None => Trial::NotNeeded,
            Some(source) if self.place.trials().begin(&source, now) => Trial::Begun(source),
            Some(_) => Trial::Taken,
        }
    }

    /// The lane's source, where it has failed and nobody knows whether it serves again.
    fn on_trial(&self, lane: LaneId, now: Timestamp) -> Option<Arc<str>> {
        let source = self.lanes.get(lane)?.key.source.clone()?;
        let record = self.adjustments.get(&of_source(&source))?;
        (record.by == BY_FAILURE && !record.holds(now)).then_some(source)
    }

    /// A connection has come about, or has ended without its source having failed: if it was a trial, the source serves.
    pub(super) fn source_serves(&mut self, lane: LaneId, connection: ConnectionId, now: Timestamp) {
        let source = self.lanes.get(lane).and_then(|lane| lane.key.source.clone());
        let Some(source) = source.filter(|source| self.end_trial(source, connection)) else {
            return;
        };
        tracing::info!(source = &*source, "source serves again");
        let key = of_source(&source);
        if let Some(record) = self.failure_of(&source).cloned() {
            self.queue
                .end_adjustment(key.clone(), record.changed, SERVES, now);
            for shard in self.place.others() {
                self.tell(shard, Word::AdjustmentEnded(key.clone(), SERVES.into()));
            }
            self.adjustment_ended(&key, SERVES, now);
        }
    }

    /// A reload has made it another one.
    pub(in crate::delivery) fn source_changed(&mut self, source: &Arc<str>, now: Timestamp) {
        if let Some(record) = self.failure_of(source).cloned() {
            let by = "a reload";
            self.queue
                .end_adjustment(record.key.clone(), record.changed, by, now);
            self.adjustment_ended(&record.key, by, now);
        }
    }

    /// Whether it has failed, and is left alone.
    pub(super) fn is_failing(&self, source: &Arc<str>, now: Timestamp) -> bool {
        self.failure_of(source).is_some_and(|record| record.holds(now))
    }

    fn failure_of(&self, source: &Arc<str>) -> Option<&Arc<AdjustmentRecord>> {
        let record = self.adjustments.get(&of_source(source))?;
        (record.by == BY_FAILURE).then_some(record)
    }

    /// False where it was none of this connection's.
    fn end_trial(&mut self, source: &Arc<str>, connection: ConnectionId) -> bool {
        let is_its = self.trials.get(source) == Some(&connection);
        if is_its {
            self.trials.remove(source);
            self.place.trials().end(source);
        }
        is_its
    }
}

/// Why a suspension ends that a failure has caused.
const SERVES: &str = "its success";

fn of_source(source: &Arc<str>) -> AdjustmentKey {
    AdjustmentKey::suspended(Scope {
        source: Some(source.clone()),
        ..Scope::default()
    })
}

#[cfg(test)]
mod tests;
