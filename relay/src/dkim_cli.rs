//! `postrider dkim …`: keys made, and their DNS records as text.

use std::fmt::Write as _;
use std::path::Path;

use dkim_signer::dns::{self, TxtRecord};
use dkim_signer::key::generate_file;
use dkim_signer::{Algorithm, KeyError, Selector};
use mail_core::Domain;
use serde_json::{Value, json};

use crate::config::settings::DkimKey;
use crate::prepare::{BadKey, load_key};

/// A key that was made.
pub struct Made<'a> {
    domain: &'a Domain,
    selector: &'a Selector,
    out: &'a Path,
    record: TxtRecord,
}

/// Makes a key in the new file `out` (0600; an existing file is left as it is).
pub fn keygen<'a>(
    domain: &'a Domain,
    selector: &'a Selector,
    algorithm: Algorithm,
    out: &'a Path,
) -> Result<Made<'a>, KeyError> {
    let key = generate_file(algorithm, out)?;
    Ok(Made {
        domain,
        selector,
        out,
        record: dns::key_record(domain, selector, &key),
    })
}

impl Made<'_> {
    /// What to do next: the lines for the configuration and the record for the DNS.
    pub fn text(&self) -> String {
        let out = self.out.display();
        let mut text = format!("Key written to {out}. In the configuration:\n\n");
        let _ = writeln!(
            text,
            "[[dkim]]\ndomain = {:?}\nselector = {:?}\nkey = {:?}\n",
            self.domain.as_str(),
            self.selector.as_str(),
            out.to_string(),
        );
        let _ = writeln!(text, "In the DNS, before the relay signs with it:\n");
        write_record(&mut text, &self.record);
        text
    }

    /// The same for programs.
    pub fn json(&self) -> Value {
        json!({
            "key": self.out,
            "domain": self.domain.as_str(),
            "selector": self.selector.as_str(),
            "record": record_json(&self.record),
        })
    }
}

/// The records of a domain that sends through us.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Records {
    /// One for each key that signs for the domain.
    pub keys: Vec<TxtRecord>,
    /// SPF and DMARC, where the domain has none of its own yet.
    pub suggested: Vec<TxtRecord>,
}

/// Reads those of the `configured` keys that sign for `domain`: its own, or else those of the nearest domain above it. Mail
/// leaves from the addresses of `hostname`.
pub fn records(configured: &[DkimKey], hostname: &Domain, domain: &Domain) -> Result<Records, Vec<BadKey>> {
    let nearest = configured
        .iter()
        .map(|key| &key.domain)
        .filter(|of| domain.is_within(of))
        .max_by_key(|of| of.as_str().len());
    let (mut keys, mut wrong) = (Vec::new(), Vec::new());
    for key in configured.iter().filter(|key| Some(&key.domain) == nearest) {
        match load_key(key) {
            Ok(key) => keys.push(key.record()),
            Err(error) => wrong.push(error),
        }
    }
    if !wrong.is_empty() {
        return Err(wrong);
    }
    Ok(Records {
        keys,
        suggested: dns::suggestions(domain, hostname).into(),
    })
}

impl Records {
    /// Text to paste, in both forms.
    pub fn text(&self, domain: &Domain) -> String {
        let mut text = String::new();
        if self.keys.is_empty() {
            let _ = writeln!(
                text,
                "; No key is configured for {domain}. Make one: postrider dkim keygen {domain}\n"
            );
        }
        for record in &self.keys {
            write_record(&mut text, record);
            text.push('\n');
        }
        let _ = writeln!(
            text,
            "; Suggested, where {domain} has no such record yet (one SPF record only: widen an existing one):\n"
        );
        for record in &self.suggested {
            let _ = writeln!(text, "{}", record.zone_line());
        }
        text
    }

    /// The same for programs.
    pub fn json(&self, domain: &Domain) -> Value {
        let list = |records: &[TxtRecord]| records.iter().map(record_json).collect::<Vec<_>>();
        json!({ "domain": domain.as_str(), "keys": list(&self.keys), "suggested": list(&self.suggested) })
    }
}

fn record_json(record: &TxtRecord) -> Value {
    json!({ "name": record.name, "type": "TXT", "text": record.text, "zone_line": record.zone_line() })
}

/// For a zone file, and below as a comment for the web forms of DNS hosters, which cut strings themselves.
fn write_record(text: &mut String, record: &TxtRecord) {
    let _ = writeln!(
        text,
        "{}\n; in one piece, for a web form:\n; {}",
        record.zone_line(),
        record.text
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_made_key_says_what_to_do_next_and_is_never_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let out = folder.path().join("key.pem");
        let domain = "example.com".parse().unwrap();
        let selector = "s1".parse().unwrap();
        let made = keygen(&domain, &selector, Algorithm::RsaSha256, &out).unwrap();
        let told = made.text();
        assert!(
            told.contains("[[dkim]]\ndomain = \"example.com\"\nselector = \"s1\"\nkey = \""),
            "{told}"
        );
        assert!(
            told.contains("\ns1._domainkey.example.com. IN TXT ( \"v=DKIM1; k=rsa; p="),
            "{told}"
        );
        assert!(told.contains("\n; v=DKIM1; k=rsa; p="), "{told}");
        assert!(!told.contains("PRIVATE"));
        let told = made.json();
        assert_eq!(told["record"]["name"], "s1._domainkey.example.com");
        assert_eq!(told["key"], out.to_str().unwrap());
        assert!(keygen(&domain, &selector, Algorithm::RsaSha256, &out).is_err());
    }

    #[test]
    fn shows_the_records_of_the_keys_that_sign() {
        let folder = tempfile::tempdir().unwrap();
        let key = |domain: &str, selector: &str| {
            let key = DkimKey {
                domain: domain.parse().unwrap(),
                selector: selector.into(),
                file: folder.path().join(selector),
            };
            generate_file(Algorithm::Ed25519Sha256, &key.file).unwrap();
            key
        };
        let configured = [
            key("example.com", "s1"),
            key("mail.example.com", "s2"),
            key("other.test", "s3"),
        ];
        let hostname = "relay.example.net".parse().unwrap();
        let names = |domain: &str| {
            let records = records(&configured, &hostname, &domain.parse().unwrap()).unwrap();
            records.keys.into_iter().map(|key| key.name).collect::<Vec<_>>()
        };
        assert_eq!(names("example.com"), ["s1._domainkey.example.com"]);
        assert_eq!(names("a.mail.example.com"), ["s2._domainkey.mail.example.com"]);
        assert!(names("example.org").is_empty());

        let domain = "example.com".parse().unwrap();
        let found = records(&configured, &hostname, &domain).unwrap();
        assert_eq!(found.json(&domain)["suggested"][1]["name"], "_dmarc.example.com");
        let text = found.text(&domain);
        for line in [
            "s1._domainkey.example.com. IN TXT \"v=DKIM1; k=ed25519; p=",
            "\nexample.com. IN TXT \"v=spf1 a:relay.example.net ~all\"\n",
            "\n_dmarc.example.com. IN TXT \"v=DMARC1; p=none; ",
        ] {
            assert!(text.contains(line), "{text}");
        }
        std::fs::remove_file(&configured[0].file).unwrap();
        assert_eq!(records(&configured, &hostname, &domain).unwrap_err().len(), 1);
    }
}
