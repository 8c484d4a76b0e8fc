//! What a scope wider than a lane may use, all shards together.
//!
//! Shards that are refused stand in a line, so that the fastest does not have it all: who is first may take what there is, and stands
//! behind the others once that is used up. Whoever does not come when it is its turn has gone, and is passed over.

use std::time::Duration;

use mail_core::Timestamp;

use super::Grant;
use super::bucket::Bucket;
pub use super::line::Claim;
use super::line::Line;
pub use super::reserved::RESERVED;
use super::reserved::{InUse, Reserved};
use super::window::Window;
use queue::CountsRecord;

use crate::config::limits::ScopeLimits;
use crate::config::streams::Streams;

/// What windows count is on disk before it is used: at the most so much of the limit ahead, in parts of a tenth.
const AHEAD: u64 = 10;

/// Counts ahead of use, where a tenth is less: each costs a write. Of a limit so small that this is more than a tenth, it is a tenth all the same.
const LEAST_AHEAD: u64 = 64;

/// Where much is used, what is ahead is for so long.
const LASTS: Duration = Duration::from_millis(500);

/// Who waits for a write is told once it is done; it asks by itself this long after, should that take longer.
const WRITTEN_IN: Duration = Duration::from_millis(100);

/// What stands on disk is for so long, and counted as if it was used only then: where minutes are limited, and where they are not.
const COVERED: [Duration; 2] = [Duration::from_secs(10), Duration::from_secs(60)];

/// The keys of the windows, with their spans.
pub const WINDOWS: [(&str, Duration); 3] = [
    ("messages_per_minute", Duration::from_secs(60)),
    ("messages_per_hour", Duration::from_secs(3_600)),
    ("messages_per_day", Duration::from_secs(86_400)),
];

/// See the module.
///
/// There is one for each site, perhaps, and each message asks several: what few of them have is kept apart, so that the rest is next to
/// each other.
#[derive(Debug)]
pub struct Budget {
    /// A connection serves all tenants: what a tenant has of them is its messages on the wire.
    of_tenant: bool,
    /// Of its limits those that each message is held against.
    connections: Option<u64>,
    bytes_in_flight: Option<u64>,
    limits: Box<ScopeLimits>,
    /// New connections a second.
    opening: Option<Box<Bucket>>,
    /// Messages a second.
    messages: Option<Box<Bucket>>,
    /// In the order of [`WINDOWS`].
    windows: [Option<Box<Window>>; 3],
    /// Connections, and those of them that are being closed.
    open: u64,
    closing: u64,
    /// Messages that are being sent, and their octets.
    sending: u64,
    in_flight: u64,
    /// What is kept for some streams, where something is.
    reserved: Option<Box<Reserved>>,
    for_message: Line,
    /// For what is kept for streams.
    for_own: Line,
    for_connection: Line,
    /// Where an hour or a day is limited.
    ahead: Option<Box<Ahead>>,
    /// How often something came that had counted nothing.
    renewed: u32,
}

/// How much may be used that stands on disk already.
#[derive(Debug)]
struct Ahead {
    /// Messages since the start, and how many may be before more is written.
    taken: u64,
    covered: u64,
    /// For what is used before.
    until: Timestamp,
    /// Messages when it was last written, and when that was.
    before: u64,
    written: Timestamp,
    /// More is to be written.
    wanted: bool,
    /// Whoever writes has been told so.
    told: bool,
}

impl Ahead {
    fn none() -> Self {
        Self {
            taken: 0,
            covered: 0,
            until: Timestamp(0),
            before: 0,
            written: Timestamp(0),
            wanted: false,
            told: false,
        }
    }
}

/// What is to be written of a budget, and what may be used once it is.
#[derive(Debug)]
pub struct Keep {
    /// The counts, with what is ahead.
    pub record: CountsRecord,
    covered: u64,
    until: Timestamp,
    renewed: u32,
    taken: u64,
}

/// A message that is to be sent.
#[derive(Clone, Copy, Debug)]
pub struct Asked<'a> {
    /// Its stream.
    pub stream: &'a str,
    /// Its octets; 0 where nobody wants to know.
    pub bytes: u64,
}

