//! A shard's lanes, found by what tells them apart, and by what adjustments are about.

use std::collections::{BTreeSet, HashMap};
use std::rc::Rc;
use std::sync::Arc;

use queue::Scope;

use crate::delivery::lane::{Lane, LaneKey};

use super::LaneId;

/// A site, and the source that mail goes to it from.
type Way = (Arc<str>, Option<Arc<str>>);

/// A lane, and the destination's rule by which it goes.
type Ruled = (Option<Rc<str>>, LaneId);

/// What an adjustment may name of a lane.
#[derive(PartialEq, Eq, Hash)]
enum Part {
    Site(Arc<str>),
    Provider(Arc<str>),
    Source(Arc<str>),
}

#[derive(Default)]
pub(super) struct LaneIndex {
    /// Lanes of one site and source are siblings: rules of destinations tell them apart, and little else.
    of_way: HashMap<Way, Vec<Ruled>>,
    /// Each lane stands under all its parts, as they were when it was put there.
    of_part: HashMap<Part, BTreeSet<LaneId>>,
}

impl LaneIndex {
    pub(super) fn get(&self, key: &LaneKey) -> Option<LaneId> {
        let mut siblings = self.siblings(key);
        let found = siblings.find(|(rule, _)| *rule == key.rule);
        found.map(|(_, lane)| *lane)
    }

    pub(super) fn insert(&mut self, id: LaneId, lane: &Lane) {
        let siblings = self.of_way.entry(way(&lane.key)).or_default();
        siblings.push((lane.key.rule.clone(), id));
        self.note_parts(id, lane);
    }

    pub(super) fn remove(&mut self, id: LaneId, lane: &Lane) {
        let way = way(&lane.key);
        if let Some(siblings) = self.of_way.get_mut(&way) {
            siblings.retain(|(rule, _)| *rule != lane.key.rule);
            if siblings.is_empty() {
                self.of_way.remove(&way);
            }
        }
        for part in parts(&lane.scope()) {
            if let Some(lanes) = self.of_part.get_mut(&part) {
                lanes.remove(&id);
                if lanes.is_empty() {
                    self.of_part.remove(&part);
                }
            }
        }
    }

    /// The configuration is another one, and with it, perhaps, whose hosts the lanes' are.
    pub(super) fn renew_parts<'a>(&mut self, lanes: impl Iterator<Item = (LaneId, &'a Lane)>) {
        self.of_part.clear();
        for (id, lane) in lanes {
            self.note_parts(id, lane);
        }
    }

    fn note_parts(&mut self, id: LaneId, lane: &Lane) {
        for part in parts(&lane.scope()) {
            self.of_part.entry(part).or_default().insert(id);
        }
    }

    /// Lanes among which are all that a scope is about, in order: those of the part of which there are fewest. `None`: it names no
    /// part that tells lanes apart.
    pub(super) fn candidates(&self, scope: &Scope) -> Option<Vec<LaneId>> {
        let of_parts = parts(scope).map(|part| self.of_part.get(&part));
        let fewest = of_parts.min_by_key(|lanes| lanes.map_or(0, BTreeSet::len))?;
        Some(fewest.into_iter().flatten().copied().collect())
    }

    /// All lanes to the site of this one from its source, itself too.
    pub(super) fn family(&self, key: &LaneKey) -> impl Iterator<Item = LaneId> {
        self.siblings(key).map(|(_, lane)| *lane)
    }

    fn siblings(&self, key: &LaneKey) -> impl Iterator<Item = &Ruled> {
        self.of_way.get(&way(key)).into_iter().flatten()
    }
}

fn way(key: &LaneKey) -> Way {
    (key.site.clone(), key.source.clone())
}

fn parts(scope: &Scope) -> impl Iterator<Item = Part> {
    let site = scope.site.clone().map(Part::Site);
    let provider = scope.provider.clone().map(Part::Provider);
    let source = scope.source.clone().map(Part::Source);
    [site, provider, source].into_iter().flatten()
}
