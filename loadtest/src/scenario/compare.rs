//! `loadtest compare`: the same scenarios through this relay and through others, by turns, so that what else the machine does meets all.

use std::cell::Cell;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, ensure};
use clap::{Args, ValueEnum as _};
use serde::Serialize;

use super::trace::Calls;
use super::usage::CpuFrom;
use super::{Name, PATIENCE, Plan, Report, check_rate, plan, run};
use crate::report::bars::Bars;
use crate::report::{self, Facts, Page, Plot, Section, Table, Verdict, facts};
use crate::signals;

/// Messages of the run that tells whether each is synced: a session of its own, one after the other.
const ALONE: u32 = 40;
/// With fewer syncs for each message there, some were not synced.
const SYNCED: f64 = 0.95;

/// Options of `loadtest compare`.
#[derive(Args)]
#[command(after_help = "Examples:\n  \
    loadtest compare --peer scripts/peers/postfix --messages 10000\n  \
    loadtest compare relay accept relay-dkim --peer scripts/peers/postfix --peer scripts/peers/exim --runs 5 --json\n\n\
    As root, from the repository's folder: the peers in scripts/peers want users of their own, and CPU is read from control groups \
    (cgroup v2; where none can be made that is said, and /proc has to do). Run tests/interop/fetch first, which unpacks Postfix, OpenDKIM, \
    Exim, OpenSMTPD and Haraka into the cache and installs nothing. Syncs are counted under strace, which has to be there (or --traced 0). \
    A peer of your own begins with a copy of scripts/peers/example.")]
pub(crate) struct CompareOptions {
    /// Which, one after the other: relay, accept, relay-dkim.
    #[arg(default_value = "relay", value_parser = comparable)]
    names: Vec<Name>,
    #[command(flatten)]
    play: super::Play,
    /// An executable that is the other relay, as docs/performance.md tells; may be there several times.
    #[arg(long, value_name = "FILE", required = true)]
    peer: Vec<PathBuf>,
    /// Rounds, in each of which every relay has a turn; medians count.
    #[arg(long, default_value_t = 3)]
    runs: usize,
    /// Messages of the runs under strace, after all others, in which syncs and writes are counted and nothing is timed; 0: no such runs.
    #[arg(long, value_name = "MESSAGES", default_value_t = 500)]
    traced: u32,
    /// How long a relay may neither take nor hand on a message before its run is given up, and the next one's begins.
    #[arg(long, value_name = "SECONDS", default_value_t = PATIENCE)]
    patience: u64,
    /// Write a report with the table and bars, a page of HTML that needs no other file.
    #[arg(long, value_name = "FILE")]
    report: Option<PathBuf>,
    /// Write the bars, SVG files, into this folder.
    #[arg(long, value_name = "FOLDER")]
    plots: Option<PathBuf>,
}

/// A scenario that others can play.
fn comparable(name: &str) -> Result<Name, String> {
    match Name::from_str(name, false)? {
        name @ (Name::Relay | Name::Accept | Name::RelayDkim) => Ok(name),
        name => Err(format!(
            "no other relay plays {name}: relay, accept and relay-dkim are compared"
        )),
    }
}

/// What a relay asks of the disk, as counted under strace.
#[derive(Clone, Copy, Debug, Serialize)]
struct Disk {
    /// For each message where one comes after the other.
    syncs_per_message_alone: f64,
    /// The scenario of that: in `accept` they are kept, in any other deliveries sync too.
    alone_in: Name,
    /// For each message of the scenario, all its sessions at once.
    syncs_per_message: f64,
    /// Octets written to files by octets of messages, in the scenario.
    file_octets_by_accepted: f64,
    /// Some of it may have gone unseen, through io_uring.
    may_be_more: bool,
}

impl Disk {
    /// Whether each message was synced before its 250; `None` where that can't be told: some went unseen, or deliveries' are among them.
    fn syncs_each(&self) -> Option<bool> {
        match self.syncs_per_message_alone >= SYNCED {
            false if self.may_be_more => None,
            false => Some(false),
            true => (self.alone_in == Name::Accept).then_some(true),
        }
    }
}

/// What came of the runs under strace.
#[derive(Debug)]
struct Traced {
    disk: Disk,
    /// Nothing was found in them: who loses mail when it is slow loses mail.
    holds: bool,
}

