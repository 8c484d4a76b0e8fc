//! The scenarios that are more than mail in and out: what each plays, and the figures that are its own.

use std::sync::atomic::Ordering;
use std::time::Duration;

use anyhow::ensure;

use super::run::{Course, Mail, Running, Stage, transit, waiting};
use super::usage::{descriptors, memory_of};
use super::{Figure, Plan};
use crate::load::client::{Beat, Load};
use crate::load::record::{Quantiles, Sent, under_way};
use crate::load::sink::{Behaviour, Manner, Span};
use crate::signals;

const MIB: f64 = 1_048_576.0;
/// A provider's time for a message, in `otp`.
pub(super) const OTP_TAKES: Duration = Duration::from_millis(200);
/// Longer than a giant that puts all off needs to say so.
const BLOCKED_ANSWERS: Duration = Duration::from_millis(200);
/// Between two passwords: no multiple of what a token or a message takes, so that they meet every phase of those.
const OTP_EVERY: Duration = Duration::from_millis(337);
/// How often something awaited is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(5);
/// The longest wait for a load to come to where the next part begins.
const PATIENCE: Duration = Duration::from_secs(120);

/// A giant beside many quick ones: the quick ones' times alone, together with one that is slow, domain 0, and with one that puts all off, the
/// last domain.
pub(super) fn hot_and_cold(stage: &mut Stage<'_>) -> anyhow::Result<Course> {
    let (plan, quick) = (stage.plan, stage.plan.domains - 2);
    stage.warm_up(1, quick)?;
    let before = stage.spent()?;
    let letters = stage.letters(1, quick, 0.0)?;
    let mail = |stage: &Stage<'_>, what| Mail {
        what,
        beat: Beat::Rate(plan.rate),
        ..stage.mail(letters.clone(), plan.messages)
    };
    let alone = stage.load(mail(stage, "the quick ones alone"))?;
    stage.until_load_arrived(&alone)?;
    // A giant gets as much as all others together, and has some of it already when they are looked at.
    let ahead = plan.messages / 4;
    let begin = |stage: &mut Stage<'_>, what, domain| {
        stage.event(what);
        let mail = Mail {
            what,
            beat: Beat::Rate(plan.rate),
            ..stage.mail(stage.letters(domain, 1, 0.0)?, plan.messages + ahead)
        };
        stage.start(mail)
    };
    let giant = begin(stage, "the slow giant's mail", 0)?;
    until_accepted(&giant, ahead)?;
    let together = stage.load(mail(stage, "the quick ones beside the giant"))?;
    stage.until_load_arrived(&together)?;
    let giant = stage.join(giant)?;
    let after = stage.spent()?;
    let waits = waiting(&giant.sent.all(), &stage.arrived());
    stage.event("the giant is quick");
    stage.quicken(plan.giant_takes(), None)?;
    stage.until_arrived()?;
    stage.sink.behave(plan.blocked()?);
    let blocked = begin(stage, "the blocked giant's mail", quick + 1)?;
    until_accepted(&blocked, ahead)?;
    let beside_blocked = stage.load(mail(stage, "the quick ones beside the blocked giant"))?;
    stage.until_load_arrived(&beside_blocked)?;
    let blocked = stage.join(blocked)?;
    let put_off = stage.sink.counts.deferred.load(Ordering::Relaxed);
    stage.event("the giant takes all");
    stage.quicken(BLOCKED_ANSWERS, None)?;
    // What was put off waits for its next attempt otherwise.
    stage.command(&["queue", "retry", "--all"])?;
    stage.until_arrived()?;
    let arrived = stage.arrived();
    let times = |load: &Load| transit(&load.sent.all(), &arrived, |sent| sent.meant);
    let (apart, beside, blocked_times) = (times(&alone), times(&together), times(&beside_blocked));
    let mut course = Course::new(together, before, after);
    course.beside = vec![giant.numbers(), blocked.numbers()];
    // What was put off is overtaken, as it should be.
    course.ordered = Some(0..quick as u32 + 1);
    course.findings.extend(no_backlog(
        plan,
        put_off,
        "the blocked giant put nothing off: the quick ones stood beside nothing",
    ));
    course.findings.extend(no_backlog(
        plan,
        waits,
        "nothing of the giant's waited: the quick ones stood beside nothing",
    ));
    course.figures = vec![
        Figure::new("quick ones alone, p50", apart.p50, "ms"),
        Figure::new("quick ones alone, p99", apart.p99, "ms"),
        Figure::new("beside the giant, p50", beside.p50, "ms"),
        Figure::new("beside the giant, p99", beside.p99, "ms"),
        Figure::new("p99, times that alone", beside.p99 / apart.p99, ""),
        Figure::new("the giant's mail waiting", waits as f64, "messages"),
        Figure::new("beside a blocked one, p50", blocked_times.p50, "ms"),
        Figure::new("beside a blocked one, p99", blocked_times.p99, "ms"),
        Figure::new(
            "beside a blocked one, times that alone",
            blocked_times.p99 / apart.p99,
            "",
        ),
        Figure::new("put off by the blocked one", put_off as f64, "times"),
    ];
    Ok(course)
}