/// Shards that are to be told that there is room.
pub type Told = [Option<usize>; 2];

impl Budget {
    /// What is in a second may have been used up just before; of longer windows `counted` says what was.
    pub fn new(limits: ScopeLimits, of_tenant: bool, counted: Counted, now: Timestamp) -> Self {
        let mut fresh = Self {
            of_tenant,
            connections: None,
            bytes_in_flight: None,
            limits: Box::default(),
            opening: None,
            messages: None,
            windows: [const { None }; 3],
            open: 0,
            closing: 0,
            sending: 0,
            in_flight: 0,
            reserved: None,
            for_message: Line::default(),
            for_own: Line::default(),
            for_connection: Line::default(),
            ahead: None,
            renewed: 0,
        };
        fresh.renew(&limits, now);
        fresh.resume(counted, now);
        fresh
    }

    /// Goes by other limits from here on. Nothing is granted for the change.
    pub fn renew(&mut self, limits: &ScopeLimits, now: Timestamp) {
        if *self.limits == *limits {
            return;
        }
        *self.limits = limits.clone();
        (self.connections, self.bytes_in_flight) = (limits.connections, limits.bytes_in_flight);
        let has_new_rate = self.messages.is_none() && limits.messages_per_second.is_some();
        renew_bucket(&mut self.opening, limits.connections_per_second, now);
        renew_bucket(&mut self.messages, limits.messages_per_second, now);
        let is_counted = limits.windows().iter().any(Option::is_some);
        self.ahead = is_counted.then(|| self.ahead.take().unwrap_or_else(|| Box::new(Ahead::none())));
        let all = self.windows.iter_mut().zip(WINDOWS).zip(limits.windows());
        let mut has_new_window = false;
        for ((window, (_, span)), limit) in all {
            has_new_window |= window.is_none() && limit.is_some();
            match (&mut *window, limit) {
                (Some(window), Some(limit)) => window.set_limit(limit),
                (None, Some(limit)) => *window = Some(Box::new(Window::new(span, limit))),
                (_, None) => *window = None,
            }
        }
        if has_new_rate || has_new_window {
            self.renewed += 1;
        }
        // What stands on disk says nothing of it.
        if let Some(ahead) = self.ahead.as_mut().filter(|_| has_new_window) {
            ahead.until = Timestamp(0);
        }
    }

    /// How often something came that had counted nothing. What was taken before is not given back to it.
    pub fn renewed(&self) -> u32 {
        self.renewed
    }

    /// Keeps parts of its limits for mail of some of these streams.
    pub fn reserve(&mut self, streams: &Streams) {
        if !streams.any_reserved() {
            self.reserved = None;
            return;
        }
        let spans = WINDOWS.map(|(_, span)| span);
        let reserved = self.reserved.get_or_insert_default();
        reserved.renew(streams, &self.limits, spans);
    }

    /// When to look again, if nothing is left but what is kept for other streams. Of windows it is as of their last look.
    fn keeps_from(&mut self, stream: &str, bytes: u64, now: Timestamp) -> Option<Timestamp> {
        let used = InUse {
            windows: &self.windows,
            sending: self.sending,
            bytes: self.in_flight,
        };
        self.reserved.as_mut()?.keeps_from(stream, bytes, &used, now)
    }

    /// Goes on from what was counted before the start.
    fn resume(&mut self, counted: Counted, now: Timestamp) {
        let counted = match counted {
            Counted::Nothing => return,
            Counted::Known(record) => Some([record.minute, record.hour, record.day]),
            Counted::Unknown => None,
        };
        for (number, (window, (_, span))) in self.windows.iter_mut().zip(WINDOWS).enumerate() {
            let Some(window) = window else { continue };
            match &counted {
                None => **window = Window::spent(span, window.limit(), now),
                Some(counts) => {
                    if let Some(counts) = &counts[number] {
                        **window = Window::resumed(span, window.limit(), counts.clone(), now);
                    }
                }
            }
        }
    }

