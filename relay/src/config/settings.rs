//! The configuration as proven: what the rest of the relay reads. Every value here has passed the check.

use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;
use mail_core::{Domain, Mailbox};

use crate::by_domain::ByDomain;
use crate::shaping::Shaping;
use crate::submission::fields::OwnField;

use super::admin::AdminSettings;
use super::effective::Effective;
use super::egress::Egress;
use super::limits::LimitRules;
use super::rates::{AddressRates, Rate, TenantRates};
use super::routes::RoutingSettings;
use super::streams::Streams;

/// All of it.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The same key by key, as `config show` prints it.
    pub effective: Arc<Effective>,
    /// What we call ourselves: greeting, EHLO, Received, Reporting-MTA.
    pub hostname: Domain,
    /// Where mail for `<postmaster>` without a domain goes (RFC 5321 §4.5.1).
    pub postmaster: Mailbox,
    /// The durable queue.
    pub store: StoreSettings,
    /// Where clients come in; at least one.
    pub listeners: Vec<Listener>,
    /// Bounds on what clients may do.
    pub submission: SubmissionSettings,
    /// Who may send, by name.
    pub tenants: BTreeMap<Arc<str>, Tenant>,
    /// The file with the SCRAM verifiers, made by `postrider credential add`.
    pub credentials_file: Option<PathBuf>,
    /// Which way mail goes.
    pub routing: RoutingSettings,
    /// How mail goes out.
    pub delivery: DeliverySettings,
    /// Name servers to ask; empty: those of /etc/resolv.conf.
    pub dns: DnsSettings,
    /// Keys that sign, each for one sender domain and selector.
    pub dkim: Vec<DkimKey>,
    /// `/metrics`, `/healthz` and `/readyz`.
    pub metrics: Option<SocketAddr>,
    /// The admin API.
    pub admin: AdminSettings,
    /// The shape of log lines.
    pub log: LogFormat,
    /// How much is logged; see [`crate::logging::filter`].
    pub log_level: Arc<str>,
    /// How long SIGTERM waits for what is on the wire.
    pub drain_timeout: Duration,
}

/// The store's place and bounds.
#[derive(Clone, Debug)]
pub struct StoreSettings {
    /// A folder of its own.
    pub path: PathBuf,
    /// Below this much free space on the store's file system nothing is accepted (452 4.3.1).
    pub min_free_bytes: u64,
    /// So many messages may wait, each once for each of its destination domains; beyond, 452 4.3.1.
    pub max_messages: Option<u64>,
    /// So many octets may wait, counted likewise.
    pub max_bytes: Option<u64>,
    /// How long a message may stay in the queue before it expires (RFC 5321 §4.5.4.1: 4–5 days).
    pub expire_after: Duration,
    /// How long a request may wait for its commit group before it is withdrawn (451 4.3.2).
    pub commit_patience: Duration,
    /// Bodies kept in memory between accept and delivery, in bytes.
    pub body_cache_bytes: u64,
    /// How much of the journal is kept.
    pub journal: queue::Retention,
}

impl Settings {
    /// The bounds of the queue.
    pub fn queue_options(&self) -> queue::Options {
        queue::Options {
            min_free_bytes: self.store.min_free_bytes,
            commit_patience: self.store.commit_patience,
            limits: self.queue_limits(),
        }
    }

    /// How much may wait.
    pub fn queue_limits(&self) -> queue::Limits {
        let share = |(name, tenant): (&Arc<str>, &Tenant)| Some((name.clone(), tenant.queue_share?));
        queue::Limits {
            messages: self.store.max_messages.unwrap_or(u64::MAX),
            bytes: self.store.max_bytes.unwrap_or(u64::MAX),
            shares: self.tenants.iter().filter_map(share).collect(),
        }
    }
}

/// A listening socket.
#[derive(Clone, Debug)]
pub struct Listener {
    /// Where; port 0 lets the system choose.
    pub address: SocketAddr,
    /// What is spoken there.
    pub kind: ListenerKind,
    /// Proxies, whose connections begin with a PROXY header, and no others.
    pub proxies: Vec<IpNet>,
    /// Who may say by XCLIENT for whom it speaks.
    pub xclient: Vec<IpNet>,
    /// In which stream its mail is, where nothing closer to the message says; `None`: the default.
    pub stream: Option<Arc<str>>,
}

