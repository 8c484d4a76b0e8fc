//! Logging in to smart hosts, over scripted connections.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use mail_core::smtp::client::ScramTask;
use mail_core::smtp::command::Secret;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};

use super::open::{HostPlace, NextHost, Opener, Terms};
use super::tests::{Lab, paused, script, send, word};
use std::sync::Arc;
use std::time::Duration;

use crate::config::settings::DnsSettings;
use crate::config::settings::{AddressFamily, TlsLevel};
use crate::config::smart_hosts::Credentials;
use crate::delivery::resolver::RealNet;
use crate::delivery::scram;
use crate::world::Random;

fn terms(tls: TlsLevel, implicit_tls: bool) -> Terms {
    let login = Credentials {
        user: "user".into(),
        password: Secret::new(b"pencil".to_vec()),
        file: None,
    };
    Terms {
        tls,
        implicit_tls,
        family: AddressFamily::Any,
        chosen: true,
        login: Some(Arc::new(login)),
        source: None,
    }
}

const TO_TLS: [&str; 5] = [
    "S 220 hi",
    "C EHLO",
    "R 250-mx|250 STARTTLS|",
    "C STARTTLS",
    "S 220 go",
];
const MAIL: [&str; 9] = [
    "C MAIL",
    "C RCPT",
    "C DATA",
    "R 250 a|250 b|354 go|",
    "BODY",
    "S 250 kept",
    "C QUIT",
    "S 221 bye",
    "WAIT 1",
];

#[test]
fn logs_in_before_mail_under_tls_from_the_start_or_after_starttls() {
    paused(async {
        let plain = [
            "TLS",
            "C EHLO",
            "R 250-mx|250-PIPELINING|250 AUTH LOGIN PLAIN|",
            "C AUTH PLAIN AHVzZXIAcGVuY2ls",
            "S 235 in",
        ];
        let after = script(&[&TO_TLS, &plain, &MAIL]);
        let at_once = script(&[&["TLS", "S 220 hi"], &plain[1..], &MAIL]);
        for (peer, implicit) in [(after, false), (at_once, true)] {
            let lab = Lab::with(&[&peer], 4_096, "mx1.test");
            let mut connection = lab
                .open_on(1, &terms(TlsLevel::Required, implicit))
                .await
                .unwrap();
            assert_eq!(word(&send(&mut connection, 1, b"x\r\n").await[0]), "delivered");
            assert!(connection.hop().tls.starts_with("TLS"));
        }
    });
}

#[test]
fn login_is_answered_word_by_word() {
    paused(async {
        let peer = script(&[
            &TO_TLS,
            &[
                "TLS",
                "C EHLO",
                "R 250-mx|250-PIPELINING|250-AUTH=LOGIN|250 AUTH LOGIN|",
            ],
            &[
                "C AUTH LOGIN",
                "S 334 VXNlcm5hbWU6",
                "C dXNlcg==",
                "S 334 UGFzc3dvcmQ6",
                "C cGVuY2ls",
                "S 235 in",
            ],
            &MAIL,
        ]);
        let lab = Lab::with(&[&peer], 4_096, "mx1.test");
        let mut connection = lab.open_on(1, &terms(TlsLevel::Required, false)).await.unwrap();
        assert_eq!(word(&send(&mut connection, 1, b"x\r\n").await[0]), "delivered");
    });
}

#[test]
fn scram_with_a_host_that_knows_the_password() {
    paused(async {
        let nonce = Random::seeded(5).nonce();
        let first = format!("r={nonce}abc,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096");
        let without_proof = format!("c=biws,r={nonce}abc");
        let task = ScramTask {
            salt: BASE64.decode("W22ZaJ0SNY7soEsUEjb6gQ==").unwrap(),
            iterations: 4096,
            auth_message: format!("n=user,r={nonce},{first},{without_proof}"),
        };
        let proof = scram::compute(&task, &Secret::new(b"pencil".to_vec()));
        let begin = format!(
            "C AUTH SCRAM-SHA-256 {}",
            BASE64.encode(format!("n,,n=user,r={nonce}"))
        );
        let challenge = format!("S 334 {}", BASE64.encode(&first));
        let last = format!("{without_proof},p={}", BASE64.encode(proof.client));
        let answer = format!("C {}", BASE64.encode(last));
        let proven = format!(
            "S 334 {}",
            BASE64.encode(format!("v={}", BASE64.encode(proof.server)))
        );
        let offer = "R 250-mx|250-PIPELINING|250 AUTH PLAIN SCRAM-SHA-256|";
        let login = [
            "TLS", "C EHLO", offer, &begin, &challenge, &answer, &proven, "C ", "S 235 in",
        ];
        let lab = Lab::with(&[&script(&[&TO_TLS, &login, &MAIL])], 4_096, "mx1.test");
        let mut connection = lab.open_on(1, &terms(TlsLevel::Required, false)).await.unwrap();
        assert_eq!(word(&send(&mut connection, 1, b"x\r\n").await[0]), "delivered");
    });
}

/// A host that only seems to know the password is left, however well it speaks.
#[test]
fn a_host_that_does_not_prove_itself_gets_no_mail() {
    paused(async {
        let nonce = Random::seeded(5).nonce();
        let first = BASE64.encode(format!("r={nonce}abc,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096"));
        let challenge = format!("S 334 {first}");
        let wrong = format!("S 334 {}", BASE64.encode(format!("v={}", BASE64.encode([7; 32]))));
        for last in [wrong.as_str(), "S 235 in"] {
            let begin = [
                "TLS",
                "C EHLO",
                "R 250 AUTH SCRAM-SHA-256 PLAIN|",
                "C AUTH SCRAM-SHA-256 ",
                &challenge,
            ];
            let peer = script(&[&TO_TLS, &begin, &["C ", last, "C QUIT"]]);
            let lab = Lab::with(&[&peer], 4_096, "mx1.test");
            let peer_offer = lab.open_on(1, &terms(TlsLevel::Required, false)).await;
            let failure = peer_offer.err().unwrap();
            assert!(failure.permanent().is_none());
            assert!(
                failure
                    .to_string()
                    .starts_with("4.7.0 mx1.test does not let us log in: 454 4.7.0"),
                "{failure}"
            );
        }
    });
}

