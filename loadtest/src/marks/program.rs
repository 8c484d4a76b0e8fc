//! The program under measure: a relay on a store, between a flood and a lab that takes everything.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use lab::{Delivery, Keep, Lab, Limits};
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::TcpStream;
use tokio::runtime::Runtime;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use crate::relay::free_listener;
use crate::signals;

/// How long anything may take that is no figure.
const PATIENCE: Duration = Duration::from_secs(120);
const LOOK_EVERY: Duration = Duration::from_millis(5);
/// Sessions that submit.
const SESSIONS: usize = 8;
/// Between a message's reply and the session's next one, where latency is measured: the relay is not to be at its limit.
const PAUSE: Duration = Duration::from_millis(10);
/// Before the deletion begins.
const USUAL: Duration = Duration::from_secs(10);

/// For how long a relay's memory is watched once what was due has gone. A shard looks at 256 queues a second of those that sleep for long.
const WATCHED: Duration = Duration::from_secs(60);

/// What all measurements share.
pub(super) struct Program {
    postrider: PathBuf,
    folder: PathBuf,
    runtime: Runtime,
}

impl Program {
    pub(super) fn new(postrider: &Path, folder: &Path) -> anyhow::Result<Self> {
        Ok(Self {
            postrider: postrider.to_owned(),
            folder: folder.to_owned(),
            runtime: tokio::runtime::Builder::new_multi_thread()
                .worker_threads(2)
                .enable_all()
                .build()?,
        })
    }
}

/// Messages that the lab was handed.
#[derive(Default)]
struct Arrived {
    /// Of those that were in the store.
    of_store: AtomicU64,
    of_flood: AtomicU64,
}

impl Arrived {
    fn count(&self, delivery: &Delivery) {
        let is_flood = |to: &mail_core::Mailbox| to.domain().as_str() == FLOODED;
        let count = match delivery.recipients.iter().all(is_flood) {
            true => &self.of_flood,
            false => &self.of_store,
        };
        count.fetch_add(1, Ordering::Relaxed);
    }

    fn of_store(&self) -> u64 {
        self.of_store.load(Ordering::Relaxed)
    }

    fn all(&self) -> u64 {
        self.of_store() + self.of_flood.load(Ordering::Relaxed)
    }
}

/// Waits, while nobody asks us to end.
async fn watched(time: Duration) -> anyhow::Result<()> {
    let begun = Instant::now();
    while let Some(left) = time.checked_sub(begun.elapsed()) {
        signals::go_on()?;
        sleep(left.min(Duration::from_millis(100))).await;
    }
    Ok(())
}

/// A relay that was just started.
pub(super) struct Start<'a> {
    program: &'a Program,
    relay: Child,
    begun: Instant,
    lab: Option<Lab>,
    arrived: Arc<Arrived>,
    submission: SocketAddr,
    config: PathBuf,
}

impl<'a> Start<'a> {
    /// Starts a relay on a store whose mail goes to `d0.test` and so on, so many of which are there.
    pub(super) fn new(program: &'a Program, store: &Path, domains: u64) -> anyhow::Result<Self> {
        let arrived = Arc::<Arrived>::default();
        let lab = program.runtime.block_on(start_lab(&arrived, domains))?;
        let submission = free_listener()?.local_addr()?;
        let config = program.folder.join("postrider.toml");
        fs::write(
            &config,
            format!(
                "hostname = \"relay.second.test\"\ndrain_timeout = \"1s\"\n\
                 [store]\npath = \"{store}\"\nmin_free = \"16MiB\"\n\
                 [admin]\nsocket = \"{folder}/admin.sock\"\n\
                 [tenants.load]\nsenders = [\"second.test\"]\n[tenants.flood]\nsenders = [\"second.test\"]\n\
                 [[listener]]\nkind = \"trusted\"\naddress = \"{submission}\"\nnetworks = [\"127.0.0.0/8\"]\ntenant = \"flood\"\n\
                 [delivery]\nport = {port}\ntls = \"off\"\n[delivery.limits]\nconnections = 30\n\
                 [dns]\nservers = [\"{dns}\"]\n[log]\nformat = \"json\"\n",
                store = store.display(),
                folder = program.folder.display(),
                port = lab.smtp_port,
                dns = lab.dns,
            ),
        )?;
        let log = fs::File::create(program.folder.join("log"))?;
        let begun = Instant::now();
        let relay = Command::new(&program.postrider)
            .args(["run", "--config"])
            .arg(&config)
            .env("RUST_LOG", "warn")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .with_context(|| program.postrider.display().to_string())?;
        Ok(Self {
            program,
            relay,
            begun,
            lab: Some(lab),
            arrived,
            submission,
            config,
        })
    }

