//! What a scope wider than a lane may use, all shards together.
//!
//! Shards that are refused stand in a line, so that the fastest does not have it all: who is first may take what there is, and stands
//! behind the others once that is used up. Whoever does not come when it is its turn has gone, and is passed over.

use std::sync::Arc;
use std::time::Duration;

use mail_core::Timestamp;

use super::Grant;
use super::bucket::Bucket;
use super::line::Line;
use super::window::Window;
use queue::CountsRecord;

use crate::config::limits::ScopeLimits;
use crate::config::streams::Streams;

/// What is counted by the hour and day is on disk before it is used: at the most so much of the limit ahead, in parts of a tenth.
const AHEAD: u64 = 10;

/// Counts ahead of use, where a tenth is less: each costs a write. Of a limit so small that this is more than a tenth, it is a tenth all the same.
const LEAST_AHEAD: u64 = 8;

/// A write that is waited for takes about so long.
const WRITTEN_IN: Duration = Duration::from_millis(50);

/// The part of an hour that what stands on disk is counted for.
const PART: u64 = 60_000;

/// What holds mail of a stream where the rest is kept for others.
pub const RESERVED: &str = "reserved";

/// The keys of the windows, with their spans.
pub const WINDOWS: [(&str, Duration); 3] = [
    ("messages_per_minute", Duration::from_secs(60)),
    ("messages_per_hour", Duration::from_secs(3_600)),
    ("messages_per_day", Duration::from_secs(86_400)),
];

/// See the module.
#[derive(Debug)]
pub struct Budget {
    /// A connection serves all tenants: what a tenant has of them is its messages on the wire.
    of_tenant: bool,
    limits: ScopeLimits,
    /// New connections a second.
    opening: Option<Bucket>,
    /// Messages a second.
    messages: Option<Bucket>,
    /// In the order of [`WINDOWS`].
    windows: [Option<Window>; 3],
    /// Connections.
    open: u64,
    /// Messages that are being sent, and their octets.
    sending: u64,
    in_flight: u64,
    /// What the windows keep for some streams.
    reserved: Vec<Reserved>,
    for_message: Line,
    for_connection: Line,
    /// Where an hour or a day is limited.
    ahead: Option<Ahead>,
}

/// What belongs to one stream's mail alone. After a start all of it is kept for it, whatever it had before.
#[derive(Debug)]
struct Reserved {
    stream: Arc<str>,
    /// In the order of [`WINDOWS`], of its part of the limit.
    windows: [Option<Window>; 3],
}

/// How much may be used that stands on disk already.
#[derive(Debug, Default)]
struct Ahead {
    /// Messages since the start, and how many may be before more is written.
    taken: u64,
    covered: u64,
    /// The part of the hour that this holds in.
    part: u64,
    /// Messages when it was last written.
    before: u64,
    /// More is to be written.
    wanted: bool,
}

/// What is to be written of a budget, and what may be used once it is.
#[derive(Debug)]
pub struct Keep {
    /// The counts, with what is ahead.
    pub record: CountsRecord,
    covered: u64,
    part: u64,
    taken: u64,
}

impl Budget {
    /// What is in a second or a minute may have been used up just before; of hours and days `counted` says what was.
    pub fn new(limits: ScopeLimits, of_tenant: bool, counted: Counted, now: Timestamp) -> Self {
        let mut fresh = Self {
            of_tenant,
            limits: ScopeLimits::default(),
            opening: None,
            messages: None,
            windows: [const { None }; 3],
            open: 0,
            sending: 0,
            in_flight: 0,
            reserved: Vec::new(),
            for_message: Line::default(),
            for_connection: Line::default(),
            ahead: None,
        };
        fresh.renew(&limits, now);
        fresh.resume(counted, now);
        fresh
    }

    /// Goes by other limits from here on. Nothing is granted for the change.
    pub fn renew(&mut self, limits: &ScopeLimits, now: Timestamp) {
        if self.limits == *limits {
            return;
        }
        self.limits = limits.clone();
        renew_bucket(&mut self.opening, limits.connections_per_second, now);
        renew_bucket(&mut self.messages, limits.messages_per_second, now);
        let by_hour_or_day = limits.messages_per_hour.is_some() || limits.messages_per_day.is_some();
        self.ahead = by_hour_or_day.then(|| self.ahead.take().unwrap_or_default());
        let all = self.windows.iter_mut().zip(WINDOWS).zip(limits.windows());
        for (number, ((window, (_, span)), limit)) in all.enumerate() {
            match (&mut *window, limit) {
                (Some(window), Some(limit)) => window.set_limit(limit),
                (None, Some(limit)) if number == 0 => *window = Some(Window::spent(span, limit, now)),
                (None, Some(limit)) => *window = Some(Window::new(span, limit)),
                (_, None) => *window = None,
            }
        }
    }

