//! Whose turn it is in a lane: streams by weight, the tenants of a stream in turn, the queues of a tenant in turn.
//!
//! So a backlog delays only what is like it: a stream of another weight, another tenant and another destination get their share
//! of the lane however long the queues beside them are. Of a tenant's queues those go ahead that have mail whose time is nearly up.

mod round;

use std::cmp::Reverse;
use std::hash::Hash;
use std::sync::Arc;

use mail_core::Timestamp;
use queue::{QueueId, QueueName};

use round::Round;

/// Between two turns of a stream of weight 1; of more weight it is that part of it.
const ROUND: u64 = 1 << 24;

/// Queues with units due, in the order of their turns.
///
/// Streams share turns by start-time fair queueing (Goyal, Vin and Cheng, SIGCOMM 1996): each turn has a time of its own, a round by
/// the stream's weight after the one before, and who is earliest is next; who comes anew is at the time of the last turn, and so
/// goes next. What streams come and go meanwhile leaves the parts of those that stay to one another as they are.
#[derive(Debug)]
pub struct Turn<T = QueueId> {
    /// Those with a queue, in the order in which they came; and those without whose next turn is still to come.
    streams: Vec<StreamTurn<T>>,
    /// The time of the last turn.
    now: u64,
}

#[derive(Debug)]
struct StreamTurn<T> {
    name: Arc<str>,
    /// Its part of all turns, beside the other streams' weights.
    weight: u64,
    /// The time of its next turn. It is never before the last turn of all, so that nobody saves turns up.
    due: u64,
    /// It is passed over for now.
    barred: bool,
    /// By name, each with its queues.
    tenants: Round<Arc<str>, Round<T>>,
    /// Queues of all of them.
    count: usize,
}

impl<T> Default for Turn<T> {
    fn default() -> Self {
        Self {
            streams: Vec::new(),
            now: 0,
        }
    }
}

impl<T: Copy + Eq + Hash + Ord> StreamTurn<T> {
    fn front(&self) -> Option<T> {
        let (_, queues) = self.tenants.front()?;
        queues.front().map(|&(id, ())| id)
    }

    /// Takes the first queue out. Whether its tenant, which is first still, has others; one without is gone.
    fn pop(&mut self) -> bool {
        let Some(queues) = self.tenants.front_mut().filter(|queues| !queues.is_empty()) else {
            return false;
        };
        queues.pop();
        self.count -= 1;
        let has_others = !queues.is_empty();
        if !has_others {
            self.tenants.pop();
        }
        has_others
    }
}

impl<T: Copy + Eq + Hash + Ord> Turn<T> {
    /// A queue that is not there yet takes its place, the last of its tenant's. `weight`: its stream's.
    pub fn push(&mut self, id: T, name: &QueueName, weight: u32) {
        let weight = if crate::sabotage::is_on("no-weights") {
            1
        } else {
            u64::from(weight).max(1)
        };
        let mut streams = self.streams.iter_mut();
        let Some(stream) = streams.find(|stream| stream.name == name.stream) else {
            return self.streams.push(StreamTurn {
                name: name.stream.clone(),
                weight,
                due: self.now,
                barred: false,
                tenants: Round::of(name.tenant.clone(), Round::of(id, ())),
                count: 1,
            });
        };
        stream.weight = weight;
        // Who barred it had others in mind.
        stream.barred &= !stream.tenants.is_empty();
        let is_new = match stream.tenants.get_mut(&name.tenant) {
            Some(queues) => queues.push(id, ()),
            None => stream.tenants.push(name.tenant.clone(), Round::of(id, ())),
        };
        stream.count += usize::from(is_new);
    }

    /// The queue whose turn it is.
    pub fn front(&self) -> Option<T> {
        self.streams.get(self.stream()?)?.front()
    }

    /// Passes over one more stream for now.
    pub fn bar_one(&mut self, stream: &str) {
        let mut streams = self.streams.iter_mut();
        if let Some(known) = streams.find(|known| *known.name == *stream) {
            known.barred = true;
        }
    }

    /// The first of one stream.
    pub fn front_of(&self, stream: &str) -> Option<T> {
        let mut streams = self.streams.iter();
        streams.find(|known| *known.name == *stream)?.front()
    }

    /// The one in front has had its turn, and goes behind the others.
    pub fn served(&mut self) {
        if let Some(chosen) = self.has_turn() {
            let stream = &mut self.streams[chosen];
            if let Some(queues) = stream.tenants.front_mut() {
                queues.turn();
            }
            stream.tenants.turn();
            self.forget_past();
        }
    }

    /// The one in front has had its turn, and leaves.
    pub fn take_front(&mut self) {
        if let Some(chosen) = self.has_turn() {
            let stream = &mut self.streams[chosen];
            if stream.pop() {
                stream.tenants.turn();
            }
            self.forget_past();
        }
    }

