//! Measures insides of the queue for `loadtest marks queue`: each command prints `{"name": ..., "value": ...}` lines.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use benches::{Shape, accept, cpu, open, resident, runtime, settle, wal_bytes, written};
use clap::{Parser, Subcommand};
use mail_core::{MessageId, Timestamp};
use queue::{Queue, QueueId};

/// Before all of a queue's units.
const FIRST: (Timestamp, MessageId, u16) = (Timestamp(0), MessageId::LEAST, 0);

/// Units that a shard reads of a queue at a time.
const PAGE: usize = 128;

/// Requests that wait for the committer in figures "with 64 waiting".
const WAITING: usize = 64;

/// Units that are ended together, so that the settles are groups as the accepts are.
const TOGETHER: usize = 64;

#[derive(Parser)]
#[command(
    version,
    about = "Measures insides of the queue, on a store in FOLDER that is not there yet unless said"
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Durable accepts against append and fdatasync of the same octets in the same groups, and CPU time.
    Commit {
        folder: PathBuf,
        /// Messages of 10 KiB in each of the two runs with 64 waiting.
        #[arg(long, default_value_t = 8_000)]
        messages: u64,
    },
    /// Messages of 10 KiB that leave at once: octets written for each accepted.
    Life {
        folder: PathBuf,
        #[arg(long, default_value_t = 60_000)]
        messages: u64,
        /// Messages that wait while one comes in.
        #[arg(long, default_value_t = 256)]
        lag: usize,
    },
    /// Fills a store.
    Fill {
        folder: PathBuf,
        #[arg(long)]
        messages: u64,
        #[arg(long, default_value_t = 1_000)]
        domains: u64,
        #[arg(long, default_value_t = 1_024)]
        bytes: usize,
        /// So many are due at once, the others in a day.
        #[arg(long, default_value_t = u64::MAX)]
        due: u64,
        /// Go on with messages that leave at once until the WALs hold so many octets, with no flush that would begin another one.
        #[arg(long, default_value_t = 0)]
        wal: u64,
        /// End as kill -9 does.
        #[arg(long)]
        abort: bool,
    },
    /// A filled store: how fast it accepts, and finds what is due.
    Probe {
        folder: PathBuf,
        #[arg(long, default_value_t = 1_000)]
        domains: u64,
        #[arg(long, default_value_t = 20_000)]
        messages: u64,
    },
    /// Tombstones at a queue's head: the next due before and after a restart.
    Tombstones {
        folder: PathBuf,
        #[arg(long, default_value_t = 1_000_000)]
        messages: u64,
    },
}

fn say(name: &str, value: f64) {
    println!("{{\"name\": \"{name}\", \"value\": {value}}}");
}

fn now() -> Timestamp {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    Timestamp(now.map_or(0, |now| now.as_millis() as u64))
}

fn main() {
    match Cli::parse().command {
        Command::Commit { folder, messages } => commit(&folder, messages),
        Command::Life {
            folder,
            messages,
            lag,
        } => life(&folder, messages, lag),
        Command::Fill {
            folder,
            messages,
            domains,
            bytes,
            due,
            wal,
            abort,
        } => {
            let mut shape = Shape::new(bytes, domains);
            shape.received_at = now();
            shape.due_at_once = due;
            fill(&folder, &shape, messages, wal, abort);
        }
        Command::Probe {
            folder,
            domains,
            messages,
        } => probe(&folder, domains, messages),
        Command::Tombstones { folder, messages } => tombstones(&folder, messages),
    }
}

/// Appends and syncs the octets of a group of messages so many times; seconds for each.
fn floor(file: &mut File, octets: &[u8], times: u64) -> f64 {
    let begun = Instant::now();
    for _ in 0..times {
        file.write_all(octets).expect("a disk");
        file.sync_data().expect("a disk");
    }
    begun.elapsed().as_secs_f64() / times as f64
}

/// Seconds for each message with so many waiting, messages of `numbers` accepted and, with `leave`, ended at once.
fn accepts(
    queue: &Queue,
    shape: &Shape,
    numbers: std::ops::Range<u64>,
    waiting: usize,
) -> (f64, Vec<queue::UnitKey>) {
    let count = numbers.end - numbers.start;
    let mut units = Vec::new();
    let begun = Instant::now();
    runtime().block_on(accept(queue, shape, numbers, waiting, async |of| {
        units.extend(of)
    }));
    (begun.elapsed().as_secs_f64() / count as f64, units)
}

