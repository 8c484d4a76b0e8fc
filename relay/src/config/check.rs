//! The check: from the configuration as written to [`Settings`], telling every mistake at once.
//!
//! Each key's meaning and default stand in `docs/postrider.example.toml`; a test holds that file and this one together.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use dkim_signer::{PrivateKey, Selector};
use mail_core::{Domain, Mailbox};

use crate::submission::fields::OwnField;

use super::admin::admin;
use super::delivery::{DomainPattern, delivery};
use super::limits::limits as scope_limits;
use super::listeners::{listeners, submission};
use super::rates;
use super::routes::{Named, routing};
use super::section::{Check, OwnName, Section, Spot};
use super::settings::{
    DeliverySettings, DkimKey, DnsSettings, LogFormat, SenderPattern, Settings, StoreSettings, Tenant,
};
use super::smart_hosts::smart_hosts;
use super::source::Node;
use super::streams::Streams;

pub(super) const MS: Duration = Duration::from_millis(1);
pub(super) const MINUTE: Duration = Duration::from_secs(60);
pub(super) const HOUR: Duration = Duration::from_secs(3_600);
pub(super) const DAY: Duration = Duration::from_secs(86_400);
/// Anything longer is a slip of the pen.
pub(super) const EVER: Duration = Duration::from_secs(366 * 86_400);

pub(super) const MIB: u64 = 1 << 20;

pub(super) const CONNECTIONS: RangeInclusive<u64> = 1..=100_000;
pub(super) const MESSAGES_PER_SECOND: RangeInclusive<f64> = 0.001..=1e6;
pub(super) const MESSAGES_PER_CONNECTION: RangeInclusive<u64> = 1..=1_000_000_000;
pub(super) const RECIPIENTS_PER_TRANSACTION: RangeInclusive<u64> = 1..=100_000;

/// Reads the whole configuration. What is missing or wrong is noted in `check`; the settings are whole only if nothing is.
pub fn settings(check: &Check<'_>, root: Node) -> Option<Settings> {
    let mut top = Section::root(check, root);
    let hostname = top.parsed::<OwnName>("hostname");
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
        hostname.as_ref().map(|spot| &spot.value.0),
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
    let OwnName(hostname) = hostname?.value;
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

pub(super) fn as_usize(number: u64) -> usize {
    usize::try_from(number).unwrap_or(usize::MAX)
}
