//! Rules by domain: of one name, or of all below it.

use std::collections::HashMap;

use mail_core::Domain;

/// Numbers of rules, found by a few look-ups however many there are.
#[derive(Clone, Debug, Default)]
pub struct ByDomain {
    exact: HashMap<Box<str>, usize>,
    below: HashMap<Box<str>, usize>,
}

impl ByDomain {
    /// The rule of this number is for `domain`, or for all `below` it. Of two for the same the last one counts.
    pub fn insert(&mut self, domain: &Domain, below: bool, number: usize) {
        let to = if below { &mut self.below } else { &mut self.exact };
        to.insert(domain.as_str().into(), number);
    }

    /// The rule for a name in lower case and without a final dot: its own before the longest parent's.
    pub fn find(&self, name: &str) -> Option<usize> {
        if let Some(&number) = self.exact.get(name) {
            return Some(number);
        }
        let mut parents = std::iter::successors(parent(name), |name| parent(name));
        parents.find_map(|name| self.below.get(name).copied())
    }
}

fn parent(name: &str) -> Option<&str> {
    name.split_once('.').map(|(_, parent)| parent)
}
