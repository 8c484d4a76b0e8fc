//! Which names are looked up next. A name server that says nothing holds a look-up for as long as anybody waits for it: that is not to
//! hold up other mail.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use mail_core::Domain;
use queue::{QueueId, QueueName};

use crate::delivery::turn::Turn;

/// Look-ups under way at once; further names wait for their turn.
const MAX_LOOKUPS: usize = 64;

/// Those of them that are for names which have failed before, or are asked for again: of a name that is new nobody knows that it is silent.
const MAX_AGAIN: usize = MAX_LOOKUPS / 2;

/// Those of them that are for one stream's mail: a newsletter to a thousand silent domains leaves a password reset one that is free.
const MAX_OF_STREAM: usize = MAX_LOOKUPS * 3 / 4;

/// How a name is asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Asks {
    /// Mail waits for it, and it has not failed.
    #[default]
    First = 0,
    /// It has failed before, or is asked for only to see whether it is as it was.
    Again = 1,
}

/// Names that are looked up, or wait for it.
#[derive(Default)]
pub(super) struct Names {
    lookups: HashMap<Domain, Lookup>,
    /// Queues whose name waits, by [`Asks`].
    waiting: [Turn; 2],
    /// The same of what is under way.
    running: [usize; 2],
    of_streams: BTreeMap<Arc<str>, usize>,
    /// Both take turns.
    last: Asks,
}

#[derive(Default)]
struct Lookup {
    /// Who waits for the answer.
    queues: Vec<QueueId>,
    /// It is under way: how it was asked for, and in which stream's turn.
    running: Option<(Asks, Arc<str>)>,
}

impl Names {
    /// A queue wants to know of its domain.
    pub(super) fn ask(&mut self, id: QueueId, name: &QueueName, asks: Asks, weight: u32) {
        let lookup = self.lookups.entry(name.domain.clone()).or_default();
        if !lookup.queues.contains(&id) {
            lookup.queues.push(id);
        }
        if lookup.running.is_none() {
            self.waiting[asks as usize].push(id, name, weight);
        }
    }

