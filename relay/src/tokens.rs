//! Who may use the admin API over TCP: a file of names, roles and hashes of tokens, kept by `postrider token`.
//!
//! A token is 256 random bits, so its SHA-256 tells nothing of it and needs no salt. The file is read anew when its content
//! changes, looked at once a second at the most and only when a token is shown; one that turns bad changes nothing.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::metrics::Registry;
use admin_api::Caller;
use admin_api::access::{Role, Tokens};
use aws_lc_rs::constant_time::verify_slices_are_equal;
use aws_lc_rs::{digest, rand};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD as BASE64;
use parking_lot::Mutex;
use prometheus::{IntCounterVec, Opts};
use serde::Deserialize;
use zeroize::Zeroizing;

use crate::credentials::file::{self, FileError};
use crate::submission::logins::Logins;

/// How often the file is looked at.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// Before each token, so that one that is lost where it should not be can be searched for.
const PREFIX: &str = "postrider_";

/// Role and SHA-256 by name.
pub type Entries = BTreeMap<String, (Role, [u8; 32])>;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawFile {
    #[serde(default)]
    token: BTreeMap<String, RawEntry>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawEntry {
    role: Role,
    sha256: String,
}

/// Reads the file; one that is not there holds no tokens.
pub fn read(path: &Path) -> Result<Entries, FileError> {
    parse(path, &file::content(path)?)
}

fn parse(path: &Path, content: &[u8]) -> Result<Entries, FileError> {
    let raw: RawFile = file::toml_of(path, content)?;
    let entry = |(name, entry): (String, RawEntry)| match from_hex(&entry.sha256) {
        Some(hash) => Ok((name, (entry.role, hash))),
        None => Err(FileError::Token(format!(
            "{}: token.{name}.sha256: 64 hexadecimal digits are needed",
            path.display()
        ))),
    };
    raw.token.into_iter().map(entry).collect()
}

/// Adds a token and returns it. It is nowhere else.
pub fn add(path: &Path, name: &str, role: Role) -> Result<Zeroizing<String>, FileError> {
    let is_name = |c: u8| c.is_ascii_alphanumeric() || b"._-@".contains(&c);
    if !(1..=64).contains(&name.len()) || !name.bytes().all(is_name) {
        let text = format!("{name:?} is no name of a token: 1 to 64 letters, digits or any of . _ - @");
        return Err(FileError::Token(text));
    }
    let mut random = Zeroizing::new([0_u8; 32]);
    rand::fill(&mut *random).map_err(|_| FileError::Randomness)?;
    let token = Zeroizing::new(format!("{PREFIX}{}", BASE64.encode(*random)));
    let hash = hash(&token);
    change(path, |entries| {
        if entries.contains_key(name) {
            let text = format!("there is a token {name} already; remove it first");
            return Err(FileError::Token(text));
        }
        entries.insert(name.to_owned(), (role, hash));
        Ok(())
    })?;
    Ok(token)
}

/// Removes a token; it opens nothing a second later.
pub fn remove(path: &Path, name: &str) -> Result<(), FileError> {
    change(path, |entries| match entries.remove(name) {
        Some(_) => Ok(()),
        None => Err(FileError::Token(format!("there is no token {name}"))),
    })
}

fn change(path: &Path, change: impl FnOnce(&mut Entries) -> Result<(), FileError>) -> Result<(), FileError> {
    file::rewrite(path, read, change, |entries| {
        let mut text = String::from(
            "# Kept by `postrider token add` and `remove`. No token is in it: each hash only tells a right one.\n",
        );
        for (name, (role, hash)) in entries {
            let name = toml::Value::from(name.as_str());
            let _ = write!(
                text,
                "\n[token.{name}]\nrole = \"{}\"\nsha256 = \"{}\"\n",
                role.word(),
                hex(hash)
            );
        }
        text
    })
}

fn hash(token: &str) -> [u8; 32] {
    let mut hash = [0; 32];
    hash.copy_from_slice(digest::digest(&digest::SHA256, token.as_bytes()).as_ref());
    hash
}

fn hex(octets: &[u8]) -> String {
    octets.iter().map(|octet| format!("{octet:02x}")).collect()
}

fn from_hex(text: &str) -> Option<[u8; 32]> {
    if text.len() != 64 || !text.is_ascii() {
        return None;
    }
    let mut hash = [0; 32];
    for (octet, digits) in hash.iter_mut().zip(text.as_bytes().chunks(2)) {
        *octet = u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()?;
    }
    Some(hash)
}

/// The tokens of a file.
pub struct TokenFile {
    path: PathBuf,
    known: Mutex<Known>,
    failures: Logins,
    counted: IntCounterVec,
}

struct Known {
    entries: Entries,
    content: [u8; 32],
    looked: Instant,
    /// Told once, not once a second.
    failing: Option<String>,
}

impl TokenFile {
    /// Reads the file, and registers what it counts.
    pub fn open(path: &Path, registry: &Registry) -> anyhow::Result<Self> {
        let content = file::content(path)?;
        let counted = IntCounterVec::new(
            Opts::new(
                "postrider_admin_tokens_total",
                "Tokens shown to the admin API, by result: ok, wrong. Alert on a rise of wrong: someone guesses, or uses a token that \
                 was taken away.",
            ),
            &["result"],
        )?;
        for result in ["ok", "wrong"] {
            counted.with_label_values(&[result]);
        }
        registry.register(Box::new(counted.clone()))?;
        Ok(Self {
            path: path.to_owned(),
            known: Mutex::new(Known {
                entries: parse(path, &content)?,
                content: hash_of(&content),
                looked: Instant::now(),
                failing: None,
            }),
            failures: Logins::default(),
            counted,
        })
    }

    /// Reads the file anew if it is time to and its content has changed.
    fn look(&self, known: &mut Known, now: Instant) {
        if now.saturating_duration_since(known.looked) < LOOK_EVERY {
            return;
        }
        known.looked = now;
        let read = file::content(&self.path).and_then(|content| {
            let hash = hash_of(&content);
            if hash == known.content {
                return Ok(None);
            }
            Ok(Some((hash, parse(&self.path, &content)?)))
        });
        match read {
            Ok(changed) => {
                if let Some((hash, entries)) = changed {
                    tracing::info!(file = %self.path.display(), tokens = entries.len(), "admin tokens read anew");
                    (known.content, known.entries) = (hash, entries);
                }
                known.failing = None;
            }
            Err(error) => {
                let told = Some(error.to_string());
                if known.failing != told {
                    tracing::error!(%error, "admin tokens: what was read before stays in force");
                    known.failing = told;
                }
            }
        }
    }

    fn find_at(&self, token: &str, now: Instant) -> Option<(Caller, Role)> {
        let shown = hash(token);
        let mut known = self.known.lock();
        self.look(&mut known, now);
        // All of them, whichever fits.
        let mut found = None;
        for (name, (role, hash)) in &known.entries {
            if verify_slices_are_equal(hash, &shown).is_ok() {
                found = Some((Caller(format!("token {name}").into()), *role));
            }
        }
        found
    }
}

fn hash_of(content: &[u8]) -> [u8; 32] {
    let mut hash = [0; 32];
    hash.copy_from_slice(digest::digest(&digest::SHA256, content).as_ref());
    hash
}

impl Tokens for TokenFile {
    fn find(&self, token: &str) -> Option<(Caller, Role)> {
        let found = self.find_at(token, Instant::now());
        let result = if found.is_some() { "ok" } else { "wrong" };
        self.counted.with_label_values(&[result]).inc();
        found
    }

    fn failed(&self, address: IpAddr) -> Duration {
        // Tokens have no user: the address alone is counted.
        self.failures
            .failed(address, &address.to_string(), Instant::now())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_tokens_that_were_given_out_open() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("tokens.toml");
        let token = add(&path, "ops", Role::Operator).unwrap();
        assert_eq!(token.len(), PREFIX.len() + 43, "256 bits");
        let text = std::fs::read_to_string(&path).unwrap();
        assert!(
            !text.contains(&**token) && text.contains("role = \"operator\""),
            "{text}"
        );
        let mode = std::os::unix::fs::PermissionsExt::mode(&std::fs::metadata(&path).unwrap().permissions());
        assert_eq!(mode & 0o777, 0o600);
        let file = TokenFile::open(&path, &Registry::new()).unwrap();
        let found = |token: &str, now| {
            file.find_at(token, now)
                .map(|(caller, role)| (caller.0.to_string(), role))
        };
        let now = Instant::now();
        assert_eq!(found(&token, now), Some(("token ops".to_owned(), Role::Operator)));
        for wrong in [
            "",
            "postrider_",
            &token[..token.len() - 1],
            &format!("{}x", *token),
        ] {
            assert_eq!(found(wrong, now), None, "{wrong}");
        }
        assert!(add(&path, "ops", Role::Viewer).is_err(), "the name is taken");
        assert!(add(&path, "a b", Role::Viewer).is_err());
        // Taken away, it opens nothing a second later; a file that turns bad changes nothing.
        let second = add(&path, "second", Role::Viewer).unwrap();
        remove(&path, "ops").unwrap();
        let later = now + LOOK_EVERY;
        assert_eq!(found(&token, later), None);
        assert!(found(&second, later).is_some());
        std::fs::write(&path, "[token.x]\nrole = \"king\"\n").unwrap();
        assert!(found(&second, later + LOOK_EVERY).is_some());
        assert!(read(&path).unwrap_err().to_string().contains("tokens.toml:2: "));
        std::fs::write(&path, "[token.x]\nrole = \"viewer\"\nsha256 = \"12\"\n").unwrap();
        assert!(
            read(&path)
                .unwrap_err()
                .to_string()
                .contains("64 hexadecimal digits")
        );
        std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o644)).unwrap();
        assert!(
            read(&path)
                .unwrap_err()
                .to_string()
                .contains("everyone can read it")
        );
    }
}
