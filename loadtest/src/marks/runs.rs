//! What groups of marks share: what a bench binary says, and scenarios that are played for their figures.

use std::collections::HashMap;
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::thread::ScopedJoinHandle;
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use rustix::process::Signal;
use serde::Deserialize;

use super::{Common, Mark, Ratio, median};
use crate::report::svg::number;
use crate::scenario::run::play;
use crate::scenario::{Plan, Report};
use crate::signals;

/// How often a program that runs for us is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(5);

/// Values by name.
pub(super) type Values = HashMap<String, f64>;

/// The program that was named, or the one of this name beside this program.
pub(super) fn program(named: Option<&Path>, name: &str) -> anyhow::Result<PathBuf> {
    let program = match named {
        Some(program) => program.to_owned(),
        None => std::env::current_exe()?.with_file_name(name),
    };
    ensure!(
        program.exists(),
        "{} is not there: build it, or say where it is",
        program.display()
    );
    Ok(program)
}

/// What a bench binary says. One that is meant to end as if it were killed aborts.
pub(super) fn figures(binary: &Path, arguments: &[String], killed: bool) -> anyhow::Result<Values> {
    #[derive(Deserialize)]
    struct Value {
        name: String,
        value: f64,
    }
    let output =
        output(Command::new(binary).args(arguments)).with_context(|| binary.display().to_string())?;
    // One that fails otherwise has not left what it was to leave.
    let as_meant = if killed {
        output.status.signal() == Some(Signal::ABORT.as_raw())
    } else {
        output.status.success()
    };
    if !as_meant {
        bail!(
            "{arguments:?} ended with {}: {}",
            output.status,
            String::from_utf8_lossy(&output.stderr)
        );
    }
    let text = String::from_utf8_lossy(&output.stdout);
    text.lines()
        .map(|line| {
            let Value { name, value } = serde_json::from_str(line).context("a line of the bench")?;
            Ok((name, value))
        })
        .collect()
}

/// What a program says, once it has ended. Where we are asked to end it is killed.
fn output(command: &mut Command) -> anyhow::Result<Output> {
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    // Read beside, so that no pipe is full while we wait.
    let (out, err) = (child.stdout.take(), child.stderr.take());
    std::thread::scope(|scope| {
        let out = scope.spawn(|| read(out));
        let err = scope.spawn(|| read(err));
        let status = loop {
            if let Some(status) = child.try_wait()? {
                break status;
            }
            if let Err(error) = signals::go_on() {
                child.kill()?;
                child.wait()?;
                return Err(error);
            }
            std::thread::sleep(LOOK_EVERY);
        };
        let read = |thread: ScopedJoinHandle<'_, std::io::Result<Vec<u8>>>| {
            thread.join().map_err(|_| anyhow::anyhow!("a reader panicked"))
        };
        Ok(Output {
            status,
            stdout: read(out)??,
            stderr: read(err)??,
        })
    })
}

fn read(from: Option<impl std::io::Read>) -> std::io::Result<Vec<u8>> {
    let mut octets = Vec::new();
    if let Some(mut from) = from {
        from.read_to_end(&mut octets)?;
    }
    Ok(octets)
}

/// What is promised of `otp`: the scenario's figure, how it is told, its mark, its unit. Behind the newsletters a password takes at most
/// two tokens more than alone, 40 ms, nine of ten of them. Of the tokens 95 % are spent. As messages take 200 ms each, that keeps 9.5 of the 10
/// connections in a transaction, however much longer one lasts; 9.8 are that none stands idle for more than 4 ms between two.
pub(super) const OTP: [(&str, &str, Mark, &str); 4] = [
    (
        "behind over alone, p50",
        "behind over alone",
        Mark::AtMost(40.0),
        "ms",
    ),
    (
        "behind over alone, p90",
        "behind over alone, p90",
        Mark::AtMost(40.0),
        "ms",
    ),
    ("tokens spent", "tokens spent", Mark::AtLeast(0.95), ""),
    (
        "connections in a transaction",
        "connections of 10 in a transaction",
        Mark::AtLeast(9.8),
        "",
    ),
];

/// Those, of one run; the 99th percentile is told, and promised by nobody: it is of 60 passwords.
pub(super) fn otp_figures(report: &Report) -> [f64; 4] {
    eprintln!(
        "otp: a password behind newsletters over alone, p99: {:.1} ms",
        report.figure("behind over alone, p99")
    );
    OTP.map(|(figure, ..)| report.figure(figure))
}

