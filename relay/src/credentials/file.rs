//! The credentials file: read, and written anew as a whole under a lock.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use aws_lc_rs::rand;
use dkim_signer::secret::{self, SecretError};
use rustix::fs::FlockOperation;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use zeroize::Zeroizing;

use super::MAX_PASSWORD_BYTES;
use super::verifier::{BadVerifier, CHOSEN_ITERATIONS, MADE_ITERATIONS, Verifier};

/// Some 20,000 credentials.
const MAX_FILE_BYTES: u64 = 4 << 20;

/// Letters and digits of a password that we make, 166 bits.
const MADE_PASSWORD_LENGTH: usize = 28;

/// Credentials by user name.
pub type Entries = BTreeMap<String, Entry>;

/// What the file says of a credential.
#[derive(Clone, Debug)]
pub struct Entry {
    /// For whom it speaks.
    pub tenant: String,
    /// In which of their streams, where it says so.
    pub stream: Option<String>,
    /// What tells the right password.
    pub verifier: Verifier,
}

/// What is wrong with the file, or with what is to be done to it.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// It can't be read, or others can.
    #[error(transparent)]
    Secret(#[from] SecretError),
    /// It can't be written.
    #[error("{}: {cause}", path.display())]
    Write {
        /// The file, or one beside it.
        path: PathBuf,
        /// What the system said.
        cause: io::Error,
    },
    /// Not the TOML it should be. The text itself is not shown.
    #[error("{}:{line}: {what}", path.display())]
    Syntax {
        /// The file.
        path: PathBuf,
        /// From 1.
        line: usize,
        /// What TOML says.
        what: String,
    },
    /// A verifier can't be read.
    #[error("{}: credential.{name}.verifier: {cause}", path.display())]
    Verifier {
        /// The file.
        path: PathBuf,
        /// Whose.
        name: String,
        /// Why.
        cause: BadVerifier,
    },
    /// The name is no user name.
    #[error("{0:?} is no user name: 1 to 128 letters, digits or any of . _ - + @")]
    Name(String),
    /// The name is taken.
    #[error("there is a credential {0} already; remove it first")]
    Taken(String),
    /// Nobody has the name.
    #[error("there is no credential {0}")]
    Unknown(String),
    /// A chosen password can't be used.
    #[error("a password has 12 to {MAX_PASSWORD_BYTES} characters, all of them printable ASCII")]
    Password,
    /// Of the admin API's tokens, which are kept in the same way.
    #[error("{0}")]
    Token(String),
    /// The system gives no random numbers.
    #[error("no randomness from the system")]
    Randomness,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawFile {
    #[serde(default)]
    credential: BTreeMap<String, RawEntry>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawEntry {
    tenant: String,
    stream: Option<String>,
    verifier: String,
}

/// The file's text; none where there is no file.
pub fn content(path: &Path) -> Result<Zeroizing<Vec<u8>>, FileError> {
    match secret::read_at_most(path, MAX_FILE_BYTES) {
        Err(SecretError::Io { cause, .. }) if cause.kind() == io::ErrorKind::NotFound => {
            Ok(Zeroizing::default())
        }
        read => Ok(read?),
    }
}

/// Reads a file's TOML. A mistake is told without the text, which may be secret.
pub(crate) fn toml_of<T: DeserializeOwned>(path: &Path, content: &[u8]) -> Result<T, FileError> {
    let syntax = |offset: usize, what: &str| FileError::Syntax {
        path: path.to_owned(),
        line: 1 + memchr::memchr_iter(b'\n', &content[..offset.min(content.len())]).count(),
        what: what.replace('\n', " "),
    };
    let text = std::str::from_utf8(content).map_err(|error| syntax(error.valid_up_to(), "not UTF-8"))?;
    // The error's own form shows the line, and so a verifier.
    toml::from_str(text).map_err(|error| syntax(error.span().map_or(0, |span| span.start), error.message()))
}

/// Reads the file's text.
pub fn parse(path: &Path, content: &[u8]) -> Result<Entries, FileError> {
    let raw: RawFile = toml_of(path, content)?;
    let mut entries = Entries::new();
    for (name, entry) in raw.credential {
        let verifier = entry.verifier.parse().map_err(|cause| FileError::Verifier {
            path: path.to_owned(),
            name: name.clone(),
            cause,
        })?;
        let RawEntry { tenant, stream, .. } = entry;
        let entry = Entry {
            tenant,
            stream,
            verifier,
        };
        entries.insert(name, entry);
    }
    Ok(entries)
}

/// Reads the file.
pub fn read(path: &Path) -> Result<Entries, FileError> {
    parse(path, &content(path)?)
}

/// Adds a credential and returns its password: the `chosen` one, or one made here. It is nowhere else.
pub fn add(
    path: &Path,
    name: &str,
    tenant: &str,
    stream: Option<&str>,
    chosen: Option<Zeroizing<String>>,
) -> Result<Zeroizing<String>, FileError> {
    let is_name = |c: u8| c.is_ascii_alphanumeric() || b"._-+@".contains(&c);
    if !(1..=128).contains(&name.len()) || !name.bytes().all(is_name) {
        return Err(FileError::Name(name.to_owned()));
    }
    let (password, iterations) = match chosen {
        None => (make_password()?, MADE_ITERATIONS),
        Some(chosen) => {
            // Other characters would need SASLprep (RFC 4013), and clients disagree on it.
            let printable = chosen.bytes().all(|c| matches!(c, b' '..=b'~'));
            if !printable || !(12..=MAX_PASSWORD_BYTES).contains(&chosen.len()) {
                return Err(FileError::Password);
            }
            (chosen, CHOSEN_ITERATIONS)
        }
    };
    let verifier = Verifier::new(password.as_bytes(), iterations)?;
    change(path, |entries| {
        if entries.contains_key(name) {
            return Err(FileError::Taken(name.to_owned()));
        }
        let entry = Entry {
            tenant: tenant.to_owned(),
            stream: stream.map(str::to_owned),
            verifier,
        };
        entries.insert(name.to_owned(), entry);
        Ok(())
    })?;
    Ok(password)
}

/// Removes a credential. Sessions that have logged in with it go on to their end.
pub fn remove(path: &Path, name: &str) -> Result<(), FileError> {
    change(path, |entries| match entries.remove(name) {
        Some(_) => Ok(()),
        None => Err(FileError::Unknown(name.to_owned())),
    })
}

fn make_password() -> Result<Zeroizing<String>, FileError> {
    const LETTERS: &[u8; 62] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789";
    let mut password = Zeroizing::new(String::with_capacity(MADE_PASSWORD_LENGTH));
    let mut random = Zeroizing::new([0_u8; 64]);
    while password.len() < MADE_PASSWORD_LENGTH {
        rand::fill(&mut *random).map_err(|_| FileError::Randomness)?;
        // Of 256 values, the last 8 would favour some letters.
        let even = random.iter().filter(|&&octet| octet < 248);
        let letters = even.map(|octet| char::from(LETTERS[usize::from(octet % 62)]));
        let missing = MADE_PASSWORD_LENGTH - password.len();
        password.extend(letters.take(missing));
    }
    Ok(password)
}

fn change(path: &Path, change: impl FnOnce(&mut Entries) -> Result<(), FileError>) -> Result<(), FileError> {
    rewrite(path, read, change, text)
}

/// Reads, changes and writes a file while no other process does. A reader sees the old file or the new one, whole.
pub(crate) fn rewrite<T>(
    path: &Path,
    read: impl FnOnce(&Path) -> Result<T, FileError>,
    change: impl FnOnce(&mut T) -> Result<(), FileError>,
    text: impl FnOnce(&T) -> String,
) -> Result<(), FileError> {
    let failed = |path: &Path| {
        let path = path.to_owned();
        move |cause: io::Error| FileError::Write { path, cause }
    };
    // Through a symbolic link to the file itself; the link stays.
    let path = fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    let (folder, name) = match (path.parent(), path.file_name()) {
        (Some(folder), Some(name)) if !folder.as_os_str().is_empty() => (folder, name),
        (_, Some(name)) => (Path::new("."), name),
        (_, None) => return Err(failed(&path)(io::ErrorKind::InvalidInput.into())),
    };
    let beside = |end: &str| folder.join(format!(".{}{end}", name.to_string_lossy()));
    let lock_path = beside(".lock");
    let lock = OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .mode(0o600)
        .open(&lock_path)
        .map_err(failed(&lock_path))?;
    rustix::fs::flock(&lock, FlockOperation::LockExclusive)
        .map_err(|errno| failed(&lock_path)(errno.into()))?;

    let mut entries = read(&path)?;
    change(&mut entries)?;
    let draft = beside(".new");
    let written = write_draft(&draft, &path, &text(&entries)).and_then(|()| fs::rename(&draft, &path));
    if let Err(cause) = written {
        let _ = fs::remove_file(&draft);
        return Err(failed(&path)(cause));
    }
    File::open(folder)
        .and_then(|folder| folder.sync_all())
        .map_err(failed(folder))
}

/// Of mode 0600, or with mode and owner of the file that it is to replace.
fn write_draft(draft: &Path, replaced: &Path, text: &str) -> io::Result<()> {
    // The lock is ours: what is there was left by a process that was killed.
    let _ = fs::remove_file(draft);
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(draft)?;
    if let Ok(old) = fs::metadata(replaced) {
        let new = file.metadata()?;
        if (old.uid(), old.gid()) != (new.uid(), new.gid()) {
            std::os::unix::fs::fchown(&file, Some(old.uid()), Some(old.gid()))?;
        }
        file.set_permissions(fs::Permissions::from_mode(old.mode() & 0o640))?;
    }
    file.write_all(text.as_bytes())?;
    file.sync_all()
}

fn text(entries: &Entries) -> String {
    let mut text = String::from(
        "# Kept by `postrider credential add` and `remove`. No password is in it: each verifier only tells a right one.\n",
    );
    for (name, entry) in entries {
        // Display of a TOML string quotes it.
        let quoted = |text: &str| toml::Value::from(text).to_string();
        let (name, tenant) = (quoted(name), quoted(&entry.tenant));
        let stream = entry.stream.as_deref().map(quoted);
        let stream = stream.map(|stream| format!("stream = {stream}\n"));
        let _ = write!(
            text,
            "\n[credential.{name}]\ntenant = {tenant}\n{}verifier = \"{}\"\n",
            stream.unwrap_or_default(),
            entry.verifier
        );
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn adds_lists_and_removes() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("credentials.toml");
        let made = add(&path, "app@shop.example", "shop", None, None).unwrap();
        assert_eq!(made.len(), MADE_PASSWORD_LENGTH);
        let chosen = Zeroizing::new("correct horse battery".to_owned());
        add(&path, "other", "it's \"quoted\"", Some("bulk"), Some(chosen)).unwrap();
        let entries = read(&path).unwrap();
        assert_eq!(entries.len(), 2);
        assert!(entries["app@shop.example"].verifier.matches(made.as_bytes()));
        assert_eq!(entries["other"].tenant, "it's \"quoted\"");
        assert_eq!(entries["other"].stream.as_deref(), Some("bulk"));
        assert_eq!(entries["app@shop.example"].stream, None);
        assert_eq!(entries["other"].verifier.iterations(), CHOSEN_ITERATIONS);
        let text = fs::read_to_string(&path).unwrap();
        assert!(!text.contains(&**made) && !text.contains("horse"));
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o600);

        remove(&path, "other").unwrap();
        assert!(matches!(remove(&path, "other"), Err(FileError::Unknown(_))));
        assert!(matches!(
            add(&path, "app@shop.example", "x", None, None),
            Err(FileError::Taken(_))
        ));
        assert_eq!(read(&path).unwrap().len(), 1);
    }

    #[test]
    fn keeps_mode_and_link_of_the_file_it_replaces() {
        let folder = tempfile::tempdir().unwrap();
        let (path, link) = (folder.path().join("real"), folder.path().join("link"));
        add(&path, "a", "t", None, None).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
        std::os::unix::fs::symlink("real", &link).unwrap();
        add(&link, "b", "t", None, None).unwrap();
        assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
        assert_eq!(read(&path).unwrap().len(), 2);
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o640);
    }

    #[test]
    fn refuses_bad_names_and_passwords() {
        let path = Path::new("/nowhere/credentials.toml");
        for name in ["", "a b", "a\0b", "ü", "a\n[x]", &"x".repeat(129)] {
            assert!(
                matches!(add(path, name, "t", None, None), Err(FileError::Name(_))),
                "{name:?}"
            );
        }
        for password in ["", "short", "twelve chars\n", "zwölf Zeichen"] {
            let password = Some(Zeroizing::new(password.to_owned()));
            assert!(matches!(
                add(path, "a", "t", None, password),
                Err(FileError::Password)
            ));
        }
    }

    #[test]
    fn tells_what_is_wrong_without_showing_the_file() {
        let path = Path::new("c.toml");
        let told = |text: &str| parse(path, text.as_bytes()).unwrap_err().to_string();
        assert_eq!(
            told("\n[credential.a]\ntenant = \"t\"\nverifier = \"SECRET\"\n"),
            "c.toml: credential.a.verifier: a verifier is SCRAM-SHA-256$ITERATIONS:SALT$STOREDKEY:SERVERKEY with at least 4096 iterations"
        );
        let told = told("[credential.a]\ntenant = \"t\"\nverifier = [\"SECRET\"]");
        assert!(
            told.starts_with("c.toml:3: ") && !told.contains("SECRET"),
            "{told}"
        );
    }

    #[test]
    fn two_processes_do_not_undo_each_other() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("credentials.toml");
        std::thread::scope(|scope| {
            for number in 0..8 {
                let path = &path;
                scope.spawn(move || add(path, &format!("user{number}"), "t", None, None).unwrap());
            }
        });
        assert_eq!(read(&path).unwrap().len(), 8);
    }
}
