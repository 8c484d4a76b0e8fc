//! How slow a lane goes after refusals, and how it comes back: a value, and what changes it.

use std::time::Duration;

use mail_core::Timestamp;
use queue::Refused;

/// A lane that has worked for so long without a refusal goes a step faster; and so long a level that was refused is left alone
/// the first time.
pub const STEP: Duration = Duration::from_secs(60);

/// A level that is refused again and again is left alone for so long at the most.
pub const LONGEST_WAIT: Duration = Duration::from_secs(3_600);

/// No lane is made slower than this, in messages a second, unless it is configured to be.
pub const SLOWEST: f64 = 0.1;

/// What is left after a refusal of connections or messages.
const LESS: f64 = 0.85;

/// What is left of the connections that work where a further one was refused.
const BELOW: f64 = 0.9;

/// A rate's step up.
const FASTER: f64 = 1.15;

/// A lane without a rate that sends less than this when it is refused was not refused for its rate.
const SLOWEST_MEASURED: f64 = 1.0;

/// What a lane may do by its configuration, and by what operators have set.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Limits {
    /// Connections at once.
    pub connections: usize,
    /// Messages a second, where there is a limit.
    pub rate: Option<f64>,
}

/// What was refused.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum How {
    /// One more connection, while so many work.
    Further {
        /// At least one.
        working: usize,
    },
    /// What was said over a connection, or every connection.
    Words {
        /// Connections that were in use.
        in_use: usize,
        /// Messages begun lately, a second.
        rate: f64,
    },
}

/// How slow a lane goes. It is never faster than its limits, and never stops.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Pace {
    /// Connections at once; at least one.
    connections: usize,
    /// Messages a second, where they are fewer than configured.
    rate: Option<f64>,
    /// The rate at which a lane without one is let go.
    goal: f64,
    /// When it went slower first.
    pub since: Timestamp,
    /// When the last step was taken, up or down.
    pub changed: Timestamp,
    /// Where it was refused last.
    refused: Refused,
}

impl Pace {
    /// A step down: of a lane that went by `before`, if it was slower than its limits already.
    pub fn slower(before: Option<Self>, how: How, limits: Limits, now: Timestamp) -> Self {
        let most = limits.connections.max(1);
        let present = before.map_or(most, |pace| pace.connections.min(most));
        let mut pace = before.unwrap_or(Self {
            connections: present,
            rate: None,
            goal: f64::INFINITY,
            since: now,
            changed: now,
            refused: Refused::default(),
        });
        let again = match how {
            How::Further { working } => {
                let working = working.max(1);
                pace.connections = share(working, BELOW).min(present);
                let again = pace.refuses_connections(working);
                pace.refused.connections = u32::try_from(working).ok();
                again
            }
            How::Words { in_use, rate } => {
                let base = in_use.clamp(1, present);
                pace.connections = share(base, LESS);
                let present_rate = [pace.rate, limits.rate].into_iter().flatten();
                let base_rate = present_rate.fold(rate.max(SLOWEST_MEASURED), f64::min);
                if pace.rate.is_none() {
                    pace.goal = limits.rate.unwrap_or(base_rate);
                }
                pace.rate = Some((base_rate * LESS).max(slowest(limits)));
                let again = pace.refuses_connections(base) || pace.refuses_rate(base_rate);
                pace.refused.connections = u32::try_from(base).ok();
                pace.refused.rate = Some(base_rate);
                again
            }
        };
        let wait = Duration::from_millis(pace.refused.wait_millis);
        let wait = if again { wait * 2 } else { STEP };
        pace.refused.wait_millis = millis(wait.clamp(STEP, LONGEST_WAIT));
        pace.changed = now;
        pace
    }

    /// Something got through, with so many connections working, at this rate. A step up, if it is time for one: `None` where the
    /// lane goes by its limits again.
    pub fn worked(self, working: usize, rate: f64, limits: Limits, now: Timestamp) -> Option<Self> {
        let mut pace = self;
        let for_long = now >= self.changed + STEP;
        if for_long
            && self
                .refused
                .connections
                .is_some_and(|refused| working > refused as usize)
        {
            pace.refused.connections = None;
        }
        if for_long && self.refused.rate.is_some_and(|refused| rate > refused) {
            pace.refused.rate = None;
        }
        let most = limits.connections.max(1);
        let connections = (pace.connections + (pace.connections / 10).max(1)).min(most);
        let goal = limits.rate.unwrap_or(pace.goal);
        let faster = pace.rate.map(|rate| rate * FASTER).filter(|&rate| rate < goal);
        let goes_beyond = pace.goes_beyond(connections, faster);
        let wait = if goes_beyond { self.wait() } else { STEP };
        if now < self.changed + wait {
            return Some(pace);
        }
        if connections >= most && faster.is_none() {
            return None;
        }
        pace.connections = connections;
        pace.rate = faster;
        pace.changed = now;
        Some(pace)
    }

    /// Connections at once, within the limits of now.
    pub fn connections(&self, limits: Limits) -> usize {
        self.connections.min(limits.connections).max(1)
    }

