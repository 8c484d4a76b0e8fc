//! The promises of docs/promises.md under chance: mail comes in, hosts and name servers have their moods, the relay crashes,
//! stops and starts again, on a virtual clock and from one seed. Nothing acknowledged may be lost, end twice, be sent twice
//! without cause, exceed a limit, or outlive its deadline.
//!
//! `POSTRIDER_SEEDS=N` runs N seeds, from `POSTRIDER_SEED` on; a failure names its seed.

#![allow(
    clippy::unwrap_used,
    reason = "a test; its helpers are outside of test functions"
)]

#[path = "seeds/operator.rs"]
mod operator;
#[path = "seeds/world.rs"]
mod world;

use std::cell::RefCell;
use std::collections::{HashMap, HashSet};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use dkim_signer::Signer;
use mail_core::{BodyType, DsnOptions, Mailbox, MessageId, Recipient, ReversePath, Timestamp};
use operator::{Operator, Suspended};
use queue::store::MemoryStore;
use queue::{Event, EventKind, NewMessage, NewUnit, Origin, Queue, RouteGroup};
use relay::config::{self, Settings};
use relay::control::QueueControl;
use relay::delivery::client_tls::ClientTls;
use relay::delivery::courier::{self, Parts};
use relay::delivery::exchange;
use relay::delivery::metrics::Metrics;
use relay::metrics::Registry;
use relay::prepare::{self, Preparer};
use relay::routing::Routing;
use relay::world::{Clock, Random};
use tokio::runtime::Runtime;
use tokio::sync::watch;
use tokio::task::{LocalSet, spawn_local};
use tokio::time::{Instant, sleep};
use world::{DOMAINS, NOWHERE, SimNet, World};

const START: Timestamp = Timestamp(1_700_000_000_000);
const MINUTE: Duration = Duration::from_secs(60);
const SHARDS: usize = 3;

/// By destination.
const CONNECTIONS: usize = 2;
const A_MINUTE: usize = 12;

/// A message as its client has it acknowledged.
struct Sent {
    id: MessageId,
    recipients: Vec<String>,
    tenant: String,
    /// Where reports go; none for the null path.
    from: Option<String>,
    expires_at: Timestamp,
}

struct Run {
    seed: u64,
    random: Random,
    world: Rc<World>,
    store: MemoryStore,
    clock: Clock,
    settings: Arc<Settings>,
    sent: Vec<Sent>,
    crashes: Vec<Instant>,
    /// When the relay ran.
    lives: Vec<(Timestamp, Timestamp)>,
    suspensions: Rc<RefCell<Vec<Suspended>>>,
}

impl Run {
    fn new(seed: u64) -> Self {
        let random = Random::seeded(seed);
        Self {
            seed,
            world: Rc::new(World::new(random.clone())),
            random,
            store: MemoryStore::new(),
            clock: Clock::anchored(START),
            settings: settings(),
            sent: Vec::new(),
            crashes: Vec::new(),
            lives: Vec::new(),
            suspensions: Rc::default(),
        }
    }

    fn minutes(&self, most: usize) -> Duration {
        Duration::from_secs(self.random.below(most * 60) as u64)
    }

