//! Messages by what no index knows: sender, recipient, tag, age. The queues that may hold them are gone through page by page, on
//! one reading thread, and what is looked for is read of each message. An answer ends after so many, or so long, whether it has
//! found any or not, and tells where to go on.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use admin_api::ControlError;
use admin_api::operate::{MessageList, Preview, Selector};
use mail_core::{BadDomain, BadMailbox, Domain, Mailbox, ReversePath, Timestamp};
use queue::{Queue, QueueId, ReadError, StateRecord, UnitKey};
use tokio::time::Instant;

use super::QueueControl;
use super::operate::{
    ANSWER_WITHIN, MAX_SECONDS, NAMED, Target, alone, bad_cursor, cursor, cursor_text, shown, walk, was_there,
};

/// Units after which an answer ends, with the page that takes it there.
pub(super) const PER_ANSWER: usize = if cfg!(test) { 100 } else { 10_000 };

/// Units gone through at a time: what a reading thread is held for.
pub(super) const AT_ONCE: usize = if cfg!(test) { 16 } else { 256 };

/// What is looked for, as proven. All that is given has to hold.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Scan {
    sender: Option<Address>,
    recipient: Option<Mailbox>,
    tag: Option<Arc<str>>,
    older_than: Option<Duration>,
}

/// An address, or all of a domain.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Address {
    /// `<>`.
    Null,
    Mailbox(Mailbox),
    Domain(Domain),
}

/// Where a walk goes on, and of which moment it is: that of its first page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place {
    pub begun: Timestamp,
    pub after: Option<UnitKey>,
    /// Something of the queue it stands in was picked before.
    pub met: bool,
}

/// What a page of a walk has picked.
#[derive(Debug, Default)]
pub(super) struct Picked {
    /// Queues come to that something is picked of, in order; without a scan, all that are come to.
    pub queues: Vec<QueueId>,
    pub units: Vec<UnitKey>,
    /// Left out: others wait in them beside the recipient that is meant.
    pub shared: u64,
    /// How many were gone through.
    pub looked: u64,
    /// To go on after.
    pub next: Option<UnitKey>,
    /// As [`Place::met`], of `next`.
    pub met: bool,
}

/// What of a message is picked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Pick {
    No,
    /// All that waits of it is meant.
    All,
    /// Others wait in it beside the recipient that is meant.
    Shared,
}

/// Reads a sender as commands and the API give it.
pub(crate) fn sender(text: &str) -> Result<String, String> {
    address(text).map(|_| text.to_owned())
}

/// Reads a recipient as commands and the API give it.
pub(crate) fn recipient(text: &str) -> Result<String, String> {
    match address(text)? {
        Address::Null => Err("a recipient is never the null path".into()),
        Address::Mailbox(_) | Address::Domain(_) => Ok(text.to_owned()),
    }
}

/// With or without angle brackets.
fn address(text: &str) -> Result<Address, String> {
    let inner = text.strip_prefix('<').and_then(|text| text.strip_suffix('>'));
    if inner == Some("") {
        return Ok(Address::Null);
    }
    let inner = inner.unwrap_or(text);
    let read = match inner.strip_prefix('@') {
        Some(domain) => domain
            .parse()
            .map(Address::Domain)
            .map_err(|error: BadDomain| error.to_string()),
        None => inner
            .parse()
            .map(Address::Mailbox)
            .map_err(|error: BadMailbox| error.to_string()),
    };
    read.map_err(|why| format!("{text:?} is neither an address nor @ and a domain: {why}"))
}

impl Address {
    fn is(&self, path: &ReversePath) -> bool {
        match (self, path) {
            (Self::Null, ReversePath::Null) => true,
            (Self::Mailbox(meant), ReversePath::Mailbox(mailbox)) => meant == mailbox,
            (Self::Domain(meant), ReversePath::Mailbox(mailbox)) => meant == mailbox.domain(),
            (Self::Null, ReversePath::Mailbox(_))
            | (Self::Mailbox(_) | Self::Domain(_), ReversePath::Null) => false,
        }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Null => f.write_str("<>"),
            Self::Mailbox(mailbox) => mailbox.fmt(f),
            Self::Domain(domain) => write!(f, "@{domain}"),
        }
    }
}

impl fmt::Display for Scan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let parts = [
            self.sender.as_ref().map(|sender| format!("sender {sender}")),
            self.recipient
                .as_ref()
                .map(|recipient| format!("recipient {recipient}")),
            self.tag.as_ref().map(|tag| format!("tag {tag}")),
            self.older_than
                .map(|span| format!("older than {} s", span.as_secs())),
        ];
        let parts: Vec<_> = parts.into_iter().flatten().collect();
        f.write_str(&parts.join(", "))
    }
}

