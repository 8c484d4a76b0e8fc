//! Reading a table of the configuration key by key: each with its type, its default, and its problem if there is one.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use mail_core::{BadDomain, Domain};

use super::effective::{self, Effective, Step, quoted};
use super::source::{At, Files, Node, Problem, Value};

/// What all sections of one check share.
pub struct Check<'a> {
    files: &'a Files,
    problems: RefCell<Vec<Problem>>,
    /// Every key asked for, lists as `[]` and names as `NAME`: what a configuration can say.
    known: RefCell<BTreeSet<String>>,
    effective: RefCell<Effective>,
}

impl<'a> Check<'a> {
    /// Nothing wrong so far but what reading the files has found.
    pub fn new(files: &'a Files, problems: Vec<Problem>, file: &Path) -> Self {
        Self {
            files,
            problems: RefCell::new(problems),
            known: RefCell::default(),
            effective: RefCell::new(Effective::new(file)),
        }
    }

    /// What every key asked for has said, or was taken to say.
    pub fn effective(&self) -> Effective {
        self.effective.borrow().clone()
    }

    /// Notes a problem.
    pub fn problem(&self, at: At, key: &str, text: impl Into<String>) {
        self.problems.borrow_mut().push(self.files.problem(at, key, text));
    }

    /// All problems, in order of place, each once.
    pub fn into_problems(self) -> (Vec<Problem>, BTreeSet<String>) {
        let mut problems = self.problems.into_inner();
        problems.sort();
        problems.dedup();
        (problems, self.known.into_inner())
    }

    /// A path, made absolute by the folder of the file that names it.
    pub fn path(&self, spot: &Spot<String>) -> PathBuf {
        self.absolute(spot.at, &spot.value)
    }

    /// The folder may be named from where the program was started; a reload names it from the root, and has to find the same.
    fn absolute(&self, at: At, path: &str) -> PathBuf {
        let path = self.files.folder(at).join(path);
        std::path::absolute(&path).unwrap_or(path)
    }
}

/// A value, with its place and key for problems found later.
#[derive(Clone, Debug)]
pub struct Spot<T> {
    /// What.
    pub value: T,
    /// Where.
    pub at: At,
    /// Path of the key.
    pub key: String,
}

/// A name that other hosts know us by.
pub struct OwnName(pub Domain);

impl FromStr for OwnName {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.parse::<Domain>() {
            Ok(name) if name.is_host_name() => Ok(Self(name)),
            // Mail servers refuse to be greeted with an underscore.
            Ok(_) | Err(BadDomain::Character) => {
                Err("a host's name is made of letters, digits and hyphens between dots".to_owned())
            }
            Err(error) => Err(error.to_string()),
        }
    }
}

/// A table being read. [`Section::end`] tells of the keys nobody asked for.
pub struct Section<'a> {
    check: &'a Check<'a>,
    entries: BTreeMap<String, Node>,
    path: String,
    /// Path as in [`Check`]'s list of known keys.
    pattern: String,
    /// As in [`Effective`].
    place: Vec<Step>,
    at: At,
    asked: Vec<&'static str>,
}

impl<'a> Section<'a> {
    /// The whole configuration.
    pub fn root(check: &'a Check<'a>, node: Node) -> Self {
        Self::new(check, node, String::new(), String::new(), Vec::new())
    }

    fn new(check: &'a Check<'a>, node: Node, path: String, pattern: String, place: Vec<Step>) -> Self {
        let at = node.at;
        let entries = match node.value {
            Value::Table(entries) => entries,
            other => {
                check.problem(at, &path, format!("a table is needed, not {}", other.kind()));
                BTreeMap::new()
            }
        };
        Self {
            check,
            entries,
            path,
            pattern,
            place,
            at,
            asked: Vec::new(),
        }
    }

    /// The place of a table in it.
    fn within(&self, key: &str, index: Option<usize>) -> Vec<Step> {
        let mut place = self.place.clone();
        let name = key.to_owned();
        place.push(Step { name, index });
        place
    }

