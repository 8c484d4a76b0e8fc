//! The receiving hosts and their mailboxes, over SMTP and HTTP.
#![allow(clippy::unwrap_used, reason = "a test")]

use std::sync::{Arc, Mutex};
use std::time::Instant;

use aws_lc_rs::encoding::{AsDer, PublicKeyX509Der};
use aws_lc_rs::rsa::{KeyPair as RsaKeyPair, KeySize};
use aws_lc_rs::signature::KeyPair;
use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use lab::{Keep, Lab, Limits, Outcome};
use mail_auth::common::crypto::{Ed25519Key, RsaKey, Sha256};
use mail_auth::common::headers::HeaderWriter;
use mail_auth::dkim::DkimSigner;
use rustls_pki_types::PrivateKeyDer;
use serde_json::Value;
use tokio::net::TcpStream;

mod common;

use common::{Client, get, host, http};

async fn json(lab: &Lab, path: &str) -> (u16, Value) {
    let (status, body) = get(lab.http, path).await;
    (status, serde_json::from_slice(&body).unwrap())
}

#[tokio::test]
async fn each_host_has_its_ways() {
    let lab = Lab::builder().start().await.unwrap();
    let mut ok = Client::connect(&lab, "mx.ok.test").await;
    let offers = ok.ask("EHLO client.test").await;
    for offer in [
        "PIPELINING",
        "8BITMIME",
        &format!("SIZE {}", lab::MAX_MESSAGE_BYTES),
        "ENHANCEDSTATUSCODES",
        "STARTTLS",
    ] {
        assert!(
            offers.lines().any(|line| line.get(4..) == Some(offer)),
            "{offer} in {offers}"
        );
    }
    ok.play(
        "C: MAIL FROM:<a@sender.test>
         C: RCPT TO:<anyone@ok.test>
         C: RCPT TO:<other@second.test>
         C: RCPT TO:<postmaster>
         S: 250 2.1.0
         S: 250 2.1.5
         S: 550 5.7.1
         S: 250 2.1.5
         C: DATA
         S: 354
         C: Subject: x
         C: .
         S: 250 2.0.0
         C: QUIT
         S: 221 2.0.0",
    )
    .await;
    assert_eq!(lab.mailboxes.entries("postmaster@ok.test").unwrap().len(), 1);

    let mut reject = Client::connect(&lab, "mx.reject.test").await;
    reject
        .play(
            "C: EHLO client.test
             S: 250
             C: MAIL FROM:<a@sender.test>
             S: 250
             C: RCPT TO:<Nobody@reject.test>
             S: 550 5.1.1
             C: RCPT TO:<somebody@reject.test>
             S: 250",
        )
        .await;

    let mut greylist = Client::connect(&lab, "mx.greylist.test").await;
    greylist
        .play(
            "C: EHLO client.test
             S: 250
             C: MAIL FROM:<a@sender.test>
             S: 250
             C: RCPT TO:<b@greylist.test>
             S: 450 4.7.1
             C: RSET
             S: 250
             C: MAIL FROM:<a@sender.test>
             S: 250
             C: RCPT TO:<b@greylist.test>
             S: 250
             C: RCPT TO:<c@greylist.test>
             S: 450 4.7.1",
        )
        .await;

    let dead = host(&lab, "mx.dead.test");
    assert!(!dead.is_up);
    assert_eq!(dead.address.port(), lab.smtp_port);
    assert!(TcpStream::connect(dead.address).await.is_err());
    lab.stop().await;
}

#[tokio::test]
async fn two_labs_do_not_meet() {
    let [one, two] = [
        Lab::builder().start().await.unwrap(),
        Lab::builder().start().await.unwrap(),
    ];
    assert_ne!(one.smtp_port, two.smtp_port);
    let mut client = Client::connect(&one, "mx.ok.test").await;
    client.ask("EHLO client.test").await;
    client.message("a@sender.test", &["b@ok.test"], b"x\r\n").await;
    assert_eq!((one.mailboxes.count(), two.mailboxes.count()), (1, 0));
    let dir = one.dir().to_owned();
    one.stop().await;
    assert!(!dir.exists(), "a temporary folder stayed");
}