/// A relay's medians.
#[derive(Debug, Serialize)]
struct Row {
    scenario: Name,
    relay: String,
    /// As it says it itself; `None` where it doesn't, or no run came to its end.
    version: Option<String>,
    per_second: f64,
    cpu_seconds_per_1000: f64,
    /// Of the last run; `None`: there is none.
    cpu_from: Option<CpuFrom>,
    peak_memory_mib: f64,
    written_by_accepted: f64,
    reply_to_arrival_p50_ms: f64,
    /// Of one run under strace.
    #[serde(flatten)]
    disk: Option<Disk>,
    /// Whether each message was synced; `None`: not looked at, or not known.
    syncs_each_message: Option<bool>,
    /// Runs that did not come to their end; nothing else counts them.
    given_up: usize,
    /// Nothing was lost, damaged or doubled, under strace neither, and all runs came to their end.
    holds: bool,
}

impl Row {
    fn of(scenario: Name, relay: String, turns: &Turns<Report>, traced: Option<&Traced>) -> Self {
        let reports = &turns.done;
        let median = |of: fn(&Report) -> f64| crate::marks::median(reports.iter().map(of).collect());
        Self {
            scenario,
            relay,
            version: reports.last().and_then(|report| report.version.clone()),
            per_second: median(|report| report.per_second),
            cpu_seconds_per_1000: median(|report| report.cpu_seconds_per_1000),
            cpu_from: reports.last().map(|report| report.cpu_from),
            peak_memory_mib: median(|report| report.peak_memory_mib),
            written_by_accepted: median(|report| report.written_by_accepted),
            reply_to_arrival_p50_ms: median(|report| report.reply_to_arrival_ms.p50),
            disk: traced.map(|traced| traced.disk),
            syncs_each_message: traced.and_then(|traced| traced.disk.syncs_each()),
            given_up: turns.given_up,
            holds: turns.given_up == 0
                && reports.iter().all(Report::holds)
                && traced.is_none_or(|traced| traced.holds),
        }
    }
}

/// What came of a relay's turns.
#[derive(Debug)]
struct Turns<T> {
    done: Vec<T>,
    given_up: usize,
}

/// Compares; false where something was lost, damaged or doubled by any of them, a run did not come to its end, or this relay did not
/// keep the order.
pub(crate) fn compare(options: &CompareOptions) -> anyhow::Result<bool> {
    crate::load::more_descriptors()?;
    signals::note()?;
    // The load before is not of the measuring.
    let facts = facts();
    ensure!((1..=100).contains(&options.runs), "from 1 to 100 runs");
    for name in &options.names {
        check_rate(*name, &options.play)?;
    }
    let mut all = Vec::new();
    for (number, name) in options.names.iter().enumerate() {
        let rows = through_each(*name, options)?;
        if options.play.json {
            for row in &rows {
                println!("{}", serde_json::to_string(row)?);
            }
        } else {
            if number > 0 {
                println!();
            }
            print(*name, &rows, options);
        }
        all.push(rows);
    }
    page(&all, facts, options).write(options.report.as_deref(), options.plots.as_deref())?;
    Ok(all.iter().flatten().all(|row| row.holds))
}

fn through_each(scenario: Name, options: &CompareOptions) -> anyhow::Result<Vec<Row>> {
    let play = &options.play;
    let plan = Plan {
        patience: Duration::from_secs(options.patience),
        ..plan(scenario, play)?
    };
    let postrider = play.postrider()?;
    let relays: Vec<Option<&Path>> = std::iter::once(None)
        .chain(options.peer.iter().map(|peer| Some(peer.as_path())))
        .collect();
    let through = |plan: &Plan, relay: Option<&Path>| {
        run::play(plan, &postrider, relay, play.folder.as_deref())
            .with_context(|| format!("{}, {}", plan.name, name(relay)))
    };
    let turns = rounds(&relays, options.runs, |round, relay| {
        let report = through(&plan, relay)?;
        eprintln!(
            "{scenario}, round {round}: {:<12} {:>8.0}/s {:>8.3} CPU-s for 1,000; {}",
            name(relay),
            report.per_second,
            report.cpu_seconds_per_1000,
            report.balance.words()
        );
        for finding in report.findings() {
            eprintln!("  found: {finding}");
        }
        Ok(report)
    })?;
    let mut rows = Vec::new();
    for (relay, mut turns) in relays.iter().zip(turns) {
        let traced = match options.traced {
            // What has never come to its end does not do so under strace.
            _ if turns.done.is_empty() => None,
            0 => None,
            messages => come_through(&mut turns.given_up, || {
                traced(&plan, messages, |plan| through(plan, *relay))
            })?,
        };
        rows.push(Row::of(scenario, name(*relay), &turns, traced.as_ref()));
    }
    Ok(rows)
}

