//! The sync of what the committer has written, on a thread beside it: while the disk is busy with one group, the next is encoded
//! and written. One group at a time is handed over, so that under load groups grow and not their number.

use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

use tokio::sync::mpsc::WeakSender;

use super::{Entry, Shared};
use crate::CommitError;
use crate::committer::{Committer, Failed, Request, Written};
use crate::store::Store;

/// Groups that could not be synced, and why.
pub(super) type Returned = Option<(CommitError, Vec<Written>)>;

/// The committer's end.
pub(super) struct Syncer<'a> {
    /// `None` asks whether all before it is through.
    to: SyncSender<Option<Written>>,
    shared: &'a Shared,
}

/// The thread that syncs has ended, which it does not as long as there is a [`Syncer`], unless it panicked.
pub(super) struct Stopped;

/// A way from the committer to the thread that syncs, on which nothing waits: what is sent has been taken.
pub(super) fn way() -> (SyncSender<Option<Written>>, Receiver<Option<Written>>) {
    sync_channel(0)
}

impl<'a> Syncer<'a> {
    pub(super) fn new(to: SyncSender<Option<Written>>, shared: &'a Shared) -> Self {
        Self { to, shared }
    }

    /// Has a group synced, then answered. Waits for the one before it.
    pub(super) fn sync(&self, group: Written) -> Result<(), Stopped> {
        if group.unsynced.is_none() {
            group.answer();
            return Ok(());
        }
        self.to.send(Some(group)).map_err(|_| Stopped)
    }

    /// What is left where a sync failed, or the write of the group after it did. Nothing is on its way to the disk then.
    pub(super) fn failed(
        &self,
        committer: &mut Committer,
        next: Option<Box<Failed>>,
    ) -> Result<Option<Box<Failed>>, Stopped> {
        if next.is_none() && self.shared.returned.lock().is_none() {
            return Ok(None);
        }
        self.wait()?;
        let returned = self.shared.returned.lock().take();
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

/// The thread: syncs group by group until the committer is gone. After a failed sync nothing is synced before the committer has
/// taken back what could not be, and brought back the store. `wake` wakes it where it waits for requests.
pub(super) fn run(
    store: &dyn Store,
    handed: &Receiver<Option<Written>>,
    shared: &Shared,
    wake: &WeakSender<Entry>,
) {
    for group in handed.iter().flatten() {
        let before = shared.returned.lock().as_ref().map(|(error, _)| error.clone());
        let synced = match before {
            Some(error) => Err(error),
            None => store
                .sync()
                .map_err(|error| CommitError::Failing(error.to_string())),
        };
        match synced {
            Ok(()) => {
                if let Some(number) = group.unsynced {
                    shared.synced.store(number, Ordering::Release);
                }
                shared.unsynced.show(group.messages());
                group.answer();
            }
            Err(error) => {
                shared.fails(&error);
                let mut returned = shared.returned.lock();
                returned.get_or_insert((error, Vec::new())).1.push(group);
                drop(returned);
                if let Some(requests) = wake.upgrade() {
                    // Where there is no room, it does not wait.
                    let _ = requests.try_send(Entry::of(Request::Nudge));
                }
            }
        }
    }
}

#[cfg(test)]
mod tests;
