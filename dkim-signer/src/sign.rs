//! The `DKIM-Signature` field (RFC 6376 §3.5), and which keys sign for whom.

use std::collections::HashMap;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use aws_lc_rs::digest::{Digest, SHA256, digest};
use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use mail_core::header::{self, Field};
use mail_core::{Domain, Timestamp};

use crate::canon;
use crate::key::{Algorithm, KeyError, PrivateKey};

/// Fields signed once more than they occur, so that none can be put above the signed one without breaking the signature
/// (RFC 6376 §8.15): all that a reader is shown, and what says how the body is to be read.
pub const OVERSIGNED: [&str; 11] = [
    "From",
    "Sender",
    "Reply-To",
    "To",
    "Cc",
    "Subject",
    "Date",
    "Message-ID",
    "MIME-Version",
    "Content-Type",
    "Content-Transfer-Encoding",
];

/// Fields signed as often as they occur (RFC 6376 §5.4.1). Not more: mailing lists add them. List-Unsubscribe and
/// List-Unsubscribe-Post must be signed (RFC 8058 §4), and large providers want Feedback-ID to be.
pub const SIGNED: [&str; 16] = [
    "In-Reply-To",
    "References",
    "List-Id",
    "List-Help",
    "List-Unsubscribe",
    "List-Unsubscribe-Post",
    "List-Subscribe",
    "List-Post",
    "List-Owner",
    "List-Archive",
    "Feedback-ID",
    "Auto-Submitted",
    "Resent-From",
    "Resent-Date",
    "Resent-To",
    "Resent-Cc",
];

/// Fields one signature covers at the most; a message with more is some machine's mistake, and `h=` must stay readable.
pub const MAX_SIGNED_FIELDS: usize = 500;

/// Why there is no signature.
#[derive(Debug, thiserror::Error)]
pub enum SignError {
    /// RFC 6376 §5.4 demands that From be signed.
    #[error("the message has no From")]
    NoFrom,
    /// Over [`MAX_SIGNED_FIELDS`].
    #[error("the message has over {MAX_SIGNED_FIELDS} header fields to sign")]
    TooManyFields,
    /// The key did not sign.
    #[error(transparent)]
    Key(#[from] KeyError),
}

/// `s=`: labels of letters, digits and inner hyphens with dots between (RFC 6376 §3.1), at most 63 octets in all.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Selector(Arc<str>);

/// The text is no [`Selector`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "a selector is letters, digits and inner hyphens, with dots between labels, and 63 characters at the most"
)]
pub struct BadSelector;

impl Selector {
    /// In lower case.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Selector {
    type Err = BadSelector;

    fn from_str(text: &str) -> Result<Self, BadSelector> {
        let is_label = |label: &str| {
            !label.is_empty()
                && !label.starts_with('-')
                && !label.ends_with('-')
                && label.bytes().all(|c| c.is_ascii_alphanumeric() || c == b'-')
        };
        if text.len() > 63 || !text.split('.').all(is_label) {
            return Err(BadSelector);
        }
        Ok(Self(text.to_ascii_lowercase().into()))
    }
}

impl fmt::Display for Selector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A key with the name its record has in the DNS. Cloning is cheap.
#[derive(Clone, Debug)]
pub struct DomainKey {
    /// `d=`.
    pub domain: Domain,
    /// `s=`.
    pub selector: Selector,
    /// The key itself.
    pub key: Arc<PrivateKey>,
}

/// Two keys of one algorithm for one domain: which of them signs would be a guess.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{domain} has two {algorithm} keys, {first} and {second}")]
pub struct DuplicateKey {
    /// Whose.
    pub domain: Domain,
    /// Of both.
    pub algorithm: Algorithm,
    /// Selector of one.
    pub first: Selector,
    /// Selector of the other.
    pub second: Selector,
}

/// All keys, by domain.
#[derive(Clone, Debug, Default)]
pub struct Signer {
    keys: HashMap<String, Vec<DomainKey>>,
}

