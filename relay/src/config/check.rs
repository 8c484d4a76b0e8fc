//! The check: from the configuration as written to [`Settings`], telling every mistake at once.
//!
//! Each key's meaning and default stand in `docs/postrider.example.toml`; a test holds that file and this one together.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use dkim_signer::{PrivateKey, Selector};
use ipnet::IpNet;
use mail_core::{Domain, Mailbox};

use crate::submission::fields::OwnField;

use super::admin::admin;
use super::egress::egress;
use super::limits::{LimitRules, limits as scope_limits};
use super::rates;
use super::routes::{Named, routing};
use super::section::{Check, Section, Spot};
use super::settings::{
    AddressFamily, ClientTimeouts, DeliverySettings, Destination, DestinationLimits, Destinations, DkimKey,
    DnsSettings, Listener, ListenerKind, LogFormat, MAX_HOLD, OwnLimits, Retry, SenderPattern, Settings,
    StoreSettings, SubmissionSettings, Tenant, TlsFiles, TlsLevel,
};
use super::shaping::shaping;
use super::smart_hosts::smart_hosts;
use super::source::Node;
use super::streams::{Streams, streams};

pub(super) const MS: Duration = Duration::from_millis(1);
const MINUTE: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(3_600);
const DAY: Duration = Duration::from_secs(86_400);
/// Anything longer is a slip of the pen.
pub(super) const EVER: Duration = Duration::from_secs(366 * 86_400);

const MIB: u64 = 1 << 20;

pub(super) const CONNECTIONS: RangeInclusive<u64> = 1..=100_000;
pub(super) const MESSAGES_PER_SECOND: RangeInclusive<f64> = 0.001..=1e6;
pub(super) const MESSAGES_PER_CONNECTION: RangeInclusive<u64> = 1..=1_000_000_000;
pub(super) const RECIPIENTS_PER_TRANSACTION: RangeInclusive<u64> = 1..=100_000;

/// Reads the whole configuration. What is missing or wrong is noted in `check`; the settings are whole only if nothing is.
pub fn settings(check: &Check<'_>, root: Node) -> Option<Settings> {
    let mut top = Section::root(check, root);
    let hostname = top.parsed::<Domain>("hostname");
    let hostname = top.required(
        "hostname",
        hostname,
        "the name other mail servers know this one by, such as \"mail.example.com\"",
    );
    let postmaster = top.parsed::<Mailbox>("postmaster");
    let credentials = top.file("credentials");
    let credentials = credentials.unwrap_or_else(|| top.default_file("credentials", "credentials.toml"));
    let drain_timeout = top.duration("drain_timeout", MS..=DAY, Duration::from_secs(30));
    let store = store(top.section("store"));
    let (name, expire_after) = (
        hostname.as_ref().map(|spot| &spot.value),
        store.as_ref().map_or(5 * DAY, |store| store.expire_after),
    );
    let delivery = delivery(check, &mut top, name, expire_after)?;
    let streams = &delivery.streams;
    let has_limits = store
        .as_ref()
        .is_none_or(|store| store.max_messages.is_some() || store.max_bytes.is_some());
    let tenants = tenants(&mut top, has_limits);
    check_credentials(check, &credentials, &tenants, streams);
    let metrics = optional_address(top.section("metrics"), "address");
    let listeners = listeners(check, &mut top, &tenants, streams, metrics);
    let submission = submission(top.section("submission"));
    let dns = dns(top.section("dns"));
    let dkim = dkim(check, &mut top);
    let admin = admin(
        check,
        top.section("admin"),
        store.as_ref().map(|store| &store.path),
    );
    let (log, log_level) = log(top.section("log"));
    let smart_hosts = smart_hosts(check, &mut top, Some(&delivery));
    let is_tenant = |name: &str| tenants.contains_key(name);
    let named = Named {
        smart_hosts: &smart_hosts,
        pools: &delivery.egress.pools,
        is_tenant: &is_tenant,
        streams,
    };
    let routing = routing(check, &mut top, &named);
    let is_provider = |name: &str| delivery.shaping.provider(name).is_some();
    let scopes = scope_limits(check, &mut top, is_provider, is_tenant, &delivery.egress.sources);
    top.end();
    let hostname = hostname?.value;
    let postmaster = match postmaster {
        Some(spot) => spot.value,
        None => Mailbox::new("postmaster", hostname.clone()).ok()?,
    };
    Some(Settings {
        effective: Arc::new(check.effective()),
        postmaster,
        store: store?,
        listeners,
        submission,
        tenants,
        credentials_file: Some(credentials.value),
        routing,
        delivery: DeliverySettings { scopes, ..delivery },
        dns,
        dkim,
        metrics,
        admin,
        log,
        log_level,
        drain_timeout,
        hostname,
    })
}

