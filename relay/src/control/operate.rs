//! What operators change: retries, deletions; and the messages that wait, page by page.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use admin_api::operate::{
    Delete, Deletion, MessageList, Preview, Progress, Retry, Selector, WaitingMessage, Waits, WaitsFor,
};
use admin_api::{Caller, ControlError, QueueSummary, RecipientState, RecipientView, Time};
use aws_lc_rs::digest;
use mail_core::{Mailbox, MessageId, Timestamp};
use queue::{Queue, QueueId, ReadError, UnitKey};
use tokio::sync::{Mutex, MutexGuard};
use tokio::time::Instant;

use super::scan::{self, Place, Scan, pick};
use super::view::{Told, recipients_in_queue};
use super::{LOOKED_AT, PATIENCE, QueueControl, WHY_PATIENCE};
use crate::delivery::exchange::{self, Done, Ordered};

/// Units ordered at once, so that deliveries' own ends have room beside them.
const AT_ONCE: usize = 128;

/// The same of a deletion, which goes through far more of them. A message that comes in waits for the group they are in: of 128 that made
/// its median 2.1 ms instead of 1.1, of 32 it is the same.
const DELETED_AT_ONCE: usize = 32;

/// Units gone through in one answer; queues in one step of it, once they are so many.
const PER_ANSWER: usize = 1_000;

/// Queue records read at a time.
pub(super) const QUEUES: usize = 1_000;

/// An answer comes after this long, done or not.
pub(super) const ANSWER_WITHIN: Duration = Duration::from_secs(5);

/// Recipients after which a page of messages ends, though it could hold more messages.
pub(super) const NAMED: usize = if cfg!(test) { 5 } else { 20_000 };

/// Seconds that something is set to last at the most: ten years, of 365 days.
pub(super) const MAX_SECONDS: u64 = 10 * 365 * 86_400;

/// Octets of a reason.
const MAX_REASON: usize = 500;

/// Which mail is meant, as proven.
pub(super) enum Target {
    Queues(queue::Selector),
    /// What is looked for in these.
    Scan(queue::Selector, Scan),
    Message(MessageId),
    /// Those of its units that are set aside.
    SetAside(MessageId),
}

/// What a walk found.
#[derive(Default)]
pub(super) struct Walked {
    /// Queues come to, in order.
    pub queues: Vec<QueueId>,
    pub units: Vec<UnitKey>,
    /// To go on after.
    pub next: Option<UnitKey>,
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Queues(selector) => selector.fmt(f),
            Self::Scan(queues, scan) if *queues == queue::Selector::default() => scan.fmt(f),
            Self::Scan(queues, scan) => write!(f, "{queues}, {scan}"),
            Self::Message(id) => write!(f, "message {id}"),
            Self::SetAside(id) => write!(f, "message {id}, where it is set aside"),
        }
    }
}

impl Target {
    pub(super) fn new(selector: &Selector) -> Result<Self, ControlError> {
        let wrong = |text: String| ControlError::Wrong(text);
        let mut queues = queue_selector(selector)?;
        let scan = Scan::new(selector, &mut queues)?;
        let any = queues != queue::Selector::default() || scan.is_some();
        match &selector.message {
            Some(_) if any || selector.all => Err(wrong("a message is named alone".into())),
            Some(id) => {
                let id = id.parse();
                let which = if selector.set_aside {
                    Self::SetAside
                } else {
                    Self::Message
                };
                id.map(which)
                    .map_err(|error: mail_core::BadMessageId| wrong(error.to_string()))
            }
            None if selector.set_aside => Err(wrong("name the message that is set aside".into())),
            None if any == selector.all => Err(wrong(
                "name a tenant, a stream, a domain, a queue, a sender, a recipient, a tag or an age, or else say all".into(),
            )),
            None => Ok(match scan {
                Some(scan) => Self::Scan(queues, scan),
                None => Self::Queues(queues),
            }),
        }
    }
}

