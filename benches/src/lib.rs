//! What the micro-benchmarks and `queue-figures` share: messages as they come, lives of messages, and what the machine says of it.

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use criterion::Criterion;
use mail_core::{BodyType, DsnOptions, MessageId, Recipient, ReversePath, Timestamp};
use queue::{End, Fate, NewMessage, NewUnit, Options, Origin, Queue, RouteGroup, Settle, UnitKey};
use tokio::runtime::{Builder, Runtime};
use tokio::task::JoinSet;

/// How long each benchmark runs: all of them together are done in some two minutes.
pub fn settings() -> Criterion {
    Criterion::default()
        .warm_up_time(Duration::from_millis(300))
        .measurement_time(Duration::from_millis(1_200))
        .sample_size(30)
}

/// How messages of a store look.
#[derive(Clone, Debug)]
pub struct Shape {
    /// Octets of each, the same for all.
    pub body: Bytes,
    /// They go to `d0.test`, `d1.test` and so on, in turn.
    pub domains: u64,
    /// When they came in.
    pub received_at: Timestamp,
    /// The first so many are due when they come in, the others a day later.
    pub due_at_once: u64,
}

impl Shape {
    /// So many octets to so many domains, all due at once.
    pub fn new(body_bytes: usize, domains: u64) -> Self {
        // Lines of a length that mail has; compressible as text is, which RocksDB's WAL and blob files do not try.
        let line = b"A line of a message as it is sent many times a day, 72 octets of it.  \r\n";
        let body: Vec<u8> = line.iter().copied().cycle().take(body_bytes).collect();
        Self {
            body: body.into(),
            domains: domains.max(1),
            received_at: Timestamp(1_790_000_000_000),
            due_at_once: u64::MAX,
        }
    }

    /// The message of this number.
    pub fn message(&self, number: u64) -> Arc<NewMessage> {
        let received_at = self.received_at + Duration::from_millis(number / 100);
        let mut random = [0; 10];
        random[2..].copy_from_slice(&number.to_be_bytes());
        let day = Duration::from_secs(86_400);
        let wait = if number < self.due_at_once {
            Duration::ZERO
        } else {
            day
        };
        let domain = format!("d{}.test", number % self.domains);
        Arc::new(NewMessage {
            id: MessageId::new(received_at, &random),
            received_at,
            expires_at: received_at + 5 * day,
            tenant: "load".into(),
            stream: "transactional".into(),
            reverse_path: ReversePath::Mailbox("from@second.test".parse().expect("a mailbox")),
            body_type: BodyType::SevenBit,
            smtputf8: false,
            dsn: DsnOptions::default(),
            transfer: Default::default(),
            tag: None,
            metadata: Vec::new(),
            prefix: Bytes::from_static(
                b"Received: from app.second.test ([192.0.2.7]) by relay.second.test with ESMTP id 0;\r\n\
                  \tTue, 24 Nov 2026 04:00:00 +0000\r\n",
            ),
            body: self.body.clone(),
            rest: None,
            origin: Origin::default(),
            cause: None,
            units: vec![NewUnit {
                route_group: RouteGroup(0),
                recipients: vec![Recipient::new(format!("to@{domain}").parse().expect("a mailbox"))],
                domain: domain.parse().expect("a domain"),
                due: received_at + wait,
            }],
        })
    }
}

/// The settle of a unit that was delivered.
pub fn delivered(unit: UnitKey) -> Settle {
    Settle {
        unit,
        at: unit.due,
        attempt: 1,
        hop: None,
        ends: vec![End {
            mailbox: "to@ok.test".parse().expect("a mailbox"),
            fate: Fate::Delivered,
            reply: "250 2.0.0 ok".into(),
        }],
        again: None,
        reports: Vec::new(),
    }
}

/// A runtime of one thread: what submits and settles.
pub fn runtime() -> Runtime {
    Builder::new_current_thread()
        .enable_time()
        .build()
        .expect("a runtime")
}

/// Opens or makes the queue in a folder.
pub fn open(folder: &Path) -> Queue {
    let options = Options {
        min_free_bytes: 0,
        commit_patience: Duration::from_secs(600),
        limits: queue::Limits::NONE,
    };
    Queue::open(folder, &options).expect("a queue")
}

/// Accepts the messages of these numbers with so many waiting at a time; hands each message's units to `each`, in no order.
pub async fn accept(
    queue: &Queue,
    shape: &Shape,
    numbers: std::ops::Range<u64>,
    waiting: usize,
    mut each: impl AsyncFnMut(Vec<UnitKey>),
) {
    let mut under_way = JoinSet::new();
    for number in numbers {
        if under_way.len() >= waiting
            && let Some(accepted) = under_way.join_next().await
        {
            each(accepted.expect("no panic")).await;
        }
        let (queue, message) = (queue.clone(), shape.message(number));
        under_way.spawn(async move { queue.accept(message).await.expect("a disk").units });
    }
    while let Some(accepted) = under_way.join_next().await {
        each(accepted.expect("no panic")).await;
    }
}

/// Ends these units, and waits for the disk.
pub async fn settle(queue: &Queue, units: impl IntoIterator<Item = UnitKey>) {
    let mut waiting = Vec::new();
    for unit in units {
        waiting.push(queue.settle(delivered(unit)).await.expect("a disk"));
        if waiting.len() >= 1_024 {
            for settled in waiting.drain(..) {
                settled.await.expect("a claim");
            }
        }
    }
    for settled in waiting {
        settled.await.expect("a claim");
    }
}

/// CPU time of this process so far, all threads.
pub fn cpu() -> Duration {
    let stat = fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let after_name = stat.rsplit(')').next().unwrap_or_default();
    let fields: Vec<u64> = after_name
        .split_whitespace()
        .map(|field| field.parse().unwrap_or(0))
        .collect();
    // Fields 14 and 15 of the whole line, in ticks of 10 ms.
    Duration::from_millis(10 * (fields.get(11).unwrap_or(&0) + fields.get(12).unwrap_or(&0)))
}

/// Octets this process handed to the kernel to be written so far. What the kernel says it wrote counts a whole folio for each page
/// touched in it, up to 64 KiB for the end of a log at each sync, though its blocks alone go to the disk (Linux 6.18, ext4).
pub fn written() -> u64 {
    let io = fs::read_to_string("/proc/self/io").unwrap_or_default();
    let line = io.lines().find_map(|line| line.strip_prefix("wchar:"));
    line.and_then(|text| text.trim().parse::<u64>().ok()).unwrap_or(0)
}

/// Resident memory of this process, octets.
pub fn resident() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = line.and_then(|text| text.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok());
    kib.unwrap_or(0) << 10
}

/// Octets of a store's WALs.
pub fn wal_bytes(folder: &Path) -> u64 {
    let Ok(files) = fs::read_dir(folder.join("store")) else {
        return 0;
    };
    let logs = files
        .flatten()
        .filter(|file| file.path().extension().is_some_and(|name| name == "log"));
    logs.filter_map(|file| Some(file.metadata().ok()?.len())).sum()
}