    /// Nothing of it was used within the last minute.
    pub fn begin_fresh(&mut self) {
        let (_, minute) = WINDOWS[0];
        self.windows[0] = self
            .limits
            .messages_per_minute
            .map(|limit| Window::new(minute, limit));
    }

    /// Keeps these parts of its windows for mail of these streams.
    pub fn reserve(&mut self, streams: &Streams) {
        let kept = streams.all().iter().filter(|stream| stream.reserved > 0.0);
        let mut before = std::mem::take(&mut self.reserved);
        let reserved = kept.map(|stream| {
            let known = before.iter().position(|known| known.stream == stream.name);
            let mut of = known.map_or_else(
                || Reserved {
                    stream: stream.name.clone(),
                    windows: [const { None }; 3],
                },
                |at| before.swap_remove(at),
            );
            for ((window, limit), (_, span)) in of.windows.iter_mut().zip(self.limits.windows()).zip(WINDOWS)
            {
                let part = limit.map(|limit| (limit as f64 * stream.reserved) as u64);
                match (&mut *window, part) {
                    (Some(window), Some(part)) => window.set_limit(part),
                    (_, part) => *window = part.map(|part| Window::new(span, part)),
                }
            }
            of
        });
        self.reserved = reserved.collect();
    }

    /// The window of which nothing is left but what is kept for other streams, and when to look again.
    fn keeps_from(&mut self, stream: &str, now: Timestamp) -> Option<Timestamp> {
        for (number, window) in self.windows.iter_mut().enumerate() {
            let Some(window) = window else { continue };
            let others = self.reserved.iter_mut().filter(|of| *of.stream != *stream);
            let kept = others.filter_map(|of| {
                let own = of.windows[number].as_mut()?;
                own.advance(now);
                Some(own.limit().saturating_sub(own.used()))
            });
            if window.used() + kept.sum::<u64>() >= window.limit() {
                return Some(now + WINDOWS[number].1 / 60);
            }
        }
        None
    }

    /// Whether a message of this stream would find nothing left but what is kept for others.
    pub fn is_kept_from(&mut self, stream: &str, now: Timestamp) -> bool {
        let windows = self.windows.iter_mut().flatten();
        windows.for_each(|window| window.advance(now));
        !self.reserved.is_empty() && self.keeps_from(stream, now).is_some()
    }

    /// Goes on from what was counted before the start.
    fn resume(&mut self, counted: Counted, now: Timestamp) {
        let [_, hour, day] = &mut self.windows;
        let (of_hour, of_day) = match counted {
            Counted::Nothing => (None, None),
            Counted::Known(record) => (record.hour, record.day),
            Counted::Unknown => {
                for (window, (_, span)) in [hour, day].into_iter().zip(&WINDOWS[1..]) {
                    if let Some(window) = window {
                        *window = Window::spent(*span, window.limit(), now);
                    }
                }
                return;
            }
        };
        for ((window, counts), (_, span)) in [(hour, of_hour), (day, of_day)].into_iter().zip(&WINDOWS[1..]) {
            if let (Some(window), Some(counts)) = (window, counts) {
                *window = Window::resumed(*span, window.limit(), counts);
            }
        }
    }

    /// What is to be written, if anything is. It is wanted still until [`Self::kept`] says that it is on disk.
    pub fn to_keep(&mut self, now: Timestamp) -> Option<Keep> {
        let ahead = self.ahead.as_ref().filter(|ahead| ahead.wanted)?;
        let hours = self.windows[1..].iter().flatten();
        let least = hours.map(Window::limit).min().unwrap_or(0);
        // As much again as was used since the last time, and once more.
        let used = ahead.taken - ahead.before;
        let most = (least / AHEAD).max(1);
        let block = (2 * used).clamp(LEAST_AHEAD.min(most), most);
        let (taken, part) = (ahead.taken, now.0 / PART);
        Some(Keep {
            record: self.counts(block, now),
            covered: taken + block,
            part,
            taken,
        })
    }

    /// What was used, where more than that stands on disk.
    pub fn used_up(&mut self, now: Timestamp) -> Option<CountsRecord> {
        let ahead = self.ahead.as_ref()?;
        (ahead.covered > ahead.taken).then(|| self.counts(0, now))
    }