pub(super) fn queue_selector(selector: &Selector) -> Result<queue::Selector, ControlError> {
    let domain = |text: &String| {
        text.parse()
            .map_err(|error| ControlError::Wrong(format!("{text:?} is no domain: {error}")))
    };
    let domain = selector.domain.as_ref().map(domain).transpose()?;
    for name in [&selector.tenant, &selector.stream, &selector.tag]
        .into_iter()
        .flatten()
    {
        if name.is_empty() || name.contains('\0') {
            return Err(ControlError::Wrong("a name is empty, or holds NUL".into()));
        }
    }
    Ok(queue::Selector {
        tenant: selector.tenant.as_deref().map(Arc::from),
        stream: selector.stream.as_deref().map(Arc::from),
        domain,
        queue: selector.queue.map(QueueId),
    })
}

fn waits(why: exchange::Why) -> Waits {
    let (what, until, cause) = match why.waits {
        exchange::Waits::Underway => (WaitsFor::Underway, None, None),
        exchange::Waits::Suspended { until, cause } => (WaitsFor::Resume, until, Some(cause)),
        exchange::Waits::Adjusted { until, cause } => (WaitsFor::Adjustment, until, Some(cause)),
        exchange::Waits::Rests { until, cause } => (WaitsFor::Rest, Some(until), Some(cause)),
        exchange::Waits::Throttled { until, limit } => (WaitsFor::Limit, Some(until), Some(limit)),
        exchange::Waits::Reserved { rest_of } => (WaitsFor::Reserved, None, Some(rest_of)),
        exchange::Waits::Connection => (WaitsFor::Connection, None, None),
        exchange::Waits::Turn => (WaitsFor::Turn, None, None),
    };
    Waits {
        what,
        until: until.map(Time),
        cause,
        fallback: why.fallback,
    }
}

/// A reason that others are to read.
pub(super) fn reason(text: &str) -> Result<&str, ControlError> {
    let text = text.trim();
    if text.is_empty() || text.len() > MAX_REASON || text.contains(char::is_control) {
        let text = format!("a reason is needed: one line of {MAX_REASON} octets at the most");
        return Err(ControlError::Wrong(text));
    }
    Ok(text)
}

/// When what an operator sets ends by itself. A length is counted by our own clock: that of whoever asks may be another one, and ours
/// may have been wrong since the start.
pub(super) fn end(
    until: Option<Time>,
    for_seconds: Option<u64>,
    now: Timestamp,
) -> Result<Option<Timestamp>, ControlError> {
    let wrong = |text: String| Err(ControlError::Wrong(text));
    match (until, for_seconds) {
        (None, None) => Ok(None),
        (Some(_), Some(_)) => wrong("give until or for_seconds, not both".into()),
        (Some(Time(until)), None) if until <= now => wrong("until is past already".into()),
        (Some(Time(until)), None) => Ok(Some(until)),
        (None, Some(seconds)) if (1..=MAX_SECONDS).contains(&seconds) => {
            Ok(Some(now + Duration::from_secs(seconds)))
        }
        (None, Some(_)) => wrong(format!(
            "for_seconds is 1 to {MAX_SECONDS}, ten years; what has no end is set without it"
        )),
    }
}

impl QueueControl {
    /// Says of each recipient in the queue what it waits for. `units` are those of its message.
    pub(super) async fn explain(&self, recipients: &mut [RecipientView], units: Vec<UnitKey>) {
        let until = tokio::time::Instant::now() + WHY_PATIENCE;
        for unit in units {
            let of_unit = |recipient: &&mut RecipientView| {
                recipient.queue == Some(unit.queue.0) && recipient.next_due == Some(Time(unit.due))
            };
            let mut waiting = recipients.iter_mut().filter(of_unit).peekable();
            // Of a message to very many destinations, the first ones.
            if waiting.peek().is_some() && tokio::time::Instant::now() < until {
                let waits = self.why(unit).await;
                waiting.for_each(|recipient| recipient.waits = waits.clone());
            }
        }
    }

