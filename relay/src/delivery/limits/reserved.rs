//! What a budget keeps for some streams: of each of its limits a part that no other stream's mail may use.
//!
//! Of connections it is a part of the messages on the wire, since any mail may go over a connection. Parts are rounded down.

use std::sync::Arc;
use std::time::Duration;

use mail_core::Timestamp;

use super::window::Window;
use crate::config::limits::ScopeLimits;
use crate::config::streams::Streams;

/// What holds mail of a stream where the rest is kept for others.
pub const RESERVED: &str = "reserved";

/// What came free is taken by who is told of it; others look by themselves this long after.
const LOOK_AGAIN: Duration = Duration::from_millis(100);

/// Windows: that of the rate, then the minute, the hour and the day.
const WINDOWS: usize = 4;

/// What is used of a budget by all streams together.
pub struct InUse<'a> {
    /// By the minute, the hour and the day, as of now.
    pub windows: &'a [Option<Box<Window>>; WINDOWS - 1],
    /// Messages on the wire.
    pub sending: u64,
    /// Their octets.
    pub bytes: u64,
}

/// See the module.
#[derive(Debug, Default)]
pub struct Reserved {
    parts: Vec<Part>,
    /// What was sent lately by all streams, where messages a second are limited: they are kept apart by the second, or by the minute
    /// where that makes no whole message.
    paced: Option<Window>,
    connections: Option<u64>,
    bytes: Option<u64>,
}

/// What belongs to one stream's mail alone. After a start all of it is kept for it, whatever it had before.
#[derive(Debug)]
struct Part {
    stream: Arc<str>,
    share: f64,
    /// Of its part of each.
    windows: [Option<Window>; WINDOWS],
    sending: u64,
    bytes: u64,
}

impl Part {
    fn new(stream: Arc<str>) -> Self {
        Self {
            stream,
            share: 0.0,
            windows: [const { None }; WINDOWS],
            sending: 0,
            bytes: 0,
        }
    }

    /// What is left to it of a limit of which it has used so much.
    fn left(&self, limit: u64, used: u64) -> u64 {
        part(limit, self.share).saturating_sub(used)
    }
}

fn part(limit: u64, share: f64) -> u64 {
    (limit as f64 * share) as u64
}

impl Reserved {
    /// Keeps these streams' parts of these limits from here on, with windows of these spans.
    pub fn renew(&mut self, streams: &Streams, limits: &ScopeLimits, spans: [Duration; WINDOWS - 1]) {
        let mut before = std::mem::take(&mut self.parts);
        let of_all = streams.reserved();
        let least = of_all.clone().map(|stream| stream.reserved).reduce(f64::min);
        let paced = limits
            .messages_per_second
            .zip(least)
            .map(|(rate, least)| pace(rate, least));
        renew(&mut self.paced, paced);
        (self.connections, self.bytes) = (limits.connections, limits.bytes_in_flight);
        let longer = limits.windows().into_iter().zip(spans);
        let all: Vec<_> = std::iter::once(paced)
            .chain(longer.map(|(limit, span)| Some((span, limit?))))
            .collect();
        self.parts = of_all
            .map(|stream| {
                let known = before.iter().position(|known| known.stream == stream.name);
                let known = known.map(|at| before.swap_remove(at));
                let mut of = known.unwrap_or_else(|| Part::new(stream.name.clone()));
                of.share = stream.reserved;
                for (window, all) in of.windows.iter_mut().zip(&all) {
                    renew(
                        window,
                        all.map(|(span, limit)| (span, part(limit, stream.reserved))),
                    );
                }
                of
            })
            .collect();
    }

    /// Whether a message is of what is left of its stream's own part of every limit. A limit so small that its part is none says
    /// nothing, unless it has a part for others.
    pub fn is_own(&mut self, stream: &str, bytes: u64, now: Timestamp) -> bool {
        if self.of(stream).is_none() {
            return false;
        }
        let (connections, octets) = (self.connections, self.bytes);
        let others_have = |limit: u64| {
            let others = self.parts.iter().filter(|part| *part.stream != *stream);
            others.map(|other| part(limit, other.share)).sum::<u64>() > 0
        };
        let [of_connections, of_octets] = [connections, octets].map(|limit| limit.is_some_and(others_have));
        let of_windows = |number: usize| {
            let others = self.parts.iter().filter(|part| *part.stream != *stream);
            let mut windows = others.filter_map(|other| other.windows[number].as_ref());
            windows.any(|window| window.limit() > 0)
        };
        let of_windows: [bool; WINDOWS] = std::array::from_fn(of_windows);
        let Some(own) = self.of(stream) else {
            return false;
        };
        let is_none = |limit: u64, for_others: bool| part(limit, own.share) == 0 && !for_others;
        connections.is_none_or(|most| is_none(most, of_connections) || own.left(most, own.sending) > 0)
            && octets.is_none_or(|most| is_none(most, of_octets) || own.left(most, own.bytes) >= bytes.max(1))
            && own
                .windows
                .iter_mut()
                .zip(of_windows)
                .all(|(window, for_others)| {
                    let Some(window) = window else { return true };
                    window.advance(now);
                    (window.limit() == 0 && !for_others) || window.used() < window.limit()
                })
    }

