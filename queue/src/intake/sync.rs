//! The sync of what the committer has written. Where more waits it is done on a thread beside it: while the disk is busy with one group,
//! the next is encoded and written. One group at a time is handed over, so that under load groups grow and not their number; with two of them
//! ahead the median answer at half load took as long (4.6 of an append and its sync against 4.3, four turns of each).

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

use parking_lot::Mutex;
use tokio::sync::mpsc::WeakSender;

use super::{Entry, Shared};
use crate::CommitError;
use crate::committer::{Committer, Failed, Request, Written};
use crate::store::Store;

/// The committer's end.
pub(super) struct Syncer {
    /// `None` asks whether all before it is through.
    to: SyncSender<Option<Written>>,
    disk: Arc<Disk>,
}

/// What both threads sync with.
pub(super) struct Disk {
    store: Arc<dyn Store>,
    shared: Arc<Shared>,
    /// Groups handed over and not through yet: as long as there is one, the next goes behind it.
    handed_over: AtomicUsize,
    /// The group last written: a sync that begins now covers all up to it.
    written: AtomicU64,
    /// The last group that a sync has covered; it may be one that is still to be handed over.
    covered: AtomicU64,
    /// Groups that could not be synced, and why, until the committer sees to them.
    returned: Mutex<Option<(CommitError, Vec<Written>)>>,
}

/// The thread that syncs has ended, which it does not as long as there is a [`Syncer`], unless it panicked.
pub(super) struct Stopped;

/// The committer's end, the other thread's end, on which nothing waits, and what they share.
pub(super) fn way(
    store: Arc<dyn Store>,
    shared: Arc<Shared>,
) -> (Syncer, Receiver<Option<Written>>, Arc<Disk>) {
    let (to, handed) = sync_channel(0);
    let disk = Arc::new(Disk {
        store,
        shared,
        handed_over: AtomicUsize::new(0),
        written: AtomicU64::new(0),
        covered: AtomicU64::new(0),
        returned: Mutex::new(None),
    });
    let syncer = Syncer {
        to,
        disk: disk.clone(),
    };
    (syncer, handed, disk)
}

impl Syncer {
    /// Has a group synced, then answered. Where `more` waits for the committer the other thread does that, as soon as it is through
    /// with the group before; otherwise waking it would cost time that nobody gains.
    pub(super) fn sync(&self, group: Written, more: bool) -> Result<(), Stopped> {
        let Some(number) = group.unsynced else {
            group.answer();
            return Ok(());
        };
        self.disk.written.store(number, Ordering::Release);
        let handed_over = &self.disk.handed_over;
        if !more && handed_over.load(Ordering::Acquire) == 0 {
            self.disk.sync(group);
            return Ok(());
        }
        handed_over.fetch_add(1, Ordering::AcqRel);
        self.to.send(Some(group)).map_err(|_| Stopped)
    }

    /// What is left where a sync failed, or the write of the group after it did. Nothing is on its way to the disk then.
    pub(super) fn failed(
        &self,
        committer: &mut Committer,
        next: Option<Box<Failed>>,
    ) -> Result<Option<Box<Failed>>, Stopped> {
        let returned = &self.disk.returned;
        if next.is_none() && returned.lock().is_none() {
            return Ok(None);
        }
        self.wait()?;
        let returned = returned.lock().take();
        Ok(match returned {
            Some((error, groups)) => Some(committer.fail_unsynced(error, groups, next)),
            None => next,
        })
    }

    /// Until all that was handed over is through.
    pub(super) fn wait(&self) -> Result<(), Stopped> {
        self.to.send(None).map_err(|_| Stopped)
    }
}

/// The thread: syncs what is handed over until the committer is gone. `wake` wakes that where it waits for requests and a sync
/// has failed.
pub(super) fn run(disk: &Disk, handed: &Receiver<Option<Written>>, wake: &WeakSender<Entry>) {
    for group in handed.iter().flatten() {
        let synced = disk.sync(group);
        disk.handed_over.fetch_sub(1, Ordering::AcqRel);
        if !synced && let Some(requests) = wake.upgrade() {
            // Where there is no room, it does not wait.
            let _ = requests.try_send(Entry::of(Request::Nudge));
        }
    }
}

impl Disk {
    /// Syncs what is written, unless the sync of a group before, having begun late, has covered this one: at half load a fifth of those of the
    /// thread beside the committer.
    fn cover(&self, group: Option<u64>) -> Result<(), CommitError> {
        if group.is_some_and(|group| group <= self.covered.load(Ordering::Acquire)) {
            return Ok(());
        }
        let written = self.written.load(Ordering::Acquire);
        self.store
            .sync()
            .map_err(|error| CommitError::Failing(error.to_string()))?;
        self.covered.store(written, Ordering::Release);
        Ok(())
    }

    /// Syncs a group and answers it. After a failed sync nothing is synced before the committer has taken back what could not be, and
    /// brought back the store.
    fn sync(&self, group: Written) -> bool {
        let shared = &*self.shared;
        let before = self.returned.lock().as_ref().map(|(error, _)| error.clone());
        let synced = match before {
            Some(error) => Err(error),
            None => self.cover(group.unsynced),
        };
        match synced {
            Ok(()) => {
                if let Some(number) = group.unsynced {
                    shared.synced.store(number, Ordering::Release);
                }
                shared.unsynced.show(group.messages());
                group.answer();
                true
            }
            Err(error) => {
                shared.fails(&error);
                let mut returned = self.returned.lock();
                returned.get_or_insert((error, Vec::new())).1.push(group);
                false
            }
        }
    }
}

#[cfg(test)]
mod tests;
