//! From what the DNS says to where mail goes (RFC 5321 §5.1, RFC 7505).

use std::rc::Rc;
use std::sync::Arc;

use mail_core::{Domain, Reply};

use crate::config::egress::Source;
use crate::config::settings::DeliverySettings;
use crate::config::smart_hosts::SmartHost;
use crate::shaping::providers::Provider;
use crate::world::{MxAnswer, MxHost, Random};

use super::connection::open::{HostPlace, NextHost, Terms};
use super::lane::{Hosts, Plan, Rule};
use super::shard::Ending;
use super::smart_host;

/// Where a domain's mail goes.
#[derive(Clone, Debug, PartialEq)]
pub enum Route {
    /// To these hosts; at least one.
    Hosts(Vec<MxHost>),
    /// To a smart host, as a rule has it.
    SmartHost(Arc<SmartHost>),
    /// Nowhere, for the reason the reply gives.
    Refused(Reply),
    /// Nowhere, as a rule has it, for this reason.
    Discarded(Arc<str>),
}

impl Route {
    /// The route for mail to `domain`, from a relay that goes by `names`.
    pub fn from_answer(domain: &Domain, answer: MxAnswer, names: &[Domain]) -> Self {
        match answer {
            MxAnswer::Hosts(hosts) => without_ourselves(domain, hosts, names),
            // No MX: the domain is its own host, of preference 0 (RFC 5321 §5.1).
            MxAnswer::Implicit => without_ourselves(
                domain,
                vec![MxHost {
                    preference: 0,
                    host: domain.clone(),
                }],
                names,
            ),
            // RFC 7505 §4.1.
            MxAnswer::Null => Self::Refused(
                Reply::new(556, 1, 10, "").with_text(format!("{domain} accepts no mail (null MX)")),
            ),
            MxAnswer::NoDomain => {
                Self::Refused(Reply::new(550, 1, 2, "").with_text(format!("{domain} does not exist")))
            }
        }
    }

    /// The name of the site: the set of hosts. Domains with the same hosts are one site, whatever the preferences.
    pub fn site(&self) -> String {
        match self {
            Self::Hosts(hosts) => {
                let mut names: Vec<_> = hosts.iter().map(|mx| mx.host.as_str()).collect();
                names.sort_unstable();
                names.dedup();
                names.join(",")
            }
            // No name of a host has a blank.
            Self::SmartHost(host) => format!("smart host {}", host.name),
            Self::Refused(reply) => format!("refused {reply}"),
            Self::Discarded(reason) => format!("discarded {reason}"),
        }
    }

    /// The limits and terms of its lane, which goes by this provider's figures.
    pub fn rule(&self, domain: &Domain, provider: Option<&Provider>, settings: &DeliverySettings) -> Rule {
        match self {
            Self::SmartHost(host) => smart_host::rule(host),
            Self::Hosts(_) | Self::Refused(_) | Self::Discarded(_) => Rule::of(domain, provider, settings),
        }
    }

    /// The name of that rule.
    pub fn rule_name(&self, domain: &Domain, settings: &DeliverySettings) -> Option<Rc<str>> {
        match self {
            Self::SmartHost(_) => None,
            Self::Hosts(_) | Self::Refused(_) | Self::Discarded(_) => Rule::name_of(domain, settings),
        }
    }

    /// Whose figures its lanes go by. A smart host is of our own choosing, and has the limits that we gave it.
    pub fn provider<'a>(&self, settings: &'a DeliverySettings) -> Option<&'a Arc<Provider>> {
        settings.shaping.providers.of_site(self.mx_hosts()?)
    }

    /// With whose other sites it shares limits and adjustments.
    pub fn shares_with<'a>(&self, settings: &'a DeliverySettings) -> Option<&'a Arc<Provider>> {
        settings.shaping.providers.of_whole_site(self.mx_hosts()?)
    }

    fn mx_hosts(&self) -> Option<impl Iterator<Item = &Domain>> {
        match self {
            Self::Hosts(hosts) => Some(hosts.iter().map(|mx| &mx.host)),
            Self::SmartHost(_) | Self::Refused(_) | Self::Discarded(_) => None,
        }
    }

    /// How a lane serves it that sends from this source.
    pub fn plan(&self, rule: &Rule, source: Option<&Arc<Source>>) -> Plan {
        let plan = |hosts, terms| Plan::Hosts {
            hosts,
            terms: Terms {
                source: source.cloned(),
                ..terms
            },
            recipients_per_transaction: rule.limits.recipients_per_transaction,
            messages_per_connection: rule.limits.messages_per_connection,
        };
        match self {
            Self::Hosts(hosts) => plan(Hosts::Mx(hosts.clone()), Terms::of_mx(rule.tls, rule.family)),
            Self::SmartHost(host) => plan(Hosts::Chosen(host.clone()), smart_host::terms(host)),
            Self::Refused(reply) => Plan::End(Ending::Refused(reply.clone())),
            Self::Discarded(reason) => Plan::End(Ending::Discarded(reason.clone())),
        }
    }
}