    /// Waits until so many messages have arrived, of those that are `counted`.
    async fn until_arrived(&mut self, count: u64, counted: fn(&Arrived) -> u64) -> anyhow::Result<()> {
        let mut last = (0, Instant::now());
        loop {
            signals::go_on()?;
            let arrived = counted(&self.arrived);
            if arrived >= count {
                return Ok(());
            }
            if arrived > last.0 {
                last = (arrived, Instant::now());
            }
            if let Some(status) = self.relay.try_wait()? {
                bail!("the relay ended by itself, {status}: {}", self.log());
            }
            ensure!(
                last.1.elapsed() < PATIENCE,
                "{arrived} of {count} arrived: {}",
                self.log()
            );
            sleep(LOOK_EVERY).await;
        }
    }

    fn log(&self) -> String {
        let text = fs::read_to_string(self.program.folder.join("log")).unwrap_or_default();
        text.lines().rev().take(3).collect::<Vec<_>>().join(" | ")
    }

    /// Seconds from the start of the process until the lab has a message.
    pub(super) fn until_first_delivery(mut self) -> anyhow::Result<f64> {
        let runtime = &self.program.runtime;
        runtime.block_on(self.until_arrived(1, Arrived::all))?;
        Ok(self.begun.elapsed().as_secs_f64())
    }

    /// Resident octets once so many messages have come in and gone, beside those that were there.
    pub(super) fn resident_after(mut self, count: u64) -> anyhow::Result<u64> {
        let runtime = &self.program.runtime;
        runtime.block_on(async {
            let flood = Flood::start(self.submission, Duration::ZERO).await?;
            while flood.accepted.load(Ordering::Relaxed) < count {
                signals::go_on()?;
                ensure!(
                    self.relay.try_wait()?.is_none(),
                    "the relay ended: {}",
                    self.log()
                );
                sleep(LOOK_EVERY).await;
            }
            flood.stop().await?;
            self.until_arrived(count, Arrived::all).await
        })?;
        self.memory("VmRSS:")
    }

    /// The most octets that were resident until a while after so many of the store's own messages have arrived.
    pub(super) fn peak_once_gone(mut self, count: u64) -> anyhow::Result<u64> {
        let runtime = &self.program.runtime;
        runtime.block_on(async {
            self.until_arrived(count, Arrived::of_store).await?;
            watched(WATCHED).await?;
            ensure!(
                self.relay.try_wait()?.is_none(),
                "the relay ended: {}",
                self.log()
            );
            Ok(())
        })?;
        self.memory("VmHWM:")
    }

    /// What the kernel says of the relay's memory, in octets.
    fn memory(&self, what: &str) -> anyhow::Result<u64> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.relay.id()))?;
        let line = status.lines().find_map(|line| line.strip_prefix(what));
        let kib = line.and_then(|text| text.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok());
        Ok(kib.with_context(|| format!("no {what}"))? << 10)
    }

    /// The longest wait for a 250 while an operator deletes all of a tenant's mail, by the p99 of the time before.
    pub(super) fn accepts_while_deleting(self) -> anyhow::Result<f64> {
        let runtime = &self.program.runtime;
        runtime.block_on(async {
            let flood = Flood::start(self.submission, PAUSE).await?;
            watched(USUAL).await?;
            let mut usual = std::mem::take(&mut *flood.waits.lock());
            let mut delete = Command::new(&self.program.postrider);
            delete
                .args([
                    "queue", "delete", "--tenant", "load", "--yes", "--json", "--config",
                ])
                .arg(&self.config);
            let output = tokio::task::spawn_blocking(move || delete.output()).await??;
            let meanwhile = std::mem::take(&mut *flood.waits.lock());
            flood.stop().await?;
            ensure!(
                output.status.success(),
                "queue delete: {} {}",
                String::from_utf8_lossy(&output.stdout),
                String::from_utf8_lossy(&output.stderr)
            );
            usual.sort();
            let p99 = usual
                .get(usual.len() * 99 / 100)
                .context("nothing was accepted")?;
            let longest = meanwhile.iter().max().context("nothing was accepted meanwhile")?;
            Ok(longest.as_secs_f64() / p99.as_secs_f64())
        })
    }
}