#[tokio::test]
async fn keeps_octets_as_they_came() {
    let dir = tempfile::tempdir().unwrap();
    let lab = Lab::builder().dir(dir.path()).start().await.unwrap();
    let mut message = b"Subject: every octet\r\n\r\n".to_vec();
    let line: Vec<u8> = (0..=255).filter(|octet| !b"\r\n".contains(octet)).collect();
    for start in [&b""[..], b".", b"..", b". ", b".."] {
        message.extend_from_slice(start);
        message.extend_from_slice(b"\r\n");
        message.extend_from_slice(start);
        message.extend_from_slice(&line);
        message.extend_from_slice(b"\r\n");
    }
    // Over several reads, with dots at every place of a buffer.
    for length in 0..800 {
        message.extend(std::iter::repeat_n(b'.', length));
        message.extend_from_slice(b"\r\n");
    }
    let name = "mx.ok.test";
    let mut client = Client::connect(&lab, name)
        .await
        .starttls_after_ehlo(&lab, name)
        .await;
    assert!(!client.ask("EHLO client.test").await.contains("STARTTLS"));
    let answer = client
        .message("a@sender.test", &["one@ok.test", "two@ok.test"], &message)
        .await;
    assert!(answer.starts_with("250 2.0.0"), "{answer}");
    // Refused with a reason, and nothing kept.
    let answer = client
        .message("a@sender.test", &["one@ok.test"], b"a\rb\r\n")
        .await;
    assert!(answer.starts_with("550 5.6.0"), "{answer}");
    for address in ["one@ok.test", "two@ok.test"] {
        assert_eq!(
            get(lab.http, &format!("/lab/mailboxes/{address}/0")).await,
            (200, message.clone())
        );
        assert_eq!(lab.mailboxes.entries(address).unwrap().len(), 1);
    }
    let (_, listed) = json(&lab, "/lab/mailboxes/one@ok.test").await;
    assert!(
        listed[0]["tls"].as_str().unwrap().starts_with("TLSv1_3 "),
        "{listed}"
    );
    lab.stop().await;
    // The files are there for the next.
    let lab = Lab::builder().dir(dir.path()).start().await.unwrap();
    assert_eq!(
        get(lab.http, "/lab/mailboxes/two%40ok.test/0").await,
        (200, message)
    );
}

impl Client {
    async fn starttls_after_ehlo(mut self, lab: &Lab, name: &str) -> Self {
        self.ask("EHLO client.test").await;
        self.starttls(lab, name).await
    }
}

