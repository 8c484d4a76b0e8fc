//! A tree of files in memory: what a program sees of a disk. Pure; nothing of it knows what is durable.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::path::Path;
use std::sync::Arc;

use rustix::io::Errno;

/// What the disk writes whole or not at all.
pub(crate) const PAGE: usize = 4096;
/// The folder at the top.
pub(crate) const ROOT: Ino = 1;

/// The number of a file or folder, never used again.
pub(crate) type Ino = u64;
type Octets = [u8; PAGE];

/// One thing done to a disk that a power cut may undo, and the one that says what it may not.
#[derive(Clone, Debug)]
pub(crate) enum Op {
    Make {
        folder: Ino,
        name: String,
        ino: Ino,
        kind: Kind,
        mode: u32,
    },
    /// Within one folder; takes the place of what has the name.
    Rename {
        folder: Ino,
        from: String,
        to: String,
    },
    Remove {
        folder: Ino,
        name: String,
    },
    Write {
        ino: Ino,
        offset: u64,
        octets: Arc<[u8]>,
    },
    Resize {
        ino: Ino,
        size: u64,
    },
    /// Space for later; the size grows with it where the program asked for that.
    Allocate {
        ino: Ino,
        offset: u64,
        length: u64,
        grow: bool,
    },
    /// These octets are to be zero, and cost nothing.
    Punch {
        ino: Ino,
        offset: u64,
        length: u64,
    },
    /// What was done to this file, or to the names in this folder, has to outlive a power cut.
    Sync {
        ino: Ino,
    },
    /// It was to outlive one, and the disk said no. What is written to this file by then never comes to be durable by itself: the
    /// kernel holds it for written, and a later sync says nothing of it.
    FailedSync {
        ino: Ino,
    },
}

/// What a name stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    File,
    Folder,
    Socket,
}

/// A file's octets. Pages that are not there are zero.
#[derive(Clone, Debug, Default)]
pub(crate) struct Content {
    pages: BTreeMap<u64, Arc<Octets>>,
    size: u64,
}

/// A file, a folder, or a socket's name.
#[derive(Clone, Debug)]
pub(crate) struct Inode {
    pub(crate) kind: Kind,
    pub(crate) mode: u32,
    pub(crate) content: Content,
    /// A folder's.
    pub(crate) names: BTreeMap<String, Ino>,
    /// The name it was last given, for faults that are about some files alone.
    pub(crate) called: String,
    /// Without a name it lives on while it is open.
    pub(crate) named: bool,
    pub(crate) open: u32,
}

/// See the module. Cloning shares the pages.
#[derive(Clone, Debug)]
pub(crate) struct Volume {
    inodes: HashMap<Ino, Inode>,
    next: Ino,
    /// Pages that cost space.
    used: u64,
}

impl Content {
    pub(crate) fn size(&self) -> u64 {
        self.size
    }

    /// Pages that cost space.
    pub(crate) fn used(&self) -> u64 {
        self.pages.len() as u64
    }

    pub(crate) fn page(&self, number: u64) -> Option<&Arc<Octets>> {
        self.pages.get(&number)
    }

    pub(crate) fn set_page(&mut self, number: u64, page: Option<Arc<Octets>>) {
        match page {
            Some(page) => drop(self.pages.insert(number, page)),
            None => drop(self.pages.remove(&number)),
        }
    }

    /// The octets from `offset` on, fewer at the end of the file.
    pub(crate) fn read(&self, offset: u64, length: usize) -> Vec<u8> {
        let end = self.size.min(offset.saturating_add(length as u64));
        let mut octets = Vec::with_capacity(length);
        for (number, range) in pages(offset, end) {
            match self.pages.get(&number) {
                Some(page) => octets.extend_from_slice(&page[range]),
                None => octets.resize(octets.len() + range.len(), 0),
            }
        }
        octets
    }

    pub(crate) fn write(&mut self, offset: u64, mut octets: &[u8]) {
        let end = offset + octets.len() as u64;
        for (number, range) in pages(offset, end) {
            let (now, rest) = octets.split_at(range.len());
            let page = self.pages.entry(number).or_insert_with(zeros);
            Arc::make_mut(page)[range].copy_from_slice(now);
            octets = rest;
        }
        self.size = self.size.max(end);
    }

    /// What lies behind the new end is gone, and zero if the file grows again.
    pub(crate) fn resize(&mut self, size: u64) {
        if size < self.size {
            self.pages.split_off(&size.div_ceil(PAGE as u64));
            let within = (size % PAGE as u64) as usize;
            if within > 0
                && let Some(page) = self.pages.get_mut(&(size / PAGE as u64))
            {
                Arc::make_mut(page)[within..].fill(0);
            }
        }
        self.size = size;
    }

    fn allocate(&mut self, offset: u64, length: u64, grow: bool) {
        let end = offset.saturating_add(length);
        for (number, _) in pages(offset, end) {
            self.pages.entry(number).or_insert_with(zeros);
        }
        if grow {
            self.size = self.size.max(end);
        }
    }

