//! What must hold after each batch that the relay writes and each message that a host takes, whatever else is under way; and the
//! trace of a run, by which it is replayed.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

use bytes::Bytes;
use mail_core::{MessageId, ReversePath, Timestamp};
use queue::records::decode;
use queue::store::{Batch, Family, MemoryStore};
use queue::{EnvelopeRecord, Event, EventKind, QueueId, UnitKey, keys};
use tokio::time::Instant;

use super::{MINUTE, signed};

/// A recipient of a message.
type Party = (MessageId, String);

/// What a client was told 250 for, by its recipient's name, which no other message has.
pub struct Letter {
    pub tenant: String,
    /// All that hosts are to be sent: our fields on top, and the client's own octets.
    pub octets: Bytes,
}

/// See the module.
pub struct Books {
    seed: u64,
    store: MemoryStore,
    begun: Instant,
    trace: Vec<String>,
    fault: Option<String>,
    /// When the disk began to fail, or else when the relay crashed; and when it crashed.
    crashes: Vec<(Instant, Instant)>,
    pub letters: BTreeMap<String, Letter>,
    acknowledged: Vec<Party>,
    /// By recipient; of reports, which may be many to one, by recipient and octets.
    taken: BTreeMap<String, Vec<Instant>>,
    /// What hosts took of clients' messages: each is to bear a signature that verifies.
    pub signed: Vec<Bytes>,
    /// Who has had anything.
    pub reached: BTreeSet<String>,
    in_doubt: BTreeMap<String, usize>,
    kept: Kept,
    /// Ends that a power cut must not undo, and those that it may.
    lasting: BTreeSet<Party>,
    fleeting: Vec<Party>,
}

/// What the store holds, as its batches tell.
#[derive(Default)]
struct Kept {
    envelopes: BTreeMap<MessageId, EnvelopeRecord>,
    open: BTreeSet<Party>,
    ended: BTreeSet<Party>,
    due: BTreeMap<(MessageId, u16), BTreeSet<UnitKey>>,
    deadlines: BTreeSet<(QueueId, MessageId)>,
    waiting: BTreeMap<QueueId, usize>,
    catalogue: BTreeMap<QueueId, BTreeSet<Timestamp>>,
    next_event: u64,
}

/// What a batch has touched.
#[derive(Default)]
struct Touched {
    events: Vec<(u64, Event)>,
    units: BTreeSet<(MessageId, u16)>,
    queues: BTreeSet<QueueId>,
    bodies: BTreeSet<MessageId>,
    new: BTreeSet<MessageId>,
    gone: Vec<MessageId>,
}

impl Books {
    pub fn new(seed: u64, store: MemoryStore) -> Self {
        Self {
            seed,
            store,
            begun: Instant::now(),
            trace: Vec::new(),
            fault: None,
            crashes: Vec::new(),
            letters: BTreeMap::new(),
            acknowledged: Vec::new(),
            taken: BTreeMap::new(),
            signed: Vec::new(),
            reached: BTreeSet::new(),
            in_doubt: BTreeMap::new(),
            kept: Kept {
                next_event: 1,
                ..Kept::default()
            },
            lasting: BTreeSet::new(),
            fleeting: Vec::new(),
        }
    }

    /// Writes down a step.
    pub fn note(&mut self, what: impl AsRef<str>) {
        let at = self.begun.elapsed().as_millis();
        let number = self.trace.len();
        self.trace
            .push(format!("{number:>6} {at:>10} ms  {}", what.as_ref()));
    }

    /// Something that must not be. The first one counts: others may follow from it.
    pub fn wrong(&mut self, what: impl AsRef<str>) {
        let (seed, step) = (self.seed, self.trace.len());
        self.note(format!("WRONG: {}", what.as_ref()));
        self.fault
            .get_or_insert_with(|| format!("seed {seed}: step {step}: {}", what.as_ref()));
    }

