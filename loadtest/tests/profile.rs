//! `scripts/profile` refuses what would overwrite its own samples, before it fetches or builds anything.

#![allow(
    clippy::unwrap_used,
    reason = "a test; its helpers are outside of test functions"
)]

use std::path::Path;
use std::process::Command;

#[test]
fn scenarios_that_start_the_relay_more_than_once_are_refused() {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../scripts/profile");
    for (words, said) in [
        (&["restart"][..], "restart starts the relay more than once"),
        (&["all", "--smoke"], "all starts the relay more than once"),
        (
            &["relay", "accept"],
            "one scenario at a time, not relay and accept too",
        ),
        (&[], "usage: scripts/profile SCENARIO"),
    ] {
        // Whatever it called next would not be found.
        let output = Command::new("/bin/bash")
            .arg(&script)
            .args(words)
            .env("PATH", "/usr/bin:/bin")
            .env("POSTRIDER_CACHE", "/nonexistent")
            .output()
            .unwrap();
        let told = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{words:?}: {told}");
        assert!(told.contains(said), "{words:?}: {told}");
    }
}
