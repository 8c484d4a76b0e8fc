//! The journal's events, and the other record that each message has: written, and read again.

use std::hint::black_box;

use benches::Shape;
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use mail_core::Timestamp;
use queue::records::{EnvelopeRecord, UnitRecord, decode, encode};
use queue::{Event, EventKind, Hop, QueueId, QueueName, RouteGroup};

fn delivered() -> Event {
    let message = Shape::new(0, 1).message(7);
    Event {
        at: Timestamp(1_790_000_001_000),
        kind: EventKind::Delivered,
        id: Some(message.id),
        queue: Some(QueueName {
            tenant: "load".into(),
            stream: "transactional".into(),
            route_group: RouteGroup(0),
            domain: "example.net".parse().expect("a domain"),
        }),
        unit: 0,
        recipients: vec!["some.customer@example.net".into()],
        attempt: 1,
        hop: Some(Hop {
            site: "mx1.example.net,mx2.example.net".into(),
            host: "mx1.example.net".into(),
            address: "192.0.2.1:25".into(),
            source: String::new(),
            tls: "TLSv1_3 TLS13_AES_256_GCM_SHA384".into(),
            millis: 120,
        }),
        reply: "250 2.0.0 OK 1732500000 d9443c01a7336-2129dfaa8f5si123456789 - gsmtp".into(),
        tag: None,
        metadata: Vec::new(),
    }
}

fn envelope() -> EnvelopeRecord {
    let message = Shape::new(0, 1).message(7);
    EnvelopeRecord {
        received_at: message.received_at,
        expires_at: message.expires_at,
        tenant: message.tenant.clone(),
        stream: message.stream.clone(),
        reverse_path: message.reverse_path.clone(),
        body_type: message.body_type,
        smtputf8: false,
        dsn: message.dsn.clone(),
        transfer: message.transfer,
        tag: None,
        metadata: Vec::new(),
        prefix: message.prefix.clone(),
        body_bytes: 10_240,
        chunks: vec![7],
        origin: message.origin.clone(),
        cause: None,
        units: vec![UnitRecord {
            queue: QueueId(1),
            due: message.received_at,
            recipients: message.units[0].recipients.clone(),
        }],
    }
}

fn events(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("events");
    let (event, envelope) = (delivered(), envelope());
    let mut buffer = Vec::new();
    let octets = encode(&event, &mut buffer).to_vec();
    group.throughput(Throughput::Bytes(octets.len() as u64));
    group.bench_function("encode delivered", |bench| {
        bench.iter(|| encode(black_box(&event), &mut buffer).len());
    });
    group.bench_function("decode delivered", |bench| {
        bench.iter(|| decode::<Event>(black_box(&octets)))
    });
    let octets = encode(&envelope, &mut buffer).to_vec();
    group.throughput(Throughput::Bytes(octets.len() as u64));
    group.bench_function("encode an envelope", |bench| {
        bench.iter(|| encode(black_box(&envelope), &mut buffer).len());
    });
    group.bench_function("decode an envelope", |bench| {
        bench.iter(|| decode::<EnvelopeRecord>(black_box(&octets)));
    });
    group.finish();
}

criterion_group! {
    name = benches;
    config = benches::settings();
    targets = events
}
criterion_main!(benches);
