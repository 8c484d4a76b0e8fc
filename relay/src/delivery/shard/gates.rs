//! Limits wider than a lane: a gate is this shard's place at a budget that all shards share.
//!
//! What is refused waits here, in turns by stream and tenant as in a lane, so that a limit shared by many lanes is shared fairly. A
//! limit that is about the tenant holds up one queue; any other holds up the lane, of which the queue whose turn it is stands
//! here. Whatever was taken from a budget for a message is kept by its unit until the claim ends.

mod found;
mod further;
mod serve;

use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use mail_core::Timestamp;
use parking_lot::Mutex;
use queue::{QueueId, QueueName, Scope, UnitKey};
use slab::Slab;

use crate::delivery::agenda::{Place, place};
use crate::delivery::exchange::{Waits, Word};
use crate::delivery::lane::{ConnectionId, Lane, Service};
use crate::delivery::limits::Grant;
use crate::delivery::limits::budget::{Asked, Budget, Claim, RESERVED};
use crate::delivery::turn::Turn;

use super::{Active, LaneId, Shard, Standing, Timer};

/// Who waits to be told is told at once; it asks by itself this long after, should that be lost.
const TOLD: Duration = Duration::from_secs(1);

/// Where others wait for a connection, each is a lane's for so long and so many messages, so that what opening it cost is not for one;
/// less, where mail of more weight waits that has none.
const QUANTUM: (Duration, u32) = (Duration::from_secs(1), 4);

/// So long is enough, however few messages went.
const LONGEST: Duration = Duration::from_secs(5);

/// Whether a connection has served its lane for as long as it may while others wait for one.
pub(super) fn is_long_enough(service: &Service, now: Timestamp) -> bool {
    let for_long = service.since + QUANTUM.0 <= now && service.messages >= QUANTUM.1;
    for_long || service.since + LONGEST <= now
}

/// Whoever comes behind others that are being served is served in the next round.
const SOON: Duration = Duration::from_millis(1);

/// What is kept for a stream and in use comes back at any time: who waits for it looks this often.
const OWN_AGAIN: Duration = Duration::from_millis(100);

/// Idle connections looked at for one that a gate's other lanes could do without.
const LOOK_AT_IDLE: usize = 4_096;

/// A slot of [`Shard`]'s gates.
pub type GateId = usize;

/// Who waits: the queue itself where the limit is about its tenant, or else its lane.
pub(super) type Waiter = (QueueId, LaneId);

/// What is waited for at a gate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum What {
    /// To send a message.
    Message = 0,
    /// A connection to send it over.
    Connection = 1,
}

/// See the module.
pub(super) struct Gate {
    scope: Rc<Scope>,
    budget: Arc<Mutex<Budget>>,
    /// For each [`What`]: who has a connection is not behind those that have none.
    waiting: [Turn<Waiter>; 2],
    /// Connections that are being closed so that another lane has one.
    handing_on: usize,
    /// Lanes, units on the wire, and connections that are handed on.
    used_by: usize,
    timer: Option<Timestamp>,
}

/// A unit on the wire that has taken something, or may go by several lanes.
pub(super) struct OnWire {
    place: Place,
    /// Where it goes.
    lane: LaneRef,
    /// It counts as one of its stream in its lane.
    is_counted: bool,
    /// Since when it has a token of its lane's own.
    paced: Option<Timestamp>,
    taken: Option<Taken>,
}

/// A lane that may have gone by now, whatever is in its slot.
#[derive(Clone, Copy)]
struct LaneRef {
    slot: LaneId,
    number: u64,
}

impl LaneRef {
    fn to(slot: LaneId, lanes: &Slab<Lane>) -> Self {
        let number = lanes.get(slot).map_or(0, |lane| lane.number);
        Self { slot, number }
    }

    /// Its slot, if it is there still.
    fn find(self, lanes: &Slab<Lane>) -> Option<LaneId> {
        let lane = lanes.get(self.slot)?;
        (lane.number == self.number).then_some(self.slot)
    }
}

impl Active {
    /// What is noted of a unit on the wire.
    pub(super) fn known_on_wire(&self, place: Place) -> Option<&OnWire> {
        let at = self.find_on_wire(place).ok()?;
        self.on_wire.get(at)
    }

