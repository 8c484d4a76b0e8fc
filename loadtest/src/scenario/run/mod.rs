//! A scenario from its folder to its report.

mod configuration;
mod verdict;

use std::collections::HashMap;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use tokio::runtime::Runtime;

use super::group::Group;
use super::peer::{Part, Peer};
use super::trace::Tracer;
use super::usage::{Memory, Usage};
use super::{Figure, Name, Plan, Report, acts, limited};
use crate::load::client::{Beat, Load, Pace, Target, Tls};
use crate::load::letters::{Letters, Spread};
use crate::load::record::{Arrival, Quantiles, Sent, Zero};
use crate::load::sink::{self, Manner, Sink};
use crate::load::{begin, drive};
use crate::relay::{Program, Relay, version};
use crate::signals;
use configuration::{Doors, configuration, dkim_key};

/// Tells this scenario's mail from any other.
const RUN: u64 = 0x5ce2_a210;
const SENDER: &str = "load@sender.test";
/// How long nothing may arrive before it is given up.
const STILL: Duration = Duration::from_secs(30);
/// How often what has arrived is counted.
const LOOK_EVERY: Duration = Duration::from_millis(2);
/// The same where each message that has arrived is looked at.
const LOOK_THROUGH_EVERY: Duration = Duration::from_millis(20);
/// For how long nothing may be flushed, and what CPU a relay that does nothing may use meanwhile, in seconds.
const QUIET: Duration = Duration::from_secs(1);
const IDLE_CPU: f64 = 0.05;
/// Octets the store has written, by its own count: all, and those of flushes.
const WRITTEN: &str = "postrider_store_written_bytes_total{";
const FLUSHED: &str = "postrider_store_written_bytes_total{kind=\"flush\"}";
/// The figure of `accept` that tells whether it is over flushes.
pub(crate) const FLUSHES: &str = "written by flushes";
const MIB: f64 = 1_048_576.0;
/// The longest wait for an answer of the relay's metrics.
const PATIENCE: Duration = Duration::from_secs(20);

/// The relay that is measured.
pub(super) enum Subject {
    Postrider(Relay),
    Peer(Peer),
}

impl Subject {
    pub(super) fn pid(&self) -> anyhow::Result<u32> {
        match self {
            Self::Postrider(relay) => relay.pid().context("no process"),
            Self::Peer(peer) => Ok(peer.pid()),
        }
    }

    fn runs(&mut self) -> anyhow::Result<bool> {
        match self {
            Self::Postrider(relay) => relay.runs(),
            Self::Peer(peer) => Ok(peer.runs()),
        }
    }

    fn tail(&self) -> String {
        match self {
            Self::Postrider(relay) => relay.tail(),
            Self::Peer(peer) => peer.tail(),
        }
    }

    /// What it is, by its own words.
    fn version(&self, postrider: &Path) -> Option<String> {
        match self {
            Self::Postrider(_) => version(postrider),
            Self::Peer(peer) => peer.version(),
        }
    }

    /// A peer has its own.
    fn group(&self) -> anyhow::Result<Option<Group>> {
        Ok(match self {
            Self::Postrider(_) => match Group::around(self.pid()?) {
                Ok(group) => Some(group),
                Err(error) => {
                    eprintln!(
                        "no control group ({error:#}): CPU is read from /proc, in hundredths of a second"
                    );
                    None
                }
            },
            Self::Peer(_) => None,
        })
    }

    /// For what only postrider does.
    fn postrider(&mut self) -> anyhow::Result<&mut Relay> {
        match self {
            Self::Postrider(relay) => Ok(relay),
            Self::Peer(_) => anyhow::bail!("this scenario is postrider's own"),
        }
    }
}

/// Mail to be submitted.
pub(super) struct Mail {
    /// What findings call it.
    pub(super) what: &'static str,
    pub(super) letters: Arc<Letters>,
    pub(super) target: Target,
    pub(super) sessions: usize,
    pub(super) beat: Beat,
    pub(super) messages: u32,
}

/// A load that runs beside.
pub(super) struct Running {
    what: &'static str,
    pub(super) load: Arc<Load>,
    thread: JoinHandle<anyhow::Result<()>>,
}

impl Running {
    pub(super) fn is_over(&self) -> bool {
        self.thread.is_finished()
    }
}