    /// Recipients that have not ended, and when they are to.
    pub fn open(&self) -> Vec<(String, Timestamp)> {
        let kept = &self.kept;
        let expires = |(id, recipient): &Party| Some((recipient.clone(), kept.envelopes.get(id)?.expires_at));
        kept.open.iter().filter_map(expires).collect()
    }

    /// Looks at all batches written since.
    pub fn look(&mut self) {
        for recorded in self.store.recorded() {
            let told = self.take_in(&recorded.batch);
            let synced = if recorded.synced { ", synced" } else { "" };
            self.note(format!("store: {} writes{synced}{told}", recorded.batch.len()));
            if recorded.synced {
                self.lasting.extend(self.fleeting.drain(..));
            }
        }
    }

    /// Fails where something was wrong.
    pub fn judge(&mut self) {
        self.look();
        if let Some(fault) = &self.fault {
            panic!("{fault}\n{}", self.last_steps());
        }
    }

    pub fn trace(&self) -> &[String] {
        &self.trace
    }

    /// The end of the trace, for whoever has to find out why.
    pub fn last_steps(&self) -> String {
        let shown = self.trace.len().saturating_sub(60);
        self.trace[shown..].join("\n")
    }

    pub fn taken(&self) -> &BTreeMap<String, Vec<Instant>> {
        &self.taken
    }

    /// A client has its 250.
    pub fn acknowledged(&mut self, id: MessageId, recipients: &[String]) {
        self.look();
        for recipient in recipients {
            let party = (id, recipient.clone());
            // A quick host may have it already.
            if !self.kept.open.contains(&party) && !self.lasting.contains(&party) {
                self.wrong(format!("{recipient} of {id} was acknowledged and is not on disk"));
            }
            self.acknowledged.push(party);
        }
    }

    /// The relay is no more; its disk failed from `from` on, if it did. `store` is what is left, another one after a power cut.
    pub fn crashed(&mut self, from: Instant, store: MemoryStore, power: bool) {
        self.look();
        self.crashes.push((from, Instant::now()));
        self.store = store;
        if power {
            self.kept = self.read();
            // What the disk had written before it lost power is there for good.
            let survives = |party: &Party| self.kept.ended.contains(party);
            self.lasting.extend(self.fleeting.drain(..).filter(survives));
            for party in &self.acknowledged.clone() {
                if !self.kept.open.contains(party) && !self.kept.ended.contains(party) {
                    self.wrong(format!("{} was acknowledged and lost with the power", party.1));
                }
            }
            for party in &self.lasting.clone() {
                if !self.kept.ended.contains(party) {
                    self.wrong(format!("{}'s end was lost with the power", party.1));
                }
            }
        } else {
            // What was written stays, synced or not.
            self.lasting.extend(self.fleeting.drain(..));
        }
    }

    /// How often a recipient may have been sent a message by now.
    pub fn copies(&self, recipient: &str) -> usize {
        let taken = self.taken.get(recipient).map_or(&[][..], Vec::as_slice);
        let in_doubt = self.in_doubt.get(recipient).copied().unwrap_or(0);
        // Less than the longest wait after the final dot before a crash a copy was taken: its end was not written.
        let on_the_wire = |&&(from, at): &&(Instant, Instant)| {
            taken.iter().any(|&took| took <= at && took + 11 * MINUTE >= from)
        };
        1 + in_doubt + self.crashes.iter().filter(on_the_wire).count()
    }

    /// A host takes a message for a recipient.
    pub fn takes(&mut self, recipient: &str, octets: &[u8]) {
        self.look();
        self.reached.insert(recipient.to_owned());
        let message = match self.letters.contains_key(recipient) {
            true => recipient.to_owned(),
            false => format!("{recipient}: {}", String::from_utf8_lossy(octets)),
        };
        let most = self.copies(&message);
        let taken = self.taken.entry(message).or_default();
        taken.push(Instant::now());
        let times = taken.len();
        if times > most {
            self.wrong(format!(
                "{recipient} was taken {times} times, of {most} that can be told why"
            ));
        }
        let Some(letter) = self.letters.get(recipient) else {
            return;
        };
        if octets
            .strip_suffix(&letter.octets[..])
            .is_none_or(|field| !signed::is_one_field(field))
        {
            let got = String::from_utf8_lossy(octets).into_owned();
            self.wrong(format!("{recipient} was sent other octets: {got:?}"));
        }
        self.signed.push(Bytes::copy_from_slice(octets));
    }

