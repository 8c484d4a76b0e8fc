//! The shell around a [`Shard`]: it looks names up, keeps connections, and has recorded what became of each unit.
//!
//! One local task owns the shard and takes in events; each connection is a local task of its own. Their channel needs no
//! bound of its own: a connection has at most one unit under way, lookups and endings are counted by the shard, and an
//! outcome waits for the committer's bounded intake before its connection is free again.

use std::collections::HashMap;
use std::rc::Rc;
use std::sync::Arc;

use mail_core::{Domain, Timestamp};
use queue::{Backoff, Hop, NewMessage, Pending, Queue, UnitKey};
use tokio::sync::{mpsc, watch};
use tokio::task::spawn_local;
use tokio::time::{sleep_until, timeout};

use crate::config::Settings;
use crate::prepare::{Prepared, Preparer};
use crate::report::{Cause, Original, ReportSettings, failure_report};
use crate::world::{Clock, DnsError, Net, Random};

use super::attempt::{self, Attempt};
use super::connection::{self, Connection};
use super::lane::{ConnectionId, Plan};
use super::metrics::Metrics;
use super::route::Route;
use super::settle::{self, Outcome, Past, Verdict};
use super::shard::{Effect, Ending, Job, LaneId, Settled, Shard};

/// What the submission side tells a shard.
#[derive(Debug)]
pub struct Accepted {
    /// The message's units, as the queue keeps them.
    pub units: Vec<UnitKey>,
    /// The message, where it may stay in memory.
    pub message: Option<Arc<NewMessage>>,
}

/// What a delivery side is made of.
pub struct Parts<N: Net> {
    /// The network.
    pub net: N,
    /// The configuration.
    pub settings: Arc<Settings>,
    /// The durable queue.
    pub queue: Queue,
    /// Loads and signs, off the reactor.
    pub preparer: Preparer,
    /// TLS towards next hops.
    pub tls: Arc<connection::ClientTls>,
    /// What is counted.
    pub metrics: Metrics,
    /// Time.
    pub clock: Clock,
    /// Chance.
    pub random: Random,
}

/// What happened, for the shard.
enum Event {
    Resolved(Domain, Result<Route, DnsError>),
    Free(LaneId, ConnectionId),
    Closed(LaneId, ConnectionId),
    LaneFailed(LaneId, String),
    LaneWorks(LaneId),
    Settled(UnitKey, Settled),
    Ended(Option<LaneId>),
    Reported(Vec<UnitKey>),
}

/// Delivers until `stop` turns true, then until what is on the wire has ended or been recorded.
///
/// `accepted` is the submission side's channel; whoever sends waits while it is full.
pub async fn run<N: Net>(parts: Parts<N>, mut accepted: mpsc::Receiver<Accepted>, mut stop: watch::Receiver<bool>) {
    let (events, mut happened) = mpsc::unbounded_channel();
    let clock = parts.clock;
    let settings = Arc::new(parts.settings.delivery.clone());
    let mut shard = Shard::new(parts.queue.clone(), settings, parts.random.clone(), clock.now());
    let courier = Rc::new(Courier { parts, events });
    let mut wires = HashMap::new();
    let mut draining = false;
    loop {
        shard.tick(clock.now());
        for effect in shard.take_effects() {
            courier.perform(effect, &mut wires);
        }
        let (connections, active) = shard.load();
        courier.parts.metrics.connections.set(connections as i64);
        courier.parts.metrics.active_queues.set(active as i64);
        if draining && shard.is_quiet() {
            return;
        }
        let wake = shard.next_wake().unwrap_or(clock.now() + std::time::Duration::from_secs(1));
        tokio::select! {
            biased;
            Some(event) = happened.recv() => {
                take(&mut shard, &mut wires, event, clock.now());
                // Whatever else has happened meanwhile costs one look at the timers together.
                while let Ok(event) = happened.try_recv() {
                    take(&mut shard, &mut wires, event, clock.now());
                }
            }
            changed = stop.changed(), if !draining => {
                draining = changed.is_err() || *stop.borrow();
                if draining {
                    shard.drain();
                }
            }
            Some(new) = accepted.recv() => shard.accepted(&new.units, new.message.as_ref(), clock.now()),
            () = sleep_until(clock.instant(wake)) => {}
        }
    }
}

