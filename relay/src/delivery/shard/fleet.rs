//! Shards together, without a wire: what they would send is written down with its time, and taken for sent after a while.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use mail_core::smtp::client::Stage;
use mail_core::{
    BodyType, DeliverBy, DsnOptions, MessageId, Recipient, ReversePath, Timestamp, TransferOptions, WhenLate,
};
use queue::store::MemoryStore;
use queue::{Again, End, Fate, NewMessage, NewUnit, Queue, RouteGroup, Settle, StillOpen, UnitKey};

use super::operator::tests::settings;
use super::{Effect, Heard, LaneId, Settled, Shard};
use crate::config::Settings;
use crate::delivery::adapt::{Others, lesson};
use crate::delivery::exchange::{self, Accepted, Word};
use crate::delivery::lane::ConnectionId;
use crate::delivery::limits::ledger::in_order;
use crate::delivery::route::Route;
use crate::routing::Routing;
use crate::world::{DnsError, MxAnswer, MxHost, Random};

const ROUND_TRIP: Duration = Duration::from_secs(1);

pub(super) const START: Timestamp = Timestamp(1_700_000_000_000);

/// One message on its way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Sent {
    pub at: Timestamp,
    pub until: Timestamp,
    pub domain: String,
    pub tenant: String,
    pub stream: String,
    pub source: Option<Arc<str>>,
    pub site: String,
    pub connection: (usize, u64),
    /// It was opened for it.
    pub opened: bool,
}

