//! The mark: a small file beside the store that remembers the last group known synced.
//!
//! Point-in-time recovery stops at the first record of the WAL that does not verify, and says nothing of what lay behind.
//! A store that opens with an older group than its mark has lost what was acknowledged, and is refused; so is an empty
//! folder, or another store, where the mark tells of one that held something. The file is
//! overwritten in place, which costs half of what an append costs; two slots in turn, so that a torn write leaves the other.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

/// A slot: name of the store (16), group (8), CRC32C of both (4). Each in a sector of its own.
const SLOT: usize = 28;
const SECTOR: u64 = 4096;

/// See the module.
#[derive(Debug)]
pub(crate) struct Mark {
    file: File,
    store: [u8; 16],
    group: u64,
    of_another: Option<u64>,
    next_slot: u64,
}

impl Mark {
    /// The newest group that the file at `path` tells of, of whatever store; 0 for none.
    pub(crate) fn peek(path: &Path) -> io::Result<u64> {
        let file = match File::open(path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(0),
            Err(error) => return Err(error),
        };
        if file.metadata()?.len() < 2 * SECTOR {
            return Ok(0);
        }
        let slots = [read_slot(&file, 0)?, read_slot(&file, 1)?];
        Ok(slots
            .into_iter()
            .flatten()
            .map(|(_, group)| group)
            .max()
            .unwrap_or(0))
    }

    /// The last group known synced of this store, without changing anything; 0 for none.
    pub(crate) fn synced(path: &Path, store: [u8; 16]) -> io::Result<u64> {
        let file = File::open(path)?;
        if file.metadata()?.len() < 2 * SECTOR {
            return Ok(0);
        }
        let slots = [read_slot(&file, 0)?, read_slot(&file, 1)?].into_iter().flatten();
        let ours = slots.filter(|(of, _)| *of == store).map(|(_, group)| group);
        Ok(ours.max().unwrap_or(0))
    }

    /// Opens or makes the file. Its name is for the caller to sync.
    pub(crate) fn open(path: &Path, store: [u8; 16]) -> io::Result<Self> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(path)?;
        if file.metadata()?.len() < 2 * SECTOR {
            file.write_all_at(&[0; 2 * SECTOR as usize], 0)?;
            file.sync_all()?;
        }
        let read = [read_slot(&file, 0)?, read_slot(&file, 1)?];
        let slots = read.map(|slot| slot.filter(|(of, _)| *of == store).map(|(_, group)| group));
        let ours = slots[0].max(slots[1]);
        let newest = u64::from(slots[1] > slots[0]);
        Ok(Self {
            file,
            store,
            group: ours.unwrap_or(0),
            of_another: match ours {
                Some(_) => None,
                None => read.into_iter().flatten().map(|(_, group)| group).max(),
            },
            next_slot: 1 - newest,
        })
    }

    /// The last group known synced; 0 for none.
    pub(crate) fn group(&self) -> u64 {
        self.group
    }

    /// The last group synced of another store, where the file tells of none of this one's.
    pub(crate) fn of_another(&self) -> Option<u64> {
        self.of_another
    }

    /// Remembers `group`, and syncs.
    pub(crate) fn set(&mut self, group: u64) -> io::Result<()> {
        if group == self.group {
            return Ok(());
        }
        let mut slot = [0; SLOT];
        slot[..16].copy_from_slice(&self.store);
        slot[16..24].copy_from_slice(&group.to_be_bytes());
        let crc = crc32c::crc32c(&slot[..24]);
        slot[24..].copy_from_slice(&crc.to_le_bytes());
        self.file.write_all_at(&slot, self.next_slot * SECTOR)?;
        self.file.sync_data()?;
        self.next_slot = 1 - self.next_slot;
        self.group = group;
        Ok(())
    }
}

/// A slot that verifies: the store's name and the group.
fn read_slot(file: &File, slot: u64) -> io::Result<Option<([u8; 16], u64)>> {
    let mut octets = [0; SLOT];
    file.read_exact_at(&mut octets, slot * SECTOR)?;
    let crc = crc32c::crc32c(&octets[..24]);
    if octets[24..] != crc.to_le_bytes() {
        return Ok(None);
    }
    Ok(octets
        .first_chunk()
        .copied()
        .zip(crate::keys::number(&octets[16..24])))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn survives_a_torn_write() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("mark");
        let mut mark = Mark::open(&path, [7; 16]).unwrap();
        assert_eq!(mark.group(), 0);
        for group in 1..=5 {
            mark.set(group).unwrap();
        }
        assert_eq!(Mark::open(&path, [7; 16]).unwrap().group(), 5);
        // Slots take turns, and the first group goes to slot 1.
        mark.file.write_all_at(&[0xff; 10], SECTOR + 10).unwrap();
        assert_eq!(Mark::open(&path, [7; 16]).unwrap().group(), 4);
        assert_eq!(Mark::open(&path, [7; 16]).unwrap().of_another(), None);
        let another = Mark::open(&path, [8; 16]).unwrap();
        assert_eq!((another.group(), another.of_another()), (0, Some(4)));
        assert_eq!(Mark::peek(&path).unwrap(), 4);
        assert_eq!(Mark::peek(&folder.path().join("none")).unwrap(), 0);
    }
}
