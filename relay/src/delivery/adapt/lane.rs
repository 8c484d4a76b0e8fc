//! What a lane has learned, and how its attempts went lately: a value without I/O, of which each lane has one.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use mail_core::Timestamp;

use super::pace::{How, Limits, Pace};
use crate::delivery::lane::ConnectionId;
use crate::delivery::limits::Grant;
use crate::delivery::limits::limiter::Limiter;

/// After the first of further connections was refused, so long at the most it is seen which of the others come about before it is
/// said how many were too many.
const SETTLES_WITHIN: Duration = Duration::from_secs(10);

/// After the first of several connections was told to go, so long it is seen which others are, before it is said how many were too
/// many.
const LEAVE_WITHIN: Duration = Duration::from_secs(1);

/// A refusal for each so many attempts that got through is no reason to stop.
const WORKS: u32 = 9;

/// So many with nothing that got through in between are, whatever did before.
const REFUSED_IN_A_ROW: u32 = 10;

/// Suspensions in a row, with nothing that got through in between, last for at least 2, 4, 8 … seconds, up to this: a peer that
/// asks for a second again and again is not asked each second.
const LEAST_IN_A_ROW: Duration = Duration::from_secs(60);

/// Why nothing goes, and until when.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Held {
    /// Since when: what was begun before is no further reason.
    pub since: Timestamp,
    /// When it ends by itself; [`Timestamp::MAX`]: once it is ended.
    pub until: Timestamp,
    /// In words, for operators and reports.
    pub cause: Arc<str>,
}

impl Held {
    /// When it ends by itself.
    pub fn ends(&self) -> Option<Timestamp> {
        Some(self.until).filter(|until| *until != Timestamp::MAX)
    }
}

/// What became of a lane's pace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// It goes slower.
    Slower,
    /// It goes faster, and slower than its limits still.
    Faster,
    /// Its limits hold again.
    Ended,
}

/// What a refusal was said to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SaidTo {
    /// A connection that was not taken.
    Door,
    /// A connection that ends with it, as it does with 421 (RFC 5321 §3.8).
    Leaving,
    /// A message or a command; the connection stays.
    Message,
}

/// See the module.
#[derive(Debug)]
pub struct Adapt {
    pace: Option<Pace>,
    /// Of the pace's rate, and of an operator's.
    limiter: Limiter,
    /// What operators limit it to, beside its configuration.
    limited: (Option<usize>, Option<f64>),
    /// Refusals of what was begun by then don't count again.
    stepped: Timestamp,
    window: Window,
    /// Connections that have not come about yet.
    opening: BTreeSet<ConnectionId>,
    settling: Option<Settling>,
    held: Option<Held>,
    tenants: Vec<(Arc<str>, Held)>,
    /// One connection alone tries whether the site takes mail again.
    probing: bool,
    /// Suspensions, and refusals, with nothing that got through in between.
    in_a_row: u32,
    refused_in_a_row: u32,
}

/// Connections are refused while others work, or may yet.
#[derive(Clone, Copy, Debug)]
struct Settling {
    /// What the first of them was said to: never [`SaidTo::Message`].
    said_to: SaidTo,
    until: Timestamp,
    /// Those begun after it say nothing of how many were too many.
    upto: ConnectionId,
    /// As many worked at once.
    peak: usize,
}

impl Adapt {
    /// Of a lane that has done nothing yet.
    pub fn new(now: Timestamp) -> Self {
        Self {
            pace: None,
            limiter: Limiter::new(None, now),
            limited: (None, None),
            stepped: Timestamp(0),
            window: Window::default(),
            opening: BTreeSet::new(),
            settling: None,
            held: None,
            tenants: Vec::new(),
            probing: false,
            in_a_row: 0,
            refused_in_a_row: 0,
        }
    }

    /// How slow it goes, if it does.
    pub fn pace(&self) -> Option<&Pace> {
        self.pace.as_ref()
    }