    /// Says of each queue in memory what it waits for, whose first unit this is.
    pub(super) async fn explain_all(&self, queues: &mut [QueueSummary], firsts: Vec<Option<UnitKey>>) {
        let why = tokio::time::timeout(WHY_PATIENCE, self.doors.why_all(firsts.into()));
        for (number, found) in why.await.unwrap_or_default() {
            if let Some(queue) = queues.get_mut(number) {
                queue.waits = Some(waits(found));
            }
        }
    }

    pub(super) async fn why(&self, unit: UnitKey) -> Option<Waits> {
        let why = tokio::time::timeout(WHY_PATIENCE, self.doors.why(unit)).await;
        why.ok().flatten().map(waits)
    }

    pub(super) async fn retry_now(&self, retry: Retry, by: Caller) -> Result<Progress, ControlError> {
        let target = Target::new(&retry.selector)?;
        // All pages are of the moment of the first.
        let place = Place::new(retry.after.as_deref(), self.clock.now())?;
        let due = place.begun;
        if place.after.is_none() {
            tracing::info!(selector = %target, by = %by.0, "retrying");
        }
        // What is due already needs no moving, and what was moved is not come by again.
        let from = due + Duration::from_millis(1);
        let what = Ordered::Retry { by: by.0, due };
        let (mut progress, place) = self.go_through(target, place, from, |_| true, &what).await?;
        progress.next = place.text();
        Ok(progress)
    }

    pub(super) async fn delete_some(&self, delete: Delete, by: Caller) -> Result<Deletion, ControlError> {
        let target = Target::new(&delete.selector)?;
        let tell = delete.tell.as_deref().map(reason).transpose()?.map(Arc::from);
        let now = self.clock.now();
        let Some(given) = delete.token else {
            let preview = match target {
                Target::Scan(..) => {
                    self.preview_page(&delete.selector, target, delete.after.as_deref())
                        .await
                }
                _ => self.preview(&delete.selector, target).await,
            };
            return preview.map(Deletion::Preview);
        };
        let shown = given.split('-').next();
        let shown = shown.and_then(|shown| u64::from_str_radix(shown, 16).ok().map(Timestamp));
        let Some(shown) = shown.filter(|&shown| given == self.token(&delete.selector, shown)) else {
            let text = "the token is not the one of this selector's preview; ask for a preview first";
            return Err(ControlError::Conflict(text.into()));
        };
        let after = cursor(delete.after.as_deref())?;
        if after.is_none() {
            tracing::warn!(selector = %target, by = %by.0, told = delete.tell.is_some(), "deleting");
        }
        // What a scan looks for is as it was previewed, whatever has grown old since.
        let place = Place {
            after,
            ..Place::first(shown)
        };
        let which = move |unit| was_there(unit, shown, now);
        let what = Ordered::Delete { by: by.0, tell };
        let (mut progress, place) = self.go_through(target, place, Timestamp(0), which, &what).await?;
        progress.next = place.after.as_ref().map(cursor_text);
        Ok(Deletion::Progress(progress))
    }

    /// What a deletion would delete, where an index tells.
    async fn preview(&self, selector: &Selector, target: Target) -> Result<Preview, ControlError> {
        let token = Some(self.token(selector, self.clock.now()));
        let (queues, messages, bytes) = self.read(move |queue| count(queue, &target)).await?;
        Ok(Preview {
            queues,
            messages,
            bytes,
            token,
            ..Preview::default()
        })
    }

    /// Only who has seen the preview of a selector knows it, while this process lives. It tells when that was.
    pub(super) fn token(&self, selector: &Selector, shown: Timestamp) -> String {
        let text = format!("{:?} {selector:?} {}", self.secret, shown.0);
        let sum = digest::digest(&digest::SHA256, text.as_bytes());
        let octets = sum.as_ref().iter().take(8);
        let sum: String = octets.map(|octet| format!("{octet:02x}")).collect();
        format!("{:x}-{sum}", shown.0)
    }

