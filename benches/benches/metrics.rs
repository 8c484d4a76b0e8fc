//! Metrics: what is counted for each message, and all of it told to whoever scrapes.

use std::hint::black_box;

use criterion::{Criterion, criterion_group, criterion_main};
use queue::Fate;
use relay::metrics::Registry;
use relay::{delivery, prepare, submission};

fn metrics(criterion: &mut Criterion) {
    let registry = Registry::new();
    let submission = submission::metrics::Metrics::new(&registry).expect("series");
    let delivery = delivery::metrics::Metrics::new(&registry).expect("series");
    prepare::Metrics::new(&registry).expect("series");
    let mut group = criterion.benchmark_group("metrics");
    group.bench_function("a message accepted and delivered", |bench| {
        bench.iter(|| {
            submission.accepted.inc();
            submission.bytes.inc_by(black_box(10_240));
            delivery.transaction.observe(black_box(0.004));
            delivery.ended(black_box(Fate::Delivered));
            delivery.delay.observe(black_box(0.012));
        });
    });
    group.bench_function("a series found by its label", |bench| {
        bench.iter(|| submission.refused.with_label_values(&[black_box("450")]).inc());
    });
    group.bench_function("all of them gathered", |bench| {
        bench.iter(|| black_box(registry.gather()))
    });
    group.finish();
}

criterion_group! {
    name = benches;
    config = benches::settings();
    targets = metrics
}
criterion_main!(benches);
