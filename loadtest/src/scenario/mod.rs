//! `loadtest scenario`: whole runs that anyone can repeat. Each has a store, a relay and a sink of its own; first a warm-up that drains,
//! then what the scenario plays, measured from the first command until the last message has arrived; at the end the balance.

mod acts;
pub(crate) mod apart;
mod compare;
mod group;
mod limited;
mod peer;
pub(crate) mod run;
mod trace;
mod usage;

use std::path::PathBuf;
use std::time::Duration;

pub(crate) use compare::{CompareOptions, compare};

use anyhow::{Context as _, ensure};
use clap::{Args, ValueEnum};
use serde::Serialize;

use crate::load::client::Beat;
use crate::load::letters::{MAX_DOMAINS, Sizes};
use crate::load::record::{Balance, MAX_MESSAGES, Quantiles};
use crate::load::{Summary, more_descriptors};
use crate::report::over_time::OverTime;
use crate::report::svg::number;
use crate::report::{Page, Row, Section, Table, Verdict, facts};
use crate::signals;
use usage::CpuFrom;

/// Seconds of [`Plan::patience`], unless given.
const PATIENCE: u64 = 60;

/// Options of `loadtest scenario`.
#[derive(Args)]
#[command(after_help = "Examples:\n  \
    loadtest scenario relay accept\n  \
    loadtest scenario relay --size 1KiB --messages 200000 --json\n  \
    loadtest scenario otp hot-and-cold --report report.html\n  \
    loadtest scenario thousand-domains --rules\n  \
    loadtest scenario all --smoke")]
pub(crate) struct Options {
    /// Which, one after the other.
    #[arg(required = true, value_enum)]
    names: Vec<Name>,
    #[command(flatten)]
    play: Play,
    /// With rules of every kind that limit nothing: a provider, a destination, limits of all parts and pairs of them, and a pool
    /// of two sources, which share what the relay has of connections and rate to each site.
    #[arg(long)]
    rules: bool,
    /// Write a report with plots, a page of HTML that needs no other file.
    #[arg(long, value_name = "FILE")]
    report: Option<PathBuf>,
    /// Write the plots, SVG files, into this folder.
    #[arg(long, value_name = "FOLDER")]
    plots: Option<PathBuf>,
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
    /// Octets of a message, or sizes by weight, as `flood` takes them; unless given 10KiB, and in `soak` several.
    #[arg(long)]
    size: Option<Sizes>,
    /// Messages a second, in hot-and-cold, restart and soak, which have a rate; unless given, their own.
    #[arg(long)]
    rate: Option<f64>,
    /// Sessions that submit; unless given 100, in `burst` 500, and 10 with --smoke.
    #[arg(long)]
    sessions: Option<usize>,
    /// Connections of the relay to each site; unless given 32, in `otp` 10, in `crowded` 100, and 4 with --smoke.
    #[arg(long)]
    connections: Option<usize>,
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

impl Default for Play {
    fn default() -> Self {
        Self {
            postrider: None,
            folder: None,
            messages: None,
            size: None,
            rate: None,
            sessions: None,
            connections: None,
            sink_threads: 1,
            smoke: false,
            json: false,
        }
    }
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
    /// A hundred quick domains alone, beside a giant that takes its time, and beside one that puts all off.
    HotAndCold,
    /// Passwords behind 50,000 newsletters to one provider that takes 200 ms a message, over 10 connections at 50 a second.
    Otp,
    /// As fast as a limit of 100 messages a second to a site lets through.
    Rate,
    /// The same limit of a provider's twenty sites together.
    ProviderRate,
    /// A provider that begins to refuse more than 50 of the 100 connections that a lane may have.
    Crowded,
    /// A million messages that wait, and fresh mail beside them.
    Backlog,
    /// Stopped and killed under load, with 100,000 messages that wait.
    Restart,
    /// Thousands of messages at once, again and again.
    Burst,
    /// Ten minutes of mail of all sizes to a thousand domains, half of which are slow and put mail off.
    Soak,
}

impl Name {
    const EACH: [Self; 15] = [
        Self::Accept,
        Self::Relay,
        Self::RelayDkim,
        Self::RelayDkimEd25519,
        Self::RelayTls,
        Self::ThousandDomains,
        Self::HotAndCold,
        Self::Otp,
        Self::Rate,
        Self::ProviderRate,
        Self::Crowded,
        Self::Backlog,
        Self::Restart,
        Self::Burst,
        Self::Soak,
    ];

