//! What is set aside: units that can't be worked on, because what the store holds of them does not verify or because working
//! on them brings out a mistake of ours, and records that do not verify. None of it is served; all of it is kept, counted, and
//! listed.
//!
//! A unit set aside has left the due index, so that nobody tries it, and counts and expires as any other. It comes back by
//! [`Queue::retry`], and ends by [`Queue::settle`], both with the claim that [`Queue::set_aside_units`] gives.

use std::sync::atomic::{AtomicU64, Ordering};

use mail_core::{Mailbox, MessageId, Timestamp};

use crate::committer::{Request, read};
use crate::keys;
use crate::names::{QueueId, UnitKey};
use crate::records::{AsideCause, AsideRecord, DamagedRecord, EventKind, decode};
use crate::store::Family;
use crate::{CommitError, Queue, ReadError};

/// Octets of a reason at the most.
const LONGEST_WHY: usize = 1_000;

/// Why a unit is set aside, and when.
#[derive(Clone, Debug)]
pub struct Aside {
    pub(crate) cause: AsideCause,
    pub(crate) why: String,
    pub(crate) at: Timestamp,
    /// Where the damage is.
    pub(crate) family: Option<Family>,
}

impl Aside {
    /// What the store holds of it did not read.
    pub fn damaged(error: &ReadError, at: Timestamp) -> Self {
        let family = match error {
            ReadError::Damaged { family, .. } => Family::named(family),
            ReadError::Store(_) => None,
        };
        Self {
            family,
            ..Self::new(AsideCause::Damaged, error.to_string(), at)
        }
    }

    /// An outcome could not be recorded, for this damage; `outcome` says what it was, so that nobody sends the mail twice.
    pub fn unrecorded(error: &CommitError, outcome: &str, at: Timestamp) -> Self {
        let why = format!("{error}; what became of it is not recorded: {outcome}");
        Self::new(AsideCause::Damaged, why, at)
    }

    /// Working on it failed in a way that would come again: a mistake of ours.
    pub fn parked(why: impl Into<String>, at: Timestamp) -> Self {
        Self::new(AsideCause::Parked, why.into(), at)
    }

    /// The reason.
    pub fn why(&self) -> &str {
        &self.why
    }

    fn new(cause: AsideCause, mut why: String, at: Timestamp) -> Self {
        let end = (0..=LONGEST_WHY.min(why.len()))
            .rev()
            .find(|&end| why.is_char_boundary(end));
        why.truncate(end.unwrap_or(0));
        why.retain(|c| !c.is_control());
        Self {
            cause,
            why,
            at,
            family: None,
        }
    }
}

/// A record of some other family that did not verify.
#[derive(Clone, Debug)]
pub(crate) struct Met {
    pub(crate) family: Family,
    pub(crate) key: Vec<u8>,
    pub(crate) what: &'static str,
    pub(crate) at: Timestamp,
}

/// Damaged records by family, since the start.
#[derive(Debug, Default)]
pub(crate) struct DamageCounts([AtomicU64; Family::ALL.len()]);

impl DamageCounts {
    pub(crate) fn count(&self, family: Option<Family>) {
        if let Some(family) = family {
            self.0[family as usize].fetch_add(1, Ordering::Relaxed);
        }
    }

    pub(crate) fn met(&self, error: &ReadError) {
        if let ReadError::Damaged { family, .. } = error {
            self.count(Family::named(family));
        }
    }
}

/// A unit set aside: its claim, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SetAside {
    /// For [`Queue::retry`] and [`Queue::settle`].
    pub unit: UnitKey,
    /// Since when and why. Where this is damaged itself, it is made up of what is known.
    pub record: AsideRecord,
}

/// A record set aside.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SetAsideRecord {
    /// Where it was.
    pub family: Family,
    /// Under which key.
    pub key: Vec<u8>,
    /// Since when, and why.
    pub record: DamagedRecord,
}

impl Queue {
    /// Sets a unit aside; whoever asks holds its claim, and gives it up. Answered once it is on disk. One that is set aside
    /// already stays so for the reason it was. Works whatever of its records does not verify.
    pub async fn set_aside(&self, unit: UnitKey, aside: Aside) -> Result<(), CommitError> {
        let ask = |reply| Request::SetAside {
            unit,
            aside: Box::new(aside),
            reply,
        };
        self.intake.ask(ask).await
    }