    /// Takes out the one in front; who comes next has its turn.
    pub fn drop_front(&mut self) {
        if let Some(at) = self.stream() {
            self.streams[at].pop();
        }
    }

    /// Notes that the stream whose turn it is has it.
    fn has_turn(&mut self) -> Option<usize> {
        let chosen = self.stream()?;
        let stream = &mut self.streams[chosen];
        self.now = stream.due;
        stream.due += ROUND / stream.weight;
        for stream in &mut self.streams {
            stream.due = stream.due.max(self.now);
        }
        Some(chosen)
    }

    /// Streams without a queue, as soon as their next turn would be one of now.
    fn forget_past(&mut self) {
        let now = self.now;
        self.streams
            .retain(|stream| !stream.tenants.is_empty() || stream.due > now);
    }

    /// The stream whose turn it is: among equals who has more weight, then who came first.
    fn stream(&self) -> Option<usize> {
        let all = 0..self.streams.len();
        let waits = |number: &usize| {
            let stream = &self.streams[*number];
            !stream.barred && !stream.tenants.is_empty()
        };
        all.filter(waits)
            .min_by_key(|&number| (self.streams[number].due, Reverse(self.streams[number].weight)))
    }

    /// Takes a queue of this name out, if it is there.
    pub fn remove(&mut self, id: T, name: &QueueName) {
        let mut streams = self.streams.iter_mut();
        let Some(stream) = streams.find(|stream| stream.name == name.stream) else {
            return;
        };
        let Some(queues) = stream.tenants.get_mut(&name.tenant) else {
            return;
        };
        stream.count -= usize::from(queues.remove(&id));
        if queues.is_empty() {
            stream.tenants.remove(&name.tenant);
        }
    }

    /// A queue of this name that is there has mail whose time is up at this moment, or no such mail any more.
    pub fn hasten(&mut self, id: T, name: &QueueName, until: Option<Timestamp>) {
        let mut streams = self.streams.iter_mut();
        let stream = streams.find(|stream| stream.name == name.stream);
        if let Some(queues) = stream.and_then(|stream| stream.tenants.get_mut(&name.tenant)) {
            queues.hasten(&id, until);
        }
    }

    /// Whether nobody waits.
    pub fn is_empty(&self) -> bool {
        self.streams.iter().all(|stream| stream.tenants.is_empty())
    }

    /// How many wait.
    pub fn len(&self) -> usize {
        self.streams.iter().map(|stream| stream.count).sum()
    }

    /// How many of them are of streams of more weight than this.
    pub fn len_above(&self, weight: u32) -> usize {
        let streams = self.streams.iter();
        let above = streams.filter(|stream| stream.weight > u64::from(weight));
        above.map(|stream| stream.count).sum()
    }

    /// All queues, in no order of meaning.
    pub fn queues(&self) -> Vec<T> {
        let tenants = self.streams.iter().flat_map(|stream| stream.tenants.iter());
        tenants
            .flat_map(|(_, queues)| queues.iter().map(|&(id, ())| id))
            .collect()
    }

    /// Passes over the streams that are barred, from here on.
    pub fn bar(&mut self, is_barred: impl Fn(&str) -> bool) {
        for stream in &mut self.streams {
            stream.barred = is_barred(&stream.name);
        }
    }

