//! What became of a unit is recorded, with the reports that it makes, and then said.

use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use mail_core::{Domain, Timestamp};
use queue::{Aside, CommitError, Fate, Hop, NewMessage, Settle, UnitKey};
use tokio::task::spawn_local;
use tokio::time::sleep;

use super::unread::STORE_AGAIN;
use super::{Courier, Event, learn};
use crate::delivery::attempt::OpenRecipient;
use crate::delivery::notify::{self, Circumstances, Peer};
use crate::delivery::settle::{self, Outcome, Outcomes, Past, Verdict};
use crate::delivery::shard::Settled;
use crate::delivery::{backoff, judge};
use crate::prepare::{Loaded, Prepared};
use crate::report::{self, Cause, Kind, Notice, Original};
use crate::submission::rates::{Limit, Who};
use crate::world::Net;

/// What is said of an attempt once it is recorded.
pub(super) struct Told {
    pub at: Timestamp,
    /// From when on it could be sent.
    pub released_at: Timestamp,
    pub attempt: u32,
    pub tag: Option<Arc<str>>,
    /// What it was sent from, where that was chosen.
    pub source: Option<String>,
    pub outcomes: Vec<Outcome>,
    /// Of the reports, in order.
    pub kinds: Vec<Kind>,
}

impl<N: Net> Courier<N> {
    /// Has the outcomes recorded, with the report they cause. Waits for room in the committer's intake; what comes after the
    /// disk has it is left to a task of its own, so that the connection can go on.
    pub(super) async fn record(
        self: &Rc<Self>,
        unit: UnitKey,
        prepared: &Prepared,
        outcomes: impl Into<Outcomes>,
        hop: Option<Hop>,
        (peer, again_after): (Peer, Option<Duration>),
    ) {
        if crate::sabotage::is_on("send-twice") && self.parts.random.below(3) == 0 {
            return self.tell(Event::Settled(unit, Settled::Untouched));
        }
        let outcomes = outcomes.into();
        // Who asks for a time has had its turn.
        let again_after = again_after.filter(|_| outcomes.rest.untried.is_empty());
        let (mut settle, told) = self.settlement(unit, prepared, outcomes, hop, peer);
        if let (Some(again), Some(after)) = (&mut settle.again, again_after) {
            // A due time that no wait of ours reaches would be taken for a mistake of the clock.
            let longest = self.retry_of(prepared.original().stream).longest();
            learn::put_off(
                again,
                after.min(longest),
                (told.at, past(prepared).last_chance(told.at)),
            );
        }
        self.hand_over(unit, settle, told).await;
    }

    pub(super) async fn hand_over(self: &Rc<Self>, unit: UnitKey, settle: Settle, told: Told) {
        match self.parts.queue.settle(settle).await {
            Ok(pending) => {
                let courier = self.clone();
                drop(spawn_local(async move {
                    courier.recorded(unit, pending.await, &told).await;
                }));
            }
            Err(error) => self.recorded(unit, Err(error), &told).await,
        }
    }

    /// What is to be recorded of outcomes, reports included, and what is said of them then.
    pub(super) fn settlement(
        &self,
        unit: UnitKey,
        prepared: &Prepared,
        outcomes: impl Into<Outcomes>,
        hop: Option<Hop>,
        peer: Peer,
    ) -> (Settle, Told) {
        let mut outcomes: Outcomes = outcomes.into();
        judge::class(&mut outcomes.each, &self.parts.settings.delivery.shaping);
        let now = self.parts.clock.now();
        let mut past = past(prepared);
        let (original, old) = (prepared.original(), now.since(released_at(prepared)));
        let transfer = prepared.message.transfer();
        // RFC 2852 §4.1.3: who names a time is told then, and not at another.
        let is_late = match transfer.notify_at() {
            Some(at) => now >= at,
            None => old >= self.reports.delay_after,
        };
        let circumstances = Circumstances {
            now,
            // Once it is known of each of them.
            delay_due: past.delay_told.is_none() && is_late && outcomes.rest.untried.is_empty(),
            expires_at: past.expires_at,
            by: transfer.by,
            peer,
            shaping: &self.parts.settings.delivery.shaping,
        };
        let recipients = prepared.message.recipients(unit.unit);
        let tried: Vec<_> = outcomes.rest.tried.iter().cloned().map(waits_on).collect();
        let notices = [&outcomes.each, &tried].map(|of| notify::notices(of, recipients, &circumstances));
        let notices = notices.concat();
        let (kinds, reports): (Vec<_>, Vec<_>) =
            self.reports_on(&original, &notices, now).into_iter().unzip();
        if kinds.contains(&Kind::Delayed) {
            past.delay_told = Some(now);
        }
        let backoff = self.retry_of(original.stream);
        let source = hop.as_ref().map(|hop| hop.source.clone());
        let mut settle = settle::settle(
            unit,
            past,
            &outcomes,
            hop,
            reports,
            (&backoff, self.parts.random.fraction()),
            now,
        );
        if let Some(again) = &mut settle.again {
            again.signature = prepared.signature.clone();
        }
        let told = Told {
            at: now,
            released_at: released_at(prepared),
            attempt: settle.attempt,
            tag: prepared.message.tag().cloned(),
            source: source.filter(|source| !source.is_empty()),
            outcomes: outcomes.each,
            kinds,
        };
        (settle, told)
    }

