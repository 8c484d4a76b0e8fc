//! The shell around a [`Shard`]: it looks names up, keeps connections, and has recorded what became of each unit.
//!
//! One local task owns the shard and takes in events; each connection is a local task of its own. Their channel needs no
//! bound of its own: a connection has at most one unit under way, lookups and endings are counted by the shard, and an
//! outcome waits for the committer's bounded intake before its connection is free again.

mod guard;
mod learn;
mod operator;
mod record;
mod unread;

use std::collections::HashMap;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use mail_core::{Domain, Recipient, Timestamp};
use queue::{Hop, NewMessage, Queue, StillOpen, UnitKey, Waiting};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::spawn_local;
use tokio::time::{sleep_until, timeout};
use tokio_util::task::AbortOnDropHandle;

use crate::config::Settings;
use crate::prepare::{PrepareError, Prepared, Preparer};
use crate::report::{Cause, ReportSettings};
use crate::routing::Routing;
use crate::submission::rates::Rates;
use crate::world::{Clock, DnsError, Net, Random};

use guard::Stumbles;
use record::{past, waits_on};

use super::attempt::{self, Attempt, Load, OpenRecipient};
use super::client_tls::ClientTls;
use super::connection::open::{Opener, Terms};
use super::connection::{Answers, Connection};
use super::exchange::{Accepted, Done, Seat, Word};
use super::judge;
use super::known::Known;
use super::lane::{ConnectionId, Hosts, Plan};
use super::metrics::Metrics;
use super::notify::Peer;
use super::route::{self, Route};
use super::settle::{Outcome, Outcomes, Rest, Verdict};
use super::shard::{Effect, Ending, Heard, Hour, Job, LaneId, Settled, Shard};
use super::smart_host;

/// Where a connection takes longer to come about, what let its message through is asked again.
const LONG_TO_OPEN: Duration = Duration::from_secs(1);

/// A message that stays in memory until it is sent, or put off: within a budget of octets.
#[derive(Debug)]
pub struct Kept {
    message: Arc<NewMessage>,
    budget: Arc<AtomicU64>,
}

impl Kept {
    /// Keeps the message if the budget, the octets still free, has room for it, and it is no large one.
    pub fn within(budget: &Arc<AtomicU64>, message: Arc<NewMessage>) -> Option<Arc<Self>> {
        if crate::sabotage::is_on("hoard") {
            std::mem::forget(message.clone());
        }
        // More than a chunk is sent as it is read, and would be the whole budget of a thousand others.
        if message.rest.is_some() || message.body.len() > queue::keys::CHUNK {
            return None;
        }
        let bytes = size(&message);
        let take = |free: u64| free.checked_sub(bytes);
        budget
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, take)
            .ok()?;
        Some(Arc::new(Self {
            message,
            budget: budget.clone(),
        }))
    }

    /// The message.
    pub fn message(&self) -> &Arc<NewMessage> {
        &self.message
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        self.budget.fetch_add(size(&self.message), Ordering::AcqRel);
    }
}

fn size(message: &NewMessage) -> u64 {
    (message.prefix.len() + message.body.len()) as u64
}

/// Another configuration for a delivery side.
#[derive(Clone)]
pub struct Renewal<N> {
    /// Where the name servers are others; otherwise the network stays, with what it remembers.
    pub net: Option<N>,
    /// The configuration.
    pub settings: Arc<Settings>,
    /// Which way each recipient's mail goes.
    pub routing: Arc<Routing>,
    /// TLS towards next hops.
    pub tls: Arc<ClientTls>,
    /// Whether connections made before get no further message.
    pub reconnect: bool,
}

/// What a delivery side is made of.
#[derive(Clone)]
pub struct Parts<N: Net> {
    /// The network.
    pub net: N,
    /// The configuration.
    pub settings: Arc<Settings>,
    /// Which way each recipient's mail goes.
    pub routing: Arc<Routing>,
    /// The durable queue.
    pub queue: Queue,
    /// Loads and signs, off the reactor.
    pub preparer: Preparer,
    /// TLS towards next hops.
    pub tls: Arc<ClientTls>,
    /// What is counted.
    pub metrics: Metrics,
    /// How many reports went to each domain lately; shared by all.
    pub rates: Arc<Rates>,
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
    /// Why, and whether a reply said so that is told of apart.
    LaneFailed(LaneId, String, bool),
    /// What, and when the connection was begun.
    SourceFailed(LaneId, ConnectionId, String, Timestamp),
    LaneWorks(LaneId),
    Opened(LaneId, ConnectionId),
    GotThrough(LaneId),
    /// Whether a unit that is sent over this connection may begin one more transaction.
    MayGoOn(LaneId, ConnectionId, UnitKey, oneshot::Sender<bool>),
    Heard(LaneId, Box<Heard>),
    Settled(UnitKey, Settled),
    /// What becomes of the unit does so without a word to a peer.
    NothingSaid(UnitKey),
    Ended(Option<LaneId>),
    Reported(Vec<UnitKey>),
}

