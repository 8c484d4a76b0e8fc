//! Which hosts answer: an address that let a connection time out, or refused it, is tried last for a while, so that one dead host of
//! two does not cost a lane its rate. It is never left out: where all are dead, all are tried as ever.

use std::cell::RefCell;
use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use mail_core::Timestamp;

/// Addresses that are remembered, and hosts that took a connection, some 100 octets each. Where there is one more, the address
/// that would be tried again first is forgotten.
const MOST: usize = if cfg!(test) { 100 } else { 10_000 };

/// An address is tried last for so long the first time, twice as long the next, and so on.
const FIRST: Duration = Duration::from_secs(300);

/// For so long at the most.
const LONGEST: Duration = Duration::from_secs(3_600);

/// A host that took a connection within this time works.
const WORKS_FOR: Duration = Duration::from_secs(600);

/// How long a dead address may take to answer where another host of the site works.
pub(super) const SHORT: Duration = Duration::from_secs(5);

/// From which source, where one is named, and to where.
pub(super) type Way = (Option<Arc<str>>, SocketAddr);

/// When an address is tried.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Turn {
    /// In its place.
    InPlace,
    /// In its place, to see whether it answers again. Others leave it for last meanwhile.
    Again,
    /// After all others.
    Last,
}

/// See the module. Each shard has one.
#[derive(Debug, Default)]
pub struct Answers(RefCell<Known>);

#[derive(Debug, Default)]
struct Known {
    silent: HashMap<Way, Silent>,
    /// By name, when they took a connection last.
    works: HashMap<String, Timestamp>,
}

#[derive(Clone, Copy, Debug)]
struct Silent {
    until: Timestamp,
    /// How long it is left for last.
    wait: Duration,
}

impl Answers {
    /// When the address is tried.
    pub(super) fn turn(&self, way: &Way, now: Timestamp) -> Turn {
        let mut known = self.0.borrow_mut();
        match known.silent.get_mut(way) {
            None => Turn::InPlace,
            Some(silent) if silent.until > now => Turn::Last,
            Some(silent) => {
                // One connection sees whether it answers: the others go on.
                silent.until = now + silent.wait;
                Turn::Again
            }
        }
    }

    /// It did not answer to what was begun then.
    pub(super) fn is_silent(&self, way: &Way, begun: Timestamp, now: Timestamp) {
        let mut known = self.0.borrow_mut();
        let wait = match known.silent.get(way) {
            // Noted since: many connections may have waited for it at once.
            Some(silent) if silent.until - silent.wait > begun => return,
            Some(silent) => (silent.wait * 2).min(LONGEST),
            None => FIRST,
        };
        if known.silent.len() >= MOST && !known.silent.contains_key(way) {
            let ends = |(way, silent): &(&Way, &Silent)| (silent.until, (*way).clone());
            let first = known.silent.iter().min_by_key(ends);
            if let Some(first) = first.map(|(way, _)| way.clone()) {
                known.silent.remove(&first);
            }
        }
        let until = now + wait;
        known.silent.insert(way.clone(), Silent { until, wait });
    }

    /// It has answered.
    pub(super) fn answers(&self, way: &Way) {
        self.0.borrow_mut().silent.remove(way);
    }

    /// The host took a connection.
    pub(super) fn works(&self, host: &str, now: Timestamp) {
        let mut known = self.0.borrow_mut();
        if let Some(last) = known.works.get_mut(host) {
            *last = now;
            return;
        }
        if known.works.len() >= MOST {
            known.works.retain(|_, last| *last + WORKS_FOR > now);
        }
        if known.works.len() < MOST {
            known.works.insert(host.to_owned(), now);
        }
    }

    /// Whether the host took a connection lately.
    pub(super) fn worked(&self, host: &str, now: Timestamp) -> bool {
        let known = self.0.borrow();
        known.works.get(host).is_some_and(|last| *last + WORKS_FOR > now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Timestamp = Timestamp(1_700_000_000_000);
    const MINUTE: Duration = Duration::from_secs(60);

    fn way(number: u8) -> Way {
        (None, SocketAddr::from(([10, 0, 0, number], 25)))
    }

    #[test]
    fn a_dead_address_is_last_for_five_minutes_then_ten_up_to_an_hour() {
        let answers = Answers::default();
        let mut now = NOW;
        assert_eq!(answers.turn(&way(1), now), Turn::InPlace);
        for minutes in [5, 10, 20, 40, 60, 60] {
            answers.is_silent(&way(1), now, now);
            assert_eq!(answers.turn(&way(2), now), Turn::InPlace);
            now = now + minutes * MINUTE;
            assert_eq!(answers.turn(&way(1), now - Duration::from_millis(1)), Turn::Last);
            assert_eq!(answers.turn(&way(1), now), Turn::Again, "{minutes}");
            assert_eq!(answers.turn(&way(1), now), Turn::Last, "one alone tries");
        }
        answers.answers(&way(1));
        assert_eq!(answers.turn(&way(1), now), Turn::InPlace);
        answers.is_silent(&way(1), now, now);
        assert_eq!(
            answers.turn(&way(1), now + 5 * MINUTE),
            Turn::Again,
            "it begins anew"
        );
    }

    /// Twenty connections wait for it at once: that is one silence, not twenty.
    #[test]
    fn what_was_begun_before_is_the_same_silence() {
        let answers = Answers::default();
        let later = NOW + MINUTE;
        for _ in 0..20 {
            answers.is_silent(&way(1), NOW, later);
        }
        assert_eq!(answers.turn(&way(1), later + 5 * MINUTE), Turn::Again);
    }

    #[test]
    fn a_host_works_for_ten_minutes() {
        let answers = Answers::default();
        assert!(!answers.worked("mx.test", NOW));
        answers.works("mx.test", NOW);
        assert!(answers.worked("mx.test", NOW + 9 * MINUTE));
        assert!(!answers.worked("mx.test", NOW + 10 * MINUTE));
    }

    #[test]
    fn no_more_are_remembered_than_there_is_room_for() {
        let answers = Answers::default();
        for number in 0..=u8::MAX {
            let now = NOW + Duration::from_secs(u64::from(number));
            answers.is_silent(&way(number), now, now);
            answers.works(&format!("mx{number}.test"), now);
        }
        let known = answers.0.borrow();
        assert_eq!((known.silent.len(), known.works.len()), (MOST, MOST));
        assert!(known.silent.contains_key(&way(255)) && !known.silent.contains_key(&way(0)));
    }
}