#[test]
fn a_refused_login_is_not_the_mails_fault_and_the_next_host_is_tried() {
    paused(async {
        for refusal in [
            "535 5.7.8 wrong password",
            "454 4.7.0 later",
            "530 5.7.0 no",
            "534 5.7.9 too weak",
        ] {
            let answer = format!("S {refusal}");
            let refuses = script(&[
                &TO_TLS,
                &[
                    "TLS",
                    "C EHLO",
                    "R 250-mx|250 AUTH PLAIN|",
                    "C AUTH",
                    &answer,
                    "C QUIT",
                ],
            ]);
            let lab = Lab::with(&[&refuses], 4_096, "mx1.test");
            let failure = lab
                .open_on(1, &terms(TlsLevel::Required, false))
                .await
                .err()
                .unwrap();
            assert!(failure.permanent().is_none(), "{refusal}");
            assert_eq!(
                failure.to_string(),
                format!("4.7.0 mx1.test does not let us log in: {refusal}")
            );
            let takes = script(&[
                &TO_TLS,
                &[
                    "TLS",
                    "C EHLO",
                    "R 250-mx|250-PIPELINING|250 AUTH PLAIN|",
                    "C AUTH",
                    "S 235 in",
                ],
                &MAIL,
            ]);
            let lab = Lab::with(&[&refuses, &takes], 4_096, "any.test");
            let unverified = terms(TlsLevel::Opportunistic, false);
            let mut connection = lab.open_on(2, &unverified).await.unwrap();
            assert_eq!(connection.host(), "mx2.test");
            assert_eq!(word(&send(&mut connection, 1, b"x\r\n").await[0]), "delivered");
        }
    });
}

#[test]
fn no_password_goes_where_tls_is_missing_or_not_verified() {
    paused(async {
        let heard = |lab: &Lab| lab.heard().contains("AUTH");
        // Not offered; a certificate of another name.
        let bare = script(&[&["S 220 hi", "C EHLO", "R 250-mx|250 AUTH PLAIN|", "C QUIT"]]);
        let other = script(&[
            &TO_TLS,
            &["TLS", "C EHLO", "R 250-mx|250 AUTH PLAIN|", "C AUTH", "S 235 in"],
        ]);
        for (peer, certified) in [(&bare, "mx1.test"), (&other, "other.test")] {
            let lab = Lab::with(&[peer], 4_096, certified);
            assert!(lab.open_on(1, &terms(TlsLevel::Required, false)).await.is_err());
            assert!(!heard(&lab));
        }
        // Where unverified TLS is accepted, the fall-back to clear still says no password.
        let broken = script(&[&TO_TLS, &["S 500 what"]]);
        let lab = Lab::with(&[&broken, &bare], 4_096, "mx1.test");
        assert!(
            lab.open_on(1, &terms(TlsLevel::Opportunistic, false))
                .await
                .is_err()
        );
        assert!(!heard(&lab));
    });
}

/// Over the real network, as far as this machine's own address.
#[test]
fn ipv6_hosts_are_reached_at_their_address() {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        let listener = tokio::net::TcpListener::bind("[::1]:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let peer = async {
            let (stream, _) = listener.accept().await.unwrap();
            let mut peer = BufReader::new(stream);
            peer.write_all(b"220 six\r\n").await.unwrap();
            let mut line = String::new();
            peer.read_line(&mut line).await.unwrap();
            peer.write_all(b"250 six\r\n").await.unwrap();
            line
        };
        let lab = Lab::with(&[], 64, "mx1.test");
        let servers = vec!["127.0.0.1:1".parse().unwrap()];
        let net = RealNet::new(&DnsSettings { servers }, Duration::from_secs(1)).unwrap();
        let terms = Terms {
            login: None,
            ..terms(TlsLevel::Off, false)
        };
        let opener = Opener {
            clock: crate::world::Clock::anchored(mail_core::Timestamp(1_700_000_000_000)),
            answers: &super::Answers::default(),
            known: &crate::delivery::known::Known::default(),
            net: &net,
            settings: &lab.settings,
            tls: &lab.tls,
            random: &Random::seeded(1),
            terms: &terms,
        };
        let host = NextHost {
            place: HostPlace::Address("::1".parse().unwrap()),
            port,
            tls_name: None,
        };
        let hosts = [host];
        let (opened, line) = tokio::join!(opener.open(&hosts), peer);
        assert_eq!(line, "EHLO relay.test\r\n");
        assert_eq!(opened.unwrap().hop().address, format!("[::1]:{port}"));
    });
}

/// A rule of ours that leaves no address is not the domain's fault: its mail waits.
#[test]
fn a_family_that_a_host_lacks_bounces_nothing() {
    paused(async {
        let lab = Lab::with(&[], 64, "mx1.test");
        let failure = lab
            .open_on(2, &Terms::of_mx(TlsLevel::Off, AddressFamily::Ipv6))
            .await
            .err()
            .unwrap();
        assert!(failure.permanent().is_none());
        assert!(
            failure
                .to_string()
                .starts_with("4.4.4 mx2.test: no address of the family"),
            "{failure}"
        );
    });
}
