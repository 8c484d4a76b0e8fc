//! What becomes of units without an attempt: they end, or their sender is told that they are late.

use std::rc::Rc;

use queue::{Hop, StillOpen, UnitKey, Waiting};

use crate::delivery::attempt::OpenRecipient;
use crate::delivery::notify::Peer;
use crate::delivery::settle::{Outcome, Verdict};
use crate::delivery::shard::{Ending, Job, Settled};
use crate::prepare::Prepared;
use crate::report::Cause;
use crate::world::Net;

use super::record::{past, waits_on};
use super::{Courier, Event, load, unread};

impl<N: Net> Courier<N> {
    /// Ends a unit that no peer is asked about.
    pub(super) async fn end(self: &Rc<Self>, job: &Job, ending: Ending) {
        let prepared = match self.try_prepare(job).await {
            Ok(prepared) => prepared,
            Err(error) => return self.end_unread(job, &ending, &error).await,
        };
        if let Ending::Delayed(held_by) = ending {
            return self.tell_of_delay(job.unit, &prepared, held_by).await;
        }
        let outcomes: Vec<_> = load(&prepared, job.unit.unit)
            .recipients
            .into_iter()
            .map(|open| unread::outcome(open.index, open.to.mailbox, &ending, open.last_reply))
            .collect();
        self.record(job.unit, &prepared, outcomes, None, (Peer::default(), None))
            .await;
    }

    /// Tells the sender that the unit is late; it stays where it is, as it is.
    async fn tell_of_delay(self: &Rc<Self>, unit: UnitKey, prepared: &Prepared, held_by: Option<String>) {
        let cause = held_by.unwrap_or_else(|| "4.4.7 not tried yet".to_owned());
        let recipients = load(prepared, unit.unit).recipients;
        let is_unasked = |open: &&OpenRecipient| open.last_reply.is_none();
        let unasked: Vec<u16> = recipients
            .iter()
            .filter(is_unasked)
            .map(|open| open.index)
            .collect();
        let in_parts = !unasked.is_empty() && unasked.len() < recipients.len();
        let outcomes: Vec<_> = recipients
            .into_iter()
            .map(|mut open| {
                open.last_reply.get_or_insert_with(|| cause.clone());
                waits_on(open)
            })
            .collect();
        let (mut settle, mut told) = self.settlement(unit, prepared, outcomes, None, Peer::default());
        if settle.reports.is_empty() {
            // It was told of by an attempt.
            return self.tell(Event::Settled(unit, Settled::Untouched));
        }
        if let Some(again) = &mut settle.again {
            (again.due, again.attempts) = (unit.due, past(prepared).attempts);
            // An attempt in parts goes on with those of whom there is no reply.
            if in_parts {
                let (unasked, open) = std::mem::take(&mut again.open)
                    .into_iter()
                    .partition(|open| unasked.contains(&open.recipient));
                let unasked: Vec<StillOpen> = unasked;
                let waiting = |open: StillOpen| Waiting {
                    recipient: open.recipient,
                    reply: String::new(),
                };
                again.open = open;
                again.others = unasked.into_iter().map(waiting).collect();
            }
        }
        // Nothing has become of any recipient.
        told.outcomes.clear();
        self.hand_over(unit, settle, told).await;
    }

    /// Every host of the lane refused us for good: so does the unit end.
    pub(super) async fn refuse(self: &Rc<Self>, job: &Job, cause: Cause, hop: Hop) {
        let Some(prepared) = self.prepare(job).await else {
            return;
        };
        let reply = match &cause {
            Cause::Refused(reply) => reply.to_string(),
            Cause::Undeliverable(code, why) => format!("{code} {why}"),
            Cause::Expired { .. } => String::new(),
        };
        let outcomes = load(&prepared, job.unit.unit)
            .recipients
            .into_iter()
            .map(|open| Outcome {
                recipient: open.index,
                mailbox: open.to.mailbox,
                verdict: Verdict::Failed(cause.clone()),
                reply: reply.clone(),
                host: Some(hop.host.clone()),
                class: None,
            });
        let outcomes: Vec<_> = outcomes.collect();
        self.record(job.unit, &prepared, outcomes, Some(hop), (Peer::default(), None))
            .await;
    }
}
