//! What a shard asks of the store when a queue's turn comes: the first page of what is due, of queues at random; in a store with
//! messages in 1,000 queues, and behind deleted units.

use std::hint::black_box;

use benches::{Shape, accept, open, runtime, settle};
use criterion::{Criterion, criterion_group, criterion_main};
use mail_core::{MessageId, Timestamp};
use queue::QueueId;

const FIRST: (Timestamp, MessageId, u16) = (Timestamp(0), MessageId::LEAST, 0);
const QUEUES: u64 = 1_000;
const MESSAGES: u64 = 20_000;

fn next_due(criterion: &mut Criterion) {
    let folder = tempfile::tempdir().expect("a folder");
    let queue = open(&folder.path().join("queue"));
    let (runtime, shape) = (runtime(), Shape::new(64, QUEUES));
    let mut units = Vec::new();
    runtime.block_on(accept(&queue, &shape, 0..MESSAGES, 1_024, async |of| {
        units.extend(of)
    }));
    let mut group = criterion.benchmark_group("next due");
    let mut step = 0_u64;
    let mut id = || {
        step = step.wrapping_add(0x9E37_79B9_7F4A_7C15);
        QueueId(1 + step % QUEUES)
    };
    group.bench_function("1 of a queue", |bench| {
        bench.iter(|| black_box(queue.due(id(), FIRST, 1).expect("a disk")));
    });
    group.bench_function("a page of 20", |bench| {
        bench.iter(|| black_box(queue.due(id(), FIRST, 20).expect("a disk")));
    });
    // One queue whose units have gone but for the last ones.
    let one = Shape::new(64, 1);
    let mut gone = Vec::new();
    let numbers = (1 << 40)..(1 << 40) + MESSAGES;
    runtime.block_on(accept(&queue, &one, numbers, 1_024, async |of| gone.extend(of)));
    gone.sort();
    let first = gone[0].queue;
    gone.truncate(gone.len() - 10);
    runtime.block_on(settle(&queue, gone));
    group.bench_function("1 behind 20,000 deleted", |bench| {
        bench.iter(|| black_box(queue.due(first, FIRST, 1).expect("a disk")));
    });
    group.bench_function("waking, a page of 256", |bench| {
        bench.iter(|| black_box(queue.waking(None, Timestamp::MAX, 256).expect("a disk")));
    });
    group.finish();
    queue.close();
}

criterion_group! {
    name = benches;
    config = benches::settings();
    targets = next_due
}
criterion_main!(benches);
