//! A store that can be closed and opened anew while the program runs: RocksDB takes no writes after one has failed.

use std::fs::File;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use mail_core::MessageId;
use parking_lot::{Mutex, RwLock};

use crate::aside::DamageCounts;
use crate::committer::Committer;
use crate::corruption::Corruption;
use crate::intake::mend::Heal;
use crate::rocks::RocksStore;
use crate::store::{Batch, Each, Family, KeyValue, Store, StoreError, Written};
use crate::{OpenError, prepare, sweep};

/// Octets written to see whether the disk takes any.
const PROBE: usize = 64 << 10;

/// See the module. Whoever reads holds it for that read alone.
pub(crate) struct ReopenStore {
    open: RwLock<Option<RocksStore>>,
    /// By those that were open before.
    written: Mutex<Written>,
    corruption: Arc<Corruption>,
}

impl ReopenStore {
    pub(crate) fn new(store: RocksStore, corruption: Arc<Corruption>) -> Self {
        Self {
            open: RwLock::new(Some(store)),
            written: Mutex::default(),
            corruption,
        }
    }

    fn with<T>(&self, what: impl FnOnce(&RocksStore) -> Result<T, StoreError>) -> Result<T, StoreError> {
        // Recursive: a scan may read more, and must not wait for a writer that waits for the scan.
        let done = match &*self.open.read_recursive() {
            Some(store) => what(store),
            None => Err(StoreError("it is closed after a failure".into())),
        };
        done.inspect_err(|error| self.corruption.note(error))
    }
}

impl Store for ReopenStore {
    fn write(&self, batch: &Batch, sync: bool) -> Result<(), StoreError> {
        self.with(|store| store.write(batch, sync))
    }

    fn sync(&self) -> Result<(), StoreError> {
        self.with(Store::sync)
    }

    fn get(&self, family: Family, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
        self.with(|store| store.get(family, key))
    }

    fn scan(
        &self,
        family: Family,
        from: &[u8],
        to: &[u8],
        each: &mut dyn FnMut(&[u8], &[u8]) -> bool,
    ) -> Result<(), StoreError> {
        self.with(|store| store.scan(family, from, to, each))
    }

    fn scan_past(&self, family: Family, from: &[u8], to: &[u8], each: Each<'_>) -> Result<(), StoreError> {
        let met = |error: &StoreError| self.corruption.note(error);
        self.with(|store| store.scan_past(family, from, to, each, &met))
    }

    fn last(&self, family: Family, from: &[u8], to: &[u8]) -> Result<Option<KeyValue>, StoreError> {
        self.with(|store| store.last(family, from, to))
    }

    fn reclaim(&self, family: Family, from: &[u8], to: &[u8]) -> Result<(), StoreError> {
        self.with(|store| store.reclaim(family, from, to))
    }

    fn written(&self) -> Written {
        let open = self.open.read_recursive();
        let now = open.as_ref().map(|store| store.written()).unwrap_or_default();
        *self.written.lock() + now
    }

    fn quiet(&self) {
        let _ = self.with(|store| {
            store.quiet();
            Ok(())
        });
    }
}

/// Opens it anew.
pub(crate) struct Reopener {
    pub(crate) store: Arc<ReopenStore>,
    /// The queue's folder.
    pub(crate) folder: PathBuf,
    /// The store's name.
    pub(crate) name: [u8; 16],
    /// Counts what does not verify.
    pub(crate) damage: Arc<DamageCounts>,
    /// Knows whether it does not verify to RocksDB.
    pub(crate) corruption: Arc<Corruption>,
}

impl Heal for Reopener {
    fn heal(&mut self, synced: u64, unanswered: &[MessageId]) -> Result<usize, OpenError> {
        // As long as the disk takes nothing, what can be read stays open.
        probe(&self.folder).map_err(|cause| OpenError::Io {
            path: self.folder.display().to_string(),
            cause,
        })?;
        self.close();
        let compactions = self.corruption.found().is_none();
        let store = RocksStore::open(&self.folder.join("store"), compactions)?;
        // Whoever reads meanwhile is told that it is closed: to open it takes seconds, in which a shard has others to serve.
        let store = Arc::new(ReopenStore::new(store, self.corruption.clone()));
        if prepare(&*store)? != self.name {
            return Err(OpenError::NotItsMark { mark: synced });
        }
        let mut committer = Committer::new(store.clone(), self.damage.clone(), Arc::default())?;
        if committer.group() < synced {
            return Err(OpenError::OlderThanMark {
                store: committer.group(),
                mark: synced,
            });
        }
        let taken_out = committer.take_out(unanswered)?;
        drop(committer);
        sweep(&*store)?;
        *self.store.open.write() = store.open.write().take();
        Ok(taken_out)
    }
}

impl Reopener {
    /// RocksDB has a lock on the folder for as long as it is open.
    fn close(&self) {
        // Waits for those who read.
        let mut open = self.store.open.write();
        let Some(store) = open.take() else { return };
        let before = store.written();
        let mut written = self.store.written.lock();
        *written = *written + before;
        drop((written, open));
        store.quiet();
        let mut written = self.store.written.lock();
        *written = *written + (store.written() - before);
    }
}