#[tokio::test]
async fn judges_spf_and_dkim() {
    let rsa = RsaKeyPair::generate(KeySize::Rsa2048).unwrap();
    let public: PublicKeyX509Der<'_> = rsa.public_key().as_der().unwrap();
    let public = BASE64.encode(public.as_ref());
    let private: aws_lc_rs::encoding::Pkcs8V1Der<'_> = rsa.as_der().unwrap();
    let rsa = RsaKey::<Sha256>::from_key_der(PrivateKeyDer::Pkcs8(private.as_ref().to_vec().into())).unwrap();
    let pkcs8 = Ed25519Key::generate_pkcs8().unwrap();
    let ed25519 = Ed25519Key::from_pkcs8_der(&pkcs8).unwrap();
    let lab = Lab::builder()
        .txt("r1._domainkey.sender.test", format!("v=DKIM1; k=rsa; p={public}"))
        .txt(
            "e1._domainkey.sender.test",
            format!("v=DKIM1; k=ed25519; p={}", BASE64.encode(ed25519.public_key())),
        )
        .txt("strict.test", "v=spf1 -all")
        .start()
        .await
        .unwrap();
    let message = b"From: a@sender.test\r\nSubject: signed\r\n\r\nbody\r\n";
    let by_rsa = DkimSigner::from_key(rsa)
        .domain("sender.test")
        .selector("r1")
        .headers(["From", "Subject"]);
    let by_ed25519 = DkimSigner::from_key(ed25519)
        .domain("sender.test")
        .selector("e1")
        .headers(["From", "Subject"]);
    let mut signed = by_rsa.sign(message).unwrap().to_header();
    signed.push_str(&by_ed25519.sign(message).unwrap().to_header());
    let signed = [signed.as_bytes(), message].concat();
    let changed = [&signed[..], b"more\r\n"].concat();

    let mut client = Client::connect(&lab, "mx.ok.test").await;
    client.ask("EHLO relay.sender.test").await;
    for (from, octets) in [
        ("a@sender.test", &signed[..]),
        ("", &changed),
        ("a@strict.test", message),
        ("a@nowhere.test", message),
    ] {
        client.message(from, &["b@ok.test"], octets).await;
    }
    let verdicts: Vec<_> = lab.mailboxes.entries("b@ok.test").unwrap();
    let verdicts: Vec<_> = verdicts
        .iter()
        .map(|entry| entry.verdicts.clone().unwrap())
        .collect();
    let spf: Vec<_> = verdicts
        .iter()
        .map(|v| (v.spf.result, v.spf.domain.as_str()))
        .collect();
    assert_eq!(
        spf,
        [
            (Outcome::Pass, "sender.test"),
            (Outcome::Pass, "relay.sender.test"),
            (Outcome::Fail, "strict.test"),
            (Outcome::None, "nowhere.test"),
        ]
    );
    let dkim = |n: usize| -> Vec<_> {
        verdicts[n]
            .dkim
            .iter()
            .map(|d| (d.result, &d.domain[..], &d.selector[..], &d.algorithm[..]))
            .collect()
    };
    assert_eq!(
        dkim(0),
        [
            (Outcome::Pass, "sender.test", "r1", "rsa-sha256"),
            (Outcome::Pass, "sender.test", "e1", "ed25519-sha256"),
        ]
    );
    assert!(
        dkim(1).len() == 2 && dkim(1).iter().all(|(result, ..)| *result == Outcome::Neutral),
        "{:?}",
        dkim(1)
    );
    assert!(verdicts[1].dkim[0].why.as_deref().unwrap().contains("body hash"));
    assert!(dkim(2).is_empty());
    let dmarc: Vec<_> = verdicts
        .iter()
        .map(|v| (v.dmarc.result, v.dmarc.spf, v.dmarc.dkim))
        .collect();
    assert_eq!(
        dmarc,
        [
            (Outcome::Pass, Outcome::Pass, Outcome::Pass),
            // SPF of relay.sender.test speaks for its organisation.
            (Outcome::Pass, Outcome::Pass, Outcome::None),
            (Outcome::Fail, Outcome::None, Outcome::None),
            (Outcome::Fail, Outcome::None, Outcome::None),
        ]
    );
    assert_eq!(
        (&verdicts[3].dmarc.domain[..], &verdicts[3].dmarc.policy[..]),
        ("sender.test", "reject")
    );
    let (_, listed) = json(&lab, "/lab/mailboxes/b@ok.test").await;
    assert_eq!(listed[0]["dkim"][1]["algorithm"], "ed25519-sha256");
    assert_eq!(listed[0]["spf"]["result"], "pass");
    assert_eq!(listed[0]["dmarc"]["result"], "pass");
    assert_eq!(listed[2]["dmarc"]["result"], "fail");
}

