//! Several shards, one a core, and what they say to one another.
//!
//! A queue has a *home*, told by its number: the shard that hears of its new units first, finds it in the catalogue, and asks
//! for its route. It is worked on by the *owner* of its site, told by a hash of the site's name, so that a lane, its limits
//! and its rest are in one place however many queues go through it. Where the two differ, home lends the queue; the owner
//! gives it back when it leaves memory. A queue that isn't lent is at home.
//!
//! Words between two shards arrive in order. Their channels need no bound of their own: what was accepted and not yet taken in
//! is bounded by [`Doors`], and of the other words there are at most a few for each queue in memory.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;
use std::time::Duration;

use mail_core::Timestamp;
use queue::{AdjustmentKey, AdjustmentRecord, QueueId, Scope, SuspensionRecord, UnitKey};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};

use super::adapt::Held;
use super::courier::Kept;
use super::detour::Detour;
use super::limits::ledger::Ledger;
use super::route::Route;
use super::slots::Slots;
use super::trials::Trials;

/// Messages kept that the shards have not taken in. Sessions wait while there are so many.
const UNTOLD: usize = 1_024;

/// Units that the queue has just taken in.
#[derive(Clone, Debug)]
pub struct Accepted {
    /// As the queue keeps them; of one home each.
    pub units: Vec<UnitKey>,
    /// Their message, where it may stay in memory.
    pub message: Option<Arc<Kept>>,
    /// The session's place among those that wait, free when nobody holds it any more.
    _untold: Option<Arc<OwnedSemaphorePermit>>,
}

impl Accepted {
    /// Units of a message that is not in memory.
    pub fn stored(units: Vec<UnitKey>) -> Self {
        Self {
            units,
            message: None,
            _untold: None,
        }
    }

    /// The same of fewer units.
    pub(super) fn of(&self, unit: UnitKey) -> Self {
        Self {
            units: vec![unit],
            ..self.clone()
        }
    }
}

/// What an operator orders of a unit. It is carried out by the shard that owns it, unless it is on the wire.
#[derive(Clone, Debug)]
pub struct Order {
    /// Which.
    pub unit: UnitKey,
    /// What.
    pub what: Ordered,
    done: mpsc::UnboundedSender<Done>,
}

/// See [`Order`].
#[derive(Clone, Debug)]
#[expect(missing_docs, reason = "`by` whom")]
pub enum Ordered {
    /// To be due at this time, which is past.
    Retry { by: Arc<str>, due: Timestamp },
    /// To end; its sender is told where a reason is given.
    Delete { by: Arc<str>, tell: Option<Arc<str>> },
}

/// What became of an order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Done {
    /// It is done, and on disk.
    Done,
    /// The unit is on the wire, or the shard takes no orders now.
    Busy,
    /// The unit had ended or moved.
    Gone,
    /// The store failed, or a record is damaged.
    Failed,
}

impl Order {
    /// Tells whoever gave the order.
    pub(super) fn tell(&self, done: Done) {
        // Who no longer listens sees it in the journal.
        let _ = self.done.send(done);
    }
}

/// What is known of a unit that has not been sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Why {
    /// What it waits for.
    pub waits: Waits,
    /// By which smart host it goes meanwhile, and why; `None`: it goes its first way.
    pub fallback: Option<String>,
}

/// What a unit that is due waits for.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "until when, and why")]
pub enum Waits {
    /// Nothing: it is being worked on.
    Underway,
    /// An operator set its queue to wait. Told of units that aren't due too.
    Suspended { until: Option<Timestamp>, cause: String },
    /// A reply, or an operator, has suspended its lane, or its tenant there. Told, too, where it outlasts a due time to come.
    Adjusted { until: Option<Timestamp>, cause: String },
    /// Its destination rests.
    Rests { until: Timestamp, cause: String },
    /// A limit.
    Throttled { until: Timestamp, limit: String },
    /// What is left of this is kept for other streams.
    Reserved { rest_of: String },
    /// A connection: its lane has as many as it may, or all are taken.
    Connection,
    /// The DNS, or its turn among others.
    Turn,
}

