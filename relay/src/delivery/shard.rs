//! A shard: the owner of queues and of the lanes they go through. It decides; [`super::courier`] does.
//!
//! Nothing here waits. Each method takes in one thing that happened, and leaves in [`Shard::take_effects`] what is to be
//! done about it. Reads of the store are short: a page of a queue's due index, a queue's record. What follows from what never
//! hangs on the order of a hash map, so that a simulation goes by its seed alone.

mod active;
mod adapt;
#[cfg(test)]
mod day;
mod failing;
mod fallback;
#[cfg(test)]
mod fleet;
pub mod gates;
mod grace;
mod idle;
mod index;
#[cfg(test)]
mod limits;
mod linger;
mod names;
mod operator;
mod parked;
mod pump;
mod rests;
mod room;
mod scan;
mod soon;
#[cfg(test)]
mod sources;
mod starved;
mod ways;

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use mail_core::{Domain, Timestamp};
use queue::{Backoff, HoldScope, Queue, QueueId, QueueName, Scope, SuspensionRecord, UnitKey};
use rustc_hash::FxHashMap;
use slab::Slab;

use crate::config::egress::Pool;
use crate::config::settings::DeliverySettings;
use crate::routing::{Routing, Way as Direction};
use crate::world::Random;

use super::adapt::{Held, Tally};
use super::agenda::{Agenda, place};
use super::courier::Kept;
use super::detour::Detour;
use super::egress::Shares;
use super::exchange::{Accepted, Loan, Order, Place, Word};
use super::lane::{ConnectionId, Idle, Lane, Plan};
use super::renew::Mended;
use super::route::Route;

use gates::{Gate, GateId, OnWire};
use grace::Grace;
pub(super) use grace::Hour;
use index::LaneIndex;
use starved::Starved;

/// Queues in memory at once, all shards together, some 500 octets each beside their windows. Further ones wait in the
/// catalogue.
pub const MAX_ACTIVE: usize = if cfg!(test) { 50 } else { 20_000 };

/// A queue with nothing to do for longer than this leaves memory; the catalogue brings it back in time.
const HORIZON: Duration = Duration::from_secs(30);

/// A queue whose destination rests for longer is looked at again after this long: the rest may have been lifted unnoticed.
const LONGEST_REST: Duration = Duration::from_secs(300);

/// Queues that left memory because their destination rests, and are to come back at once when it no longer does; 32 octets
/// each. Further ones come back within [`LONGEST_REST`].
const MAX_RESTING: usize = 100_000;

/// How often the catalogue is asked for queues that wake, and the deadline index for units that expire.
const SCAN_EVERY: Duration = Duration::from_secs(1);

/// Catalogue entries read at a time.
const SCAN_PAGE: usize = 256;

/// Units that end without a connection (expired, refused by routing) at once, so that they leave room for the others.
const MAX_ENDINGS: usize = 64;

/// A site is looked up anew this long after it was last confirmed.
const SITE_TTL: Duration = Duration::from_secs(300);

/// A site that seems to have changed is asked again after this long, since one answer is not believed.
const SITE_DOUBT: Duration = Duration::from_secs(15);

/// A queue that its site's shard has no room for is offered again after this long.
const LENT_AGAIN: Duration = Duration::from_secs(5);

/// A moment that another shard wrote down may be so much later than the one in which it is read.
const CLOCKS_DIFFER: Duration = Duration::from_secs(60);

/// After the store failed to answer a read.
const READ_AGAIN: Duration = Duration::from_secs(5);

/// A slot of [`Shard`]'s lanes.
pub type LaneId = usize;

pub use adapt::{Heard, Said};

/// A unit to work on; the shard holds its claim.
#[derive(Clone, Debug)]
pub struct Job {
    /// What the claim is on.
    pub unit: UnitKey,
    /// The message, where it is still in memory.
    pub message: Option<Arc<Kept>>,
    /// RCPTs a transaction, where it has fewer than others of its lane.
    pub recipients: Option<usize>,
}

impl Job {
    /// One that is read from the store.
    fn stored(unit: UnitKey) -> Self {
        Self {
            unit,
            message: None,
            recipients: None,
        }
    }
}

/// How a unit ends that no peer is asked about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ending {
    /// Routing refuses it: no such domain, a null MX, a loop.
    Refused(mail_core::Reply),
    /// A rule throws it away, for this reason.
    Discarded(Arc<str>),
    /// Its time is up. What held it last, where something did.
    Expired(Option<String>),
    /// It does not end: its sender wants to hear that it is late, and what holds it.
    Delayed(Option<String>),
}