    pub(crate) fn messages(self) -> u32 {
        match self {
            // Some 600 MB: more than three memtables.
            Self::Accept => 60_000,
            Self::HotAndCold => 10_000,
            // Thirteen seconds of it.
            Self::Rate | Self::ProviderRate => 1_300,
            // More than goes over 50 connections in two minutes, at half a second each, and over 100 before that.
            Self::Crowded => 16_000,
            Self::Backlog => 1_000_000,
            Self::Restart | Self::Burst => 100_000,
            Self::Soak => 180_000,
            _ => 50_000,
        }
    }

    fn domains(self, smoke: bool) -> usize {
        match (self, smoke) {
            (Self::ThousandDomains | Self::Soak, false) => 1_000,
            (Self::ThousandDomains | Self::Soak, true) => 20,
            // A hundred, or ten, and two giants.
            (Self::HotAndCold, false) => 102,
            (Self::HotAndCold, true) => 12,
            (Self::Backlog | Self::Restart, false) => 1_001,
            (Self::Backlog | Self::Restart, true) => 11,
            (Self::ProviderRate, _) => 20,
            _ => 1,
        }
    }

    /// Messages a second, where it has a rate.
    fn rate(self, smoke: bool) -> f64 {
        match (self, smoke) {
            (_, true) => 200.0,
            (Self::Soak, false) => 300.0,
            (_, false) => 500.0,
        }
    }

    fn has_rate(self) -> bool {
        matches!(self, Self::HotAndCold | Self::Restart | Self::Soak)
    }

    /// What it shows, in a line.
    fn about(self) -> &'static str {
        match self {
            Self::All => "",
            Self::Accept => "Into suspended queues as fast as it is answered, then resumed.",
            Self::Relay => "In and out at once, to one domain.",
            Self::RelayDkim => "In and out at once, signed with RSA-2048.",
            Self::RelayDkimEd25519 => "In and out at once, signed with Ed25519.",
            Self::RelayTls => "In and out at once, STARTTLS on both sides.",
            Self::ThousandDomains => "In and out at once, to a thousand domains with a host each.",
            Self::HotAndCold => {
                "Many quick domains beside a giant that takes its time, and beside one that puts all off."
            }
            Self::Otp => "Passwords behind newsletters to the same provider, which is slow and limited.",
            Self::Rate => "As much as a limit of 100 messages a second to a site lets through.",
            Self::ProviderRate => "The same limit for the twenty sites of a provider together.",
            Self::Crowded => "A provider that begins to refuse half of the connections it is sent over.",
            Self::Backlog => "Much that waits, and fresh mail beside it; then all of it is delivered.",
            Self::Restart => "SIGTERM, then SIGKILL, under load and with a backlog.",
            Self::Burst => "Many messages at once, again and again.",
            Self::Soak => {
                "Mail of all sizes at a steady rate; half of the domains are slow and put mail off."
            }
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
    pub(crate) name: Name,
    pub(crate) messages: u32,
    pub(crate) warm_up: u32,
    pub(crate) domains: usize,
    pub(crate) size: Sizes,
    pub(crate) sessions: usize,
    pub(crate) connections: usize,
    pub(crate) sink_threads: usize,
    /// When messages begin, in those scenarios that go as fast as they can.
    pub(crate) beat: Beat,
    /// Messages a second, in those that have a rate.
    pub(crate) rate: f64,
    /// What the relay is limited to, in messages a second to a site, or in `provider-rate` to all sites.
    pub(crate) limit: Option<f64>,
    /// With rules of every kind, which limit nothing.
    pub(crate) rules: bool,
    /// Where the relay's mail goes, if not to the sink's port.
    pub(crate) port: Option<u16>,
    /// No time means anything.
    pub(crate) smoke: bool,
    /// Where the relay's system calls are written down; it is slow then.
    pub(crate) trace: Option<PathBuf>,
    /// How long the relay may neither take nor hand on a message before it is given up: without a bound it would be waited for, 120 s a
    /// reply, as often as there are messages and tries.
    pub(crate) patience: Duration,
}

impl Plan {
    /// A scenario's own, but for the number of messages and their size.
    pub(crate) fn of(name: Name, messages: u32, size: &str) -> anyhow::Result<Self> {
        let play = Play {
            messages: Some(messages),
            size: Some(size.parse()?),
            ..Play::default()
        };
        plan(name, &play)
    }

