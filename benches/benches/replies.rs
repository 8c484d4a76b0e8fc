//! A next hop's replies, as its writes bring them.

use std::hint::black_box;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use mail_core::smtp::reply_reader::ReplyReader;

const ALL: [(&str, &[u8], u64); 3] = [
    ("of a message, pipelined", b"250 2.1.0 ok\r\n250 2.1.5 ok\r\n354 go ahead\r\n", 3),
    (
        "to EHLO",
        b"250-mx1.example.net at your service, [192.0.2.1]\r\n250-SIZE 157286400\r\n250-8BITMIME\r\n250-STARTTLS\r\n\
          250-ENHANCEDSTATUSCODES\r\n250-PIPELINING\r\n250-CHUNKING\r\n250 SMTPUTF8\r\n",
        1,
    ),
    (
        "a refusal of several lines",
        b"550-5.7.26 This mail has been blocked because the sender is unauthenticated.\r\n550-5.7.26 All senders have to\r\n\
          550-5.7.26 authenticate with either SPF or DKIM.\r\n550 5.7.26 see https://support.example.net/mail/answer/1\r\n",
        1,
    ),
];

fn replies(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("replies");
    for (name, wire, count) in ALL {
        group.throughput(Throughput::Elements(count));
        group.bench_function(name, |bench| {
            let mut reader = ReplyReader::default();
            bench.iter(|| {
                let mut rest = black_box(wire);
                while !rest.is_empty() {
                    let (taken, reply) = reader.read(rest);
                    rest = &rest[taken..];
                    drop(black_box(reply));
                }
            });
        });
    }
    group.finish();
}

criterion_group! {
    name = benches;
    config = benches::settings();
    targets = replies
}
criterion_main!(benches);
