//! Message data as it comes in, in octets a second: DATA with its dots and line ends, BDAT with its line ends alone.

use std::hint::black_box;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use mail_core::smtp::chunk::Chunks;
use mail_core::smtp::data::Decoder;
use mail_core::smtp::stuff::stuffed;

/// Octets that a session reads at a time.
const READ: usize = 64 << 10;

fn text(bytes: usize, line: &str) -> Vec<u8> {
    let lines = bytes / line.len();
    line.repeat(lines.max(1)).into_bytes()
}

fn data(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("data");
    let line = "A line of a message as it is sent many times a day, 72 octets of it.  \r\n";
    for (name, message) in [
        ("10 KiB", text(10 << 10, line)),
        ("1 MiB", text(1 << 20, line)),
        (
            "1 MiB, base64 lines",
            text(1 << 20, &format!("{}\r\n", "QUJD".repeat(19))),
        ),
        ("1 MiB, every line a dot", text(1 << 20, ".x\r\n")),
    ] {
        let wire = stuffed(&[&message]).concat();
        group.throughput(Throughput::Bytes(message.len() as u64));
        group.bench_function(format!("DATA {name}"), |bench| {
            bench.iter(|| {
                let mut decoder = Decoder::new(0, Some(message.len() as u64));
                for read in black_box(&wire).chunks(READ) {
                    decoder.decode(read);
                }
                decoder.finish()
            });
        });
        group.bench_function(format!("BDAT {name}"), |bench| {
            bench.iter(|| {
                let mut chunks = Chunks::new(0, Some(message.len() as u64));
                chunks.begin(message.len() as u64);
                for read in black_box(&message).chunks(READ) {
                    chunks.take(read);
                }
                chunks.finish()
            });
        });
    }
    group.finish();
}

criterion_group! {
    name = benches;
    config = benches::settings();
    targets = data
}
criterion_main!(benches);