    /// Notes what a key says.
    fn note(&self, key: &str, value: String, at: At) {
        let written = self.check.files.problem(at, "", "");
        self.check
            .effective
            .borrow_mut()
            .note(&self.place, key, value, Some(written));
    }

    /// Notes what a key that is not there is taken to say, as TOML.
    fn note_default(&self, key: &str, value: String) {
        self.check
            .effective
            .borrow_mut()
            .note(&self.place, key, value, None);
    }

    /// Notes the string that a key which is not there is taken to say.
    pub fn taken_as(&self, key: &str, value: impl std::fmt::Display) {
        if !self.asked_and_found(key) {
            self.note_default(key, quoted(&value.to_string()));
        }
    }

    fn asked_and_found(&self, key: &str) -> bool {
        let effective = self.check.effective.borrow();
        effective.is_written(&self.place, key)
    }

    /// The path of a key in it; its own where the key is empty.
    pub fn key(&self, key: &str) -> String {
        match key {
            "" => self.path.clone(),
            key => join(&self.path, key),
        }
    }

    /// Notes a problem with a key, at the value if it is there, else at the table.
    pub fn problem(&self, key: &str, text: impl Into<String>) {
        self.check.problem(self.at, &self.key(key), text);
    }

    /// Whether the key is there.
    pub fn has(&self, key: &str) -> bool {
        self.entries.contains_key(key)
    }

    fn take(&mut self, key: &'static str) -> Option<Node> {
        self.asked.push(key);
        self.check.known.borrow_mut().insert(join(&self.pattern, key));
        self.entries.remove(key)
    }

    fn read<T>(
        &mut self,
        key: &'static str,
        read: impl FnOnce(&Value) -> Result<T, String>,
        show: impl FnOnce(&T) -> String,
    ) -> Option<Spot<T>> {
        let node = self.take(key)?;
        let path = self.key(key);
        match read(&node.value) {
            Ok(value) => {
                self.note(key, show(&value), node.at);
                Some(Spot {
                    value,
                    at: node.at,
                    key: path,
                })
            }
            Err(why) => {
                self.check.problem(node.at, &path, why);
                None
            }
        }
    }

    /// A string.
    pub fn string(&mut self, key: &'static str) -> Option<Spot<String>> {
        self.read(key, string, |text| quoted(text))
    }

