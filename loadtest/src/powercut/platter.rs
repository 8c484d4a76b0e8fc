//! What of a disk is durable, and what may be found after a power cut. Pure.
//!
//! A file's octets and the names in a folder are made durable apart, each by a sync of its own: to sync a new file says
//! nothing of its name. Of what was not synced a cut leaves what it likes:
//! - of a file's octets any pages, each as it was after any of the writes to it; never a part of a page, nor a later write
//!   to a page without an earlier one. Its size is any that it had since;
//! - of the names in a folder any of the changes, but never one without an earlier one to the same name.
//!
//! What a *failed* sync was to cover is lost with the power, whatever is synced afterwards, unless its page is written again.
//!
//! That is less than the file systems in use promise: they keep changes to names in order, and sync a new file's name with it.

use std::collections::{BTreeSet, HashMap};

use rand::Rng;
use rand::rngs::SmallRng;

use super::volume::{Content, Ino, Inode, Kind, Op, PAGE, ROOT, Volume, pages};

/// A file's octets as they are on the disk for certain, and what was done since.
#[derive(Debug, Default)]
struct OnDisk {
    durable: Content,
    since: Vec<Op>,
    /// After a failed sync, the octets as a program reads them, but for `since`. Those that are not durable stay so until their
    /// page is written again.
    read: Option<Content>,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Platter {
    /// Every file, folder and socket ever made that may be found: its kind and mode.
    made: HashMap<Ino, (Kind, u32)>,
    files: HashMap<Ino, OnDisk>,
    /// The durable names.
    names: HashMap<Ino, HashMap<String, Ino>>,
    /// Changes to names that are not durable, of all folders, in order.
    renamed: Vec<Op>,
}

/// How much of what was not synced a cut leaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Left {
    Nothing,
    All,
    Some,
}

impl Left {
    fn draw(rng: &mut SmallRng) -> Self {
        match rng.random_range(0..4) {
            0 => Self::Nothing,
            1 => Self::All,
            _ => Self::Some,
        }
    }
}

impl Platter {
    /// An empty disk.
    pub(crate) fn new() -> Self {
        Self {
            made: HashMap::from([(ROOT, (Kind::Folder, 0o700))]),
            files: HashMap::new(),
            names: HashMap::new(),
            renamed: Vec::new(),
        }
    }

    /// A disk on which all of this is durable.
    pub(crate) fn of(volume: &Volume) -> Self {
        let mut platter = Self::new();
        for (ino, inode) in volume.inodes() {
            platter.made.insert(ino, (inode.kind, inode.mode));
            match inode.kind {
                Kind::Folder => {
                    let names = inode.names.iter().map(|(name, ino)| (name.clone(), *ino));
                    platter.names.insert(ino, names.collect());
                }
                Kind::File => {
                    let durable = inode.content.clone();
                    let on_disk = OnDisk {
                        durable,
                        ..OnDisk::default()
                    };
                    platter.files.insert(ino, on_disk);
                }
                Kind::Socket => {}
            }
        }
        platter
    }

    /// What was done next.
    pub(crate) fn apply(&mut self, op: &Op) {
        match op {
            Op::Make { ino, kind, mode, .. } => {
                self.made.insert(*ino, (*kind, *mode));
                self.renamed.push(op.clone());
            }
            Op::Rename { .. } | Op::Remove { .. } => self.renamed.push(op.clone()),
            Op::Write { ino, .. } | Op::Resize { ino, .. } | Op::Punch { ino, .. } => {
                self.files.entry(*ino).or_default().since.push(op.clone());
            }
            // Space kept for later holds nothing. Where it makes the file longer it does as a new size does.
            Op::Allocate {
                ino,
                offset,
                length,
                grow,
            } => {
                let file = self.files.entry(*ino).or_default();
                let size = offset.saturating_add(*length);
                if *grow && size > file.newest_size() {
                    file.since.push(Op::Resize { ino: *ino, size });
                }
            }
            Op::Sync { ino } if self.made.get(ino).is_some_and(|(kind, _)| *kind == Kind::Folder) => {
                let (done, open) = std::mem::take(&mut self.renamed)
                    .into_iter()
                    .partition(|op| folder_of(op) == Some(*ino));
                self.renamed = open;
                let done: Vec<Op> = done;
                for op in &done {
                    rename(&mut self.names, op);
                }
                self.forget_the_nameless();
            }
            Op::Sync { ino } => {
                if let Some(file) = self.files.get_mut(ino) {
                    file.sync();
                }
            }
            // Of a folder: its names may be found or not, as before.
            Op::FailedSync { ino } => {
                if let Some(file) = self.files.get_mut(ino) {
                    let mut read = file.read.take().unwrap_or_else(|| file.durable.clone());
                    file.since.drain(..).for_each(|op| change(&mut read, &op));
                    file.read = Some(read);
                }
            }
        }
    }

