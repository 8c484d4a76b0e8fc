//! Units whose message can't be prepared: they are set aside, or, where they are to end anyway, end without it.

use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use mail_core::{EnhancedCode, Mailbox, Timestamp};
use queue::{Aside, CommitError, EnvelopeRecord, ReadError, StateRecord, UnitKey, Waiting};
use tokio::task::spawn_local;
use tokio::time::sleep;

use crate::delivery::notify::Peer;
use crate::delivery::settle::{Outcome, Verdict};
use crate::delivery::shard::{Ending, Job, Settled};
use crate::prepare::{Loaded, PrepareError, Prepared};
use crate::report::Cause;
use crate::world::Net;

use super::record::Told;
use super::{Courier, Event, load};

/// After the store failed to answer.
pub(super) const STORE_AGAIN: Duration = Duration::from_secs(5);

impl<N: Net> Courier<N> {
    /// Tells the shard what becomes of a claim whose message can't be prepared. What the store holds of it is damaged: then
    /// it is set aside, so that neither it comes up again and again nor anything wrong is sent.
    pub(super) async fn not_prepared(self: &Rc<Self>, job: &Job, error: &PrepareError) {
        let unit = job.unit;
        self.tell(Event::NothingSaid(unit));
        if matches!(error, PrepareError::Crowded) {
            tracing::warn!(id = %unit.id, "put off: too many large messages are being sent in 7-bit");
            return self.later(unit);
        }
        let damage = match error {
            PrepareError::Read(error) if error.is_damage() => Some(error.clone()),
            // Without an envelope there is nothing to send: it has ended, or its envelope is lost.
            PrepareError::Gone => self.parts.queue.missing(&unit).unwrap_or_default(),
            _ => None,
        };
        tracing::error!(id = %unit.id, %error, "a message can't be prepared");
        let settled = match (damage, error) {
            (Some(damage), _) => {
                let aside = Aside::damaged(&damage, self.parts.clock.now());
                return self.set_unsent_aside(unit, aside).await;
            }
            (None, PrepareError::Gone) => Settled::Gone,
            (None, PrepareError::Stopping) => Settled::Untouched,
            (None, PrepareError::Read(_) | PrepareError::Crowded) => return self.later(unit),
            (None, PrepareError::Panicked) => return self.stumbled(unit).await,
        };
        self.tell(Event::Settled(unit, settled));
    }

    /// The store does not answer: the claim is kept for a while, so that it is not asked again and again.
    pub(super) fn later(self: &Rc<Self>, unit: UnitKey) {
        let courier = self.clone();
        drop(spawn_local(async move {
            sleep(STORE_AGAIN).await;
            courier.tell(Event::Settled(unit, Settled::Untouched));
        }));
    }

    /// Sets a claimed unit aside of which nothing was sent, and tells the shard.
    pub(super) async fn set_unsent_aside(self: &Rc<Self>, unit: UnitKey, aside: Aside) {
        match self.set_aside(unit, aside).await {
            Settled::Unknown => self.as_stored(unit, None),
            settled => self.tell(Event::Settled(unit, settled)),
        }
    }

    /// Nothing was sent, and nobody knows whether what was asked of the store is on disk, which moves the unit to `moved` or ends it: the
    /// claim is kept until the store is back, and goes then by what that holds.
    pub(super) fn as_stored(self: &Rc<Self>, unit: UnitKey, moved: Option<Timestamp>) {
        let courier = self.clone();
        drop(spawn_local(async move {
            loop {
                sleep(STORE_AGAIN).await;
                match courier.stored(&unit, moved) {
                    Ok(Some(settled)) => return courier.tell(Event::Settled(unit, settled)),
                    Ok(None) => {}
                    Err(error) => tracing::error!(id = %unit.id, %error, "where a unit stands can't be read"),
                }
            }
        }));
    }

    /// `None` while the store fails.
    fn stored(&self, unit: &UnitKey, moved: Option<Timestamp>) -> Result<Option<Settled>, ReadError> {
        let queue = &self.parts.queue;
        if queue.is_failing() {
            return Ok(None);
        }
        if queue.is_due(unit)? {
            return Ok(Some(Settled::Untouched));
        }
        let moved = moved.filter(|due| *due != unit.due);
        Ok(Some(match moved {
            Some(due) if queue.is_due(&UnitKey { due, ..*unit })? => Settled::Due(due),
            _ => Settled::Gone,
        }))
    }

    /// Sets a claimed unit aside, and says so. What to tell the shard of the claim.
    pub(super) async fn set_aside(&self, unit: UnitKey, aside: Aside) -> Settled {
        let why = aside.why().to_owned();
        match self.parts.queue.set_aside(unit, aside).await {
            Ok(()) => {
                tracing::error!(id = %unit.id, unit = unit.unit, why, "set aside: see `postrider queue damaged`");
                Settled::Gone
            }
            Err(CommitError::Gone) => Settled::Gone,
            Err(error) => {
                tracing::error!(id = %unit.id, %error, "a unit can't be set aside");
                Settled::Unknown
            }
        }
    }