impl Signer {
    /// A domain may have one key of each algorithm.
    pub fn new(keys: impl IntoIterator<Item = DomainKey>) -> Result<Self, DuplicateKey> {
        let mut signer = Self::default();
        for key in keys {
            let of_domain = signer.keys.entry(key.domain.to_string()).or_default();
            let algorithm = key.key.algorithm();
            if let Some(other) = of_domain.iter().find(|k| k.key.algorithm() == algorithm) {
                return Err(DuplicateKey {
                    domain: key.domain,
                    algorithm,
                    first: other.selector.clone(),
                    second: key.selector,
                });
            }
            of_domain.push(key);
            // RSA first: the one that all verifiers know.
            of_domain.sort_by_key(|k| k.key.algorithm());
        }
        Ok(signer)
    }

    /// The keys that sign for a From of `domain`: its own, or else those of the nearest domain above it, which is aligned
    /// for DMARC too (RFC 7489 §3.1.1, relaxed). At most one of each algorithm, RSA first; empty where none signs.
    pub fn keys_for(&self, domain: &Domain) -> &[DomainKey] {
        let mut name = domain.as_str();
        loop {
            if let Some(keys) = self.keys.get(name) {
                return keys;
            }
            match name.split_once('.') {
                Some((_, parent)) => name = parent,
                None => return &[],
            }
        }
    }

    /// All keys, in no order.
    pub fn keys(&self) -> impl Iterator<Item = &DomainKey> {
        self.keys.values().flatten()
    }
}

/// Makes one `DKIM-Signature` field with each of `keys`, to stand on top of the message; each ends in CRLF.
///
/// `headers` are the parts of the header block in order (ours on top, then the client's), each of whole fields; `body` is
/// all after the empty line. `now` becomes `t=`: it must not be ahead of the world's clock. Costs one pass over the body,
/// and about 0.5 ms for an RSA signature.
pub fn sign(
    keys: &[DomainKey],
    headers: &[&[u8]],
    body: &[u8],
    now: Timestamp,
) -> Result<Vec<u8>, SignError> {
    if keys.is_empty() {
        return Ok(Vec::new());
    }
    sign_hashed(keys, headers, &canon::body_hash(body), now)
}

/// As [`sign`], with the hash of a body that is not at hand as a whole: see [`canon::BodyHasher`].
pub fn sign_hashed(
    keys: &[DomainKey],
    headers: &[&[u8]],
    body_hash: &Digest,
    now: Timestamp,
) -> Result<Vec<u8>, SignError> {
    let fields: Vec<Field<'_>> = headers.iter().flat_map(|part| header::fields(part)).collect();
    let Selection { names, mut hashed } = select(&fields)?;
    let body_hash = BASE64.encode(body_hash);
    let length = hashed.len();
    let mut signatures = Vec::new();
    for key in keys {
        let unsigned = unsigned_field(key, &names, &body_hash, now);
        hashed.truncate(length);
        if let Some(field) = header::fields(unsigned.as_bytes()).next() {
            canon::write_field(&field, &mut hashed);
        }
        // RFC 6376 §3.7: the field itself comes last and without its CRLF.
        hashed.truncate(hashed.len() - 2);
        let signature = key.key.sign_digest(&digest(&SHA256, &hashed))?;
        signatures.extend_from_slice(unsigned.trim_end().as_bytes());
        for chunk in BASE64.encode(signature).as_bytes().chunks(LINE - 1) {
            signatures.extend_from_slice(b"\r\n ");
            signatures.extend_from_slice(chunk);
        }
        signatures.extend_from_slice(b"\r\n");
    }
    Ok(signatures)
}

/// Longest line of a signature, without CRLF (RFC 5322 §2.1.1), where no single word is longer.
const LINE: usize = 78;

struct Selection {
    /// `h=` in order.
    names: Vec<&'static str>,
    /// The fields that `h=` names, in its order, in relaxed form.
    hashed: Vec<u8>,
}

