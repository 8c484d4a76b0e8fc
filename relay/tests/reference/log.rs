//! The lines that are logged, read from the source: every event, with its fields.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

use proc_macro2::{TokenStream, TokenTree};
use syn::visit::Visit;

use super::cell;

/// What a field says, wherever it stands.
const FIELDS: &str = include_str!("fields.txt");

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Line {
    level: &'static str,
    message: String,
    fields: Vec<String>,
}

#[derive(Default)]
struct Found(BTreeSet<Line>);

impl<'ast> Visit<'ast> for Found {
    fn visit_item_mod(&mut self, module: &'ast syn::ItemMod) {
        let is_test = module.attrs.iter().any(|attribute| {
            attribute.path().is_ident("cfg")
                && attribute
                    .parse_args::<syn::Path>()
                    .is_ok_and(|path| path.is_ident("test"))
        });
        if !is_test {
            syn::visit::visit_item_mod(self, module);
        }
    }

    fn visit_macro(&mut self, called: &'ast syn::Macro) {
        let path = called.path.segments.iter().map(|part| part.ident.to_string());
        if let [of, level] = &path.collect::<Vec<_>>()[..]
            && of == "tracing"
        {
            self.note(level, called.tokens.clone());
        } else {
            self.scan(called.tokens.clone());
        }
    }
}

impl Found {
    fn note(&mut self, level: &str, tokens: TokenStream) {
        let level = ["error", "warn", "info", "debug"]
            .into_iter()
            .find(|known| level == *known);
        self.0.extend(level.map(|level| line(level, tokens)));
    }

    /// What stands in other macros, such as `select!`, is no syntax tree: it is looked through for `tracing::level!(…)`.
    fn scan(&mut self, tokens: TokenStream) {
        let tokens: Vec<_> = tokens.into_iter().collect();
        for (at, token) in tokens.iter().enumerate() {
            let TokenTree::Group(group) = token else { continue };
            let before: Vec<_> = tokens[at.saturating_sub(5)..at]
                .iter()
                .map(ToString::to_string)
                .collect();
            match &before[..] {
                [of, _, _, level, bang] if of == "tracing" && bang == "!" => self.note(level, group.stream()),
                _ => self.scan(group.stream()),
            }
        }
    }
}

fn line(level: &'static str, tokens: TokenStream) -> Line {
    let mut parts = vec![Vec::new()];
    for token in tokens {
        match token {
            TokenTree::Punct(comma) if comma.as_char() == ',' => parts.push(Vec::new()),
            token => parts.last_mut().unwrap().push(token),
        }
    }
    let (mut message, mut fields) = (String::new(), Vec::new());
    for part in parts {
        let mut names = part.iter().filter(|token| !matches!(token, TokenTree::Punct(_)));
        match names.next() {
            Some(TokenTree::Ident(name)) => fields.push(name.to_string()),
            Some(TokenTree::Literal(text)) if message.is_empty() => {
                message = syn::parse_str::<syn::LitStr>(&text.to_string()).unwrap().value();
            }
            _ => {}
        }
    }
    Line {
        level,
        message,
        fields,
    }
}

pub fn log() -> String {
    let mut found = Found::default();
    super::each_source(&mut |text| found.visit_file(&syn::parse_file(text).unwrap()));
    assert!(found.0.len() > 60, "{:?}", found.0);
    let meanings: BTreeMap<&str, &str> = FIELDS.lines().filter_map(|line| line.split_once(": ")).collect();
    let mut used = BTreeSet::new();
    let mut text = "\n## Log\n\nTo standard error, as text or (`log.format = \"json\"`) one JSON object a line with `timestamp`, `level`, `message` \
        and the fields. `log.level` says how much.\n\n| line | level | fields |\n|---|---|---|\n"
        .to_owned();
    let mut lines: Vec<_> = found.0.into_iter().collect();
    lines.sort_by(|a, b| (&a.message, a.level).cmp(&(&b.message, b.level)));
    for line in &lines {
        let fields: Vec<_> = line.fields.iter().map(|field| format!("`{field}`")).collect();
        used.extend(line.fields.iter().map(String::as_str));
        writeln!(
            text,
            "| {} | {} | {} |",
            cell(&line.message),
            line.level,
            fields.join(", ")
        )
        .unwrap();
    }
    text.push_str("\n| field | meaning |\n|---|---|\n");
    for field in &used {
        let meaning = meanings.get(field);
        let meaning = meaning
            .unwrap_or_else(|| panic!("relay/tests/reference/fields.txt does not say what `{field}` is"));
        writeln!(text, "| `{field}` | {} |", cell(meaning)).unwrap();
    }
    if let Some(unused) = meanings.keys().find(|field| !used.contains(**field)) {
        panic!("relay/tests/reference/fields.txt: nothing logs `{unused}`");
    }
    text
}
