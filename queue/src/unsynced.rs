//! Messages that are in the store and not on disk yet.

use std::collections::HashSet;

use mail_core::MessageId;
use parking_lot::RwLock;

/// Messages of groups that are written and wait for their sync, some thousand at the most. Nobody may begin to deliver one: a power
/// cut could take it away, and its client, who was told nothing, would send it again.
#[derive(Default)]
pub(crate) struct Unsynced(RwLock<HashSet<MessageId>>);

impl Unsynced {
    pub(crate) fn hide(&self, messages: impl Iterator<Item = MessageId>) {
        self.0.write().extend(messages);
    }

    pub(crate) fn show(&self, messages: impl Iterator<Item = MessageId>) {
        let mut hidden = self.0.write();
        for message in messages {
            hidden.remove(&message);
        }
    }

    pub(crate) fn clear(&self) {
        self.0.write().clear();
    }

    /// To be asked about what was read, after it was: a message that is read and not hidden any more is on disk.
    pub(crate) fn hides(&self, message: MessageId) -> bool {
        self.0.read().contains(&message)
    }
}
