//! The seam to what keeps the queue: an ordered map in families, with atomic batches and a sync.
//!
//! [`MemoryStore`] is the model; [`crate::rocks::RocksStore`] is what runs. One contract suite holds for both.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use parking_lot::Mutex;
use rustix::io::Errno;

use crate::records::{Record, append, seal};

/// The key families, a RocksDB column family each. What the keys and records look like stands in [`crate::keys`] and
/// [`crate::records`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(usize)]
pub enum Family {
    /// Message bodies in chunks.
    Body,
    /// The fixed part of a message.
    Envelope,
    /// What changes of a message: each unit's state, and the number of open units.
    State,
    /// Units by queue and due time.
    Due,
    /// Units by the time they expire.
    Deadline,
    /// Bodies still coming in, to be swept at start.
    Upload,
    /// Directory, records and catalogue of queues.
    Queues,
    /// The journal.
    Event,
    /// Queues set to rest by an operator.
    Suspension,
    /// Destination domains and lanes that rest by themselves.
    Hold,
    /// Keys of submissions already taken in.
    Idempotency,
    /// Recipients that get nothing more.
    Suppression,
    /// Format version, name of the store, counters.
    Meta,
    /// Units whose senders want to hear of a delay, by the time they came in.
    Notice,
    /// Units and records that can't be worked with.
    Aside,
    /// What limits by the hour and the day have counted.
    Count,
}

impl Family {
    /// All of them, in the order of their numbers.
    pub const ALL: [Self; 16] = [
        Self::Body,
        Self::Envelope,
        Self::State,
        Self::Due,
        Self::Deadline,
        Self::Upload,
        Self::Queues,
        Self::Event,
        Self::Suspension,
        Self::Hold,
        Self::Idempotency,
        Self::Suppression,
        Self::Meta,
        Self::Notice,
        Self::Aside,
        Self::Count,
    ];

    /// The family of this name.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|family| family.name() == name)
    }

    /// The name on disk; never changed.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Body => "body",
            Self::Envelope => "envelope",
            Self::State => "state",
            Self::Due => "due",
            Self::Deadline => "deadline",
            Self::Upload => "upload",
            Self::Queues => "queues",
            Self::Event => "event",
            Self::Suspension => "suspension",
            Self::Hold => "hold",
            Self::Idempotency => "idempotency",
            Self::Suppression => "suppression",
            Self::Meta => "meta",
            Self::Notice => "notice",
            Self::Aside => "aside",
            Self::Count => "count",
        }
    }
}

/// The store did not do what was asked: the disk, or RocksDB, failed.
#[derive(Clone, Debug, thiserror::Error)]
#[error("the store failed: {0}")]
pub struct StoreError(pub String);

impl StoreError {
    /// Whether what is read is damaged: a block does not verify, the disk can't read it, or its file is gone.
    pub fn is_corruption(&self) -> bool {
        // Where it did not open, its folder's name stands before.
        let is_a = |kind| self.0.starts_with(kind) || self.0.contains(&format!(": {kind}"));
        is_a("Corruption: ") || is_a("IO error: ") && self.is_unread()
    }

    /// By RocksDB's words: what it asked for, of which file, and the system's answer. Descriptors or memory that ran out say nothing
    /// of what is on the disk, nor does a write that failed.
    fn is_unread(&self) -> bool {
        let reads = [
            "While pread offset ",
            "While open a file for random read: ",
            "while stat a file for size: ",
        ];
        let Some((file, answer)) = self.0.rsplit_once(": ") else {
            return false;
        };
        let is_data = file.ends_with(".sst") || file.ends_with(".blob");
        let is_for_good = |errno: &Errno| io::Error::from(*errno).to_string().starts_with(answer);
        is_data && reads.iter().any(|read| file.contains(read)) && UNREAD.iter().any(is_for_good)
    }
}

/// What a disk and its file system answer that can't read something, or no longer have it: ext4 and XFS where their own checksums don't
/// fit, block devices where the medium's or the transfer's don't.
const UNREAD: [Errno; 7] = [
    Errno::IO,
    Errno::NOENT,
    Errno::BADMSG,
    Errno::UCLEAN,
    Errno::NODATA,
    Errno::REMOTEIO,
    Errno::ILSEQ,
];