type Wires = HashMap<ConnectionId, mpsc::Sender<Job>>;

fn take(shard: &mut Shard, wires: &mut Wires, event: Event, now: Timestamp) {
    match event {
        Event::Resolved(domain, route) => shard.resolved(&domain, route, now),
        Event::Free(lane, connection) => shard.connection_free(lane, connection, now),
        Event::Closed(lane, connection) => {
            wires.remove(&connection);
            shard.connection_closed(lane, connection, now);
        }
        Event::LaneFailed(lane, cause) => shard.lane_failed(lane, &cause, now),
        Event::LaneWorks(lane) => shard.lane_works(lane, now),
        Event::Settled(unit, settled) => shard.settled(&unit, settled, now),
        Event::Ended(lane) => shard.ended(lane, now),
        Event::Reported(units) => shard.accepted(&units, None, now),
    }
}

struct Courier<N: Net> {
    parts: Parts<N>,
    events: mpsc::UnboundedSender<Event>,
}

impl<N: Net> Courier<N> {
    fn perform(self: &Rc<Self>, effect: Effect, wires: &mut Wires) {
        let courier = self.clone();
        match effect {
            Effect::Resolve(domain) => drop(spawn_local(async move { courier.resolve(domain).await })),
            Effect::Connect { lane, connection, plan, job } => {
                let (wire, jobs) = mpsc::channel(1);
                wires.insert(connection, wire);
                drop(spawn_local(async move { courier.connection(lane, connection, plan, job, jobs).await }));
            }
            Effect::Send { connection, job } => {
                // A connection that has just gone gives its jobs back.
                let unit = job.unit;
                let taken = wires.get(&connection).is_some_and(|wire| wire.try_send(job).is_ok());
                if !taken {
                    self.tell(Event::Settled(unit, Settled::Untouched));
                }
            }
            Effect::Close(connection) => drop(wires.remove(&connection)),
            Effect::End { lane, job, ending } => drop(spawn_local(async move {
                courier.end(&job, ending).await;
                courier.tell(Event::Ended(lane));
            })),
        }
    }

    fn tell(&self, event: Event) {
        // The shard outlives its connections; when it has gone, nobody wants to know.
        let _ = self.events.send(event);
    }

    async fn resolve(&self, domain: Domain) {
        let limit = self.parts.settings.delivery.timeouts.dns * 4;
        let answer = match timeout(limit, self.parts.net.mx(&domain)).await {
            Ok(answer) => answer,
            Err(_) => Err(DnsError { question: format!("{domain} MX"), cause: "timed out".into() }),
        };
        let names = [self.parts.settings.hostname.clone(), self.parts.settings.delivery.ehlo.clone()];
        let route = answer.map(|answer| Route::from_answer(&domain, answer, &names));
        self.tell(Event::Resolved(domain, route));
    }

    /// A connection's life: made for one job, kept for the next ones, gone when idle, used up or broken.
    async fn connection(self: Rc<Self>, lane: LaneId, id: ConnectionId, plan: Rc<Plan>, first: Job, mut jobs: mpsc::Receiver<Job>) {
        if let Some(connection) = self.open(lane, &plan, &first).await {
            self.serve(lane, id, &plan, connection, first, &mut jobs).await;
        }
        jobs.close();
        while let Some(job) = jobs.recv().await {
            self.tell(Event::Settled(job.unit, Settled::Untouched));
        }
        self.tell(Event::Closed(lane, id));
    }

    async fn open(self: &Rc<Self>, lane: LaneId, plan: &Plan, first: &Job) -> Option<Connection<N::Stream>> {
        let Plan::Hosts { hosts, tls, .. } = plan else { return None };
        let hosts = super::route::in_order(hosts, &self.parts.random);
        match connection::open(&self.parts.net, &self.parts.settings, &self.parts.tls, &hosts, *tls).await {
            Ok(connection) => {
                self.parts.metrics.connected.inc();
                Some(connection)
            }
            Err(failure) => {
                self.parts.metrics.not_connected.inc();
                match failure.permanent() {
                    Some((cause, host)) => self.refuse(first, cause, Some(host)).await,
                    None => {
                        self.tell(Event::LaneFailed(lane, failure.to_string()));
                        self.tell(Event::Settled(first.unit, Settled::Untouched));
                    }
                }
                None
            }
        }
    }

