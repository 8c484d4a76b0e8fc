//! Domains as they go on the wire.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use idna::uts46::{AsciiDenyList, DnsLength, Hyphens};
use serde::{Deserialize, Serialize, Serializer};

/// A domain as it goes on the wire: A-labels, lower case, no final dot, 1..=255 octets (RFC 5321 §4.5.3.1.2), each label
/// 1..=63 octets of letters, digits, inner hyphens (RFC 5890 §2.3.1) and underscores: no host name has these by RFC 952, but there are
/// domains and MX hosts that do, and the DNS carries them (RFC 2181 §11). Cloning is cheap.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Deserialize)]
#[serde(try_from = "String")]
pub struct Domain(Arc<str>);

/// Why a text is not a [`Domain`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadDomain {
    /// No octets, or an empty label as in `a..b`.
    #[error("a domain needs at least one character between its dots")]
    Empty,
    /// Over 255 octets in all, or a label over 63.
    #[error("a domain has at most 255 octets and 63 between two dots")]
    TooLong,
    /// A character, or a hyphen at a label's edge, that no domain has; or U-labels that IDNA refuses.
    #[error("a domain is made of letters, digits, hyphens and underscores between dots")]
    Character,
    /// The last label is all digits: an IPv4 address without its brackets.
    #[error("an IP address is not a domain")]
    Address,
}

impl Domain {
    /// The A-label form.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether it can be a host's name (RFC 952, RFC 1123 §2.1): mail servers refuse to be greeted with another.
    pub fn is_host_name(&self) -> bool {
        !self.0.contains('_')
    }

    /// Whether `self` is `parent` or lies below it.
    pub fn is_within(&self, parent: &Domain) -> bool {
        self.0
            .strip_suffix(&*parent.0)
            .is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
    }
}

impl FromStr for Domain {
    type Err = BadDomain;

    /// Takes A-labels or U-labels in any case, with or without the root's dot.
    fn from_str(text: &str) -> Result<Self, BadDomain> {
        if text.is_ascii() {
            return check(text);
        }
        // Which ASCII characters there may be is seen afterwards.
        let uts46 = idna::uts46::Uts46::new();
        let (any, check_hyphens, short) = (AsciiDenyList::EMPTY, Hyphens::Check, DnsLength::Verify);
        let ascii = uts46.to_ascii(text.as_bytes(), any, check_hyphens, short);
        check(&ascii.map_err(|_| BadDomain::Character)?)
    }
}

fn check(text: &str) -> Result<Domain, BadDomain> {
    let text = text.strip_suffix('.').unwrap_or(text);
    if text.len() > 255 {
        return Err(BadDomain::TooLong);
    }
    let mut last_is_number = false;
    for label in text.split('.') {
        match label.as_bytes() {
            [] => return Err(BadDomain::Empty),
            label if label.len() > 63 => return Err(BadDomain::TooLong),
            [b'-', ..] | [.., b'-'] => return Err(BadDomain::Character),
            label
                if !label
                    .iter()
                    .all(|&c| c.is_ascii_alphanumeric() || matches!(c, b'-' | b'_')) =>
            {
                return Err(BadDomain::Character);
            }
            label => last_is_number = label.iter().all(u8::is_ascii_digit),
        }
    }
    if last_is_number {
        return Err(BadDomain::Address);
    }
    Ok(Domain(if text.bytes().any(|octet| octet.is_ascii_uppercase()) {
        text.to_ascii_lowercase().into()
    } else {
        text.into()
    }))
}

impl TryFrom<String> for Domain {
    type Error = BadDomain;

    fn try_from(text: String) -> Result<Self, BadDomain> {
        text.parse()
    }
}

impl Serialize for Domain {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

impl From<Domain> for String {
    fn from(domain: Domain) -> Self {
        domain.0.as_ref().to_owned()
    }
}

impl fmt::Display for Domain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Domain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn takes_what_the_wire_takes() {
        assert_eq!("Example.COM.".parse::<Domain>().unwrap().as_str(), "example.com");
        assert_eq!(
            "münchen.de".parse::<Domain>().unwrap().as_str(),
            "xn--mnchen-3ya.de"
        );
        assert_eq!(
            "Mail_1._x.test".parse::<Domain>().unwrap().as_str(),
            "mail_1._x.test"
        );
        assert_eq!(
            "a_b.münchen.de".parse::<Domain>().unwrap().as_str(),
            "a_b.xn--mnchen-3ya.de"
        );
        assert_eq!("3com.com".parse::<Domain>().unwrap().as_str(), "3com.com");
    }

    #[test]
    fn refuses_the_rest() {
        let long_label = "a".repeat(64);
        let long_name = vec!["abcdefg"; 33].join(".");
        for (text, why) in [
            ("", BadDomain::Empty),
            (".", BadDomain::Empty),
            ("a..b", BadDomain::Empty),
            ("-a.b", BadDomain::Character),
            ("a-.b", BadDomain::Character),
            ("a b", BadDomain::Character),
            ("ü b.c", BadDomain::Character),
            ("ü/b.c", BadDomain::Character),
            ("a\r\nb", BadDomain::Character),
            ("192.0.2.1", BadDomain::Address),
            (&long_label, BadDomain::TooLong),
            (&long_name, BadDomain::TooLong),
        ] {
            assert_eq!(text.parse::<Domain>(), Err(why), "{text:?}");
        }
    }

    #[test]
    fn within_goes_by_labels() {
        let parent: Domain = "example.com".parse().unwrap();
        assert!("mail.example.com".parse::<Domain>().unwrap().is_within(&parent));
        assert!(parent.is_within(&parent));
        assert!(!"badexample.com".parse::<Domain>().unwrap().is_within(&parent));
    }
}