    fn message(&self) -> (NewMessage, Sent) {
        let (number, now) = (self.sent.len(), self.clock.now());
        let recipients: Vec<String> = (0..1 + self.random.below(4))
            .map(|each| format!("r{number}x{each}@{}", DOMAINS[self.random.below(DOMAINS.len())]))
            .collect();
        let from = (self.random.below(5) > 0).then(|| format!("s{number}@back.test"));
        let sent = Sent {
            tenant: format!("t{}", self.random.below(3)),
            id: self.random.message_id(now),
            from,
            expires_at: now + 20 * MINUTE + self.minutes(180),
            recipients,
        };
        let mut units: Vec<NewUnit> = Vec::new();
        for recipient in &sent.recipients {
            let mailbox: Mailbox = recipient.parse().unwrap();
            let domain = mailbox.domain().clone();
            match units.iter_mut().find(|unit| unit.domain == domain) {
                Some(unit) => unit.recipients.push(Recipient::new(mailbox)),
                None => units.push(NewUnit {
                    route_group: RouteGroup(0),
                    domain,
                    due: now,
                    recipients: vec![Recipient::new(mailbox)],
                }),
            }
        }
        let message = NewMessage {
            id: sent.id,
            received_at: now,
            expires_at: sent.expires_at,
            tenant: sent.tenant.as_str().into(),
            stream: "transactional".into(),
            reverse_path: sent.from.as_ref().map_or(ReversePath::Null, |from| {
                ReversePath::Mailbox(from.parse().unwrap())
            }),
            body_type: BodyType::SevenBit,
            smtputf8: false,
            dsn: DsnOptions::default(),
            tag: None,
            metadata: Vec::new(),
            prefix: Bytes::from_static(b"Received: by relay.test\r\n"),
            body: Bytes::from_static(b"From: sender@back.test\r\nSubject: hi\r\n\r\nhello\r\n"),
            rest: None,
            origin: Origin::default(),
            cause: None,
            units,
        };
        (message, sent)
    }

    /// The relay runs for a while, takes in `messages`, and is stopped, or crashes.
    async fn live(&mut self, messages: usize, span: Duration, crash: bool) {
        let registry = Registry::new();
        let queue = Queue::in_memory(self.store.clone()).unwrap();
        let routing = Arc::new(Routing::open(self.settings.clone(), &queue).unwrap());
        let preparer = Preparer::inline(
            queue.clone(),
            Arc::new(Signer::default()),
            prepare::Metrics::new(&registry).unwrap(),
        );
        let tls = Arc::new(ClientTls::new(None).unwrap());
        let metrics = Metrics::new(&registry).unwrap();
        let (doors, seats) = exchange::open(SHARDS);
        let (stop, stopped) = watch::channel(false);
        let rates = Arc::<relay::submission::rates::Rates>::default();
        let run = |seat| {
            let parts = Parts {
                net: SimNet(self.world.clone()),
                preparer: preparer.clone(),
                tls: tls.clone(),
                metrics: metrics.clone(),
                rates: rates.clone(),
                clock: self.clock,
                random: self.random.clone(),
                queue: queue.clone(),
                routing: routing.clone(),
                settings: self.settings.clone(),
            };
            spawn_local(courier::run(parts, seat, stopped.clone()))
        };
        let shards: Vec<_> = seats.into_iter().map(run).collect();
        let operator = Operator {
            control: QueueControl::new(queue.clone(), doors.clone(), self.clock),
            random: self.random.clone(),
            suspensions: self.suspensions.clone(),
            clock: self.clock,
            seed: self.seed,
        };
        if self.world.calm.get() {
            operator.resume_all().await;
        }
        let calm = self.world.calm.get();
        let operator = spawn_local(async move {
            if !calm {
                loop {
                    operator.act().await;
                }
            }
        });
        for _ in 0..messages {
            if self.random.below(3) == 0 {
                sleep(self.minutes(5)).await;
            }
            let (message, sent) = self.message();
            let kept = queue.accept(Arc::new(message)).await.unwrap();
            self.sent.push(sent);
            // Some crash before the shards are told.
            if self.random.below(10) > 0 {
                doors.tell(&kept.units, None).await;
            }
        }
        let until = Instant::now() + span;
        // In calm times there is nothing to wait for once all has gone.
        while Instant::now() < until && !(self.world.calm.get() && is_empty(&queue)) {
            sleep(MINUTE.min(until - Instant::now())).await;
        }
        // What the operator does wrong is told now.
        if operator.is_finished() || calm {
            operator.await.unwrap();
        } else {
            operator.abort();
        }
        if crash {
            self.crashes.push(Instant::now());
            return;
        }
        stop.send(true).unwrap();
        for shard in shards {
            shard.await.unwrap();
        }
    }

