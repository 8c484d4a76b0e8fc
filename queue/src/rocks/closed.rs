//! A store that nothing else has open, for reading alone: nothing on the disk changes, whatever state it is in.

use std::fs::File;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};

use parking_lot::Mutex;
use rocksdb::{ColumnFamily, ColumnFamilyDescriptor, DB, DBRecoveryMode, IteratorMode, Options, ReadOptions};
use rustix::fs::{FlockOperation, fcntl_lock};

use super::behind::{reads_again, reads_at, run};
use super::{explain, failed};
use crate::store::{Batch, Family, KeyValue, Store, StoreError};

/// Behind every key.
pub(crate) const END: &[u8] = &[u8::MAX; 64];

/// Octets read ahead by scans, which go through all there is.
const READ_AHEAD: usize = 2 << 20;

/// See the module.
pub(crate) struct ClosedStore {
    /// None where nothing of it could be opened.
    db: Option<DB>,
    /// Made of the tables that read, for families of which nothing did.
    rebuilt: Option<(Rebuilt, Vec<Family>)>,
    /// Why it did not open as it is.
    refused: Option<StoreError>,
    /// Go on behind what does not read.
    lenient: bool,
    skipped: Mutex<Vec<Skipped>>,
    /// As long as it is held, no relay starts with the store.
    _lock: Option<File>,
}

/// A range of keys in which something did not read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Skipped {
    /// Where.
    pub family: Family,
    /// From this key on.
    pub from: Vec<u8>,
    /// Up to this one, which reads again.
    pub to: Vec<u8>,
    /// What RocksDB, or the disk, said.
    pub error: String,
}

impl ClosedStore {
    /// Opens the store in `folder`. With `lenient` it is opened though files are missing, and scans go on behind what does not
    /// read: [`Self::skipped`] tells of it then. Of families of which nothing reads, those tables are used that do.
    pub(crate) fn open(folder: &Path, lenient: bool) -> Result<Self, StoreError> {
        let lock = lock(folder)?;
        let mut store = Self {
            db: None,
            rebuilt: None,
            refused: None,
            lenient,
            skipped: Mutex::default(),
            _lock: lock,
        };
        match open(folder, lenient) {
            Ok(db) => store.db = Some(db),
            Err(error) if !lenient => return Err(error),
            Err(error) => {
                store.rebuilt = Some((Rebuilt::of(folder)?, Family::ALL.to_vec()));
                store.refused = Some(error);
            }
        }
        if lenient && store.db.is_some() {
            let lost = |family: &Family| store.is_lost(*family);
            let lost: Vec<_> = Family::ALL.into_iter().filter(lost).collect();
            if !lost.is_empty() {
                store.skipped.lock().extend(lost.iter().map(|family| Skipped {
                    family: *family,
                    from: Vec::new(),
                    to: END.to_vec(),
                    error: "a table does not open; others were used".into(),
                }));
                store.rebuilt = Some((Rebuilt::of(folder)?, lost));
            }
        }
        Ok(store)
    }

    /// Whether nothing of a family reads.
    fn is_lost(&self, of: Family) -> bool {
        let Some((db, family)) = self.family(of) else {
            return false;
        };
        !reads_at((db, family), reading(END, true), &[])
            && *reads_again((db, family), &|| reading(END, true), &[], END) == *END
    }

    /// Why it did not open as it is, if it did not: what reads then was put together from its tables.
    pub(crate) fn refused(&self) -> Option<&StoreError> {
        self.refused.as_ref()
    }

    /// What scans have gone past.
    pub(crate) fn skipped(&self) -> Vec<Skipped> {
        self.skipped.lock().clone()
    }

    /// Whether a scan has gone past this key.
    pub(crate) fn has_skipped(&self, family: Family, key: &[u8]) -> bool {
        let skipped = self.skipped.lock();
        skipped
            .iter()
            .any(|range| range.family == family && *range.from <= *key && *key < *range.to)
    }

    fn family(&self, family: Family) -> Option<(&DB, &ColumnFamily)> {
        let rebuilt = self
            .rebuilt
            .as_ref()
            .filter(|(_, families)| families.contains(&family));
        let db = match rebuilt {
            Some((rebuilt, _)) => rebuilt.db.as_ref()?,
            None => self.db.as_ref()?,
        };
        Some((db, db.cf_handle(family.name())?))
    }
}

impl Store for ClosedStore {
    fn write(&self, _batch: &Batch, _sync: bool) -> Result<(), StoreError> {
        Err(StoreError("the store was opened for reading alone".into()))
    }

    fn sync(&self) -> Result<(), StoreError> {
        Ok(())
    }

    fn get(&self, family: Family, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
        let Some((db, family)) = self.family(family) else {
            return Ok(None);
        };
        match db.get_cf(family, key) {
            // What is in a block that does not verify has a checksum of its own.
            Err(_) if self.lenient => {
                let mut options = ReadOptions::default();
                options.set_verify_checksums(false);
                db.get_cf_opt(family, key, &options).map_err(failed)
            }
            found => found.map_err(failed),
        }
    }

