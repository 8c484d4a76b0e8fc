//! The shell around a [`Volume`]: a file system in user space.

use std::ffi::OsStr;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::Context as _;
use fuser::{
    BackgroundSession, BsdFileFlags, Config, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags,
    Generation, INodeNo, LockOwner, OpenFlags, RenameFlags, ReplyAttr, ReplyCreate, ReplyData,
    ReplyDirectory, ReplyEmpty, ReplyEntry, ReplyOpen, ReplyStatfs, ReplyWrite, Request, Session, TimeOrNow,
    WriteFlags,
};
use parking_lot::Mutex;
use rustix::io::Errno as Code;

use super::faults::{Asked, Faults};
use super::volume::{Inode, Kind, Op, PAGE, Volume};
use crate::relay::now;

/// Requests served at once: a slow sync must not stop writes.
const THREADS: usize = 4;
/// How long the kernel may remember names and sizes. Nothing changes them but through the kernel.
const REMEMBERED: Duration = Duration::from_secs(3600);
/// Octets that a log of operations may hold.
const MAX_LOG_BYTES: u64 = 3 << 30;

/// `fallocate`: the size stays.
const KEEP_SIZE: i32 = 1;
/// `fallocate`: the octets become zero and cost nothing.
const PUNCH_HOLE: i32 = 2;

/// An operation and when it came.
#[derive(Clone, Debug)]
pub(crate) struct Logged {
    /// Microseconds since 1970.
    pub(crate) at: u64,
    pub(crate) op: Op,
}

/// A disk; cloning shares it.
#[derive(Clone)]
pub(crate) struct Disk {
    shared: Arc<Shared>,
}

struct Shared {
    state: Mutex<State>,
    faults: Mutex<Faults>,
}

struct State {
    volume: Volume,
    /// Octets.
    capacity: u64,
    /// `None`: not kept.
    log: Option<Vec<Logged>>,
    logged_bytes: u64,
}

/// A disk in its place; unmounted when dropped.
pub(crate) struct Mounted {
    session: Option<BackgroundSession>,
}

impl Disk {
    /// With these files, room for so many octets, and a log of operations or without one.
    pub(crate) fn new(volume: Volume, capacity: u64, logs: bool) -> Self {
        let state = State {
            volume,
            capacity,
            log: logs.then(Vec::new),
            logged_bytes: 0,
        };
        let shared = Shared {
            state: Mutex::new(state),
            faults: Mutex::default(),
        };
        Self {
            shared: Arc::new(shared),
        }
    }

    /// Mounts it on a folder.
    pub(crate) fn mount(&self, on: &Path) -> anyhow::Result<Mounted> {
        let mut config = Config::default();
        config.n_threads = Some(THREADS);
        let session = Session::new(self.clone(), on, &config)
            .and_then(Session::spawn)
            .with_context(|| {
                format!(
                    "no file system can be mounted on {}: that takes the device /dev/fuse, and root or the program fusermount3",
                    on.display()
                )
            })?;
        Ok(Mounted {
            session: Some(session),
        })
    }

    /// How many operations it has been asked for.
    pub(crate) fn position(&self) -> usize {
        self.shared.state.lock().log.as_ref().map_or(0, Vec::len)
    }

    /// The log, which is empty then.
    pub(crate) fn take_log(&self) -> Vec<Logged> {
        let mut state = self.shared.state.lock();
        state.logged_bytes = 0;
        state.log.as_mut().map(std::mem::take).unwrap_or_default()
    }

    /// Octets that the log holds.
    pub(crate) fn logged_bytes(&self) -> u64 {
        self.shared.state.lock().logged_bytes
    }

    /// What it does wrong.
    pub(crate) fn faults<T>(&self, change: impl FnOnce(&mut Faults) -> T) -> T {
        change(&mut self.shared.faults.lock())
    }

    /// Room for so many octets from now on.
    pub(crate) fn set_capacity(&self, octets: u64) {
        self.shared.state.lock().capacity = octets;
    }

    /// Octets in use, and its capacity.
    pub(crate) fn space(&self) -> (u64, u64) {
        let state = self.shared.state.lock();
        (state.volume.used() * PAGE as u64, state.capacity)
    }