    fn go(mut self, runtime: &Runtime) {
        for life in 0..2 + self.random.below(4) {
            // Some live long enough to see what they took in expire.
            let longest = if self.random.below(3) == 0 { 300 } else { 40 };
            let (messages, span) = (self.random.below(30), self.minutes(longest));
            let crash = self.random.below(10) < 7;
            // Outside of the runtime its clock stands still, and the machine's is told.
            let clock = self.clock;
            let now = || runtime.block_on(async { clock.now() });
            let born = now();
            // What still runs when the life is over is dropped with its tasks: a crash.
            LocalSet::new().block_on(runtime, self.live(messages, span, crash));
            self.lives.push((born, now()));
            let down = self.minutes(30);
            runtime.block_on(async { sleep(down).await });
            if life == 1 {
                self.world.moved.set(true);
            }
        }
        self.world.calm.set(true);
        let born = runtime.block_on(async { self.clock.now() });
        self.lives.push((born, Timestamp::MAX));
        LocalSet::new().block_on(runtime, self.live(0, 360 * MINUTE, false));
        self.judge();
    }

    fn judge(&self) {
        let seed = self.seed;
        let queue = Queue::in_memory(self.store.clone()).unwrap();
        assert!(is_empty(&queue), "seed {seed}: {:#?}", queue.queues(None, 1_000));
        // Nothing of what has ended stays behind.
        for (family, key, _) in self.store.contents() {
            let name = family.name();
            assert!(
                !["body", "envelope", "state", "due", "deadline"].contains(&name),
                "seed {seed}: {name} {key:02x?} is left"
            );
        }
        let mut events: HashMap<(MessageId, String), Vec<Event>> = HashMap::new();
        for (_, event) in queue.events(0, usize::MAX).unwrap() {
            let Some(id) = event.id else { continue };
            for recipient in &event.recipients {
                events
                    .entry((id, recipient.clone()))
                    .or_default()
                    .push(event.clone());
            }
        }
        let deleted: HashSet<String> = events
            .iter()
            .filter(|(_, told)| told.iter().any(|event| event.kind == EventKind::Deleted))
            .map(|((_, recipient), _)| recipient.clone())
            .collect();
        for sent in &self.sent {
            for recipient in &sent.recipients {
                let told = events.remove(&(sent.id, recipient.clone())).unwrap_or_default();
                self.judge_recipient(sent, recipient, &told, &deleted);
            }
        }
        for (site, &most) in self.world.most_open.borrow().iter().enumerate() {
            assert!(
                most <= CONNECTIONS,
                "seed {seed}: {most} connections to site {site}"
            );
        }
        for mails in self.world.mails.borrow().iter() {
            // A token may be spent a little later than it was drawn, by as many as there are connections.
            let most = A_MINUTE + 2 * CONNECTIONS;
            for window in mails.windows(most + 1) {
                assert!(window[most] - window[0] >= MINUTE, "seed {seed}: too fast");
            }
        }
    }

    /// How long the relay ran between two times.
    fn uptime(&self, from: Timestamp, to: Timestamp) -> Duration {
        let within = |&(born, died): &(Timestamp, Timestamp)| died.min(to).since(born.max(from));
        self.lives.iter().map(within).sum()
    }

