//! What memory holds of one queue: a window over its due index, and what is being worked on.

use std::collections::VecDeque;

use mail_core::{MessageId, Timestamp};
use queue::UnitKey;

/// Order of a queue's units: by due time, then by age.
pub type Place = (Timestamp, MessageId, u16);

/// Units of one queue known in memory, at most this many; the rest is read again from the store when its turn comes.
/// A place is 40 octets, so a full window with the room of its list is about 40 KiB.
pub const WINDOW: usize = 512;

/// An empty window keeps room for no more than this.
const KEPT: usize = 16;

/// Units read from the store at a time.
pub const PAGE: usize = 128;

/// The window: every unit the store holds at a place before `frontier` is in `ready` or in `claimed`.
///
/// `T` rides along with a unit, such as the message itself while it is still in memory.
#[derive(Debug)]
pub struct Agenda<T> {
    /// In order. Nearly all come at the end and go at the front, which is one look at memory.
    ready: VecDeque<(Place, Option<T>)>,
    /// In order. They are few, and come and go with each unit: a list keeps its room.
    claimed: Vec<Place>,
    frontier: Frontier,
}

/// How far the store is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Frontier {
    /// Everything in the store is known.
    End,
    /// Places before this one are known.
    Before(Place),
}

const FIRST: Place = (Timestamp(0), MessageId::from_bytes([0; 16]), 0);

/// Where a unit stands in its queue.
pub fn place(unit: &UnitKey) -> Place {
    (unit.due, unit.id, unit.unit)
}

impl<T> Default for Agenda<T> {
    /// Nothing known.
    fn default() -> Self {
        Self {
            ready: VecDeque::new(),
            claimed: Vec::new(),
            frontier: Frontier::Before(FIRST),
        }
    }
}

impl<T> Agenda<T> {
    /// Where to go on reading, if the window has room and something may be unread.
    pub fn wants(&self) -> Option<Place> {
        match self.frontier {
            Frontier::Before(place) if self.ready.len() + PAGE <= WINDOW => Some(place),
            _ => None,
        }
    }

    /// Whether there is nothing to do and nothing under way, nor anything in the store.
    pub fn is_empty(&self) -> bool {
        self.is_complete() && self.ready.is_empty() && self.claimed.is_empty()
    }

    /// Whether nothing in the store is unknown.
    pub fn is_complete(&self) -> bool {
        self.frontier == Frontier::End
    }

    /// Takes in a page read from [`Agenda::wants`] on, in order. `more` tells that the store holds further units.
    pub fn load(&mut self, page: impl IntoIterator<Item = Place>, more: bool) {
        let mut last = None;
        for place in page {
            last = Some(place);
            if !self.is_claimed(place)
                && let Err(at) = self.find(place)
            {
                self.ready.insert(at, (place, None));
            }
        }
        self.frontier = match (more, last) {
            (true, Some((due, id, unit))) => Frontier::Before(after((due, id, unit))),
            (true, None) => self.frontier,
            (false, _) => Frontier::End,
        };
    }

    /// Whether a unit that has just come into the store at `place` is to be noted now: not if the window will get there by
    /// reading, or knows it already.
    pub fn is_new(&self, place: Place) -> bool {
        let inside = match self.frontier {
            Frontier::End => true,
            Frontier::Before(frontier) => place < frontier,
        };
        inside && !self.is_claimed(place) && self.find(place).is_err()
    }

    /// Notes a unit for which [`Agenda::is_new`] holds and that the store holds still.
    pub fn note(&mut self, place: Place, rider: Option<T>) {
        if let Err(at) = self.find(place) {
            self.ready.insert(at, (place, rider));
        }
        if self.ready.len() > WINDOW
            && let Some((last, _)) = self.ready.pop_back()
        {
            self.frontier = Frontier::Before(last);
        }
    }

    /// Nothing is known any more of places from this one on, but for claims: it is read again.
    pub fn forget_from(&mut self, place: Place) {
        let known = self.find(place).unwrap_or_else(|at| at);
        self.ready.truncate(known);
        self.frontier = match self.frontier {
            Frontier::Before(before) => Frontier::Before(before.min(place)),
            Frontier::End => Frontier::Before(place),
        };
    }