/// What has been used, and for how much, since the relay's first start.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Spent {
    usage: Usage,
    /// Octets that the store has written, where it says so, and those of them that flushes have.
    store: Option<u64>,
    flushed: Option<u64>,
    messages: u64,
    octets: u64,
}

/// What was played.
pub(super) struct Course {
    /// The load whose messages and times are told.
    pub(super) main: Arc<Load>,
    pub(super) before: Spent,
    pub(super) after: Spent,
    /// Until when it is measured: unless given, until the last of `main` has arrived.
    pub(super) end: Option<Duration>,
    pub(super) figures: Vec<Figure>,
    pub(super) findings: Vec<String>,
    /// Connections of `main` were meant to break; those of no other load are.
    pub(super) breaks: bool,
    /// Loads that are there for others' sake: how long theirs took is in no plot.
    pub(super) beside: Vec<Range<u32>>,
    /// Mail to these domains comes in order; `None`: all does.
    pub(super) ordered: Option<Range<u32>>,
}

impl Course {
    pub(super) fn new(main: Arc<Load>, before: Spent, after: Spent) -> Self {
        Self {
            main,
            before,
            after,
            end: None,
            figures: Vec::new(),
            findings: Vec::new(),
            breaks: false,
            beside: Vec::new(),
            ordered: None,
        }
    }
}

/// Whether a relay still does something.
struct Progress {
    patience: Duration,
    /// Messages that it has taken, and handed on.
    last: (u64, u64),
    since: Instant,
}

impl Progress {
    fn within(patience: Duration) -> Self {
        Self {
            patience,
            last: (0, 0),
            since: Instant::now(),
        }
    }

    fn has_stalled(&mut self, now: (u64, u64)) -> bool {
        if now != self.last {
            (self.last, self.since) = (now, Instant::now());
        }
        self.since.elapsed() >= self.patience
    }
}

/// See the module.
pub(super) struct Stage<'a> {
    pub(super) plan: &'a Plan,
    program: PathBuf,
    folder: PathBuf,
    doors: Doors,
    runtime: Runtime,
    pub(super) zero: Zero,
    pub(super) sink: Sink,
    pub(super) subject: Subject,
    /// Around this relay, that its time is told as a peer's is: by microseconds, and not by the hundredths of seconds of /proc. None where
    /// there is no such group.
    group: Option<Group>,
    pub(super) memory: Memory,
    pub(super) target: Target,
    /// Into the stream `bulk`.
    pub(super) bulk: Target,
    sent: Vec<Sent>,
    /// Every load that has come to its end, and what it is called.
    loads: Vec<(&'static str, Arc<Load>)>,
    /// The next message's number.
    next: u32,
    octets: u64,
    /// By processes that have ended.
    past: Spent,
    kills: Vec<Duration>,
    events: Vec<(Duration, String)>,
}

/// Through `peer` where there is one, else through `postrider`.
pub(crate) fn play(
    plan: &Plan,
    postrider: &Path,
    peer: Option<&Path>,
    folder: Option<&Path>,
) -> anyhow::Result<Report> {
    let folder = folder_in(folder)?;
    let mut stage = Stage::set(plan, postrider, peer, folder.path())?;
    let _tracer = match &plan.trace {
        Some(file) => Some(Tracer::attach(stage.subject.pid()?, file)?),
        None => None,
    };
    let course = match plan.name {
        Name::Accept => accept(&mut stage),
        Name::HotAndCold => acts::hot_and_cold(&mut stage),
        Name::Otp => acts::otp(&mut stage),
        Name::Rate | Name::ProviderRate => limited::rate(&mut stage),
        Name::Crowded => limited::crowded(&mut stage),
        Name::Backlog => acts::backlog(&mut stage),
        Name::Restart => acts::restart(&mut stage),
        Name::Burst => acts::burst(&mut stage),
        Name::Soak => acts::soak(&mut stage),
        _ => through(&mut stage),
    }?;
    stage.report(course)
}

/// A folder that goes with what is returned.
pub(crate) fn folder_in(folder: Option<&Path>) -> anyhow::Result<tempfile::TempDir> {
    match folder {
        Some(folder) => tempfile::tempdir_in(folder),
        None => tempfile::tempdir(),
    }
    .context("a folder for the scenario")
}

