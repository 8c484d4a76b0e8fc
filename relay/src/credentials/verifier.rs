//! SCRAM-SHA-256 verifiers (RFC 5802 §3, RFC 7677), in the text form of RFC 5803.

use std::fmt;
use std::num::NonZeroU32;
use std::str::FromStr;

use aws_lc_rs::constant_time::verify_slices_are_equal;
use aws_lc_rs::{digest, hmac, pbkdf2, rand};
use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use zeroize::Zeroizing;

use super::FileError;

/// For passwords that a person chose, which can be guessed: OWASP's figure for PBKDF2-HMAC-SHA256, about 0.1 s of a core.
pub const CHOSEN_ITERATIONS: u32 = 600_000;

/// For passwords that we made: RFC 7677 §4 asks for at least this, and 160 bits of randomness are not guessed however fast
/// a guess is tried. Below a millisecond.
pub const MADE_ITERATIONS: u32 = 4_096;

/// What a file may ask for: more would stop the relay, less is not SCRAM.
const ITERATIONS: std::ops::RangeInclusive<u32> = MADE_ITERATIONS..=10_000_000;

const SALT_BYTES: usize = 16;

type Hash = [u8; digest::SHA256_OUTPUT_LEN];

/// Tells whether a password is right, and holds nothing that logs in by itself.
#[derive(Clone, PartialEq, Eq)]
pub struct Verifier {
    iterations: NonZeroU32,
    salt: Vec<u8>,
    stored_key: Hash,
    server_key: Hash,
}

/// The text is no [`Verifier`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "a verifier is SCRAM-SHA-256$ITERATIONS:SALT$STOREDKEY:SERVERKEY with at least {MADE_ITERATIONS} iterations"
)]
pub struct BadVerifier;

impl Verifier {
    /// For a new password, with a salt of its own.
    pub fn new(password: &[u8], iterations: u32) -> Result<Self, FileError> {
        let mut salt = vec![0; SALT_BYTES];
        rand::fill(&mut salt).map_err(|_| FileError::Randomness)?;
        let iterations = NonZeroU32::new(iterations).unwrap_or(NonZeroU32::MIN);
        let (stored_key, server_key) = keys(password, &salt, iterations);
        Ok(Self {
            iterations,
            salt,
            stored_key,
            server_key,
        })
    }

    /// One that no password is known to match.
    pub fn stand_in() -> Self {
        Self {
            iterations: NonZeroU32::new(CHOSEN_ITERATIONS).unwrap_or(NonZeroU32::MIN),
            salt: vec![0; SALT_BYTES],
            stored_key: Hash::default(),
            server_key: Hash::default(),
        }
    }

    /// Whether the password is right. Takes as long for any.
    pub fn matches(&self, password: &[u8]) -> bool {
        let (stored_key, server_key) = keys(password, &self.salt, self.iterations);
        let right = verify_slices_are_equal(&stored_key, &self.stored_key).is_ok();
        right & verify_slices_are_equal(&server_key, &self.server_key).is_ok()
    }

    /// Rounds of PBKDF2.
    pub fn iterations(&self) -> u32 {
        self.iterations.get()
    }

    /// What the password was hashed with; not secret.
    pub(super) fn salt(&self) -> &[u8] {
        &self.salt
    }

    /// The hash of what a client proves to have (RFC 5802 §3).
    pub(super) fn stored_key(&self) -> &[u8] {
        &self.stored_key
    }

    /// What the server proves to have (RFC 5802 §3).
    pub(super) fn server_key(&self) -> &[u8] {
        &self.server_key
    }

    /// One of the same work that no password is known to match, with a salt made from `seed`: the same each time.
    pub(super) fn disguised(mut self, seed: &[u8]) -> Self {
        for (octet, new) in self.salt.iter_mut().zip(seed.iter().cycle()) {
            *octet = *new;
        }
        self.stored_key = Hash::default();
        self.server_key = Hash::default();
        self
    }
}