/// Drops ourselves and every host no better than ourselves, which would only send the mail back (RFC 5321 §5.1).
fn without_ourselves(domain: &Domain, mut hosts: Vec<MxHost>, names: &[Domain]) -> Route {
    if let Some(own) = hosts
        .iter()
        .filter(|mx| names.contains(&mx.host))
        .map(|mx| mx.preference)
        .min()
    {
        hosts.retain(|mx| mx.preference < own);
    }
    if hosts.is_empty() {
        return Route::Refused(
            Reply::new(554, 4, 6, "").with_text(format!("mail for {domain} loops back to this relay")),
        );
    }
    Route::Hosts(hosts)
}

/// MX hosts in the order in which they are tried, each at `port`.
pub fn to_try(hosts: &[MxHost], port: u16, random: &Random) -> Vec<NextHost> {
    let next = |mx: MxHost| NextHost {
        place: HostPlace::Name(mx.host),
        port,
        tls_name: None,
    };
    in_order(hosts, random).into_iter().map(next).collect()
}

/// The order in which hosts are tried: by preference, equals in random order (RFC 5321 §5.1).
pub fn in_order(hosts: &[MxHost], random: &Random) -> Vec<MxHost> {
    let mut drawn: Vec<_> = hosts
        .iter()
        .map(|mx| (mx.preference, random.fraction(), mx))
        .collect();
    drawn.sort_by(|left, right| {
        (left.0, left.1)
            .partial_cmp(&(right.0, right.1))
            .unwrap_or(std::cmp::Ordering::Equal)
    });
    drawn.into_iter().map(|(_, _, mx)| mx.clone()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mx(preference: u16, host: &str) -> MxHost {
        MxHost {
            preference,
            host: host.parse().unwrap(),
        }
    }

    fn route(answer: MxAnswer) -> Route {
        Route::from_answer(
            &"example.com".parse().unwrap(),
            answer,
            &["relay.example".parse().unwrap()],
        )
    }

    fn refused(answer: MxAnswer) -> String {
        match route(answer) {
            Route::Refused(reply) => reply.to_string(),
            route => panic!("{route:?}"),
        }
    }

    #[test]
    fn ourselves_and_all_that_is_no_better_is_dropped() {
        let hosts = vec![
            mx(10, "a.example"),
            mx(20, "relay.example"),
            mx(20, "b.example"),
            mx(30, "c.example"),
        ];
        assert_eq!(
            route(MxAnswer::Hosts(hosts)),
            Route::Hosts(vec![mx(10, "a.example")])
        );
        assert!(
            refused(MxAnswer::Hosts(vec![
                mx(10, "relay.example"),
                mx(20, "b.example")
            ]))
            .starts_with("554 5.4.6")
        );
    }

    #[test]
    fn what_the_dns_says_decides() {
        assert_eq!(
            route(MxAnswer::Implicit),
            Route::Hosts(vec![mx(0, "example.com")])
        );
        assert!(refused(MxAnswer::Null).starts_with("556 5.1.10"));
        assert!(refused(MxAnswer::NoDomain).starts_with("550 5.1.2"));
    }

    #[test]
    fn a_site_is_its_set_of_hosts() {
        let one = route(MxAnswer::Hosts(vec![mx(10, "b.example"), mx(20, "a.example")]));
        let other = route(MxAnswer::Hosts(vec![
            mx(5, "a.example"),
            mx(5, "b.example"),
            mx(9, "b.example"),
        ]));
        assert_eq!(one.site(), other.site());
    }

    #[test]
    fn equals_take_turns_and_preferences_hold() {
        let hosts = [mx(20, "c.example"), mx(10, "a.example"), mx(10, "b.example")];
        let random = Random::seeded(7);
        let mut firsts = std::collections::BTreeSet::new();
        for _ in 0..50 {
            let order = in_order(&hosts, &random);
            assert_eq!(order[2], hosts[0]);
            firsts.insert(order[0].host.clone());
        }
        assert_eq!(firsts.len(), 2);
    }
}