    /// Messages a second, where they are fewer than by the limits of now.
    pub fn rate(&self, limits: Limits) -> Option<f64> {
        self.rate
            .filter(|&rate| limits.rate.is_none_or(|limit| rate < limit))
    }

    /// So many connections were not refused before; more are opened one by one.
    pub fn is_known(&self, connections: usize) -> bool {
        let refused = self.refused.connections;
        refused.is_none_or(|refused| connections <= share(refused as usize, BELOW))
    }

    /// Where it was refused last.
    pub fn refused(&self) -> Refused {
        self.refused
    }

    /// As it was written down.
    pub fn read(record: &queue::AdjustmentRecord) -> Self {
        let connections = record.connections.map_or(usize::MAX, |most| most as usize);
        let refused = record.refused.unwrap_or_default();
        let longest = millis(LONGEST_WAIT);
        Self {
            connections: connections.max(1),
            // What is no rate is none.
            rate: record.rate.filter(|rate| *rate > 0.0),
            goal: refused.rate.unwrap_or(f64::INFINITY),
            since: record.since,
            changed: record.changed,
            refused: Refused {
                wait_millis: refused.wait_millis.clamp(millis(STEP), longest),
                ..refused
            },
        }
    }

    fn wait(&self) -> Duration {
        Duration::from_millis(self.refused.wait_millis).max(STEP)
    }

    /// That level was refused before, or one that is hardly lower.
    fn refuses_connections(&self, level: usize) -> bool {
        let before = self.refused.connections;
        before.is_some_and(|before| level as f64 <= f64::from(before) * 1.1)
    }

    fn refuses_rate(&self, level: f64) -> bool {
        self.refused.rate.is_some_and(|before| level <= before * 1.1)
    }

    fn goes_beyond(&self, connections: usize, rate: Option<f64>) -> bool {
        let beyond = |refused: f64| rate.is_none_or(|rate| rate > refused * LESS);
        let beyond_rate = self.rate.is_some() && self.refused.rate.is_some_and(beyond);
        !self.is_known(connections) || beyond_rate
    }
}

/// At least one.
fn share(of: usize, share: f64) -> usize {
    ((of as f64 * share) as usize).max(1)
}

