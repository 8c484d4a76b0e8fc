//! The store on RocksDB.

mod behind;
pub(crate) mod closed;
pub(crate) mod current;

use std::path::Path;

use behind::{reads_again, run};
use rocksdb::{
    BlockBasedIndexType, BlockBasedOptions, Cache, ColumnFamilyDescriptor, DB, DBCompressionType,
    DBRecoveryMode, IteratorMode, Options, ReadOptions, WriteBatch, WriteOptions,
    statistics::{StatsLevel, Ticker},
};

use crate::memory::within_memory;
use crate::store::{Batch, Each, Family, KeyValue, Store, StoreError, Written};

/// Memtables of all families together. It bounds the WAL, and so the restart; mail that leaves before it is full is
/// dropped at the flush and never reaches a table.
const WRITE_BUFFERS: usize = 128 << 20;

/// Blocks of tables kept in memory, all families together.
const BLOCK_CACHE: usize = 32 << 20;

/// Bodies from this size on go to blob files, which compaction does not rewrite.
const BLOB_FROM: u64 = 4 << 10;

/// Octets of a table that compaction writes. ext4 takes some 12 ms to remove one of 64 MiB, and a sync of the log waits for it.
const TABLE_SIZE: u64 = 16 << 20;

/// Octets of a blob file: no smaller, since of large messages there would be more files than may be open.
const BLOB_FILE_SIZE: u64 = 64 << 20;

/// Tables and blob files open at once, where the process may open many.
const MAX_OPEN_FILES: usize = 512;

/// Octets a second that flushes and compactions write at most: a twentieth of it, 204 MiB, where little is to be written.
const FLUSH_LIMIT: i64 = 4 << 30;

/// Octets are handed out to them so often: in portions of some 200 KiB.
const FLUSH_REFILL_MICROSECONDS: i64 = 1_000;

/// Of so many portions that both want a compaction gets one before a flush: RocksDB's default.
const FLUSH_FAIRNESS: i32 = 10;

/// Logs, locks, the manifest, files that are just written, and the queue's own.
const OTHER_FILES: usize = 32;

/// Descriptors that a store may use of a process's `limit`.
pub fn descriptors(limit: usize) -> usize {
    open_files(limit) + OTHER_FILES
}

/// A table is opened anew where too few may be open, which costs a few reads.
fn open_files(limit: usize) -> usize {
    MAX_OPEN_FILES.min(limit / 4)
}

fn max_open_files() -> i32 {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
    let limit = limit.map_or(usize::MAX, |limit| usize::try_from(limit).unwrap_or(usize::MAX));
    i32::try_from(open_files(limit)).unwrap_or(i32::MAX)
}

/// Octets that a write takes in RocksDB's batch beside key and value: a tag, a family and two lengths, as varints.
const WRITE_OVERHEAD: usize = 16;

/// See the module.
pub struct RocksStore {
    db: DB,
    /// What the database was opened with: its counters are read through them.
    options: Options,
}

impl RocksStore {
    /// Opens the store in `folder`, made if it is not there. Fails if another process has it open. Without `compactions` those
    /// tables alone are read that somebody asks for: a compaction that meets a damaged one ends all writing.
    pub fn open(folder: &Path, compactions: bool) -> Result<Self, StoreError> {
        // Buffers are there twice while they are written to tables.
        let cache = Cache::new_lru_cache(within_memory(BLOCK_CACHE));
        let buffers = within_memory(WRITE_BUFFERS);
        let families = Family::ALL.map(|family| {
            let mut options = family_options(family, &cache, buffers);
            options.set_disable_auto_compactions(!compactions);
            ColumnFamilyDescriptor::new(family.name(), options)
        });
        let mut options = database_options(buffers)?;
        // Counters alone: histograms and timers would cost a reading of the clock for each write.
        options.enable_statistics();
        options.set_statistics_level(StatsLevel::ExceptHistogramOrTimers);
        let db = DB::open_cf_descriptors(&options, folder, families)
            .map_err(|error| StoreError(explain(folder, error.as_ref())))?;
        Ok(Self { db, options })
    }