    fn counts(&mut self, ahead: u64, now: Timestamp) -> CountsRecord {
        let counts = |window: &mut Option<Window>| {
            let window = window.as_mut()?;
            window.advance(now);
            let mut counts = window.counts().clone();
            if let Some(newest) = counts.parts.first_mut() {
                *newest += ahead;
            }
            Some(counts)
        };
        let [_, hour, day] = &mut self.windows;
        CountsRecord {
            at: now,
            hour: counts(hour),
            day: counts(day),
        }
    }

    /// It is on disk. Who is to be told that there is room.
    pub fn kept(&mut self, keep: &Keep, now: Timestamp) -> Option<usize> {
        let ahead = self.ahead.as_mut()?;
        (ahead.covered, ahead.part, ahead.before) = (keep.covered, keep.part, keep.taken);
        ahead.wanted = ahead.taken >= ahead.covered;
        self.for_message.freed(now)
    }

    /// Whether something is to be written.
    pub fn wants_keeping(&self) -> bool {
        self.ahead.as_ref().is_some_and(|ahead| ahead.wanted)
    }

    /// Takes what one message of this stream and of so many octets needs, or says when to ask again. What is taken is ended by [`Self::sent`], or given
    /// back by [`Self::refund`].
    pub fn message(&mut self, shard: usize, stream: &str, bytes: u64, now: Timestamp) -> Grant {
        let refused = self.refuses_message(bytes, now);
        if refused.is_none()
            && !self.reserved.is_empty()
            && let Some(at) = self.keeps_from(stream, now)
        {
            // It has no part in the line: others may take what is kept for them.
            let held_by = RESERVED;
            return Grant::NotBefore { at, held_by };
        }
        let grant = self.for_message.admit(shard, refused, now);
        if grant == Grant::Granted {
            if let Some(bucket) = &mut self.messages {
                bucket.take();
            }
            self.windows.iter_mut().flatten().for_each(Window::take);
            let own = self.reserved.iter_mut().find(|of| *of.stream == *stream);
            own.into_iter()
                .flat_map(|of| &mut of.windows)
                .flatten()
                .for_each(|window| window.add(1));
            if let Some(ahead) = &mut self.ahead {
                ahead.taken += 1;
                // In time for those that come next.
                ahead.wanted |= 2 * (ahead.covered - ahead.taken) <= ahead.covered - ahead.before;
            }
            self.sending += 1;
            self.in_flight += bytes;
        }
        grant
    }

    /// Whether a message would be refused now, whatever its size, or the connection for it. Nothing is taken, but the shard has its
    /// place in the line.
    pub fn refuses(&mut self, shard: usize, needs_connection: bool, now: Timestamp) -> Option<Grant> {
        let message = self.refuses_message(0, now);
        let mut grant = self.for_message.admit(shard, message, now);
        if needs_connection && grant == Grant::Granted {
            let connection = self.refuses_connection(now);
            grant = self.for_connection.admit(shard, connection, now);
        }
        (grant != Grant::Granted).then_some(grant)
    }

    /// The message was not sent after all.
    pub fn refund(&mut self, bytes: u64, now: Timestamp) -> Option<usize> {
        if let Some(bucket) = &mut self.messages {
            bucket.refund();
        }
        self.windows.iter_mut().flatten().for_each(Window::refund);
        if let Some(ahead) = &mut self.ahead {
            ahead.taken = ahead.taken.saturating_sub(1).max(ahead.before);
        }
        self.sent(bytes, now)
    }

    /// The message is sent, or lost. Who is to be told that there is room.
    pub fn sent(&mut self, bytes: u64, now: Timestamp) -> Option<usize> {
        self.sending = self.sending.saturating_sub(1);
        self.in_flight = self.in_flight.saturating_sub(bytes);
        self.for_message.freed(now)
    }

