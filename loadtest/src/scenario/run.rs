//! A scenario from its folder to its report.

use std::fs;
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use tokio::runtime::Runtime;

use super::peer::{Part, Peer};
use super::trace::Tracer;
use super::usage::{Memory, Usage};
use super::{Name, Plan, Report};
use crate::load::client::{Load, Pace, Target, Tls};
use crate::load::letters::{Letters, Spread};
use crate::load::record::{Balance, Quantiles, Sent, Zero};
use crate::load::sink::{self, Manner, Sink};
use crate::load::{Summary, drive};
use crate::relay::{Program, Relay};

/// Tells this scenario's mail from any other.
const RUN: u64 = 0x5ce2_a210;
const SENDER: &str = "load@sender.test";
/// How long nothing may arrive before it is given up.
const STILL: Duration = Duration::from_secs(30);
/// How often what has arrived is counted.
const LOOK_EVERY: Duration = Duration::from_millis(2);

/// The relay that is measured.
enum Subject {
    Postrider(Relay),
    Peer(Peer),
}

impl Subject {
    fn pid(&self) -> anyhow::Result<u32> {
        match self {
            Self::Postrider(relay) => relay.pid().context("no process"),
            Self::Peer(peer) => Ok(peer.pid()),
        }
    }

    fn runs(&mut self) -> anyhow::Result<bool> {
        match self {
            Self::Postrider(relay) => relay.runs(),
            Self::Peer(peer) => peer.runs(),
        }
    }

    fn tail(&self) -> String {
        match self {
            Self::Postrider(relay) => relay.tail(),
            Self::Peer(peer) => peer.tail(),
        }
    }

    /// Keeps mail from going out; a peer does so from its start on, where the scenario wants it.
    async fn hold(&self) -> anyhow::Result<()> {
        match self {
            Self::Postrider(relay) => {
                let suspend = ["queue", "suspend", "--all", "--reason", "the scenario accept"];
                relay.command(&suspend).await.map(drop)
            }
            Self::Peer(_) => Ok(()),
        }
    }

    async fn release(&mut self) -> anyhow::Result<()> {
        match self {
            Self::Postrider(relay) => relay.command(&["queue", "resume", "--all"]).await.map(drop),
            Self::Peer(peer) => peer.release(),
        }
    }
}

struct Stage<'a> {
    plan: &'a Plan,
    runtime: Runtime,
    zero: Zero,
    sink: Sink,
    subject: Subject,
    letters: Arc<Letters>,
    target: Target,
    sent: Vec<Sent>,
}

/// Through `peer` where there is one, else through `postrider`.
pub(super) fn play(
    plan: &Plan,
    postrider: &Path,
    peer: Option<&Path>,
    folder: Option<&Path>,
) -> anyhow::Result<Report> {
    let folder = match folder {
        Some(folder) => tempfile::tempdir_in(folder),
        None => tempfile::tempdir(),
    }
    .context("a folder for the scenario")?;
    let mut stage = Stage::set(plan, postrider, peer, folder.path())?;
    let pid = stage.subject.pid()?;
    let memory = Memory::watch(pid)?;
    let tracer = plan.trace.as_deref().map(|file| Tracer::attach(pid, file));
    let _tracer = tracer.transpose()?;

    let suspended = plan.name == Name::Accept;
    stage.load(plan.warm_up, 0)?;
    if !(suspended && peer.is_some()) {
        stage.until_arrived()?;
    }
    if suspended {
        stage.runtime.block_on(stage.subject.hold())?;
    }

    let before = Usage::of(pid)?;
    let load = stage.load(plan.messages, plan.warm_up)?;
    if !suspended {
        stage.until_arrived()?;
    }
    let after = Usage::of(pid)?;
    let end = stage.zero.elapsed();
    if suspended {
        stage.runtime.block_on(stage.subject.release())?;
        stage.until_arrived()?;
    }
    stage.report(&load, before, after, end, &memory)
}

