//! What a run comes to: its figures, and whether all that was taken came, once, as it should, and in order.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::{Course, RUN, STILL, Stage, Subject, transit};
use crate::load::Summary;
use crate::load::client::Load;
use crate::load::record::{Arrival, Balance, Order};
use crate::report::over_time::{OverTime, Used};
use crate::scenario::{Name, Plan, Report};

/// Messages of each session and each connection by which one to the same domain may be overtaken; a smoke run has too few messages for
/// so many, and nothing that holds it up for long.
const EACH_BETWEEN: u64 = 10;
const EACH_BETWEEN_SMOKE: u64 = 5;
/// So many wherever there are few to a domain.
const FEW_BETWEEN: u64 = 10;

impl Stage<'_> {
    /// Ends the relay, and judges.
    pub(super) fn report(mut self, course: Course) -> anyhow::Result<Report> {
        let Course {
            main,
            before,
            after,
            end,
            figures,
            mut findings,
            breaks,
            beside,
            ordered,
        } = course;
        let peak = self.memory.peak();
        let version = self.subject.version(&self.program);
        if let Subject::Postrider(relay) = &mut self.subject {
            // What is in the queue still would come a second time, or too late to be counted.
            let begun = Instant::now();
            while !self.runtime.block_on(relay.is_empty())? {
                if begun.elapsed() > STILL {
                    findings.push("the queue is not empty although all has arrived".to_owned());
                    break;
                }
            }
            if let Err(error) = self.runtime.block_on(relay.stop()) {
                findings.push(error.to_string());
            }
        }
        findings.extend(self.wrong_ways());
        findings.extend(shortfalls(&self.loads, breaks.then_some(&main)));
        let measured = main.sent.all();
        let accept = Summary::of(&main, &measured);
        let arrivals = self.sink.arrivals();
        let mut balance = Balance::of(RUN, &self.sent, &arrivals, &self.kills);
        if let Some(ordered) = ordered {
            balance.order_among(RUN, &self.sent, &arrivals, |domain| ordered.contains(&domain));
        }
        // Promises of order are this relay's own; none other has made them.
        if matches!(self.subject, Subject::Postrider(_)) {
            findings.extend(disorder(self.plan, &balance));
        }
        let arrived = self.arrived();
        let ends = || measured.iter().filter_map(|sent| arrived.get(&sent.number));
        let end = end
            .or_else(|| ends().max().copied())
            .unwrap_or(self.zero.elapsed());
        let seconds = end.saturating_sub(main.began()).as_secs_f64().max(1e-9);
        let begun = self.begun(&main);
        let over_time = OverTime::of(begun, &self.sent, &arrivals, |sent| {
            !beside.iter().any(|numbers| numbers.contains(&sent.number))
        })
        .used(begun, &self.used())
        .marked(begun, &self.events);
        let messages = after.messages.saturating_sub(before.messages).max(1) as f64;
        let octets = after.octets.saturating_sub(before.octets).max(1) as f64;
        let store = after.store.zip(before.store);
        Ok(Report {
            scenario: self.plan.name,
            version,
            messages: u32::try_from(measured.len()).unwrap_or(u32::MAX),
            seconds,
            per_second: accept.accepted as f64 / seconds,
            cpu_seconds_per_1000: (after.usage.cpu_seconds - before.usage.cpu_seconds) / messages * 1_000.0,
            cpu_from: after.usage.cpu_from,
            peak_memory_mib: peak as f64 / f64::from(1 << 20),
            written_by_accepted: after.usage.written.saturating_sub(before.usage.written) as f64 / octets,
            store_written_by_accepted: store
                .map(|(after, before)| after.saturating_sub(before) as f64 / octets),
            reply_to_arrival_ms: transit(&measured, &arrived, |sent| sent.answered),
            reply_to_last_octet_ms: transit(&measured, &self.first(Arrival::read), |sent| sent.answered),
            begin_to_arrival_ms: transit(&measured, &arrived, |sent| sent.meant),
            accept,
            figures,
            balance,
            findings,
            over_time,
            between: (before.usage.at, after.usage.at),
        })
    }

    /// A figure for signed mail, or for TLS, is of mail that was.
    fn wrong_ways(&self) -> Vec<String> {
        let read = |count: &std::sync::atomic::AtomicU64| count.load(Ordering::Relaxed);
        let counts = &self.sink.counts;
        let mut findings = Vec::new();
        let unsealed = read(&counts.unsealed);
        if unsealed > 0 {
            findings.push(format!(
                "{unsealed} messages arrived that nobody sent: reports, or worse"
            ));
        }
        let all = counts.arrivals.count();
        for (what, count, expected) in [
            ("signed", read(&counts.signed), self.plan.name.signs().is_some()),
            (
                "sent over TLS",
                read(&counts.under_tls),
                self.plan.name == Name::RelayTls,
            ),
        ] {
            let expected = if expected { all } else { 0 };
            if count != expected {
                findings.push(format!("{count} of {all} messages were {what}, not {expected}"));
            }
        }
        findings
    }

    /// Where the plots begin: at the measured load, or where a scenario of several begins.
    fn begun(&self, main: &Load) -> Duration {
        let first = self.sent.iter().skip(self.plan.warm_up as usize);
        let begun = first.map(|sent| sent.meant).min();
        begun.unwrap_or(main.began()).min(main.began())
    }

    fn used(&self) -> Vec<Used> {
        let samples = self.memory.samples().into_iter().map(|sample| Used {
            at: sample.at,
            memory: sample.memory,
            cpu_seconds: sample.cpu_seconds,
        });
        samples.collect()
    }
}

