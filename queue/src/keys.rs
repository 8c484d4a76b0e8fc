//! The keys of every family. All integers are big-endian, so that octet order is number order.
//!
//! | family | key | value |
//! |---|---|---|
//! | body | id · chunk u32 | octets of the body, about [`CHUNK`] at most |
//! | envelope | id | [`crate::records::EnvelopeRecord`] |
//! | state | id · unit u16 | [`crate::records::StateRecord`], from the first deferral on |
//! | state | id · ffff | number of open units, u16, sealed, where a message began with more than one |
//! | due | queue u64 · ms u64 · id · unit u16 | [`crate::records::DueRecord`] |
//! | deadline | second u64 · queue u64 · id | unit u16, sealed |
//! | notice | as deadline, of the time the message came in, or was released; of one that its client named, the highest bit set | unit u16, sealed |
//! | upload | id | [`crate::records::UploadRecord`]: names a body that is still coming in |
//! | queues | `d` · name | queue u64, sealed: the directory |
//! | queues | `r` · queue u64 | [`crate::records::QueueRecord`] |
//! | queues | `g` · route group u16 | [`crate::records::GroupRecord`] |
//! | queues | `c` · wake ms u64 · queue u64 | nothing: the catalogue |
//! | queues | `n` · tenant NUL queue u64, `s` · stream, `m` · domain likewise | nothing: queues by these, empty ones too |
//! | queues | `t` · tenant NUL stream | [`crate::records::TotalsRecord`] |
//! | event | sequence u64 | [`crate::records::Event`] |
//! | count | site · NUL · provider · NUL · tenant · NUL · source | [`crate::counts::CountsRecord`] |
//! | hold | `d` · domain, or `l` · lane | [`crate::records::HoldRecord`] |
//! | hold | `a` · kind · tenant NUL source NUL provider NUL site NUL destination rule, each empty where any | [`crate::AdjustmentRecord`] |
//! | suspension | tenant NUL stream NUL domain NUL queue, each empty where any | [`crate::records::SuspensionRecord`] |
//! | aside | `u` · id · unit u16 | [`crate::records::AsideRecord`] |
//! | aside | `r` · family NUL key | [`crate::records::DamagedRecord`] |
//! | meta | `format`, `store`, `counters` | version u16, name of the store, [`crate::records::Counters`] |
//! | meta | `index` | version u16 of `n`, `s`, `m` and `t` in `queues`; without it they are made anew |
//! | meta | `presence` | [`crate::presence::PresenceRecord`] |
//! | meta | `import ` · stream | [`crate::records::ImportRecord`] |
//!
//! A number that is *sealed* has its CRC32C (little-endian) behind it; where there is none, an early version wrote it.

use std::sync::Arc;

use mail_core::{MessageId, Timestamp, TransferOptions};

use crate::adjustment::{AdjustmentKey, AdjustmentKind};
use crate::names::{HoldScope, QueueId, QueueName, RouteGroup, Scope, UnitKey};
use crate::store::Family;

/// Octets of a body in one value. A body of 10 KiB is one chunk; one of 100 MB is read and written piece by piece.
pub const CHUNK: usize = 512 * 1024;

/// Key in `meta`: the version of the layout, u16.
pub const FORMAT: &[u8] = b"format";
/// Key in `meta`: the store's name, 16 octets, drawn when it is made.
pub const STORE: &[u8] = b"store";
/// Key in `meta`: the version of what [`crate::index`] keeps, u16.
pub const INDEX: &[u8] = b"index";
/// Key in `meta`: [`crate::records::Counters`].
pub const COUNTERS: &[u8] = b"counters";
/// Key in `meta`: [`crate::presence::PresenceRecord`].
pub const PRESENCE: &[u8] = b"presence";

/// Key in `meta`: how far a stream has been taken in.
pub fn import(stream: &[u8; 16]) -> Vec<u8> {
    [b"import ", &stream[..]].concat()
}

/// `body`.
pub fn body(id: MessageId, chunk: u32) -> [u8; 20] {
    let mut key = [0; 20];
    key[..16].copy_from_slice(id.as_bytes());
    key[16..].copy_from_slice(&chunk.to_be_bytes());
    key
}

