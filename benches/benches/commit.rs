//! The committer on disk: groups of 64 messages of 10 KiB accepted, then ended. The time is dominated by two syncs a group, so
//! compare only within one run; the floor beside it is the same octets appended to a file and synced.

use std::fs::File;
use std::io::Write;

use benches::{Shape, accept, open, runtime, settle};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};

const GROUP: u64 = 64;

fn commit(criterion: &mut Criterion) {
    let folder = tempfile::tempdir().expect("a folder");
    let queue = open(&folder.path().join("queue"));
    let (runtime, shape) = (runtime(), Shape::new(10 << 10, 100));
    let mut next = 0;
    let group = |next: &mut u64| {
        let (mut units, numbers) = (Vec::new(), *next..*next + GROUP);
        *next += GROUP;
        let waiting = GROUP as usize;
        runtime.block_on(accept(&queue, &shape, numbers, waiting, async |of| {
            units.extend(of)
        }));
        units
    };
    let mut benches = criterion.benchmark_group("commit");
    benches.throughput(Throughput::Elements(GROUP));
    benches.bench_function("accept and settle 64 of 10 KiB", |bench| {
        bench.iter(|| {
            let units = group(&mut next);
            runtime.block_on(settle(&queue, units));
        });
    });
    benches.bench_function("accept 64 of 10 KiB, none leaves", |bench| {
        bench.iter(|| group(&mut next))
    });
    let mut file = File::create(folder.path().join("floor")).expect("a file");
    let octets = shape.body.repeat(GROUP as usize);
    benches.bench_function("floor: append 640 KiB and fdatasync", |bench| {
        bench.iter(|| {
            file.write_all(&octets).expect("a disk");
            file.sync_data().expect("a disk");
        });
    });
    benches.finish();
    queue.close();
}

criterion_group! {
    name = benches;
    config = benches::settings();
    targets = commit
}
criterion_main!(benches);