    /// Goes at this pace from here on.
    pub fn set_pace(&mut self, pace: Option<Pace>, configured: Limits, now: Timestamp) {
        self.pace = pace;
        self.apply(configured, now);
    }

    /// Goes no faster than an operator wants.
    pub fn limit(&mut self, limited: (Option<usize>, Option<f64>), configured: Limits, now: Timestamp) {
        self.limited = limited;
        self.apply(configured, now);
    }

    /// Its configuration may have changed, or what operators want.
    pub fn apply(&mut self, configured: Limits, now: Timestamp) {
        let limits = self.limits(configured);
        let paced = self.pace.and_then(|pace| pace.rate(limits));
        let own = paced.or(limits.rate);
        // What is configured is the lane's limiter's matter.
        self.limiter.set_rate(own.filter(|_| own != configured.rate), now);
    }

    /// What it may do by its configuration and by what operators want.
    pub fn limits(&self, configured: Limits) -> Limits {
        let (connections, rate) = self.limited;
        Limits {
            connections: connections.map_or(configured.connections, |most| most.min(configured.connections)),
            rate: match (rate, configured.rate) {
                (Some(one), Some(other)) => Some(one.min(other)),
                (one, other) => one.or(other),
            },
        }
    }

    /// Connections at once.
    pub fn most(&self, configured: Limits) -> usize {
        let limits = self.limits(configured);
        self.pace
            .map_or(limits.connections, |pace| pace.connections(limits))
    }

    /// Whether one more connection may be opened beside `open` ones.
    pub fn may_open(&self, open: usize, configured: Limits) -> bool {
        let most = if self.probing { 1 } else { self.most(configured) };
        // What was refused before is tried with one connection, not with many.
        let one_by_one = self.pace.is_some_and(|pace| !pace.is_known(open + 1));
        let waits = one_by_one && !self.opening.is_empty();
        open < most && !waits && self.settling.is_none()
    }

    /// Whether there are more connections than there should be. None is closed while it isn't known how many work.
    pub fn too_many(&self, open: usize, configured: Limits) -> bool {
        self.settling.is_none() && open > self.most(configured)
    }

    /// A connection is being made.
    pub fn connecting(&mut self, connection: ConnectionId) {
        self.opening.insert(connection);
    }

    /// It has come about, one of `open`.
    pub fn opened(&mut self, connection: ConnectionId, open: usize, now: Timestamp) {
        self.opening.remove(&connection);
        let working = self.working(open);
        self.window.at(now).peak(working);
        if let Some(settling) = &mut self.settling {
            settling.peak = settling.peak.max(working);
        }
    }

    /// It is gone.
    pub fn closed(&mut self, connection: ConnectionId) {
        self.opening.remove(&connection);
    }

    /// Of `open` connections those that have come about.
    pub fn working(&self, open: usize) -> usize {
        open.saturating_sub(self.opening.len())
    }

    /// When the next message may begin, if it may not now.
    pub fn wait(&self, now: Timestamp) -> Option<Timestamp> {
        self.limiter.explain(now).map(|(at, _)| at)
    }

    /// A message begins, over one of `open` connections.
    pub fn begins(&mut self, open: usize, now: Timestamp) {
        // It was asked before, so that there is a token.
        if self.limiter.reserve(now) != Grant::Granted {
            tracing::debug!("a message begins before its time");
        }
        let working = self.working(open).max(1);
        let now = self.window.at(now);
        now.begun += 1;
        now.peak(working);
    }

    /// A message got through, over one of `open` connections.
    pub fn through(&mut self, open: usize, configured: Limits, now: Timestamp) -> Option<Step> {
        self.window.at(now).through += 1;
        (self.in_a_row, self.refused_in_a_row) = (0, 0);
        let before = self.pace?;
        let limits = self.limits(configured);
        let after = before.worked(self.working(open), self.window.rate(now), limits, now);
        let step = match after {
            None => Step::Ended,
            Some(after) if after.changed == before.changed => {
                self.pace = Some(after);
                return None;
            }
            Some(_) => Step::Faster,
        };
        self.set_pace(after, configured, now);
        Some(step)
    }

