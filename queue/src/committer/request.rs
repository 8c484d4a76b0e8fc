//! What is asked of the committer, and how whoever asked is answered.

use std::sync::Arc;

use bytes::Bytes;
use mail_core::{MessageId, Timestamp};
use tokio::sync::oneshot;

use super::Group;
use crate::adjustment::{AdjustmentKey, AdjustmentRecord};
use crate::aside::{Aside, Met};
use crate::counts::CountsRecord;
use crate::message::{Accepted, NewMessage, Settle, Settled};
use crate::names::{HoldScope, QueueId, Scope, UnitKey};
use crate::presence::PresenceRecord;
use crate::records::{HoldRecord, SuspensionRecord};
use crate::suspension::Selector;
use crate::upload::{Abandoned, Leftover};
use crate::usage::Reserved;
use crate::{CommitError, DeadlineKey};

/// A request and whoever waits for it.
pub(crate) enum Request {
    Accept {
        message: Arc<NewMessage>,
        chunks: Vec<u32>,
        reserved: Option<Reserved>,
        reply: Reply<Accepted>,
    },
    /// A part of a message to come; not synced by itself.
    Chunk {
        of: Arc<Leftover>,
        number: u32,
        octets: Bytes,
        reply: Reply<()>,
    },
    /// The message will not come.
    Abandon(Abandoned),
    /// Lets a group begin; nothing else.
    Nudge,
    Settle {
        settle: Box<Settle>,
        reply: Reply<Settled>,
    },
    Rest {
        queue: QueueId,
        until: Option<Timestamp>,
    },
    Hold {
        scope: HoldScope,
        record: HoldRecord,
    },
    /// These have been told of, or are gone.
    Forget {
        notices: Vec<DeadlineKey>,
    },
    Lift {
        scope: HoldScope,
    },
    Suspend {
        record: Box<SuspensionRecord>,
        reply: Reply<()>,
    },
    Resume {
        selector: Selector,
        by: String,
        at: Timestamp,
        reply: Reply<()>,
    },
    Count {
        counts: Vec<(Scope, Option<CountsRecord>)>,
        reply: Reply<()>,
    },
    /// The relay runs.
    Present(PresenceRecord),
    Adjust {
        record: Box<AdjustmentRecord>,
        reply: Option<Reply<()>>,
    },
    EndAdjustment {
        key: Box<AdjustmentKey>,
        /// Unless it has changed since.
        as_of: Option<Timestamp>,
        by: String,
        at: Timestamp,
        reply: Option<Reply<()>>,
    },
    Retry {
        unit: UnitKey,
        due: Timestamp,
        by: String,
        reply: Reply<()>,
    },
    SetAside {
        unit: UnitKey,
        aside: Box<Aside>,
        reply: Reply<()>,
    },
    Import {
        batch: Arc<crate::import::Batch>,
        reply: Reply<()>,
    },
    /// A record that did not verify, and that mail can do without.
    Damaged(Met),
    /// The record of this queue did not verify.
    Mend {
        queue: QueueId,
    },
}

pub(crate) type Reply<T> = oneshot::Sender<Result<T, CommitError>>;

/// What waits for an answer waits for a sync.
pub(super) fn is_synced(group: &Group) -> bool {
    group.synced && !crate::sabotage::is_on("no-sync")
}

/// Whom to answer once the group is synced.
pub(super) enum Answer {
    Accepted(Reply<Accepted>, Result<Accepted, CommitError>),
    /// With what was asked for, should it have to be written again.
    Settled(Reply<Settled>, Result<Settled, CommitError>, Box<Settle>),
    Done(Reply<()>, Result<(), CommitError>),
}

impl Answer {
    /// Messages that are new with it: the one accepted, or the reports of an end.
    pub(super) fn messages(&self) -> impl Iterator<Item = MessageId> {
        let (accepted, reports) = match self {
            Self::Accepted(_, Ok(accepted)) => (Some(accepted), &[][..]),
            Self::Settled(_, Ok(settled), _) => (None, &settled.reports[..]),
            _ => (None, &[][..]),
        };
        accepted.into_iter().chain(reports).map(|message| message.id)
    }

    pub(super) fn send(self) {
        // A receiver that is gone no longer wants to know.
        match self {
            Self::Accepted(reply, result) => drop(reply.send(result)),
            Self::Settled(reply, result, _) => drop(reply.send(result)),
            Self::Done(reply, result) => drop(reply.send(result)),
        }
    }
}

/// A group that is in the store.
pub(crate) struct Written {
    /// Its number, if it is to be synced before anyone is answered.
    pub(crate) unsynced: Option<u64>,
    pub(super) answers: Vec<Answer>,
}

impl Written {
    /// A group that nobody waits for.
    #[cfg(test)]
    pub(crate) fn unsynced(number: u64) -> Self {
        Self {
            unsynced: Some(number),
            answers: Vec::new(),
        }
    }

    /// Messages that are new with it.
    pub(crate) fn messages(&self) -> impl Iterator<Item = MessageId> {
        self.answers.iter().flat_map(Answer::messages)
    }

    /// Tells all that wait for it.
    pub(crate) fn answer(self) {
        self.answers.into_iter().for_each(Answer::send);
    }
}

/// What is left of a group whose write failed. Perhaps it is in the store all the same.
pub(crate) struct Failed {
    pub(crate) error: CommitError,
    /// Messages that nobody was told were kept.
    pub(crate) unanswered: Vec<MessageId>,
    /// What became of units. Peers have been told so; it is to be written as soon as that is possible.
    pub(crate) kept: Vec<Request>,
    /// The same, of those whose own records could not be read: each ended its group.
    pub(crate) unread: Vec<Request>,
    /// Who waits to be told, by [`Failed::tell`].
    pub(super) refused: Vec<Answer>,
}