    /// The waits of a stream's mail.
    fn retry_of(&self, stream: &str) -> queue::Backoff {
        let delivery = &self.parts.settings.delivery;
        let stream = delivery.streams.get(stream);
        backoff(stream.map_or(&delivery.retry, |stream| &stream.retry))
    }

    /// The reports that these notices make, each of one kind; none for the null sender, and none beyond the rate of its domain:
    /// where mail comes in under forged senders, we are not to be the ones who flood them.
    fn reports_on(
        &self,
        original: &Original<'_>,
        notices: &[Notice],
        now: Timestamp,
    ) -> Vec<(Kind, Arc<NewMessage>)> {
        let mut reports = Vec::new();
        let Some(sender) = original.reverse_path.mailbox().filter(|_| !notices.is_empty()) else {
            return reports;
        };
        for kind in [Kind::Failed, Kind::Delayed, Kind::Relayed] {
            let of_kind = |notice: &&Notice| notice.told.kind() == kind;
            let notices: Vec<_> = notices.iter().filter(of_kind).cloned().collect();
            let id = || self.parts.random.message_id(now);
            let made = report::reports(original, &notices, &self.reports, now, &id);
            let placed = |report| (kind, Arc::new(self.parts.routing.placed(report, now)));
            let within = made
                .into_iter()
                .filter(|_| self.may_report(original, kind, sender.domain()));
            reports.extend(within.map(placed));
        }
        reports
    }

    /// Whether one more report may go to a sender of this domain.
    fn may_report(&self, original: &Original<'_>, kind: Kind, domain: &Domain) -> bool {
        let rate = self.parts.settings.delivery.reports_per_domain;
        let who = Who::Name(domain.as_str().into());
        let wanted = [(Limit::DomainReports, Some(who), Some(rate))];
        let over = self
            .parts
            .rates
            .take(&wanted, tokio::time::Instant::now())
            .is_err();
        if over {
            let kind = kind.action();
            tracing::warn!(cause = %original.id, kind, %domain, "report left out: over the rate of the sender's domain");
            self.parts
                .metrics
                .reports
                .with_label_values(&[kind, "over_rate"])
                .inc();
        }
        !over
    }

    /// Says, counts and tells the shard what is on disk now.
    pub(super) async fn recorded(
        &self,
        unit: UnitKey,
        result: Result<queue::Settled, CommitError>,
        told: &Told,
    ) {
        match result {
            Ok(settled) => {
                for outcome in &told.outcomes {
                    self.say(unit, outcome, told);
                }
                let moved = settled.unit.map_or(Settled::Gone, |unit| Settled::Due(unit.due));
                self.tell(Event::Settled(unit, moved));
                self.reported(unit, &settled.reports, &told.kinds);
            }
            Err(CommitError::Gone) => self.tell(Event::Settled(unit, Settled::Gone)),
            Err(error) => {
                self.parts.metrics.unrecorded.inc();
                let said: Vec<_> = told
                    .outcomes
                    .iter()
                    .map(|outcome| format!("{}: {}", outcome.mailbox, outcome.reply))
                    .collect();
                let said = said.join("; ");
                tracing::error!(id = %unit.id, %error, outcomes = said, "an outcome could not be recorded");
                let settled = match &error {
                    CommitError::Damaged(_) => {
                        // It may be told so before the store is back, which takes nothing until then.
                        while self.parts.queue.is_failing() {
                            sleep(STORE_AGAIN).await;
                        }
                        let aside = Aside::unrecorded(&error, &said, self.parts.clock.now());
                        self.set_aside(unit, aside).await
                    }
                    _ => Settled::Unknown,
                };
                self.tell(Event::Settled(unit, settled));
            }
        }
    }

