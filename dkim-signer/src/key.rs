//! Private keys: made, kept in PEM files, parsed once.

use std::fmt;
use std::path::Path;
use std::str::FromStr;

use aws_lc_rs::digest::{Digest, SHA256, digest};
use aws_lc_rs::encoding::{AsDer, Pkcs8V1Der, PublicKeyX509Der};
use aws_lc_rs::error::{KeyRejected, Unspecified};
use aws_lc_rs::rsa::{KeyPair as RsaKeyPair, KeySize};
use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair, RSA_PKCS1_SHA256};
use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use rustls_pki_types::PrivateKeyDer;
use rustls_pki_types::pem::{Error as PemError, PemObject};
use zeroize::{Zeroize, Zeroizing};

use crate::secret::{self, SecretError};

/// What RFC 8301 §3.2 has every verifier take; larger keys are refused by some, and smaller ones than 2048 by most.
pub const RSA_BITS: std::ops::RangeInclusive<usize> = 2048..=4096;

/// How signatures are made. SHA-1 is gone for good (RFC 8301 §3.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Algorithm {
    /// `rsa-sha256`, which every verifier knows.
    RsaSha256,
    /// `ed25519-sha256` (RFC 8463), which many don't know yet: a second signature beside an RSA one.
    Ed25519Sha256,
}

impl Algorithm {
    /// The word of the signature's `a=`.
    pub const fn signature_tag(self) -> &'static str {
        match self {
            Self::RsaSha256 => "rsa-sha256",
            Self::Ed25519Sha256 => "ed25519-sha256",
        }
    }

    /// The word of the DNS record's `k=`, and of command lines.
    pub const fn key_tag(self) -> &'static str {
        match self {
            Self::RsaSha256 => "rsa",
            Self::Ed25519Sha256 => "ed25519",
        }
    }
}

impl fmt::Display for Algorithm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.signature_tag())
    }
}

impl FromStr for Algorithm {
    type Err = UnknownAlgorithm;

    /// Takes the word of `k=` and of `a=`.
    fn from_str(text: &str) -> Result<Self, UnknownAlgorithm> {
        [Self::RsaSha256, Self::Ed25519Sha256]
            .into_iter()
            .find(|known| text == known.key_tag() || text == known.signature_tag())
            .ok_or(UnknownAlgorithm)
    }
}

/// The text names no [`Algorithm`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a DKIM key is rsa or ed25519")]
pub struct UnknownAlgorithm;

/// Why a key can't be used or made.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// The file could not be read or written, or others can reach it.
    #[error(transparent)]
    Secret(#[from] SecretError),
    /// No `PRIVATE KEY` or `RSA PRIVATE KEY` in it.
    #[error("no private key in PEM form (-----BEGIN PRIVATE KEY-----)")]
    NoKey,
    /// `ENCRYPTED PRIVATE KEY`, or the older form of PKCS#1.
    #[error(
        "the private key is encrypted; the relay needs it without a pass phrase, e.g. from openssl pkey -in FILE"
    )]
    Encrypted,
    /// More than one private key in one file: which one is meant would be a guess.
    #[error("more than one private key")]
    SeveralKeys,
    /// The PEM itself is broken.
    #[error("broken PEM: {0}")]
    Pem(String),
    /// Neither RSA nor Ed25519.
    #[error("the key is neither RSA nor Ed25519, the two that DKIM knows")]
    OtherAlgorithm,
    /// Outside of [`RSA_BITS`].
    #[error("RSA keys for DKIM have {} to {} bits; this one has {}", RSA_BITS.start(), RSA_BITS.end(), or_less(*.0))]
    RsaSize(Option<usize>),
    /// Of the right kind but damaged, or its parts don't fit together.
    #[error("the key is damaged ({0})")]
    Damaged(&'static str),
    /// The cryptographic library failed, as it may where it gets no randomness.
    #[error("the cryptographic library failed")]
    Library,
}

fn or_less(bits: Option<usize>) -> String {
    bits.map_or_else(|| "fewer".to_owned(), |bits| bits.to_string())
}

impl From<Unspecified> for KeyError {
    fn from(_: Unspecified) -> Self {
        Self::Library
    }
}

