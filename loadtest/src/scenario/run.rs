//! A scenario from its folder to its report.

use std::collections::HashMap;
use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use tokio::runtime::Runtime;

use super::peer::{Part, Peer};
use super::trace::Tracer;
use super::usage::{Memory, Usage};
use super::{Figure, Name, Plan, Report, acts, limited};
use crate::load::client::{Beat, Load, Pace, Target, Tls};
use crate::load::letters::{Letters, Spread};
use crate::load::record::{Balance, Order, Quantiles, Sent, Zero};
use crate::load::sink::{self, Manner, Sink};
use crate::load::{Summary, begin, drive};
use crate::relay::{Program, Relay};
use crate::report::over_time::{OverTime, Used};
use crate::signals;

/// Tells this scenario's mail from any other.
const RUN: u64 = 0x5ce2_a210;
const SENDER: &str = "load@sender.test";
/// How long nothing may arrive before it is given up.
const STILL: Duration = Duration::from_secs(30);
/// How often what has arrived is counted.
const LOOK_EVERY: Duration = Duration::from_millis(2);
/// The same where each message that has arrived is looked at.
const LOOK_THROUGH_EVERY: Duration = Duration::from_millis(20);
/// The longest wait for an answer of the relay's metrics.
const PATIENCE: Duration = Duration::from_secs(20);

/// Messages of each session and each connection by which one to the same domain may be overtaken; a smoke run has too few messages for
/// so many, and nothing that holds it up for long.
const EACH_BETWEEN: u64 = 50;
const EACH_BETWEEN_SMOKE: u64 = 5;
/// So many wherever there are few to a domain.
const FEW_BETWEEN: u64 = 10;

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

    /// For what only postrider does.
    fn postrider(&mut self) -> anyhow::Result<&mut Relay> {
        match self {
            Self::Postrider(relay) => Ok(relay),
            Self::Peer(_) => anyhow::bail!("this scenario is postrider's own"),
        }
    }
}

/// Where a relay is reached.
#[derive(Clone, Copy)]
struct Doors {
    usual: SocketAddr,
    /// What comes in here is in the stream `bulk`.
    bulk: SocketAddr,
    metrics: SocketAddr,
}

impl Doors {
    /// Ports that are free now.
    fn find() -> anyhow::Result<Self> {
        let held = (0..3)
            .map(|_| TcpListener::bind(("127.0.0.1", 0)))
            .collect::<std::io::Result<Vec<_>>>()?;
        let address = |number: usize| {
            held.get(number)
                .context("a port")?
                .local_addr()
                .map_err(anyhow::Error::from)
        };
        Ok(Self {
            usual: address(0)?,
            bulk: address(1)?,
            metrics: address(2)?,
        })
    }
}

/// Mail to be submitted.
pub(super) struct Mail {
    pub(super) letters: Arc<Letters>,
    pub(super) target: Target,
    pub(super) sessions: usize,
    pub(super) beat: Beat,
    pub(super) messages: u32,
}

/// A load that runs beside.
pub(super) struct Running {
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
    /// Octets that the store has written, where it says so.
    store: Option<u64>,
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
    /// Connections were meant to break, and mail to be put off.
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
    pub(super) memory: Memory,
    pub(super) target: Target,
    /// Into the stream `bulk`.
    pub(super) bulk: Target,
    sent: Vec<Sent>,
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
    let after = stage.spent()?;
    stage.release()?;
    stage.until_arrived()?;
    let last = main.sent.all().iter().map(|sent| sent.answered).max();
    Ok(Course {
        end: last,
        ..Course::new(main, before, after)
    })
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
            target,
            bulk: Target::plain(doors.bulk)?,
            sent: Vec::new(),
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

    fn note(&mut self, load: &Load) {
        self.sent.extend(load.sent.all());
        self.octets += load.octets.load(Ordering::Relaxed);
    }