    pub(super) fn reported(&self, unit: UnitKey, reports: &[queue::Accepted], kinds: &[Kind]) {
        for (report, kind) in reports.iter().zip(kinds) {
            let kind = kind.action();
            self.parts
                .metrics
                .reports
                .with_label_values(&[kind, "queued"])
                .inc();
            tracing::info!(id = %report.id, cause = %unit.id, kind, "report queued");
            self.tell(Event::Reported(report.units.clone()));
        }
    }

    /// One line, and one count, for one recipient.
    pub(super) fn say(&self, unit: UnitKey, outcome: &Outcome, told: &Told) {
        let metrics = &self.parts.metrics;
        let Outcome { mailbox, reply, .. } = outcome;
        let (id, attempt, host) = (unit.id, told.attempt, outcome.host.as_deref().unwrap_or_default());
        let (tag, source) = (told.tag.as_deref(), told.source.as_deref());
        let classes = &self.parts.settings.delivery.shaping.classes;
        let class = outcome.class.map(|id| &*classes.get(id).name);
        match &outcome.verdict {
            Verdict::Delivered => {
                let delay = told.at.since(told.released_at).as_secs_f64();
                metrics.ended(Fate::Delivered);
                metrics.delay.observe(delay);
                tracing::info!(%id, tag, recipient = %mailbox, host, source, attempt, delay, reply, "delivered");
            }
            Verdict::Failed(Cause::Expired { .. }) => {
                metrics.ended(Fate::Expired);
                metrics.classed(class, "expired");
                tracing::info!(%id, tag, recipient = %mailbox, attempt, class, reply, "expired");
            }
            Verdict::Failed(_) => {
                metrics.ended(Fate::Bounced);
                metrics.classed(class, "bounced");
                tracing::info!(%id, tag, recipient = %mailbox, host, source, attempt, class, reply, "bounced");
            }
            Verdict::Deleted(_) => {
                metrics.ended(Fate::Deleted);
                tracing::info!(%id, tag, recipient = %mailbox, reason = reply, "deleted");
            }
            Verdict::Discarded => {
                metrics.ended(Fate::Discarded);
                tracing::info!(%id, tag, recipient = %mailbox, reason = reply, "discarded");
            }
            Verdict::Later => {
                metrics.deferred.inc();
                metrics.classed(class, "deferred");
                tracing::info!(%id, tag, recipient = %mailbox, host, source, attempt, class, reply, "deferred");
            }
            Verdict::InDoubt => {
                metrics.in_doubt.inc();
                metrics.classed(class, "in_doubt");
                tracing::warn!(%id, tag, recipient = %mailbox, host, source, attempt, class, reply, "in doubt");
            }
        }
    }
}

/// One that has been told of waits for the next attempt still.
pub(super) fn waits_on(open: OpenRecipient) -> Outcome {
    Outcome {
        recipient: open.index,
        mailbox: open.to.mailbox,
        verdict: Verdict::Later,
        reply: open.last_reply.unwrap_or_default(),
        host: None,
        class: None,
    }
}

pub(super) fn past(prepared: &Prepared) -> Past {
    let (attempts, in_doubt) = prepared
        .state
        .as_ref()
        .map_or((0, 0), |state| (state.attempts, state.in_doubt));
    let delay_told = prepared.state.as_ref().and_then(|state| state.delay_told);
    let expires_at = match &prepared.message {
        Loaded::Memory(message) => message.expires_at,
        Loaded::Record(_, envelope) => envelope.expires_at,
    };
    Past {
        attempts,
        in_doubt,
        expires_at,
        return_at: prepared.message.transfer().return_at(),
        delay_told,
    }
}

fn released_at(prepared: &Prepared) -> Timestamp {
    match &prepared.message {
        Loaded::Memory(message) => message.released_at(),
        Loaded::Record(_, envelope) => envelope.released_at(),
    }
}