/// A finding where nothing waited that others should have stood beside. A smoke run has too little mail to promise that.
pub(super) fn no_backlog(plan: &Plan, waits: u64, words: &str) -> Option<String> {
    (!plan.smoke && waits == 0).then(|| words.to_owned())
}

/// Passwords behind newsletters, to one provider that takes its time and is limited.
pub(super) fn otp(stage: &mut Stage<'_>) -> anyhow::Result<Course> {
    let plan = stage.plan;
    let count = if plan.smoke { 3 } else { 60 };
    let letters = stage.letters(0, 1, 0.0)?;
    stage.warm_up(0, 1)?;
    let before = stage.spent()?;
    let passwords = |stage: &Stage<'_>, what| Mail {
        what,
        sessions: 1,
        beat: Beat::Rate(1.0 / OTP_EVERY.as_secs_f64()),
        ..stage.mail(letters.clone(), count)
    };
    stage.event("passwords alone");
    let alone = stage.load(passwords(stage, "the passwords alone"))?;
    stage.until_load_arrived(&alone)?;
    stage.event("newsletters");
    let news = Mail {
        what: "the newsletters",
        target: stage.bulk.clone(),
        ..stage.mail(letters.clone(), plan.messages)
    };
    let news = stage.load(news)?;
    stage.event("passwords behind them");
    let from = stage.zero.elapsed();
    let behind = stage.load(passwords(stage, "the passwords behind them"))?;
    stage.until_load_arrived(&behind)?;
    let until = stage.zero.elapsed();
    let meanwhile = from..until;
    let taken = stage
        .sink
        .counts
        .arrivals
        .count_of(|arrival| meanwhile.contains(&arrival.at));
    let waits = waiting(&news.sent.all(), &stage.arrived());
    let after = stage.spent()?;
    // What is left would take a quarter of an hour.
    stage.event("limits lifted");
    let unlimited = Plan {
        limit: None,
        connections: 32,
        ..plan.clone()
    };
    stage.quicken(OTP_TAKES, Some(&unlimited))?;
    stage.until_arrived()?;
    let arrived = stage.arrived();
    let times = |load: &Load| transit(&load.sent.all(), &arrived, |sent| sent.meant);
    let (alone, behind_times) = (times(&alone), times(&behind));
    let rate = taken as f64 / (until - from).as_secs_f64();
    // Those that were under way at the window's end have come by now.
    let busy = under_way(&stage.sink.arrivals(), &meanwhile);
    let limit = plan.limit.unwrap_or(f64::INFINITY);
    let mut course = Course::new(behind, before, after);
    course.beside = vec![news.numbers()];
    course.findings.extend(no_backlog(
        plan,
        waits,
        "no newsletters were left: the passwords stood behind nothing",
    ));
    course.figures = vec![
        Figure::new("alone, p50", alone.p50, "ms"),
        Figure::new("behind, p50", behind_times.p50, "ms"),
        Figure::new("behind, p90", behind_times.p90, "ms"),
        Figure::new("behind, p99", behind_times.p99, "ms"),
        Figure::new("behind over alone, p50", behind_times.p50 - alone.p50, "ms"),
        Figure::new("behind over alone, p90", behind_times.p90 - alone.p50, "ms"),
        Figure::new("behind over alone, p99", behind_times.p99 - alone.p50, "ms"),
        Figure::new("taken meanwhile", rate, "/s"),
        Figure::new("tokens spent", rate / limit, ""),
        Figure::new("connections in a transaction", busy, ""),
        Figure::new("newsletters waiting", waits as f64, "messages"),
    ];
    Ok(course)
}

