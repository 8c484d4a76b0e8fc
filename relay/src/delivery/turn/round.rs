//! Some that take turns, each known by a key: who is first, and who goes behind the others; and any of them may leave, however many
//! there are, at the cost of one look.
//!
//! Who is in a hurry goes ahead of the others, the earliest deadline first, and has every second turn at the most: so the others' turns
//! come at half their pace, and nobody waits for ever.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::Hash;

use mail_core::Timestamp;
use rustc_hash::FxHashMap;

/// See the module.
///
/// Most lanes have one tenant's mail to one domain, so the first is not looked for in a list of its own: among very many lanes each such
/// look is one at memory that is far away.
#[derive(Debug)]
pub(super) struct Round<K, V = ()> {
    first: Option<(K, V)>,
    others: Option<Box<Others<K, V>>>,
}

/// All but the first.
#[derive(Debug)]
struct Others<K, V> {
    /// By the numbers that they drew when they came, or had their turn.
    order: BTreeMap<u64, (K, V)>,
    /// Keys are numbers of our own making, and names of the configuration: a quick hash does.
    numbers: FxHashMap<K, u64>,
    next: u64,
    /// Who is in a hurry, the first of all too, and until when.
    soon: BTreeSet<(Timestamp, K)>,
    soon_of: FxHashMap<K, Timestamp>,
    /// The first is so for its hurry.
    was_soon: bool,
}

impl<K: Clone + Eq + Hash + Ord, V> Round<K, V> {
    pub(super) fn of(key: K, value: V) -> Self {
        Self {
            first: Some((key, value)),
            others: None,
        }
    }

    pub(super) fn front(&self) -> Option<&(K, V)> {
        self.first.as_ref()
    }

    pub(super) fn front_mut(&mut self) -> Option<&mut V> {
        self.first.as_mut().map(|(_, value)| value)
    }

    pub(super) fn get_mut(&mut self, key: &K) -> Option<&mut V> {
        match &mut self.first {
            Some((first, value)) if first == key => Some(value),
            _ => self.others.as_mut()?.get_mut(key),
        }
    }

    /// One that is not there yet goes behind the others. False where it is.
    pub(super) fn push(&mut self, key: K, value: V) -> bool {
        match &self.first {
            None => self.first = Some((key, value)),
            Some((first, _)) if *first == key => return false,
            Some(_) => return self.others.get_or_insert_default().push(key, value),
        }
        true
    }

    pub(super) fn pop(&mut self) {
        let gone = self.first.take();
        if let Some(others) = &mut self.others {
            if let Some((key, _)) = gone {
                others.hasten(&key, None);
            }
            self.first = others.pop();
        }
    }

    /// One that is there is in a hurry until then, or in none any more. Alone it need not be noted.
    pub(super) fn hasten(&mut self, key: &K, until: Option<Timestamp>) {
        let is_first = self.first.as_ref().is_some_and(|(first, _)| first == key);
        if let Some(others) = &mut self.others {
            let is_there = is_first || others.numbers.contains_key(key);
            others.hasten(key, until.filter(|_| is_there));
        }
    }

    /// The first goes behind the others.
    pub(super) fn turn(&mut self) {
        if let Some(others) = &mut self.others
            && let Some(next) = others.pop()
            && let Some((key, value)) = self.first.replace(next)
        {
            others.push(key, value);
        }
    }

    /// Takes one out. False where it is not there.
    pub(super) fn remove(&mut self, key: &K) -> bool {
        if self.first.as_ref().is_some_and(|(first, _)| first == key) {
            self.pop();
            return true;
        }
        self.others.as_mut().is_some_and(|others| others.remove(key))
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &(K, V)> {
        let others = self.others.iter().flat_map(|others| others.order.values());
        self.first.iter().chain(others)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.first.is_none()
    }
}

impl<K, V> Default for Others<K, V> {
    fn default() -> Self {
        Self {
            order: BTreeMap::new(),
            numbers: FxHashMap::default(),
            next: 0,
            soon: BTreeSet::new(),
            soon_of: FxHashMap::default(),
            was_soon: false,
        }
    }
}

impl<K: Clone + Eq + Hash + Ord, V> Others<K, V> {
    fn get_mut(&mut self, key: &K) -> Option<&mut V> {
        let number = self.numbers.get(key)?;
        self.order.get_mut(number).map(|(_, value)| value)
    }

    fn push(&mut self, key: K, value: V) -> bool {
        if self.numbers.contains_key(&key) {
            return false;
        }
        self.numbers.insert(key.clone(), self.next);
        self.order.insert(self.next, (key, value));
        self.next += 1;
        true
    }

    fn hasten(&mut self, key: &K, until: Option<Timestamp>) {
        if let Some(before) = self.soon_of.remove(key) {
            self.soon.remove(&(before, key.clone()));
        }
        if let Some(until) = until {
            self.soon_of.insert(key.clone(), until);
            self.soon.insert((until, key.clone()));
        }
    }

    fn pop(&mut self) -> Option<(K, V)> {
        // The first of all may be among them; it is behind the others first.
        let mut soon = self.soon.iter().filter(|_| !self.was_soon);
        let soon = soon.find_map(|(_, key)| self.numbers.get(key).copied());
        self.was_soon = soon.is_some();
        let first = match soon {
            Some(number) => self.order.remove(&number)?,
            None => self.order.pop_first()?.1,
        };
        self.numbers.remove(&first.0);
        Some(first)
    }

    fn remove(&mut self, key: &K) -> bool {
        self.hasten(key, None);
        let number = self.numbers.remove(key);
        number.is_some_and(|number| self.order.remove(&number).is_some())
    }
}
