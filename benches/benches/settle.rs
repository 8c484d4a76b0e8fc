//! Ends of 64 units as one group, without the accepts that came before.

use benches::{Shape, accept, open, runtime, settle};
use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};

const GROUP: u64 = 64;

fn ends(criterion: &mut Criterion) {
    let folder = tempfile::tempdir().expect("a folder");
    let queue = open(&folder.path().join("queue"));
    let runtime = runtime();
    let mut group = criterion.benchmark_group("settle");
    group.throughput(Throughput::Elements(GROUP));
    for (domains, name) in [(1, "64 of one queue"), (64, "64 of 64 queues")] {
        let shape = Shape::new(1 << 10, domains);
        let mut next = domains << 40;
        group.bench_function(name, |bench| {
            let make = || {
                let (mut units, numbers) = (Vec::new(), next..next + GROUP);
                next += GROUP;
                runtime.block_on(accept(&queue, &shape, numbers, 64, async |of| units.extend(of)));
                units
            };
            bench.iter_batched(
                make,
                |units| runtime.block_on(settle(&queue, units)),
                BatchSize::PerIteration,
            );
        });
    }
    group.finish();
    queue.close();
}

criterion_group! {
    name = benches;
    config = benches::settings();
    targets = ends
}
criterion_main!(benches);