    /// The same, noted now where it was not.
    fn note_on_wire(&mut self, place: Place, lane: LaneRef) -> &mut OnWire {
        let at = self.find_on_wire(place).unwrap_or_else(|at| {
            let fresh = OnWire {
                place,
                lane,
                is_counted: false,
                paced: None,
                taken: None,
            };
            self.on_wire.insert(at, fresh);
            at
        });
        &mut self.on_wire[at]
    }

    fn forget_on_wire(&mut self, place: Place) -> Option<OnWire> {
        let at = self.find_on_wire(place).ok()?;
        Some(self.on_wire.remove(at))
    }

    fn find_on_wire(&self, place: Place) -> Result<usize, usize> {
        self.on_wire.binary_search_by_key(&place, |out| out.place)
    }
}

/// What a unit on the wire has taken.
pub(super) struct Taken {
    shares: Vec<Share>,
    stream: Arc<str>,
    bytes: u64,
    /// When.
    at: Timestamp,
}

/// What it has taken at one gate.
struct Share {
    gate: GateId,
    /// Octets; 0 where the gate did not want to know.
    bytes: u64,
    /// What [`Budget::renewed`] said then: what came since has not counted it, and gets nothing back. `None`: it was on the wire before
    /// it came under the limit.
    since: Option<u32>,
    /// It was of what is kept for its stream.
    own: bool,
}

impl Taken {
    fn asked(&self) -> Asked<'_> {
        Asked {
            stream: &self.stream,
            bytes: self.bytes,
        }
    }

    /// Whether something was taken at this gate.
    pub(super) fn is_of(&self, gate: GateId) -> bool {
        self.shares.iter().any(|share| share.gate == gate)
    }
}

/// What came of asking the gates.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Pass {
    /// All let it through.
    Through,
    /// The lane waits.
    Lane,
    /// The queue waits; others of the lane may go.
    Queue,
}

impl Gate {
    /// It waits here no more.
    pub(super) fn leave(&mut self, waiter: Waiter, name: &QueueName) {
        let all = self.waiting.iter_mut();
        all.for_each(|waiting| waiting.remove(waiter, name));
    }

    /// One that waits here has mail whose time is up at this moment, or no such mail any more.
    pub(super) fn hasten(&mut self, waiter: Waiter, name: &QueueName, until: Option<Timestamp>) {
        let all = self.waiting.iter_mut();
        all.for_each(|waiting| waiting.hasten(waiter, name, until));
    }

    /// Whether its timer stood at this moment; it does no more.
    pub(super) fn rings(&mut self, at: Timestamp) -> bool {
        let rings = self.timer == Some(at);
        if rings {
            self.timer = None;
        }
        rings
    }
}

