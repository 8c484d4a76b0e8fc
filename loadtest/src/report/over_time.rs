//! A run by the second: what came in and went out, how long it took, what the program used meanwhile.

use std::collections::HashMap;
use std::time::Duration;

use crate::load::record::{Arrival, Sent};

use super::Plot;
use super::svg::{Chart, Line, Scale};

/// Steps of time at the most.
const MOST_STEPS: f64 = 120.0;
/// Lengths of a step, in seconds; the shortest that is long enough is taken.
const STEPS: [f64; 15] = [
    0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 30.0, 60.0, 120.0, 300.0, 600.0, 3_600.0,
];
const MIB: f64 = 1_048_576.0;

/// Seconds since the begin, and a value.
type Points = Vec<(f64, f64)>;

/// See the module. Times are in milliseconds, memory in MiB, CPU in cores.
#[derive(Clone, Debug, Default)]
pub(crate) struct OverTime {
    seconds: f64,
    step: f64,
    accepted: Points,
    arrived: Points,
    /// From the end of data to the reply: p50 and p99.
    answer: [Points; 2],
    /// From the reply until it has arrived.
    arrival: [Points; 2],
    memory: Points,
    cpu: Points,
    events: Vec<(f64, String)>,
}

/// How a program was at a moment, as [`OverTime::used`] takes it.
pub(crate) struct Used {
    pub(crate) at: Duration,
    pub(crate) memory: u64,
    /// Since its start.
    pub(crate) cpu_seconds: f64,
}

impl OverTime {
    /// From `begin` on; all times are since the run's zero. How long it took is told of those messages that `timed` names.
    pub(crate) fn of(
        begin: Duration,
        sent: &[Sent],
        arrivals: &[Arrival],
        timed: impl Fn(&Sent) -> bool,
    ) -> Self {
        let since = |at: Duration| at.checked_sub(begin).map(|since| since.as_secs_f64());
        let answered = sent.iter().map(|sent| sent.answered);
        let arrived = arrivals.iter().map(|arrival| arrival.at);
        let seconds = answered.chain(arrived).filter_map(since).fold(0.0, f64::max);
        let step = STEPS
            .into_iter()
            .find(|step| seconds / step <= MOST_STEPS)
            .unwrap_or(seconds / MOST_STEPS);
        let at: HashMap<u32, Duration> = arrivals.iter().map(|one| (one.number, one.at)).collect();
        let ms = |time: Duration| time.as_secs_f64() * 1e3;
        let accepted = || sent.iter().filter(|sent| sent.is_accepted());
        let answers = accepted().filter(|sent| timed(sent)).filter_map(|sent| {
            Some((
                since(sent.answered)?,
                ms(sent.answered.saturating_sub(sent.written)),
            ))
        });
        let transits = accepted().filter(|sent| timed(sent)).filter_map(|sent| {
            let at = *at.get(&sent.number)?;
            Some((since(at)?, ms(at.saturating_sub(sent.answered))))
        });
        let (answers, transits) = (steps(step, seconds, answers), steps(step, seconds, transits));
        let taken = accepted().filter_map(|sent| Some((since(sent.answered)?, 0.0)));
        let came = arrivals.iter().filter_map(|one| Some((since(one.at)?, 0.0)));
        let (taken, came) = (steps(step, seconds, taken), steps(step, seconds, came));
        // The last step is a part of one; too small a part says nothing.
        // The last step is a part of one; too small a part says nothing.
        let rate = |steps: &[Vec<f64>]| -> Points {
            let width = |number: usize| (seconds - number as f64 * step).min(step);
            let numbers = (0..steps.len()).filter(|number| width(*number) > step / 3.0);
            numbers
                .map(|number| {
                    let width = width(number);
                    let rate = steps[number].len() as f64 / width;
                    (number as f64 * step + width / 2.0, rate)
                })
                .collect()
        };
        let over = |steps: &[Vec<f64>], share| -> Points {
            let mut points = points(step, steps, |of| quantile(of, share));
            for (at, _) in &mut points {
                *at = at.min(seconds);
            }
            points
        };
        Self {
            seconds,
            step,
            accepted: rate(&taken),
            arrived: rate(&came),
            answer: [0.5, 0.99].map(|share| over(&answers, share)),
            arrival: [0.5, 0.99].map(|share| over(&transits, share)),
            ..Self::default()
        }
    }

    /// With what the program used.
    pub(crate) fn used(mut self, begin: Duration, samples: &[Used]) -> Self {
        let mut last: Option<(f64, f64)> = None;
        for sample in samples {
            let Some(at) = sample.at.checked_sub(begin).map(|at| at.as_secs_f64()) else {
                continue;
            };
            if at > self.seconds {
                break;
            }
            self.memory.push((at, sample.memory as f64 / MIB));
            let Some((before, spent)) = last else {
                last = Some((at, sample.cpu_seconds));
                continue;
            };
            // A process that was started anew begins at none.
            if sample.cpu_seconds < spent {
                last = Some((at, sample.cpu_seconds));
            } else if at - before >= self.step.max(0.5) {
                self.cpu.push((at, (sample.cpu_seconds - spent) / (at - before)));
                last = Some((at, sample.cpu_seconds));
            }
        }
        self
    }

    /// With what was done at some moments.
    pub(crate) fn marked(mut self, begin: Duration, events: &[(Duration, String)]) -> Self {
        let since =
            |(at, what): &(Duration, String)| Some((at.checked_sub(begin)?.as_secs_f64(), what.clone()));
        self.events = events.iter().filter_map(since).collect();
        self
    }

