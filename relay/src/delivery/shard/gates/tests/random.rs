//! Random limits and mail: none is ever exceeded.

use proptest::prelude::*;

use super::*;

/// A rule, and what has to hold of what was sent.
#[derive(Clone, Debug, PartialEq)]
struct Rule {
    axes: &'static str,
    key: &'static str,
    value: u64,
}

fn rule() -> impl Strategy<Value = Rule> {
    let axes = prop_oneof![
        Just("site = \"*\""),
        Just("provider = \"google\""),
        Just("tenant = \"*\""),
        Just("tenant = \"t\""),
        Just("tenant = \"*\"\nprovider = \"google\""),
        Just("site = \"*\"\ntenant = \"u\""),
        Just("source = \"*\""),
        Just(OF_A_SOURCE),
    ];
    let key = prop_oneof![
        Just("connections"),
        Just("connections_per_second"),
        Just("messages_per_second"),
        Just("messages_per_minute"),
        Just("messages_per_hour"),
        Just("messages_per_day"),
        Just("bytes_in_flight"),
    ];
    let rule = (axes, key, 1u64..40).prop_map(|(axes, key, value)| Rule { axes, key, value });
    rule.prop_filter("connections serve all tenants", |rule| {
        rule.key != "connections_per_second" || !rule.axes.contains("tenant")
    })
}

const OF_A_SOURCE: &str = "source = \"s1\"\nprovider = \"google\"";

/// Octets of each message; what may be in flight is limited by the KiB.
const SIZE: usize = 400;

/// Groups of what was sent that share one budget of the rule.
fn groups<'a>(rule: &Rule, sent: &'a [Sent]) -> Vec<Vec<&'a Sent>> {
    let mut groups: std::collections::BTreeMap<(String, String), Vec<&Sent>> = Default::default();
    for sent in sent {
        let is_google = sent.domain.starts_with('g');
        let (site, tenant) = (sent.domain.clone(), sent.tenant.clone());
        let source = sent.source.as_deref().unwrap_or_default().to_owned();
        let group = match rule.axes {
            "site = \"*\"" => Some((site, String::new())),
            "provider = \"google\"" => is_google.then(Default::default),
            "tenant = \"*\"" => Some((String::new(), tenant)),
            "tenant = \"t\"" => (tenant == "t").then(Default::default),
            "tenant = \"*\"\nprovider = \"google\"" => is_google.then_some((String::new(), tenant)),
            "source = \"*\"" => Some((source, String::new())),
            OF_A_SOURCE => (is_google && source != "s2").then(Default::default),
            _ => (tenant == "u").then_some((site, String::new())),
        };
        if let Some(group) = group {
            groups.entry(group).or_default().push(sent);
        }
    }
    groups.into_values().collect()
}

/// Of two about the same one stays, and the one that names more in place of the other.
fn tidy(mut rules: Vec<Rule>) -> Vec<Rule> {
    rules.sort_by_key(|rule| rule.axes);
    rules.dedup_by_key(|rule| rule.axes);
    if rules.iter().any(|rule| rule.axes == "tenant = \"t\"") {
        rules.retain(|rule| rule.axes != "tenant = \"*\"");
    }
    rules
}

fn table(rule: &Rule) -> String {
    let value = match rule.key {
        "bytes_in_flight" => format!("\"{} KiB\"", rule.value),
        _ => rule.value.to_string(),
    };
    format!("[[limit]]\n{}\n{} = {value}\n", rule.axes, rule.key)
}