    /// What is to be written, if anything is. It is wanted still until [`Self::kept`] says that it is on disk.
    pub fn to_keep(&mut self, now: Timestamp) -> Option<Keep> {
        let ahead = self.ahead.as_ref().filter(|ahead| ahead.wanted)?;
        let least = self.windows.iter().flatten().map(|window| window.limit()).min();
        // As was used since the last time.
        let used = ahead.taken.saturating_sub(ahead.before);
        let since = now.since(ahead.written).max(Duration::from_millis(1));
        let used = u128::from(used) * LASTS.as_millis() / since.as_millis();
        let most = (least.unwrap_or(0) / AHEAD).max(1);
        let block = u64::try_from(used).unwrap_or(u64::MAX);
        let block = block.clamp(LEAST_AHEAD.min(most), most);
        // No less than what may be used meanwhile.
        let left = if ahead.until > now {
            ahead.covered.saturating_sub(ahead.taken)
        } else {
            0
        };
        let block = block.max(left);
        let (taken, until) = (ahead.taken, now + self.covered());
        Some(Keep {
            record: self.counts(block, now),
            covered: taken + block,
            until,
            renewed: self.renewed,
            taken,
        })
    }

    fn covered(&self) -> Duration {
        let [by_minute, by_hour] = COVERED;
        if self.windows[0].is_some() {
            by_minute
        } else {
            by_hour
        }
    }

    /// What was used, where more than that stands on disk.
    pub fn used_up(&mut self, now: Timestamp) -> Option<CountsRecord> {
        let ahead = self.ahead.as_ref()?;
        (ahead.covered > ahead.taken).then(|| self.counts(0, now))
    }

    fn counts(&mut self, ahead: u64, now: Timestamp) -> CountsRecord {
        let later = now + self.covered();
        let [minute, hour, day] = self.windows.each_mut().map(|window| {
            let window = window.as_mut()?;
            window.advance(now);
            Some(match ahead {
                0 => window.counts().clone(),
                ahead => window.counts_with(ahead, later),
            })
        });
        CountsRecord {
            at: now,
            minute,
            hour,
            day,
        }
    }

    /// It is on disk. Who is to be told that there is room.
    pub fn kept(&mut self, keep: &Keep, now: Timestamp) -> Told {
        if let Some(ahead) = &mut self.ahead {
            // What was written before a window came says nothing of it, though the same went before.
            if keep.renewed == self.renewed {
                // Something may have been given back meanwhile.
                ahead.before = keep.taken.min(ahead.taken);
                (ahead.covered, ahead.until, ahead.written) = (keep.covered, keep.until, keep.record.at);
                ahead.wanted = ahead.taken >= ahead.covered;
            }
            ahead.told = false;
        }
        self.freed(now)
    }

    /// A message comes: what stands on disk is to be for then.
    pub fn look_ahead(&mut self, now: Timestamp) {
        if let Some(ahead) = &mut self.ahead {
            ahead.wanted |= ahead.until <= now;
        }
    }

    /// Whether something is to be written. It is said once, until it is [`Self::kept`].
    pub fn wants_keeping(&mut self) -> bool {
        let wants = |ahead: &mut Box<Ahead>| ahead.wanted && !std::mem::replace(&mut ahead.told, true);
        self.ahead.as_mut().is_some_and(wants)
    }

    /// Takes what one message needs, or says when to ask again. What is taken is ended by [`Self::sent`], or given back by
    /// [`Self::refund`].
    pub fn message(&mut self, shard: usize, asked: &Asked<'_>, now: Timestamp) -> Grant {
        let grant = self.admits(shard, asked, now);
        if grant == Grant::Granted {
            self.count(now);
            self.adopt_message(asked);
        }
        grant
    }

    /// Takes what one more transaction of a message on the wire needs, or false: there is nothing for it, or others stand in line. The
    /// shard is not in the line for it. It is given back by [`Self::refund_further`].
    pub fn further(&mut self, shard: usize, asked: &Asked<'_>, now: Timestamp) -> bool {
        let is_own = self.is_own(asked, now);
        let line = if is_own { &self.for_own } else { &self.for_message };
        let may = line.is_turn_of(shard, now)
            && self.refuses_rate(now).is_none()
            && (is_own || self.keeps_from(asked.stream, 0, now).is_none());
        if may {
            self.count(now);
            if let Some(reserved) = &mut self.reserved {
                reserved.count(asked.stream);
            }
        }
        may
    }

