//! The promises of docs/promises.md under chance: mail comes in, hosts, name servers and the disk have their moods, the relay
//! crashes, loses power, stops and starts again, an operator gives orders, on a virtual clock and from one seed. Nothing
//! acknowledged may be lost, end twice, be sent twice without cause, other than it was or without a signature that verifies, exceed a limit, or outlive its
//! deadline: [`books`] looks at each batch that is written and each message that a host takes.
//!
//! `POSTRIDER_SEEDS=N` runs N seeds, from `POSTRIDER_SEED` on; a failure names its seed and step. A seed takes the same steps
//! each time; `POSTRIDER_TRACE=1` prints them all.

#![allow(
    clippy::unwrap_used,
    reason = "a test; its helpers are outside of test functions"
)]

#[path = "seeds/books.rs"]
mod books;
#[path = "seeds/operator.rs"]
mod operator;
#[path = "seeds/signed.rs"]
mod signed;
#[path = "seeds/world.rs"]
mod world;

use std::collections::{BTreeMap, BTreeSet};
use std::panic::AssertUnwindSafe;
use std::rc::Rc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use books::{Books, Letter};
use bytes::Bytes;
use mail_core::{BodyType, DsnOptions, Mailbox, MessageId, Recipient, ReversePath, Timestamp};
use operator::Operator;
use queue::store::{Family, MemoryStore};
use queue::{Event, EventKind, NewMessage, NewUnit, Origin, Queue, RouteGroup};
use relay::config::{self, Settings};
use relay::control::QueueControl;
use relay::delivery::client_tls::ClientTls;
use relay::delivery::courier::{self, Parts};
use relay::delivery::exchange::{self, Doors};
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
const PREFIX: &str = "Received: by relay.test\r\n";

/// How late an end may be where nothing keeps it.
const LATE: Duration = Duration::from_secs(5);

/// By destination; a message is a transaction.
const CONNECTIONS: usize = 2;
const A_MINUTE: usize = 12;
const A_CONNECTION: usize = 3;
const RECIPIENTS: usize = 2;

/// All worlds', which is made once: it reads the system's certificate authorities. No handshake here comes to its end, so no world learns
/// of another by it.
static TLS: LazyLock<Arc<ClientTls>> = LazyLock::new(|| Arc::new(ClientTls::new(None).unwrap()));

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
    random: Random,
    world: Rc<World>,
    store: MemoryStore,
    clock: Clock,
    settings: Arc<Settings>,
    sent: Vec<Sent>,
    /// When the relay ran, until it was told to stop; the last of them it may still.
    lives: Vec<(Timestamp, Timestamp)>,
    begun: Instant,
    /// When the disk failed.
    failed: Vec<(Instant, Instant)>,
}

/// How a life ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    /// What is on the wire finishes.
    Stop,
    Kill,
    /// What was not synced is lost, but for what the disk had written already.
    PowerCut,
}

impl Run {
    fn new(seed: u64) -> Self {
        let random = Random::seeded(seed);
        let store = MemoryStore::recording();
        let books = Books::new(seed, store.clone());
        Self {
            world: Rc::new(World::new(random.clone(), books)),
            random,
            store,
            clock: Clock::anchored(START),
            settings: settings(),
            sent: Vec::new(),
            lives: Vec::new(),
            begun: Instant::now(),
            failed: Vec::new(),
        }
    }

    fn minutes(&self, most: usize) -> Duration {
        Duration::from_secs(self.random.below(most * 60) as u64)
    }