/// Every relay has a turn in each round, whatever came of the turn before.
fn rounds<T>(
    relays: &[Option<&Path>],
    runs: usize,
    through: impl Fn(usize, Option<&Path>) -> anyhow::Result<T>,
) -> anyhow::Result<Vec<Turns<T>>> {
    let none = || Turns {
        done: Vec::new(),
        given_up: 0,
    };
    let mut turns: Vec<_> = relays.iter().map(|_| none()).collect();
    for round in 0..runs {
        for (relay, turns) in relays.iter().zip(&mut turns) {
            let done = come_through(&mut turns.given_up, || through(round, *relay))?;
            turns.done.extend(done);
        }
    }
    Ok(turns)
}

/// What does not come to its end is told of and counted, and others go on; but where we were asked to end nothing does.
fn come_through<T>(
    given_up: &mut usize,
    run: impl FnOnce() -> anyhow::Result<T>,
) -> anyhow::Result<Option<T>> {
    match run() {
        Ok(done) => Ok(Some(done)),
        Err(error) if signals::is_asked_to_end() => Err(error),
        Err(error) => {
            eprintln!("GIVEN UP: {error:#}");
            *given_up += 1;
            Ok(None)
        }
    }
}

/// Under strace, first one message after the other, kept, so that delivery's syncs are not taken for theirs; then the scenario.
fn traced(
    plan: &Plan,
    messages: u32,
    through: impl Fn(&Plan) -> anyhow::Result<Report>,
) -> anyhow::Result<Traced> {
    let folder = tempfile::tempdir()?;
    let holds = Cell::new(true);
    let calls = |plan: Plan| {
        let file = folder.path().join("trace");
        let plan = Plan {
            trace: Some(file.clone()),
            ..plan
        };
        let report = through(&plan).context("under strace; --traced 0 goes without")?;
        for finding in report.findings() {
            eprintln!("  found under strace: {finding}");
        }
        holds.set(holds.get() && report.holds());
        let calls = Calls::read(&file, report.between)?;
        anyhow::Ok((calls, f64::from(plan.messages), report.accept.octets as f64))
    };
    let alone = |name| {
        calls(Plan {
            name,
            messages: ALONE,
            warm_up: 2,
            sessions: 1,
            ..plan.clone()
        })
    };
    // A peer need not know every scenario.
    let (alone_in, (alone, alone_messages, _)) = match alone(Name::Accept) {
        Ok(counted) => (Name::Accept, counted),
        Err(error) if signals::is_asked_to_end() => return Err(error),
        Err(error) => {
            eprintln!("syncs of what is kept are not counted, but of all: {error:#}");
            (plan.name, alone(plan.name)?)
        }
    };
    let (all, messages, octets) = calls(Plan {
        messages,
        // One for each session: what is set up for a first message is set up by then.
        warm_up: u32::try_from(plan.sessions)?,
        ..plan.clone()
    })?;
    Ok(Traced {
        disk: Disk {
            syncs_per_message_alone: alone.syncs as f64 / alone_messages,
            alone_in,
            syncs_per_message: all.syncs as f64 / messages,
            file_octets_by_accepted: all.written as f64 / octets.max(1.0),
            may_be_more: alone.unseen || all.unseen,
        },
        holds: holds.get(),
    })
}

/// Columns after the relay's name, and their widths in print.
const COLUMNS: [(&str, usize); 9] = [
    ("messages/s", 10),
    ("ratio", 8),
    ("CPU-s/1,000", 11),
    ("ratio", 8),
    ("peak MiB", 8),
    ("written", 8),
    ("files", 8),
    ("syncs", 8),
    ("250→in, ms", 12),
];

