//! What travels beside a message: who sent it, to whom, and what the client asked for.

use serde::{Deserialize, Serialize};

use crate::mailbox::{Mailbox, ReversePath};

/// The envelope of one mail transaction (RFC 5321 §2.3.1).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Envelope {
    /// Where reports go.
    pub reverse_path: ReversePath,
    /// What BODY said at MAIL (RFC 6152).
    pub body: BodyType,
    /// At least one; in the order the client gave them.
    pub recipients: Vec<Recipient>,
}

/// One forward-path of an envelope.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Recipient {
    /// Where the message shall go.
    pub mailbox: Mailbox,
}

/// The BODY parameter of MAIL (RFC 6152 §2).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum BodyType {
    /// Declared, or implied by silence, as 7-bit. Clients do err: the octets decide, not this.
    #[default]
    SevenBit,
    /// `BODY=8BITMIME`.
    EightBitMime,
}