/// RFC 6376 §5.4.2: of fields of one name the last comes first; a name once more than there are fields stands for none.
fn select(fields: &[Field<'_>]) -> Result<Selection, SignError> {
    let mut selection = Selection {
        names: Vec::new(),
        hashed: Vec::new(),
    };
    if !fields.iter().any(|field| field.is("From")) {
        return Err(SignError::NoFrom);
    }
    for name in OVERSIGNED.into_iter().chain(SIGNED) {
        for field in fields.iter().rev().filter(|field| field.is(name)) {
            selection.names.push(name);
            canon::write_field(field, &mut selection.hashed);
        }
        if OVERSIGNED.contains(&name) {
            selection.names.push(name);
        }
        if selection.names.len() > MAX_SIGNED_FIELDS {
            return Err(SignError::TooManyFields);
        }
    }
    Ok(selection)
}

/// The field with an empty `b=`, folded, with its CRLF. No `l=`, which lets others append; no `x=`, since mail may wait.
fn unsigned_field(key: &DomainKey, names: &[&str], body_hash: &str, now: Timestamp) -> String {
    let mut field = Folded::new("DKIM-Signature:");
    field.word(" v=1;");
    field.word(&format!(" a={};", key.key.algorithm()));
    field.word(" c=relaxed/relaxed;");
    field.word(&format!(" d={};", key.domain));
    field.word(&format!(" s={};", key.selector));
    field.word(&format!(" t={};", now.seconds()));
    for (at, name) in names.iter().enumerate() {
        let mark = if at == 0 { " h=" } else { "" };
        let end = if at + 1 == names.len() { ';' } else { ':' };
        field.word(&format!("{mark}{name}{end}"));
    }
    field.word(&format!(" bh={body_hash};"));
    field.word(" b=");
    field.text + "\r\n"
}

struct Folded {
    text: String,
    column: usize,
}

impl Folded {
    fn new(start: &str) -> Self {
        Self {
            text: start.to_owned(),
            column: start.len(),
        }
    }

    /// Puts a word, on a line of its own where it would run over [`LINE`].
    fn word(&mut self, word: &str) {
        if self.column + word.len() > LINE {
            self.text.push_str("\r\n ");
            self.column = 1;
            self.put(word.trim_start());
        } else {
            self.put(word);
        }
    }

    fn put(&mut self, word: &str) {
        self.text.push_str(word);
        self.column += word.len();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(domain: &str, selector: &str, pem: &str) -> DomainKey {
        DomainKey {
            domain: domain.parse().unwrap(),
            selector: selector.parse().unwrap(),
            key: Arc::new(PrivateKey::from_pem(pem.as_bytes()).unwrap()),
        }
    }

    fn rsa(domain: &str) -> DomainKey {
        key(domain, "r1", include_str!("../tests/keys/rsa2048.pkcs8.pem"))
    }

    fn ed25519(domain: &str) -> DomainKey {
        key(domain, "e1", include_str!("../tests/keys/ed25519.pkcs8.pem"))
    }

    const NOW: Timestamp = Timestamp(1_700_000_000_999);

    #[test]
    fn the_field_is_as_rfc_6376_has_it() {
        let message = b"From: a@example.com\r\nSubject: x\r\n";
        let signed = sign(&[ed25519("example.com")], &[message], b"hello\r\n", NOW).unwrap();
        let text = String::from_utf8(signed).unwrap();
        let (head, signature) = text.split_once("b=\r\n").unwrap();
        assert_eq!(
            head,
            "DKIM-Signature: v=1; a=ed25519-sha256; c=relaxed/relaxed; d=example.com; s=e1;\r\n \
             t=1700000000; h=From:From:Sender:Reply-To:To:Cc:Subject:Subject:Date:\r\n \
             Message-ID:MIME-Version:Content-Type:Content-Transfer-Encoding;\r\n \
             bh=zS7KNTV0HyeorkDDGwxB1AV6enuRKzO5rthkhdHIRnY=; "
        );
        assert_eq!(signature.split_whitespace().collect::<String>().len(), 88);
    }

    #[test]
    fn lines_are_short_and_fields_end_in_crlf() {
        let keys = [rsa("a-rather-long-name.example.com"), ed25519("example.com")];
        let list = b"From: a@example.com\r\nList-Unsubscribe: <https://example.com/u>\r\n\
            List-Unsubscribe-Post: List-Unsubscribe=One-Click\r\nReceived: x\r\n";
        let signed = sign(&keys, &[b"Date: now\r\n", list], b"", NOW).unwrap();
        let text = String::from_utf8(signed).unwrap();
        assert!(text.ends_with("\r\n"));
        assert!(text.split("\r\n").all(|line| line.len() <= LINE), "{text}");
        assert_eq!(header::fields(text.as_bytes()).count(), 2);
        let flat: String = text.split_whitespace().collect();
        assert!(flat.contains(":List-Unsubscribe:List-Unsubscribe-Post;"));
        assert!(!flat.contains("Received"));
        assert!(!flat.contains(";l=") && !flat.contains(";x="));
    }

    #[test]
    fn repeated_fields_are_each_signed_and_once_more() {
        let message = b"To: a@x.test\r\nTo: b@x.test\r\nFrom: a@x.test\r\nReferences: <1@x>\r\n";
        let fields: Vec<_> = header::fields(message).collect();
        let selection = select(&fields).unwrap();
        let count = |name| selection.names.iter().filter(|&&n| n == name).count();
        assert_eq!(
            [count("To"), count("From"), count("Cc"), count("References")],
            [3, 2, 1, 1]
        );
        assert_eq!(
            selection.hashed,
            b"from:a@x.test\r\nto:b@x.test\r\nto:a@x.test\r\nreferences:<1@x>\r\n"
        );
    }

    #[test]
    fn what_cannot_be_signed_is_told() {
        let keys = [ed25519("example.com")];
        assert!(matches!(
            sign(&keys, &[b"To: a@x.test\r\n"], b"", NOW),
            Err(SignError::NoFrom)
        ));
        let many = [
            b"From: a@x.test\r\n".to_vec(),
            b"To: a@x.test\r\n".repeat(MAX_SIGNED_FIELDS),
        ]
        .concat();
        assert!(matches!(
            sign(&keys, &[&many], b"", NOW),
            Err(SignError::TooManyFields)
        ));
        assert!(sign(&[], &[b""], b"", NOW).unwrap().is_empty());
    }

    #[test]
    fn the_nearest_domain_signs_with_each_algorithm() {
        let signer = Signer::new([
            ed25519("example.com"),
            rsa("example.com"),
            rsa("mail.example.com"),
        ])
        .unwrap();
        let of = |domain: &str| {
            let keys = signer.keys_for(&domain.parse().unwrap());
            keys.iter()
                .map(|k| format!("{} {}", k.domain, k.selector))
                .collect::<Vec<_>>()
        };
        assert_eq!(of("example.com"), ["example.com r1", "example.com e1"]);
        assert_eq!(of("news.example.com"), ["example.com r1", "example.com e1"]);
        assert_eq!(of("mail.example.com"), ["mail.example.com r1"]);
        assert_eq!(of("a.mail.example.com"), ["mail.example.com r1"]);
        assert!(of("badexample.com").is_empty());
        assert!(of("com").is_empty());
        let twice = Signer::new([rsa("example.com"), rsa("example.com")]).unwrap_err();
        assert_eq!(
            twice.to_string(),
            "example.com has two rsa-sha256 keys, r1 and r1"
        );
    }

    #[test]
    fn selectors_go_into_a_name_and_a_tag() {
        for good in ["s1", "20240101", "Mail.2024-a"] {
            assert!(good.parse::<Selector>().is_ok(), "{good}");
        }
        let long = "a".repeat(64);
        for bad in [
            "", ".", "a..b", "-a", "a-", "a;b", "a b", "a_b", "a\r\nb", "ü", &long,
        ] {
            assert_eq!(bad.parse::<Selector>(), Err(BadSelector), "{bad:?}");
        }
    }
}
