//! A connection's life, and one unit over it.

use std::rc::Rc;
use std::time::Duration;

use mail_core::Timestamp;
use queue::{Hop, UnitKey};
use tokio::sync::{mpsc, oneshot};

use crate::delivery::attempt::{self, Attempt};
use crate::delivery::connection::Connection;
use crate::delivery::connection::open::{Opener, Terms};
use crate::delivery::judge;
use crate::delivery::lane::{ConnectionId, Hosts, Plan};
use crate::delivery::notify::Peer;
use crate::delivery::route;
use crate::delivery::settle::{Outcome, Outcomes, Rest, Verdict};
use crate::delivery::shard::{Job, LaneId, Settled};
use crate::delivery::smart_host;
use crate::prepare::Prepared;
use crate::world::Net;

use super::record::past;
use super::{Courier, Event, load, unread};

/// Where a connection takes longer to come about, what let its message through is asked again.
const LONG_TO_OPEN: Duration = Duration::from_secs(1);

impl<N: Net> Courier<N> {
    /// A connection's life: made for one job, kept for the next ones, gone when idle, used up or broken.
    pub(super) async fn connection(
        self: Rc<Self>,
        lane: LaneId,
        id: ConnectionId,
        plan: Rc<Plan>,
        first: Job,
        mut jobs: mpsc::Receiver<Job>,
    ) {
        let begun = self.parts.clock.now();
        if let Some(connection) = self
            .guarded(first.unit, self.open(lane, id, &plan, &first))
            .await
            .flatten()
        {
            let first = self.still_allowed(lane, id, first, begun).await;
            self.serve(lane, id, &plan, connection, first, &mut jobs).await;
        }
        jobs.close();
        while let Some(job) = jobs.recv().await {
            self.tell(Event::Settled(job.unit, Settled::Untouched));
        }
        self.tell(Event::Closed(lane, id));
    }

    async fn open(
        self: &Rc<Self>,
        lane: LaneId,
        id: ConnectionId,
        plan: &Plan,
        first: &Job,
    ) -> Option<Connection<N::Stream>> {
        let Plan::Hosts { hosts, terms, .. } = plan else {
            return None;
        };
        let random = &self.parts.random;
        let hosts = match hosts {
            Hosts::Mx(hosts) => route::to_try(hosts, self.parts.settings.delivery.port, random),
            Hosts::Chosen(group) => smart_host::in_order(group, random),
        };
        let opener = Opener {
            net: &self.parts.net,
            settings: &self.parts.settings,
            tls: &self.parts.tls,
            random,
            terms,
            clock: self.parts.clock,
            answers: &self.memory.answers,
            known: &self.memory.known,
        };
        let begun = self.parts.clock.now();
        let opened = opener.open(&hosts).await;
        let source = terms.source.as_ref().map(|source| &*source.name);
        self.parts.metrics.connects(source, opened.as_ref().err());
        match opened {
            Ok(connection) => {
                self.tell(Event::Opened(lane, id));
                Some(connection)
            }
            Err(failure) if failure.is_sources_end() => {
                let failed = Event::SourceFailed(lane, id, failure.to_string(), begun);
                self.tell(failed);
                self.tell(Event::Settled(first.unit, Settled::Untouched));
                None
            }
            Err(failure) => {
                let taught = self.learn_at_the_door(lane, id, first.unit, &failure, begun);
                let shaping = &self.parts.settings.delivery.shaping;
                let permanent = failure.permanent();
                match permanent.filter(|(cause, host)| judge::is_the_end(cause, host, shaping)) {
                    Some((cause, host)) => {
                        let hop = Hop {
                            source: opener.source_name(),
                            host,
                            ..Hop::default()
                        };
                        // It counts as a message: limits pace how often a host that refuses us is asked.
                        self.refuse(first, cause, hop).await;
                    }
                    None => {
                        self.tell(Event::LaneFailed(lane, failure.to_string(), taught));
                        self.tell(Event::Settled(first.unit, Settled::Untouched));
                    }
                }
                None
            }
        }
    }