impl Waits {
    /// Where shards differ, since a queue is just going from one to another, the first of these counts.
    pub(super) fn rank(&self) -> usize {
        match self {
            Self::Underway => 0,
            Self::Suspended { .. } => 1,
            Self::Adjusted { .. } => 2,
            Self::Rests { .. } => 3,
            Self::Throttled { .. } => 4,
            Self::Reserved { .. } => 5,
            Self::Connection => 6,
            Self::Turn => 7,
        }
    }
}

/// How a queue is to be worked on that is lent.
#[derive(Clone, Debug)]
pub struct Loan {
    /// Where its mail goes.
    pub route: Route,
    /// Why it goes by its fallback, if it does.
    pub detour: Option<Detour>,
    /// Whether an operator wants it tried at once.
    pub hurry: bool,
}

/// What a shard is told by sessions and by other shards.
#[derive(Clone, Debug)]
pub enum Word {
    /// Units came into the store.
    Accepted(Accepted),
    /// A queue to be worked on: by the receiver, or, where it is the queue's home, by whoever it finds for it.
    Lent(QueueId, Loan),
    /// A queue of the receiver's home has left the sender's memory, for this hold if any.
    Returned(QueueId, Option<Held>),
    /// What a queue of the receiver's home rested for is over.
    Wake(QueueId),
    /// The time of a unit is up, whose queue was lent to the receiver.
    Expired(UnitKey),
    /// The sender of a unit wants to hear that it is late, whose queue was lent to the receiver.
    Delayed(UnitKey),
    /// All connections are taken: close one that has been idle for so long.
    MakeRoom(Duration),
    /// There is a slot for a connection, and the receiver has lanes that wait for one.
    Slot,
    /// There is room at the budget of this scope, and the receiver is first in its line.
    Room(Scope),
    /// All connections that a scope may have are open: close one of them that has been idle for so long.
    MakeRoomAt(Scope, Duration),
    /// An operator's order.
    Order(Order),
    /// An operator wants this queue tried at once, whatever it rests for. The sender goes with the word.
    Hurry(QueueId, mpsc::UnboundedSender<Done>),
    /// All suspensions there are.
    Suspensions(Arc<[SuspensionRecord]>),
    /// An adjustment that begins, or is another now.
    Adjusted(Arc<AdjustmentRecord>),
    /// An adjustment that ends before its time; and why, or who says so.
    AdjustmentEnded(AdjustmentKey, Arc<str>),
    /// What does this unit wait for, if it is known here?
    Why(UnitKey, mpsc::UnboundedSender<Why>),
    /// The same of many queues, as far as they are in memory, by the first unit of each; what is on the wire is told of only where
    /// nothing else waits. Each is told by its place.
    WhyAll(Arc<[Option<UnitKey>]>, mpsc::UnboundedSender<(usize, Why)>),
}

/// Where a shard stands among the others, and what it shares with them.
#[derive(Clone, Debug)]
pub struct Place {
    index: usize,
    count: usize,
    slots: Arc<Slots>,
    ledger: Ledger,
    trials: Trials,
}

impl Place {
    /// The only shard.
    pub fn alone() -> Self {
        Self {
            index: 0,
            count: 1,
            slots: Arc::new(Slots::of(1)),
            ledger: Ledger::default(),
            trials: Trials::default(),
        }
    }

    /// Its number.
    pub(super) fn index(&self) -> usize {
        self.index
    }

    /// Whether it is the one that does what is done once for all.
    pub(super) fn is_first(&self) -> bool {
        self.index == 0
    }

    /// The budgets of all shards.
    pub(super) fn ledger(&self) -> &Ledger {
        &self.ledger
    }

    /// Which sources are tried, by whichever shard.
    pub(super) fn trials(&self) -> &Trials {
        &self.trials
    }

    /// How many shards there are.
    pub fn count(&self) -> usize {
        self.count
    }

