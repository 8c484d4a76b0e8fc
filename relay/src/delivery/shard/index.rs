//! A shard's lanes, found by what tells them apart.

use std::collections::HashMap;
use std::rc::Rc;
use std::sync::Arc;

use crate::delivery::lane::LaneKey;

use super::LaneId;

/// A site, and the source that mail goes to it from.
type Way = (Arc<str>, Option<Arc<str>>);

/// A lane, and the destination's rule by which it goes.
type Ruled = (Option<Rc<str>>, LaneId);

/// Lanes of one site and source are siblings: rules of destinations tell them apart, and little else.
#[derive(Default)]
pub(super) struct LaneIndex(HashMap<Way, Vec<Ruled>>);

impl LaneIndex {
    pub(super) fn get(&self, key: &LaneKey) -> Option<LaneId> {
        let mut siblings = self.siblings(key);
        let found = siblings.find(|(rule, _)| *rule == key.rule);
        found.map(|(_, lane)| *lane)
    }

    pub(super) fn insert(&mut self, key: LaneKey, lane: LaneId) {
        let siblings = self.0.entry((key.site, key.source)).or_default();
        siblings.push((key.rule, lane));
    }

    pub(super) fn remove(&mut self, key: &LaneKey) {
        let way = way(key);
        if let Some(siblings) = self.0.get_mut(&way) {
            siblings.retain(|(rule, _)| *rule != key.rule);
            if siblings.is_empty() {
                self.0.remove(&way);
            }
        }
    }

    /// All lanes to the site of this one from its source, itself too.
    pub(super) fn family(&self, key: &LaneKey) -> impl Iterator<Item = LaneId> {
        self.siblings(key).map(|(_, lane)| *lane)
    }

    fn siblings(&self, key: &LaneKey) -> impl Iterator<Item = &Ruled> {
        self.0.get(&way(key)).into_iter().flatten()
    }
}

fn way(key: &LaneKey) -> Way {
    (key.site.clone(), key.source.clone())
}
