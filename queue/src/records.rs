//! The records of every family: a version octet, postcard, and a CRC32C over both (little-endian, last four octets).
//!
//! Old versions stay readable for ever: a changed record gets a new version and keeps its old shape in [`old`]. The fixtures
//! under `queue/tests/fixtures` hold every version there was.

use std::net::IpAddr;
use std::sync::Arc;

use bytes::Bytes;
use mail_core::{BodyType, DsnOptions, MessageId, Recipient, ReversePath, Timestamp, TransferOptions};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::adjustment::AdjustmentRecord;
use crate::message::held_until;
use crate::names::{QueueId, QueueName};
use crate::presence::PresenceRecord;
use crate::suspension::Selector;

mod old;

/// A record, and the versions of it that read.
pub trait Record: Serialize + DeserializeOwned {
    /// What is written.
    const VERSION: u8 = 1;

    /// Reads an older version's payload; `None` where there was no such version.
    fn read_old(_version: u8, _payload: &[u8]) -> Option<postcard::Result<Self>> {
        None
    }
}

impl Record for DueRecord {}
impl Record for HoldRecord {}
impl Record for AdjustmentRecord {}
impl Record for SuspensionRecord {}
impl Record for Counters {}
impl Record for GroupRecord {}
impl Record for UploadRecord {}
impl Record for AsideRecord {}
impl Record for ImportRecord {}
impl Record for DamagedRecord {}
impl Record for TotalsRecord {}
impl Record for PresenceRecord {}

/// A record that does not read: wrong checksum, unknown version, or cut short.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("damaged record: {0}")]
pub struct Damaged(pub &'static str);

/// Writes a record into `buffer`, whose contents are replaced.
pub fn encode<'a, R: Record>(record: &R, buffer: &'a mut Vec<u8>) -> &'a [u8] {
    buffer.clear();
    append(record, buffer);
    buffer
}

/// Writes a record behind what `buffer` holds.
pub fn append<R: Record>(record: &R, buffer: &mut Vec<u8>) {
    let begin = buffer.len();
    buffer.push(R::VERSION);
    // Postcard fails only on sequences of unknown length and on full buffers; records have neither.
    *buffer = postcard::to_extend(record, std::mem::take(buffer)).unwrap_or_default();
    let crc = crc32c::crc32c(buffer.get(begin..).unwrap_or_default());
    buffer.extend_from_slice(&crc.to_le_bytes());
}

/// Reads a record.
pub fn decode<R: Record>(octets: &[u8]) -> Result<R, Damaged> {
    let (body, crc) = octets.split_last_chunk::<4>().ok_or(Damaged("too short"))?;
    if !verifies(body, u32::from_le_bytes(*crc)) {
        return Err(Damaged("checksum"));
    }
    let (&version, payload) = body.split_first().ok_or(Damaged("too short"))?;
    let read = if version == R::VERSION {
        postcard::from_bytes(payload)
    } else {
        R::read_old(version, payload).ok_or(Damaged("version"))?
    };
    read.map_err(|_| Damaged("shape"))
}

/// Writes a value that is a mere number, and its checksum, behind what `buffer` holds.
pub fn seal(number: &[u8], buffer: &mut Vec<u8>) {
    buffer.extend_from_slice(number);
    buffer.extend_from_slice(&crc32c::crc32c(number).to_le_bytes());
}

/// Reads what [`seal`] made, or the bare octets that were written before there were seals: lengths tell which.
pub fn unseal<const N: usize>(octets: &[u8]) -> Result<[u8; N], Damaged> {
    if let Ok(bare) = octets.try_into() {
        return Ok(bare);
    }
    let (octets, crc) = octets.split_last_chunk::<4>().ok_or(Damaged("too short"))?;
    let number = octets.try_into().map_err(|_| Damaged("length"))?;
    if !verifies(octets, u32::from_le_bytes(*crc)) {
        return Err(Damaged("checksum"));
    }
    Ok(number)
}

/// Whether the checksum is that of the octets.
pub(crate) fn verifies(octets: &[u8], sum: u32) -> bool {
    crc32c::crc32c(octets) == sum || crate::sabotage::is_on("no-checksums")
}

/// Who handed a message over.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Origin {
    /// The client's address; none for our own reports.
    pub client: Option<IpAddr>,
    /// What it called itself at EHLO.
    pub helo: String,
    /// The credential it proved.
    pub credential: Option<String>,
    /// The `with` word of Received (RFC 3848).
    pub protocol: String,
}