/// As [`run_renewed`], under one configuration.
pub async fn run<N: Net>(parts: Parts<N>, seat: Seat, stop: watch::Receiver<bool>) {
    let (_never, renewals) = mpsc::unbounded_channel();
    run_renewed(parts, seat, stop, renewals).await;
}

/// Delivers what the shard at `seat` owns until `stop` turns true, then until what is on the wire has ended or been recorded.
pub async fn run_renewed<N: Net>(
    parts: Parts<N>,
    mut seat: Seat,
    mut stop: watch::Receiver<bool>,
    mut renewals: mpsc::UnboundedReceiver<Renewal<N>>,
) {
    let (events, mut happened) = mpsc::unbounded_channel();
    let clock = parts.clock;
    let settings = Arc::new(parts.settings.delivery.clone());
    let mut shard = Shard::new(
        parts.queue.clone(),
        seat.place.clone(),
        settings,
        parts.routing.clone(),
        parts.random.clone(),
        clock.now(),
    );
    let _keeper = seat.place.is_first().then(|| {
        let (ledger, queue, way) = (seat.place.ledger().clone(), parts.queue.clone(), seat.way());
        let keeping = async move {
            let tell = |shard, scope| way.tell(shard, Word::Room(scope));
            ledger.keep(&queue, clock, tell).await;
        };
        AbortOnDropHandle::new(spawn_local(keeping))
    });
    let memory = Memory::new(shard.hour());
    let mut courier = Courier::new(parts, events, memory);
    let mut wires = HashMap::new();
    let mut draining = false;
    let mut load = (0, 0);
    let mut effects = Vec::new();
    loop {
        shard.tick(clock.now());
        shard.swap_effects(&mut effects);
        for effect in effects.drain(..) {
            match effect {
                Effect::Tell(shard, word) => seat.tell(shard, word),
                effect => courier.perform(effect, &mut wires),
            }
        }
        let before = std::mem::replace(&mut load, shard.load());
        let metrics = &courier.parts.metrics;
        metrics.connections.add(load.0 as i64 - before.0 as i64);
        metrics.active_queues.add(load.1 as i64 - before.1 as i64);
        if draining && shard.is_quiet() {
            return;
        }
        let wake = shard.next_wake().unwrap_or(clock.now() + Duration::from_secs(1));
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
            Some(renewal) = renewals.recv() => {
                courier = courier.renewed(&renewal);
                let settings = Arc::new(renewal.settings.delivery.clone());
                shard.renew(settings, renewal.routing, renewal.reconnect, clock.now());
            }
            Some(word) = seat.words.recv() => shard.hear(word, clock.now()),
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
        Event::LaneFailed(lane, cause, taught) => shard.lane_failed(lane, &cause, taught, now),
        Event::SourceFailed(lane, connection, cause, begun) => {
            shard.source_failed(lane, connection, &cause, begun, now)
        }
        Event::LaneWorks(lane) => shard.lane_works(lane, now),
        Event::Opened(lane, connection) => shard.connection_opened(lane, connection, now),
        Event::GotThrough(lane) => shard.got_through(lane, now),
        Event::MayGoOn(lane, connection, unit, say) => {
            // Who has gone has nothing to send.
            let _ = say.send(shard.may_go_on(lane, connection, &unit, now));
        }
        Event::Heard(lane, heard) => shard.heard(lane, &heard, now),
        Event::Settled(unit, settled) => shard.settled(&unit, settled, now),
        Event::NothingSaid(unit) => shard.nothing_said(&unit, now),
        Event::Ended(lane) => shard.ended(lane, now),
        Event::Reported(units) => shard.hear(Word::Accepted(Accepted::stored(units)), now),
    }
}

struct Courier<N: Net> {
    parts: Parts<N>,
    reports: ReportSettings,
    memory: Memory,
    events: mpsc::UnboundedSender<Event>,
}

/// What outlives a reload.
#[derive(Clone)]
struct Memory {
    hour: Hour,
    stumbles: Rc<Stumbles>,
    answers: Rc<Answers>,
    known: Rc<Known>,
}

impl Memory {
    fn new(hour: Hour) -> Self {
        Self {
            hour,
            stumbles: Rc::default(),
            answers: Rc::default(),
            known: Rc::default(),
        }
    }
}

impl<N: Net> Courier<N> {
    fn new(parts: Parts<N>, events: mpsc::UnboundedSender<Event>, memory: Memory) -> Rc<Self> {
        Rc::new(Self {
            reports: ReportSettings::new(&parts.settings),
            parts,
            memory,
            events,
        })
    }

