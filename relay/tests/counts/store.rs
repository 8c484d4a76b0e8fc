//! RocksDB, with a count of what it is asked.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use queue::rocks::RocksStore;
use queue::store::{Batch, Family, KeyValue, Store, StoreError};
use tokio::sync::Notify;

/// What the store has been asked so far.
#[derive(Clone, Copy, Debug, Default)]
pub struct Told {
    /// Batches.
    pub batches: u64,
    /// Those that were to be synced.
    pub syncs: u64,
    /// Octets of keys and values.
    pub octets: u64,
    /// Of them those that were copied into the batch.
    pub copied: u64,
    /// Keys set or removed.
    pub writes: u64,
    /// Values asked for, and scans begun.
    pub reads: u64,
}

#[derive(Default)]
struct Counts {
    batches: AtomicU64,
    syncs: AtomicU64,
    octets: AtomicU64,
    copied: AtomicU64,
    writes: AtomicU64,
    reads: AtomicU64,
    synced: Notify,
}

/// See the module; cloning shares it.
#[derive(Clone)]
pub struct CountingStore {
    inner: Arc<RocksStore>,
    counts: Arc<Counts>,
}

impl CountingStore {
    /// In a folder of its own.
    pub fn open(folder: &Path) -> Self {
        Self {
            inner: Arc::new(RocksStore::open(folder, true).unwrap()),
            counts: Arc::default(),
        }
    }

    /// What it was told.
    pub fn told(&self) -> Told {
        let of = |count: &AtomicU64| count.load(Ordering::Relaxed);
        let counts = &self.counts;
        Told {
            batches: of(&counts.batches),
            syncs: of(&counts.syncs),
            octets: of(&counts.octets),
            copied: of(&counts.copied),
            writes: of(&counts.writes),
            reads: of(&counts.reads),
        }
    }

    /// Waits until so many batches in all were to be synced, and are.
    pub async fn synced(&self, count: u64) {
        while self.told().syncs < count {
            self.counts.synced.notified().await;
        }
    }
}

impl Store for CountingStore {
    fn write(&self, batch: &Batch, sync: bool) -> Result<(), StoreError> {
        self.inner.write(batch, sync)?;
        let add = |count: &AtomicU64, more: usize| count.fetch_add(more as u64, Ordering::Relaxed);
        add(&self.counts.batches, 1);
        add(&self.counts.octets, batch.size());
        add(&self.counts.copied, batch.copied());
        add(&self.counts.writes, batch.len());
        add(&self.counts.syncs, usize::from(sync));
        self.counts.synced.notify_one();
        Ok(())
    }

    fn sync(&self) -> Result<(), StoreError> {
        self.inner.sync()?;
        self.counts.syncs.fetch_add(1, Ordering::Relaxed);
        self.counts.synced.notify_one();
        Ok(())
    }

    fn get(&self, family: Family, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
        self.counts.reads.fetch_add(1, Ordering::Relaxed);
        self.inner.get(family, key)
    }

    fn scan(
        &self,
        family: Family,
        from: &[u8],
        to: &[u8],
        each: &mut dyn FnMut(&[u8], &[u8]) -> bool,
    ) -> Result<(), StoreError> {
        self.counts.reads.fetch_add(1, Ordering::Relaxed);
        self.inner.scan(family, from, to, each)
    }

    fn quiet(&self) {
        self.inner.quiet();
    }

    fn last(&self, family: Family, from: &[u8], to: &[u8]) -> Result<Option<KeyValue>, StoreError> {
        self.counts.reads.fetch_add(1, Ordering::Relaxed);
        self.inner.last(family, from, to)
    }
}
