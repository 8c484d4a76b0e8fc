//! `loadtest compare`, and `marks`, with a peer that takes a few messages and then nothing: it is given up, and ends with all it has started.

#![allow(
    clippy::unwrap_used,
    reason = "a test; its helpers are outside of test functions"
)]

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

/// The longest wait for anything.
const PATIENCE: Duration = Duration::from_secs(60);

/// Takes five messages, and answers the end of no other. It writes its number and its child's into the file STUCK as soon as it does so.
const PEER: &str = r#"#!/usr/bin/python3
import os, socketserver, subprocess, threading, time
child = subprocess.Popen(["sleep", "600"])
taken, lock = 0, threading.Lock()

class Client(socketserver.StreamRequestHandler):
    def say(self, line):
        self.wfile.write(line + b"\r\n")

    def handle(self):
        self.say(b"220 peer.test")
        for line in self.rfile:
            word = line[:4].upper()
            self.say({b"DATA": b"354 go on", b"QUIT": b"221 bye"}.get(word, b"250 ok"))
            if word == b"QUIT":
                return
            if word == b"DATA":
                while self.rfile.readline() != b".\r\n":
                    pass
                self.take()
                self.say(b"250 kept")

    def take(self):
        global taken
        with lock:
            taken += 1
            stuck = taken > 5
        if stuck:
            with open(os.environ["STUCK"] + ".new", "w") as file:
                file.write(f"{os.getpid()} {child.pid}")
            os.rename(os.environ["STUCK"] + ".new", os.environ["STUCK"])
            time.sleep(600)

class Server(socketserver.ThreadingTCPServer):
    allow_reuse_address = daemon_threads = True

host, port = os.environ["LISTEN"].rsplit(":", 1)
Server((host, int(port)), Client).serve_forever()
"#;

struct Comparison {
    folder: TempDir,
    loadtest: Child,
}

impl Comparison {
    /// With a relay of our own that does not start, so that the peer has its turn.
    fn start(patience: &str) -> Self {
        Self::of("peer", |command, peer| {
            command
                .args(["compare", "accept", "--postrider", "false", "--peer"])
                .arg(peer)
                .args(["--runs", "1", "--traced", "0", "--messages", "20"])
                .args(["--size", "1KiB", "--sessions", "2", "--patience", patience]);
        })
    }

    /// The marks that are ratios to Postfix's, the peer in its place: of `accept` it has the first turn.
    fn marks() -> Self {
        Self::of("postfix", |command, peer| {
            let folder = peer.parent().unwrap();
            command
                .args([
                    "marks", "relay", "--only", "accept", "--runs", "2", "--scale", "0.01",
                ])
                .args(["--postrider", "/bin/false", "--peers"])
                .arg(folder)
                .arg("--interop")
                .arg(folder);
        })
    }

    fn of(name: &str, told: impl Fn(&mut Command, &Path)) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let peer = folder.path().join(name);
        std::fs::write(&peer, PEER).unwrap();
        std::fs::set_permissions(&peer, std::fs::Permissions::from_mode(0o755)).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_loadtest"));
        told(&mut command, &peer);
        let loadtest = command
            .env("STUCK", folder.path().join("stuck"))
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        Self { folder, loadtest }
    }

    fn stuck(&self) -> PathBuf {
        self.folder.path().join("stuck")
    }

    /// What it said, once it has ended, and the peer and its child with it.
    fn end(self) -> Output {
        let stuck = self.stuck();
        let output = self.loadtest.wait_with_output().unwrap();
        let numbers = std::fs::read_to_string(stuck).unwrap();
        assert_eq!(numbers.split(' ').count(), 2);
        for pid in numbers.split(' ') {
            until(&format!("{pid} has ended"), || has_ended(pid));
        }
        output
    }
}

/// Orphans stay as zombies until init has looked at them.
fn has_ended(pid: &str) -> bool {
    std::fs::read_to_string(Path::new("/proc").join(pid).join("stat"))
        .map_or(true, |stat| stat.contains(") Z "))
}

fn until(what: &str, is_so: impl Fn() -> bool) {
    let begun = Instant::now();
    while !is_so() {
        assert!(begun.elapsed() < PATIENCE, "not within {PATIENCE:?}: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn a_peer_that_has_stalled_is_given_up() {
    let output = Comparison::start("1").end();
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{said}");
    let given_up: Vec<_> = said
        .lines()
        .filter(|line| line.starts_with("GIVEN UP: "))
        .collect();
    let [own, peer] = given_up[..] else {
        panic!("{said}")
    };
    assert!(own.starts_with("GIVEN UP: accept, postrider: "), "{own}");
    // Two had come in for the warm-up.
    assert!(
        peer.starts_with("GIVEN UP: accept, peer: ")
            && peer.contains("3 of 20 messages were accepted, and 0 of 5 have arrived"),
        "{peer}"
    );
    let table = String::from_utf8(output.stdout).unwrap();
    assert!(
        table
            .lines()
            .any(|line| line.starts_with("peer ") && line.ends_with("1 GIVEN UP")),
        "{table}"
    );
}

#[test]
fn a_signal_ends_the_peer_first() {
    let comparison = Comparison::start("600");
    until("the peer is stuck", || comparison.stuck().exists());
    let pid = Pid::from_child(&comparison.loadtest);
    kill_process(pid, Signal::TERM).unwrap();
    let output = comparison.end();
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(2), "{said}");
    assert!(said.contains("ended by a signal"), "{said}");
}

/// Postfix wants to be started by root, and so do its marks: where nobody is, this shows nothing, and says so.
#[test]
fn a_signal_ends_the_peer_of_a_mark_first() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("NOT SHOWN: not root");
        return;
    }
    let marks = Comparison::marks();
    until("the peer is stuck", || marks.stuck().exists());
    kill_process(Pid::from_child(&marks.loadtest), Signal::INT).unwrap();
    let output = marks.end();
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(2), "{said}");
    assert!(said.contains("ended by a signal"), "{said}");
    // A load that was broken off is no figure, nor is it the reason why there is none.
    let figures = String::from_utf8(output.stdout).unwrap();
    assert!(!figures.contains("accept:"), "{figures}");
}
