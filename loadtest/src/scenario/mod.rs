//! `loadtest scenario`: whole runs that anyone can repeat. Each has a store, a relay and a sink of its own; first a warm-up that drains,
//! then a set number of messages, measured from the first command until the last has arrived; at the end the balance.

mod compare;
mod group;
mod peer;
mod run;
mod trace;
mod usage;

use std::path::PathBuf;
use std::time::Duration;

pub(crate) use compare::{CompareOptions, compare};

use anyhow::ensure;
use clap::{Args, ValueEnum};
use serde::Serialize;

use crate::load::letters::{MAX_DOMAINS, Sizes};
use crate::load::record::{Balance, MAX_MESSAGES, Quantiles};
use crate::load::{Summary, more_descriptors};

/// Options of `loadtest scenario`.
#[derive(Args)]
#[command(after_help = "Examples:\n  \
    loadtest scenario relay accept\n  \
    loadtest scenario relay --size 1KiB --messages 200000 --json\n  \
    loadtest scenario all --smoke")]
pub(crate) struct Options {
    /// Which, one after the other.
    #[arg(required = true, value_enum)]
    names: Vec<Name>,
    #[command(flatten)]
    play: Play,
}

/// How scenarios are played.
#[derive(Args)]
pub(crate) struct Play {
    /// The program `postrider`; unless given, the one beside this program.
    #[arg(long, value_name = "FILE")]
    postrider: Option<PathBuf>,
    /// Where stores are made and removed again. Unless given, a temporary folder.
    #[arg(long, value_name = "FOLDER")]
    folder: Option<PathBuf>,
    /// Messages that are measured; unless given, the scenario's own number.
    #[arg(long)]
    messages: Option<u32>,
    /// Octets of a message, or sizes by weight, as `flood` takes them.
    #[arg(long, default_value = "10KiB")]
    size: Sizes,
    /// Sessions that submit.
    #[arg(long, default_value_t = 100)]
    sessions: usize,
    /// Connections of the relay to each site.
    #[arg(long, default_value_t = 32)]
    connections: usize,
    /// Threads of the sink.
    #[arg(long, default_value_t = 1)]
    sink_threads: usize,
    /// A few hundred messages: loss, damage and order are checked, and no time means anything.
    #[arg(long)]
    smoke: bool,
    /// Print a JSON object a scenario.
    #[arg(long)]
    json: bool,
}

impl Play {
    fn postrider(&self) -> anyhow::Result<PathBuf> {
        Ok(match &self.postrider {
            Some(postrider) => postrider.clone(),
            None => std::env::current_exe()?.with_file_name("postrider"),
        })
    }
}

/// A scenario.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Name {
    /// Every one of the following.
    All,
    /// Into suspended queues: measured until the last is accepted, then all is delivered.
    Accept,
    /// In and out at once, to one domain.
    Relay,
    /// `relay`, signed with RSA-2048.
    RelayDkim,
    /// `relay`, signed with Ed25519.
    RelayDkimEd25519,
    /// `relay`, with STARTTLS on both sides.
    RelayTls,
    /// `relay`, to a thousand domains, each with a host of its own.
    ThousandDomains,
}

impl Name {
    const EACH: [Self; 6] = [
        Self::Accept,
        Self::Relay,
        Self::RelayDkim,
        Self::RelayDkimEd25519,
        Self::RelayTls,
        Self::ThousandDomains,
    ];

    fn messages(self) -> u32 {
        match self {
            // Some 600 MB: more than three memtables.
            Self::Accept => 60_000,
            _ => 50_000,
        }
    }

    fn domains(self) -> usize {
        match self {
            Self::ThousandDomains => 1_000,
            _ => 1,
        }
    }

    /// DKIM's algorithm, as `postrider dkim keygen` names it.
    fn signs(self) -> Option<&'static str> {
        match self {
            Self::RelayDkim => Some("rsa"),
            Self::RelayDkimEd25519 => Some("ed25519"),
            _ => None,
        }
    }
}

impl std::fmt::Display for Name {
    fn fmt(&self, to: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let value = self.to_possible_value();
        to.write_str(value.as_ref().map_or("", |value| value.get_name()))
    }
}

/// What a scenario is played with.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    name: Name,
    messages: u32,
    warm_up: u32,
    domains: usize,
    size: Sizes,
    sessions: usize,
    connections: usize,
    sink_threads: usize,
    /// Where the relay's system calls are written down; it is slow then.
    trace: Option<PathBuf>,
}