impl Scan {
    /// What of a selector is no matter of queues, if anything. Narrows `queues` to those of the recipient's domain.
    pub fn new(selector: &Selector, queues: &mut queue::Selector) -> Result<Option<Self>, ControlError> {
        let wrong = |text: String| ControlError::Wrong(text);
        let read = |text: &Option<String>| text.as_deref().map(address).transpose().map_err(wrong);
        let mut scan = Self {
            sender: read(&selector.sender)?,
            ..Self::default()
        };
        let domain = match read(&selector.recipient)? {
            None => None,
            Some(Address::Null) => return Err(wrong("a recipient is never the null path".into())),
            Some(Address::Domain(domain)) => Some(domain),
            Some(Address::Mailbox(mailbox)) => {
                let domain = mailbox.domain().clone();
                scan.recipient = Some(mailbox);
                Some(domain)
            }
        };
        if let Some(domain) = domain {
            if queues.domain.as_ref().is_some_and(|other| *other != domain) {
                return Err(wrong(
                    "the recipient is at another domain than the one given".into(),
                ));
            }
            queues.domain = Some(domain);
        }
        scan.tag = selector.tag.as_deref().map(Arc::from);
        scan.older_than = match selector.older_than_seconds {
            None => None,
            Some(seconds) if (1..=MAX_SECONDS).contains(&seconds) => Some(Duration::from_secs(seconds)),
            Some(_) => {
                let text = format!("older_than_seconds is 1 to {MAX_SECONDS}, ten years");
                return Err(wrong(text));
            }
        };
        Ok(Some(scan).filter(|scan| *scan != Self::default()))
    }

    /// Whether the unit is meant, as of a moment. One whose record is damaged is not: nothing tells.
    fn picks(&self, queue: &Queue, unit: &UnitKey, begun: Timestamp) -> Result<Pick, ReadError> {
        let is_older = |span: Duration| begun.since(unit.id.created()) >= span;
        if !self.older_than.is_none_or(is_older) {
            return Ok(Pick::No);
        }
        if self.sender.is_none() && self.recipient.is_none() && self.tag.is_none() {
            return Ok(Pick::All);
        }
        // It may have ended since.
        let Some(envelope) = sound(queue.envelope(unit.id))?.flatten() else {
            return Ok(Pick::No);
        };
        let sender_is = |sender: &Address| sender.is(&envelope.reverse_path);
        if !self.sender.as_ref().is_none_or(sender_is) || (self.tag.is_some() && self.tag != envelope.tag) {
            return Ok(Pick::No);
        }
        let Some(recipient) = &self.recipient else {
            return Ok(Pick::All);
        };
        let (Some(record), Some(state)) = (
            envelope.units.get(usize::from(unit.unit)),
            sound(queue.state(unit.id, unit.unit))?,
        ) else {
            return Ok(Pick::No);
        };
        let is_open = |index: u16, state: &StateRecord| state.open.iter().any(|open| open.recipient == index);
        let meant = (0..u16::MAX)
            .zip(&record.recipients)
            .filter(|(_, one)| one.mailbox == *recipient)
            .filter(|(index, _)| state.as_ref().is_none_or(|state| is_open(*index, state)))
            .count();
        let open = state.map_or(record.recipients.len(), |state| state.open.len());
        Ok(match meant {
            0 => Pick::No,
            meant if meant < open => Pick::Shared,
            _ => Pick::All,
        })
    }
}

/// What was read, or nothing where it is damaged: who tries it tells of that.
fn sound<T>(read: Result<T, ReadError>) -> Result<Option<T>, ReadError> {
    match read {
        Err(ReadError::Damaged { .. }) => Ok(None),
        read => read.map(Some),
    }
}

impl Place {
    /// The first.
    pub fn first(begun: Timestamp) -> Self {
        Self {
            begun,
            after: None,
            met: false,
        }
    }

    /// After a page.
    pub fn then(self, page: &Picked) -> Self {
        Self {
            after: page.next,
            met: page.met,
            ..self
        }
    }

    /// Reads what [`Place::text`] wrote; without it, the first.
    pub fn new(text: Option<&str>, now: Timestamp) -> Result<Self, ControlError> {
        let Some(text) = text else {
            return Ok(Self::first(now));
        };
        let (begun, after) = text.split_once(':').ok_or_else(bad_cursor)?;
        let begun = begun.parse().ok().map(Timestamp);
        let begun = begun.filter(|&begun| begun <= now).ok_or_else(bad_cursor)?;
        let (after, met) = match after.strip_suffix(MET) {
            Some(after) => (after, true),
            None => (after, false),
        };
        let after = cursor(Some(after))?;
        Ok(Self { begun, after, met })
    }

    /// To be given to go on; none at the end.
    pub fn text(&self) -> Option<String> {
        let after = cursor_text(self.after.as_ref()?);
        Some(format!(
            "{}:{after}{}",
            self.begun.0,
            if self.met { MET } else { "" }
        ))
    }
}

/// How a [`Place`] is written whose queue was met.
const MET: &str = ":met";

