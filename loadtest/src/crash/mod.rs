//! `loadtest crash`: kill -9 under load, and every message accounted for (promises 1 to 3).
//!
//! A lab takes the mail, the relay runs as a child. Each round floods a fresh store, kills the relay at a random moment with
//! enough acknowledged and on the wire, starts it again, waits until all has arrived, and draws the balance.

mod flood;
mod ledger;
mod message;

use std::collections::BTreeSet;
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, ensure};
use clap::Args;
use lab::{Keep, Lab, Limits, Slow};
use parking_lot::Mutex;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use rustix::process::{Pid, Signal, kill_process};

use flood::Flood;
use ledger::{Account, Arrival, Kill, Known, Told};

/// Messages acknowledged before the kill, at the least.
const ACKNOWLEDGED: usize = 500;
/// Transactions under way at the kill, at the least.
const ON_THE_WIRE: usize = 20;
/// Sessions that submit.
const SESSIONS: usize = 20;
/// How long a round's first half may take, and how long nothing may move in its second.
const PATIENCE: Duration = Duration::from_secs(60);
const STILL: Duration = Duration::from_secs(12);
/// How long the first receiver takes for a recipient: so that there is always something on the wire.
const SLOW: Duration = Duration::from_millis(15);
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// Options of `loadtest crash`.
#[derive(Args)]
pub(crate) struct Options {
    /// The program `postrider`.
    #[arg(long, value_name = "FILE")]
    postrider: PathBuf,
    /// How many kills.
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Makes the same messages and moments again; drawn and printed unless given.
    #[arg(long)]
    seed: Option<u64>,
    /// Says that the program is broken on purpose by this switch: the balance should not hold.
    #[arg(long, value_name = "SWITCH")]
    sabotage: Option<String>,
}

type Arrivals = Arc<Mutex<Vec<Arrival>>>;

/// What the rounds share.
struct Setting<'a> {
    options: &'a Options,
    lab: Lab,
    arrivals: Arrivals,
    seed: u64,
}

/// Runs all rounds; false if a promise did not hold.
pub(crate) fn run(options: &Options) -> anyhow::Result<bool> {
    let seed = options.seed.unwrap_or_else(|| StdRng::from_os_rng().random());
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let arrivals = Arrivals::default();
        let setting = Setting { lab: start_lab(&arrivals).await?, options, arrivals, seed };
        println!("crash: seed {seed}, {} rounds{}", options.rounds, sabotage_note(options));
        println!("{:>5} {:>8} {:>8} {:>9} {:>9} {:>8} {:>6} {:>9} {:>10}  duplicates by window",
            "round", "acked", "on wire", "delivered", "bounced", "queued", "lost", "damaged", "unexplained");
        let mut total = Account::default();
        for round in 0..options.rounds {
            total.add(&setting.round(round).await.with_context(|| format!("round {round}, seed {seed}"))?);
        }
        for finding in [&total.lost, &total.damaged, &total.unexplained, &total.invented].into_iter().flatten().take(20) {
            println!("found: {finding}");
        }
        let verdict = if total.holds() { "every promise held" } else { "A PROMISE DID NOT HOLD" };
        println!(
            "crash: {} rounds, {} messages acknowledged, {} recipients lost, duplicates {:?}: {verdict} (seed {seed})",
            options.rounds, total.messages, total.lost.len(), total.explained
        );
        setting.lab.stop().await;
        Ok(total.holds())
    })
}

fn sabotage_note(options: &Options) -> String {
    options
        .sabotage
        .as_ref()
        .map(|switch| format!(", with {switch} on: the balance should not hold"))
        .unwrap_or_default()
}

async fn start_lab(arrivals: &Arrivals) -> anyhow::Result<Lab> {
    let seen = arrivals.clone();
    let observe = move |delivery: &lab::Delivery| {
        let mut seen = seen.lock();
        for recipient in &delivery.recipients {
            seen.push(Arrival {
                recipient: recipient.to_string(),
                sender: delivery.mail_from.to_string(),
                raw: delivery.raw.clone(),
                at: delivery.at.0,
            });
        }
    };
    let limits = Limits {
        mailboxes: 1_000_000,
        messages: 1_000_000,
        bytes: u64::MAX,
    };
    let domain = |name: &str| name.parse().map_err(anyhow::Error::from);
    let lab = lab::Builder::bare(domain("second.test")?, domain("relay.second.test")?)
        .receiver(domain("ok.test")?, Slow(SLOW))
        .receiver(domain("second.test")?, lab::Accepts)
        .receiver(domain("greylist.test")?, lab::Greylists::default())
        .receiver(domain("reject.test")?, lab::Unknown(vec!["nobody".into()]))
        .keep(Keep::Digest)
        .limits(limits)
        .verify(false)
        .observe(observe);
    Ok(lab.start().await?)
}

