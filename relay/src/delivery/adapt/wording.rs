//! How long a reply asks us to wait, where it says so.

use std::time::Duration;

/// No wait that a reply asks for is shorter, or longer.
pub const WAITS: std::ops::RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_secs(86_400);

/// Words of a reply that are looked at.
const LOOKED_AT: usize = 200;

/// The time after which the peer wants us again: "try again in 5 minutes", "retry after 300 seconds", "please wait 15 min", "come back
/// in 00:05:00". A time that is told of something else ("100 messages per hour") is none. Always within [`WAITS`].
pub fn wait(text: &str) -> Option<Duration> {
    let lower = text.to_ascii_lowercase();
    let words: Vec<&str> = lower.split_whitespace().take(LOOKED_AT).map(bare).collect();
    let mut asked = false;
    let mut at = 0;
    while at < words.len() {
        if asked && let Some((time, taken)) = time(&words[at..]) {
            let more = follows(&words[at + taken..]);
            return Some(time.saturating_add(more).clamp(*WAITS.start(), *WAITS.end()));
        }
        let word = words[at];
        asked = ASKS.contains(&word) || (asked && FILLERS.contains(&word));
        at += 1;
    }
    None
}

/// Words that ask to wait; the time follows, with nothing but [`FILLERS`] in between.
const ASKS: [&str; 12] = [
    "again",
    "retry",
    "retrying",
    "wait",
    "waiting",
    "back",
    "later",
    "resend",
    "delay",
    "delayed",
    "reconnect",
    "retry-after",
];

/// "Within 5 minutes" is not among them: it asks for the opposite.
const FILLERS: [&str; 17] = [
    "in",
    "after",
    "for",
    "at",
    "least",
    "about",
    "approximately",
    "another",
    "the",
    "next",
    "of",
    "please",
    "minimum",
    "mail",
    "it",
    "your",
    "is",
];

fn bare(word: &str) -> &str {
    word.trim_matches(|c: char| !c.is_ascii_alphanumeric())
}

/// A time at the beginning of `words`, and how many of them it takes.
fn time(words: &[&str]) -> Option<(Duration, usize)> {
    let first = *words.first()?;
    if let Some(time) = clock(first) {
        return Some((time, 1));
    }
    let digits = first.len() - first.trim_start_matches(|c: char| c.is_ascii_digit()).len();
    let (number, rest) = first.split_at(digits);
    if digits > 0 && !rest.is_empty() {
        return Some((times(number.parse().ok()?, unit(rest)?), 1));
    }
    let number = match first {
        "a" | "an" | "one" => 1,
        "few" | "several" => return None,
        number => number.parse().ok()?,
    };
    Some((times(number, unit(words.get(1)?)?), 2))
}

/// "1 minute and 30 seconds".
fn follows(words: &[&str]) -> Duration {
    let words = match words.first() {
        Some(&"and") => &words[1..],
        _ => words,
    };
    time(words).map_or(Duration::ZERO, |(time, _)| time)
}

/// `00:05:00`, or `05:00`.
fn clock(word: &str) -> Option<Duration> {
    let parts: Vec<&str> = word.split(':').collect();
    if !(2..=3).contains(&parts.len()) {
        return None;
    }
    let mut seconds = 0_u64;
    for part in parts {
        if !(1..=2).contains(&part.len()) {
            return None;
        }
        seconds = seconds * 60 + part.parse::<u64>().ok()?;
    }
    Some(Duration::from_secs(seconds))
}

fn unit(word: &str) -> Option<Duration> {
    Some(Duration::from_secs(match word {
        "s" | "sec" | "secs" | "second" | "seconds" => 1,
        "m" | "min" | "mins" | "minute" | "minutes" | "mn" => 60,
        "h" | "hr" | "hrs" | "hour" | "hours" => 3_600,
        "d" | "day" | "days" => 86_400,
        _ => return None,
    }))
}

fn times(number: u64, unit: Duration) -> Duration {
    Duration::from_secs(number.saturating_mul(unit.as_secs()))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_common_wordings() {
        for (text, seconds) in [
            ("Greylisted, please try again in 5 minutes", 300),
            ("Too many connections, retry after 300 seconds", 300),
            ("please wait 15 min", 900),
            ("Greylisting in action, please come back in 00:05:00", 300),
            ("Try again in 04:59", 299),
            ("try again in 1 hour.", 3_600),
            ("Please try again after 2 hours", 7_200),
            ("rate limited (retry in 60s)", 60),
            ("retry-after: 120 sec", 120),
            ("wait for at least 10mins before trying", 600),
            ("Please retry your mail in an hour", 3_600),
            ("try later in 1 minute and 30 seconds", 90),
            ("come back in 5minutes, thank you", 300),
            (
                "100 messages per 5 minutes is the limit. Try again in 7 minutes",
                420,
            ),
            ("try again in 3 days", 86_400),
            ("try again in 0 seconds", 1),
            ("try again in 99999999999999999 hours", 86_400),
            // Both are the longest time that there is.
            ("wait 9999999999999999 days and 9999999999999999 days", 86_400),
        ] {
            assert_eq!(wait(text), Some(Duration::from_secs(seconds)), "{text}");
        }
    }

    #[test]
    fn times_of_something_else() {
        for text in [
            "try again later",
            "Try again later, the limit is 100 messages per 5 minutes",
            "you may send 100 messages in 5 minutes",
            "no activity for 300 seconds, closing",
            "timeout after 5 minutes of silence",
            "try again in a few minutes",
            "retry within 5 minutes",
            "try again in 5",
            "come back in 5 messages",
            "wait 1:2:3:4",
            "",
        ] {
            assert_eq!(wait(text), None, "{text}");
        }
    }

    proptest! {
        #[test]
        fn whatever_it_says_it_is_read_and_bounded(text in ".{0,300}", number in any::<u64>(), unit in "[a-z]{1,8}") {
            for text in [text.clone(), format!("try again in {number} {unit} {text}"), format!("{text} wait {number}{unit}"), format!("wait {number} days {number} days")] {
                prop_assert!(wait(&text).is_none_or(|wait| WAITS.contains(&wait)));
            }
        }
    }
}
