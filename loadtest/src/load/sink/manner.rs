//! How a sink behaves, by domain and over time, and how that is written on the command line.

use std::ops::RangeInclusive;
use std::str::FromStr;
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use rand::Rng as _;
use rand::rngs::SmallRng;

/// How a sink behaves.
#[derive(Clone, Debug, Default)]
pub(crate) struct Manner {
    /// Where no rule says otherwise.
    pub(crate) usual: Behaviour,
    /// Each changes what those before it have said, where and while it applies.
    pub(crate) script: Vec<Rule>,
    /// Offers STARTTLS.
    pub(crate) tls: bool,
    /// Connections at once, to all domains together. A further one is told 421 instead of being greeted; where there are more already,
    /// those that begin a message are told so until no more are left.
    pub(crate) most_connections: Option<u64>,
}

impl Manner {
    /// Whether it can be so where there are so many domains: whatever rules apply together.
    pub(crate) fn check(&self, domains: usize) -> anyhow::Result<()> {
        self.usual.check()?;
        for rule in &self.script {
            let last = rule.domains.end();
            ensure!(
                (*last as usize) < domains,
                "--script {rule}: there is no domain {last}, they are 0 to {}",
                domains - 1
            );
        }
        // Wherever rules meet, one of them begins a domain and one of them a time.
        for rule in &self.script {
            let domain = *rule.domains.start();
            for at in self.script.iter().map(|rule| rule.from) {
                let behaviour = self.at(domain, at).check();
                behaviour.with_context(|| {
                    format!(
                        "--script: domain {domain}, {} s after the start",
                        at.as_secs_f64()
                    )
                })?;
            }
        }
        Ok(())
    }

    /// Towards a domain, so long after the sink's start.
    pub(crate) fn at(&self, domain: u32, since: Duration) -> Behaviour {
        let rules = self.script.iter().filter(|rule| rule.applies(domain, since));
        rules.fold(self.usual, |behaviour, rule| Behaviour {
            delay: rule.delay.unwrap_or(behaviour.delay),
            round_trip: rule.round_trip.unwrap_or(behaviour.round_trip),
            defer: rule.defer.unwrap_or(behaviour.defer),
            refuse: rule.refuse.unwrap_or(behaviour.refuse),
        })
    }
}

/// What a domain does with mail.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Behaviour {
    /// Before the reply to the final dot.
    pub(crate) delay: Span,
    /// Before anything is written: a round trip to somewhere far.
    pub(crate) round_trip: Duration,
    /// The shares of recipients that are answered 451 and 550.
    pub(crate) defer: f64,
    pub(crate) refuse: f64,
}

impl Behaviour {
    /// Shares are from 0 to 1, and no more than 1 together.
    pub(crate) fn check(&self) -> anyhow::Result<()> {
        let Self { defer, refuse, .. } = self;
        for (key, share) in [("defer", defer), ("refuse", refuse)] {
            ensure!(
                (0.0..=1.0).contains(share),
                "{key}: a share is from 0 to 1, not {share}"
            );
        }
        ensure!(
            defer + refuse <= 1.0,
            "defer, {defer}, and refuse, {refuse}, are more than 1 together"
        );
        Ok(())
    }
}

/// A time, drawn evenly between two.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Span {
    least: Duration,
    most: Duration,
}

impl Span {
    /// Always this.
    pub(crate) fn just(time: Duration) -> Self {
        Self {
            least: time,
            most: time,
        }
    }

    pub(super) fn draw(self, rng: &mut SmallRng) -> Duration {
        match self.most > self.least {
            true => rng.random_range(self.least..=self.most),
            false => self.least,
        }
    }
}

impl FromStr for Span {
    type Err = anyhow::Error;

    /// Milliseconds, `5`, or between two, `5-50`.
    fn from_str(text: &str) -> anyhow::Result<Self> {
        let (least, most) = text.split_once('-').unwrap_or((text, text));
        let (least, most) = (millis(least)?, millis(most)?);
        ensure!(least <= most, "{text:?}: the shorter time comes first");
        Ok(Self { least, most })
    }
}