    /// As it is played where no option says otherwise.
    #[cfg(test)]
    fn smoke_or_whole(name: Name, smoke: bool) -> anyhow::Result<Self> {
        plan(
            name,
            &Play {
                smoke,
                ..Play::default()
            },
        )
    }
}

/// A figure that one scenario alone has.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Figure {
    pub(crate) name: &'static str,
    pub(crate) value: f64,
    pub(crate) unit: &'static str,
}

impl Figure {
    fn new(name: &'static str, value: f64, unit: &'static str) -> Self {
        Self { name, value, unit }
    }

    fn words(&self) -> String {
        let space = if self.unit.is_empty() || self.unit.starts_with('/') {
            ""
        } else {
            " "
        };
        match self.value.is_finite() {
            true => format!("{}{space}{}", number(self.value), self.unit),
            false => "not measured".to_owned(),
        }
    }
}

/// What it came to.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    pub(crate) scenario: Name,
    /// Of the relay, as it says it itself.
    pub(crate) version: Option<String>,
    pub(crate) messages: u32,
    /// From the first command until the last message has arrived, or for `accept` and `backlog` until the last is accepted.
    pub(crate) seconds: f64,
    pub(crate) per_second: f64,
    /// Of the relay's process with all its threads, in that time, for 1,000 messages.
    pub(crate) cpu_seconds_per_1000: f64,
    pub(crate) cpu_from: CpuFrom,
    /// The highest seen, warm-up included, in MiB.
    pub(crate) peak_memory_mib: f64,
    /// Octets that the kernel says the relay had written to disk by octets of messages.
    pub(crate) written_by_accepted: f64,
    /// Octets that the store says it has written, to its log and its tables, by octets of messages; `None` of other relays.
    pub(crate) store_written_by_accepted: Option<f64>,
    pub(crate) accept: Summary,
    /// From the reply to the client until the sink's reply; below 0 counts as 0.
    pub(crate) reply_to_arrival_ms: Quantiles,
    /// The same until the sink had read the message's last octet: without the sink's own time, its delay included.
    pub(crate) reply_to_last_octet_ms: Quantiles,
    /// From the intended begin until the sink's reply.
    pub(crate) begin_to_arrival_ms: Quantiles,
    /// What the scenario is about.
    pub(crate) figures: Vec<Figure>,
    pub(crate) balance: Balance,
    /// What else should not be.
    pub(crate) findings: Vec<String>,
    /// When it was measured, since 1970.
    #[serde(skip)]
    between: (Duration, Duration),
    #[serde(skip)]
    over_time: OverTime,
}

impl Report {
    /// Of a run of nothing, in which nothing was found.
    #[cfg(test)]
    pub(crate) fn empty(scenario: Name) -> Self {
        Self {
            scenario,
            version: None,
            messages: 0,
            seconds: 0.0,
            per_second: 0.0,
            cpu_seconds_per_1000: 0.0,
            cpu_from: CpuFrom::Proc,
            peak_memory_mib: 0.0,
            written_by_accepted: 0.0,
            store_written_by_accepted: None,
            accept: Summary::default(),
            reply_to_arrival_ms: Quantiles::default(),
            reply_to_last_octet_ms: Quantiles::default(),
            begin_to_arrival_ms: Quantiles::default(),
            figures: Vec::new(),
            balance: Balance::default(),
            findings: Vec::new(),
            between: <(Duration, Duration)>::default(),
            over_time: OverTime::of(Duration::ZERO, &[], &[], |_| true),
        }
    }

    pub(crate) fn holds(&self) -> bool {
        self.balance.holds() && self.findings.is_empty()
    }

    pub(crate) fn findings(&self) -> impl Iterator<Item = &String> {
        self.balance.findings.iter().chain(&self.findings)
    }

    /// A figure of the scenario's own.
    pub(crate) fn figure(&self, name: &str) -> f64 {
        let figure = self.figures.iter().find(|figure| figure.name == name);
        figure.map_or(f64::NAN, |figure| figure.value)
    }