    fn message(&self) -> (NewMessage, Sent) {
        let (number, now) = (self.sent.len(), self.clock.now());
        // Some are for many at one domain, who take several transactions.
        let list = (self.random.below(4) == 0).then(|| self.random.below(DOMAINS.len()));
        let most = if list.is_some() { 8 } else { 4 };
        let recipients: Vec<String> = (0..1 + self.random.below(most))
            .map(|each| {
                let domain = list.unwrap_or_else(|| self.random.below(DOMAINS.len()));
                format!("r{number}x{each}@{}", DOMAINS[domain])
            })
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
            transfer: Default::default(),
            tag: None,
            metadata: Vec::new(),
            prefix: PREFIX.into(),
            body: self.body(),
            rest: None,
            origin: Origin::default(),
            cause: None,
            units,
        };
        (message, sent)
    }

    /// Lines that are easily damaged on their way.
    fn body(&self) -> Bytes {
        const LINES: [&str; 6] = ["hello", ".", "..", "", ".hidden\t ", "\t"];
        let mut body = "From: sender@back.test\r\nSubject: hi\r\n\r\n".to_owned();
        for _ in 0..self.random.below(8) {
            body.push_str(LINES[self.random.below(LINES.len())]);
            body.push_str("\r\n");
        }
        // Over lines of mere blanks at the end mail-auth and others (dkimpy, OpenDKIM) differ.
        body.push_str("end\r\n");
        body.into()
    }

    /// Hands a message over, and remembers whether that was acknowledged.
    async fn submit(&mut self, queue: &Queue, doors: &Doors) {
        let (message, sent) = self.message();
        self.world
            .note(format!("client: {} to {}", sent.id, sent.recipients.join(" ")));
        for recipient in &sent.recipients {
            let octets = [&message.prefix[..], &message.body].concat().into();
            let tenant = sent.tenant.clone();
            let letter = Letter { tenant, octets };
            let letters = &mut self.world.books.borrow_mut().letters;
            letters.insert(recipient.clone(), letter);
        }
        let message = Arc::new(message);
        let kept = match queue.accept(message).await {
            Ok(kept) => kept,
            // Its client keeps it.
            Err(error) => {
                if !self.world.is_failing() {
                    self.world.wrong(format!("{} was refused: {error}", sent.id));
                }
                return self.sent.push(Sent {
                    recipients: Vec::new(),
                    ..sent
                });
            }
        };
        self.world
            .books
            .borrow_mut()
            .acknowledged(sent.id, &sent.recipients);
        self.sent.push(sent);
        // Some crash before the shards are told.
        if self.random.below(10) > 0 {
            doors.tell(&kept.units, None).await;
        }
    }

    /// The relay runs for a while, takes in `messages`, and then `end`s, by a crash where the disk fails after `fails_after`.
    async fn live(
        &mut self,
        messages: usize,
        span: Duration,
        mut end: End,
        fails_after: Option<Duration>,
    ) -> End {
        let registry = Registry::new();
        let queue = Queue::in_memory(self.store.clone()).unwrap();
        let routing = Arc::new(Routing::open(self.settings.clone(), &queue).unwrap());
        let preparer = Preparer::inline(
            queue.clone(),
            signed::signer(),
            prepare::Metrics::new(&registry).unwrap(),
        );
        let tls = TLS.clone();
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
            world: self.world.clone(),
            clock: self.clock,
        };
        if self.world.calm.get() {
            operator.resume_all().await.unwrap();
        }
        let calm = self.world.calm.get();
        let operator = spawn_local(async move {
            if !calm {
                loop {
                    operator.act().await;
                }
            }
        });
        let (world, store) = (self.world.clone(), self.store.clone());
        // Either nothing can be written, or what was written can't be synced.
        let (loses, how_long) = (self.random.below(2) == 0, self.minutes(5));
        let disk = spawn_local(async move {
            let Some(after) = fails_after else {
                return std::future::pending().await;
            };
            sleep(after).await;
            world.note(format!("disk: fails, loses what it has: {loses}"));
            world.failing_from.set(Some(Instant::now()));
            match loses {
                true => store.set_syncs_failing(true),
                false => store.set_failing(true),
            }
            sleep(how_long).await;
        });
        for _ in 0..messages {
            if self.random.below(3) == 0 {
                sleep(self.minutes(5)).await;
            }
            if disk.is_finished() {
                break;
            }
            self.submit(&queue, &doors).await;
            self.look();
        }
        let until = Instant::now() + span;
        // In calm times there is nothing to wait for once all has gone.
        while Instant::now() < until && !(calm && is_empty(&queue)) && !disk.is_finished() {
            sleep(MINUTE.min(until - Instant::now())).await;
            self.look();
        }
        // What any of them did wrong is told now.
        for shard in &shards {
            assert!(!shard.is_finished(), "a shard has ended by itself");
        }
        if operator.is_finished() || calm {
            operator.await.unwrap();
        } else {
            operator.abort();
        }
        if self.world.is_failing() && end == End::Stop {
            // What could not be recorded is kept for as long as the relay runs: a stop would wait for it.
            end = End::Kill;
        }
        if end == End::Stop {
            // Nor may it begin to fail meanwhile: some hosts keep a stop waiting for ten minutes.
            disk.abort();
            stop.send(true).unwrap();
            // Nothing is begun any more, ends either.
            if let Some((_, died)) = self.lives.last_mut() {
                *died = self.clock.now();
            }
            for shard in shards {
                shard.await.unwrap();
            }
        }
        self.look();
        end
    }

    /// Whether all is well, up to now.
    fn look(&self) {
        let now = self.clock.now();
        let mut books = self.world.books.borrow_mut();
        books.look();
        for (recipient, expires_at) in books.open() {
            if let Some(overdue) = self.overdue(&recipient, expires_at, now) {
                books.wrong(format!("{recipient} outlived its deadline by {overdue:?}"));
            }
        }
        books.judge();
    }

    /// Lives through it all, and gives back its trace and what is in the store at last.
    fn go(&mut self, runtime: &Runtime) {
        // What is written down between two lives has its time too.
        let _entered = runtime.enter();
        for life in 0..2 + self.random.below(4) {
            // Some live long enough to see what they took in expire.
            let longest = if self.random.below(3) == 0 { 300 } else { 40 };
            let (messages, span) = (self.random.below(30), self.minutes(longest));
            let end = match self.random.below(10) {
                0..=2 => End::Stop,
                3..=6 => End::Kill,
                _ => End::PowerCut,
            };
            let fails_after = (self.random.below(5) == 0).then(|| self.minutes(longest));
            let born = self.clock.now();
            self.world.note(format!("relay: starts, life {life}"));
            self.lives.push((born, Timestamp::MAX));
            // What still runs when the life is over is dropped with its tasks: a crash.
            let end = LocalSet::new().block_on(runtime, self.live(messages, span, end, fails_after));
            let died = self.clock.now().min(self.lives.pop().unwrap().1);
            self.lives.push((born, died));
            self.ends(end);
            let down = self.minutes(30);
            runtime.block_on(async { sleep(down).await });
            if life == 1 {
                self.world.moved.set(true);
            }
        }
        self.world.calm.set(true);
        self.lives.push((self.clock.now(), Timestamp::MAX));
        LocalSet::new().block_on(runtime, self.live(0, 360 * MINUTE, End::Stop, None));
        self.judge();
        self.world.books.borrow_mut().judge();
    }

    /// The relay is gone. Its disk is well again, whatever is left on it.
    fn ends(&mut self, end: End) {
        self.world.note(format!("relay: {end:?}"));
        self.store.set_failing(false);
        self.store.set_syncs_failing(false);
        let failing_from = self.world.failing_from.take();
        self.failed
            .extend(failing_from.map(|from| (from, Instant::now())));
        if end == End::Stop {
            return;
        }
        if end == End::PowerCut {
            let kept = self.random.below(self.store.unsynced() + 1);
            self.world
                .note(format!("disk: keeps {kept} batches that were not synced"));
            self.store = self.store.cut_power(kept);
        }
        let from = failing_from.unwrap_or_else(Instant::now);
        let (store, power) = (self.store.clone(), end == End::PowerCut);
        self.world.books.borrow_mut().crashed(from, store, power);
    }

    /// Nothing waits any more, and nothing of what has ended stays behind.
    fn nothing_is_left(&self) {
        let queue = Queue::in_memory(self.store.clone()).unwrap();
        if !is_empty(&queue) {
            self.world
                .wrong(format!("it still waits: {:?}", queue.queues(None, 1_000)));
        }
        for (family, key, _) in self.store.contents() {
            let name = family.name();
            if [
                "body", "envelope", "state", "due", "deadline", "notice", "aside", "upload",
            ]
            .contains(&name)
            {
                self.world.wrong(format!("{name} {key:02x?} is left"));
            }
        }
    }

    /// What the journal tells of each recipient, against what its client was told and its host took.
    fn judge(&self) {
        self.nothing_is_left();
        let queue = Queue::in_memory(self.store.clone()).unwrap();
        let mut events: BTreeMap<(MessageId, String), Vec<Event>> = BTreeMap::new();
        for (_, event) in queue.events(0, usize::MAX).unwrap() {
            let Some(id) = event.id else { continue };
            for recipient in &event.recipients {
                events
                    .entry((id, recipient.clone()))
                    .or_default()
                    .push(event.clone());
            }
        }
        let deleted: BTreeSet<String> = events
            .iter()
            .filter(|(_, told)| told.iter().any(|event| event.kind == EventKind::Deleted))
            .map(|((_, recipient), _)| recipient.clone())
            .collect();
        for sent in &self.sent {
            for recipient in &sent.recipients {
                let told = events.remove(&(sent.id, recipient.clone())).unwrap_or_default();
                if let Some(wrong) = self.judge_recipient(sent, recipient, &told, &deleted) {
                    self.world
                        .wrong(format!("{recipient} of {}: {wrong}: {told:#?}", sent.id));
                }
            }
        }
    }

    /// How much longer than its deadline a message has been in the queue, beyond what may be.
    fn overdue(&self, recipient: &str, expires_at: Timestamp, now: Timestamp) -> Option<Duration> {
        let at = |instant: Instant| START + instant.duration_since(self.begun);
        // What is on the wire, and on no other, may be what comes last; and a disk that fails keeps no end.
        let mut excused = self.world.busy(recipient);
        excused.extend(&self.failed);
        excused.extend(self.world.failing_from.get().map(|from| (from, Instant::now())));
        let mut excused: Vec<_> = excused.into_iter().map(|(from, to)| (at(from), at(to))).collect();
        excused.sort_unstable();
        let idle = |&(born, died): &(Timestamp, Timestamp)| {
            let (mut from, died, mut idle) = (born.max(expires_at), died.min(now), Duration::ZERO);
            for &(begins, ends) in &excused {
                idle += begins.min(died).since(from);
                from = from.max(ends);
            }
            idle + died.since(from)
        };
        let overdue = self.lives.iter().map(idle).sum();
        // What was overdue when the relay began is left an hour to be tried in, however often it begins; what it ran of a minute may be
        // forgotten at each end, or with the power since the last sync.
        let grace =
            |&&(born, died): &&(Timestamp, Timestamp)| expires_at <= born && born <= now && born < died;
        let starts = self.lives.iter().filter(grace).count();
        let grace = if starts > 0 { 60 * MINUTE } else { Duration::ZERO };
        let forgotten = 10 * MINUTE * u32::try_from(starts).unwrap();
        (overdue > LATE + grace + forgotten).then_some(overdue)
    }

    /// What is wrong with a recipient's end.
    fn judge_recipient(
        &self,
        sent: &Sent,
        recipient: &str,
        told: &[Event],
        deleted: &BTreeSet<String>,
    ) -> Option<String> {
        let ends: Vec<_> = told.iter().filter(|event| event.kind.is_end()).collect();
        let [end] = ends[..] else {
            return Some(format!("it ended {} times", ends.len()));
        };
        let books = self.world.books.borrow();
        let taken = books.taken().get(recipient).map_or(0, Vec::len);
        match end.kind {
            EventKind::Delivered if recipient.ends_with(NOWHERE) => {
                return Some("delivered to nowhere".into());
            }
            EventKind::Delivered if taken == 0 => return Some("it was never delivered".into()),
            // What is on the wire is not deleted.
            EventKind::Deleted if taken >= books.copies(recipient) => {
                return Some(format!("it was taken {taken} times, and deleted"));
            }
            EventKind::Delivered | EventKind::Bounced | EventKind::Expired | EventKind::Deleted => {}
            other => return Some(format!("{other:?} is no end for it")),
        }
        if let Some(overdue) = self.overdue(recipient, sent.expires_at, end.at) {
            return Some(format!("it outlived its deadline by {overdue:?}"));
        }
        if let Some(from) = &sent.from
            && !matches!(end.kind, EventKind::Delivered | EventKind::Deleted)
            && !deleted.contains(from)
            && !books.reached.contains(from)
        {
            return Some(format!("{from} was not told of it"));
        }
        None
    }
}

