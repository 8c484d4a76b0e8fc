//! The configuration as written: TOML files, included and merged into one tree that remembers where each value stands.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

use toml::Spanned;
use toml::de::{DeTable, DeValue};

/// Files that one configuration may be made of.
const MAX_FILES: usize = 256;

/// Octets a file may have.
const MAX_FILE_BYTES: u64 = 16 << 20;

/// Something to be mended, told as `FILE:LINE:COLUMN: key: what is wrong`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Problem {
    /// The file.
    pub file: PathBuf,
    /// From 1; 0 where the file as a whole is meant.
    pub line: usize,
    /// From 1, in characters.
    pub column: usize,
    /// Path of the key, such as `listener[0].address`; empty where the file does not parse.
    pub key: String,
    /// What is wrong, and what would be right.
    pub text: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.file.display())?;
        if self.line > 0 {
            write!(f, ":{}:{}", self.line, self.column)?;
        }
        if !self.key.is_empty() {
            write!(f, ": {}", self.key)?;
        }
        write!(f, ": {}", self.text)
    }
}

/// Where a value stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct At {
    file: usize,
    offset: usize,
}

/// A value and where it stands.
#[derive(Clone, Debug)]
pub struct Node {
    /// What.
    pub value: Value,
    /// Where.
    pub at: At,
}

/// TOML's values.
#[derive(Clone, Debug)]
pub enum Value {
    Table(BTreeMap<String, Node>),
    Array(Vec<Node>),
    String(String),
    Integer(i64),
    Float(f64),
    Boolean(bool),
    /// No key is a date.
    Date,
}

impl Value {
    /// The type's name, with its article.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Table(_) => "a table",
            Self::Array(_) => "a list",
            Self::String(_) => "a string",
            Self::Integer(_) => "an integer",
            Self::Float(number) if number.is_infinite() => "a number too large",
            Self::Float(_) => "a number with a fraction",
            Self::Boolean(_) => "true or false",
            Self::Date => "a date",
        }
    }
}

/// The files read, for telling places.
#[derive(Debug, Default)]
pub struct Files(Vec<(PathBuf, String)>);

impl Files {
    /// A problem with the value at `at`.
    pub fn problem(&self, at: At, key: impl Into<String>, text: impl Into<String>) -> Problem {
        let Some((file, contents)) = self.0.get(at.file) else {
            return Problem {
                file: PathBuf::new(),
                line: 0,
                column: 0,
                key: key.into(),
                text: text.into(),
            };
        };
        let before = contents.get(..at.offset).unwrap_or(contents);
        let line_begin = before.rfind('\n').map_or(0, |newline| newline + 1);
        Problem {
            file: file.clone(),
            line: before.matches('\n').count() + 1,
            column: before[line_begin..].chars().count() + 1,
            key: key.into(),
            text: text.into(),
        }
    }

    /// The folder of the file a value stands in: relative paths start there.
    pub fn folder(&self, at: At) -> &Path {
        self.0
            .get(at.file)
            .and_then(|(path, _)| path.parent())
            .unwrap_or(Path::new(""))
    }
}

/// Reads `path` and all that it includes.
pub fn read(path: &Path) -> (Files, Node, Vec<Problem>) {
    let mut files = Files::default();
    let mut problems = Vec::new();
    let mut root = Node {
        value: Value::Table(BTreeMap::new()),
        at: At { file: 0, offset: 0 },
    };
    let mut waiting = vec![path.to_owned()];
    while let Some(path) = waiting.pop() {
        if files.0.iter().any(|(known, _)| *known == path) {
            continue;
        }
        if files.0.len() == MAX_FILES {
            problems.push(whole_file(&path, format!("over {MAX_FILES} files are included")));
            break;
        }
        let Some(mut tree) = read_one(&path, &mut files, &mut problems) else {
            continue;
        };
        let mut included = take_includes(&mut tree, &files, &mut problems);
        // In the order of their names, whatever the order of the list they are taken from.
        included.reverse();
        waiting.append(&mut included);
        merge(&mut root, tree, "", &files, &mut problems);
    }
    (files, root, problems)
}

fn whole_file(path: &Path, text: String) -> Problem {
    Problem {
        file: path.to_owned(),
        line: 0,
        column: 0,
        key: String::new(),
        text,
    }
}

fn read_one(path: &Path, files: &mut Files, problems: &mut Vec<Problem>) -> Option<Node> {
    let read = std::fs::metadata(path).and_then(|facts| {
        if facts.len() > MAX_FILE_BYTES {
            return Err(std::io::Error::other(format!("over {MAX_FILE_BYTES} bytes")));
        }
        std::fs::read_to_string(path)
    });
    let text = match read {
        Ok(text) => text,
        Err(error) => {
            problems.push(whole_file(path, format!("can't be read: {error}")));
            return None;
        }
    };
    let file = files.0.len();
    let (table, errors) = DeTable::parse_recoverable(&text);
    let node = convert_table(table.get_ref(), At { file, offset: 0 });
    let spans: Vec<_> = errors
        .iter()
        .map(|error| {
            (
                error.span().map_or(0, |span| span.start),
                error.message().to_owned(),
            )
        })
        .collect();
    files.0.push((path.to_owned(), text));
    for (offset, message) in spans {
        problems.push(files.problem(At { file, offset }, "", message.replace('\n', " ")));
    }
    Some(node)
}