    /// Has each unit of a target that is due at `from` or later, and for which `which` holds, dealt with by the shard that
    /// owns it. Returns what was done and where to go on.
    async fn go_through(
        &self,
        target: Target,
        mut place: Place,
        from: Timestamp,
        which: impl Fn(UnitKey) -> bool + Copy + Send + 'static,
        what: &Ordered,
    ) -> Result<(Progress, Place), ControlError> {
        let _one = alone(&self.walking).await?;
        let until = self.clock.now() + ANSWER_WITHIN;
        let (at_once, deletes) = match what {
            Ordered::Delete { .. } => (DELETED_AT_ONCE, true),
            Ordered::Retry { .. } => (AT_ONCE, false),
        };
        let scans = matches!(target, Target::Scan(..));
        let target = Arc::new(target);
        let (mut progress, mut ordered) = (Progress::default(), 0);
        loop {
            let (since, of) = (Instant::now(), target.clone());
            let read = move |queue: &Queue| pick(queue, &of, place, which, (from, at_once), deletes);
            let page = self.read(read).await?;
            if !deletes {
                let heard = tokio::time::timeout(PATIENCE, self.doors.hurry(&page.queues)).await;
                heard.map_err(|_| ControlError::Busy)?;
            }
            progress.looked += page.looked;
            progress.shared += page.shared;
            ordered += page.units.len();
            place = place.then(&page);
            let answers = tokio::time::timeout(PATIENCE, self.doors.order(&page.units, what)).await;
            for done in answers.map_err(|_| ControlError::Busy)? {
                match done {
                    Done::Done => progress.done += 1,
                    Done::Busy => progress.busy += 1,
                    Done::Failed => progress.failed += 1,
                    Done::Gone => {}
                }
            }
            let is_enough = ordered >= PER_ANSWER || self.is_enough(progress.looked, scans, until);
            if place.after.is_none() || is_enough {
                return Ok((progress, place));
            }
            if scans {
                scan::pause(since).await;
            }
        }
    }

    /// Whether an answer has gone through enough, or long enough.
    pub(super) fn is_enough(&self, looked: u64, scans: bool, until: Timestamp) -> bool {
        let most = if scans { scan::PER_ANSWER } else { PER_ANSWER };
        looked >= most as u64 || self.clock.now() >= until
    }
}

/// Whether a unit was there when a deletion was previewed. Ids of the future come from before the clock was set back.
pub(super) fn was_there(unit: UnitKey, shown: Timestamp, now: Timestamp) -> bool {
    let created = unit.id.created();
    created <= shown || created > now
}

pub(super) async fn alone(lock: &Mutex<()>) -> Result<MutexGuard<'_, ()>, ControlError> {
    let guard = tokio::time::timeout(PATIENCE, lock.lock()).await;
    guard.map_err(|_| ControlError::Busy)
}

pub(super) fn store(error: queue::CommitError) -> ControlError {
    ControlError::Store(error.to_string())
}

