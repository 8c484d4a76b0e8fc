//! Measurements of a relay that are no run from begin to end: what it needs when idle, what lies between two other programs, and what
//! the disk does without it.

use std::io::{Read as _, Seek as _, Write as _};
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};

use super::run::{Stage, folder_in};
use super::usage::memory_of;
use super::{Name, Plan};
use crate::load::client::Held;
use crate::load::sink;
use crate::signals;

const KIB: f64 = 1_024.0;
/// Sessions that are open before those that are counted.
const BEFORE: usize = 50;
/// Sessions that are counted.
const SESSIONS: usize = 1_000;
/// After which memory is what it stays at.
const SETTLE: Duration = Duration::from_secs(2);
/// How often something awaited is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(20);
/// The same for the end of a measured time, and how often a relay is asked for its counts meanwhile.
const END_EVERY: Duration = Duration::from_millis(1);
const ASK_EVERY: Duration = Duration::from_secs(2);
/// The relay's count of deliveries.
const DELIVERED: &str = "postrider_recipients_ended_total{end=\"delivered\"";
/// The longest wait for another program.
const PATIENCE: Duration = Duration::from_secs(300);
/// Appends whose median counts.
const APPENDS: usize = 300;

/// What a relay needs, in MiB and KiB.
pub(crate) struct Needs {
    pub(crate) idle_mib: f64,
    pub(crate) session_kib: f64,
}

/// Of a relay that has just been started and has no mail; sessions are over TLS where the plan is.
pub(crate) fn needs(plan: &Plan, postrider: &Path, folder: Option<&Path>) -> anyhow::Result<Needs> {
    let folder = folder_in(folder)?;
    let stage = Stage::set(plan, postrider, None, folder.path())?;
    let pid = stage.subject.pid()?;
    let memory = || {
        signals::go_on()?;
        std::thread::sleep(SETTLE);
        let octets = memory_of(pid).context("no memory in /proc")?;
        anyhow::Ok(octets as f64)
    };
    let idle = memory()?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let mut held: Vec<Held> = Vec::new();
    let mut open = |count: usize| -> anyhow::Result<()> {
        runtime.block_on(async {
            for _ in 0..count {
                held.push(stage.target.hold().await?);
            }
            Ok(())
        })
    };
    open(BEFORE)?;
    let before = memory()?;
    open(SESSIONS)?;
    let with = memory()?;
    Ok(Needs {
        idle_mib: idle / KIB / KIB,
        session_kib: (with - before) / KIB / SESSIONS as f64,
    })
}

/// Milliseconds to append so many octets to a file and sync it, the median.
pub(crate) fn append_and_sync(folder: Option<&Path>, octets: usize) -> anyhow::Result<f64> {
    let folder = folder_in(folder)?;
    let mut file = std::fs::File::create(folder.path().join("appended"))?;
    let block = vec![b'x'; octets];
    let mut times = Vec::with_capacity(APPENDS);
    for _ in 0..APPENDS {
        let begun = Instant::now();
        file.write_all(&block)?;
        file.sync_data()?;
        times.push(begun.elapsed().as_secs_f64() * 1e3);
    }
    Ok(crate::marks::median(times))
}

/// Postfix's two programs for measuring, as Debian has them.
pub(crate) struct Tools {
    source: PathBuf,
    sink: PathBuf,
    libraries: String,
}

impl Tools {
    /// Those that tests/interop/fetch has unpacked below `folder`.
    pub(crate) fn find(folder: &Path) -> anyhow::Result<Self> {
        let debian = folder.join("debian");
        let (source, sink) = (
            debian.join("usr/sbin/smtp-source"),
            debian.join("usr/sbin/smtp-sink"),
        );
        ensure!(
            source.exists() && sink.exists(),
            "no smtp-source and smtp-sink in {}",
            debian.display()
        );
        Ok(Self {
            source,
            sink,
            libraries: debian.join("usr/lib/postfix").display().to_string(),
        })
    }

    /// Takes mail on an address until dropped, or until it has so many messages: it ends with the last one's final dot, which it does not
    /// answer.
    fn sink(&self, address: SocketAddr, count: Option<u32>, log: std::fs::File) -> anyhow::Result<Ends> {
        let mut command = Command::new(&self.sink);
        if let Some(count) = count {
            command.args(["-M", &count.to_string()]);
        }
        // As root it wants a user to become.
        let child = command
            .args(["-u", "nobody", &address.to_string(), "1000"])
            .env("LD_LIBRARY_PATH", &self.libraries)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .with_context(|| self.sink.display().to_string())?;
        let ends = Ends(child);
        let begun = Instant::now();
        while std::net::TcpStream::connect(address).is_err() {
            signals::go_on()?;
            ensure!(
                begun.elapsed() < PATIENCE / 10,
                "smtp-sink does not listen on {address}"
            );
            std::thread::sleep(LOOK_EVERY);
        }
        Ok(ends)
    }