    fn ask(&self, asked: Asked, name: &str) -> Result<(), Errno> {
        let (delay, result) = self.shared.faults.lock().ask(asked, name);
        if !delay.is_zero() {
            std::thread::sleep(delay);
        }
        result.map_err(code)
    }

    fn name_of(&self, ino: u64) -> String {
        let state = self.shared.state.lock();
        state
            .volume
            .inode(ino)
            .map(|inode| inode.called.clone())
            .unwrap_or_default()
    }

    /// Does what is asked for, unless a fault or the space is against it, and logs it.
    fn change(&self, op: Op) -> Result<(), Errno> {
        let name = match &op {
            Op::Make { name, .. } | Op::Remove { name, .. } => name.clone(),
            Op::Rename { to, .. } => to.clone(),
            Op::Write { ino, .. }
            | Op::Resize { ino, .. }
            | Op::Allocate { ino, .. }
            | Op::Punch { ino, .. }
            | Op::Sync { ino }
            | Op::FailedSync { ino } => self.name_of(*ino),
        };
        let asked = match &op {
            Op::Make { .. } | Op::Remove { .. } | Op::Rename { .. } => Asked::Name,
            Op::Sync { ino } | Op::FailedSync { ino } => {
                let failed = Op::FailedSync { ino: *ino };
                // A sync covers what came before it, and not what comes while it takes its time.
                let (delay, result) = self.shared.faults.lock().ask(Asked::Sync, &name);
                let mut state = self.shared.state.lock();
                let done = match result {
                    Ok(()) => state.apply(op),
                    Err(error) => state.apply(failed).and(Err(error)),
                };
                drop(state);
                std::thread::sleep(delay);
                return done.map_err(code);
            }
            Op::Write { .. } | Op::Resize { .. } | Op::Allocate { .. } | Op::Punch { .. } => Asked::Write,
        };
        self.ask(asked, &name)?;
        self.shared.state.lock().apply(op).map_err(code)
    }

    /// Makes a file, folder or socket and tells of it.
    fn make(&self, folder: u64, name: &OsStr, kind: Kind, mode: u32) -> Result<FileAttr, Errno> {
        let ino = self.shared.state.lock().volume.new_ino();
        self.change(Op::Make {
            folder,
            name: text(name)?.to_owned(),
            ino,
            kind,
            mode: mode & 0o7777,
        })?;
        self.attributes(ino)
    }

    fn attributes(&self, ino: u64) -> Result<FileAttr, Errno> {
        let state = self.shared.state.lock();
        Ok(attributes(ino, state.volume.inode(ino).map_err(code)?))
    }

    fn lookup_name(&self, folder: INodeNo, name: &OsStr) -> Result<FileAttr, Errno> {
        let ino = self
            .shared
            .state
            .lock()
            .volume
            .lookup(folder.0, text(name)?)
            .map_err(code)?;
        self.attributes(ino)
    }

    fn read_octets(&self, ino: u64, offset: u64, length: u32) -> Result<Vec<u8>, Errno> {
        self.ask(Asked::Read, &self.name_of(ino))?;
        let state = self.shared.state.lock();
        let inode = state.volume.inode(ino).map_err(code)?;
        Ok(inode.content.read(offset, length as usize))
    }
}

impl State {
    fn apply(&mut self, op: Op) -> Result<(), Code> {
        let cost = self.volume.cost(&op)?;
        if cost > 0 && (self.volume.used() + cost) * PAGE as u64 > self.capacity {
            return Err(Code::NOSPC);
        }
        self.volume.apply(&op)?;
        if let Some(log) = &mut self.log {
            if let Op::Write { octets, .. } = &op {
                self.logged_bytes += octets.len() as u64;
                // Whoever logs is to end in time: see `powercut`.
                if self.logged_bytes > MAX_LOG_BYTES {
                    return Err(Code::NOSPC);
                }
            }
            log.push(Logged { at: now(), op });
        }
        Ok(())
    }
}

impl Mounted {
    /// Takes it from its place; fails while a file in it is open.
    pub(crate) fn unmount(mut self) -> io::Result<()> {
        match self.session.take() {
            Some(session) => session.umount_and_join(),
            None => Ok(()),
        }
    }
}

fn code(code: Code) -> Errno {
    Errno::from_i32(code.raw_os_error())
}