    /// A connection's first job. Limits let it through when the connection was `begun`; where that took long, they are asked again: a
    /// host that greets late would otherwise get at once what was let through by and by. What is not allowed now goes back.
    async fn still_allowed(
        self: &Rc<Self>,
        lane: LaneId,
        id: ConnectionId,
        first: Job,
        begun: Timestamp,
    ) -> Option<Job> {
        let in_time = self.parts.clock.now() < begun + LONG_TO_OPEN;
        if in_time || self.may_go_on(lane, id, first.unit).await {
            return Some(first);
        }
        self.tell(Event::Settled(first.unit, Settled::Untouched));
        None
    }

    /// Waits for a connection's next job; none comes where it is not to go on.
    async fn next_job(
        &self,
        lane: LaneId,
        id: ConnectionId,
        connection: &mut Connection<N::Stream>,
        jobs: &mut mpsc::Receiver<Job>,
    ) -> Option<Job> {
        self.tell(Event::Free(lane, id));
        let idle = self.parts.settings.delivery.timeouts.idle;
        tokio::select! {
            biased;
            next = jobs.recv() => next,
            () = connection.hangs_up() => None,
            () = tokio::time::sleep(idle) => None,
        }
    }

    async fn serve(
        self: &Rc<Self>,
        lane: LaneId,
        id: ConnectionId,
        plan: &Plan,
        mut connection: Connection<N::Stream>,
        first: Option<Job>,
        jobs: &mut mpsc::Receiver<Job>,
    ) {
        let Plan::Hosts {
            recipients_per_transaction,
            messages_per_connection,
            ref terms,
            ..
        } = *plan
        else {
            return;
        };
        let mut next = first;
        let mut left = messages_per_connection;
        loop {
            let job = match next.take() {
                Some(first) => first,
                None => match self.next_job(lane, id, &mut connection, jobs).await {
                    Some(next) => next,
                    None => break,
                },
            };
            let recipients = job.recipients.unwrap_or(usize::MAX);
            let most = (recipients_per_transaction.min(recipients), left);
            let work = self.deliver((lane, id), &mut connection, &job, most, terms);
            let Some(messages) = self.guarded(job.unit, work).await else {
                // Where the conversation stands, nobody knows.
                return;
            };
            left = left.saturating_sub(messages);
            if !connection.is_usable() || left == 0 {
                break;
            }
        }
        connection.quit().await;
    }