/// Reads a `body` key.
pub fn parse_body(key: &[u8]) -> Option<(MessageId, u32)> {
    let (of, chunk) = key.split_last_chunk::<4>()?;
    Some((id(of)?, u32::from_be_bytes(*chunk)))
}

/// Reads an `upload` key.
pub fn parse_upload(key: &[u8]) -> Option<MessageId> {
    id(key)
}

/// `state` of a unit.
pub fn state(id: MessageId, unit: u16) -> [u8; 18] {
    let mut key = [0; 18];
    key[..16].copy_from_slice(id.as_bytes());
    key[16..].copy_from_slice(&unit.to_be_bytes());
    key
}

/// `state`: the number of open units.
pub fn open_units(id: MessageId) -> [u8; 18] {
    state(id, u16::MAX)
}

/// `due`.
pub fn due(unit: &UnitKey) -> [u8; 34] {
    let mut key = [0; 34];
    key[..8].copy_from_slice(&unit.queue.0.to_be_bytes());
    key[8..16].copy_from_slice(&unit.due.0.to_be_bytes());
    key[16..32].copy_from_slice(unit.id.as_bytes());
    key[32..].copy_from_slice(&unit.unit.to_be_bytes());
    key
}

/// Where the `due` keys of the next queue begin.
pub fn due_end(queue: QueueId) -> [u8; 8] {
    queue.0.saturating_add(1).to_be_bytes()
}

/// Reads a `due` key.
pub fn parse_due(key: &[u8]) -> Option<UnitKey> {
    let key: &[u8; 34] = key.try_into().ok()?;
    Some(UnitKey {
        queue: QueueId(number(&key[..8])?),
        due: Timestamp(number(&key[8..16])?),
        id: id(&key[16..32])?,
        unit: u16::from_be_bytes([key[32], key[33]]),
    })
}

/// `deadline`. Seconds are rounded up: nothing expires early.
pub fn deadline(expires_at: Timestamp, queue: QueueId, id: MessageId) -> [u8; 32] {
    let mut key = [0; 32];
    key[..8].copy_from_slice(&expires_at.0.div_ceil(1_000).to_be_bytes());
    key[8..16].copy_from_slice(&queue.0.to_be_bytes());
    key[16..].copy_from_slice(id.as_bytes());
    key
}

/// Set in the first octet of a `notice` key whose time the client named (RFC 2852): these are told of at that time, all others
/// as long after theirs as the configuration says.
pub const NAMED: u8 = 0x80;

/// `notice`.
pub fn notice(released_at: Timestamp, transfer: &TransferOptions, queue: QueueId, id: MessageId) -> [u8; 32] {
    match transfer.notify_at() {
        Some(at) => named(deadline(at.max(released_at), queue, id)),
        None => deadline(released_at, queue, id),
    }
}

/// The same key among those of named times.
pub fn named(mut key: [u8; 32]) -> [u8; 32] {
    key[0] |= NAMED;
    key
}

/// Reads moment and queue from a `deadline` key, or from one of those whose time is named.
pub fn parse_end(key: &[u8]) -> Option<(Timestamp, QueueId)> {
    let (second, rest) = key.split_at_checked(8)?;
    let mut second: [u8; 8] = second.try_into().ok()?;
    second[0] &= !NAMED;
    let queue = number(rest.get(..8)?)?;
    let millis = u64::from_be_bytes(second).saturating_mul(1_000);
    Some((Timestamp(millis), QueueId(queue)))
}

/// Reads queue and message from a `deadline` key.
pub fn parse_deadline(key: &[u8]) -> Option<(QueueId, MessageId)> {
    let key: &[u8; 32] = key.try_into().ok()?;
    Some((QueueId(number(&key[8..16])?), id(&key[16..])?))
}

/// `queues`, directory.
pub fn directory(name: &QueueName) -> Vec<u8> {
    let mut key = vec![b'd'];
    // Names hold no NUL, so that the parts are told apart and one tenant's queues lie together.
    key.extend_from_slice(name.tenant.as_bytes());
    key.push(0);
    key.extend_from_slice(name.stream.as_bytes());
    key.push(0);
    key.extend_from_slice(&name.route_group.0.to_be_bytes());
    key.extend_from_slice(name.domain.as_str().as_bytes());
    key
}

