//! Scenarios of limits, ours and a provider's; and rules of every kind, so wide that they limit nothing.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use anyhow::ensure;

use super::acts::no_backlog;
use super::run::{Course, Stage, waiting};
use super::{Figure, Name, Plan};
use crate::load::sink::Manner;
use crate::signals;

/// The span over which a rate has to be what it is meant to be.
const OVER: Duration = Duration::from_secs(10);
/// A crowded provider's time for a message.
const TAKES: Duration = Duration::from_millis(500);
/// How often open connections are counted.
const COUNT_EVERY: Duration = Duration::from_millis(100);
/// The longest wait for a lane to have all its connections.
const PATIENCE: Duration = Duration::from_secs(30);
/// A lane that has settled has this share of the connections it may have, at the least.
const ENOUGH: f64 = 0.8;
/// Sources of a pool, where there are rules.
const SOURCES: usize = 2;

/// To a site, or to all sites of a provider, as many messages a second as the limit lets through.
pub(super) fn rate(stage: &mut Stage<'_>) -> anyhow::Result<Course> {
    let plan = stage.plan;
    stage.warm_up(0, plan.domains)?;
    let before = stage.spent()?;
    let letters = stage.letters(0, plan.domains, 0.0)?;
    let main = stage.load(stage.mail(letters, plan.messages))?;
    stage.until_arrived()?;
    let after = stage.spent()?;
    let numbers = main.numbers();
    let arrivals = stage.sink.arrivals().into_iter();
    let mut at: Vec<Duration> = arrivals
        .filter(|arrival| numbers.contains(&arrival.number))
        .map(|arrival| arrival.at)
        .collect();
    at.sort_unstable();
    let lasts = at
        .last()
        .zip(at.first())
        .map_or(0, |(last, first)| (*last - *first).as_secs());
    let over = OVER.min(Duration::from_secs(lasts.saturating_sub(1).max(1)));
    let a_second = |count: usize| count as f64 / over.as_secs_f64();
    let (fewest, most) = counts_within(&at, over);
    let (_, most_in_one) = counts_within(&at, Duration::from_secs(1));
    Ok(Course {
        figures: vec![
            Figure::new("fewest, over 10 s", a_second(fewest), "/s"),
            Figure::new("most, over 10 s", a_second(most), "/s"),
            Figure::new("most in any second", most_in_one as f64, "messages"),
        ],
        ..Course::new(main, before, after)
    })
}

/// The fewest and the most of these moments, which are in order, in any span of this length: of spans that begin with one of them, and for
/// the fewest end before the last.
fn counts_within(at: &[Duration], span: Duration) -> (usize, usize) {
    let (mut fewest, mut most) = (usize::MAX, 0);
    for (first, begin) in at.iter().enumerate() {
        let end = at.partition_point(|moment| *moment < *begin + span);
        most = most.max(end - first);
        if end < at.len() {
            fewest = fewest.min(end - first);
        }
    }
    (fewest.min(most), most)
}

/// A provider that takes its time, and from some moment on bears half of the connections it is sent over.
pub(super) fn crowded(stage: &mut Stage<'_>) -> anyhow::Result<Course> {
    let plan = stage.plan;
    let most = plan.crowd();
    let minute = Duration::from_secs(if plan.smoke { 2 } else { 60 });
    stage.warm_up(0, 1)?;
    let before = stage.spent()?;
    let letters = stage.letters(0, 1, 0.0)?;
    let main = stage.load(stage.mail(letters, plan.messages))?;
    let open = |stage: &Stage<'_>| stage.sink.counts.open.load(Ordering::Relaxed);
    let since = Instant::now();
    while open(stage) < plan.connections as u64 {
        signals::go_on()?;
        ensure!(
            since.elapsed() < PATIENCE,
            "{} of {} connections were opened",
            open(stage),
            plan.connections
        );
        std::thread::sleep(COUNT_EVERY);
    }
    stage.event("more connections are refused");
    stage.sink.behave(Manner {
        most_connections: Some(most),
        ..plan.manner()?
    });
    let begun = Instant::now();
    let mut counted = Vec::new();
    let mut turned_away_by = [0; 2];
    for turned_away in &mut turned_away_by {
        let until = begun.elapsed() + minute;
        while begun.elapsed() < until {
            signals::go_on()?;
            std::thread::sleep(COUNT_EVERY);
            counted.push((begun.elapsed(), open(stage)));
        }
        *turned_away = stage.sink.counts.turned_away.load(Ordering::Relaxed);
    }
    let waits = waiting(&main.sent.all(), &stage.arrived());
    let after = stage.spent()?;
    stage.event("the provider is quick, and refuses nobody");
    stage.quicken(plan.crowded_takes(), None)?;
    stage.until_arrived()?;
    let is_settled = |open: u64| (most as f64 * ENOUGH..=most as f64).contains(&(open as f64));
    let unsettled = counted.iter().rev().find(|(_, open)| !is_settled(*open));
    let later = || {
        counted
            .iter()
            .filter(|(at, _)| *at > minute)
            .map(|(_, open)| *open as f64)
    };
    let [first, both] = turned_away_by;
    let mut course = Course::new(main, before, after);
    // What was told 421 when it had begun goes after all that was due before: no order is judged.
    course.ordered = Some(0..0);
    course.findings.extend(no_backlog(
        plan,
        waits,
        "no mail was left: nothing wanted more connections",
    ));
    course.figures = vec![
        Figure::new(
            "settled after",
            unsettled.map_or(0.0, |(at, _)| at.as_secs_f64()),
            "s",
        ),
        Figure::new(
            "fewest connections in the next minute",
            later().fold(f64::NAN, f64::min),
            "",
        ),
        Figure::new(
            "most connections in the next minute",
            later().fold(f64::NAN, f64::max),
            "",
        ),
        Figure::new("refused in the first minute", first as f64, ""),
        Figure::new("refused in the next minute", (both - first) as f64, ""),
        Figure::new("mail waiting", waits as f64, "messages"),
    ];
    Ok(course)
}