    /// The name that is to be looked up now.
    pub(super) fn start<'a>(&mut self, name_of: impl Fn(QueueId) -> Option<&'a QueueName>) -> Option<Domain> {
        while self.running.iter().sum::<usize>() < MAX_LOOKUPS {
            let (asks, id) = self.next()?;
            self.waiting[asks as usize].take_front();
            let Some(name) = name_of(id) else {
                continue;
            };
            let Some(lookup) = self.lookups.get_mut(&name.domain) else {
                continue;
            };
            lookup.running = Some((asks, name.stream.clone()));
            for &waits in &lookup.queues {
                if let Some(name) = name_of(waits) {
                    self.waiting.iter_mut().for_each(|turn| turn.remove(waits, name));
                }
            }
            self.last = asks;
            self.running[asks as usize] += 1;
            *self.of_streams.entry(name.stream.clone()).or_default() += 1;
            return Some(name.domain.clone());
        }
        None
    }

    fn next(&mut self) -> Option<(Asks, QueueId)> {
        let of_streams = &self.of_streams;
        for turn in &mut self.waiting {
            turn.bar(|stream| {
                of_streams
                    .get(stream)
                    .is_some_and(|&count| count >= MAX_OF_STREAM)
            });
        }
        let [first, again] = self.waiting.each_ref().map(Turn::front);
        let again = again.filter(|_| self.running[Asks::Again as usize] < MAX_AGAIN);
        match (self.last, first, again) {
            (Asks::First, _, Some(id)) | (Asks::Again, None, Some(id)) => Some((Asks::Again, id)),
            (_, Some(id), _) => Some((Asks::First, id)),
            (_, None, None) => None,
        }
    }

    /// There is an answer, for these queues.
    pub(super) fn answered(&mut self, domain: &Domain) -> Vec<QueueId> {
        let lookup = self.lookups.remove(domain).unwrap_or_default();
        if let Some((asks, stream)) = lookup.running {
            self.running[asks as usize] -= 1;
            if let Some(count) = self.of_streams.get_mut(&stream) {
                *count -= 1;
                if *count == 0 {
                    self.of_streams.remove(&stream);
                }
            }
        }
        lookup.queues
    }

    /// A queue leaves memory.
    pub(super) fn leave(&mut self, id: QueueId, name: &QueueName) {
        let Some(lookup) = self.lookups.get_mut(&name.domain) else {
            return;
        };
        lookup.queues.retain(|&queue| queue != id);
        if lookup.running.is_none() {
            self.waiting.iter_mut().for_each(|turn| turn.remove(id, name));
            if lookup.queues.is_empty() {
                self.lookups.remove(&name.domain);
            }
        }
    }

    /// Streams have other weights from here on.
    pub(super) fn reweigh(&mut self, weight: impl Fn(&str) -> u32) {
        self.waiting.iter_mut().for_each(|turn| turn.reweigh(&weight));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct World {
        names: Names,
        queues: BTreeMap<QueueId, QueueName>,
    }

    impl World {
        fn ask(&mut self, number: u64, tenant: &str, stream: &str, asks: Asks) {
            let name = QueueName {
                tenant: tenant.into(),
                stream: stream.into(),
                route_group: queue::RouteGroup::default(),
                domain: format!("d{number}.test").parse().unwrap(),
            };
            self.names.ask(QueueId(number), &name, asks, 1);
            self.queues.insert(QueueId(number), name);
        }

        fn start(&mut self) -> Vec<Domain> {
            let Self { names, queues } = self;
            std::iter::from_fn(|| names.start(|id| queues.get(&id))).collect()
        }
    }

    fn world() -> World {
        World {
            names: Names::default(),
            queues: BTreeMap::new(),
        }
    }

    fn domain(number: u64) -> Domain {
        format!("d{number}.test").parse().unwrap()
    }

    #[test]
    fn names_that_have_failed_have_half_of_all() {
        let mut world = world();
        (0..200).for_each(|number| world.ask(number, "t", "bulk", Asks::Again));
        assert_eq!(world.start().len(), MAX_AGAIN);
        world.ask(900, "t", "bulk", Asks::First);
        assert_eq!(world.start(), [domain(900)]);
        world.names.answered(&domain(0));
        assert_eq!(world.start().len(), 1, "one after the other");
    }

    #[test]
    fn one_streams_names_leave_others_room() {
        let mut world = world();
        (0..200).for_each(|number| world.ask(number, "t", "bulk", Asks::First));
        (200..400).for_each(|number| world.ask(number, "t", "bulk", Asks::Again));
        assert_eq!(world.start().len(), MAX_OF_STREAM);
        world.ask(900, "t", "transactional", Asks::First);
        assert_eq!(world.start(), [domain(900)]);
    }

    #[test]
    fn tenants_take_turns_and_so_do_names_that_are_asked_for_again() {
        let mut world = world();
        (0..100).for_each(|number| world.ask(number, "large", "bulk", Asks::First));
        assert_eq!(world.start().len(), MAX_OF_STREAM);
        world.ask(900, "small", "bulk", Asks::First);
        world.ask(901, "small", "bulk", Asks::Again);
        (0..3).for_each(|number| drop(world.names.answered(&domain(number))));
        let started = world.start();
        assert_eq!(started.len(), 3);
        assert!(
            started.contains(&domain(900)) && started.contains(&domain(901)),
            "{started:?}"
        );
    }

    #[test]
    fn who_leaves_is_not_asked_for_and_nothing_stays() {
        let mut world = world();
        (0..100).for_each(|number| world.ask(number, "t", "bulk", Asks::First));
        let running = world.start();
        for (id, name) in &world.queues {
            world.names.leave(*id, name);
        }
        assert_eq!(world.names.lookups.len(), running.len());
        for domain in running {
            assert_eq!(world.names.answered(&domain), []);
        }
        assert!(world.start().is_empty() && world.names.lookups.is_empty());
        assert!(world.names.of_streams.is_empty() && world.names.waiting.iter().all(Turn::is_empty));
        assert_eq!(world.names.running, [0, 0]);
    }
}
