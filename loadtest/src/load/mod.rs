//! `loadtest flood` and `loadtest sink`: both ends of a relay, each usable alone, and what scenarios are made of.

mod alarm;
pub(crate) mod client;
pub(crate) mod letters;
pub(crate) mod record;
pub(crate) mod sink;
pub(crate) mod wire;

use std::collections::HashMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use serde::Serialize;

use crate::report::over_time::OverTime;
use crate::report::svg::number;
use crate::report::{Page, Section, Verdict, facts};
use client::{Beat, Load, Pace, Target, Tls, Transfer};
use letters::{Letters, Sizes, Spread};
use record::{MAX_MESSAGES, OTHERS, Quantiles, Sent, Zero};
use sink::{Behaviour, Manner, Rule, Sink, Span};

/// How often a progress bar and a sink's figures are drawn.
const DRAW_EVERY: Duration = Duration::from_millis(250);

/// Options of `loadtest flood`.
#[derive(Args)]
#[command(after_help = "Examples:\n  \
    loadtest flood --to 127.0.0.1:2525 --messages 10000\n  \
    loadtest flood --to 127.0.0.1:2525 --rate 500 --time 60 --size 1KiB:5,10KiB:4,100KiB:1\n  \
    loadtest flood --to 127.0.0.1:1587 --tls starttls --user app --password-file pw --domains 1000 --zipf 1")]
pub(crate) struct FloodOptions {
    /// The relay's address.
    #[arg(long, value_name = "ADDRESS:PORT")]
    to: SocketAddr,
    /// Ends after so many messages.
    #[arg(long, default_value_t = MAX_MESSAGES)]
    messages: u32,
    /// Ends after so many seconds.
    #[arg(long, value_name = "SECONDS")]
    time: Option<f64>,
    /// Connections at once.
    #[arg(long, default_value_t = 100)]
    sessions: usize,
    /// Messages a second (open loop); unless given, each session sends as fast as it is answered.
    #[arg(long)]
    rate: Option<f64>,
    /// So many messages begin at once, as often as makes the rate.
    #[arg(long, value_name = "MESSAGES", requires = "rate")]
    burst: Option<u32>,
    /// Octets of a message, or sizes by weight: 1KiB:50,10KiB:40,1MiB:10.
    #[arg(long, default_value = "10KiB")]
    size: Sizes,
    /// Messages go to d0.SUFFIX, d1.SUFFIX, …, so many domains.
    #[arg(long, default_value_t = 1)]
    domains: usize,
    /// What these domains end in.
    #[arg(long, default_value = "load.test")]
    suffix: String,
    /// Zipf's exponent: how unevenly messages are spread over domains; 0 is evenly.
    #[arg(long, default_value_t = 0.0)]
    zipf: f64,
    /// Recipients of each message, all at one domain.
    #[arg(long, default_value_t = 1)]
    recipients: u32,
    /// MAIL FROM and From.
    #[arg(long, default_value = "load@sender.test")]
    from: String,
    /// Messages of a session, after which it connects anew.
    #[arg(long, default_value_t = 1_000_000)]
    per_session: u32,
    /// How messages are transferred.
    #[arg(long, value_enum, default_value_t = Transfer::Pipelined)]
    transfer: Transfer,
    /// How connections are protected. Certificates are not verified.
    #[arg(long, value_enum, default_value_t = Tls::Off)]
    tls: Tls,
    /// Logs in by AUTH PLAIN.
    #[arg(long, requires = "password_file")]
    user: Option<String>,
    /// The password, in a file.
    #[arg(long, value_name = "FILE", requires = "user")]
    password_file: Option<PathBuf>,
    /// Write a report with plots, a page of HTML that needs no other file.
    #[arg(long, value_name = "FILE")]
    report: Option<PathBuf>,
    /// Write the plots, SVG files, into this folder.
    #[arg(long, value_name = "FOLDER")]
    plots: Option<PathBuf>,
    /// Print the summary as JSON.
    #[arg(long)]
    json: bool,
}

