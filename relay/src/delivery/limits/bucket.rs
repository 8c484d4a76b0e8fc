//! A token bucket: so many a second, evenly.

use std::time::Duration;

use mail_core::Timestamp;

/// How long tokens are saved up: enough for what a busy program is late. More would let connections start together, and where they
/// are what is scarce, they would end together ever after: mail that goes next would wait for all of them.
const AT_ONCE: Duration = Duration::from_millis(20);

/// Tokens that drop at even intervals; never more than its rate and what [`AT_ONCE`] saves up.
///
/// It begins empty, so that a restart or reload grants nothing a running relay would not have granted.
#[derive(Clone, Debug)]
pub struct Bucket {
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

impl Bucket {
    /// `rate` tokens a second, above zero.
    pub fn new(rate: f64, now: Timestamp) -> Self {
        let mut fresh = Self {
            interval: Duration::from_secs_f64(1.0 / rate.max(1e-6)),
            burst: (rate * AT_ONCE.as_secs_f64()).max(1.0) as u32,
            tokens: 0,
            next: now,
            late_by: Duration::ZERO,
        };
        fresh.advance();
        fresh
    }

    /// Goes by another rate from here on. Nothing is granted for the change: tokens at hand stay as far as the new bucket holds
    /// them, and the next one drops after a whole interval. An unchanged rate goes on as it was.
    pub fn set_rate(&mut self, rate: f64, now: Timestamp) {
        let fresh = Self::new(rate, now);
        if fresh.interval != self.interval {
            self.refill(now);
            let tokens = self.tokens.min(fresh.burst);
            *self = Self { tokens, ..fresh };
        }
    }

    /// When a token is there, if there is none now.
    pub fn wait(&mut self, now: Timestamp) -> Option<Timestamp> {
        self.refill(now);
        (self.tokens == 0).then_some(self.next)
    }

    /// The same, and nothing is changed.
    pub fn explain(&self, now: Timestamp) -> Option<Timestamp> {
        (self.tokens == 0 && self.next > now).then_some(self.next)
    }

    /// Takes the token that [`Self::wait`] has found.
    pub fn take(&mut self) {
        self.tokens = self.tokens.saturating_sub(1);
    }

    /// Gives back a token that was taken `at` a moment and not used. One that would not have been saved up until now is none any more:
    /// what was let through by and by, and comes back at one moment, is not let through at one.
    pub fn refund(&mut self, at: Timestamp, now: Timestamp) {
        if at + AT_ONCE >= now {
            self.tokens = (self.tokens + 1).min(self.burst);
        }
    }

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
