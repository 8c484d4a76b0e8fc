//! What the committer takes as one group.

use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker};
use std::thread::Thread;
use std::time::{Duration, Instant};

use tokio::sync::mpsc;

use super::{Entry, Shared, Ticket, mend};
use crate::committer::Request;

/// A group ends at so many requests, or so many octets of bodies.
const GROUP: usize = 512;
const GROUP_BYTES: usize = 8 << 20;

/// How long ends and notes alone wait for a message to share its sync with. Nobody waits for them but the relay's own records, a crash in
/// that time sends again no more than one in the sync would; and an accept that comes meanwhile does not stand behind a sync of theirs.
/// At 2,000 to 4,000 messages a second every fourth group is of them alone (docs/performance.md).
pub(super) const LINGER: Duration = Duration::from_millis(2);
/// So many of them do not wait: they are a group.
const MANY: usize = 16;

/// The next group, as soon as there is one; `None`: all senders are gone.
pub(super) fn group(
    waiting: &mut mpsc::Receiver<Entry>,
    shared: &Shared,
    linger: Duration,
) -> Option<Vec<Request>> {
    let mut group = Group {
        requests: Vec::with_capacity(GROUP),
        bytes: 0,
        someone_waits: false,
    };
    group.take(waiting.blocking_recv()?, shared);
    let mut until = None;
    while group.requests.len() < GROUP && group.bytes < GROUP_BYTES {
        let next = match waiting.try_recv() {
            Ok(entry) => Some(entry),
            Err(_) if group.may_linger() => {
                let until = *until.get_or_insert_with(|| Instant::now() + linger);
                receive_until(waiting, until)
            }
            Err(_) => None,
        };
        let Some(entry) = next else { break };
        group.take(entry, shared);
    }
    Some(group.requests)
}

struct Group {
    requests: Vec<Request>,
    bytes: usize,
    someone_waits: bool,
}

impl Group {
    fn take(&mut self, entry: Entry, shared: &Shared) {
        if let Some(ticket) = &entry.ticket
            && !ticket.claim(Ticket::TAKEN)
        {
            return;
        }
        self.bytes += body_bytes(&entry.request);
        self.someone_waits |= !may_linger(&entry.request);
        self.requests.extend(mend::unless_void(entry.request, shared));
    }

    fn may_linger(&self) -> bool {
        !self.someone_waits && (1..MANY).contains(&self.requests.len())
    }
}

/// Ends, and notes that nobody waits for.
fn may_linger(request: &Request) -> bool {
    matches!(
        request,
        Request::Settle { .. }
            | Request::Rest { .. }
            | Request::Hold { .. }
            | Request::Lift { .. }
            | Request::Forget { .. }
            | Request::Present(_)
    )
}

/// What a request adds to a group in bodies, those of reports too.
fn body_bytes(request: &Request) -> usize {
    match request {
        Request::Accept { message, .. } => message.body.len(),
        Request::Settle { settle, .. } => settle.reports.iter().map(|report| report.body.len()).sum(),
        Request::Chunk { octets, .. } => octets.len(),
        Request::Rest { .. }
        | Request::Hold { .. }
        | Request::Lift { .. }
        | Request::Forget { .. }
        | Request::Present(_)
        | Request::Adjust { .. }
        | Request::EndAdjustment { .. }
        | Request::Suspend { .. }
        | Request::Resume { .. }
        | Request::Count { .. }
        | Request::Retry { .. }
        | Request::SetAside { .. }
        | Request::Import { .. }
        | Request::Damaged(_)
        | Request::Mend { .. }
        | Request::Abandon(_)
        | Request::Nudge => 0,
    }
}

/// Wakes the thread that receives.
struct Unpark(Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

/// As `blocking_recv`, but `None` also where nothing has come by then.
fn receive_until(waiting: &mut mpsc::Receiver<Entry>, until: Instant) -> Option<Entry> {
    let waker = Waker::from(Arc::new(Unpark(std::thread::current())));
    let mut context = Context::from_waker(&waker);
    loop {
        if let Poll::Ready(entry) = waiting.poll_recv(&mut context) {
            return entry;
        }
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return None;
        }
        std::thread::park_timeout(left);
    }
}

#[cfg(test)]
mod tests {
    use mail_core::Timestamp;

    use super::super::tests::{PATIENCE, message};
    use super::*;
    use crate::QueueId;

    fn note() -> Entry {
        Entry::of(Request::Rest {
            queue: QueueId(1),
            until: Some(Timestamp(1)),
        })
    }

    fn accept() -> Entry {
        Entry::of(Request::Accept {
            message: message(1),
            chunks: Vec::new(),
            reserved: None,
            reply: tokio::sync::oneshot::channel().0,
        })
    }

    /// How many are in the group of what is sent; `late` comes once all others have been taken out of the way to the committer.
    fn sizes(early: impl IntoIterator<Item = Entry>, late: Option<Entry>, linger: Duration) -> usize {
        let (sender, mut waiting) = mpsc::channel(64);
        for entry in early {
            sender.try_send(entry).unwrap();
        }
        let (tell, told) = std::sync::mpsc::channel();
        std::thread::scope(|scope| {
            scope.spawn(move || {
                let shared = Shared::new(0);
                tell.send(group(&mut waiting, &shared, linger).unwrap().len())
            });
            if let Some(entry) = late {
                while sender.capacity() < 64 {
                    std::thread::yield_now();
                }
                sender.try_send(entry).unwrap();
            }
            // Senders that are gone would end the wait.
            told.recv_timeout(PATIENCE / 2).unwrap()
        })
    }

    #[test]
    fn what_nobody_waits_for_shares_the_next_messages_sync() {
        assert_eq!(sizes([note(), note()], Some(accept()), PATIENCE), 3);
    }

    #[test]
    fn nothing_lingers_where_somebody_waits_or_many_do_or_for_long() {
        assert_eq!(sizes([note(), accept()], None, PATIENCE), 2);
        assert_eq!(sizes([accept(), note()], None, PATIENCE), 2);
        let many = || (0..MANY).map(|_| note());
        assert_eq!(sizes(many(), None, PATIENCE), MANY);
        assert_eq!(sizes([note()], None, Duration::ZERO), 1);
        assert_eq!(sizes([note()], None, LINGER), 1);
    }

    #[test]
    fn the_end_is_not_waited_for() {
        let (sender, mut waiting) = mpsc::channel(9);
        sender.try_send(note()).unwrap();
        drop(sender);
        let shared = Shared::new(0);
        let begun = Instant::now();
        assert_eq!(
            group(&mut waiting, &shared, PATIENCE).map(|group| group.len()),
            Some(1)
        );
        assert!(begun.elapsed() < PATIENCE / 2);
        assert!(group(&mut waiting, &shared, PATIENCE).is_none());
    }
}