    fn count(&mut self, now: Timestamp) {
        if let Some(bucket) = &mut self.messages {
            bucket.take();
        }
        self.windows.iter_mut().flatten().for_each(|window| window.take());
        let covered = self.covered();
        if let Some(ahead) = &mut self.ahead {
            ahead.taken += 1;
            // In time for those that come next.
            let is_half_used = 2 * (ahead.covered - ahead.taken) <= ahead.covered - ahead.before;
            ahead.wanted |= is_half_used || ahead.until <= now + covered / 2;
        }
    }

    /// A message is on the wire. Where it began before the limit was there, nothing else is taken for it.
    pub fn adopt_message(&mut self, asked: &Asked<'_>) {
        if let Some(reserved) = &mut self.reserved {
            reserved.take(asked.stream, asked.bytes);
        }
        self.sending += 1;
        self.in_flight += asked.bytes;
    }

    /// So many more octets of such a message count.
    pub fn adopt_bytes(&mut self, bytes: u64) {
        self.in_flight += bytes;
    }

    /// Whether a message would be refused now. Nothing is taken, but the shard has its place in the line.
    pub fn refuses(&mut self, shard: usize, asked: &Asked<'_>, now: Timestamp) -> Option<Grant> {
        let grant = self.admits(shard, asked, now);
        (grant != Grant::Granted).then_some(grant)
    }

    /// The same of a connection.
    pub fn refuses_a_connection(&mut self, shard: usize, claim: Claim, now: Timestamp) -> Option<Grant> {
        let refused = self.refuses_connection(now);
        let grant = self.for_connection.admit(shard, claim, refused, now);
        (grant != Grant::Granted).then_some(grant)
    }

    /// Whether a message would be of what is kept for its stream, so that it need not stand behind other streams'.
    pub fn is_own(&mut self, asked: &Asked<'_>, now: Timestamp) -> bool {
        let reserved = self.reserved.as_mut();
        reserved.is_some_and(|reserved| reserved.is_own(asked.stream, asked.bytes, now))
    }

    /// Whether it is its turn, and there is something for it. What is kept for streams has a line of its own: their mail is not
    /// behind those who wait for more than is left beside it.
    fn admits(&mut self, shard: usize, asked: &Asked<'_>, now: Timestamp) -> Grant {
        let refused = self.refuses_message(asked.bytes, now);
        if self.is_own(asked, now) {
            return self.for_own.admit(shard, Claim::ALIKE, refused, now);
        }
        let kept = || {
            let at = self.keeps_from(asked.stream, asked.bytes, now)?;
            let held_by = RESERVED;
            Some(Grant::NotBefore { at, held_by })
        };
        let refused = refused.or_else(kept);
        self.for_message.admit(shard, Claim::ALIKE, refused, now)
    }

    /// The message let through `at` that moment was not sent after all.
    pub fn refund(&mut self, stream: &str, bytes: u64, at: Timestamp, now: Timestamp) -> Told {
        self.uncount(stream, at, now);
        self.sent(stream, bytes, now)
    }

    /// There was no further transaction after all.
    pub fn refund_further(&mut self, stream: &str, now: Timestamp) -> Told {
        self.uncount(stream, now, now);
        self.freed(now)
    }

    fn uncount(&mut self, stream: &str, at: Timestamp, now: Timestamp) {
        if let Some(reserved) = &mut self.reserved {
            reserved.refund(stream, at);
        }
        if let Some(bucket) = &mut self.messages {
            bucket.refund(at, now);
        }
        self.windows
            .iter_mut()
            .flatten()
            .for_each(|window| window.refund(at));
        if let Some(ahead) = &mut self.ahead {
            ahead.taken = ahead.taken.saturating_sub(1).max(ahead.before);
        }
    }