fn store(mut section: Section<'_>) -> Option<StoreSettings> {
    let path = section.file("path");
    let path = section.required(
        "path",
        path,
        "a folder that the relay has to itself, such as \"/var/lib/postrider\"",
    );
    if let Some(spot) = &path
        && spot.value.is_file()
    {
        section.problem(
            "path",
            "is a file; a folder is needed that the relay has to itself",
        );
    }
    let store = StoreSettings {
        path: path.map(|spot| spot.value).unwrap_or_default(),
        min_free_bytes: section.size_or("min_free", 0..=u64::MAX / 2, 512 * MIB),
        max_messages: section.optional_integer("max_messages", 1..=i64::MAX as u64),
        max_bytes: section.size("max_bytes", 1..=u64::MAX / 2),
        expire_after: section.duration("expire_after", MS..=EVER, 5 * DAY),
        commit_patience: section.duration("commit_patience", MS..=HOUR, Duration::from_secs(30)),
        body_cache_bytes: section.size_or("body_cache", 0..=u64::MAX / 2, 64 * MIB),
        journal: queue::Retention {
            age: section.duration("journal_age", MS..=EVER, 30 * DAY),
            entries: section.integer("journal_entries", 1_000..=i64::MAX as u64, 10_000_000),
        },
    };
    section.end();
    (!store.path.as_os_str().is_empty()).then_some(store)
}

fn tenants(top: &mut Section<'_>, has_limits: bool) -> BTreeMap<Arc<str>, Tenant> {
    let mut tenants = BTreeMap::new();
    for (name, mut section) in top.named("tenants") {
        let is_empty = section.is_empty_list("senders");
        let senders = section.list::<SenderPattern>("senders");
        if senders.is_none() || is_empty {
            section.problem(
                "senders",
                "is needed: the addresses or domains that may be used, or [\"*\"] for any",
            );
        }
        if !is_name(&name) {
            section.problem(
                "",
                "a tenant's name is made of letters, digits, '-', '_' and '.', 64 at the most",
            );
        }
        let tenant = Tenant {
            senders: senders
                .unwrap_or_default()
                .into_iter()
                .map(|spot| spot.value)
                .collect(),
            max_message_bytes: section.size("max_message", 1..=u64::MAX / 2),
            max_recipients: section
                .optional_integer("max_recipients", 100..=100_000)
                .map(as_usize),
            max_connections: section
                .optional_integer("max_connections", 1..=1_000_000)
                .map(as_usize),
            rates: rates::tenant(section.section("rates")),
            header_fields: section
                .list::<OwnField>("header_fields")
                .unwrap_or_default()
                .into_iter()
                .map(|spot| spot.value)
                .collect(),
            archive: section.parsed::<Mailbox>("archive").map(|spot| spot.value),
            queue_share: section.number("queue_share", 0.001..=1.0),
        };
        if tenant.queue_share.is_some() && !has_limits {
            section.problem(
                "queue_share",
                "is a part of store.max_messages and store.max_bytes; set one of them",
            );
        }
        section.end();
        tenants.insert(name.into(), tenant);
    }
    tenants
}

