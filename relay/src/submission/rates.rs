//! How much clients may hand over in a time: by tenant, by credential, by address.
//!
//! The generic cell rate algorithm: of each key only the time is kept at which it would be at rest. So the answer to one who is
//! over a limit says when to come back, a new rate applies at once, and a key at rest need not be kept.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

use crate::config::rates::Rate;

/// Keys kept, some 100 octets each. When it is reached, those at rest go; with all at work, who is new has to wait.
const MAX_KEYS: usize = 1 << 16;

/// How often keys at rest are looked for, and how long one that finds no room waits.
const SWEEP: Duration = Duration::from_secs(1);

/// What is limited; the label of the metric.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Limit {
    /// Messages of a tenant.
    TenantMessages,
    /// Recipients of a tenant.
    TenantRecipients,
    /// Messages of a credential.
    CredentialMessages,
    /// Recipients of a credential.
    CredentialRecipients,
    /// Connections from an address.
    AddressConnections,
    /// Messages from an address.
    AddressMessages,
    /// Reports to the senders of a domain.
    DomainReports,
}

impl Limit {
    /// A word for logs and metrics.
    pub fn word(self) -> &'static str {
        match self {
            Self::TenantMessages => "tenant_messages",
            Self::TenantRecipients => "tenant_recipients",
            Self::CredentialMessages => "credential_messages",
            Self::CredentialRecipients => "credential_recipients",
            Self::AddressConnections => "address_connections",
            Self::AddressMessages => "address_messages",
            Self::DomainReports => "domain_reports",
        }
    }
}

/// Whose limit.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Who {
    /// A tenant, a credential or a domain.
    Name(Arc<str>),
    /// A client; see [`Who::address`].
    Address(IpAddr),
}

impl Who {
    /// Of IPv6 the /64, which is one customer.
    pub fn address(address: IpAddr) -> Self {
        Self::Address(match address.to_canonical() {
            IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() & !u128::from(u64::MAX)).into(),
            v4 => v4,
        })
    }
}

/// Over a limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Over {
    /// Which.
    pub limit: Limit,
    /// When it would be granted, from now.
    pub wait: Duration,
}

/// The state of all limits. Its size does not grow beyond a bound.
#[derive(Default)]
pub struct Rates(Mutex<Kept>);

#[derive(Default)]
struct Kept {
    /// When each will be at rest.
    rest: HashMap<(Limit, Who), Instant>,
    swept: Option<Instant>,
}

impl Rates {
    /// Takes one from each limit that is set, or from none of them.
    pub fn take(&self, wanted: &[(Limit, Option<Who>, Option<Rate>)], now: Instant) -> Result<(), Over> {
        let set: Vec<_> = wanted
            .iter()
            .filter_map(|(limit, who, rate)| Some(((*limit, who.clone()?), (*rate)?)))
            .collect();
        if set.is_empty() {
            return Ok(());
        }
        let mut kept = self.0.lock();
        let over = |limit, wait| Err(Over { limit, wait });
        for (key, rate) in &set {
            let ahead = match kept.rest.get(key).copied() {
                Some(rest) => rest.saturating_duration_since(now),
                None if kept.has_room(now) => Duration::ZERO,
                None => return over(key.0, SWEEP),
            };
            let tolerance = gap(*rate) * (rate.burst.get() - 1);
            if ahead > tolerance {
                return over(key.0, ahead - tolerance);
            }
        }
        for (key, rate) in set {
            let rest = kept.rest.entry(key).or_insert(now);
            *rest = (*rest).max(now) + gap(rate);
        }
        Ok(())
    }
}

fn gap(rate: Rate) -> Duration {
    rate.period / rate.count.get()
}

impl Kept {
    /// Room for all the keys of one request.
    fn has_room(&mut self, now: Instant) -> bool {
        let full = |kept: &Self| kept.rest.len() + 8 > MAX_KEYS;
        let recent = |at: Instant| now.saturating_duration_since(at) < SWEEP;
        if full(self) && !self.swept.is_some_and(recent) {
            self.swept = Some(now);
            self.rest.retain(|_, rest| *rest > now);
        }
        !full(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one(limit: Limit, who: &str, rate: &str) -> [(Limit, Option<Who>, Option<Rate>); 1] {
        [(limit, Some(Who::Name(who.into())), Some(rate.parse().unwrap()))]
    }

    #[test]
    fn a_burst_and_then_evenly() {
        let rates = Rates::default();
        let start = Instant::now();
        let wanted = one(Limit::TenantMessages, "t", "60/minute burst 3");
        let at = |ms| rates.take(&wanted, start + Duration::from_millis(ms));
        assert_eq!((at(0), at(0), at(0)), (Ok(()), Ok(()), Ok(())));
        let over = |ms| {
            Err(Over {
                limit: Limit::TenantMessages,
                wait: Duration::from_millis(ms),
            })
        };
        assert_eq!(at(0), over(1_000));
        assert_eq!(at(400), over(600));
        assert_eq!(at(1_000), Ok(()));
        assert_eq!(at(1_000), over(1_000));
        // Never more in any minute than the rate and the burst; rest brings the burst back and no more.
        let granted = (0..60_000).filter(|ms| at(10_000 + ms).is_ok()).count();
        assert_eq!(granted, 3 + 59);
    }

    #[test]
    fn all_limits_or_none_is_taken_from() {
        let rates = Rates::default();
        let now = Instant::now();
        let wide = one(Limit::TenantMessages, "t", "1/hour burst 2");
        let both = [
            wide[0].clone(),
            one(Limit::CredentialMessages, "c", "1/hour")[0].clone(),
        ];
        assert_eq!(rates.take(&both, now), Ok(()));
        for _ in 0..5 {
            assert_eq!(
                rates.take(&both, now).unwrap_err().limit,
                Limit::CredentialMessages
            );
        }
        assert_eq!(
            rates.take(&wide, now),
            Ok(()),
            "the tenant paid for what was refused"
        );
        assert_eq!(rates.take(&wide, now).unwrap_err().limit, Limit::TenantMessages);
        assert_eq!(
            rates.take(&one(Limit::TenantMessages, "other", "1/hour"), now),
            Ok(())
        );
        assert_eq!(rates.take(&[(Limit::TenantMessages, None, None)], now), Ok(()));
    }

    #[test]
    fn keys_are_bounded_and_come_back() {
        let rates = Rates::default();
        let now = Instant::now();
        let rate: Rate = "1/minute".parse().unwrap();
        let take = |number: u32, now| {
            let who = Who::address(IpAddr::from(number.to_be_bytes()));
            rates.take(&[(Limit::AddressConnections, Some(who), Some(rate))], now)
        };
        let granted = (0..MAX_KEYS as u32 + 1_000)
            .filter(|&number| take(number, now).is_ok())
            .count();
        assert!((MAX_KEYS - 8..=MAX_KEYS).contains(&granted), "{granted}");
        assert!(rates.0.lock().rest.len() <= MAX_KEYS);
        // One that is known keeps its limit; a minute later there is room again.
        assert!(take(0, now).is_err());
        assert_eq!(take(u32::MAX, now + Duration::from_secs(60)), Ok(()));
        assert!(rates.0.lock().rest.len() < 10);
    }

    #[test]
    fn one_network_of_ipv6_is_one_client() {
        let who = |text: &str| Who::address(text.parse().unwrap());
        assert_eq!(who("2001:db8:0:1::1"), who("2001:db8:0:1:ffff::2"));
        assert_ne!(who("2001:db8:0:1::1"), who("2001:db8:0:2::1"));
        assert_eq!(who("::ffff:192.0.2.1"), who("192.0.2.1"));
    }
}