/// Plays scenarios.
pub(super) struct Runs<'a> {
    pub(super) common: &'a Common,
    pub(super) postrider: PathBuf,
}

impl<'a> Runs<'a> {
    pub(super) fn new(common: &'a Common) -> anyhow::Result<Self> {
        Ok(Self {
            common,
            postrider: program(common.postrider.as_deref(), "postrider")?,
        })
    }

    pub(super) fn wants(&self, name: &str) -> bool {
        self.common.wants(name)
    }

    pub(super) fn folder(&self) -> Option<&Path> {
        self.common.folder.as_deref()
    }

    pub(super) fn scaled(&self, full: f64) -> u32 {
        (full * self.common.scale).max(400.0) as u32
    }

    pub(super) fn own(&self, plan: &Plan) -> anyhow::Result<Report> {
        self.play(plan, None)
    }

    /// Through a peer, or through this relay. A run that is not sound has no figures.
    pub(super) fn play(&self, plan: &Plan, peer: Option<&Path>) -> anyhow::Result<Report> {
        let report = play(plan, &self.postrider, peer, self.folder())
            .with_context(|| format!("scenario {}", plan.name))?;
        ensure_sound(&report)?;
        Ok(report)
    }

    /// A number of rounds, each of which gives some pairs of numbers, which are told on standard error; the ratios of those.
    pub(super) fn ratios<const N: usize>(
        &self,
        names: [&str; N],
        round: impl Fn() -> anyhow::Result<[(f64, f64); N]>,
    ) -> anyhow::Result<[Ratio; N]> {
        let mut rounds = Vec::new();
        for _ in 0..self.common.runs {
            signals::go_on()?;
            let round = round()?;
            for (name, (over, under)) in names.iter().zip(round) {
                eprintln!("{name}: {} / {}", number(over), number(under));
            }
            rounds.push(round);
        }
        Ok(std::array::from_fn(|at| {
            let of: Vec<_> = rounds.iter().map(|round| round[at]).collect();
            Ratio::of(&of)
        }))
    }

    /// A number of rounds, each of which gives some values; their medians.
    pub(super) fn medians<const N: usize>(
        &self,
        round: impl Fn() -> anyhow::Result<[f64; N]>,
    ) -> anyhow::Result<[f64; N]> {
        let rounds = (0..self.common.runs)
            .map(|_| {
                signals::go_on()?;
                round()
            })
            .collect::<anyhow::Result<Vec<_>>>()?;
        Ok(std::array::from_fn(|at| {
            median(rounds.iter().map(|values| values[at]).collect())
        }))
    }
}

/// Nothing was lost, refused or broken off, by a peer neither: what did not go through it costs it nothing. Of order others have promised
/// nothing, and no run of theirs is held against it.
fn ensure_sound(report: &Report) -> anyhow::Result<()> {
    let found: Vec<_> = report.findings().map(String::as_str).collect();
    ensure!(
        report.holds(),
        "scenario {}: {}",
        report.scenario,
        found.join("; ")
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scenario::Name;

    #[test]
    fn a_bench_that_failed_was_not_killed() {
        let ends = |script: &str, killed| {
            let said = r#"{"name": "a", "value": 1}"#;
            let arguments = ["-c".to_owned(), format!("echo '{said}'; {script}")];
            figures(Path::new("/bin/sh"), &arguments, killed)
        };
        for (script, killed) in [("exit 0", false), ("kill -ABRT $$", true)] {
            let values = ends(script, killed).unwrap();
            assert_eq!(values.get("a"), Some(&1.0), "{script}");
        }
        for (script, killed) in [("exit 101", true), ("exit 0", true), ("kill -ABRT $$", false)] {
            assert!(ends(script, killed).is_err(), "{script}, {killed}");
        }
    }

    #[test]
    fn a_run_in_which_mail_was_refused_has_no_figures() {
        let mut report = Report::empty(Name::Relay);
        ensure_sound(&report).unwrap();
        report
            .findings
            .push("390 of 400 messages were accepted, 2 connections broke".to_owned());
        let said = ensure_sound(&report).unwrap_err().to_string();
        assert_eq!(
            said,
            "scenario relay: 390 of 400 messages were accepted, 2 connections broke"
        );
    }
}
