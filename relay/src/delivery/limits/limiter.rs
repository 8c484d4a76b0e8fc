//! The limit of one lane: how many messages a second. Asked before a unit is claimed, so that throttled mail stays queued.

use mail_core::Timestamp;

use super::Grant;
use super::bucket::Bucket;

/// The key of the limit.
const HELD_BY: &str = "messages_per_second";

/// A token bucket on local state: synchronous, never waits, never exceeds its rate.
#[derive(Clone, Debug)]
pub struct Limiter(Option<Bucket>);

impl Limiter {
    /// `messages_per_second` above zero, or unlimited.
    pub fn new(messages_per_second: Option<f64>, now: Timestamp) -> Self {
        Self(messages_per_second.map(|rate| Bucket::new(rate, now)))
    }

    /// Goes by another rate from here on; see [`Bucket::set_rate`]. From unlimited to a rate, the bucket begins empty.
    pub fn set_rate(&mut self, messages_per_second: Option<f64>, now: Timestamp) {
        match (&mut self.0, messages_per_second) {
            (Some(bucket), Some(rate)) => bucket.set_rate(rate, now),
            (before, rate) => *before = rate.map(|rate| Bucket::new(rate, now)),
        }
    }

    /// Takes a token, or says when to ask again.
    pub fn reserve(&mut self, now: Timestamp) -> Grant {
        let Some(bucket) = &mut self.0 else {
            return Grant::Granted;
        };
        if let Some(at) = bucket.wait(now).filter(|_| !crate::sabotage::is_on("no-rates")) {
            return Grant::NotBefore { at, held_by: HELD_BY };
        }
        bucket.take();
        Grant::Granted
    }

    /// Whether it limits anything.
    pub fn is_limited(&self) -> bool {
        self.0.is_some()
    }

    /// When a token is there again and what limit holds it, if there is none now. Takes nothing.
    pub fn explain(&self, now: Timestamp) -> Option<(Timestamp, &'static str)> {
        let at = self.0.as_ref()?.explain(now)?;
        Some((at, HELD_BY))
    }

    /// Gives back a token that was taken `at` a moment and not used; see [`Bucket::refund`].
    pub fn refund(&mut self, at: Timestamp, now: Timestamp) {
        if let Some(bucket) = &mut self.0 {
            bucket.refund(at, now);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use proptest::prelude::*;

    const START: Timestamp = Timestamp(1_700_000_000_000);

    #[test]
    fn unlimited_always_grants() {
        let mut limiter = Limiter::new(None, START);
        for _ in 0..10_000 {
            assert_eq!(limiter.reserve(START), Grant::Granted);
        }
    }

    #[test]
    fn begins_empty_and_keeps_its_rate() {
        let mut limiter = Limiter::new(Some(2.0), START);
        assert_eq!(
            limiter.reserve(START),
            Grant::NotBefore {
                at: START + Duration::from_millis(500),
                held_by: "messages_per_second"
            }
        );
        assert_eq!(
            limiter.reserve(START + Duration::from_millis(500)),
            Grant::Granted
        );
        assert!(matches!(
            limiter.reserve(START + Duration::from_millis(501)),
            Grant::NotBefore { .. }
        ));
    }

    #[test]
    fn a_refund_is_spent_again() {
        let mut limiter = Limiter::new(Some(1.0), START);
        let later = START + Duration::from_secs(1);
        assert_eq!(limiter.reserve(later), Grant::Granted);
        limiter.refund(later, later);
        assert_eq!(limiter.reserve(later), Grant::Granted);
    }

    /// Three that were let through a second after another, and none of which was sent.
    #[test]
    fn what_comes_back_late_is_not_spent_at_once() {
        let mut limiter = Limiter::new(Some(1.0), START);
        let at = |secs| START + Duration::from_secs(secs);
        for second in 1..=3 {
            assert_eq!(limiter.reserve(at(second)), Grant::Granted);
        }
        assert_eq!(limiter.reserve(at(4)), Grant::Granted);
        for second in 1..=3 {
            limiter.refund(at(second), at(4));
        }
        assert!(matches!(limiter.reserve(at(4)), Grant::NotBefore { .. }));
    }

    /// Ten connections, each busy for a little longer than the tokens of all take: they do not come to end together, so that mail that
    /// goes next never waits for long, also where tokens were saved up at the begin.
    #[test]
    fn connections_that_are_scarce_stay_apart() {
        let mut limiter = Limiter::new(Some(50.0), START);
        let mut now = START + Duration::from_secs(10);
        let mut free = [now; 10];
        let end = now + Duration::from_secs(60);
        let mut starts = Vec::new();
        while now < end {
            free.sort_unstable();
            now = now.max(free[0]);
            match limiter.reserve(now) {
                Grant::Granted => {
                    starts.push(now);
                    free[0] = now + Duration::from_millis(204);
                }
                Grant::WhenFreed { held_by } => panic!("{held_by}"),
                Grant::NotBefore { at, .. } => now = at,
            }
        }
        let longest = starts.windows(2).map(|pair| pair[1].0 - pair[0].0).max();
        assert!(longest <= Some(40), "{longest:?} ms");
        assert!(starts.len() as f64 > 60.0 * 50.0 * 0.95, "{}", starts.len());
    }

    /// Promise 5: a reload grants nothing.
    #[test]
    fn a_changed_rate_grants_nothing() {
        let mut limiter = Limiter::new(Some(100.0), START);
        let mut now = START + Duration::from_secs(1);
        // Two at hand; the tighter bucket holds one.
        limiter.set_rate(Some(1.0), now);
        assert_eq!(limiter.reserve(now), Grant::Granted);
        let waits = |limiter: &mut Limiter, now, ms| {
            let at = now + Duration::from_millis(ms);
            let held_by = "messages_per_second";
            assert_eq!(limiter.reserve(now), Grant::NotBefore { at, held_by });
        };
        waits(&mut limiter, now, 1_000);
        // Set again and again to what it is: the token comes when it would have come.
        now = now + Duration::from_millis(600);
        limiter.set_rate(Some(1.0), now);
        waits(&mut limiter, now, 400);
        limiter.set_rate(Some(2.0), now);
        waits(&mut limiter, now, 500);
        // From unlimited to a rate: the bucket begins empty.
        limiter.set_rate(None, now);
        assert_eq!(limiter.reserve(now), Grant::Granted);
        limiter.set_rate(Some(2.0), now);
        waits(&mut limiter, now, 500);
    }

    proptest! {
        /// Whoever asks as soon and as often as allowed gets the rate, and never more than a burst above it.
        #[test]
        fn never_exceeds_and_reaches_the_rate(rate in 0.5f64..5_000.0, idle in 0u64..5_000) {
            let mut limiter = Limiter::new(Some(rate), START);
            let begin = START + Duration::from_millis(idle);
            let end = begin + Duration::from_secs(10);
            let (mut now, mut granted) = (begin, 0u64);
            while now < end {
                match limiter.reserve(now) {
                    Grant::Granted => granted += 1,
                    Grant::WhenFreed { held_by } => panic!("{held_by}"),
                    Grant::NotBefore { at, .. } => {
                        prop_assert!(at > now);
                        now = at;
                    }
                }
            }
            let burst = (rate * 0.020).max(1.0) as u64;
            prop_assert!(granted <= (rate * 10.0) as u64 + burst + 1, "{granted} granted at {rate}/s");
            prop_assert!(granted as f64 >= rate * 10.0 * 0.98 - 2.0, "{granted} granted at {rate}/s");
        }
    }
}