    /// The other shards.
    pub(super) fn others(&self) -> impl Iterator<Item = usize> + use<> {
        let own = self.index;
        (0..self.count).filter(move |&shard| shard != own)
    }

    /// The queue's home, if it isn't here.
    pub(super) fn home_elsewhere(&self, queue: QueueId) -> Option<usize> {
        Some(home(queue, self.count)).filter(|&home| home != self.index)
    }

    /// The owner of a site, if it isn't this shard. Units that end by routing need no lane: they end where they are.
    pub(super) fn owner_elsewhere(&self, route: &Route) -> Option<usize> {
        if matches!(route, Route::Refused(_) | Route::Discarded(_)) {
            return None;
        }
        let mut hasher = DefaultHasher::new();
        route.site().hash(&mut hasher);
        let count = u64::try_from(self.count).unwrap_or(1);
        usize::try_from(hasher.finish() % count)
            .ok()
            .filter(|&owner| owner != self.index)
    }

    /// The connections of all shards together.
    pub(super) fn slots(&self) -> &Slots {
        &self.slots
    }
}

fn home(queue: QueueId, count: usize) -> usize {
    let count = u64::try_from(count).unwrap_or(1);
    usize::try_from(queue.0 % count).unwrap_or(0)
}

/// The sessions' way to the shards; cloning shares it.
#[derive(Clone, Debug)]
pub struct Doors {
    shards: Arc<[mpsc::UnboundedSender<Word>]>,
    room: Arc<Semaphore>,
    ledger: Ledger,
}

/// A shard's end: its place, what it is told, and the way to the others.
#[derive(Debug)]
pub struct Seat {
    /// Where it stands.
    pub place: Place,
    pub(super) words: mpsc::UnboundedReceiver<Word>,
    way: Way,
}

/// The way to all shards, one's own too; cloning shares it.
#[derive(Clone, Debug)]
pub(super) struct Way(Arc<[mpsc::UnboundedSender<Word>]>);

/// Doors to `count` shards, at least one, and the seats of these.
pub fn open(count: usize) -> (Doors, Vec<Seat>) {
    let slots = Arc::new(Slots::of(count.max(1)));
    let (shards, ends): (Vec<_>, Vec<_>) = (0..count.max(1)).map(|_| mpsc::unbounded_channel()).unzip();
    let shards: Arc<[_]> = shards.into();
    let (ledger, trials) = (Ledger::default(), Trials::default());
    let seat = |(index, words)| Seat {
        place: Place {
            index,
            count: shards.len(),
            slots: slots.clone(),
            ledger: ledger.clone(),
            trials: trials.clone(),
        },
        words,
        way: Way(shards.clone()),
    };
    let seats = (0..).zip(ends).map(seat).collect();
    let room = Arc::new(Semaphore::new(UNTOLD));
    let doors = Doors { shards, room, ledger };
    (doors, seats)
}

impl Doors {
    /// Tells each unit's home of it. Waits while too many messages wait to be taken in.
    pub async fn tell(&self, units: &[UnitKey], message: Option<Arc<Kept>>) {
        // Never closed, so there is a permit.
        let untold = self.room.clone().acquire_owned().await.ok().map(Arc::new);
        if let [unit] = units {
            let accepted = Accepted {
                units: vec![*unit],
                message,
                _untold: untold,
            };
            let _ = self.shards[home(unit.queue, self.shards.len())].send(Word::Accepted(accepted));
            return;
        }
        let mut homes: Vec<Vec<UnitKey>> = vec![Vec::new(); self.shards.len()];
        for unit in units {
            homes[home(unit.queue, self.shards.len())].push(*unit);
        }
        for (shard, units) in self
            .shards
            .iter()
            .zip(homes)
            .filter(|(_, units)| !units.is_empty())
        {
            let message = message.clone();
            let untold = untold.clone();
            // The queue has it; a shard that has gone finds it there after the restart.
            let _ = shard.send(Word::Accepted(Accepted {
                units,
                message,
                _untold: untold,
            }));
        }
    }
}