/// Units of a target due at `from` or later, after the one named.
pub(super) fn walk(
    queue: &Queue,
    target: &Target,
    after: Option<UnitKey>,
    from: Timestamp,
    limit: usize,
) -> Result<Walked, ReadError> {
    let mut walked = Walked::default();
    let selector = match target {
        Target::Queues(selector) | Target::Scan(selector, _) => selector,
        Target::Message(_) | Target::SetAside(_) => {
            let mut units = units_of(queue, target)?;
            units.sort_by_key(|(unit, _)| (unit.queue, unit.unit));
            let is_next =
                |unit: UnitKey| after.is_none_or(|after| (unit.queue, unit.unit) > (after.queue, after.unit));
            for (unit, aside) in units.into_iter().filter(|(unit, _)| is_next(*unit)) {
                if walked.units.len() >= limit {
                    walked.next = walked.units.last().copied();
                    break;
                }
                walked.queues.push(unit.queue);
                // What is set aside is to be moved whatever its time.
                if aside || unit.due >= from {
                    walked.units.push(unit);
                }
            }
            return Ok(walked);
        }
    };
    // The queue that was left half-way comes first.
    let mut next_queue = after.map(|after| QueueId(after.queue.0.saturating_sub(1)));
    let is_first = after.is_none_or(|after| after.queue.0 == 0);
    if is_first {
        next_queue = None;
    }
    let mut looked = 0;
    loop {
        // Most queues looked at hold mail, or else most don't.
        let most = if looked == 0 { limit.min(QUEUES) } else { QUEUES };
        let page = queue.queues_of(selector, next_queue, most)?;
        looked += page.looked;
        for (id, record) in page.queues {
            if record.count == 0 {
                continue;
            }
            let mut begin = (from, MessageId::LEAST, 0);
            match after {
                Some(after) if after.queue == id => {
                    begin = begin.max((after.due, after.id, after.unit.saturating_add(1)));
                }
                _ => walked.queues.push(id),
            }
            let (units, more) = queue.due(id, begin, limit - walked.units.len())?;
            walked.units.extend(units);
            if more || walked.units.len() >= limit {
                walked.next = walked.units.last().copied();
                return Ok(walked);
            }
        }
        let Some(last) = page.next else {
            return Ok(walked);
        };
        if looked >= LOOKED_AT || walked.queues.len() >= PER_ANSWER {
            walked.next = Some(UnitKey {
                queue: last,
                due: Timestamp::MAX,
                id: MessageId::from_bytes([u8::MAX; 16]),
                unit: u16::MAX,
            });
            return Ok(walked);
        }
        next_queue = Some(last);
    }
}

/// Those units of the message meant that have not ended, and whether each is set aside; of a message whose envelope is
/// damaged those are known that are.
fn units_of(queue: &Queue, target: &Target) -> Result<Vec<(UnitKey, bool)>, ReadError> {
    let (id, all) = match target {
        Target::Queues(_) | Target::Scan(..) => return Ok(Vec::new()),
        Target::Message(id) => (*id, true),
        Target::SetAside(id) => (*id, false),
    };
    let message = match queue.message(id) {
        Err(ReadError::Damaged { .. }) => None,
        message => message?,
    };
    if let Some(message) = message.filter(|_| all) {
        let units = message.units.into_iter();
        return Ok(units.map(|unit| (unit.key, unit.aside.is_some())).collect());
    }
    let aside = queue.set_aside_of(id)?;
    Ok(aside.into_iter().map(|aside| (aside.unit, true)).collect())
}

/// Queues, messages and octets of a target; of a scan's, those that it goes through.
fn count(queue: &Queue, target: &Target) -> Result<(u64, u64, u64), ReadError> {
    let selector = match target {
        Target::Message(id) | Target::SetAside(id) => {
            let units = units_of(queue, target)?.len() as u64;
            let size = match queue.envelope(*id) {
                Ok(envelope) => {
                    envelope.map_or(0, |envelope| envelope.prefix.len() as u64 + envelope.body_bytes)
                }
                Err(ReadError::Damaged { .. }) => 0,
                Err(error) => return Err(error),
            };
            return Ok((units, units, units * size));
        }
        Target::Queues(selector) | Target::Scan(selector, _) => selector,
    };
    let (mut queues, mut messages, mut bytes) = (0, 0, 0);
    if selector.domain.is_none() && selector.queue.is_none() {
        let is_meant =
            |meant: &Option<Arc<str>>, name: &str| meant.as_deref().is_none_or(|meant| meant == name);
        for totals in queue.totals()? {
            if is_meant(&selector.tenant, &totals.tenant) && is_meant(&selector.stream, &totals.stream) {
                queues += totals.total.queues;
                messages += totals.total.count;
                bytes += totals.total.bytes;
            }
        }
        return Ok((queues, messages, bytes));
    }
    let mut after = None;
    loop {
        let page = queue.queues_of(selector, after, QUEUES)?;
        for (_, record) in page.queues.iter().filter(|(_, record)| record.count > 0) {
            queues += 1;
            messages += record.count;
            bytes += record.bytes;
        }
        after = page.next;
        if after.is_none() {
            return Ok((queues, messages, bytes));
        }
    }
}