    fn take_in(&mut self, batch: &Batch) -> String {
        let mut touched = Touched::default();
        for write in batch.writes() {
            let is_sound = self
                .kept
                .take_in(write.family, write.key, write.value, &mut touched);
            if is_sound.is_none() {
                self.wrong(format!(
                    "{} {:02x?} does not read",
                    write.family.name(),
                    write.key
                ));
            }
        }
        let mut told = String::new();
        for (number, event) in std::mem::take(&mut touched.events) {
            // Writing to a string does not fail.
            let _ = write!(told, ", {:?} {}", event.kind, event.recipients.join(" "));
            let next = std::mem::replace(&mut self.kept.next_event, number + 1);
            if number != next {
                self.wrong(format!("event {number} where {next} was to come"));
            }
            self.event(&event, &touched);
        }
        for (id, unit) in touched.units {
            self.unit(id, unit);
        }
        for id in touched.gone {
            let from = (id, String::new());
            if self
                .kept
                .open
                .range(from..)
                .next()
                .is_some_and(|(of, _)| *of == id)
            {
                self.wrong(format!("{id} is gone, and not all its recipients have ended"));
            }
            self.kept.envelopes.remove(&id);
        }
        for id in touched.queues {
            let waiting = self.kept.waiting.get(&id).copied().unwrap_or(0);
            let wakes = self.kept.catalogue.get(&id).map_or(0, BTreeSet::len);
            if wakes != waiting.min(1) {
                self.wrong(format!("queue {id} has {waiting} units due, and {wakes} wakes"));
            }
        }
        told
    }

    fn event(&mut self, event: &Event, touched: &Touched) {
        let Some(id) = event.id else { return };
        let envelope = self.kept.envelopes.get(&id).cloned();
        match event.kind {
            EventKind::Accepted => {
                if !touched.new.contains(&id) || !touched.bodies.contains(&id) {
                    self.wrong(format!("{id} was accepted without body or envelope"));
                }
                let units = envelope.map_or(0, |envelope| envelope.units.len());
                for unit in 0..units {
                    if !touched.units.contains(&(id, unit as u16)) {
                        self.wrong(format!("{id} was accepted and its unit {unit} is never due"));
                    }
                }
                for recipient in &event.recipients {
                    if !self.kept.open.insert((id, recipient.clone())) {
                        self.wrong(format!("{recipient} of {id} was accepted twice"));
                    }
                }
            }
            EventKind::InDoubt => {
                for recipient in &event.recipients {
                    *self.in_doubt.entry(recipient.clone()).or_default() += 1;
                }
            }
            EventKind::Parked | EventKind::Damaged => {
                self.wrong(format!("{id} was set aside: {}", event.reply));
            }
            kind if kind.is_end() => {
                for recipient in &event.recipients {
                    let party = (id, recipient.clone());
                    if !self.kept.open.remove(&party) {
                        self.wrong(format!("{recipient} of {id} ended twice, or never came"));
                    }
                    self.kept.ended.insert(party.clone());
                    self.fleeting.push(party);
                }
                let Some(envelope) = envelope else {
                    return self.wrong(format!("{id} has ended before"));
                };
                if kind == EventKind::Expired && event.at < envelope.expires_at {
                    self.wrong(format!("{:?} of {id} expired early", event.recipients));
                }
                let is_told = |of: &MessageId| {
                    let report = self.kept.envelopes.get(of);
                    report.is_some_and(|report| report.cause == Some(id))
                };
                if matches!(kind, EventKind::Bounced | EventKind::Expired)
                    && matches!(envelope.reverse_path, ReversePath::Mailbox(_))
                    && !touched.new.iter().any(is_told)
                {
                    self.wrong(format!("{:?} of {id} ended and nobody is told", event.recipients));
                }
            }
            _ => {}
        }
    }