/// Options of `loadtest sink`.
#[derive(Args)]
#[command(after_help = "Examples:\n  \
    loadtest sink --domains 100 --delay 5-50 --defer 0.01\n  \
    loadtest sink --domains 100 --script 0:delay=5000 --script 10-19:refuse=0.2,from=30,until=60\n\n\
    It says its port and its name server when it starts. A relay finds it by those: of Postrider, dns.servers = [\"the name server\"], \
    delivery.port = the port, and delivery.tls = \"off\" unless --tls is given. Send what it takes by loadtest flood, with as many --domains.\n\n\
    It takes mail until SIGINT or SIGTERM, and tells what came. Exit code 1 where a message was damaged, came to a recipient twice, or came \
    without a seal. Missing numbers are told alone: nobody here knows whether those messages were accepted, or are on their way still.")]
pub(crate) struct SinkOptions {
    /// Takes mail for d0.SUFFIX, d1.SUFFIX, …, so many domains, each with an address of its own from 127.78.0.1 on.
    #[arg(long, default_value_t = 1)]
    domains: usize,
    /// What these domains end in.
    #[arg(long, default_value = "load.test")]
    suffix: String,
    /// Milliseconds before the reply to the final dot, or from the least to the most: 5-50.
    #[arg(long, value_name = "MS", default_value = "0")]
    delay: Span,
    /// Milliseconds before anything is written: a round trip.
    #[arg(long, value_name = "MS", default_value_t = 0)]
    round_trip: u64,
    /// The share of recipients answered 451, from 0 to 1.
    #[arg(long, default_value_t = 0.0)]
    defer: f64,
    /// The share of recipients answered 550, from 0 to 1.
    #[arg(long, default_value_t = 0.0)]
    refuse: f64,
    /// What some domains do otherwise, for a time or always; may be there several times, later ones first. DOMAINS:KEY=VALUE,…
    /// with numbers of domains (7 or 10-19), and delay, round-trip, defer, refuse as above, from and until in seconds since the start.
    #[arg(long, value_name = "RULE")]
    script: Vec<Rule>,
    /// Connections at once; a further one is told 421 instead of being greeted.
    #[arg(long, value_name = "CONNECTIONS")]
    most_connections: Option<u64>,
    /// Offer STARTTLS.
    #[arg(long)]
    tls: bool,
    /// Threads.
    #[arg(long, default_value_t = 1)]
    threads: usize,
    /// Print the summary as JSON.
    #[arg(long)]
    json: bool,
}

/// What a load came to.
#[derive(Debug, Default, Serialize)]
pub(crate) struct Summary {
    pub(crate) seconds: f64,
    pub(crate) messages: usize,
    pub(crate) accepted: u64,
    pub(crate) per_second: f64,
    pub(crate) octets: u64,
    /// Messages that got another reply than 2xx, or of which no recipient was taken.
    pub(crate) refused: usize,
    /// Of several recipients the others may have been taken.
    pub(crate) recipients_refused: u64,
    /// Messages whose connection broke.
    pub(crate) unanswered: usize,
    /// Connections that broke or were refused.
    pub(crate) broken: u64,
    /// From the intended begin to the last reply, of those that were accepted.
    pub(crate) transaction_ms: Quantiles,
    /// From the last octet written to the reply, of those that were accepted.
    pub(crate) end_of_data_ms: Quantiles,
    /// The longest of those that were not: from the intended begin until they were refused, or given up.
    pub(crate) longest_not_accepted_ms: f64,
}

impl Summary {
    pub(crate) fn of(load: &Load, sent: &[Sent]) -> Self {
        let last = sent.iter().map(|sent| sent.answered).max().unwrap_or_default();
        let seconds = last.saturating_sub(load.began()).as_secs_f64();
        let accepted = || sent.iter().filter(|sent| sent.is_accepted());
        let unanswered = sent.iter().filter(|sent| sent.code == 0).count();
        let others = sent.iter().filter(|sent| !sent.is_accepted());
        let longest = others.map(|sent| sent.answered.saturating_sub(sent.meant)).max();
        Self {
            seconds,
            messages: sent.len(),
            accepted: accepted().count() as u64,
            per_second: accepted().count() as f64 / seconds.max(1e-9),
            octets: load.octets.load(Ordering::Relaxed),
            refused: sent.len() - accepted().count() - unanswered,
            recipients_refused: load.recipients_refused.load(Ordering::Relaxed),
            unanswered,
            broken: load.broken.load(Ordering::Relaxed),
            transaction_ms: Quantiles::of(accepted().map(|sent| sent.answered.saturating_sub(sent.meant))),
            end_of_data_ms: Quantiles::of(accepted().map(|sent| sent.answered.saturating_sub(sent.written))),
            longest_not_accepted_ms: longest.unwrap_or_default().as_secs_f64() * 1e3,
        }
    }
}