    fn written(&self) -> String {
        match self.store_written_by_accepted {
            Some(written) => format!("{written:.2}"),
            None => format!("{:.2} (the kernel's count)", self.written_by_accepted),
        }
    }

    fn verdict(&self) -> String {
        let kept = match (self.holds(), self.balance.in_doubt) {
            (false, _) => return "IT DOES NOT HOLD".to_owned(),
            (true, 0) => "nothing lost, damaged, doubled or astray",
            (true, _) => "nothing lost, damaged or astray, doubled by a kill alone",
        };
        // Where a peer turns connections away at any moment, there is no order to judge.
        let order = if self.balance.order.is_empty() {
            ""
        } else {
            ", and in order"
        };
        format!("{kept}{order}")
    }

    fn print(&self) {
        println!(
            "{}: {} messages in {:.2} s: {:.0} a second, {:.3} CPU-seconds for 1,000, {:.0} MiB at the most, written ÷ accepted {}",
            self.scenario,
            self.messages,
            self.seconds,
            self.per_second,
            self.cpu_seconds_per_1000,
            self.peak_memory_mib,
            self.written()
        );
        println!("  end of data to reply:  {}", self.accept.end_of_data_ms);
        println!("  reply to arrival:      {}", self.reply_to_arrival_ms);
        println!("  begin to arrival:      {}", self.begin_to_arrival_ms);
        for figure in &self.figures {
            println!("  {:<39} {}", format!("{}:", figure.name), figure.words());
        }
        println!("  {}", self.balance.words());
        for finding in self.findings() {
            println!("  found: {finding}");
        }
        println!("scenario {}: {}", self.scenario, self.verdict());
    }

    fn row(&self) -> Row {
        let ms = |of: &Quantiles| format!("{} / {} ms", number(of.p50), number(of.p99));
        Row {
            cells: vec![
                self.scenario.to_string(),
                number(f64::from(self.messages)),
                number(self.per_second.round()),
                format!("{:.3}", self.cpu_seconds_per_1000),
                number(self.peak_memory_mib.round()),
                match self.store_written_by_accepted {
                    Some(written) => format!("{written:.2}"),
                    None => format!("{:.2}*", self.written_by_accepted),
                },
                ms(&self.accept.end_of_data_ms),
                ms(&self.reply_to_arrival_ms),
            ],
            verdict: Verdict::of(self.holds()),
        }
    }

    fn section(&self) -> Section {
        let own = self
            .figures
            .iter()
            .map(|figure| (figure.name.to_owned(), figure.words()));
        let balance = &self.balance;
        let counts = [
            ("accepted", balance.accepted),
            ("arrived", balance.arrived),
            ("lost", balance.lost),
            ("damaged", balance.damaged),
            ("duplicates", balance.duplicates),
            ("astray", balance.astray),
            ("overtaken at the most", balance.overtaken),
        ];
        Section {
            title: self.scenario.to_string(),
            about: format!("{} {}.", self.scenario.about(), capital(&self.verdict())),
            verdict: Verdict::of(self.holds()),
            figures: own
                .chain(counts.map(|(name, count)| (name.to_owned(), number(count as f64))))
                .collect(),
            findings: self.findings().cloned().collect(),
            plots: self.over_time.plots(),
        }
    }
}

fn capital(text: &str) -> String {
    let mut letters = text.chars();
    letters
        .next()
        .map_or_else(String::new, |first| first.to_uppercase().chain(letters).collect())
}

/// All reports as a page.
fn page(reports: &[Report]) -> Page {
    let head = vec![
        "scenario",
        "messages",
        "messages/s",
        "CPU-s for 1,000",
        "peak MiB",
        "written ÷ accepted",
        "end of data → 250, p50 / p99",
        "250 → arrival, p50 / p99",
    ];
    Page {
        title: "Postrider: whole runs".to_owned(),
        facts: facts(),
        tables: vec![Table {
            head,
            rows: reports.iter().map(Report::row).collect(),
            note: "Load, sink and relay shared this machine. CPU is the relay's alone; messages a second are those of all three together. \
                   Compare figures of one run. * by the kernel's count, which is of more than the store."
                .to_owned(),
        }],
        sections: reports.iter().map(Report::section).collect(),
    }
}

