//! `[delivery]` and `[[destination]]`: how mail goes out.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use mail_core::Domain;

use super::check::{
    CONNECTIONS, DAY, EVER, HOUR, MESSAGES_PER_CONNECTION, MESSAGES_PER_SECOND, MINUTE, MS,
    RECIPIENTS_PER_TRANSACTION, as_usize,
};
use super::egress::egress;
use super::limits::LimitRules;
use super::rates;
use super::section::{Check, OwnName, Section};
use super::settings::{
    AddressFamily, ClientTimeouts, DeliverySettings, Destination, DestinationLimits, Destinations, OwnLimits,
    Retry, TlsLevel,
};
use super::shaping::shaping;
use super::streams::streams;

pub(super) fn delivery(
    check: &Check<'_>,
    top: &mut Section<'_>,
    hostname: Option<&Domain>,
    expire_after: Duration,
) -> Option<DeliverySettings> {
    let mut section = top.section("delivery");
    let retry = retry(section.section("retry"), None);
    let streams = streams(check, top, expire_after, &retry);
    let ehlo = section
        .parsed::<OwnName>("ehlo")
        .map(|spot| spot.value.0)
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
        egress: egress(check, top, pool, &streams),
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

pub(super) struct DomainPattern {
    pub(super) domain: Domain,
    pub(super) below: bool,
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
