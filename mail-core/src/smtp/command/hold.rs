//! How long MAIL asks for a message to be held (RFC 4865 §3): HOLDFOR, HOLDUNTIL.

use std::time::Duration;

use crate::{Hold, MaxHold, Reply, Timestamp};

use super::bad_value;

/// Digits of HOLDFOR's value.
const MAX_DIGITS: usize = 9;

/// HOLDFOR's value: seconds, at least one, without a leading zero.
pub(super) fn hold_for(value: Option<&str>) -> Result<Hold, Reply> {
    value.and_then(read_interval).map(Hold::For).ok_or_else(bad_value)
}

/// HOLDUNTIL's value: a date-time of RFC 3339 §5.6 (erratum 2040).
pub(super) fn hold_until(value: Option<&str>) -> Result<Hold, Reply> {
    value
        .and_then(read_date_time)
        .map(Hold::Until)
        .ok_or_else(bad_value)
}

/// What EHLO tells behind FUTURERELEASE. A bound that can't be read is one that nobody can know, and so is none.
pub fn max_hold(interval: Option<&str>, until: Option<&str>) -> MaxHold {
    MaxHold {
        interval: interval.and_then(read_interval).unwrap_or(Duration::MAX),
        until: until.and_then(read_date_time).unwrap_or(Timestamp::MAX),
    }
}

fn read_interval(text: &str) -> Option<Duration> {
    let is_number = (1..=MAX_DIGITS).contains(&text.len()) && text.bytes().all(|c| c.is_ascii_digit());
    let seconds = text
        .parse()
        .ok()
        .filter(|_| is_number && !text.starts_with('0'))?;
    Some(Duration::from_secs(seconds))
}

fn read_date_time(text: &str) -> Option<Timestamp> {
    // What is read otherwise is more than the RFC has: other separators, seconds left out.
    let marks = [(4, b'-'), (7, b'-'), (10, b'T'), (13, b':'), (16, b':')];
    let is_marked = |&(at, mark): &(usize, u8)| {
        text.as_bytes()
            .get(at)
            .is_some_and(|octet| octet.to_ascii_uppercase() == mark)
    };
    if !marks.iter().all(is_marked) {
        return None;
    }
    let time: jiff::Timestamp = text.parse().ok()?;
    // Before 1970 is past, too.
    Some(Timestamp(u64::try_from(time.as_millisecond()).unwrap_or(0)))
}

/// A time as RFC 3339 has it, in UTC, to the second; the last one the calendar has where it is later than that.
pub fn date_time(at: Timestamp) -> String {
    let seconds = i64::try_from(at.seconds()).unwrap_or(i64::MAX);
    let time = jiff::Timestamp::from_second(seconds).unwrap_or(jiff::Timestamp::MAX);
    format!("{time:.0}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_and_times_are_read_or_refused() {
        for (value, seconds) in [
            ("1", Some(1)),
            ("86400", Some(86_400)),
            ("999999999", Some(999_999_999)),
            ("1000000000", None),
            ("0", None),
            ("060", None),
            ("-5", None),
            ("+5", None),
            ("1h", None),
            ("", None),
        ] {
            let expected = seconds.map(|seconds| Hold::For(Duration::from_secs(seconds)));
            assert_eq!(hold_for(Some(value)).ok(), expected, "{value}");
        }
        let at = Some(Hold::Until(Timestamp(1_700_000_000_000)));
        for (value, expected) in [
            ("2023-11-14T22:13:20Z", at),
            ("2023-11-14t22:13:20z", at),
            ("2023-11-14T23:13:20+01:00", at),
            ("2023-11-14T22:13:20.000Z", at),
            ("1960-01-01T00:00:00Z", Some(Hold::Until(Timestamp(0)))),
            ("2023-11-14T22:13Z", None),
            ("2023-11-14 22:13:20Z", None),
            ("2023-11-14T22:13:20", None),
            ("2023-13-14T22:13:20Z", None),
            ("20231114T221320Z", None),
            ("tomorrow", None),
            ("", None),
        ] {
            assert_eq!(hold_until(Some(value)).ok(), expected, "{value}");
        }
        assert!(hold_for(None).is_err() && hold_until(None).is_err());
    }

    #[test]
    fn a_time_is_written_as_it_is_read() {
        let at = Timestamp(1_700_000_000_999);
        assert_eq!(date_time(at), "2023-11-14T22:13:20Z");
        assert_eq!(read_date_time(&date_time(at)), Some(Timestamp(1_700_000_000_000)));
        assert!(read_date_time(&date_time(Timestamp::MAX)).is_some());
    }
}