    /// One for what begins from here on; what is under way ends with the old one.
    fn renewed(&self, renewal: &Renewal<N>) -> Rc<Self> {
        let mut parts = self.parts.clone();
        if let Some(net) = &renewal.net {
            parts.net = net.clone();
        }
        parts.settings = renewal.settings.clone();
        parts.routing = renewal.routing.clone();
        parts.tls = renewal.tls.clone();
        Self::new(parts, self.events.clone(), self.memory.clone())
    }

    fn perform(self: &Rc<Self>, effect: Effect, wires: &mut Wires) {
        let courier = self.clone();
        match effect {
            Effect::Resolve(domain) => drop(spawn_local(async move { courier.resolve(domain).await })),
            Effect::Connect {
                lane,
                connection,
                plan,
                job,
            } => {
                let (wire, jobs) = mpsc::channel(1);
                wires.insert(connection, wire);
                drop(spawn_local(async move {
                    courier.connection(lane, connection, plan, job, jobs).await
                }));
            }
            Effect::Send { connection, job } => {
                // A connection that has just gone gives its jobs back.
                let unit = job.unit;
                let taken = wires
                    .get(&connection)
                    .is_some_and(|wire| wire.try_send(job).is_ok());
                if !taken {
                    self.tell(Event::Settled(unit, Settled::Untouched));
                }
            }
            Effect::Close(connection) => drop(wires.remove(&connection)),
            // Said by the loop that owns the seat.
            Effect::Tell(..) => {}
            Effect::Fallback(smart_host) => self.parts.metrics.fell_back(&smart_host),
            Effect::Stepped(step, class) => self.parts.metrics.stepped(step, &class),
            Effect::Order(order) => drop(spawn_local(async move {
                if courier.guarded(order.unit, courier.order(&order)).await.is_none() {
                    order.tell(Done::Failed);
                }
            })),
            Effect::End { lane, job, ending } => drop(spawn_local(async move {
                courier.guarded(job.unit, courier.end(&job, ending)).await;
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
            Err(_) => Err(DnsError {
                question: format!("{domain} MX"),
                cause: "timed out".into(),
            }),
        };
        let now = self.parts.clock.now();
        let answer = answer.and_then(|answer| self.memory.known.weigh(&domain, answer, now));
        let names = own_names(&self.parts.settings);
        let route = answer.map(|answer| Route::from_answer(&domain, answer, &names));
        self.tell(Event::Resolved(domain, route));
    }

    /// A connection's life: made for one job, kept for the next ones, gone when idle, used up or broken.
    async fn connection(
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

    /// Ends a unit that no peer is asked about.
    async fn end(self: &Rc<Self>, job: &Job, ending: Ending) {
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
    async fn refuse(self: &Rc<Self>, job: &Job, cause: Cause, hop: Hop) {
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

    /// The unit's message, ready to be sent. `None`: it was told to the shard what becomes of the claim.
    async fn prepare(self: &Rc<Self>, job: &Job) -> Option<Prepared> {
        match self.try_prepare(job).await {
            Ok(prepared) => Some(prepared),
            Err(error) => {
                self.not_prepared(job, &error).await;
                None
            }
        }
    }

    async fn try_prepare(&self, job: &Job) -> Result<Prepared, PrepareError> {
        let message = job.message.as_ref().map(|kept| kept.message().clone());
        let now = self.parts.clock.now();
        self.parts.preparer.prepare(job.unit, message, now).await
    }
}

/// What this relay goes by: an MX host of such a name is this relay.
pub fn own_names(settings: &Settings) -> Vec<Domain> {
    let delivery = &settings.delivery;
    let of_sources = delivery
        .egress
        .sources
        .iter()
        .filter_map(|source| source.ehlo.as_ref());
    let names = [&settings.hostname, &delivery.ehlo].into_iter().chain(of_sources);
    names.cloned().collect()
}

/// The unit's open recipients, with what is sent to them but for the rest of a large message.
fn load(prepared: &Prepared, unit: u16) -> Load {
    let all = prepared.message.recipients(unit);
    let fresh = |(index, recipient): (u16, &Recipient)| OpenRecipient {
        index,
        to: recipient.clone(),
        last_reply: None,
    };
    let waiting = |open: &Waiting| {
        all.get(usize::from(open.recipient))
            .map(|recipient| OpenRecipient {
                index: open.recipient,
                to: recipient.clone(),
                last_reply: Some(open.reply.clone()).filter(|reply| !reply.is_empty()),
            })
    };
    let recipients = match &prepared.state {
        Some(state) => state.open.iter().filter_map(waiting).collect(),
        None => (0..).zip(all).map(fresh).collect(),
    };
    Load {
        reverse_path: prepared.message.reverse_path().clone(),
        body_type: prepared.message.body_type(),
        head: prepared.head.clone(),
        body: prepared.body.clone(),
        rest: None,
        eight_bit: prepared.eight_bit,
        utf8_header: prepared.utf8_header,
        dsn: prepared.message.dsn().clone(),
        transfer: prepared.message.transfer(),
        recipients,
    }
}