impl Row {
    /// As in [`COLUMNS`], beside our own.
    fn cells(&self, own: &Self) -> [String; 9] {
        let (files, syncs) = self.disk.map_or_else(
            || ("-".to_owned(), "-".to_owned()),
            |disk| {
                let more = if disk.may_be_more { "+" } else { "" };
                (
                    format!("{:.2}{more}", disk.file_octets_by_accepted),
                    format!("{:.2}{more}", disk.syncs_per_message),
                )
            },
        );
        [
            format!("{:.0}", self.per_second),
            format!("{:.2}", own.per_second / self.per_second),
            format!("{:.3}", self.cpu_seconds_per_1000),
            format!("{:.3}", own.cpu_seconds_per_1000 / self.cpu_seconds_per_1000),
            format!("{:.0}", self.peak_memory_mib),
            format!("{:.2}", self.written_by_accepted),
            files,
            syncs,
            format!("{:.1}", self.reply_to_arrival_p50_ms),
        ]
    }

    /// With a mark where it does not sync, or may not.
    fn marked(&self) -> String {
        match self.syncs_each_message {
            Some(false) => format!("{} *", self.relay),
            None if self.disk.is_some() => format!("{} ?", self.relay),
            _ => self.relay.clone(),
        }
    }

    fn trouble(&self) -> Option<String> {
        match (self.given_up, self.holds) {
            (0, true) => None,
            (0, false) => Some("DOES NOT HOLD".to_owned()),
            (runs, _) => Some(format!("{runs} GIVEN UP")),
        }
    }
}

fn print(scenario: Name, rows: &[Row], options: &CompareOptions) {
    let line = |first: &str, cells: &[&str]| {
        let columns = cells.iter().zip(COLUMNS);
        columns.fold(format!("{first:<14}"), |line, (cell, (_, width))| {
            format!("{line} {cell:>width$}")
        })
    };
    println!("{}", line(&scenario.to_string(), &COLUMNS.map(|(head, _)| head)));
    let Some(own) = rows.first() else { return };
    for row in rows {
        let cells = row.cells(own);
        let trouble = row
            .trouble()
            .map_or_else(String::new, |trouble| format!("  {trouble}"));
        println!(
            "{}{trouble}",
            line(&row.marked(), &cells.each_ref().map(String::as_str))
        );
    }
    for note in notes(rows.iter(), options) {
        println!("{note}");
    }
}

/// What is to be known for reading a table.
fn notes<'a>(rows: impl Iterator<Item = &'a Row> + Clone, options: &CompareOptions) -> Vec<String> {
    let mut notes = vec![format!(
        "ratio: postrider's figure by this relay's; medians of {}; written: octets that the kernel counts, by octets of messages",
        options.runs
    )];
    if options.traced > 0 {
        notes.push(format!(
            "files: octets written to files, by octets of messages, and syncs for each message: of a run of {} apart, under strace",
            options.traced
        ));
    }
    let versions = versions(rows.clone());
    if !versions.is_empty() {
        notes.push(format!("versions: {}", versions.join(", ")));
    }
    let is = |mark: &str| rows.clone().any(|row| row.marked().ends_with(mark));
    if is(" *") {
        notes.push(
            "* DOES NOT SYNC each message before it says 250: a power cut loses mail that it has taken"
                .to_owned(),
        );
    }
    if is(" ?") {
        notes.push(
            "? whether each message is synced before its 250 is not known: it plays no accept, so that deliveries' syncs are among those \
             counted, or it may sync unseen (+)"
                .to_owned(),
        );
    }
    notes
}

/// Each relay's, once; one that does not say its own is left out. A peer's may differ by scenario, as by what signs for it.
fn versions<'a>(rows: impl Iterator<Item = &'a Row>) -> Vec<String> {
    let mut versions = Vec::new();
    for row in rows {
        let version = row
            .version
            .as_ref()
            .map(|version| match version.starts_with(&row.relay) {
                true => version.clone(),
                false => format!("{} is {version}", row.relay),
            });
        versions.extend(version.filter(|version| !versions.contains(version)));
    }
    versions
}

