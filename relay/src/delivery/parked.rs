//! Where suspended queues sleep: in the catalogue behind all times, in the order in which what suspends them ends. Nobody looks at them before
//! that, unless there are fewer suspensions (`shard/parked.rs`).

use mail_core::Timestamp;

/// No clock gets here.
const BEHIND: u64 = 1 << 62;

/// Before all that are parked, and behind all others.
pub const FIRST: Timestamp = Timestamp(BEHIND);

/// When a queue is to wake that is suspended until then; without an end it is not to.
pub fn wake(until: Option<Timestamp>) -> Timestamp {
    until.map_or(Timestamp::MAX, |until| Timestamp(BEHIND + until.0.min(BEHIND)))
}

/// When a queue wakes by itself, by what the catalogue says.
pub fn time(wake: Timestamp) -> Option<Timestamp> {
    match wake {
        Timestamp::MAX => None,
        Timestamp(BEHIND..) => Some(Timestamp(wake.0 - BEHIND)),
        _ => Some(wake),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sooner_it_ends_the_sooner_it_wakes_and_never_before_others() {
        let day = Timestamp(1_700_000_000_000);
        let ends = [Some(Timestamp(0)), Some(day), Some(Timestamp(u64::MAX)), None];
        let wakes = ends.map(wake);
        assert!(wakes.is_sorted(), "{wakes:?}");
        assert!(wakes.iter().all(|&wake| wake >= FIRST));
        assert_eq!(
            [wake(Some(day)), wake(None), day].map(time),
            [Some(day), None, Some(day)]
        );
    }
}
