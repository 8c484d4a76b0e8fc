//! Addresses of the envelope.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Serialize, Serializer};

use crate::domain::{BadDomain, Domain};

/// An address of the envelope: a local part of at most 64 octets and a domain (RFC 5321 §4.1.2, §4.5.3.1.1).
///
/// The local part is kept in its wire form, byte for byte, a quoted string with its quotes: only the final host may read
/// meaning into it (RFC 5321 §2.3.11). UTF-8 is possible (RFC 6531); [`Mailbox::is_ascii`] tells. No control character,
/// so neither CR nor LF, ever gets in.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Deserialize)]
#[serde(try_from = "String")]
pub struct Mailbox {
    local: Arc<str>,
    domain: Domain,
}

/// Why a text is not a [`Mailbox`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadMailbox {
    /// No `@` outside a quoted string.
    #[error("an address is LOCAL@DOMAIN")]
    NoDomain,
    /// Nothing before the `@`, or an empty atom as in `a..b`.
    #[error("the local part is empty or has an empty part between dots")]
    EmptyLocal,
    /// Over 64 octets before the `@`.
    #[error("the local part has at most 64 octets")]
    LocalTooLong,
    /// A character that needs quotes, or that is never allowed.
    #[error("the local part has a character that is not allowed there")]
    LocalCharacter,
    /// An address literal such as `[192.0.2.1]`, which this relay does not route to.
    #[error("address literals are not accepted")]
    Literal,
    /// What follows the `@` is no domain.
    #[error(transparent)]
    Domain(#[from] BadDomain),
}

impl Mailbox {
    /// Checks and joins both parts.
    pub fn new(local: &str, domain: Domain) -> Result<Self, BadMailbox> {
        check_local(local)?;
        Ok(Self {
            local: local.into(),
            domain,
        })
    }

    /// The local part as it goes on the wire, a quoted string with its quotes.
    pub fn local(&self) -> &str {
        &self.local
    }

    /// Where the mailbox is.
    pub fn domain(&self) -> &Domain {
        &self.domain
    }

    /// Whether the address can be sent to a host without SMTPUTF8 (the domain always can).
    pub fn is_ascii(&self) -> bool {
        self.local.is_ascii()
    }
}

impl FromStr for Mailbox {
    type Err = BadMailbox;

    fn from_str(text: &str) -> Result<Self, BadMailbox> {
        // The last `@` divides: one inside quotes is never last, since a domain has none.
        let (local, domain) = text.rsplit_once('@').ok_or(BadMailbox::NoDomain)?;
        if domain.starts_with('[') {
            return Err(BadMailbox::Literal);
        }
        Self::new(local, domain.parse()?)
    }
}

fn check_local(local: &str) -> Result<(), BadMailbox> {
    if local.len() > 64 {
        return Err(BadMailbox::LocalTooLong);
    }
    match local.as_bytes() {
        [] => Err(BadMailbox::EmptyLocal),
        [b'"', inner @ .., b'"'] => check_quoted(inner),
        _ => local.split('.').try_for_each(check_atom),
    }
}

/// What stands between the quotes: printable characters and spaces, `"` and `\` only behind a `\`.
fn check_quoted(inner: &[u8]) -> Result<(), BadMailbox> {
    let mut octets = inner.iter();
    while let Some(&octet) = octets.next() {
        let plain = match octet {
            b'"' => return Err(BadMailbox::LocalCharacter),
            b'\\' => octets.next().copied().filter(u8::is_ascii),
            other => Some(other),
        };
        if !plain.is_some_and(|c| c >= 0x20 && c != 0x7f) {
            return Err(BadMailbox::LocalCharacter);
        }
    }
    Ok(())
}

fn check_atom(atom: &str) -> Result<(), BadMailbox> {
    if atom.is_empty() {
        return Err(BadMailbox::EmptyLocal);
    }
    let allowed = |c: char| {
        if c.is_ascii() {
            c.is_ascii_alphanumeric() || "!#$%&'*+-/=?^_`{|}~".contains(c)
        } else {
            !c.is_control()
        }
    };
    if atom.chars().all(allowed) {
        Ok(())
    } else {
        Err(BadMailbox::LocalCharacter)
    }
}

impl TryFrom<String> for Mailbox {
    type Error = BadMailbox;

    fn try_from(text: String) -> Result<Self, BadMailbox> {
        text.parse()
    }
}

impl Serialize for Mailbox {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl From<Mailbox> for String {
    fn from(mailbox: Mailbox) -> Self {
        [mailbox.local(), "@", mailbox.domain.as_str()].concat()
    }
}

impl fmt::Display for Mailbox {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{}", self.local, self.domain)
    }
}

impl fmt::Debug for Mailbox {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Where reports on a message go: a mailbox, or nowhere (`<>`) for reports themselves (RFC 5321 §4.5.5).
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum ReversePath {
    /// `<>`: never report on this message.
    Null,
    /// Reports go here.
    Mailbox(Mailbox),
}

impl ReversePath {
    /// The mailbox, if there is one.
    pub fn mailbox(&self) -> Option<&Mailbox> {
        match self {
            Self::Null => None,
            Self::Mailbox(mailbox) => Some(mailbox),
        }
    }
}

impl fmt::Display for ReversePath {
    /// Without angle brackets; nothing for the null path.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Null => Ok(()),
            Self::Mailbox(mailbox) => mailbox.fmt(f),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keeps_the_local_part_as_written() {
        for text in [
            "Bob.Smith+tag@example.com",
            r#""a b\"c@d"@example.com"#,
            "jürgen@example.com",
            "a%b!c@example.com",
        ] {
            assert_eq!(text.parse::<Mailbox>().unwrap().to_string(), text);
        }
        assert!(!"jürgen@example.com".parse::<Mailbox>().unwrap().is_ascii());
        assert_eq!(
            "a@MÜNCHEN.de".parse::<Mailbox>().unwrap().to_string(),
            "a@xn--mnchen-3ya.de"
        );
    }

    #[test]
    fn refuses_what_would_break_a_line_or_a_parser() {
        let long = format!("{}@example.com", "a".repeat(65));
        for (text, why) in [
            ("plain", BadMailbox::NoDomain),
            ("@example.com", BadMailbox::EmptyLocal),
            ("a..b@example.com", BadMailbox::EmptyLocal),
            (".a@example.com", BadMailbox::EmptyLocal),
            ("a b@example.com", BadMailbox::LocalCharacter),
            ("a@b@example.com", BadMailbox::LocalCharacter),
            ("\"a\r\nRCPT TO:<x>\"@example.com", BadMailbox::LocalCharacter),
            ("\"a\0\"@example.com", BadMailbox::LocalCharacter),
            ("\"a\\\"@example.com", BadMailbox::LocalCharacter),
            ("a<b@example.com", BadMailbox::LocalCharacter),
            ("a\u{85}@example.com", BadMailbox::LocalCharacter),
            ("a@[192.0.2.1]", BadMailbox::Literal),
            ("a@", BadMailbox::Domain(BadDomain::Empty)),
            (&long, BadMailbox::LocalTooLong),
        ] {
            assert_eq!(text.parse::<Mailbox>(), Err(why), "{text:?}");
        }
    }
}