    /// The message is sent, or lost. Who is to be told that there is room.
    pub fn sent(&mut self, stream: &str, bytes: u64, now: Timestamp) -> Told {
        if let Some(reserved) = &mut self.reserved {
            reserved.sent(stream, bytes);
        }
        self.sending = self.sending.saturating_sub(1);
        self.in_flight = self.in_flight.saturating_sub(bytes);
        self.freed(now)
    }

    fn freed(&mut self, now: Timestamp) -> Told {
        [&mut self.for_own, &mut self.for_message].map(|line| line.freed(now))
    }

    /// Takes one connection, or says when to ask again. It is given back by [`Self::closed`].
    pub fn connection(&mut self, shard: usize, claim: Claim, now: Timestamp) -> Grant {
        let refused = self.refuses_connection(now);
        let grant = self.for_connection.admit(shard, claim, refused, now);
        if grant == Grant::Granted {
            if let Some(bucket) = &mut self.opening {
                bucket.take();
            }
            self.open += 1;
        }
        grant
    }

    /// The connection was not opened after all.
    pub fn refund_connection(&mut self, now: Timestamp) -> Option<usize> {
        if let Some(bucket) = &mut self.opening {
            bucket.refund(now, now);
        }
        self.closed(false, now)
    }

    /// A connection is to be closed.
    pub fn closes(&mut self) {
        self.closing += 1;
    }

    /// A connection is closed, of which [`Self::closes`] told where it `was_closing`. Who is to be told that there is room.
    pub fn closed(&mut self, was_closing: bool, now: Timestamp) -> Option<usize> {
        self.open = self.open.saturating_sub(1);
        self.closing = self.closing.saturating_sub(u64::from(was_closing));
        self.for_connection.freed(now)
    }

    /// What the shard wants still: of what is kept for streams, to send, a connection. Who is to be told in its place of the rest.
    pub fn leave(&mut self, shard: usize, wants: [bool; 3], now: Timestamp) -> [Option<usize>; 3] {
        let [own, message, connection] = wants;
        let lines = [
            (&mut self.for_own, own),
            (&mut self.for_message, message),
            (&mut self.for_connection, connection),
        ];
        lines.map(|(line, wants)| {
            let has_left = !wants && line.leave(shard);
            has_left.then(|| line.freed(now)).flatten()
        })
    }

    /// Whether more connections are open than the limits allow, those aside that are being closed: they were tightened meanwhile.
    pub fn has_too_many(&self) -> bool {
        let stay = self.open.saturating_sub(self.closing);
        self.connections.is_some_and(|most| stay > most)
    }

    /// Whether some shard waits for a connection.
    pub fn anybody_waits(&self) -> bool {
        self.for_connection.is_waited_in()
    }

    /// How many other shards wait for a connection to which theirs is the better claim.
    pub fn others_wait(&self, shard: usize, own: Claim) -> usize {
        self.for_connection.others_before(shard, own)
    }

    /// Connections that were opened before the limit was there, or before they came under it; and those of them that are being closed.
    pub fn adopt(&mut self, connections: u64, closing: u64) {
        self.open += connections;
        self.closing += closing;
    }

    /// They do not come under it any more.
    pub fn disown(&mut self, connections: u64, closing: u64) {
        self.open = self.open.saturating_sub(connections);
        self.closing = self.closing.saturating_sub(closing);
    }

    /// Whether it limits octets in flight, and so wants to know a message's size.
    pub fn counts_bytes(&self) -> bool {
        self.bytes_in_flight.is_some()
    }