/// `envelope`: what of a message never changes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EnvelopeRecord {
    /// When we took it in.
    pub received_at: Timestamp,
    /// When we give up.
    pub expires_at: Timestamp,
    /// Who sends.
    pub tenant: Arc<str>,
    /// Which of their streams.
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
    /// Octets of the body.
    pub body_bytes: u64,
    /// CRC32C of each chunk.
    pub chunks: Vec<u32>,
    /// Who handed it over.
    pub origin: Origin,
    /// The message this one reports on.
    pub cause: Option<MessageId>,
    /// One for each destination domain.
    pub units: Vec<UnitRecord>,
}

impl EnvelopeRecord {
    /// As [`crate::NewMessage::held_until`].
    pub fn held_until(&self) -> Option<Timestamp> {
        held_until(self.received_at, self.units.iter().map(|unit| unit.due))
    }

    /// As [`crate::NewMessage::released_at`].
    pub fn released_at(&self) -> Timestamp {
        self.held_until().unwrap_or(self.received_at)
    }
}

/// A unit within its envelope.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct UnitRecord {
    /// Where it waits.
    pub queue: QueueId,
    /// When it was to be tried first.
    pub due: Timestamp,
    /// At one domain, in the order of the envelope.
    pub recipients: Vec<Recipient>,
}

/// `state`: what of a unit changes. Absent until the first deferral.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct StateRecord {
    /// The time in its `due` key.
    pub due: Timestamp,
    /// Attempts that ended with a deferral.
    pub attempts: u32,
    /// How many of them were left in doubt.
    pub in_doubt: u32,
    /// When the last one ended.
    pub last_attempt: Timestamp,
    /// Recipients that have not ended, with what was said of each.
    pub open: Vec<Waiting>,
    /// Made at the first attempt, kept for the next ones.
    pub signature: Option<Signature>,
    /// When the sender was told of the delay.
    pub delay_told: Option<Timestamp>,
}

/// A recipient that waits.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Waiting {
    /// Its index in [`UnitRecord::recipients`].
    pub recipient: u16,
    /// The last reply, or what else went wrong.
    pub reply: String,
}

/// DKIM-Signature fields made for a message.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Signature {
    /// Which keys and which form of the body they were made with; others make them void.
    pub made_with: String,
    /// The fields, each with its CRLF.
    pub fields: Bytes,
}

/// `due`: what a settle needs to know, so that it reads one key.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DueRecord {
    /// For the `deadline` key.
    pub expires_at: Timestamp,
    /// What the unit counts in its queue.
    pub bytes: u64,
    /// Chunks of the body.
    pub chunks: u32,
    /// The message began with this unit alone.
    pub alone: bool,
    /// There is a `state` record.
    pub tried: bool,
}

/// `upload`: a body that is still coming in.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct UploadRecord {
    /// Chunks from number 1 to this one are there. Number 0 comes with the message.
    pub chunks: u32,
}

/// `queues`: a queue.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct QueueRecord {
    /// What makes it one queue.
    pub name: QueueName,
    /// Units in it.
    pub count: u64,
    /// Their octets, each unit counting its message's whole size.
    pub bytes: u64,
    /// No unit is before, by its due time and its message: reading begins here, past whatever was deleted. Of a million due in one moment
    /// (a client's own time, a retry of all) the moment alone would not tell.
    pub low_water: (Timestamp, MessageId),
    /// Its key in the catalogue; a lower bound of when it has something to do. Absent where nothing in it waits for a time.
    pub wake: Option<Timestamp>,
    /// Of its units those that are set aside.
    pub aside: u64,
}

/// `queues`: what waits of a tenant's stream, all queues together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TotalsRecord {
    /// Queues with units in them.
    pub queues: u64,
    /// Units.
    pub count: u64,
    /// Their octets, as in [`QueueRecord`].
    pub bytes: u64,
}

/// `queues`: a route group.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GroupRecord {
    /// What the number stands for.
    pub name: String,
}

/// `hold`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HoldRecord {
    /// Since when.
    pub since: Timestamp,
    /// Nothing goes there before.
    pub until: Timestamp,
    /// Failures in a row.
    pub failures: u32,
    /// What went wrong last.
    pub cause: String,
}

/// `suspension`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SuspensionRecord {
    /// Which queues wait.
    pub selector: Selector,
    /// Since when.
    pub since: Timestamp,
    /// When they go on by themselves; `None`: once they are resumed.
    pub until: Option<Timestamp>,
    /// Why, in the operator's words.
    pub reason: String,
    /// Who said so.
    pub by: String,
}

/// `meta`: what counts up. Written with every group.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counters {
    /// The group last written.
    pub group: u64,
    /// The next queue's number.
    pub next_queue: u64,
    /// The next event's number.
    pub next_event: u64,
}

