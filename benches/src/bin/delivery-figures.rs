//! Measures insides of delivery for `loadtest marks delivery`: each command prints `{"name": ..., "value": ...}` lines.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::hint::black_box;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use bytes::Bytes;
use clap::{Parser, Subcommand};
use mail_core::{BodyType, DsnOptions, MessageId, Recipient, ReversePath, Timestamp, TransferOptions};
use queue::store::{Batch, Family, KeyValue, MemoryStore, Store, StoreError};
use queue::{NewMessage, NewUnit, Origin, Queue, RouteGroup, UnitKey};
use relay::config::Settings;
use relay::delivery::exchange::{Accepted, Place, Word};
use relay::delivery::lane::{ConnectionId, LaneKey, Rule};
use relay::delivery::route::Route;
use relay::delivery::shard::{Effect, LaneId, Settled, Shard};
use relay::routing::Routing;
use relay::world::{MxAnswer, MxHost, Random};

const START: Timestamp = Timestamp(1_700_000_000_000);

/// Units of each lane's queue.
const UNITS: u64 = 12;

/// By then every lane has a connection, whatever its limits.
const LONGEST: Duration = Duration::from_secs(60);

#[derive(Parser)]
#[command(version, about = "Measures insides of delivery")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Choosing the next unit of lanes that all have mail and a connection: microseconds of CPU each, without limits, with, and where all
    /// wait in line for one provider's rate; what of it the store took is told apart.
    Next {
        #[arg(long, default_value_t = 10_000)]
        lanes: u64,
    },
    /// Finding the rules of a site among as many of each kind: microseconds, and nanoseconds where its lane is there.
    Rules {
        #[arg(long, default_value_t = 1_000)]
        rules: usize,
    },
}

fn main() -> anyhow::Result<()> {
    match Cli::parse().command {
        Command::Next { lanes } => {
            let tell_next = |name: &str, limits: &str| {
                let (own, store) = next(lanes, limits)?;
                tell(&format!("{name}_us"), own);
                tell(&format!("{name}_store_us"), store);
                anyhow::Ok(())
            };
            tell_next("next", "")?;
            // What minutes, hours and days have counted is written before it is used, by another task: not here.
            let limits = "[[limit]]\nsite = \"*\"\nconnections = 10\n[[limit]]\ntenant = \"*\"\nmessages_per_second = 1e6\n\
                          [[limit]]\ntenant = \"*\"\nsite = \"*\"\nconnections = 10\n";
            tell_next("next_limited", limits)?;
            let (own, store) = next_in_line(lanes)?;
            tell("next_in_line_us", own);
            tell("next_in_line_store_us", store);
            Ok(())
        }
        Command::Rules { rules } => find_rules(rules),
    }
}

fn tell(name: &str, value: f64) {
    println!("{{\"name\": \"{name}\", \"value\": {value}}}");
}

fn settings(more: &str) -> anyhow::Result<Arc<Settings>> {
    let text = format!(
        "hostname = \"relay.test\"\n[store]\npath = \"q\"\n[tenants.t]\nsenders = [\"*\"]\n[[listener]]\nkind = \"trusted\"\n\
         address = \"127.0.0.1:0\"\nnetworks = [\"127.0.0.1/32\"]\ntenant = \"t\"\n[delivery]\nmax_connections = 100_000\n\
         [delivery.limits]\nconnections = 1\n{more}"
    );
    let folder = tempfile::tempdir()?;
    let path = folder.path().join("postrider.toml");
    std::fs::write(&path, text)?;
    relay::config::load(&path)
        .map(Arc::new)
        .map_err(|mistakes| anyhow::anyhow!("{mistakes}"))
}

/// Lanes with mail, each with its one connection on the wire.
struct Lanes {
    store: Arc<Timed>,
    shard: Shard,
    open: Vec<(LaneId, ConnectionId, UnitKey)>,
    now: Timestamp,
}