fn commit(folder: &Path, messages: u64) {
    let shape = Shape::new(10 << 10, 100);
    let queue = open(&folder.join("queue"));
    let mut file = File::create(folder.join("floor")).expect("a file");
    // Slices in turn, so that what else the machine does falls on both. With so many waiting, a group is what came in while the
    // one before was synced, half of them and fewer: the bare appends are of as many octets as the slice's groups had.
    let slice = 20 * WAITING as u64;
    let run = |file: &mut File, from: u64, count: u64| {
        let (mut ours, mut floors, mut slices, mut left) = (0.0, 0.0, 0.0, Vec::new());
        let (mut next, groups) = (from, queue.groups());
        while next < from + count {
            let before = queue.groups();
            let (seconds, units) = accepts(&queue, &shape, next..next + slice, WAITING);
            let groups = queue.groups() - before;
            ours += seconds;
            left.extend(units);
            let octets = shape.body.repeat((slice / groups.max(1)) as usize);
            floors += floor(file, &octets, groups) * groups as f64 / slice as f64;
            (next, slices) = (next + slice, slices + 1.0);
        }
        say(
            "group_messages",
            (next - from) as f64 / (queue.groups() - groups) as f64,
        );
        (ours / slices, floors / slices, left)
    };
    // In the memtables: of 128 MiB, fewer than 12,000 messages of 10 KiB.
    let (ours, floors, units) = run(&mut file, 0, messages.min(8_000));
    say("accept_64_ratio", floors / ours);
    say("accept_64_per_second", 1.0 / ours);
    runtime().block_on(settle(&queue, units));
    // Three flushes: 3 x 128 MiB.
    let (ours, floors, units) = run(&mut file, 1_000_000, messages * 5);
    say("accept_64_flushes_ratio", floors / ours);
    runtime().block_on(settle(&queue, units));
    let few = (messages / 20).max(50);
    let one = floor(&mut file, &shape.body, few);
    let (ours, units) = accepts(&queue, &shape, 2_000_000..2_000_000 + few, 1);
    let one = (one + floor(&mut file, &shape.body, few)) / 2.0;
    say("accept_1_ratio", ours / one);
    runtime().block_on(settle(&queue, units));
    // Accept and settle together, what submits and settles included.
    let before = cpu();
    let count = messages.next_multiple_of(TOGETHER as u64);
    pass(&queue, &shape, 3_000_000..3_000_000 + count, TOGETHER);
    say(
        "cpu_microseconds",
        (cpu() - before).as_secs_f64() * 1e6 / count as f64,
    );
    queue.close();
}

/// Messages that leave, when `lag` others have come in.
fn pass(queue: &Queue, shape: &Shape, numbers: std::ops::Range<u64>, lag: usize) {
    let mut waiting = std::collections::VecDeque::new();
    runtime().block_on(async {
        accept(queue, shape, numbers, WAITING, async |units| {
            waiting.extend(units);
            if waiting.len() >= lag + TOGETHER {
                settle(queue, waiting.drain(..TOGETHER)).await;
            }
        })
        .await;
        settle(queue, waiting).await;
    });
}

fn life(folder: &Path, messages: u64, lag: usize) {
    let shape = Shape::new(10 << 10, 100);
    let queue = open(folder);
    let before = written();
    pass(&queue, &shape, 0..messages, lag);
    queue.close();
    let accepted = messages * shape.body.len() as u64;
    say("written_ratio", (written() - before) as f64 / accepted as f64);
}

fn fill(folder: &Path, shape: &Shape, messages: u64, wal: u64, abort: bool) {
    let queue = open(folder);
    let begun = Instant::now();
    runtime().block_on(accept(&queue, shape, 0..messages, 1_024, async |_| {}));
    say("fill_per_second", messages as f64 / begun.elapsed().as_secs_f64());
    if wal > 0 {
        // A WAL of these messages is some 97 MiB when its memtables are full, and goes once they are flushed. Those of a relay that is
        // killed meanwhile are longer by what came in since.
        queue.hold_flushes();
    }
    let mut next = 1 << 40;
    let mut before = 0;
    while wal > 0 && wal_bytes(folder) < wal {
        pass(&queue, shape, next..next + 512, 64);
        next += 512;
        let now = wal_bytes(folder);
        assert!(
            now >= before,
            "the WAL went, though flushes are held: {before} octets, then {now}"
        );
        before = now;
    }
    say("wal_bytes", wal_bytes(folder) as f64);
    if abort {
        std::process::abort();
    }
    queue.close();
}

fn probe(folder: &Path, domains: u64, messages: u64) {
    let begun = Instant::now();
    let queue = open(folder);
    say("open_seconds", begun.elapsed().as_secs_f64());
    let mut shape = Shape::new(1 << 10, domains);
    shape.received_at = now();
    for (name, units) in [("page", PAGE), ("next_due", 1)] {
        // Sought in an order that no cache helps.
        let mut waits: Vec<_> = (0..1_000_u64)
            .map(|step| {
                let id = QueueId(1 + step.wrapping_mul(0x9E37_79B9_7F4A_7C15) % domains.max(1));
                let begun = Instant::now();
                queue.due(id, FIRST, units).expect("a disk");
                begun.elapsed()
            })
            .collect();
        waits.sort();
        let micros = |wait: Duration| wait.as_secs_f64() * 1e6;
        say(&format!("{name}_microseconds"), micros(waits[waits.len() / 2]));
        say(
            &format!("{name}_p99_microseconds"),
            micros(waits[waits.len() * 99 / 100]),
        );
    }
    let (seconds, _) = accepts(&queue, &shape, (1 << 41)..(1 << 41) + messages, WAITING);
    say("accept_per_second", 1.0 / seconds);
    say("resident_bytes", resident() as f64);
    queue.close();
}

fn tombstones(folder: &Path, messages: u64) {
    let mut shape = Shape::new(64, 1);
    shape.received_at = now();
    let queue = open(folder);
    pass(&queue, &shape, 0..messages, 10_000);
    accepts(&queue, &shape, messages..messages + 10, 1);
    let next = |queue: &Queue| {
        let begun = Instant::now();
        let (units, _) = queue.due(QueueId(1), FIRST, 1).expect("a disk");
        assert_eq!(units.len(), 1, "there are ten");
        begun.elapsed()
    };
    let first = next(&queue);
    let median = {
        let mut times: Vec<Duration> = (0..101).map(|_| next(&queue)).collect();
        times.sort();
        times[50]
    };
    queue.close();
    drop(queue);
    let queue = open(folder);
    let restarted = next(&queue);
    say("next_due_first_microseconds", first.as_secs_f64() * 1e6);
    say("next_due_microseconds", median.as_secs_f64() * 1e6);
    say("next_due_restarted_microseconds", restarted.as_secs_f64() * 1e6);
    queue.close();
}