    /// Takes one connection, or says when to ask again. It is given back by [`Self::closed`].
    pub fn connection(&mut self, shard: usize, now: Timestamp) -> Grant {
        let refused = self.refuses_connection(now);
        let grant = self.for_connection.admit(shard, refused, now);
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
            bucket.refund();
        }
        self.closed(now)
    }

    /// A connection is closed. Who is to be told that there is room.
    pub fn closed(&mut self, now: Timestamp) -> Option<usize> {
        self.open = self.open.saturating_sub(1);
        self.for_connection.freed(now)
    }

    /// The shard wants nothing of it any more. Who is to be told in its place.
    pub fn leave(&mut self, shard: usize, now: Timestamp) -> [Option<usize>; 2] {
        [&mut self.for_message, &mut self.for_connection].map(|line| {
            line.leave(shard);
            line.freed(now)
        })
    }

    /// Whether more connections are open than the limits allow: they were tightened meanwhile.
    pub fn has_too_many(&self) -> bool {
        self.limits.connections.is_some_and(|most| self.open > most)
    }

    /// Whether another shard waits for a connection.
    pub fn others_wait(&self, shard: usize) -> bool {
        self.for_connection.has_other(shard)
    }

    /// Connections that were opened before the limit was there, or before they came under it.
    pub fn adopt(&mut self, connections: u64) {
        self.open += connections;
    }

    /// They do not come under it any more.
    pub fn disown(&mut self, connections: u64) {
        self.open = self.open.saturating_sub(connections);
    }

    /// Whether it limits octets in flight, and so wants to know a message's size.
    pub fn counts_bytes(&self) -> bool {
        self.limits.bytes_in_flight.is_some()
    }

    /// What holds a message, or a connection for it, at this moment. Nothing is changed.
    pub fn explain(&self, needs_connection: bool, now: Timestamp) -> Option<Grant> {
        let not_before = |at, held_by| Some(Grant::NotBefore { at, held_by });
        if let Some(at) = self.messages.as_ref().and_then(|bucket| bucket.explain(now)) {
            return not_before(at, "messages_per_second");
        }
        for (window, (key, _)) in self.windows.iter().zip(WINDOWS) {
            if let Some(at) = window.as_ref().and_then(|window| window.explain(now)) {
                return not_before(at, key);
            }
        }
        if needs_connection {
            if let Some(at) = self.opening.as_ref().and_then(|bucket| bucket.explain(now)) {
                return not_before(at, "connections_per_second");
            }
            let used = if self.of_tenant { self.sending } else { self.open };
            if self.limits.connections.is_some_and(|most| used >= most) {
                return Some(Grant::WhenFreed {
                    held_by: "connections",
                });
            }
        }
        let full = |most| self.sending > 0 && self.in_flight >= most;
        self.limits
            .bytes_in_flight
            .is_some_and(full)
            .then_some(Grant::WhenFreed {
                held_by: "bytes_in_flight",
            })
    }

    /// Whether nothing would be lost by forgetting it: whatever it counts is over, and nothing of it is in use.
    pub fn is_idle(&mut self, now: Timestamp) -> bool {
        let counts = |window: &mut Window| {
            window.advance(now);
            window.used() > 0
        };
        self.open == 0 && self.sending == 0 && !self.windows.iter_mut().flatten().any(counts)
    }

    /// Whether hours or days are counted, and so stand on disk.
    pub fn is_kept(&self) -> bool {
        self.ahead.is_some()
    }

    /// Whether all that it counts stands on disk.
    pub fn is_on_disk(&mut self, now: Timestamp) -> bool {
        let in_minute = self.windows[0].as_mut().map_or(0, |minute| {
            minute.advance(now);
            minute.used()
        });
        self.is_kept() && self.open == 0 && self.sending == 0 && in_minute == 0
    }

    /// What is used now, and what may be.
    pub fn used(&mut self, now: Timestamp) -> Used {
        let counted = |window: &mut Option<Window>| {
            let window = window.as_mut()?;
            window.advance(now);
            Some(window.used())
        };
        Used {
            limits: self.limits.clone(),
            connections: if self.of_tenant { self.sending } else { self.open },
            bytes: self.in_flight,
            windows: self.windows.each_mut().map(counted),
        }
    }

    fn refuses_message(&mut self, bytes: u64, now: Timestamp) -> Option<Grant> {
        if crate::sabotage::is_on("no-rates") {
            return None;
        }
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
            && (ahead.part != now.0 / PART || ahead.taken >= ahead.covered)
        {
            ahead.wanted = true;
            return not_before(now + WRITTEN_IN, "counting");
        }
        if self.of_tenant && self.limits.connections.is_some_and(|most| self.sending >= most) {
            return Some(Grant::WhenFreed {
                held_by: "connections",
            });
        }
        // One that is larger than all that may be in flight goes alone.
        let full = |most| self.sending > 0 && self.in_flight + bytes > most;
        self.limits
            .bytes_in_flight
            .is_some_and(full)
            .then_some(Grant::WhenFreed {
                held_by: "bytes_in_flight",
            })
    }

    fn refuses_connection(&mut self, now: Timestamp) -> Option<Grant> {
        if self.limits.connections.is_some_and(|most| self.open >= most) {
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
    /// This, by the hour and day.
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

fn renew_bucket(bucket: &mut Option<Bucket>, rate: Option<f64>, now: Timestamp) {
    match (&mut *bucket, rate) {
        (Some(bucket), Some(rate)) => bucket.set_rate(rate, now),
        (_, rate) => *bucket = rate.map(|rate| Bucket::new(rate, now)),
    }
}