/// Names are text here.
fn text(name: &OsStr) -> Result<&str, Errno> {
    name.to_str().ok_or(Errno::EINVAL)
}

fn file_type(kind: Kind) -> FileType {
    match kind {
        Kind::File => FileType::RegularFile,
        Kind::Folder => FileType::Directory,
        Kind::Socket => FileType::Socket,
    }
}

fn attributes(ino: u64, inode: &Inode) -> FileAttr {
    let then: SystemTime = UNIX_EPOCH;
    FileAttr {
        ino: INodeNo(ino),
        size: inode.content.size(),
        blocks: inode.content.used() * (PAGE as u64 / 512),
        atime: then,
        mtime: then,
        ctime: then,
        crtime: then,
        kind: file_type(inode.kind),
        perm: (inode.mode & 0o7777) as u16,
        nlink: if inode.kind == Kind::Folder { 2 } else { 1 },
        uid: rustix::process::geteuid().as_raw(),
        gid: rustix::process::getegid().as_raw(),
        rdev: 0,
        blksize: PAGE as u32,
        flags: 0,
    }
}

fn answer(result: Result<(), Errno>, reply: ReplyEmpty) {
    match result {
        Ok(()) => reply.ok(),
        Err(error) => reply.error(error),
    }
}

fn enter(result: Result<FileAttr, Errno>, reply: ReplyEntry) {
    match result {
        Ok(attributes) => reply.entry(&REMEMBERED, &attributes, Generation(0)),
        Err(error) => reply.error(error),
    }
}

impl Filesystem for Disk {
    fn lookup(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        enter(self.lookup_name(parent, name), reply);
    }

    fn getattr(&self, _: &Request, ino: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        match self.attributes(ino.0) {
            Ok(attributes) => reply.attr(&REMEMBERED, &attributes),
            Err(error) => reply.error(error),
        }
    }

    fn setattr(
        &self,
        _: &Request,
        ino: INodeNo,
        mode: Option<u32>,
        _uid: Option<u32>,
        _gid: Option<u32>,
        size: Option<u64>,
        _atime: Option<TimeOrNow>,
        _mtime: Option<TimeOrNow>,
        _ctime: Option<SystemTime>,
        _fh: Option<FileHandle>,
        _crtime: Option<SystemTime>,
        _chgtime: Option<SystemTime>,
        _bkuptime: Option<SystemTime>,
        _flags: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let ino = ino.0;
        let resized = match size {
            Some(size) => self.change(Op::Resize { ino, size }),
            None => Ok(()),
        };
        if let (Some(mode), Ok(inode)) = (mode, self.shared.state.lock().volume.inode_mut(ino)) {
            inode.mode = mode;
        }
        match resized.and_then(|()| self.attributes(ino)) {
            Ok(attributes) => reply.attr(&REMEMBERED, &attributes),
            Err(error) => reply.error(error),
        }
    }

    fn mknod(
        &self,
        _: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        _rdev: u32,
        reply: ReplyEntry,
    ) {
        let kind = match rustix::fs::FileType::from_raw_mode(mode) {
            rustix::fs::FileType::RegularFile => Kind::File,
            rustix::fs::FileType::Socket => Kind::Socket,
            _ => return reply.error(Errno::EPERM),
        };
        enter(self.make(parent.0, name, kind, mode & !umask), reply);
    }

    fn mkdir(&self, _: &Request, parent: INodeNo, name: &OsStr, mode: u32, umask: u32, reply: ReplyEntry) {
        enter(self.make(parent.0, name, Kind::Folder, mode & !umask), reply);
    }

    fn unlink(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let removed = text(name).and_then(|name| {
            self.change(Op::Remove {
                folder: parent.0,
                name: name.to_owned(),
            })
        });
        answer(removed, reply);
    }

    fn rmdir(&self, request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        self.unlink(request, parent, name, reply);
    }

    fn rename(
        &self,
        _: &Request,
        parent: INodeNo,
        name: &OsStr,
        newparent: INodeNo,
        newname: &OsStr,
        flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        // The store renames within a folder, and so this has one thing less to get wrong.
        if parent != newparent {
            return reply.error(Errno::EXDEV);
        }
        if !flags.is_empty() {
            return reply.error(Errno::EINVAL);
        }
        let renamed = text(name).and_then(|from| {
            self.change(Op::Rename {
                folder: parent.0,
                from: from.to_owned(),
                to: text(newname)?.to_owned(),
            })
        });
        answer(renamed, reply);
    }

