//! Limits of a lane: how many messages a second. Asked before a unit is claimed, so that throttled mail stays queued.

use std::time::Duration;

use mail_core::Timestamp;

/// What [`Limiter::reserve`] says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Grant {
    /// Go ahead; the token is spent unless it is refunded.
    Granted,
    /// Nothing before this moment, because of the named limit.
    NotBefore {
        /// When to ask again; always later than the moment of asking.
        at: Timestamp,
        /// The limit's configuration key.
        held_by: &'static str,
    },
}

/// A token bucket on local state: synchronous, never waits, never exceeds its rate.
///
/// It begins empty, so that a restart or reload grants nothing a running relay would not have granted.
#[derive(Clone, Debug)]
pub struct Limiter {
    rate: Option<Rate>,
}

/// How long tokens are saved up: enough for what a busy program is late. More would let connections start together, and where they
/// are what is scarce, they would end together ever after: mail that goes next would wait for all of them.
const AT_ONCE: Duration = Duration::from_millis(20);

#[derive(Clone, Debug)]
struct Rate {
    /// Between two tokens.
    interval: Duration,
    /// Tokens the bucket holds: what falls in [`AT_ONCE`], at least one.
    burst: u32,
    tokens: u32,
    /// When the next token drops; a full bucket lets it pass by.
    next: Timestamp,
    /// How much later than exact `next` is: [`Timestamp`] has no finer grain than a millisecond, rates above 1,000 do.
    late_by: Duration,
}

impl Limiter {
    /// `messages_per_second` above zero, or unlimited.
    pub fn new(messages_per_second: Option<f64>, now: Timestamp) -> Self {
        let rate = messages_per_second.map(|rate| {
            let mut fresh = Rate {
                interval: Duration::from_secs_f64(1.0 / rate.max(1e-6)),
                burst: (rate * AT_ONCE.as_secs_f64()).max(1.0) as u32,
                tokens: 0,
                next: now,
                late_by: Duration::ZERO,
            };
            fresh.advance();
            fresh
        });
        Self { rate }
    }

    /// Goes by another rate from here on. Nothing is granted for the change: tokens at hand stay as far as the new bucket holds
    /// them, and the next one drops after a whole interval. An unchanged rate goes on as it was.
    pub fn set_rate(&mut self, messages_per_second: Option<f64>, now: Timestamp) {
        let fresh = Self::new(messages_per_second, now);
        match (&self.rate, fresh.rate) {
            (Some(before), Some(after)) if before.interval == after.interval => {}
            (Some(before), Some(after)) => {
                let mut before = before.clone();
                before.refill(now);
                let tokens = before.tokens.min(after.burst);
                self.rate = Some(Rate { tokens, ..after });
            }
            (_, after) => self.rate = after,
        }
    }

    /// Takes a token, or says when to ask again.
    pub fn reserve(&mut self, now: Timestamp) -> Grant {
        let Some(rate) = &mut self.rate else {
            return Grant::Granted;
        };
        rate.refill(now);
        if rate.tokens == 0 && !crate::sabotage::is_on("no-rates") {
            return Grant::NotBefore {
                at: rate.next,
                held_by: "messages_per_second",
            };
        }
        rate.tokens = rate.tokens.saturating_sub(1);
        Grant::Granted
    }

    /// When a token is there again and what limit holds it, if there is none now. Takes nothing.
    pub fn explain(&self, now: Timestamp) -> Option<(Timestamp, &'static str)> {
        let rate = self.rate.as_ref()?;
        (rate.tokens == 0 && rate.next > now).then_some((rate.next, "messages_per_second"))
    }

    /// Gives back a token that was not used.
    pub fn refund(&mut self) {
        if let Some(rate) = &mut self.rate {
            rate.tokens = (rate.tokens + 1).min(rate.burst);
        }
    }
}

impl Rate {
    fn refill(&mut self, now: Timestamp) {
        while self.next <= now && self.tokens < self.burst {
            self.tokens += 1;
            self.advance();
        }
        if self.next <= now {
            // The bucket ran over: the next token drops one interval from now.
            self.next = now;
            self.late_by = Duration::ZERO;
            self.advance();
        }
    }

    /// Moves `next` on by one interval, rounded up to the millisecond; what was rounded shortens the next step.
    fn advance(&mut self) {
        let exact = self.interval.saturating_sub(self.late_by);
        let overdue = self.late_by.saturating_sub(self.interval);
        let millis = u64::try_from(exact.as_nanos().div_ceil(1_000_000)).unwrap_or(u64::MAX);
        self.late_by = overdue + Duration::from_millis(millis).saturating_sub(exact);
        self.next = Timestamp(self.next.0.saturating_add(millis));
    }
}

#[cfg(test)]
mod tests {
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
        limiter.refund();
        assert_eq!(limiter.reserve(later), Grant::Granted);
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
                    Grant::NotBefore { at, .. } => {
                        prop_assert!(at > now);
                        now = at;
                    }
                }
            }
            let burst = (rate * AT_ONCE.as_secs_f64()).max(1.0) as u64;
            prop_assert!(granted <= (rate * 10.0) as u64 + burst + 1, "{granted} granted at {rate}/s");
            prop_assert!(granted as f64 >= rate * 10.0 * 0.98 - 2.0, "{granted} granted at {rate}/s");
        }
    }
}
