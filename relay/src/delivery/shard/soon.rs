//! Mail whose time is nearly up goes ahead of its tenant's other mail to the same lane.
//!
//! What a queue's first unit ends at is not known without reading its envelope; but the deadline index, by which mail expires, says for
//! nothing which queues have mail that ends soon, and so does the one of times that clients named (RFC 2852). Of all other mail
//! the deadline is days off, and says no more than when it came in.

use std::collections::BTreeSet;
use std::time::Duration;

use mail_core::Timestamp;
use queue::QueueId;

use super::{Shard, Standing};

/// What ends within this time is in a hurry.
const SOON: Duration = Duration::from_secs(300);

/// So often the indexes are asked: keys of what has gone since it came in cost a look each until they are compacted.
const EVERY: Duration = Duration::from_secs(5);

/// Keys looked at in each index.
const KEYS: usize = 1_024;

/// Queues in a hurry.
#[derive(Default)]
pub(super) struct Hastened {
    queues: BTreeSet<QueueId>,
    asked: Option<Timestamp>,
}

impl Shard {
    /// Has queues go ahead of their tenant's others whose mail ends soon, and those no more that have none left.
    pub(super) fn hasten(&mut self, now: Timestamp) {
        // A clock that was set back has been ahead.
        let is_known = |asked: Timestamp| asked <= now && now < asked + EVERY;
        if self.hastened.asked.is_some_and(is_known) || self.active.is_empty() {
            return;
        }
        self.hastened.asked = Some(now);
        let Some(ending) = self.read(now, |queue| queue.ending(now, now + SOON, KEYS)) else {
            return;
        };
        for id in std::mem::take(&mut self.hastened.queues) {
            if !ending.contains_key(&id) {
                self.set_end(id, None);
            }
        }
        for (id, at) in ending {
            if self.set_end(id, Some(at)) {
                self.hastened.queues.insert(id);
            }
        }
    }

    /// Tells all that it stands at, again where it stood alone before. False where it is not in memory.
    fn set_end(&mut self, id: QueueId, ends: Option<Timestamp>) -> bool {
        let Some(active) = self.active.get_mut(&id) else {
            return false;
        };
        active.ends = ends;
        for stand in &active.stands {
            match stand.at {
                Standing::Out => {}
                Standing::Turn => {
                    if let Some(lane) = self.lanes.get_mut(stand.lane) {
                        lane.turn.hasten(id, &active.name, ends);
                    }
                }
                Standing::Gate(gate) => {
                    if let Some(gate) = self.gates.get_mut(gate) {
                        gate.hasten((id, stand.lane), &active.name, ends);
                    }
                }
            }
            let waits_at = self.lanes.get(stand.lane).and_then(|lane| lane.waits_at);
            if let Some((gate, _, _)) = waits_at.filter(|(.., front)| *front == id)
                && let Some(gate) = self.gates.get_mut(gate)
            {
                gate.hasten((id, stand.lane), &active.name, ends);
            }
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::super::fleet::{Fleet, Sent};
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    /// A lane that takes a message in ten seconds, for newsletters to many domains of its site and one message that ends in two minutes.
    async fn beside_newsletters(limits: &str, is_returned: bool) -> (Fleet, Duration) {
        let mut fleet = Fleet::new(1, limits);
        fleet.takes = 10 * SECOND;
        for number in 0..30 {
            let domain = format!("d{number}.test");
            fleet.hosts.insert(domain.clone(), vec!["mx.test".into()]);
            fleet.accept(20, "t", "bulk", &domain, 10).await;
        }
        fleet.run(20 * SECOND).await;
        let begun = fleet.now;
        fleet.hosts.insert("soon.test".into(), vec!["mx.test".into()]);
        match is_returned {
            true => fleet.ends_after = 120 * SECOND,
            false => fleet.named_after = Some(120 * SECOND),
        }
        fleet.accept(1, "t", "bulk", "soon.test", 10).await;
        fleet.run(600 * SECOND).await;
        let of_it = |sent: &&Sent| sent.domain == "soon.test";
        let waited = fleet.sent.iter().find(of_it).map(|sent| sent.at.since(begun));
        (fleet, waited.unwrap_or(Duration::MAX))
    }

    /// RFC 2852, with R and with N: what is to be there in two minutes goes before a newsletter of the same tenant and stream.
    #[tokio::test]
    async fn what_ends_in_two_minutes_goes_ahead_of_its_tenants_other_queues() {
        for limits in [
            "[delivery.limits]\nconnections = 1\n",
            "[[limit]]\nsite = \"*\"\nmessages_per_minute = 6\n",
            "[[limit]]\ntenant = \"*\"\nmessages_per_minute = 6\n",
        ] {
            for is_returned in [true, false] {
                let (fleet, waited) = beside_newsletters(limits, is_returned).await;
                assert!(waited < 60 * SECOND, "{limits}: {waited:?}");
                let others = fleet.count(|sent| sent.domain != "soon.test");
                assert!(others > 50, "{limits}: and the others go on, {others}");
            }
        }
    }
}