/// Names that stand in keys, labels and paths.
pub(super) fn is_name(name: &str) -> bool {
    (1..=64).contains(&name.len())
        && name
            .bytes()
            .all(|c| c.is_ascii_alphanumeric() || b"-_.".contains(&c))
}

/// The credentials file may come later. What is there has to be right, and of tenants that there are.
fn check_credentials(
    check: &Check<'_>,
    file: &Spot<PathBuf>,
    tenants: &BTreeMap<Arc<str>, Tenant>,
    streams: &Streams,
) {
    match crate::credentials::file::read(&file.value) {
        Err(error) => check.problem(file.at, &file.key, error.to_string()),
        Ok(entries) => {
            for (name, entry) in entries {
                let tenant = entry.tenant;
                if let Some(why) = entry.stream.and_then(|stream| streams.unknown(&stream)) {
                    let text = format!("{}: credential {name}: {why}", file.value.display());
                    check.problem(file.at, &file.key, text);
                }
                if !tenants.contains_key(tenant.as_str()) {
                    let text = format!(
                        "{}: credential {name} is of tenant \"{tenant}\", which there is not; add [tenants.{tenant}], or \
                         `postrider credential remove {name}`",
                        file.value.display()
                    );
                    check.problem(file.at, &file.key, text);
                }
            }
        }
    }
}

fn listeners(
    check: &Check<'_>,
    top: &mut Section<'_>,
    tenants: &BTreeMap<Arc<str>, Tenant>,
    streams: &Streams,
    metrics: Option<SocketAddr>,
) -> Vec<Listener> {
    let mut listeners = Vec::new();
    let mut taken = BTreeSet::new();
    let sections = top.sections("listener");
    if sections.is_empty() {
        top.required::<()>("listener", None, "without a [[listener]] no mail can come in");
    }
    for mut section in sections {
        let address = section.parsed::<SocketAddr>("address");
        let address = section.required("address", address, "where to listen, such as \"0.0.0.0:587\"");
        if let Some(spot) = &address
            && spot.value.port() != 0
            && metrics == Some(spot.value)
        {
            let text = format!("{} is where metrics and health are served", spot.value);
            check.problem(spot.at, &spot.key, text);
        }
        if let Some(spot) = &address
            && spot.value.port() != 0
            && !taken.insert(spot.value)
        {
            check.problem(
                spot.at,
                &spot.key,
                format!("{} is another listener's already", spot.value),
            );
        }
        let proxies = proxies(check, &mut section, "proxy_protocol");
        let xclient = self::proxies(check, &mut section, "xclient");
        let stream = section.string("stream");
        if let Some(spot) = &stream {
            streams.check(check, spot);
        }
        if let Some(kind) = listener_kind(check, &mut section, tenants)
            && let Some(address) = address
        {
            listeners.push(Listener {
                address: address.value,
                kind,
                proxies,
                xclient,
                stream: stream.map(|spot| spot.value.into()),
            });
        }
        section.end();
    }
    listeners
}