/// Plays them; false where one does not hold.
pub(crate) fn run(options: &Options) -> anyhow::Result<bool> {
    more_descriptors()?;
    signals::note()?;
    for name in &options.names {
        check_rate(*name, &options.play)?;
    }
    let postrider = options.play.postrider()?;
    let mut reports = Vec::new();
    for name in &options.names {
        let names = match name {
            Name::All => &Name::EACH[..],
            one => std::slice::from_ref(one),
        };
        for name in names {
            let plan = Plan {
                rules: options.rules,
                ..plan(*name, &options.play)?
            };
            let report = run::play(&plan, &postrider, None, options.play.folder.as_deref())
                .with_context(|| format!("scenario {name}"))?;
            if options.play.json {
                println!("{}", serde_json::to_string(&report)?);
            } else {
                report.print();
            }
            reports.push(report);
        }
    }
    page(&reports).write(options.report.as_deref(), options.plots.as_deref())?;
    Ok(reports.iter().all(Report::holds))
}

/// A rate is for who has one, or for those of all that have one.
fn check_rate(name: Name, options: &Play) -> anyhow::Result<()> {
    ensure!(
        options.rate.is_none() || name.has_rate() || name == Name::All,
        "--rate: {name} goes as fast as it is answered, or at a rate that is part of it; hot-and-cold, restart and soak take one"
    );
    Ok(())
}

fn plan(name: Name, options: &Play) -> anyhow::Result<Plan> {
    let smoke = options.smoke;
    let size = match (&options.size, name) {
        (Some(size), _) => size.clone(),
        (None, Name::Crowded) => "1KiB".parse()?,
        (None, Name::Soak) => "1KiB:60,10KiB:35,300KiB:5".parse()?,
        (None, _) => "10KiB".parse()?,
    };
    let sessions = options.sessions.unwrap_or(match (smoke, name) {
        (true, _) => 10,
        (false, Name::Burst) => 500,
        (false, _) => 100,
    });
    let connections = options.connections.unwrap_or(match (smoke, name) {
        (_, Name::Otp) => 10,
        (false, Name::Crowded) => 100,
        (true, Name::Crowded) => 10,
        (true, _) => 4,
        (false, _) => 32,
    });
    ensure!((1..=10_000).contains(&sessions), "from 1 to 10000 sessions");
    ensure!((1..=1_000).contains(&connections), "from 1 to 1000 connections");
    let own = if smoke { 400 } else { name.messages() };
    let messages = options.messages.unwrap_or(own);
    ensure!(
        (20..=MAX_MESSAGES / 4).contains(&messages),
        "from 20 to {} messages",
        MAX_MESSAGES / 4
    );
    let rate = options.rate.unwrap_or(name.rate(smoke));
    ensure!((1.0..=1e6).contains(&rate), "from 1 to 1000000 messages a second");
    let domains = name.domains(smoke);
    ensure!(domains <= MAX_DOMAINS, "at most {MAX_DOMAINS} domains");
    let warm_up = match name {
        // At 50 a second.
        Name::Otp => 10,
        // Each takes a while.
        Name::Crowded => 100.min(messages / 10),
        Name::Backlog | Name::Restart | Name::Soak | Name::Burst => 1_000.min(messages / 10),
        _ => messages / 10,
    };
    Ok(Plan {
        name,
        messages,
        warm_up: warm_up.max(domains as u32),
        domains,
        size,
        sessions,
        connections,
        sink_threads: options.sink_threads,
        beat: Beat::AsAnswered,
        rate,
        limit: match name {
            Name::Otp => Some(50.0),
            Name::Rate | Name::ProviderRate => Some(100.0),
            _ => None,
        },
        rules: false,
        port: None,
        smoke,
        trace: None,
        patience: Duration::from_secs(PATIENCE),
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

    #[test]
    fn a_rate_is_for_scenarios_that_have_one() {
        let play = Play {
            rate: Some(300.0),
            ..Play::default()
        };
        for name in [Name::Soak, Name::Restart, Name::HotAndCold, Name::All] {
            check_rate(name, &play).unwrap();
        }
        for name in [Name::Relay, Name::Otp, Name::Burst, Name::Rate] {
            let said = check_rate(name, &play).unwrap_err().to_string();
            assert!(said.starts_with(&format!("--rate: {name} goes")), "{said}");
            check_rate(name, &Play::default()).unwrap();
        }
    }
}
