//! Shapes that records once had.

use std::sync::Arc;

use bytes::Bytes;
use mail_core::{
    BodyType, DsnOptions, Mailbox, MessageId, Recipient, ReversePath, Timestamp, TransferOptions,
};
use serde::Deserialize;

use super::{
    EnvelopeRecord, Event, EventKind, Hop, Origin, QueueRecord, Record, Signature, StateRecord, UnitRecord,
    Waiting,
};
use crate::counts::{Counts, CountsRecord};
use crate::names::{QueueId, QueueName};

/// Version 1 knew nothing of DSN parameters, SMTPUTF8 and the sender's own words.
#[derive(Deserialize)]
struct EnvelopeV1 {
    received_at: Timestamp,
    expires_at: Timestamp,
    tenant: Arc<str>,
    stream: Arc<str>,
    reverse_path: ReversePath,
    body_type: BodyType,
    prefix: Bytes,
    body_bytes: u64,
    chunks: Vec<u32>,
    origin: Origin,
    cause: Option<MessageId>,
    units: Vec<UnitV1>,
}

#[derive(Deserialize)]
struct UnitV1 {
    queue: QueueId,
    due: Timestamp,
    recipients: Vec<RecipientV1>,
}

#[derive(Deserialize)]
struct RecipientV1 {
    mailbox: Mailbox,
}

impl Record for EnvelopeRecord {
    const VERSION: u8 = 3;

    fn read_old(version: u8, payload: &[u8]) -> Option<postcard::Result<Self>> {
        match version {
            1 => Some(postcard::from_bytes(payload).map(|old: EnvelopeV1| old.into())),
            2 => Some(postcard::from_bytes(payload).map(|old: EnvelopeV2| old.into())),
            _ => None,
        }
    }
}

/// Version 1 knew nothing of minutes.
#[derive(Deserialize)]
struct CountsV1 {
    at: Timestamp,
    hour: Option<Counts>,
    day: Option<Counts>,
}

impl Record for CountsRecord {
    const VERSION: u8 = 2;

    fn read_old(version: u8, payload: &[u8]) -> Option<postcard::Result<Self>> {
        let of_old = |old: CountsV1| Self {
            at: old.at,
            minute: None,
            hour: old.hour,
            day: old.day,
        };
        (version == 1).then(|| postcard::from_bytes(payload).map(of_old))
    }
}

/// Version 2 knew nothing of MT-PRIORITY and BY.
#[derive(Deserialize)]
struct EnvelopeV2 {
    received_at: Timestamp,
    expires_at: Timestamp,
    tenant: Arc<str>,
    stream: Arc<str>,
    reverse_path: ReversePath,
    body_type: BodyType,
    smtputf8: bool,
    dsn: DsnOptions,
    tag: Option<Arc<str>>,
    metadata: Vec<(String, String)>,
    prefix: Bytes,
    body_bytes: u64,
    chunks: Vec<u32>,
    origin: Origin,
    cause: Option<MessageId>,
    units: Vec<UnitRecord>,
}

impl From<EnvelopeV2> for EnvelopeRecord {
    fn from(old: EnvelopeV2) -> Self {
        Self {
            received_at: old.received_at,
            expires_at: old.expires_at,
            tenant: old.tenant,
            stream: old.stream,
            reverse_path: old.reverse_path,
            body_type: old.body_type,
            smtputf8: old.smtputf8,
            dsn: old.dsn,
            transfer: TransferOptions::default(),
            tag: old.tag,
            metadata: old.metadata,
            prefix: old.prefix,
            body_bytes: old.body_bytes,
            chunks: old.chunks,
            origin: old.origin,
            cause: old.cause,
            units: old.units,
        }
    }
}

impl From<EnvelopeV1> for EnvelopeRecord {
    fn from(old: EnvelopeV1) -> Self {
        Self {
            received_at: old.received_at,
            expires_at: old.expires_at,
            tenant: old.tenant,
            stream: old.stream,
            reverse_path: old.reverse_path,
            body_type: old.body_type,
            smtputf8: false,
            dsn: DsnOptions::default(),
            transfer: TransferOptions::default(),
            tag: None,
            metadata: Vec::new(),
            prefix: old.prefix,
            body_bytes: old.body_bytes,
            chunks: old.chunks,
            origin: old.origin,
            cause: old.cause,
            units: old.units.into_iter().map(UnitRecord::from).collect(),
        }
    }
}

