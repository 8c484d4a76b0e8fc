use proptest::prelude::*;

use super::super::Shaping;
use super::*;

fn providers() -> &'static Providers {
    &Shaping::shipped().providers
}

fn domains(hosts: &[&str]) -> Vec<Domain> {
    hosts.iter().map(|host| host.parse().unwrap()).collect()
}

#[test]
fn hosts_tell_their_provider() {
    for (host, name) in [
        ("gmail-smtp-in.l.google.com", "google"),
        ("alt4.aspmx.l.google.com", "google"),
        ("aspmx2.googlemail.com", "google"),
        ("outlook-com.olc.protection.outlook.com", "outlook"),
        ("contoso-com.mail.protection.outlook.com", "microsoft365"),
        ("contoso-com.a-v1.mx.microsoft", "microsoft365"),
        ("mta5.am0.yahoodns.net", "yahoo"),
        ("mx1.mail.yahoo.co.jp", "yahoo-japan"),
        ("mx01.mail.icloud.com", "apple"),
        ("mx00.emig.gmx.net", "gmx"),
        ("mx-ha02.web.de", "gmx"),
        ("mx00.mail.com", "mail-com"),
        ("mx03.t-online.de", "t-online"),
        ("smtp-in.orange.fr", "orange"),
        ("cxr.mx.a.cloudfilter.net", "cox"),
        ("al-ip4-mx-vip1.prodigy.net", "att"),
        ("mxbiz1.qq.com", "qq"),
        ("163mx01.mxmail.netease.com", "netease"),
        ("mxa-00360101.gslb.pphosted.com", "proofpoint"),
        ("d1.ess.barracudanetworks.com", "barracuda"),
        ("mx1.hc3370-68.iphmx.com", "cisco"),
    ] {
        let found = providers().of_host(host).map(|found| &*found.name);
        assert_eq!(found, Some(name), "{host}");
    }
    for host in [
        "mx.example.org",
        "google.com",
        "notgoogle.com",
        "eir-1.mx.a.cloudfilter.net",
        "com",
        "",
    ] {
        assert!(providers().of_host(host).is_none(), "{host}");
    }
}

#[test]
fn a_site_is_whose_hosts_are_most() {
    let of = |hosts: &[&str]| {
        let hosts = domains(hosts);
        providers().of_site(&hosts).map(|found| found.name.to_string())
    };
    let google = Some("google".to_owned());
    assert_eq!(
        of(&[
            "aspmx.l.google.com",
            "alt1.aspmx.l.google.com",
            "backup.example.org"
        ]),
        google
    );
    assert_eq!(
        of(&["aspmx.l.google.com", "mx1.qq.com", "mx2.qq.com"]),
        Some("qq".to_owned())
    );
    assert_eq!(
        of(&["mx1.qq.com", "aspmx.l.google.com"]),
        google,
        "the first in the table"
    );
    assert_eq!(of(&["mx.example.org"]), None);
    assert_eq!(of(&[]), None);
}

/// Who adds a provider's host to his own has no part of what its lanes share.
#[test]
fn a_whole_site_has_no_host_of_anybody_else() {
    let of = |hosts: &[&str]| {
        let hosts = domains(hosts);
        providers()
            .of_whole_site(&hosts)
            .map(|found| found.name.to_string())
    };
    let google = ["aspmx.l.google.com", "aspmx2.googlemail.com"];
    assert_eq!(of(&google), Some("google".to_owned()));
    for other in ["mx.example.org", "mx1.qq.com"] {
        assert_eq!(of(&[google[0], google[1], other]), None);
        assert_eq!(of(&[other, google[0]]), None);
    }
    assert_eq!(of(&["mx.example.org"]), None);
    assert_eq!(of(&[]), None);
}

/// What is shipped is whole: some twenty providers, all of them different, every figure with its source.
#[test]
fn the_table_is_sound() {
    let (mut names, mut hosts) = (Vec::new(), Vec::new());
    for provider in providers().all() {
        assert!(crate::config::is_name(&provider.name), "{}", provider.name);
        names.push(&provider.name);
        hosts.extend(&provider.mx);
        assert!(!provider.mx.is_empty(), "{}", provider.name);
        for (number, limit) in provider.limits.iter().enumerate() {
            let twice = provider.limits[..number]
                .iter()
                .any(|before| before.key == limit.key);
            assert!(!twice, "{} {:?}", provider.name, limit.key);
        }
        for limit in provider
            .limits
            .iter()
            .filter(|limit| limit.key != LimitKey::MessagesPerSecond)
        {
            assert_eq!(limit.value.fract(), 0.0, "{} {:?}", provider.name, limit.key);
        }
    }
    assert!(names.len() >= 20);
    for list in [
        names.iter().map(|name| name.to_string()).collect::<Vec<_>>(),
        hosts.iter().map(|host| host.to_string()).collect(),
    ] {
        let mut sorted = list.clone();
        sorted.sort();
        sorted.dedup();
        assert_eq!(sorted.len(), list.len(), "something is there twice");
    }
}

