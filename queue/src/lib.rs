//! The durable queue: what is accepted is on disk before anyone is told so, and every recipient ends once.
//!
//! [`Queue`] is a handle on one store. Writes go through one committer, which gathers what is waiting into a group: one
//! batch, one sync, then all are answered (docs/architecture.md). Reads are short and go straight to the store.

mod adjustment;
mod aside;
mod closed;
mod committer;
mod corruption;
mod counts;
mod groups;
mod import;
mod index;
mod intake;
mod journal;
pub mod keys;
mod mark;
pub mod memory;
mod message;
mod names;
mod presence;
mod read;
pub mod records;
mod reopen;
pub mod rocks;
#[doc(hidden)]
pub mod sabotage;
pub mod schedule;
pub mod store;
pub mod stream;
mod suspension;
mod unsynced;
mod upload;
mod usage;

use std::borrow::Cow;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

pub use adjustment::{
    AdjustmentKey, AdjustmentKind, AdjustmentRecord, BY_FAILURE, BY_REPLY, MAX_ADJUSTMENTS, Refused,
};
pub use aside::{Aside, SetAside, SetAsideRecord};
use corruption::Corruption;

pub use closed::{Closed, Exported, FamilyCount, Problem, Stop, Verified};
pub use counts::{Counts, CountsRecord};
pub use groups::GroupError;
pub use import::{ImportError, Imported};
pub use index::{QueuePage, Totals};
pub use intake::{Pending, Status};
pub use journal::{Extent, Retention};
pub use message::{Accepted, Again, End, Fate, NewMessage, NewUnit, Settle, Settled, StillOpen};
pub use names::{HoldScope, QueueId, QueueName, RouteGroup, Scope, UnitKey};
pub use presence::PresenceRecord;
pub use read::{DeadlineKey, Message, Overdue, Unit};
pub use records::{
    AsideCause, AsideRecord, DamagedRecord, EnvelopeRecord, Event, EventKind, HoldRecord, Hop, Origin,
    QueueRecord, Signature, StateRecord, SuspensionRecord, TotalsRecord, Waiting,
};
pub use rocks::descriptors;
pub use schedule::Backoff;
pub use suspension::{MAX_SUSPENSIONS, Selector, suspension};
pub use upload::{Upload, Uploaded};
pub use usage::{Limit, Limits};

use aside::DamageCounts;
use bytes::Bytes;
use intake::Intake;
use intake::space::Space;
use mail_core::Timestamp;
use mark::Mark;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use reopen::{ReopenStore, Reopener};
use rocks::RocksStore;
use store::{Batch, Family, MemoryStore, Store, StoreError, Written};

/// The layout this program writes, and the newest it reads.
pub const FORMAT_VERSION: u16 = 4;

/// Bounds of a queue.
#[derive(Clone, Debug)]
pub struct Options {
    /// Below this much free space nothing is accepted.
    pub min_free_bytes: u64,
    /// How long an accept may wait for its group before it is withdrawn.
    pub commit_patience: Duration,
    /// How much may wait.
    pub limits: Limits,
}

/// What a configuration has that says nothing.
impl Default for Options {
    fn default() -> Self {
        Self {
            min_free_bytes: 512 << 20,
            commit_patience: Duration::from_secs(30),
            limits: Limits::NONE,
        }
    }
}