impl Summary {
    /// For a report.
    fn figures(&self) -> Vec<(String, String)> {
        let ms = |ms: f64| format!("{} ms", number(ms));
        [
            ("messages", number(self.messages as f64)),
            ("accepted", number(self.accepted as f64)),
            ("messages a second", number(self.per_second.round())),
            ("refused", number(self.refused as f64)),
            ("recipients refused", number(self.recipients_refused as f64)),
            ("unanswered", number(self.unanswered as f64)),
            (
                "refused or unanswered, the longest",
                ms(self.longest_not_accepted_ms),
            ),
            ("begin to reply, p50", ms(self.transaction_ms.p50)),
            ("begin to reply, p99", ms(self.transaction_ms.p99)),
            ("end of data to reply, p50", ms(self.end_of_data_ms.p50)),
            ("end of data to reply, p99", ms(self.end_of_data_ms.p99)),
        ]
        .map(|(name, figure)| (name.to_owned(), figure))
        .into()
    }
}

impl std::fmt::Display for Summary {
    fn fmt(&self, to: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        writeln!(
            to,
            "{} messages in {:.2} s, {} accepted: {:.0} a second; {} refused, {} recipients refused, {} unanswered, {} connections broken",
            self.messages,
            self.seconds,
            self.accepted,
            self.per_second,
            self.refused,
            self.recipients_refused,
            self.unanswered,
            self.broken
        )?;
        writeln!(
            to,
            "from the intended begin to the reply: {}",
            self.transaction_ms
        )?;
        write!(to, "from the end of data to the reply: {}", self.end_of_data_ms)?;
        match self.refused + self.unanswered {
            0 => Ok(()),
            count => write!(
                to,
                "\nthese times are of {} that were accepted; {count} were refused or unanswered, after {:.2} ms at the longest",
                self.accepted, self.longest_not_accepted_ms
            ),
        }
    }
}

/// Begins a load on a thread of its own, without a bar.
pub(crate) fn begin(load: &Arc<Load>) -> anyhow::Result<std::thread::JoinHandle<anyhow::Result<()>>> {
    let load = Arc::clone(load);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let thread = std::thread::Builder::new().name("load".into());
    Ok(thread.spawn(move || runtime.block_on(load.run()))?)
}

/// Runs a load to its end on a runtime of its own thread, with a bar; hidden where standard error is no terminal. An error of `watch`,
/// which is asked several times a second, breaks it off.
pub(crate) fn drive(
    load: &Arc<Load>,
    of: Option<u64>,
    mut watch: impl FnMut() -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let bar = of.map_or_else(ProgressBar::no_length, ProgressBar::new);
    bar.set_style(ProgressStyle::with_template(
        "{elapsed_precise} {wide_bar} {pos}/{len} {per_sec}",
    )?);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let run = load.run();
        tokio::pin!(run);
        loop {
            tokio::select! {
                ended = &mut run => return ended,
                _ = tokio::signal::ctrl_c() => load.stop(),
                () = tokio::time::sleep(DRAW_EVERY) => {
                    bar.set_position(load.sent.count());
                    watch()?;
                }
            }
        }
    })?;
    bar.finish_and_clear();
    Ok(())
}