fn slowest(limits: Limits) -> f64 {
    limits.rate.map_or(SLOWEST, |rate| rate.min(SLOWEST))
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const NOW: Timestamp = Timestamp(1_700_000_000_000);
    const WIDE: Limits = Limits {
        connections: 200,
        rate: None,
    };

    fn words(in_use: usize, rate: f64) -> How {
        How::Words { in_use, rate }
    }

    #[test]
    fn a_further_connection_that_is_refused_leaves_nine_tenths_of_those_that_work() {
        for (working, expected) in [(50, 45), (10, 9), (2, 1), (1, 1)] {
            let pace = Pace::slower(None, How::Further { working }, WIDE, NOW);
            assert_eq!(pace.connections(WIDE), expected);
            assert_eq!(pace.rate(WIDE), None, "it was not refused for its rate");
        }
    }

    #[test]
    fn words_take_15_hundredths_of_connections_and_rate() {
        let pace = Pace::slower(None, words(40, 20.0), WIDE, NOW);
        assert_eq!((pace.connections(WIDE), pace.rate(WIDE)), (34, Some(17.0)));
        let limits = Limits {
            connections: 10,
            rate: Some(2.0),
        };
        let pace = Pace::slower(None, words(40, 20.0), limits, NOW);
        assert_eq!((pace.connections(limits), pace.rate(limits)), (8, Some(1.7)));
        let quiet = Pace::slower(None, words(1, 0.02), WIDE, NOW);
        assert_eq!(
            quiet.rate(WIDE),
            Some(0.85),
            "that is not slow enough to be the cause"
        );
    }

    /// Steps up of a lane that always works and is never refused: after how many seconds, to how many connections.
    fn recovery(mut pace: Pace, limits: Limits) -> Vec<(u64, usize)> {
        let mut steps = Vec::new();
        let begun = pace.changed;
        for second in 1..40_000 {
            let now = begun + Duration::from_secs(second);
            match pace.worked(pace.connections(limits), 1_000.0, limits, now) {
                Some(next) if next.changed != pace.changed => {
                    steps.push((second, next.connections(limits)));
                    pace = next;
                }
                Some(next) => pace = next,
                None => {
                    steps.push((second, limits.connections));
                    return steps;
                }
            }
        }
        panic!("{pace:?} does not end");
    }

    #[test]
    fn a_step_up_each_minute_until_the_limits_hold() {
        let pace = Pace::slower(None, How::Further { working: 10 }, WIDE, NOW);
        let steps = recovery(pace, WIDE);
        assert_eq!(steps[..3], [(60, 10), (120, 11), (180, 12)]);
        assert_eq!(steps.last().unwrap().1, 200);
        assert!(steps.last().unwrap().0 < 3_600, "{steps:?}");
    }

    /// The wait before a level that was refused doubles up to an hour, and no further.
    #[test]
    fn a_level_that_is_refused_again_is_left_alone_for_longer() {
        let mut pace = Pace::slower(None, How::Further { working: 50 }, WIDE, NOW);
        let mut waits = Vec::new();
        for _ in 0..9 {
            let begun = pace.changed;
            let mut now = begun;
            while pace.changed == begun {
                now = now + Duration::from_secs(1);
                pace = pace.worked(45, 9.0, WIDE, now).unwrap();
            }
            waits.push(now.since(begun).as_secs());
            assert_eq!(pace.connections(WIDE), 49);
            pace = Pace::slower(Some(pace), How::Further { working: 50 }, WIDE, now);
            assert_eq!(pace.connections(WIDE), 45);
        }
        assert_eq!(waits, [60, 120, 240, 480, 960, 1_920, 3_600, 3_600, 3_600]);
    }

    #[test]
    fn a_level_that_holds_after_all_is_forgotten() {
        let pace = Pace::slower(None, How::Further { working: 50 }, WIDE, NOW);
        let pace = Pace::slower(Some(pace), How::Further { working: 50 }, WIDE, NOW);
        assert!(!pace.is_known(46));
        let later = pace.worked(51, 9.0, WIDE, NOW + STEP).unwrap();
        assert!(later.is_known(51));
    }

    #[test]
    fn it_reads_as_it_was_written() {
        let pace = Pace::slower(None, words(40, 20.0), WIDE, NOW);
        let record = queue::AdjustmentRecord {
            key: queue::AdjustmentKey::learned(queue::Scope::default(), None),
            since: pace.since,
            changed: pace.changed,
            until: None,
            connections: u32::try_from(pace.connections(WIDE)).ok(),
            rate: pace.rate(WIDE),
            refused: Some(pace.refused()),
            cause: String::new(),
            host: None,
            class: None,
            by: "reply".into(),
        };
        assert_eq!(Pace::read(&record), pace);
    }

    #[derive(Clone, Debug)]
    enum Happens {
        Refused(How),
        Works { working: usize, rate: f64 },
        Limits(usize, Option<f64>),
    }

    fn happens() -> impl Strategy<Value = (u64, Happens)> {
        let further = (0_usize..300).prop_map(|working| Happens::Refused(How::Further { working }));
        let words = (0_usize..300, 0.0..500.0_f64)
            .prop_map(|(in_use, rate)| Happens::Refused(How::Words { in_use, rate }));
        let works =
            (0_usize..300, 0.0..500.0_f64).prop_map(|(working, rate)| Happens::Works { working, rate });
        let limits = (1_usize..300, proptest::option::of(0.01..500.0_f64))
            .prop_map(|(connections, rate)| Happens::Limits(connections, rate));
        let what = prop_oneof![2 => further, 2 => words, 20 => works, 1 => limits];
        (0_u64..200_000, what)
    }

    proptest! {
        /// Never above the limits, never below one connection and the slowest rate, whatever happens; and once nothing is refused any
        /// more, the limits hold again.
        #[test]
        fn within_bounds_always_and_back_in_the_end(all in proptest::collection::vec(happens(), 0..200)) {
            let mut limits = Limits { connections: 60, rate: Some(50.0) };
            let mut pace: Option<Pace> = None;
            let mut now = NOW;
            for (millis, what) in all {
                now = Timestamp(now.0 + millis);
                let before = pace;
                match what {
                    Happens::Refused(how) => {
                        pace = Some(Pace::slower(pace, how, limits, now));
                        if let (Some(before), Some(after)) = (before, pace) {
                            prop_assert!(after.connections(limits) <= before.connections(limits));
                        }
                    }
                    Happens::Works { working, rate } => {
                        pace = pace.and_then(|pace| pace.worked(working, rate, limits, now));
                        if let (Some(before), Some(after)) = (before, pace) {
                            prop_assert!(after.changed == before.changed || now >= before.changed + STEP);
                        }
                    }
                    Happens::Limits(connections, rate) => limits = Limits { connections, rate },
                }
                if let Some(pace) = pace {
                    let connections = pace.connections(limits);
                    prop_assert!((1..=limits.connections).contains(&connections));
                    if let Some(rate) = pace.rate(limits) {
                        prop_assert!(rate >= SLOWEST.min(limits.rate.unwrap_or(SLOWEST)) || rate >= 0.01 * LESS, "{rate}");
                        prop_assert!(limits.rate.is_none_or(|limit| rate < limit));
                    }
                    prop_assert!(pace.wait() <= LONGEST_WAIT && pace.wait() >= STEP);
                }
            }
            let mut steps = 0;
            while let Some(slow) = pace {
                now = now + LONGEST_WAIT;
                pace = slow.worked(slow.connections(limits), slow.rate(limits).unwrap_or(500.0), limits, now);
                steps += 1;
                prop_assert!(steps < 200, "{slow:?} does not end");
            }
        }
    }
}