fn listener_kind(
    check: &Check<'_>,
    section: &mut Section<'_>,
    tenants: &BTreeMap<Arc<str>, Tenant>,
) -> Option<ListenerKind> {
    let kind = section.word(
        "kind",
        &[
            ("submission", Some(0)),
            ("submissions", Some(1)),
            ("trusted", Some(2)),
        ],
        None,
    );
    let tls = tls_files(check, section);
    let no_networks = !section.has("networks") || section.is_empty_list("networks");
    let networks = section.list::<IpNet>("networks");
    let tenant = section.string("tenant");
    let needs_tls = |section: &Section<'_>| {
        if tls.is_none() {
            section.problem(
                "certificate",
                "is needed: passwords and mail of this listener go through TLS only",
            );
        }
    };
    match kind {
        Some(0 | 1) => {
            needs_tls(section);
            for (key, given) in [("networks", networks.is_some()), ("tenant", tenant.is_some())] {
                if given {
                    section.problem(key, "is for trusted listeners; here clients log in, and their credential names the tenant");
                }
            }
            let tls = tls?;
            Some(if kind == Some(0) {
                ListenerKind::Submission(tls)
            } else {
                ListenerKind::Submissions(tls)
            })
        }
        Some(_) => {
            if no_networks {
                section.problem(
                    "networks",
                    "is needed: whose mail is taken without a password, such as [\"10.0.0.0/8\"]",
                );
            }
            let networks = trusted_networks(check, networks);
            let tenant = section.required("tenant", tenant, "the tenant that these clients speak for");
            if let Some(spot) = &tenant
                && !tenants.contains_key(spot.value.as_str())
            {
                let text = format!(
                    "there is no tenant \"{}\"; it would be a table [tenants.{}]",
                    spot.value, spot.value
                );
                check.problem(spot.at, &spot.key, text);
            }
            Some(ListenerKind::Trusted {
                networks,
                tenant: tenant?.value.into(),
                tls,
            })
        }
        None => {
            section.required::<()>("kind", None, "\"submission\", \"submissions\" or \"trusted\"");
            None
        }
    }
}

fn trusted_networks(check: &Check<'_>, networks: Option<Vec<Spot<IpNet>>>) -> Vec<IpNet> {
    let networks = networks.unwrap_or_default();
    not_too_wide(
        check,
        &networks,
        "an open relay; name the networks of your own clients",
    );
    networks.into_iter().map(|spot| spot.value).collect()
}

/// Whose word on a client's address is taken.
fn proxies(check: &Check<'_>, section: &mut Section<'_>, key: &'static str) -> Vec<IpNet> {
    let proxies = section.list::<IpNet>(key).unwrap_or_default();
    let danger = "anyone there could say to be any client; name your own proxies";
    not_too_wide(check, &proxies, danger);
    proxies.into_iter().map(|spot| spot.value).collect()
}

/// How much of the addresses of its family a network is that anyone could have one of: private ones (RFC 1918, 6598, 4193)
/// are none of these.
fn public_share(net: &IpNet) -> f64 {
    let is_private = match net {
        IpNet::V4(net) => {
            let [first, second, ..] = net.network().octets();
            net.network().is_private()
                || net.network().is_loopback()
                || (first == 100 && (64..128).contains(&second))
        }
        IpNet::V6(net) => net.network().is_unique_local(),
    };
    if is_private {
        0.0
    } else {
        0.5_f64.powi(i32::from(net.prefix_len()))
    }
}

/// Tells of networks that are as good as everyone, each by itself or all together.
fn not_too_wide(check: &Check<'_>, networks: &[Spot<IpNet>], danger: &str) {
    for (is_v4, widest) in [(true, 8), (false, 16)] {
        let family = networks
            .iter()
            .filter(|spot| matches!(spot.value, IpNet::V4(_)) == is_v4 && spot.value.prefix_len() >= widest);
        let share: f64 = family.clone().map(|spot| public_share(&spot.value)).sum();
        // One of the widest and some smaller ones.
        if let Some(last) = family.clone().next_back()
            && share > 2.0 * 0.5_f64.powi(i32::from(widest))
        {
            let text = format!("with the others is a large part of the Internet: {danger}");
            check.problem(last.at, &last.key, text);
        }
    }
    for spot in networks {
        let text = match spot.value {
            IpNet::V4(net) if net.prefix_len() >= 8 => continue,
            IpNet::V6(net) if net.network().to_ipv4_mapped().is_some() => {
                format!("{net} is a form of IPv4 addresses; write them as IPv4")
            }
            // Private addresses (RFC 4193) may be one network.
            IpNet::V6(net) if net.prefix_len() >= 16 || net.network().is_unique_local() => continue,
            net if net.prefix_len() == 0 => format!("{net} is everyone: {danger}"),
            // As good as everyone, or one half of it.
            net => format!("{net} is a large part of the Internet: {danger}"),
        };
        check.problem(spot.at, &spot.key, text);
    }
}

