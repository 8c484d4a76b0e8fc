//! When to try again.

use std::time::Duration;

use mail_core::Timestamp;

/// Waits between attempts.
#[derive(Clone, Debug, PartialEq)]
pub struct Backoff {
    /// After the first attempt.
    pub first: Duration,
    /// How many times longer each wait is than the one before; 1.0 or more.
    pub factor: f64,
    /// The longest wait.
    pub cap: Duration,
    /// 0.0..=0.5: each wait is spread by ± this share of itself.
    pub jitter: f64,
}

impl Backoff {
    /// Wait after attempt `n` (from 1): grows from `first` up to `cap`, then spread. `chance` is uniform in 0.0..1.0. Never fails.
    ///
    /// Source: RFC 5321 §4.5.4.1, which asks for at least 30 minutes once the first quick tries are over.
    pub fn delay(&self, n: u32, chance: f64) -> Duration {
        let steps = i32::try_from(n.saturating_sub(1)).unwrap_or(i32::MAX);
        let grown = (self.first.as_secs_f64() * self.factor.powi(steps)).min(self.cap.as_secs_f64());
        let spread = 1.0 + self.jitter * (2.0 * chance - 1.0);
        Duration::try_from_secs_f64(grown * spread.max(0.0)).unwrap_or(self.cap)
    }

    /// No wait is longer.
    pub fn longest(&self) -> Duration {
        self.cap.mul_f64(1.0 + self.jitter)
    }

    /// A due time as read from the store. One that is later than any wait could have set it was written while the clock was
    /// ahead: it is due now.
    pub fn clamp(&self, due: Timestamp, now: Timestamp) -> Timestamp {
        let is_too_late = due > now + self.longest();
        if is_too_late && !crate::sabotage::is_on("no-clamp") {
            now
        } else {
            due
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const POLICY: Backoff = Backoff {
        first: Duration::from_secs(60),
        factor: 2.0,
        cap: Duration::from_secs(3600),
        jitter: 0.1,
    };

    #[test]
    fn doubles_up_to_the_cap() {
        for (n, seconds) in [
            (0, 60),
            (1, 60),
            (2, 120),
            (3, 240),
            (7, 3600),
            (1000, 3600),
            (u32::MAX, 3600),
        ] {
            assert_eq!(POLICY.delay(n, 0.5), Duration::from_secs(seconds), "attempt {n}");
        }
    }

    #[test]
    fn spreads_by_the_jitter() {
        assert_eq!(POLICY.delay(1, 0.0), Duration::from_secs(54));
        assert!(POLICY.delay(1, 0.999) > Duration::from_millis(65_900));
    }

    #[test]
    fn no_due_time_is_further_off_than_the_schedule_allows() {
        let now = Timestamp(1_000_000);
        assert_eq!(
            POLICY.clamp(now + Duration::from_secs(60), now),
            now + Duration::from_secs(60)
        );
        let longest = now + Duration::from_secs(3960);
        assert_eq!(POLICY.clamp(longest, now), longest);
        assert_eq!(POLICY.clamp(longest + Duration::from_millis(1), now), now);
    }
}