    /// Submits it, and waits until all is answered.
    pub(super) fn load(&mut self, mail: Mail) -> anyhow::Result<Arc<Load>> {
        let messages = mail.messages.into();
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
        self.note(&load);
        Ok(load)
    }

    /// Begins to submit it.
    pub(super) fn start(&mut self, mail: Mail) -> anyhow::Result<Running> {
        let load = self.prepare(mail);
        let thread = begin(&load)?;
        Ok(Running { load, thread })
    }

    /// Waits until all is answered.
    pub(super) fn join(&mut self, running: Running) -> anyhow::Result<Arc<Load>> {
        let Running { load, thread } = running;
        let ended = thread.join().map_err(|_| anyhow::anyhow!("a load panicked"))?;
        ended.with_context(|| self.subject.tail())?;
        self.note(&load);
        Ok(load)
    }

    /// The plan's warm-up, to these domains, until it has arrived.
    pub(super) fn warm_up(&mut self, first: usize, domains: usize) -> anyhow::Result<()> {
        let mail = self.mail(self.letters(first, domains, 0.0)?, self.plan.warm_up);
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
        let accepted = self.sent.iter().filter(|sent| (200..300).contains(&sent.code));
        accepted.count() as u64
    }

    /// When each message came first.
    pub(super) fn arrived(&self) -> HashMap<u32, Duration> {
        let mut arrived = HashMap::new();
        for arrival in self.sink.arrivals() {
            let at = arrived.entry(arrival.number).or_insert(arrival.at);
            *at = arrival.at.min(*at);
        }
        arrived
    }