    /// A reply to what was `begun` then asks for less. Of the `open` connections, `last` was begun last.
    pub fn slower(
        &mut self,
        begun: Timestamp,
        said_to: SaidTo,
        (open, last): (usize, ConnectionId),
        configured: Limits,
        now: Timestamp,
    ) -> Option<Step> {
        if begun <= self.stepped {
            return None;
        }
        let working = self.working(open);
        // More than the last step left are open still, which each may be told: that was heard.
        if said_to != SaidTo::Door && self.pace.is_some() && working > self.most(configured) {
            return None;
        }
        let within = match said_to {
            SaidTo::Door => SETTLES_WITHIN,
            SaidTo::Leaving => LEAVE_WITHIN,
            SaidTo::Message => return self.step(Some(working.max(1)), configured, now),
        };
        if open > 1 || self.settling.is_some() {
            self.settling.get_or_insert(Settling {
                said_to,
                until: now + within,
                upto: last,
                peak: working,
            });
            return None;
        }
        let lately = match said_to {
            SaidTo::Leaving => Some(1),
            SaidTo::Door | SaidTo::Message => self.window.peak(now),
        };
        self.step(lately, configured, now)
    }

    /// Once it is known which connections come about and which do not, or which are told to go, says how many are too many. `open` are
    /// left.
    pub fn settle(&mut self, open: usize, configured: Limits, now: Timestamp) -> Option<Step> {
        let settling = self.settling?;
        let is_open = |first: &ConnectionId| *first <= settling.upto;
        let goes_on = match settling.said_to {
            SaidTo::Leaving => open > 0,
            SaidTo::Door | SaidTo::Message => self.opening.first().is_some_and(is_open),
        };
        if goes_on && now < settling.until {
            return None;
        }
        self.settling = None;
        let left = match settling.said_to {
            SaidTo::Leaving => self.working(open),
            SaidTo::Door | SaidTo::Message => settling.peak,
        };
        if left == 0 {
            let lately = self.window.peak(now);
            return self.step(lately, configured, now);
        }
        match settling.said_to {
            SaidTo::Leaving => self.step(Some(left), configured, now),
            SaidTo::Door | SaidTo::Message => self.take_step(How::Further { working: left }, configured, now),
        }
    }

    /// When it is said at the latest.
    pub fn settles_at(&self) -> Option<Timestamp> {
        self.settling.map(|settling| settling.until)
    }

    /// Nothing was in use lately: the lane rests, and that is enough.
    fn step(&mut self, in_use: Option<usize>, configured: Limits, now: Timestamp) -> Option<Step> {
        let how = How::Words {
            in_use: in_use?,
            rate: self.window.rate(now),
        };
        self.take_step(how, configured, now)
    }

    fn take_step(&mut self, how: How, configured: Limits, now: Timestamp) -> Option<Step> {
        self.stepped = now;
        let limits = self.limits(configured);
        let pace = Pace::slower(self.pace, how, limits, now);
        self.set_pace(Some(pace), configured, now);
        Some(Step::Slower)
    }

    /// Notes a reply that asks for less, or for nothing.
    pub fn refused(&mut self, now: Timestamp) {
        self.window.at(now).refused += 1;
        self.refused_in_a_row = self.refused_in_a_row.saturating_add(1);
    }

    /// Most of what was tried lately got through, and some of what was tried just now: one bad reply is no reason to stop.
    pub fn works(&mut self, now: Timestamp) -> bool {
        let (through, refused) = self.window.counts(now);
        through > WORKS * refused && self.refused_in_a_row < REFUSED_IN_A_ROW
    }

