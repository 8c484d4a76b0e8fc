//! A sliding window: so many within any minute, hour or day.

use std::time::Duration;

use mail_core::Timestamp;
use queue::Counts;

/// Parts of a window. Each is forgotten as a whole, so that the window counts up to a part more than its span.
const PARTS: u64 = 60;

/// No more than `limit` within any span of this length, wherever it begins.
///
/// Counted by parts of the span, a whole one more than the span holds: whatever falls in an interval of this length is counted.
/// So at the most one in sixty of the limit is not used.
#[derive(Clone, Debug)]
pub struct Window {
    part: Duration,
    limit: u64,
    /// At most [`PARTS`] + 1 parts once it is looked at, the newest of which is that moment's.
    counts: Counts,
}

impl Window {
    /// One in which nothing was counted yet. `span` of a minute or more.
    pub fn new(span: Duration, limit: u64) -> Self {
        Self {
            part: span / 60,
            limit,
            counts: Counts::default(),
        }
    }

    /// One of which nothing is known but that it was in use: as if the limit had been spent evenly.
    pub fn spent(span: Duration, limit: u64, now: Timestamp) -> Self {
        let mut spent = Self::new(span, limit);
        let newest = spent.number(now);
        let until = |part: u64| limit * part / PARTS;
        spent.counts.newest = newest;
        spent.counts.parts = std::iter::once(0)
            .chain((0..PARTS).map(|part| until(part + 1) - until(part)))
            .collect();
        spent
    }

    /// One that goes on from what was counted before, by [`Self::counts_with`] perhaps.
    pub fn resumed(span: Duration, limit: u64, counts: Counts, now: Timestamp) -> Self {
        let mut resumed = Self {
            counts,
            ..Self::new(span, limit)
        };
        resumed.advance(now);
        resumed
    }

    /// For [`Self::resumed`].
    pub fn counts(&self) -> &Counts {
        &self.counts
    }

    /// Goes by another limit from here on; what was counted stays counted.
    pub fn set_limit(&mut self, limit: u64) {
        self.limit = limit;
    }

    /// When one more fits, if none does now: always later than now.
    pub fn wait(&mut self, now: Timestamp) -> Option<Timestamp> {
        self.advance(now);
        self.full_until()
    }

    fn full_until(&self) -> Option<Timestamp> {
        let mut over = (self.used() + 1)
            .checked_sub(self.limit)
            .filter(|&over| over > 0)?;
        // Parts are forgotten from the oldest on, until there is room.
        let mut part = self.counts.newest.saturating_sub(self.counts.parts.len() as u64);
        for &count in self.counts.parts.iter().rev() {
            part += 1;
            if count >= over {
                return Some(self.begin(part + PARTS + 1));
            }
            over -= count;
        }
        // A limit of nothing: never, but asked again.
        Some(self.begin(self.counts.newest + PARTS + 1))
    }

    /// Counts one, for which [`Self::wait`] has found room.
    pub fn take(&mut self) {
        self.add(1);
    }

    /// Counts several, whether there is room or not: they may have been used before a crash.
    pub fn add(&mut self, count: u64) {
        match self.counts.parts.first_mut() {
            Some(newest) => *newest = newest.saturating_add(count),
            None => self.counts.parts.push(count),
        }
    }

    /// Takes back one that was taken `at` that moment, out of its own part; where what was counted ahead stands there no more, of the next
    /// before it. What counts for longer than it did is not given back.
    pub fn refund(&mut self, at: Timestamp) {
        let behind = self.counts.newest.saturating_sub(self.number(at));
        let behind = usize::try_from(behind).unwrap_or(usize::MAX);
        let mut since = self.counts.parts.iter_mut().skip(behind);
        if let Some(count) = since.find(|count| **count > 0) {
            *count -= 1;
        }
    }

    /// All that counts now.
    pub fn used(&self) -> u64 {
        self.counts.parts.iter().sum()
    }

    /// What it has counted, and so many more as if they came at a later time. Whoever goes on from it waits for longer than it had
    /// to, if they came before.
    pub fn counts_with(&self, ahead: u64, later: Timestamp) -> Counts {
        let mut counts = self.counts.clone();
        let later = self.number(later);
        if later > counts.newest {
            let between = (counts.newest + 1..=later).map(|_| 0);
            counts.parts = between.chain(counts.parts).collect();
            counts.newest = later;
        }
        match counts.parts.first_mut() {
            Some(newest) => *newest = newest.saturating_add(ahead),
            None => counts.parts.push(ahead),
        }
        counts
    }

    /// When the part after the newest begins.
    pub fn next_part(&self) -> Timestamp {
        self.begin(self.counts.newest + 1)
    }

    /// How finely it counts.
    pub fn part(&self) -> Duration {
        self.part
    }

    /// The limit.
    pub fn limit(&self) -> u64 {
        self.limit
    }

    /// Forgets what is over.
    pub fn advance(&mut self, now: Timestamp) {
        let number = self.number(now);
        let Counts { newest, parts } = &mut self.counts;
        let most = usize::try_from(PARTS + 1).unwrap_or(usize::MAX);
        if *newest == number && (1..=most).contains(&parts.len()) {
            return;
        }
        // What was counted ahead of time, or by a clock that was, has been used by now: it counts as of now.
        let ahead = usize::try_from(newest.saturating_sub(number)).unwrap_or(usize::MAX);
        let ahead = ahead.min(parts.len().saturating_sub(1));
        let early: u64 = parts.drain(..ahead).fold(0, u64::saturating_add);
        let new = usize::try_from(number.saturating_sub(*newest))
            .unwrap_or(most)
            .min(most);
        parts.truncate(most - new);
        let fresh = new.max(usize::from(parts.is_empty()));
        parts.splice(0..0, std::iter::repeat_n(0, fresh));
        *newest = number;
        self.add(early);
    }