/// StoredKey and ServerKey (RFC 5802 §3). Passwords are printable ASCII, which SASLprep leaves as it is.
fn keys(password: &[u8], salt: &[u8], iterations: NonZeroU32) -> (Hash, Hash) {
    let mut salted = Zeroizing::new(Hash::default());
    pbkdf2::derive(
        pbkdf2::PBKDF2_HMAC_SHA256,
        iterations,
        salt,
        password,
        &mut *salted,
    );
    let salted = hmac::Key::new(hmac::HMAC_SHA256, &*salted);
    let client_key = hmac::sign(&salted, b"Client Key");
    let stored_key = digest::digest(&digest::SHA256, client_key.as_ref());
    let server_key = hmac::sign(&salted, b"Server Key");
    let (mut stored, mut server) = (Hash::default(), Hash::default());
    stored.copy_from_slice(stored_key.as_ref());
    server.copy_from_slice(server_key.as_ref());
    (stored, server)
}

impl fmt::Display for Verifier {
    /// As the file holds it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "SCRAM-SHA-256${}:{}${}:{}",
            self.iterations,
            BASE64.encode(&self.salt),
            BASE64.encode(self.stored_key),
            BASE64.encode(self.server_key)
        )
    }
}

impl fmt::Debug for Verifier {
    /// No part of it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Verifier")
    }
}

impl FromStr for Verifier {
    type Err = BadVerifier;

    fn from_str(text: &str) -> Result<Self, BadVerifier> {
        let read = || {
            let (work, keys) = text.strip_prefix("SCRAM-SHA-256$")?.split_once('$')?;
            let (iterations, salt) = work.split_once(':')?;
            let (stored_key, server_key) = keys.split_once(':')?;
            let hash = |text: &str| BASE64.decode(text).ok()?.try_into().ok();
            let iterations: u32 = iterations.parse().ok()?;
            Some(Self {
                iterations: NonZeroU32::new(iterations)
                    .filter(|number| ITERATIONS.contains(&number.get()))?,
                salt: BASE64
                    .decode(salt)
                    .ok()
                    .filter(|salt| (8..=64).contains(&salt.len()))?,
                stored_key: hash(stored_key)?,
                server_key: hash(server_key)?,
            })
        };
        read().ok_or(BadVerifier)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// RFC 7677 §3: the password `pencil`. PostgreSQL shows the same verifier for this salt.
    #[test]
    fn agrees_with_the_rfc() {
        let salt = BASE64.decode("W22ZaJ0SNY7soEsUEjb6gQ==").unwrap();
        let iterations = NonZeroU32::new(4_096).unwrap();
        let (stored_key, server_key) = keys(b"pencil", &salt, iterations);
        let auth = "n=user,r=rOprNGfwEbeRWgbNEkqO,r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,\
            s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096,c=biws,r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0";
        let signature = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, &server_key), auth.as_bytes());
        assert_eq!(
            BASE64.encode(signature),
            "6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4="
        );
        // The client's proof leads to StoredKey (RFC 5802 §3).
        let mask = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, &stored_key), auth.as_bytes());
        let proof = BASE64
            .decode("dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ=")
            .unwrap();
        let client_key: Vec<u8> = proof.iter().zip(mask.as_ref()).map(|(a, b)| a ^ b).collect();
        assert_eq!(digest::digest(&digest::SHA256, &client_key).as_ref(), stored_key);
    }

    #[test]
    fn reads_back_what_it_wrote() {
        let verifier = Verifier::new(b"secret", MADE_ITERATIONS).unwrap();
        let text = verifier.to_string();
        let read: Verifier = text.parse().unwrap();
        assert_eq!(read, verifier);
        assert!(read.matches(b"secret") && !read.matches(b"secret ") && !read.matches(b""));
        assert_eq!(format!("{verifier:?}"), "Verifier");
        for wrong in [
            "",
            "secret",
            &text.replace("4096", "4095"),
            &text.replace("4096", "99999999"),
            &text.replace("256", "1"),
            &text[..text.len() - 1],
            &format!("{text}A"),
        ] {
            assert_eq!(wrong.parse::<Verifier>(), Err(BadVerifier), "{wrong}");
        }
    }
}
