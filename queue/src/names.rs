//! What the queue calls things.

use std::fmt;
use std::sync::Arc;

use mail_core::{Domain, MessageId, Timestamp};
use serde::{Deserialize, Serialize};

/// A queue's number: given once, never again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct QueueId(pub u64);

impl fmt::Display for QueueId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Which next hops and sources may serve a queue. 0 is delivery by MX.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct RouteGroup(pub u16);

/// What makes a queue one queue.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct QueueName {
    /// Who sends.
    pub tenant: Arc<str>,
    /// Which of their streams.
    pub stream: Arc<str>,
    /// By which way.
    pub route_group: RouteGroup,
    /// Where to.
    pub domain: Domain,
}

/// A unit in its queue: one message's recipients at one destination domain, due at one time. It is the key of the due
/// index, and whoever works on the unit holds it as a claim: once the key is gone, or has moved, the claim is void.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct UnitKey {
    /// Where it waits.
    pub queue: QueueId,
    /// When it is to be tried next.
    pub due: Timestamp,
    /// Whose recipients.
    pub id: MessageId,
    /// Number of the unit within the message.
    pub unit: u16,
}

/// What rests as a whole, so that no message need be touched.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum HoldScope {
    /// A destination domain that the DNS does not resolve.
    Domain(Domain),
    /// A lane that lets no connection come about, by its own name.
    Lane(String),
}
