//! `loadtest flood` at a server that has no use for its login: what there is by then is told, and then why it ended.

#![allow(
    clippy::unwrap_used,
    reason = "a test; its helpers are outside of test functions"
)]

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::TcpListener;
use std::process::Command;

#[test]
fn a_flood_that_gives_up_tells_what_there_is() {
    let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let _ = stream.write_all(b"220 x\r\n");
            let mut lines = BufReader::new(stream.try_clone().unwrap()).lines();
            while let Some(Ok(line)) = lines.next() {
                let reply: &[u8] = match line.starts_with("EHLO") {
                    true => b"250 x\r\n",
                    false => b"535 5.7.8 no\r\n",
                };
                let _ = stream.write_all(reply);
            }
        }
    });
    let folder = tempfile::tempdir().unwrap();
    let password = folder.path().join("password");
    std::fs::write(&password, "x").unwrap();
    let output = Command::new(env!("CARGO_BIN_EXE_loadtest"))
        .args(["flood", "--to", &address.to_string(), "--messages", "10"])
        .args([
            "--rate",
            "1000",
            "--sessions",
            "1",
            "--user",
            "x",
            "--password-file",
        ])
        .arg(&password)
        .output()
        .unwrap();
    let told = String::from_utf8(output.stdout).unwrap();
    let error = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(2), "{told}{error}");
    assert!(
        told.starts_with("1 messages in ") && told.contains("; 1 were refused or unanswered, after "),
        "{told}"
    );
    assert!(error.contains("AUTH PLAIN: 535 5.7.8 no"), "{error}");
}