/// A certificate and its key, checked to be there and to fit.
pub(super) fn tls_files(check: &Check<'_>, section: &mut Section<'_>) -> Option<TlsFiles> {
    let (certificate, key) = (section.file("certificate"), section.file("key"));
    match (certificate, key) {
        (Some(certificate), Some(key)) => {
            let files = TlsFiles {
                certificate: certificate.value,
                key: key.value,
            };
            if let Err(error) = crate::tls::server_config(&files) {
                check.problem(certificate.at, &certificate.key, format!("{error:#}"));
            }
            Some(files)
        }
        (Some(_), None) => {
            section.problem("key", "is needed: the certificate's private key");
            None
        }
        (None, Some(_)) => {
            section.problem("certificate", "is needed: the certificate of the key");
            None
        }
        (None, None) => None,
    }
}

fn submission(mut section: Section<'_>) -> SubmissionSettings {
    let submission = SubmissionSettings {
        max_message_bytes: section.size_or("max_message", 65_536..=u64::MAX / 2, 25 * MIB),
        max_recipients: as_usize(section.integer("max_recipients", 100..=100_000, 1_000)),
        max_connections: as_usize(section.integer("max_connections", 1..=1_000_000, 1_000)),
        max_connections_per_address: as_usize(section.integer(
            "max_connections_per_address",
            1..=1_000_000,
            100,
        )),
        max_handshakes: as_usize(section.integer("max_handshakes", 1..=1_000_000, 500)),
        max_bytes_in_flight: section.size_or("max_in_flight", 65_536..=u64::MAX / 2, 256 * MIB),
        max_errors: section.integer("max_errors", 1..=10_000, 20) as u32,
        max_received: as_usize(section.integer("max_received", 10..=1_000, 100)),
        max_hold: section.duration("max_hold", Duration::ZERO..=MAX_HOLD, 30 * DAY),
        address_rates: rates::address(section.section("rates")),
        command_timeout: section.duration("command_timeout", MS..=DAY, 5 * MINUTE),
        data_timeout: section.duration("data_timeout", MS..=DAY, 3 * MINUTE),
        tls_timeout: section.duration("tls_timeout", MS..=HOUR, Duration::from_secs(30)),
        session_timeout: section.duration("session_timeout", MS..=EVER, HOUR),
    };
    if submission.max_bytes_in_flight < submission.max_message_bytes {
        section.problem(
            "max_in_flight",
            "is less than max_message: the largest messages would never be taken",
        );
    }
    section.end();
    submission
}

fn dns(mut section: Section<'_>) -> DnsSettings {
    if section.is_empty_list("servers") {
        section.problem(
            "servers",
            "is empty; name at least one, or leave the key out for the system's",
        );
    }
    let servers = section.list::<NameServer>("servers").unwrap_or_default();
    section.end();
    DnsSettings {
        servers: servers.into_iter().map(|spot| spot.value.0).collect(),
    }
}

/// An address, with or without a port.
struct NameServer(SocketAddr);

impl std::str::FromStr for NameServer {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let with_port = text.parse().ok();
        let address = with_port.or_else(|| Some(SocketAddr::new(text.parse().ok()?, 53)));
        address
            .map(Self)
            .ok_or("an IP address is needed, with a port where it is not 53, such as \"127.0.0.1:5353\"")
    }
}