    /// What holds a message of a stream, or a connection for it, at this moment. Nothing is taken.
    pub fn explain(&mut self, stream: &str, needs_connection: bool, now: Timestamp) -> Option<Grant> {
        let not_before = |at, held_by| Some(Grant::NotBefore { at, held_by });
        if let Some(at) = self.messages.as_ref().and_then(|bucket| bucket.explain(now)) {
            return not_before(at, "messages_per_second");
        }
        for (window, (key, _)) in self.windows.iter_mut().zip(WINDOWS) {
            if let Some(at) = window.as_mut().and_then(|window| window.wait(now)) {
                return not_before(at, key);
            }
        }
        let asked = Asked { stream, bytes: 0 };
        if !self.is_own(&asked, now)
            && let Some(at) = self.keeps_from(stream, 0, now)
        {
            return not_before(at, RESERVED);
        }
        let opening = self.opening.as_ref().filter(|_| needs_connection);
        if let Some(at) = opening.and_then(|bucket| bucket.explain(now)) {
            return not_before(at, "connections_per_second");
        }
        // A tenant has messages on the wire for connections, whatever connections there are.
        let used = match (self.of_tenant, needs_connection) {
            (true, _) => self.sending,
            (false, true) => self.open,
            (false, false) => 0,
        };
        if self.connections.is_some_and(|most| used >= most) {
            return Some(Grant::WhenFreed {
                held_by: "connections",
            });
        }
        let full = |most| self.sending > 0 && self.in_flight >= most;
        self.bytes_in_flight
            .is_some_and(full)
            .then_some(Grant::WhenFreed {
                held_by: "bytes_in_flight",
            })
    }

    /// Whether nothing would be lost by forgetting it: whatever it counts is over, and nothing of it is in use.
    pub fn is_idle(&mut self, now: Timestamp) -> bool {
        let counts = |window: &mut Box<Window>| {
            window.advance(now);
            window.used() > 0
        };
        self.open == 0 && self.sending == 0 && !self.windows.iter_mut().flatten().any(counts)
    }

    /// Whether what it counts stands on disk.
    pub fn is_kept(&self) -> bool {
        self.ahead.is_some()
    }

    /// Whether nothing would be lost by forgetting it, since all that it counts stands on disk.
    pub fn is_on_disk(&self) -> bool {
        self.is_kept() && self.open == 0 && self.sending == 0
    }

    /// What is used now, and what may be.
    pub fn used(&mut self, now: Timestamp) -> Used {
        let counted = |window: &mut Option<Box<Window>>| {
            let window = window.as_mut()?;
            window.advance(now);
            Some(window.used())
        };
        Used {
            limits: (*self.limits).clone(),
            connections: if self.of_tenant { self.sending } else { self.open },
            bytes: self.in_flight,
            windows: self.windows.each_mut().map(counted),
        }
    }

    fn refuses_message(&mut self, bytes: u64, now: Timestamp) -> Option<Grant> {
        if crate::sabotage::is_on("no-rates") {
            return None;
        }
        if let Some(refused) = self.refuses_rate(now) {
            return Some(refused);
        }
        if self.of_tenant && self.connections.is_some_and(|most| self.sending >= most) {
            return Some(Grant::WhenFreed {
                held_by: "connections",
            });
        }
        // One that is larger than all that may be in flight goes alone.
        let full = |most| self.sending > 0 && self.in_flight + bytes > most;
        self.bytes_in_flight
            .is_some_and(full)
            .then_some(Grant::WhenFreed {
                held_by: "bytes_in_flight",
            })
    }

    /// By what counts messages.
    fn refuses_rate(&mut self, now: Timestamp) -> Option<Grant> {
        let not_before = |at, held_by| Some(Grant::NotBefore { at, held_by });
        if let Some(at) = self.messages.as_mut().and_then(|bucket| bucket.wait(now)) {
            return not_before(at, "messages_per_second");
        }
        for (window, (key, _)) in self.windows.iter_mut().zip(WINDOWS) {
            if let Some(at) = window.as_mut().and_then(|window| window.wait(now)) {
                return not_before(at, key);
            }
        }
        if let Some(ahead) = self.ahead.as_mut()
            && (ahead.until <= now || ahead.taken >= ahead.covered)
        {
            ahead.wanted = true;
            return not_before(now + WRITTEN_IN, "counting");
        }
        None
    }

    fn refuses_connection(&mut self, now: Timestamp) -> Option<Grant> {
        if self.connections.is_some_and(|most| self.open >= most) {
            return Some(Grant::WhenFreed {
                held_by: "connections",
            });
        }
        let at = self.opening.as_mut()?.wait(now)?;
        Some(Grant::NotBefore {
            at,
            held_by: "connections_per_second",
        })
    }
}

/// What is known of what was used before.
#[derive(Debug)]
pub enum Counted {
    /// Nothing was.
    Nothing,
    /// This, by the minute, hour and day.
    Known(CountsRecord),
    /// That can't be read.
    Unknown,
}

