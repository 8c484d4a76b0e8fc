//! What the DNS knew lately. A zone that is being changed, or one of whose servers has lost it, says now and then that there is no
//! such name: mail waits for a while before that is believed of a name that was there a moment ago.

use std::cell::RefCell;
use std::collections::HashMap;
use std::time::Duration;

use mail_core::{Domain, Timestamp};

use crate::world::{DnsError, MxAnswer};

/// Names of each kind that are remembered, some 100 octets each; with more of them, those that were seen longest ago are forgotten.
const MOST: usize = if cfg!(test) { 100 } else { 20_000 };

/// For so long nobody believes that a name has gone.
const DOUBT: Duration = Duration::from_secs(3_600);

/// See the module. Each shard has one; a restart begins with an empty one.
#[derive(Debug, Default)]
pub struct Known {
    domains: RefCell<Seen>,
    hosts: RefCell<Seen>,
}

/// Two generations: the older one is forgotten as a whole.
#[derive(Debug, Default)]
struct Seen {
    young: HashMap<Domain, Timestamp>,
    old: HashMap<Domain, Timestamp>,
}

impl Known {
    /// An answer to who takes a domain's mail, as far as it is to be believed.
    pub fn weigh(&self, domain: &Domain, answer: MxAnswer, now: Timestamp) -> Result<MxAnswer, DnsError> {
        let mut domains = self.domains.borrow_mut();
        match answer {
            MxAnswer::NoDomain if domains.has(domain, now) => Err(DnsError {
                question: format!("{domain} MX"),
                cause: "no such name, though it was there a short time ago".into(),
            }),
            MxAnswer::NoDomain => Ok(answer),
            MxAnswer::Hosts(_) | MxAnswer::Implicit | MxAnswer::Null => {
                domains.add(domain, now);
                Ok(answer)
            }
        }
    }

    /// Whether it is to be believed that a host has no address: it had none a short time ago either.
    pub fn has_no_address(&self, host: &Domain, now: Timestamp) -> bool {
        !self.hosts.borrow().has(host, now)
    }

    /// The host has an address.
    pub fn has_address(&self, host: &Domain, now: Timestamp) {
        self.hosts.borrow_mut().add(host, now);
    }
}

impl Seen {
    fn add(&mut self, name: &Domain, now: Timestamp) {
        if let Some(at) = self.young.get_mut(name) {
            *at = now;
            return;
        }
        if self.young.len() >= MOST / 2 {
            self.old = std::mem::take(&mut self.young);
        }
        self.young.insert(name.clone(), now);
    }

    fn has(&self, name: &Domain, now: Timestamp) -> bool {
        let at = self.young.get(name).or_else(|| self.old.get(name));
        at.is_some_and(|&at| at + DOUBT > now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Timestamp = Timestamp(1_700_000_000_000);

    fn name(number: usize) -> Domain {
        format!("d{number}.test").parse().unwrap()
    }

    #[test]
    fn who_was_there_is_not_gone_within_the_hour() {
        let known = Known::default();
        assert_eq!(
            known.weigh(&name(1), MxAnswer::NoDomain, NOW),
            Ok(MxAnswer::NoDomain)
        );
        for answer in [MxAnswer::Implicit, MxAnswer::Null, MxAnswer::Hosts(Vec::new())] {
            let known = Known::default();
            assert_eq!(known.weigh(&name(1), answer.clone(), NOW), Ok(answer));
            let almost = NOW + DOUBT - Duration::from_millis(1);
            assert!(known.weigh(&name(1), MxAnswer::NoDomain, almost).is_err());
            // To be told so again does not make it any more true.
            assert_eq!(
                known.weigh(&name(1), MxAnswer::NoDomain, NOW + DOUBT),
                Ok(MxAnswer::NoDomain)
            );
        }
    }

    #[test]
    fn a_host_that_had_an_address_has_not_lost_it_within_the_hour() {
        let known = Known::default();
        assert!(known.has_no_address(&name(1), NOW));
        known.has_address(&name(1), NOW);
        assert!(!known.has_no_address(&name(1), NOW));
        assert!(known.has_no_address(&name(1), NOW + DOUBT));
        assert!(
            known.weigh(&name(1), MxAnswer::NoDomain, NOW).is_ok(),
            "a domain is no host"
        );
    }

    #[test]
    fn no_more_are_remembered_than_there_is_room_for() {
        let mut seen = Seen::default();
        for number in 0..10 * MOST {
            seen.add(&name(number), NOW);
            seen.add(&name(0), NOW);
        }
        assert!(seen.young.len() + seen.old.len() <= MOST);
        assert!(seen.has(&name(0), NOW), "it was seen last");
        assert!(seen.has(&name(10 * MOST - 1), NOW) && !seen.has(&name(1), NOW));
    }
}
