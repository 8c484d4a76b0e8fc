//! Random lives of many messages, against a naive model: nothing is lost from any index, and all counts agree.

#![allow(
    clippy::unwrap_used,
    reason = "a test; its helpers are outside of test functions"
)]

mod common;

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use common::{FIRST, START, block_on, defer, end, message, settle};
use mail_core::Timestamp;
use proptest::prelude::*;
use queue::store::{Family, MemoryStore};
use queue::{Aside, Fate, Queue, UnitKey, Upload};

#[derive(Clone, Debug)]
enum Step {
    Accept(Vec<u8>),
    Upload(usize),
    Finish(usize),
    GiveUp(usize),
    End(usize),
    Defer(usize, u64),
    Retry(usize, u64),
    Rest(usize),
    SetAside(usize),
    EndAside(usize),
    Tell(usize, u64),
    Restore(usize, u64),
    CutPower,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => proptest::sample::subsequence(vec![0u8, 1, 2, 3], 1..=3).prop_map(Step::Accept),
        2 => (0usize..4).prop_map(Step::Upload),
        1 => any::<usize>().prop_map(Step::Finish),
        1 => any::<usize>().prop_map(Step::GiveUp),
        4 => any::<usize>().prop_map(Step::End),
        3 => (any::<usize>(), 0u64..100_000).prop_map(|(which, wait)| Step::Defer(which, wait)),
        2 => (any::<usize>(), 0u64..100_000).prop_map(|(which, wait)| Step::Retry(which, wait)),
        2 => any::<usize>().prop_map(Step::Rest),
        2 => any::<usize>().prop_map(Step::SetAside),
        1 => any::<usize>().prop_map(Step::EndAside),
        1 => (any::<usize>(), 0u64..100_000).prop_map(|(which, wait)| Step::Tell(which, wait)),
        1 => (any::<usize>(), 0u64..100_000).prop_map(|(which, wait)| Step::Restore(which, wait)),
        1 => Just(Step::CutPower),
    ]
}

