//! Free space: below a watermark nothing is accepted; a ballast is let go of before outcomes could no longer be recorded.

use std::fs::{self, OpenOptions};
use std::io;
use std::path::PathBuf;

/// The ballast is this part of the watermark, and no more than [`MAX_BALLAST`].
const BALLAST_PART: u64 = 8;
const MAX_BALLAST: u64 = 64 << 20;

/// The file system that the store is on.
pub(crate) struct Space {
    free: Box<dyn Fn() -> u64 + Send>,
    /// Below this much nothing is accepted.
    pub(super) min_free: u64,
    ballast: Option<PathBuf>,
}

impl Space {
    /// `free` tells the octets free. The `ballast` is a file beside the store, if there is to be one.
    pub(crate) fn new(free: Box<dyn Fn() -> u64 + Send>, min_free: u64, ballast: Option<PathBuf>) -> Self {
        Self {
            free,
            min_free,
            ballast,
        }
    }

    /// Octets free, the ballast not counted. Lets go of it where others have used up the disk down to its size, and takes it
    /// back once there is room.
    pub(super) fn look(&self) -> u64 {
        let free = (self.free)();
        let size = (self.min_free / BALLAST_PART).min(MAX_BALLAST);
        let Some(path) = self.ballast.as_ref().filter(|_| size > 0) else {
            return free;
        };
        let done = match path.exists() {
            true if free < size && !crate::sabotage::is_on("no-ballast") => {
                tracing::warn!(
                    free,
                    size,
                    "the disk is nearly full: the ballast is let go of, so that outcomes can be recorded"
                );
                fs::remove_file(path)
            }
            false if free >= self.min_free.saturating_add(size) => take(path, size),
            _ => Ok(()),
        };
        if let Err(error) = done {
            tracing::error!(file = %path.display(), %error, "the ballast");
        }
        free
    }
}

/// Makes the ballast, of blocks that are the file's own.
fn take(path: &PathBuf, size: u64) -> io::Result<()> {
    let file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .open(path)?;
    match rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), 0, size) {
        Ok(()) => Ok(()),
        // Some file systems can't set blocks aside (FUSE, some network ones): there it is done without.
        Err(rustix::io::Errno::OPNOTSUPP) => Ok(()),
        Err(error) => {
            let _ = fs::remove_file(path);
            Err(error.into())
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU64, Ordering};

    use super::*;

    #[test]
    fn the_ballast_goes_when_the_disk_is_nearly_full_and_comes_back() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("ballast");
        let free = Arc::new(AtomicU64::new(10 << 20));
        let told = free.clone();
        let space = Space::new(
            Box::new(move || told.load(Ordering::Relaxed)),
            8 << 20,
            Some(path.clone()),
        );
        space.look();
        assert_eq!(path.metadata().unwrap().len(), 1 << 20);
        for (left, is_there) in [
            (1 << 20, true),
            ((1 << 20) - 1, false),
            (8 << 20, false),
            (9 << 20, true),
        ] {
            free.store(left, Ordering::Relaxed);
            assert_eq!(space.look(), left);
            assert_eq!(path.exists(), is_there, "{left}");
        }
    }
}