/// In and out at once.
fn through(stage: &mut Stage<'_>) -> anyhow::Result<Course> {
    stage.warm_up(0, stage.plan.domains)?;
    let before = stage.spent()?;
    let mail = stage.mail(stage.letters(0, stage.plan.domains, 0.0)?, stage.plan.messages);
    let beat = stage.plan.beat;
    let main = stage.load(Mail { beat, ..mail })?;
    stage.until_arrived()?;
    Ok(Course::new(main, before, stage.spent()?))
}

/// Into suspended queues.
fn accept(stage: &mut Stage<'_>) -> anyhow::Result<Course> {
    stage.warm_up(0, stage.plan.domains)?;
    stage.hold()?;
    let before = stage.spent()?;
    let mail = stage.mail(stage.letters(0, stage.plan.domains, 0.0)?, stage.plan.messages);
    let main = stage.load(mail)?;
    // A flush under way is of this mail, and paid for.
    let after = once_still(|| stage.spent())?;
    stage.release()?;
    stage.until_arrived()?;
    let last = main.sent.all().iter().map(|sent| sent.answered).max();
    let flushed = after.flushed.zip(before.flushed);
    let flushed = flushed.map(|(after, before)| after.saturating_sub(before) as f64 / MIB);
    Ok(Course {
        end: last,
        figures: flushed
            .map(|flushed| Figure::new(FLUSHES, flushed, "MiB"))
            .into_iter()
            .collect(),
        ..Course::new(main, before, after)
    })
}

/// What was spent once nothing is flushed any more: nothing for a second, in which hardly any CPU was used either, for a flush is told when
/// it is over. Where that never comes, after a while.
fn once_still(mut spent: impl FnMut() -> anyhow::Result<Spent>) -> anyhow::Result<Spent> {
    let begun = Instant::now();
    let mut last = spent()?;
    loop {
        signals::go_on()?;
        std::thread::sleep(QUIET);
        let now = spent()?;
        let used = now.usage.cpu_seconds - last.usage.cpu_seconds;
        if (now.flushed == last.flushed && used < IDLE_CPU) || begun.elapsed() > STILL {
            return Ok(now);
        }
        last = now;
    }
}

