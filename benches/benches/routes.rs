//! Route choice: which rule a recipient's mail goes by, where its units are, and what a DNS answer makes of them.

use std::fmt::Write as _;
use std::hint::black_box;
use std::sync::Arc;

use criterion::{Criterion, criterion_group, criterion_main};
use mail_core::{Domain, Recipient, ReversePath};
use queue::Queue;
use queue::store::MemoryStore;
use relay::config::{self, Settings};
use relay::delivery::lane::Rule;
use relay::delivery::route::{Route, in_order};
use relay::routing::{Routing, Sender};
use relay::world::{MxAnswer, MxHost, Random};

/// With so many routes and destination rules, of which the last ones fit.
fn settings(rules: usize) -> Arc<Settings> {
    let mut text = "hostname = \"relay.test\"\n[store]\npath = \"q\"\n[tenants.t]\nsenders = [\"*\"]\n\
        [[listener]]\nkind = \"trusted\"\naddress = \"127.0.0.1:0\"\nnetworks = [\"127.0.0.1/32\"]\ntenant = \"t\"\n"
        .to_owned();
    for number in 0..rules {
        writeln!(
            text,
            "[[route]]\nto = [\"*.partner-{number}.test\"]\nnext_hop = \"discard\"\nreason = \"partner {number}\"\n\
             [[destination]]\ndomain = \"partner-{number}.test\"\nlimits.connections = 7"
        )
        .expect("a string");
    }
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("postrider.toml");
    std::fs::write(&path, text).expect("a file");
    Arc::new(config::load(&path).unwrap_or_else(|mistakes| panic!("{mistakes}")))
}

fn routes(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("routes");
    let reverse_path = ReversePath::Mailbox("app@from.test".parse().expect("a mailbox"));
    let sender = Sender {
        tenant: "t",
        stream: Some("transactional"),
        reverse_path: &reverse_path,
    };
    for rules in [0, 100] {
        let settings = settings(rules);
        let queue = Queue::in_memory(MemoryStore::new()).expect("a model");
        let routing = Routing::open(settings.clone(), &queue).expect("a model");
        let domain: Domain = format!("mail.partner-{}.test", rules.max(1) - 1)
            .parse()
            .expect("a domain");
        let to = |number: usize| Recipient::new(format!("to-{number}@{domain}").parse().expect("a mailbox"));
        for count in [1, 100] {
            let recipients: Vec<_> = (0..count).map(to).collect();
            group.bench_function(format!("place {count} recipients, {rules} rules"), |bench| {
                bench.iter(|| routing.place(sender, black_box(&recipients)));
            });
        }
        let one = to(0);
        group.bench_function(format!("refusal, {rules} rules"), |bench| {
            bench.iter(|| routing.refusal(sender, black_box(&one.mailbox)));
        });
        group.bench_function(format!("destination rule, of {rules}"), |bench| {
            bench.iter(|| Rule::of(black_box(&domain), None, &settings.delivery));
        });
    }
    let domain: Domain = "example.net".parse().expect("a domain");
    let hosts: Vec<_> = (1..=5)
        .map(|number| MxHost {
            preference: 10 * (number / 2),
            host: format!("mx{number}.example.net").parse().expect("a domain"),
        })
        .collect();
    let names = ["relay.test".parse().expect("a domain")];
    group.bench_function("site of five MX hosts", |bench| {
        bench.iter(|| Route::from_answer(&domain, black_box(MxAnswer::Hosts(hosts.clone())), &names).site());
    });
    let random = Random::seeded(7);
    group.bench_function("order of five MX hosts", |bench| {
        bench.iter(|| in_order(black_box(&hosts), &random));
    });
    group.finish();
}

criterion_group! {
    name = benches;
    config = benches::settings();
    targets = routes
}
criterion_main!(benches);
