//! Whose turn it is in a lane: streams by weight, the tenants of a stream in turn, the queues of a tenant in turn.
//!
//! So a backlog delays only what is like it: a stream of another weight, another tenant and another destination get their share
//! of the lane however long the queues beside them are.

use std::cmp::Reverse;
use std::collections::VecDeque;
use std::sync::Arc;

use queue::{QueueId, QueueName};

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
    tenants: Round<TenantTurn<T>>,
}

#[derive(Debug)]
struct TenantTurn<T> {
    name: Arc<str>,
    queues: Round<T>,
}

/// Some that take turns. Most lanes have one tenant's mail to one domain, so the first is not looked for in a list of its own: among very
/// many lanes each such look is one at memory that is far away.
#[derive(Debug)]
struct Round<T> {
    first: Option<T>,
    others: VecDeque<T>,
}

impl<T> Round<T> {
    fn of(first: T) -> Self {
        Self {
            first: Some(first),
            others: VecDeque::new(),
        }
    }

    fn front(&self) -> Option<&T> {
        self.first.as_ref()
    }

    fn front_mut(&mut self) -> Option<&mut T> {
        self.first.as_mut()
    }

    fn push(&mut self, one: T) {
        match &self.first {
            None => self.first = Some(one),
            Some(_) => self.others.push_back(one),
        }
    }

    fn pop(&mut self) {
        self.first = self.others.pop_front();
    }

    /// The first goes behind the others.
    fn turn(&mut self) {
        if let Some(next) = self.others.pop_front() {
            self.others.extend(self.first.replace(next));
        }
    }

    fn retain(&mut self, keep: impl Fn(&T) -> bool) {
        self.others.retain(&keep);
        if !self.first.as_ref().is_some_and(keep) {
            self.pop();
        }
    }

    fn iter(&self) -> impl Iterator<Item = &T> {
        self.first.iter().chain(&self.others)
    }

    fn iter_mut(&mut self) -> impl Iterator<Item = &mut T> {
        self.first.iter_mut().chain(&mut self.others)
    }

    fn len(&self) -> usize {
        self.others.len() + usize::from(self.first.is_some())
    }

    fn is_empty(&self) -> bool {
        self.first.is_none()
    }
}

impl<T> Default for Turn<T> {
    fn default() -> Self {
        Self {
            streams: Vec::new(),
            now: 0,
        }
    }
}

impl<T: Copy + Eq> Turn<T> {
    /// A queue that is not there yet takes its place, the last of its tenant's. `weight`: its stream's.
    pub fn push(&mut self, id: T, name: &QueueName, weight: u32) {
        let weight = if crate::sabotage::is_on("no-weights") {
            1
        } else {
            u64::from(weight).max(1)
        };
        let tenant = || TenantTurn {
            name: name.tenant.clone(),
            queues: Round::of(id),
        };
        let mut streams = self.streams.iter_mut();
        let Some(stream) = streams.find(|stream| stream.name == name.stream) else {
            return self.streams.push(StreamTurn {
                name: name.stream.clone(),
                weight,
                due: self.now,
                barred: false,
                tenants: Round::of(tenant()),
            });
        };
        stream.weight = weight;
        // Who barred it had others in mind.
        stream.barred &= !stream.tenants.is_empty();
        let mut tenants = stream.tenants.iter_mut();
        match tenants.find(|tenant| tenant.name == name.tenant) {
            Some(tenant) => tenant.queues.push(id),
            None => {
                drop(tenants);
                stream.tenants.push(tenant());
            }
        }
    }

    /// The queue whose turn it is.
    pub fn front(&self) -> Option<T> {
        let stream = self.streams.get(self.stream()?)?;
        stream.tenants.front()?.queues.front().copied()
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
        let of = streams.find(|known| *known.name == *stream)?;
        of.tenants.front()?.queues.front().copied()
    }

    /// The one in front has had its turn, and goes behind the others.
    pub fn served(&mut self) {
        let Some(chosen) = self.stream() else { return };
        self.now = self.streams[chosen].due;
        let last = &mut self.streams[chosen];
        last.due += ROUND / last.weight;
        if let Some(tenant) = last.tenants.front_mut() {
            tenant.queues.turn();
        }
        last.tenants.turn();
        for stream in &mut self.streams {
            stream.due = stream.due.max(self.now);
        }
        let now = self.now;
        self.streams
            .retain(|stream| !stream.tenants.is_empty() || stream.due > now);
    }

    /// Takes out the one in front; who comes next has its turn.
    pub fn drop_front(&mut self) {
        let Some(at) = self.stream() else { return };
        let stream = &mut self.streams[at];
        if let Some(tenant) = stream.tenants.front_mut() {
            tenant.queues.pop();
            if tenant.queues.is_empty() {
                stream.tenants.pop();
            }
        }
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

    /// Takes a queue out, if it is there.
    pub fn remove(&mut self, id: T) {
        for stream in &mut self.streams {
            for tenant in stream.tenants.iter_mut() {
                tenant.queues.retain(|&queue| queue != id);
            }
            stream.tenants.retain(|tenant| !tenant.queues.is_empty());
        }
    }

    /// Whether nobody waits.
    pub fn is_empty(&self) -> bool {
        self.streams.iter().all(|stream| stream.tenants.is_empty())
    }

    /// How many wait.
    pub fn len(&self) -> usize {
        let tenants = self.streams.iter().flat_map(|stream| stream.tenants.iter());
        tenants.map(|tenant| tenant.queues.len()).sum()
    }

    /// How many of them are of streams of more weight than this.
    pub fn len_above(&self, weight: u32) -> usize {
        let streams = self
            .streams
            .iter()
            .filter(|stream| stream.weight > u64::from(weight));
        let tenants = streams.flat_map(|stream| stream.tenants.iter());
        tenants.map(|tenant| tenant.queues.len()).sum()
    }

    /// All queues, in no order of meaning.
    pub fn queues(&self) -> Vec<T> {
        let tenants = self.streams.iter().flat_map(|stream| stream.tenants.iter());
        tenants.flat_map(|tenant| tenant.queues.iter().copied()).collect()
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
        turn.remove(QueueId(9));
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
                    turn.remove(QueueId(2));
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
        turn.remove(QueueId(0));
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

    proptest! {
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
                        (false, true) => turn.remove(QueueId(id)),
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