#[tokio::test]
async fn the_http_door_answers_this_machine_only() {
    let lab = Lab::builder().start().await.unwrap();
    assert_eq!(json(&lab, "/lab/mailboxes").await, (200, serde_json::json!([])));
    let mut client = Client::connect(&lab, "mx.ok.test").await;
    client.ask("EHLO client.test").await;
    let odd = r#""a/../%2f b"@ok.test"#;
    client
        .message(
            "a@sender.test",
            &["b@ok.test", odd],
            b"Subject: hello\r\n\r\nx\r\n",
        )
        .await;

    let (_, boxes) = json(&lab, "/lab/mailboxes").await;
    let expected = serde_json::json!([
        { "address": odd, "messages": 1, "bytes": 21 },
        { "address": "b@ok.test", "messages": 1, "bytes": 21 },
    ]);
    assert_eq!(boxes, expected);
    let (_, listed) = json(&lab, "/lab/mailboxes/b@ok.test").await;
    let entry = &listed[0];
    assert_eq!((entry["n"].as_u64(), entry["size"].as_u64()), (Some(0), Some(21)));
    assert_eq!(entry["subject"], "hello");
    assert_eq!(entry["mail_from"], "a@sender.test");
    assert_eq!(entry["rcpt_to"], serde_json::json!(["b@ok.test", odd]));
    assert_eq!(entry["client"], "127.0.0.1");
    assert_eq!(entry["helo"], "client.test");
    assert_eq!(entry["tls"], Value::Null);
    let (status, _) = get(lab.http, "/lab/mailboxes/%22a%2F..%2F%252f%20b%22@ok.test/0").await;
    assert_eq!(status, 200);

    for path in [
        "/",
        "/lab",
        "/lab/mailboxes/c@ok.test",
        "/lab/mailboxes/b@ok.test/1",
        "/lab/mailboxes/b@ok.test/x",
    ] {
        let (status, body) = json(&lab, path).await;
        assert_eq!(status, 404, "{path}");
        assert!(body["error"].is_string(), "{path}");
    }
    for (path, headers) in [
        ("/lab/mailboxes", "Host: evil.example"),
        ("/lab/mailboxes", "Host: localhost\r\nOrigin: http://evil.example"),
        ("/lab/mailboxes", "Host: localhost\r\nOrigin: null"),
        ("/lab/mailboxes", "Host: localhost\r\nHost: evil.example"),
        ("http://evil.example/lab/mailboxes", "Host: localhost"),
    ] {
        let request = format!("GET {path} HTTP/1.1\r\n{headers}\r\nConnection: close\r\n\r\n");
        assert_eq!(http(lab.http, &request).await.0, 403, "{path} {headers}");
    }
    let request = "GET /lab/mailboxes HTTP/1.1\r\nHost: localhost:1\r\nOrigin: http://127.0.0.1:99\r\nConnection: close\r\n\r\n";
    assert_eq!(http(lab.http, request).await.0, 200);
    assert!(
        Lab::builder()
            .http("0.0.0.0:0".parse().unwrap())
            .start()
            .await
            .is_err()
    );
}

#[tokio::test]
async fn digests_count_and_bounds_hold() {
    let seen = Arc::new(Mutex::new(Vec::new()));
    let told = Arc::clone(&seen);
    let limits = Limits {
        messages: 2,
        ..Limits::default()
    };
    let lab = Lab::builder()
        .keep(Keep::Digest)
        .limits(limits)
        .verify(false)
        .observe(move |delivery| told.lock().unwrap().push(delivery.raw.clone()))
        .start()
        .await
        .unwrap();
    let mut client = Client::connect(&lab, "mx.second.test").await;
    client.ask("EHLO client.test").await;
    for octets in [b"one\r\n", b"two\r\n"] {
        client.message("a@sender.test", &["b@second.test"], octets).await;
    }
    client
        .play(
            "C: MAIL FROM:<a@sender.test>
             S: 250
             C: RCPT TO:<b@second.test>
             S: 452 4.2.2
             C: RCPT TO:<c@second.test>
             S: 250",
        )
        .await;
    assert_eq!(*seen.lock().unwrap(), [&b"one\r\n"[..], b"two\r\n"]);
    let entries = lab.mailboxes.entries("b@second.test").unwrap();
    assert_ne!(entries[0].sha256, entries[1].sha256);
    assert_eq!(entries[0].verdicts, None);
    assert_eq!(get(lab.http, "/lab/mailboxes/b@second.test/0").await.0, 404);
    assert_eq!(
        std::fs::read_dir(lab.dir()).unwrap().count(),
        1,
        "only the CA's certificate"
    );
}