proptest! {
    #[test]
    fn indexes_and_counts_agree(steps in proptest::collection::vec(step(), 1..120)) {
        block_on(async {
            let mut store = MemoryStore::new();
            let mut queue = Queue::in_memory(store.clone()).unwrap();
            let mut open: Vec<UnitKey> = Vec::new();
            let mut aside: Vec<UnitKey> = Vec::new();
            // Each with the number of its message, and what is to come with that.
            let mut uploads: Vec<(u64, usize, Upload)> = Vec::new();
            for (number, step) in (0..).zip(steps) {
                match step {
                    Step::Accept(domains) => {
                        let domains: Vec<_> = domains.iter().map(|domain| format!("d{domain}.test")).collect();
                        let domains: Vec<_> = domains.iter().map(String::as_str).collect();
                        open.extend(queue.accept(message(number, &domains, b"0123456789")).await.unwrap().units);
                    }
                    // Ten octets in all: the first chunk, then as many of two octets.
                    Step::Upload(chunks) => {
                        let mut upload = queue.upload(message(number, &["d0.test"], b"").id);
                        for _ in 0..chunks {
                            upload.write(Bytes::from_static(b"xy")).await.unwrap();
                        }
                        uploads.push((number, 10 - 2 * chunks, upload));
                    }
                    Step::Finish(which) if !uploads.is_empty() => {
                        let (number, first, upload) = uploads.swap_remove(which % uploads.len());
                        let mut whole = (*message(number, &["d0.test", "d1.test"], &b"0123456789"[..first])).clone();
                        whole.rest = Some(upload.finish());
                        open.extend(queue.accept(whole.into()).await.unwrap().units);
                    }
                    Step::GiveUp(which) if !uploads.is_empty() => drop(uploads.swap_remove(which % uploads.len())),
                    Step::End(which) if !open.is_empty() => {
                        let unit = open.swap_remove(which % open.len());
                        settle(&queue, end(unit, Fate::Delivered)).await.unwrap();
                    }
                    Step::Defer(which, wait) if !open.is_empty() => {
                        let which = which % open.len();
                        let due = START + Duration::from_millis(wait);
                        open[which] = settle(&queue, defer(open[which], due)).await.unwrap().unit.unwrap();
                    }
                    Step::Retry(which, wait) if !open.is_empty() => {
                        let which = which % open.len();
                        let due = START + Duration::from_millis(wait);
                        queue.retry(open[which], due, "uid 0").await.unwrap();
                        open[which].due = due;
                        let message = queue.message(open[which].id).unwrap().unwrap();
                        prop_assert!(message.units.iter().any(|unit| unit.key == open[which]));
                    }
                    Step::Rest(which) if !open.is_empty() => queue.rest(open[which % open.len()].queue, None),
                    Step::SetAside(which) if !open.is_empty() => {
                        let unit = open.swap_remove(which % open.len());
                        queue.set_aside(unit, Aside::parked("a test", START)).await.unwrap();
                        aside.push(unit);
                    }
                    Step::EndAside(which) if !aside.is_empty() => {
                        let unit = aside.swap_remove(which % aside.len());
                        settle(&queue, end(unit, Fate::Expired)).await.unwrap();
                    }
                    // A delay is told of: it stays set aside.
                    Step::Tell(which, wait) if !aside.is_empty() => {
                        let which = which % aside.len();
                        let due = START + Duration::from_millis(wait);
                        aside[which] = settle(&queue, defer(aside[which], due)).await.unwrap().unit.unwrap();
                    }
                    Step::Restore(which, wait) if !aside.is_empty() => {
                        let unit = aside.swap_remove(which % aside.len());
                        // To the same time too.
                        let due = if wait % 2 == 0 { unit.due } else { START + Duration::from_millis(wait) };
                        queue.retry(unit, due, "uid 0").await.unwrap();
                        open.push(UnitKey { due, ..unit });
                    }
                    Step::CutPower => {
                        // Killed: whoever was uploading is gone, with no chance to say so.
                        uploads.drain(..).for_each(std::mem::forget);
                        store = match number % 2 {
                            0 => store.cut_power(number as usize / 2 % (store.unsynced() + 1)),
                            _ => store,
                        };
                        queue = Queue::in_memory(store.clone()).unwrap();
                    }
                    Step::Finish(_)
                    | Step::GiveUp(_)
                    | Step::End(_)
                    | Step::Defer(..)
                    | Step::Retry(..)
                    | Step::Rest(_)
                    | Step::SetAside(_)
                    | Step::EndAside(_)
                    | Step::Tell(..)
                    | Step::Restore(..) => {}
                }
            }
            drop(uploads);
            let families = store.families();
            prop_assert!(!families.contains(&Family::Upload));
            prop_assert_eq!(families.contains(&Family::Body), !open.is_empty() || !aside.is_empty());
            prop_assert_eq!(families.contains(&Family::Aside), !aside.is_empty());
            aside.sort_by_key(|unit| (unit.id, unit.unit));
            let (found, more) = queue.set_aside_units(None, 1_000).unwrap();
            prop_assert!(!more);
            prop_assert_eq!(found.iter().map(|found| found.unit).collect::<Vec<_>>(), &aside[..]);
            for unit in open.iter().chain(&aside) {
                let envelope = queue.envelope(unit.id).unwrap().unwrap();
                prop_assert_eq!(queue.body(unit.id, &envelope).unwrap().len(), 10);
            }
            let mut by_queue: BTreeMap<_, Vec<UnitKey>> = BTreeMap::new();
            for unit in open {
                by_queue.entry(unit.queue).or_default().push(unit);
            }
            let wakes: BTreeMap<_, _> =
                queue.waking(None, Timestamp::MAX, 100).unwrap().into_iter().map(|(wake, queue)| (queue, wake)).collect();
            prop_assert_eq!(wakes.len(), by_queue.len());
            for (id, record) in queue.queues(None, 100).unwrap() {
                let mut units = by_queue.remove(&id).unwrap_or_default();
                units.sort_by_key(|unit| (unit.due, unit.id, unit.unit));
                let set_aside = aside.iter().filter(|unit| unit.queue == id).count();
                let all = (units.len() + set_aside) as u64;
                prop_assert_eq!((record.count, record.aside), (all, set_aside as u64));
                prop_assert_eq!(record.bytes, 35 * all);
                if let Some(first) = units.first() {
                    prop_assert!(wakes[&id] <= first.due, "the catalogue's key is no lower bound");
                    prop_assert!(record.low_water <= (first.due, first.id));
                }
                let (found, more) = queue.due(id, FIRST, 1_000).unwrap();
                prop_assert!(!more);
                prop_assert_eq!(found, units);
            }
            prop_assert!(by_queue.is_empty());
            Ok(())
        })?;
    }
}