    fn send(
        &self,
        to: SocketAddr,
        plan: &Plan,
        octets: usize,
        log: &mut std::fs::File,
    ) -> anyhow::Result<()> {
        let mut source = Command::new(&self.source);
        source
            .args([
                "-d",
                "-s",
                &plan.sessions.to_string(),
                "-m",
                &plan.messages.to_string(),
            ])
            .args([
                "-l",
                &octets.to_string(),
                "-M",
                "load.test",
                "-f",
                "load@sender.test",
            ])
            .args(["-t", "u0@d0.load.test", &to.to_string()])
            .env("LD_LIBRARY_PATH", &self.libraries)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log.try_clone()?);
        let mut source = Ends(
            source
                .spawn()
                .with_context(|| self.source.display().to_string())?,
        );
        let begun = Instant::now();
        loop {
            if let Some(status) = source.0.try_wait()? {
                let mut text = String::new();
                log.rewind()?;
                log.read_to_string(&mut text)?;
                ensure!(status.success(), "smtp-source: {status}: {text}");
                return Ok(());
            }
            signals::go_on()?;
            ensure!(begun.elapsed() < PATIENCE, "smtp-source does not end");
            std::thread::sleep(Duration::from_millis(2));
        }
    }
}

/// A process that ends with this.
struct Ends(Child);

impl Drop for Ends {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Messages a second from smtp-source to smtp-sink, without a relay and through it.
pub(crate) struct Between {
    pub(crate) direct: f64,
    pub(crate) through: f64,
}

/// Of messages of so many octets.
pub(crate) fn between(
    plan: &Plan,
    octets: usize,
    postrider: &Path,
    tools: &Tools,
    folder: Option<&Path>,
) -> anyhow::Result<Between> {
    let folder = folder_in(folder)?;
    let mut log = std::fs::File::options()
        .create(true)
        .truncate(true)
        .read(true)
        .write(true)
        .open(folder.path().join("tools"))?;
    let port = TcpListener::bind((sink::address(0), 0))?.local_addr()?.port();
    let to = SocketAddr::from((sink::address(0), port));
    let sink = tools.sink(to, None, log.try_clone()?)?;
    let per_second = |begun: Instant| f64::from(plan.messages) / begun.elapsed().as_secs_f64();
    let begun = Instant::now();
    tools.send(to, plan, octets, &mut log)?;
    let direct = per_second(begun);
    let plan = Plan {
        name: Name::Relay,
        port: Some(port),
        ..plan.clone()
    };
    let stage = Stage::set(&plan, postrider, None, folder.path())?;
    // Connections, and what is made once.
    let warm = Plan {
        messages: plan.warm_up,
        ..plan.clone()
    };
    tools.send(stage.target.address, &warm, octets, &mut log)?;
    until_delivered(&stage, u64::from(plan.warm_up))?;
    // Another one, whose end is the moment at which it has all; the connections are made anew, which counts.
    drop(sink);
    let mut sink = tools.sink(to, Some(plan.messages), log.try_clone()?)?;
    let begun = Instant::now();
    tools.send(stage.target.address, &plan, octets, &mut log)?;
    until_ended(&mut sink.0, &stage)?;
    Ok(Between {
        direct,
        through: per_second(begun),
    })
}

/// Until the sink has all and ends. The relay is asked only whether it still delivers, and seldom: to answer costs it time.
fn until_ended(sink: &mut Child, stage: &Stage<'_>) -> anyhow::Result<()> {
    let mut last = (0, Instant::now());
    let mut asked = Instant::now();
    loop {
        if let Some(status) = sink.try_wait()? {
            ensure!(status.success(), "smtp-sink: {status}");
            return Ok(());
        }
        signals::go_on()?;
        if asked.elapsed() > ASK_EVERY {
            asked = Instant::now();
            let delivered = stage.metric(DELIVERED)?.unwrap_or(0);
            if delivered > last.0 {
                last = (delivered, asked);
            }
            ensure!(
                last.1.elapsed() < PATIENCE / 10,
                "{delivered} were delivered, and no more are, but smtp-sink misses some"
            );
        }
        std::thread::sleep(END_EVERY);
    }
}

fn until_delivered(stage: &Stage<'_>, all: u64) -> anyhow::Result<()> {
    let mut last = (0, Instant::now());
    loop {
        signals::go_on()?;
        let delivered = stage.metric(DELIVERED)?.unwrap_or(0);
        if delivered >= all {
            return Ok(());
        }
        if delivered > last.0 {
            last = (delivered, Instant::now());
        }
        ensure!(
            last.1.elapsed() < PATIENCE / 10,
            "{delivered} of {all} were delivered, and no more are"
        );
        std::thread::sleep(LOOK_EVERY);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_machine_by_itself_is_measured() {
        assert!(append_and_sync(None, 10 << 10).unwrap() > 0.0);
        let missing = Tools::find(Path::new("/nowhere")).err().unwrap().to_string();
        assert!(missing.contains("/nowhere/debian"), "{missing}");
    }
}