#[tokio::test]
async fn many_domains_share_hosts() {
    let names: Vec<mail_core::Domain> = (0..50)
        .map(|n| format!("d{n}.load.test").parse().unwrap())
        .collect();
    let hosts = ["a.mx.test", "b.mx.test"].map(|name| name.parse::<mail_core::Domain>().unwrap());
    let mut builder = lab::Builder::bare("sender.test".parse().unwrap(), "relay.test".parse().unwrap())
        .dead_host(hosts[0].clone())
        .host(hosts[1].clone(), lab::Accepts);
    for name in &names {
        builder = builder.domain(name.clone(), &hosts);
    }
    let started = Instant::now();
    let lab = builder.verify(false).start().await.unwrap();
    println!("started in {:?}", started.elapsed());
    let mut client = Client::connect(&lab, "b.mx.test").await;
    client.ask("EHLO client.test").await;
    let to = ["x@d0.load.test", "x@d49.load.test"];
    assert!(client.message("", &to, b"x\r\n").await.starts_with("250 "));
    let missing = lab::Builder::bare("sender.test".parse().unwrap(), "relay.test".parse().unwrap());
    let missing = missing.domain("a.test".parse().unwrap(), &hosts).start().await;
    let told = missing.err().unwrap().to_string();
    assert_eq!(told, "no host a.mx.test was named before domain a.test");
}

#[tokio::test]
async fn odd_hosts_have_their_ways() {
    let lab = Lab::builder().start().await.unwrap();
    let ask = async |name: &str| {
        let mut client = Client::connect(&lab, name).await;
        let offers = client.ask("EHLO client.test").await;
        (client, offers)
    };
    let (_, plain) = ask("mx.plain.test").await;
    assert!(!plain.contains("STARTTLS"), "{plain}");
    let (mut small, offers) = ask("mx.small.test").await;
    assert!(offers.contains("SIZE 20480"), "{offers}");
    assert!(
        small
            .message(
                "a@sender.test",
                &["b@small.test"],
                &b"0123456789abcdef\r\n".repeat(1_200)
            )
            .await
            .starts_with("552 5.3.4")
    );
    let (mut full, _) = ask("mx.full.test").await;
    full.play("C: MAIL FROM:<a@sender.test>\nS: 250\nC: RCPT TO:<b@full.test>\nS: 452 4.2.2\n")
        .await;

    let (mut seven, offers) = ask("mx.sevenbit.test").await;
    assert!(!offers.contains("8BITMIME"), "{offers}");
    seven
        .play("C: MAIL FROM:<a@sender.test>\nS: 250\nC: RCPT TO:<b@sevenbit.test>\nS: 250\nC: DATA\nS: 354\n")
        .await;
    seven.send("Subject: x\r\n\r\nä\r\n.\r\n".as_bytes()).await;
    assert!(seven.reply().await.starts_with("554 5.6.3"));

    let (mut busy, _) = ask("mx.busy.test").await;
    let mut told = String::new();
    for _ in 0..20 {
        told = busy.ask("MAIL FROM:<a@sender.test>").await;
        if told.starts_with("421 ") {
            break;
        }
        assert!(told.starts_with("250 "), "{told}");
        busy.ask("RSET").await;
    }
    assert!(told.starts_with("421 4.3.2"), "{told}");

    let (mut broken, offers) = ask("mx.broken-tls.test").await;
    assert!(offers.contains("STARTTLS"), "{offers}");
    assert!(broken.ask("STARTTLS").await.starts_with("220 "));
    assert_eq!(broken.rest().await, b"\x15\x03\x03\0\x02\x02\x28");

    let (mut drops, _) = ask("mx.drop-after-dot.test").await;
    drops
        .play("C: MAIL FROM:<a@sender.test>\nS: 250\nC: RCPT TO:<b@drop-after-dot.test>\nS: 250\nC: DATA\nS: 354\n")
        .await;
    drops.send(b"Subject: x\r\n\r\n.\r\n").await;
    assert_eq!(drops.rest().await, b"");
    assert_eq!(lab.mailboxes.entries("b@drop-after-dot.test").unwrap().len(), 1);
    let (mut again, _) = ask("mx.drop-after-dot.test").await;
    let told = again
        .message("a@sender.test", &["b@drop-after-dot.test"], b"Subject: x\r\n\r\n")
        .await;
    assert!(told.starts_with("250 "), "{told}");
    lab.stop().await;
}
