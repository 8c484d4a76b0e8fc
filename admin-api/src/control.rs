//! What the API asks of the program.

use std::sync::Arc;

use hyper::body::Bytes;
use mail_core::MessageId;
use tokio::sync::mpsc;

use crate::adjust::{Adjustment, AdjustmentList, AdjustmentsQuery, EndAdjustment, Ended, SetAdjustment};
use crate::aside::{AsideList, AsideQuery};
use crate::limits::LimitList;
use crate::operate::{
    Delete, Deletion, MessageList, MessagesQuery, Progress, Resume, Retry, Suspend, Suspension,
    SuspensionList,
};
use crate::types::{HoldList, MessageView, QueueList, QueueSummary, QueuesQuery};

/// Who asks, as log and journal call them: `uid 0`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Caller(pub Arc<str>);

/// A message's octets, part by part, so that one of any size needs little memory.
#[derive(Debug)]
pub struct Raw {
    /// All of them.
    pub bytes: u64,
    /// An error ends them early.
    pub parts: mpsc::Receiver<Result<Bytes, ControlError>>,
}

/// The program as operators see it. Implemented by the relay; calls may take a moment, and must not block the runtime.
pub trait Control: Send + Sync + 'static {
    /// A page of the queues, by number.
    fn queues(&self, query: QueuesQuery) -> impl Future<Output = Result<QueueList, ControlError>> + Send;

    /// One queue; `None` where there is none of this number.
    fn queue(&self, id: u64) -> impl Future<Output = Result<Option<QueueSummary>, ControlError>> + Send;

    /// Destinations that rest as a whole, and why.
    fn holds(&self) -> impl Future<Output = Result<HoldList, ControlError>> + Send;

    /// What is used of limits that more than one lane shares.
    fn limits(&self) -> impl Future<Output = Result<LimitList, ControlError>> + Send;

    /// What became of a message; `None` where nothing is known of it.
    fn message(
        &self,
        id: MessageId,
    ) -> impl Future<Output = Result<Option<MessageView>, ControlError>> + Send;

    /// A page of the messages that wait.
    fn messages(
        &self,
        query: MessagesQuery,
    ) -> impl Future<Output = Result<MessageList, ControlError>> + Send;

    /// A page of what is set aside.
    fn aside(&self, query: AsideQuery) -> impl Future<Output = Result<AsideList, ControlError>> + Send;

    /// A message in the queue as it goes out, without its signature; `None` where it isn't there. Noted with its reader.
    fn raw(
        &self,
        id: MessageId,
        by: Caller,
    ) -> impl Future<Output = Result<Option<Raw>, ControlError>> + Send;

    /// What operators have set to wait.
    fn suspensions(&self) -> impl Future<Output = Result<SuspensionList, ControlError>> + Send;

    /// Sets queues to wait.
    fn suspend(
        &self,
        suspend: Suspend,
        by: Caller,
    ) -> impl Future<Output = Result<Suspension, ControlError>> + Send;

    /// Ends a suspension.
    fn resume(&self, resume: Resume, by: Caller) -> impl Future<Output = Result<(), ControlError>> + Send;

    /// A page of what replies have taught, and operators have set beside.
    fn adjustments(
        &self,
        query: AdjustmentsQuery,
    ) -> impl Future<Output = Result<AdjustmentList, ControlError>> + Send;

    /// Makes an adjustment, in place of those of its scope and kind.
    fn adjust(
        &self,
        set: SetAdjustment,
        by: Caller,
    ) -> impl Future<Output = Result<Adjustment, ControlError>> + Send;

    /// Ends adjustments.
    fn end_adjustment(
        &self,
        end: EndAdjustment,
        by: Caller,
    ) -> impl Future<Output = Result<Ended, ControlError>> + Send;

    /// Has mail tried at once, a bounded number at a time.
    fn retry(&self, retry: Retry, by: Caller) -> impl Future<Output = Result<Progress, ControlError>> + Send;

    /// Previews a deletion, or deletes, a bounded number at a time.
    fn delete(
        &self,
        delete: Delete,
        by: Caller,
    ) -> impl Future<Output = Result<Deletion, ControlError>> + Send;
}

/// Why the program did not answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ControlError {
    /// The store did not read.
    #[error("the store did not answer: {0}")]
    Store(String),
    /// Too much was asked at once.
    #[error("busy with other questions")]
    Busy,
    /// What was asked makes no sense, and why.
    #[error("{0}")]
    Wrong(String),
    /// What was asked of is not there.
    #[error("{0}")]
    Absent(String),
    /// It can't be done as things are.
    #[error("{0}")]
    Conflict(String),
    /// A configuration has these mistakes; nothing has changed.
    #[error("refused, and nothing has changed: {}", .0.join("; "))]
    Refused(Vec<String>),
}
