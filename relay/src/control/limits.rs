//! What is used of limits, as operators see it.

use std::collections::BTreeMap;

use admin_api::limits::{LimitList, LimitUse, Use, Warming};
use mail_core::{Domain, Timestamp};
use queue::{CountsRecord, Queue, ReadError, Scope};

use crate::config::limits::ScopeLimits;
use crate::config::settings::DeliverySettings;
use crate::delivery::limits::budget::{Budget, Counted, Used};
use crate::delivery::limits::ledger::Ledger;

/// Limits shown.
const MOST: usize = 10_000;

/// Counts read from disk at once.
const PAGE: usize = 1_000;

/// Of what is in use, and of what was used before and stands on disk.
pub(super) fn list(
    ledger: &Ledger,
    queue: &Queue,
    delivery: Option<&DeliverySettings>,
    now: Timestamp,
) -> Result<LimitList, ReadError> {
    let mut all: BTreeMap<_, _> = ledger.used(now).into_iter().collect();
    if let Some(delivery) = delivery {
        let mut after = None;
        loop {
            let page = queue.counts(after.as_ref(), PAGE)?;
            after = page.last().map(|(scope, _)| scope.clone());
            let is_last = page.len() < PAGE;
            for (scope, counts) in page {
                if !all.contains_key(&scope)
                    && let Some(used) = used_before(&scope, counts, delivery, now)
                {
                    all.insert(scope, used);
                }
            }
            // One more than are shown tells that there are more.
            while all.len() > MOST + 1 {
                all.pop_last();
            }
            if is_last {
                break;
            }
        }
    }
    let more = all.len() > MOST;
    let limits = all.into_iter().take(MOST);
    let sources = delivery.map_or(&[][..], |delivery| delivery.egress.sources.as_slice());
    let warming = sources.iter().filter_map(|source| {
        let warm_up = source.warm_up.as_ref()?;
        let (day, days) = warm_up.day(now)?;
        Some(Warming {
            source: source.name.to_string(),
            day,
            days,
            messages_per_day: warm_up.volume(now)?,
        })
    });
    Ok(LimitList {
        limits: limits.map(|(scope, used)| limit(scope, &used)).collect(),
        more,
        warming: warming.collect(),
    })
}

/// What would be counted on from, if mail of a scope that is limited still came up now; `None` where that is nothing.
fn used_before(
    scope: &Scope,
    counts: Option<CountsRecord>,
    delivery: &DeliverySettings,
    now: Timestamp,
) -> Option<Used> {
    let hosts = scope.site.as_deref().unwrap_or_default().split(',');
    let hosts: Vec<Domain> = hosts.filter_map(|host| host.parse().ok()).collect();
    let mail = delivery.scopes.mail(scope.clone(), &hosts);
    let of_tenant = scope.tenant.is_some();
    let mut limits = delivery.scopes.of(&mail, of_tenant, now).into_iter();
    let (_, limits) = limits.find(|(limited, _)| limited == scope)?;
    let counted = counts.map_or(Counted::Unknown, Counted::Known);
    let mut budget = Budget::new(limits, of_tenant, counted, now);
    let used = budget.used(now);
    let any = used.windows.iter().flatten().any(|count| *count > 0);
    any.then_some(used)
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

#[cfg(test)]
mod tests {
    use crate::delivery::limits::budget::Asked;
    use std::time::Duration;

    use admin_api::Control as _;

    use super::super::tests::control;
    use super::*;
    use crate::delivery::limits::Grant;
    use crate::delivery::shard::test_settings;

    #[tokio::test]
    async fn what_was_used_before_a_restart_is_told_and_how_far_a_source_is() {
        // 14 November 2023 is the third day, and the first of the other.
        let settings = test_settings(
            "[[source]]\nname = \"new\"\naddresses = [\"127.0.0.1\"]\n\
             [source.warm_up]\nstart = \"2023-11-12\"\nfirst = 50\nfactor = 2.0\ndays = 20\n\
             [[source]]\nname = \"later\"\naddresses = [\"127.0.0.2\"]\n\
             [source.warm_up]\nstart = \"2023-11-20\"\nfirst = 50\ndays = 9\n\
             [[source]]\nname = \"warm\"\naddresses = [\"127.0.0.3\"]\n\
             [source.warm_up]\nstart = \"2023-10-01\"\nfirst = 50\ndays = 9\n\
             [[limit]]\nsite = \"*.a.test\"\nmessages_per_hour = 7\n",
        );
        let (queue, control) = control();
        let of = settings.clone();
        let control = control.with_settings(move || of.clone());
        let now = control.clock.now();
        let to_google = Scope {
            provider: Some("google".into()),
            source: Some("new".into()),
            ..Scope::default()
        };
        let to_site = Scope {
            site: Some("mx1.a.test,mx2.a.test".into()),
            ..Scope::default()
        };
        let limited = [
            (&to_google, "messages_per_day", 200),
            (&to_site, "messages_per_hour", 7),
        ];
        for (scope, key, most) in limited {
            let limits = ScopeLimits {
                messages_per_hour: (key == "messages_per_hour").then_some(most),
                messages_per_day: (key == "messages_per_day").then_some(most),
                ..ScopeLimits::default()
            };
            // As the life before did.
            let ledger = Ledger::default();
            let streams = &settings.delivery.streams;
            let budget = ledger.budget(scope, (&limits, streams), &queue, now);
            let mut sent = 0;
            while sent < 3 {
                let asked = Asked {
                    stream: "transactional",
                    bytes: 1,
                };
                match budget.lock().message(0, &asked, now) {
                    Grant::Granted => sent += 1,
                    Grant::NotBefore { .. } | Grant::WhenFreed { .. } => {}
                }
                ledger.hear(scope, &mut budget.lock());
                ledger.kept(&ledger.wanted(now), now);
            }
            ledger.settle(&queue, now).await.unwrap();
        }
        // What is limited no longer counts nothing.
        let other = Scope {
            tenant: Some("gone".into()),
            ..to_site.clone()
        };
        let counts = queue.counts_of(&to_site).unwrap();
        queue.keep_counts(vec![(other, counts)]).await.unwrap();

        let list = control.limits().await.unwrap();
        let told: Vec<_> = list
            .limits
            .iter()
            .map(|limit| (limit.source.as_deref(), limit.site.as_deref(), limit.uses.clone()))
            .collect();
        let uses = |limit: &str, allowed, used| {
            vec![Use {
                limit: limit.into(),
                allowed,
                used: Some(used),
            }]
        };
        let site = to_site.site.as_deref();
        let expected = [
            (Some("new"), None, uses("messages_per_day", 200.0, 3)),
            (None, site, uses("messages_per_hour", 7.0, 3)),
        ];
        assert_eq!(told, expected);
        let warming = list.warming.iter();
        let warming: Vec<_> = warming
            .map(|one| (one.source.as_str(), one.day, one.days, one.messages_per_day))
            .collect();
        assert_eq!(warming, [("new", 3, 20, 200), ("later", 0, 9, 0)]);
        // A day later nothing of it counts.
        let later = now + Duration::from_secs(2 * 86_400);
        let list = super::list(&Ledger::default(), &queue, Some(&settings.delivery), later);
        assert_eq!(list.unwrap().limits, []);
    }
}