/// See [`Budget::used`].
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Used {
    /// What may be.
    pub limits: ScopeLimits,
    /// Open connections; of a tenant, messages that are being sent.
    pub connections: u64,
    /// Octets of messages that are being sent.
    pub bytes: u64,
    /// In the order of [`WINDOWS`]: how many were counted.
    pub windows: [Option<u64>; 3],
}

fn renew_bucket(bucket: &mut Option<Box<Bucket>>, rate: Option<f64>, now: Timestamp) {
    match (&mut *bucket, rate) {
        (Some(bucket), Some(rate)) => bucket.set_rate(rate, now),
        (_, rate) => *bucket = rate.map(|rate| Box::new(Bucket::new(rate, now))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const START: Timestamp = Timestamp(1_700_000_000_000);
    const ASKED: Asked<'static> = Asked {
        stream: "bulk",
        bytes: 0,
    };

    fn keep(budget: &mut Budget, now: Timestamp) -> CountsRecord {
        assert_ne!(budget.message(0, &ASKED, now), Grant::Granted);
        let keep = budget.to_keep(now).unwrap();
        budget.kept(&keep, now);
        keep.record
    }

    #[test]
    fn what_is_given_back_while_it_is_written_is_no_mistake() {
        let limits = ScopeLimits {
            messages_per_hour: Some(1_000),
            ..ScopeLimits::default()
        };
        let mut budget = Budget::new(limits, false, Counted::Nothing, START);
        keep(&mut budget, START);
        for _ in 0..LEAST_AHEAD / 2 {
            assert_eq!(budget.message(0, &ASKED, START), Grant::Granted);
        }
        let written = budget.to_keep(START).unwrap();
        for _ in 0..LEAST_AHEAD / 2 {
            budget.refund("bulk", 0, START, START);
        }
        budget.kept(&written, START);
        let later = START + Duration::from_secs(120);
        let record = keep(&mut budget, later);
        let hour: u64 = record.hour.unwrap().parts.iter().sum();
        assert!(hour <= 2 * LEAST_AHEAD, "{hour} for none");
    }

    /// The first of two reloads takes a window away, and the second brings one, while counts of the first are being written.
    #[test]
    fn what_is_written_of_a_window_that_went_is_not_of_one_that_came() {
        let hour = ScopeLimits {
            messages_per_hour: Some(1_000),
            ..ScopeLimits::default()
        };
        let day = ScopeLimits {
            messages_per_day: Some(1_000),
            ..ScopeLimits::default()
        };
        for after in [hour.clone(), day] {
            let mut budget = Budget::new(hour.clone(), false, Counted::Nothing, START);
            keep(&mut budget, START);
            for _ in 0..LEAST_AHEAD / 2 {
                assert_eq!(budget.message(0, &ASKED, START), Grant::Granted);
            }
            let written = budget.to_keep(START).unwrap();
            budget.renew(&ScopeLimits::default(), START);
            budget.renew(&after, START);
            budget.kept(&written, START);
            let record = keep(&mut budget, START);
            let counted: u64 = record.hour.or(record.day).unwrap().parts.iter().sum();
            for _ in 0..counted {
                assert_eq!(budget.message(0, &ASKED, START), Grant::Granted);
            }
            assert_ne!(budget.message(0, &ASKED, START), Grant::Granted);
        }
    }

    /// Nothing of a limit that comes with a reload is used before it stands on disk.
    #[test]
    fn a_window_that_is_new_is_written_before_it_is_used() {
        let mut limits = ScopeLimits {
            messages_per_hour: Some(1_000),
            ..ScopeLimits::default()
        };
        let mut budget = Budget::new(limits.clone(), false, Counted::Nothing, START);
        keep(&mut budget, START);
        assert_eq!(budget.message(0, &ASKED, START), Grant::Granted);
        limits.messages_per_minute = Some(20);
        budget.renew(&limits, START);
        let record = keep(&mut budget, START);
        assert!(record.minute.is_some());
        assert_eq!(budget.message(0, &ASKED, START), Grant::Granted);
    }
}
