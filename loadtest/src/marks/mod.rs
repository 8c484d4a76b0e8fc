//! `loadtest marks`: the figures that the project promises, each measured and held against its mark.
//!
//! Times are worth something on a quiet machine and in a release build; ratios are taken within one run. A group's figures of
//! an inside come from a bench binary, those of the whole from the program, run as anyone would run it.

mod delivery;
mod program;
mod queue;
mod relay;
mod runs;

use std::cell::RefCell;
use std::path::PathBuf;
use std::process::Command;

use anyhow::ensure;
use clap::{Args, Subcommand};
use serde::Serialize;

use crate::relay::{first_line, version};
use crate::report::svg::number;
use crate::report::{Facts, Row, Verdict, facts};
use crate::signals;

/// Options of `loadtest marks`.
#[derive(Args)]
pub(crate) struct Options {
    #[command(subcommand)]
    group: Group,
}

#[derive(Subcommand)]
enum Group {
    /// The durable queue: commit, millions of messages, restarts, deletions.
    Queue(Common),
    /// The whole relay: its cost beside Postfix's, latency, fairness, memory, octets written.
    Relay(RelayOptions),
    /// Limits and rules of delivery: what choosing and matching cost, rates that are kept, a provider that refuses, scenarios
    /// with rules of every kind.
    #[command(after_help = "Examples:\n  \
        loadtest marks delivery --folder /somewhere/on/the/disk\n  \
        loadtest marks delivery --only next --runs 5\n  \
        loadtest marks delivery --scale 0.1 --runs 1 --only otp --json\n\n\
        Names begin with: next, rules, rate, provider-rate, crowded, thousand-domains, hot-and-cold, otp. \
        rate, provider-rate and crowded take their seconds and minutes whatever the scale.")]
    Delivery(Common),
}

/// Options of `loadtest marks relay`.
#[derive(Args)]
#[command(mut_arg("runs", |runs| runs.default_value("5")))]
#[command(after_help = "Examples:\n  \
    loadtest marks relay --folder /somewhere/on/the/disk --report marks.html\n  \
    loadtest marks relay --scale 0.1 --runs 1 --only otp\n\n\
    As root, from the repository's folder: Postfix wants users of its own, and CPU is read from control groups (cgroup v2). Run \
    tests/interop/fetch first, which unpacks Postfix, OpenDKIM, smtp-source and smtp-sink into the cache and installs nothing. Without \
    them the ratios to Postfix's are told as not measured, and the exit code is 1.\n\n\
    Names begin with: relay, relay-1KiB, relay-100KiB, relay-dkim, accept, relay-dkim-ed25519, relay-tls, thousand-domains, between, idle, \
    half-load, written, hot-and-cold, otp, memory, copies.")]
struct RelayOptions {
    #[command(flatten)]
    common: Common,
    /// Where the peer `postfix` is, as `compare` takes it.
    #[arg(long, value_name = "FOLDER", default_value = "scripts/peers")]
    peers: PathBuf,
    /// Where smtp-source and smtp-sink are, below debian/usr/sbin; unless given, tests/interop/fetch --where is asked.
    #[arg(long, value_name = "FOLDER")]
    interop: Option<PathBuf>,
    /// Write a report, a page of HTML that needs no other file.
    #[arg(long, value_name = "FILE")]
    report: Option<PathBuf>,
}

/// What every group takes.
#[derive(Args)]
struct Common {
    /// The program `postrider`; unless given, the one beside this program.
    #[arg(long, value_name = "FILE")]
    postrider: Option<PathBuf>,
    /// The bench binary, `queue-figures` or `delivery-figures`; unless given, the one beside this program.
    #[arg(long, value_name = "FILE")]
    figures: Option<PathBuf>,
    /// Where stores are made and removed again; the full size takes 12 GB. Unless given, a temporary folder.
    #[arg(long, value_name = "FOLDER")]
    folder: Option<PathBuf>,
    /// Sizes of backlogs and runs, by the promised ones. Less is a quick look, and proves nothing.
    #[arg(long, default_value_t = 1.0)]
    scale: f64,
    /// How often each short figure is measured; the median counts.
    #[arg(long, default_value_t = 3)]
    runs: usize,
    /// Only figures whose names begin so; of those that are measured together all or none.
    #[arg(long, value_name = "NAME")]
    only: Option<String>,
    /// Every name that was asked for.
    #[arg(skip)]
    known: RefCell<Vec<String>>,
    /// Print a JSON object a line.
    #[arg(long)]
    json: bool,
}