    /// Files that no name leads to, durable or not, can't be found after any cut.
    fn forget_the_nameless(&mut self) {
        let mut named: BTreeSet<Ino> = self
            .names
            .values()
            .flat_map(|names| names.values().copied())
            .collect();
        named.extend(self.renamed.iter().filter_map(|op| match op {
            Op::Make { ino, .. } => Some(*ino),
            _ => None,
        }));
        self.files.retain(|ino, _| named.contains(ino));
        self.made.retain(|ino, _| *ino == ROOT || named.contains(ino));
    }

    /// Octets not synced.
    pub(crate) fn at_risk(&self) -> u64 {
        let of = |op: &Op| match op {
            Op::Write { octets, .. } => octets.len() as u64,
            _ => 0,
        };
        self.files.values().flat_map(|file| &file.since).map(of).sum()
    }

    /// What a power cut now may leave.
    pub(crate) fn cut(&self, rng: &mut SmallRng) -> Volume {
        let mut names = self.names.clone();
        let left = Left::draw(rng);
        let mut dropped = BTreeSet::new();
        for op in &self.renamed {
            let kept = match left {
                Left::Nothing => false,
                Left::All => true,
                Left::Some => rng.random(),
            };
            if kept && touched(op).all(|name| !dropped.contains(&name)) {
                rename(&mut names, op);
            } else {
                dropped.extend(touched(op));
            }
        }
        let mut volume = Volume::new();
        self.fill(&mut volume, &names, ROOT, rng);
        volume
    }

    fn fill(
        &self,
        volume: &mut Volume,
        names: &HashMap<Ino, HashMap<String, Ino>>,
        folder: Ino,
        rng: &mut SmallRng,
    ) {
        // In order: the map's own is another in each process, and a seed has to tell the state.
        let mut within: Vec<_> = names.get(&folder).into_iter().flatten().collect();
        within.sort();
        for (name, ino) in within {
            let Some((kind, mode)) = self.made.get(ino).copied() else {
                continue;
            };
            let mut inode = Inode::new(kind, mode, name);
            match kind {
                Kind::File => {
                    if let Some(file) = self.files.get(ino) {
                        inode.content = file.cut(rng);
                    }
                    volume.adopt(folder, name, *ino, inode);
                }
                Kind::Folder => {
                    volume.adopt(folder, name, *ino, inode);
                    self.fill(volume, names, *ino, rng);
                }
                // Nobody listens any more.
                Kind::Socket => {}
            }
        }
    }
}

impl OnDisk {
    fn newest_size(&self) -> u64 {
        self.sizes().last().copied().unwrap_or_default()
    }

    fn sync(&mut self) {
        let Some(read) = &mut self.read else {
            for op in std::mem::take(&mut self.since) {
                change(&mut self.durable, &op);
            }
            return;
        };
        let longest = self.since.iter().map(end_of).max().unwrap_or_default();
        let longest = longest.max(read.size()).max(self.durable.size());
        let mut touched = BTreeSet::new();
        for op in std::mem::take(&mut self.since) {
            touched.extend(pages_of(&op, longest));
            change(read, &op);
        }
        self.durable.resize(u64::MAX);
        for number in touched {
            self.durable.set_page(number, read.page(number).cloned());
        }
        self.durable.resize(read.size());
    }

