//! DKIM (RFC 6376) as a sender needs it: keys, canonicalisation, signatures, and the DNS records that go with them.
//!
//! Canonicalising and hashing are done here on `aws-lc-rs`, some two hundred lines, and not by a mail library: those at hand
//! hash relaxed bodies that end in lines of blanks otherwise than every verifier, copy the body, or parse the key again for
//! each message. Libraries judge the result instead: `mail-auth` in this crate's tests, dkimpy in `tests/dkim`.
//!
//! Nothing here knows a clock or a network; only [`secret`] and the two functions of [`key`] that say so touch files.

pub mod canon;
pub mod dns;
pub mod key;
pub mod secret;
pub mod sign;

pub use aws_lc_rs::digest::Digest;
pub use canon::{BodyHasher, body_hash};
pub use key::{Algorithm, KeyError, PrivateKey};
pub use sign::{DomainKey, DuplicateKey, Selector, SignError, Signer, sign, sign_hashed};
