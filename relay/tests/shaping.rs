//! The tables of docs/shaping.md are made of those that are compiled in. `POSTRIDER_WRITE=1 cargo test -p relay --test shaping` writes
//! them anew; without, the test fails when they are not what they would be.

#![allow(
    clippy::unwrap_used,
    reason = "a test; its helpers are outside of test functions"
)]

use std::fmt::Write as _;
use std::path::Path;

use relay::shaping::Shaping;
use relay::shaping::providers::{Across, Source};

fn list(items: impl IntoIterator<Item = impl ToString>) -> String {
    let items: Vec<_> = items
        .into_iter()
        .map(|item| format!("`{}`", item.to_string().replace('|', "\\|")))
        .collect();
    items.join(", ")
}

fn link(source: &Source) -> String {
    format!("[{}, {}]({})", source.by.name(), source.seen, source.url)
}

fn classes() -> String {
    let mut text = "| class | meaning |\n|---|---|\n".to_owned();
    for class in Shaping::shipped().classes.all() {
        writeln!(text, "| `{}` | {} |", class.name, class.meaning).unwrap();
    }
    text
}

fn providers() -> String {
    let mut text = "| name | who | MX hosts | limits |\n|---|---|---|---|\n".to_owned();
    for provider in Shaping::shipped().providers.all() {
        let limits: Vec<_> = provider
            .limits
            .iter()
            .map(|limit| {
                let in_all = match limit.across {
                    Across::Lane => "",
                    Across::Provider => " in all",
                };
                format!(
                    "`{} = {}`{in_all} ({})",
                    limit.key.name(),
                    limit.value,
                    link(&limit.source)
                )
            })
            .collect();
        let limits = match limits.is_empty() {
            true => "unsourced: the defaults".to_owned(),
            false => limits.join("<br>"),
        };
        let mut hosts = list(&provider.mx);
        if let Some(source) = &provider.mx_source {
            write!(hosts, " ([source]({source}))").unwrap();
        }
        writeln!(
            text,
            "| `{}` | {} | {hosts} | {limits} |",
            provider.name, provider.title
        )
        .unwrap();
    }
    text
}

fn replies() -> String {
    let shaping = Shaping::shipped();
    let mut text =
        "| provider | codes | text | class | asks for | source |\n|---|---|---|---|---|---|\n".to_owned();
    for provider in shaping.providers.all() {
        for reply in &provider.replies {
            let asks = match reply.advice {
                None => String::new(),
                Some(advice) => advice.to_string(),
            };
            writeln!(
                text,
                "| `{}` | {} | {} | `{}` | {asks} | {} |",
                provider.name,
                list(&reply.codes),
                list(&reply.text),
                shaping.classes.get(reply.class).name,
                link(&reply.source)
            )
            .unwrap();
        }
    }
    text
}

#[test]
fn the_tables_of_the_page_are_those_of_the_program() {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/shaping.md");
    let page = std::fs::read_to_string(&file).unwrap();
    let mut made = page.clone();
    for (name, table) in [
        ("classes", classes()),
        ("providers", providers()),
        ("replies", replies()),
    ] {
        let (begin, end) = (format!("<!-- {name} -->\n"), format!("<!-- end of {name} -->"));
        let (before, rest) = made.split_once(&begin).unwrap();
        let (_, after) = rest.split_once(&end).unwrap();
        made = format!("{before}{begin}{table}{end}{after}");
    }
    if std::env::var_os("POSTRIDER_WRITE").is_some() {
        std::fs::write(&file, &made).unwrap();
    }
    let page = std::fs::read_to_string(&file).unwrap();
    assert!(
        page == made,
        "docs/shaping.md is out of date: POSTRIDER_WRITE=1 cargo test -p relay --test shaping"
    );
}

/// What the page shows of the configuration is right as it stands, all of it together.
#[test]
fn the_examples_of_the_page_are_right() {
    let page =
        std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/shaping.md")).unwrap();
    let examples: Vec<_> = page
        .split("```toml\n")
        .skip(1)
        .map(|rest| rest.split_once("```").unwrap().0)
        .collect();
    assert!(examples.len() >= 2);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("postrider.toml");
    let text = format!(
        "hostname = \"relay.test\"\n[store]\npath = \"q\"\n[tenants.t]\nsenders = [\"*\"]\n[tenants.shop]\nsenders = [\"shop.example\"]\n[[listener]]\nkind = \"trusted\"\n\
         address = \"127.0.0.1:0\"\nnetworks = [\"127.0.0.1/32\"]\ntenant = \"t\"\n{}",
        examples.join("\n")
    );
    std::fs::write(&path, text).unwrap();
    let settings = relay::config::load(&path).unwrap();
    let shaping = &settings.delivery.shaping;
    let said = "550 We are closed for the summer holidays";
    assert_eq!(
        &*shaping.class(said, Some("mx.daughter.example")).name,
        "seasonal"
    );
    assert_eq!(&*shaping.class(said, Some("mx.other.example")).name, "other");
    assert_eq!(shaping.provider("google").unwrap().own.connections, Some(20));
}