/// Why a store was not opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The folder, or RocksDB, does not do what it should.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A record that the queue can't start without does not read.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// The folder or the mark file can't be used.
    #[error("{path}: {cause}")]
    Io {
        /// Which one.
        path: String,
        /// Why.
        cause: std::io::Error,
    },
    /// Somebody else's.
    #[error("{path} holds other files ({example}) and no store: the queue needs a folder to itself")]
    NotAStore {
        /// The folder.
        path: String,
        /// One of the files.
        example: String,
    },
    /// Nothing to read.
    #[error("there is no store in {path}")]
    NoStore {
        /// The folder.
        path: String,
    },
    /// Made by a later version.
    #[error(
        "the store has format {found}, this program knows up to {FORMAT_VERSION}: run the version that made it, or newer"
    )]
    TooNew {
        /// Its version.
        found: u16,
    },
    /// Acknowledged mail is missing.
    #[error(
        "the store ends at group {store}, but group {mark} was synced: acknowledged mail is missing, so the store was damaged \
         or put back from an older copy. Keep a copy of the folder; bring the newest copy back, or, to go on without what is \
         missing, delete the file `mark` in it (docs/durability.md, Damage)"
    )]
    OlderThanMark {
        /// The last group in the store.
        store: u64,
        /// The last group known synced.
        mark: u64,
    },
    /// Acknowledged mail is missing, with the whole store it was in.
    #[error(
        "group {mark} was synced in this folder, but the store it belongs to is not here: was the right volume mounted? Bring \
         it back, or, to go on without what is missing, delete the file `mark`"
    )]
    NotItsMark {
        /// The last group known synced.
        mark: u64,
    },
}

impl OpenError {
    /// With what to do, where what is there does not verify.
    fn or_salvage(self) -> Self {
        match self {
            Self::Store(error) if error.is_corruption() => Self::Store(StoreError(format!(
                "{}. Keep a copy of the folder; what can be read of it can be put into a new store: `postrider queue export \
                 --salvage` (docs/durability.md, Damage)",
                error.0
            ))),
            error => error,
        }
    }
}

/// A read that did not succeed.
#[derive(Clone, Debug, thiserror::Error)]
pub enum ReadError {
    /// The disk, or RocksDB, failed.
    #[error(transparent)]
    Store(StoreError),
    /// A record does not verify, to us or to RocksDB. It is never used.
    #[error("damaged record in {family}, key {key}: {what}")]
    Damaged {
        /// Which family.
        family: &'static str,
        /// Its key, hexadecimal.
        key: String,
        /// What is wrong with it.
        what: Cow<'static, str>,
    },
}

/// What RocksDB finds damaged is so for whoever reads it, and no failure of the store: others go on.
impl From<StoreError> for ReadError {
    fn from(error: StoreError) -> Self {
        match error.is_corruption() {
            true => Self::unreadable("some family", &[], error),
            false => Self::Store(error),
        }
    }
}

impl ReadError {
    /// Whether what was asked for is damaged, and would be the next time too.
    pub fn is_damage(&self) -> bool {
        matches!(self, Self::Damaged { .. })
    }

    pub(crate) fn damaged(family: &'static str, key: &[u8], what: impl Into<Cow<'static, str>>) -> Self {
        Self::Damaged {
            family,
            key: key.iter().map(|octet| format!("{octet:02x}")).collect(),
            what: what.into(),
        }
    }

    /// Of a key that was asked for.
    pub(crate) fn unreadable(family: &'static str, key: &[u8], error: StoreError) -> Self {
        match error.is_corruption() {
            true => Self::damaged(family, key, error.0),
            false => Self::Store(error),
        }
    }
}

/// A write that was not kept.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CommitError {
    /// It waited too long and was taken back: nothing was written.
    #[error("the queue is too busy")]
    Withdrawn,
    /// Too little free space.
    #[error("too little free space for new mail")]
    Full,
    /// So much waits already.
    #[error("{0}")]
    Over(Limit),
    /// The store does not take writes.
    #[error("the store does not take writes: {0}")]
    Failing(String),
    /// A record that it needs does not verify. Nothing of it was written; what others asked for was.
    #[error("{0}")]
    Damaged(String),
    /// The claim is void: the unit was settled before.
    #[error("the unit is no longer due at that time")]
    Gone,
    /// What was uploaded belongs to another message.
    #[error("the upload is another message's")]
    OtherUpload,
    /// A message without units, with more than 65,534, or with two for one destination.
    #[error("a message needs 1 to 65,534 destination domains, each once")]
    Units,
}