/// What the courier is to do.
#[derive(Debug)]
#[expect(missing_docs, reason = "the fields are named after their types")]
pub enum Effect {
    /// Find the domain's route, then [`Shard::resolved`].
    Resolve(Domain),
    /// Make a connection and send the job over it.
    Connect {
        lane: LaneId,
        connection: ConnectionId,
        plan: Rc<Plan>,
        job: Job,
    },
    /// Send the job over this idle connection.
    Send { connection: ConnectionId, job: Job },
    /// Quit this idle connection.
    Close(ConnectionId),
    /// Say this to another shard.
    Tell(usize, Word),
    /// Carry out an operator's order on a unit claimed for it, then [`Shard::settled`]. Whoever gives
    /// orders bounds their number.
    Order(Order),
    /// Count a queue whose mail goes by its fallback, this smart host, from now on.
    Fallback(Arc<str>),
    /// Count a step of an adjustment: what was done, for the class of reply.
    Stepped(&'static str, Arc<str>),
    /// End the unit, then [`Shard::ended`].
    End {
        lane: Option<LaneId>,
        job: Job,
        ending: Ending,
    },
}

/// What became of a claim.
#[derive(Debug)]
pub enum Settled {
    /// The unit is gone from the queue.
    Gone,
    /// It is due again at this time.
    Due(Timestamp),
    /// Nothing was sent and nothing recorded: it is due as before.
    Untouched,
    /// The outcome could not be recorded. The claim stays, so that nothing is sent twice while this process lives.
    Unknown,
}

pub(super) struct Active {
    pub(super) name: QueueName,
    agenda: Agenda<Arc<Kept>>,
    /// Its units on the wire of which something is noted, in order. A claim keeps the queue in memory, and what it has taken with it.
    on_wire: Vec<OnWire>,
    /// The lanes that may take its mail; none as long as its site is not known.
    pub(super) stands: Vec<Stand>,
    /// What these lanes' sources are of.
    pub(super) pool: Option<Arc<Pool>>,
    /// When the site is to be looked up again.
    confirm: Timestamp,
    /// A differing site that one answer named.
    pub(super) rumour: Option<Arc<str>>,
    /// Why it goes by its fallback, if it does.
    pub(super) detour: Option<Detour>,
    /// To another shard with it, as soon as nothing of it is claimed here; and how it goes on there.
    leaves_for: Option<Box<(usize, Route, Option<Detour>)>>,
    /// An operator wants it tried whatever its lane rests for.
    hurry: bool,
    /// Its mail's time is nearly up: the first moment of any.
    ends: Option<Timestamp>,
    timer: Option<Timestamp>,
    /// What it left memory for the last time: known until its lanes are.
    held: Option<Held>,
    /// Since when it is empty; it is in [`Shard`]'s `lingering` then.
    empty_since: Option<Timestamp>,
}

/// How long a queue that leaves memory sleeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Rests {
    UntilDue,
    Until(Timestamp),
}

/// A queue at one of its lanes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Stand {
    pub(super) lane: LaneId,
    pub(super) at: Standing,
}

/// Where a queue stands for its turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Standing {
    /// Nowhere.
    Out,
    /// In the lane's turn.
    Turn,
    /// At a gate of its tenant's.
    Gate(GateId),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Timer {
    Scan,
    Queue(QueueId),
    Lane(LaneId),
    Gate(GateId),
}