impl<'a> Stage<'a> {
    /// Starts sink and relay.
    pub(super) fn set(
        plan: &'a Plan,
        postrider: &Path,
        peer: Option<&Path>,
        folder: &Path,
    ) -> anyhow::Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let zero = Zero::now();
        let spread = Spread::zipf(plan.domains, 0.0, "load.test")?;
        let sink = Sink::start(plan.manner()?, &spread, plan.sink_threads, zero)?;
        let doors = Doors::find()?;
        let subject = match peer {
            None => {
                let program = Program {
                    postrider: postrider.to_owned(),
                    sabotage: None,
                };
                let next = (plan.port.unwrap_or(sink.port), sink.dns);
                let configuration = configuration(plan, postrider, folder, doors, next)?;
                let mut relay =
                    Relay::with_configuration(&program, folder, doors.usual, "info", &configuration)?;
                runtime.block_on(relay.start())?;
                Subject::Postrider(relay)
            }
            Some(peer) => {
                let key = match plan.name.signs() {
                    Some(algorithm) => Some(dkim_key(postrider, folder, algorithm)?),
                    None => None,
                };
                let part = Part {
                    scenario: plan.name,
                    listen: doors.usual,
                    next: SocketAddr::from((sink::address(0), sink.port)),
                    connections: plan.connections,
                    key: key.as_deref(),
                };
                Subject::Peer(runtime.block_on(Peer::start(peer, folder, &part))?)
            }
        };
        let group = subject.group()?;
        let mut target = Target::plain(doors.usual)?;
        if plan.name == Name::RelayTls {
            target.tls = Tls::Starttls;
        }
        Ok(Self {
            plan,
            program: postrider.to_owned(),
            folder: folder.to_owned(),
            doors,
            runtime,
            zero,
            sink,
            memory: Memory::watch(subject.pid()?, zero)?,
            subject,
            group,
            target,
            bulk: Target::plain(doors.bulk)?,
            sent: Vec::new(),
            loads: Vec::new(),
            next: 0,
            octets: 0,
            past: Spent::default(),
            kills: Vec::new(),
            events: Vec::new(),
        })
    }

    /// For so many domains, from this one on.
    pub(super) fn letters(&self, first: usize, domains: usize, zipf: f64) -> anyhow::Result<Arc<Letters>> {
        let spread = Spread::zipf(domains, zipf, "load.test")?.from(first);
        Ok(Arc::new(Letters::new(
            RUN,
            SENDER,
            self.plan.size.clone(),
            spread,
        )))
    }

    /// As fast as it is answered, by the plan's sessions.
    pub(super) fn mail(&self, letters: Arc<Letters>, messages: u32) -> Mail {
        Mail {
            what: "the load",
            letters,
            target: self.target.clone(),
            sessions: self.plan.sessions,
            beat: Beat::AsAnswered,
            messages,
        }
    }

    fn prepare(&mut self, mail: Mail) -> Arc<Load> {
        let pace = Pace {
            sessions: mail.sessions,
            beat: mail.beat,
            messages: mail.messages,
            time: None,
            per_session: u32::MAX,
        };
        let first = self.next;
        self.next += mail.messages;
        Load::new(mail.letters, mail.target, pace, self.zero, first)
    }

    fn note(&mut self, what: &'static str, load: &Arc<Load>) {
        self.sent.extend(load.sent.all());
        self.octets += load.octets.load(Ordering::Relaxed);
        self.loads.push((what, Arc::clone(load)));
    }

    /// Submits it, and waits until all is answered.
    pub(super) fn load(&mut self, mail: Mail) -> anyhow::Result<Arc<Load>> {
        let (what, messages) = (mail.what, mail.messages.into());
        let load = self.prepare(mail);
        let before = self.accepted();
        let mut progress = Progress::within(self.plan.patience);
        let watch = || {
            signals::go_on()?;
            let accepted = load.accepted.load(Ordering::Relaxed);
            let arrived = self.sink.counts.arrivals.count();
            ensure!(
                !progress.has_stalled((accepted, arrived)),
                "for {} s it has neither taken nor handed on anything: {accepted} of {messages} messages were accepted, \
                 and {arrived} of {} have arrived",
                progress.patience.as_secs(),
                before + accepted
            );
            Ok(())
        };
        drive(&load, Some(messages), watch).with_context(|| self.subject.tail())?;
        // A signal ends a load early, and well: it is not the one that was to be measured.
        signals::go_on()?;
        self.note(what, &load);
        Ok(load)
    }

    /// Begins to submit it.
    pub(super) fn start(&mut self, mail: Mail) -> anyhow::Result<Running> {
        let what = mail.what;
        let load = self.prepare(mail);
        let thread = begin(&load)?;
        Ok(Running { what, load, thread })
    }

    /// Waits until all is answered.
    pub(super) fn join(&mut self, running: Running) -> anyhow::Result<Arc<Load>> {
        let Running { what, load, thread } = running;
        while !thread.is_finished() {
            if signals::is_asked_to_end() {
                load.stop();
                break;
            }
            std::thread::sleep(LOOK_EVERY);
        }
        let ended = thread.join().map_err(|_| anyhow::anyhow!("a load panicked"))?;
        ended.with_context(|| self.subject.tail())?;
        signals::go_on()?;
        self.note(what, &load);
        Ok(load)
    }

    /// The plan's warm-up, to these domains, until it has arrived.
    pub(super) fn warm_up(&mut self, first: usize, domains: usize) -> anyhow::Result<()> {
        let mail = Mail {
            what: "the warm-up",
            ..self.mail(self.letters(first, domains, 0.0)?, self.plan.warm_up)
        };
        self.load(mail)?;
        if self.plan.name == Name::Accept && matches!(self.subject, Subject::Peer(_)) {
            // It holds all from its start on.
            return Ok(());
        }
        self.until_arrived()
    }

    /// Until all that was accepted has arrived, or nothing comes any more: the balance will tell.
    pub(super) fn until_arrived(&mut self) -> anyhow::Result<()> {
        let accepted = self.accepted();
        self.wait_for(LOOK_EVERY, accepted, |sink| sink.counts.arrivals.count())
    }

    /// The same for what this load was answered.
    pub(super) fn until_load_arrived(&mut self, load: &Load) -> anyhow::Result<()> {
        let accepted = load.accepted.load(Ordering::Relaxed);
        let numbers = load.numbers();
        self.wait_for(LOOK_THROUGH_EVERY, accepted, |sink| {
            sink.counts
                .arrivals
                .count_of(|arrival| numbers.contains(&arrival.number))
        })
    }

    fn wait_for(&mut self, every: Duration, all: u64, there: impl Fn(&Sink) -> u64) -> anyhow::Result<()> {
        let mut last = (0, Instant::now());
        while last.0 < all && last.1.elapsed() < STILL {
            signals::go_on()?;
            ensure!(
                self.subject.runs()?,
                "the relay ended by itself: {}",
                self.subject.tail()
            );
            std::thread::sleep(every);
            let arrived = there(&self.sink);
            if arrived > last.0 {
                last = (arrived, Instant::now());
            }
        }
        Ok(())
    }

    fn accepted(&self) -> u64 {
        let accepted = self.sent.iter().filter(|sent| sent.is_accepted());
        accepted.count() as u64
    }

    /// When each message came first.
    pub(super) fn arrived(&self) -> HashMap<u32, Duration> {
        self.first(|arrival| arrival.at)
    }

    /// A moment of each message, where it came several times the first.
    fn first(&self, of: impl Fn(&Arrival) -> Duration) -> HashMap<u32, Duration> {
        let mut first = HashMap::new();
        for arrival in self.sink.arrivals() {
            let at = first.entry(arrival.number).or_insert(Duration::MAX);
            *at = of(&arrival).min(*at);
        }
        first
    }

    /// So much by now.
    pub(super) fn spent(&self) -> anyhow::Result<Spent> {
        let usage = Usage::of(self.subject.pid()?)?;
        let (store, flushed) = match &self.subject {
            Subject::Postrider(_) => {
                let all = metrics(self.doors.metrics)?;
                (sum_of(&all, WRITTEN), sum_of(&all, FLUSHED))
            }
            Subject::Peer(_) => (None, None),
        };
        Ok(Spent {
            usage: Usage {
                cpu_seconds: usage.cpu_seconds + self.past.usage.cpu_seconds,
                written: usage.written + self.past.usage.written,
                ..usage
            },
            store: store.map(|store| store + self.past.store.unwrap_or(0)),
            flushed: flushed.map(|flushed| flushed + self.past.flushed.unwrap_or(0)),
            messages: self.accepted(),
            octets: self.octets,
        })
    }

    /// The sum of postrider's series that begin so; `None` where there is none.
    pub(super) fn metric(&self, begin: &str) -> anyhow::Result<Option<u64>> {
        Ok(sum_of(&metrics(self.doors.metrics)?, begin))
    }

    /// Notes what happens now, for the plots.
    pub(super) fn event(&mut self, what: &str) {
        self.events.push((self.zero.elapsed(), what.to_owned()));
    }

    /// Runs a command of postrider's.
    pub(super) fn command(&mut self, words: &[&str]) -> anyhow::Result<()> {
        let relay = self.subject.postrider()?;
        self.runtime.block_on(relay.command(words)).map(drop)
    }

    /// Keeps mail from going out; a peer does so from its start on, where the scenario wants it.
    fn hold(&mut self) -> anyhow::Result<()> {
        match self.subject {
            Subject::Postrider(_) => self.command(&["queue", "suspend", "--all", "--reason", "the scenario"]),
            Subject::Peer(_) => Ok(()),
        }
    }

    fn release(&mut self) -> anyhow::Result<()> {
        self.event("resumed");
        match &mut self.subject {
            Subject::Postrider(_) => self.command(&["queue", "resume", "--all"]),
            Subject::Peer(peer) => peer.release(),
        }
    }

    /// All domains are quick from here on. Nothing is under way meanwhile: what a slow domain still had in its hands would be overtaken
    /// by all that waits.
    pub(super) fn quicken(&mut self, slowest: Duration, plan: Option<&Plan>) -> anyhow::Result<()> {
        self.hold()?;
        std::thread::sleep(slowest * 3 / 2);
        self.sink.behave(Manner::default());
        if let Some(plan) = plan {
            self.reload(plan)?;
        }
        self.release()
    }

    /// Goes by another plan's limits from here on.
    fn reload(&mut self, plan: &Plan) -> anyhow::Result<()> {
        let next = (self.sink.port, self.sink.dns);
        let text = configuration(plan, &self.program, &self.folder, self.doors, next)?;
        let relay = self.subject.postrider()?;
        relay.configure(&text)?;
        self.runtime.block_on(relay.command(&["reload"])).map(drop)
    }

    /// SIGTERM; how long it took.
    pub(super) fn stop(&mut self) -> anyhow::Result<Duration> {
        self.past = self.spent()?;
        self.event("stopped");
        let begun = Instant::now();
        let relay = self.subject.postrider()?;
        self.runtime.block_on(relay.stop())?;
        Ok(begun.elapsed())
    }

    /// SIGKILL.
    pub(super) fn kill(&mut self) -> anyhow::Result<()> {
        self.past = self.spent()?;
        self.event("killed");
        self.subject.postrider()?.kill()?;
        self.kills.push(self.zero.elapsed());
        Ok(())
    }

    /// Starts it again; how long it took until it greeted.
    pub(super) fn start_again(&mut self) -> anyhow::Result<Duration> {
        let begun = Instant::now();
        let relay = self.subject.postrider()?;
        self.runtime.block_on(relay.start())?;
        let took = begun.elapsed();
        drop(self.group.take());
        self.group = self.subject.group()?;
        self.memory.follow(self.subject.pid()?);
        self.event("greets");
        Ok(took)
    }
}

