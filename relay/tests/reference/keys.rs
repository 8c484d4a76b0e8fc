//! The configuration's keys: what they mean stands in the example, which is their one description; which there are says the reader.

use std::collections::BTreeSet;
use std::fmt::Write as _;

use super::{cell, repo};

/// One key of the example.
struct Key {
    table: String,
    name: String,
    value: String,
    is_default: bool,
    meaning: String,
}

pub fn keys() -> String {
    let example = std::fs::read_to_string(repo("docs/postrider.example.toml")).unwrap();
    let found = read(&example);
    let documented: BTreeSet<_> = found.iter().map(Key::path).collect();
    for key in known(&example) {
        // Limits and retries are described once, for all tables that have them.
        let alike = key.rsplitn(3, '.').take(2).collect::<Vec<_>>();
        let is_alike = alike.len() == 2
            && documented
                .iter()
                .any(|path| path.ends_with(&format!(".{}.{}", alike[1], alike[0])));
        // What is in a table written in one line is described with it.
        let whole = key.rsplit_once("[].").map(|(list, _)| list.to_owned());
        let is_table = documented.iter().any(|path| {
            path.strip_prefix(&key)
                .is_some_and(|rest| rest.starts_with(['.', '[']))
        });
        assert!(
            is_table
                || is_alike
                || documented.contains(&key)
                || whole.is_some_and(|list| documented.contains(&list)),
            "{key} is not in docs/postrider.example.toml where it belongs: {documented:#?}"
        );
    }
    let mut text = "\n## Configuration\n\nThe same, as a file to begin with: [postrider.example.toml](postrider.example.toml), or `postrider \
        check --example`. `NAME` stands for a name of yours, `[]` for a table that may be there several times.\n"
        .to_owned();
    let mut table = None;
    for key in &found {
        if table.as_ref() != Some(&key.table) {
            let title = if key.table.is_empty() { "(top)" } else { &key.table };
            writeln!(
                text,
                "\n### {title}\n\n| key | default, or an example | meaning |\n|---|---|---|"
            )
            .unwrap();
            table = Some(key.table.clone());
        }
        let shown = if key.is_default { "" } else { "e.g. " };
        let (name, value) = (&key.name, cell(&key.value));
        writeln!(text, "| `{name}` | {shown}`{value}` | {} |", cell(&key.meaning)).unwrap();
    }
    text
}

impl Key {
    fn path(&self) -> String {
        match self.table.as_str() {
            "" => self.name.clone(),
            table => format!("{table}.{}", self.name),
        }
    }
}

/// Every key the program asks for, with every table of the example switched on.
fn known(example: &str) -> BTreeSet<String> {
    let lines = example.lines().map(|line| match line.strip_prefix("# ") {
        Some(rest) if table(rest).is_some() => rest,
        _ => line,
    });
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("postrider.toml");
    std::fs::write(&path, lines.collect::<Vec<_>>().join("\n")).unwrap();
    let known = relay::config::known_keys(&path);
    assert!(known.len() > 100, "{known:?}");
    known
        .into_iter()
        .map(|key| key.trim_end_matches("[]").to_owned())
        .collect()
}

/// The header of a table, as the reader calls it.
fn table(line: &str) -> Option<String> {
    let list = line.strip_prefix("[[").and_then(|rest| rest.strip_suffix("]]"));
    let name = list.or_else(|| line.strip_prefix('[')?.strip_suffix(']'))?;
    if !name
        .bytes()
        .all(|c| c.is_ascii_lowercase() || b"_.-".contains(&c))
    {
        return None;
    }
    let list = if list.is_some() { "[]" } else { "" };
    Some(format!("{}{list}", name.replace("tenants.acme", "tenants.NAME")))
}

fn read(example: &str) -> Vec<Key> {
    let (mut keys, mut meaning, mut current): (Vec<Key>, Vec<&str>, _) =
        (Vec::new(), Vec::new(), String::new());
    let mut lists: BTreeSet<String> = BTreeSet::new();
    let mut after_key = false;
    for line in example.lines() {
        let rest = line.strip_prefix("# ").unwrap_or(line);
        if let Some(found) = table(rest) {
            // `[list.limits]` belongs to the list's last table.
            let of_list = lists.iter().find(|list| found.starts_with(&format!("{list}.")));
            current = match of_list {
                Some(list) => found.replacen(list.as_str(), &format!("{list}[]"), 1),
                None => found,
            };
            if let Some(list) = current.strip_suffix("[]") {
                lists.insert(list.to_owned());
            }
            after_key = false;
            continue;
        }
        let pair = rest.split_once(" = ");
        let pair = pair.filter(|(name, _)| {
            !name.is_empty()
                && name
                    .bytes()
                    .all(|c| c.is_ascii_lowercase() || b"_0123456789".contains(&c))
        });
        match pair {
            Some((name, value)) => {
                keys.push(Key {
                    table: current.clone(),
                    name: name.to_owned(),
                    value: value.to_owned(),
                    is_default: line.starts_with("# "),
                    meaning: match after_key {
                        true if !meaning.is_empty() => "As above.".to_owned(),
                        _ => meaning.join(" "),
                    },
                });
                after_key = true;
            }
            None if line.trim().is_empty() => meaning.clear(),
            None => {
                if std::mem::take(&mut after_key) {
                    meaning.clear();
                }
                meaning.push(rest);
            }
        }
    }
    keys
}
