//! The relay as a child process, and what its log tells.

use std::collections::BTreeSet;
use std::io::ErrorKind;
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, ensure};
use rand::rngs::SmallRng;
use rand::{Rng as _, SeedableRng as _};
use rustix::process::{Pid, Signal, kill_process};
use tokio::io::AsyncReadExt as _;

use crate::ledger::Told;
use crate::receivers::Receivers;

/// How long it may take to start, to stop, or to answer its command line.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);
/// How often something awaited is looked at.
pub(crate) const LOOK_EVERY: Duration = Duration::from_millis(20);

/// Which program, and how it is meant to behave.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Program {
    /// The program `postrider`.
    #[arg(long, value_name = "FILE")]
    pub(crate) postrider: PathBuf,
    /// Says that the program is broken on purpose by this switch: the balance should not hold.
    #[arg(long, value_name = "SWITCH")]
    pub(crate) sabotage: Option<String>,
}

impl Program {
    pub(crate) fn sabotage_note(&self) -> String {
        self.sabotage
            .as_ref()
            .map(|switch| format!(", with {switch} on: the balance should not hold"))
            .unwrap_or_default()
    }
}

/// Ports that the kernel gives to nobody's outgoing connection, which could take one between here and the relay.
const PORTS: std::ops::Range<u16> = 10_000..32_768;

/// Listens on a free port of `127.0.0.1`, for a relay to take over.
pub(crate) fn free_listener() -> std::io::Result<TcpListener> {
    let mut tries = 0;
    loop {
        tries += 1;
        match TcpListener::bind(("127.0.0.1", SmallRng::from_os_rng().random_range(PORTS))) {
            Err(error) if error.kind() == ErrorKind::AddrInUse && tries < 1000 => {}
            done => return done,
        }
    }
}

/// A relay that has a folder for its configuration and log, and a store elsewhere or there. Killed when dropped.
pub(crate) struct Relay {
    program: Program,
    folder: PathBuf,
    /// What it logs, as `RUST_LOG` says it.
    log_level: &'static str,
    child: Option<Child>,
    pub(crate) address: SocketAddr,
}

impl Relay {
    /// Writes its configuration to `folder`; its mail goes to `receivers`.
    pub(crate) fn new(
        program: &Program,
        folder: &Path,
        store: &Path,
        receivers: &Receivers,
    ) -> anyhow::Result<Self> {
        let address = free_listener()?.local_addr()?;
        let configuration = format!(
            "hostname = \"relay.second.test\"\ndrain_timeout = \"5s\"\n\
             [store]\npath = \"{store}\"\nmin_free = \"16MiB\"\n\
             [admin]\nsocket = \"{admin}\"\n\
             [tenants.load]\nsenders = [\"second.test\"]\n\
             [[listener]]\nkind = \"trusted\"\naddress = \"{address}\"\nnetworks = [\"127.0.0.0/8\"]\ntenant = \"load\"\n\
             [delivery]\nport = {port}\ntls = \"off\"\n\
             [delivery.limits]\nconnections = 30\n\
             [delivery.retry]\nfirst = \"1s\"\ncap = \"4s\"\n\
             [dns]\nservers = [\"{dns}\"]\n[log]\nformat = \"json\"\n",
            store = store.display(),
            admin = folder.join("admin.sock").display(),
            port = receivers.smtp_port(),
            dns = receivers.dns(),
        );
        Self::with_configuration(
            program,
            folder,
            address,
            "info,relay::delivery::courier=debug",
            &configuration,
        )
    }

    /// One that listens on `address`, as `configuration` says.
    pub(crate) fn with_configuration(
        program: &Program,
        folder: &Path,
        address: SocketAddr,
        log_level: &'static str,
        configuration: &str,
    ) -> anyhow::Result<Self> {
        let relay = Self {
            program: program.clone(),
            folder: folder.to_owned(),
            log_level,
            child: None,
            address,
        };
        std::fs::write(relay.config(), configuration)?;
        Ok(relay)
    }

    /// Its process.
    pub(crate) fn pid(&self) -> Option<u32> {
        self.child.as_ref().map(Child::id)
    }

    /// Runs a command of its own, with its configuration; what it prints.
    pub(crate) async fn command(&self, words: &[&str]) -> anyhow::Result<Vec<u8>> {
        let mut command = Command::new(&self.program.postrider);
        command
            .args(words)
            .arg("--config")
            .arg(self.config())
            .stdin(Stdio::null());
        let output = tokio::task::spawn_blocking(move || command.output()).await??;
        ensure!(
            output.status.success(),
            "{}: {}",
            words.join(" "),
            String::from_utf8_lossy(&output.stderr)
        );
        Ok(output.stdout)
    }

    /// Writes another configuration, which a reload or the next start takes.
    pub(crate) fn configure(&self, configuration: &str) -> anyhow::Result<()> {
        Ok(std::fs::write(self.config(), configuration)?)
    }

    fn config(&self) -> PathBuf {
        self.folder.join("postrider.toml")
    }

    fn log(&self) -> PathBuf {
        self.folder.join("log")
    }

    /// Starts it, and waits until it greets: it listens before it has opened its store. An error tells the end of its log.
    pub(crate) async fn start(&mut self) -> anyhow::Result<()> {
        let log = std::fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(self.log())?;
        let mut command = Command::new(&self.program.postrider);
        command
            .args(["run", "--config"])
            .arg(self.config())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .env("RUST_LOG", self.log_level)
            .env_remove("POSTRIDER_SABOTAGE");
        if let Some(switch) = &self.program.sabotage {
            command.env("POSTRIDER_SABOTAGE", switch);
        }
        let child = command
            .spawn()
            .with_context(|| self.program.postrider.display().to_string())?;
        self.child = Some(child);
        let begun = Instant::now();
        while !greets(self.address).await {
            ensure!(self.runs()?, "the relay does not start: {}", self.tail());
            ensure!(
                begun.elapsed() < PATIENCE,
                "the relay does not greet on {}: {}",
                self.address,
                self.tail()
            );
            tokio::time::sleep(LOOK_EVERY).await;
        }
        Ok(())
    }

