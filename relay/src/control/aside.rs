//! What is set aside, for operators.

use admin_api::aside::{AsideEntry, AsideList, AsideMessage, AsideQuery};
use admin_api::{ControlError, RecipientState, Time};
use mail_core::MessageId;
use queue::{AsideCause, Queue, ReadError, SetAside};

/// Messages in a page, unless said.
const PAGE: usize = 100;

/// Records shown beside the first page.
const MAX_RECORDS: usize = 100;

pub(super) fn state(cause: AsideCause) -> RecipientState {
    match cause {
        AsideCause::Damaged => RecipientState::Damaged,
        AsideCause::Parked => RecipientState::Parked,
    }
}

/// Reads what [`list`] wrote as `next`.
pub(super) fn cursor(text: Option<&str>) -> Result<Option<(MessageId, u16)>, ControlError> {
    let Some(text) = text else {
        return Ok(None);
    };
    let parse = || {
        let (id, unit) = text.split_once('.')?;
        Some((id.parse().ok()?, unit.parse().ok()?))
    };
    let wrong = || ControlError::Wrong("after is to be the `next` of an answer".into());
    parse().map(Some).ok_or_else(wrong)
}

pub(super) fn list(
    queue: &Queue,
    query: &AsideQuery,
    after: Option<(MessageId, u16)>,
) -> Result<AsideList, ReadError> {
    let (found, more) = queue.set_aside_units(after, query.limit.unwrap_or(PAGE))?;
    let next = found
        .last()
        .filter(|_| more)
        .map(|last| format!("{}.{}", last.unit.id, last.unit.unit));
    let mut messages = Vec::with_capacity(found.len());
    for SetAside { unit, record } in found {
        let name = match queue.info(unit.queue) {
            Ok(info) => info.map(|info| info.name),
            Err(ReadError::Damaged { .. }) => None,
            Err(error) => return Err(error),
        };
        messages.push(AsideMessage {
            id: unit.id.to_string(),
            queue: unit.queue.0,
            tenant: name.as_ref().map(|name| name.tenant.to_string()),
            stream: name.as_ref().map(|name| name.stream.to_string()),
            domain: name.as_ref().map(|name| name.domain.to_string()),
            cause: state(record.cause),
            since: Time(record.since),
            why: record.why,
            expires_at: Time(record.was.expires_at),
        });
    }
    let records = match after {
        None => queue.set_aside_records(None, MAX_RECORDS)?,
        Some(_) => Vec::new(),
    };
    let records = records.into_iter().map(|aside| AsideEntry {
        family: aside.family.name().to_owned(),
        key: aside.key.iter().map(|octet| format!("{octet:02x}")).collect(),
        since: Time(aside.record.since),
        what: aside.record.what,
        bytes: aside.record.octets.len(),
    });
    Ok(AsideList {
        messages,
        records: records.collect(),
        next,
    })
}