    /// A string of some form; what it is not is said by the form's own error.
    pub fn parsed<T>(&mut self, key: &'static str) -> Option<Spot<T>>
    where
        T: FromStr,
        T::Err: std::fmt::Display,
    {
        let read = |value: &Value| {
            let text = string(value)?;
            Ok((parse(&text)?, text))
        };
        let spot = self.read(key, read, |(_, text)| quoted(text))?;
        Some(Spot {
            value: spot.value.0,
            at: spot.at,
            key: spot.key,
        })
    }

    /// A value that has to be there.
    pub fn required<T>(&self, key: &str, found: Option<Spot<T>>, what: &str) -> Option<Spot<T>> {
        let reported = || {
            let path = self.key(key);
            self.check
                .problems
                .borrow()
                .iter()
                .any(|problem| problem.key == path)
        };
        if found.is_none() && !reported() {
            self.problem(key, format!("is needed: {what}"));
        }
        found
    }

    /// A path, absolute.
    pub fn file(&mut self, key: &'static str) -> Option<Spot<PathBuf>> {
        let spot = self.string(key)?;
        if spot.value.is_empty() {
            self.check
                .problem(spot.at, &spot.key, "is empty; a path is needed");
        }
        let value = self.check.path(&spot);
        self.note(key, quoted(&value.to_string_lossy()), spot.at);
        Some(Spot {
            value,
            at: spot.at,
            key: spot.key,
        })
    }

    /// A path that is meant where the key is absent, beside the file of the table.
    pub fn default_file(&self, key: &str, name: &str) -> Spot<PathBuf> {
        let value = self.check.absolute(self.at, name);
        self.note_default(key, quoted(&value.to_string_lossy()));
        Spot {
            value,
            at: self.at,
            key: self.key(key),
        }
    }

    /// One of some words.
    pub fn word<T: Copy + PartialEq>(&mut self, key: &'static str, words: &[(&str, T)], default: T) -> T {
        let read = |value: &Value| {
            let text = string(value)?;
            let all = || {
                words
                    .iter()
                    .map(|(word, _)| format!("\"{word}\""))
                    .collect::<Vec<_>>()
                    .join(", ")
            };
            let found = words.iter().find(|(word, _)| *word == text);
            found
                .map(|(_, meaning)| *meaning)
                .ok_or_else(|| format!("\"{text}\" is none of {}", all()))
        };
        let word = |meaning: &T| {
            let found = words.iter().find(|(_, is)| is == meaning);
            found.map(|(word, _)| quoted(word))
        };
        match self.read(key, read, |meaning| word(meaning).unwrap_or_default()) {
            Some(spot) => spot.value,
            None => {
                if let Some(shown) = word(&default) {
                    self.note_default(key, shown);
                }
                default
            }
        }
    }

    /// An integer within bounds.
    pub fn integer(&mut self, key: &'static str, bounds: RangeInclusive<u64>, default: u64) -> u64 {
        self.optional_integer(key, bounds).unwrap_or_else(|| {
            self.note_default(key, default.to_string());
            default
        })
    }

    /// An integer within bounds, if it is there.
    pub fn optional_integer(&mut self, key: &'static str, bounds: RangeInclusive<u64>) -> Option<u64> {
        let read = |value: &Value| match value {
            Value::Integer(number) => within(u64::try_from(*number).ok(), &bounds, number),
            other => Err(format!("an integer is needed, not {}", other.kind())),
        };
        self.read(key, read, u64::to_string).map(|spot| spot.value)
    }

    /// `true` or `false`.
    pub fn boolean(&mut self, key: &'static str, default: bool) -> bool {
        let read = |value: &Value| match value {
            Value::Boolean(yes) => Ok(*yes),
            other => Err(format!("true or false is needed, not {}", other.kind())),
        };
        match self.read(key, read, bool::to_string) {
            Some(spot) => spot.value,
            None => {
                self.note_default(key, default.to_string());
                default
            }
        }
    }

    /// A number within bounds.
    pub fn number_or(&mut self, key: &'static str, bounds: RangeInclusive<f64>, default: f64) -> f64 {
        self.number(key, bounds).unwrap_or_else(|| {
            self.note_default(key, format!("{default:?}"));
            default
        })
    }

    /// A number within bounds, if it is there.
    pub fn number(&mut self, key: &'static str, bounds: RangeInclusive<f64>) -> Option<f64> {
        let read = |value: &Value| {
            let number = match value {
                Value::Integer(number) => *number as f64,
                Value::Float(number) => *number,
                other => return Err(format!("a number is needed, not {}", other.kind())),
            };
            if bounds.contains(&number) {
                return Ok(number);
            }
            Err(format!(
                "{number} is not within {} and {}",
                bounds.start(),
                bounds.end()
            ))
        };
        let read = self.read(key, read, |number| format!("{number:?}"));
        read.map(|spot| spot.value)
    }

    /// A time span such as `"250ms"`, `"1h30m"`, within bounds.
    pub fn duration(
        &mut self,
        key: &'static str,
        bounds: RangeInclusive<Duration>,
        default: Duration,
    ) -> Duration {
        let read = |value: &Value| match value {
            Value::String(text) => {
                let span = duration(text)?;
                if bounds.contains(&span) {
                    return Ok(span);
                }
                Err(format!(
                    "{text} is not within {:?} and {:?}",
                    bounds.start(),
                    bounds.end()
                ))
            }
            other => Err(format!(
                "a time span such as \"30s\" or \"1h30m\" is needed, not {}",
                other.kind()
            )),
        };
        match self.read(key, read, |span| effective::span(*span)) {
            Some(spot) => spot.value,
            None => {
                self.note_default(key, effective::span(default));
                default
            }
        }
    }

    /// A size such as `"25MiB"` or a number of bytes, within bounds.
    pub fn size_or(&mut self, key: &'static str, bounds: RangeInclusive<u64>, default: u64) -> u64 {
        self.size(key, bounds).unwrap_or_else(|| {
            self.note_default(key, effective::size(default));
            default
        })
    }

    /// A size such as `"25MiB"` or a number of bytes, within bounds, if it is there.
    pub fn size(&mut self, key: &'static str, bounds: RangeInclusive<u64>) -> Option<u64> {
        let read = |value: &Value| match value {
            Value::Integer(number) => within(u64::try_from(*number).ok(), &bounds, number),
            Value::String(text) => within(Some(size(text)?), &bounds, text),
            other => Err(format!(
                "a size such as \"25MiB\" is needed, not {}",
                other.kind()
            )),
        };
        let read = self.read(key, read, |bytes| effective::size(*bytes));
        read.map(|spot| spot.value)
    }

    /// Whether the key is there with a list of nothing.
    pub fn is_empty_list(&self, key: &str) -> bool {
        let node = self.entries.get(key);
        node.is_some_and(|node| matches!(&node.value, Value::Array(items) if items.is_empty()))
    }

    /// A list of strings of some form; those that are not are told and left out.
    pub fn list<T>(&mut self, key: &'static str) -> Option<Vec<Spot<T>>>
    where
        T: FromStr,
        T::Err: std::fmt::Display,
    {
        let node = self.take(key)?;
        let path = self.key(key);
        let Value::Array(items) = node.value else {
            self.check.problem(
                node.at,
                &path,
                format!("a list is needed, not {}", node.value.kind()),
            );
            return None;
        };
        let shown: Vec<_> = items
            .iter()
            .filter_map(|item| string(&item.value).ok())
            .map(|text| quoted(&text))
            .collect();
        self.note(key, format!("[{}]", shown.join(", ")), node.at);
        let mut list = Vec::with_capacity(items.len());
        for (number, item) in items.iter().enumerate() {
            let key = format!("{path}[{number}]");
            match string(&item.value).and_then(|text| parse(&text)) {
                Ok(value) => list.push(Spot {
                    value,
                    at: item.at,
                    key,
                }),
                Err(why) => self.check.problem(item.at, &key, why),
            }
        }
        Some(list)
    }

    /// The same, in which one string stands for a list of it alone.
    pub fn list_or_one<T>(&mut self, key: &'static str) -> Option<Vec<Spot<T>>>
    where
        T: FromStr,
        T::Err: std::fmt::Display,
    {
        let node = self.entries.get(key);
        match node.is_some_and(|node| matches!(node.value, Value::String(_))) {
            true => self.parsed(key).map(|spot| vec![spot]),
            false => self.list(key),
        }
    }

    /// The keys of a table within that are read later.
    pub fn names_in(&self, key: &str) -> BTreeSet<String> {
        match self.entries.get(key).map(|node| &node.value) {
            Some(Value::Table(entries)) => entries.keys().cloned().collect(),
            _ => BTreeSet::new(),
        }
    }

    /// Integers within bounds, by names of the user's own.
    pub fn integers(
        &mut self,
        key: &'static str,
        bounds: RangeInclusive<u64>,
    ) -> Option<Vec<(String, Spot<u64>)>> {
        let node = self.take(key)?;
        let path = self.key(key);
        let Value::Table(entries) = node.value else {
            let text = format!(
                "a table is needed, such as {{ name = 3 }}, not {}",
                node.value.kind()
            );
            self.check.problem(node.at, &path, text);
            return None;
        };
        let mut all = Vec::new();
        for (name, node) in entries {
            let key = join(&path, &name);
            let read = match &node.value {
                Value::Integer(number) => within(u64::try_from(*number).ok(), &bounds, number),
                other => Err(format!("an integer is needed, not {}", other.kind())),
            };
            match read {
                Ok(value) => all.push((
                    name,
                    Spot {
                        value,
                        at: node.at,
                        key,
                    },
                )),
                Err(why) => self.check.problem(node.at, &key, why),
            }
        }
        let shown: Vec<_> = all
            .iter()
            .map(|(name, spot)| format!("{} = {}", quoted(name), spot.value))
            .collect();
        self.note(key, format!("{{ {} }}", shown.join(", ")), node.at);
        Some(all)
    }

    /// A table within; empty if it is not there.
    pub fn section(&mut self, key: &'static str) -> Section<'a> {
        let node = self.take(key).unwrap_or(Node {
            value: Value::Table(BTreeMap::new()),
            at: self.at,
        });
        Section::new(
            self.check,
            node,
            self.key(key),
            join(&self.pattern, key),
            self.within(key, None),
        )
    }

    /// A list of tables.
    pub fn sections(&mut self, key: &'static str) -> Vec<Section<'a>> {
        let Some(node) = self.take(key) else {
            return Vec::new();
        };
        let path = self.key(key);
        let pattern = format!("{}[]", join(&self.pattern, key));
        match node.value {
            Value::Array(items) => items
                .into_iter()
                .enumerate()
                .map(|(number, item)| {
                    let place = self.within(key, Some(number));
                    Section::new(
                        self.check,
                        item,
                        format!("{path}[{number}]"),
                        pattern.clone(),
                        place,
                    )
                })
                .collect(),
            other => {
                let text = format!(
                    "a list of tables is needed, written [[{path}]], not {}",
                    other.kind()
                );
                self.check.problem(node.at, &path, text);
                Vec::new()
            }
        }
    }

    /// A list of tables, in which a string stands for a table that says nothing but `short`.
    pub fn sections_or_strings(&mut self, key: &'static str, short: &str) -> Vec<Section<'a>> {
        if let Some(node) = self.entries.get_mut(key)
            && let Value::Array(items) = &mut node.value
        {
            for item in items {
                if matches!(item.value, Value::String(_)) {
                    let at = item.at;
                    let value = std::mem::replace(&mut item.value, Value::Table(BTreeMap::new()));
                    if let Value::Table(entries) = &mut item.value {
                        entries.insert(short.to_owned(), Node { value, at });
                    }
                }
            }
        }
        self.sections(key)
    }

    /// Tables by names of the user's own.
    pub fn named(&mut self, key: &'static str) -> Vec<(String, Section<'a>)> {
        let section = self.section(key);
        let pattern = join(&section.pattern, "NAME");
        let entries = section.entries.clone();
        let named = |(name, node): (String, Node)| {
            let path = join(&section.path, &name);
            let place = section.within(&name, None);
            (
                name,
                Section::new(section.check, node, path, pattern.clone(), place),
            )
        };
        entries.into_iter().map(named).collect()
    }

    /// Tells of keys that mean nothing here.
    pub fn end(self) {
        if crate::sabotage::is_on("swallow-mistakes") {
            return;
        }
        for (key, node) in &self.entries {
            let near = self.asked.iter().map(|known| (distance(key, known), known)).min();
            let text = match near {
                Some((steps, known)) if is_near(key, steps) || known.contains(key.as_str()) => {
                    format!("is not known; is \"{known}\" meant?")
                }
                _ => format!("is not known; here there can be {}", self.asked.join(", ")),
            };
            self.check.problem(node.at, &self.key(key), text);
        }
    }
}

fn join(path: &str, key: &str) -> String {
    if path.is_empty() {
        key.to_owned()
    } else {
        format!("{path}.{key}")
    }
}

fn string(value: &Value) -> Result<String, String> {
    match value {
        Value::String(text) => Ok(text.clone()),
        other => Err(format!("a string is needed, not {}", other.kind())),
    }
}

fn parse<T: FromStr>(text: &str) -> Result<T, String>
where
    T::Err: std::fmt::Display,
{
    text.parse().map_err(|error| format!("\"{text}\": {error}"))
}

fn within(
    number: Option<u64>,
    bounds: &RangeInclusive<u64>,
    written: impl std::fmt::Display,
) -> Result<u64, String> {
    let outside = || format!("{written} is not within {} and {}", bounds.start(), bounds.end());
    number
        .filter(|number| bounds.contains(number))
        .ok_or_else(outside)
}

/// `"250ms"`, `"30s"`, `"1h30m"`, `"5d"`.
pub(crate) fn duration(text: &str) -> Result<Duration, String> {
    let wrong = || format!("\"{text}\" is no time span; write such as \"250ms\", \"30s\", \"1h30m\", \"5d\"");
    let mut rest = text;
    let mut whole = Duration::ZERO;
    while !rest.is_empty() {
        let (digits, after) = rest.split_at(rest.find(|c: char| !c.is_ascii_digit()).ok_or_else(wrong)?);
        let number: u32 = digits.parse().map_err(|_| wrong())?;
        let (unit, after) = after.split_at(after.find(|c: char| c.is_ascii_digit()).unwrap_or(after.len()));
        let unit = match unit {
            "ms" => Duration::from_millis(1),
            "s" => Duration::from_secs(1),
            "m" => Duration::from_secs(60),
            "h" => Duration::from_secs(3_600),
            "d" => Duration::from_secs(86_400),
            _ => return Err(wrong()),
        };
        whole = unit
            .checked_mul(number)
            .and_then(|span| whole.checked_add(span))
            .ok_or_else(wrong)?;
        rest = after;
    }
    if text.is_empty() { Err(wrong()) } else { Ok(whole) }
}

/// `"500"`, `"64KiB"`, `"25 MiB"`, `"10MB"`.
fn size(text: &str) -> Result<u64, String> {
    let wrong = || format!("\"{text}\" is no size; write such as \"64KiB\", \"25MiB\", \"10GB\"");
    let (digits, unit) = text.split_at(text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len()));
    let number: u64 = digits.parse().map_err(|_| wrong())?;
    let unit: u64 = match unit.trim() {
        "" | "B" => 1,
        "KiB" => 1 << 10,
        "MiB" => 1 << 20,
        "GiB" => 1 << 30,
        "kB" | "KB" => 1_000,
        "MB" => 1_000_000,
        "GB" => 1_000_000_000,
        _ => return Err(wrong()),
    };
    number.checked_mul(unit).ok_or_else(wrong)
}

/// Whether so many steps from the key is what was meant: of a short one nearly anything is two steps away.
fn is_near(key: &str, steps: usize) -> bool {
    steps <= 1 || (steps == 2 && key.len() > 4)
}

/// Letters to change, add, drop, or swap with their neighbours (optimal string alignment).
fn distance(left: &str, right: &str) -> usize {
    let (left, right): (Vec<char>, Vec<char>) = (left.chars().collect(), right.chars().collect());
    let mut rows = vec![(0..=right.len()).collect::<Vec<usize>>()];
    for i in 1..=left.len() {
        let mut row = vec![i];
        for j in 1..=right.len() {
            let change = rows[i - 1][j - 1] + usize::from(left[i - 1] != right[j - 1]);
            let mut steps = change.min(row[j - 1] + 1).min(rows[i - 1][j] + 1);
            if i > 1 && j > 1 && left[i - 1] == right[j - 2] && left[i - 2] == right[j - 1] {
                steps = steps.min(rows[i - 2][j - 2] + 1);
            }
            row.push(steps);
        }
        rows.push(row);
    }
    rows[left.len()][right.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_and_sizes() {
        assert_eq!(duration("1h30m"), Ok(Duration::from_secs(5_400)));
        assert_eq!(duration("250ms"), Ok(Duration::from_millis(250)));
        for wrong in ["", "30", "s", "1 h", "-1s", "1w", "99999999999s"] {
            assert!(duration(wrong).is_err(), "{wrong}");
        }
        assert_eq!(size("25 MiB"), Ok(25 << 20));
        assert_eq!(size("10"), Ok(10));
        for wrong in ["", "MiB", "1.5GiB", "1 TB", "99999999999999999999"] {
            assert!(size(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn near_misses_are_near() {
        assert_eq!(distance("adress", "address"), 1);
        assert_eq!(distance("prot", "port"), 1);
        assert_eq!(distance("", "abc"), 3);
        assert!(distance("tenants", "listener") > 2);
    }
}
