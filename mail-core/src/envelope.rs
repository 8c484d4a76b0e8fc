//! What travels beside a message: who sent it, to whom, and what the client asked for.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::Timestamp;
use crate::mailbox::{Mailbox, ReversePath};

/// The envelope of one mail transaction (RFC 5321 §2.3.1).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Envelope {
    /// Where reports go.
    pub reverse_path: ReversePath,
    /// What BODY said at MAIL (RFC 6152).
    pub body: BodyType,
    /// SMTPUTF8 was said at MAIL (RFC 6531 §3.4).
    pub smtputf8: bool,
    /// What MAIL asked of reports.
    pub dsn: DsnOptions,
    /// Until when MAIL asked for the message to be held.
    pub hold: Option<Hold>,
    /// At least one; in the order the client gave them.
    pub recipients: Vec<Recipient>,
}

/// One forward-path of an envelope.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Recipient {
    /// Where the message shall go.
    pub mailbox: Mailbox,
    /// NOTIFY (RFC 3461 §4.1); `None` where it was not said: failures are reported, delays as the relay sees fit.
    pub notify: Option<Notify>,
    /// ORCPT as it was said, `type;address`, the address in xtext or utf-8-addr-xtext (RFC 3461 §4.2, RFC 6533 §3).
    pub orcpt: Option<Box<str>>,
}

impl Recipient {
    /// A recipient of whom nothing more was said.
    pub fn new(mailbox: Mailbox) -> Self {
        Self {
            mailbox,
            notify: None,
            orcpt: None,
        }
    }
}

/// How long a message is to be held before it is sent (RFC 4865 §4).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Hold {
    /// HOLDFOR: from the moment it comes in.
    For(Duration),
    /// HOLDUNTIL.
    Until(Timestamp),
}

impl Hold {
    /// When a message that comes in at `now` is released; at once where that time has passed.
    pub fn release(self, now: Timestamp) -> Timestamp {
        match self {
            Self::For(span) => now + span,
            Self::Until(at) => at.max(now),
        }
    }
}

/// What MAIL asked of reports (RFC 3461 §4.3, §4.4).
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct DsnOptions {
    /// How much of the message a failure report returns; `None` where it was not said.
    pub ret: Option<Ret>,
    /// ENVID as it was said, in xtext.
    pub envid: Option<Box<str>>,
}

/// The RET parameter of MAIL (RFC 3461 §4.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Ret {
    /// The whole message.
    Full,
    /// Its header.
    Headers,
}

/// The NOTIFY parameter of RCPT (RFC 3461 §4.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Notify {
    /// Nothing is ever reported.
    Never,
    /// What is named is reported; at least one is.
    On {
        /// Delivery, or the handing on to a host that does not report.
        success: bool,
        /// Failure for good.
        failure: bool,
        /// A delay.
        delay: bool,
    },
}

/// The BODY parameter of MAIL (RFC 6152 §2).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum BodyType {
    /// Declared, or implied by silence, as 7-bit. Clients do err: the octets decide, not this.
    #[default]
    SevenBit,
    /// `BODY=8BITMIME`.
    EightBitMime,
    /// `BODY=BINARYMIME` (RFC 3030 §3): lines may be of any length, CR and LF may stand alone.
    BinaryMime,
}