fn convert_table(table: &DeTable<'_>, at: At) -> Node {
    let entries = table.iter().map(|(key, value)| {
        // A table is where its header is, any other value where it begins.
        let place = if matches!(value.get_ref(), DeValue::Table(_)) {
            key.span()
        } else {
            value.span()
        };
        (
            key.get_ref().to_string(),
            convert(
                value,
                At {
                    offset: place.start,
                    ..at
                },
            ),
        )
    });
    Node {
        value: Value::Table(entries.collect()),
        at,
    }
}

fn convert(value: &Spanned<DeValue<'_>>, at: At) -> Node {
    let integer = |text: &str, radix| i64::from_str_radix(&text.replace('_', ""), radix);
    let value = match value.get_ref() {
        DeValue::Table(table) => return convert_table(table, at),
        DeValue::Array(list) => Value::Array(
            list.iter()
                .map(|item| {
                    convert(
                        item,
                        At {
                            offset: item.span().start,
                            ..at
                        },
                    )
                })
                .collect(),
        ),
        DeValue::String(text) => Value::String(text.to_string()),
        DeValue::Integer(number) => {
            integer(number.as_str(), number.radix()).map_or(Value::Float(f64::INFINITY), Value::Integer)
        }
        DeValue::Float(number) => Value::Float(number.as_str().replace('_', "").parse().unwrap_or(f64::NAN)),
        DeValue::Boolean(yes) => Value::Boolean(*yes),
        DeValue::Datetime(_) => Value::Date,
    };
    Node { value, at }
}

/// Takes `include` out of a file's tree: a list of paths, relative to the file, `*` allowed in the last part.
fn take_includes(tree: &mut Node, files: &Files, problems: &mut Vec<Problem>) -> Vec<PathBuf> {
    let Value::Table(entries) = &mut tree.value else {
        return Vec::new();
    };
    let Some(include) = entries.remove("include") else {
        return Vec::new();
    };
    let Value::Array(patterns) = &include.value else {
        problems.push(files.problem(
            include.at,
            "include",
            "a list of file names is needed, such as [\"conf.d/*.toml\"]",
        ));
        return Vec::new();
    };
    let mut found = Vec::new();
    for (number, pattern) in patterns.iter().enumerate() {
        let matched = match &pattern.value {
            Value::String(text) => matching(&files.folder(pattern.at).join(text)),
            other => Err(format!("a file name is needed, not {}", other.kind())),
        };
        match matched {
            Ok(mut paths) => found.append(&mut paths),
            Err(why) => problems.push(files.problem(pattern.at, format!("include[{number}]"), why)),
        }
    }
    found
}

fn matching(pattern: &Path) -> Result<Vec<PathBuf>, String> {
    let name = pattern
        .file_name()
        .and_then(|name| name.to_str())
        .ok_or("a file name is needed")?;
    let Some((before, after)) = name.split_once('*') else {
        return Ok(vec![pattern.to_owned()]);
    };
    let folder = pattern.parent().unwrap_or(Path::new("."));
    let entries = std::fs::read_dir(folder).map_err(|error| format!("{}: {error}", folder.display()))?;
    let fits = |path: &PathBuf| {
        let name = path
            .file_name()
            .and_then(|name| name.to_str())
            .unwrap_or_default();
        name.len() >= before.len() + after.len()
            && name.starts_with(before)
            && name.ends_with(after)
            && !name.starts_with('.')
    };
    let mut paths: Vec<_> = entries
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(fits)
        .collect();
    paths.sort();
    Ok(paths)
}

/// Merges tables key by key and appends lists of tables; anything else said twice is a mistake.
fn merge(into: &mut Node, from: Node, path: &str, files: &Files, problems: &mut Vec<Problem>) {
    match (&mut into.value, from.value) {
        (Value::Table(known), Value::Table(new)) => {
            for (key, node) in new {
                let path = if path.is_empty() {
                    key.clone()
                } else {
                    format!("{path}.{key}")
                };
                match known.get_mut(&key) {
                    Some(before) => merge(before, node, &path, files, problems),
                    None => drop(known.insert(key, node)),
                }
            }
        }
        (Value::Array(known), Value::Array(mut new))
            if known
                .iter()
                .chain(&new)
                .all(|item| matches!(item.value, Value::Table(_))) =>
        {
            known.append(&mut new);
        }
        _ => {
            let first = files.problem(into.at, "", "");
            let text = format!(
                "set before at {}:{}:{}; one of the two must go",
                first.file.display(),
                first.line,
                first.column
            );
            problems.push(files.problem(from.at, path, text));
        }
    }
}