/// Floods; false where not everything was accepted.
pub(crate) fn flood(options: &FloodOptions) -> anyhow::Result<bool> {
    more_descriptors()?;
    ensure!(
        options.time.is_some() || options.messages < MAX_MESSAGES,
        "an end: --messages or --time"
    );
    ensure!(
        (1..=100).contains(&options.recipients),
        "from 1 to 100 recipients"
    );
    let beat = match (options.rate, options.burst) {
        (None, _) => Beat::AsAnswered,
        (Some(rate), None) => Beat::Rate(rate),
        (Some(rate), Some(of)) => Beat::Bursts {
            of,
            every: Duration::try_from_secs_f64(f64::from(of) / rate).context("--burst and --rate")?,
        },
    };
    let pace = Pace {
        sessions: options.sessions,
        beat,
        messages: options.messages,
        time: options
            .time
            .map(Duration::try_from_secs_f64)
            .transpose()
            .context("--time")?,
        per_session: options.per_session,
    };
    client::check(&pace)?;
    let spread = Spread::zipf(options.domains, options.zipf, &options.suffix)?;
    let letters = Letters::new(
        StdRng::from_os_rng().random(),
        &options.from,
        options.size.clone(),
        spread,
    )
    .with_recipients(options.recipients);
    let mut target = Target::plain(options.to)?;
    target.tls = options.tls;
    target.transfer = options.transfer;
    if let (Some(user), Some(file)) = (&options.user, &options.password_file) {
        let password = std::fs::read_to_string(file).with_context(|| file.display().to_string())?;
        target.login = Some((user.clone(), password.trim_end_matches(['\r', '\n']).to_owned()));
    }
    let load = Load::new(Arc::new(letters), target, pace, Zero::now(), 0);
    let length = pace.time.is_none().then_some(u64::from(options.messages));
    // A session that gave up is told of after what there was until then.
    let ended = drive(&load, length, || Ok(()));
    let sent = load.sent.all();
    let summary = Summary::of(&load, &sent);
    let section = Section {
        title: "flood".to_owned(),
        about: format!("To {}.", options.to),
        verdict: Verdict::of(ended.is_ok() && summary.accepted == summary.messages as u64),
        figures: summary.figures(),
        findings: ended
            .as_ref()
            .err()
            .map(|error| format!("{error:#}"))
            .into_iter()
            .collect(),
        plots: OverTime::of(load.began(), &sent, &[], |_| true).plots(),
    };
    let page = Page {
        title: "Postrider: a flood".to_owned(),
        facts: facts(),
        sections: vec![section],
        ..Page::default()
    };
    if options.json {
        println!("{}", serde_json::to_string(&summary)?);
    } else {
        println!("{summary}");
    }
    page.write(options.report.as_deref(), options.plots.as_deref())?;
    ended?;
    Ok(summary.accepted == summary.messages as u64)
}

/// What a sink has taken.
#[derive(Debug, Serialize)]
struct Taken {
    arrived: u64,
    octets: u64,
    connections: u64,
    /// Of those, told 421.
    turned_away: u64,
    handshakes: u64,
    deferred: u64,
    refused: u64,
    /// Messages whose seal can't be read, or that never had one.
    unsealed: u64,
    damaged: usize,
    /// Messages that came to a mailbox that can be none of theirs. How many they have only the load knows.
    astray: usize,
    /// Messages that came to a recipient a second time.
    duplicates: usize,
    /// Numbers below the highest of their load that have not arrived: lost, or never accepted, refused here, or on their way still.
    missing: u64,
}

impl Taken {
    fn of(sink: &Sink) -> Self {
        let counts = &sink.counts;
        let read = |count: &std::sync::atomic::AtomicU64| count.load(Ordering::Relaxed);
        let arrivals = sink.arrivals();
        let mut came: HashMap<(u64, u32), u128> = HashMap::new();
        let mut duplicates = 0;
        for arrival in &arrivals {
            let to = came.entry((arrival.run, arrival.number)).or_default();
            duplicates += usize::from(*to & arrival.recipients != 0);
            *to |= arrival.recipients;
        }
        let mut runs: HashMap<u64, (u32, u64)> = HashMap::new();
        for (run, number) in came.keys() {
            let (highest, count) = runs.entry(*run).or_default();
            *highest = (*highest).max(*number);
            *count += 1;
        }
        let missing = runs
            .values()
            .map(|(highest, count)| u64::from(*highest) + 1 - count)
            .sum();
        Self {
            arrived: counts.arrivals.count(),
            octets: read(&counts.octets),
            connections: read(&counts.connections),
            turned_away: read(&counts.turned_away),
            handshakes: read(&counts.handshakes),
            deferred: read(&counts.deferred),
            refused: read(&counts.refused),
            unsealed: read(&counts.unsealed),
            damaged: arrivals.iter().filter(|arrival| !arrival.intact).count(),
            astray: arrivals
                .iter()
                .filter(|arrival| arrival.recipients & OTHERS != 0)
                .count(),
            duplicates,
            missing,
        }
    }
}

impl std::fmt::Display for Taken {
    fn fmt(&self, to: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self {
            arrived,
            octets,
            connections,
            turned_away,
            handshakes,
            deferred,
            refused,
            unsealed,
            damaged,
            astray,
            duplicates,
            missing,
        } = self;
        writeln!(
            to,
            "{arrived} messages arrived, {octets} octets, over {connections} connections, {handshakes} of them under TLS, \
             {turned_away} turned away"
        )?;
        writeln!(to, "{deferred} recipients put off, {refused} refused")?;
        write!(
            to,
            "{damaged} damaged, {astray} astray, {duplicates} duplicates, {unsealed} without a seal, {missing} missing"
        )
    }
}