impl Lanes {
    fn new(lanes: u64, more: &str) -> anyhow::Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let store = Arc::new(Timed::default());
        let queue = Queue::inline(store.clone()).context("a queue in memory")?;
        let settings = settings(more)?;
        let routing = Arc::new(Routing::open(settings.clone(), &queue)?);
        let delivery = Arc::new(settings.delivery.clone());
        let mut shard = Shard::new(
            queue.clone(),
            Place::alone(),
            delivery,
            routing,
            Random::seeded(1),
            START,
        );
        let mut open = Vec::new();
        for number in 0..lanes {
            let units = runtime.block_on(fill(&queue, number))?;
            shard.hear(Word::Accepted(Accepted::stored(units)), START);
            for effect in shard.take_effects() {
                if let Effect::Resolve(domain) = effect {
                    let route = Route::from_answer(&domain, MxAnswer::Implicit, &[]);
                    shard.resolved(&domain, Ok(route), START);
                }
            }
            connect(&mut shard, &mut open);
        }
        // The tokens of a limit drop from its start on.
        let mut now = START;
        while (open.len() as u64) < lanes
            && let Some(wake) = shard.next_wake()
            && wake < START + LONGEST
        {
            now = now.max(wake);
            shard.tick(now);
            connect(&mut shard, &mut open);
        }
        anyhow::ensure!(
            open.len() as u64 == lanes,
            "{} of {lanes} lanes have a connection",
            open.len()
        );
        Ok(Self {
            store,
            shard,
            open,
            now,
        })
    }

    /// Microseconds of CPU for each unit chosen meanwhile: those of the shard, and those of its store, one in memory.
    fn measure(
        mut self,
        choose: impl FnOnce(&mut Self) -> anyhow::Result<u64>,
    ) -> anyhow::Result<(f64, f64)> {
        let (begun, store_before) = (busy(), self.store.took());
        let chosen = choose(&mut self)?;
        let took = busy() - begun;
        let by_store = self.store.took() - store_before;
        let each = |time: Duration| time.as_secs_f64() * 1e6 / chosen as f64;
        Ok((each(took.saturating_sub(by_store)), each(by_store)))
    }

    /// A connection has sent its unit.
    fn sent(&mut self, lane: LaneId, connection: ConnectionId, unit: UnitKey) {
        self.shard.settled(&unit, Settled::Gone, self.now);
        self.shard.connection_free(lane, connection, self.now);
    }
}

/// From a connection that has sent its unit to the next one's being chosen. A queue's first page of units is read before, when its lane
/// opens a connection.
fn next(lanes: u64, more: &str) -> anyhow::Result<(f64, f64)> {
    Lanes::new(lanes, more)?.measure(|all| {
        let (mut chosen, mut effects) = (0, Vec::new());
        for _ in 1..UNITS {
            let mut again = Vec::with_capacity(all.open.len());
            for (lane, connection, unit) in std::mem::take(&mut all.open) {
                all.now = all.now + Duration::from_millis(1);
                all.sent(lane, connection, unit);
                all.shard.swap_effects(&mut effects);
                for effect in effects.drain(..) {
                    // A lane has one connection.
                    if let Effect::Send { job, .. } = effect {
                        chosen += 1;
                        again.push((lane, connection, job.unit));
                    }
                }
            }
            all.open = again;
        }
        anyhow::ensure!(chosen == lanes * (UNITS - 1), "{chosen} were chosen");
        Ok(chosen)
    })
}

/// The same where all lanes wait for one provider's rate: a unit is chosen each time that there is room for one, and its lane waits
/// again as soon as it was sent, behind all others.
fn next_in_line(lanes: u64) -> anyhow::Result<(f64, f64)> {
    let limits = "[[provider]]\nname = \"p\"\nmx = [\"*.test\"]\n\
                  [[limit]]\nprovider = \"p\"\nmessages_per_second = 10_000\n";
    let mut all = Lanes::new(lanes, limits)?;
    let mut lane_of = HashMap::new();
    for (lane, connection, unit) in std::mem::take(&mut all.open) {
        lane_of.insert(connection, lane);
        all.sent(lane, connection, unit);
    }
    all.measure(|all| {
        let (mut chosen, mut effects) = (0, Vec::new());
        let end = all.now + LONGEST;
        while chosen < lanes * (UNITS - 2)
            && let Some(wake) = all.shard.next_wake().filter(|wake| *wake < end)
        {
            all.now = all.now.max(wake);
            all.shard.tick(all.now);
            all.shard.swap_effects(&mut effects);
            for effect in effects.drain(..) {
                if let Effect::Send { connection, job } = effect
                    && let Some(&lane) = lane_of.get(&connection)
                {
                    chosen += 1;
                    all.sent(lane, connection, job.unit);
                }
            }
        }
        anyhow::ensure!(chosen >= lanes * (UNITS - 2), "{chosen} were chosen");
        Ok(chosen)
    })
}

/// Takes note of the connections that the shard asks for.
fn connect(shard: &mut Shard, open: &mut Vec<(LaneId, ConnectionId, UnitKey)>) {
    for effect in shard.take_effects() {
        if let Effect::Connect {
            lane,
            connection,
            job,
            ..
        } = effect
        {
            open.push((lane, connection, job.unit));
        }
    }
}

/// How long this thread has had a processor, by the kernel's account: what others do on the machine counts for little.
fn busy() -> Duration {
    let stat = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
    let nanos = stat.split(' ').next().and_then(|field| field.parse().ok());
    Duration::from_nanos(nanos.unwrap_or(0))
}

/// A store that knows how long it has been asked, by whichever thread. What a caller does with a key of a scan counts, too.
#[derive(Default)]
struct Timed {
    store: MemoryStore,
    nanos: AtomicU64,
}

impl Timed {
    fn took(&self) -> Duration {
        Duration::from_nanos(self.nanos.load(Ordering::Relaxed))
    }