/// A page of a target from a place on, of units due at `from` or later for which `which` holds: of the next `limit`, and of a
/// scan as many as are meant of the next [`AT_ONCE`], `limit` at the most. `alone`: no unit in which others wait beside the
/// recipient that is meant.
pub(super) fn pick(
    queue: &Queue,
    target: &Target,
    place: Place,
    which: impl Fn(UnitKey) -> bool,
    (from, limit): (Timestamp, usize),
    alone: bool,
) -> Result<Picked, ReadError> {
    let Target::Scan(_, scan) = target else {
        let mut walked = walk(queue, target, place.after, from, limit)?;
        let looked = walked.units.len() as u64;
        walked.units.retain(|&unit| which(unit));
        return Ok(Picked {
            queues: walked.queues,
            units: walked.units,
            looked,
            next: walked.next,
            ..Picked::default()
        });
    };
    // What is due already is not moved, but it tells which queues are meant.
    let walked = walk(queue, target, place.after, Timestamp(0), AT_ONCE)?;
    let mut page = Picked {
        next: walked.next,
        ..Picked::default()
    };
    let mut last = place.after.filter(|_| place.met).map(|after| after.queue);
    for unit in walked.units {
        if page.units.len() >= limit {
            break;
        }
        page.looked += 1;
        if !which(unit) {
            continue;
        }
        match scan.picks(queue, &unit, place.begun)? {
            Pick::No => continue,
            Pick::Shared if alone => {
                page.shared += 1;
                continue;
            }
            Pick::All | Pick::Shared => {}
        }
        if last != Some(unit.queue) {
            page.queues.push(unit.queue);
            last = Some(unit.queue);
        }
        if unit.due >= from {
            page.units.push(unit);
            if page.units.len() >= limit {
                page.next = Some(unit);
            }
        }
    }
    page.met = page.next.is_some_and(|next| last == Some(next.queue));
    Ok(page)
}

/// As long as was worked since then: a scan takes half of a thread at the most, and half of what the disk can read.
pub(super) async fn pause(since: Instant) {
    tokio::time::sleep(since.elapsed()).await;
}

impl QueueControl {
    /// Messages that a scan finds: so many, or fewer and a place to go on from.
    pub(super) async fn found(
        &self,
        target: Target,
        after: Option<UnitKey>,
        limit: usize,
    ) -> Result<MessageList, ControlError> {
        let _one = alone(&self.walking).await?;
        let target = Arc::new(target);
        let mut place = Place {
            after,
            ..Place::first(self.clock.now())
        };
        let (until, mut named) = (self.clock.now() + ANSWER_WITHIN, 0);
        let mut list = MessageList::default();
        loop {
            let (since, of, most) = (Instant::now(), target.clone(), limit - list.messages.len());
            let read = move |queue: &Queue| {
                let page = pick(queue, &of, place, |_| true, (Timestamp(0), most), false)?;
                Ok((shown(queue, page.units, page.next)?, page.looked))
            };
            let (page, looked) = self.read(read).await?;
            list.looked += looked;
            named += page
                .messages
                .iter()
                .map(|message| message.recipients.len())
                .sum::<usize>();
            list.messages.extend(page.messages);
            place.after = cursor(page.next.as_deref())?;
            let is_full = list.messages.len() >= limit || named >= NAMED;
            if place.after.is_none() || is_full || self.is_enough(list.looked, true, until) {
                list.next = page.next;
                return Ok(list);
            }
            pause(since).await;
        }
    }

    /// A page of what a deletion by a scan would delete, as of the moment of the first.
    pub(super) async fn preview_page(
        &self,
        selector: &Selector,
        target: Target,
        after: Option<&str>,
    ) -> Result<Preview, ControlError> {
        let now = self.clock.now();
        let mut place = Place::new(after, now)?;
        let _one = alone(&self.walking).await?;
        let until = self.clock.now() + ANSWER_WITHIN;
        let target = Arc::new(target);
        let mut preview = Preview::default();
        loop {
            let (since, of) = (Instant::now(), target.clone());
            let read = move |queue: &Queue| {
                let which = |unit| was_there(unit, place.begun, now);
                let page = pick(queue, &of, place, which, (Timestamp(0), AT_ONCE), true)?;
                let mut bytes = 0;
                for unit in &page.units {
                    bytes += sound(queue.unit_bytes(unit))?.flatten().unwrap_or(0);
                }
                Ok((page, bytes))
            };
            let (page, bytes) = self.read(read).await?;
            place = place.then(&page);
            preview.queues += page.queues.len() as u64;
            preview.messages += page.units.len() as u64;
            preview.bytes += bytes;
            preview.shared += page.shared;
            preview.looked += page.looked;
            if place.after.is_none() || self.is_enough(preview.looked, true, until) {
                preview.next = place.text();
                let is_last = preview.next.is_none();
                preview.token = is_last.then(|| self.token(selector, place.begun));
                return Ok(preview);
            }
            pause(since).await;
        }
    }
}

#[cfg(test)]
mod tests;
