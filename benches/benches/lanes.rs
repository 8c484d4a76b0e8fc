//! Lane choice: whose turn it is among a lane's queues, by stream, tenant and queue; and a queue's way in and out.

use std::hint::black_box;

use criterion::{Criterion, criterion_group, criterion_main};
use queue::{QueueId, QueueName, RouteGroup};
use relay::delivery::turn::Turn;

const STREAMS: [(&str, u32); 2] = [("transactional", 10), ("bulk", 1)];

fn name(tenant: u64, stream: &str) -> QueueName {
    QueueName {
        tenant: format!("tenant-{tenant}").into(),
        stream: stream.into(),
        route_group: RouteGroup::default(),
        domain: "example.net".parse().expect("a domain"),
    }
}

fn lanes(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("lanes");
    for (tenants, queues) in [(1, 1), (10, 10), (200, 5)] {
        let mut turn = Turn::default();
        let mut id = 0;
        for (stream, weight) in STREAMS {
            for tenant in 0..tenants {
                for _ in 0..queues {
                    turn.push(QueueId(id), &name(tenant, stream), weight);
                    id += 1;
                }
            }
        }
        group.bench_function(
            format!("a turn: 2 streams, {tenants} tenants, {queues} queues of each"),
            |bench| {
                bench.iter(|| {
                    let front = turn.front();
                    turn.served();
                    front
                });
            },
        );
        let (new, own) = (name(tenants / 2, "bulk"), QueueId(u64::MAX));
        group.bench_function(format!("in and out among {id} queues"), |bench| {
            bench.iter(|| {
                turn.push(own, black_box(&new), 1);
                turn.remove(own, &new);
            });
        });
    }
    group.finish();
}

criterion_group! {
    name = benches;
    config = benches::settings();
    targets = lanes
}
criterion_main!(benches);