impl Taken {
    /// What should not be, in words. Of what is missing nobody here knows whether it was accepted.
    fn found(&self) -> Vec<String> {
        let faults = [
            (self.damaged as u64, "arrived otherwise than sent"),
            (self.astray as u64, "came to a mailbox that can be none of theirs"),
            (self.duplicates as u64, "came to a recipient again"),
            (
                self.unsealed,
                "came without a seal that can be read: its line is damaged, or no load has sent them",
            ),
        ];
        let found = faults.into_iter().filter(|(count, _)| *count > 0);
        found
            .map(|(count, what)| format!("{count} messages {what}"))
            .collect()
    }
}

/// Takes mail until it is interrupted; false where something was damaged, came twice or without a seal.
pub(crate) fn sink(options: &SinkOptions) -> anyhow::Result<bool> {
    more_descriptors()?;
    let usual = Behaviour {
        delay: options.delay,
        round_trip: Duration::from_millis(options.round_trip),
        defer: options.defer,
        refuse: options.refuse,
    };
    let spread = Spread::zipf(options.domains, 0.0, &options.suffix)?;
    let manner = Manner {
        usual,
        script: options.script.clone(),
        tls: options.tls,
        most_connections: options.most_connections,
    };
    manner.check(options.domains)?;
    let sink = Sink::start(manner, &spread, options.threads, Zero::now())?;
    eprintln!(
        "{} domains from {} to {}, on port {}; name server {}",
        options.domains,
        spread.name(0),
        spread.name(options.domains - 1),
        sink.port,
        sink.dns
    );
    let bar = ProgressBar::new_spinner();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let mut terminate = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
        loop {
            tokio::select! {
                interrupted = tokio::signal::ctrl_c() => return interrupted,
                _ = terminate.recv() => return Ok(()),
                () = tokio::time::sleep(DRAW_EVERY) => bar.set_message(format!("{} messages", sink.counts.arrivals.count())),
            }
        }
    })?;
    bar.finish_and_clear();
    let taken = Taken::of(&sink);
    if options.json {
        println!("{}", serde_json::to_string(&taken)?);
    } else {
        println!("{taken}");
    }
    let found = taken.found();
    for finding in &found {
        eprintln!("found: {finding}");
    }
    if taken.missing > 0 {
        eprintln!(
            "{} messages are missing, which is no fault where they were not accepted, were refused or are on their way",
            taken.missing
        );
    }
    Ok(found.is_empty())
}