/// A file in a folder where no store is; what a file system or Kubernetes puts at a volume's top does not count.
fn strangers(folder: &Path) -> std::io::Result<Option<String>> {
    if folder.join("store").exists() {
        return Ok(None);
    }
    for entry in std::fs::read_dir(folder)? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        let is_ours =
            ["mark", "ballast", "admin.sock", "lost+found", corruption::FILE].contains(&name.as_str());
        if !is_ours && !name.starts_with('.') {
            return Ok(Some(name));
        }
    }
    Ok(None)
}

/// A handle on the durable queue; cloning shares it.
#[derive(Clone)]
pub struct Queue {
    store: Arc<dyn Store>,
    intake: Arc<Intake>,
    /// Held while route groups are given numbers.
    groups: Arc<parking_lot::Mutex<()>>,
    damage: Arc<DamageCounts>,
}

impl Queue {
    /// Opens the store in `folder`, made if it is not there, and starts the committer.
    pub fn open(folder: &Path, options: &Options) -> Result<Self, OpenError> {
        Self::open_at(folder, options).map_err(OpenError::or_salvage)
    }

    fn open_at(folder: &Path, options: &Options) -> Result<Self, OpenError> {
        let failed = |cause| OpenError::Io {
            path: folder.display().to_string(),
            cause,
        };
        make_folder(folder).map_err(failed)?;
        sync_names(folder).map_err(failed)?;
        if let Some(example) = strangers(folder).map_err(failed)? {
            return Err(OpenError::NotAStore {
                path: folder.display().to_string(),
                example,
            });
        }
        let (store_folder, mark_file) = (folder.join("store"), folder.join("mark"));
        rocks::current::mend(&store_folder).map_err(failed)?;
        // RocksDB would make an empty store, beside which the missing one could not be put back.
        let synced = Mark::peek(&mark_file).map_err(failed)?;
        if synced > 0 && !store_folder.join("CURRENT").exists() {
            return Err(OpenError::NotItsMark { mark: synced });
        }
        let corruption = Arc::new(Corruption::open(folder).map_err(failed)?);
        let store = RocksStore::open(&store_folder, corruption.found().is_none())?;
        let store = Arc::new(ReopenStore::new(Arc::new(store), corruption.clone()));
        // Nothing is written into a store that has lost all it had.
        if synced > 0 && store.get(Family::Meta, keys::FORMAT)?.is_none() {
            return Err(OpenError::NotItsMark { mark: synced });
        }
        let name = prepare(&*store)?;
        let mark = Mark::open(&mark_file, name).map_err(failed)?;
        // The names of store and mark: a program that made them may have been killed before it got here.
        std::fs::File::open(folder)
            .and_then(|folder| folder.sync_all())
            .map_err(failed)?;
        if let Some(mark) = mark.of_another() {
            return Err(OpenError::NotItsMark { mark });
        }
        let group = committer::read_counters(&*store)?.group;
        if group < mark.group() && !sabotage::is_on("no-mark") {
            return Err(OpenError::OlderThanMark {
                store: group,
                mark: mark.group(),
            });
        }
        index(&*store)?;
        sweep(&*store)?;
        let damage = Arc::<DamageCounts>::default();
        let heal = Reopener {
            store: store.clone(),
            folder: folder.to_owned(),
            name,
            damage: damage.clone(),
            corruption: corruption.clone(),
        };
        let ballast = folder.join("ballast");
        let folder = folder.to_owned();
        let free = move || {
            rustix::fs::statvfs(&folder)
                .map(|stat| stat.f_bavail * stat.f_frsize)
                .unwrap_or(0)
        };
        let space = Space::new(Box::new(free), options.min_free_bytes, Some(ballast));
        let intake = Intake::threaded(
            store.clone(),
            damage.clone(),
            mark,
            space,
            Box::new(heal),
            corruption,
            options,
        )?;
        Ok(Self {
            store,
            intake: Arc::new(intake),
            groups: Arc::default(),
            damage,
        })
    }

    /// A queue on the model, each request committed at once on the caller's thread: for simulations and tests.
    pub fn in_memory(store: MemoryStore) -> Result<Self, OpenError> {
        Self::inline(Arc::new(store))
    }

