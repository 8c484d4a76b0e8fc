//! Files with secrets: read only where nobody else can read them, written so that nobody else ever could.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::process::{getegid, getgroups};
use zeroize::Zeroizing;

/// No secret we read is larger; a path that leads to something else shall not fill the memory.
pub const MAX_SECRET_BYTES: u64 = 64 * 1024;

/// Why a secret can't be read or written.
#[derive(Debug, thiserror::Error)]
pub enum SecretError {
    /// The system refused.
    #[error("{}: {cause}", path.display())]
    Io {
        /// Of the secret.
        path: PathBuf,
        /// What the system said.
        cause: io::Error,
    },
    /// A folder, a pipe, a device.
    #[error("{}: not a plain file", path.display())]
    NotAFile {
        /// Of the secret.
        path: PathBuf,
    },
    /// Over the bound.
    #[error("{}: over {limit} bytes", path.display())]
    TooLarge {
        /// Of the secret.
        path: PathBuf,
        /// The bound.
        limit: u64,
    },
    /// Others on the machine may read or change it.
    #[error("{}: {who} can {what} it (mode {mode:04o}); chmod 0600 it, or 0640 with a group of this process", path.display())]
    Exposed {
        /// Of the secret.
        path: PathBuf,
        /// As in "everyone".
        who: String,
        /// `read` or `change`.
        what: &'static str,
        /// The permission bits.
        mode: u32,
    },
    /// Written secrets never replace a file.
    #[error("{}: exists already; it is left as it is", path.display())]
    Exists {
        /// Of the secret.
        path: PathBuf,
    },
}

/// Reads a whole file of at most [`MAX_SECRET_BYTES`]; see [`read_at_most`].
pub fn read(path: &Path) -> Result<Zeroizing<Vec<u8>>, SecretError> {
    read_at_most(path, MAX_SECRET_BYTES)
}

/// Reads a whole file of at most `limit` octets. Refused when everyone can read or change it, or a group can that is
/// none of this process's own (a Kubernetes secret volume with `fsGroup` is 0440 or 0640 for a group of the process).
///
/// The open file is what is judged, so nothing can be swapped between look and read.
pub fn read_at_most(path: &Path, limit: u64) -> Result<Zeroizing<Vec<u8>>, SecretError> {
    let io = |cause| SecretError::Io {
        path: path.to_owned(),
        cause,
    };
    // A pipe without a writer would hold the open up for ever.
    let nonblocking = i32::try_from(rustix::fs::OFlags::NONBLOCK.bits()).unwrap_or(0);
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(nonblocking)
        .open(path)
        .map_err(io)?;
    let facts = file.metadata().map_err(io)?;
    if !facts.is_file() {
        return Err(SecretError::NotAFile {
            path: path.to_owned(),
        });
    }
    let is_own_group = || {
        let gid = facts.gid();
        getegid().as_raw() == gid
            || getgroups().is_ok_and(|groups| groups.iter().any(|group| group.as_raw() == gid))
    };
    if let Some((who, what)) = exposure(facts.mode(), facts.gid(), is_own_group) {
        return Err(SecretError::Exposed {
            path: path.to_owned(),
            who,
            what,
            mode: facts.mode() & 0o7777,
        });
    }
    // One allocation, so that growing leaves no copy behind that is not wiped.
    // The file's own length is the room; it may have grown since, up to the limit.
    let room = facts.len().clamp(MAX_SECRET_BYTES, limit.max(MAX_SECRET_BYTES)) + 1;
    let mut secret = Zeroizing::new(Vec::with_capacity(usize::try_from(room).unwrap_or(usize::MAX)));
    file.take(limit + 1).read_to_end(&mut secret).map_err(io)?;
    if secret.len() as u64 > limit {
        return Err(SecretError::TooLarge {
            path: path.to_owned(),
            limit,
        });
    }
    Ok(secret)
}

