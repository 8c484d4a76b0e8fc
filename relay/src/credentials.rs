//! Who may log in: a file of names, tenants and SCRAM-SHA-256 verifiers, kept by `postrider credential`.
//!
//! No password is in it, nor anything that logs in by itself: a verifier (RFC 5803) tells whether a password is right. PLAIN
//! and LOGIN are checked against the same verifiers that SCRAM uses.
//!
//! The file is read anew when its content changes, looked at once a second at the most and only when someone logs in. One
//! that turns bad while the relay runs changes nothing: the credentials read last stay, and the log tells why.

pub mod file;
pub mod scram;
mod verifier;

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use aws_lc_rs::constant_time::verify_slices_are_equal;
use aws_lc_rs::{digest, hmac, rand};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use parking_lot::Mutex;
use tokio::sync::Semaphore;
use zeroize::Zeroizing;

pub use file::FileError;
pub use verifier::Verifier;

/// How often the file is looked at.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// How long a right password is remembered since it was hashed; then it is hashed again.
const REMEMBER: Duration = Duration::from_secs(15 * 60);

/// Logins that may wait for a core to hash on, for each core: some three seconds' worth of passwords that people chose.
const WAITING_PER_CORE: usize = 32;

/// Passwords longer than this are wrong without being hashed.
pub const MAX_PASSWORD_BYTES: usize = 1_024;

/// Who has logged in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Credential {
    /// The user name.
    pub name: Arc<str>,
    /// Whom it speaks for. May no longer be configured: whoever asks has to look.
    pub tenant: Arc<str>,
    /// In which of their streams, where it says so. May no longer be configured, too.
    pub stream: Option<Arc<str>>,
}

/// What a session is logged in by: a credential as it was then.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Proof {
    credential: Credential,
    verifier: Verifier,
}

/// Too many logins wait to be hashed. Nothing is said about this one; it may come back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Busy;

/// The credentials of a file; cloning shares them.
#[derive(Clone)]
pub struct Credentials(Arc<Inner>);

struct Inner {
    path: PathBuf,
    /// Of this process alone: hides what is remembered of passwords, and chooses the verifier for unknown users.
    key: hmac::Key,
    known: ArcSwap<Known>,
    look: Mutex<Look>,
    /// Hashing at once; more would only take the cores from the sessions.
    hashing: Arc<Semaphore>,
    /// Hashing, or waiting to; more are [`Busy`].
    waiting: Arc<Semaphore>,
}

struct Look {
    next: Instant,
    content: Option<digest::Digest>,
    /// Told once, not once a second.
    failing: Option<String>,
}

#[derive(Default)]
struct Known {
    by_name: HashMap<Arc<str>, Arc<Entry>>,
    all: Vec<Arc<Entry>>,
}

struct Entry {
    credential: Credential,
    verifier: Verifier,
    /// The last right password, under [`Inner::key`], and when it was hashed: a client that logs in for each message is hashed
    /// once. Gone when the file changes.
    seen: Mutex<Option<(Instant, hmac::Tag)>>,
}

impl Credentials {
    /// Reads the file. One that is not there holds no credentials, and may come later.
    pub fn open(path: &Path) -> Result<Self, FileError> {
        let content = file::content(path)?;
        let known = known(&file::parse(path, &content)?);
        let mut key = Zeroizing::new([0; digest::SHA256_OUTPUT_LEN]);
        rand::fill(&mut *key).map_err(|_| FileError::Randomness)?;
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        Ok(Self(Arc::new(Inner {
            path: path.to_owned(),
            key: hmac::Key::new(hmac::HMAC_SHA256, &*key),
            known: ArcSwap::from_pointee(known),
            look: Mutex::new(Look {
                next: Instant::now() + LOOK_EVERY,
                content: Some(digest::digest(&digest::SHA256, &content)),
                failing: None,
            }),
            hashing: Arc::new(Semaphore::new(cores)),
            waiting: Arc::new(Semaphore::new(cores * (1 + WAITING_PER_CORE))),
        })))
    }