/// Octets of keys and small values that a [`Batch`] keeps room for: a group of some hundred messages.
const KEPT_ROOM: usize = 256 << 10;

/// Writes that become visible together, and durable together if written with `sync`. Later ones win over earlier ones.
///
/// Keys and small values lie one behind the other in one buffer: a message is some fifteen of them, and an allocation for each
/// would cost as much as encoding them.
#[derive(Clone, Debug, Default)]
pub struct Batch {
    ranges: Vec<KeyRange>,
    octets: Vec<u8>,
    writes: Vec<Place>,
    /// Octets of values that are shared, and of ranges.
    shared: usize,
}

/// Where the parts of one write are.
#[derive(Clone, Debug)]
struct Place {
    family: Family,
    key: Range<usize>,
    value: Value,
}

#[derive(Clone, Debug)]
enum Value {
    Gone,
    Own(Range<usize>),
    Shared(Bytes),
}

/// Keys of `from..to` that a [`Batch`] removes.
#[derive(Clone, Debug)]
pub struct KeyRange {
    /// Where.
    pub family: Family,
    /// The first key.
    pub from: Vec<u8>,
    /// Behind the last one.
    pub to: Vec<u8>,
}

/// One write of a [`Batch`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Write<'a> {
    /// Where.
    pub family: Family,
    /// Which key.
    pub key: &'a [u8],
    /// The new value; `None` removes the key.
    pub value: Option<&'a [u8]>,
}

impl Batch {
    /// Sets a key. `value` is shared, not copied.
    pub fn put(&mut self, family: Family, key: &[u8], value: impl Into<Bytes>) {
        let value = value.into();
        self.shared += value.len();
        self.push(family, key, |_| Value::Shared(value));
    }

    /// Sets a key to a copy of `value`.
    pub fn put_copy(&mut self, family: Family, key: &[u8], value: &[u8]) {
        self.own(family, key, |octets| octets.extend_from_slice(value));
    }

    /// Sets a key to a record.
    pub fn put_record(&mut self, family: Family, key: &[u8], record: &impl Record) {
        self.own(family, key, |octets| append(record, octets));
    }

    /// Sets a key to a mere number, with its checksum behind it.
    pub fn put_sealed(&mut self, family: Family, key: &[u8], number: &[u8]) {
        self.own(family, key, |octets| seal(number, octets));
    }

    /// Removes a key; one that is not there is no error.
    pub fn delete(&mut self, family: Family, key: &[u8]) {
        self.push(family, key, |_| Value::Gone);
    }

    /// Sets a key to what `append` puts behind the octets there are.
    fn own(&mut self, family: Family, key: &[u8], append: impl FnOnce(&mut Vec<u8>)) {
        self.push(family, key, |octets| {
            let begin = octets.len();
            append(octets);
            Value::Own(begin..octets.len())
        });
    }

    fn push(&mut self, family: Family, key: &[u8], value: impl FnOnce(&mut Vec<u8>) -> Value) {
        let begin = self.octets.len();
        self.octets.extend_from_slice(key);
        let key = begin..self.octets.len();
        let value = value(&mut self.octets);
        self.writes.push(Place { family, key, value });
    }

    /// Removes all keys of `from..to`, before anything else of the batch is written.
    pub fn delete_range(&mut self, family: Family, from: &[u8], to: &[u8]) {
        self.shared += from.len() + to.len();
        self.ranges.push(KeyRange {
            family,
            from: from.to_vec(),
            to: to.to_vec(),
        });
    }

    /// The ranges to be removed.
    pub fn ranges(&self) -> &[KeyRange] {
        &self.ranges
    }

    /// The writes, in order.
    pub fn writes(&self) -> impl Iterator<Item = Write<'_>> {
        self.writes.iter().map(|place| Write {
            family: place.family,
            key: &self.octets[place.key.clone()],
            value: match &place.value {
                Value::Gone => None,
                Value::Own(at) => Some(&self.octets[at.clone()]),
                Value::Shared(value) => Some(value),
            },
        })
    }

    /// Empty again, with the room it had; but for what a large group took.
    pub fn clear(&mut self) {
        self.octets.clear();
        self.octets.shrink_to(KEPT_ROOM);
        self.writes.clear();
        self.ranges.clear();
        self.shared = 0;
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.writes.len()
    }

    /// Octets of all keys and values.
    pub fn size(&self) -> usize {
        self.octets.len() + self.shared
    }

    /// Octets of keys and values that lie in its own buffer: those that were copied there.
    pub fn copied(&self) -> usize {
        self.octets.len()
    }

    /// Nothing to write.
    pub fn is_empty(&self) -> bool {
        self.writes.is_empty() && self.ranges.is_empty()
    }
}

