//! Smart hosts: which of a group is tried first, and on what terms.

use crate::config::limits::SiteLimits;
use crate::config::smart_hosts::{RelayHost, SmartHost};
use crate::report::Cause;
use crate::world::Random;

use super::connection::open::{HostPlace, NextHost, Terms};
use super::lane::Rule;
use super::settle::{Outcome, Verdict};

/// The order in which a group's hosts are tried: by priority, and among equals by chance, each as often first as its share of
/// their weights (RFC 2782). The others follow in the same way: whoever fails is passed over.
pub fn in_order(group: &SmartHost, random: &Random) -> Vec<NextHost> {
    let mut left: Vec<&RelayHost> = group.hosts.iter().collect();
    left.sort_by_key(|host| host.priority);
    let mut order = Vec::with_capacity(left.len());
    while let Some(first) = left.first() {
        let equals = left.iter().take_while(|host| host.priority == first.priority);
        // A weight of 0 is as good as never, but not never.
        let shares: Vec<u64> = equals.map(|host| u64::from(host.weight) * 1_000 + 1).collect();
        let all: u64 = shares.iter().sum();
        let mut drawn = (random.fraction() * all as f64) as u64;
        let mut chosen = 0;
        for (number, share) in shares.iter().enumerate() {
            chosen = number;
            if drawn < *share {
                break;
            }
            drawn -= share;
        }
        order.push(next_host(left.remove(chosen)));
    }
    order
}

fn next_host(host: &RelayHost) -> NextHost {
    NextHost {
        place: match &host.place {
            Ok(name) => HostPlace::Name(name.clone()),
            Err(address) => HostPlace::Address(*address),
        },
        port: host.port,
        tls_name: host.tls_name.clone(),
    }
}

/// What holds for all hosts of the group.
pub fn terms(group: &SmartHost) -> Terms {
    Terms {
        tls: group.tls,
        implicit_tls: group.implicit_tls,
        family: group.family,
        chosen: true,
        login: group.login.clone(),
        source: None,
    }
}

/// The group's limits, those of one lane: no destination's rule has a say.
pub fn rule(group: &SmartHost) -> Rule {
    Rule {
        name: None,
        tls: group.tls,
        family: group.family,
        limits: group.limits.clone(),
        of_site: SiteLimits::default(),
        to_provider: None,
    }
}

/// Where the host wants us to log in, or does not let us send, nothing is said of the message: what it refused for that is
/// put off. Gives the cause for which the lane is to rest.
pub fn unwelcome(outcomes: &mut [Outcome]) -> Option<String> {
    let mut cause = None;
    for outcome in outcomes {
        // RFC 4954 §6.
        if let Verdict::Failed(Cause::Refused(reply)) = &outcome.verdict
            && matches!(reply.code, 530 | 534 | 535 | 538)
        {
            let host = outcome.host.as_deref().unwrap_or("the smart host");
            cause = Some(format!("4.7.0 {host} takes no mail from us: {reply}"));
            outcome.verdict = Verdict::Later;
        }
    }
    cause
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::config::settings::{AddressFamily, DestinationLimits, TlsLevel};

    fn group(hosts: &[(u16, u16)]) -> SmartHost {
        let host = |(number, &(priority, weight)): (u16, &(u16, u16))| RelayHost {
            place: Ok(format!("h{number}.test").parse().unwrap()),
            port: number,
            priority,
            weight,
            tls_name: None,
        };
        SmartHost {
            name: "g".into(),
            hosts: (0..).zip(hosts).map(host).collect(),
            tls: TlsLevel::Off,
            implicit_tls: false,
            login: None,
            family: AddressFamily::Any,
            limits: DestinationLimits {
                connections: 1,
                messages_per_second: None,
                messages_per_connection: 1,
                recipients_per_transaction: 1,
            },
        }
    }

    #[test]
    fn priorities_hold_and_weights_are_shares() {
        let group = group(&[(20, 1), (10, 3), (10, 1), (10, 0)]);
        let random = Random::seeded(3);
        let mut firsts = BTreeMap::<u16, u32>::new();
        for _ in 0..4_000 {
            let order: Vec<_> = in_order(&group, &random).iter().map(|host| host.port).collect();
            assert_eq!(order.len(), 4);
            assert_eq!(order[3], 0, "{order:?}");
            *firsts.entry(order[0]).or_default() += 1;
        }
        assert!((2_850..3_150).contains(&firsts[&1]), "{firsts:?}");
        assert!((850..1_150).contains(&firsts[&2]), "{firsts:?}");
        assert!(firsts.get(&3).copied().unwrap_or_default() < 20, "{firsts:?}");
    }

    #[test]
    fn hosts_without_weight_take_turns() {
        let group = group(&[(0, 0), (0, 0)]);
        let random = Random::seeded(3);
        let firsts: u16 = (0..1_000).map(|_| in_order(&group, &random)[0].port).sum();
        assert!((400..600).contains(&firsts), "{firsts}");
    }
}