/// As many descriptors as the system lets a process have without asking.
pub(crate) fn more_descriptors() -> anyhow::Result<()> {
    use rustix::process::{Resource, getrlimit, setrlimit};
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    setrlimit(Resource::Nofile, limit).context("raising the limit of descriptors")
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpStream;

    use super::record::Balance;
    use super::wire::Peer;
    use super::*;

    /// A flood straight into a sink: all arrives, once and whole, by each way to transfer it.
    #[test]
    fn a_flood_reaches_a_sink_whole() {
        let zero = Zero::now();
        let spread = Spread::zipf(3, 1.0, "load.test").unwrap();
        let manner = Manner {
            tls: true,
            ..Manner::default()
        };
        let sink = Sink::start(manner, &spread, 2, zero).unwrap();
        let sizes = "1KiB:2,300KiB:1".parse().unwrap();
        let letters = Arc::new(Letters::new(9, "a@sender.test", sizes, spread).with_recipients(2));
        let mut first = 0;
        let every = Duration::from_millis(10);
        let bursts = Beat::Bursts { of: 20, every };
        for (transfer, tls, beat) in [
            (Transfer::Lockstep, Tls::Off, Beat::AsAnswered),
            (Transfer::Pipelined, Tls::Starttls, bursts),
            (Transfer::Bdat, Tls::Off, Beat::Rate(2_000.0)),
        ] {
            let mut target = Target::plain((sink::address(0), sink.port).into()).unwrap();
            (target.transfer, target.tls) = (transfer, tls);
            let pace = Pace {
                sessions: 4,
                beat,
                messages: 60,
                time: None,
                per_session: 7,
            };
            let load = Load::new(Arc::clone(&letters), target, pace, zero, first);
            drive(&load, None, || Ok(())).unwrap();
            first += 60;
            let sent = load.sent.all();
            let arrivals: Vec<_> = sink
                .arrivals()
                .into_iter()
                .filter(|arrival| arrival.number >= first - 60)
                .collect();
            let balance = Balance::of(9, &sent, &arrivals, &[]);
            assert!(balance.holds(), "{transfer:?}: {balance:?}");
            assert_eq!(balance.arrived, 60, "{transfer:?}: {balance:?}");
            if beat == bursts {
                let last = sent.iter().map(|sent| sent.meant).max().unwrap();
                assert_eq!(last - load.began(), every * 2);
            }
            let summary = Summary::of(&load, &sent);
            assert_eq!((summary.accepted, summary.broken), (60, 0), "{summary}");
            assert!(summary.transaction_ms.max >= summary.end_of_data_ms.p50);
        }
        assert!(sink.counts.handshakes.load(Ordering::Relaxed) >= 4);
        let taken = Taken::of(&sink);
        assert_eq!(
            (taken.arrived, taken.missing, taken.duplicates),
            (180, 0, 0),
            "{taken:?}"
        );
    }

    /// Of one domain, which takes so long for each message.
    fn slow_sink(delay: Duration, zero: Zero) -> (Sink, Spread) {
        let spread = Spread::zipf(1, 0.0, "load.test").unwrap();
        let manner = Manner {
            usual: Behaviour {
                delay: Span::just(delay),
                ..Behaviour::default()
            },
            ..Manner::default()
        };
        let sink = Sink::start(manner, &spread, 1, zero).unwrap();
        (sink, spread)
    }

    /// One session does a third of the rate: the last message stands behind all others, whenever its own transaction begins.
    #[test]
    fn what_is_kept_waiting_counts_from_its_own_moment() {
        let zero = Zero::now();
        let delay = Duration::from_millis(3);
        let (sink, spread) = slow_sink(delay, zero);
        let letters = Arc::new(Letters::new(9, "a@sender.test", "1KiB".parse().unwrap(), spread));
        let pace = Pace {
            sessions: 1,
            beat: Beat::Rate(1_000.0),
            messages: 60,
            time: None,
            per_session: 60,
        };
        let target = Target::plain((sink::address(0), sink.port).into()).unwrap();
        let load = Load::new(letters, target, pace, zero, 0);
        drive(&load, None, || Ok(())).unwrap();
        let sent = load.sent.all();
        let longest = sent
            .iter()
            .map(|sent| sent.answered - sent.begun)
            .sum::<Duration>()
            - Duration::from_millis(59);
        let told = Summary::of(&load, &sent).transaction_ms.max;
        assert!(
            longest >= delay * 40 && told >= longest.as_secs_f64() * 1e3 * 0.99,
            "{told} ms of {longest:?}"
        );
    }

    /// The sink's own time is its delay, and nothing that it waited for.
    #[test]
    fn a_sinks_own_time_begins_at_the_last_octet() {
        let zero = Zero::now();
        let delay = Duration::from_millis(20);
        let (sink, spread) = slow_sink(delay, zero);
        let letters = Letters::new(9, "a@sender.test", "1KiB".parse().unwrap(), spread);
        let letter = letters.letter(0);
        let text: Vec<u8> = letters.data(&letter).flatten().copied().collect();
        let (most, dot) = text.split_at(text.len() - 3);
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        let all_but_the_dot = runtime.block_on(async {
            let mut peer = Peer::new(TcpStream::connect((sink::address(0), sink.port)).await.unwrap());
            peer.reply().await.unwrap();
            for line in ["MAIL FROM:<a@sender.test>", "RCPT TO:<u0@d0.load.test>", "DATA"] {
                assert!(peer.say(line).await.unwrap().code < 400, "{line}");
            }
            peer.write(&[most]).await.unwrap();
            let moment = zero.elapsed();
            peer.write(&[dot]).await.unwrap();
            assert_eq!(peer.code().await.unwrap(), 250);
            moment
        });
        let arrival = sink.arrivals()[0];
        assert!(arrival.read() >= all_but_the_dot, "{arrival:?}");
        assert!(arrival.at - arrival.read() >= delay, "{arrival:?}");
    }

    /// What a sink refuses is told as refused, and the session goes on.
    #[test]
    fn shares_are_refused() {
        let zero = Zero::now();
        let spread = Spread::zipf(1, 0.0, "load.test").unwrap();
        let usual = Behaviour {
            defer: 0.3,
            refuse: 0.3,
            ..Behaviour::default()
        };
        let manner = Manner {
            usual,
            ..Manner::default()
        };
        let sink = Sink::start(manner, &spread, 1, zero).unwrap();
        let letters = Arc::new(Letters::new(9, "a@sender.test", "1KiB".parse().unwrap(), spread));
        for (number, transfer) in [Transfer::Lockstep, Transfer::Pipelined, Transfer::Bdat]
            .into_iter()
            .enumerate()
        {
            let mut target = Target::plain((sink::address(0), sink.port).into()).unwrap();
            target.transfer = transfer;
            let pace = Pace {
                sessions: 1,
                beat: Beat::AsAnswered,
                messages: 100,
                time: None,
                per_session: 1_000,
            };
            let load = Load::new(Arc::clone(&letters), target, pace, zero, number as u32 * 100);
            drive(&load, None, || Ok(())).unwrap();
            let summary = Summary::of(&load, &load.sent.all());
            assert!((30..80).contains(&summary.refused), "{transfer:?}: {summary}");
            assert_eq!(
                (summary.messages, summary.broken),
                (100, 0),
                "{transfer:?}: {summary}"
            );
        }
    }

    /// A connection too many is told so at its greeting, or when it begins a message; where one has ended there is room for the next.
    #[test]
    fn connections_too_many_are_turned_away() {
        let most = |most| Manner {
            most_connections: Some(most),
            ..Manner::default()
        };
        let spread = Spread::zipf(1, 0.0, "load.test").unwrap();
        let sink = Sink::start(most(2), &spread, 2, Zero::now()).unwrap();
        let greeted = async || {
            let stream = TcpStream::connect((sink::address(0), sink.port)).await.unwrap();
            let mut peer = Peer::new(stream);
            (peer.reply().await.unwrap().code, peer)
        };
        let until_one_is_left = async || {
            while sink.counts.open.load(Ordering::Relaxed) > 1 {
                tokio::task::yield_now().await;
            }
        };
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(async {
            let (one, two, three) = (greeted().await, greeted().await, greeted().await);
            assert_eq!((one.0, two.0, three.0), (220, 220, 421));
            drop(two);
            until_one_is_left().await;
            let (code, mut four) = greeted().await;
            assert_eq!(code, 220);
            sink.behave(most(1));
            let (_, mut one) = one;
            assert_eq!(four.say("MAIL FROM:<>").await.unwrap().code, 421);
            until_one_is_left().await;
            assert_eq!(one.say("MAIL FROM:<>").await.unwrap().code, 250);
        });
        let taken = Taken::of(&sink);
        assert_eq!((taken.connections, taken.turned_away), (4, 2));
    }

    /// A load that gives up ends with what it has: each message whose moment had come, and how long it waited.
    #[test]
    fn what_was_not_accepted_has_its_wait() {
        let spread = Spread::zipf(1, 0.0, "load.test").unwrap();
        let sink = Sink::start(Manner::default(), &spread, 1, Zero::now()).unwrap();
        let letters = Arc::new(Letters::new(9, "a@sender.test", "1KiB".parse().unwrap(), spread));
        let target = Target::plain((sink::address(0), sink.port).into()).unwrap();
        let pace = Pace {
            sessions: 2,
            // The second one's moment does not come: it is not waited for, and not counted.
            beat: Beat::Rate(0.01),
            messages: 10,
            time: None,
            per_session: 7,
        };
        let of = |target| Load::new(Arc::clone(&letters), target, pace, Zero::now(), 0);
        // The sink knows no AUTH.
        let load = of(Target {
            login: Some(("a".to_owned(), "b".to_owned())),
            ..target.clone()
        });
        let error = drive(&load, None, || Ok(())).unwrap_err().to_string();
        assert!(error.starts_with("AUTH PLAIN: 500"), "{error}");
        let mut sent = load.sent.all();
        assert_eq!((sent.len(), sent[0].number), (1, 0));
        sent[0].answered = sent[0].meant + Duration::from_millis(1_250);
        let told = Summary::of(&load, &sent).to_string();
        assert!(
            told.ends_with(
                "these times are of 0 that were accepted; 1 were refused or unanswered, after 1250.00 ms at the longest"
            ),
            "{told}"
        );
        let load = of(target);
        let thread = begin(&load).unwrap();
        while load.sent.count() == 0 {
            std::thread::yield_now();
        }
        load.stop();
        thread.join().unwrap().unwrap();
        assert_eq!(load.sent.count(), 1);
        let told = Summary::of(&load, &load.sent.all()).to_string();
        assert!(!told.contains("these times"), "{told}");
    }

    /// Each fault has its words; what comes later for those put off is none.
    #[test]
    fn a_sink_finds_what_should_not_be() {
        let spread = Spread::zipf(1, 0.0, "load.test").unwrap();
        let sink = Sink::start(Manner::default(), &spread, 1, Zero::now()).unwrap();
        let found = || Taken::of(&sink).found();
        let letters = Letters::new(9, "a@sender.test", "1KiB".parse().unwrap(), spread).with_recipients(3);
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        let address = (sink::address(0), sink.port);
        let hand_over = |number, to: &[usize], change: (&str, &str)| {
            let letter = letters.letter(number);
            let text = String::from_utf8(letters.data(&letter).flatten().copied().collect()).unwrap();
            let text = text.replacen(change.0, change.1, 1);
            runtime.block_on(async {
                let mut peer = Peer::new(TcpStream::connect(address).await.unwrap());
                peer.reply().await.unwrap();
                peer.say("MAIL FROM:<a@sender.test>").await.unwrap();
                for which in to {
                    let recipient = &letter.recipients[*which];
                    let reply = peer.say(&format!("RCPT TO:<{recipient}>")).await.unwrap();
                    assert_eq!(reply.code, 250);
                }
                assert_eq!(peer.say("DATA").await.unwrap().code, 354);
                peer.write(&[text.as_bytes()]).await.unwrap();
                assert_eq!(peer.code().await.unwrap(), 250);
            });
        };
        let nothing = ("", "");
        hand_over(70, &[0, 2], nothing);
        hand_over(70, &[1], nothing);
        assert_eq!(found(), Vec::<String>::new());
        assert_eq!(Taken::of(&sink).missing, 70);
        hand_over(70, &[2], nothing);
        assert_eq!(found(), ["1 messages came to a recipient again"]);
        hand_over(72, &[0], ("X-Load: 9", "X-Load: ?"));
        assert!(found()[1].starts_with("1 messages came without a seal that can be read"));
        // A number that has become another one's.
        hand_over(73, &[0], ("X-Load: 9 73", "X-Load: 9 74"));
        assert_eq!(found()[0], "1 messages arrived otherwise than sent");
    }

    /// A message some of whose recipients are refused goes to the others, whole.
    #[test]
    fn those_that_are_taken_get_the_message() {
        let zero = Zero::now();
        let spread = Spread::zipf(1, 0.0, "load.test").unwrap();
        let usual = Behaviour {
            refuse: 0.5,
            ..Behaviour::default()
        };
        let manner = Manner {
            usual,
            ..Manner::default()
        };
        let sink = Sink::start(manner, &spread, 1, zero).unwrap();
        let sizes = "1KiB".parse().unwrap();
        let letters = Arc::new(Letters::new(9, "a@sender.test", sizes, spread).with_recipients(3));
        for (number, transfer) in [Transfer::Lockstep, Transfer::Pipelined, Transfer::Bdat]
            .into_iter()
            .enumerate()
        {
            let mut target = Target::plain((sink::address(0), sink.port).into()).unwrap();
            target.transfer = transfer;
            let pace = Pace {
                sessions: 1,
                beat: Beat::AsAnswered,
                messages: 80,
                time: None,
                per_session: 1_000,
            };
            let first = number as u32 * 80;
            let load = Load::new(Arc::clone(&letters), target, pace, zero, first);
            drive(&load, None, || Ok(())).unwrap();
            let sent = load.sent.all();
            let summary = Summary::of(&load, &sent);
            assert!(
                (80..160).contains(&summary.recipients_refused),
                "{transfer:?}: {summary}"
            );
            // One of eight has no recipient left.
            assert!((1..30).contains(&summary.refused), "{transfer:?}: {summary}");
            let arrivals: Vec<_> = sink
                .arrivals()
                .into_iter()
                .filter(|arrival| arrival.number >= first)
                .collect();
            let balance = Balance::of(9, &sent, &arrivals, &[]);
            assert!(balance.holds(), "{transfer:?}: {balance:?}");
            assert_eq!(balance.arrived, summary.accepted, "{transfer:?}");
        }
        assert_eq!(sink.counts.unsealed.load(Ordering::Relaxed), 0);
    }
}