/// The three kinds of listeners.
#[derive(Clone, Debug)]
pub enum ListenerKind {
    /// STARTTLS, then AUTH (RFC 6409).
    Submission(TlsFiles),
    /// TLS from the first octet, then AUTH (RFC 8314 §3.3).
    Submissions(TlsFiles),
    /// No AUTH; clients of these networks speak for `tenant`, all others are turned away at the greeting.
    Trusted {
        /// Who may connect.
        networks: Vec<IpNet>,
        /// Whom they speak for.
        tenant: Arc<str>,
        /// STARTTLS is offered where a certificate is given.
        tls: Option<TlsFiles>,
    },
}

/// A certificate chain and its key, both PEM; checked to fit together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsFiles {
    /// The chain, leaf first.
    pub certificate: PathBuf,
    /// PKCS#8, PKCS#1 or SEC1.
    pub key: PathBuf,
}

/// No mail is held for longer, whatever the configuration was when it came in. A due time beyond was written while the clock was
/// ahead.
pub const MAX_HOLD: Duration = Duration::from_secs(366 * 86_400);

/// Bounds of the front door.
#[derive(Clone, Debug)]
pub struct SubmissionSettings {
    /// SIZE (RFC 1870), in octets.
    pub max_message_bytes: u64,
    /// RCPTs a transaction; at least 100 (RFC 5321 §4.5.3.1.8). More: 452 4.5.3.
    pub max_recipients: usize,
    /// Connections at once, all listeners together; more: 421 4.3.2.
    pub max_connections: usize,
    /// Connections at once from one address.
    pub max_connections_per_address: usize,
    /// Bytes of message bodies being received at once, all sessions together; more: 452 4.3.1.
    pub max_bytes_in_flight: u64,
    /// Replies 4yz/5yz after which a session is closed with 421.
    pub max_errors: u32,
    /// Received fields of a message; one with more goes in circles: 554 5.4.6 (RFC 5321 §6.3).
    pub max_received: usize,
    /// How long clients may have mail held (RFC 4865), [`MAX_HOLD`] at the most; zero: it is not offered.
    pub max_hold: Duration,
    /// What one address may do in a time.
    pub address_rates: AddressRates,
    /// Silence while a command is awaited (RFC 5321 §4.5.3.2.7: 5 minutes).
    pub command_timeout: Duration,
    /// Silence within message data.
    pub data_timeout: Duration,
    /// TLS handshakes under way at once, all listeners together.
    pub max_handshakes: usize,
    /// A TLS handshake from start to end.
    pub tls_timeout: Duration,
    /// The longest a session may last in all.
    pub session_timeout: Duration,
}

/// Who sends.
#[derive(Clone, Debug)]
pub struct Tenant {
    /// Whose addresses they may use in MAIL FROM and From.
    pub senders: Vec<SenderPattern>,
    /// Overrides `submission.max_message_bytes` downwards.
    pub max_message_bytes: Option<u64>,
    /// Overrides `submission.max_recipients` downwards.
    pub max_recipients: Option<usize>,
    /// Connections at once that speak for the tenant.
    pub max_connections: Option<usize>,
    /// What they may hand over in a time.
    pub rates: TenantRates,
    /// Header fields of ours that count in their mail.
    pub header_fields: Vec<OwnField>,
    /// Who gets a copy of each message, beside its recipients.
    pub archive: Option<Mailbox>,
    /// The part of `store.max_messages` and `store.max_bytes` that may be theirs, above 0 and up to 1.
    pub queue_share: Option<f64>,
}

/// An entry of a tenant's `senders`, or of another list of addresses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SenderPattern {
    /// `"*"`: any address.
    Any,
    /// `"example.com"`: any local part of exactly this domain.
    Domain(Domain),
    /// `"*.example.com"`: any local part of any domain below this one.
    Below(Domain),
    /// `"news@example.com"`: this address; the domain without case, the local part without case too.
    Mailbox(Mailbox),
}

impl SenderPattern {
    /// Whether an address is one of these. The local part is compared without case: what differs by case alone is one person.
    pub fn fits(&self, address: &Mailbox) -> bool {
        match self {
            Self::Any => true,
            Self::Domain(domain) => address.domain() == domain,
            Self::Below(parent) => address.domain() != parent && address.domain().is_within(parent),
            Self::Mailbox(mailbox) => {
                address.domain() == mailbox.domain() && address.local().eq_ignore_ascii_case(mailbox.local())
            }
        }
    }
}