    fn open(&self, _: &Request, ino: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        match self.shared.state.lock().volume.opened(ino.0) {
            Ok(()) => reply.opened(FileHandle(0), FopenFlags::empty()),
            Err(error) => reply.error(code(error)),
        }
    }

    fn create(
        &self,
        _: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        _flags: i32,
        reply: ReplyCreate,
    ) {
        let made = self
            .make(parent.0, name, Kind::File, mode & !umask)
            .and_then(|attributes| {
                let mut state = self.shared.state.lock();
                state.volume.opened(attributes.ino.0).map_err(code)?;
                Ok(attributes)
            });
        match made {
            Ok(attributes) => {
                let (handle, flags) = (FileHandle(0), FopenFlags::empty());
                reply.created(&REMEMBERED, &attributes, Generation(0), handle, flags);
            }
            Err(error) => reply.error(error),
        }
    }

    fn read(
        &self,
        _: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        match self.read_octets(ino.0, offset, size) {
            Ok(octets) => reply.data(&octets),
            Err(error) => reply.error(error),
        }
    }

    fn write(
        &self,
        _: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        data: &[u8],
        _write_flags: WriteFlags,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let written = self.change(Op::Write {
            ino: ino.0,
            offset,
            octets: data.into(),
        });
        match written {
            Ok(()) => reply.written(data.len() as u32),
            Err(error) => reply.error(error),
        }
    }

    fn flush(&self, _: &Request, _: INodeNo, _: FileHandle, _: LockOwner, reply: ReplyEmpty) {
        reply.ok();
    }

    fn release(
        &self,
        _: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        _flush: bool,
        reply: ReplyEmpty,
    ) {
        self.shared.state.lock().volume.closed(ino.0);
        reply.ok();
    }

    // fdatasync too: the size is durable with it, and of times and modes nothing is kept.
    fn fsync(&self, _: &Request, ino: INodeNo, _: FileHandle, _datasync: bool, reply: ReplyEmpty) {
        answer(self.change(Op::Sync { ino: ino.0 }), reply);
    }

    fn fsyncdir(&self, _: &Request, ino: INodeNo, _: FileHandle, _datasync: bool, reply: ReplyEmpty) {
        answer(self.change(Op::Sync { ino: ino.0 }), reply);
    }

    fn readdir(&self, _: &Request, ino: INodeNo, _: FileHandle, offset: u64, mut reply: ReplyDirectory) {
        let state = self.shared.state.lock();
        let folder = match state.volume.inode(ino.0) {
            Ok(folder) => folder,
            Err(error) => return reply.error(code(error)),
        };
        let own = [(".", ino.0), ("..", ino.0)];
        let names = folder.names.iter().map(|(name, ino)| (name.as_str(), *ino));
        let all = (1u64..).zip(own.into_iter().chain(names));
        for (next, (name, ino)) in all.skip(usize::try_from(offset).unwrap_or(usize::MAX)) {
            let kind = state.volume.inode(ino).map_or(Kind::Folder, |inode| inode.kind);
            if reply.add(INodeNo(ino), next, file_type(kind), name) {
                break;
            }
        }
        reply.ok();
    }

    fn statfs(&self, _: &Request, _: INodeNo, reply: ReplyStatfs) {
        let (used, capacity) = self.space();
        let (blocks, free) = (
            capacity / PAGE as u64,
            capacity.saturating_sub(used) / PAGE as u64,
        );
        reply.statfs(
            blocks,
            free,
            free,
            1 << 20,
            1 << 20,
            PAGE as u32,
            255,
            PAGE as u32,
        );
    }

    fn fallocate(
        &self,
        _: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        length: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        let ino = ino.0;
        let op = match mode {
            0 | KEEP_SIZE => Op::Allocate {
                ino,
                offset,
                length,
                grow: mode == 0,
            },
            _ if mode == KEEP_SIZE | PUNCH_HOLE => Op::Punch { ino, offset, length },
            _ => return reply.error(Errno::EOPNOTSUPP),
        };
        answer(self.change(op), reply);
    }
}