impl Common {
    /// Whether figures of this name, what stands before their colon, are to be measured. Every name is asked for, whatever is measured.
    fn wants(&self, name: &str) -> bool {
        self.known.borrow_mut().push(name.to_owned());
        self.only
            .as_deref()
            .is_none_or(|only| name.starts_with(only) || only.starts_with(&format!("{name}:")))
    }

    /// Called at the end: a name that is none would pass for one whose figures hold.
    fn ensure_measured(&self, told: &Told) -> anyhow::Result<()> {
        let known = self.known.borrow();
        ensure!(
            !told.rows.is_empty(),
            "--only {}: no figure's name begins so; there are {}",
            self.only.as_deref().unwrap_or_default(),
            known.join(", ")
        );
        Ok(())
    }
}

/// What is promised of a figure.
#[derive(Clone, Copy, Debug)]
enum Mark {
    AtLeast(f64),
    AtMost(f64),
}

impl Mark {
    fn holds(self, measured: f64) -> bool {
        match self {
            Self::AtLeast(mark) => measured >= mark,
            Self::AtMost(mark) => measured <= mark,
        }
    }
}

/// A figure that is one number by another: medians, of the ratio and of each of the two by itself.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
struct Ratio {
    #[serde(skip)]
    ratio: f64,
    numerator: f64,
    denominator: f64,
}

impl Ratio {
    /// Of rounds, each of which measured both.
    fn of(rounds: &[(f64, f64)]) -> Self {
        let median = |of: fn(&(f64, f64)) -> f64| median(rounds.iter().map(of).collect());
        Self {
            ratio: median(|(over, under)| over / under),
            numerator: median(|(over, _)| *over),
            denominator: median(|(_, under)| *under),
        }
    }
}

/// What was measured, of what, and how much of it.
#[derive(Serialize)]
struct Head {
    /// As `postrider --version` says it.
    postrider: String,
    loadtest: &'static str,
    /// Of the folder that this was started in, where that is a repository.
    commit: Option<String>,
    scale: f64,
    runs: usize,
}

impl Head {
    fn of(common: &Common) -> Self {
        let postrider = runs::program(common.postrider.as_deref(), "postrider").ok();
        let unknown = || "postrider of an unknown version".to_owned();
        Self {
            postrider: postrider
                .and_then(|program| version(&program))
                .unwrap_or_else(unknown),
            loadtest: env!("CARGO_PKG_VERSION"),
            commit: first_line(Command::new("git").args(["describe", "--always", "--dirty", "--exclude=*"])),
            scale: common.scale,
            runs: common.runs,
        }
    }

    fn facts(&self) -> Facts {
        let commit = self.commit.iter().map(|commit| ("commit", commit.clone()));
        [
            ("relay", self.postrider.clone()),
            ("scale", self.scale.to_string()),
            ("runs", self.runs.to_string()),
        ]
        .into_iter()
        .chain(commit)
        .collect()
    }
}

impl std::fmt::Display for Head {
    fn fmt(&self, to: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self {
            postrider,
            loadtest,
            commit,
            scale,
            runs,
        } = self;
        write!(to, "{postrider}, loadtest {loadtest}")?;
        if let Some(commit) = commit {
            write!(to, ", commit {commit}")?;
        }
        write!(to, "; scale {scale}, runs {runs}")
    }
}

/// A line of the result.
#[derive(Serialize)]
struct Line<'a> {
    name: &'a str,
    measured: f64,
    #[serde(flatten)]
    of: Option<Ratio>,
    mark: f64,
    at: &'static str,
    unit: &'static str,
    ok: bool,
}

/// Prints figures as they come, and remembers whether all hold.
struct Told {
    json: bool,
    all_hold: bool,
    /// For a report.
    rows: Vec<Row>,
}

impl Told {
    fn new(json: bool) -> Self {
        Self {
            json,
            all_hold: true,
            rows: Vec::new(),
        }
    }

    /// A figure that could not be measured here: its mark is not reached.
    fn missing(&mut self, name: &str, why: &str) -> anyhow::Result<()> {
        self.all_hold = false;
        self.open(name, why)
    }

