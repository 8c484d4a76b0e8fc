//! `loadtest faultfs`: a disk in memory that fails, fills up or is slow on command, for tests of whole programs.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context as _;
use clap::Args;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::signal::unix::{SignalKind, signal};

use super::disk::Disk;
use super::faults::Order;
use super::volume::Volume;

/// The longest order.
const MAX_LINE: u64 = 1024;
/// How long it may take until nobody uses the disk any more, at the end.
const PATIENCE: Duration = Duration::from_secs(10);

/// Options of `loadtest faultfs`.
///
/// The disk is empty at first and lives in memory until the program is stopped (SIGTERM or SIGINT), which unmounts it. Orders
/// are lines on the control socket, each answered by a line that begins with "ok" or "error":
///
///   fail OPS ERRNO [of TEXT] [times N]    delay OPS MILLISECONDS [of TEXT] [times N]
///   capacity BYTES    heal    stats
///
/// OPS: read, write, sync (fsync and fdatasync), name (create, rename, remove), or change: the last three. ERRNO: EIO, ENOSPC,
/// EROFS, EDQUOT. "of TEXT": only files with this in their names, as .log, .sst, MANIFEST or mark.
#[derive(Args)]
#[command(verbatim_doc_comment)]
pub(crate) struct Options {
    /// Where to mount it.
    #[arg(long, value_name = "DIR")]
    mount: PathBuf,
    /// The control socket to make.
    #[arg(long, value_name = "PATH")]
    control: PathBuf,
    /// Octets that it has room for.
    #[arg(long, default_value_t = 1 << 30)]
    capacity: u64,
}

/// Serves until it is told to stop.
pub(crate) async fn run(options: &Options) -> anyhow::Result<()> {
    let disk = Disk::new(Volume::new(), options.capacity, false);
    let control = UnixListener::bind(&options.control)
        .with_context(|| format!("the control socket {}", options.control.display()))?;
    let mounted = disk.mount(&options.mount)?;
    println!("mounted");
    let (mut term, mut int) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    loop {
        tokio::select! {
            taken = control.accept() => {
                let (peer, _) = taken?;
                tokio::spawn(serve(peer, disk.clone()));
            }
            _ = term.recv() => break,
            _ = int.recv() => break,
        }
    }
    disk.faults(super::faults::Faults::heal);
    remove(&options.control)?;
    tokio::time::timeout(PATIENCE, tokio::task::spawn_blocking(|| mounted.unmount()))
        .await
        .context("the disk is still in use")??
        .with_context(|| format!("{} can't be unmounted", options.mount.display()))
}

fn remove(path: &Path) -> anyhow::Result<()> {
    std::fs::remove_file(path).with_context(|| path.display().to_string())
}

async fn serve(peer: UnixStream, disk: Disk) {
    let (read, mut write) = peer.into_split();
    let mut read = BufReader::new(read);
    loop {
        let mut line = String::new();
        match (&mut read).take(MAX_LINE).read_line(&mut line).await {
            Ok(0) | Err(_) => return,
            Ok(_) => {}
        }
        let answer = match Order::read(line.trim()).and_then(|order| obey(&disk, order)) {
            Ok(answer) => format!("ok {answer}\n"),
            Err(error) => format!("error {error}\n"),
        };
        if write.write_all(answer.as_bytes()).await.is_err() {
            return;
        }
    }
}

/// What to answer after `ok`.
fn obey(disk: &Disk, order: Order) -> Result<String, String> {
    match order {
        Order::Rule(rule) => disk.faults(|faults| faults.add(rule))?,
        Order::Heal => disk.faults(|faults| faults.heal()),
        Order::Fill(capacity) => disk.set_capacity(capacity),
        Order::Stats => {
            let (used, capacity) = disk.space();
            let counts = disk.faults(|faults| faults.stats());
            return Ok(format!("{{{counts},\"used\":{used},\"capacity\":{capacity}}}"));
        }
    }
    Ok(String::new())
}