fn dkim(check: &Check<'_>, top: &mut Section<'_>) -> Vec<DkimKey> {
    let mut keys = Vec::new();
    let mut taken = BTreeSet::new();
    for mut section in top.sections("dkim") {
        let domain = section.parsed::<Domain>("domain");
        let domain = section.required("domain", domain, "whose mail the key signs");
        let selector = section.parsed::<Selector>("selector");
        let selector = section.required("selector", selector, "the key's name in the DNS, such as \"s1\"");
        let file = section.file("key");
        let file = section.required(
            "key",
            file,
            "the private key's file; `postrider dkim keygen` makes one",
        );
        if let Some(spot) = &file {
            match PrivateKey::load(&spot.value) {
                Err(error) => check.problem(spot.at, &spot.key, error.to_string()),
                Ok(key) => {
                    let kind = key.algorithm().key_tag();
                    if let Some(domain) = &domain
                        && !taken.insert((domain.value.clone(), kind))
                    {
                        let problem = format!(
                            "a second {kind} key for {}: a domain has one rsa key, one ed25519 key, or both",
                            domain.value
                        );
                        check.problem(spot.at, &spot.key, problem);
                    }
                }
            }
        }
        section.end();
        if let (Some(domain), Some(selector), Some(file)) = (domain, selector, file) {
            let selector = selector.value.to_string();
            keys.push(DkimKey {
                domain: domain.value,
                selector,
                file: file.value,
            });
        }
    }
    keys
}

fn optional_address(mut section: Section<'_>, key: &'static str) -> Option<SocketAddr> {
    let address = section.parsed::<SocketAddr>(key);
    section.end();
    address.map(|spot| spot.value)
}

fn log(mut section: Section<'_>) -> (LogFormat, Arc<str>) {
    let format = section.word(
        "format",
        &[("text", LogFormat::Text), ("json", LogFormat::Json)],
        LogFormat::Text,
    );
    let level = section.parsed::<LogLevel>("level");
    section.taken_as("level", crate::logging::USUAL);
    section.end();
    let level = level.map_or_else(|| crate::logging::USUAL.into(), |spot| spot.value.0);
    (format, level)
}

/// How much is logged.
struct LogLevel(Arc<str>);

impl std::str::FromStr for LogLevel {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        // Any other word by itself is taken for a part of the program, of which all is logged, and of the rest nothing.
        let ends_with_level = |directive: &str| {
            let level = directive.rsplit('=').next().unwrap_or_default().trim();
            ["off", "error", "warn", "info", "debug", "trace"]
                .iter()
                .any(|known| level.eq_ignore_ascii_case(known))
        };
        match crate::logging::filter(text) {
            Ok(_) if text.split(',').all(ends_with_level) => Ok(Self(text.into())),
            _ => Err(
                "is no log level; write such as \"info\", \"warn\", \"info,relay::delivery=debug\"".into(),
            ),
        }
    }
}