/// A page of the messages that wait, by an index.
pub(super) fn messages(
    queue: &Queue,
    target: &Target,
    after: Option<UnitKey>,
    limit: usize,
) -> Result<MessageList, ReadError> {
    let walked = walk(queue, target, after, Timestamp(0), limit)?;
    let looked = walked.units.len() as u64;
    let list = shown(queue, walked.units, walked.next)?;
    Ok(MessageList { looked, ..list })
}

/// These units as operators see them, and where to go on: at `next`, or where very many recipients are named already.
pub(super) fn shown(
    queue: &Queue,
    units: Vec<UnitKey>,
    next: Option<UnitKey>,
) -> Result<MessageList, ReadError> {
    let mut list = MessageList {
        messages: Vec::with_capacity(units.len()),
        looked: 0,
        next: next.as_ref().map(cursor_text),
    };
    let mut last = None;
    let mut named = 0;
    for unit in units {
        if named >= NAMED {
            list.next = last.as_ref().map(cursor_text);
            break;
        }
        last = Some(unit);
        // It may have ended since; what is damaged is found when it is tried.
        let (message, info) = match (queue.message(unit.id), queue.info(unit.queue)) {
            (Ok(message), Ok(info)) => (message, info),
            (Err(ReadError::Damaged { .. }), _) | (_, Err(ReadError::Damaged { .. })) => continue,
            (Err(error), _) | (_, Err(error)) => return Err(error),
        };
        let (Some(mut message), Some(info)) = (message, info) else {
            continue;
        };
        let name = info.name;
        message.units.retain(|open| open.key == unit);
        let mut recipients = recipients_in_queue(&message, &Told::new(&[]));
        recipients
            .retain(|recipient| matches!(recipient.state, RecipientState::Queued | RecipientState::Deferred));
        named += recipients.len();
        let sender = message.envelope.reverse_path.mailbox();
        list.messages.push(WaitingMessage {
            id: unit.id.to_string(),
            queue: unit.queue.0,
            tenant: name.tenant.to_string(),
            stream: name.stream.to_string(),
            domain: name.domain.to_string(),
            sender: sender.map(Mailbox::to_string).unwrap_or_default(),
            bytes: message.envelope.body_bytes,
            received_at: Time(message.envelope.received_at),
            recipients,
        });
    }
    Ok(list)
}

pub(super) fn cursor_text(unit: &UnitKey) -> String {
    format!("{}.{}.{}.{}", unit.queue.0, unit.due.0, unit.id, unit.unit)
}

/// Reads what [`cursor_text`] wrote.
pub(super) fn cursor(text: Option<&str>) -> Result<Option<UnitKey>, ControlError> {
    let Some(text) = text else {
        return Ok(None);
    };
    let parse = || {
        let mut parts = text.split('.');
        let unit = UnitKey {
            queue: QueueId(parts.next()?.parse().ok()?),
            due: Timestamp(parts.next()?.parse().ok()?),
            id: parts.next()?.parse().ok()?,
            unit: parts.next()?.parse().ok()?,
        };
        parts.next().is_none().then_some(unit)
    };
    parse().map(Some).ok_or_else(bad_cursor)
}

pub(super) fn bad_cursor() -> ControlError {
    ControlError::Wrong("after is to be the `next` of an answer".into())
}