    /// Lets `rider` ride along with a unit that was read from the store; false where it is not among those that are ready.
    pub fn attach(&mut self, place: Place, rider: Option<&T>) -> bool
    where
        T: Clone,
    {
        let Ok(at) = self.find(place) else {
            return false;
        };
        let (_, seat) = &mut self.ready[at];
        if seat.is_none() {
            *seat = rider.cloned();
        }
        true
    }

    /// Claims the first unit, if it is due.
    pub fn claim(&mut self, now: Timestamp) -> Option<(Place, Option<T>)> {
        self.earliest().filter(|&due| due <= now)?;
        let (place, rider) = self.ready.pop_front()?;
        if self.ready.is_empty() && self.ready.capacity() > KEPT {
            self.ready = VecDeque::new();
        }
        self.note_claim(place);
        Some((place, rider))
    }

    /// Claims this very unit, due or not; false if it is claimed already.
    pub fn claim_at(&mut self, place: Place) -> bool {
        if let Ok(at) = self.find(place) {
            self.ready.remove(at);
        }
        self.note_claim(place)
    }

    /// Where it is in `ready`, or would be.
    fn find(&self, place: Place) -> Result<usize, usize> {
        match self.ready.back() {
            Some((last, _)) if *last < place => Err(self.ready.len()),
            _ => self.ready.binary_search_by_key(&place, |(known, _)| *known),
        }
    }

    fn note_claim(&mut self, place: Place) -> bool {
        let at = self.claimed.binary_search(&place);
        if let Err(at) = at {
            self.claimed.insert(at, place);
        }
        at.is_err()
    }

    fn drop_claim(&mut self, place: Place) {
        if let Ok(at) = self.claimed.binary_search(&place) {
            self.claimed.remove(at);
        }
    }

    /// The claim ended in the store: the unit's due key is gone or has moved.
    pub fn settled(&mut self, place: Place) {
        self.drop_claim(place);
    }

    /// The claim ended and nothing was done: the unit is due as before.
    pub fn unclaim(&mut self, place: Place) {
        self.drop_claim(place);
        if self.is_new(place) {
            self.note(place, None);
        }
    }

    /// Whether this unit is being worked on.
    pub fn is_claimed(&self, place: Place) -> bool {
        self.claimed.binary_search(&place).is_ok()
    }

    /// The first known unit.
    pub fn first(&self) -> Option<Place> {
        self.ready.front().map(|(place, _)| *place)
    }

    /// The same, with what rides along.
    pub fn first_with(&self) -> Option<(Place, Option<&T>)> {
        let (place, rider) = self.ready.front()?;
        Some((*place, rider.as_ref()))
    }

    /// When the first known unit is due.
    pub fn earliest(&self) -> Option<Timestamp> {
        self.ready.front().map(|(place, _)| place.0)
    }

    /// Units being worked on.
    pub fn claimed(&self) -> impl Iterator<Item = Place> {
        self.claimed.iter().copied()
    }

    /// How many they are.
    pub fn claims(&self) -> usize {
        self.claimed.len()
    }
}