/// How mail goes out.
#[derive(Clone, Debug)]
pub struct DeliverySettings {
    /// Port of MX hosts.
    pub port: u16,
    /// EHLO name; the hostname unless set.
    pub ehlo: Domain,
    /// The address to send from where there is no pool; `None`: the system chooses.
    pub source: Option<IpAddr>,
    /// Sources and pools of them.
    pub egress: Egress,
    /// Addresses of ours, so that an MX that is ourselves is found (RFC 5321 §5.1).
    pub own_addresses: Vec<IpAddr>,
    /// CA certificates (PEM) beside the system's, for destinations whose certificate must be valid.
    pub ca_file: Option<PathBuf>,
    /// Waits between attempts, where the stream says nothing else.
    pub retry: Retry,
    /// Kinds of mail, with their weights.
    pub streams: Streams,
    /// Waits on the wire.
    pub timeouts: ClientTimeouts,
    /// In force where neither a destination's rule nor its provider says otherwise.
    pub limits: DestinationLimits,
    /// In force where no destination rule says otherwise.
    pub tls: TlsLevel,
    /// In force where no destination rule says otherwise.
    pub family: AddressFamily,
    /// Rules by destination domain.
    pub destinations: Destinations,
    /// What may be used beside the limits of each lane: by site, provider, tenant and source.
    pub scopes: LimitRules,
    /// What replies mean, and who runs which hosts.
    pub shaping: Arc<Shaping>,
    /// After so many failures in a row to speak to any host, mail goes by its rule's fallback.
    pub fallback_after: u32,
    /// Connections at once, all destinations together.
    pub max_connections: usize,
    /// Octets a failure report may have (RFC 3464); more of the original is cut.
    pub max_report_bytes: usize,
    /// Reports to one sender domain; more are left out, against backscatter.
    pub reports_per_domain: Rate,
    /// How old a message is when those who asked for it (NOTIFY=DELAY) are told that it is delayed.
    pub delay_notice_after: Duration,
    /// 8-bit messages are converted for hosts without 8BITMIME; else they bounce there, 5.6.3.
    pub convert_to_7bit: bool,
}

/// Waits between attempts: `first` after the first, `factor` times more each time up to `cap`, spread by `jitter`.
#[derive(Clone, Debug, PartialEq)]
pub struct Retry {
    /// After the first attempt.
    pub first: Duration,
    /// 1.0 or more.
    pub factor: f64,
    /// The longest wait.
    pub cap: Duration,
    /// 0.0..=0.5: each wait is drawn from ± this share of itself.
    pub jitter: f64,
}

/// Waits on the wire while sending (RFC 5321 §4.5.3.2), each the longest silence borne.
#[derive(Clone, Debug)]
pub struct ClientTimeouts {
    /// TCP connect.
    pub connect: Duration,
    /// 220 (§4.5.3.2.1: 5 minutes).
    pub greeting: Duration,
    /// EHLO, HELO, STARTTLS, RSET, QUIT.
    pub command: Duration,
    /// A TLS handshake from start to end.
    pub tls: Duration,
    /// MAIL (§4.5.3.2.2: 5 minutes).
    pub mail: Duration,
    /// RCPT (§4.5.3.2.3: 5 minutes).
    pub rcpt: Duration,
    /// 354 (§4.5.3.2.4: 2 minutes).
    pub data: Duration,
    /// A block of data taken by the peer (§4.5.3.2.5: 3 minutes).
    pub block: Duration,
    /// The reply after the final dot (§4.5.3.2.6: 10 minutes).
    pub final_dot: Duration,
    /// A transaction from MAIL to the final dot, however busily the peer dawdles; so long, too, until some host is ready for mail.
    pub transaction: Duration,
    /// How long an idle connection is kept for the next message.
    pub idle: Duration,
    /// DNS, one question.
    pub dns: Duration,
}

/// Limits of one lane.
#[derive(Clone, Debug, PartialEq)]
pub struct DestinationLimits {
    /// Connections at once.
    pub connections: usize,
    /// Messages a second; `None`: unlimited.
    pub messages_per_second: Option<f64>,
    /// Messages before a connection is closed and made anew.
    pub messages_per_connection: u32,
    /// RCPTs a transaction.
    pub recipients_per_transaction: usize,
}