/// All scenarios' rows as a table, and each scenario's bars.
fn page(all: &[Vec<Row>], mut facts: Facts, options: &CompareOptions) -> Page {
    let versions = versions(all.iter().flatten());
    if !versions.is_empty() {
        facts.push(("versions", versions.join(", ")));
    }
    let beside = all.iter().filter_map(|rows| Some((rows.first()?, rows)));
    let table_row = |own: &Row, row: &Row| report::Row {
        cells: std::iter::once(format!("{}: {}", row.scenario, row.marked()))
            .chain(row.cells(own))
            .collect(),
        verdict: Verdict::of(row.holds),
    };
    let bars = |title, about, rows: &[Row], of: fn(&Row) -> f64| {
        Plot::Bars(Bars {
            title,
            about,
            bars: rows.iter().map(|row| (row.marked(), of(row))).collect(),
        })
    };
    let section = |own: &Row, rows: &Vec<Row>| Section {
        title: own.scenario.to_string(),
        about: own.scenario.about().to_owned(),
        verdict: Verdict::of(rows.iter().all(|row| row.holds)),
        figures: Vec::new(),
        findings: rows
            .iter()
            .filter_map(|row| Some(format!("{}: {}", row.relay, row.trouble()?)))
            .collect(),
        plots: vec![
            (
                "throughput",
                bars("Messages a second", "more is better", rows, |row| row.per_second),
            ),
            (
                "cpu",
                bars("CPU-seconds for 1,000", "less is better", rows, |row| {
                    row.cpu_seconds_per_1000
                }),
            ),
        ],
    };
    Page {
        title: "Postrider beside other relays".to_owned(),
        facts,
        tables: vec![Table {
            head: std::iter::once("relay")
                .chain(COLUMNS.map(|(head, _)| head))
                .collect(),
            rows: beside
                .clone()
                .flat_map(|(own, rows)| rows.iter().map(move |row| table_row(own, row)))
                .collect(),
            note: format!("{}.", notes(all.iter().flatten(), options).join("; ")),
        }],
        sections: beside.map(|(own, rows)| section(own, rows)).collect(),
    }
}

