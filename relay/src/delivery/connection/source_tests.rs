//! What a connection comes from, and proxies on its way, over scripted connections.

use std::sync::Arc;

use crate::config::egress::{Proxy, ProxyKind, Source};
use crate::config::settings::{AddressFamily, TlsLevel};

use super::open::Terms;
use super::tests::{HELLO, Lab, NOT_HERE, paused, script, source};

fn terms(source: Source) -> Terms {
    Terms {
        source: Some(Arc::new(source)),
        ..Terms::of_mx(TlsLevel::Off, AddressFamily::Any)
    }
}

fn of(addresses: &[&str]) -> Source {
    let addresses: Vec<_> = addresses.iter().map(|text| text.parse().unwrap()).collect();
    (*source(&addresses)).clone()
}

fn behind(kind: ProxyKind, source: Source) -> Source {
    let proxy = Proxy {
        kind,
        place: Ok("px9.test".parse().unwrap()),
        port: 1080,
        login: None,
        bind: false,
    };
    Source {
        proxy: Some(proxy),
        ..source
    }
}

#[test]
fn a_connection_has_its_sources_address_interface_and_name() {
    paused(async {
        let peer = ["S 220 hi", "C EHLO out1.test", "R 250 mx|"];
        let lab = Lab::new(&[&peer]);
        let source = Source {
            interface: Some("eth1".into()),
            ehlo: Some("out1.test".parse().unwrap()),
            ..of(&["2001:db8::1", "192.0.2.1"])
        };
        let connection = lab.open_on(1, &terms(source)).await.unwrap();
        assert_eq!(lab.heard(), "to 10.0.0.1 from 192.0.2.1 by eth1 EHLO out1.test");
        assert_eq!(connection.hop().source, "out1");
    });
}

#[test]
fn a_host_of_other_families_alone_waits() {
    paused(async {
        let lab = Lab::new(&[&HELLO]);
        let failure = lab.open_on(2, &terms(of(&["2001:db8::1"]))).await.err().unwrap();
        assert_eq!(lab.world.connections(), 0);
        assert_eq!(
            failure.to_string(),
            "4.4.4 mx2.test: no address of a family that the source out1 has"
        );
        assert!(failure.permanent().is_none() && !failure.of_source());
    });
}

#[test]
fn a_source_that_is_not_there_says_nothing_of_the_hosts_and_no_other_is_tried() {
    paused(async {
        let lab = Lab::new(&[&HELLO]);
        let source = of(&[&NOT_HERE.to_string()]);
        let failure = lab.open_on(3, &terms(source)).await.err().unwrap();
        assert_eq!(lab.world.connections(), 0);
        assert!(failure.of_source() && failure.permanent().is_none());
        let told = failure.to_string();
        assert!(told.starts_with("4.4.0 source out1: [192.0.2.66]: "), "{told}");
    });
}

#[test]
fn smtp_begins_right_behind_the_proxys_last_word() {
    paused(async {
        // The greeting comes in one piece with the reply.
        let socks = ["X 05 01 00", "O 05 00", "X 05 01 00 01 0a000001 0019"];
        let reply = "O 05 00 00 01 c0000201 3039 3232302068690d0a";
        let hello = ["C EHLO relay.test", "R 250 mx|"];
        let through_socks = script(&[&socks, &[reply], &hello]);
        let header = "X 0d0a0d0a000d0a515549540a 21 11 000c c0000201 0a000001 0000 0019";
        let through_haproxy = script(&[&[header, "S 220 hi"], &hello]);
        for (kind, peer) in [
            (ProxyKind::Socks5, through_socks),
            (ProxyKind::Haproxy, through_haproxy),
        ] {
            let lab = Lab::new(&[&peer]);
            let source = behind(kind, of(&["192.0.2.1"]));
            let connection = lab.open_on(1, &terms(source)).await.unwrap();
            assert_eq!(
                lab.heard(),
                "to 10.0.0.9 EHLO relay.test",
                "its address is the proxy's"
            );
            assert_eq!(connection.hop().address, "10.0.0.1:25");
        }
    });
}

#[test]
fn a_proxys_failure_is_the_sources_and_a_targets_is_its_own() {
    paused(async {
        let enter = ["X 05 01 00", "O 05 00", "X 05 01 00 01 0a000001 0019"];
        let refused = script(&[&enter, &["O 05 05"]]);
        let not_allowed = script(&[&enter, &["O 05 02"]]);
        for (peers, of_source, told) in [
            (
                vec![refused],
                false,
                "4.4.1 mx1.test: [10.0.0.1]: connection refused, says socks5://px9.test:1080",
            ),
            (
                vec![not_allowed],
                true,
                "4.4.0 source out1: socks5://px9.test:1080: not allowed by its rules ([10.0.0.1])",
            ),
            (
                vec![],
                true,
                "4.4.0 source out1: socks5://px9.test:1080: connection refused",
            ),
            (
                vec![vec!["X 05 01 00", "O 05 ff"]],
                true,
                "4.4.0 source out1: socks5://px9.test:1080: it lets us in by no method that we offer",
            ),
        ] {
            let peers: Vec<&[&str]> = peers.iter().map(Vec::as_slice).collect();
            let lab = Lab::new(&peers);
            let source = behind(ProxyKind::Socks5, of(&[]));
            let failure = lab.open_on(1, &terms(source)).await.err().unwrap();
            assert_eq!(failure.to_string(), told);
            assert_eq!(failure.of_source(), of_source, "{told}");
            assert!(failure.permanent().is_none());
        }
    });
}

/// Its rules may be about one target; that it is not there is the same for all.
#[test]
fn after_a_proxys_refusal_the_next_host_is_tried_and_after_its_silence_none() {
    paused(async {
        let not_allowed = ["X 05 01 00", "O 05 00", "X 05 01 00 01 0a000001 0019", "O 05 02"];
        let granted = script(&[
            &["X 05 01 00", "O 05 00", "X 05 01 00 01 0a000002 0019"],
            &["O 05 00 00 01 c0000201 3039"],
            &HELLO,
        ]);
        let lab = Lab::new(&[&not_allowed, &granted]);
        let socks = || terms(behind(ProxyKind::Socks5, of(&[])));
        assert!(lab.open_on(2, &socks()).await.is_ok());
        let lab = Lab::new(&[&["SILENT"], &["SILENT"]]);
        let failure = lab.open_on(2, &socks()).await.err().unwrap();
        assert!(failure.of_source(), "{failure}");
        assert_eq!(lab.world.connections(), 1);
    });
}

#[test]
fn a_header_that_is_not_followed_is_told_with_the_proxys_name() {
    paused(async {
        let header = "X 0d0a0d0a000d0a515549540a 21 11 000c c0000201 0a000001 0000 0019";
        let lab = Lab::new(&[&[header]]);
        let source = behind(ProxyKind::Haproxy, of(&["192.0.2.1"]));
        let failure = lab.open_on(1, &terms(source)).await.err().unwrap().to_string();
        assert!(failure.contains("through haproxy://px9.test:1080"), "{failure}");
    });
}
