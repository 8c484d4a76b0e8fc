//! The marks of the whole relay. Ratios are of runs that follow one another, and medians of such ratios.

use std::cell::Cell;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context as _, ensure};

use super::runs::{OTP, Runs, otp_figures};
use super::{Mark, Ratio, RelayOptions, Told};
use crate::load::client::Beat;
use crate::load::more_descriptors;
use crate::report::{Facts, Page, Table};
use crate::scenario::apart::{self, Tools};
use crate::scenario::run::FLUSHES;
use crate::scenario::{Name, Plan};
use crate::signals;

/// Messages of this relay's runs, and of those of others, which take ten times as long.
const OWN: f64 = 50_000.0;
const PEERS: f64 = 10_000.0;
/// Messages of a warm-up for each session, at the least.
const WARM_UP: u32 = 20;
/// Octets of a message, where nothing else is said.
const SIZE: &str = "10KiB";
const SIZE_OCTETS: usize = 10 << 10;
/// Messages a second, and how many, to a relay that is idle otherwise.
const IDLE_RATE: f64 = 50.0;
const IDLE_MESSAGES: f64 = 1_000.0;
/// Seconds of a run at half load.
const HALF_SECONDS: f64 = 20.0;
/// Sessions of a run whose octets are counted.
const HALF_SESSIONS: usize = 64;
/// Messages of 10 KiB that fill the memtables three times over, at 112 to 128 MiB each (queue/src/rocks.rs), and MiB that are written then.
const THREE_FLUSHES: u32 = 45_000;
const THREE_FLUSHES_MIB: f64 = 3.0 * 112.0;

/// Why copies have no figure here.
const COUNTED: &str = "counted by the gates of CI, not by a load";

struct Bench<'a> {
    options: &'a RelayOptions,
    runs: Runs<'a>,
}

pub(super) fn measure(options: &RelayOptions, told: &mut Told) -> anyhow::Result<()> {
    more_descriptors()?;
    let bench = Bench {
        options,
        runs: Runs::new(&options.common)?,
    };
    let parts: [(&str, Part<'_>); 8] = [
        ("beside Postfix", Bench::beside_postfix),
        ("beside itself", Bench::beside_itself),
        ("smtp-source to smtp-sink", Bench::between),
        ("idle", Bench::idle),
        ("half-load, written", Bench::half_load),
        ("hot-and-cold", Bench::hot_and_cold),
        ("otp", Bench::otp),
        ("memory", Bench::memory),
    ];
    for (name, part) in parts {
        match part(&bench, told) {
            Ok(()) => {}
            Err(error) if signals::is_asked_to_end() => return Err(error),
            // What was not sound has no figure; others have theirs.
            Err(error) => told.missing(name, &format!("{error:#}"))?,
        }
    }
    if bench.runs.wants("copies") {
        told.open("copies: of a body, between socket and WAL", COUNTED)?;
    }
    Ok(())
}

/// Figures of the same runs; where one of those was not sound, that they have none.
fn tell<const N: usize>(
    told: &mut Told,
    figures: &[(&str, Mark)],
    measured: anyhow::Result<[Ratio; N]>,
) -> anyhow::Result<()> {
    // What was broken off is no figure, and no reason why there is none.
    signals::go_on()?;
    for (at, (name, mark)) in figures.iter().enumerate() {
        match &measured {
            Ok(measured) => told.ratio(name, measured[at], *mark)?,
            Err(why) => told.missing(name, &format!("{why:#}"))?,
        }
    }
    Ok(())
}

/// A figure over flushes is of a run that had them, by the store's own count.
fn ensure_flushed(mib: f64) -> anyhow::Result<()> {
    ensure!(
        mib >= THREE_FLUSHES_MIB,
        "flushes wrote {mib:.0} MiB, and three of them are {THREE_FLUSHES_MIB}"
    );
    Ok(())
}

/// Something, and what was measured before and after it.
fn around<T>(
    measure: impl Fn() -> anyhow::Result<f64>,
    run: impl FnOnce() -> anyhow::Result<T>,
) -> anyhow::Result<(T, [f64; 2])> {
    let before = measure()?;
    let done = run()?;
    Ok((done, [before, measure()?]))
}

/// Warmed up by as much for each session, however few messages are measured: a peer's are a fifth of ours, and what it sets up for a
/// session it would set up while it is measured.
fn warmed(plan: Plan) -> Plan {
    Plan {
        warm_up: plan.warm_up.max(WARM_UP * plan.sessions as u32),
        ..plan
    }
}

/// Measures some of the figures, and tells them.
type Part<'a> = fn(&Bench<'a>, &mut Told) -> anyhow::Result<()>;