    /// The durable size, and what it was after each change.
    fn sizes(&self) -> Vec<u64> {
        let mut sizes = vec![self.durable.size()];
        sizes.extend(self.read.as_ref().map(Content::size));
        for op in &self.since {
            let last = sizes.last().copied().unwrap_or_default();
            match op {
                Op::Write { offset, octets, .. } => sizes.push(last.max(offset + octets.len() as u64)),
                Op::Resize { size, .. } => sizes.push(*size),
                _ => {}
            }
        }
        sizes
    }

    fn cut(&self, rng: &mut SmallRng) -> Content {
        let mut content = self.durable.clone();
        match Left::draw(rng) {
            _ if self.since.is_empty() => {}
            Left::Nothing => {}
            Left::All => {
                let mut file = Self {
                    durable: content,
                    since: self.since.clone(),
                    read: self.read.clone(),
                };
                file.sync();
                content = file.durable;
            }
            Left::Some => self.cut_pages(&mut content, rng),
        }
        content
    }

    /// Each page as it was after so many of the changes to it, and a size of those it had.
    fn cut_pages(&self, content: &mut Content, rng: &mut SmallRng) {
        let mut changes: HashMap<u64, Vec<&Op>> = HashMap::new();
        for op in &self.since {
            for number in pages_of(op, self.longest()) {
                changes.entry(number).or_default().push(op);
            }
        }
        let mut touched: Vec<_> = changes.into_iter().collect();
        touched.sort_unstable_by_key(|(number, _)| *number);
        for (number, ops) in touched {
            let kept = match rng.random_range(0..3) {
                0 => 0,
                1 => ops.len(),
                _ => rng.random_range(0..=ops.len()),
            };
            // The page alone, as a file of its own whose size is no matter.
            let begin = number * PAGE as u64;
            let mut alone = Content::default();
            alone.resize(u64::MAX);
            let before = match (&self.read, kept) {
                // With what a failed sync left of it, once it is written again.
                (Some(read), 1..) => read.page(number),
                _ => content.page(number),
            };
            alone.set_page(0, before.cloned());
            for op in &ops[..kept] {
                match op {
                    Op::Write { offset, octets, .. } => {
                        let end = offset + octets.len() as u64;
                        let (from, to) = (begin.max(*offset), end.min(begin + PAGE as u64));
                        let part = &octets[(from - offset) as usize..(to - offset) as usize];
                        alone.write(from - begin, part);
                    }
                    Op::Punch { offset, length, .. } => {
                        let (from, to) = (begin.max(*offset), offset.saturating_add(*length));
                        alone.punch(from - begin, to.min(begin + PAGE as u64) - from);
                    }
                    Op::Resize { size, .. } => {
                        let from = begin.max(*size) - begin;
                        alone.punch(from, PAGE as u64 - from);
                    }
                    _ => {}
                }
            }
            content.set_page(number, alone.page(0).cloned());
        }
        let sizes = self.sizes();
        let size = sizes[rng.random_range(0..sizes.len())];
        // Pages behind the size are not found: the file is made to end there, whatever it was.
        content.resize(u64::MAX);
        content.resize(size);
    }

    fn longest(&self) -> u64 {
        self.sizes().into_iter().max().unwrap_or_default()
    }
}

/// Pages that a change is about, in a file that is no longer than `longest`.
fn pages_of(op: &Op, longest: u64) -> Vec<u64> {
    let (from, to) = match op {
        Op::Write { offset, .. } | Op::Punch { offset, .. } => (*offset, end_of(op)),
        // All behind the new end, as far as there is anything.
        Op::Resize { size, .. } => (*size, longest),
        _ => return Vec::new(),
    };
    pages(from, to).map(|(number, _)| number).collect()
}

/// Where what is written or punched ends.
fn end_of(op: &Op) -> u64 {
    match op {
        Op::Write { offset, octets, .. } => offset + octets.len() as u64,
        Op::Punch { offset, length, .. } => offset.saturating_add(*length),
        _ => 0,
    }
}

