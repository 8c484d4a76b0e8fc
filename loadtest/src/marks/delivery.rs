//! The marks of limits and rules of delivery: their insides from a bench binary, the rest from the program.

use std::path::PathBuf;

use super::runs::{self, OTP, Runs, otp_figures};
use super::{Common, Mark, Told, median};
use crate::load::more_descriptors;
use crate::scenario::{Name, Plan};

/// Lanes among which the next unit is chosen.
const LANES: f64 = 10_000.0;
/// Messages of a run, as in the marks of the relay.
const MESSAGES: f64 = 50_000.0;
const SIZE: &str = "10KiB";
/// What a rate is limited to, messages a second, and the most in any second: what falls in it and what 20 ms save up.
const RATE: f64 = 100.0;
const IN_A_SECOND: f64 = RATE + 2.0;
/// Messages for thirteen seconds at that rate.
const RATE_MESSAGES: u32 = 1_300;
/// Connections that a provider takes, and the fewest that make use of them.
const CROWD: f64 = 50.0;
const ENOUGH: f64 = 0.8 * CROWD;

/// Of two values the worse one.
type Worse = fn(f64, f64) -> f64;

struct Bench<'a> {
    runs: Runs<'a>,
    figures: PathBuf,
}

pub(super) fn measure(common: &Common, told: &mut Told) -> anyhow::Result<()> {
    more_descriptors()?;
    let bench = Bench {
        runs: Runs::new(common)?,
        figures: runs::program(common.figures.as_deref(), "delivery-figures")?,
    };
    bench.next(told)?;
    bench.rules(told)?;
    bench.rates(told)?;
    bench.crowded(told)?;
    bench.thousand_domains(told)?;
    bench.hot_and_cold(told)?;
    bench.otp(told)
}