/// The next place there can be.
fn after((due, id, unit): Place) -> Place {
    match unit.checked_add(1) {
        Some(unit) => (due, id, unit),
        None => match u128::from_be_bytes(*id.as_bytes()).checked_add(1) {
            Some(id) => (due, MessageId::from_bytes(id.to_be_bytes()), 0),
            None => (
                Timestamp(due.0.saturating_add(1)),
                MessageId::from_bytes([0; 16]),
                0,
            ),
        },
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use proptest::prelude::*;

    fn at(due: u64, id: u8) -> Place {
        (Timestamp(due), MessageId::from_bytes([id; 16]), 0)
    }

    #[test]
    fn claims_in_order_and_only_what_is_due() {
        let mut agenda = Agenda::<()>::default();
        agenda.load([at(5, 1), at(7, 2)], false);
        assert_eq!(agenda.claim(Timestamp(4)), None);
        assert_eq!(agenda.claim(Timestamp(9)).map(|(place, _)| place), Some(at(5, 1)));
        assert_eq!(agenda.claim(Timestamp(9)).map(|(place, _)| place), Some(at(7, 2)));
        assert_eq!(agenda.claim(Timestamp(9)), None);
        assert_eq!(agenda.claims(), 2);
    }

    #[test]
    fn what_the_window_will_reach_is_not_noted() {
        let mut agenda = Agenda::<()>::default();
        assert!(!agenda.is_new(at(1, 1)), "nothing is known before the first page");
        agenda.load([at(5, 1)], true);
        assert!(agenda.is_new(at(4, 9)));
        assert!(!agenda.is_new(at(6, 1)));
        assert!(!agenda.is_new(at(5, 1)));
        agenda.load([], false);
        assert!(agenda.is_new(at(6, 1)));
    }

    /// The store as a plain set, and every path by which units come, go and move.
    #[derive(Clone, Debug)]
    enum Step {
        Arrive(u64, u8),
        Load(usize),
        Claim,
        End,
        Defer(u64),
        Release,
        Forget(u64, u8),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            (0u64..50, any::<u8>()).prop_map(|(due, id)| Step::Arrive(due, id)),
            (1usize..4).prop_map(Step::Load),
            Just(Step::Claim),
            Just(Step::End),
            (0u64..50).prop_map(Step::Defer),
            Just(Step::Release),
            (0u64..50, any::<u8>()).prop_map(|(due, id)| Step::Forget(due, id)),
        ]
    }

    proptest! {
        /// No unit is lost from sight, and none is claimed twice.
        #[test]
        fn window_and_store_agree(steps in proptest::collection::vec(step(), 1..200)) {
            let mut store = BTreeSet::new();
            let mut working = Vec::new();
            let mut agenda = Agenda::<()>::default();
            let arrive = |agenda: &mut Agenda<()>, store: &mut BTreeSet<Place>, place| {
                if store.insert(place) && agenda.is_new(place) {
                    agenda.note(place, None);
                }
            };
            for step in steps {
                match step {
                    Step::Arrive(due, id) => arrive(&mut agenda, &mut store, at(due, id)),
                    Step::Load(count) => if let Some(from) = agenda.wants() {
                        let rest: Vec<_> = store.range(from..).copied().collect();
                        agenda.load(rest.iter().take(count).copied(), rest.len() > count);
                    },
                    Step::Claim => if let Some((place, _)) = agenda.claim(Timestamp(100)) {
                        prop_assert!(store.contains(&place));
                        prop_assert!(!working.contains(&place));
                        working.push(place);
                    },
                    Step::End => if let Some(place) = working.pop() {
                        store.remove(&place);
                        agenda.settled(place);
                    },
                    Step::Defer(due) => if let Some(place) = working.pop() {
                        store.remove(&place);
                        agenda.settled(place);
                        let moved = (Timestamp(due), place.1, place.2);
                        if !working.contains(&moved) {
                            arrive(&mut agenda, &mut store, moved);
                        }
                    },
                    Step::Release => if let Some(place) = working.pop() {
                        agenda.unclaim(place);
                    },
                    // Whether one has come there, nobody could tell.
                    Step::Forget(due, id) => {
                        store.insert(at(due, id));
                        agenda.forget_from(at(due, id));
                    }
                }
            }
            for place in working.drain(..) {
                agenda.unclaim(place);
            }
            let mut seen = BTreeSet::new();
            loop {
                while let Some((place, _)) = agenda.claim(Timestamp(100)) {
                    prop_assert!(seen.insert(place));
                    agenda.settled(place);
                    store.remove(&place);
                }
                let Some(from) = agenda.wants() else { break };
                let page: Vec<_> = store.range(from..).copied().collect();
                agenda.load(page, false);
            }
            prop_assert!(store.is_empty(), "never claimed: {store:?}");
        }
    }
}