fn change(content: &mut Content, op: &Op) {
    match op {
        Op::Write { offset, octets, .. } => content.write(*offset, octets),
        Op::Resize { size, .. } => content.resize(*size),
        Op::Punch { offset, length, .. } => content.punch(*offset, *length),
        _ => {}
    }
}

fn rename(names: &mut HashMap<Ino, HashMap<String, Ino>>, op: &Op) {
    match op {
        Op::Make {
            folder, name, ino, ..
        } => drop(names.entry(*folder).or_default().insert(name.clone(), *ino)),
        Op::Rename { folder, from, to } => {
            let names = names.entry(*folder).or_default();
            if let Some(ino) = names.remove(from) {
                names.insert(to.clone(), ino);
            }
        }
        Op::Remove { folder, name } => drop(names.entry(*folder).or_default().remove(name)),
        _ => {}
    }
}

fn folder_of(op: &Op) -> Option<Ino> {
    touched(op).next().map(|(folder, _)| folder)
}

/// The names that a change is about.
fn touched(op: &Op) -> impl Iterator<Item = (Ino, &str)> {
    let names: [Option<(Ino, &str)>; 2] = match op {
        Op::Make { folder, name, .. } | Op::Remove { folder, name } => [Some((*folder, name)), None],
        Op::Rename { folder, from, to } => [Some((*folder, from)), Some((*folder, to))],
        _ => [None, None],
    };
    names.into_iter().flatten()
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;

    use super::*;

    /// A disk on which these were done, after many cuts: each time what `look` says.
    fn after_cuts<T: Ord>(ops: &[Op], look: impl Fn(&Volume) -> T) -> BTreeSet<T> {
        let mut platter = Platter::new();
        ops.iter().for_each(|op| platter.apply(op));
        (0..300)
            .map(|seed| look(&platter.cut(&mut SmallRng::seed_from_u64(seed))))
            .collect()
    }

    fn make(name: &str, ino: Ino) -> Op {
        Op::Make {
            folder: ROOT,
            name: name.into(),
            ino,
            kind: Kind::File,
            mode: 0o600,
        }
    }

    fn write(ino: Ino, offset: u64, octets: &[u8]) -> Op {
        Op::Write {
            ino,
            offset,
            octets: octets.into(),
        }
    }

    fn read(volume: &Volume, name: &str) -> Option<Vec<u8>> {
        let ino = volume.lookup(ROOT, name).ok()?;
        Some(volume.inode(ino).ok()?.content.read(0, 1 << 20))
    }

    fn names(volume: &Volume) -> Vec<String> {
        let root = volume.inode(ROOT).expect("the top is always there");
        root.names.keys().cloned().collect()
    }

    #[test]
    fn what_was_synced_with_its_name_is_there() {
        let ops = [
            make("a", 2),
            write(2, 0, b"kept"),
            Op::Sync { ino: 2 },
            Op::Sync { ino: ROOT },
        ];
        let found = after_cuts(&ops, |volume| read(volume, "a"));
        assert_eq!(found, BTreeSet::from([Some(b"kept".to_vec())]));
        // Synced without its name it may be lost, but is never found otherwise.
        let found = after_cuts(&ops[..3], |volume| read(volume, "a"));
        assert_eq!(found, BTreeSet::from([None, Some(b"kept".to_vec())]));
        // And the name without the octets.
        let ops = [make("a", 2), write(2, 0, b"kept"), Op::Sync { ino: ROOT }];
        let found = after_cuts(&ops, |volume| read(volume, "a"));
        assert_eq!(
            found,
            BTreeSet::from([Some(vec![]), Some(vec![0; 4]), Some(b"kept".to_vec())])
        );
    }

    #[test]
    fn a_page_is_never_torn_and_writes_to_it_keep_their_order() {
        let ops = [
            make("a", 2),
            write(2, 0, &[b'0'; 8192]),
            Op::Sync { ino: 2 },
            Op::Sync { ino: ROOT },
            write(2, 0, &[b'1'; 8192]),
            write(2, 10, &[b'2'; 10]),
        ];
        let found = after_cuts(&ops, |volume| {
            let octets = read(volume, "a").expect("the name is durable");
            assert_eq!(octets.len(), 8192);
            assert!(octets[4096..].iter().all(|octet| *octet == octets[4096]));
            assert!(octets[20..4096].iter().all(|octet| *octet == octets[0]));
            (octets[0], octets[10], octets[4096])
        });
        let first_page = [(b'0', b'0'), (b'1', b'1'), (b'1', b'2')];
        let expected = first_page
            .into_iter()
            .flat_map(|(a, b)| [(a, b, b'0'), (a, b, b'1')])
            .collect();
        assert_eq!(found, expected);
    }

    #[test]
    fn a_rename_is_whole_and_never_without_what_it_renames() {
        let ops = [
            make("old", 2),
            write(2, 0, b"2"),
            Op::Sync { ino: 2 },
            Op::Sync { ino: ROOT },
            make("new", 3),
            write(3, 0, b"3"),
            Op::Sync { ino: 3 },
            Op::Rename {
                folder: ROOT,
                from: "new".into(),
                to: "old".into(),
            },
        ];
        let found = after_cuts(&ops, |volume| (names(volume), read(volume, "old")));
        let name = |names: &[&str]| names.iter().map(ToString::to_string).collect::<Vec<_>>();
        let expected = BTreeSet::from([
            (name(&["old"]), Some(b"2".to_vec())),
            (name(&["new", "old"]), Some(b"2".to_vec())),
            (name(&["old"]), Some(b"3".to_vec())),
        ]);
        assert_eq!(found, expected);
    }

    #[test]
    fn what_was_removed_may_come_back_until_the_folder_is_synced() {
        let mut ops = vec![
            make("a", 2),
            write(2, 0, b"2"),
            Op::Sync { ino: 2 },
            Op::Sync { ino: ROOT },
            Op::Remove {
                folder: ROOT,
                name: "a".into(),
            },
        ];
        let found = after_cuts(&ops, |volume| read(volume, "a"));
        assert_eq!(found, BTreeSet::from([None, Some(b"2".to_vec())]));
        ops.push(Op::Sync { ino: ROOT });
        assert_eq!(
            after_cuts(&ops, |volume| read(volume, "a")),
            BTreeSet::from([None])
        );
    }

    #[test]
    fn what_a_failed_sync_left_is_lost_unless_it_is_written_again() {
        let mut ops = vec![
            make("a", 2),
            write(2, 0, &[b'0'; 8192]),
            Op::Sync { ino: 2 },
            Op::Sync { ino: ROOT },
            write(2, 0, &[b'1'; 8192]),
            Op::FailedSync { ino: 2 },
        ];
        let found = |ops: &[Op]| {
            after_cuts(ops, |volume| {
                let octets = read(volume, "a").expect("the name is durable");
                assert_eq!(octets.len(), 8192);
                (octets[0], octets[20], octets[4096])
            })
        };
        let nothing = BTreeSet::from([(b'0', b'0', b'0')]);
        assert_eq!(found(&ops), nothing);
        ops.push(Op::Sync { ino: 2 });
        assert_eq!(found(&ops), nothing, "a later sync proves nothing");
        // The page goes with what it holds by now, and alone.
        ops.push(write(2, 10, &[b'2'; 20]));
        let written = (b'1', b'2', b'0');
        assert_eq!(found(&ops), BTreeSet::from([(b'0', b'0', b'0'), written]));
        ops.push(Op::Sync { ino: 2 });
        assert_eq!(found(&ops), BTreeSet::from([written]));
    }

    #[test]
    fn a_file_made_shorter_has_any_size_it_had() {
        let ops = [
            make("a", 2),
            write(2, 0, &[b'1'; 5000]),
            Op::Sync { ino: 2 },
            Op::Sync { ino: ROOT },
            Op::Resize { ino: 2, size: 100 },
            write(2, 100, &[b'2'; 10]),
        ];
        let found = after_cuts(&ops, |volume| read(volume, "a").map(|octets| octets.len()));
        assert_eq!(found, BTreeSet::from([Some(100), Some(110), Some(5000)]));
    }
}
