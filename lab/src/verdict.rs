//! What a receiver thinks of a message: SPF, DKIM and DMARC, by a library that is not the relay's.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use mail_auth::common::crypto::Algorithm;
use mail_auth::dmarc::Policy;
use mail_auth::dmarc::verify::DmarcParameters;
use mail_auth::hickory_resolver::config::{
    ConnectionConfig, NameServerConfig, ResolveHosts, ResolverConfig, ResolverOpts,
};
use mail_auth::hickory_resolver::net::NetError;
use mail_auth::spf::verify::SpfParameters;
use mail_auth::{AuthenticatedMessage, DkimResult, DmarcResult, MessageAuthenticator, SpfResult};
use mail_core::ReversePath;
use serde::{Deserialize, Serialize};

/// One question to the lab's name server, which is on this machine.
const DNS_PATIENCE: Duration = Duration::from_secs(5);

/// How a check came out (RFC 8601 §2.7).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[expect(missing_docs, reason = "the RFC's own words")]
pub enum Outcome {
    #[default]
    None,
    Neutral,
    Pass,
    Fail,
    SoftFail,
    TempError,
    PermError,
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::None => "none",
            Self::Neutral => "neutral",
            Self::Pass => "pass",
            Self::Fail => "fail",
            Self::SoftFail => "softfail",
            Self::TempError => "temperror",
            Self::PermError => "permerror",
        })
    }
}

/// The verdicts on one message.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Verdicts {
    /// Whether the client may send for MAIL FROM, or for its EHLO name where that is null (RFC 7208).
    pub spf: SpfVerdict,
    /// One for each signature, in the order of the header; empty: not signed.
    pub dkim: Vec<DkimVerdict>,
    /// Whether either of them speaks for the domain in From (RFC 7489).
    #[serde(default)]
    pub dmarc: DmarcVerdict,
}

/// See [`Verdicts::spf`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SpfVerdict {
    /// The result.
    pub result: Outcome,
    /// Whose record was asked.
    pub domain: String,
}

/// See [`Verdicts::dkim`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DkimVerdict {
    /// The result.
    pub result: Outcome,
    /// `d=`; empty where the signature can't be read.
    pub domain: String,
    /// `s=`.
    pub selector: String,
    /// `a=`.
    pub algorithm: String,
    /// Why it did not pass.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub why: Option<String>,
}

/// See [`Verdicts::dmarc`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DmarcVerdict {
    /// Pass where SPF or DKIM passes for a domain that is aligned with From's; none where From's domain has no policy.
    pub result: Outcome,
    /// Whose policy was found; empty where none was.
    pub domain: String,
    /// `p=`: none, quarantine, reject; empty where there is no policy.
    pub policy: String,
    /// SPF alone; none where it did not pass.
    pub spf: Outcome,
    /// DKIM alone; none where no signature passed.
    pub dkim: Outcome,
}

/// Asks the lab's name server, as a receiver would ask its own.
pub(crate) struct Verifier(MessageAuthenticator);

impl Verifier {
    pub(crate) fn new(dns: SocketAddr) -> Result<Self, NetError> {
        let connections = [ConnectionConfig::udp(), ConnectionConfig::tcp()].map(|mut connection| {
            connection.port = dns.port();
            connection
        });
        let server = NameServerConfig::new(dns.ip(), true, connections.into());
        let mut options = ResolverOpts::default();
        options.timeout = DNS_PATIENCE;
        options.attempts = 2;
        options.use_hosts_file = ResolveHosts::Never;
        options.edns0 = true;
        MessageAuthenticator::new(
            ResolverConfig::from_parts(None, Vec::new(), vec![server]),
            options,
        )
        .map(Self)
    }