impl Setting<'_> {
    async fn round(&self, round: usize) -> anyhow::Result<Account> {
        let folder = tempfile::tempdir()?;
        let mut rng = StdRng::seed_from_u64(self.seed.wrapping_add(round as u64));
        let seed: u64 = rng.random();
        self.arrivals.lock().clear();
        let address = free_address()?;
        let config = folder.path().join("postrider.toml");
        std::fs::write(&config, self.configuration(address))?;
        let log = folder.path().join("log");

        let mut relay = self.start(&config, &log)?;
        listening(address).await?;
        let flood = Flood::new(seed, 0);
        let mut sessions = flood.start(address, SESSIONS);
        let enough = ACKNOWLEDGED + rng.random_range(0..400);
        let begun = Instant::now();
        let mut wire = 0;
        while flood.count() < enough || wire < ON_THE_WIRE {
            ensure!(
                begun.elapsed() < PATIENCE,
                "{} acknowledged, {wire} on the wire: not enough to kill",
                flood.count()
            );
            ensure!(
                relay.try_wait()?.is_none(),
                "the relay ended by itself: {}",
                tail(&log)
            );
            tokio::time::sleep(LOOK_EVERY).await;
            wire = on_the_wire(&log)?;
        }
        relay.kill()?;
        let killed = now();
        relay.wait()?;
        flood.stop();
        while let Some(ended) = sessions.join_next().await {
            ended??;
        }
        wire = on_the_wire(&log)?;

        let back = now();
        let mut relay = self.start(&config, &log)?;
        listening(address).await.with_context(|| tail(&log))?;
        let mut known = Known {
            seed,
            acknowledged: flood.acknowledged(),
            kills: vec![Kill { at: killed, back }],
            ..Known::default()
        };
        self.wait_until_all_arrived(&mut known).await;
        stop(&mut relay)?;
        known.arrivals = self.arrivals.lock().clone();
        known.told = told(&log)?;
        known.queued = BTreeSet::new();
        let account = Account::of(&known);
        println!(
            "{round:>5} {:>8} {wire:>8} {:>9} {:>9} {:>8} {:>6} {:>9} {:>10}  {:?}, {} unanswered",
            account.messages,
            account.delivered,
            account.bounced,
            account.queued,
            account.lost.len(),
            account.damaged.len(),
            account.unexplained.len() + account.invented.len(),
            account.explained,
            flood.unanswered()
        );
        Ok(account)
    }

    /// Until nothing is missing, or nothing has come for a while.
    async fn wait_until_all_arrived(&self, known: &mut Known) {
        let (mut last, mut since) = (0, Instant::now());
        loop {
            tokio::time::sleep(LOOK_EVERY * 10).await;
            known.arrivals = self.arrivals.lock().clone();
            if known.arrivals.len() != last {
                (last, since) = (known.arrivals.len(), Instant::now());
            }
            // What was never acknowledged may come too; a last moment for copies nobody should get.
            let missing = Account::of(known).lost.len();
            let quiet = if missing == 0 {
                Duration::from_secs(2)
            } else {
                STILL
            };
            if since.elapsed() > quiet {
                return;
            }
        }
    }

    fn start(&self, config: &Path, log: &Path) -> anyhow::Result<Child> {
        let log = std::fs::OpenOptions::new().create(true).append(true).open(log)?;
        let mut command = Command::new(&self.options.postrider);
        command
            .args(["run", "--config"])
            .arg(config)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log);
        command
            .env("RUST_LOG", "info,relay::delivery::courier=debug")
            .env_remove("POSTRIDER_SABOTAGE");
        if let Some(switch) = &self.options.sabotage {
            command.env("POSTRIDER_SABOTAGE", switch);
        }
        command
            .spawn()
            .with_context(|| self.options.postrider.display().to_string())
    }

    fn configuration(&self, address: SocketAddr) -> String {
        format!(
            "hostname = \"relay.second.test\"\ndrain_timeout = \"5s\"\n\
             [store]\npath = \"store\"\nmin_free = \"16MiB\"\n\
             [tenants.load]\nsenders = [\"second.test\"]\n\
             [[listener]]\nkind = \"trusted\"\naddress = \"{address}\"\nnetworks = [\"127.0.0.0/8\"]\ntenant = \"load\"\n\
             [delivery]\nport = {port}\ntls = \"off\"\n\
             [delivery.limits]\nconnections = 30\n\
             [delivery.retry]\nfirst = \"1s\"\ncap = \"4s\"\n\
             [dns]\nservers = [\"{dns}\"]\n[log]\nformat = \"json\"\n",
            port = self.lab.smtp_port,
            dns = self.lab.dns,
        )
    }
}