    /// The same on any store. Nothing guards it: no mark, no look at free space, no way back after a failure.
    pub fn inline(store: Arc<dyn Store>) -> Result<Self, OpenError> {
        prepare(&*store)?;
        index(&*store)?;
        sweep(&*store)?;
        let damage = Arc::<DamageCounts>::default();
        Ok(Self {
            intake: Arc::new(Intake::inline(store.clone(), damage.clone())?),
            store,
            groups: Arc::default(),
            damage,
        })
    }

    /// Whether it is one of [`Self::in_memory`], whose users must not leave the order of things to other threads either.
    pub fn is_inline(&self) -> bool {
        self.intake.is_inline()
    }

    /// Takes new limits. What waits already stays, though it be more.
    pub fn set_limits(&self, limits: Limits) {
        self.intake.usage().limit(limits);
    }

    /// The limit that a tenant's message of so many octets, to one domain, would exceed, and is refused for.
    pub fn over_limit(&self, tenant: &Arc<str>, bytes: u64) -> Option<Limit> {
        self.intake.usage().over(tenant, bytes)
    }

    /// How much of the limits is used: the greater part of both; 0 where there are none.
    pub fn used(&self) -> f64 {
        self.intake.usage().ratio()
    }

    /// Keeps a message. Answered once it is on disk.
    pub async fn accept(&self, message: Arc<NewMessage>) -> Result<Accepted, CommitError> {
        self.intake.accept(message).await
    }

    /// Hands over what became of a unit. Waits for room in the intake only; [`Pending`] waits for the disk.
    pub async fn settle(&self, settle: Settle) -> Result<Pending, CommitError> {
        self.intake.settle(settle).await
    }

    /// The queue's owner has nothing to do for it before its first due time, or before `until` where that is later. May be
    /// lost when the committer is busy: the catalogue's key stays a lower bound.
    pub fn rest(&self, queue: QueueId, until: Option<Timestamp>) {
        self.intake.tell(committer::Request::Rest { queue, until });
    }

    /// Wakes a queue at its first due time, or at `now` where that is later, whatever it rests for. Waits for room.
    pub async fn wake(&self, queue: QueueId, now: Timestamp) -> Result<(), CommitError> {
        self.intake
            .say(committer::Request::Rest {
                queue,
                until: Some(now),
            })
            .await
    }

    /// The same where there is room; false where there is none.
    pub fn try_wake(&self, queue: QueueId, now: Timestamp) -> bool {
        self.intake.tell(committer::Request::Rest {
            queue,
            until: Some(now),
        })
    }

    /// Sets a destination to rest. May be lost when the committer is busy: it is tried sooner then.
    pub fn hold(&self, scope: HoldScope, record: HoldRecord) {
        self.intake.tell(committer::Request::Hold { scope, record });
    }

    /// Ends a rest. May be lost when the committer is busy: the destination is tried again when the rest is over.
    pub fn lift(&self, scope: HoldScope) {
        self.intake.tell(committer::Request::Lift { scope });
    }

    /// Nobody need be told of these delays any more. May be lost when the committer is busy: they are found again then.
    pub fn forget_notices(&self, notices: Vec<DeadlineKey>) {
        if !notices.is_empty() {
            self.intake.tell(committer::Request::Forget { notices });
        }
    }

    /// Whether it takes mail, and if not, why.
    pub fn status(&self) -> Status {
        self.intake.status()
    }

    /// Whether writes fail: [`Status::Failing`], for those who ask often.
    pub fn is_failing(&self) -> bool {
        self.intake.is_failing()
    }

    /// How often the store was brought back after writes had failed.
    pub fn reopened(&self) -> u64 {
        self.intake.reopened()
    }

    /// The number of the group last synced: how many there were since the store was made.
    pub fn groups(&self) -> u64 {
        self.intake.synced()
    }