impl Shard {
    /// Asks all gates of a queue's mail in a lane. `serving`: the gate whose turn it is for.
    pub(super) fn pass(
        &mut self,
        lane: LaneId,
        id: QueueId,
        serving: Option<GateId>,
        now: Timestamp,
    ) -> (Pass, Option<Taken>) {
        if self.waits_still(lane, id, serving, now) {
            return (Pass::Lane, None);
        }
        let of_tenant = self.tenant_gates(lane, id, now);
        let of_tenant = of_tenant.as_deref().unwrap_or_default();
        let of_lane = self.lanes[lane].gates.clone();
        if of_lane.is_empty() && of_tenant.is_empty() {
            return (Pass::Through, None);
        }
        let Some(stream) = self.active.get(&id).map(|active| active.name.stream.clone()) else {
            return (Pass::Through, None);
        };
        let mut taken = Taken {
            shares: Vec::with_capacity(of_lane.len() + of_tenant.len()),
            bytes: self.bytes_of_first(id, of_lane.iter().chain(of_tenant.iter())),
            stream,
            at: now,
        };
        // Where something is kept for a stream, its mail may go though others' may not.
        let any_kept = self.settings.streams.any_reserved();
        let all = of_tenant.iter().map(|gate| (gate, true));
        for (&gate, by_tenant) in all.chain(of_lane.iter().map(|gate| (gate, false))) {
            let asked = taken.asked();
            let is_own = any_kept && self.gates[gate].budget.lock().is_own(&asked, now);
            let of = is_own.then_some(asked.stream);
            let mut since = None;
            let again = self.ask(
                (gate, What::Message, of),
                (id, lane),
                serving,
                now,
                |budget, shard| {
                    since = Some(budget.renewed());
                    budget.message(shard, &asked, now)
                },
            );
            if let Some(again) = again {
                let queue_alone = by_tenant || any_kept;
                self.refund(&taken, now);
                self.look_ahead(of_tenant.iter().chain(of_lane.iter()), now);
                self.wait_at((gate, What::Message), (id, lane), queue_alone, again, now);
                return (if queue_alone { Pass::Queue } else { Pass::Lane }, None);
            }
            taken.shares.push(Share {
                gate,
                bytes: taken.bytes,
                since,
                own: is_own,
            });
        }
        let needs_connection = self.lanes[lane].idle.is_empty();
        if needs_connection && let Err((gate, again)) = self.take_connection(lane, id, &taken, serving, now) {
            self.refund(&taken, now);
            self.wait_at((gate, What::Connection), (id, lane), false, again, now);
            self.make_room_at(gate, lane, now);
            return (Pass::Lane, None);
        }
        if let Some((gate, what, front)) = self.lanes[lane].waits_at {
            let waiting = &mut self.gates[gate].waiting[what as usize];
            // By an idle connection of its own it goes before its turn for another.
            if waiting.front() == Some((front, lane)) && (what == What::Message || needs_connection) {
                waiting.served();
            }
            self.leave_gate(lane);
        }
        (Pass::Through, Some(taken))
    }