fn now() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(now.as_millis()).unwrap_or(u64::MAX)
}

fn free_address() -> anyhow::Result<SocketAddr> {
    Ok(TcpListener::bind(("127.0.0.1", 0))?.local_addr()?)
}

async fn listening(address: SocketAddr) -> anyhow::Result<()> {
    let begun = Instant::now();
    while tokio::net::TcpStream::connect(address).await.is_err() {
        ensure!(
            begun.elapsed() < PATIENCE,
            "the relay does not listen on {address}"
        );
        tokio::time::sleep(LOOK_EVERY).await;
    }
    Ok(())
}

fn stop(relay: &mut Child) -> anyhow::Result<()> {
    let pid = i32::try_from(relay.id())
        .ok()
        .and_then(Pid::from_raw)
        .context("no process")?;
    kill_process(pid, Signal::TERM)?;
    let status = relay.wait()?;
    ensure!(status.success(), "after SIGTERM the relay ended with {status}");
    Ok(())
}

fn lines(log: &Path) -> anyhow::Result<Vec<serde_json::Value>> {
    let text = std::fs::read(log)?;
    // A kill may cut the last line short.
    Ok(text
        .split(|&octet| octet == b'\n')
        .filter_map(|line| serde_json::from_slice(line).ok())
        .collect())
}

/// Units that were begun and of which no outcome was told.
fn on_the_wire(log: &Path) -> anyhow::Result<usize> {
    let mut open = BTreeSet::new();
    for line in lines(log)? {
        let id = line["id"].as_str().unwrap_or_default().to_owned();
        match line["message"].as_str().unwrap_or_default() {
            "on the wire" => drop(open.insert(id)),
            "delivered" | "bounced" | "deferred" | "in doubt" | "expired" => drop(open.remove(&id)),
            _ => {}
        }
    }
    Ok(open.len())
}

/// What the log tells of messages and their recipients.
fn told(log: &Path) -> anyhow::Result<Vec<Told>> {
    let told = lines(log)?.into_iter().filter_map(|line| {
        Some(Told {
            id: line["id"].as_str()?.to_owned(),
            recipient: line["recipient"].as_str().unwrap_or_default().to_owned(),
            event: line["message"].as_str()?.replace(' ', "_"),
            at: line["timestamp"].as_str().and_then(millis)?,
        })
    });
    Ok(told.collect())
}

/// The log's time, `2026-11-23T20:36:25.290955Z`, in milliseconds since 1970.
fn millis(text: &str) -> Option<u64> {
    let number = |from: usize, to: usize| text.get(from..to)?.parse::<u64>().ok();
    let (year, month, day) = (number(0, 4)?, number(5, 7)?, number(8, 10)?);
    // Days since 1970 of a civil date (Howard Hinnant's algorithm).
    let shifted = if month <= 2 { year - 1 } else { year };
    let of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    let days = 365 * shifted + shifted / 4 - shifted / 100 + shifted / 400 + of_year - 719_468;
    let seconds = ((days * 24 + number(11, 13)?) * 60 + number(14, 16)?) * 60 + number(17, 19)?;
    Some(seconds * 1_000 + number(20, 23)?)
}

fn tail(log: &Path) -> String {
    let text = std::fs::read_to_string(log).unwrap_or_default();
    text.lines().rev().take(3).collect::<Vec<_>>().join(" | ")
}

#[cfg(test)]
mod tests {
    #[test]
    fn reads_the_logs_time() {
        assert_eq!(super::millis("1970-01-02T00:00:01.250000Z"), Some(86_401_250));
        assert_eq!(
            super::millis("2026-11-23T20:36:25.290955Z"),
            Some(1_795_466_185_290)
        );
        assert_eq!(super::millis("now"), None);
    }
}