impl Doors {
    /// The budgets of all shards.
    pub fn ledger(&self) -> &Ledger {
        &self.ledger
    }

    /// Has something done to units, and waits until it is. The caller bounds their number. Those that a shard which has gone
    /// does not answer for are left out.
    pub async fn order(&self, units: &[UnitKey], what: &Ordered) -> Vec<Done> {
        let (done, mut answers) = mpsc::unbounded_channel();
        for &unit in units {
            let order = Order {
                unit,
                what: what.clone(),
                done: done.clone(),
            };
            let _ = self.shards[home(unit.queue, self.shards.len())].send(Word::Order(order));
        }
        drop(done);
        let mut all = Vec::with_capacity(units.len());
        while let Some(done) = answers.recv().await {
            all.push(done);
        }
        all
    }

    /// What a unit waits for, as far as a shard knows.
    pub async fn why(&self, unit: UnitKey) -> Option<Why> {
        let (say, mut said) = mpsc::unbounded_channel();
        for shard in self.shards.iter() {
            let _ = shard.send(Word::Why(unit, say.clone()));
        }
        drop(say);
        let mut known: Option<Why> = None;
        while let Some(why) = said.recv().await {
            let rank = why.waits.rank();
            if known.as_ref().is_none_or(|known| rank < known.waits.rank()) {
                known = Some(why);
            }
        }
        known
    }

    /// What queues in memory wait for, whose first units these are, each with its place among them. The caller bounds their number.
    pub async fn why_all(&self, units: Arc<[Option<UnitKey>]>) -> Vec<(usize, Why)> {
        let (say, mut said) = mpsc::unbounded_channel();
        for shard in self.shards.iter() {
            let _ = shard.send(Word::WhyAll(units.clone(), say.clone()));
        }
        drop(say);
        let mut known = Vec::new();
        while let Some(why) = said.recv().await {
            known.push(why);
        }
        known
    }

    /// Has queues tried at once, and waits until their shards have heard. The caller bounds their number.
    pub async fn hurry(&self, queues: &[QueueId]) {
        let (heard, mut answers) = mpsc::unbounded_channel();
        for &queue in queues {
            let _ = self.shards[home(queue, self.shards.len())].send(Word::Hurry(queue, heard.clone()));
        }
        drop(heard);
        while answers.recv().await.is_some() {}
    }

    /// Has a queue looked at that may have slept long enough. Whoever asks has set its wake in the catalogue, at which it wakes
    /// otherwise.
    pub fn wake(&self, queue: QueueId) {
        let _ = self.shards[home(queue, self.shards.len())].send(Word::Wake(queue));
    }

    /// Tells all shards of an adjustment.
    pub fn adjusted(&self, record: &Arc<AdjustmentRecord>) {
        for shard in self.shards.iter() {
            let _ = shard.send(Word::Adjusted(record.clone()));
        }
    }

    /// Tells all shards that an adjustment has ended; `by` whom.
    pub fn adjustment_ended(&self, key: &AdjustmentKey, by: &Arc<str>) {
        for shard in self.shards.iter() {
            let _ = shard.send(Word::AdjustmentEnded(key.clone(), by.clone()));
        }
    }

    /// Tells all shards what is suspended.
    pub fn suspensions(&self, all: &Arc<[SuspensionRecord]>) {
        for shard in self.shards.iter() {
            let _ = shard.send(Word::Suspensions(all.clone()));
        }
    }
}

impl Seat {
    /// The way to all shards.
    pub(super) fn way(&self) -> Way {
        self.way.clone()
    }

    /// See [`Way::tell`].
    pub(super) fn tell(&self, shard: usize, word: Word) {
        self.way.tell(shard, word);
    }
}

impl Way {
    /// Says a word to a shard. One that has gone has stopped for good: the store has all that matters.
    pub(super) fn tell(&self, shard: usize, word: Word) {
        if let Some(shard) = self.0.get(shard) {
            let _ = shard.send(word);
        }
    }
}
