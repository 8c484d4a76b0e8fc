//! Addresses: of the envelope, and of a From field.

use std::hint::black_box;

use criterion::{Criterion, criterion_group, criterion_main};
use mail_core::header::addresses;
use mail_core::{Domain, Mailbox};

fn parsing(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("addresses");
    for text in [
        "to@example.net",
        "bounces+1234567-some.customer=example.net@mail.example.com",
        "\"odd \\\" one\"@example.net",
        "jürgen@münchen.example",
    ] {
        group.bench_function(format!("mailbox {text}"), |bench| {
            bench.iter(|| black_box(text).parse::<Mailbox>());
        });
    }
    group.bench_function("domain Customers.Example.NET.", |bench| {
        bench.iter(|| black_box("Customers.Example.NET.").parse::<Domain>());
    });
    group.bench_function("the From field \"Shop, Orders\" <shop@example.com>", |bench| {
        bench.iter(|| addresses(black_box(b" \"Shop, Orders\" <shop@example.com>\r\n")));
    });
    group.finish();
}

criterion_group! {
    name = benches;
    config = benches::settings();
    targets = parsing
}
criterion_main!(benches);