    /// Whether it still runs.
    pub(crate) fn runs(&mut self) -> anyhow::Result<bool> {
        Ok(match &mut self.child {
            Some(child) => child.try_wait()?.is_none(),
            None => false,
        })
    }

    /// SIGKILL. When it was sent, in microseconds since 1970.
    pub(crate) fn kill(&mut self) -> anyhow::Result<u64> {
        let mut child = self.child.take().context("not running")?;
        child.kill()?;
        let killed = now();
        child.wait()?;
        Ok(killed)
    }

    /// SIGTERM; an error where it does not end well.
    pub(crate) async fn stop(&mut self) -> anyhow::Result<()> {
        let child = self.child.as_mut().context("not running")?;
        let pid = i32::try_from(child.id())
            .ok()
            .and_then(Pid::from_raw)
            .context("no process")?;
        kill_process(pid, Signal::TERM)?;
        let begun = Instant::now();
        let status = loop {
            if let Some(status) = child.try_wait()? {
                break status;
            }
            ensure!(begun.elapsed() < PATIENCE, "the relay does not end after SIGTERM");
            tokio::time::sleep(LOOK_EVERY).await;
        };
        self.child = None;
        ensure!(status.success(), "after SIGTERM the relay ended with {status}");
        Ok(())
    }

    /// Whether its queues hold nothing, as it says itself.
    pub(crate) async fn is_empty(&self) -> anyhow::Result<bool> {
        let printed = self.command(&["queue", "list", "--json"]).await?;
        let told: serde_json::Value = serde_json::from_slice(&printed)?;
        let queues = told["queues"].as_array().context("queue list: no queues")?;
        Ok(queues.is_empty())
    }

    /// Units that were begun and of which no outcome was told.
    pub(crate) fn on_the_wire(&self) -> anyhow::Result<usize> {
        let mut open = BTreeSet::new();
        for line in self.lines()? {
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
    pub(crate) fn told(&self) -> anyhow::Result<Vec<Told>> {
        let told = self.lines()?.into_iter().filter_map(|line| {
            Some(Told {
                id: line["id"].as_str()?.to_owned(),
                recipient: line["recipient"].as_str().unwrap_or_default().to_owned(),
                event: line["message"].as_str()?.replace(' ', "_"),
                at: line["timestamp"].as_str().and_then(micros)?,
            })
        });
        Ok(told.collect())
    }

    fn lines(&self) -> anyhow::Result<Vec<serde_json::Value>> {
        let text = std::fs::read(self.log())?;
        // A kill may cut the last line short.
        Ok(text
            .split(|&octet| octet == b'\n')
            .filter_map(|line| serde_json::from_slice(line).ok())
            .collect())
    }

    /// The log's last lines.
    pub(crate) fn tail(&self) -> String {
        let text = std::fs::read_to_string(self.log()).unwrap_or_default();
        text.lines().rev().take(3).collect::<Vec<_>>().join(" | ")
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// As the program says it itself.
pub(crate) fn version(program: &Path) -> Option<String> {
    first_line(Command::new(program).arg("--version"))
}

/// The first line that a program says, where it ends well.
pub(crate) fn first_line(command: &mut Command) -> Option<String> {
    let output = command.stdin(Stdio::null()).output().ok()?;
    let text = String::from_utf8_lossy(&output.stdout);
    let line = text.lines().next()?.trim();
    (output.status.success() && !line.is_empty()).then(|| line.to_owned())
}

pub(crate) async fn greets(address: SocketAddr) -> bool {
    let greeting = async {
        let mut stream = tokio::net::TcpStream::connect(address).await?;
        let mut code = [0; 3];
        stream.read_exact(&mut code).await?;
        std::io::Result::Ok(code == *b"220")
    };
    let greeted = tokio::time::timeout(Duration::from_secs(1), greeting).await;
    matches!(greeted, Ok(Ok(true)))
}

/// Microseconds since 1970.
pub(crate) fn now() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(now.as_micros()).unwrap_or(u64::MAX)
}

/// The log's time, `2026-11-23T20:36:25.290955Z`, in microseconds since 1970.
fn micros(text: &str) -> Option<u64> {
    let number = |from: usize, to: usize| text.get(from..to)?.parse::<u64>().ok();
    let (year, month, day) = (number(0, 4)?, number(5, 7)?, number(8, 10)?);
    // Days since 1970 of a civil date (Howard Hinnant's algorithm).
    let shifted = if month <= 2 { year - 1 } else { year };
    let of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    let days = 365 * shifted + shifted / 4 - shifted / 100 + shifted / 400 + of_year - 719_468;
    let seconds = ((days * 24 + number(11, 13)?) * 60 + number(14, 16)?) * 60 + number(17, 19)?;
    Some(seconds * 1_000_000 + number(20, 26)?)
}

#[cfg(test)]
mod tests {
    #[test]
    fn reads_the_logs_time() {
        assert_eq!(super::micros("1970-01-02T00:00:01.250001Z"), Some(86_401_250_001));
        assert_eq!(
            super::micros("2026-11-23T20:36:25.290955Z"),
            Some(1_795_466_185_290_955)
        );
        assert_eq!(super::micros("now"), None);
    }
}