/// Is handed a key and its value, and says whether it wants more.
pub type Each<'a> = &'a mut dyn FnMut(&[u8], &[u8]) -> bool;

/// An ordered map in families. Keys order by their octets.
pub trait Store: Send + Sync + 'static {
    /// Writes a batch, all or nothing. With `sync`, it returns only when the batch, and all written before it, will
    /// outlive a power cut.
    fn write(&self, batch: &Batch, sync: bool) -> Result<(), StoreError>;

    /// Returns only when all that was written before will outlive a power cut. Others may write meanwhile.
    fn sync(&self) -> Result<(), StoreError>;

    /// A key's value.
    fn get(&self, family: Family, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError>;

    /// Hands keys of `from..to` to `each` in order, from one moment's view, until it says false or they end.
    fn scan(&self, family: Family, from: &[u8], to: &[u8], each: Each<'_>) -> Result<(), StoreError>;

    /// The same, and goes on behind what is damaged: for whoever serves what reads, and has nobody wait for what doesn't. It is noted as
    /// any other damage.
    fn scan_past(&self, family: Family, from: &[u8], to: &[u8], each: Each<'_>) -> Result<(), StoreError> {
        self.scan(family, from, to, each)
    }

    /// Gives back the space of keys of `from..to`, all of which have been removed, as far as that costs nothing.
    fn reclaim(&self, _family: Family, _from: &[u8], _to: &[u8]) -> Result<(), StoreError> {
        Ok(())
    }

    /// Ends whatever the store does in the background; nothing is written afterwards.
    fn quiet(&self) {}

    /// Octets written to files since the store was opened; none where there are no files.
    fn written(&self) -> Written {
        Written::default()
    }

    /// The last key below `to` and at or above `from`.
    fn last(&self, family: Family, from: &[u8], to: &[u8]) -> Result<Option<KeyValue>, StoreError>;
}

/// Octets that a store has written to its files, by what for. What the file system adds is not among them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Written {
    /// The write-ahead log: each commit once.
    pub wal: u64,
    /// Memtables that were full: what had not left by then.
    pub flush: u64,
    /// Tables and blob files put together anew.
    pub compaction: u64,
}

impl std::ops::Add for Written {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self {
            wal: self.wal + other.wal,
            flush: self.flush + other.flush,
            compaction: self.compaction + other.compaction,
        }
    }
}

impl std::ops::Sub for Written {
    type Output = Self;

    fn sub(self, other: Self) -> Self {
        Self {
            wal: self.wal - other.wal,
            flush: self.flush - other.flush,
            compaction: self.compaction - other.compaction,
        }
    }
}

/// A key and what it holds.
pub type KeyValue = (Vec<u8>, Vec<u8>);

type Contents = BTreeMap<(Family, Vec<u8>), Vec<u8>>;

type Undo = ((Family, Vec<u8>), Option<Vec<u8>>);

/// The model: a map in memory that remembers what was synced, so that a power cut can be played.
#[derive(Clone, Default)]
pub struct MemoryStore {
    shared: Arc<Mutex<Shared>>,
}

#[derive(Default)]
struct Shared {
    now: Contents,
    /// Of each batch since the last sync, the keys it wrote, with what they held before.
    unsynced: Vec<Vec<Undo>>,
    failing: bool,
    syncs_failing: bool,
    /// So many reads are still to fail.
    failing_reads: u64,
    counted: Option<Counted>,
    recorded: Option<Vec<Recorded>>,
}

/// A batch as [`MemoryStore::recorded`] gives it.
#[derive(Clone, Debug)]
pub struct Recorded {
    /// What was written.
    pub batch: Batch,
    /// Whether it was synced, and all before it.
    pub synced: bool,
}

/// What reads cost, as far as a model can tell.
#[derive(Default)]
struct Counted {
    reads: u64,
    /// Deleted keys, which a read passes as it would in RocksDB until they are compacted.
    gone: BTreeSet<(Family, Vec<u8>)>,
}

