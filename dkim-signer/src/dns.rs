//! The DNS records that belong to a key and its domain, as text to paste.

use mail_core::Domain;

use crate::key::PrivateKey;
use crate::sign::{DomainKey, Selector};

/// A TXT record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TxtRecord {
    /// Its full name, without the final dot.
    pub name: String,
    /// Its text in one piece, as web forms of DNS hosters want it.
    pub text: String,
}

impl TxtRecord {
    /// The record as a zone file has it: strings of at most 255 octets (RFC 1035 §3.3), which a reader joins again without a
    /// blank (RFC 6376 §3.6.2.2).
    pub fn zone_line(&self) -> String {
        // The text is ASCII, and no record of ours holds a quote or backslash.
        let strings: Vec<String> = self
            .text
            .as_bytes()
            .chunks(255)
            .map(|chunk| format!("\"{}\"", String::from_utf8_lossy(chunk)))
            .collect();
        match strings.as_slice() {
            [one] => format!("{}. IN TXT {one}", self.name),
            several => format!("{}. IN TXT ( {} )", self.name, several.join("\n    ")),
        }
    }
}

/// `SELECTOR._domainkey.DOMAIN` with the public key (RFC 6376 §3.6, RFC 8463 §4).
pub fn key_record(domain: &Domain, selector: &Selector, key: &PrivateKey) -> TxtRecord {
    TxtRecord {
        name: format!("{selector}._domainkey.{domain}"),
        text: format!("v=DKIM1; k={}; p={}", key.algorithm().key_tag(), key.public_key()),
    }
}

/// What else a domain that sends through us should say: that our hosts may send for it (RFC 7208), and a DMARC policy that
/// observes first (RFC 7489). Both are suggestions: a domain may have one SPF record only, so an existing one is to be
/// widened. `sender` is a name whose A and AAAA records are the addresses mail leaves from.
pub fn suggestions(domain: &Domain, sender: &Domain) -> [TxtRecord; 2] {
    [
        TxtRecord {
            name: domain.to_string(),
            text: format!("v=spf1 a:{sender} ~all"),
        },
        TxtRecord {
            name: format!("_dmarc.{domain}"),
            text: format!("v=DMARC1; p=none; rua=mailto:postmaster@{domain}"),
        },
    ]
}

impl DomainKey {
    /// See [`key_record`].
    pub fn record(&self) -> TxtRecord {
        key_record(&self.domain, &self.selector, &self.key)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(pem: &str) -> TxtRecord {
        key_record(
            &"example.com".parse().unwrap(),
            &"S2024.mail".parse().unwrap(),
            &PrivateKey::from_pem(pem.as_bytes()).unwrap(),
        )
    }

    #[test]
    fn a_short_record_is_one_string() {
        let told = include_str!("../tests/keys/ed25519.public.txt");
        assert_eq!(
            record(include_str!("../tests/keys/ed25519.pkcs8.pem")).zone_line(),
            format!("s2024.mail._domainkey.example.com. IN TXT \"v=DKIM1; k=ed25519; p={told}\"")
        );
    }

    #[test]
    fn a_long_record_is_cut_in_strings_of_255() {
        let record = record(include_str!("../tests/keys/rsa2048.pkcs8.pem"));
        let line = record.zone_line();
        let strings: Vec<_> = line.split('"').skip(1).step_by(2).collect();
        assert_eq!(strings.len(), 2);
        assert_eq!(strings[0].len(), 255);
        assert_eq!(strings.concat(), record.text);
        assert!(line.starts_with("s2024.mail._domainkey.example.com. IN TXT ( \"v=DKIM1; k=rsa; p="));
        assert!(line.ends_with("\" )"));
    }

    #[test]
    fn suggests_spf_and_dmarc() {
        let lines = suggestions(
            &"example.com".parse().unwrap(),
            &"relay.example.net".parse().unwrap(),
        )
        .map(|record| record.zone_line());
        assert_eq!(
            lines,
            [
                "example.com. IN TXT \"v=spf1 a:relay.example.net ~all\"",
                "_dmarc.example.com. IN TXT \"v=DMARC1; p=none; rua=mailto:postmaster@example.com\"",
            ]
        );
    }
}