fn delivery(
    check: &Check<'_>,
    top: &mut Section<'_>,
    hostname: Option<&Domain>,
    expire_after: Duration,
) -> Option<DeliverySettings> {
    let mut section = top.section("delivery");
    let retry = retry(section.section("retry"), None);
    let streams = streams(check, top, expire_after, &retry);
    let ehlo = section
        .parsed::<Domain>("ehlo")
        .map(|spot| spot.value)
        .or_else(|| hostname.cloned());
    let (limits, tls, family) = (
        limits(section.section("limits"), None),
        tls_level(&mut section, TlsLevel::Opportunistic),
        address_family(&mut section, AddressFamily::Any),
    );
    if let Some(name) = &ehlo {
        section.taken_as("ehlo", name);
    }
    let shipped_limits = section.boolean("shipped_limits", true);
    let own_addresses = section.list::<IpAddr>("own_addresses").unwrap_or_default();
    let pool = section.string("pool");
    let delivery = DeliverySettings {
        port: section.integer("port", 1..=65_535, 25) as u16,
        // In place of what is missing, so that the rest is checked too.
        ehlo: ehlo.or_else(|| "localhost".parse().ok())?,
        source: section.parsed::<IpAddr>("source").map(|spot| spot.value),
        egress: egress(check, top, pool),
        own_addresses: own_addresses.into_iter().map(|spot| spot.value).collect(),
        ca_file: section.file("ca_file").map(|spot| {
            if let Err(error) = crate::delivery::client_tls::ClientTls::new(Some(&spot.value)) {
                check.problem(spot.at, &spot.key, format!("{error:#}"));
            }
            spot.value
        }),
        retry,
        streams,
        timeouts: timeouts(section.section("timeouts")),
        destinations: destinations(check, top, tls, family),
        // They name tenants, which are read later.
        scopes: LimitRules::default(),
        shaping: Arc::new(shaping(check, top, shipped_limits)),
        limits,
        tls,
        family,
        fallback_after: section.integer("fallback_after", 1..=20, 3) as u32,
        max_connections: as_usize(section.integer("max_connections", 1..=1_000_000, 1_000)),
        max_report_bytes: as_usize(section.size_or("max_report", 4_096..=u64::from(u32::MAX), 50 * 1024)),
        reports_per_domain: rates::reports(&mut section),
        delay_notice_after: section.duration("delay_notice_after", MS..=30 * DAY, 4 * 60 * MINUTE),
        convert_to_7bit: section.boolean("convert_to_7bit", true),
    };
    section.end();
    Some(delivery)
}

fn tls_level(section: &mut Section<'_>, default: TlsLevel) -> TlsLevel {
    let words = [
        ("opportunistic", TlsLevel::Opportunistic),
        ("required", TlsLevel::Required),
        ("off", TlsLevel::Off),
    ];
    section.word("tls", &words, default)
}

pub(super) fn address_family(section: &mut Section<'_>, default: AddressFamily) -> AddressFamily {
    let words = [
        ("any", AddressFamily::Any),
        ("ipv4", AddressFamily::Ipv4),
        ("ipv6", AddressFamily::Ipv6),
        ("prefer-ipv4", AddressFamily::PreferIpv4),
        ("prefer-ipv6", AddressFamily::PreferIpv6),
    ];
    section.word("address_family", &words, default)
}

/// Limits of a table; what it leaves out comes from `defaults`.
pub(super) fn limits(mut section: Section<'_>, defaults: Option<&DestinationLimits>) -> DestinationLimits {
    let shipped = DestinationLimits {
        connections: 20,
        messages_per_second: None,
        messages_per_connection: 1_000,
        recipients_per_transaction: 100,
    };
    let defaults = defaults.unwrap_or(&shipped);
    let limits = DestinationLimits {
        connections: as_usize(section.integer("connections", CONNECTIONS, defaults.connections as u64)),
        messages_per_second: section
            .number("messages_per_second", MESSAGES_PER_SECOND)
            .or(defaults.messages_per_second),
        messages_per_connection: section.integer(
            "messages_per_connection",
            MESSAGES_PER_CONNECTION,
            u64::from(defaults.messages_per_connection),
        ) as u32,
        recipients_per_transaction: as_usize(section.integer(
            "recipients_per_transaction",
            RECIPIENTS_PER_TRANSACTION,
            defaults.recipients_per_transaction as u64,
        )),
    };
    section.end();
    limits
}

/// What a table says of limits, by bounds as in [`limits`].
pub(super) fn own_limits(mut section: Section<'_>) -> OwnLimits {
    let limits = OwnLimits {
        connections: section.optional_integer("connections", CONNECTIONS).map(as_usize),
        messages_per_second: section.number("messages_per_second", MESSAGES_PER_SECOND),
        messages_per_connection: section
            .optional_integer("messages_per_connection", MESSAGES_PER_CONNECTION)
            .map(|number| number as u32),
        recipients_per_transaction: section
            .optional_integer("recipients_per_transaction", RECIPIENTS_PER_TRANSACTION)
            .map(as_usize),
    };
    section.end();
    limits
}

