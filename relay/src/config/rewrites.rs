//! Sender addresses that are replaced, as configured.

use std::str::FromStr;

use mail_core::{Domain, Mailbox};

use super::section::{Check, Section};

/// A rule: an address, or all of a domain, is replaced.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rewrite {
    /// What is replaced.
    pub address: Whole,
    /// What by: a domain keeps the local part.
    pub becomes: Whole,
    /// In MAIL FROM.
    pub reverse_path: bool,
    /// In the header's From.
    pub header_from: bool,
}

/// An address, or a domain without those below it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Whole {
    /// `"ada@example.com"`.
    Mailbox(Mailbox),
    /// `"example.com"`.
    Domain(Domain),
}

impl Rewrite {
    /// What an address becomes; `None` where the rule does not fit.
    pub fn of(&self, address: &Mailbox) -> Option<Mailbox> {
        let fits = match &self.address {
            Whole::Domain(domain) => address.domain() == domain,
            Whole::Mailbox(mailbox) => {
                address.domain() == mailbox.domain() && address.local().eq_ignore_ascii_case(mailbox.local())
            }
        };
        if !fits {
            return None;
        }
        match &self.becomes {
            Whole::Mailbox(mailbox) => Some(mailbox.clone()),
            Whole::Domain(domain) => Mailbox::new(address.local(), domain.clone()).ok(),
        }
    }
}

impl FromStr for Whole {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if !text.contains('@') {
            return text
                .parse()
                .map(Self::Domain)
                .map_err(|error: mail_core::BadDomain| error.to_string());
        }
        let mailbox: Mailbox = text
            .parse()
            .map_err(|error: mail_core::BadMailbox| error.to_string())?;
        if !mailbox.is_ascii() {
            return Err("an address in ASCII is needed".to_owned());
        }
        Ok(Self::Mailbox(mailbox))
    }
}

/// Reads `[[rewrite]]`.
pub(super) fn rewrites(check: &Check<'_>, top: &mut Section<'_>) -> Vec<Rewrite> {
    let mut rewrites: Vec<Rewrite> = Vec::new();
    for mut section in top.sections("rewrite") {
        let address = section.parsed::<Whole>("address");
        let what = "what is replaced: an address or a domain, such as \"old.example\"";
        let address = section.required("address", address, what);
        let becomes = section.parsed::<Whole>("becomes");
        let what = "what by: an address, or a domain, which keeps what stands before the @";
        let becomes = section.required("becomes", becomes, what);
        let reverse_path = section.boolean("reverse_path", true);
        let header_from = section.boolean("header_from", true);
        if !reverse_path && !header_from {
            section.problem(
                "header_from",
                "and reverse_path are both false: the rule does nothing",
            );
        }
        section.end();
        let (Some(address), Some(becomes)) = (address, becomes) else {
            continue;
        };
        if rewrites.iter().any(|before| before.address == address.value) {
            check.problem(address.at, &address.key, "has another rule already");
        }
        rewrites.push(Rewrite {
            address: address.value,
            becomes: becomes.value,
            reverse_path,
            header_from,
        });
    }
    // One address before its whole domain.
    rewrites.sort_by_key(|rewrite| matches!(rewrite.address, Whole::Domain(_)));
    rewrites
}
