//! `[[listener]]` and `[submission]`: where mail comes in.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;

use super::check::{DAY, EVER, HOUR, MIB, MINUTE, MS, as_usize};
use super::rates;
use super::section::{Check, Section, Spot};
use super::settings::{Listener, ListenerKind, MAX_HOLD, SubmissionSettings, Tenant, TlsFiles};
use super::streams::Streams;

pub(super) fn listeners(
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

pub(super) fn submission(mut section: Section<'_>) -> SubmissionSettings {
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