    /// How long it is suspended for that is asked to wait for `time`, and was suspended for `last` a moment ago: a lane that has left
    /// memory meanwhile has not counted that.
    pub fn suspension(&mut self, time: Duration, last: Duration, now: Timestamp) -> Duration {
        let in_a_row = match self.in_a_row {
            0 => Duration::ZERO,
            number => Duration::from_secs(1 << number.min(6)),
        };
        let (through, _) = self.window.counts(now);
        let again = if through == 0 {
            last.saturating_mul(2)
        } else {
            Duration::ZERO
        };
        self.in_a_row += 1;
        time.max(in_a_row.max(again).min(LEAST_IN_A_ROW))
    }

    /// What suspends it now, all tenants' mail or some; in place of what did before. What it begins with afterwards is one connection.
    pub fn hold(&mut self, held: Option<Held>, tenants: Vec<(Arc<str>, Held)>) {
        self.probing |= held.is_some() && self.held != held;
        self.held = held;
        self.tenants = tenants;
    }

    /// What suspends it.
    pub fn held(&self, now: Timestamp) -> Option<&Held> {
        self.held.as_ref().filter(|held| held.until > now)
    }

    /// What suspends this tenant's mail.
    pub fn held_of(&self, tenant: &str, now: Timestamp) -> Option<&Held> {
        let of = |(name, held): &&(Arc<str>, Held)| **name == *tenant && held.until > now;
        self.tenants.iter().find(of).map(|(_, held)| held)
    }

    /// A transaction got through to the host. True where one connection alone was to try that.
    pub fn host_works(&mut self, now: Timestamp) -> bool {
        if self.held(now).is_some() {
            // It was begun before.
            return false;
        }
        std::mem::take(&mut self.probing)
    }
}

/// What was tried in the last minute, in slots of 5 s.
#[derive(Debug, Default)]
struct Window {
    slots: [Slot; SLOTS],
    /// The number of the slot of now, from the epoch on.
    current: u64,
    /// When the first message began.
    first: Option<Timestamp>,
}

const SLOTS: usize = 12;
const SLOT_MILLIS: u64 = 5_000;

/// A rate is measured over so many slots, the last of which is not full.
const MEASURED: u64 = 3;

#[derive(Clone, Copy, Debug, Default)]
struct Slot {
    begun: u32,
    through: u32,
    refused: u32,
    peak: usize,
}

impl Slot {
    fn peak(&mut self, working: usize) {
        self.peak = self.peak.max(working);
    }
}

impl Window {
    fn at(&mut self, now: Timestamp) -> &mut Slot {
        let number = now.0 / SLOT_MILLIS;
        let passed = number.saturating_sub(self.current);
        for back in 0..passed.min(SLOTS as u64) {
            self.slots[place(number - back)] = Slot::default();
        }
        // A clock that was set back goes on in the last slot.
        self.current = self.current.max(number);
        self.first.get_or_insert(now);
        &mut self.slots[place(self.current)]
    }

    /// Messages begun, a second.
    fn rate(&mut self, now: Timestamp) -> f64 {
        self.at(now);
        let last = (0..MEASURED).map(|back| self.slots[place(self.current.saturating_sub(back))].begun);
        let begun: u32 = last.sum();
        let from = Timestamp(self.current.saturating_sub(MEASURED - 1) * SLOT_MILLIS);
        let from = from.max(self.first.unwrap_or(now));
        f64::from(begun) / now.since(from).as_secs_f64().max(1.0)
    }

    fn counts(&mut self, now: Timestamp) -> (u32, u32) {
        self.at(now);
        let add =
            |(through, refused): (u32, u32), slot: &Slot| (through + slot.through, refused + slot.refused);
        self.slots.iter().fold((0, 0), add)
    }

    /// Connections that worked at once; `None` where none did.
    fn peak(&mut self, now: Timestamp) -> Option<usize> {
        self.at(now);
        let peak = self.slots.iter().map(|slot| slot.peak).max();
        peak.filter(|&peak| peak > 0)
    }
}