    /// A figure that is measured by other means than this.
    fn open(&mut self, name: &str, why: &str) -> anyhow::Result<()> {
        #[derive(Serialize)]
        struct Open<'a> {
            name: &'a str,
            not_measured: &'a str,
        }
        if self.json {
            let line = Open {
                name,
                not_measured: why,
            };
            println!("{}", serde_json::to_string(&line)?);
        } else {
            println!("{name:<52} not measured: {why}");
        }
        self.rows.push(Row {
            cells: vec![name.to_owned(), "–".to_owned(), why.to_owned()],
            verdict: Verdict::Open,
        });
        Ok(())
    }

    fn figure(&mut self, name: &str, measured: f64, mark: Mark, unit: &'static str) -> anyhow::Result<()> {
        self.line(name, measured, None, mark, unit)
    }

    /// A figure, and what it is of.
    fn ratio(&mut self, name: &str, ratio: Ratio, mark: Mark) -> anyhow::Result<()> {
        self.line(name, ratio.ratio, Some(ratio), mark, "")
    }

    fn line(
        &mut self,
        name: &str,
        measured: f64,
        of: Option<Ratio>,
        mark: Mark,
        unit: &'static str,
    ) -> anyhow::Result<()> {
        ensure!(measured.is_finite(), "{name} was not measured");
        let ok = mark.holds(measured);
        self.all_hold &= ok;
        let (at, bound) = match mark {
            Mark::AtLeast(bound) => ("least", bound),
            Mark::AtMost(bound) => ("most", bound),
        };
        if self.json {
            let line = Line {
                name,
                measured,
                of,
                mark: bound,
                at,
                unit,
                ok,
            };
            println!("{}", serde_json::to_string(&line)?);
        } else {
            let verdict = if ok { "ok" } else { "SHORT" };
            println!("{name:<52} {measured:>10.3} {unit:<9} at {at:<5} {bound:>9.3}  {verdict}");
        }
        let sign = if at == "least" { "≥" } else { "≤" };
        let of = of.map_or_else(String::new, |of| {
            format!("({} / {})", number(of.numerator), number(of.denominator))
        });
        self.rows.push(Row {
            cells: vec![
                name.to_owned(),
                format!("{measured:.3} {unit}{of}"),
                format!("{sign} {bound} {unit}"),
            ],
            verdict: Verdict::of(ok),
        });
        Ok(())
    }
}

/// Measures a group; false if a figure falls short.
pub(crate) fn run(options: &Options) -> anyhow::Result<bool> {
    let common = match &options.group {
        Group::Queue(common) | Group::Delivery(common) => common,
        Group::Relay(options) => &options.common,
    };
    ensure!(
        common.scale > 0.0 && common.runs > 0,
        "a scale and a number of runs are more than 0"
    );
    // Peers have process groups of their own, which a terminal's signals don't reach: they are ended by us.
    signals::note()?;
    // The load before is not of the measuring.
    let (mut told, mut facts) = (Told::new(common.json), facts());
    let head = Head::of(common);
    if common.json {
        println!("{}", serde_json::to_string(&head)?);
    } else {
        println!("{head}");
    }
    facts.extend(head.facts());
    match &options.group {
        Group::Queue(common) => queue::measure(common, &mut told)?,
        Group::Relay(options) => relay::measure(options, &mut told)?,
        Group::Delivery(common) => delivery::measure(common, &mut told)?,
    }
    common.ensure_measured(&told)?;
    if let Group::Relay(options) = &options.group {
        relay::write(options, facts, &mut told)?;
    }
    Ok(told.all_hold)
}

