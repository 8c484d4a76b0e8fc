//! Delivery: shards own queues and lanes, couriers carry (docs/architecture.md, "Delivery").

pub mod adapt;
pub mod agenda;
pub mod attempt;
pub mod client_tls;
pub mod connection;
pub mod courier;
pub mod detour;
pub mod egress;
pub mod exchange;
pub mod judge;
pub mod known;
pub mod lane;
pub mod limits;
pub mod metrics;
pub mod notify;
pub mod parked;
mod renew;
pub mod resolver;
pub mod route;
pub(crate) mod scram;
pub mod settle;
pub mod shard;
mod slots;
pub mod smart_host;
pub mod trials;
pub mod turn;

use queue::Backoff;

use crate::config::settings::Retry;

/// The queue's schedule, from the settings.
pub fn backoff(retry: &Retry) -> Backoff {
    Backoff {
        first: retry.first,
        factor: retry.factor,
        cap: retry.cap,
        jitter: retry.jitter,
    }
}
