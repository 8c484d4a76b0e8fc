//! `loadtest compare`: the same scenario through this relay and through others, by turns, so that what else the machine does meets all.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, ensure};
use clap::Args;
use serde::Serialize;

use super::{Name, Report, plan, run};

/// Options of `loadtest compare`.
#[derive(Args)]
#[command(after_help = "Examples:\n  \
    loadtest compare --peer scripts/peers/postfix --messages 10000\n  \
    loadtest compare --peer scripts/peers/postfix --runs 5 --size 1KiB --json")]
pub(crate) struct CompareOptions {
    #[command(flatten)]
    play: super::Play,
    /// An executable that starts the other relay, told by FOLDER, LISTEN, NEXT and CONNECTIONS in its environment; may be there several times.
    #[arg(long, value_name = "FILE", required = true)]
    peer: Vec<PathBuf>,
    /// Rounds, in each of which every relay has a turn; medians count.
    #[arg(long, default_value_t = 3)]
    runs: usize,
}

/// A relay's medians.
#[derive(Debug, Serialize)]
struct Row {
    relay: String,
    per_second: f64,
    cpu_seconds_per_1000: f64,
    peak_memory_mib: f64,
    written_by_accepted: f64,
    reply_to_arrival_p50_ms: f64,
}

impl Row {
    fn of(relay: String, reports: &[Report]) -> Self {
        let median = |of: fn(&Report) -> f64| crate::marks::median(reports.iter().map(of).collect());
        Self {
            relay,
            per_second: median(|report| report.per_second),
            cpu_seconds_per_1000: median(|report| report.cpu_seconds_per_1000),
            peak_memory_mib: median(|report| report.peak_memory_mib),
            written_by_accepted: median(|report| report.written_by_accepted),
            reply_to_arrival_p50_ms: median(|report| report.reply_to_arrival_ms.p50),
        }
    }
}

/// Compares; false where something was lost, damaged or doubled by any of them, or this relay did not keep the order.
pub(crate) fn compare(options: &CompareOptions) -> anyhow::Result<bool> {
    crate::load::more_descriptors()?;
    ensure!((1..=100).contains(&options.runs), "from 1 to 100 runs");
    let play = &options.play;
    let plan = plan(Name::Relay, play)?;
    let postrider = play.postrider()?;
    let relays: Vec<Option<&Path>> = std::iter::once(None)
        .chain(options.peer.iter().map(|peer| Some(peer.as_path())))
        .collect();
    let mut reports: Vec<Vec<Report>> = relays.iter().map(|_| Vec::new()).collect();
    let mut all_hold = true;
    for round in 0..options.runs {
        for (relay, reports) in relays.iter().zip(&mut reports) {
            let report = run::play(&plan, &postrider, *relay, play.folder.as_deref())
                .with_context(|| format!("round {round}, {}", name(*relay)))?;
            eprintln!(
                "round {round}: {:<12} {:>8.0}/s {:>8.3} CPU-s for 1,000; {}",
                name(*relay),
                report.per_second,
                report.cpu_seconds_per_1000,
                report.balance.words()
            );
            for finding in report.findings() {
                eprintln!("  found: {finding}");
            }
            // Promises of order are this relay's own; none other has made them.
            all_hold &= match relay {
                None => report.holds(),
                Some(_) => report.balance.holds(),
            };
            reports.push(report);
        }
    }
    let rows: Vec<Row> = relays
        .iter()
        .zip(&reports)
        .map(|(relay, reports)| Row::of(name(*relay), reports))
        .collect();
    if play.json {
        for row in &rows {
            println!("{}", serde_json::to_string(row)?);
        }
        return Ok(all_hold);
    }
    println!(
        "{:<14} {:>10} {:>8} {:>13} {:>8} {:>8} {:>10} {:>12}",
        "relay", "messages/s", "ratio", "CPU-s/1,000", "ratio", "MiB", "written", "250→in, ms"
    );
    let own = &rows[0];
    for row in &rows {
        println!(
            "{:<14} {:>10.0} {:>8.2} {:>13.3} {:>8.3} {:>8.0} {:>10.2} {:>12.1}",
            row.relay,
            row.per_second,
            own.per_second / row.per_second,
            row.cpu_seconds_per_1000,
            own.cpu_seconds_per_1000 / row.cpu_seconds_per_1000,
            row.peak_memory_mib,
            row.written_by_accepted,
            row.reply_to_arrival_p50_ms
        );
    }
    println!(
        "ratio: postrider's figure by this relay's; medians of {}",
        options.runs
    );
    Ok(all_hold)
}

fn name(relay: Option<&Path>) -> String {
    relay.and_then(Path::file_name).map_or_else(
        || "postrider".to_owned(),
        |name| name.to_string_lossy().into_owned(),
    )
}