/// Limits as one table says them; what it leaves out comes from elsewhere.
#[derive(Clone, Debug, Default, PartialEq)]
#[expect(missing_docs, reason = "as in DestinationLimits")]
pub struct OwnLimits {
    pub connections: Option<usize>,
    pub messages_per_second: Option<f64>,
    pub messages_per_connection: Option<u32>,
    pub recipients_per_transaction: Option<usize>,
}

impl OwnLimits {
    /// These, and `others` where they say nothing.
    pub fn over(&self, others: &DestinationLimits) -> DestinationLimits {
        DestinationLimits {
            connections: self.connections.unwrap_or(others.connections),
            messages_per_second: self.messages_per_second.or(others.messages_per_second),
            messages_per_connection: self
                .messages_per_connection
                .unwrap_or(others.messages_per_connection),
            recipients_per_transaction: self
                .recipients_per_transaction
                .unwrap_or(others.recipients_per_transaction),
        }
    }
}

/// How much TLS a destination gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TlsLevel {
    /// Where offered, unverified; in clear on a new connection where the handshake fails (RFC 7435).
    Opportunistic,
    /// A verified certificate, or the mail waits.
    Required,
    /// Never.
    Off,
}

/// Which of a host's addresses are tried, and in what order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AddressFamily {
    /// All, the families by turns.
    Any,
    /// IPv4 alone.
    Ipv4,
    /// IPv6 alone.
    Ipv6,
    /// IPv4 first.
    PreferIpv4,
    /// IPv6 first.
    PreferIpv6,
}

impl AddressFamily {
    /// The addresses to be tried, the order within a family as it was.
    pub fn order(self, mut addresses: Vec<IpAddr>) -> Vec<IpAddr> {
        match self {
            Self::Any => {}
            Self::Ipv4 => addresses.retain(IpAddr::is_ipv4),
            Self::Ipv6 => addresses.retain(IpAddr::is_ipv6),
            Self::PreferIpv4 => addresses.sort_by_key(IpAddr::is_ipv6),
            Self::PreferIpv6 => addresses.sort_by_key(IpAddr::is_ipv4),
        }
        addresses
    }
}

/// A rule for a destination domain.
#[derive(Clone, Debug)]
pub struct Destination {
    /// The domain itself; with `below`, also all domains under it.
    pub domain: Domain,
    /// Written as `*.example.com`.
    pub below: bool,
    /// In place of `delivery.tls`.
    pub tls: TlsLevel,
    /// In place of `delivery.address_family`.
    pub family: AddressFamily,
    /// What the rule says of them.
    pub limits: OwnLimits,
}

/// Rules by destination domain, found by a few look-ups however many there are.
#[derive(Clone, Default)]
pub struct Destinations {
    rules: Vec<Destination>,
    by_domain: ByDomain,
}

impl Destinations {
    /// Of two for the same domains the last one counts; the check tells of them.
    pub fn new(rules: Vec<Destination>) -> Self {
        let mut by_domain = ByDomain::default();
        for (number, rule) in rules.iter().enumerate() {
            by_domain.insert(&rule.domain, rule.below, number);
        }
        Self { rules, by_domain }
    }

    /// All of them, as they are written.
    pub fn all(&self) -> &[Destination] {
        &self.rules
    }

    /// The number of the rule for `domain`: an exact one before one of a parent, the longest parent first.
    pub fn of(&self, domain: &Domain) -> Option<usize> {
        // Most have none.
        if self.rules.is_empty() {
            return None;
        }
        self.by_domain.find(domain.as_str())
    }
}

impl fmt::Debug for Destinations {
    /// The index says nothing more.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.rules.fmt(f)
    }
}

/// Name servers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DnsSettings {
    /// Empty: those of /etc/resolv.conf.
    pub servers: Vec<SocketAddr>,
}

/// A DKIM key.
#[derive(Clone, Debug)]
pub struct DkimKey {
    /// `d=`: signs mail whose From is of this domain, or below it.
    pub domain: Domain,
    /// `s=`.
    pub selector: String,
    /// PEM, PKCS#8; RSA or Ed25519 is told by the file.
    pub file: PathBuf,
}

/// The shape of log lines.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One object a line.
    Json,
}
