//! Signing a message of 10 KiB, and of 1 MiB, where hashing begins to tell.

use std::hint::black_box;
use std::sync::Arc;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use dkim_signer::key::generate;
use dkim_signer::{Algorithm, DomainKey, PrivateKey, canon, sign};
use mail_core::Timestamp;

const HEADERS: &[u8] =
    b"Received: from app.example.com by relay.example.com; Tue, 14 Nov 2023 22:13:20 +0000\r\n\
    From: Shop <shop@example.com>\r\nTo: customer@example.net\r\nSubject: Your order of today\r\n\
    Date: Tue, 14 Nov 2023 22:13:20 +0000\r\nMessage-ID: <1@example.com>\r\nMIME-Version: 1.0\r\n\
    Content-Type: text/plain; charset=utf-8\r\nList-Unsubscribe: <https://example.com/u/1>\r\n";

fn body(bytes: usize) -> Vec<u8> {
    let line = b"All work and no play makes Jack a dull boy, as the saying goes since 1659.\r\n";
    line.iter().copied().cycle().take(bytes).collect()
}

fn key(algorithm: Algorithm) -> DomainKey {
    let pem = generate(algorithm).expect("a key");
    DomainKey {
        domain: "example.com".parse().expect("a domain"),
        selector: "s1".parse().expect("a selector"),
        key: Arc::new(PrivateKey::from_pem(pem.as_bytes()).expect("the key")),
    }
}

fn dkim(criterion: &mut Criterion) {
    let small = body(10 * 1024);
    let large = body(1024 * 1024);
    let mut group = criterion.benchmark_group("dkim");
    for algorithm in [Algorithm::RsaSha256, Algorithm::Ed25519Sha256] {
        let keys = [key(algorithm)];
        group.bench_function(format!("sign 10 KiB {algorithm}"), |bench| {
            bench.iter(|| sign(&keys, &[HEADERS], black_box(&small), Timestamp(1_700_000_000_000)));
        });
    }
    group.throughput(Throughput::Bytes(large.len() as u64));
    group.bench_function("body hash 1 MiB", |bench| {
        bench.iter(|| canon::body_hash(black_box(&large)))
    });
    group.finish();
}

criterion_group! {
    name = benches;
    config = benches::settings();
    targets = dkim
}
criterion_main!(benches);