    pub(crate) fn punch(&mut self, offset: u64, length: u64) {
        let end = offset.saturating_add(length);
        for (number, range) in pages(offset, end) {
            if range.len() == PAGE {
                self.pages.remove(&number);
            } else if let Some(page) = self.pages.get_mut(&number) {
                Arc::make_mut(page)[range].fill(0);
            }
        }
    }
}

/// The one page that all zeros share.
fn zeros() -> Arc<Octets> {
    static ZEROS: std::sync::LazyLock<Arc<Octets>> = std::sync::LazyLock::new(|| Arc::new([0; PAGE]));
    ZEROS.clone()
}

/// The pages that the octets `from..to` lie in, and which of each.
pub(crate) fn pages(from: u64, to: u64) -> impl Iterator<Item = (u64, std::ops::Range<usize>)> {
    const LENGTH: u64 = PAGE as u64;
    let numbers = if from < to {
        from / LENGTH..(to - 1) / LENGTH + 1
    } else {
        0..0
    };
    numbers.map(move |number| {
        let begin = number * LENGTH;
        let within = |offset: u64| (offset.clamp(begin, begin + LENGTH) - begin) as usize;
        (number, within(from)..within(to))
    })
}

impl Inode {
    pub(crate) fn new(kind: Kind, mode: u32, called: &str) -> Self {
        Self {
            kind,
            mode,
            content: Content::default(),
            names: BTreeMap::new(),
            called: called.to_owned(),
            named: true,
            open: 0,
        }
    }
}

impl Volume {
    /// An empty folder.
    pub(crate) fn new() -> Self {
        Self {
            inodes: HashMap::from([(ROOT, Inode::new(Kind::Folder, 0o700, ""))]),
            next: ROOT + 1,
            used: 0,
        }
    }

    pub(crate) fn inode(&self, ino: Ino) -> Result<&Inode, Errno> {
        self.inodes.get(&ino).ok_or(Errno::NOENT)
    }

    pub(crate) fn inode_mut(&mut self, ino: Ino) -> Result<&mut Inode, Errno> {
        self.inodes.get_mut(&ino).ok_or(Errno::NOENT)
    }

    /// All files, folders and sockets, in no order.
    pub(crate) fn inodes(&self) -> impl Iterator<Item = (Ino, &Inode)> {
        self.inodes.iter().map(|(ino, inode)| (*ino, inode))
    }

    pub(crate) fn lookup(&self, folder: Ino, name: &str) -> Result<Ino, Errno> {
        let folder = self.inode(folder)?;
        if folder.kind != Kind::Folder {
            return Err(Errno::NOTDIR);
        }
        folder.names.get(name).copied().ok_or(Errno::NOENT)
    }

    /// Pages in use.
    pub(crate) fn used(&self) -> u64 {
        self.used
    }

    /// A number for what is to be made.
    pub(crate) fn new_ino(&mut self) -> Ino {
        self.next += 1;
        self.next - 1
    }

    /// Pages that an operation would add.
    pub(crate) fn cost(&self, op: &Op) -> Result<u64, Errno> {
        let (ino, from, length) = match op {
            Op::Write { ino, offset, octets } => (ino, *offset, octets.len() as u64),
            Op::Allocate {
                ino, offset, length, ..
            } => (ino, *offset, *length),
            _ => return Ok(0),
        };
        let content = &self.inode(*ino)?.content;
        let absent = pages(from, from.saturating_add(length)).filter(|(n, _)| content.page(*n).is_none());
        Ok(absent.count() as u64)
    }

    /// Does what is asked for, or nothing.
    pub(crate) fn apply(&mut self, op: &Op) -> Result<(), Errno> {
        match op {
            Op::Make {
                folder,
                name,
                ino,
                kind,
                mode,
            } => {
                if self.lookup(*folder, name).is_ok() {
                    return Err(Errno::EXIST);
                }
                self.inode_mut(*folder)?.names.insert(name.clone(), *ino);
                self.inodes.insert(*ino, Inode::new(*kind, *mode, name));
                self.next = self.next.max(ino + 1);
            }
            Op::Rename { folder, from, to } => {
                let ino = self.lookup(*folder, from)?;
                if from != to {
                    if self.lookup(*folder, to).is_ok() {
                        self.remove(*folder, to)?;
                    }
                    let names = &mut self.inode_mut(*folder)?.names;
                    names.remove(from);
                    names.insert(to.clone(), ino);
                    self.inode_mut(ino)?.called.clone_from(to);
                }
            }
            Op::Remove { folder, name } => self.remove(*folder, name)?,
            Op::Write { ino, offset, octets } => self.change(*ino, |file| file.write(*offset, octets))?,
            Op::Resize { ino, size } => self.change(*ino, |file| file.resize(*size))?,
            Op::Allocate {
                ino,
                offset,
                length,
                grow,
            } => self.change(*ino, |file| file.allocate(*offset, *length, *grow))?,
            Op::Punch { ino, offset, length } => self.change(*ino, |file| file.punch(*offset, *length))?,
            Op::Sync { ino } | Op::FailedSync { ino } => drop(self.inode(*ino)?),
        }
        Ok(())
    }

