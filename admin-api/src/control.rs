//! What the API asks of the program.

use mail_core::MessageId;

use crate::types::{HoldList, MessageView, QueueList, QueuesQuery};

/// The program as operators see it. Implemented by the relay; calls may take a moment, and must not block the runtime.
pub trait Control: Send + Sync + 'static {
    /// A page of the queues, by number.
    fn queues(&self, query: QueuesQuery) -> impl Future<Output = Result<QueueList, ControlError>> + Send;

    /// Destinations that rest as a whole, and why.
    fn holds(&self) -> impl Future<Output = Result<HoldList, ControlError>> + Send;

    /// What became of a message; `None` where nothing is known of it.
    fn message(
        &self,
        id: MessageId,
    ) -> impl Future<Output = Result<Option<MessageView>, ControlError>> + Send;
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
}
