//! Dot-stuffing of what goes out, in octets a second: slices are made, nothing is copied.

use std::hint::black_box;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use mail_core::smtp::stuff::stuffed;

const HEAD: &[u8] =
    b"Received: from app.example.com ([192.0.2.1])\r\n\tby relay.example.com with ESMTP id 1;\r\n\tnow\r\n";

fn stuff(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("dot-stuffing");
    let line = "A line of a message as it is sent many times a day, 72 octets of it.  \r\n";
    for (name, message) in [
        ("10 KiB", line.repeat((10 << 10) / line.len())),
        ("1 MiB", line.repeat((1 << 20) / line.len())),
        ("1 MiB, every line a dot", ".x\r\n".repeat(1 << 18)),
    ] {
        group.throughput(Throughput::Bytes(message.len() as u64));
        group.bench_function(name, |bench| {
            bench.iter(|| black_box(stuffed(&[HEAD, black_box(message.as_bytes())])).len());
        });
    }
    group.finish();
}

criterion_group! {
    name = benches;
    config = benches::settings();
    targets = stuff
}
criterion_main!(benches);
