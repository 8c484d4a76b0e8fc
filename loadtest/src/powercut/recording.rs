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
/// How long a disk may be in use after its program has ended.
const UNMOUNT: Duration = Duration::from_secs(10);

/// See the module.
pub(crate) struct Recording {
    pub(crate) log: Vec<Logged>,
    /// All that was acknowledged, arrived and told during the run.
    pub(crate) known: Known,
}

impl Recording {
    /// Floods a relay on an empty disk until so much has been written, with a kill -9 after half of it.
    pub(crate) async fn make(program: &Program, plan: Plan, bytes: u64) -> anyhow::Result<Self> {
        let folder = tempfile::tempdir()?;
        let mount = folder.path().join("disk");
        std::fs::create_dir(&mount)?;
        let disk = Disk::new(Volume::new(), CAPACITY, true);
        // As on a disk: while a sync takes its time more is written, and the next group gathers.
        if let Order::Rule(slow) = Order::read("delay sync 1").map_err(anyhow::Error::msg)? {
            disk.faults(|faults| faults.add(slow))
                .map_err(anyhow::Error::msg)?;
        }
        let mounted = disk.mount(&mount)?;
        let counting = disk.clone();
        let position: crate::flood::Position = Arc::new(move || counting.position());
        let receivers = Receivers::start(plan, position.clone()).await?;
        let mut relay = Relay::new(program, folder.path(), &mount.join("queue"), &receivers)?;
        let flood = Flood::new(plan, position);
        let begun = Instant::now();
        let mut kills = Vec::new();
        for life in 1..=2 {
            relay.start().await?;
            if let Some(Kill { back, .. }) = kills.last_mut() {
                *back = now();
            }
            let mut sessions = flood.start(relay.address, SESSIONS);
            while disk.logged_bytes() < bytes * life / 2 {
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
        write!(
            f,
            "{} messages acknowledged, {} operations, {syncs} syncs, {tables} tables and {logs} logs begun, {recycled} logs recycled",
            self.known.acknowledged.len(),
            self.log.len(),
        )
    }
}