impl Bench<'_> {
    /// Medians of values that the bench binary tells.
    fn values<const N: usize>(&self, arguments: &[&str], names: [&str; N]) -> anyhow::Result<[f64; N]> {
        let arguments: Vec<String> = arguments.iter().map(|word| (*word).to_owned()).collect();
        self.runs.medians(|| {
            let values = runs::figures(&self.figures, &arguments, false)?;
            Ok(names.map(|name| values.get(name).copied().unwrap_or(f64::NAN)))
        })
    }

    fn next(&self, told: &mut Told) -> anyhow::Result<()> {
        if !self.runs.wants("next") {
            return Ok(());
        }
        let lanes = self.runs.scaled(LANES).to_string();
        let names = [
            "next_us",
            "next_store_us",
            "next_limited_us",
            "next_limited_store_us",
            "next_in_line_us",
            "next_in_line_store_us",
        ];
        let [own, store, limited, limited_store, in_line, in_line_store] =
            self.values(&["next", "--lanes", &lanes], names)?;
        eprintln!(
            "next: beside that, its store took {store:.3} us of each, with limits {limited_store:.3}, in line {in_line_store:.3}"
        );
        told.figure("next: a unit of 10,000 lanes", own, Mark::AtMost(2.0), "us")?;
        told.figure("next: the same with limits", limited, Mark::AtMost(2.0), "us")?;
        let figure = "next: the same in line for one provider's rate";
        told.figure(figure, in_line, Mark::AtMost(2.0), "us")
    }

    fn rules(&self, told: &mut Told) -> anyhow::Result<()> {
        if !self.runs.wants("rules") {
            return Ok(());
        }
        let [found, cached] = self.values(&["rules"], ["rules_us", "rules_cached_ns"])?;
        told.figure(
            "rules: a site among 1,000 of each kind",
            found,
            Mark::AtMost(5.0),
            "us",
        )?;
        told.figure(
            "rules: a site that has its lane",
            cached,
            Mark::AtMost(100.0),
            "ns",
        )
    }

    /// The worst of all runs: what may never be is not for a median.
    fn worst<const N: usize>(&self, plan: &Plan, figures: [(&str, Worse); N]) -> anyhow::Result<[f64; N]> {
        let mut worst = [f64::NAN; N];
        for _ in 0..self.runs.common.runs {
            let report = self.runs.own(plan)?;
            for (worst, (name, worse)) in worst.iter_mut().zip(figures) {
                *worst = worse(*worst, report.figure(name));
            }
        }
        Ok(worst)
    }

    fn rates(&self, told: &mut Told) -> anyhow::Result<()> {
        for scenario in [Name::Rate, Name::ProviderRate] {
            let name = scenario.to_string();
            if !self.runs.wants(&name) {
                continue;
            }
            let plan = Plan::of(scenario, RATE_MESSAGES, SIZE)?;
            let [fewest, most, in_one] = self.worst(
                &plan,
                [
                    ("fewest, over 10 s", f64::min),
                    ("most, over 10 s", f64::max),
                    ("most in any second", f64::max),
                ],
            )?;
            let figure = |what: &str| format!("{name}: {what}");
            told.figure(
                &figure("fewest a second over 10 s"),
                fewest,
                Mark::AtLeast(RATE * 0.98),
                "/s",
            )?;
            told.figure(
                &figure("most a second over 10 s"),
                most,
                Mark::AtMost(RATE * 1.02),
                "/s",
            )?;
            told.figure(
                &figure("most in any second"),
                in_one,
                Mark::AtMost(IN_A_SECOND),
                "messages",
            )?;
        }
        Ok(())
    }

    fn crowded(&self, told: &mut Told) -> anyhow::Result<()> {
        if !self.runs.wants("crowded") {
            return Ok(());
        }
        let plan = Plan::of(Name::Crowded, Name::Crowded.messages(), "1KiB")?;
        let [settled, fewest, most] = self.worst(
            &plan,
            [
                ("settled after", f64::max),
                ("fewest connections in the next minute", f64::min),
                ("most connections in the next minute", f64::max),
            ],
        )?;
        told.figure(
            "crowded: connections are settled after",
            settled,
            Mark::AtMost(60.0),
            "s",
        )?;
        told.figure(
            "crowded: fewest in the next minute",
            fewest,
            Mark::AtLeast(ENOUGH),
            "",
        )?;
        told.figure("crowded: most in the next minute", most, Mark::AtMost(CROWD), "")
    }

    /// A figure without rules and with them, from runs that follow one another.
    fn beside<const N: usize>(
        &self,
        plan: &Plan,
        of: impl Fn(&Plan) -> anyhow::Result<[f64; N]>,
    ) -> anyhow::Result<[[f64; N]; 2]> {
        let ruled = Plan {
            rules: true,
            ..plan.clone()
        };
        let (mut without, mut with) = (Vec::new(), Vec::new());
        for _ in 0..self.runs.common.runs {
            without.push(of(plan)?);
            with.push(of(&ruled)?);
        }
        let medians = |rounds: Vec<[f64; N]>| {
            std::array::from_fn(|at| median(rounds.iter().map(|values| values[at]).collect()))
        };
        Ok([medians(without), medians(with)])
    }

    fn thousand_domains(&self, told: &mut Told) -> anyhow::Result<()> {
        let name = "thousand-domains";
        if !self.runs.wants(name) {
            return Ok(());
        }
        let many = Plan::of(Name::ThousandDomains, self.runs.scaled(MESSAGES), SIZE)?;
        let one = Plan::of(Name::Relay, many.messages, SIZE)?;
        let [[without], [with]] = self.beside(&many, |many| {
            let one = Plan {
                rules: many.rules,
                ..one.clone()
            };
            Ok([self.runs.own(many)?.per_second / self.runs.own(&one)?.per_second])
        })?;
        for (how, ratio) in [("without rules", without), ("with rules", with)] {
            let figure = format!("{name} {how}: messages a second / one's");
            told.figure(&figure, ratio, Mark::AtLeast(0.8), "")?;
        }
        Ok(())
    }

    fn hot_and_cold(&self, told: &mut Told) -> anyhow::Result<()> {
        let name = "hot-and-cold";
        if !self.runs.wants(name) {
            return Ok(());
        }
        let plan = Plan::of(Name::HotAndCold, self.runs.scaled(10_000.0), SIZE)?;
        let [[without], [with]] = self.beside(&plan, |plan| {
            Ok([self.runs.own(plan)?.figure("p99, times that alone")])
        })?;
        for (how, times) in [("without rules", without), ("with rules", with)] {
            let figure = format!("{name} {how}: p99, times that alone");
            told.figure(&figure, times, Mark::AtMost(1.5), "")?;
        }
        Ok(())
    }

    fn otp(&self, told: &mut Told) -> anyhow::Result<()> {
        let name = "otp";
        if !self.runs.wants(name) {
            return Ok(());
        }
        // Enough that they outlast the passwords: 50 a second for 20 seconds.
        let plan = Plan::of(Name::Otp, self.runs.scaled(MESSAGES).max(2_000), SIZE)?;
        let [without, with] = self.beside(&plan, |plan| Ok(otp_figures(&self.runs.own(plan)?)))?;
        for (how, measured) in [("without rules", without), ("with rules", with)] {
            for ((_, what, mark, unit), measured) in OTP.into_iter().zip(measured) {
                told.figure(&format!("{name} {how}: {what}"), measured, mark, unit)?;
            }
        }
        Ok(())
    }
}