impl<'a> Stage<'a> {
    /// Starts sink and relay.
    fn set(plan: &'a Plan, postrider: &Path, peer: Option<&Path>, folder: &Path) -> anyhow::Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let zero = Zero::now();
        let spread = Spread::zipf(plan.domains, 0.0, "load.test")?;
        let tls = plan.name == Name::RelayTls;
        let manner = Manner {
            tls,
            ..Manner::default()
        };
        let sink = Sink::start(manner, &spread, plan.sink_threads, zero)?;
        let address = TcpListener::bind(("127.0.0.1", 0))?.local_addr()?;
        let subject = match peer {
            None => {
                let program = Program {
                    postrider: postrider.to_owned(),
                    sabotage: None,
                };
                let configuration = configuration(plan, postrider, folder, address, &sink)?;
                let mut relay = Relay::with_configuration(&program, folder, address, "info", &configuration)?;
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
                    listen: address,
                    next: SocketAddr::from((sink::address(0), sink.port)),
                    connections: plan.connections,
                    key: key.as_deref(),
                };
                Subject::Peer(runtime.block_on(Peer::start(peer, folder, &part))?)
            }
        };
        let mut target = Target::plain(address)?;
        if tls {
            target.tls = Tls::Starttls;
        }
        Ok(Self {
            plan,
            runtime,
            zero,
            sink,
            subject,
            letters: Arc::new(Letters::new(RUN, SENDER, plan.size.clone(), spread)),
            target,
            sent: Vec::new(),
        })
    }

    /// Submits so many messages.
    fn load(&mut self, messages: u32, first: u32) -> anyhow::Result<Arc<Load>> {
        let pace = Pace {
            sessions: self.plan.sessions,
            rate: None,
            messages,
            time: None,
            per_session: u32::MAX,
        };
        let load = Load::new(
            Arc::clone(&self.letters),
            self.target.clone(),
            pace,
            self.zero,
            first,
        );
        drive(&load, Some(messages.into())).with_context(|| self.subject.tail())?;
        self.sent.extend(load.sent.all());
        Ok(load)
    }

    /// Until all that was accepted has arrived, or nothing comes any more: the balance will tell.
    fn until_arrived(&mut self) -> anyhow::Result<()> {
        let accepted = self
            .sent
            .iter()
            .filter(|sent| (200..300).contains(&sent.code))
            .count() as u64;
        let mut last = (0, Instant::now());
        while last.0 < accepted && last.1.elapsed() < STILL {
            ensure!(
                self.subject.runs()?,
                "the relay ended by itself: {}",
                self.subject.tail()
            );
            std::thread::sleep(LOOK_EVERY);
            let arrived = self.sink.counts.arrivals.count();
            if arrived > last.0 {
                last = (arrived, Instant::now());
            }
        }
        Ok(())
    }

    fn report(
        mut self,
        load: &Load,
        before: Usage,
        after: Usage,
        end: Duration,
        memory: &Memory,
    ) -> anyhow::Result<Report> {
        let peak = memory.peak();
        let mut findings = Vec::new();
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
        let unsealed = self.sink.counts.unsealed.load(Ordering::Relaxed);
        if unsealed > 0 {
            findings.push(format!(
                "{unsealed} messages arrived that nobody sent: reports, or worse"
            ));
        }
        // A figure for signed mail, or for TLS, is of mail that was.
        let all = self.sink.counts.arrivals.count();
        let signed = self.sink.counts.signed.load(Ordering::Relaxed);
        let under_tls = self.sink.counts.under_tls.load(Ordering::Relaxed);
        for (what, count, expected) in [
            ("signed", signed, self.plan.name.signs().is_some()),
            ("sent over TLS", under_tls, self.plan.name == Name::RelayTls),
        ] {
            let expected = if expected { all } else { 0 };
            if count != expected {
                findings.push(format!("{count} of {all} messages were {what}, not {expected}"));
            }
        }
        let measured = load.sent.all();
        let accept = Summary::of(load, &measured);
        if accept.accepted != u64::from(self.plan.messages) || accept.broken > 0 {
            findings.push(format!(
                "{} of {} messages were accepted, {} connections broke",
                accept.accepted, self.plan.messages, accept.broken
            ));
        }
        let arrivals = self.sink.arrivals();
        let balance = Balance::of(RUN, &self.sent, &arrivals);
        // Mail to one domain leaves as it came in, give or take what is between: each session's, and each connection's, message.
        let between = 50 * (self.plan.sessions + self.plan.connections) as u64;
        // Promises of order are this relay's own; none other has made them.
        if balance.overtaken > between && matches!(self.subject, Subject::Postrider(_)) {
            findings.push(format!(
                "a message was overtaken by {}, more than {between}",
                balance.overtaken
            ));
        }
        let first = self.plan.warm_up;
        let mut at = vec![None; measured.len()];
        for arrival in arrivals.iter().filter(|arrival| arrival.number >= first) {
            if let Some(place) = at.get_mut((arrival.number - first) as usize) {
                *place = Some(arrival.at);
            }
        }
        let arrived = |sent: &Sent| *at.get(sent.number.checked_sub(first)? as usize)?;
        let since = |since: fn(&Sent) -> Duration| {
            Quantiles::of(
                measured
                    .iter()
                    .filter_map(|sent| Some(arrived(sent)?.saturating_sub(since(sent)))),
            )
        };
        let ended = match self.plan.name {
            Name::Accept => measured.iter().map(|sent| sent.answered).max(),
            _ => at.iter().flatten().max().copied(),
        };
        let seconds = ended
            .unwrap_or(end)
            .saturating_sub(load.began())
            .as_secs_f64()
            .max(1e-9);
        let messages = f64::from(self.plan.messages);
        Ok(Report {
            scenario: self.plan.name,
            messages: self.plan.messages,
            seconds,
            per_second: messages / seconds,
            cpu_seconds_per_1000: (after.cpu_seconds - before.cpu_seconds) / messages * 1_000.0,
            peak_memory_mib: peak as f64 / f64::from(1 << 20),
            written_by_accepted: after.written.saturating_sub(before.written) as f64
                / load.octets.load(Ordering::Relaxed).max(1) as f64,
            reply_to_arrival_ms: since(|sent| sent.answered),
            begin_to_arrival_ms: since(|sent| sent.meant),
            accept,
            balance,
            findings,
            between: (before.at, after.at),
        })
    }
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
    address: SocketAddr,
    sink: &Sink,
) -> anyhow::Result<String> {
    let mut text = format!(
        "hostname = \"relay.sender.test\"\n\
         [store]\npath = \"{folder}/store\"\n\
         [admin]\nsocket = \"{folder}/admin.sock\"\n\
         [tenants.load]\nsenders = [\"sender.test\"]\n\
         [submission]\nmax_connections = 10100\nmax_connections_per_address = 10100\nmax_message = \"65MiB\"\n\
         [delivery]\nport = {port}\ntls = \"{tls}\"\n[delivery.limits]\nconnections = {connections}\n\
         [dns]\nservers = [\"{dns}\"]\n[log]\nformat = \"json\"\n",
        folder = folder.display(),
        port = sink.port,
        tls = match plan.name {
            Name::RelayTls => "opportunistic",
            _ => "off",
        },
        connections = plan.connections,
        dns = sink.dns,
    );
    if let Some(algorithm) = plan.name.signs() {
        dkim_key(postrider, folder, algorithm)?;
        text.push_str("[[dkim]]\ndomain = \"sender.test\"\nselector = \"s1\"\nkey = \"dkim.pem\"\n");
    }
    text.push_str(&format!(
        "[[listener]]\nkind = \"trusted\"\naddress = \"{address}\"\nnetworks = [\"127.0.0.0/8\"]\ntenant = \"load\"\n"
    ));
    if plan.name == Name::RelayTls {
        use std::os::unix::fs::PermissionsExt as _;
        let issued = lab::Ca::create(&folder.join("ca.pem"))?.issue(&["relay.sender.test"])?;
        fs::write(folder.join("chain.pem"), &issued.certificate)?;
        fs::write(folder.join("key.pem"), &issued.key)?;
        fs::set_permissions(folder.join("key.pem"), fs::Permissions::from_mode(0o600))?;
        text.push_str("certificate = \"chain.pem\"\nkey = \"key.pem\"\n");
    }
    Ok(text)
}