    fn judge_recipient(&self, sent: &Sent, recipient: &str, told: &[Event], deleted: &HashSet<String>) {
        let seed = self.seed;
        let ends: Vec<_> = told
            .iter()
            .filter(|event| {
                matches!(
                    event.kind,
                    EventKind::Delivered | EventKind::Bounced | EventKind::Expired | EventKind::Deleted
                )
            })
            .collect();
        assert_eq!(ends.len(), 1, "seed {seed}: {recipient} ends once: {told:#?}");
        let end = ends[0];
        let all_taken = self.world.taken.borrow();
        let taken = all_taken.get(recipient).map_or(&[][..], Vec::as_slice);
        let in_doubt = told
            .iter()
            .filter(|event| event.kind == EventKind::InDoubt)
            .count();
        // A crash less than the longest wait after the final dot since a copy was taken: that copy's end was not written.
        let on_the_wire = self
            .crashes
            .iter()
            .filter(|&&crash| taken.iter().any(|&at| at <= crash && crash - at <= 11 * MINUTE))
            .count();
        assert!(
            taken.len() <= 1 + in_doubt + on_the_wire,
            "seed {seed}: {recipient} was taken {} times: {told:#?}",
            taken.len()
        );
        for suspended in self.suspensions.borrow().iter() {
            for &at in taken {
                assert!(
                    !suspended.held(&sent.tenant, recipient, at),
                    "seed {seed}: {recipient} was taken though {suspended:?}: {told:#?}"
                );
            }
        }
        match end.kind {
            EventKind::Delivered => {
                assert!(!taken.is_empty(), "seed {seed}: {recipient} was never delivered")
            }
            // What is on the wire is not deleted.
            EventKind::Deleted => assert!(
                taken.len() <= in_doubt + on_the_wire,
                "seed {seed}: {recipient} was taken and deleted: {told:#?}"
            ),
            EventKind::Expired => assert!(
                end.at >= sent.expires_at,
                "seed {seed}: {recipient} expired early"
            ),
            _ => {}
        }
        if recipient.ends_with(NOWHERE) {
            assert_ne!(end.kind, EventKind::Delivered, "seed {seed}: {recipient}");
        }
        // Two hosts that say nothing for as long as they may, the second after each reply, may hold a unit for so long.
        let overdue = self.uptime(sent.expires_at, end.at);
        // What was overdue when the relay began is left an hour to be tried in, by each start anew.
        let grace = |&&(born, died): &&(Timestamp, Timestamp)| {
            sent.expires_at <= born && born <= end.at && born < died
        };
        let graces = self.lives.iter().filter(grace).map(|&(born, died)| {
            let hour = 60 * MINUTE;
            died.min(end.at).since(born).min(hour)
        });
        assert!(
            overdue <= 40 * MINUTE + graces.sum::<Duration>(),
            "seed {seed}: {recipient} outlived its deadline by {overdue:?}: {told:#?}"
        );
        if let Some(from) = &sent.from
            && !matches!(end.kind, EventKind::Delivered | EventKind::Deleted)
            && !deleted.contains(from)
        {
            assert!(
                all_taken.contains_key(from.as_str()),
                "seed {seed}: {from} was not told of {recipient}"
            );
        }
    }
}

fn settings() -> Arc<Settings> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("postrider.toml");
    let text = format!(
        "hostname = \"relay.test\"\n[store]\npath = \"q\"\n[tenants.t0]\nsenders = [\"*\"]\n\
         [[listener]]\nkind = \"trusted\"\naddress = \"127.0.0.1:0\"\nnetworks = [\"127.0.0.1/32\"]\ntenant = \"t0\"\n\
         [delivery.limits]\nconnections = {CONNECTIONS}\nmessages_per_second = 0.2\n\
         [delivery.retry]\nfirst = \"1m\"\ncap = \"20m\"\n"
    );
    std::fs::write(&path, text).unwrap();
    Arc::new(config::load(&path).unwrap())
}

fn is_empty(queue: &Queue) -> bool {
    let queues = queue.queues(None, 1_000).unwrap();
    queues.iter().all(|(_, record)| record.count == 0)
}

fn number(variable: &str, default: u64) -> u64 {
    std::env::var(variable).map_or(default, |text| text.parse().unwrap())
}

#[test]
fn the_promises_hold_whatever_happens() {
    let (first, count) = (number("POSTRIDER_SEED", 1), number("POSTRIDER_SEEDS", 50));
    for seed in first..first + count {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .start_paused(true)
            .build()
            .unwrap();
        let run = {
            let _entered = runtime.enter();
            Run::new(seed)
        };
        run.go(&runtime);
    }
}
