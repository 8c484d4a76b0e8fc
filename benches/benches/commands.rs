//! A client's commands: the line found, the command parsed.

use std::hint::black_box;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use mail_core::smtp::command::parse;
use mail_core::smtp::inbox::{Inbox, Line};

const LINES: [&[u8]; 5] = [
    b"EHLO app.example.com",
    b"MAIL FROM:<bounces+1234567@mail.example.com> SIZE=10240 BODY=8BITMIME",
    b"RCPT TO:<some.customer@customer.example.net>",
    b"RCPT TO:<other@customer.example.net> NOTIFY=SUCCESS,FAILURE ORCPT=rfc822;other@customer.example.net",
    b"DATA",
];

fn commands(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("commands");
    for line in LINES {
        let name = String::from_utf8_lossy(line);
        group.bench_function(name.split_inclusive(' ').take(2).collect::<String>(), |bench| {
            bench.iter(|| parse(black_box(line)));
        });
    }
    // What a client that pipelines sends in one write, through the inbox as a session takes it.
    let wire: Vec<u8> = LINES
        .iter()
        .flat_map(|line| [line, &b"\r\n"[..]].concat())
        .collect();
    group.throughput(Throughput::Elements(LINES.len() as u64));
    group.bench_function("five lines as one read brings them", |bench| {
        let mut inbox = Inbox::default();
        bench.iter(|| {
            inbox.buffer().extend_from_slice(black_box(&wire));
            while let Some(Line::Whole(line)) = inbox.line() {
                drop(black_box(parse(line)));
            }
        });
    });
    group.finish();
}

criterion_group! {
    name = benches;
    config = benches::settings();
    targets = commands
}
criterion_main!(benches);