/// Of an even number the mean of the two in the middle.
pub(crate) fn median(mut of: Vec<f64>) -> f64 {
    of.sort_by(f64::total_cmp);
    let middle = of.get(of.len().saturating_sub(1) / 2..=of.len() / 2);
    let middle = middle.unwrap_or_default();
    middle.iter().sum::<f64>() / middle.len() as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mark_holds_on_its_own_side_and_at_its_bound() {
        for (mark, measured, holds) in [
            (Mark::AtLeast(0.45), 0.45, true),
            (Mark::AtLeast(0.45), 0.44, false),
            (Mark::AtMost(64.0), 64.0, true),
            (Mark::AtMost(64.0), 65.0, false),
        ] {
            assert_eq!(mark.holds(measured), holds, "{mark:?} {measured}");
        }
        let mut told = Told::new(true);
        told.figure("a", 1.0, Mark::AtMost(2.0), "s").unwrap();
        assert!(told.all_hold);
        told.figure("b", 3.0, Mark::AtMost(2.0), "s").unwrap();
        assert!(!told.all_hold);
        let mut told = Told::new(true);
        told.open("c", "counted elsewhere").unwrap();
        assert!(told.all_hold);
        told.missing("d", "no peer").unwrap();
        assert!(!told.all_hold, "what was not measured does not pass");
        assert!(
            told.figure("c", f64::NAN, Mark::AtMost(2.0), "s").is_err(),
            "nothing measured holds nothing"
        );
    }

    #[test]
    fn a_ratio_tells_what_it_is_of() {
        let ratio = Ratio::of(&[(1.0, 10.0), (3.0, 20.0), (4.0, 10.0)]);
        assert_eq!(
            (ratio.ratio, ratio.numerator, ratio.denominator),
            (0.15, 3.0, 10.0)
        );
        let line = |of| Line {
            name: "a",
            measured: 0.15,
            of,
            mark: 1.0,
            at: "most",
            unit: "",
            ok: true,
        };
        let json = serde_json::to_string(&line(Some(ratio))).unwrap();
        assert!(
            json.contains(r#""measured":0.15,"numerator":3.0,"denominator":10.0,"mark":1.0"#),
            "{json}"
        );
        let json = serde_json::to_string(&line(None)).unwrap();
        assert!(json.contains(r#""measured":0.15,"mark":1.0"#), "{json}");
        let mut told = Told::new(true);
        told.ratio("a", ratio, Mark::AtMost(1.0)).unwrap();
        assert_eq!(told.rows[0].cells[1], "0.150 (3 / 10)");
    }

    #[test]
    fn the_head_tells_of_what_and_how_much() {
        let head = Head {
            postrider: "postrider 0.1.0".to_owned(),
            loadtest: "0.1.0",
            commit: Some("7ba5c36".to_owned()),
            scale: 0.1,
            runs: 3,
        };
        assert_eq!(
            head.to_string(),
            "postrider 0.1.0, loadtest 0.1.0, commit 7ba5c36; scale 0.1, runs 3"
        );
    }

    /// Whatever the group, and before anything is measured.
    #[test]
    fn a_name_that_no_figure_has_is_told_those_that_have_one() {
        #[derive(clap::Parser)]
        struct Cli {
            #[command(flatten)]
            options: Options,
        }
        for (group, some) in [
            ("queue", "life"),
            ("relay", "copies"),
            ("delivery", "provider-rate"),
        ] {
            let words = ["marks", group, "--postrider", "/bin/false", "--only", "nothing"];
            let figures = ["--figures", "/bin/false"];
            let cli = <Cli as clap::Parser>::parse_from(words.iter().chain(&figures));
            let said = run(&cli.options).unwrap_err().to_string();
            assert!(
                said.starts_with("--only nothing: no figure's name begins so; there are ")
                    && said.contains(some),
                "{said}"
            );
        }
    }

    #[test]
    fn help_tells_every_name() {
        #[derive(clap::Parser)]
        struct Cli {
            #[command(flatten)]
            options: Options,
        }
        let mut command = <Cli as clap::CommandFactory>::command();
        for group in ["relay", "delivery"] {
            let help = command
                .find_subcommand_mut(group)
                .unwrap()
                .render_long_help()
                .to_string();
            let words = [
                "marks",
                group,
                "--postrider",
                "/bin/false",
                "--only",
                "nothing",
                "--figures",
                "/bin/false",
            ];
            let cli = <Cli as clap::Parser>::parse_from(words);
            let said = run(&cli.options).unwrap_err().to_string();
            let (_, names) = said.split_once("there are ").unwrap();
            let (_, told) = help.split_once("Names begin with: ").unwrap();
            let told: Vec<_> = told.split([',', '.', '\n']).map(str::trim).collect();
            for name in names.split(", ") {
                assert!(told.contains(&name), "{group}: {name} is not in {told:?}");
            }
        }
    }

    #[test]
    fn figures_are_named_by_what_they_begin_with() {
        #[derive(clap::Parser)]
        struct Cli {
            #[command(flatten)]
            common: Common,
        }
        for (only, wanted) in [
            ("back", true),
            ("backlog", true),
            ("backlog: memory", true),
            ("backlogs", false),
            ("memory", false),
        ] {
            let cli = <Cli as clap::Parser>::parse_from(["marks", "--only", only]);
            assert_eq!(cli.common.wants("backlog"), wanted, "{only}");
        }
    }

    #[test]
    fn the_median_is_in_the_middle() {
        assert_eq!(median(vec![9.0, 1.0, 5.0]), 5.0);
        assert_eq!(median(vec![9.0, 1.0, 5.0, 2.0]), 3.5);
        assert_eq!(median(vec![9.0, 1.0]), 5.0);
        assert_eq!(median(vec![9.0]), 9.0);
        assert!(median(Vec::new()).is_nan());
    }
}
