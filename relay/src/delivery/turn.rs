//! Whose turn it is in a lane: streams by weight, the tenants of a stream in turn, the queues of a tenant in turn.
//!
//! So a backlog delays only what is like it: a stream of another weight, another tenant and another destination get their share
//! of the lane however long the queues beside them are.

use std::collections::VecDeque;
use std::sync::Arc;

use queue::{QueueId, QueueName};

/// Queues with units due, in the order of their turns.
#[derive(Debug)]
pub struct Turn<T = QueueId> {
    /// Those with a queue, in the order in which they came.
    streams: Vec<StreamTurn<T>>,
}

#[derive(Debug)]
struct StreamTurn<T> {
    name: Arc<str>,
    /// Its part of all turns, beside the other streams' weights.
    weight: i64,
    /// Turns it is owed, in shares of the sum of all weights: smooth weighted round robin, which spreads a stream's turns
    /// evenly. It begins at none and goes with the stream's last queue, so that nobody saves turns up.
    credit: i64,
    /// It is passed over for now.
    barred: bool,
    tenants: VecDeque<TenantTurn<T>>,
}

#[derive(Debug)]
struct TenantTurn<T> {
    name: Arc<str>,
    queues: VecDeque<T>,
}

impl<T> Default for Turn<T> {
    fn default() -> Self {
        Self { streams: Vec::new() }
    }
}

impl<T: Copy + Eq> Turn<T> {
    /// A queue that is not there yet takes its place, the last of its tenant's. `weight`: its stream's.
    pub fn push(&mut self, id: T, name: &QueueName, weight: u32) {
        let known = self.streams.iter().position(|stream| stream.name == name.stream);
        let at = known.unwrap_or_else(|| {
            self.streams.push(StreamTurn {
                name: name.stream.clone(),
                weight: 0,
                credit: 0,
                barred: false,
                tenants: VecDeque::new(),
            });
            self.streams.len() - 1
        });
        let stream = &mut self.streams[at];
        stream.weight = if crate::sabotage::is_on("no-weights") {
            1
        } else {
            weight.into()
        };
        match stream
            .tenants
            .iter_mut()
            .find(|tenant| tenant.name == name.tenant)
        {
            Some(tenant) => tenant.queues.push_back(id),
            None => stream.tenants.push_back(TenantTurn {
                name: name.tenant.clone(),
                queues: VecDeque::from([id]),
            }),
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
        let sum: i64 = self.streams.iter().map(|stream| stream.weight).sum();
        for stream in &mut self.streams {
            stream.credit += stream.weight;
        }
        let stream = &mut self.streams[chosen];
        stream.credit -= sum;
        if let Some(tenant) = stream.tenants.front_mut() {
            tenant.queues.rotate_left(1);
        }
        stream.tenants.rotate_left(1);
    }

    /// Takes out the one in front; who comes next has its turn.
    pub fn drop_front(&mut self) {
        let Some(at) = self.stream() else { return };
        let stream = &mut self.streams[at];
        if let Some(tenant) = stream.tenants.front_mut() {
            tenant.queues.pop_front();
            if tenant.queues.is_empty() {
                stream.tenants.pop_front();
            }
        }
        if stream.tenants.is_empty() {
            self.streams.remove(at);
        }
    }

    /// The stream whose turn it is: who is owed most; among equals who has more weight, then who came first.
    fn stream(&self) -> Option<usize> {
        let owed = |number: &usize| {
            let stream = &self.streams[*number];
            (stream.credit + stream.weight, stream.weight)
        };
        // The last of several greatest ones would be taken.
        let all = (0..self.streams.len()).rev();
        all.filter(|&number| !self.streams[number].barred)
            .max_by_key(owed)
    }

    /// Takes a queue out, if it is there.
    pub fn remove(&mut self, id: T) {
        for stream in &mut self.streams {
            for tenant in &mut stream.tenants {
                tenant.queues.retain(|&queue| queue != id);
            }
            stream.tenants.retain(|tenant| !tenant.queues.is_empty());
        }
        self.streams.retain(|stream| !stream.tenants.is_empty());
    }

    /// Whether nobody waits.
    pub fn is_empty(&self) -> bool {
        self.streams.is_empty()
    }

    /// How many wait.
    pub fn len(&self) -> usize {
        let tenants = self.streams.iter().flat_map(|stream| &stream.tenants);
        tenants.map(|tenant| tenant.queues.len()).sum()
    }

    /// How many of them are of streams of more weight than this.
    pub fn len_above(&self, weight: u32) -> usize {
        let streams = self.streams.iter().filter(|stream| stream.weight > weight.into());
        let tenants = streams.flat_map(|stream| &stream.tenants);
        tenants.map(|tenant| tenant.queues.len()).sum()
    }

    /// All queues, in no order of meaning.
    pub fn queues(&self) -> Vec<T> {
        let tenants = self.streams.iter().flat_map(|stream| &stream.tenants);
        tenants.flat_map(|tenant| tenant.queues.iter().copied()).collect()
    }

    /// Passes over the streams that are barred, from here on.
    pub fn bar(&mut self, is_barred: impl Fn(&str) -> bool) {
        for stream in &mut self.streams {
            stream.barred = is_barred(&stream.name);
        }
    }

    /// Goes by other weights from here on.
    pub fn reweigh(&mut self, weight: impl Fn(&str) -> u32) {
        for stream in &mut self.streams {
            stream.weight = weight(&stream.name).into();
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
            [9, 9, 0, 9, 9, 9, 1, 9, 9, 9, 2, 9],
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