/// Much that waits, suspended, to all domains but the first; fresh mail to that one, before and beside it.
pub(super) fn backlog(stage: &mut Stage<'_>) -> anyhow::Result<Course> {
    let plan = stage.plan;
    let probes = if plan.smoke { 20 } else { 500 };
    stage.warm_up(0, plan.domains)?;
    let fresh = stage.letters(0, 1, 0.0)?;
    let probe = |stage: &Stage<'_>, what| Mail {
        what,
        sessions: 4,
        beat: Beat::Rate(100.0),
        ..stage.mail(fresh.clone(), probes)
    };
    let empty = stage.load(probe(stage, "fresh mail without the backlog"))?;
    stage.until_load_arrived(&empty)?;
    stage.command(&[
        "queue",
        "suspend",
        "--stream",
        "bulk",
        "--reason",
        "the scenario backlog",
    ])?;
    let pid = stage.subject.pid()?;
    let memory = || memory_of(pid).map_or(f64::NAN, |octets| octets as f64 / MIB);
    let memory_before = memory();
    let before = stage.spent()?;
    stage.event("filling");
    let mail = Mail {
        target: stage.bulk.clone(),
        ..stage.mail(stage.letters(1, plan.domains - 1, 0.0)?, plan.messages)
    };
    let main = stage.load(mail)?;
    let after = stage.spent()?;
    let memory_after = memory();
    stage.event("fresh mail beside it");
    let beside = stage.load(probe(stage, "fresh mail beside the backlog"))?;
    stage.until_load_arrived(&beside)?;
    stage.event("resumed");
    let resumed = stage.zero.elapsed();
    stage.command(&["queue", "resume", "--stream", "bulk"])?;
    stage.until_arrived()?;
    let arrived = stage.arrived();
    let sent = main.sent.all();
    let drained = sent.iter().filter_map(|sent| arrived.get(&sent.number)).max();
    let drained = drained.map_or(f64::NAN, |last| {
        let seconds = last.saturating_sub(resumed).as_secs_f64();
        main.accepted.load(Ordering::Relaxed) as f64 / seconds.max(1e-9)
    });
    let times = |load: &Load| transit(&load.sent.all(), &arrived, |sent| sent.answered);
    let (apart, with) = (times(&empty), times(&beside));
    let mut answered: Vec<Duration> = sent.iter().map(|sent| sent.answered).collect();
    answered.sort_unstable();
    let [first, last] = ends(&answered);
    Ok(Course {
        end: answered.last().copied(),
        figures: vec![
            Figure::new("accepted, the first tenth", first, "/s"),
            Figure::new("accepted, the last tenth", last, "/s"),
            Figure::new("memory before", memory_before, "MiB"),
            Figure::new("memory with it", memory_after, "MiB"),
            Figure::new("fresh mail without it, p50", apart.p50, "ms"),
            Figure::new("fresh mail beside it, p50", with.p50, "ms"),
            Figure::new("fresh mail beside it, p99", with.p99, "ms"),
            Figure::new("drained", drained, "/s"),
        ],
        ..Course::new(main, before, after)
    })
}