/// For some domains and some time: what is otherwise than usual.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Rule {
    domains: RangeInclusive<u32>,
    from: Duration,
    until: Duration,
    delay: Option<Span>,
    round_trip: Option<Duration>,
    defer: Option<f64>,
    refuse: Option<f64>,
    /// As it was written.
    text: String,
}

impl std::fmt::Display for Rule {
    fn fmt(&self, to: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        to.write_str(&self.text)
    }
}

impl Rule {
    fn applies(&self, domain: u32, since: Duration) -> bool {
        self.domains.contains(&domain) && (self.from..self.until).contains(&since)
    }
}

impl FromStr for Rule {
    type Err = anyhow::Error;

    /// `0:delay=5000` or `1-99:defer=0.1,from=10,until=20`: numbers of domains; milliseconds for `delay` (or between two, `5-50`) and
    /// `round-trip`, shares for `defer` and `refuse`, seconds for `from` and `until`.
    fn from_str(text: &str) -> anyhow::Result<Self> {
        let (domains, rest) = text
            .split_once(':')
            .with_context(|| format!("{text:?}: domains, a colon, and what they do"))?;
        let (first, last) = domains.split_once('-').unwrap_or((domains, domains));
        let domain = |text: &str| {
            let number = text.trim().parse::<u32>();
            number.with_context(|| format!("{text:?} is no number of a domain, such as 7 or 10-19"))
        };
        let domains = domain(first)?..=domain(last)?;
        ensure!(
            !domains.is_empty(),
            "domains {first}-{last}: the lower number comes first"
        );
        let mut rule = Self {
            domains,
            from: Duration::ZERO,
            until: Duration::MAX,
            delay: None,
            round_trip: None,
            defer: None,
            refuse: None,
            text: text.to_owned(),
        };
        for pair in rest.split(',') {
            let (key, value) = pair
                .split_once('=')
                .with_context(|| format!("{pair:?} is no key=value"))?;
            rule.set(key.trim(), value.trim())
                .with_context(|| pair.to_owned())?;
        }
        ensure!(
            rule.from < rule.until,
            "from, {} s, is not before until, {} s",
            rule.from.as_secs_f64(),
            rule.until.as_secs_f64()
        );
        rule.shares().check()?;
        Ok(rule)
    }
}

impl Rule {
    fn set(&mut self, key: &str, value: &str) -> anyhow::Result<()> {
        let number = || {
            let number = value.parse::<f64>();
            number.with_context(|| format!("{value:?} is no number"))
        };
        let seconds = || {
            let seconds = Duration::try_from_secs_f64(number()?);
            seconds.with_context(|| format!("{value:?} is no number of seconds"))
        };
        match key {
            "delay" => self.delay = Some(value.parse()?),
            "round-trip" => self.round_trip = Some(millis(value)?),
            "defer" => self.defer = Some(number()?),
            "refuse" => self.refuse = Some(number()?),
            "from" => self.from = seconds()?,
            "until" => self.until = seconds()?,
            other => bail!("{other:?}: there are delay, round-trip, defer, refuse, from and until"),
        }
        Ok(())
    }

    fn shares(&self) -> Behaviour {
        Behaviour {
            defer: self.defer.unwrap_or(0.0),
            refuse: self.refuse.unwrap_or(0.0),
            ..Behaviour::default()
        }
    }
}