    fn change(&mut self, ino: Ino, change: impl FnOnce(&mut Content)) -> Result<(), Errno> {
        let content = &mut self.inodes.get_mut(&ino).ok_or(Errno::NOENT)?.content;
        let before = content.used();
        change(content);
        self.used = self.used - before + content.used();
        Ok(())
    }

    fn remove(&mut self, folder: Ino, name: &str) -> Result<(), Errno> {
        let ino = self.lookup(folder, name)?;
        if !self.inode(ino)?.names.is_empty() {
            return Err(Errno::NOTEMPTY);
        }
        self.inode_mut(folder)?.names.remove(name);
        self.inode_mut(ino)?.named = false;
        self.forget_if_gone(ino);
        Ok(())
    }

    pub(crate) fn opened(&mut self, ino: Ino) -> Result<(), Errno> {
        self.inode_mut(ino)?.open += 1;
        Ok(())
    }

    pub(crate) fn closed(&mut self, ino: Ino) {
        if let Ok(inode) = self.inode_mut(ino) {
            inode.open = inode.open.saturating_sub(1);
        }
        self.forget_if_gone(ino);
    }

    fn forget_if_gone(&mut self, ino: Ino) {
        if let Some(inode) = self.inodes.get(&ino)
            && !inode.named
            && inode.open == 0
        {
            self.used -= inode.content.used();
            self.inodes.remove(&ino);
        }
    }

    /// Puts a file, a folder or a socket of another volume here, under its own number.
    pub(crate) fn adopt(&mut self, folder: Ino, name: &str, ino: Ino, mut inode: Inode) {
        name.clone_into(&mut inode.called);
        self.used += inode.content.used();
        self.next = self.next.max(ino + 1);
        self.inodes.insert(ino, inode);
        if let Some(folder) = self.inodes.get_mut(&folder) {
            folder.names.insert(name.to_owned(), ino);
        }
    }

    /// Writes all of it to a folder of the machine's own disk, to be looked at.
    pub(crate) fn write_to(&self, path: &Path) -> io::Result<()> {
        self.write_folder(ROOT, path)
    }

    fn write_folder(&self, folder: Ino, path: &Path) -> io::Result<()> {
        std::fs::create_dir_all(path)?;
        for (name, ino) in &self.inode(folder)?.names {
            let inode = self.inode(*ino)?;
            match inode.kind {
                Kind::Folder => self.write_folder(*ino, &path.join(name))?,
                Kind::File => {
                    let length = usize::try_from(inode.content.size()).map_err(io::Error::other)?;
                    std::fs::write(path.join(name), inode.content.read(0, length))?;
                }
                Kind::Socket => {}
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file() -> (Volume, Ino) {
        let mut volume = Volume::new();
        let ino = volume.new_ino();
        let made = Op::Make {
            folder: ROOT,
            name: "a".into(),
            ino,
            kind: Kind::File,
            mode: 0o600,
        };
        volume.apply(&made).expect("the name is free");
        (volume, ino)
    }

    #[test]
    fn octets_come_back_across_pages() {
        let mut content = Content::default();
        let long: Vec<u8> = (0..10_000u32).map(|n| n as u8).collect();
        content.write(4_000, &long);
        assert_eq!((content.size(), content.used()), (14_000, 4));
        assert_eq!(content.read(4_000, 20_000), long);
        assert_eq!(content.read(0, 4_000), vec![0; 4_000]);
        assert_eq!(content.read(14_000, 5), b"");
        content.resize(4_100);
        content.resize(20_000);
        assert_eq!(content.read(4_000, 100), long[..100]);
        assert_eq!(content.read(4_100, 100), [0; 100]);
    }

    #[test]
    fn space_is_counted() {
        let (mut volume, ino) = file();
        let allocate = Op::Allocate {
            ino,
            offset: 0,
            length: 3 * PAGE as u64,
            grow: false,
        };
        assert_eq!(volume.cost(&allocate), Ok(3));
        volume.apply(&allocate).expect("a file is there");
        let size = volume.inode(ino).expect("it is there").content.size();
        assert_eq!((volume.used(), size), (3, 0));
        let write = Op::Write {
            ino,
            offset: 2 * PAGE as u64,
            octets: vec![1; 2 * PAGE].into(),
        };
        assert_eq!(volume.cost(&write), Ok(1));
        volume.apply(&write).expect("a file is there");
        let punch = Op::Punch {
            ino,
            offset: 0,
            length: PAGE as u64 + 1,
        };
        volume.apply(&punch).expect("a file is there");
        assert_eq!(volume.used(), 3);
        volume.opened(ino).expect("it is there");
        let remove = Op::Remove {
            folder: ROOT,
            name: "a".into(),
        };
        volume.apply(&remove).expect("it is there");
        assert_eq!(volume.used(), 3, "still open");
        volume.closed(ino);
        assert_eq!(volume.used(), 0);
    }
}