#[test]
fn figures_without_a_source_are_refused() {
    let classes = &Shaping::shipped().classes;
    let head = "[[provider]]\nname = \"a\"\ntitle = \"A\"\nmx = [\"*.a.test\"]\n";
    let good = "[[provider.limit]]\nkey = \"connections\"\nvalue = 3\nsource = \"https://a.test\"\nseen = \"2026-01-02\"\nby = \"provider\"\n";
    assert!(read(&format!("{head}{good}"), classes).is_ok());
    assert!(read(&format!("{head}unsourced = true\n"), classes).is_ok());
    for (what, bad) in [
        ("no limit and no word of it", head.to_owned()),
        ("both", format!("{head}unsourced = true\n{good}")),
        (
            "no source",
            format!("{head}{}", good.replace("source = \"https://a.test\"\n", "")),
        ),
        (
            "no page",
            format!("{head}{}", good.replace("https://a.test", "hearsay")),
        ),
        (
            "no day",
            format!("{head}{}", good.replace("2026-01-02", "lately")),
        ),
        (
            "nobody's",
            format!("{head}{}", good.replace("\"provider\"\n", "\"me\"\n")),
        ),
        (
            "no key of ours",
            format!("{head}{}", good.replace("connections", "wishes")),
        ),
        (
            "nothing",
            format!("{head}{}", good.replace("value = 3", "value = 0")),
        ),
    ] {
        assert!(read(&bad, classes).is_err(), "{what}");
    }
}

const DEFAULTS: DestinationLimits = DestinationLimits {
    connections: 20,
    messages_per_second: None,
    messages_per_connection: 1_000,
    recipients_per_transaction: 100,
};

fn limited(key: LimitKey, value: f64) -> Provider {
    let source = source("https://a.test".into(), "2026-01-02".into(), By::Provider).unwrap();
    Provider {
        limits: vec![Limit {
            key,
            value,
            across: Across::Lane,
            source,
        }],
        ..Provider::new("a".into())
    }
}

#[test]
fn shipped_limits_are_never_wider_than_the_defaults() {
    for (value, connections) in [(5.0, 5), (20.0, 20), (500.0, 20)] {
        let limits = limited(LimitKey::Connections, value).limits(&DEFAULTS);
        assert_eq!(limits.connections, connections);
        assert_eq!(
            DestinationLimits {
                connections: 20,
                ..limits
            },
            DEFAULTS
        );
    }
    let rate = |default| {
        let defaults = DestinationLimits {
            messages_per_second: default,
            ..DEFAULTS
        };
        limited(LimitKey::MessagesPerSecond, 10.0)
            .limits(&defaults)
            .messages_per_second
    };
    assert_eq!(
        (rate(None), rate(Some(50.0)), rate(Some(2.0))),
        (Some(10.0), Some(10.0), Some(2.0))
    );
}

#[test]
fn what_the_configuration_says_of_a_provider_holds() {
    let mut provider = limited(LimitKey::Connections, 5.0);
    provider.own.connections = Some(50);
    assert_eq!(provider.limits(&DEFAULTS).connections, 50);
    provider.own.connections = None;
    provider.without_shipped = true;
    assert_eq!(provider.limits(&DEFAULTS), DEFAULTS);
}

proptest! {
    /// The index finds what going through all patterns finds.
    #[test]
    fn the_index_is_right(host in "([a-c]{1,2}\\.){0,4}[a-c]{1,2}", patterns in proptest::collection::hash_set("(\\*\\.)?([a-c]{1,2}\\.){1,3}[a-c]{1,2}", 0..20)) {
        let provider = |(number, pattern): (usize, &String)| Provider {
            mx: vec![pattern.parse().unwrap()],
            ..Provider::new(number.to_string().as_str().into())
        };
        let all: Vec<_> = patterns.iter().enumerate().map(provider).collect();
        let host: Domain = host.parse().unwrap();
        let fits = |pattern: &&HostPattern| match pattern.below {
            true => host != pattern.domain && host.is_within(&pattern.domain),
            false => host == pattern.domain,
        };
        let slow = all.iter().flat_map(|provider| &provider.mx).filter(fits)
            .max_by_key(|pattern| (!pattern.below, pattern.domain.as_str().len())).cloned();
        let found = Providers::new(all).of_host(host.as_str()).map(|found| found.mx[0].clone());
        prop_assert_eq!(found, slow);
    }
}
