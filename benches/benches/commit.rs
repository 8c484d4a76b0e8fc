//! The committer on disk: groups of 64 messages of 10 KiB accepted, then settled. The time is dominated by two syncs a group,
//! so compare only within one run; the floor beside it is the same octets appended to a file and synced.

use std::fs::File;
use std::io::Write;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use mail_core::{BodyType, DsnOptions, MessageId, Recipient, ReversePath, Timestamp};
use queue::{End, Fate, NewMessage, NewUnit, Options, Origin, Queue, RouteGroup, Settle, UnitKey};
use tokio::runtime::{Builder, Runtime};
use tokio::task::JoinSet;

const GROUP: u64 = 64;
const BODY: usize = 10 * 1024;

fn message(number: u64, body: &Bytes) -> Arc<NewMessage> {
    let received_at = Timestamp(1_700_000_000_000 + number / 1_000);
    let mut random = [0; 10];
    random[2..].copy_from_slice(&number.to_be_bytes());
    Arc::new(NewMessage {
        id: MessageId::new(received_at, &random),
        received_at,
        expires_at: received_at + Duration::from_secs(5 * 86_400),
        tenant: "acme".into(),
        stream: "transactional".into(),
        reverse_path: ReversePath::Mailbox("from@acme.test".parse().expect("a mailbox")),
        body_type: BodyType::SevenBit,
        smtputf8: false,
        dsn: DsnOptions::default(),
        tag: None,
        metadata: Vec::new(),
        prefix: Bytes::from_static(b"Received: from app.acme.test by relay.test with ESMTPSA\r\n"),
        body: body.clone(),
        rest: None,
        origin: Origin::default(),
        cause: None,
        units: vec![NewUnit {
            route_group: RouteGroup(0),
            domain: format!("d{}.test", number % 100).parse().expect("a domain"),
            due: received_at,
            recipients: vec![Recipient::new("to@ok.test".parse().expect("a mailbox"))],
        }],
    })
}

fn delivered(unit: UnitKey) -> Settle {
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

/// Accepts a group, all waiting at once; returns their units.
fn accept(runtime: &Runtime, queue: &Queue, next: &mut u64, body: &Bytes) -> Vec<UnitKey> {
    let messages: Vec<_> = (0..GROUP).map(|number| message(*next + number, body)).collect();
    *next += GROUP;
    runtime.block_on(async {
        let mut waiting = JoinSet::new();
        for message in messages {
            let queue = queue.clone();
            waiting.spawn(async move { queue.accept(message).await });
        }
        let accepted = waiting.join_all().await;
        let units = accepted
            .into_iter()
            .flat_map(|accepted| accepted.expect("a disk").units);
        units.collect()
    })
}

fn settle(runtime: &Runtime, queue: &Queue, units: Vec<UnitKey>) {
    runtime.block_on(async {
        let mut waiting = Vec::with_capacity(units.len());
        for unit in units {
            waiting.push(queue.settle(delivered(unit)).await.expect("a disk"));
        }
        for settled in waiting {
            settled.await.expect("a disk");
        }
    });
}

fn commit(criterion: &mut Criterion) {
    let folder = tempfile::tempdir().expect("a folder");
    let options = Options {
        min_free_bytes: 0,
        commit_patience: Duration::from_secs(60),
    };
    let queue = Queue::open(&folder.path().join("queue"), &options).expect("a queue");
    let runtime = Builder::new_current_thread()
        .enable_time()
        .build()
        .expect("a runtime");
    let body = Bytes::from(vec![b'x'; BODY]);
    let mut next = 0;
    let mut group = criterion.benchmark_group("commit");
    group.throughput(Throughput::Elements(GROUP));
    group.bench_function("accept and settle 64 of 10 KiB", |bench| {
        bench.iter(|| {
            let units = accept(&runtime, &queue, &mut next, &body);
            settle(&runtime, &queue, units);
        });
    });
    group.bench_function("accept 64 of 10 KiB, none leaves", |bench| {
        bench.iter(|| accept(&runtime, &queue, &mut next, &body));
    });
    let mut file = File::create(folder.path().join("floor")).expect("a file");
    let octets = vec![b'x'; BODY * GROUP as usize];
    group.bench_function("floor: append 640 KiB and fdatasync", |bench| {
        bench.iter(|| {
            file.write_all(&octets).expect("a disk");
            file.sync_data().expect("a disk");
        });
    });
    group.finish();
    queue.close();
}

criterion_group!(benches, commit);
criterion_main!(benches);