impl Plan {
    /// Connections that a crowded provider takes.
    pub(super) fn crowd(&self) -> u64 {
        self.connections as u64 / 2
    }

    /// A crowded provider's time for a message.
    pub(super) fn crowded_takes(&self) -> Duration {
        if self.smoke { TAKES / 5 } else { TAKES }
    }

    /// The keys of `[delivery]` and its limits. A lane's are for each source, so each gets its part of them.
    pub(super) fn limits(&self) -> String {
        let sources = if self.rules { SOURCES } else { 1 };
        let pool = if self.rules { "pool = \"both\"\n" } else { "" };
        let connections = (self.connections / sources).max(1);
        let mut text = format!("{pool}[delivery.limits]\nconnections = {connections}\n");
        match (self.name, self.limit) {
            (Name::ProviderRate, _) | (_, None) => {}
            (_, Some(rate)) => {
                text.push_str(&format!("messages_per_second = {}\n", rate / sources as f64));
            }
        }
        text
    }

    /// Tables that come after all others.
    pub(super) fn tables(&self) -> String {
        let mut text = String::new();
        if self.rules || self.name == Name::ProviderRate {
            text.push_str("[[provider]]\nname = \"load\"\nmx = [\"*.load.test\"]\n");
        }
        if let (Name::ProviderRate, Some(rate)) = (self.name, self.limit) {
            text.push_str(&format!(
                "[[limit]]\nprovider = \"load\"\nmessages_per_second = {rate}\n"
            ));
        }
        if self.rules {
            text.push_str(&rules());
        }
        text
    }
}

/// A pool of two sources, a destination, and a limit of each key for each of the parts and each pair of them.
fn rules() -> String {
    let mut text = String::from("[[pool]]\nname = \"both\"\nsources = [\"s2\", \"s3\"]\n");
    for number in 2..2 + SOURCES {
        text.push_str(&format!(
            "[[source]]\nname = \"s{number}\"\naddresses = [\"127.0.0.{number}\"]\nehlo = \"s{number}.sender.test\"\n"
        ));
    }
    text.push_str(
        "[[destination]]\ndomain = \"*.load.test\"\n[destination.limits]\nrecipients_per_transaction = 100\n",
    );
    let parts = ["site", "provider", "tenant", "source"];
    for (number, one) in parts.iter().enumerate() {
        for other in &parts[number..] {
            text.push_str(&format!("[[limit]]\n{one} = \"*\"\n"));
            if one != other {
                text.push_str(&format!("{other} = \"*\"\n"));
            }
            text.push_str(
                "connections = 10_000\nmessages_per_second = 100_000\nmessages_per_minute = 1_000_000_000\n\
                 messages_per_hour = 1_000_000_000\nmessages_per_day = 1_000_000_000\nbytes_in_flight = \"1000GB\"\n",
            );
            if ![one, other].contains(&&"tenant") {
                text.push_str("connections_per_second = 100_000\n");
            }
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_are_counted_wherever_they_begin() {
        let millis = |of: &[u64]| of.iter().map(|ms| Duration::from_millis(*ms)).collect::<Vec<_>>();
        let second = Duration::from_secs(1);
        // The most from 500 on; the last second is not whole, and counts for nothing less.
        let at = millis(&[0, 500, 1_000, 1_100, 1_200, 2_200, 3_400, 3_500]);
        assert_eq!(counts_within(&at, second), (1, 4));
        assert_eq!(counts_within(&[], second), (0, 0));
        assert_eq!(
            counts_within(&millis(&[0, 1_000]), second),
            (1, 1),
            "a second's end is not in it"
        );
    }

    #[test]
    fn a_limit_is_for_all_sources_together() {
        let plan = Plan::of(Name::Otp, 100, "1KiB").unwrap();
        assert!(
            plan.limits()
                .contains("connections = 10\nmessages_per_second = 50\n")
        );
        let ruled = Plan { rules: true, ..plan };
        assert!(
            ruled
                .limits()
                .contains("connections = 5\nmessages_per_second = 25\n")
        );
        assert_eq!(
            ruled.tables().matches("[[limit]]").count(),
            10,
            "each of four, and each pair"
        );
    }
}