    fn time<T>(&self, ask: impl FnOnce(&MemoryStore) -> T) -> T {
        let begun = Instant::now();
        let answer = ask(&self.store);
        let nanos = u64::try_from(begun.elapsed().as_nanos()).unwrap_or(u64::MAX);
        self.nanos.fetch_add(nanos, Ordering::Relaxed);
        answer
    }
}

impl Store for Timed {
    fn write(&self, batch: &Batch, sync: bool) -> Result<(), StoreError> {
        self.time(|store| store.write(batch, sync))
    }

    fn sync(&self) -> Result<(), StoreError> {
        self.time(Store::sync)
    }

    fn get(&self, family: Family, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
        self.time(|store| store.get(family, key))
    }

    fn scan(
        &self,
        family: Family,
        from: &[u8],
        to: &[u8],
        each: &mut dyn FnMut(&[u8], &[u8]) -> bool,
    ) -> Result<(), StoreError> {
        self.time(|store| store.scan(family, from, to, each))
    }

    fn last(&self, family: Family, from: &[u8], to: &[u8]) -> Result<Option<KeyValue>, StoreError> {
        self.time(|store| store.last(family, from, to))
    }
}

/// Messages to one domain.
async fn fill(queue: &Queue, number: u64) -> anyhow::Result<Vec<UnitKey>> {
    let domain = format!("d{number}.test");
    let mut units = Vec::new();
    for of in 0..UNITS {
        let mut random = [0; 10];
        random[2..].copy_from_slice(&(number * UNITS + of).to_be_bytes());
        let message = NewMessage {
            id: MessageId::new(START, &random),
            received_at: START,
            expires_at: START + Duration::from_secs(86_400),
            tenant: "t".into(),
            stream: "bulk".into(),
            reverse_path: ReversePath::Null,
            body_type: BodyType::SevenBit,
            smtputf8: false,
            dsn: DsnOptions::default(),
            transfer: TransferOptions::default(),
            tag: None,
            metadata: Vec::new(),
            prefix: Bytes::new(),
            body: Bytes::from_static(b"Subject: x\r\n\r\nx\r\n"),
            rest: None,
            origin: Origin::default(),
            cause: None,
            units: vec![NewUnit {
                route_group: RouteGroup(0),
                domain: domain.parse()?,
                due: START,
                recipients: vec![Recipient::new(format!("to@{domain}").parse()?)],
            }],
        };
        units.extend(queue.accept(Arc::new(message)).await?.units);
    }
    Ok(units)
}

fn find_rules(rules: usize) -> anyhow::Result<()> {
    let mut more = String::new();
    for number in 0..rules {
        let _ = write!(
            more,
            "[[provider]]\nname = \"p{number}\"\nmx = [\"*.p{number}.example\"]\n[provider.limits]\nconnections = 3\n\
             [[destination]]\ndomain = \"*.d{number}.example\"\n[destination.limits]\nmessages_per_connection = 3\n\
             [[limit]]\nsite = \"*.p{number}.example\"\nconnections = 3\n\
             [[limit]]\nprovider = \"p{number}\"\ntenant = \"*\"\nmessages_per_minute = 3\n"
        );
    }
    let settings = settings(&more)?;
    let delivery = &settings.delivery;
    let host = |name: String| {
        anyhow::Ok(MxHost {
            preference: 10,
            host: name.parse()?,
        })
    };
    let names = (0..5).map(|number| host(format!("mx{number}.p500.example")));
    let route = Route::Hosts(names.collect::<Result<_, _>>()?);
    let domain = "mail.d500.example".parse()?;
    let turns = 200_000;
    let begun = busy();
    for _ in 0..turns {
        let provider = black_box(&route).provider(delivery);
        black_box(Rule::of(
            black_box(&domain),
            provider.map(|found| &**found),
            delivery,
        ));
        let Route::Hosts(hosts) = &route else { continue };
        let scope = queue::Scope {
            site: Some("mx0.p500.example".into()),
            provider: provider.map(|found| found.name.clone()),
            tenant: Some("t".into()),
            source: None,
        };
        let mail = delivery.scopes.mail(scope, hosts.iter().map(|mx| &mx.host));
        black_box([
            delivery.scopes.of(&mail, false, START),
            delivery.scopes.of(&mail, true, START),
        ]);
    }
    tell(
        "rules_us",
        (busy() - begun).as_secs_f64() * 1e6 / f64::from(turns),
    );
    let key = |number: usize| LaneKey {
        site: format!("mx{number}.example.org").into(),
        rule: None,
        source: None,
    };
    let lanes: HashMap<LaneKey, usize> = (0..10_000).map(|number| (key(number), number)).collect();
    let wanted = key(5_000);
    let turns = turns * 10;
    let begun = busy();
    for _ in 0..turns {
        black_box(lanes.get(black_box(&wanted)));
    }
    tell(
        "rules_cached_ns",
        (busy() - begun).as_secs_f64() * 1e9 / f64::from(turns),
    );
    Ok(())
}