/// How many a second in the first and in the last tenth.
fn ends(answered: &[Duration]) -> [f64; 2] {
    let tenth = (answered.len() / 10).max(2);
    let rate = |of: Option<&[Duration]>| match of {
        Some([first, .., last]) => (tenth - 1) as f64 / (*last - *first).as_secs_f64().max(1e-9),
        _ => f64::NAN,
    };
    [
        rate(answered.get(..tenth)),
        rate(answered.get(answered.len().saturating_sub(tenth)..)),
    ]
}

/// Stopped, and killed, under mail that comes in and goes out, with a backlog that waits.
pub(super) fn restart(stage: &mut Stage<'_>) -> anyhow::Result<Course> {
    let plan = stage.plan;
    stage.warm_up(0, plan.domains)?;
    stage.command(&[
        "queue",
        "suspend",
        "--stream",
        "bulk",
        "--reason",
        "the scenario restart",
    ])?;
    let before = stage.spent()?;
    let backlog = Mail {
        what: "what waits",
        target: stage.bulk.clone(),
        ..stage.mail(stage.letters(1, plan.domains - 1, 0.0)?, plan.messages)
    };
    let backlog = stage.load(backlog)?;
    let seconds = if plan.smoke { 2.0 } else { 30.0 };
    let live = Mail {
        beat: Beat::Rate(plan.rate),
        ..stage.mail(stage.letters(0, 1, 0.0)?, (plan.rate * seconds) as u32)
    };
    let live = stage.start(live)?;
    let begun = live.load.began();
    let until = |stage: &Stage<'_>, share: f64| {
        let at = begun + Duration::from_secs_f64(seconds * share);
        while stage.zero.elapsed() < at {
            signals::go_on()?;
            std::thread::sleep(LOOK_EVERY.min(at.saturating_sub(stage.zero.elapsed())));
        }
        anyhow::Ok(())
    };
    until(stage, 0.25)?;
    let stopping = stage.stop()?;
    let stopped = stage.zero.elapsed();
    let greeted = stage.start_again()?;
    until(stage, 0.65)?;
    stage.kill()?;
    let killed = stage.zero.elapsed();
    let greeted_again = stage.start_again()?;
    let main = stage.join(live)?;
    let waits = waiting(&backlog.sent.all(), &stage.arrived());
    stage.event("resumed");
    stage.command(&["queue", "resume", "--stream", "bulk"])?;
    stage.until_arrived()?;
    let after = stage.spent()?;
    let all = stage.sink.arrivals();
    let first_after = |moment: Duration| {
        let later = all.iter().map(|arrival| arrival.at).filter(|at| *at > moment);
        later
            .min()
            .map_or(f64::NAN, |at| (at - moment).as_secs_f64() * 1e3)
    };
    let ms = |time: Duration| time.as_secs_f64() * 1e3;
    let sent = main.sent.all();
    let longest = sent
        .iter()
        .map(|sent| sent.answered.saturating_sub(sent.meant))
        .max();
    Ok(Course {
        figures: vec![
            Figure::new("waiting meanwhile", waits as f64, "messages"),
            Figure::new("SIGTERM to its end", ms(stopping), "ms"),
            Figure::new("start to banner, after SIGTERM", ms(greeted), "ms"),
            Figure::new(
                "start to first arrival, after SIGTERM",
                first_after(stopped),
                "ms",
            ),
            Figure::new("start to banner, after SIGKILL", ms(greeted_again), "ms"),
            Figure::new("start to first arrival, after SIGKILL", first_after(killed), "ms"),
            Figure::new(
                "longest from begin to reply",
                ms(longest.unwrap_or_default()),
                "ms",
            ),
        ],
        breaks: true,
        beside: vec![backlog.numbers()],
        ..Course::new(main, before, after)
    })
}