    /// A unit is due at one time and has one deadline as long as one of its recipients is open, and no longer.
    fn unit(&mut self, id: MessageId, unit: u16) {
        let kept = &self.kept;
        let Some(record) = kept
            .envelopes
            .get(&id)
            .and_then(|envelope| envelope.units.get(usize::from(unit)))
        else {
            return self.wrong(format!("unit {unit} of {id} has no envelope"));
        };
        let is_open = record
            .recipients
            .iter()
            .any(|recipient| kept.open.contains(&(id, recipient.mailbox.to_string())));
        let dues = kept.due.get(&(id, unit)).map_or(0, BTreeSet::len);
        let has_deadline = kept.deadlines.contains(&(record.queue, id));
        if (dues, has_deadline) != (usize::from(is_open), is_open) {
            self.wrong(format!(
                "unit {unit} of {id}, open: {is_open}, is due {dues} times, and has a deadline: {has_deadline}"
            ));
        }
    }

    /// What the store holds, read anew.
    fn read(&mut self) -> Kept {
        let (mut kept, mut touched) = (Kept::default(), Touched::default());
        for (family, key, value) in self.store.contents() {
            if kept.take_in(family, &key, Some(&value), &mut touched).is_none() {
                self.wrong(format!("{} {key:02x?} does not read", family.name()));
            }
        }
        kept.next_event = 1;
        for (number, event) in touched.events {
            kept.next_event = number + 1;
            let Some(id) = event.id else { continue };
            for recipient in event.recipients {
                let party = (id, recipient);
                if event.kind == EventKind::Accepted {
                    kept.open.insert(party);
                } else if event.kind.is_end() {
                    kept.open.remove(&party);
                    kept.ended.insert(party);
                }
            }
        }
        kept
    }
}

impl Kept {
    fn take_in(
        &mut self,
        family: Family,
        key: &[u8],
        value: Option<&[u8]>,
        touched: &mut Touched,
    ) -> Option<()> {
        match (family, value) {
            (Family::Due, value) => {
                let unit = keys::parse_due(key)?;
                touched.units.insert((unit.id, unit.unit));
                touched.queues.insert(unit.queue);
                let all = self.due.entry((unit.id, unit.unit)).or_default();
                let waiting = self.waiting.entry(unit.queue).or_default();
                match value {
                    Some(_) if all.insert(unit) => *waiting += 1,
                    None if all.remove(&unit) => *waiting -= 1,
                    _ => {}
                }
            }
            (Family::Deadline, value) => {
                let deadline = keys::parse_deadline(key)?;
                match value {
                    Some(_) => self.deadlines.insert(deadline),
                    None => self.deadlines.remove(&deadline),
                };
            }
            (Family::Envelope, value) => {
                let id = MessageId::from_bytes(key.try_into().ok()?);
                match value {
                    Some(octets) => {
                        touched.new.insert(id);
                        self.envelopes.insert(id, decode(octets).ok()?);
                    }
                    None => touched.gone.push(id),
                }
            }
            (Family::Body, Some(_)) => {
                touched.bodies.insert(keys::parse_body(key)?.0);
            }
            (Family::Queues, value) if key.first() == Some(&b'c') => {
                let (wake, queue) = keys::parse_catalogue(key)?;
                touched.queues.insert(queue);
                let wakes = self.catalogue.entry(queue).or_default();
                match value {
                    Some(_) => wakes.insert(wake),
                    None => wakes.remove(&wake),
                };
            }
            (Family::Event, Some(octets)) => {
                let number = u64::from_be_bytes(key.try_into().ok()?);
                touched.events.push((number, decode(octets).ok()?));
            }
            _ => {}
        }
        Some(())
    }
}