    /// `host`: who asks. Bodies that end in lines of blanks are called wrong though they are right: mail-auth hashes
    /// them otherwise than RFC 6376 §3.4.4 says.
    pub(crate) async fn judge(
        &self,
        raw: &[u8],
        client: IpAddr,
        helo: &str,
        sender: &ReversePath,
        host: &str,
    ) -> Verdicts {
        let sender = sender.to_string();
        let sender_domain = sender.rsplit_once('@').map_or(helo, |(_, domain)| domain);
        // The null sender is checked by its EHLO name (RFC 7208 §2.4).
        let asked = if sender.is_empty() {
            SpfParameters::verify_ehlo(client, helo, host)
        } else {
            SpfParameters::verify_mail_from(client, helo, host, &sender)
        };
        let spf_output = self.0.verify_spf(asked).await;
        let spf = SpfVerdict {
            result: spf_outcome(spf_output.result()),
            domain: spf_output.domain().to_owned(),
        };
        let Some(message) = AuthenticatedMessage::parse(raw) else {
            return Verdicts {
                spf,
                dkim: Vec::new(),
                dmarc: DmarcVerdict::default(),
            };
        };
        let signatures = self.0.verify_dkim(&message).await;
        let asked = DmarcParameters::new(&message, &signatures, sender_domain, &spf_output);
        let found = self.0.verify_dmarc(asked).await;
        let has_policy = found.dmarc_record().is_some();
        let dmarc = DmarcVerdict {
            result: dmarc_outcome(&found.result()),
            domain: if has_policy {
                found.domain().to_owned()
            } else {
                String::new()
            },
            policy: match found.policy() {
                _ if !has_policy => "",
                Policy::Reject => "reject",
                Policy::Quarantine => "quarantine",
                Policy::None | Policy::Unspecified => "none",
            }
            .to_owned(),
            spf: dmarc_outcome(found.spf_result()),
            dkim: dmarc_outcome(found.dkim_result()),
        };
        let dkim = signatures
            .iter()
            .map(|verdict| {
                let (result, why) = dkim_outcome(verdict.result());
                let signature = verdict.signature();
                DkimVerdict {
                    result,
                    domain: signature.map(|s| s.d.clone()).unwrap_or_default(),
                    selector: signature.map(|s| s.s.clone()).unwrap_or_default(),
                    algorithm: signature.map(|s| algorithm(s.a).to_owned()).unwrap_or_default(),
                    why,
                }
            })
            .collect();
        Verdicts { spf, dkim, dmarc }
    }
}

fn dmarc_outcome(result: &DmarcResult) -> Outcome {
    match result {
        DmarcResult::Pass => Outcome::Pass,
        DmarcResult::Fail(_) => Outcome::Fail,
        DmarcResult::TempError(_) => Outcome::TempError,
        DmarcResult::PermError(_) => Outcome::PermError,
        DmarcResult::None => Outcome::None,
    }
}

fn spf_outcome(result: SpfResult) -> Outcome {
    match result {
        SpfResult::Pass => Outcome::Pass,
        SpfResult::Fail => Outcome::Fail,
        SpfResult::SoftFail => Outcome::SoftFail,
        SpfResult::Neutral => Outcome::Neutral,
        SpfResult::TempError => Outcome::TempError,
        SpfResult::PermError => Outcome::PermError,
        SpfResult::None => Outcome::None,
    }
}

fn dkim_outcome(result: &DkimResult) -> (Outcome, Option<String>) {
    match result {
        DkimResult::Pass => (Outcome::Pass, None),
        DkimResult::None => (Outcome::None, None),
        DkimResult::Neutral(why) => (Outcome::Neutral, Some(why.to_string())),
        DkimResult::Fail(why) => (Outcome::Fail, Some(why.to_string())),
        DkimResult::PermError(why) => (Outcome::PermError, Some(why.to_string())),
        DkimResult::TempError(why) => (Outcome::TempError, Some(why.to_string())),
    }
}

fn algorithm(algorithm: Algorithm) -> &'static str {
    match algorithm {
        Algorithm::RsaSha1 => "rsa-sha1",
        Algorithm::RsaSha256 => "rsa-sha256",
        Algorithm::Ed25519Sha256 => "ed25519-sha256",
    }
}
