//! RocksDB has found a file of its own to be damaged: a block that does not verify, or a file that is gone.
//!
//! What else is damaged nobody knows then, so nothing is accepted any more, now or after a restart; what reads is delivered.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use crate::store::StoreError;

/// The file that says so, beside the store.
pub(crate) const FILE: &str = "corrupt";

/// Octets of it that are read.
const LONGEST: usize = 4 << 10;

/// Whether anything was found, ever. By default in memory alone.
#[derive(Debug, Default)]
pub(crate) struct Corruption {
    file: Option<PathBuf>,
    found: OnceLock<String>,
}

impl Corruption {
    /// As it stands in a queue's folder.
    pub(crate) fn open(folder: &Path) -> io::Result<Self> {
        let file = folder.join(FILE);
        let found = OnceLock::new();
        match fs::read(&file) {
            Ok(mut text) => {
                text.truncate(LONGEST);
                let text = String::from_utf8_lossy(&text).trim().to_owned();
                tracing::error!(file = %file.display(), found = %text, "the store was found damaged: nothing is accepted");
                let _ = found.set(text);
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
        Ok(Self {
            file: Some(file),
            found,
        })
    }

    /// What was found first.
    pub(crate) fn found(&self) -> Option<&str> {
        self.found.get().map(String::as_str)
    }

    /// Looks at an error of the store's.
    pub(crate) fn note(&self, error: &StoreError) {
        if !error.is_corruption() || self.found.set(error.0.clone()).is_err() {
            return;
        }
        tracing::error!(
            found = error.0,
            "the store is damaged: nothing is accepted, what reads is delivered (docs/durability.md, Damage)"
        );
        if let Some(file) = &self.file
            && let Err(error) = write(file, &error.0)
        {
            tracing::error!(file = %file.display(), %error, "a restart will not know that the store is damaged");
        }
    }
}

fn write(path: &Path, text: &str) -> io::Result<()> {
    let mut file = File::create(path)?;
    writeln!(file, "{text}")?;
    file.sync_all()?;
    match path.parent() {
        Some(folder) => File::open(folder)?.sync_all(),
        None => Ok(()),
    }
}