/// Why a unit was set aside.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum AsideCause {
    /// What the store holds of it does not verify.
    Damaged,
    /// Working on it failed in a way that says nothing about its destination: a mistake of the relay's.
    Parked,
}

impl AsideCause {
    /// Its word in the journal.
    pub fn event(self) -> EventKind {
        match self {
            Self::Damaged => EventKind::Damaged,
            Self::Parked => EventKind::Parked,
        }
    }
}

/// `aside`: a unit that nobody tries. It counts in its queue, and expires, as any other.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AsideRecord {
    /// Since when.
    pub since: Timestamp,
    /// What kind of reason.
    pub cause: AsideCause,
    /// The reason, on one line.
    pub why: String,
    /// The queue it counts in.
    pub queue: QueueId,
    /// The time that its `due` key had.
    pub due: Timestamp,
    /// What its `due` key held.
    pub was: DueRecord,
}

/// `meta`: how far a stream has been taken in.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImportRecord {
    /// Messages, from the stream's beginning.
    pub messages: u64,
}

/// `aside`: a record that does not verify, as it was found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DamagedRecord {
    /// Since when.
    pub since: Timestamp,
    /// What is wrong with it.
    pub what: String,
    /// What it held.
    pub octets: Bytes,
}

/// What happened, in the journal's words.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[expect(missing_docs, reason = "DESIGN's names, which say it")]
pub enum EventKind {
    Accepted,
    Delivered,
    Deferred,
    Bounced,
    Expired,
    Cancelled,
    Deleted,
    Suppressed,
    InDoubt,
    Complained,
    Unsubscribed,
    Parked,
    Damaged,
    Restored,
    HandedOver,
    Discarded,
    Suspended,
    Resumed,
    Retried,
    Adjusted,
    AdjustmentEnded,
}

impl EventKind {
    /// Whether it ends a recipient.
    pub fn is_end(self) -> bool {
        match self {
            Self::Delivered
            | Self::Bounced
            | Self::Expired
            | Self::Cancelled
            | Self::Deleted
            | Self::Suppressed
            | Self::HandedOver
            | Self::Discarded => true,
            Self::Accepted
            | Self::Deferred
            | Self::InDoubt
            | Self::Complained
            | Self::Unsubscribed
            | Self::Parked
            | Self::Damaged
            | Self::Restored
            | Self::Suspended
            | Self::Resumed
            | Self::Retried
            | Self::Adjusted
            | Self::AdjustmentEnded => false,
        }
    }
}

/// `event`: one entry of the journal.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    /// When.
    pub at: Timestamp,
    /// What.
    pub kind: EventKind,
    /// To which message; none where a destination rests as a whole.
    pub id: Option<MessageId>,
    /// Of which tenant, stream and destination. None for `accepted`, which is about the whole message.
    pub queue: Option<QueueName>,
    /// The unit's number.
    pub unit: u16,
    /// Whom it concerns.
    pub recipients: Vec<String>,
    /// Number of the attempt, from 1; 0 where there was none.
    pub attempt: u32,
    /// Where it was tried.
    pub hop: Option<Hop>,
    /// The reply, or the cause.
    pub reply: String,
    /// Of `accepted`: the sender's own word for messages of a kind.
    pub tag: Option<Arc<str>>,
    /// Of `accepted`: the sender's own names and values.
    pub metadata: Vec<(String, String)>,
}

/// Where an attempt went.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hop {
    /// The site.
    pub site: String,
    /// The MX host.
    pub host: String,
    /// Its address and port.
    pub address: String,
    /// The source's name; the address we came from, where one was chosen without a name.
    pub source: String,
    /// The TLS version and cipher suite; empty in clear.
    pub tls: String,
    /// How long the transaction took, in milliseconds.
    pub millis: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_flipped_bit_is_noticed() {
        let record = StateRecord {
            due: Timestamp(7),
            attempts: 3,
            open: vec![Waiting {
                recipient: 1,
                reply: "450 later".into(),
            }],
            ..StateRecord::default()
        };
        let mut buffer = Vec::new();
        let octets = encode(&record, &mut buffer).to_vec();
        assert_eq!(decode::<StateRecord>(&octets), Ok(record));
        for octet in 0..octets.len() {
            for bit in 0..8 {
                let mut damaged = octets.clone();
                damaged[octet] ^= 1 << bit;
                assert!(decode::<StateRecord>(&damaged).is_err());
            }
            assert!(decode::<StateRecord>(&octets[..octet]).is_err());
        }
    }
}
