//! What callers hand to the queue.

use std::collections::HashSet;
use std::sync::Arc;

use bytes::Bytes;
use mail_core::{
    BodyType, Domain, DsnOptions, Mailbox, MessageId, Notify, Recipient, ReversePath, Timestamp,
    TransferOptions,
};

use crate::names::{RouteGroup, UnitKey};
use crate::records::{EventKind, Hop, Origin, Signature, Waiting};
use crate::upload::Uploaded;

/// A message to be kept.
#[derive(Clone, Debug)]
pub struct NewMessage {
    /// Its name everywhere.
    pub id: MessageId,
    /// When it came in.
    pub received_at: Timestamp,
    /// When to give up.
    pub expires_at: Timestamp,
    /// Who sends; without NUL.
    pub tenant: Arc<str>,
    /// Which of their streams; without NUL.
    pub stream: Arc<str>,
    /// Where reports go.
    pub reverse_path: ReversePath,
    /// What BODY said.
    pub body_type: BodyType,
    /// The envelope or the header need SMTPUTF8 (RFC 6531 §3.4).
    pub smtputf8: bool,
    /// What MAIL asked of reports.
    pub dsn: DsnOptions,
    /// What MAIL asked of the way it takes.
    pub transfer: TransferOptions,
    /// The sender's own word for messages of a kind, for reports and events.
    pub tag: Option<Arc<str>>,
    /// The sender's own names and values, for reports and events.
    pub metadata: Vec<(String, String)>,
    /// Header fields we add on top, each with its CRLF.
    pub prefix: Bytes,
    /// As the client sent it, header and all: CRLF lines, neither dot-stuffing nor final dot. Where there is a `rest`, only
    /// the beginning, with the whole header section.
    pub body: Bytes,
    /// What follows `body`, where the message is a large one.
    pub rest: Option<Uploaded>,
    /// Who handed it over.
    pub origin: Origin,
    /// The message this one reports on.
    pub cause: Option<MessageId>,
    /// One for each destination domain and route group; at least one, at most 65,534.
    pub units: Vec<NewUnit>,
}

impl NewMessage {
    /// Octets as the client sent them, the fields on top not counted.
    pub fn body_bytes(&self) -> u64 {
        self.body.len() as u64 + self.rest.as_ref().map_or(0, Uploaded::bytes)
    }

    /// Until when its client has it held (RFC 4865), where it does: its first attempts are due then.
    pub fn held_until(&self) -> Option<Timestamp> {
        held_until(self.received_at, self.units.iter().map(|unit| unit.due))
    }

    /// From when on it may be sent: since then it is late, if it is.
    pub fn released_at(&self) -> Timestamp {
        self.held_until().unwrap_or(self.received_at)
    }

    /// Octets as they are kept, and sent but for signatures.
    pub fn bytes(&self) -> u64 {
        self.prefix.len() as u64 + self.body_bytes()
    }

    /// Whether its sender asked to hear of a delay of some recipient of this unit (RFC 3461 §4.1), or named a time for that (RFC
    /// 2852 §4).
    pub(crate) fn wants_notice(&self, unit: u16) -> bool {
        let asked = |recipient: &Recipient| match recipient.notify {
            Some(Notify::On { delay, .. }) => delay,
            Some(Notify::Never) => false,
            None => self.transfer.notify_at().is_some(),
        };
        let unit = self.units.get(usize::from(unit));
        self.reverse_path.mailbox().is_some() && unit.is_some_and(|unit| unit.recipients.iter().any(asked))
    }

    /// Whether it has units, not too many, and each for a destination of its own: a queue has one deadline for a message.
    pub(crate) fn has_sound_units(&self) -> bool {
        let mut seen = HashSet::new();
        // The highest number stands for the count of open units.
        (1..usize::from(u16::MAX)).contains(&self.units.len())
            && (self.units.len() == 1
                || self
                    .units
                    .iter()
                    .all(|unit| seen.insert((unit.route_group, &unit.domain))))
    }
}