/// Reads a directory key.
pub fn parse_directory(key: &[u8]) -> Option<QueueName> {
    let rest = key.strip_prefix(b"d")?;
    let text = |octets| std::str::from_utf8(octets).ok();
    let end = rest.iter().position(|&octet| octet == 0)?;
    let (tenant, rest) = (text(&rest[..end])?, &rest[end + 1..]);
    let end = rest.iter().position(|&octet| octet == 0)?;
    let (stream, rest) = (text(&rest[..end])?, &rest[end + 1..]);
    let (group, domain) = rest.split_first_chunk::<2>()?;
    Some(QueueName {
        tenant: tenant.into(),
        stream: stream.into(),
        route_group: RouteGroup(u16::from_be_bytes(*group)),
        domain: text(domain)?.parse().ok()?,
    })
}

/// `queues`, record.
pub fn record(queue: QueueId) -> [u8; 9] {
    let mut key = [b'r'; 9];
    key[1..].copy_from_slice(&queue.0.to_be_bytes());
    key
}

/// `queues`, catalogue.
pub fn catalogue(wake: Timestamp, queue: QueueId) -> [u8; 17] {
    let mut key = [b'c'; 17];
    key[1..9].copy_from_slice(&wake.0.to_be_bytes());
    key[9..].copy_from_slice(&queue.0.to_be_bytes());
    key
}

/// Reads a catalogue key.
pub fn parse_catalogue(key: &[u8]) -> Option<(Timestamp, QueueId)> {
    let key: &[u8; 17] = key.try_into().ok()?;
    Some((Timestamp(number(&key[1..9])?), QueueId(number(&key[9..])?)))
}

/// By what queues are indexed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum IndexedBy {
    /// Who sends.
    Tenant = b'n',
    /// Which of their streams.
    Stream = b's',
    /// Where to.
    Domain = b'm',
}

/// `queues`, index: where a name's queues begin; names hold no NUL.
pub fn index_prefix(by: IndexedBy, name: &str) -> Vec<u8> {
    let mut key = Vec::with_capacity(name.len() + 10);
    key.push(by as u8);
    key.extend_from_slice(name.as_bytes());
    key.push(0);
    key
}

/// `queues`, index.
pub fn index(by: IndexedBy, name: &str, queue: QueueId) -> Vec<u8> {
    let mut key = index_prefix(by, name);
    key.extend_from_slice(&queue.0.to_be_bytes());
    key
}

/// Reads the queue's number from an index key.
pub fn parse_index(key: &[u8]) -> Option<QueueId> {
    let (_, queue) = key.split_last_chunk::<8>()?;
    Some(QueueId(u64::from_be_bytes(*queue)))
}

/// `queues`, totals.
pub fn totals(tenant: &str, stream: &str) -> Vec<u8> {
    let mut key = index_prefix(IndexedBy::Tenant, tenant);
    key[0] = TOTALS;
    key.extend_from_slice(stream.as_bytes());
    key
}

/// First octet of the keys of totals.
pub const TOTALS: u8 = b't';

/// Reads tenant and stream from a key of totals.
pub fn parse_totals(key: &[u8]) -> Option<(&str, &str)> {
    let names = std::str::from_utf8(key.strip_prefix(&[TOTALS])?).ok()?;
    names.split_once('\0')
}

/// `queues`, name of a route group.
pub fn route_group(group: RouteGroup) -> [u8; 3] {
    let [high, low] = group.0.to_be_bytes();
    [b'g', high, low]
}

/// Behind the last key of a route group.
pub fn route_groups_end() -> [u8; 1] {
    [b'g' + 1]
}

/// Reads the key of a route group.
pub fn parse_route_group(key: &[u8]) -> Option<RouteGroup> {
    match key {
        &[b'g', high, low] => Some(RouteGroup(u16::from_be_bytes([high, low]))),
        _ => None,
    }
}