/// Whether the disk takes writes, and syncs them.
fn probe(folder: &Path) -> std::io::Result<()> {
    let path = folder.join(".probe");
    let probed = File::create(&path).and_then(|mut file| {
        file.write_all(&[0x5a; PROBE])?;
        file.sync_all()
    });
    let removed = std::fs::remove_file(&path);
    probed.and(removed)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::intake::tests::message;
    use crate::{Options, Queue};

    fn id(number: u8) -> MessageId {
        MessageId::from_bytes([number; 16])
    }

    fn reopener(store: &Arc<ReopenStore>, folder: &tempfile::TempDir, name: [u8; 16]) -> Reopener {
        Reopener {
            store: store.clone(),
            folder: folder.path().to_owned(),
            name,
            damage: Arc::default(),
            corruption: store.corruption.clone(),
        }
    }

    #[tokio::test]
    async fn what_was_kept_is_there_and_what_nobody_was_told_of_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let options = Options {
            min_free_bytes: 0,
            commit_patience: std::time::Duration::from_secs(60),
            limits: crate::Limits::NONE,
        };
        let queue = Queue::open(folder.path(), &options).unwrap();
        for number in 1..=3 {
            queue.accept(message(number)).await.unwrap();
        }
        queue.close();
        drop(queue);

        let store = RocksStore::open(&folder.path().join("store"), true).unwrap();
        let name = prepare(&store).unwrap();
        let store = Arc::new(ReopenStore::new(store, Arc::default()));
        let mut reopener = reopener(&store, &folder, name);
        let reads = || {
            [1, 2, 3].map(|number| {
                let found = store.get(Family::Envelope, id(number).as_bytes());
                found
                    .map(|found| found.is_some())
                    .map_err(|error| error.to_string())
            })
        };
        assert_eq!(reopener.heal(3, &[id(2), id(9)]).unwrap(), 1);
        assert_eq!(reads(), [Ok(true), Ok(false), Ok(true)]);
        // Less than was synced: it stays closed, and says so.
        assert!(matches!(
            reopener.heal(99, &[]),
            Err(OpenError::OlderThanMark { store: 4, mark: 99 })
        ));
        let closed = "the store failed: it is closed after a failure";
        assert_eq!(reads()[0].as_ref().unwrap_err(), closed);
        // A folder that takes no writes: what is open stays open.
        assert_eq!(reopener.heal(4, &[]).unwrap(), 0);
        reopener.folder = folder.path().join("gone");
        assert!(matches!(reopener.heal(4, &[]), Err(OpenError::Io { .. })));
        assert_eq!(reads(), [Ok(true), Ok(false), Ok(true)]);
    }

    #[test]
    fn a_bad_block_keeps_no_store_from_coming_back() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("store");
        let store = RocksStore::open(&path, true).unwrap();
        let name = prepare(&store).unwrap();
        let mut batch = Batch::default();
        for number in 0..200 {
            batch.put(Family::Upload, id(number).as_bytes(), vec![number; 9]);
        }
        store.write(&batch, true).unwrap();
        drop(store);
        // Recovery makes tables of the log.
        drop(RocksStore::open(&path, true).unwrap());
        for entry in std::fs::read_dir(&path).unwrap() {
            let table = entry.unwrap().path();
            let mut octets = std::fs::read(&table).unwrap();
            if octets.windows(10).any(|text| text == b"nameupload")
                && table.extension().is_some_and(|kind| kind == "sst")
            {
                octets[100] ^= 1;
                std::fs::write(&table, octets).unwrap();
            }
        }
        let corruption = Arc::<Corruption>::default();
        let store = RocksStore::open(&path, true).unwrap();
        let store = Arc::new(ReopenStore::new(store, corruption.clone()));
        let mut reopener = reopener(&store, &folder, name);
        assert_eq!(reopener.heal(0, &[]).unwrap(), 0);
        assert!(corruption.found().is_some(), "it was met");
        assert!(store.get(Family::Meta, crate::keys::STORE).unwrap().is_some());
    }

    /// The folder's `CURRENT`, which RocksDB reads as it opens, is a pipe: it waits there for as long as the test likes.
    #[test]
    fn who_reads_while_it_is_opened_does_not_wait() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("store");
        let store = RocksStore::open(&path, true).unwrap();
        let name = prepare(&store).unwrap();
        let store = Arc::new(ReopenStore::new(store, Arc::default()));
        let mut reopener = reopener(&store, &folder, name);
        let (current, kept) = (path.join("CURRENT"), path.join("CURRENT.kept"));
        std::fs::rename(&current, &kept).unwrap();
        let mode = rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR;
        rustix::fs::mknodat(rustix::fs::CWD, &current, rustix::fs::FileType::Fifo, mode, 0).unwrap();
        let healed = std::thread::spawn(move || reopener.heal(0, &[]));
        // Until it reads there.
        let mut pipe = File::options().write(true).open(&current).unwrap();
        let (tell, told) = std::sync::mpsc::channel();
        let reads = store.clone();
        std::thread::spawn(move || tell.send((reads.get(Family::Meta, b"x"), reads.written())));
        let (read, written) = told
            .recv_timeout(std::time::Duration::from_secs(60))
            .expect("it waits");
        assert_eq!(read.unwrap_err().0, "it is closed after a failure");
        assert!(written.wal > 0, "what was written is counted");
        let manifest = std::fs::read(&kept).unwrap();
        std::fs::rename(&kept, &current).unwrap();
        pipe.write_all(&manifest).unwrap();
        drop(pipe);
        assert_eq!(healed.join().unwrap().unwrap(), 0);
        assert_eq!(store.get(Family::Meta, b"x").unwrap(), None);
        assert!(store.written().wal >= written.wal);
    }
}
