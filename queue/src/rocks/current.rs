//! `CURRENT`, which names the manifest that RocksDB goes by.
//!
//! RocksDB makes a new manifest with each start, syncs it, renames `CURRENT` to tell of it, and only then syncs the folder. ext4,
//! XFS and Btrfs keep the name of a new file that was synced; POSIX does not ask it of them. A power cut between the two may then
//! leave a `CURRENT` that names nothing. All that was there before still is, for RocksDB removes nothing until the folder is
//! synced: the store as it was before that start.

use std::fs::{self, File};
use std::io::{self, ErrorKind};
use std::path::Path;

const CURRENT: &str = "CURRENT";
const MANIFEST: &str = "MANIFEST-";

/// Has `CURRENT` name the manifest that is there, where it names one that is not; where there is none either, and nothing of a store
/// yet, it goes. It stays as it is, and RocksDB refuses it, where several are there, of which nobody can tell which is whole, and
/// where tables were written under the one that is missing: RocksDB would remove them.
/// The mark is still to be asked whether the store is as new as it has to be.
pub(crate) fn mend(store: &Path) -> io::Result<()> {
    let current = store.join(CURRENT);
    let named = match fs::read_to_string(&current) {
        Ok(named) => named,
        Err(error) if [ErrorKind::NotFound, ErrorKind::InvalidData].contains(&error.kind()) => return Ok(()),
        Err(error) => return Err(error),
    };
    let named = named.trim_end();
    let Some(number) = named
        .strip_prefix(MANIFEST)
        .and_then(|number| number.parse().ok())
    else {
        return Ok(());
    };
    if store.join(named).try_exists()? {
        return Ok(());
    }
    let found = Found::in_folder(store)?;
    match &found.manifests[..] {
        [manifest] if found.last_table < number => {
            tracing::warn!(
                missing = named,
                taken = manifest,
                "the power went while the store was opened: it is as before that"
            );
            let next = store.join("CURRENT.dbtmp");
            fs::write(&next, format!("{manifest}\n"))?;
            File::open(&next)?.sync_all()?;
            fs::rename(&next, &current)?;
        }
        [] if !found.holds_something => {
            tracing::warn!(
                missing = named,
                "the power went while the store was made: it is made anew"
            );
            fs::remove_file(&current)?;
        }
        _ => return Ok(()),
    }
    File::open(store)?.sync_all()
}

/// What a store's folder holds.
#[derive(Default)]
struct Found {
    manifests: Vec<String>,
    /// The highest number of a table or of a file of blobs. All files are numbered in the order in which they were made.
    last_table: u64,
    /// Tables, blobs, or a log.
    holds_something: bool,
}

impl Found {
    fn in_folder(store: &Path) -> io::Result<Self> {
        let mut found = Self::default();
        for entry in fs::read_dir(store)? {
            let entry = entry?;
            let Ok(name) = entry.file_name().into_string() else {
                continue;
            };
            if name.starts_with(MANIFEST) {
                found.manifests.push(name);
                continue;
            }
            match name.split_once('.') {
                Some((number, "sst" | "blob")) => {
                    found.holds_something = true;
                    found.last_table = found.last_table.max(number.parse().unwrap_or(u64::MAX));
                }
                // RocksDB makes none before its first manifest is on the disk.
                Some((_, "log")) => found.holds_something = true,
                _ => {}
            }
        }
        Ok(found)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rocks::RocksStore;
    use crate::store::{Batch, Family, Store as _};

    /// A store that holds a body, closed, and the name of its manifest.
    fn store() -> (tempfile::TempDir, String) {
        let folder = tempfile::tempdir().unwrap();
        let store = RocksStore::open(folder.path(), true).unwrap();
        let mut batch = Batch::default();
        batch.put(Family::Body, b"key", vec![7; 1 << 10]);
        store.write(&batch, true).unwrap();
        drop(store);
        let named = fs::read_to_string(folder.path().join(CURRENT)).unwrap();
        (folder, named.trim_end().to_owned())
    }

    fn names(folder: &Path, manifest: &str) {
        fs::write(folder.join(CURRENT), format!("{manifest}\n")).unwrap();
    }

    #[test]
    fn a_manifest_whose_name_went_is_the_one_before_it() {
        let (folder, manifest) = store();
        names(folder.path(), "MANIFEST-999999");
        assert!(RocksStore::open(folder.path(), true).is_err());
        mend(folder.path()).unwrap();
        let named = fs::read_to_string(folder.path().join(CURRENT)).unwrap();
        assert_eq!(named, format!("{manifest}\n"));
        let store = RocksStore::open(folder.path(), true).unwrap();
        assert_eq!(store.get(Family::Body, b"key").unwrap(), Some(vec![7; 1 << 10]));
    }

    #[test]
    fn a_store_that_was_being_made_is_made() {
        let folder = tempfile::tempdir().unwrap();
        names(folder.path(), "MANIFEST-000001");
        mend(folder.path()).unwrap();
        RocksStore::open(folder.path(), true).unwrap();
    }

    #[test]
    fn nothing_is_guessed() {
        let (folder, manifest) = store();
        mend(folder.path()).unwrap();
        assert_eq!(
            fs::read_to_string(folder.path().join(CURRENT)).unwrap(),
            format!("{manifest}\n")
        );
        // Two that might be it.
        fs::copy(
            folder.path().join(&manifest),
            folder.path().join("MANIFEST-000002"),
        )
        .unwrap();
        names(folder.path(), "MANIFEST-999999");
        mend(folder.path()).unwrap();
        assert!(RocksStore::open(folder.path(), true).is_err());
        // One, and a table that was written since.
        fs::remove_file(folder.path().join("MANIFEST-000002")).unwrap();
        fs::write(folder.path().join("1000000.sst"), "").unwrap();
        mend(folder.path()).unwrap();
        assert!(RocksStore::open(folder.path(), true).is_err());
        assert!(folder.path().join("1000000.sst").exists());
        fs::remove_file(folder.path().join("1000000.sst")).unwrap();
        // None, and mail.
        fs::remove_file(folder.path().join(manifest)).unwrap();
        mend(folder.path()).unwrap();
        assert!(folder.path().join(CURRENT).exists());
        assert!(RocksStore::open(folder.path(), true).is_err());
    }
}
