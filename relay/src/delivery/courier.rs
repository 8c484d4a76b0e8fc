//! The shell around a [`Shard`]: it looks names up, keeps connections, and has recorded what became of each unit.
//!
//! One local task owns the shard and takes in events; each connection is a local task of its own. Their channel needs no
//! bound of its own: a connection has at most one unit under way, lookups and endings are counted by the shard, and an
//! outcome waits for the committer's bounded intake before its connection is free again.

mod end;
mod guard;
mod learn;
mod operator;
mod record;
mod serve;
mod unread;

use std::collections::HashMap;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use mail_core::{Domain, Recipient, Timestamp};
use queue::{NewMessage, Queue, UnitKey, Waiting};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::spawn_local;
use tokio::time::{sleep_until, timeout};
use tokio_util::task::AbortOnDropHandle;

use crate::config::Settings;
use crate::prepare::{PrepareError, Prepared, Preparer};
use crate::report::ReportSettings;
use crate::routing::Routing;
use crate::submission::rates::Rates;
use crate::world::{Clock, DnsError, Net, Random};

use guard::Stumbles;

use super::attempt::{Load, OpenRecipient};
use super::client_tls::ClientTls;
use super::connection::Answers;
use super::exchange::{Accepted, Done, Seat, Word};
use super::known::Known;
use super::lane::ConnectionId;
use super::metrics::Metrics;
use super::route::Route;
use super::shard::{Effect, Heard, Hour, Job, LaneId, Settled, Shard};

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