impl Drop for Start<'_> {
    fn drop(&mut self) {
        let _ = self.relay.kill();
        let _ = self.relay.wait();
        if let Some(lab) = self.lab.take() {
            self.program.runtime.block_on(lab.stop());
        }
    }
}

async fn start_lab(arrived: &Arc<Arrived>, domains: u64) -> anyhow::Result<Lab> {
    let arrived = arrived.clone();
    let host: mail_core::Domain = "mx.ok.test".parse()?;
    let limits = Limits {
        mailboxes: 10_000_000,
        messages: 10_000_000,
        bytes: u64::MAX,
    };
    let mut lab = lab::Builder::bare("second.test".parse()?, "relay.second.test".parse()?)
        .receiver("second.test".parse()?, lab::Accepts)
        .receiver(FLOODED.parse()?, lab::Accepts)
        .keep(Keep::Digest)
        .limits(limits)
        .verify(false)
        .observe(move |delivery| arrived.count(delivery));
    for number in 0..domains {
        lab = lab.domain(format!("d{number}.test").parse()?, std::slice::from_ref(&host));
    }
    Ok(lab.start().await?)
}

/// Where the flood goes; nothing in a store does.
const FLOODED: &str = "ok.test";

/// Sessions that submit.
struct Flood {
    accepted: Arc<AtomicU64>,
    /// From the final dot to the reply.
    waits: Arc<parking_lot::Mutex<Vec<Duration>>>,
    over: Arc<AtomicBool>,
    sessions: JoinSet<anyhow::Result<()>>,
}

impl Flood {
    async fn start(relay: SocketAddr, pause: Duration) -> anyhow::Result<Self> {
        let begun = Instant::now();
        while TcpStream::connect(relay).await.is_err() {
            ensure!(begun.elapsed() < PATIENCE, "nothing listens on {relay}");
            sleep(LOOK_EVERY).await;
        }
        let mut flood = Self {
            accepted: Arc::default(),
            waits: Arc::default(),
            over: Arc::default(),
            sessions: JoinSet::new(),
        };
        for _ in 0..SESSIONS {
            let (accepted, waits, over) = (flood.accepted.clone(), flood.waits.clone(), flood.over.clone());
            flood.sessions.spawn(async move {
                let stream = TcpStream::connect(relay).await?;
                stream.set_nodelay(true)?;
                let mut peer = BufReader::new(stream);
                expect(&mut peer, "220").await?;
                peer.write_all(b"EHLO loadtest.test\r\n").await?;
                expect(&mut peer, "250").await?;
                let text =
                    "A line of a message, 72 octets of it with what ends it, many times.\r\n".repeat(14);
                let data = format!("From: from@second.test\r\nSubject: load\r\n\r\n{text}.\r\n");
                while !over.load(Ordering::Relaxed) {
                    peer.write_all(b"MAIL FROM:<from@second.test>\r\nRCPT TO:<to@ok.test>\r\nDATA\r\n")
                        .await?;
                    for code in ["250", "250", "354"] {
                        expect(&mut peer, code).await?;
                    }
                    let begun = Instant::now();
                    peer.write_all(data.as_bytes()).await?;
                    expect(&mut peer, "250").await?;
                    waits.lock().push(begun.elapsed());
                    accepted.fetch_add(1, Ordering::Relaxed);
                    sleep(pause).await;
                }
                Ok(())
            });
        }
        Ok(flood)
    }

    async fn stop(mut self) -> anyhow::Result<()> {
        self.over.store(true, Ordering::Relaxed);
        while let Some(ended) = self.sessions.join_next().await {
            ended??;
        }
        Ok(())
    }
}

/// Reads a reply, all its lines.
async fn expect(peer: &mut BufReader<TcpStream>, code: &str) -> anyhow::Result<()> {
    loop {
        let mut line = String::new();
        let read = timeout(PATIENCE, peer.read_line(&mut line))
            .await
            .context("no reply")??;
        ensure!(read > 0 && line.starts_with(code), "{line:?} instead of {code}");
        if line.as_bytes().get(3) != Some(&b'-') {
            return Ok(());
        }
    }
}