/// See the module.
pub struct Shard {
    pub(super) queue: Queue,
    place: Place,
    pub(super) settings: Arc<DeliverySettings>,
    pub(super) routing: Arc<Routing>,
    pub(super) backoff: Backoff,
    random: Random,
    // By numbers of our own making, which nobody outside can choose: a quick hash does.
    pub(super) active: FxHashMap<QueueId, Active>,
    /// Of the streams of queues in memory: all of one have its name from here, where it is near at hand for each message.
    stream_names: BTreeSet<Arc<str>>,
    rooms: room::Rooms,
    /// Queues in memory that go ahead of their tenant's others, and when that was found out.
    hastened: soon::Hastened,
    /// Queues in memory that are empty, the longest so first.
    lingering: BTreeSet<(Timestamp, QueueId)>,
    /// Queues of this home that another shard works on.
    lent: FxHashMap<QueueId, usize>,
    /// Queues that left memory because of a hold, [`MAX_RESTING`] in all.
    resting: BTreeMap<HoldScope, rests::Resting>,
    resting_count: usize,
    sweep: rests::Sweep,
    /// Detours that were told of.
    told_of: BTreeMap<QueueId, Detour>,
    /// What queues of this home left memory for, [`MAX_RESTING`] in all: told of those that expire meanwhile.
    held_back: FxHashMap<QueueId, Held>,
    /// Of those scopes, what a reply or an operator has suspended.
    held_scopes: BTreeMap<HoldScope, Held>,
    /// What operators have suspended, [`queue::MAX_SUSPENSIONS`] at the most.
    suspended: Arc<[SuspensionRecord]>,
    /// How often the store had been brought back when they were read.
    reopened: u64,
    /// What replies have taught, and operators have set: all of it that is wider than a lane's pace.
    adjustments: adapt::Adjustments,
    /// Replies of which it takes several.
    tally: Tally,
    /// Connections that try whether sources serve again which have failed.
    trials: HashMap<Arc<str>, ConnectionId>,
    /// Queues that left memory because they are suspended, [`MAX_RESTING`] at the most.
    parked: BTreeSet<QueueId>,
    pub(super) lanes: Slab<Lane>,
    /// Lanes made so far.
    made_lanes: u64,
    lane_of: LaneIndex,
    /// Lanes looked at for adjustments that began or ended.
    #[cfg(test)]
    looked_at: usize,
    gates: Slab<Gate>,
    gate_of: HashMap<Rc<Scope>, GateId>,
    /// Whose turn it is among the sources of pools.
    shares: Shares,
    /// The day by which limits go, since 1970.
    today: u64,
    /// Claims that stay though nothing of theirs is on the wire.
    unknown: HashSet<UnitKey>,
    /// Units whose time was up while they were being worked on: they end as soon as they come back.
    overdue: HashSet<UnitKey>,
    /// Connections that are being closed for another lane, at which gate.
    handed_on: FxHashMap<ConnectionId, GateId>,
    names: names::Names,
    timers: BTreeSet<(Timestamp, Timer)>,
    connections: usize,
    pub(super) last_connection: u64,
    /// Connections up to this one were made under another configuration: none of them gets a further message.
    pub(super) outdated: ConnectionId,
    /// Holds ended by reloads: the store may still tell of them for a while.
    pub(super) mended: Mended,
    endings: usize,
    /// How far catalogue and deadlines were gone through.
    scans: scan::Scans,
    /// Lanes that would open a connection once another closes, and those that would end a unit once another has ended.
    pub(super) starved: [Starved; 2],
    /// Whose turn it is for a slot that is free.
    fed: Option<LaneId>,
    /// All idle connections, the longest so first.
    idle: BTreeSet<(Idle, LaneId)>,
    pub(super) draining: bool,
    grace: Grace,
    pub(super) effects: Vec<Effect>,
}

impl Shard {
    /// A shard that has read nothing yet; [`Shard::tick`] begins.
    pub fn new(
        queue: Queue,
        place: Place,
        settings: Arc<DeliverySettings>,
        routing: Arc<Routing>,
        random: Random,
        now: Timestamp,
    ) -> Self {
        let reopened = queue.reopened();
        let suspended = operator::stored_suspensions(&queue, now);
        let adjustments = adapt::Adjustments::read(&queue, now);
        let grace = Grace::begin(&queue, now);
        Self {
            suspended,
            reopened,
            adjustments,
            tally: Tally::default(),
            trials: HashMap::new(),
            parked: BTreeSet::new(),
            queue,
            place,
            backoff: super::backoff(&settings.retry),
            settings,
            routing,
            random,
            active: FxHashMap::default(),
            stream_names: BTreeSet::new(),
            rooms: room::Rooms::default(),
            hastened: soon::Hastened::default(),
            lingering: BTreeSet::new(),
            lent: FxHashMap::default(),
            resting: BTreeMap::new(),
            resting_count: 0,
            sweep: rests::Sweep::default(),
            told_of: BTreeMap::new(),
            held_back: FxHashMap::default(),
            held_scopes: BTreeMap::new(),
            lanes: Slab::new(),
            made_lanes: 0,
            lane_of: LaneIndex::default(),
            #[cfg(test)]
            looked_at: 0,
            gates: Slab::new(),
            gate_of: HashMap::new(),
            shares: Shares::default(),
            today: crate::config::warm_up::day(now),
            unknown: HashSet::new(),
            overdue: HashSet::new(),
            handed_on: FxHashMap::default(),
            names: names::Names::default(),
            timers: BTreeSet::from([(now, Timer::Scan)]),
            connections: 0,
            last_connection: 0,
            outdated: ConnectionId(0),
            mended: Mended::default(),
            endings: 0,
            scans: scan::Scans::default(),
            starved: Default::default(),
            fed: None,
            idle: BTreeSet::new(),
            draining: false,
            grace,
            effects: Vec::new(),
        }
    }