impl Shared {
    fn read_fails(&mut self) -> Result<(), StoreError> {
        if self.failing_reads == 0 {
            return Ok(());
        }
        self.failing_reads -= 1;
        Err(StoreError("a read is set to fail".into()))
    }

    fn count(&mut self, reads: u64) {
        if let Some(counted) = &mut self.counted {
            counted.reads += reads;
        }
    }
}

impl MemoryStore {
    /// Empty.
    pub fn new() -> Self {
        Self::default()
    }

    /// Empty, and counts what is read: see [`Self::reads`].
    pub fn counting() -> Self {
        let store = Self::default();
        store.shared.lock().counted = Some(Counted::default());
        store
    }

    /// Empty, and keeps every batch that is written: see [`Self::recorded`].
    pub fn recording() -> Self {
        let store = Self::default();
        store.shared.lock().recorded = Some(Vec::new());
        store
    }

    /// From here on it keeps every batch that is written, too.
    pub fn record(&self) {
        self.shared.lock().recorded = Some(Vec::new());
    }

    /// The batches written since the last call, in order; of one whose sync failed too, which is there all the same.
    pub fn recorded(&self) -> Vec<Recorded> {
        let mut shared = self.shared.lock();
        shared.recorded.as_mut().map(std::mem::take).unwrap_or_default()
    }

    /// Keys read since the last call: each value asked for, each key come by, deleted ones too.
    pub fn reads(&self) -> u64 {
        let mut shared = self.shared.lock();
        shared
            .counted
            .as_mut()
            .map_or(0, |counted| std::mem::take(&mut counted.reads))
    }

    /// Deleted keys cost reads no more, as after a compaction.
    pub fn compact(&self) {
        if let Some(counted) = &mut self.shared.lock().counted {
            counted.gone.clear();
        }
    }

    /// Batches written since the last sync.
    pub fn unsynced(&self) -> usize {
        self.shared.lock().unsynced.len()
    }

    /// What a power cut leaves: all that was synced, and the first `kept` of the batches after it. The disk may have had them written already;
    /// a log that is read up to its first gap leaves none out between two that it has.
    pub fn cut_power(&self, kept: usize) -> Self {
        let shared = self.shared.lock();
        let mut left = shared.now.clone();
        let lost = shared.unsynced.get(kept..).unwrap_or_default();
        for (key, before) in lost.iter().flatten().rev() {
            match before {
                Some(value) => left.insert(key.clone(), value.clone()),
                None => left.remove(key),
            };
        }
        Self {
            shared: Arc::new(Mutex::new(Shared {
                now: left,
                recorded: shared.recorded.as_ref().map(|_| Vec::new()),
                ..Shared::default()
            })),
        }
    }

    /// From here on every write fails, or none does.
    pub fn set_failing(&self, failing: bool) {
        self.shared.lock().failing = failing;
    }

    /// From here on every sync fails, or none does. What was written is there, until a power cut takes it away.
    pub fn set_syncs_failing(&self, failing: bool) {
        self.shared.lock().syncs_failing = failing;
    }

    /// The next so many reads fail.
    pub fn fail_reads(&self, count: u64) {
        self.shared.lock().failing_reads = count;
    }

    /// Everything, for comparisons.
    pub fn contents(&self) -> Vec<(Family, Vec<u8>, Vec<u8>)> {
        let shared = self.shared.lock();
        shared
            .now
            .iter()
            .map(|((family, key), value)| (*family, key.clone(), value.clone()))
            .collect()
    }

    /// Families that hold anything.
    pub fn families(&self) -> BTreeSet<Family> {
        self.shared.lock().now.keys().map(|(family, _)| *family).collect()
    }
}

