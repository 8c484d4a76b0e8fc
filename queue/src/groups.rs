//! The numbers of route groups: given once to a name, never again to another.
//!
//! They are written here and nowhere else, one short batch each, beside the committer: none of its keys is touched.

use crate::names::RouteGroup;
use crate::records::{GroupRecord, decode};
use crate::store::{Batch, Family};
use crate::{Queue, ReadError, keys};

/// Why names have no numbers.
#[derive(Clone, Debug, thiserror::Error)]
pub enum GroupError {
    /// The store does not answer, or takes no writes.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// 65,535 names were given numbers, and none comes free.
    #[error("no more route groups: 65,535 names of smart hosts and reasons have been used in this store")]
    Exhausted,
}

impl Queue {
    /// The numbers of these names, in order. A name without one gets the next and keeps it for as long as there is the store,
    /// whatever the configuration says later. 0 is delivery by MX and has no name.
    pub fn route_groups(&self, names: &[&str]) -> Result<Vec<RouteGroup>, GroupError> {
        let _alone = self.groups.lock();
        let (known, mut last) = self.groups_and_last()?;
        let mut batch = Batch::default();
        let mut numbers = Vec::with_capacity(names.len());
        let mut fresh: Vec<(RouteGroup, &str)> = Vec::new();
        for &name in names {
            let of_known = known.iter().find(|(_, has)| has == name).map(|(group, _)| *group);
            let of_fresh = || {
                fresh
                    .iter()
                    .find(|(_, has)| *has == name)
                    .map(|(group, _)| *group)
            };
            if let Some(group) = of_known.or_else(of_fresh) {
                numbers.push(group);
                continue;
            }
            last = last.checked_add(1).ok_or(GroupError::Exhausted)?;
            let record = GroupRecord {
                name: name.to_owned(),
            };
            let key = keys::route_group(RouteGroup(last));
            batch.put_record(Family::Queues, &key, &record);
            fresh.push((RouteGroup(last), name));
            numbers.push(RouteGroup(last));
        }
        if !batch.is_empty() {
            self.store.write(&batch, true).map_err(ReadError::from)?;
        }
        Ok(numbers)
    }

    /// All names that have a number.
    pub fn route_group_names(&self) -> Result<Vec<(RouteGroup, String)>, ReadError> {
        Ok(self.groups_and_last()?.0)
    }

    /// A damaged record keeps its number from being given again; its queues wait as those of any way that there is not. Nothing is gone past: a
    /// number that is not seen would be given to another way, and the mail that waits under it go there.
    fn groups_and_last(&self) -> Result<(Vec<(RouteGroup, String)>, u16), ReadError> {
        let (mut groups, mut last) = (Vec::new(), 0);
        let (from, to) = (keys::route_group(RouteGroup(0)), keys::route_groups_end());
        self.store.scan(Family::Queues, &from, &to, &mut |key, value| {
            let Some(group) = keys::parse_route_group(key) else {
                return true;
            };
            last = last.max(group.0);
            match decode::<GroupRecord>(value) {
                Ok(record) => groups.push((group, record.name)),
                Err(error) => {
                    tracing::error!(group = group.0, %error, "a route group's name can't be read")
                }
            }
            true
        })?;
        Ok((groups, last))
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::store::{MemoryStore, Store};

    #[test]
    fn a_name_keeps_its_number_and_no_other_gets_it() {
        let store = MemoryStore::new();
        let queue = Queue::in_memory(store.clone()).unwrap();
        let first = queue.route_groups(&["a", "b", "a"]).unwrap();
        assert_eq!(first, [RouteGroup(1), RouteGroup(2), RouteGroup(1)]);
        // After a restart and a power cut, and though "a" was left out for a while.
        let again = Queue::in_memory(store.cut_power(0)).unwrap();
        assert_eq!(again.route_groups(&["c"]).unwrap(), [RouteGroup(3)]);
        assert_eq!(
            again.route_groups(&["b", "a"]).unwrap(),
            [RouteGroup(2), RouteGroup(1)]
        );
        let names = again.route_group_names().unwrap();
        assert_eq!(names.last(), Some(&(RouteGroup(3), "c".to_owned())));
    }

    #[test]
    fn a_damaged_name_does_not_free_its_number() {
        let store = MemoryStore::new();
        let queue = Queue::in_memory(store.clone()).unwrap();
        queue.route_groups(&["a", "b"]).unwrap();
        let mut batch = Batch::default();
        batch.put(
            Family::Queues,
            &keys::route_group(RouteGroup(2)),
            Bytes::from_static(b"?"),
        );
        store.write(&batch, true).unwrap();
        assert_eq!(queue.route_groups(&["b"]).unwrap(), [RouteGroup(3)]);
    }
}