    fn family(&self, family: Family) -> Result<&rocksdb::ColumnFamily, StoreError> {
        self.db
            .cf_handle(family.name())
            .ok_or_else(|| StoreError(format!("no column family {}", family.name())))
    }
}

impl RocksStore {
    /// As [`Store::scan`], and goes on behind what is damaged; `met` hears of it.
    pub(crate) fn scan_past(
        &self,
        of: Family,
        from: &[u8],
        to: &[u8],
        each: Each<'_>,
        met: &dyn Fn(&StoreError),
    ) -> Result<(), StoreError> {
        let family = self.family(of)?;
        let mut from = from.to_vec();
        while *from < *to {
            let (at, error) = match run((&self.db, family), below(to), &from, each) {
                Ok(_) => return Ok(()),
                Err(early) => early,
            };
            if !error.is_corruption() {
                return Err(error);
            }
            met(&error);
            from = reads_again((&self.db, family), &|| below(to), &at, to);
        }
        Ok(())
    }
}

fn below(to: &[u8]) -> ReadOptions {
    let mut options = ReadOptions::default();
    options.set_iterate_upper_bound(to);
    options
}

fn explain(folder: &Path, error: &str) -> String {
    // RocksDB's words for a lock that is held: by another process, and by this one. "block" and files that may not be opened
    // have "lock" in their errors too.
    if error.contains("While lock file") || error.contains("lock hold by current process") {
        return format!(
            "{} is in use by another process; one relay at a time can have it open",
            folder.display()
        );
    }
    format!("{}: {error}", folder.display())
}

fn database_options(buffers: usize) -> Result<Options, StoreError> {
    // There is no setter for it. Who writes a table waits until what it wrote before is on the disk: else the disk falls behind, and a sync
    // of the log waits for all of it, which ext4 puts on the disk with the sizes of files.
    let mut options = Options::default()
        .get_options_from_string("strict_bytes_per_sync=true")
        .map_err(failed)?;
    options.create_if_missing(true);
    options.create_missing_column_families(true);
    options.set_db_write_buffer_size(buffers);
    options.set_max_total_wal_size(buffers as u64 + (64 << 20));
    // Overwriting old WALs saves the file system's journal a commit for each sync: three times faster on a busy disk.
    // It needs point-in-time recovery, which stops at the first bad record; the mark file tells if that was too early.
    options.set_recycle_log_file_num(4);
    options.set_wal_recovery_mode(DBRecoveryMode::PointInTime);
    // With several families, one flushed alone may outrun a WAL that a power cut shortens; RocksDB would not open that.
    options.set_atomic_flush(true);
    options.set_max_open_files(max_open_files());
    options.set_max_background_jobs(2);
    options.set_keep_log_file_num(2);
    options.set_max_log_file_size(4 << 20);
    options.set_stats_dump_period_sec(0);
    // Tables and blobs go to the disk as they are written: at the end of a flush all at once they would hold up the log's syncs.
    options.set_bytes_per_sync(256 << 10);
    // At the disk's full speed a flush made each sync of the log wait some 5 ms for what it had just written, a tenth of a second long. It begins at
    // a twentieth of the limit; where it has work for nine tenths of the time or more RocksDB raises that by a twentieth after each
    // hundred refills, so that a flush never lets more come in than it takes away.
    options.set_auto_tuned_ratelimiter(FLUSH_LIMIT, FLUSH_REFILL_MICROSECONDS, FLUSH_FAIRNESS);
    Ok(options)
}