    /// One unit over one connection, as far as it gets, and its record. `most`: recipients a transaction, and transactions. How many
    /// there were.
    async fn deliver(
        self: &Rc<Self>,
        (lane, id): (LaneId, ConnectionId),
        connection: &mut Connection<N::Stream>,
        job: &Job,
        (recipients, transactions): (usize, u32),
        terms: &Terms,
    ) -> u32 {
        let Some(mut prepared) = self.prepare(job).await else {
            return 0;
        };
        if prepared.eight_bit && !connection.takes_eight_bit() && self.parts.settings.delivery.convert_to_7bit
        {
            let (id, now) = (job.unit.id, self.parts.clock.now());
            prepared = match self.parts.preparer.seven_bit(id, prepared, now).await {
                Ok(converted) => converted,
                Err(error) => {
                    self.not_prepared(job, &error).await;
                    return 0;
                }
            };
        }
        let mut load = load(&prepared, job.unit.unit);
        let reader = |rest| self.parts.preparer.reader(rest);
        load.rest = prepared.rest.clone().map(reader);
        let tried = load.take_tried();
        if !load
            .recipients
            .iter()
            .all(|open| connection.takes(open.to.mailbox.domain()))
        {
            // Another connection may; over this one its lane would only send it again.
            connection.leave();
            self.tell(Event::Settled(job.unit, Settled::Untouched));
            return 0;
        }
        tracing::debug!(id = %job.unit.id, unit = job.unit.unit, host = connection.host(), "on the wire");
        let (begun, begun_at) = (tokio::time::Instant::now(), self.parts.clock.now());
        self.memory.stumbles.goes_out(&job.unit);
        let may_go_on = async |so_far| so_far < transactions && self.may_go_on(lane, id, job.unit).await;
        let mut attempt =
            attempt::run(connection, &load, recipients, may_go_on, self.parts.clock.now()).await;
        if attempt.stale {
            self.memory.stumbles.came_back(&job.unit);
            tracing::debug!(id = %job.unit.id, unit = job.unit.unit, host = connection.host(), "hung up between messages");
            self.tell(Event::Settled(job.unit, Settled::Untouched));
            return 0;
        }
        let took = begun.elapsed();
        self.parts.metrics.transaction.observe(took.as_secs_f64());
        let unwelcome = match terms.chosen {
            true => smart_host::unwelcome(&mut attempt.outcomes),
            false => None,
        };
        judge::decide(&mut attempt.outcomes, &self.parts.settings.delivery.shaping);
        if !attempt.goes_on() {
            attempt.give_up(connection.host());
        }
        let Attempt {
            mut outcomes,
            stages,
            untried,
            transactions,
            through,
            works,
            ..
        } = attempt;
        judge::class(&mut outcomes, &self.parts.settings.delivery.shaping);
        if let Some(source) = &terms.source {
            self.parts.metrics.outcomes(&source.name, &outcomes);
        }
        let lesson = self.learn(&outcomes, &stages);
        let taught = lesson.teaches();
        if let Some(cause) = unwelcome {
            // Every other message would fare alike.
            connection.retire();
            self.tell(Event::LaneFailed(lane, cause, taught));
        } else if works {
            self.tell(Event::LaneWorks(lane));
        } else if connection.messages() == 0 {
            // Not one transaction got through: the host is as good as unreachable.
            let cause = outcomes
                .first()
                .map_or_else(String::new, |outcome| outcome.reply.clone());
            self.tell(Event::LaneFailed(lane, cause, taught));
        }
        for _ in 0..through {
            self.tell(Event::GotThrough(lane));
        }
        let again_after = self.pass_on(lane, job.unit, lesson, begun_at);
        let millis = u64::try_from(took.as_millis()).unwrap_or(u64::MAX);
        self.end_if_over(&prepared, &mut outcomes);
        let outcomes = Outcomes {
            each: outcomes,
            rest: Rest { untried, tried },
        };
        self.record(
            job.unit,
            &prepared,
            outcomes,
            Some(Hop {
                millis,
                ..connection.hop()
            }),
            (
                Peer {
                    reports: connection.reports(),
                    keeps_time: connection.keeps_time(),
                },
                again_after,
            ),
        )
        .await;
        self.memory.stumbles.came_back(&job.unit);
        transactions
    }

    /// Whether limits allow a unit on the wire one more transaction. It is counted then.
    async fn may_go_on(&self, lane: LaneId, connection: ConnectionId, unit: UnitKey) -> bool {
        let (say, heard) = oneshot::channel();
        self.tell(Event::MayGoOn(lane, connection, unit, say));
        heard.await.unwrap_or(false)
    }

    /// What was put off ends where its time was up meanwhile. Not what is in doubt, which is recorded as such first.
    fn end_if_over(&self, prepared: &Prepared, outcomes: &mut [Outcome]) {
        let is_in_doubt = |outcome: &Outcome| matches!(outcome.verdict, Verdict::InDoubt);
        let now = self.parts.clock.now();
        let is_over = self.memory.hour.is_over_for(past(prepared).expires_at, now);
        if !is_over || outcomes.iter().any(is_in_doubt) {
            return;
        }
        for outcome in outcomes {
            if matches!(outcome.verdict, Verdict::Later) {
                unread::expire(outcome);
            }
        }
    }
}