/// What it came to.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    scenario: Name,
    messages: u32,
    /// From the first command until the last message has arrived, or for `accept` until the last is accepted.
    seconds: f64,
    per_second: f64,
    /// Of the relay's process with all its threads, in that time, for 1,000 messages.
    cpu_seconds_per_1000: f64,
    /// The highest seen, warm-up included, in MiB.
    peak_memory_mib: f64,
    /// Octets that the relay had written to disk by octets of messages.
    written_by_accepted: f64,
    accept: Summary,
    /// From the reply to the client until the sink's reply; below 0 counts as 0.
    reply_to_arrival_ms: Quantiles,
    /// From the intended begin until the sink's reply.
    begin_to_arrival_ms: Quantiles,
    balance: Balance,
    /// What else should not be.
    findings: Vec<String>,
    /// When it was measured, since 1970.
    #[serde(skip)]
    between: (Duration, Duration),
}

impl Report {
    fn holds(&self) -> bool {
        self.balance.holds() && self.findings.is_empty()
    }

    fn findings(&self) -> impl Iterator<Item = &String> {
        self.balance.findings.iter().chain(&self.findings)
    }

    fn print(&self) {
        println!(
            "{}: {} messages in {:.2} s: {:.0} a second, {:.3} CPU-seconds for 1,000, {:.0} MiB at the most, written ÷ accepted {:.2}",
            self.scenario,
            self.messages,
            self.seconds,
            self.per_second,
            self.cpu_seconds_per_1000,
            self.peak_memory_mib,
            self.written_by_accepted
        );
        println!("  end of data to reply:  {}", self.accept.end_of_data_ms);
        println!("  reply to arrival:      {}", self.reply_to_arrival_ms);
        println!("  begin to arrival:      {}", self.begin_to_arrival_ms);
        println!("  {}", self.balance.words());
        for finding in self.findings() {
            println!("  found: {finding}");
        }
        let verdict = if self.holds() {
            "nothing lost, damaged or doubled, and in order"
        } else {
            "IT DOES NOT HOLD"
        };
        println!("scenario {}: {verdict}", self.scenario);
    }
}

/// Plays them; false where one does not hold.
pub(crate) fn run(options: &Options) -> anyhow::Result<bool> {
    more_descriptors()?;
    let postrider = options.play.postrider()?;
    let mut all_hold = true;
    for name in &options.names {
        let names = match name {
            Name::All => &Name::EACH[..],
            one => std::slice::from_ref(one),
        };
        for name in names {
            let report = run::play(
                &plan(*name, &options.play)?,
                &postrider,
                None,
                options.play.folder.as_deref(),
            )?;
            all_hold &= report.holds();
            if options.play.json {
                println!("{}", serde_json::to_string(&report)?);
            } else {
                report.print();
            }
        }
    }
    Ok(all_hold)
}

fn plan(name: Name, options: &Play) -> anyhow::Result<Plan> {
    ensure!(
        (1..=10_000).contains(&options.sessions),
        "from 1 to 10000 sessions"
    );
    ensure!(
        (1..=1_000).contains(&options.connections),
        "from 1 to 1000 connections"
    );
    let own = if options.smoke { 400 } else { name.messages() };
    let messages = options.messages.unwrap_or(own);
    ensure!(
        (1..=MAX_MESSAGES / 2).contains(&messages),
        "from 1 to {} messages",
        MAX_MESSAGES / 2
    );
    let domains = if options.smoke {
        name.domains().min(100)
    } else {
        name.domains()
    };
    ensure!(domains <= MAX_DOMAINS, "at most {MAX_DOMAINS} domains");
    Ok(Plan {
        name,
        messages,
        warm_up: (messages / 10).max(domains as u32),
        domains,
        size: options.size.clone(),
        sessions: options.sessions,
        connections: options.connections,
        sink_threads: options.sink_threads,
        trace: None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_are_all() {
        let named: Vec<Name> = Name::value_variants()
            .iter()
            .copied()
            .filter(|name| *name != Name::All)
            .collect();
        assert_eq!(named, Name::EACH);
        assert_eq!(Name::RelayDkimEd25519.to_string(), "relay-dkim-ed25519");
    }
}