pub(crate) fn held_until(received_at: Timestamp, due: impl Iterator<Item = Timestamp>) -> Option<Timestamp> {
    due.max().filter(|&due| due > received_at)
}

/// One message's recipients at one destination domain.
#[derive(Clone, Debug)]
pub struct NewUnit {
    /// By which way.
    pub route_group: RouteGroup,
    /// Where to.
    pub domain: Domain,
    /// When to try first: when it comes in, or when it is released.
    pub due: Timestamp,
    /// At least one.
    pub recipients: Vec<Recipient>,
}

/// A message that is kept now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Accepted {
    /// Its name.
    pub id: MessageId,
    /// One for each of [`NewMessage::units`], in order.
    pub units: Vec<UnitKey>,
}

/// How a recipient ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Fate {
    /// The next hop took it over.
    Delivered,
    /// Refused for good.
    Bounced,
    /// Its time was up.
    Expired,
    /// Taken back by its sender.
    Cancelled,
    /// Deleted by an operator.
    Deleted,
    /// On the suppression list.
    Suppressed,
    /// Discarded by rule.
    Discarded,
    /// Another node has it.
    HandedOver,
}

impl Fate {
    /// Its word in the journal.
    pub fn event(self) -> EventKind {
        match self {
            Self::Delivered => EventKind::Delivered,
            Self::Bounced => EventKind::Bounced,
            Self::Expired => EventKind::Expired,
            Self::Cancelled => EventKind::Cancelled,
            Self::Deleted => EventKind::Deleted,
            Self::Suppressed => EventKind::Suppressed,
            Self::Discarded => EventKind::Discarded,
            Self::HandedOver => EventKind::HandedOver,
        }
    }
}

/// What became of a unit, all its recipients.
#[derive(Clone, Debug)]
pub struct Settle {
    /// The claim.
    pub unit: UnitKey,
    /// When.
    pub at: Timestamp,
    /// Number of the attempt, from 1; 0 where none was made.
    pub attempt: u32,
    /// Where it was tried.
    pub hop: Option<Hop>,
    /// Recipients that have ended.
    pub ends: Vec<End>,
    /// What of those that have not. `None` ends the unit: every recipient has ended.
    pub again: Option<Again>,
    /// Messages these ends cause, kept by the same batch.
    pub reports: Vec<Arc<NewMessage>>,
}

/// The end of a recipient.
#[derive(Clone, Debug)]
pub struct End {
    /// Who.
    pub mailbox: Mailbox,
    /// How.
    pub fate: Fate,
    /// The peer's reply, or the cause in our words.
    pub reply: String,
}

/// What of the recipients that wait on.
#[derive(Clone, Debug)]
pub struct Again {
    /// When to try again.
    pub due: Timestamp,
    /// Attempts so far that ended with a deferral, this one too.
    pub attempts: u32,
    /// How many of them were left in doubt.
    pub in_doubt: u32,
    /// This attempt was: the final dot was sent, and no reply came.
    pub doubtful: bool,
    /// Of whom the attempt says something.
    pub open: Vec<StillOpen>,
    /// Those who wait on beside them, of whom there is nothing new to be told; at least one of both. The next attempt sees them in
    /// this order, after the others.
    pub others: Vec<Waiting>,
    /// To be used by the next attempt.
    pub signature: Option<Signature>,
    /// When the sender was told of the delay, now or before.
    pub delay_told: Option<Timestamp>,
}

/// A recipient that waits on.
#[derive(Clone, Debug)]
pub struct StillOpen {
    /// Its index in the unit.
    pub recipient: u16,
    /// Who.
    pub mailbox: Mailbox,
    /// The peer's reply, or the cause in our words.
    pub reply: String,
}

/// A settle that is kept now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settled {
    /// Where the unit stands now; `None` if it ended.
    pub unit: Option<UnitKey>,
    /// The reports, in order.
    pub reports: Vec<Accepted>,
}
