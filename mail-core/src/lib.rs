//! The words of mail and the pure SMTP sessions. Nothing here touches a socket, a clock, a file or a lock.

pub mod domain;
pub mod envelope;
pub mod header;
pub mod id;
pub mod mailbox;
pub mod reply;
pub mod smtp;
pub mod time;

pub use domain::{BadDomain, Domain};
pub use envelope::{
    BodyType, By, DeliverBy, DsnOptions, Envelope, Hold, MaxHold, Notify, Priority, Recipient, Ret,
    TransferOptions, WhenLate,
};
pub use id::{BadMessageId, MessageId};
pub use mailbox::{BadMailbox, Mailbox, ReversePath};
pub use reply::{EnhancedCode, Reply};
pub use time::Timestamp;
