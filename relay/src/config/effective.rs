//! The configuration in force, key by key: what was written and what was left to the defaults. `config show` prints it, and a
//! reload tells by it what changed.
//!
//! No secret is in it: the configuration names files and variables that hold them.

use std::collections::BTreeMap;
use std::fmt::{self, Write as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::source::Problem;

/// A step on the way to a table: `tenants`, or `listener[0]`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Step {
    pub(super) name: String,
    pub(super) index: Option<usize>,
}

/// A key's value.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Entry {
    /// As TOML.
    value: String,
    /// Where it is written; `None`: it is the default.
    written: Option<Problem>,
}

/// See the module.
#[derive(Clone, Default)]
pub struct Effective {
    /// The configuration's file, absolute.
    file: PathBuf,
    tables: BTreeMap<Vec<Step>, BTreeMap<String, Entry>>,
}

impl fmt::Debug for Effective {
    /// The settings say it all.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Effective")
    }
}

/// A key that is otherwise than it was.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// Its path, such as `listener[0].address`.
    pub key: String,
    /// As TOML; `None`: not set.
    pub before: Option<String>,
    /// As TOML; `None`: not set any more.
    pub after: Option<String>,
    /// Where it is written now.
    written: Option<Problem>,
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.before, &self.after) {
            (Some(before), Some(after)) => write!(f, "{}: {before} -> {after}", self.key),
            (None, Some(after)) => write!(f, "{}: now {after}", self.key),
            (Some(before), None) => write!(f, "{}: no longer {before}", self.key),
            (None, None) => f.write_str(&self.key),
        }
    }
}

impl Change {
    /// The change as a mistake, told where it is written.
    pub fn problem(&self, text: String, file: &Path) -> Problem {
        let unwritten = || Problem {
            file: file.to_owned(),
            line: 0,
            column: 0,
            key: self.key.clone(),
            text: String::new(),
        };
        let place = self.written.clone().unwrap_or_else(unwritten);
        Problem {
            text,
            key: self.key.clone(),
            ..place
        }
    }
}

impl Effective {
    pub(super) fn new(file: &Path) -> Self {
        Self {
            file: std::path::absolute(file).unwrap_or_else(|_| file.to_owned()),
            tables: BTreeMap::new(),
        }
    }

    pub(super) fn note(&mut self, table: &[Step], key: &str, value: String, written: Option<Problem>) {
        let table = self.tables.entry(table.to_vec()).or_default();
        table.insert(key.to_owned(), Entry { value, written });
    }

    pub(super) fn is_written(&self, table: &[Step], key: &str) -> bool {
        let entry = self.tables.get(table).and_then(|table| table.get(key));
        entry.is_some_and(|entry| entry.written.is_some())
    }

    /// Where the configuration is, to be read again.
    pub fn file(&self) -> &Path {
        &self.file
    }

    /// As a configuration that says the same, every default spelt out and marked.
    pub fn to_toml(&self) -> String {
        let mut text = String::new();
        for (table, entries) in &self.tables {
            if let Some(last) = table.last() {
                let names: Vec<_> = table.iter().map(|step| bare(&step.name)).collect();
                let names = names.join(".");
                let _ = match last.index {
                    None => writeln!(text, "\n[{names}]"),
                    Some(_) => writeln!(text, "\n[[{names}]]"),
                };
            }
            for (key, entry) in entries {
                let mark = if entry.written.is_none() { " # default" } else { "" };
                let _ = writeln!(text, "{key} = {}{mark}", entry.value);
            }
        }
        text
    }

    /// Every key with its value as TOML, and whether it is the default.
    pub fn entries(&self) -> impl Iterator<Item = (String, &str, bool)> {
        self.tables.iter().flat_map(|(table, entries)| {
            entries
                .iter()
                .map(move |(key, entry)| (path(table, key), entry.value.as_str(), entry.written.is_none()))
        })
    }

    /// Where a key of this path is written; `None`: nowhere.
    pub fn place(&self, key: &str) -> Option<&Problem> {
        let mut all = self.tables.iter().flat_map(|(table, entries)| {
            entries
                .iter()
                .map(move |(name, entry)| (path(table, name), entry))
        });
        all.find(|(path, _)| path == key)
            .and_then(|(_, entry)| entry.written.as_ref())
    }

    /// What is otherwise in `after`.
    pub fn changes(&self, after: &Self) -> Vec<Change> {
        let flat = |of: &Self| -> BTreeMap<(Vec<Step>, String), Entry> {
            let tables = of.tables.clone().into_iter();
            tables
                .flat_map(|(table, entries)| {
                    entries
                        .into_iter()
                        .map(move |(key, entry)| ((table.clone(), key), entry))
                })
                .collect()
        };
        let (before, after) = (flat(self), flat(after));
        let mut keys: Vec<_> = before.keys().chain(after.keys()).collect();
        keys.sort();
        keys.dedup();
        let changed = keys.into_iter().filter_map(|at| {
            let (old, new) = (before.get(at), after.get(at));
            if old.map(|entry| &entry.value) == new.map(|entry| &entry.value) {
                return None;
            }
            Some(Change {
                key: path(&at.0, &at.1),
                before: old.map(|entry| entry.value.clone()),
                after: new.map(|entry| entry.value.clone()),
                written: new.and_then(|entry| entry.written.clone()),
            })
        });
        changed.collect()
    }
}

fn path(table: &[Step], key: &str) -> String {
    let mut path = String::new();
    for step in table {
        path.push_str(&step.name);
        if let Some(index) = step.index {
            let _ = write!(path, "[{index}]");
        }
        path.push('.');
    }
    path + key
}

/// A key as TOML writes it.
fn bare(name: &str) -> String {
    let is_bare = |c: u8| c.is_ascii_alphanumeric() || b"-_".contains(&c);
    if !name.is_empty() && name.bytes().all(is_bare) {
        name.to_owned()
    } else {
        quoted(name)
    }
}

/// A string as TOML writes it.
pub(super) fn quoted(text: &str) -> String {
    toml::Value::String(text.to_owned()).to_string()
}

/// A time span as the configuration writes it, in its largest whole units.
pub(super) fn span(span: Duration) -> String {
    let mut left = span.as_millis();
    let mut text = String::new();
    for (unit, millis) in [
        ("d", 86_400_000),
        ("h", 3_600_000),
        ("m", 60_000),
        ("s", 1_000),
        ("ms", 1),
    ] {
        if left >= millis {
            let _ = write!(text, "{}{unit}", left / millis);
            left %= millis;
        }
    }
    if text.is_empty() {
        text.push_str("0s");
    }
    quoted(&text)
}

/// A size as the configuration writes it.
pub(super) fn size(bytes: u64) -> String {
    for (unit, many) in [("GiB", 1_u64 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)] {
        if bytes >= many && bytes.is_multiple_of(many) {
            return quoted(&format!("{}{unit}", bytes / many));
        }
    }
    bytes.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_and_sizes_are_written_as_they_are_read() {
        for (millis, text) in [
            (5_400_000, "1h30m"),
            (250, "250ms"),
            (432_000_000, "5d"),
            (0, "0s"),
        ] {
            assert_eq!(span(Duration::from_millis(millis)), format!("\"{text}\""));
        }
        assert_eq!(size(25 << 20), "\"25MiB\"");
        assert_eq!(size(1_000), "1000");
        assert_eq!(size(0), "0");
    }
}
