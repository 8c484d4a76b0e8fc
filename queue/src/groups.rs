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
    /// 65,534 names were given numbers, and none comes free.
    #[error("no more route groups: 65,534 names of smart hosts and reasons have been used in this store")]
    Exhausted,
}

/// Stands for names whose numbers can't be told, and for those that would need one then. No name ever has it, so its queues wait.
const NO_NUMBER: RouteGroup = RouteGroup(u16::MAX);

impl Queue {
    /// The numbers of these names, in order. A name without one gets the next and keeps it for as long as there is the store,
    /// whatever the configuration says later. 0 is delivery by MX and has no name. As long as RocksDB does not read all names, none is given
    /// any: the last of them might be another's.
    pub fn route_groups(&self, names: &[&str]) -> Result<Vec<RouteGroup>, GroupError> {
        let _alone = self.groups.lock();
        let Groups {
            known,
            mut last,
            whole,
        } = self.groups_known()?;
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
            if !whole {
                tracing::error!(
                    name,
                    "mail that is to go this way waits: its number in the store can't be read"
                );
                numbers.push(NO_NUMBER);
                continue;
            }
            last = last
                .checked_add(1)
                .filter(|next| *next < NO_NUMBER.0)
                .ok_or(GroupError::Exhausted)?;
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

    /// All names that have a number, as far as they read.
    pub fn route_group_names(&self) -> Result<Vec<(RouteGroup, String)>, ReadError> {
        Ok(self.groups_known()?.known)
    }

    /// A damaged record keeps its number from being given again; its queues wait as those of any way that there is not.
    fn groups_known(&self) -> Result<Groups, ReadError> {
        let mut groups = Groups::default();
        let (from, to) = (keys::route_group(RouteGroup(0)), keys::route_groups_end());
        match self.store.scan(Family::Queues, &from, &to, &mut |key, value| {
            groups.take(key, value);
            true
        }) {
            Ok(()) => groups.whole = true,
            Err(error) if error.is_corruption() => {
                groups = Groups::default();
                self.store
                    .scan_past(Family::Queues, &from, &to, &mut |key, value| {
                        groups.take(key, value);
                        true
                    })?;
            }
            Err(error) => return Err(error.into()),
        }
        Ok(groups)
    }
}

/// What the store holds of them.
#[derive(Default)]
struct Groups {
    known: Vec<(RouteGroup, String)>,
    last: u16,
    /// Nothing was gone past.
    whole: bool,
}

impl Groups {
    fn take(&mut self, key: &[u8], value: &[u8]) {
        let Some(group) = keys::parse_route_group(key) else {
            return;
        };
        self.last = self.last.max(group.0);
        match decode::<GroupRecord>(value) {
            Ok(record) => self.known.push((group, record.name)),
            Err(error) => {
                tracing::error!(group = group.0, %error, "a route group's name can't be read")
            }
        }
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