/// The report, where one is wanted.
pub(super) fn write(options: &RelayOptions, facts: Facts, told: &mut Told) -> anyhow::Result<()> {
    let page = Page {
        title: "Postrider: the relay's marks".to_owned(),
        facts,
        tables: vec![Table {
            head: vec!["figure", "measured", "mark"],
            rows: std::mem::take(&mut told.rows),
            note: format!(
                "Medians of {}, at {} of the promised sizes. Less than the whole is a quick look, and proves nothing.",
                options.common.runs, options.common.scale
            ),
        }],
        ..Page::default()
    };
    page.write(options.report.as_deref(), None)
}

impl Bench<'_> {
    /// The peer of this name, or why it is not there.
    fn peer(&self, name: &str) -> Result<PathBuf, String> {
        let peer = self.options.peers.join(name);
        if !peer.exists() {
            return Err(format!("no {}", peer.display()));
        }
        if !rustix::process::geteuid().is_root() {
            return Err("Postfix wants to be started by root".to_owned());
        }
        self.interop().map_err(|error| error.to_string())?;
        Ok(peer)
    }

    /// Where Debian's programs are unpacked.
    fn interop(&self) -> anyhow::Result<PathBuf> {
        if let Some(folder) = &self.options.interop {
            return Ok(folder.clone());
        }
        let asked = Command::new("tests/interop/fetch").arg("--where").output();
        let output = asked.context("tests/interop/fetch is not here")?;
        let folder = String::from_utf8_lossy(&output.stdout).trim().to_owned();
        ensure!(
            output.status.success() && !folder.is_empty(),
            "tests/interop/fetch has not been run"
        );
        Ok(folder.into())
    }

    fn beside_postfix(&self, told: &mut Told) -> anyhow::Result<()> {
        let postfix = self.peer("postfix");
        for (name, size, cpu, rate) in [
            ("relay", SIZE, 0.07, Some(10.0)),
            ("relay-1KiB", "1KiB", 0.05, None),
            ("relay-100KiB", "100KiB", 0.17, None),
        ] {
            if !self.runs.wants(name) {
                continue;
            }
            let cpu_name = format!("{name}: CPU / Postfix's");
            let rate_name = format!("{name}: messages a second / Postfix's");
            let postfix = match &postfix {
                Ok(postfix) => postfix,
                Err(why) => {
                    told.missing(&cpu_name, why)?;
                    if rate.is_some() {
                        told.missing(&rate_name, why)?;
                    }
                    continue;
                }
            };
            // Where messages are large, fewer of them are as much work.
            let part = if size == "100KiB" { 0.2 } else { 1.0 };
            let own = warmed(Plan::of(Name::Relay, self.runs.scaled(OWN * part), size)?);
            let other = warmed(Plan::of(Name::Relay, self.runs.scaled(PEERS * part), size)?);
            let measured = self.runs.ratios([&cpu_name, &rate_name], || {
                let (own, other) = (self.runs.own(&own)?, self.runs.play(&other, Some(postfix))?);
                Ok([
                    (own.cpu_seconds_per_1000, other.cpu_seconds_per_1000),
                    (own.per_second, other.per_second),
                ])
            });
            let mut figures = vec![(&*cpu_name, Mark::AtMost(cpu))];
            figures.extend(rate.map(|rate| (&*rate_name, Mark::AtLeast(rate))));
            tell(told, &figures, measured)?;
        }
        for (wanted, scenario, full, name, mark) in [
            (
                "relay-dkim",
                Name::RelayDkim,
                0.5,
                "relay-dkim: CPU / Postfix's with OpenDKIM",
                0.09,
            ),
            ("accept", Name::Accept, 1.2, "accept: CPU / Postfix's", 0.12),
        ] {
            // `accept` is over three flushes, whatever the scale.
            let least = if scenario == Name::Accept {
                THREE_FLUSHES
            } else {
                0
            };
            if !self.runs.wants(wanted) {
                continue;
            }
            let postfix = match &postfix {
                Ok(postfix) => postfix,
                Err(why) => {
                    told.missing(name, why)?;
                    continue;
                }
            };
            let own = warmed(Plan::of(scenario, self.runs.scaled(OWN * full).max(least), SIZE)?);
            let other = warmed(Plan::of(scenario, self.runs.scaled(PEERS * full), SIZE)?);
            let measured = self.runs.ratios([name], || {
                // Whether the peer can play this, it is first to show.
                let other = self.runs.play(&other, Some(postfix))?;
                let own = self.runs.own(&own)?;
                if scenario == Name::Accept {
                    ensure_flushed(own.figure(FLUSHES))?;
                }
                Ok([(own.cpu_seconds_per_1000, other.cpu_seconds_per_1000)])
            });
            tell(told, &[(name, Mark::AtMost(mark))], measured)?;
        }
        Ok(())
    }

    /// Figures that are ratios to this relay's own.
    fn beside_itself(&self, told: &mut Told) -> anyhow::Result<()> {
        let relay = Plan::of(Name::Relay, self.runs.scaled(OWN), SIZE)?;
        if self.runs.wants("relay-dkim-ed25519") {
            let signed = Plan {
                name: Name::RelayDkimEd25519,
                ..relay.clone()
            };
            let name = "relay-dkim-ed25519: CPU / own relay's";
            let measured = self.runs.ratios([name], || {
                let (plain, signed) = (self.runs.own(&relay)?, self.runs.own(&signed)?);
                Ok([(signed.cpu_seconds_per_1000, plain.cpu_seconds_per_1000)])
            });
            tell(told, &[(name, Mark::AtMost(1.3))], measured)?;
        }
        if self.runs.wants("relay-tls") {
            let tls = Plan {
                name: Name::RelayTls,
                ..relay.clone()
            };
            let name = "relay-tls: CPU / own relay's in clear";
            let measured = self.runs.ratios([name], || {
                let (plain, tls) = (self.runs.own(&relay)?, self.runs.own(&tls)?);
                Ok([(tls.cpu_seconds_per_1000, plain.cpu_seconds_per_1000)])
            });
            tell(told, &[(name, Mark::AtMost(1.5))], measured)?;
        }
        if self.runs.wants("thousand-domains") {
            let many = Plan::of(Name::ThousandDomains, self.runs.scaled(OWN), SIZE)?;
            let name = "thousand-domains: messages a second / one's";
            let measured = self.runs.ratios([name], || {
                let (one, many) = (self.runs.own(&relay)?, self.runs.own(&many)?);
                Ok([(many.per_second, one.per_second)])
            });
            tell(told, &[(name, Mark::AtLeast(0.8))], measured)?;
        }
        Ok(())
    }

    fn between(&self, told: &mut Told) -> anyhow::Result<()> {
        if !self.runs.wants("between") {
            return Ok(());
        }
        let name = "between smtp-source and smtp-sink: / without a relay";
        let tools = match self.interop().and_then(|folder| Tools::find(&folder)) {
            Ok(tools) => tools,
            Err(why) => return told.missing(name, &why.to_string()),
        };
        let plan = Plan::of(Name::Relay, self.runs.scaled(OWN), SIZE)?;
        let [ratio] = self.runs.ratios([name], || {
            let between = apart::between(
                &plan,
                SIZE_OCTETS,
                &self.runs.postrider,
                &tools,
                self.runs.folder(),
            )?;
            Ok([(between.through, between.direct)])
        })?;
        told.ratio(name, ratio, Mark::AtLeast(0.6))
    }

    fn idle(&self, told: &mut Told) -> anyhow::Result<()> {
        if !self.runs.wants("idle") {
            return Ok(());
        }
        let plan = Plan {
            sessions: 1,
            beat: Beat::Rate(IDLE_RATE),
            warm_up: 20,
            ..Plan::of(Name::Relay, self.runs.scaled(IDLE_MESSAGES), SIZE)?
        };
        let [p50, p99] = self.runs.medians(|| {
            // The peer's own time is what it takes once it has the last octet. Commands, round trips and the message's way are the relay's.
            let report = self.runs.own(&plan)?;
            let (added, whole) = (report.reply_to_last_octet_ms, report.reply_to_arrival_ms);
            eprintln!("idle: with the peer's own time {whole}");
            Ok([added.p50, added.p99])
        })?;
        told.figure(
            "idle: 250 to the peer's 250, over its own, p50",
            p50,
            Mark::AtMost(1.0),
            "ms",
        )?;
        told.figure(
            "idle: 250 to the peer's 250, over its own, p99",
            p99,
            Mark::AtMost(3.0),
            "ms",
        )
    }

    /// At half of what goes through at full speed, so that nothing waits.
    fn half_load(&self, told: &mut Told) -> anyhow::Result<()> {
        let (wants_times, wants_written) = (self.runs.wants("half-load"), self.runs.wants("written"));
        if !wants_times && !wants_written {
            return Ok(());
        }
        let full = Plan::of(Name::Relay, self.runs.scaled(OWN), SIZE)?;
        let name = "half-load: end of data to 250, p50 / append+fdatasync";
        let rounds = Cell::new(Vec::new());
        let [written] = self.runs.medians(|| {
            let rate = self.runs.own(&full)?.per_second / 2.0;
            let plan = Plan {
                sessions: HALF_SESSIONS,
                beat: Beat::Rate(rate),
                ..Plan::of(Name::Relay, self.runs.scaled(rate * HALF_SECONDS), SIZE)?
            };
            // What the disk does swings from second to second: before and after stand for meanwhile.
            let append = || apart::append_and_sync(self.runs.folder(), SIZE_OCTETS);
            let (half, [before, after]) = around(append, || self.runs.own(&plan))?;
            let p50 = half.accept.end_of_data_ms.p50;
            eprintln!("{name}: {p50:.3} / {before:.3} ms before and {after:.3} after");
            let mut told = rounds.take();
            told.push((p50, f64::midpoint(before, after)));
            rounds.set(told);
            Ok([half.store_written_by_accepted.unwrap_or(f64::NAN)])
        })?;
        if wants_times {
            told.ratio(name, Ratio::of(&rounds.take()), Mark::AtMost(2.5))?;
        }
        if wants_written {
            told.figure("written: octets / accepted", written, Mark::AtMost(1.3), "")?;
        }
        Ok(())
    }

    fn hot_and_cold(&self, told: &mut Told) -> anyhow::Result<()> {
        if !self.runs.wants("hot-and-cold") {
            return Ok(());
        }
        let plan = Plan::of(Name::HotAndCold, self.runs.scaled(10_000.0), SIZE)?;
        let [slow, blocked] = self.runs.medians(|| {
            let report = self.runs.own(&plan)?;
            Ok(
                ["p99, times that alone", "beside a blocked one, times that alone"]
                    .map(|name| report.figure(name)),
            )
        })?;
        for (name, times) in [
            ("hot-and-cold: quick ones' p99, times that alone", slow),
            ("hot-and-cold: the same beside a blocked giant", blocked),
        ] {
            told.figure(name, times, Mark::AtMost(1.5), "")?;
        }
        Ok(())
    }

    fn otp(&self, told: &mut Told) -> anyhow::Result<()> {
        if !self.runs.wants("otp") {
            return Ok(());
        }
        // Enough that they outlast the passwords: 50 a second for 20 seconds.
        let plan = Plan::of(Name::Otp, self.runs.scaled(50_000.0).max(2_000), SIZE)?;
        let measured = self.runs.medians(|| Ok(otp_figures(&self.runs.own(&plan)?)))?;
        for ((_, name, mark, unit), measured) in OTP.into_iter().zip(measured) {
            told.figure(&format!("otp: {name}"), measured, mark, unit)?;
        }
        Ok(())
    }

    fn memory(&self, told: &mut Told) -> anyhow::Result<()> {
        if !self.runs.wants("memory") {
            return Ok(());
        }
        let clear = Plan::of(Name::Relay, 1_000, SIZE)?;
        let tls = Plan {
            name: Name::RelayTls,
            ..clear.clone()
        };
        let [idle, session, over_tls] = self.runs.medians(|| {
            let clear = apart::needs(&clear, &self.runs.postrider, self.runs.folder())?;
            let tls = apart::needs(&tls, &self.runs.postrider, self.runs.folder())?;
            Ok([clear.idle_mib, clear.session_kib, tls.session_kib])
        })?;
        told.figure("memory: idle and empty", idle, Mark::AtMost(48.0), "MiB")?;
        told.figure("memory: a further session", session, Mark::AtMost(24.0), "KiB")?;
        told.figure(
            "memory: a further session over TLS",
            over_tls,
            Mark::AtMost(64.0),
            "KiB",
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accept_is_over_three_flushes_or_no_figure() {
        ensure_flushed(THREE_FLUSHES_MIB).unwrap();
        let said = ensure_flushed(224.0).unwrap_err().to_string();
        assert_eq!(said, "flushes wrote 224 MiB, and three of them are 336");
        assert!(ensure_flushed(f64::NAN).is_err());
    }

    #[test]
    fn what_a_run_is_held_against_is_measured_before_and_after_it() {
        let now = Cell::new(1.0);
        let (done, beside) = around(|| Ok(now.get()), || anyhow::Ok(now.replace(3.0))).unwrap();
        assert_eq!((done, beside), (1.0, [1.0, 3.0]));
    }

    #[test]
    fn a_peer_is_warmed_up_as_we_are() {
        let warm_up = |messages| {
            let plan = warmed(Plan::of(Name::Relay, messages, SIZE).unwrap());
            (plan.sessions, plan.warm_up)
        };
        assert_eq!(warm_up(50_000), (100, 5_000));
        assert_eq!(warm_up(10_000), (100, 2_000));
        assert_eq!(warm_up(400), (100, 2_000));
    }
}
