//! While the store fails: who comes is refused, what peers were told is kept, and the store is brought back as soon as that
//! works.
//!
//! A failed sync is never tried again as if it proved something: after it the kernel may call pages clean that never reached
//! the disk. The store is closed and opened anew instead, as after a crash; the log's records are read again and written to
//! tables, which are synced.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use mail_core::MessageId;
use tokio::sync::mpsc;
use tokio::sync::mpsc::error::TryRecvError;

use super::{Entry, Shared};
use crate::committer::{Committer, Failed, Request};
use crate::{CommitError, OpenError};

/// Between two looks at what has come in meanwhile.
const POLL: Duration = Duration::from_millis(20);

/// Between two attempts at least; each failure doubles it.
const FIRST_WAIT: Duration = Duration::from_secs(1);
const LONGEST_WAIT: Duration = Duration::from_secs(15);

/// How often the store is opened anew for an outcome whose own records do not read.
const RECORDED_AT_MOST: u32 = 3;

/// Brings back a store that failed.
pub(crate) trait Heal: Send {
    /// Opens the store anew, if it can be written to; it may not hold less than group `synced`. Messages that nobody was told
    /// were kept are taken out before anyone else sees them. Returns how many there were.
    fn heal(&mut self, synced: u64, unanswered: &[MessageId]) -> Result<usize, OpenError>;

    /// Before the first attempt.
    fn first_wait(&self) -> Duration {
        FIRST_WAIT
    }
}

/// Refuses what belongs to an upload that a reopened store knows nothing of any more.
pub(super) fn unless_void(request: Request, shared: &Shared) -> Option<Request> {
    let of_upload = match &request {
        Request::Chunk { of, .. } => Some(of.begun_at()),
        Request::Accept { message, .. } => message.rest.as_ref().map(crate::Uploaded::begun_at),
        _ => None,
    };
    if of_upload.is_none_or(|begun_at| begun_at == shared.reopened.load(Ordering::Acquire)) {
        return Some(request);
    }
    let void = || CommitError::Failing("the store was opened anew meanwhile".into());
    match request {
        Request::Chunk { reply, .. } => drop(reply.send(Err(void()))),
        Request::Accept { reply, .. } => drop(reply.send(Err(void()))),
        _ => {}
    }
    None
}

/// Returns once the store takes writes again and has what was to be recorded. False: all senders are gone, and a last attempt
/// failed.
pub(super) fn mend(
    committer: &mut Committer,
    failed: Box<Failed>,
    waiting: &mut mpsc::Receiver<Entry>,
    heal: &mut dyn Heal,
    shared: &Shared,
) -> bool {
    let mut failed = failed;
    let mut recorded = 0;
    loop {
        // First of all: who is refused may look at once.
        shared.fails(&failed.error);
        failed.tell();
        let Some(taken_out) = wait_for_healing(&mut failed, waiting, heal, shared) else {
            failed.give_up();
            return false;
        };
        // They are out of the store, or will never be told of.
        shared.unsynced.clear();
        let kept = failed.take_kept();
        let (count, error) = (kept.len(), failed.error.clone());
        match record(committer, kept) {
            Ok(()) => {
                shared.synced.store(committer.group(), Ordering::Release);
                tracing::warn!(
                    taken_out,
                    recorded = count,
                    "the store is back: mail is accepted again. What failed was: {error}"
                );
                shared.works_again();
                return true;
            }
            Err(again) => {
                failed = again;
                recorded += 1;
                if recorded >= RECORDED_AT_MOST {
                    failed.tell_unread();
                }
            }
        }
    }
}

/// Writes what was kept, but for what the failed group had written after all.
fn record(committer: &mut Committer, kept: Vec<Request>) -> Result<(), Box<Failed>> {
    let unwritten = committer.resume_with(kept)?;
    committer.commit(unwritten)
}

/// `None`: there is nobody left to wait for it.
fn wait_for_healing(
    failed: &mut Failed,
    waiting: &mut mpsc::Receiver<Entry>,
    heal: &mut dyn Heal,
    shared: &Shared,
) -> Option<usize> {
    let mut wait = heal.first_wait();
    let mut last = Instant::now();
    loop {
        let is_last = match waiting.try_recv() {
            Ok(entry) => {
                failed.refuse(entry.request);
                continue;
            }
            Err(TryRecvError::Disconnected) => true,
            Err(TryRecvError::Empty) => false,
        };
        if !is_last && last.elapsed() < wait {
            std::thread::sleep(POLL.min(wait));
            continue;
        }
        match heal.heal(shared.synced.load(Ordering::Acquire), &failed.unanswered) {
            Ok(taken_out) => return Some(taken_out),
            Err(error) => tracing::error!(%error, "the store is not back yet"),
        }
        if is_last {
            return None;
        }
        (wait, last) = ((wait * 2).min(LONGEST_WAIT), Instant::now());
    }
}

#[cfg(test)]
pub(super) mod tests;
