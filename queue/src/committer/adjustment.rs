//! Adjustments are written, and bounded.

use std::collections::BTreeMap;

use mail_core::Timestamp;

use super::{Committer, Group};
use crate::adjustment::{AdjustmentKey, AdjustmentRecord, MAX_ADJUSTMENTS, Stands};
use crate::keys;
use crate::records::{Event, EventKind, decode};
use crate::store::Family;

/// What is known of the adjustments that are in the store, some 300 octets each.
pub(super) type Standing = BTreeMap<AdjustmentKey, Stands>;

impl Committer {
    pub(super) fn adjust(&mut self, group: &mut Group, record: &AdjustmentRecord) {
        let mut standing = self.standing_adjustments();
        if standing.len() >= MAX_ADJUSTMENTS && !standing.contains_key(&record.key) {
            let now = record.changed;
            let least = standing
                .iter()
                .min_by_key(|(key, stands)| stands.importance(key.kind, now))
                .map(|(key, _)| key.clone());
            if let Some(least) = least {
                standing.remove(&least);
                self.delete_adjustment(group, &least, "too many others", now);
            }
        }
        standing.insert(record.key.clone(), Stands::of(record));
        self.adjustments = Some(standing);
        group
            .batch
            .put_record(Family::Hold, &keys::adjustment(&record.key), record);
        let event = of_lanes(EventKind::Adjusted, record.changed, record.in_words());
        self.journal(group, &event);
    }

    /// Unless it has changed since `as_of`.
    pub(super) fn end_adjustment(
        &mut self,
        group: &mut Group,
        key: &AdjustmentKey,
        as_of: Option<Timestamp>,
        by: &str,
        at: Timestamp,
    ) {
        let mut standing = self.standing_adjustments();
        let is_known = standing
            .get(key)
            .is_some_and(|stands| as_of.is_none_or(|as_of| stands.changed <= as_of));
        if is_known {
            standing.remove(key);
            self.delete_adjustment(group, key, by, at);
        }
        self.adjustments = Some(standing);
    }

    fn delete_adjustment(&mut self, group: &mut Group, key: &AdjustmentKey, by: &str, at: Timestamp) {
        group.batch.delete(Family::Hold, &keys::adjustment(key));
        let event = of_lanes(EventKind::AdjustmentEnded, at, format!("{key}: ended by {by}"));
        self.journal(group, &event);
    }

    /// Read from the store once, and after each failure. Where it does not read, there is room for all that come: the bound is met
    /// again after the next start.
    fn standing_adjustments(&mut self) -> Standing {
        if let Some(standing) = self.adjustments.take() {
            return standing;
        }
        let mut standing = Standing::new();
        let (from, to) = ([keys::ADJUSTMENT], [keys::ADJUSTMENT + 1]);
        let read = self.store.scan_past(Family::Hold, &from, &to, &mut |_, value| {
            // What is damaged is set aside by whoever lists it.
            if let Ok(record) = decode::<AdjustmentRecord>(value) {
                standing.insert(record.key.clone(), Stands::of(&record));
            }
            true
        });
        if let Err(error) = read {
            tracing::error!(%error, "adjustments don't read");
        }
        standing
    }
}

fn of_lanes(kind: EventKind, at: Timestamp, reply: String) -> Event {
    super::operator::of_queues(kind, at, reply)
}