/// A parsed private key. Parsing costs as much as signing, so keep it. Its `Debug` shows no part of the secret.
pub struct PrivateKey {
    material: Material,
    public: String,
}

enum Material {
    Rsa(RsaKeyPair),
    Ed25519(Ed25519KeyPair),
}

impl PrivateKey {
    /// Reads a PEM file that nobody else may read ([`secret::read`]).
    pub fn load(path: &Path) -> Result<Self, KeyError> {
        Self::from_pem(&secret::read(path)?)
    }

    /// Parses PEM: PKCS#8 (RSA or Ed25519), or PKCS#1 (RSA). Other sections beside the key are passed over.
    pub fn from_pem(pem: &[u8]) -> Result<Self, KeyError> {
        // PKCS#8 says it in its label, PKCS#1 in a header line (RFC 1421 §4.6.1.1).
        if [
            &b"-----BEGIN ENCRYPTED PRIVATE KEY-----"[..],
            b"Proc-Type: 4,ENCRYPTED",
        ]
        .iter()
        .any(|mark| memchr::memmem::find(pem, mark).is_some())
        {
            return Err(KeyError::Encrypted);
        }
        let mut keys = PrivateKeyDer::pem_slice_iter(pem);
        let mut der = match keys.next() {
            None | Some(Err(PemError::NoItemsFound)) => return Err(KeyError::NoKey),
            Some(Err(PemError::Base64Decode(_))) => return Err(KeyError::Pem("not base64".into())),
            Some(Err(PemError::MissingSectionEnd { .. })) => return Err(KeyError::Pem("no END line".into())),
            Some(Err(_)) => return Err(KeyError::Pem("a section that can't be read".into())),
            Some(Ok(der)) => der,
        };
        let parsed = match keys.next() {
            None => Self::from_der(&der),
            Some(mut other) => {
                if let Ok(other) = &mut other {
                    other.zeroize();
                }
                Err(KeyError::SeveralKeys)
            }
        };
        der.zeroize();
        parsed
    }

    fn from_der(der: &PrivateKeyDer<'_>) -> Result<Self, KeyError> {
        match der {
            PrivateKeyDer::Pkcs1(key) => rsa(RsaKeyPair::from_der(key.secret_pkcs1_der())),
            PrivateKeyDer::Pkcs8(key) => match algorithm_oid(key.secret_pkcs8_der()) {
                None => Err(KeyError::Damaged("no PKCS#8")),
                Some(RSA_OID) => rsa(RsaKeyPair::from_pkcs8(key.secret_pkcs8_der())),
                Some(ED25519_OID) => Ed25519KeyPair::from_pkcs8(key.secret_pkcs8_der())
                    .map(|pair| Self {
                        public: BASE64.encode(pair.public_key().as_ref()),
                        material: Material::Ed25519(pair),
                    })
                    .map_err(|rejected| KeyError::Damaged(rejected.description_())),
                Some(_) => Err(KeyError::OtherAlgorithm),
            },
            _ => Err(KeyError::OtherAlgorithm),
        }
    }

    /// What its signatures are.
    pub fn algorithm(&self) -> Algorithm {
        match &self.material {
            Material::Rsa(_) => Algorithm::RsaSha256,
            Material::Ed25519(_) => Algorithm::Ed25519Sha256,
        }
    }

    /// The record's `p=`: for RSA the SubjectPublicKeyInfo (RFC 6376 §3.6.1 as all implement it, erratum 3017), for Ed25519
    /// the 32 octets themselves (RFC 8463 §4.2), in base64.
    pub fn public_key(&self) -> &str {
        &self.public
    }

    /// Tells keys apart, one of the same selector from the one it replaces too: part of the public key's SHA-256, in
    /// hexadecimal.
    pub fn fingerprint(&self) -> String {
        let hash = digest(&SHA256, self.public.as_bytes());
        hash.as_ref()[..8]
            .iter()
            .map(|octet| format!("{octet:02x}"))
            .collect()
    }