    /// Whose name and password these are; `None` where they are nobody's. An unknown name takes as long as a wrong password.
    ///
    /// Hashes on the runtime's threads for blocking work, as many at once as there are cores. The caller bounds the wait.
    pub async fn verify(&self, user: &str, password: &[u8]) -> Result<Option<Credential>, Busy> {
        if password.len() > MAX_PASSWORD_BYTES {
            return Ok(None);
        }
        self.look().await;
        if let Some(credential) = self.0.recall(user, password, Instant::now()) {
            return Ok(Some(credential));
        }
        let place = self.0.waiting.clone().try_acquire_owned().map_err(|_| Busy)?;
        let permit = self.0.hashing.clone().acquire_owned().await.map_err(|_| Busy)?;
        let (this, user) = (self.clone(), user.to_owned());
        let password = Zeroizing::new(password.to_vec());
        let verified = tokio::task::spawn_blocking(move || {
            let _until_done = (place, permit);
            this.0.check(&user, &password)
        });
        Ok(verified.await.ok().flatten())
    }

    /// The verifier that SCRAM asks a user with. An unknown name has one too: the same for as long as the relay runs, with the
    /// work of a known one, and never right.
    pub async fn verifier(&self, user: &str) -> Verifier {
        self.look().await;
        let known = self.0.known.load();
        match known.by_name.get(user) {
            Some(entry) => entry.verifier.clone(),
            None => {
                let seed = hmac::sign(&self.0.key, format!("salt of {user}").as_bytes());
                self.0.stand_in(&known, user).disguised(seed.as_ref())
            }
        }
    }

    /// The credential of this name, for a peer whose word on logins is taken.
    pub async fn named(&self, user: &str) -> Option<Credential> {
        self.look().await;
        let known = self.0.known.load();
        known.by_name.get(user).map(|entry| entry.credential.clone())
    }

    /// Who has proven to know the password of this verifier; `None` if it isn't the user's any more, or is made up.
    pub fn proven(&self, user: &str, verifier: &Verifier) -> Option<Credential> {
        let known = self.0.known.load();
        let entry = known.by_name.get(user)?;
        (entry.verifier == *verifier).then(|| entry.credential.clone())
    }

    /// By what a session of this user is logged in.
    pub fn proof(&self, user: &str) -> Option<Proof> {
        let known = self.0.known.load();
        known.by_name.get(user).map(|entry| Proof {
            credential: entry.credential.clone(),
            verifier: entry.verifier.clone(),
        })
    }

    /// Whether that would still log in: neither removed since, nor given another password, tenant or stream.
    pub async fn stands(&self, proof: &Proof) -> bool {
        self.look().await;
        self.proof(&proof.credential.name).as_ref() == Some(proof)
    }

    /// Looks at the file now, whenever it was looked at last. Blocks.
    pub fn look_now(&self) {
        let now = Instant::now();
        self.0.look.lock().next = now;
        self.0.look(now);
    }

    async fn look(&self) {
        // Whoever is at it already does it for all; a file system that hangs holds up nobody else.
        let look = self.0.look.try_lock();
        let is_due = look.is_some_and(|look| look.next <= Instant::now());
        if is_due {
            let this = self.clone();
            // It tells of its own mistakes.
            let _ = tokio::task::spawn_blocking(move || this.0.look(Instant::now())).await;
        }
    }
}

/// Our part of a SCRAM nonce: 144 bits.
pub fn nonce() -> Result<String, FileError> {
    let mut octets = [0; 18];
    rand::fill(&mut octets).map_err(|_| FileError::Randomness)?;
    Ok(BASE64.encode(octets))
}

