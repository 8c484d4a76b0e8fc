//! What is used of limits, as operators see it.

use admin_api::limits::{LimitList, LimitUse, Use};
use mail_core::Timestamp;
use queue::Scope;

use crate::config::limits::ScopeLimits;
use crate::delivery::limits::budget::Used;
use crate::delivery::limits::ledger::Ledger;

/// Limits shown.
const MOST: usize = 10_000;

pub(super) fn list(ledger: &Ledger, now: Timestamp) -> LimitList {
    let mut limits = ledger.used(now);
    let more = limits.len() > MOST;
    limits.truncate(MOST);
    let limits = limits
        .into_iter()
        .map(|(scope, used)| limit(scope, &used))
        .collect();
    LimitList { limits, more }
}

fn limit(scope: Scope, used: &Used) -> LimitUse {
    let name = |part: Option<std::sync::Arc<str>>| part.map(|name| name.to_string());
    LimitUse {
        uses: uses(&used.limits, used),
        site: name(scope.site),
        provider: name(scope.provider),
        tenant: name(scope.tenant),
        source: name(scope.source),
    }
}

fn uses(limits: &ScopeLimits, used: &Used) -> Vec<Use> {
    let [minute, hour, day] = limits.windows();
    let [in_minute, in_hour, in_day] = used.windows;
    let number = |allowed: Option<u64>| allowed.map(|allowed| allowed as f64);
    let all = [
        ("connections", number(limits.connections), Some(used.connections)),
        ("connections_per_second", limits.connections_per_second, None),
        ("messages_per_second", limits.messages_per_second, None),
        ("messages_per_minute", number(minute), in_minute),
        ("messages_per_hour", number(hour), in_hour),
        ("messages_per_day", number(day), in_day),
        (
            "bytes_in_flight",
            number(limits.bytes_in_flight),
            Some(used.bytes),
        ),
    ];
    let set = all.into_iter().filter_map(|(limit, allowed, used)| {
        Some(Use {
            limit: limit.into(),
            allowed: allowed?,
            used,
        })
    });
    set.collect()
}