fn millis(text: &str) -> anyhow::Result<Duration> {
    let number = text.trim().parse();
    Ok(Duration::from_millis(number.with_context(|| {
        format!("{text:?} is no number of milliseconds")
    })?))
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng as _;

    use super::*;

    #[test]
    fn rules_change_what_they_name_where_and_while_they_apply() {
        let manner = Manner {
            usual: Behaviour {
                delay: Span::just(Duration::from_millis(1)),
                defer: 0.1,
                ..Behaviour::default()
            },
            script: ["1-3:delay=5-50,refuse=0.2", "2:defer=0.5,from=10,until=20.5"]
                .map(|rule| rule.parse().unwrap())
                .to_vec(),
            ..Manner::default()
        };
        let secs = Duration::from_secs_f64;
        assert_eq!(manner.at(0, secs(15.0)), manner.usual);
        let one = manner.at(1, secs(15.0));
        assert_eq!((one.defer, one.refuse), (0.1, 0.2));
        assert_eq!(one.delay, "5-50".parse().unwrap());
        for (at, defer) in [(9.0, 0.1), (10.0, 0.5), (20.0, 0.5), (20.5, 0.1)] {
            assert_eq!(manner.at(2, secs(at)).defer, defer, "{at}");
        }
        let mut rng = SmallRng::seed_from_u64(1);
        for _ in 0..100 {
            let drawn = one.delay.draw(&mut rng);
            assert!((Duration::from_millis(5)..=Duration::from_millis(50)).contains(&drawn));
        }
        for (wrong, said) in [
            ("", "domains, a colon, and what they do"),
            ("0", "domains, a colon, and what they do"),
            ("a:delay=1", "\"a\" is no number of a domain"),
            ("9-5:delay=1", "domains 9-5: the lower number comes first"),
            ("0:delay", "\"delay\" is no key=value"),
            ("0:delay=x", "delay=x: \"x\" is no number of milliseconds"),
            ("0:delay=9-5", "the shorter time comes first"),
            ("0:defer=x", "defer=x: \"x\" is no number"),
            ("0:defer=2", "defer: a share is from 0 to 1, not 2"),
            ("0:refuse=-0.1", "refuse: a share is from 0 to 1, not -0.1"),
            ("0:defer=NaN", "defer: a share is from 0 to 1"),
            (
                "0:defer=0.6,refuse=0.6",
                "defer, 0.6, and refuse, 0.6, are more than 1 together",
            ),
            ("0:from=-1", "from=-1: \"-1\" is no number of seconds"),
            (
                "0:delay=1,from=20,until=10",
                "from, 20 s, is not before until, 10 s",
            ),
            ("0:delay=1,until=0", "from, 0 s, is not before until, 0 s"),
            ("0:shout=1", "\"shout\": there are delay, round-trip"),
        ] {
            let error = format!("{:#}", wrong.parse::<Rule>().unwrap_err());
            assert!(error.contains(said), "{wrong}: {error}");
        }
    }

    #[test]
    fn rules_are_held_against_the_domains_and_one_another() {
        let manner = |defer, script: &[&str]| Manner {
            usual: Behaviour {
                defer,
                ..Behaviour::default()
            },
            script: script.iter().map(|rule| rule.parse().unwrap()).collect(),
            ..Manner::default()
        };
        let apart = ["0-5:defer=0.6,until=20", "0-9:refuse=0.6,from=20"];
        manner(0.1, &apart).check(10).unwrap();
        for (manner, said) in [
            (manner(1.5, &[]), "defer: a share is from 0 to 1, not 1.5"),
            (
                manner(0.0, &["1-10:delay=5"]),
                "--script 1-10:delay=5: there is no domain 10, they are 0 to 9",
            ),
            (
                manner(0.5, &["3:refuse=0.6"]),
                "--script: domain 3, 0 s after the start: defer, 0.5, and refuse, 0.6, are more than 1 together",
            ),
            (
                manner(0.0, &["0-5:defer=0.6,until=20", "3-9:refuse=0.6,from=19"]),
                "--script: domain 3, 19 s after the start: defer, 0.6, and refuse, 0.6, are more than 1 together",
            ),
        ] {
            let error = format!("{:#}", manner.check(10).unwrap_err());
            assert_eq!(error, said);
        }
    }
}