    /// Units set aside, by message, after the one of this number; and whether there are more.
    pub fn set_aside_units(
        &self,
        after: Option<(MessageId, u16)>,
        limit: usize,
    ) -> Result<(Vec<SetAside>, bool), ReadError> {
        let from = after.map_or(b"u".to_vec(), |(id, unit)| {
            [&keys::aside(id, unit)[..], &[0]].concat()
        });
        self.units_in(&from, &keys::aside_end(), limit)
    }

    /// Of one message those units that are set aside.
    pub fn set_aside_of(&self, id: MessageId) -> Result<Vec<SetAside>, ReadError> {
        let (from, to) = (keys::aside(id, 0), keys::aside(id, u16::MAX));
        Ok(self.units_in(&from, &to, usize::from(u16::MAX))?.0)
    }

    fn units_in(&self, from: &[u8], to: &[u8], limit: usize) -> Result<(Vec<SetAside>, bool), ReadError> {
        let mut found = Vec::new();
        let mut more = false;
        self.store.scan_past(Family::Aside, from, to, &mut |key, value| {
            if found.len() == limit {
                more = true;
                return false;
            }
            found.extend(keys::parse_aside(key).map(|name| (name, decode::<AsideRecord>(value))));
            true
        })?;
        let mut units = Vec::with_capacity(found.len());
        for ((id, unit), record) in found {
            match record {
                Ok(record) => units.push(SetAside {
                    unit: UnitKey {
                        queue: record.queue,
                        due: record.due,
                        id,
                        unit,
                    },
                    record,
                }),
                Err(error) => units.extend(self.made_up(id, unit, error.0)?),
            }
        }
        Ok((units, more))
    }