/// Many at once, again and again, to a relay that had nothing to do before.
pub(super) fn burst(stage: &mut Stage<'_>) -> anyhow::Result<Course> {
    let plan = stage.plan;
    let (of, every) = if plan.smoke {
        (plan.messages / 2, 500)
    } else {
        (plan.messages / 20, 3_000)
    };
    stage.warm_up(0, plan.domains)?;
    let before = stage.spent()?;
    let every = Duration::from_millis(every);
    let mail = Mail {
        beat: Beat::Bursts { of: of.max(1), every },
        ..stage.mail(stage.letters(0, plan.domains, 0.0)?, plan.messages)
    };
    let main = stage.load(mail)?;
    stage.until_arrived()?;
    let after = stage.spent()?;
    let arrived = stage.arrived();
    let sent = main.sent.all();
    let by_burst = |end: &dyn Fn(&Sent) -> Option<Duration>| {
        let mut bursts = std::collections::BTreeMap::<Duration, Duration>::new();
        for sent in &sent {
            let took = end(sent).unwrap_or_default().saturating_sub(sent.meant);
            let longest = bursts.entry(sent.meant).or_default();
            *longest = took.max(*longest);
        }
        Quantiles::of(bursts.into_values())
    };
    let answered = by_burst(&|sent| Some(sent.answered));
    let there = by_burst(&|sent| arrived.get(&sent.number).copied());
    Ok(Course {
        figures: vec![
            Figure::new("messages of a burst", f64::from(of), "messages"),
            Figure::new("a burst answered, p50", answered.p50, "ms"),
            Figure::new("a burst answered, longest", answered.max, "ms"),
            Figure::new("a burst delivered, p50", there.p50, "ms"),
            Figure::new("a burst delivered, longest", there.max, "ms"),
        ],
        ..Course::new(main, before, after)
    })
}

/// Mail of all sizes at a steady rate to many domains, of which the second half takes its time and puts mail off.
pub(super) fn soak(stage: &mut Stage<'_>) -> anyhow::Result<Course> {
    let plan = stage.plan;
    stage.warm_up(0, plan.domains)?;
    let pid = stage.subject.pid()?;
    let before = stage.spent()?;
    let mail = Mail {
        beat: Beat::Rate(plan.rate),
        ..stage.mail(stage.letters(0, plan.domains, 1.0)?, plan.messages)
    };
    let running = stage.start(mail)?;
    // What a relay needs it has after a while; what grows from then on is looked for.
    until_accepted(&running, plan.messages / 5)?;
    let (settled, open) = (stage.zero.elapsed(), descriptors(pid).unwrap_or(0));
    let main = stage.join(running)?;
    let (end, open_at_end) = (stage.zero.elapsed(), descriptors(pid).unwrap_or(0));
    stage.until_arrived()?;
    let after = stage.spent()?;
    let span = (end - settled) / 5;
    let mean = |from: Duration| {
        let samples = stage.memory.samples();
        let within = |sample: &&super::usage::Sample| (from..=from + span).contains(&sample.at);
        let of: Vec<f64> = samples
            .iter()
            .filter(within)
            .map(|sample| sample.memory as f64 / MIB)
            .collect();
        of.iter().sum::<f64>() / of.len() as f64
    };
    let (early, late) = (mean(settled), mean(end - span));
    let deferred = stage.sink.counts.deferred.load(Ordering::Relaxed);
    let mut course = Course::new(main, before, after);
    if deferred == 0 {
        course.findings.push("nothing was put off".to_owned());
    }
    course.figures = vec![
        Figure::new("put off", deferred as f64, "times"),
        Figure::new("memory after a fifth", early, "MiB"),
        Figure::new("memory at the end", late, "MiB"),
        Figure::new("descriptors after a fifth", open as f64, ""),
        Figure::new("descriptors at the end", open_at_end as f64, ""),
    ];
    // Mail that was put off is overtaken, as it should be.
    course.ordered = Some(0..(plan.domains / 2) as u32);
    Ok(course)
}