/// A slot's number, from the epoch on, to its place.
fn place(number: u64) -> usize {
    usize::try_from(number % SLOTS as u64).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const NOW: Timestamp = Timestamp(1_700_000_000_000);
    const SECOND: Duration = Duration::from_secs(1);
    const WIDE: Limits = Limits {
        connections: 200,
        rate: None,
    };

    /// A lane that opens as many as it may, of which the first `taken` come about and all others are refused. Gives what is open then,
    /// and the steps that were taken.
    fn opens(adapt: &mut Adapt, taken: usize, at: Timestamp) -> (usize, Vec<Step>) {
        let mut open = 0;
        let mut ids = Vec::new();
        while adapt.may_open(open, WIDE) {
            ids.push(ConnectionId(ids.len() as u64 + 1));
            adapt.connecting(*ids.last().unwrap());
            open += 1;
        }
        let (mut steps, last) = (Vec::new(), *ids.last().unwrap());
        // Those that are refused hear first.
        for &id in ids.iter().skip(taken).chain(ids.iter().take(taken)) {
            if id.0 as usize <= taken {
                adapt.opened(id, open, at + SECOND * 2);
            } else {
                let step = adapt.slower(at, SaidTo::Door, (open, last), WIDE, at + SECOND);
                open -= 1;
                adapt.closed(id);
                steps.extend(step);
            }
            steps.extend(adapt.settle(open, WIDE, at + SECOND * 2));
        }
        (open, steps)
    }

    #[test]
    fn one_burst_is_one_step_to_nine_tenths_of_what_came_about() {
        for (taken, most) in [(50, 45), (1, 1), (199, 179)] {
            let mut adapt = Adapt::new(NOW);
            let (open, steps) = opens(&mut adapt, taken, NOW);
            assert_eq!((open, &steps[..]), (taken, &[Step::Slower][..]));
            assert_eq!(adapt.most(WIDE), most);
            assert!(adapt.too_many(open, WIDE) || taken == 1);
            // What was begun before is the same burst.
            let late = adapt.slower(
                NOW + SECOND,
                SaidTo::Door,
                (open, ConnectionId(7)),
                WIDE,
                NOW + SECOND * 3,
            );
            assert_eq!((late, adapt.most(WIDE)), (None, most));
        }
    }

    #[test]
    fn connections_that_are_told_to_go_one_after_the_other_are_one_step() {
        let mut adapt = Adapt::new(NOW);
        let (mut open, last) = (100, ConnectionId(100));
        let mut steps = Vec::new();
        // A peer takes 50, and tells each of the others at a message begun after the one before was told.
        for number in 0..50 {
            let now = NOW + Duration::from_millis(10 * number + 10);
            adapt.begins(open, now);
            let said = adapt.slower(now, SaidTo::Leaving, (open, last), WIDE, now);
            open -= 1;
            steps.extend(said.into_iter().chain(adapt.settle(open, WIDE, now)));
            assert!(!adapt.may_open(open, WIDE));
        }
        assert_eq!(adapt.settles_at(), Some(NOW + Duration::from_millis(1_010)));
        steps.extend(adapt.settle(open, WIDE, NOW + SECOND * 2));
        assert_eq!((&steps[..], adapt.most(WIDE)), (&[Step::Slower][..], 42));
    }

    #[test]
    fn who_hears_it_late_of_those_that_are_too_many_is_no_news() {
        let mut adapt = Adapt::new(NOW);
        for (begun, open, said_to) in [
            (1, 100, SaidTo::Message),
            (2, 99, SaidTo::Message),
            (3, 90, SaidTo::Leaving),
        ] {
            let now = NOW + SECOND * begun;
            adapt.slower(now, said_to, (open, ConnectionId(100)), WIDE, now);
        }
        assert_eq!((adapt.most(WIDE), adapt.settles_at()), (85, None));
        let later = NOW + SECOND * 5;
        let step = adapt.slower(later, SaidTo::Message, (85, ConnectionId(100)), WIDE, later);
        assert_eq!((step, adapt.most(WIDE)), (Some(Step::Slower), 72));
    }

    #[test]
    fn where_all_are_told_to_go_it_goes_by_how_many_there_were() {
        let mut adapt = Adapt::new(NOW);
        adapt.begins(20, NOW);
        for open in (1..=20).rev() {
            let step = adapt.slower(NOW, SaidTo::Leaving, (open, ConnectionId(20)), WIDE, NOW);
            assert_eq!(step, None);
            let step = adapt.settle(open - 1, WIDE, NOW);
            assert_eq!(step, (open == 1).then_some(Step::Slower));
        }
        assert_eq!(adapt.most(WIDE), 17);
        // The last one alone needs no looking around.
        let later = NOW + SECOND * 5;
        let step = adapt.slower(later, SaidTo::Leaving, (1, ConnectionId(21)), WIDE, later);
        assert_eq!((step, adapt.most(WIDE)), (Some(Step::Slower), 1));
    }

    #[test]
    fn where_all_are_refused_the_lane_rests_and_learns_nothing_more() {
        let mut adapt = Adapt::new(NOW);
        assert_eq!(opens(&mut adapt, 0, NOW), (0, vec![]));
        assert_eq!(adapt.most(WIDE), 200);
    }

    #[test]
    fn where_it_worked_just_before_it_goes_slower() {
        let mut adapt = Adapt::new(NOW);
        adapt.opened(ConnectionId(1), 40, NOW);
        let later = NOW + SECOND * 30;
        let step = adapt.slower(later, SaidTo::Door, (1, ConnectionId(9)), WIDE, later);
        assert_eq!((step, adapt.most(WIDE)), (Some(Step::Slower), 34));
        let mut adapt = Adapt::new(NOW);
        adapt.opened(ConnectionId(1), 40, NOW);
        let later = NOW + SECOND * 90;
        let step = adapt.slower(later, SaidTo::Door, (1, ConnectionId(9)), WIDE, later);
        assert_eq!(step, None, "it did nothing for a minute");
    }

    #[test]
    fn who_never_answers_does_not_keep_it_from_settling() {
        let mut adapt = Adapt::new(NOW);
        for id in 1..=3 {
            adapt.connecting(ConnectionId(id));
        }
        adapt.opened(ConnectionId(1), 3, NOW);
        adapt.opened(ConnectionId(2), 3, NOW);
        let began = NOW + SECOND;
        adapt.connecting(ConnectionId(4));
        assert_eq!(
            adapt.slower(began, SaidTo::Door, (4, ConnectionId(4)), WIDE, began),
            None
        );
        adapt.closed(ConnectionId(4));
        assert!(!adapt.may_open(3, WIDE));
        assert_eq!(adapt.settle(3, WIDE, began + SECOND), None);
        assert_eq!(adapt.settle(3, WIDE, began + SECOND * 10), Some(Step::Slower));
        assert_eq!(adapt.most(WIDE), 1);
    }

    #[test]
    fn a_level_that_was_refused_is_tried_with_one_connection() {
        let mut adapt = Adapt::new(NOW);
        opens(&mut adapt, 50, NOW);
        let later = NOW + SECOND * 63;
        assert_eq!(adapt.through(45, WIDE, later), Some(Step::Faster));
        assert_eq!(adapt.most(WIDE), 49);
        assert!(adapt.may_open(45, WIDE));
        adapt.connecting(ConnectionId(900));
        assert!(!adapt.may_open(46, WIDE), "one at a time");
        adapt.opened(ConnectionId(900), 46, later);
        assert!(adapt.may_open(46, WIDE));
    }

    #[test]
    fn one_bad_reply_is_no_reason_to_stop() {
        let mut adapt = Adapt::new(NOW);
        assert!(!adapt.works(NOW));
        for _ in 0..20 {
            adapt.through(1, WIDE, NOW);
        }
        adapt.refused(NOW);
        adapt.refused(NOW);
        assert!(adapt.works(NOW));
        adapt.refused(NOW);
        assert!(!adapt.works(NOW), "one of seven");
        let mut adapt = Adapt::new(NOW);
        for _ in 0..20 {
            adapt.through(1, WIDE, NOW);
        }
        let later = NOW + SECOND * 61;
        adapt.refused(later);
        assert!(!adapt.works(later), "that was long ago");
    }

    #[test]
    fn who_asks_for_a_second_again_and_again_is_given_longer() {
        let mut adapt = Adapt::new(NOW);
        let mut waits = |time| adapt.suspension(time, Duration::ZERO, NOW).as_secs();
        let asked: Vec<_> = (0..9).map(|_| waits(SECOND)).collect();
        assert_eq!(asked, [1, 2, 4, 8, 16, 32, 60, 60, 60]);
        assert_eq!(waits(SECOND * 300), 300);
        adapt.through(1, WIDE, NOW);
        assert_eq!(adapt.suspension(SECOND, SECOND * 60, NOW), SECOND);
        // One that has left memory goes on where it was.
        let anew = |last| Adapt::new(NOW).suspension(SECOND, SECOND * last, NOW).as_secs();
        assert_eq!([0, 1, 2, 32, 60, 300].map(anew), [1, 2, 4, 60, 60, 60]);
    }

    #[test]
    fn after_a_suspension_one_connection_tries() {
        let mut adapt = Adapt::new(NOW);
        let until = NOW + SECOND * 300;
        let held = Held {
            since: NOW,
            until,
            cause: "a reply".into(),
        };
        let tenant = (Arc::from("shop"), held.clone());
        adapt.hold(Some(held), vec![tenant]);
        assert!(adapt.held(NOW).is_some() && adapt.held(until).is_none());
        assert!(adapt.held_of("shop", NOW).is_some() && adapt.held_of("other", NOW).is_none());
        assert!(!adapt.host_works(NOW), "what was begun before");
        assert!(adapt.may_open(0, WIDE) && !adapt.may_open(1, WIDE));
        assert!(adapt.host_works(until));
        assert!(adapt.may_open(1, WIDE));
    }

    #[test]
    fn an_operators_limits_hold_beside_the_configuration() {
        let mut adapt = Adapt::new(NOW);
        adapt.limit((Some(7), Some(2.0)), WIDE, NOW);
        assert_eq!(adapt.most(WIDE), 7);
        let narrow = Limits {
            connections: 3,
            rate: Some(1.0),
        };
        adapt.apply(narrow, NOW);
        assert_eq!((adapt.most(narrow), adapt.limits(narrow)), (3, narrow));
        assert_eq!(adapt.wait(NOW), None, "the lane's own limiter has it");
        adapt.apply(WIDE, NOW);
        assert!(adapt.wait(NOW).is_some(), "a bucket begins empty");
    }

    #[test]
    fn what_is_sent_is_measured() {
        let mut window = Window::default();
        for millis in (0..30_000).step_by(50) {
            window.at(NOW + Duration::from_millis(millis)).begun += 1;
        }
        let rate = window.rate(NOW + SECOND * 30);
        assert!((15.0..=21.0).contains(&rate), "{rate}");
        assert_eq!(window.rate(NOW + SECOND * 50), 0.0);
    }

    proptest! {
        /// However a provider's limit moves, the lane goes for no more than it is configured for, and has one connection at least.
        #[test]
        fn it_stays_within_its_configuration(all in proptest::collection::vec((0_usize..300, 0_u64..100_000), 1..50)) {
            let mut adapt = Adapt::new(NOW);
            let mut now = NOW;
            for (taken, millis) in all {
                now = now + SECOND * 5 + Duration::from_millis(millis);
                let before = adapt.most(WIDE);
                let (open, steps) = opens(&mut adapt, taken, now);
                prop_assert!(open <= before);
                prop_assert!(steps.len() <= 1);
                adapt.through(open, WIDE, now + SECOND * 3);
                prop_assert!((1..=200).contains(&adapt.most(WIDE)));
            }
        }
    }
}
