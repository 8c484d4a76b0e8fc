//! Failed logins: counted by address and by user, each slower than the one before.
//!
//! Only the answer to a failed login is held back, so nobody can lock out another by guessing at their name. The session waits
//! with its answer, and sessions from one address are bounded: that bounds the guesses a second.

use std::hash::{BuildHasher, RandomState};
use std::net::IpAddr;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

/// Wait after the first failure; each further one doubles it.
const FIRST: Duration = Duration::from_millis(250);

/// The longest wait; well below the patience of mail programs.
const LONGEST: Duration = Duration::from_secs(16);

/// A count is forgotten when nothing has failed for this long.
const FORGET: Duration = Duration::from_secs(15 * 60);

/// Slots of one table, 24 octets each. Two that share one share its count: a wait too long for one failure, no more.
const SLOTS: usize = 1 << 13;

/// The failed logins of all sessions. Its size does not grow.
pub struct Logins {
    /// By address; of IPv6 by its /64, which is one customer.
    by_address: Counts,
    by_user: Counts,
}

struct Counts {
    /// Seeded for this process: nobody can choose a name that shares another's slot.
    hasher: RandomState,
    slots: Mutex<Vec<Slot>>,
}

#[derive(Clone, Copy, Default)]
struct Slot {
    failures: u32,
    last: Option<Instant>,
}

impl Default for Logins {
    fn default() -> Self {
        Self {
            by_address: Counts::new(),
            by_user: Counts::new(),
        }
    }
}

impl Logins {
    /// Counts a failure and says how long its answer is to be held back.
    pub fn failed(&self, address: IpAddr, user: &str, now: Instant) -> Duration {
        let address = network(address);
        let by_address = self.by_address.count(&address, now);
        let by_user = self.by_user.count(user.as_bytes(), now);
        let doublings = by_address.max(by_user).saturating_sub(1).min(16);
        (FIRST * (1 << doublings)).min(LONGEST)
    }

    /// A right password clears its user. The address stays counted: who guesses may have one account of their own.
    pub fn succeeded(&self, user: &str) {
        self.by_user.clear(user.as_bytes());
    }
}

/// The octets of an address that stand for one client.
fn network(address: IpAddr) -> Vec<u8> {
    match address.to_canonical() {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets()[..8].to_vec(),
    }
}

impl Counts {
    fn new() -> Self {
        Self {
            hasher: RandomState::new(),
            slots: Mutex::new(vec![Slot::default(); SLOTS]),
        }
    }

    fn place(&self, key: &[u8]) -> usize {
        (self.hasher.hash_one(key) % SLOTS as u64) as usize
    }

    fn count(&self, key: &[u8], now: Instant) -> u32 {
        let slot = &mut self.slots.lock()[self.place(key)];
        let old = |last: Instant| now.saturating_duration_since(last) >= FORGET;
        if slot.last.is_some_and(old) {
            slot.failures = 0;
        }
        slot.failures = slot.failures.saturating_add(1);
        slot.last = Some(now);
        slot.failures
    }

    fn clear(&self, key: &[u8]) {
        self.slots.lock()[self.place(key)] = Slot::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(octet: u8) -> IpAddr {
        [192, 0, 2, octet].into()
    }

    /// CASES row 39, and §3: auth brute force.
    #[test]
    fn each_failure_waits_longer_up_to_a_bound() {
        let logins = Logins::default();
        let now = Instant::now();
        let waits: Vec<_> = (0..9)
            .map(|number| logins.failed(at(1), &format!("user{number}"), now).as_millis())
            .collect();
        assert_eq!(
            waits,
            [250, 500, 1_000, 2_000, 4_000, 8_000, 16_000, 16_000, 16_000]
        );
        // One name from many addresses.
        let logins = Logins::default();
        let waits = (0..3).map(|number| logins.failed(at(number), "ada", now).as_millis());
        assert_eq!(waits.collect::<Vec<_>>(), [250, 500, 1_000]);
        logins.succeeded("ada");
        assert_eq!(logins.failed(at(9), "ada", now), FIRST);
        // A quarter of an hour later it begins anew.
        assert_eq!(logins.failed(at(9), "ada", now + FORGET), FIRST);
    }

    #[test]
    fn one_network_of_ipv6_is_one_client_and_mapped_ipv4_is_ipv4() {
        let logins = Logins::default();
        let now = Instant::now();
        logins.failed("2001:db8:0:1::1".parse().unwrap(), "a", now);
        assert_eq!(
            logins.failed("2001:db8:0:1:ffff::2".parse().unwrap(), "b", now),
            FIRST * 2
        );
        logins.failed(at(1), "c", now);
        assert_eq!(
            logins.failed("::ffff:192.0.2.1".parse().unwrap(), "d", now),
            FIRST * 2
        );
    }

    #[test]
    fn the_tables_do_not_grow() {
        let logins = Logins::default();
        let now = Instant::now();
        for number in 0..100_000_u32 {
            logins.failed(IpAddr::from(number.to_be_bytes()), &number.to_string(), now);
        }
        assert_eq!(logins.by_user.slots.lock().capacity(), SLOTS);
        assert_eq!(logins.by_address.slots.lock().capacity(), SLOTS);
    }
}