    /// Of a unit whose own record in `aside` does not verify, by its envelope and state.
    fn made_up(&self, id: MessageId, unit: u16, what: &str) -> Result<Option<SetAside>, ReadError> {
        let key = keys::aside(id, unit);
        let damage = ReadError::damaged("aside", &key, what.to_owned());
        let found = self.envelope(id).and_then(|envelope| {
            let state = self.state(id, unit)?;
            let of = envelope
                .and_then(|envelope| Some((envelope.units.get(usize::from(unit))?.clone(), envelope)));
            Ok(of.map(|(of, envelope)| (of.queue, state.map_or(of.due, |state| state.due), envelope)))
        });
        match found {
            Ok(Some((queue, due, envelope))) => Ok(Some(SetAside {
                unit: UnitKey { queue, due, id, unit },
                record: AsideRecord {
                    since: id.created(),
                    cause: AsideCause::Damaged,
                    why: damage.to_string(),
                    queue,
                    due,
                    was: crate::records::DueRecord {
                        expires_at: envelope.expires_at,
                        bytes: envelope.prefix.len() as u64 + envelope.body_bytes,
                        chunks: envelope.chunks.len() as u32,
                        alone: envelope.units.len() == 1,
                        tried: true,
                    },
                },
            })),
            Ok(None) | Err(ReadError::Damaged { .. }) => {
                tracing::error!(%id, unit, error = %damage, "a unit set aside of which nothing reads");
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    /// Records of other families that were set aside, by family and key, after the one of this family and key.
    pub fn set_aside_records(
        &self,
        after: Option<(Family, &[u8])>,
        limit: usize,
    ) -> Result<Vec<SetAsideRecord>, ReadError> {
        let from = after.map_or(b"r".to_vec(), |(family, key)| {
            [&keys::aside_record(family, key)[..], &[0]].concat()
        });
        let mut found = Vec::new();
        self.store.scan_past(
            Family::Aside,
            &from,
            &keys::aside_records_end(),
            &mut |key, value| {
                if let (Some((family, key)), Ok(record)) = (keys::parse_aside_record(key), decode(value)) {
                    found.push(SetAsideRecord {
                        family,
                        key: key.to_vec(),
                        record,
                    });
                }
                found.len() < limit
            },
        )?;
        Ok(found)
    }

    /// Damaged records that were met since the start, by family.
    pub fn damage_counts(&self) -> impl Iterator<Item = (Family, u64)> {
        let counts = self.damage.clone();
        Family::ALL
            .into_iter()
            .map(move |family| (family, counts.0[family as usize].load(Ordering::Relaxed)))
    }

    /// A claim whose message is not there: damage, if the unit still waits.
    pub fn missing(&self, unit: &UnitKey) -> Result<Option<ReadError>, ReadError> {
        let waits = self.is_due(unit)? || self.aside(unit)?.is_some();
        Ok(waits.then(|| ReadError::damaged("envelope", unit.id.as_bytes(), "absent")))
    }

    /// Why a unit is set aside, if it is.
    pub fn aside(&self, unit: &UnitKey) -> Result<Option<AsideRecord>, ReadError> {
        match read::<AsideRecord>(&*self.store, Family::Aside, &keys::aside(unit.id, unit.unit)) {
            Err(ReadError::Damaged { what, .. }) => {
                Ok(self.made_up(unit.id, unit.unit, &what)?.map(|found| found.record))
            }
            other => other,
        }
    }

    /// A unit's recipients that have not ended, as far as it can be told where envelope or state do not verify: then by the
    /// journal, which knows who was accepted and who has ended. Empty where nothing tells.
    pub fn known_recipients(&self, unit: &UnitKey) -> Result<Vec<Mailbox>, ReadError> {
        let unread = |error| match error {
            ReadError::Damaged { .. } => Ok(None),
            error @ ReadError::Store(_) => Err(error),
        };
        let envelope = self.envelope(unit.id).or_else(unread)?;
        let of_envelope = envelope.and_then(|mut envelope| {
            let number = usize::from(unit.unit);
            (number < envelope.units.len()).then(|| envelope.units.swap_remove(number).recipients)
        });
        let state = self.state(unit.id, unit.unit);
        if let (Some(recipients), Ok(state)) = (&of_envelope, &state) {
            let is_open = |index: u16| {
                let open = state.as_ref().map(|state| &state.open);
                open.is_none_or(|open| open.iter().any(|open| open.recipient == index))
            };
            let open = (0..).zip(recipients).filter(|(index, _)| is_open(*index));
            return Ok(open.map(|(_, recipient)| recipient.mailbox.clone()).collect());
        }
        let history = self.history(unit.id)?;
        let candidates: Vec<Mailbox> = match of_envelope {
            Some(recipients) => recipients
                .into_iter()
                .map(|recipient| recipient.mailbox)
                .collect(),
            None => {
                let Some(name) = self
                    .info(unit.queue)
                    .or_else(|error| match error {
                        ReadError::Damaged { .. } => Ok(None),
                        error @ ReadError::Store(_) => Err(error),
                    })?
                    .map(|record| record.name)
                else {
                    return Ok(Vec::new());
                };
                let accepted = history.iter().filter(|event| event.kind == EventKind::Accepted);
                accepted
                    .flat_map(|event| &event.recipients)
                    .filter_map(|text| text.parse::<Mailbox>().ok())
                    .filter(|mailbox| *mailbox.domain() == name.domain)
                    .collect()
            }
        };
        let has_ended = |mailbox: &Mailbox| {
            let text = mailbox.to_string();
            history.iter().any(|event| {
                event.kind.is_end() && event.unit == unit.unit && event.recipients.contains(&text)
            })
        };
        Ok(candidates
            .into_iter()
            .filter(|mailbox| !has_ended(mailbox))
            .collect())
    }

    /// Notes a damaged record of which mail does not depend, so that it is moved out of the way. Lost when the committer is
    /// busy: it is met again then.
    pub(crate) fn met(&self, family: Family, key: &[u8], what: &'static str) {
        let met = Met {
            family,
            key: key.to_vec(),
            what,
            at: now(),
        };
        self.intake.tell(Request::Damaged(met));
    }

    /// Has a queue's record made anew. Lost when the committer is busy.
    pub(crate) fn mend(&self, queue: QueueId) {
        self.intake.tell(Request::Mend { queue });
    }
}

/// When something was met, for people; nothing is decided by it.
fn now() -> Timestamp {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    Timestamp(since.map_or(0, |since| u64::try_from(since.as_millis()).unwrap_or(u64::MAX)))
}