impl From<UnitV1> for UnitRecord {
    fn from(old: UnitV1) -> Self {
        let recipients = old.recipients.into_iter();
        Self {
            queue: old.queue,
            due: old.due,
            recipients: recipients
                .map(|recipient| Recipient::new(recipient.mailbox))
                .collect(),
        }
    }
}

/// Version 1 told nobody of delays.
#[derive(Deserialize)]
struct StateV1 {
    due: Timestamp,
    attempts: u32,
    in_doubt: u32,
    last_attempt: Timestamp,
    open: Vec<Waiting>,
    signature: Option<Signature>,
}

impl Record for StateRecord {
    const VERSION: u8 = 2;

    fn read_old(version: u8, payload: &[u8]) -> Option<postcard::Result<Self>> {
        (version == 1).then(|| postcard::from_bytes(payload).map(|old: StateV1| old.into()))
    }
}

impl From<StateV1> for StateRecord {
    fn from(old: StateV1) -> Self {
        Self {
            due: old.due,
            attempts: old.attempts,
            in_doubt: old.in_doubt,
            last_attempt: old.last_attempt,
            open: old.open,
            signature: old.signature,
            delay_told: None,
        }
    }
}

/// Version 1 had nothing set aside.
#[derive(Deserialize)]
struct QueueV1 {
    name: QueueName,
    count: u64,
    bytes: u64,
    low_water: Timestamp,
    wake: Option<Timestamp>,
}

impl Record for QueueRecord {
    const VERSION: u8 = 3;

    fn read_old(version: u8, payload: &[u8]) -> Option<postcard::Result<Self>> {
        match version {
            1 => Some(postcard::from_bytes(payload).map(|old: QueueV1| old.into())),
            2 => Some(postcard::from_bytes(payload).map(|old: QueueV2| old.into())),
            _ => None,
        }
    }
}

impl From<QueueV1> for QueueRecord {
    fn from(old: QueueV1) -> Self {
        Self {
            name: old.name,
            count: old.count,
            bytes: old.bytes,
            low_water: (old.low_water, MessageId::LEAST),
            wake: old.wake,
            aside: 0,
        }
    }
}

/// Version 2 knew the moment of the low-water mark alone.
#[derive(Deserialize)]
struct QueueV2 {
    name: QueueName,
    count: u64,
    bytes: u64,
    low_water: Timestamp,
    wake: Option<Timestamp>,
    aside: u64,
}

impl From<QueueV2> for QueueRecord {
    fn from(old: QueueV2) -> Self {
        Self {
            name: old.name,
            count: old.count,
            bytes: old.bytes,
            low_water: (old.low_water, MessageId::LEAST),
            wake: old.wake,
            aside: old.aside,
        }
    }
}

/// Version 1 did not tell of the sender's own words.
#[derive(Deserialize)]
struct EventV1 {
    at: Timestamp,
    kind: EventKind,
    id: Option<MessageId>,
    queue: Option<QueueName>,
    unit: u16,
    recipients: Vec<String>,
    attempt: u32,
    hop: Option<Hop>,
    reply: String,
}

impl Record for Event {
    const VERSION: u8 = 2;

    fn read_old(version: u8, payload: &[u8]) -> Option<postcard::Result<Self>> {
        (version == 1).then(|| postcard::from_bytes(payload).map(|old: EventV1| old.into()))
    }
}

impl From<EventV1> for Event {
    fn from(old: EventV1) -> Self {
        Self {
            at: old.at,
            kind: old.kind,
            id: old.id,
            queue: old.queue,
            unit: old.unit,
            recipients: old.recipients,
            attempt: old.attempt,
            hop: old.hop,
            reply: old.reply,
            tag: None,
            metadata: Vec::new(),
        }
    }
}