    /// What is not on disk of the counts of any of these gates is written together: it would be one after the other, as mail comes to them.
    fn look_ahead<'a>(&self, gates: impl Iterator<Item = &'a GateId>, now: Timestamp) {
        for &gate in gates {
            let gate = &self.gates[gate];
            let mut budget = gate.budget.lock();
            budget.look_ahead(now);
            self.place.ledger().hear(&gate.scope, &mut budget);
        }
    }

    /// Whether a lane waits at a gate for this queue, and it is not time to ask again there. Other gates are not asked meanwhile: it
    /// would stand in their lines, and be let through for nothing.
    fn waits_still(&self, lane: LaneId, id: QueueId, serving: Option<GateId>, now: Timestamp) -> bool {
        let Some((lane, (gate, what, front))) =
            self.lanes.get(lane).and_then(|lane| Some((lane, lane.waits_at?)))
        else {
            return false;
        };
        // One of its own may have come free.
        let is_served = what == What::Connection && !lane.idle.is_empty();
        let asks_at = self.gates.get(gate).and_then(|gate| gate.timer);
        front == id && !is_served && serving != Some(gate) && asks_at.is_some_and(|at| at > now)
    }

    /// Takes a connection from all gates of the lane, or from none of them.
    fn take_connection(
        &mut self,
        lane: LaneId,
        id: QueueId,
        taken: &Taken,
        serving: Option<GateId>,
        now: Timestamp,
    ) -> Result<(), (GateId, Timestamp)> {
        let gates = self.lanes[lane].gates.clone();
        for (number, &gate) in gates.iter().enumerate() {
            let is_own = taken.shares.iter().any(|share| share.gate == gate && share.own);
            let claim = self.claim(lane, id);
            let again = self.ask(
                (gate, What::Connection, is_own.then_some(&*taken.stream)),
                (id, lane),
                serving,
                now,
                |budget, shard| budget.connection(shard, claim, now),
            );
            if let Some(again) = again {
                for &gate in &gates[..number] {
                    let next = self.gates[gate].budget.lock().refund_connection(now);
                    self.tell_of_room(gate, [next], now);
                }
                return Err((gate, again));
            }
        }
        Ok(())
    }

    /// Asks one budget. Whoever comes while others wait here stands behind them; with a stream, behind those of that stream alone.
    /// When to ask again, if it is refused.
    fn ask(
        &mut self,
        (gate, for_what, of): (GateId, What, Option<&str>),
        waiter: Waiter,
        serving: Option<GateId>,
        now: Timestamp,
        what: impl FnOnce(&mut Budget, usize) -> Grant,
    ) -> Option<Timestamp> {
        let at = &self.gates[gate];
        let waiting = &at.waiting[for_what as usize];
        let first = match of {
            Some(stream) => waiting.front_of(stream),
            None => waiting.front(),
        };
        if serving != Some(gate) && first.is_some_and(|first| first != waiter) {
            let timer = at.timer.filter(|&timer| timer > now);
            let again = timer.unwrap_or(now + SOON);
            // Those in front may wait for longer than what is kept for this one's stream does.
            return Some(match self.settings.streams.any_reserved() {
                true => again.min(now + OWN_AGAIN),
                false => again,
            });
        }
        let mut budget = at.budget.lock();
        let grant = what(&mut budget, self.place.index());
        self.place.ledger().hear(&at.scope, &mut budget);
        (grant != Grant::Granted).then(|| again(&grant, now))
    }

    fn wait_at(
        &mut self,
        (gate, what): (GateId, What),
        waiter: Waiter,
        queue_alone: bool,
        again: Timestamp,
        now: Timestamp,
    ) {
        let (id, lane) = waiter;
        let Some(active) = self.active.get_mut(&id) else {
            return;
        };
        let weight = self.settings.streams.weight(&active.name.stream);
        let ends = active.ends;
        if queue_alone {
            // It has stood in its lane's turn till now.
            self.lanes[lane].turn.remove(id, &active.name);
            if let Some(stand) = active.stands.iter_mut().find(|stand| stand.lane == lane) {
                stand.at = Standing::Gate(gate);
            }
            let name = active.name.clone();
            // What the lane waited with waits by itself now.
            if self.lanes[lane].waits_at.is_some_and(|(.., front)| front == id) {
                self.leave_gate(lane);
            }
            let waiting = &mut self.gates[gate].waiting[what as usize];
            waiting.push(waiter, &name, weight);
            if ends.is_some() {
                waiting.hasten(waiter, &name, ends);
            }
        } else if self.lanes[lane].waits_at != Some((gate, what, id)) {
            let name = active.name.clone();
            self.leave_gate(lane);
            self.lanes[lane].waits_at = Some((gate, what, id));
            let waiting = &mut self.gates[gate].waiting[what as usize];
            waiting.push(waiter, &name, weight);
            if ends.is_some() {
                waiting.hasten(waiter, &name, ends);
            }
        }
        self.wake_gate_by(gate, again, now);
    }

    /// Unless it is woken before: others may wait there for something else.
    fn wake_gate_by(&mut self, gate: GateId, at: Timestamp, now: Timestamp) {
        let before = self.gates.get(gate).and_then(|gate| gate.timer);
        if before.is_none_or(|before| before <= now || at < before) {
            self.set_gate_timer(gate, at);
        }
    }

    /// The lane waits at no gate any more.
    pub(super) fn leave_gate(&mut self, lane: LaneId) {
        if let Some(at) = self.lanes.get_mut(lane)
            && let Some((gate, _, id)) = at.waits_at.take()
            && let Some(gate) = self.gates.get_mut(gate)
            && let Some(active) = self.active.get(&id)
        {
            gate.leave((id, lane), &active.name);
        }
    }

    /// A unit with what it has taken goes on the wire.
    pub(super) fn goes_out(&mut self, lane: LaneId, unit: UnitKey, taken: Option<Taken>, now: Timestamp) {
        let is_counted = self.settings.streams.any_reserved();
        let Some(active) = self.active.get_mut(&unit.queue) else {
            return;
        };
        if is_counted && let Some(at) = self.lanes.get_mut(lane) {
            *at.busy.entry(active.name.stream.clone()).or_default() += 1;
        }
        for share in taken.iter().flat_map(|taken| &taken.shares) {
            self.gates[share.gate].used_by += 1;
        }
        let is_paced = self.lanes.get(lane).is_some_and(|at| at.limiter.is_limited());
        let paced = is_paced.then_some(now);
        if is_counted || is_paced || taken.is_some() || active.stands.len() > 1 {
            let out = active.note_on_wire(place(&unit), LaneRef::to(lane, &self.lanes));
            (out.is_counted, out.paced, out.taken) = (is_counted, paced, taken);
        }
    }

    /// Nothing was sent: what it has taken is given back.
    pub(super) fn refund(&mut self, taken: &Taken, now: Timestamp) {
        for share in &taken.shares {
            let next = {
                let mut budget = self.gates[share.gate].budget.lock();
                match share.since == Some(budget.renewed()) {
                    true => budget.refund(&taken.stream, share.bytes, taken.at, now),
                    false => budget.sent(&taken.stream, share.bytes, now),
                }
            };
            self.tell_of_room(share.gate, next, now);
        }
    }

    /// Whatever becomes of a unit, no peer was told of it: it is none of its limits' messages.
    pub fn nothing_said(&mut self, unit: &UnitKey, now: Timestamp) {
        self.came_back(unit, false, now);
    }

    /// The claim is over, or will be by what is known already; `sent`: something was attempted. Of a claim it is heard once.
    pub(super) fn came_back(&mut self, unit: &UnitKey, sent: bool, now: Timestamp) {
        let Some(active) = self.active.get_mut(&unit.queue) else {
            return;
        };
        let Some(out) = active.forget_on_wire(place(unit)) else {
            return;
        };
        let stream = &active.name.stream;
        let lane = out.lane.find(&self.lanes);
        if let Some(at) = lane.and_then(|lane| self.lanes.get_mut(lane)) {
            if out.is_counted
                && let Some(count) = at.busy.get_mut(stream)
            {
                *count -= 1;
                if *count == 0 {
                    at.busy.remove(stream);
                }
            }
            if let Some(since) = out.paced.filter(|_| !sent) {
                at.limiter.refund(since, now);
            }
        }
        let Some(taken) = out.taken else {
            return;
        };
        if sent {
            for share in &taken.shares {
                let mut budget = self.gates[share.gate].budget.lock();
                let next = budget.sent(&taken.stream, share.bytes, now);
                drop(budget);
                self.tell_of_room(share.gate, next, now);
            }
        } else {
            self.refund(&taken, now);
        }
        for share in &taken.shares {
            self.release_gates(&[share.gate]);
        }
    }

    /// A connection of the lane, taken by [`Self::pass`], was not opened after all.
    pub(super) fn connection_refunded(&mut self, lane: LaneId, now: Timestamp) {
        for &gate in self.lanes[lane].gates.clone().iter() {
            let next = self.gates[gate].budget.lock().refund_connection(now);
            self.tell_of_room(gate, [next], now);
        }
    }

    /// A connection of the lane is to be closed.
    pub(super) fn closes_at_gates(&mut self, lane: LaneId) {
        for &gate in self.lanes[lane].gates.iter() {
            self.gates[gate].budget.lock().closes();
        }
    }

    /// A connection of the lane is gone.
    pub(super) fn connection_given_back(&mut self, lane: LaneId, was_closing: bool, now: Timestamp) {
        let Some(gates) = self.lanes.get(lane).map(|lane| lane.gates.clone()) else {
            return;
        };
        for &gate in gates.iter() {
            let next = self.gates[gate].budget.lock().closed(was_closing, now);
            self.tell_of_room(gate, [next], now);
        }
    }

    /// Whether a connection that is free now is to be closed: a limit that was tightened wants fewer than there are, or another lane
    /// waits for one, and this one has been this lane's for long enough. As many are closed at once as there are lanes that wait.
    pub(super) fn is_anothers_turn(
        &mut self,
        lane: LaneId,
        connection: ConnectionId,
        now: Timestamp,
    ) -> bool {
        let Some(at) = self.lanes.get_mut(lane).filter(|at| !at.gates.is_empty()) else {
            return false;
        };
        let long_enough = at.service_of(connection).is_none_or(|service| {
            service.messages += 1;
            is_long_enough(service, now)
        });
        let gates = at.gates.clone();
        let mut any_waits = false;
        for &gate in gates.iter() {
            let gate = &self.gates[gate];
            let budget = gate.budget.lock();
            if budget.has_too_many() {
                return true;
            }
            any_waits |= !gate.waiting[What::Connection as usize].is_empty() || budget.anybody_waits();
        }
        if !any_waits {
            return false;
        }
        let own = self.next_turn(lane, now);
        let waits = |&gate: &GateId| self.goes_to_another(lane, own, gate, long_enough);
        if let Some(gate) = gates.iter().copied().find(waits) {
            self.gates[gate].handing_on += 1;
            self.gates[gate].used_by += 1;
            self.handed_on.insert(connection, gate);
            return true;
        }
        if long_enough {
            self.serves_on(lane, connection, &gates, now);
        }
        false
    }

    /// Whether a lane's connection is to be another's at this gate. `own`: whose turn it would be in the lane, if anything is left there.
    fn goes_to_another(&self, lane: LaneId, own: Option<QueueId>, gate: GateId, long_enough: bool) -> bool {
        let Some(at) = self.lanes.get(lane) else {
            return false;
        };
        let waits_itself = at
            .waits_at
            .is_some_and(|(at, what, _)| (at, what) == (gate, What::Connection));
        let gate = &self.gates[gate];
        let waiting = &gate.waiting[What::Connection as usize];
        let front = waiting.front().filter(|(_, of)| *of != lane);
        let front = front.map(|(id, of)| self.claim(of, id));
        let Some(id) = own else {
            // What may not go beside what is kept for streams is the lane's mail all the same.
            if self.settings.streams.any_reserved() && !long_enough {
                return false;
            }
            let most = waiting.len() + gate.budget.lock().others_wait(self.place.index(), Claim::SPARE);
            return gate.handing_on < most;
        };
        let own = self.claim(lane, id);
        if !long_enough {
            // Mail of more weight that has no connection at all waits for nobody's time; no more of them go than there is such mail.
            let is_urgent = |front: Claim| front.has == 0 && front.weight > own.weight;
            return front.is_some_and(is_urgent) && gate.handing_on < waiting.len_above(own.weight);
        }
        let here = front.is_some_and(|front| front.goes_before(own))
            && gate.handing_on < waiting.len() - usize::from(waits_itself);
        here || gate.handing_on < gate.budget.lock().others_wait(self.place.index(), own)
    }

    /// A lane keeps a connection for longer, whatever the turn of who stands first in a line for one: others' is nearer.
    fn serves_on(&mut self, lane: LaneId, connection: ConnectionId, gates: &[GateId], now: Timestamp) {
        for &gate in gates {
            let gate = &mut self.gates[gate];
            let waiting = &mut gate.waiting[What::Connection as usize];
            // One that is on its way is for who is in front.
            if gate.handing_on == 0 && waiting.len() > 1 {
                waiting.served();
            }
        }
        if let Some(at) = self.lanes.get_mut(lane) {
            at.begin_service(connection, now);
        }
    }

    /// A connection is gone, perhaps to be another lane's.
    pub(super) fn handed_on(&mut self, connection: ConnectionId) {
        if let Some(gate) = self.handed_on.remove(&connection) {
            self.gates[gate].handing_on -= 1;
            self.release_gates(&[gate]);
        }
    }

    /// What a lane has of connections, for mail of this queue.
    fn claim(&self, lane: LaneId, id: QueueId) -> Claim {
        Claim {
            has: self.lanes.get(lane).map_or(0, |lane| lane.open as u64),
            weight: self.weight_of(id).max(1),
        }
    }

    pub(super) fn weight_of(&self, id: QueueId) -> u32 {
        let active = self.active.get(&id);
        active.map_or(0, |active| self.settings.streams.weight(&active.name.stream))
    }

    /// There is room at a budget: the shards that are first in its lines come. What is told here waits for the next tick, so that
    /// nothing is sent in the midst of something else.
    fn tell_of_room<const N: usize>(&mut self, gate: GateId, next: [Option<usize>; N], now: Timestamp) {
        for shard in next.into_iter().flatten() {
            if shard == self.place.index() {
                self.set_gate_timer(gate, now);
            } else {
                let scope = (*self.gates[gate].scope).clone();
                self.tell(shard, Word::Room(scope));
            }
        }
    }

    /// Another shard says that there is room.
    pub(super) fn room(&mut self, scope: &Scope, now: Timestamp) {
        match self.gate_of.get(scope) {
            Some(&gate) => self.serve(gate, now),
            None => {
                let index = self.place.index();
                let Some(budget) = self.place.ledger().find(scope) else {
                    return;
                };
                let next = budget.lock().leave(index, [false; 3], now);
                for shard in next.into_iter().flatten().filter(|&shard| shard != index) {
                    self.tell(shard, Word::Room(scope.clone()));
                }
            }
        }
    }

    /// All connections that a gate allows are open: one that is idle in another lane is closed, here or elsewhere.
    fn make_room_at(&mut self, gate: GateId, lane: LaneId, now: Timestamp) {
        let idle_for = self.patience_of(lane);
        let scope = self.gates[gate].scope.clone();
        if !self.close_idle_of(&scope, idle_for, now) {
            for shard in self.place.others() {
                self.tell(shard, Word::MakeRoomAt((*scope).clone(), idle_for));
            }
        }
    }

    /// Closes the connection that has been idle for longest, and for so long, among those of a scope.
    pub(super) fn close_idle_of(&mut self, scope: &Scope, idle_for: Duration, now: Timestamp) -> bool {
        let Some(&gate) = self.gate_of.get(scope) else {
            return false;
        };
        let found = self
            .idle
            .iter()
            .take(LOOK_AT_IDLE)
            .take_while(|(idle, _)| idle.since + idle_for <= now)
            .find(|(_, lane)| {
                self.lanes
                    .get(*lane)
                    .is_some_and(|lane| lane.gates.contains(&gate))
            })
            .copied();
        let Some((idle, lane)) = found else {
            return false;
        };
        self.close_idle_one(idle, lane);
        true
    }

    /// What holds a queue's mail in a lane, at the first gate that does.
    pub(super) fn held_at_gate(&self, lane: LaneId, name: &QueueName, now: Timestamp) -> Option<Waits> {
        let at = self.lanes.get(lane)?;
        let of_tenant = at.of_tenant(&name.tenant).ok();
        let of_tenant = of_tenant.map_or(&[][..], |of| &of.gates);
        let needs_connection = at.idle.is_empty();
        of_tenant.iter().chain(at.gates.iter()).find_map(|&gate| {
            let gate = self.gates.get(gate)?;
            let mut budget = gate.budget.lock();
            let (until, key) = match budget.explain(&name.stream, needs_connection, now)? {
                Grant::Granted => return None,
                Grant::NotBefore { held_by, .. } if held_by == RESERVED => {
                    let rest_of = format!("the limits of {}", gate.scope);
                    return Some(Waits::Reserved { rest_of });
                }
                Grant::NotBefore { at, held_by } => (at, held_by),
                Grant::WhenFreed { held_by } => (now, held_by),
            };
            let limit = format!("{key} of {}", gate.scope);
            Some(Waits::Throttled { until, limit })
        })
    }

    /// The octets of a queue's first unit, where some gate wants to know.
    fn bytes_of_first<'a>(&mut self, id: QueueId, gates: impl Iterator<Item = &'a GateId>) -> u64 {
        let mut gates = gates;
        let counts_bytes = |&gate: &GateId| self.gates[gate].budget.lock().counts_bytes();
        if !self.settings.scopes.count_bytes() || !gates.any(counts_bytes) {
            return 0;
        }
        let first = self.active.get(&id).and_then(|active| active.agenda.first_with());
        let Some(((due, message, unit), kept)) = first else {
            return 0;
        };
        if let Some(kept) = kept {
            return kept.message().bytes();
        }
        let unit = UnitKey {
            queue: id,
            due,
            id: message,
            unit,
        };
        // What can't be read is found out about when it is claimed.
        self.queue.unit_bytes(&unit).ok().flatten().unwrap_or(0)
    }

    fn set_gate_timer(&mut self, gate: GateId, at: Timestamp) {
        let Some(known) = self.gates.get_mut(gate) else {
            return;
        };
        if let Some(before) = known.timer.replace(at) {
            self.timers.remove(&(before, Timer::Gate(gate)));
        }
        self.timers.insert((at, Timer::Gate(gate)));
    }
}

/// When to ask again: later, whatever the limit says, so that no look at the timers lasts for ever.
fn again(refused: &Grant, now: Timestamp) -> Timestamp {
    match refused {
        Grant::NotBefore { at, .. } => (*at).max(Timestamp(now.0.saturating_add(1))),
        Grant::WhenFreed { .. } => now + TOLD,
        Grant::Granted => now,
    }
}

#[cfg(test)]
mod tests;
