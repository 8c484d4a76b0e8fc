//! What a receiver thinks of a message: SPF and DKIM, by a library that is not the relay's.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use mail_auth::common::crypto::Algorithm;
use mail_auth::hickory_resolver::config::{
    ConnectionConfig, NameServerConfig, ResolveHosts, ResolverConfig, ResolverOpts,
};
use mail_auth::hickory_resolver::net::NetError;
use mail_auth::spf::verify::SpfParameters;
use mail_auth::{AuthenticatedMessage, DkimResult, MessageAuthenticator, SpfResult};
use mail_core::ReversePath;
use serde::{Deserialize, Serialize};

/// One question to the lab's name server, which is on this machine.
const DNS_PATIENCE: Duration = Duration::from_secs(5);

/// How a check came out (RFC 8601 §2.7).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[expect(missing_docs, reason = "the RFC's own words")]
pub enum Outcome {
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
        // The null sender is checked by its EHLO name (RFC 7208 §2.4).
        let asked = if sender.is_empty() {
            SpfParameters::verify_ehlo(client, helo, host)
        } else {
            SpfParameters::verify_mail_from(client, helo, host, &sender)
        };
        let spf = self.0.verify_spf(asked).await;
        let spf = SpfVerdict {
            result: spf_outcome(spf.result()),
            domain: spf.domain().to_owned(),
        };
        let Some(message) = AuthenticatedMessage::parse(raw) else {
            return Verdicts {
                spf,
                dkim: Vec::new(),
            };
        };
        let signatures = self.0.verify_dkim(&message).await;
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
        Verdicts { spf, dkim }
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
