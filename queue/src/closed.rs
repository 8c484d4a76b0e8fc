//! A store that is not in use: read through, and its messages written as a stream. Nothing in it is changed.

mod export;
mod verify;

use std::path::Path;

pub use export::Exported;
pub use verify::{FamilyCount, Problem, Verified};

use crate::committer::read_counters;
use crate::mark::Mark;
use crate::names::{QueueId, RouteGroup, UnitKey};
use crate::records::{AsideRecord, DueRecord, GroupRecord, QueueRecord, Record, decode};
use crate::rocks::closed::{ClosedStore, END, Skipped};
use crate::store::{Family, Store, StoreError};
use crate::stream::{ExportedQueue, LOST_WAY};
use crate::{FORMAT_VERSION, OpenError, ReadError, keys};

/// See the module.
pub struct Closed {
    store: ClosedStore,
    name: [u8; 16],
    /// What is wrong with it as a whole: it ends before its mark.
    behind: Option<OpenError>,
    lenient: bool,
}

/// What a record says of itself, damaged or not.
type Found<T> = Result<Option<T>, ReadError>;

impl Closed {
    /// Opens the store in a queue's folder, unless a relay has it open. With `salvage` it is opened though files of it are
    /// missing, and what does not read is gone past.
    pub fn open(folder: &Path, salvage: bool) -> Result<Self, OpenError> {
        let (store_folder, mark_file) = (folder.join("store"), folder.join("mark"));
        if !store_folder.join("CURRENT").exists() {
            return Err(OpenError::NoStore {
                path: folder.display().to_string(),
            });
        }
        let store = ClosedStore::open(&store_folder, salvage)?;
        let damaged = |key| OpenError::Read(ReadError::damaged(Family::Meta.name(), key, "length"));
        let format = store.get(Family::Meta, keys::FORMAT);
        let name = store.get(Family::Meta, keys::STORE);
        let (format, name) = match (format, name) {
            (Ok(Some(format)), Ok(Some(name))) => (format, name),
            (Err(error), _) | (_, Err(error)) if !salvage => return Err(error.into()),
            // Nothing but the mark depends on them.
            _ if salvage => (FORMAT_VERSION.to_be_bytes().to_vec(), vec![0; 16]),
            _ => return Err(damaged(keys::FORMAT)),
        };
        let found = u16::from_be_bytes(format.try_into().map_err(|_| damaged(keys::FORMAT))?);
        if found > FORMAT_VERSION {
            return Err(OpenError::TooNew { found });
        }
        let name: [u8; 16] = name.try_into().map_err(|_| damaged(keys::STORE))?;
        let behind = match (Mark::synced(&mark_file, name), read_counters(&store)) {
            (Ok(mark), Ok(counters)) if counters.group < mark => Some(OpenError::OlderThanMark {
                store: counters.group,
                mark,
            }),
            (_, Err(error)) => Some(error.into()),
            (Ok(_) | Err(_), Ok(_)) => None,
        };
        Ok(Self {
            store,
            name,
            behind,
            lenient: salvage,
        })
    }

    /// What is wrong with the store as a whole, which a relay would not open: acknowledged mail is missing.
    pub fn behind(&self) -> Option<&OpenError> {
        self.behind.as_ref()
    }

    /// Why RocksDB does not open the store as it is, if it does not: what can be read was put together from its tables then.
    pub fn refused(&self) -> Option<&StoreError> {
        self.store.refused()
    }

    /// Ranges of keys that reading has gone past so far.
    pub fn skipped(&self) -> Vec<Skipped> {
        self.store.skipped()
    }

    /// Hands all of a family to `each`, in pages, so that it may read too.
    fn each(
        &self,
        family: Family,
        mut each: impl FnMut(&[u8], &[u8]) -> Result<(), Stop>,
    ) -> Result<(), Stop> {
        let mut stopped = Ok(());
        self.store.scan(family, &[], END, &mut |key, value| {
            stopped = each(key, value);
            stopped.is_ok()
        })?;
        stopped
    }

    fn read<T: Record>(&self, family: Family, key: &[u8]) -> Found<T> {
        let damaged = |what| ReadError::damaged(family.name(), key, what);
        match self.store.get(family, key) {
            Ok(Some(octets)) => decode(&octets).map(Some).map_err(|error| damaged(error.0)),
            Ok(None) => Ok(None),
            // Not to be told from a record that is damaged.
            Err(_) if self.lenient => Err(damaged("unreadable")),
            Err(error) => Err(error.into()),
        }
    }

    /// The name of a queue, and of its way.
    fn queue(&self, id: QueueId) -> Found<ExportedQueue> {
        let record = match self.read::<QueueRecord>(Family::Queues, &keys::record(id)) {
            Ok(Some(record)) => Some(record.name),
            damaged => {
                // The directory knows it too.
                let mut name = None;
                self.store.scan(Family::Queues, b"d", b"e", &mut |key, value| {
                    if crate::records::unseal(value).is_ok_and(|number| u64::from_be_bytes(number) == id.0) {
                        name = keys::parse_directory(key);
                    }
                    name.is_none()
                })?;
                match (name, damaged) {
                    (None, Err(error)) => return Err(error),
                    (name, _) => name,
                }
            }
        };
        let Some(name) = record else {
            return Ok(None);
        };
        let group = match name.route_group {
            RouteGroup(0) => None,
            group => match self.read::<GroupRecord>(Family::Queues, &keys::route_group(group)) {
                Ok(Some(record)) => Some(record.name),
                // It waits rather than go by a way it was not meant for.
                Ok(None) | Err(ReadError::Damaged { .. }) => Some(LOST_WAY.to_owned()),
                Err(error) => return Err(error),
            },
        };
        Ok(Some(ExportedQueue { name, group }))
    }

    /// Where a unit stands: its due time, and its record if it is set aside; `None` where it has ended.
    fn standing(&self, unit: &UnitKey) -> Found<(UnitKey, Option<AsideRecord>)> {
        let aside = keys::aside(unit.id, unit.unit);
        match self.read::<AsideRecord>(Family::Aside, &aside) {
            Ok(Some(record)) => {
                let due = record.due;
                return Ok(Some((UnitKey { due, ..*unit }, Some(record))));
            }
            Err(ReadError::Damaged { what, .. }) => {
                let record = AsideRecord {
                    since: unit.id.created(),
                    cause: crate::AsideCause::Damaged,
                    why: format!("set aside; the record that says why is damaged: {what}"),
                    queue: unit.queue,
                    due: unit.due,
                    was: DueRecord::default(),
                };
                return Ok(Some((*unit, Some(record))));
            }
            Err(error) => return Err(error),
            Ok(None) => {}
        }
        let key = keys::due(unit);
        match self.read::<DueRecord>(Family::Due, &key) {
            Ok(None) => {
                // Rather twice than never.
                let lost = self.store.has_skipped(Family::Due, &key)
                    || self.store.has_skipped(Family::Aside, &aside);
                Ok(lost.then_some((*unit, None)))
            }
            Ok(Some(_)) | Err(ReadError::Damaged { .. }) => Ok(Some((*unit, None))),
            Err(error) => Err(error),
        }
    }
}

/// Why reading ended.
#[derive(Debug, thiserror::Error)]
pub enum Stop {
    /// The store did not read.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// What was read could not be written on.
    #[error("the stream can't be written: {0}")]
    Write(#[from] std::io::Error),
}

impl From<StoreError> for Stop {
    fn from(error: StoreError) -> Self {
        Self::Read(error.into())
    }
}