    /// Goes by other weights from here on, and bars nobody.
    pub fn reweigh(&mut self, weight: impl Fn(&str) -> u32) {
        for stream in &mut self.streams {
            stream.barred = false;
            stream.weight = u64::from(weight(&stream.name)).max(1);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;
    use proptest::prelude::*;

    fn name(tenant: &str, stream: &str) -> QueueName {
        QueueName {
            tenant: tenant.into(),
            stream: stream.into(),
            route_group: queue::RouteGroup::default(),
            domain: "to.test".parse().unwrap(),
        }
    }

    fn turns(turn: &mut Turn, count: usize) -> Vec<u64> {
        let mut ids = Vec::new();
        for _ in 0..count {
            ids.push(turn.front().unwrap().0);
            turn.served();
        }
        ids
    }

    #[test]
    fn streams_share_by_weight_and_evenly() {
        let mut turn = Turn::default();
        for id in 0..9 {
            turn.push(QueueId(id), &name("t", "bulk"), 1);
        }
        turn.push(QueueId(9), &name("t", "transactional"), 3);
        assert_eq!(
            turns(&mut turn, 12),
            [9, 0, 9, 9, 9, 1, 9, 9, 9, 2, 9, 9],
            "three of four, and never four in a row"
        );
        turn.remove(QueueId(9), &name("t", "transactional"));
        assert_eq!(turns(&mut turn, 3), [3, 4, 5], "alone it has all");
    }

    #[test]
    fn who_comes_to_a_backlog_goes_next() {
        let mut turn = Turn::default();
        turn.push(QueueId(0), &name("t", "bulk"), 1);
        turns(&mut turn, 1_000);
        turn.push(QueueId(1), &name("t", "transactional"), 10);
        assert_eq!(turns(&mut turn, 1), [1]);
    }

    #[test]
    fn a_tenant_of_many_queues_gets_no_more_than_one_of_few() {
        let mut turn = Turn::default();
        for id in 0..100 {
            turn.push(QueueId(id), &name("large", "bulk"), 1);
        }
        turn.push(QueueId(100), &name("small", "bulk"), 1);
        assert_eq!(turns(&mut turn, 6), [0, 100, 1, 100, 2, 100]);
    }

    #[test]
    fn other_weights_hold_at_once() {
        let mut turn = Turn::default();
        turn.push(QueueId(0), &name("t", "a"), 1);
        turn.push(QueueId(1), &name("t", "b"), 1);
        assert_eq!(turns(&mut turn, 4), [0, 1, 0, 1]);
        turn.reweigh(|stream| if stream == "a" { 1 } else { 4 });
        let of_b = turns(&mut turn, 100).iter().filter(|&&id| id == 1).count();
        assert_eq!(of_b, 80);
    }

    /// One stream's mail that comes now and then takes its part of all, and leaves the others' parts to one another alone.
    #[test]
    fn a_stream_that_comes_and_goes_leaves_the_others_their_weights() {
        for every in [3, 6, 20] {
            let mut turn = Turn::default();
            turn.push(QueueId(0), &name("t", "bulk"), 1);
            turn.push(QueueId(1), &name("t", "digest"), 3);
            let mut went = [0_u32; 3];
            for number in 0..6_000 {
                if number % every == 0 {
                    turn.push(QueueId(2), &name("t", "transactional"), 10);
                }
                let QueueId(id) = turn.front().unwrap();
                went[id as usize] += 1;
                turn.served();
                if id == 2 {
                    turn.remove(QueueId(2), &name("t", "transactional"));
                }
            }
            let [bulk, digest, _] = went;
            assert!(digest.abs_diff(3 * bulk) <= 3, "{went:?}");
        }
    }

    #[test]
    fn nobody_stays_barred_who_leaves_or_is_weighed_anew() {
        let mut turn = Turn::default();
        turn.push(QueueId(0), &name("t", "bulk"), 1);
        turn.served();
        turn.bar(|_| true);
        turn.remove(QueueId(0), &name("t", "bulk"));
        turn.push(QueueId(0), &name("t", "bulk"), 1);
        assert_eq!(turn.front(), Some(QueueId(0)));
        turn.bar(|_| true);
        turn.reweigh(|_| 2);
        assert_eq!(turn.front(), Some(QueueId(0)));
    }

    /// Whoever is barred is passed over, and goes first among equals once it is not: it has had no turn, and saved none up.
    #[test]
    fn others_go_while_a_stream_is_barred() {
        let mut turn = Turn::default();
        turn.push(QueueId(0), &name("t", "bulk"), 1);
        turn.push(QueueId(1), &name("t", "digest"), 1);
        turn.push(QueueId(2), &name("t", "transactional"), 1);
        turn.bar(|stream| stream == "bulk");
        assert_eq!(turns(&mut turn, 6), [1, 2, 1, 2, 1, 2]);
        turn.bar_one("digest");
        assert_eq!(turns(&mut turn, 2), [2, 2]);
        assert_eq!(
            turn.front_of("bulk"),
            Some(QueueId(0)),
            "it is there all the same"
        );
        turn.bar(|_| true);
        assert_eq!(turn.front(), None);
        turn.bar(|_| false);
        assert_eq!(turns(&mut turn, 6), [0, 1, 0, 1, 2, 0]);
    }

    #[test]
    fn who_is_in_a_hurry_goes_ahead_of_its_own_tenants_queues_every_second_time() {
        let mut turn = Turn::default();
        for id in 0..6 {
            turn.push(QueueId(id), &name("t", "bulk"), 1);
        }
        turn.hasten(QueueId(4), &name("t", "bulk"), Some(Timestamp(200)));
        turn.hasten(QueueId(5), &name("t", "bulk"), Some(Timestamp(100)));
        turn.hasten(QueueId(6), &name("t", "bulk"), Some(Timestamp(50)));
        assert_eq!(turns(&mut turn, 6), [0, 5, 1, 5, 2, 5], "the earliest first");
        turn.remove(QueueId(5), &name("t", "bulk"));
        assert_eq!(turns(&mut turn, 5), [3, 4, 0, 4, 1]);
        turn.hasten(QueueId(4), &name("t", "bulk"), None);
        turn.served();
        turn.push(QueueId(7), &name("u", "bulk"), 1);
        let of_u = turns(&mut turn, 8).iter().filter(|&&id| id == 7).count();
        assert_eq!(of_u, 4, "another tenant's turns are its own");
    }

    thread_local! {
        static LOOKS: Cell<usize> = const { Cell::new(0) };
    }

    /// One that counts how often it is compared with another.
    #[derive(Clone, Copy, Debug, PartialOrd, Ord)]
    struct Counted(u64);

    impl Hash for Counted {
        fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
            self.0.hash(state);
        }
    }

    impl PartialEq for Counted {
        fn eq(&self, other: &Self) -> bool {
            LOOKS.set(LOOKS.get() + 1);
            self.0 == other.0
        }
    }

    impl Eq for Counted {}

    /// Looks at others, for each of a few that come, have their turn or leave among so many.
    fn looks(count: u64) -> usize {
        let mut turn = Turn::default();
        let whose = |id: u64| name(["a", "b"][id as usize % 2], "bulk");
        for id in 0..count {
            turn.push(Counted(id), &whose(id), 1);
        }
        LOOKS.set(0);
        for id in 0..10 {
            turn.remove(Counted(count - 1 - id), &whose(count - 1 - id));
            let Counted(front) = turn.front().unwrap();
            turn.take_front();
            turn.push(Counted(front), &whose(front), 1);
            turn.served();
        }
        LOOKS.get()
    }

    #[test]
    fn who_leaves_passes_nobody() {
        let (few, many) = (looks(100), looks(10_000));
        assert!(few > 0 && many <= 2 * few, "{few} among 100, {many} among 10,000");
    }

    /// As if it had gone behind the others, and left there.
    #[test]
    fn who_leaves_with_its_turn_has_had_it() {
        let (mut one, mut other) = (Turn::default(), Turn::default());
        for turn in [&mut one, &mut other] {
            for id in 0..24 {
                let (tenant, stream, weight) = match id % 4 {
                    0 => ("a", "bulk", 1),
                    1 => ("b", "bulk", 1),
                    2 => ("a", "digest", 3),
                    _ => ("c", "bulk", 1),
                };
                turn.push(QueueId(id), &name(tenant, stream), weight);
            }
        }
        for left in (0..24).rev() {
            let front = one.front().unwrap();
            assert_eq!(other.front(), Some(front));
            one.take_front();
            other.served();
            for tenant in ["a", "b", "c"] {
                for stream in ["bulk", "digest"] {
                    other.remove(front, &name(tenant, stream));
                }
            }
            assert_eq!((one.len(), other.len()), (left, left));
        }
    }

    proptest! {
        /// However many others are in a hurry, all the time, each gets a turn in two rounds.
        #[test]
        fn who_is_in_no_hurry_waits_for_two_rounds(hurries in proptest::collection::vec((0_u64..9, 0_u64..99), 50..300)) {
            let mut turn = Turn::default();
            let whose = name("t", "bulk");
            for id in 0..10 {
                turn.push(QueueId(id), &whose, 1);
            }
            let mut waited = 0;
            for (id, until) in hurries {
                turn.hasten(QueueId(id), &whose, Some(Timestamp(until)));
                waited = if turn.front() == Some(QueueId(9)) { 0 } else { waited + 1 };
                turn.served();
                prop_assert!(waited <= 20, "{waited} turns of others");
            }
        }

        /// Whoever stays gets its share, to within a round, whatever others come and go meanwhile.
        #[test]
        fn nobody_is_starved(
            weights in proptest::collection::vec(1_u32..20, 3),
            comes_and_goes in proptest::collection::vec(any::<(bool, bool)>(), 1..300),
        ) {
            let mut turn = Turn::default();
            let names = ["a", "b", "c"].map(|stream| name("t", stream));
            let there = |turn: &Turn, id| turn.queues().contains(&QueueId(id));
            turn.push(QueueId(0), &names[0], weights[0]);
            let mut waited = 0;
            let sum: u32 = weights.iter().sum();
            for (b, c) in comes_and_goes {
                for (id, wanted) in [(1, b), (2, c)] {
                    match (wanted, there(&turn, id)) {
                        (true, false) => turn.push(QueueId(id), &names[id as usize], weights[id as usize]),
                        (false, true) => turn.remove(QueueId(id), &names[id as usize]),
                        _ => {}
                    }
                }
                waited += 1;
                if turn.front() == Some(QueueId(0)) {
                    waited = 0;
                }
                turn.served();
                // Each turn of another adds its weight to what it is owed; nobody is ever owed more than all weights.
                prop_assert!(waited <= 2 * sum / weights[0] + 2, "{waited} turns of others");
            }
        }
    }
}