fn settings() -> Arc<Settings> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("postrider.toml");
    let text = format!(
        "hostname = \"relay.test\"\n[store]\npath = \"q\"\n[tenants.t0]\nsenders = [\"*\"]\n\
         [[listener]]\nkind = \"trusted\"\naddress = \"127.0.0.1:0\"\nnetworks = [\"127.0.0.1/32\"]\ntenant = \"t0\"\n\
         [delivery.limits]\nconnections = {CONNECTIONS}\nmessages_per_second = 0.2\n\
         messages_per_connection = {A_CONNECTION}\nrecipients_per_transaction = {RECIPIENTS}\n\
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

/// Runs a seed. What it left behind, or why it failed.
fn run(seed: u64) -> Result<Run, String> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .unwrap();
    let mut run = {
        let _entered = runtime.enter();
        Run::new(seed)
    };
    let gone = std::panic::catch_unwind(AssertUnwindSafe(|| run.go(&runtime)));
    if number("POSTRIDER_TRACE", 0) > 0 {
        for step in run.world.books.borrow().trace() {
            println!("{step}");
        }
    }
    let fault = signed::fault(run.world.books.borrow().signed.iter());
    match gone {
        Ok(()) if fault.is_some() => Err(format!("seed {seed}: {}", fault.unwrap_or_default())),
        Ok(()) => Ok(run),
        Err(panic) => {
            let why = panic.downcast_ref::<String>().cloned().unwrap_or_default();
            let why = why.strip_prefix(&format!("seed {seed}: ")).unwrap_or(&why);
            Err(format!("seed {seed}: {why}"))
        }
    }
}