fn until_accepted(running: &Running, count: u32) -> anyhow::Result<()> {
    let begun = std::time::Instant::now();
    let mut last = 0;
    let mut since = begun;
    loop {
        signals::go_on()?;
        let accepted = running.load.accepted.load(Ordering::Relaxed);
        if accepted >= count.into() || running.is_over() {
            return Ok(());
        }
        if accepted > last {
            (last, since) = (accepted, std::time::Instant::now());
        }
        ensure!(
            since.elapsed() < PATIENCE,
            "{accepted} of {count} messages were accepted"
        );
        std::thread::sleep(LOOK_EVERY);
    }
}

impl Plan {
    /// The giant's time for a message, in `hot-and-cold`.
    fn giant_takes(&self) -> Duration {
        Duration::from_millis(if self.smoke { 300 } else { 2_000 })
    }

    /// How they behave where the last one puts all off, in `hot-and-cold`.
    fn blocked(&self) -> anyhow::Result<Manner> {
        Ok(Manner {
            script: vec![format!("{}:defer=1", self.domains - 1).parse()?],
            ..Manner::default()
        })
    }

    /// How the domains behave at first.
    pub(super) fn manner(&self) -> anyhow::Result<Manner> {
        let delay = |delay: Duration| Behaviour {
            delay: Span::just(delay),
            ..Behaviour::default()
        };
        let mut manner = Manner {
            tls: self.name == super::Name::RelayTls,
            ..Manner::default()
        };
        match self.name {
            super::Name::HotAndCold => {
                let ms = self.giant_takes().as_millis();
                manner.script.push(format!("0:delay={ms}").parse()?);
            }
            super::Name::Otp => manner.usual = delay(OTP_TAKES),
            super::Name::Crowded => manner.usual = delay(self.crowded_takes()),
            super::Name::Soak => {
                let (half, last) = (self.domains / 2, self.domains - 1);
                // Of a smoke run's few messages one of a hundred runs would find none put off.
                let defer = if self.smoke { 0.2 } else { 0.05 };
                manner
                    .script
                    .push(format!("{half}-{last}:delay=5-500,defer={defer}").parse()?);
            }
            _ => {}
        }
        Ok(manner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_giant_that_nothing_waits_for_is_found_but_in_a_smoke_run() {
        let plan = |smoke| Plan::smoke_or_whole(super::super::Name::HotAndCold, smoke).unwrap();
        assert_eq!(no_backlog(&plan(false), 0, "nothing").as_deref(), Some("nothing"));
        assert_eq!(no_backlog(&plan(false), 1, "nothing"), None);
        assert_eq!(no_backlog(&plan(true), 0, "nothing"), None);
    }

    #[test]
    fn one_giant_is_slow_and_another_blocked() {
        for smoke in [true, false] {
            let plan = Plan::smoke_or_whole(super::super::Name::HotAndCold, smoke).unwrap();
            let (slow, blocked) = (plan.manner().unwrap(), plan.blocked().unwrap());
            let last = plan.domains as u32 - 1;
            for domain in 0..plan.domains as u32 {
                let (slow, blocked) = (
                    slow.at(domain, Duration::ZERO),
                    blocked.at(domain, Duration::ZERO),
                );
                assert_eq!(slow.delay != Span::default(), domain == 0, "{domain}");
                assert_eq!(blocked.defer, if domain == last { 1.0 } else { 0.0 }, "{domain}");
            }
        }
    }

    #[test]
    fn the_ends_of_a_load_are_told_apart() {
        // A hundred at 100 a second, then a hundred at 10.
        let answered: Vec<Duration> = (0..100_u64)
            .map(|number| Duration::from_millis(number * 10))
            .chain((0..100).map(|number| Duration::from_millis(1_000 + number * 100)))
            .collect();
        let [first, last] = ends(&answered);
        assert!(
            (first - 100.0).abs() < 1.0 && (last - 10.0).abs() < 0.1,
            "{first} {last}"
        );
        assert!(ends(&[])[0].is_nan());
    }
}