    /// What mail has left to be tried in that was overdue when the relay began.
    pub(super) fn hour(&self) -> Hour {
        self.grace.hour()
    }

    /// What is to be done, in order.
    pub fn take_effects(&mut self) -> Vec<Effect> {
        std::mem::take(&mut self.effects)
    }

    /// The same, into a list that is empty, and whose room is used for the next ones.
    pub fn swap_effects(&mut self, into: &mut Vec<Effect>) {
        std::mem::swap(&mut self.effects, into);
    }

    /// When [`Shard::tick`] is to be called at the latest.
    pub fn next_wake(&self) -> Option<Timestamp> {
        self.timers.first().map(|&(at, _)| at)
    }

    /// Starts nothing new from here on.
    pub fn drain(&mut self) {
        self.draining = true;
        self.close_all_idle();
    }

    /// Nothing is on the wire, and no outcome waits to be recorded.
    pub fn is_quiet(&self) -> bool {
        self.connections == 0
            && self.endings == 0
            && self
                .active
                .values()
                .map(|active| active.agenda.claims())
                .sum::<usize>()
                <= self.unknown.len()
    }

    /// Connections open now, and queues in memory.
    pub fn load(&self) -> (usize, usize) {
        (self.connections, self.active.len())
    }

    /// What a session, a report or another shard has to say.
    pub fn hear(&mut self, word: Word, now: Timestamp) {
        match word {
            Word::Accepted(accepted) => self.accepted(&accepted, now),
            Word::Lent(id, loan) => self.borrow(id, loan, now),
            Word::Returned(id, held) => {
                self.lent.remove(&id);
                self.note_held_back(id, held);
            }
            Word::Expired(unit) => self.find_expired(unit, now),
            Word::Delayed(unit) => self.find_delayed(unit, now),
            Word::Wake(id) => self.wake(id, now),
            Word::MakeRoom(idle_for) => drop(self.close_an_idle_one(idle_for, now)),
            Word::Slot => self.slot_is_free(now),
            Word::Room(scope) => self.room(&scope, now),
            Word::MakeRoomAt(scope, idle_for) => drop(self.close_idle_of(&scope, idle_for, now)),
            Word::Order(order) => self.order(order, now),
            Word::Hurry(id, heard) => self.hurry(id, heard, now),
            Word::Why(unit, say) => self.why(&unit, &say, now),
            Word::WhyAll(units, say) => self.why_all(&units, &say, now),
            Word::Suspensions(all) => self.suspensions(all, now),
            Word::Adjusted(record) => self.adjusted(&record, now),
            Word::AdjustmentEnded(key, by) => self.adjustment_ended(&key, &by, now),
        }
    }

    /// Units that the queue has just taken in. Those of queues that are worked on elsewhere are sent on: to the owner they are
    /// lent to, or home, which knows.
    fn accepted(&mut self, accepted: &Accepted, now: Timestamp) {
        for unit in &accepted.units {
            let at_home = self.place.home_elsewhere(unit.queue);
            let elsewhere = match self.lent.get(&unit.queue) {
                _ if self.active.contains_key(&unit.queue) => None,
                Some(&owner) => Some(owner),
                // It is read from the store when the queue wakes.
                None if self.parked.contains(&unit.queue) => continue,
                None => at_home,
            };
            match elsewhere {
                Some(shard) => self.tell(shard, Word::Accepted(accepted.of(*unit))),
                None if self.activate(unit.queue, now) => {
                    self.fill(unit.queue, now);
                    self.note(unit, accepted.message.as_ref(), now);
                    self.look_at(unit.queue, now);
                }
                None => {}
            }
        }
    }

    /// Works on a queue of another home, or finds one of its own a shard that does.
    fn borrow(&mut self, id: QueueId, loan: Loan, now: Timestamp) {
        // It came home, and has found its way since.
        if self.lent.contains_key(&id) {
            return;
        }
        if !self.activate(id, now) {
            self.queue.rest(id, Some(now + LENT_AGAIN));
            return self.give_back(id, None);
        }
        if let Some(active) = self.active.get_mut(&id) {
            active.hurry = loan.hurry;
            active.confirm = now + SITE_TTL;
        }
        match (loan.route, loan.detour) {
            // As it is configured now; the lender may have been told later than we.
            (Route::SmartHost(host), detour) => {
                let mut fallbacks = self.fallbacks_of(id).into_iter();
                let own = fallbacks.find(|own| own.name == host.name);
                match own.zip(detour) {
                    Some((own, detour)) => self.put(id, &Route::SmartHost(own), Some(detour), now),
                    None => return self.look_up(id, now),
                }
            }
            (route, _) => self.route(id, &route, now),
        }
        self.look_at(id, now);
    }