    /// When to look again, if nothing is left for a stream's mail but what is kept for others.
    pub fn keeps_from(
        &mut self,
        stream: &str,
        bytes: u64,
        used: &InUse<'_>,
        now: Timestamp,
    ) -> Option<Timestamp> {
        let kept = |of: &dyn Fn(&Part) -> u64| {
            let others = self.parts.iter().filter(|part| *part.stream != *stream);
            others.map(of).sum::<u64>()
        };
        let is_taken = self.connections.is_some_and(|most| {
            let kept = kept(&|part| part.left(most, part.sending));
            kept > 0 && used.sending + kept >= most
        });
        // One that is larger than all that may be in flight goes alone.
        let is_full = self.bytes.is_some_and(|most| {
            let kept = kept(&|part| part.left(most, part.bytes));
            kept > 0 && used.sending > 0 && used.bytes + kept + bytes > most
        });
        if is_taken || is_full {
            return Some(now + LOOK_AGAIN);
        }
        if let Some(paced) = &mut self.paced {
            paced.advance(now);
        }
        for window in self.parts.iter_mut().flat_map(|part| &mut part.windows).flatten() {
            window.advance(now);
        }
        let longer = used.windows.iter().map(Option::as_deref);
        let all = std::iter::once(self.paced.as_ref()).chain(longer);
        for (number, all) in all.enumerate() {
            let Some(all) = all else { continue };
            let others = self.parts.iter().filter(|part| *part.stream != *stream);
            let own = others.filter_map(|part| part.windows[number].as_ref());
            let kept: u64 = own.map(|own| own.limit().saturating_sub(own.used())).sum();
            if kept > 0 && all.used() + kept >= all.limit() {
                return Some(all.next_part());
            }
        }
        None
    }

    /// A message of a stream is sent.
    pub fn take(&mut self, stream: &str, bytes: u64) {
        self.count(stream);
        if let Some(own) = self.of(stream) {
            own.sending += 1;
            own.bytes += bytes;
        }
    }

    /// One that is on the wire begins a further transaction.
    pub fn count(&mut self, stream: &str) {
        self.paced.iter_mut().for_each(Window::take);
        if let Some(own) = self.of(stream) {
            own.windows.iter_mut().flatten().for_each(Window::take);
        }
    }

    /// It was let through `at` that moment, and not sent after all.
    pub fn refund(&mut self, stream: &str, at: Timestamp) {
        self.paced.iter_mut().for_each(|paced| paced.refund(at));
        if let Some(own) = self.of(stream) {
            let windows = own.windows.iter_mut().flatten();
            windows.for_each(|window| window.refund(at));
        }
    }

    /// It is on the wire no more.
    pub fn sent(&mut self, stream: &str, bytes: u64) {
        if let Some(own) = self.of(stream) {
            own.sending = own.sending.saturating_sub(1);
            own.bytes = own.bytes.saturating_sub(bytes);
        }
    }

    fn of(&mut self, stream: &str) -> Option<&mut Part> {
        self.parts.iter_mut().find(|part| *part.stream == *stream)
    }
}

/// The window in which a rate is kept apart, and what is in it.
fn pace(rate: f64, least: f64) -> (Duration, u64) {
    let span = match rate * least >= 1.0 {
        true => Duration::from_secs(1),
        false => Duration::from_secs(60),
    };
    (span, (rate * span.as_secs_f64()).ceil() as u64)
}

fn renew(window: &mut Option<Window>, to: Option<(Duration, u64)>) {
    match (&mut *window, to) {
        (Some(window), Some((span, limit))) if window.part() == span / 60 => window.set_limit(limit),
        (_, to) => *window = to.map(|(span, limit)| Window::new(span, limit)),
    }
}
