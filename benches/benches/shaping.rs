//! Which rule is a site's, among 1,000 providers and 1,000 destinations; and what a reply means.
//!
//! A rule is looked for when a queue's MX hosts are, every five minutes; a lane that is there knows its provider.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::hint::black_box;
use std::sync::Arc;

use criterion::{Criterion, criterion_group, criterion_main};
use mail_core::Domain;
use relay::config::Settings;
use relay::delivery::lane::{LaneKey, Rule};
use relay::delivery::route::Route;
use relay::shaping::Shaping;
use relay::world::MxHost;

/// A configuration with so many rules of each kind.
fn settings(rules: usize) -> Settings {
    let mut text = "hostname = \"relay.test\"\n[store]\npath = \"q\"\n[tenants.t]\nsenders = [\"*\"]\n[[listener]]\nkind = \"trusted\"\n\
        address = \"127.0.0.1:0\"\nnetworks = [\"127.0.0.1/32\"]\ntenant = \"t\"\n"
        .to_owned();
    for number in 0..rules {
        let _ = write!(
            text,
            "[[provider]]\nname = \"p{number}\"\nmx = [\"*.p{number}.example\"]\n[provider.limits]\nconnections = 3\n\
             [[destination]]\ndomain = \"*.d{number}.example\"\n[destination.limits]\nmessages_per_connection = 3\n\
             [[bounce_rule]]\nclass = \"policy\"\ntext = [\"reason number {number} applies\"]\n"
        );
    }
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("postrider.toml");
    std::fs::write(&path, text).expect("a file");
    relay::config::load(&path).expect("a configuration")
}

fn hosts(names: &[&str]) -> Route {
    let host = |name: &&str| MxHost {
        preference: 10,
        host: name.parse().expect("a host"),
    };
    Route::Hosts(names.iter().map(host).collect())
}

fn shaping(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("shaping");
    let settings = settings(1_000);
    let delivery = &settings.delivery;
    let google = [
        "aspmx.l.google.com",
        "alt1.aspmx.l.google.com",
        "alt2.aspmx.l.google.com",
        "alt3.aspmx.l.google.com",
        "alt4.aspmx.l.google.com",
    ];
    for (name, route) in [
        ("5 hosts of a provider", hosts(&google)),
        ("1 host of a provider", hosts(&["mx.p500.example"])),
        (
            "2 hosts of nobody",
            hosts(&["mx1.mail.example.org", "mx2.mail.example.org"]),
        ),
    ] {
        let domain: Domain = "mail.d500.example".parse().expect("a domain");
        group.bench_function(format!("1,000 rules: {name}"), |bench| {
            bench.iter(|| {
                let provider = black_box(&route).provider(delivery);
                Rule::of(black_box(&domain), provider.map(|found| &**found), delivery)
            });
        });
    }
    let site: Arc<str> = hosts(&google).site().into();
    let key = |number: usize| LaneKey {
        site: format!("mx{number}.example.org").into(),
        rule: None,
        source: None,
    };
    let provider = hosts(&google).provider(delivery).cloned();
    let mut lanes: HashMap<LaneKey, _> = (0..10_000).map(|number| (key(number), None)).collect();
    let key = LaneKey {
        site,
        rule: None,
        source: None,
    };
    lanes.insert(key.clone(), provider);
    group.bench_function("the provider of a lane that is there, among 10,000", |bench| {
        bench.iter(|| lanes.get(black_box(&key)).cloned());
    });
    let shipped = Shaping::shipped();
    for (name, shaping, said, host) in [
        (
            "a code that says all",
            shipped,
            "550 5.1.1 no such user",
            "mx.example.org",
        ),
        (
            "a provider's words",
            shipped,
            "421 4.7.28 Gmail has detected an unusual rate of mail originating from your IP address",
            "aspmx.l.google.com",
        ),
        (
            "words that nobody knows",
            shipped,
            "550 5.7.1 The quick brown fox jumps over the lazy dog, and so on, and on and on",
            "mx.example.org",
        ),
        (
            "words that nobody knows, 1,000 rules of one's own",
            &delivery.shaping,
            "550 5.7.1 The quick brown fox jumps over the lazy dog, and so on, and on and on",
            "mx.example.org",
        ),
    ] {
        group.bench_function(format!("class: {name}"), |bench| {
            bench.iter(|| shaping.class_id(black_box(said), Some(black_box(host))));
        });
    }
    group.finish();
}

criterion_group! {
    name = benches;
    config = benches::settings();
    targets = shaping
}
criterion_main!(benches);