    /// So much by now.
    pub(super) fn spent(&self) -> anyhow::Result<Spent> {
        let usage = Usage::of(self.subject.pid()?)?;
        let store = match &self.subject {
            Subject::Postrider(_) => self.metric("postrider_store_written_bytes_total{")?,
            Subject::Peer(_) => None,
        };
        Ok(Spent {
            usage: Usage {
                cpu_seconds: usage.cpu_seconds + self.past.usage.cpu_seconds,
                written: usage.written + self.past.usage.written,
                at: usage.at,
            },
            store: store.map(|store| store + self.past.store.unwrap_or(0)),
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
        self.memory.follow(self.subject.pid()?);
        self.event("greets");
        Ok(took)
    }

    fn report(mut self, course: Course) -> anyhow::Result<Report> {
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
        let measured = main.sent.all();
        let accept = Summary::of(&main, &measured);
        if !breaks && (accept.accepted != measured.len() as u64 || accept.broken > 0) {
            findings.push(format!(
                "{} of {} messages were accepted, {} connections broke",
                accept.accepted,
                measured.len(),
                accept.broken
            ));
        }
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
            messages: u32::try_from(measured.len()).unwrap_or(u32::MAX),
            seconds,
            per_second: accept.accepted as f64 / seconds,
            cpu_seconds_per_1000: (after.usage.cpu_seconds - before.usage.cpu_seconds) / messages * 1_000.0,
            peak_memory_mib: peak as f64 / f64::from(1 << 20),
            written_by_accepted: after.usage.written.saturating_sub(before.usage.written) as f64 / octets,
            store_written_by_accepted: store
                .map(|(after, before)| after.saturating_sub(before) as f64 / octets),
            reply_to_arrival_ms: transit(&measured, &arrived, |sent| sent.answered),
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

/// Makes a key.
fn dkim_key(postrider: &Path, folder: &Path, algorithm: &str) -> anyhow::Result<PathBuf> {
    let key = folder.join("dkim.pem");
    let keygen = std::process::Command::new(postrider)
        .args(["dkim", "keygen", "sender.test", "--algorithm", algorithm, "--out"])
        .arg(&key)
        .output()
        .with_context(|| postrider.display().to_string())?;
    ensure!(
        keygen.status.success(),
        "dkim keygen: {}",
        String::from_utf8_lossy(&keygen.stderr)
    );
    Ok(key)
}

/// The relay's: what anyone would have, but for a port and a name server of the sink's, and limits that let the load in.
fn configuration(
    plan: &Plan,
    postrider: &Path,
    folder: &Path,
    doors: Doors,
    (port, dns): (u16, SocketAddr),
) -> anyhow::Result<String> {
    let listener = |address: SocketAddr| {
        format!(
            "[[listener]]\nkind = \"trusted\"\naddress = \"{address}\"\nnetworks = [\"127.0.0.0/8\"]\ntenant = \"load\"\n"
        )
    };
    let mut text = format!(
        "hostname = \"relay.sender.test\"\n\
         [store]\npath = \"{folder}/store\"\n\
         [admin]\nsocket = \"{folder}/admin.sock\"\n\
         [metrics]\naddress = \"{metrics}\"\n\
         [tenants.load]\nsenders = [\"sender.test\"]\n\
         [submission]\nmax_connections = 10100\nmax_connections_per_address = 10100\nmax_message = \"65MiB\"\n\
         [delivery]\nport = {port}\ntls = \"{tls}\"\n{limits}{retry}\
         [dns]\nservers = [\"{dns}\"]\n[log]\nformat = \"json\"\n",
        folder = folder.display(),
        metrics = doors.metrics,
        tls = match plan.name {
            Name::RelayTls => "opportunistic",
            _ => "off",
        },
        limits = plan.limits(),
        // They have mail put off, and want to see it come.
        retry = match plan.name {
            Name::Soak | Name::Crowded => "[delivery.retry]\nfirst = \"1s\"\ncap = \"10s\"\n",
            _ => "",
        },
    );
    if let Some(algorithm) = plan.name.signs() {
        dkim_key(postrider, folder, algorithm)?;
        text.push_str("[[dkim]]\ndomain = \"sender.test\"\nselector = \"s1\"\nkey = \"dkim.pem\"\n");
    }
    text.push_str(&listener(doors.bulk));
    text.push_str("stream = \"bulk\"\n");
    text.push_str(&listener(doors.usual));
    if plan.name == Name::RelayTls {
        use std::os::unix::fs::PermissionsExt as _;
        let issued = lab::Ca::create(&folder.join("ca.pem"))?.issue(&["relay.sender.test"])?;
        fs::write(folder.join("chain.pem"), &issued.certificate)?;
        fs::write(folder.join("key.pem"), &issued.key)?;
        fs::set_permissions(folder.join("key.pem"), fs::Permissions::from_mode(0o600))?;
        text.push_str("certificate = \"chain.pem\"\nkey = \"key.pem\"\n");
    }
    text.push_str(&plan.tables());
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::load::record::Arrival;

    /// A plan's mail, all its sessions at work, as it comes in the order of `at`.
    fn balance(plan: &Plan, at: impl Fn(u32) -> u32) -> Balance {
        let ms = |ms: u32| Duration::from_millis(ms.into());
        let sent: Vec<_> = (0..plan.messages)
            .map(|number| Sent {
                number,
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
            })
            .collect();
        Balance::of(RUN, &sent, &arrivals, &[])
    }

    #[test]
    fn mail_that_comes_in_reverse_is_found_in_every_scenario() {
        for (name, smoke) in Name::EACH.iter().flat_map(|name| [(*name, true), (*name, false)]) {
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

    #[test]
    fn what_the_store_has_written_is_read_from_its_metrics() {
        let text = "# HELP postrider_store_written_bytes_total x\n\
                    postrider_store_written_bytes_total{kind=\"wal\"} 1000\n\
                    postrider_store_written_bytes_total{kind=\"flush\"} 20\n\
                    postrider_other{kind=\"wal\"} 5\n";
        assert_eq!(sum_of(text, "postrider_store_written_bytes_total{"), Some(1_020));
        assert_eq!(sum_of(text, "postrider_nothing{"), None);
    }
}