    /// Signs a SHA-256 digest: PKCS#1 1.5 for RSA (RFC 6376 §3.3.2), and for Ed25519 the digest's octets as the message
    /// (RFC 8463 §3).
    pub(crate) fn sign_digest(&self, digest: &Digest) -> Result<Vec<u8>, KeyError> {
        match &self.material {
            Material::Rsa(pair) => {
                let mut signature = vec![0; pair.public_modulus_len()];
                pair.sign_digest(&RSA_PKCS1_SHA256, digest, &mut signature)?;
                Ok(signature)
            }
            Material::Ed25519(pair) => Ok(pair.try_sign(digest.as_ref())?.as_ref().to_vec()),
        }
    }
}

impl fmt::Debug for PrivateKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PrivateKey({})", self.algorithm())
    }
}

fn rsa(parsed: Result<RsaKeyPair, KeyRejected>) -> Result<PrivateKey, KeyError> {
    let pair = parsed.map_err(|rejected| match rejected.description_() {
        "TooSmall" => KeyError::RsaSize(None),
        other => KeyError::Damaged(other),
    })?;
    let bits = pair.public_modulus_len() * 8;
    if !RSA_BITS.contains(&bits) {
        return Err(KeyError::RsaSize(Some(bits)));
    }
    let der: PublicKeyX509Der<'_> = pair.public_key().as_der()?;
    Ok(PrivateKey {
        public: BASE64.encode(der.as_ref()),
        material: Material::Rsa(pair),
    })
}

/// 1.2.840.113549.1.1.1 (RFC 8017 appendix C).
const RSA_OID: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x01];
/// 1.3.101.112 (RFC 8410 §3).
const ED25519_OID: &[u8] = &[0x2b, 0x65, 0x70];

/// The algorithm of a PKCS#8 key: `SEQUENCE { INTEGER version, SEQUENCE { OBJECT IDENTIFIER, … }, … }` (RFC 5958 §2).
fn algorithm_oid(pkcs8: &[u8]) -> Option<&[u8]> {
    let (key, _) = der_value(pkcs8, 0x30)?;
    let (_, rest) = der_value(key, 0x02)?;
    let (algorithm, _) = der_value(rest, 0x30)?;
    der_value(algorithm, 0x06).map(|(oid, _)| oid)
}

/// The contents of the DER value of type `tag` that `der` begins with, and what follows it.
fn der_value(der: &[u8], tag: u8) -> Option<(&[u8], &[u8])> {
    let (&first, rest) = der.strip_prefix(&[tag])?.split_first()?;
    let (length, rest) = match first {
        short @ ..=0x7f => (usize::from(short), rest),
        long @ 0x80..=0x83 => {
            let (octets, rest) = rest.split_at_checked(usize::from(long & 0x7f))?;
            let length = octets
                .iter()
                .fold(0, |sum, &octet| (sum << 8) | usize::from(octet));
            (length, rest)
        }
        _ => return None,
    };
    rest.split_at_checked(length)
}

/// Makes a key: RSA of 2048 bits, whose record still fits what DNS hosters take, or Ed25519. PKCS#8 in PEM.
pub fn generate(algorithm: Algorithm) -> Result<Zeroizing<String>, KeyError> {
    let mut der = match algorithm {
        Algorithm::RsaSha256 => {
            let pair = RsaKeyPair::generate(KeySize::Rsa2048)?;
            let der: Pkcs8V1Der<'_> = pair.as_der()?;
            Zeroizing::new(der.as_ref().to_vec())
        }
        Algorithm::Ed25519Sha256 => {
            // Version 1, which OpenSSL reads too.
            let der: Pkcs8V1Der<'_> = Ed25519KeyPair::generate()?.as_der()?;
            Zeroizing::new(der.as_ref().to_vec())
        }
    };
    let text = Zeroizing::new(BASE64.encode(&*der));
    der.zeroize();
    let mut pem = Zeroizing::new(String::with_capacity(text.len() + text.len() / 32 + 64));
    pem.push_str("-----BEGIN PRIVATE KEY-----\n");
    for line in text.as_bytes().chunks(64) {
        pem.extend(line.iter().map(|&octet| char::from(octet)));
        pem.push('\n');
    }
    pem.push_str("-----END PRIVATE KEY-----\n");
    Ok(pem)
}