fn family_options(family: Family, cache: &Cache, buffers: usize) -> Options {
    let mut options = Options::default();
    let mut blocks = BlockBasedOptions::default();
    blocks.set_block_cache(cache);
    blocks.set_cache_index_and_filter_blocks(true);
    blocks.set_bloom_filter(10.0, false);
    // In parts: of millions of messages a table's whole index is half a MiB and more, which a read would load to look at one entry of it, and
    // push all else out of the cache.
    blocks.set_index_type(BlockBasedIndexType::TwoLevelIndexSearch);
    blocks.set_partition_filters(true);
    blocks.set_pin_top_level_index_and_filter(true);
    blocks.set_format_version(6);
    options.set_block_based_table_factory(&blocks);
    options.set_compression_type(DBCompressionType::Lz4);
    // The limit for all families together decides when to flush.
    options.set_write_buffer_size(buffers);
    options.set_target_file_size_base(TABLE_SIZE);
    options.set_blob_file_size(BLOB_FILE_SIZE);
    if family == Family::Due {
        // Each sorted run costs every look at what is due 2 to 5 µs, and there is one for each flush until they are merged. Its records are small: merged
        // twice as often they add little to what is written.
        options.set_level_zero_file_num_compaction_trigger(2);
    }
    if family == Family::Body {
        options.set_enable_blob_files(true);
        options.set_min_blob_size(BLOB_FROM);
        options.set_enable_blob_gc(true);
        options.set_compression_type(DBCompressionType::None);
    }
    options
}

impl Store for RocksStore {
    fn quiet(&self) {
        self.db.cancel_all_background_work(true);
    }

    fn written(&self) -> Written {
        Written {
            wal: self.options.get_ticker_count(Ticker::WalFileBytes),
            // By what the flushing and compacting threads wrote, blob files included.
            flush: self.options.get_ticker_count(Ticker::FlushWriteBytes),
            compaction: self.options.get_ticker_count(Ticker::CompactWriteBytes),
        }
    }

    fn write(&self, batch: &Batch, sync: bool) -> Result<(), StoreError> {
        let mut writes = WriteBatch::with_capacity_bytes(batch.size() + WRITE_OVERHEAD * batch.len());
        for range in batch.ranges() {
            writes.delete_range_cf(self.family(range.family)?, &range.from, &range.to);
        }
        // Asked for by name once for each batch: a group writes to a family hundreds of times.
        let mut handles = [None; Family::ALL.len()];
        for write in batch.writes() {
            let handle = &mut handles[write.family as usize];
            let family = match *handle {
                Some(family) => family,
                None => *handle.insert(self.family(write.family)?),
            };
            match write.value {
                Some(value) => writes.put_cf(family, write.key, value),
                None => writes.delete_cf(family, write.key),
            }
        }
        let mut options = WriteOptions::default();
        options.set_sync(sync);
        self.db.write_opt(writes, &options).map_err(failed)
    }

    fn sync(&self) -> Result<(), StoreError> {
        self.db.flush_wal(true).map_err(failed)
    }

    fn reclaim(&self, family: Family, from: &[u8], to: &[u8]) -> Result<(), StoreError> {
        // Tables that hold nothing else are removed as they are.
        self.db
            .delete_file_in_range_cf(self.family(family)?, from, to)
            .map_err(failed)
    }

    fn get(&self, family: Family, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
        self.db.get_cf(self.family(family)?, key).map_err(failed)
    }

    fn scan(
        &self,
        family: Family,
        from: &[u8],
        to: &[u8],
        each: &mut dyn FnMut(&[u8], &[u8]) -> bool,
    ) -> Result<(), StoreError> {
        if from >= to {
            return Ok(());
        }
        let done = run((&self.db, self.family(family)?), below(to), from, each);
        done.map(drop).map_err(|(_, error)| error)
    }

    fn last(&self, family: Family, from: &[u8], to: &[u8]) -> Result<Option<KeyValue>, StoreError> {
        if from >= to {
            return Ok(None);
        }
        let mut options = ReadOptions::default();
        options.set_iterate_lower_bound(from);
        options.set_iterate_upper_bound(to);
        match self
            .db
            .iterator_cf_opt(self.family(family)?, options, IteratorMode::End)
            .next()
        {
            Some(entry) => entry
                .map(|(key, value)| Some((key.into_vec(), value.into_vec())))
                .map_err(failed),
            None => Ok(None),
        }
    }
}