fn name(relay: Option<&Path>) -> String {
    relay.and_then(Path::file_name).map_or_else(
        || "postrider".to_owned(),
        |name| name.to_string_lossy().into_owned(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_that_is_given_up_does_not_end_the_others() {
        let relays = [None, Some(Path::new("peers/stuck"))];
        let turns = rounds(&relays, 3, |round, relay| match (round, relay) {
            (1.., Some(_)) => anyhow::bail!("it has stalled"),
            _ => Ok(round),
        })
        .unwrap();
        let told: Vec<_> = turns.iter().map(|turns| (&*turns.done, turns.given_up)).collect();
        assert_eq!(told, [(&[0, 1, 2][..], 0), (&[0][..], 2)]);
    }

    #[derive(clap::Parser)]
    struct Cli {
        #[command(flatten)]
        options: CompareOptions,
    }

    #[test]
    fn a_report_has_what_is_printed_and_bars() {
        let cli = <Cli as clap::Parser>::parse_from(["compare", "--peer", "nothing"]);
        let row = |relay: &str, per_second, syncs| Row {
            scenario: Name::Relay,
            relay: relay.to_owned(),
            version: (relay == "peer").then(|| "Peer 1.2".to_owned()),
            per_second,
            cpu_seconds_per_1000: 0.5,
            cpu_from: None,
            peak_memory_mib: 80.0,
            written_by_accepted: 1.1,
            reply_to_arrival_p50_ms: 2.5,
            disk: None,
            syncs_each_message: Some(syncs),
            given_up: usize::from(!syncs),
            holds: syncs,
        };
        let rows = vec![row("postrider", 9_000.0, true), row("peer", 450.0, false)];
        let page = page(&[rows], facts(), &cli.options);
        let [table] = &page.tables[..] else {
            panic!("one table")
        };
        let told: Vec<_> = table
            .rows
            .iter()
            .map(|row| (&*row.cells[0], &*row.cells[2]))
            .collect();
        assert_eq!(told, [("relay: postrider", "1.00"), ("relay: peer *", "20.00")]);
        assert!(table.rows.iter().all(|row| row.cells.len() == table.head.len()));
        let html = page.html();
        let [.., (name, versions)] = &page.facts[..] else {
            panic!("no facts")
        };
        assert_eq!((*name, &**versions), ("versions", "peer is Peer 1.2"));
        for part in [
            "versions: peer is Peer 1.2; ",
            "DOES NOT SYNC",
            "peer: 1 GIVEN UP",
            "Messages a second, more is better",
        ] {
            assert!(html.contains(part), "{part}: {html}");
        }
        assert_eq!(html.matches("<rect class=\"other\"").count(), 2, "{html}");
    }

    #[test]
    fn a_rate_is_nothing_that_is_compared() {
        let words = ["compare", "--peer", "nothing", "--rate", "100"];
        let cli = <Cli as clap::Parser>::parse_from(words);
        let said = compare(&cli.options).unwrap_err().to_string();
        assert!(said.starts_with("--rate: relay goes"), "{said}");
    }

    #[test]
    fn those_that_others_play_are_compared() {
        assert_eq!(comparable("relay-dkim"), Ok(Name::RelayDkim));
        assert!(comparable("relay-tls").unwrap_err().contains("relay-tls"));
        assert!(comparable("all").is_err());
        assert!(comparable("nothing").is_err());
    }

    /// What a run under strace leaves, each message synced, and what was found in it.
    fn under_strace(plan: &Plan, found: &str) -> anyhow::Result<Report> {
        let line = "17 0.000000 fsync(3</s/a>) = 0\n";
        std::fs::write(plan.trace.as_ref().unwrap(), line.repeat(plan.messages as usize))?;
        let mut report = Report::empty(plan.name);
        report.findings = Some(found)
            .filter(|found| !found.is_empty())
            .map(str::to_owned)
            .into_iter()
            .collect();
        Ok(report)
    }

    #[test]
    fn what_is_found_under_strace_does_not_hold() {
        let plan = Plan::of(Name::Relay, 100, "1KiB").unwrap();
        let row = |in_accept: &str, in_relay: &str| {
            let traced = traced(&plan, 100, |plan| match plan.name {
                Name::Accept => under_strace(plan, in_accept),
                _ => under_strace(plan, in_relay),
            });
            let turns = Turns {
                done: vec![Report::empty(Name::Relay)],
                given_up: 0,
            };
            Row::of(Name::Relay, "peer".to_owned(), &turns, traced.ok().as_ref())
        };
        let sound = row("", "");
        assert!(sound.holds && sound.syncs_each_message == Some(true), "{sound:?}");
        for lossy in [row("1 was lost", ""), row("", "1 was lost")] {
            assert!(!lossy.holds, "{lossy:?}");
            assert_eq!(lossy.trouble().as_deref(), Some("DOES NOT HOLD"));
        }
    }

    #[test]
    fn who_syncs_less_than_once_a_message_is_marked() {
        let disk = Disk {
            syncs_per_message_alone: 0.5,
            alone_in: Name::Accept,
            syncs_per_message: 0.1,
            file_octets_by_accepted: 1.0,
            may_be_more: false,
        };
        assert_eq!(disk.syncs_each(), Some(false));
        // Many sessions share a sync; one alone can't.
        let alone = Disk {
            syncs_per_message_alone: 1.0,
            ..disk
        };
        assert_eq!(alone.syncs_each(), Some(true));
        // What can't be seen is held against nobody, and for nobody.
        let unseen = Disk {
            may_be_more: true,
            ..disk
        };
        assert_eq!(unseen.syncs_each(), None);
    }

    #[test]
    fn syncs_of_deliveries_are_not_taken_for_those_of_accepting() {
        let plan = Plan::of(Name::Relay, 100, "1KiB").unwrap();
        let row = |syncs| {
            let traced = traced(&plan, 100, |plan| match plan.name {
                Name::Accept => anyhow::bail!("accept is not set up here"),
                _ if syncs => under_strace(plan, ""),
                _ => {
                    std::fs::write(plan.trace.as_ref().unwrap(), "")?;
                    Ok(Report::empty(plan.name))
                }
            });
            let turns = Turns {
                done: vec![Report::empty(Name::Relay)],
                given_up: 0,
            };
            Row::of(Name::Relay, "peer".to_owned(), &turns, traced.ok().as_ref())
        };
        let (syncs, none) = (row(true), row(false));
        assert_eq!((syncs.syncs_each_message, &*syncs.marked()), (None, "peer ?"));
        // Who does not sync at all syncs nothing before a 250 either.
        assert_eq!(
            (none.syncs_each_message, &*none.marked()),
            (Some(false), "peer *")
        );
        let json = serde_json::to_string(&syncs).unwrap();
        assert!(
            json.contains(r#""alone_in":"relay""#) && json.contains(r#""syncs_each_message":null"#),
            "{json}"
        );
    }
}