/// The most that a group has had at once, or within the rule's span, of what began in a part of the time; and what it may.
fn most(rule: &Rule, group: &[&Sent], holds: impl Fn(Timestamp) -> bool) -> (usize, usize) {
    let value = rule.value as usize;
    let begun = || group.iter().filter(|sent| holds(sent.at));
    let within = |span: Duration, fits: fn(&Sent) -> bool| {
        let fitting: Vec<_> = begun().filter(|sent| fits(sent)).collect();
        let from = |first: usize| {
            let within = |sent: &&&&Sent| sent.at.since(fitting[first].at) < span;
            fitting[first..].iter().take_while(within).count()
        };
        (0..fitting.len()).map(from).max().unwrap_or(0)
    };
    // What was on the wire before counts beside it.
    let at_once = || {
        let at = |at| {
            group
                .iter()
                .filter(|sent| sent.at <= at && at < sent.until)
                .count()
        };
        begun().map(|sent| at(sent.at)).max().unwrap_or(0)
    };
    match rule.key {
        "connections" => (at_once(), value),
        "connections_per_second" => (within(SECOND, |sent| sent.opened), value + 1),
        "bytes_in_flight" => (at_once() * SIZE, value * 1_024),
        "messages_per_second" => (within(SECOND, every), value + 1),
        "messages_per_minute" => (within(60 * SECOND, every), value),
        // The whole run takes less than an hour.
        _ => (within(3_600 * SECOND, every), value),
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// Promise 5: whatever the rules and however their mail is interleaved, with a restart on the way and a reload that brings others, no
    /// limit is exceeded, in any span; what they leave room for is sent.
    #[test]
    fn no_limit_is_exceeded(
        rules in proptest::collection::vec(rule(), 1..4),
        others in proptest::option::of(proptest::collection::vec(rule(), 1..3)),
        waves in proptest::collection::vec((0usize..6, any::<bool>(), 1usize..20), 1..12),
        shards in 1usize..4,
        from_pool in any::<bool>(),
        (restart, reload) in (0usize..24, 0usize..16),
        reserved in prop_oneof![Just(0.0), Just(0.3)],
        transactions in 1u32..4,
        seed in 0u64..1_000,
    ) {
        let rules = tidy(rules);
        // Some stay, some go, some come, some change.
        let later = others.map_or_else(|| rules.clone(), |others| tidy(rules.iter().take(1).cloned().chain(others).collect()));
        let configuration = |rules: &[Rule]| {
            let more: String = rules.iter().map(table).collect();
            let (sources, more) = match from_pool {
                true => (format!("{TWO_SOURCES}shipped_limits = false\n"), more),
                false => (UNSHIPPED.to_owned(), more.replace("\"s1\"", "\"default\"")),
            };
            let stream = format!("[[stream]]\nname = \"transactional\"\nreserved = {reserved}\n");
            format!("{sources}[tenants.u]\nsenders = [\"*\"]\n{stream}{more}")
        };
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let (sent, all, reloaded) = runtime.block_on(async {
            let mut now = configuration(&rules);
            let mut fleet = Fleet::seeded(shards, &now, seed);
            fleet.transactions = transactions;
            for number in 0..3 {
                let host = format!("mx{number}.aspmx.l.google.com");
                fleet.hosts.insert(format!("g{number}.test"), vec![host]);
            }
            let (mut all, mut before, mut reloaded) = (0, Vec::new(), None);
            for (wave, (number, is_t, count)) in waves.into_iter().enumerate() {
                let domain = format!("{}{}.test", if number < 3 { "g" } else { "d" }, number % 3);
                let stream = if count % 3 == 0 { "transactional" } else { "bulk" };
                fleet.accept(count, if is_t { "t" } else { "u" }, stream, &domain, SIZE).await;
                fleet.run(Duration::from_millis(700)).await;
                all += count;
                if wave == reload {
                    now = configuration(&later);
                    fleet.renew_limits(&now);
                    reloaded = Some(fleet.now);
                    fleet.run(Duration::from_millis(1)).await;
                }
                if wave == restart {
                    before = std::mem::take(&mut fleet.sent);
                    before.iter_mut().for_each(|sent| sent.until = sent.until.min(fleet.now));
                    fleet = fleet.restarted(&now);
                }
            }
            fleet.run(Duration::from_secs(400)).await;
            before.append(&mut fleet.sent);
            (before, all, reloaded)
        });
        let is_window = |rule: &Rule| ["minute", "hour", "day"].iter().any(|span| rule.key.ends_with(span));
        let at_last = if reloaded.is_some() { &later } else { &rules };
        if !at_last.iter().any(is_window) {
            // What was on the wire at the restart goes twice.
            prop_assert!(sent.len() >= all, "none is forgotten: {} of {all} by {at_last:?}", sent.len());
        }
        let reloaded = reloaded.unwrap_or(Timestamp::MAX);
        for rule in rules.iter().chain(&later) {
            let (early, late) = (rules.contains(rule), later.contains(rule));
            let holds = |at: Timestamp| if at < reloaded { early } else { late };
            for group in groups(rule, &sent) {
                let (most, bound) = most(rule, &group, holds);
                prop_assert!(most <= bound, "{most} of {rule:?} with {shards} shards, {early} {late}");
            }
        }
    }
}