/// Who else gets at a file of this mode, and how.
fn exposure(mode: u32, gid: u32, is_own_group: impl FnOnce() -> bool) -> Option<(String, &'static str)> {
    let everyone = || "everyone".to_owned();
    match mode {
        mode if mode & 0o002 != 0 => Some((everyone(), "change")),
        mode if mode & 0o004 != 0 => Some((everyone(), "read")),
        mode if mode & 0o060 != 0 && !is_own_group() => {
            let what = if mode & 0o020 != 0 { "change" } else { "read" };
            Some((format!("group {gid}"), what))
        }
        _ => None,
    }
}

/// Writes a new file of mode 0600, synced, there whole or not at all. An existing file is never touched.
pub fn write_new(path: &Path, secret: &[u8]) -> Result<(), SecretError> {
    let io = |cause: io::Error| match cause.kind() {
        io::ErrorKind::AlreadyExists => SecretError::Exists {
            path: path.to_owned(),
        },
        _ => SecretError::Io {
            path: path.to_owned(),
            cause,
        },
    };
    let name = path
        .file_name()
        .ok_or_else(|| io(io::ErrorKind::InvalidInput.into()))?;
    let folder = match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    let mut draft = std::ffi::OsString::from(".");
    draft.push(name);
    draft.push(format!(".{}", std::process::id()));
    let draft = folder.join(draft);
    let written = write_draft(&draft, secret)
        // A link fails where the name is taken; a rename would replace it.
        .and_then(|()| fs::hard_link(&draft, path));
    let _ = fs::remove_file(&draft);
    written.map_err(io)?;
    File::open(folder)
        .and_then(|folder| folder.sync_all())
        .map_err(io)
}

fn write_draft(draft: &Path, secret: &[u8]) -> io::Result<()> {
    // Left by a process of the same number that was killed.
    let _ = fs::remove_file(draft);
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(draft)?;
    file.write_all(secret)?;
    file.sync_all()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn reads_back_what_it_wrote_and_never_replaces_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("key.pem");
        write_new(&path, b"first").unwrap();
        assert!(matches!(
            write_new(&path, b"second"),
            Err(SecretError::Exists { .. })
        ));
        assert_eq!(&**read(&path).unwrap(), b"first");
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o7777, 0o600);
        assert_eq!(
            fs::read_dir(folder.path()).unwrap().count(),
            1,
            "no draft is left"
        );
    }

    #[test]
    fn refuses_what_others_can_reach() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("key.pem");
        write_new(&path, b"secret").unwrap();
        for (mode, allowed) in [
            (0o600, true),
            (0o400, true),
            (0o640, true),
            (0o644, false),
            (0o604, false),
            (0o602, false),
        ] {
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
            assert_eq!(read(&path).is_ok(), allowed, "{mode:o}");
        }
        let told = read(&path).unwrap_err().to_string();
        assert!(told.ends_with(
            "everyone can change it (mode 0602); chmod 0600 it, or 0640 with a group of this process"
        ));
    }

    #[test]
    fn a_group_must_be_our_own() {
        assert_eq!(exposure(0o100_640, 7, || true), None);
        assert_eq!(exposure(0o100_640, 7, || false), Some(("group 7".into(), "read")));
        assert_eq!(
            exposure(0o100_660, 7, || false),
            Some(("group 7".into(), "change"))
        );
    }

    #[test]
    fn refuses_what_is_no_small_plain_file() {
        let folder = tempfile::tempdir().unwrap();
        assert!(matches!(read(folder.path()), Err(SecretError::NotAFile { .. })));
        let path = folder.path().join("large");
        write_new(&path, &vec![b'x'; MAX_SECRET_BYTES as usize + 1]).unwrap();
        assert!(matches!(read(&path), Err(SecretError::TooLarge { .. })));
        assert!(matches!(
            read(&folder.path().join("none")),
            Err(SecretError::Io { .. })
        ));
    }
}