    /// Brings a queue of this home back into memory, unless it is at work.
    fn wake(&mut self, id: QueueId, now: Timestamp) {
        // It is over, or about to be.
        self.held_back.remove(&id);
        if self.lent.contains_key(&id) {
            return;
        }
        if self.activate(id, now) {
            self.look_at(id, now);
        } else {
            // Once there is room, by the catalogue.
            self.queue.rest(id, Some(now));
        }
    }

    fn give_back(&mut self, id: QueueId, held: Option<Held>) {
        match self.place.home_elsewhere(id) {
            Some(home) => self.tell(home, Word::Returned(id, held)),
            None => self.note_held_back(id, held),
        }
    }

    fn note_held_back(&mut self, id: QueueId, held: Option<Held>) {
        if let Some(held) = held.filter(|_| self.held_back.len() < MAX_RESTING) {
            self.held_back.insert(id, held);
        }
    }

    fn tell(&mut self, shard: usize, word: Word) {
        self.effects.push(Effect::Tell(shard, word));
    }

    /// Timers that are up.
    pub fn tick(&mut self, now: Timestamp) {
        while let Some(&(at, timer)) = self.timers.first()
            && at <= now
        {
            self.timers.pop_first();
            match timer {
                Timer::Scan => self.scan(now),
                Timer::Queue(id) => {
                    if let Some(active) = self.active.get_mut(&id).filter(|active| active.timer == Some(at)) {
                        active.timer = None;
                        self.look_at(id, now);
                    }
                }
                Timer::Lane(id) => {
                    if let Some(lane) = self.lanes.get_mut(id).filter(|lane| lane.timer == Some(at)) {
                        lane.timer = None;
                        self.pump(id, now);
                    }
                }
                Timer::Gate(id) => {
                    if let Some(gate) = self.gates.get_mut(id)
                        && gate.rings(at)
                    {
                        self.serve(id, now);
                    }
                }
            }
        }
    }

    /// A claim is over.
    pub fn settled(&mut self, unit: &UnitKey, settled: Settled, now: Timestamp) {
        self.came_back(unit, !matches!(settled, Settled::Untouched), now);
        let is_overdue = self.overdue.remove(unit);
        let Some(active) = self.active.get_mut(&unit.queue) else {
            return;
        };
        let waits = match settled {
            Settled::Gone => {
                active.agenda.settled(place(unit));
                None
            }
            Settled::Due(due) => {
                let moved = UnitKey { due, ..*unit };
                active.agenda.settled(place(unit));
                self.note(&moved, None, now);
                Some(moved)
            }
            Settled::Untouched => {
                active.agenda.unclaim(place(unit));
                Some(*unit)
            }
            Settled::Unknown => {
                self.unknown.insert(*unit);
                return;
            }
        };
        // A scan that looks for it would come by only in a while.
        if let Some(waits) = waits.filter(|_| is_overdue && !self.draining && !self.queue.is_failing()) {
            self.expire_unit(waits, now);
        }
        self.look_at(unit.queue, now);
    }

    fn set_queue_timer(&mut self, id: QueueId, at: Timestamp) {
        let Some(active) = self.active.get_mut(&id) else {
            return;
        };
        if let Some(before) = active.timer.replace(at) {
            self.timers.remove(&(before, Timer::Queue(id)));
        }
        self.timers.insert((at, Timer::Queue(id)));
    }

    fn set_lane_timer(&mut self, lane: LaneId, at: Timestamp) {
        let Some(lane_at) = self.lanes.get_mut(lane) else {
            return;
        };
        if let Some(before) = lane_at.timer.replace(at) {
            self.timers.remove(&(before, Timer::Lane(lane)));
        }
        self.timers.insert((at, Timer::Lane(lane)));
    }
}

#[cfg(test)]
pub(crate) use operator::tests::settings as test_settings;

/// The name of the hold under which mail waits for a next hop that is no longer configured.
pub(super) fn not_configured(name: &str) -> String {
    format!("{name} (not configured)")
}