    fn number(&self, at: Timestamp) -> u64 {
        at.0 / self.millis()
    }

    fn begin(&self, part: u64) -> Timestamp {
        Timestamp(part.saturating_mul(self.millis()))
    }

    fn millis(&self) -> u64 {
        u64::try_from(self.part.as_millis()).unwrap_or(u64::MAX).max(1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const START: Timestamp = Timestamp(1_700_000_000_000);
    const HOUR: Duration = Duration::from_secs(3_600);

    fn later(secs: u64) -> Timestamp {
        START + Duration::from_secs(secs)
    }

    #[test]
    fn a_limit_is_used_at_once_and_comes_back_after_its_span() {
        let mut window = Window::new(HOUR, 3);
        for _ in 0..3 {
            assert_eq!(window.wait(START), None);
            window.take();
        }
        let at = window.wait(START).unwrap();
        assert!(at >= START + HOUR && at <= START + HOUR + HOUR / 60, "{at:?}");
        assert_eq!(window.clone().wait(later(60)), Some(at));
        assert_eq!(window.wait(at), None);
        assert_eq!(window.used(), 0);
    }

    #[test]
    fn what_is_refunded_fits_again() {
        let mut window = Window::new(HOUR, 1);
        assert_eq!(window.wait(START), None);
        window.take();
        assert!(window.wait(later(61)).is_some());
        window.refund(START);
        assert_eq!(window.wait(later(61)), None);
    }

    /// Sixty came at the end of the hour of one that came to nothing: in the hour from then on no more than sixty come.
    #[test]
    fn what_is_refunded_is_not_of_what_came_later() {
        let mut window = Window::new(HOUR, 60);
        assert_eq!(window.wait(START), None);
        window.take();
        for _ in 1..60 {
            assert_eq!(window.wait(later(3_000)), None);
            window.take();
        }
        window.refund(START);
        assert_eq!(window.wait(later(3_000)), None);
        window.take();
        let again = window.wait(later(3_700)).unwrap();
        assert!(again >= later(3_000) + HOUR, "{again:?}");
        // Its hour is over.
        window.refund(START);
        assert_eq!(window.used(), 60);
    }

    #[test]
    fn one_that_was_in_use_begins_at_its_even_rate() {
        let mut window = Window::spent(HOUR, 600, START);
        assert!(window.wait(START).is_some());
        let mut granted = 0;
        for second in 0..1_800 {
            while window.wait(later(second)).is_none() {
                window.take();
                granted += 1;
            }
        }
        assert!((280..=310).contains(&granted), "{granted} in half an hour");
    }

    #[test]
    fn a_limit_that_shrinks_waits_and_nothing_is_forgotten() {
        let mut window = Window::new(HOUR, 10);
        for second in 0..10 {
            assert_eq!(window.wait(later(second * 120)), None);
            window.take();
        }
        window.set_limit(2);
        let at = window.wait(later(1_200)).unwrap();
        assert!(at >= later(8 * 120) + HOUR, "nine of ten have to go: {at:?}");
    }

    proptest! {
        /// Whoever takes as soon as it may never has more than the limit in any span, and nearly the limit in the long run,
        /// whatever restarts there are.
        #[test]
        fn never_exceeds_in_any_span(
            limit in 1u64..200,
            waits in proptest::collection::vec(0u64..900, 1..60),
            restart in 0usize..60,
        ) {
            let (mut window, mut now) = (Window::new(HOUR, limit), START);
            let mut taken: Vec<Timestamp> = Vec::new();
            for (number, wait) in waits.into_iter().enumerate() {
                now = now + Duration::from_secs(wait);
                if number == restart {
                    window = Window::resumed(HOUR, limit, window.counts().clone(), now);
                }
                while window.wait(now).is_none() {
                    window.take();
                    taken.push(now);
                }
                let at = window.wait(now).unwrap();
                prop_assert!(at > now);
                prop_assert!(at <= now + HOUR + HOUR / 60);
            }
            for (number, &from) in taken.iter().enumerate() {
                let within = taken[number..].iter().filter(|&&at| at.since(from) < HOUR).count();
                prop_assert!(within as u64 <= limit);
            }
        }

        /// Counts are written ahead of use, and a crash goes on from them at any moment: whoever waits is told a moment to come, and
        /// has never more than the limit.
        #[test]
        fn goes_on_from_what_was_written_ahead(
            limit in 1u64..40,
            steps in proptest::collection::vec((0u64..4_000, 1u64..6, 0u64..12_000, any::<bool>()), 1..80),
        ) {
            const MINUTE: Duration = Duration::from_secs(60);
            let (mut window, mut now) = (Window::new(MINUTE, limit), START);
            let mut taken: Vec<Timestamp> = Vec::new();
            for (wait, ahead, later, crashes) in steps {
                now = now + Duration::from_millis(wait);
                window.advance(now);
                let written = window.counts_with(ahead, now + Duration::from_secs(10));
                now = now + Duration::from_millis(later.min(9_999));
                for _ in 0..ahead {
                    if window.wait(now).is_none() {
                        window.take();
                        taken.push(now);
                    }
                }
                if crashes {
                    now = now + Duration::from_millis(later);
                    window = Window::resumed(MINUTE, limit, written, now);
                }
                if let Some(at) = window.wait(now) {
                    prop_assert!(at > now);
                    prop_assert!(at <= now + MINUTE + MINUTE / 60);
                }
            }
            for (number, &from) in taken.iter().enumerate() {
                let within = taken[number..].iter().filter(|&&at| at.since(from) < MINUTE).count();
                prop_assert!(within as u64 <= limit);
            }
        }
    }
}