/// How many were accepted and have not come. What was refused waits nowhere.
pub(super) fn waiting(sent: &[Sent], arrived: &HashMap<u32, Duration>) -> u64 {
    let waits = |sent: &&Sent| sent.is_accepted() && !arrived.contains_key(&sent.number);
    sent.iter().filter(waits).count() as u64
}

/// From a moment of each message until it came.
pub(super) fn transit(
    sent: &[Sent],
    arrived: &HashMap<u32, Duration>,
    from: impl Fn(&Sent) -> Duration,
) -> Quantiles {
    let times = sent
        .iter()
        .filter_map(|sent| Some(arrived.get(&sent.number)?.saturating_sub(from(sent))));
    Quantiles::of(times)
}

/// All series.
fn metrics(address: SocketAddr) -> anyhow::Result<String> {
    let mut stream = TcpStream::connect_timeout(&address, PATIENCE).context("the relay's metrics")?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")?;
    let mut text = Vec::new();
    stream.take(16 << 20).read_to_end(&mut text)?;
    Ok(String::from_utf8_lossy(&text).into_owned())
}

/// The sum of all series that begin so; `None` where there is none.
fn sum_of(metrics: &str, begin: &str) -> Option<u64> {
    let series = metrics.lines().filter(|line| line.starts_with(begin));
    let values = series.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok());
    values.map(|value| value as u64).reduce(|a, b| a + b)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_refused_waits_nowhere() {
        let sent = |number, code| Sent {
            number,
            domain: 0,
            recipients: 1,
            code,
            meant: Duration::ZERO,
            begun: Duration::ZERO,
            written: Duration::ZERO,
            answered: Duration::ZERO,
        };
        // One has come, one waits, one was refused and one never answered.
        let giant = [sent(0, 250), sent(1, 250), sent(2, 452), sent(3, 0)];
        let arrived = HashMap::from([(0, Duration::ZERO), (9, Duration::ZERO)]);
        assert_eq!(waiting(&giant, &arrived), 1);
        assert_eq!(waiting(&giant[2..], &arrived), 0);
    }

    #[test]
    fn flushes_under_way_are_paid_for() {
        let spent = |flushed, cpu_seconds| Spent {
            flushed: Some(flushed),
            usage: Usage {
                cpu_seconds,
                ..Usage::default()
            },
            ..Spent::default()
        };
        // One that ends, one that is under way and told by its CPU alone until then, and nothing more.
        let mut looks = [
            spent(0, 1.0),
            spent(9, 1.5),
            spent(9, 2.0),
            spent(20, 2.01),
            spent(20, 2.02),
        ]
        .into_iter();
        let last = once_still(|| looks.next().context("asked too often")).unwrap();
        assert_eq!((last.flushed, last.usage.cpu_seconds), (Some(20), 2.02));
    }

    #[test]
    fn what_the_store_has_written_is_read_from_its_metrics() {
        let text = "# HELP postrider_store_written_bytes_total x\n\
                    postrider_store_written_bytes_total{kind=\"wal\"} 1000\n\
                    postrider_store_written_bytes_total{kind=\"flush\"} 20\n\
                    postrider_other{kind=\"wal\"} 5\n";
        assert_eq!(sum_of(text, WRITTEN), Some(1_020));
        assert_eq!(sum_of(text, FLUSHED), Some(20));
        assert_eq!(sum_of(text, "postrider_nothing{"), None);
    }
}
