//! The name server, asked by a resolver.
#![allow(clippy::unwrap_used, reason = "a test")]

use std::net::{IpAddr, SocketAddr};

use hickory_resolver::TokioResolver;
use hickory_resolver::config::{ConnectionConfig, NameServerConfig, ResolverConfig};
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use hickory_resolver::net::{DnsError, NetError};
use hickory_resolver::proto::op::ResponseCode;
use hickory_resolver::proto::rr::RecordType::{self, A, AAAA, MX, TXT};
use lab::Lab;

fn resolver(server: SocketAddr, connections: Vec<ConnectionConfig>) -> TokioResolver {
    let connections = connections.into_iter().map(|mut connection| {
        connection.port = server.port();
        connection
    });
    let server = NameServerConfig::new(server.ip(), true, connections.collect());
    let config = ResolverConfig::from_parts(None, Vec::new(), vec![server]);
    let mut builder = TokioResolver::builder_with_config(config, TokioRuntimeProvider::default());
    builder.options_mut().cache_size = 0;
    builder.build().unwrap()
}

async fn ask(resolver: &TokioResolver, name: &str, kind: RecordType) -> Result<Vec<String>, ResponseCode> {
    match resolver.lookup(format!("{name}."), kind).await {
        Ok(lookup) => {
            let mut all: Vec<_> = lookup
                .answers()
                .iter()
                .map(|record| record.data.to_string())
                .collect();
            all.sort();
            Ok(all)
        }
        Err(NetError::Dns(DnsError::NoRecordsFound(none))) => Err(none.response_code),
        Err(other) => panic!("{name} {kind}: {other}"),
    }
}

#[tokio::test]
async fn answers_for_the_whole_internet() {
    let key = format!("v=DKIM1; k=rsa; p={}", "A".repeat(392));
    let builder = Lab::builder()
        .txt("rsa._domainkey.sender.test", &key)
        .txt("big.test", "x".repeat(3_000));
    let lab = builder.start().await.unwrap();
    for resolver in [
        resolver(lab.dns, vec![ConnectionConfig::udp(), ConnectionConfig::tcp()]),
        resolver(lab.dns, vec![ConnectionConfig::tcp()]),
    ] {
        assert_eq!(ask(&resolver, "nullmx.test", MX).await.unwrap(), ["0 ."]);
        for host in &lab.hosts {
            let domain = host.name.as_str().strip_prefix("mx.").unwrap();
            assert_eq!(
                ask(&resolver, domain, MX).await.unwrap(),
                [format!("10 {}.", host.name)]
            );
            let IpAddr::V4(address) = host.address.ip() else {
                panic!()
            };
            assert_eq!(
                ask(&resolver, host.name.as_str(), A).await.unwrap(),
                [address.to_string()]
            );
            assert_eq!(
                ask(&resolver, host.name.as_str(), AAAA).await,
                Err(ResponseCode::NoError)
            );
        }
        assert_eq!(ask(&resolver, "OK.test", MX).await.unwrap(), ["10 mx.ok.test."]);
        let spf = ["v=spf1 ip4:127.0.0.0/8 -all"];
        assert_eq!(ask(&resolver, "sender.test", TXT).await.unwrap(), spf);
        assert_eq!(ask(&resolver, "relay.sender.test", TXT).await.unwrap(), spf);
        assert_eq!(
            ask(&resolver, "_dmarc.sender.test", TXT).await.unwrap(),
            ["v=DMARC1; p=reject"]
        );
        assert_eq!(
            ask(&resolver, "rsa._domainkey.sender.test", TXT).await.unwrap(),
            std::slice::from_ref(&key)
        );
        assert_eq!(ask(&resolver, "big.test", TXT).await.unwrap()[0].len(), 3_000);
        // Exists only because something below it does.
        for empty in ["_domainkey.sender.test", "test"] {
            assert_eq!(
                ask(&resolver, empty, TXT).await,
                Err(ResponseCode::NoError),
                "{empty}"
            );
        }
        for nowhere in ["nowhere.test", "no.ok.test", "example.com"] {
            assert_eq!(
                ask(&resolver, nowhere, MX).await,
                Err(ResponseCode::NXDomain),
                "{nowhere}"
            );
        }
        // Records change while it runs.
        assert!(lab.zone.mx("no name..", 1, "x").is_err());
        lab.zone.mx("late.test", 5, "mx.ok.test").unwrap();
        assert_eq!(ask(&resolver, "late.test", MX).await.unwrap(), ["5 mx.ok.test."]);
        lab.zone.clear("late.test").unwrap();
        assert_eq!(ask(&resolver, "late.test", MX).await, Err(ResponseCode::NoError));
    }
    lab.stop().await;
}