#[test]
fn the_promises_hold_whatever_happens() {
    let (first, count) = (number("POSTRIDER_SEED", 1), number("POSTRIDER_SEEDS", 50));
    let next = AtomicU64::new(first);
    let work = || {
        let mut failed = Vec::new();
        loop {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= first + count {
                return failed;
            }
            if let Err(why) = run(seed) {
                // The others that are under way may end.
                next.store(first + count, Ordering::Relaxed);
                failed.push((seed, why));
            }
        }
    };
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let mut failed: Vec<(u64, String)> = std::thread::scope(|scope| {
        let all: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        all.into_iter().flat_map(|one| one.join().unwrap()).collect()
    });
    failed.sort();
    if let Some((seed, why)) = failed.first() {
        panic!(
            "{why}\nto see all of it: POSTRIDER_TRACE=1 POSTRIDER_SEED={seed} POSTRIDER_SEEDS=1 cargo test -p relay --test seeds"
        );
    }
}

#[test]
fn a_seed_takes_the_same_steps_each_time() {
    for seed in 1..=8 {
        let (once, again) = (run(seed).unwrap(), run(seed).unwrap());
        let (first, second) = (once.world.books.borrow(), again.world.books.borrow());
        for (step, other) in first.trace().iter().zip(second.trace()) {
            assert_eq!(step, other, "seed {seed}");
        }
        assert_eq!(first.trace().len(), second.trace().len(), "seed {seed}");
        assert!(first.trace().len() > 100, "seed {seed}: it does something");
        // Its name is drawn by the system.
        let contents = |run: &Run| {
            let mut all = run.store.contents();
            all.retain(|(family, key, _)| (*family, &key[..]) != (Family::Meta, queue::keys::STORE));
            all
        };
        assert_eq!(contents(&once), contents(&again), "seed {seed}");
    }
}
