//! The Unix socket: made so that nobody else could ever connect, and so that a living program's is not taken away.

use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use tokio::net::UnixListener;

/// A listening Unix socket of mode 0600.
#[derive(Debug)]
pub struct AdminSocket {
    /// To be served by [`crate::server::serve`].
    pub listener: UnixListener,
    /// To be kept as long as it listens.
    pub name: SocketName,
}

/// The socket's name, removed when this is dropped if it is still that socket's.
#[derive(Debug)]
pub struct SocketName {
    path: PathBuf,
    /// Device and inode.
    file: (u64, u64),
}

/// Why there is no socket.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    /// Another program answers there.
    #[error("{}: another process answers there already", .0.display())]
    InUse(PathBuf),
    /// There is something that is no socket, and is not ours to remove.
    #[error("{}: there is a file that is no socket; remove it or set admin.socket", .0.display())]
    NotASocket(PathBuf),
    /// The system refused.
    #[error("{}: {cause}", path.display())]
    Io {
        /// The socket's path.
        path: PathBuf,
        /// What the system said.
        cause: io::Error,
    },
}

impl AdminSocket {
    /// Listens at `path`. A socket there is replaced only if nobody answers. Needs a tokio runtime.
    pub fn bind(path: &Path) -> Result<Self, SocketError> {
        let io = |cause| SocketError::Io {
            path: path.to_owned(),
            cause,
        };
        match fs::symlink_metadata(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(io(error)),
            Ok(facts) if !facts.file_type().is_socket() => {
                return Err(SocketError::NotASocket(path.to_owned()));
            }
            Ok(_) => match std::os::unix::net::UnixStream::connect(path) {
                Ok(_) => return Err(SocketError::InUse(path.to_owned())),
                Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {}
                Err(error) => return Err(io(error)),
            },
        }
        // Made within a folder that is ours alone, then moved to its place: at no time can others connect.
        let folder = match path.parent() {
            Some(folder) if !folder.as_os_str().is_empty() => folder,
            _ => Path::new("."),
        };
        let draft = folder.join(format!(".a{}", std::process::id()));
        let inner = draft.join("s");
        let _ = fs::remove_file(&inner);
        let _ = fs::remove_dir(&draft);
        fs::DirBuilder::new().mode(0o700).create(&draft).map_err(io)?;
        let bound = UnixListener::bind(&inner).and_then(|listener| {
            fs::set_permissions(&inner, fs::Permissions::from_mode(0o600))?;
            fs::rename(&inner, path)?;
            Ok(listener)
        });
        let _ = fs::remove_file(&inner);
        let _ = fs::remove_dir(&draft);
        let listener = bound.map_err(io)?;
        let facts = fs::symlink_metadata(path).map_err(io)?;
        Ok(Self {
            listener,
            name: SocketName {
                path: path.to_owned(),
                file: (facts.dev(), facts.ino()),
            },
        })
    }
}

impl Drop for SocketName {
    fn drop(&mut self) {
        let same =
            fs::symlink_metadata(&self.path).is_ok_and(|facts| (facts.dev(), facts.ino()) == self.file);
        if same {
            let _ = fs::remove_file(&self.path);
        }
    }
}