/// In words, where not all of a load was accepted, the measured one or any beside it: a scenario whose giant was turned away shows nothing.
/// What lives through a restart is spared.
fn shortfalls(loads: &[(&str, Arc<Load>)], spared: Option<&Arc<Load>>) -> Vec<String> {
    let judged = loads
        .iter()
        .filter(|(_, load)| spared.is_none_or(|spared| !Arc::ptr_eq(load, spared)));
    let short = judged.filter_map(|(what, load)| {
        let meant = load.numbers().len() as u64;
        let accepted = load.accepted.load(Ordering::Relaxed);
        let broken = load.broken.load(Ordering::Relaxed);
        (accepted != meant || broken > 0).then(|| {
            format!("{what}: {accepted} of {meant} messages were accepted, {broken} connections broke")
        })
    });
    short.collect()
}

/// Mail to one domain leaves as it came in, give or take what is between: some messages of each session and each connection, but never
/// half of the mail to a domain. In words, where it went worst beyond that.
fn disorder(plan: &Plan, balance: &Balance) -> Option<String> {
    let each = if plan.smoke {
        EACH_BETWEEN_SMOKE
    } else {
        EACH_BETWEEN
    };
    let between = each * (plan.sessions + plan.connections) as u64;
    let allowed = |messages: u64| between.min((messages / 2).max(FEW_BETWEEN));
    let beyond = |order: &&Order| order.overtaken > allowed(order.messages);
    let worst = balance
        .order
        .iter()
        .filter(beyond)
        .max_by_key(|order| (order.overtaken, order.domain))?;
    Some(format!(
        "of {} messages to domain {} one was overtaken by {}, more than {}",
        worst.messages,
        worst.domain,
        worst.overtaken,
        allowed(worst.messages)
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::load::client::{Beat, Pace, Target};
    use crate::load::letters::{Letters, Spread};
    use crate::load::record::{Sent, Zero};

    /// A plan's mail, all its sessions at work, as it comes in the order of `at`.
    fn balance(plan: &Plan, at: impl Fn(u32) -> u32) -> Balance {
        let ms = |ms: u32| Duration::from_millis(ms.into());
        let sent: Vec<_> = (0..plan.messages)
            .map(|number| Sent {
                number,
                domain: number % plan.domains as u32,
                recipients: 1,
                code: 250,
                meant: ms(number),
                begun: ms(number),
                written: ms(number),
                answered: ms(number + plan.sessions as u32),
            })
            .collect();
        let arrivals: Vec<_> = (0..plan.messages)
            .map(|number| Arrival {
                run: RUN,
                number,
                domain: number % plan.domains as u32,
                recipients: 1,
                intact: true,
                at: ms(1_000_000 + at(number)),
                transaction_us: 0,
                own_us: 0,
            })
            .collect();
        Balance::of(RUN, &sent, &arrivals, &[])
    }

    #[test]
    fn mail_that_was_refused_or_broken_off_is_found_in_any_load() {
        let spread = Spread::zipf(1, 0.0, "load.test").unwrap();
        let letters = Letters::new(RUN, "load@sender.test", "1KiB".parse().unwrap(), spread);
        let target = Target::plain(([127, 0, 0, 1], 1).into()).unwrap();
        let pace = Pace {
            sessions: 1,
            beat: Beat::AsAnswered,
            messages: 3,
            time: None,
            per_session: u32::MAX,
        };
        let letters = Arc::new(letters);
        let load = |accepted, broken| {
            let load = Load::new(Arc::clone(&letters), target.clone(), pace, Zero::now(), 10);
            load.accepted.store(accepted, Ordering::Relaxed);
            load.broken.store(broken, Ordering::Relaxed);
            load
        };
        let loads = [
            ("the warm-up", load(3, 0)),
            // One that was never begun is not accepted either.
            ("the giant", load(2, 0)),
            ("the load", load(3, 1)),
        ];
        let [giant, main] = [
            "the giant: 2 of 3 messages were accepted, 0 connections broke",
            "the load: 3 of 3 messages were accepted, 1 connections broke",
        ];
        assert_eq!(shortfalls(&loads, None), [giant, main]);
        assert_eq!(shortfalls(&loads, Some(&loads[2].1)), [giant]);
    }

    /// But for `crowded`, whose order nobody judges.
    #[test]
    fn mail_that_comes_in_reverse_is_found_in_every_scenario() {
        let judged = Name::EACH.iter().filter(|name| **name != Name::Crowded);
        for (name, smoke) in judged.flat_map(|name| [(*name, true), (*name, false)]) {
            let mut plan = Plan::smoke_or_whole(name, smoke).unwrap();
            // As much is enough, and quick.
            plan.messages = plan.messages.min(60_000);
            let mut of = balance(&plan, |number| number);
            assert_eq!(disorder(&plan, &of), None, "{name}, smoke {smoke}");
            of = balance(&plan, |number| plan.messages - number);
            let found = disorder(&plan, &of).unwrap_or_default();
            assert!(found.contains("was overtaken by"), "{name}, smoke {smoke}");
        }
    }

    #[test]
    fn a_few_that_are_overtaken_are_no_disorder() {
        let plan = Plan::smoke_or_whole(Name::Relay, true).unwrap();
        // Message 5 is late by so many, after those that were begun before its answer.
        let late = |by: u32| {
            balance(&plan, |number| match number {
                5 => 2 * (5 + plan.sessions as u32 + by) + 1,
                number => 2 * number,
            })
        };
        let most = EACH_BETWEEN_SMOKE as u32 * (plan.sessions + plan.connections) as u32;
        assert_eq!(late(most).overtaken, u64::from(most));
        assert_eq!(disorder(&plan, &late(most)), None);
        assert_eq!(
            disorder(&plan, &late(most + 1)).unwrap(),
            "of 400 messages to domain 0 one was overtaken by 71, more than 70"
        );
    }
}