/// [`generate`] into a new file ([`secret::write_new`]), and the key itself.
pub fn generate_file(algorithm: Algorithm, path: &Path) -> Result<PrivateKey, KeyError> {
    let pem = generate(algorithm)?;
    let key = PrivateKey::from_pem(pem.as_bytes())?;
    secret::write_new(path, pem.as_bytes())?;
    Ok(key)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(file: &str) -> Result<PrivateKey, KeyError> {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/keys");
        PrivateKey::from_pem(&std::fs::read(folder.join(file)).unwrap())
    }

    #[test]
    fn reads_the_forms_that_openssl_writes() {
        for (file, algorithm) in [
            ("rsa2048.pkcs8.pem", Algorithm::RsaSha256),
            ("rsa2048.pkcs1.pem", Algorithm::RsaSha256),
            ("ed25519.pkcs8.pem", Algorithm::Ed25519Sha256),
        ] {
            assert_eq!(read(file).unwrap().algorithm(), algorithm, "{file}");
        }
        // Both hold the same key; openssl says its public half is this.
        let pkcs8 = read("rsa2048.pkcs8.pem").unwrap();
        let public = pkcs8.public_key();
        assert_eq!(public, read("rsa2048.pkcs1.pem").unwrap().public_key());
        let told = include_str!("../tests/keys/rsa2048.public.txt");
        assert_eq!(public, told.trim_end());
        let told = include_str!("../tests/keys/ed25519.public.txt");
        assert_eq!(read("ed25519.pkcs8.pem").unwrap().public_key(), told.trim_end());
    }

    #[test]
    fn refuses_the_rest_and_says_why() {
        for (file, told) in [
            (
                "rsa1024.pem",
                "RSA keys for DKIM have 2048 to 4096 bits; this one has fewer",
            ),
            (
                "p256.pem",
                "the key is neither RSA nor Ed25519, the two that DKIM knows",
            ),
            (
                "encrypted.pem",
                "the private key is encrypted; the relay needs it without a pass phrase, e.g. from openssl pkey -in FILE",
            ),
            (
                "rsa2048.public.txt",
                "no private key in PEM form (-----BEGIN PRIVATE KEY-----)",
            ),
        ] {
            assert_eq!(read(file).unwrap_err().to_string(), told, "{file}");
        }
        let key = include_str!("../tests/keys/ed25519.pkcs8.pem");
        for (pem, told) in [
            (key.repeat(2), "more than one private key"),
            (key.replace("-----END", "-----EMD"), "broken PEM: no END line"),
            (
                "-----BEGIN PRIVATE KEY-----\nMAA=\n-----END PRIVATE KEY-----\n".into(),
                "the key is damaged (no PKCS#8)",
            ),
        ] {
            assert_eq!(
                PrivateKey::from_pem(pem.as_bytes()).unwrap_err().to_string(),
                told
            );
        }
    }

    #[test]
    fn makes_keys_that_can_be_loaded() {
        let folder = tempfile::tempdir().unwrap();
        for algorithm in [Algorithm::RsaSha256, Algorithm::Ed25519Sha256] {
            let path = folder.path().join(algorithm.key_tag());
            let made = generate_file(algorithm, &path).unwrap();
            let loaded = PrivateKey::load(&path).unwrap();
            assert_eq!(loaded.algorithm(), algorithm);
            assert_eq!(loaded.public_key(), made.public_key());
            assert_eq!(format!("{loaded:?}"), format!("PrivateKey({algorithm})"));
            assert!(matches!(
                generate_file(algorithm, &path),
                Err(KeyError::Secret(SecretError::Exists { .. }))
            ));
        }
    }

    #[test]
    fn der_lengths_never_run_over() {
        for der in [
            &[0x30][..],
            &[0x30, 0x80],
            &[0x30, 0x82, 0xff],
            &[0x30, 0x83, 0xff, 0xff, 0xff, 0],
            &[0x30, 0x05, 0x02, 0x01],
        ] {
            assert_eq!(algorithm_oid(der), None, "{der:x?}");
        }
    }
}