    /// Ends a unit whose message can't be prepared, in the same way; its sender is told without the message, if there is an
    /// envelope that says who that is. Nobody is told of a mere delay.
    pub(super) async fn end_unread(self: &Rc<Self>, job: &Job, ending: &Ending, error: &PrepareError) {
        let can_end = match error {
            PrepareError::Read(error) => error.is_damage(),
            PrepareError::Panicked => true,
            PrepareError::Gone | PrepareError::Stopping | PrepareError::Crowded => false,
        };
        if !can_end || matches!(ending, Ending::Delayed(_)) {
            return self.not_prepared(job, error).await;
        }
        let unit = job.unit;
        tracing::error!(id = %unit.id, %error, "ended without being prepared");
        let (known, envelope) = match self.known(&unit) {
            Ok(known) => known,
            Err(error) => return self.not_prepared(job, &PrepareError::Read(error)).await,
        };
        let outcomes: Vec<_> = match &envelope {
            // As it is tried, so that what is told of it is what is told of others.
            Some(prepared) => load(prepared, unit.unit)
                .recipients
                .into_iter()
                .map(|open| outcome(open.index, open.to.mailbox, ending, open.last_reply))
                .collect(),
            None => (0..)
                .zip(known)
                .map(|(index, mailbox)| outcome(index, mailbox, ending, None))
                .collect(),
        };
        if let Some(prepared) = envelope {
            return self
                .record(unit, &prepared, outcomes, None, (Peer::default(), None))
                .await;
        }
        let now = self.parts.clock.now();
        let settle = queue::Settle {
            unit,
            at: now,
            attempt: 0,
            hop: None,
            ends: outcomes.iter().filter_map(crate::delivery::settle::end).collect(),
            again: None,
            reports: Vec::new(),
        };
        let told = Told {
            at: now,
            released_at: unit.id.created(),
            attempt: 0,
            tag: None,
            source: None,
            outcomes,
            kinds: Vec::new(),
        };
        self.hand_over(unit, settle, told).await;
    }

    /// The recipients that have not ended, as far as it can be told; and what can be said of the message where its envelope
    /// reads.
    fn known(&self, unit: &UnitKey) -> Result<(Vec<Mailbox>, Option<Prepared>), ReadError> {
        let queue = &self.parts.queue;
        let known = queue.known_recipients(unit)?;
        let envelope = match queue.envelope(unit.id) {
            Ok(envelope) => envelope,
            Err(error) if error.is_damage() => None,
            Err(error) => return Err(error),
        };
        let Some(envelope) = envelope else {
            return Ok((known, None));
        };
        let state = match queue.state(unit.id, unit.unit) {
            Ok(state) => state,
            Err(error) if error.is_damage() => Some(open_to(&envelope, unit, &known)),
            Err(error) => return Err(error),
        };
        let prepared = Prepared {
            message: Loaded::Record(unit.id, Box::new(envelope)),
            state,
            head: Bytes::new(),
            body: Bytes::new(),
            rest: None,
            eight_bit: false,
            utf8_header: false,
            signature: None,
            room: None,
        };
        Ok((known, Some(prepared)))
    }
}

/// A state that says no more than who has not ended.
fn open_to(envelope: &EnvelopeRecord, unit: &UnitKey, known: &[Mailbox]) -> StateRecord {
    let recipients = envelope.units.get(usize::from(unit.unit));
    let recipients = (0..).zip(recipients.map_or(&[][..], |unit| &unit.recipients));
    let waiting = |recipient| Waiting {
        recipient,
        reply: String::new(),
    };
    StateRecord {
        due: unit.due,
        open: recipients
            .filter(|(_, recipient)| known.contains(&recipient.mailbox))
            .map(|(index, _)| waiting(index))
            .collect(),
        ..StateRecord::default()
    }
}

/// Makes the end of a recipient of what was an attempt that has put it off.
pub(super) fn expire(outcome: &mut Outcome) {
    let last = Some(std::mem::take(&mut outcome.reply)).filter(|reply| !reply.is_empty());
    (outcome.verdict, outcome.reply) = expired(last, None);
}

fn expired(last: Option<String>, held_by: Option<String>) -> (Verdict, String) {
    let reply = match &last {
        Some(last) => format!("{}{last}", crate::shaping::EXPIRED_LAST),
        None => "4.4.7 delivery time expired".to_owned(),
    };
    (Verdict::Failed(Cause::Expired { last, held_by }), reply)
}

/// How a recipient ends that no peer is asked about.
pub(super) fn outcome(index: u16, mailbox: Mailbox, ending: &Ending, last_reply: Option<String>) -> Outcome {
    let (verdict, reply) = match ending {
        Ending::Discarded(reason) => (Verdict::Discarded, reason.to_string()),
        Ending::Refused(reply) => {
            let code = reply.enhanced.unwrap_or(EnhancedCode(5, 0, 0));
            let cause = Cause::Undeliverable(code, reply.text.to_string());
            (Verdict::Failed(cause), reply.to_string())
        }
        // Told of apart from this.
        Ending::Delayed(_) => (Verdict::Later, String::new()),
        Ending::Expired(held_by) => {
            // What a lane rests for is nearly always what went wrong last.
            let is_news = |held_by: &&String| {
                last_reply
                    .as_ref()
                    .is_some_and(|last| !last.contains(held_by.as_str()))
            };
            let news = held_by.as_ref().filter(is_news).cloned();
            expired(last_reply.or_else(|| held_by.clone()), news)
        }
    };
    Outcome {
        recipient: index,
        mailbox,
        verdict,
        reply,
        host: None,
        class: None,
    }
}