    async fn serve(
        self: &Rc<Self>,
        lane: LaneId,
        id: ConnectionId,
        plan: &Plan,
        mut connection: Connection<N::Stream>,
        first: Job,
        jobs: &mut mpsc::Receiver<Job>,
    ) {
        let Plan::Hosts { recipients_per_transaction, messages_per_connection, .. } = *plan else { return };
        let mut job = first;
        let mut messages = 0;
        loop {
            self.deliver(lane, &mut connection, &job, recipients_per_transaction).await;
            messages += 1;
            if !connection.is_usable() || messages >= messages_per_connection {
                break;
            }
            self.tell(Event::Free(lane, id));
            let idle = self.parts.settings.delivery.timeouts.idle;
            tokio::select! {
                next = jobs.recv() => match next {
                    Some(next) => job = next,
                    None => break,
                },
                () = tokio::time::sleep(idle) => break,
                () = connection.hangs_up() => break,
            }
        }
        connection.quit().await;
    }

    /// One unit over one connection, and its record.
    async fn deliver(
        self: &Rc<Self>,
        lane: LaneId,
        connection: &mut Connection<N::Stream>,
        job: &Job,
        recipients_per_transaction: usize,
    ) {
        let Some(loaded) = self.load(job).await else { return };
        tracing::debug!(id = %job.unit.id, unit = job.unit.unit, host = %connection.host(), "on the wire");
        let begun = tokio::time::Instant::now();
        let Attempt { outcomes, works } = attempt::run(connection, &loaded.attempt, recipients_per_transaction).await;
        if works {
            self.tell(Event::LaneWorks(lane));
        } else if !connection.is_usable() && connection.messages() == 0 {
            let cause = outcomes.first().map_or_else(String::new, |outcome| outcome.reply.clone());
            self.tell(Event::LaneFailed(lane, cause));
        }
        let took = begun.elapsed();
        self.parts.metrics.transaction.observe(took.as_secs_f64());
        let hop = Hop { millis: u64::try_from(took.as_millis()).unwrap_or(u64::MAX), ..connection.hop() };
        self.record(job.unit, &loaded, &outcomes, Some(hop)).await;
    }

    /// Ends a unit that no peer is asked about.
    async fn end(self: &Rc<Self>, job: &Job, ending: Ending) {
        let Some(loaded) = self.load(job).await else { return };
        let outcomes: Vec<_> = loaded
            .attempt
            .recipients
            .iter()
            .map(|open| {
                let cause = match &ending {
                    Ending::Refused(reply) => Cause::Undeliverable(
                        reply.enhanced.unwrap_or(mail_core::EnhancedCode(5, 0, 0)),
                        reply.text.to_string(),
                    ),
                    Ending::Expired(held_by) => {
                        Cause::Expired(open.last_reply.clone().or_else(|| held_by.clone()))
                    }
                };
                let reply = match &ending {
                    Ending::Refused(reply) => reply.to_string(),
                    Ending::Expired(_) => "4.4.7 delivery time expired".to_owned(),
                };
                Outcome {
                    recipient: open.index,
                    mailbox: open.mailbox.clone(),
                    verdict: Verdict::Failed(cause),
                    reply,
                    host: None,
                }
            })
            .collect();
        self.record(job.unit, &loaded, &outcomes, None).await;
    }

    /// Every host of the lane refused us for good: so does the unit end.
    async fn refuse(self: &Rc<Self>, job: &Job, cause: Cause, host: Option<String>) {
        let Some(loaded) = self.load(job).await else { return };
        let reply = match &cause {
            Cause::Refused(reply) => reply.to_string(),
            Cause::Undeliverable(code, why) => format!("{code} {why}"),
            Cause::Expired(_) => String::new(),
        };
        let outcome = |open: &attempt::OpenRecipient| Outcome {
            recipient: open.index,
            mailbox: open.mailbox.clone(),
            verdict: Verdict::Failed(cause.clone()),
            reply: reply.clone(),
            host: host.clone(),
        };
        let outcomes: Vec<_> = loaded.attempt.recipients.iter().map(outcome).collect();
        self.record(job.unit, &loaded, &outcomes, None).await;
    }
}
