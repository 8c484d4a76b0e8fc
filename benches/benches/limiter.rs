//! Limits: of a lane, asked before each message; and of clients, asked for each message and recipient.

use std::hint::black_box;
use std::net::Ipv4Addr;
use std::time::Duration;

use criterion::{Criterion, criterion_group, criterion_main};
use mail_core::Timestamp;
use relay::delivery::limits::limiter::Limiter;
use relay::submission::rates::{Limit, Rates, Who};
use tokio::time::Instant;

const START: Timestamp = Timestamp(1_700_000_000_000);

fn limiter(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("limiter");
    for (name, rate) in [("unlimited", None), ("1,000 a second", Some(1_000.0))] {
        let mut limiter = Limiter::new(rate, START);
        let mut now = START;
        group.bench_function(format!("lane, {name}: granted"), |bench| {
            bench.iter(|| {
                now = now + Duration::from_millis(1);
                limiter.reserve(black_box(now))
            });
        });
    }
    let mut limiter = Limiter::new(Some(0.001), START);
    group.bench_function("lane, held back", |bench| {
        bench.iter(|| limiter.reserve(black_box(START)));
    });
    let rates = Rates::default();
    let rate = "1000/second burst 1000".parse().expect("a rate");
    let (mut now, mut number) = (Instant::now(), 0_u32);
    group.bench_function(
        "client: tenant, credential and one of 10,000 addresses",
        |bench| {
            let (tenant, credential) = (Who::Name("tenant".into()), Who::Name("credential".into()));
            bench.iter(|| {
                now += Duration::from_millis(2);
                number = (number + 1) % 10_000;
                let wanted = [
                    (Limit::TenantMessages, Some(tenant.clone()), Some(rate)),
                    (Limit::CredentialMessages, Some(credential.clone()), Some(rate)),
                    (
                        Limit::AddressMessages,
                        Some(Who::address(Ipv4Addr::from(number).into())),
                        Some(rate),
                    ),
                ];
                rates.take(black_box(&wanted), now)
            });
        },
    );
    group.finish();
}

criterion_group! {
    name = benches;
    config = benches::settings();
    targets = limiter
}
criterion_main!(benches);
