//! docs/reference.md is made of the program itself: its command line, the keys it asks for, the metrics it registers, the lines it
//! logs. `POSTRIDER_WRITE=1 cargo test -p relay --test reference` writes it anew; without, the test fails when it is not what it
//! would be.

#![allow(
    clippy::unwrap_used,
    reason = "a test; its helpers are outside of test functions"
)]

#[path = "reference/commands.rs"]
mod commands;
#[path = "reference/keys.rs"]
mod keys;
#[path = "reference/log.rs"]
mod log;

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use relay::run;

const HEAD: &str = "# Reference\n\nEvery command, configuration key, variable of the environment, metric and log line. Made from the \
program: `POSTRIDER_WRITE=1 cargo test -p relay --test reference` writes this page, and a test sees that it is as it should be.\n\n\
- [Commands](#commands)\n- [Environment](#environment)\n- [Configuration](#configuration)\n- [Metrics](#metrics)\n- [Log](#log)\n";

fn repo(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(path)
}

/// Where lines are logged, and variables read.
const SOURCES: [&str; 4] = ["relay/src", "queue/src", "admin-api/src", "mail-core/src"];

/// Shows every source file of the program, but for tests and the lab.
fn each_source(show: &mut impl FnMut(&str)) {
    let mut folders: Vec<_> = SOURCES.iter().map(|source| repo(source)).collect();
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.ends_with("tests") || path.ends_with("tests.rs") || path.ends_with("relay/src/lab") {
                continue;
            }
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|kind| kind == "rs") {
                show(&std::fs::read_to_string(&path).unwrap());
            }
        }
    }
}

/// Text for a cell of a Markdown table.
fn cell(text: &str) -> String {
    text.split_whitespace()
        .collect::<Vec<_>>()
        .join(" ")
        .replace('|', "\\|")
}

/// The metrics of a relay in which everything that has some is switched on.
fn metrics() -> String {
    let folder = tempfile::tempdir().unwrap();
    let credentials = folder.path().join("credentials.toml");
    std::fs::write(&credentials, "").unwrap();
    std::fs::set_permissions(&credentials, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
    let config = folder.path().join("postrider.toml");
    let text = "hostname = \"relay.test\"\ncredentials = \"credentials.toml\"\n[store]\npath = \"q\"\n[tenants.t]\nsenders = [\"*\"]\n\
        [[listener]]\nkind = \"trusted\"\naddress = \"127.0.0.1:0\"\nnetworks = [\"127.0.0.1/32\"]\ntenant = \"t\"\n\
        [admin]\naddress = \"127.0.0.1:0\"\ntokens = \"tokens.toml\"\n[dns]\nservers = [\"127.0.0.1:1\"]\n";
    std::fs::write(&config, text).unwrap();
    let tokens = folder.path().join("tokens.toml");
    std::fs::write(&tokens, "").unwrap();
    std::fs::set_permissions(&tokens, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
    let running = run::start(relay::config::load(&config).unwrap()).unwrap();
    let metrics = running.every_metric();
    running.stop();
    assert!(metrics.len() > 40, "{metrics:?}");
    let mut text = "\n## Metrics\n\nAt `/metrics` of `[metrics] address`. A histogram `NAME` has the series `NAME_bucket`, `NAME_sum` and \
        `NAME_count`.\n\n| metric | type | labels | meaning |\n|---|---|---|---|\n"
        .to_owned();
    for (name, metric) in metrics {
        assert!(!metric.kind.is_empty() && !metric.help.is_empty(), "{name}");
        let labels: Vec<_> = metric.labels.iter().map(|label| format!("`{label}`")).collect();
        let (kind, help) = (metric.kind, cell(&metric.help));
        writeln!(text, "| `{name}` | {kind} | {} | {help} |", labels.join(", ")).unwrap();
    }
    text
}

#[test]
fn the_page_is_as_the_program() {
    let made = [
        HEAD.to_owned(),
        commands::commands(),
        commands::environment(),
        keys::keys(),
        metrics(),
        log::log(),
    ]
    .concat();
    let page = repo("docs/reference.md");
    if std::env::var_os("POSTRIDER_WRITE").is_some() {
        std::fs::write(&page, &made).unwrap();
    }
    let written = std::fs::read_to_string(&page).unwrap_or_default();
    let differs = written
        .lines()
        .zip(made.lines())
        .find(|(written, made)| written != made);
    assert!(
        written == made,
        "docs/reference.md is out of date: POSTRIDER_WRITE=1 cargo test -p relay --test reference\n{differs:#?}"
    );
}