impl Inner {
    /// Reads the file anew if it is time to and its content has changed.
    fn look(&self, now: Instant) {
        let mut look = self.look.lock();
        if now < look.next {
            return;
        }
        look.next = now + LOOK_EVERY;
        let read = file::content(&self.path).and_then(|content| {
            let digest = digest::digest(&digest::SHA256, &content);
            if look.content.as_ref().map(AsRef::as_ref) == Some(digest.as_ref()) {
                return Ok(None);
            }
            Ok(Some((digest, known(&file::parse(&self.path, &content)?))))
        });
        match read {
            Ok(changed) => {
                if let Some((digest, known)) = changed {
                    tracing::info!(file = %self.path.display(), credentials = known.all.len(), "credentials read anew");
                    self.known.store(Arc::new(known));
                    look.content = Some(digest);
                }
                look.failing = None;
            }
            Err(error) => {
                let told = Some(error.to_string());
                if look.failing != told {
                    tracing::error!(%error, "credentials file: what was read before stays in force");
                    look.failing = told;
                }
            }
        }
    }

    /// Who it is, if the same password was right before.
    fn recall(&self, user: &str, password: &[u8], now: Instant) -> Option<Credential> {
        let known = self.known.load();
        let entry = known.by_name.get(user)?;
        let mut seen = entry.seen.lock();
        if seen.is_some_and(|(at, _)| now.saturating_duration_since(at) >= REMEMBER) {
            *seen = None;
        }
        let tag = hmac::sign(&self.key, password);
        verify_slices_are_equal(seen.as_ref()?.1.as_ref(), tag.as_ref()).ok()?;
        Some(entry.credential.clone())
    }

    fn check(&self, user: &str, password: &[u8]) -> Option<Credential> {
        let known = self.known.load_full();
        let Some(entry) = known.by_name.get(user) else {
            // The same name always meets the same verifier, as a known one does: neither the time nor its spread tells.
            let stand_in = self.stand_in(&known, user);
            std::hint::black_box(stand_in.matches(password));
            return None;
        };
        if !entry.verifier.matches(password) {
            return None;
        }
        *entry.seen.lock() = Some((Instant::now(), hmac::sign(&self.key, password)));
        Some(entry.credential.clone())
    }

    fn stand_in(&self, known: &Known, user: &str) -> Verifier {
        let tag = hmac::sign(&self.key, user.as_bytes());
        let number = tag.as_ref().iter().fold(0_usize, |number, &octet| {
            number.wrapping_mul(31).wrapping_add(octet.into())
        });
        match known.all.len() {
            0 => Verifier::stand_in(),
            len => known.all[number % len].verifier.clone(),
        }
    }
}