    /// Octets free on the store's file system when it was looked at last, about a second ago, and how many there have to be
    /// for mail to be accepted. 0 and 0 of a queue in memory.
    pub fn space(&self) -> (u64, u64) {
        self.intake.space()
    }

    /// Octets written to the store's files since the queue was opened.
    pub fn written(&self) -> Written {
        self.store.written()
    }

    /// No flush and no compaction ends any more, and none begins, until the store is opened anew: figures of a relay that is killed while
    /// it flushes, with its WAL at its longest, are taken so. It takes mail until its second memtable is full, and then fails.
    #[doc(hidden)]
    pub fn hold_flushes(&self) {
        self.store.quiet();
    }

    /// Commits what is waiting and stops. Later requests are refused; blocks until the disk has it all.
    pub fn close(&self) {
        self.intake.close();
        self.store.quiet();
    }
}

/// Makes the index of queues where an older program has left none.
fn index(store: &dyn Store) -> Result<(), StoreError> {
    if index::prepare(store)? {
        tracing::info!("queues are indexed by tenant, stream and domain, and what waits is counted");
    }
    Ok(())
}

/// Deletes the bodies that were coming in when the program ended.
fn sweep(store: &dyn Store) -> Result<(), StoreError> {
    let swept = upload::sweep(store)?;
    if swept > 0 {
        tracing::info!(swept, "bodies that had not come in whole were deleted");
    }
    Ok(())
}

/// Makes the folder, and those it is in, where they are not there.
fn make_folder(folder: &Path) -> std::io::Result<()> {
    std::fs::create_dir_all(folder)
}

/// Has the folder's own name, and those of the folders it is in, outlive a power cut. Whoever made them may have been killed before
/// that, so it is done with each start; where nothing has changed it costs next to nothing.
fn sync_names(folder: &Path) -> std::io::Result<()> {
    use std::os::unix::fs::MetadataExt as _;
    let folder = folder.canonicalize()?;
    for (child, parent) in folder.ancestors().zip(folder.ancestors().skip(1)) {
        if child.metadata()?.dev() != parent.metadata()?.dev() {
            // What something is mounted on is nobody's to lose.
            break;
        }
        match std::fs::File::open(parent).and_then(|parent| parent.sync_all()) {
            // It may be let through and not read; its whole file system is synced instead.
            Err(error) if error.kind() == std::io::ErrorKind::PermissionDenied => {
                return Ok(rustix::fs::syncfs(std::fs::File::open(child)?)?);
            }
            // Where folders can't be synced, the file system has another way of keeping names.
            Err(error) if error.kind() == std::io::ErrorKind::InvalidInput => break,
            done => done?,
        }
    }
    Ok(())
}

/// Names an empty store, checks the version of any other, and makes it ours: an older program must not take the records we
/// are about to write for damaged ones. Returns the name.
fn prepare(store: &dyn Store) -> Result<[u8; 16], OpenError> {
    let damaged = |key| OpenError::Read(ReadError::damaged(Family::Meta.name(), key, "length"));
    if let Some(format) = store.get(Family::Meta, keys::FORMAT)? {
        let found = u16::from_be_bytes(format.try_into().map_err(|_| damaged(keys::FORMAT))?);
        if found > FORMAT_VERSION {
            return Err(OpenError::TooNew { found });
        }
        if found < FORMAT_VERSION {
            let mut batch = Batch::default();
            batch.put(Family::Meta, keys::FORMAT, format_version());
            store.write(&batch, true)?;
        }
        let name = store.get(Family::Meta, keys::STORE)?.unwrap_or_default();
        return name.try_into().map_err(|_| damaged(keys::STORE));
    }
    let name: [u8; 16] = StdRng::from_os_rng().random();
    let mut batch = Batch::default();
    batch.put(Family::Meta, keys::FORMAT, format_version());
    batch.put(Family::Meta, keys::STORE, Bytes::copy_from_slice(&name));
    store.write(&batch, true)?;
    Ok(name)
}

fn format_version() -> Bytes {
    Bytes::copy_from_slice(&FORMAT_VERSION.to_be_bytes())
}