impl Store for MemoryStore {
    fn write(&self, batch: &Batch, sync: bool) -> Result<(), StoreError> {
        let mut shared = self.shared.lock();
        if shared.failing {
            return Err(StoreError("the disk is set to fail".into()));
        }
        let mut undo = Vec::with_capacity(batch.len());
        for range in batch.ranges() {
            let within = (range.family, range.from.clone())..(range.family, range.to.clone());
            let keys: Vec<_> = match range.from < range.to {
                true => shared.now.range(within).map(|(key, _)| key.clone()).collect(),
                false => Vec::new(),
            };
            for key in keys {
                let before = shared.now.remove(&key);
                undo.push((key, before));
            }
        }
        for write in batch.writes() {
            let key = (write.family, write.key.to_vec());
            let before = match write.value {
                Some(value) => shared.now.insert(key.clone(), value.to_vec()),
                None => shared.now.remove(&key),
            };
            if let Some(counted) = &mut shared.counted {
                match write.value {
                    Some(_) => drop(counted.gone.remove(&key)),
                    None if before.is_some() => drop(counted.gone.insert(key.clone())),
                    None => {}
                }
            }
            undo.push((key, before));
        }
        shared.unsynced.push(undo);
        let fails = sync && shared.syncs_failing;
        if let Some(recorded) = &mut shared.recorded {
            recorded.push(Recorded {
                batch: batch.clone(),
                synced: sync && !fails,
            });
        }
        if fails {
            return Err(StoreError("a sync is set to fail".into()));
        }
        if sync {
            shared.unsynced.clear();
        }
        Ok(())
    }

    fn sync(&self) -> Result<(), StoreError> {
        let mut shared = self.shared.lock();
        if shared.failing || shared.syncs_failing {
            return Err(StoreError("a sync is set to fail".into()));
        }
        shared.unsynced.clear();
        for recorded in shared.recorded.iter_mut().flatten() {
            recorded.synced = true;
        }
        Ok(())
    }

    fn get(&self, family: Family, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
        let mut shared = self.shared.lock();
        shared.read_fails()?;
        shared.count(1);
        Ok(shared.now.get(&(family, key.to_vec())).cloned())
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
        let mut shared = self.shared.lock();
        shared.read_fails()?;
        let (mut reads, mut end) = (0, to.to_vec());
        for ((_, key), value) in shared.now.range((family, from.to_vec())..(family, to.to_vec())) {
            reads += 1;
            if !each(key, value) {
                end.clone_from(key);
                break;
            }
        }
        let passed = |counted: &Counted| counted.gone.range((family, from.to_vec())..(family, end)).count();
        let passed = shared.counted.as_ref().map_or(0, passed) as u64;
        shared.count(reads + passed);
        Ok(())
    }

    fn last(&self, family: Family, from: &[u8], to: &[u8]) -> Result<Option<KeyValue>, StoreError> {
        if from >= to {
            return Ok(None);
        }
        let mut shared = self.shared.lock();
        shared.read_fails()?;
        let found = shared
            .now
            .range((family, from.to_vec())..(family, to.to_vec()))
            .next_back();
        Ok(found.map(|((_, key), value)| (key.clone(), value.clone())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_disk_can_not_read_is_damaged_and_what_fails_otherwise_is_not() {
        let is_damage = |text: &str| StoreError(text.to_owned()).is_corruption();
        for damage in [
            "Corruption: block checksum mismatch: stored = 1, computed = 2",
            "/q/store: Corruption: Can't access /000012.sst: IO error: No such file or directory",
            "IO error: While pread offset 0 len 4096: /q/store/000012.sst: Input/output error",
            "IO error: While pread offset 0 len 4096: /q/store/000012.blob: Structure needs cleaning",
            "IO error: No such file or directory: While open a file for random read: /q/store/000012.blob: No such file or directory",
            "IO error: No such file or directory: while stat a file for size: /q/store/000012.blob: No such file or directory",
            "/q/store: IO error: While open a file for random read: /q/store/000012.sst: Input/output error",
        ] {
            assert!(is_damage(damage), "{damage}");
        }
        for failure in [
            "IO error: While open a file for random read: /q/store/000012.sst: Too many open files",
            "IO error: While open a file for random read: /q/store/000012.sst: Permission denied",
            "IO error: While pread offset 0 len 4096: /q/store/000012.sst: Cannot allocate memory",
            "IO error: While appending to file: /q/store/000012.sst: Input/output error",
            "IO error: While fdatasync: /q/store/000012.log: Input/output error",
            "IO error: While fsync: /q/store/000012.blob: Input/output error",
            "IO error: While open a file for appending: /q/store/000012.sst: Read-only file system",
            "IO error: No space left on device: While appending to file: /q/store/000012.sst: No space left on device",
            "IO error: While pread offset 0 len 4096: /q/store/MANIFEST-000004: Input/output error",
            "Input/output error",
            "it is closed after a failure",
        ] {
            assert!(!is_damage(failure), "{failure}");
        }
    }
}