fn known(entries: &file::Entries) -> Known {
    let all: Vec<_> = entries
        .iter()
        .map(|(name, entry)| {
            Arc::new(Entry {
                credential: Credential {
                    name: name.as_str().into(),
                    tenant: entry.tenant.as_str().into(),
                    stream: entry.stream.as_deref().map(Arc::from),
                },
                verifier: entry.verifier.clone(),
                seen: Mutex::default(),
            })
        })
        .collect();
    Known {
        by_name: all
            .iter()
            .map(|entry| (entry.credential.name.clone(), entry.clone()))
            .collect(),
        all,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn opened() -> (tempfile::TempDir, PathBuf, String, Credentials) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("credentials.toml");
        let password = file::add(&path, "app", "shop", Some("bulk"), None).unwrap();
        let credentials = Credentials::open(&path).unwrap();
        (folder, path, password.to_string(), credentials)
    }

    #[tokio::test]
    async fn only_the_right_password_of_a_known_user_logs_in() {
        let (_folder, _, password, credentials) = opened();
        let app = Credential {
            name: "app".into(),
            tenant: "shop".into(),
            stream: Some("bulk".into()),
        };
        // The second time from what is remembered.
        for _ in 0..2 {
            assert_eq!(
                credentials.verify("app", password.as_bytes()).await,
                Ok(Some(app.clone()))
            );
            for (user, password) in [
                ("app", "wrong".as_bytes()),
                ("App", password.as_bytes()),
                ("nobody", password.as_bytes()),
                ("app", &[b'x'; MAX_PASSWORD_BYTES + 1]),
            ] {
                assert_eq!(credentials.verify(user, password).await, Ok(None), "{user}");
            }
        }
        let now = Instant::now();
        let recalls = |password: &str, now| credentials.0.recall("app", password.as_bytes(), now).is_some();
        assert!(recalls(&password, now));
        assert!(!recalls("wrong", now));
        assert!(!recalls(&password, now + REMEMBER), "remembered for too long");
        assert!(!recalls(&password, now));
    }

    #[tokio::test]
    async fn a_crowd_at_the_hashing_is_told_to_come_back() {
        let (_folder, _, password, credentials) = opened();
        let all = credentials.0.waiting.available_permits() as u32;
        let crowd = credentials.0.waiting.clone().try_acquire_many_owned(all).unwrap();
        assert_eq!(credentials.verify("app", password.as_bytes()).await, Err(Busy));
        assert_eq!(credentials.verify("nobody", b"any").await, Err(Busy));
        drop(crowd);
        assert!(
            credentials
                .verify("app", password.as_bytes())
                .await
                .is_ok_and(|found| found.is_some())
        );
        assert_eq!(credentials.0.waiting.available_permits() as u32, all);
        // What is remembered needs no hashing.
        let _crowd = credentials.0.waiting.clone().try_acquire_many_owned(all).unwrap();
        assert!(credentials.verify("app", password.as_bytes()).await.is_ok());
    }

    #[tokio::test]
    async fn scram_asks_unknown_users_as_it_asks_known_ones() {
        let (_folder, path, _, credentials) = opened();
        let known = credentials.verifier("app").await;
        assert!(credentials.proven("app", &known).is_some());
        let unknown = credentials.verifier("nobody").await;
        assert_eq!(unknown, credentials.verifier("nobody").await);
        assert_eq!(unknown.iterations(), known.iterations());
        assert_eq!(unknown.salt().len(), known.salt().len());
        assert_ne!(unknown.salt(), known.salt());
        assert_ne!(unknown.salt(), credentials.verifier("noone").await.salt());
        assert_eq!(credentials.proven("nobody", &unknown), None);
        // A credential that was taken away between the two steps of a login opens nothing.
        file::remove(&path, "app").unwrap();
        credentials.0.look(Instant::now() + LOOK_EVERY * 2);
        assert_eq!(credentials.proven("app", &known), None);
    }

    #[test]
    fn a_change_is_seen_a_second_later_and_a_bad_one_changes_nothing() {
        let (_folder, path, password, credentials) = opened();
        let inner = &credentials.0;
        let logs_in = |user: &str, password: &str| inner.check(user, password.as_bytes()).is_some();
        let mut now = Instant::now();
        let second = file::add(&path, "second", "shop", None, None).unwrap();
        inner.look(now);
        assert!(!logs_in("second", &second), "looked too early");
        now += LOOK_EVERY * 2;
        inner.look(now);
        assert!(logs_in("second", &second));

        std::fs::write(&path, "credential = 5").unwrap();
        now += LOOK_EVERY;
        inner.look(now);
        assert!(inner.look.lock().failing.is_some());
        assert!(logs_in("second", &second) && logs_in("app", &password));

        // A file that is gone says that nobody may log in.
        std::fs::remove_file(&path).unwrap();
        now += LOOK_EVERY;
        inner.look(now);
        assert!(!logs_in("app", &password));
        assert!(inner.recall("app", password.as_bytes(), Instant::now()).is_none());
    }

    #[test]
    fn unknown_users_meet_the_work_of_known_ones() {
        let (_folder, _, _, credentials) = opened();
        let known = credentials.0.known.load_full();
        let stand_in = credentials.0.stand_in(&known, "nobody");
        assert_eq!(stand_in.iterations(), known.all[0].verifier.iterations());
        assert_eq!(
            credentials.0.stand_in(&Known::default(), "nobody").iterations(),
            verifier::CHOSEN_ITERATIONS
        );
    }
}