    /// Its plots, each with a name for a file.
    pub(crate) fn plots(&self) -> Vec<(&'static str, Plot)> {
        let chart = |title, unit, scale, lines: Vec<Line>| Chart {
            title,
            unit,
            scale,
            lines: lines.into_iter().filter(is_a_course).collect(),
            events: self.events.clone(),
            seconds: self.seconds,
            gap: self.step.max(1.0) * 2.5,
        };
        let line = |name, points: &Points, colour| Line {
            name,
            points: points.clone(),
            colour,
            dashed: false,
        };
        let dashed = |name, points, colour| Line {
            dashed: true,
            ..line(name, points, colour)
        };
        let all = [
            (
                "throughput",
                chart(
                    "Messages a second",
                    "/s",
                    Scale::Linear,
                    vec![
                        line("accepted", &self.accepted, 0),
                        line("arrived", &self.arrived, 1),
                    ],
                ),
            ),
            (
                "latency",
                chart(
                    "Time",
                    "ms",
                    Scale::Log,
                    vec![
                        line("end of data → 250, p50", &self.answer[0], 0),
                        dashed("p99", &self.answer[1], 0),
                        line("250 → arrival, p50", &self.arrival[0], 1),
                        dashed("p99", &self.arrival[1], 1),
                    ],
                ),
            ),
            (
                "memory",
                chart(
                    "Memory of the relay",
                    "MiB",
                    Scale::Linear,
                    vec![line("memory", &self.memory, 2)],
                ),
            ),
            (
                "cpu",
                chart(
                    "CPU of the relay",
                    "cores",
                    Scale::Linear,
                    vec![line("cores", &self.cpu, 3)],
                ),
            ),
        ];
        all.into_iter()
            .filter(|(_, chart)| !chart.lines.is_empty())
            .map(|(name, chart)| (name, Plot::OverTime(chart)))
            .collect()
    }
}

/// Not a point or two, and not nothing all along.
fn is_a_course(line: &Line) -> bool {
    line.points.len() > 2 && line.points.iter().any(|(_, value)| *value > 0.0)
}

/// Values by the step of time they fall into.
fn steps(step: f64, seconds: f64, values: impl Iterator<Item = (f64, f64)>) -> Vec<Vec<f64>> {
    let mut steps = vec![Vec::new(); (seconds / step).floor() as usize + 1];
    for (at, value) in values {
        if let Some(of) = steps.get_mut((at / step) as usize) {
            of.push(value);
        }
    }
    steps
}

/// A point in the middle of each step that has a value.
fn points(step: f64, steps: &[Vec<f64>], value: impl Fn(&[f64]) -> Option<f64>) -> Points {
    let number = steps.iter().enumerate();
    number
        .filter_map(|(number, of)| Some(((number as f64 + 0.5) * step, value(of)?)))
        .collect()
}

fn quantile(of: &[f64], share: f64) -> Option<f64> {
    let mut of = of.to_vec();
    of.sort_by(f64::total_cmp);
    of.get(((of.len() as f64 * share) as usize).min(of.len().saturating_sub(1)))
        .copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_is_told_by_steps() {
        let begin = Duration::from_secs(100);
        let ms = |ms: u64| begin + Duration::from_millis(ms);
        // 1,000 messages in 10 s, each answered after 2 ms and there 5 ms later.
        let sent: Vec<Sent> = (0..1_000)
            .map(|number| Sent {
                number,
                domain: 0,
                recipients: 1,
                code: 250,
                meant: ms(u64::from(number) * 10),
                begun: ms(u64::from(number) * 10),
                written: ms(u64::from(number) * 10),
                answered: ms(u64::from(number) * 10 + 2),
            })
            .collect();
        let arrivals: Vec<Arrival> = sent
            .iter()
            .map(|sent| Arrival {
                run: 1,
                number: sent.number,
                domain: 0,
                recipients: 1,
                intact: true,
                at: sent.answered + Duration::from_millis(5),
                transaction_us: 0,
                own_us: 0,
            })
            .collect();
        let samples: Vec<Used> = (0..50)
            .map(|number| Used {
                at: ms(number * 200),
                memory: 64 << 20,
                cpu_seconds: number as f64 * 0.1,
            })
            .collect();
        let run = OverTime::of(begin, &sent, &arrivals, |_| true).used(begin, &samples);
        assert_eq!((run.step, run.accepted.len()), (0.1, 100));
        assert!(run.accepted.iter().all(|(_, rate)| (*rate - 100.0).abs() <= 10.0));
        assert!(run.answer[1].iter().all(|(_, ms)| (*ms - 2.0).abs() < 1e-6));
        assert!(run.arrival[0].iter().all(|(_, ms)| (*ms - 5.0).abs() < 1e-6));
        assert!(run.cpu.iter().all(|(_, cores)| (*cores - 0.5).abs() < 1e-6) && run.cpu.len() > 10);
        let names: Vec<_> = run.plots().iter().map(|(name, _)| *name).collect();
        assert_eq!(names, ["throughput", "latency", "memory", "cpu"]);
        assert!(OverTime::of(begin, &[], &[], |_| true).plots().is_empty());
        let untimed = OverTime::of(begin, &sent, &arrivals, |_| false);
        let names: Vec<_> = untimed.plots().iter().map(|(name, _)| *name).collect();
        assert_eq!(names, ["throughput"]);
    }
}