fn destinations(
    check: &Check<'_>,
    top: &mut Section<'_>,
    tls: TlsLevel,
    family: AddressFamily,
) -> Destinations {
    let mut destinations = Vec::new();
    let mut seen = BTreeSet::new();
    for mut section in top.sections("destination") {
        let domain = section.parsed::<DomainPattern>("domain");
        let domain = section.required(
            "domain",
            domain,
            "a domain, or \"*.example.com\" for all below one",
        );
        let tls = tls_level(&mut section, tls);
        let family = address_family(&mut section, family);
        let limits = own_limits(section.section("limits"));
        section.end();
        let Some(spot) = domain else { continue };
        let DomainPattern { domain, below } = spot.value;
        if !seen.insert((domain.clone(), below)) {
            check.problem(spot.at, &spot.key, format!("{domain} has another rule already"));
        }
        destinations.push(Destination {
            domain,
            below,
            tls,
            family,
            limits,
        });
    }
    Destinations::new(destinations)
}

struct DomainPattern {
    domain: Domain,
    below: bool,
}

impl std::str::FromStr for DomainPattern {
    type Err = mail_core::BadDomain;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (text, below) = text
            .strip_prefix("*.")
            .map_or((text, false), |parent| (parent, true));
        Ok(Self {
            domain: text.parse()?,
            below,
        })
    }
}

/// What a table leaves out comes from `defaults`.
pub(super) fn retry(mut section: Section<'_>, defaults: Option<&Retry>) -> Retry {
    let shipped = Retry {
        first: 5 * MINUTE,
        factor: 2.0,
        cap: 4 * HOUR,
        jitter: 0.2,
    };
    let defaults = defaults.unwrap_or(&shipped);
    let retry = Retry {
        first: section.duration("first", MS..=EVER, defaults.first),
        factor: section.number_or("factor", 1.0..=100.0, defaults.factor),
        cap: section.duration("cap", MS..=EVER, defaults.cap),
        jitter: section.number_or("jitter", 0.0..=0.5, defaults.jitter),
    };
    if retry.cap < retry.first {
        section.problem("cap", "is shorter than the first wait");
    }
    section.end();
    retry
}

fn timeouts(mut section: Section<'_>) -> ClientTimeouts {
    let mut wait = |key, default| section.duration(key, MS..=DAY, default);
    let timeouts = ClientTimeouts {
        connect: wait("connect", Duration::from_secs(30)),
        greeting: wait("greeting", 5 * MINUTE),
        command: wait("command", 5 * MINUTE),
        tls: wait("tls", MINUTE),
        mail: wait("mail", 5 * MINUTE),
        rcpt: wait("rcpt", 5 * MINUTE),
        data: wait("data", 2 * MINUTE),
        block: wait("block", 3 * MINUTE),
        final_dot: wait("final_dot", 10 * MINUTE),
        transaction: wait("transaction", Duration::from_secs(3_600)),
        idle: wait("idle", Duration::from_secs(15)),
        dns: wait("dns", Duration::from_secs(5)),
    };
    section.end();
    timeouts
}

fn as_usize(number: u64) -> usize {
    usize::try_from(number).unwrap_or(usize::MAX)
}

impl std::str::FromStr for SenderPattern {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "*" {
            return Ok(Self::Any);
        }
        if let Some((local, domain)) = text.rsplit_once('@') {
            if local.contains('*') {
                let text = format!("for all addresses of a domain write \"{domain}\" alone");
                return Err(text);
            }
            return text
                .parse()
                .map(Self::Mailbox)
                .map_err(|error: mail_core::BadMailbox| error.to_string());
        }
        let parsed = text.parse::<DomainPattern>().map_err(|error| error.to_string())?;
        Ok(if parsed.below {
            Self::Below(parsed.domain)
        } else {
            Self::Domain(parsed.domain)
        })
    }
}
