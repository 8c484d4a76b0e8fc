//! A run under load on a disk that logs what it is asked for.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use rand::Rng;
use rand::rngs::SmallRng;

use super::CAPACITY;
use super::disk::{Disk, Logged, Mounted};
use super::faults::Order;
use super::volume::{Op, Volume};
use crate::flood::Flood;
use crate::ledger::{Kill, Known};
use crate::message::Plan;
use crate::receivers::Receivers;
use crate::relay::{LOOK_EVERY, Program, Relay, now};

/// Sessions that submit.
const SESSIONS: usize = 20;
/// How long a run may take.
const PATIENCE: Duration = Duration::from_secs(180);
/// What the disk does wrong in each life of a run in which it fails, each once: a sync, a write, a sync of all that is tried for a
/// while.
const FAILURES: [&str; 4] = [
    "fail sync EIO of .log times 1",
    "fail write ENOSPC of .log times 1",
    "fail sync EIO of .log times 1",
    "fail sync EIO times 5",
];
/// How long a disk may be in use after its program has ended.
const UNMOUNT: Duration = Duration::from_secs(10);

/// See the module.
pub(crate) struct Recording {
    pub(crate) log: Vec<Logged>,
    /// All that was acknowledged, arrived and told during the run.
    pub(crate) known: Known,
    /// Messages that the relay did not take while its disk failed.
    refused: u64,
}

impl Recording {
    /// Floods a relay on an empty disk until so much has been written, with a kill -9 after half of it. Where the disk `fails` now and
    /// then, the relay goes on by itself.
    pub(crate) async fn make(program: &Program, plan: Plan, bytes: u64, fails: bool) -> anyhow::Result<Self> {
        let folder = tempfile::tempdir()?;
        let mount = folder.path().join("disk");
        std::fs::create_dir(&mount)?;
        let disk = Disk::new(Volume::new(), CAPACITY, true);
        // As on a disk: while a sync takes its time more is written, and the next group gathers.
        obey(&disk, "delay sync 1")?;
        let mounted = disk.mount(&mount)?;
        let counting = disk.clone();
        let position: crate::flood::Position = Arc::new(move || counting.position());
        let receivers = Receivers::start(plan, position.clone()).await?;
        let mut relay = Relay::new(program, folder.path(), &mount.join("queue"), &receivers)?;
        let flood = Flood::new(plan, position, fails);
        let begun = Instant::now();
        let mut kills = Vec::new();
        for life in 1..=2 {
            relay.start().await?;
            if let Some(Kill { back, .. }) = kills.last_mut() {
                *back = now();
            }
            let mut sessions = flood.start(relay.address, SESSIONS);
            // Spread over the life, the last one close to its end.
            let begin = disk.logged_bytes();
            let span = (bytes * life / 2).saturating_sub(begin);
            let mut failures = FAILURES.iter().filter(|_| fails).zip(1..).peekable();
            while disk.logged_bytes() < bytes * life / 2 {
                if let Some(&(failure, number)) = failures.peek()
                    && disk.logged_bytes() > begin + span * number / (FAILURES.len() as u64 + 1)
                {
                    failures.next();
                    obey(&disk, failure)?;
                }
                // One whose connection is of no use any more makes another.
                while let Some(ended) = sessions.try_join_next() {
                    ended??;
                    flood.start_one(relay.address, &mut sessions);
                }

                ensure!(
                    begun.elapsed() < PATIENCE,
                    "{} messages and {} MiB in {PATIENCE:?}: not enough",
                    flood.count(),
                    disk.logged_bytes() >> 20
                );
                ensure!(relay.runs()?, "the relay ended by itself: {}", relay.tail());
                tokio::time::sleep(LOOK_EVERY).await;
            }
            let at = relay.kill()?;
            kills.push(Kill { at, back: at });
            while let Some(ended) = sessions.join_next().await {
                ended??;
            }
        }
        if fails {
            let failed = disk.faults(|faults| faults.failed());
            ensure!(
                failed >= FAILURES.len() as u64 * 2,
                "the disk failed {failed} times: too few"
            );
        }
        let known = Known {
            plan,
            acknowledged: flood.acknowledged(),
            arrivals: receivers.arrivals(),
            told: relay.told()?,
            kills,
            queued: BTreeSet::new(),
        };
        receivers.stop().await;
        unmount(mounted).await?;
        Ok(Self {
            log: disk.take_log(),
            refused: flood.refused(),
            known,
        })
    }

    /// When operation `position` came: the moment of a cut just before it, in microseconds since 1970.
    pub(crate) fn time(&self, position: usize) -> u64 {
        time(&self.log, position)
    }

    /// So many moments, in order: half of them anywhere, half where names had just changed, since the rare things happen there.
    pub(crate) fn cuts(&self, count: usize, rng: &mut SmallRng) -> Vec<usize> {
        let is_rare = |op: &Op| matches!(op, Op::Make { .. } | Op::Rename { .. } | Op::Remove { .. });
        let rare: Vec<usize> = (0..self.log.len())
            .filter(|&number| is_rare(&self.log[number].op))
            .collect();
        let mut cuts: Vec<usize> = (0..count)
            .map(|number| match number % 2 {
                0 => rng.random_range(0..=self.log.len()),
                _ => (rare[rng.random_range(0..rare.len())] + rng.random_range(1..4)).min(self.log.len()),
            })
            .collect();
        cuts.sort_unstable();
        cuts
    }
}

/// When operation `position` of a log came, or a moment after the last.
pub(crate) fn time(log: &[Logged], position: usize) -> u64 {
    log.get(position).map_or_else(now, |logged| logged.at)
}

fn obey(disk: &Disk, order: &str) -> anyhow::Result<()> {
    match Order::read(order).map_err(anyhow::Error::msg)? {
        Order::Rule(rule) => disk.faults(|faults| faults.add(rule)).map_err(anyhow::Error::msg),
        other => anyhow::bail!("{other:?} is no rule"),
    }
}

/// A killed program's files are closed a moment later.
pub(crate) async fn unmount(mounted: Mounted) -> anyhow::Result<()> {
    tokio::time::timeout(UNMOUNT, tokio::task::spawn_blocking(|| mounted.unmount()))
        .await
        .context("the disk is still in use")??
        .context("the disk can't be unmounted")
}

impl fmt::Display for Recording {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let count = |what: &dyn Fn(&Op) -> bool| self.log.iter().filter(|logged| what(&logged.op)).count();
        let is_log = |name: &str| name.ends_with(".log");
        let tables = count(&|op| matches!(op, Op::Make { name, .. } if name.ends_with(".sst")));
        let logs = count(&|op| matches!(op, Op::Make { name, .. } if is_log(name)));
        let recycled = count(&|op| matches!(op, Op::Rename { from, to, .. } if is_log(from) && is_log(to)));
        let syncs = count(&|op| matches!(op, Op::Sync { .. }));
        let failed = count(&|op| matches!(op, Op::FailedSync { .. }));
        if failed > 0 {
            write!(f, "{failed} syncs failed, {} messages refused, ", self.refused)?;
        }
        write!(
            f,
            "{} messages acknowledged, {} operations, {syncs} syncs, {tables} tables and {logs} logs begun, {recycled} logs recycled",
            self.known.acknowledged.len(),
            self.log.len(),
        )
    }
}
