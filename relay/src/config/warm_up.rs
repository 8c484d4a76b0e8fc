//! Warm-up: how much a new source may send to each provider, day by day.

use std::str::FromStr;
use std::time::Duration;

use mail_core::Timestamp;

use super::section::Section;

/// What days are counted in.
const DAY: Duration = Duration::from_secs(86_400);

/// The longest warm-up, in days.
const MOST_DAYS: u64 = 365;

/// The most on a day.
const MOST: u64 = 1_000_000_000;

/// So many messages on the first day, and more by a factor on each that follows, until it is over.
#[derive(Clone, Debug, PartialEq)]
pub struct WarmUp {
    /// The first day, in days since 1970; days begin at midnight UTC.
    first_day: u64,
    first: u64,
    factor: f64,
    days: u64,
}

impl WarmUp {
    /// What may be sent in 24 hours, to each provider, and to each site that is nobody's; `None` once the source is warm. Nothing
    /// before the first day.
    pub fn volume(&self, now: Timestamp) -> Option<u64> {
        let today = day(now);
        let Some(since) = today.checked_sub(self.first_day) else {
            return Some(0);
        };
        if since >= self.days {
            return None;
        }
        let grown = self.first as f64 * self.factor.powf(since as f64);
        Some((grown as u64).min(MOST))
    }

    /// Which day of how many it is, from 1, or 0 before the first; `None` once the source is warm.
    pub fn day(&self, now: Timestamp) -> Option<(u64, u64)> {
        let number = (day(now) + 1).saturating_sub(self.first_day);
        (number <= self.days).then_some((number, self.days))
    }
}

/// Days since 1970, in UTC.
pub fn day(now: Timestamp) -> u64 {
    now.since(Timestamp(0)).as_secs() / DAY.as_secs()
}

/// Reads `[source.warm_up]`, where it is there.
pub(super) fn warm_up(source: &mut Section<'_>) -> Option<WarmUp> {
    let is_there = source.has("warm_up");
    let mut section = source.section("warm_up");
    let start = section.parsed::<Day>("start");
    let first = section.optional_integer("first", 1..=MOST);
    let days = section.optional_integer("days", 1..=MOST_DAYS);
    let factor = section.number_or("factor", 1.0..=10.0, 1.5);
    let start = if is_there {
        section.required("start", start, "its first day, such as \"2026-12-01\" (UTC)")
    } else {
        None
    };
    for (key, value) in [("first", first), ("days", days)] {
        if is_there && value.is_none() && !section.has(key) {
            let what = match key {
                "first" => "how many messages may go to each provider on the first day, such as 50",
                _ => "after how many days the source is warm, such as 30",
            };
            section.required::<()>(key, None, what);
        }
    }
    section.end();
    Some(WarmUp {
        first_day: start?.value.0,
        first: first?,
        factor,
        days: days?,
    })
}

/// A day, as `2026-12-01`.
struct Day(u64);

impl FromStr for Day {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = |error: jiff::Error| format!("is no day, such as 2026-12-01: {error}");
        let date: jiff::civil::Date = text.parse().map_err(wrong)?;
        let begin = date.to_zoned(jiff::tz::TimeZone::UTC).map_err(wrong)?.timestamp();
        u64::try_from(begin.as_second())
            .map(|seconds| Self(seconds / DAY.as_secs()))
            .map_err(|_| "is before 1970".to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_grows_day_by_day_until_it_is_over() {
        let first: Day = "2023-11-14".parse().unwrap();
        let warm_up = WarmUp {
            first_day: first.0,
            first: 50,
            factor: 2.0,
            days: 4,
        };
        // 14 November 2023, 22:13:20 UTC.
        let at = |hours: i64| Timestamp(1_700_000_000_000_u64.saturating_add_signed(hours * 3_600_000));
        let volumes: Vec<_> = [-24, 0, 2, 24, 50, 96]
            .map(|hours| warm_up.volume(at(hours)))
            .to_vec();
        assert_eq!(
            volumes,
            [Some(0), Some(50), Some(100), Some(100), Some(400), None]
        );
        assert_eq!(warm_up.day(at(-24)), Some((0, 4)));
        assert_eq!(warm_up.day(at(0)), Some((1, 4)));
        assert_eq!(warm_up.day(at(96)), None);
    }

    #[test]
    fn what_is_no_day_is_told() {
        assert!("2026-13-01".parse::<Day>().is_err());
        assert!("1969-12-31".parse::<Day>().is_err());
    }
}