/// What a peer makes of a message.
pub(super) enum Answer {
    /// It takes it, in so long.
    Takes(Duration),
    /// It refuses the connection with this reply; one that was open already it closes with it.
    Refuses(&'static str),
    /// There is no answer to the connection.
    Silence,
    /// Its source fails, in no time.
    NoSource,
}

/// Says what becomes of a message, and how many connections to its site's provider are open with its own.
pub(super) type Peer = Box<dyn FnMut(&Sent, usize) -> Answer>;

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Next {
    Word(usize, u64),
    Opened(usize, LaneId, u64),
    Done(usize, LaneId, u64, UnitKey),
    Refused(usize, LaneId, u64, UnitKey, &'static str, bool),
    SourceFailed(usize, LaneId, u64, UnitKey, Timestamp),
    Closed(usize, LaneId, u64),
}

pub(super) struct Fleet {
    pub queue: Queue,
    pub shards: Vec<Shard>,
    /// The hosts of a domain; its own `mx.` where nothing is said.
    pub hosts: BTreeMap<String, Vec<String>>,
    /// Of connections that fail at the same moment each is closed before the next is told of.
    pub closes_first: bool,
    /// So long it takes to close one that is told to.
    pub closing_takes: Duration,
    /// So long what is accepted may wait.
    pub ends_after: Duration,
    /// After so long its sender wants to hear of it (RFC 2852).
    pub named_after: Option<Duration>,
    /// The DNS does not answer for these.
    pub unknown: BTreeSet<String>,
    /// Questions to the DNS.
    pub asked: usize,
    /// How often mail began to go by a fallback.
    pub fallbacks: usize,
    /// How often time or an event had the shards do something.
    pub wakes: usize,
    pub takes: Duration,
    /// What a message needs, where it has many recipients.
    pub transactions: u32,
    /// What messages need still of which some went.
    needs: BTreeMap<(MessageId, u16), u32>,
    pub peer: Option<Peer>,
    /// What was refused, and when.
    pub refused: Vec<(Timestamp, String)>,
    /// Which sources failed, and when.
    pub source_failures: Vec<(Timestamp, Option<Arc<str>>)>,
    /// What was begun, and has not been settled.
    on_the_wire: BTreeSet<UnitKey>,
    delivered: BTreeSet<(MessageId, u16)>,
    pub now: Timestamp,
    pub sent: Vec<Sent>,
    /// Connections, each with who runs its hosts.
    pub open: BTreeMap<(usize, u64), String>,
    events: BTreeSet<(Timestamp, u64, Next)>,
    words: BTreeMap<u64, Word>,
    lanes: BTreeMap<(usize, u64), LaneId>,
    number: u64,
    routing: Arc<Routing>,
}

impl Fleet {
    pub fn new(shards: usize, more: &str) -> Self {
        Self::seeded(shards, more, 1)
    }

    pub fn seeded(shards: usize, more: &str, seed: u64) -> Self {
        Self::on(MemoryStore::new(), shards, more, seed)
    }

    /// On a store that the test has a say in.
    pub fn on(store: MemoryStore, shards: usize, more: &str, seed: u64) -> Self {
        let queue = Queue::in_memory(store).unwrap();
        let settings = settings(more);
        let routing = Arc::new(Routing::open(settings.clone(), &queue).unwrap());
        Self::over(queue, shards, settings, routing, seed, START)
    }

    fn over(
        queue: Queue,
        shards: usize,
        settings: Arc<Settings>,
        routing: Arc<Routing>,
        seed: u64,
        now: Timestamp,
    ) -> Self {
        let delivery = Arc::new(settings.delivery.clone());
        let (_, seats) = exchange::open(shards);
        let shard = |(number, seat): (u64, exchange::Seat)| {
            let random = Random::seeded(seed * 1_000 + number);
            Shard::new(
                queue.clone(),
                seat.place,
                delivery.clone(),
                routing.clone(),
                random,
                now,
            )
        };
        let shards = (0..).zip(seats).map(shard).collect();
        Self {
            queue,
            shards,
            hosts: BTreeMap::new(),
            closes_first: false,
            closing_takes: Duration::ZERO,
            ends_after: Duration::from_secs(5 * 86_400),
            named_after: None,
            unknown: BTreeSet::new(),
            asked: 0,
            fallbacks: 0,
            wakes: 0,
            source_failures: Vec::new(),
            on_the_wire: BTreeSet::new(),
            delivered: BTreeSet::new(),
            takes: Duration::from_millis(100),
            transactions: 1,
            needs: BTreeMap::new(),
            peer: None,
            refused: Vec::new(),
            now,
            sent: Vec::new(),
            open: BTreeMap::new(),
            events: BTreeSet::new(),
            words: BTreeMap::new(),
            lanes: BTreeMap::new(),
            number: 0,
            routing,
        }
    }

    /// Ends, and starts again over the same queue.
    pub fn restarted(self, more: &str) -> Self {
        let shards = self.shards.len();
        let settings = settings(more);
        let routing = Arc::new(Routing::open(settings.clone(), &self.queue).unwrap());
        let mut fresh = Self::over(self.queue, shards, settings, routing, 2, self.now);
        fresh.hosts = self.hosts;
        fresh.closes_first = self.closes_first;
        fresh.unknown = self.unknown;
        fresh.delivered = self.delivered;
        (fresh.transactions, fresh.needs) = (self.transactions, self.needs);
        fresh.number = self.number;
        fresh
    }

    pub fn renew(&mut self, more: &str) {
        self.renew_and(more, false);
    }

    /// The same where a `[[limit]]` is another: a reload has connections made anew then.
    pub fn renew_limits(&mut self, more: &str) {
        self.renew_and(more, true);
    }

    fn renew_and(&mut self, more: &str, reconnect: bool) {
        let settings = settings(more);
        self.routing = Arc::new(Routing::open(settings.clone(), &self.queue).unwrap());
        let delivery = Arc::new(settings.delivery.clone());
        for number in 0..self.shards.len() {
            self.shards[number].renew(delivery.clone(), self.routing.clone(), reconnect, self.now);
        }
    }

    /// As [`Self::renew`], each shard so much later than the one before.
    pub async fn renew_by_and_by(&mut self, more: &str, wait: Duration) {
        let settings = settings(more);
        self.routing = Arc::new(Routing::open(settings.clone(), &self.queue).unwrap());
        let delivery = Arc::new(settings.delivery.clone());
        for number in 0..self.shards.len() {
            self.shards[number].renew(delivery.clone(), self.routing.clone(), false, self.now);
            self.run(wait).await;
        }
    }

    /// Messages of a tenant to one domain come in now.
    pub async fn accept(&mut self, count: usize, tenant: &str, stream: &str, domain: &str, bytes: usize) {
        let group = RouteGroup(0);
        self.accept_by(group, (count, bytes), (tenant, stream), domain)
            .await;
    }

    /// The same by the way of a route group.
    pub async fn accept_by(
        &mut self,
        route_group: RouteGroup,
        (count, bytes): (usize, usize),
        (tenant, stream): (&str, &str),
        domain: &str,
    ) {
        for _ in 0..count {
            self.number += 1;
            let mut random = [0; 10];
            random[2..].copy_from_slice(&self.number.to_be_bytes());
            let message = NewMessage {
                id: MessageId::new(self.now, &random),
                received_at: self.now,
                expires_at: self.now + self.ends_after,
                tenant: tenant.into(),
                stream: stream.into(),
                reverse_path: ReversePath::Mailbox("from@acme.test".parse().unwrap()),
                body_type: BodyType::SevenBit,
                smtputf8: false,
                dsn: DsnOptions::default(),
                transfer: TransferOptions {
                    by: self.named_after.map(|wait| DeliverBy {
                        at: self.now + wait,
                        late: WhenLate::Notify,
                        trace: false,
                    }),
                    ..TransferOptions::default()
                },
                tag: None,
                metadata: Vec::new(),
                prefix: Bytes::new(),
                body: vec![b'x'; bytes].into(),
                rest: None,
                origin: queue::Origin::default(),
                cause: None,
                units: vec![NewUnit {
                    route_group,
                    domain: domain.parse().unwrap(),
                    due: self.now,
                    recipients: vec![Recipient::new(format!("to@{domain}").parse().unwrap())],
                }],
            };
            let units = self.queue.accept(Arc::new(message)).await.unwrap().units;
            let home = usize::try_from(units[0].queue.0).unwrap() % self.shards.len();
            self.word(home, Word::Accepted(Accepted::stored(units)));
        }
    }

    fn word(&mut self, shard: usize, word: Word) {
        self.number += 1;
        self.words.insert(self.number, word);
        let next = Next::Word(shard, self.number);
        self.events.insert((self.now, self.number, next));
    }

    fn later(&mut self, wait: Duration, next: Next) {
        self.number += 1;
        self.events.insert((self.now + wait, self.number, next));
    }

    /// Lets time pass, and all happen that falls in it.
    pub async fn run(&mut self, span: Duration) {
        let end = self.now + span;
        loop {
            for number in 0..self.shards.len() {
                self.perform(number);
            }
            let wake = self.shards.iter().filter_map(Shard::next_wake).min();
            let event = self.events.first().map(|(at, ..)| *at);
            let Some(at) = wake.into_iter().chain(event).min().filter(|&at| at <= end) else {
                break;
            };
            self.now = self.now.max(at);
            self.wakes += 1;
            for shard in &mut self.shards {
                shard.tick(self.now);
            }
            self.keep().await;
            while self.events.first().is_some_and(|(at, ..)| *at <= self.now) {
                let (_, _, next) = self.events.pop_first().unwrap();
                self.happen(next).await;
            }
            self.keep().await;
        }
        self.now = end;
    }

    /// Peers close all connections, none of which is in use.
    pub fn close_all(&mut self) {
        for (shard, connection) in self.open.keys().copied().collect::<Vec<_>>() {
            let lane = self.lanes[&(shard, connection)];
            self.later(Duration::ZERO, Next::Closed(shard, lane, connection));
        }
    }

    /// Has what windows counted written, as the ledger does by itself.
    async fn keep(&mut self) {
        let ledger = self.shards[0].place.ledger().clone();
        let (gone, wanted) = (ledger.gone(), ledger.wanted(self.now));
        if !gone.is_empty() || !wanted.is_empty() {
            self.queue.keep_counts(in_order(&gone, &wanted)).await.unwrap();
            ledger.deleted(&gone);
            for (shard, scope) in ledger.kept(&wanted, self.now) {
                self.word(shard, Word::Room(scope));
            }
        }
    }

    async fn happen(&mut self, next: Next) {
        let now = self.now;
        match next {
            Next::Word(shard, word) => {
                let word = self.words.remove(&word).unwrap();
                self.shards[shard].hear(word, now);
            }
            Next::Done(shard, lane, connection, unit)
                if self
                    .needs_more(shard, (lane, ConnectionId(connection)), unit)
                    .await => {}
            Next::Done(shard, lane, connection, unit) => {
                self.on_the_wire.remove(&unit);
                assert!(self.delivered.insert((unit.id, unit.unit)), "twice: {unit:?}");
                self.queue
                    .settle(delivered(unit, now))
                    .await
                    .unwrap()
                    .await
                    .unwrap();
                let shard = &mut self.shards[shard];
                shard.lane_works(lane, now);
                shard.got_through(lane, now);
                shard.settled(&unit, Settled::Gone, now);
                shard.connection_free(lane, ConnectionId(connection), now);
            }
            Next::Opened(shard, lane, connection) => {
                self.shards[shard].connection_opened(lane, ConnectionId(connection), now);
            }
            Next::Refused(shard, lane, connection, unit, said, at_door) => {
                self.on_the_wire.remove(&unit);
                self.refuse(shard, (lane, ConnectionId(connection)), unit, said, at_door)
                    .await;
                // Those that fail at the same moment have all failed before the first is closed, unless it is asked for otherwise.
                self.number += 1;
                let number = if self.closes_first { 0 } else { self.number };
                let closed = Next::Closed(shard, lane, connection);
                self.events.insert((now, number, closed));
            }
            Next::SourceFailed(shard, lane, connection, unit, begun) => {
                self.on_the_wire.remove(&unit);
                let at = &mut self.shards[shard];
                at.source_failed(lane, ConnectionId(connection), "4.4.0 source: no", begun, now);
                at.settled(&unit, Settled::Untouched, now);
                self.events
                    .insert((now, 0, Next::Closed(shard, lane, connection)));
            }
            Next::Closed(shard, lane, connection) => {
                self.open.remove(&(shard, connection));
                self.shards[shard].connection_closed(lane, ConnectionId(connection), now);
            }
        }
        for number in 0..self.shards.len() {
            self.perform(number);
        }
    }

    /// Goes on with a message that needs further transactions: over its connection if it may, or else from the queue.
    async fn needs_more(
        &mut self,
        number: usize,
        (lane, connection): (LaneId, ConnectionId),
        unit: UnitKey,
    ) -> bool {
        let needs = self
            .needs
            .entry((unit.id, unit.unit))
            .or_insert(self.transactions);
        *needs -= 1;
        if *needs == 0 {
            self.needs.remove(&(unit.id, unit.unit));
            return false;
        }
        let now = self.now;
        if self.shards[number].may_go_on(lane, connection, &unit, now) {
            self.on_the_wire.remove(&unit);
            self.send(number, connection.0, unit, false);
            return true;
        }
        self.on_the_wire.remove(&unit);
        let due = now.max(unit.due + Duration::from_millis(1));
        let settle = deferred(unit, due, now);
        self.queue.settle(settle).await.unwrap().await.unwrap();
        let shard = &mut self.shards[number];
        shard.settled(&unit, Settled::Due(due), now);
        shard.connection_free(lane, connection, now);
        true
    }

    fn perform(&mut self, number: usize) {
        loop {
            let effects = self.shards[number].take_effects();
            if effects.is_empty() {
                return;
            }
            for effect in effects {
                match effect {
                    Effect::Resolve(domain) => {
                        self.asked += 1;
                        if self.unknown.contains(domain.as_str()) {
                            let error = DnsError {
                                question: format!("{domain} MX"),
                                cause: "timed out".into(),
                            };
                            self.shards[number].resolved(&domain, Err(error), self.now);
                            continue;
                        }
                        let own = vec![format!("mx.{domain}")];
                        let hosts = self.hosts.get(domain.as_str()).unwrap_or(&own);
                        let host = |host: &String| MxHost {
                            preference: 10,
                            host: host.parse().unwrap(),
                        };
                        let answer = MxAnswer::Hosts(hosts.iter().map(host).collect());
                        let route = Route::from_answer(&domain, answer, &[]);
                        self.shards[number].resolved(&domain, Ok(route), self.now);
                    }
                    Effect::Connect {
                        lane,
                        connection,
                        job,
                        ..
                    } => {
                        let scope = self.shards[number].lanes[lane].scope();
                        let whose = scope.provider.or(scope.site).unwrap_or_default();
                        self.open.insert((number, connection.0), whose.to_string());
                        self.lanes.insert((number, connection.0), lane);
                        self.send(number, connection.0, job.unit, true);
                    }
                    Effect::Send { connection, job } => self.send(number, connection.0, job.unit, false),
                    Effect::Close(connection) => {
                        let lane = self.lanes[&(number, connection.0)];
                        self.later(self.closing_takes, Next::Closed(number, lane, connection.0));
                    }
                    Effect::Tell(shard, word) => self.word(shard, word),
                    Effect::Stepped(..) => {}
                    Effect::Fallback(_) => self.fallbacks += 1,
                    other => panic!("{other:?}"),
                }
            }
        }
    }

    fn send(&mut self, shard: usize, connection: u64, unit: UnitKey, opened: bool) {
        assert!(self.on_the_wire.insert(unit), "on two wires: {unit:?}");
        let lane = self.lanes[&(shard, connection)];
        let name = self.queue.info(unit.queue).unwrap().unwrap().name;
        let mut sent = Sent {
            at: self.now,
            until: self.now + self.takes,
            domain: name.domain.to_string(),
            tenant: name.tenant.to_string(),
            stream: name.stream.to_string(),
            source: self.shards[shard].lanes[lane].key.source.clone(),
            site: self.shards[shard].lanes[lane].key.site.to_string(),
            connection: (shard, connection),
            opened,
        };
        let whose = self.open.get(&(shard, connection));
        let open = self.open.values().filter(|of| Some(*of) == whose).count();
        let answer = match &mut self.peer {
            Some(peer) => peer(&sent, open),
            None => Answer::Takes(self.takes),
        };
        let (said, wait) = match answer {
            Answer::Takes(time) => {
                if opened {
                    self.later(ROUND_TRIP, Next::Opened(shard, lane, connection));
                }
                sent.until = self.now + time;
                self.sent.push(sent);
                return self.later(time, Next::Done(shard, lane, connection, unit));
            }
            Answer::Refuses(said) => (said, ROUND_TRIP),
            Answer::Silence => ("", 30 * ROUND_TRIP),
            Answer::NoSource => {
                self.source_failures.push((self.now, sent.source));
                let next = Next::SourceFailed(shard, lane, connection, unit, self.now);
                return self.later(Duration::from_millis(1), next);
            }
        };
        self.refused.push((self.now, sent.domain));
        self.later(wait, Next::Refused(shard, lane, connection, unit, said, opened));
    }

    /// As the courier does with what is refused.
    async fn refuse(
        &mut self,
        number: usize,
        (lane, connection): (LaneId, ConnectionId),
        unit: UnitKey,
        said: &str,
        at_door: bool,
    ) {
        let now = self.now;
        let shard = &mut self.shards[number];
        let shaping = shard.settings.shaping.clone();
        // Of several hosts the last speaks.
        let site = &*shard.lanes[lane].key.site;
        let host = site.rsplit(',').next().unwrap_or(site).to_owned();
        let class = shaping.class(said, Some(&host));
        let stage = if at_door { Stage::Greeting } else { Stage::Mail };
        let advice = shaping.advice(said, Some(&host));
        let others = lesson(said, &class.name, advice, stage).others;
        let taught = others != Others::Nothing;
        if taught {
            let heard = Heard {
                others,
                begun: now,
                door: at_door.then_some(connection),
                unit,
                said: said.to_owned(),
                host,
                class: class.name.clone(),
            };
            shard.heard(lane, &heard, now);
        }
        if at_door {
            shard.lane_failed(lane, said, taught, now);
            return shard.settled(&unit, Settled::Untouched, now);
        }
        let due = now + Duration::from_secs(300);
        self.queue
            .settle(deferred(unit, due, now))
            .await
            .unwrap()
            .await
            .unwrap();
        self.shards[number].settled(&unit, Settled::Due(due), now);
    }

    /// The most messages on the wire at once, of those that fit.
    pub fn most_at_once(&self, fits: impl Fn(&Sent) -> bool) -> usize {
        let sent: Vec<_> = self.sent.iter().filter(|sent| fits(sent)).collect();
        let at_once = |at: Timestamp| {
            sent.iter()
                .filter(|sent| sent.at <= at && at < sent.until)
                .count()
        };
        sent.iter().map(|sent| at_once(sent.at)).max().unwrap_or(0)
    }

    /// The most messages that fit within any span of this length.
    pub fn most_within(&self, span: Duration, fits: impl Fn(&Sent) -> bool) -> usize {
        let at: Vec<_> = self
            .sent
            .iter()
            .filter(|sent| fits(sent))
            .map(|sent| sent.at)
            .collect();
        let mut first = 0;
        let mut most = 0;
        for last in 0..at.len() {
            while at[last].since(at[first]) >= span {
                first += 1;
            }
            most = most.max(last + 1 - first);
        }
        most
    }

    pub fn count(&self, fits: impl Fn(&Sent) -> bool) -> usize {
        self.sent.iter().filter(|sent| fits(sent)).count()
    }
}

fn deferred(unit: UnitKey, due: Timestamp, at: Timestamp) -> Settle {
    let open = StillOpen {
        recipient: 0,
        mailbox: "to@d.test".parse().unwrap(),
        reply: "451".into(),
    };
    let again = Again {
        due,
        attempts: 1,
        in_doubt: 0,
        doubtful: false,
        open: vec![open],
        others: Vec::new(),
        signature: None,
        delay_told: None,
    };
    Settle {
        ends: Vec::new(),
        again: Some(again),
        ..delivered(unit, at)
    }
}

fn delivered(unit: UnitKey, at: Timestamp) -> Settle {
    Settle {
        unit,
        at,
        attempt: 1,
        hop: None,
        ends: vec![End {
            mailbox: "to@d.test".parse().unwrap(),
            fate: Fate::Delivered,
            reply: "250".into(),
        }],
        again: None,
        reports: Vec::new(),
    }
}