/// `event`.
pub fn event(sequence: u64) -> [u8; 8] {
    sequence.to_be_bytes()
}

/// `hold`.
pub fn hold(scope: &HoldScope) -> Vec<u8> {
    let (mark, name) = match scope {
        HoldScope::Domain(domain) => (b'd', domain.as_str()),
        HoldScope::Lane(lane) => (b'l', lane.as_str()),
    };
    let mut key = vec![mark];
    key.extend_from_slice(name.as_bytes());
    key
}

/// Reads a key made by [`hold`].
pub fn parse_hold(key: &[u8]) -> Option<HoldScope> {
    let (mark, name) = key.split_first()?;
    let name = std::str::from_utf8(name).ok()?;
    match mark {
        b'd' => Some(HoldScope::Domain(name.parse().ok()?)),
        b'l' => Some(HoldScope::Lane(name.to_owned())),
        _ => None,
    }
}

/// First octet of the keys of adjustments in `hold`.
pub const ADJUSTMENT: u8 = b'a';

/// `hold`: where those that rest by themselves begin.
pub const HOLDS: u8 = ADJUSTMENT + 1;

/// `hold`, adjustment. Names hold no NUL, so that the parts are told apart.
pub fn adjustment(key: &AdjustmentKey) -> Vec<u8> {
    let Scope {
        site,
        provider,
        tenant,
        source,
    } = &key.scope;
    let parts = [tenant, source, provider, site, &key.rule];
    let parts: Vec<&str> = parts
        .into_iter()
        .map(|part| part.as_deref().unwrap_or_default())
        .collect();
    let mut octets = vec![ADJUSTMENT, key.kind.mark()];
    octets.extend_from_slice(parts.join("\0").as_bytes());
    octets
}

/// Reads the key of an adjustment.
pub fn parse_adjustment(key: &[u8]) -> Option<AdjustmentKey> {
    let (&[ADJUSTMENT, mark], names) = key.split_first_chunk::<2>()? else {
        return None;
    };
    let mut parts = std::str::from_utf8(names).ok()?.split('\0');
    let mut part =
        || Some(parts.next()?).map(|text| Some(text).filter(|text| !text.is_empty()).map(Arc::from));
    let (tenant, source, provider, site, rule) = (part()?, part()?, part()?, part()?, part()?);
    Some(AdjustmentKey {
        scope: Scope {
            site,
            provider,
            tenant,
            source,
        },
        rule,
        kind: AdjustmentKind::of_mark(mark)?,
    })
}

/// `aside` of a unit.
pub fn aside(id: MessageId, unit: u16) -> [u8; 19] {
    let mut key = [b'u'; 19];
    key[1..].copy_from_slice(&state(id, unit));
    key
}

/// Where the `aside` keys of units end.
pub fn aside_end() -> [u8; 1] {
    [b'u' + 1]
}

/// Reads the `aside` key of a unit.
pub fn parse_aside(key: &[u8]) -> Option<(MessageId, u16)> {
    let key: &[u8; 19] = key.try_into().ok()?;
    Some((id(&key[1..17])?, u16::from_be_bytes([key[17], key[18]])))
}

/// `aside` of a record of another family.
pub fn aside_record(family: Family, key: &[u8]) -> Vec<u8> {
    [b"r", family.name().as_bytes(), &[0], key].concat()
}

/// Where the `aside` keys of records end.
pub fn aside_records_end() -> [u8; 1] {
    [b'r' + 1]
}

/// Reads the `aside` key of a record: family and key.
pub fn parse_aside_record(key: &[u8]) -> Option<(Family, &[u8])> {
    let rest = key.strip_prefix(b"r")?;
    let end = rest.iter().position(|&octet| octet == 0)?;
    let family = Family::named(std::str::from_utf8(&rest[..end]).ok()?)?;
    Some((family, &rest[end + 1..]))
}

/// A big-endian u64.
pub fn number(octets: &[u8]) -> Option<u64> {
    Some(u64::from_be_bytes(octets.try_into().ok()?))
}

fn id(octets: &[u8]) -> Option<MessageId> {
    Some(MessageId::from_bytes(octets.try_into().ok()?))
}