    fn scan(
        &self,
        of: Family,
        from: &[u8],
        to: &[u8],
        each: &mut dyn FnMut(&[u8], &[u8]) -> bool,
    ) -> Result<(), StoreError> {
        let Some((db, family)) = self.family(of) else {
            return Ok(());
        };
        let mut from = from.to_vec();
        while *from < *to {
            let (at, error) = match run((db, family), reading(to, true), &from, each) {
                Ok(_) => return Ok(()),
                Err((_, error)) if !self.lenient => return Err(error),
                Err(early) => early,
            };
            let again = reads_again((db, family), &|| reading(to, true), &at, to);
            self.skipped.lock().push(Skipped {
                family: of,
                from: at.clone(),
                to: again.clone(),
                error: error.0,
            });
            // Perhaps a bit of it flipped: each record tells for itself.
            if let Ok(false) = run((db, family), reading(&again, false), &at, each) {
                return Ok(());
            }
            from = again;
        }
        Ok(())
    }

    fn last(&self, family: Family, from: &[u8], to: &[u8]) -> Result<Option<KeyValue>, StoreError> {
        let Some((db, family)) = self.family(family).filter(|_| from < to) else {
            return Ok(None);
        };
        let mut options = reading(to, true);
        options.set_iterate_lower_bound(from);
        let last = db.iterator_cf_opt(family, options, IteratorMode::End).next();
        let found = last.map(|entry| entry.map(|(key, value)| (key.into_vec(), value.into_vec())));
        found.transpose().map_err(failed)
    }
}

/// A database made anew of the tables of another that read, in a folder of its own, by links: the other stays as it is.
struct Rebuilt {
    /// Closed before its folder goes.
    db: Option<DB>,
    folder: PathBuf,
}

impl Rebuilt {
    fn of(folder: &Path) -> Result<Self, StoreError> {
        let told = |error: std::io::Error| StoreError(format!("{}: {error}", folder.display()));
        let made = std::env::temp_dir().join(format!("postrider-salvage-{}", std::process::id()));
        // What was in the log alone is written there.
        let private = std::fs::DirBuilder::new().mode(0o700).create(&made);
        private.map_err(|error| StoreError(format!("{}: {error}", made.display())))?;
        let mut rebuilt = Self {
            db: None,
            folder: made,
        };
        let from = folder.canonicalize().map_err(told)?;
        for entry in std::fs::read_dir(&from).map_err(told)? {
            let name = entry.map_err(told)?.file_name();
            let is_data = Path::new(&name)
                .extension()
                .is_some_and(|kind| kind == "sst" || kind == "blob" || kind == "log");
            if is_data {
                std::os::unix::fs::symlink(from.join(&name), rebuilt.folder.join(&name)).map_err(told)?;
            }
        }
        DB::repair(&Options::default(), &rebuilt.folder).map_err(failed)?;
        rebuilt.db = Some(open(&rebuilt.folder, true)?);
        Ok(rebuilt)
    }
}

impl Drop for Rebuilt {
    fn drop(&mut self) {
        drop(self.db.take());
        // Links, and what was made of the log.
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

fn open(folder: &Path, lenient: bool) -> Result<DB, StoreError> {
    let told = |error: rocksdb::Error| StoreError(explain(folder, error.as_ref()));
    let mut options = Options::default();
    options.set_wal_recovery_mode(DBRecoveryMode::PointInTime);
    options.set_max_open_files(super::max_open_files());
    options.set_paranoid_checks(!lenient);
    // An older version's store has fewer families; RocksDB wants its own first one opened.
    let families = DB::list_cf(&options, folder).map_err(told)?;
    let families = families
        .into_iter()
        .map(|name| ColumnFamilyDescriptor::new(name, Options::default()));
    DB::open_cf_descriptors_read_only(&options, folder, families, false).map_err(told)
}

/// Takes a share of the lock that RocksDB has while it is open for writing: none is to be had then, and none for writing while
/// this one is held. `None` where there is no such file, as in a copy, or where the disk knows no locks.
fn lock(folder: &Path) -> Result<Option<File>, StoreError> {
    let Ok(file) = File::open(folder.join("LOCK")) else {
        return Ok(None);
    };
    match fcntl_lock(&file, FlockOperation::NonBlockingLockShared) {
        Ok(()) => Ok(Some(file)),
        Err(rustix::io::Errno::AGAIN | rustix::io::Errno::ACCESS) => Err(StoreError(format!(
            "{} is in use by another process: stop the relay first",
            folder.display()
        ))),
        Err(_) => Ok(None),
    }
}

fn reading(to: &[u8], verify: bool) -> ReadOptions {
    let mut options = ReadOptions::default();
    options.set_iterate_upper_bound(to);
    options.set_verify_checksums(verify);
    options.fill_cache(false);
    options.set_readahead_size(READ_AHEAD);
    options
}
