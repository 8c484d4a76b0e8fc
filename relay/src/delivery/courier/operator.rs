//! What operators order of single units. The shard holds their claims.

use std::rc::Rc;
use std::sync::Arc;

use mail_core::EnhancedCode;
use queue::{CommitError, End, Fate, ReadError, Settle, UnitKey};

use crate::delivery::attempt::OpenRecipient;
use crate::delivery::exchange::{Done, Order, Ordered};
use crate::delivery::notify::Peer;
use crate::delivery::settle::{Outcome, Verdict};
use crate::delivery::shard::Settled;
use crate::prepare::PrepareError;
use crate::report::Cause;
use crate::world::Net;

use super::{Courier, Event, load};

impl<N: Net> Courier<N> {
    /// Carries an order out, and tells the shard and whoever gave it.
    pub(super) async fn order(self: &Rc<Self>, order: &Order) {
        let (unit, now) = (order.unit, self.parts.clock.now());
        let (settled, done) = match &order.what {
            &Ordered::Retry { ref by, due } => match self.parts.queue.state(unit.id, unit.unit) {
                // It was tried after the operator had asked for it, and put off again.
                // An attempt later than now was made while the clock was ahead, and says nothing.
                Ok(Some(state)) if (due..=now).contains(&state.last_attempt) => {
                    (Settled::Untouched, Done::Gone)
                }
                Ok(_) => {
                    let result = self.parts.queue.retry(unit, due, by).await;
                    told(unit, result.map(|()| Settled::Due(due)))
                }
                Err(error) => {
                    tracing::error!(id = %unit.id, %error, "a message can't be retried");
                    (Settled::Untouched, Done::Failed)
                }
            },
            Ordered::Delete {
                by,
                tell: Some(reason),
            } => self.delete_and_tell(unit, by, reason).await,
            Ordered::Delete { by, tell: None } => match self.deletion(unit, by) {
                Ok(Some(settle)) => {
                    let ended = settle.ends.len();
                    let result = match self.parts.queue.settle(settle).await {
                        Ok(pending) => pending.await,
                        Err(error) => Err(error),
                    };
                    if result.is_ok() {
                        tracing::info!(id = %unit.id, unit = unit.unit, by = %by, recipients = ended, "deleted");
                        for _ in 0..ended {
                            self.parts.metrics.ended(Fate::Deleted);
                        }
                    }
                    told(unit, result.map(|_| Settled::Gone))
                }
                Ok(None) => (Settled::Gone, Done::Gone),
                Err(error) => {
                    tracing::error!(id = %unit.id, %error, "a message can't be deleted");
                    (Settled::Untouched, Done::Failed)
                }
            },
        };
        order.tell(done);
        match (settled, &order.what) {
            // Nothing is sent for it.
            (Settled::Unknown, &Ordered::Retry { due, .. }) => self.as_stored(unit, Some(due)),
            (settled, _) => self.tell(Event::Settled(unit, settled)),
        }
    }

    /// Ends a unit, and has its sender told if the client didn't ask for silence.
    async fn delete_and_tell(&self, unit: UnitKey, by: &Arc<str>, reason: &Arc<str>) -> (Settled, Done) {
        let now = self.parts.clock.now();
        let prepared = match self.parts.preparer.prepare(unit, None, now).await {
            Ok(prepared) => prepared,
            Err(PrepareError::Gone) => return (Settled::Gone, Done::Gone),
            Err(error) => {
                tracing::error!(id = %unit.id, %error, "a message can't be deleted");
                return (Settled::Untouched, Done::Failed);
            }
        };
        let outcome = |open: OpenRecipient| Outcome {
            recipient: open.index,
            mailbox: open.to.mailbox,
            verdict: Verdict::Deleted(Cause::Undeliverable(EnhancedCode(5, 7, 1), reason.to_string())),
            reply: format!("deleted by {by}: {reason}"),
            host: None,
            class: None,
        };
        let outcomes: Vec<_> = load(&prepared, unit.unit)
            .recipients
            .into_iter()
            .map(outcome)
            .collect();
        let (settle, said) = self.settlement(unit, &prepared, outcomes, None, Peer::default());
        let settled = match self.parts.queue.settle(settle).await {
            Ok(pending) => pending.await,
            Err(error) => Err(error),
        };
        if let Ok(settled) = &settled {
            for outcome in &said.outcomes {
                self.say(unit, outcome, &said);
            }
            self.reported(unit, &settled.reports, &said.kinds);
        }
        told(unit, settled.map(|_| Settled::Gone))
    }

    /// The record that ends a unit, whatever of it can be read. The body isn't asked for.
    fn deletion(&self, unit: UnitKey, by: &Arc<str>) -> Result<Option<Settle>, ReadError> {
        let queue = &self.parts.queue;
        if !queue.is_due(&unit)? && queue.aside(&unit)?.is_none() {
            return Ok(None);
        }
        let ends = queue.known_recipients(&unit)?.into_iter().map(|mailbox| End {
            mailbox,
            fate: Fate::Deleted,
            reply: format!("deleted by {by}"),
        });
        Ok(Some(Settle {
            unit,
            at: self.parts.clock.now(),
            attempt: 0,
            hop: None,
            ends: ends.collect(),
            again: None,
            reports: Vec::new(),
        }))
    }
}

fn told(unit: UnitKey, result: Result<Settled, CommitError>) -> (Settled, Done) {
    match result {
        Ok(settled) => (settled, Done::Done),
        Err(CommitError::Gone) => (Settled::Gone, Done::Gone),
        // Nothing of it was written.
        Err(error @ CommitError::Damaged(_)) => {
            tracing::error!(id = %unit.id, %error, "an operator's order can't be carried out");
            (Settled::Untouched, Done::Failed)
        }
        Err(error) => {
            tracing::error!(id = %unit.id, %error, "an operator's order could not be recorded");
            (Settled::Unknown, Done::Failed)
        }
    }
}
