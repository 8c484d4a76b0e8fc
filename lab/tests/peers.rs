//! Scripted peers as hosts of a lab, over sockets.
#![allow(clippy::unwrap_used, reason = "a test")]

use std::path::Path;

use lab::{Builder, LabError, Script};
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

mod common;

use common::{Client, get, host};

fn bare() -> Builder {
    Builder::bare("sender.test".parse().unwrap(), "relay.test".parse().unwrap())
}

fn file(name: &str) -> Script {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("peers");
    Script::load(&folder.join(name)).unwrap()
}

#[tokio::test]
async fn a_peer_plays_each_connection_and_tells_what_was_said() {
    let lab = bare()
        .peer("odd.test".parse().unwrap(), file("greylists.smtp"))
        .start()
        .await
        .unwrap();
    for recipient in ["450 4.7.1", "250 recipient ok"] {
        let mut stream = TcpStream::connect(host(&lab, "mx.odd.test").address)
            .await
            .unwrap();
        stream
            .write_all(b"EHLO me\r\nMAIL FROM:<a@b>\r\nRCPT TO:<c@odd.test>\r\nDATA\r\n")
            .await
            .unwrap();
        stream.shutdown().await.unwrap();
        let mut heard = String::new();
        stream.read_to_string(&mut heard).await.unwrap();
        assert!(heard.contains(recipient), "{heard}");
    }
    let told: Value = loop {
        let (status, body) = get(lab.http, "/lab/peers").await;
        assert_eq!(status, 200);
        let told: Value = serde_json::from_slice(&body).unwrap();
        if told.as_array().unwrap().len() == 2 {
            break told;
        }
    };
    let of = |number: u64| {
        let all = told.as_array().unwrap().iter();
        all.clone().find(|played| played["connection"] == number).unwrap()
    };
    assert_eq!(of(1)["host"], "mx.odd.test");
    assert!(
        of(1)["ended"].as_str().unwrap().contains("said \"DATA\""),
        "{told}"
    );
    assert_eq!(of(1)["lines"][1], "C: EHLO me");
    assert!(
        of(2)["ended"].as_str().unwrap().contains("the client hung up"),
        "{told}"
    );
    assert_eq!(lab.played().len(), 2);
    lab.stop().await;
}

#[tokio::test]
async fn a_peer_does_tls_and_resets() {
    let script = "connection 1\nS: 220 mx.tls.test ready\nC: STARTTLS\nS: 220 go\nstarttls\nC: EHLO *\nS: 250 mx.tls.test\n\
        connection 2\nS: 220 hi\nC: EHLO *\nreset\n";
    let lab = bare()
        .peer("tls.test".parse().unwrap(), script.parse().unwrap())
        .start()
        .await
        .unwrap();
    let client = Client::connect(&lab, "mx.tls.test").await;
    let mut client = client.starttls(&lab, "mx.tls.test").await;
    assert_eq!(client.ask("EHLO me").await, "250 mx.tls.test");

    let mut stream = TcpStream::connect(host(&lab, "mx.tls.test").address)
        .await
        .unwrap();
    stream.write_all(b"EHLO me\r\n").await.unwrap();
    let mut heard = Vec::new();
    let error = stream.read_to_end(&mut heard).await.unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);

    // The script has nothing for a third.
    let mut stream = TcpStream::connect(host(&lab, "mx.tls.test").address)
        .await
        .unwrap();
    assert_eq!(stream.read_to_end(&mut heard).await.unwrap(), 0);
    lab.stop().await;
}

#[tokio::test]
async fn a_domain_is_one_peers_only() {
    let twice = bare()
        .peer("odd.test".parse().unwrap(), file("takes.smtp"))
        .dead("odd.test".parse().unwrap());
    assert!(matches!(twice.start().await, Err(LabError::Twice(domain)) if domain.as_str() == "odd.test"));
}

#[test]
fn a_mistake_is_told_with_file_and_line() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("odd.smtp");
    std::fs::write(&path, "S: 220 hi\nwait 2s\n").unwrap();
    let mistake = Script::load(&path).unwrap_err().to_string();
    assert!(
        mistake.contains("odd.smtp:2: \"wait 2s\" is no step"),
        "{mistake}"
    );
    assert!(Script::load(folder.path()).is_err());
}