fn failed(error: rocksdb::Error) -> StoreError {
    StoreError(error.to_string())
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn what_is_written_is_counted() {
        let folder = tempfile::tempdir().unwrap();
        let store = RocksStore::open(folder.path(), true).unwrap();
        assert_eq!(store.written().flush, 0);
        let mut batch = Batch::default();
        batch.put(Family::Body, b"key", vec![7; 1 << 20]);
        store.write(&batch, true).unwrap();
        let wal = store.written().wal;
        // The octets, and a little around them.
        assert!((1 << 20..(1 << 20) + 4096).contains(&wal), "{wal}");
        store.db.flush_cf(store.family(Family::Body).unwrap()).unwrap();
        let Written {
            wal: after, flush, ..
        } = store.written();
        assert!(after < wal + 4096, "{after}");
        assert!(
            (1 << 20..(1 << 20) + 65_536).contains(&flush),
            "the blob file too: {flush}"
        );
    }

    /// Options that came in as text, and those set beside them, are what RocksDB says it runs with.
    #[test]
    fn files_are_small_and_written_no_faster_than_the_disk_takes() {
        let folder = tempfile::tempdir().unwrap();
        let _store = RocksStore::open(folder.path(), true).unwrap();
        let of_options = |entry: &fs::DirEntry| entry.file_name().to_string_lossy().starts_with("OPTIONS-");
        let mut entries = fs::read_dir(folder.path()).unwrap().map(Result::unwrap);
        let text = fs::read_to_string(entries.find(of_options).unwrap().path()).unwrap();
        let times = |line: &str| text.lines().filter(|text| text.trim() == line).count();
        for line in [
            "strict_bytes_per_sync=true",
            "bytes_per_sync=262144",
            "atomic_flush=true",
        ] {
            assert_eq!(times(line), 1, "{line}: {text}");
        }
        for line in ["target_file_size_base=16777216", "blob_file_size=67108864"] {
            assert!(times(line) >= Family::ALL.len(), "{line}: {text}");
        }
    }

    /// A look at what is due goes through each of its files that flushes have left. No compaction runs here, so that what is told
    /// does not depend on when one would be done.
    #[test]
    fn what_is_due_is_merged_at_two_files_and_all_else_at_four() {
        let folder = tempfile::tempdir().unwrap();
        let store = RocksStore::open(folder.path(), false).unwrap();
        let told = |family, of: &str| {
            let family = store.family(family).unwrap();
            store.db.property_int_value_cf(family, of).unwrap().unwrap()
        };
        for family in Family::ALL {
            let merged_at = if family == Family::Due { 2 } else { 4 };
            for count in 1..=4 {
                let mut batch = Batch::default();
                batch.put(family, b"key", vec![count; 100]);
                store.write(&batch, true).unwrap();
                store.db.flush_cf(store.family(family).unwrap()).unwrap();
                assert_eq!(
                    told(family, "rocksdb.num-files-at-level0"),
                    u64::from(count),
                    "{family:?}"
                );
                let waiting = told(family, "rocksdb.estimate-pending-compaction-bytes");
                assert_eq!(
                    waiting > 0,
                    count >= merged_at,
                    "{family:?}: {count} files, {waiting} octets to merge"
                );
            }
        }
    }

    #[test]
    fn only_a_held_lock_is_called_one() {
        let told = |error| explain(Path::new("/q"), error);
        for held in [
            "IO error: While lock file: /q/LOCK: Resource temporarily unavailable",
            "IO error: lock hold by current process, acquire time 1 acquiring thread 2: /q/LOCK: No locks available",
        ] {
            assert!(told(held).contains("in use by another process"), "{held}");
        }
        for other in [
            "Corruption: block checksum mismatch: stored = 1, computed = 2",
            "IO error: While open a file for lock: /q/LOCK: Permission denied",
        ] {
            assert_eq!(told(other), format!("/q: {other}"));
        }
    }
}
