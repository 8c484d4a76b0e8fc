//! Bounce classes: from a reply to what it means, and to whether it is the end.

use std::num::NonZeroU16;
use std::sync::Arc;

use serde::Deserialize;

use super::pattern::{CodePattern, Said, TextPattern};
use super::providers::{Advice, Provider};

/// What a reply means.
#[derive(Clone, Debug, PartialEq)]
pub struct Class {
    /// A word for logs, metrics and reports.
    pub name: Arc<str>,
    /// For people.
    pub meaning: Arc<str>,
    /// What follows from a 4yz of the class.
    pub temporary: Then,
    /// What follows from a 5yz of the class.
    pub permanent: Then,
}

/// What follows from a reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Then {
    /// Another attempt.
    Retry,
    /// No other attempt.
    End,
}

/// A place in [`Classes`]' list. So small, since every outcome has one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClassId(NonZeroU16);

impl ClassId {
    fn new(index: usize) -> Option<Self> {
        let number = u16::try_from(index + 1).ok();
        number.and_then(NonZeroU16::new).map(Self)
    }

    fn index(self) -> usize {
        usize::from(self.0.get()) - 1
    }
}

/// A rule of the configuration.
#[derive(Clone, Debug)]
pub struct Rule {
    /// One of these; empty: any code, or none.
    pub codes: Vec<CodePattern>,
    /// One of these; empty: any text.
    pub text: Vec<TextPattern>,
    /// Of hosts of this provider; `None`: of any.
    pub provider: Option<Arc<str>>,
    /// What it means.
    pub class: ClassId,
    /// What it asks for.
    pub advice: Option<Advice>,
}

/// All classes, and how replies are told apart.
#[derive(Clone, Debug)]
pub struct Classes {
    all: Vec<Class>,
    own: Vec<Rule>,
    table: Arc<Table>,
}

/// `classes.toml`, but for the classes themselves.
#[derive(Debug)]
struct Table {
    sure: Vec<(CodePattern, ClassId)>,
    text: Vec<(TextPattern, ClassId)>,
    unsure: Vec<(CodePattern, ClassId)>,
    reply: Vec<(CodePattern, ClassId)>,
    other: ClassId,
}

impl Default for Table {
    /// Nothing is known.
    fn default() -> Self {
        Self {
            sure: Vec::new(),
            text: Vec::new(),
            unsure: Vec::new(),
            reply: Vec::new(),
            other: ClassId(NonZeroU16::MIN),
        }
    }
}

impl Classes {
    /// Reads the text of `classes.toml`.
    pub(super) fn read(text: &str) -> Result<Self, String> {
        let raw: RawTable = toml::from_str(text).map_err(|error| error.to_string())?;
        let all = raw.class.into_iter().map(|class| Class {
            name: class.name.into(),
            meaning: class.meaning.into(),
            temporary: Then::Retry,
            permanent: Then::End,
        });
        let mut classes = Self {
            all: all.collect(),
            own: Vec::new(),
            table: Arc::default(),
        };
        let mut table = Table {
            other: classes.known("other")?,
            ..Table::default()
        };
        for (list, is_reply) in [(raw.code, false), (raw.reply, true)] {
            for entry in list {
                let class = classes.known(&entry.class)?;
                let to = match (is_reply, entry.sure) {
                    (true, _) => &mut table.reply,
                    (false, true) => &mut table.sure,
                    (false, false) => &mut table.unsure,
                };
                for code in &entry.codes {
                    to.push((code.parse().map_err(|why| format!("{code} {why}"))?, class));
                }
            }
        }
        for entry in raw.text {
            let class = classes.known(&entry.class)?;
            for text in &entry.text {
                let pattern = text.parse().map_err(|why| format!("\"{text}\" {why}"))?;
                table.text.push((pattern, class));
            }
        }
        classes.table = Arc::new(table);
        Ok(classes)
    }

    /// Every class.
    pub fn all(&self) -> &[Class] {
        &self.all
    }

    /// The place of a class.
    pub fn find(&self, name: &str) -> Option<ClassId> {
        let place = self.all.iter().position(|class| *class.name == *name);
        place.and_then(ClassId::new)
    }

    pub(super) fn known(&self, name: &str) -> Result<ClassId, String> {
        self.find(name)
            .ok_or_else(|| format!("there is no class \"{name}\""))
    }

    /// Puts a class in place of the one of its name, or beside the others.
    pub fn set(&mut self, class: Class) {
        match self.find(&class.name) {
            Some(id) => self.all[id.index()] = class,
            None => self.all.push(class),
        }
    }

    /// The rules of the configuration, in their order.
    pub fn rules(&self) -> &[Rule] {
        &self.own
    }

    /// Adds a rule behind the others of the configuration.
    pub fn add(&mut self, rule: Rule) {
        self.own.push(rule);
    }

    /// The class of what was said, by a host of this provider if it is one, and what it asks for, where that is known.
    pub(super) fn look_up<'a>(
        &'a self,
        said: &str,
        provider: Option<&'a Provider>,
    ) -> (ClassId, Option<&'a Advice>) {
        let said = Said::read(said);
        let plain = said.plain();
        self.of(&said, &plain, provider)
    }

    /// What is known of a class.
    pub fn get(&self, id: ClassId) -> &Class {
        // Every place is one of the list: it only grows. A place in another list may be none of this one.
        let class = self.all.get(id.index());
        class.unwrap_or(&self.all[self.table.other.index()])
    }

    fn of<'a>(
        &'a self,
        said: &Said<'_>,
        plain: &str,
        provider: Option<&'a Provider>,
    ) -> (ClassId, Option<&'a Advice>) {
        let table = &*self.table;
        let by_code = |list: &[(CodePattern, ClassId)]| {
            let mut list = list.iter();
            list.find(|(code, _)| code.fits(said)).map(|&(_, class)| class)
        };
        let fits = |rule: &&Rule| {
            let of_provider = rule
                .provider
                .as_ref()
                .is_none_or(|name| provider.is_some_and(|provider| provider.name == *name));
            of_provider && both_fit(&rule.codes, &rule.text, said, plain)
        };
        if let Some(rule) = self.own.iter().find(fits) {
            return (rule.class, rule.advice.as_ref());
        }
        let mut replies = provider.map_or(&[][..], |provider| &provider.replies).iter();
        if let Some(reply) = replies.find(|reply| both_fit(&reply.codes, &reply.text, said, plain)) {
            return (reply.class, reply.advice.as_ref());
        }
        let by_text = || {
            let mut text = table.text.iter();
            text.find(|(text, _)| text.fits(plain)).map(|&(_, class)| class)
        };
        let class = by_code(&table.sure)
            .or_else(by_text)
            .or_else(|| by_code(&table.unsure))
            .or_else(|| by_code(&table.reply))
            .unwrap_or(table.other);
        (class, None)
    }
}

fn both_fit(codes: &[CodePattern], text: &[TextPattern], said: &Said<'_>, plain: &str) -> bool {
    (codes.is_empty() || codes.iter().any(|code| code.fits(said)))
        && (text.is_empty() || text.iter().any(|text| text.fits(plain)))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawTable {
    class: Vec<RawClass>,
    code: Vec<RawCode>,
    reply: Vec<RawCode>,
    text: Vec<RawText>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawClass {
    name: String,
    meaning: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawCode {
    codes: Vec<String>,
    class: String,
    #[serde(default)]
    sure: bool,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawText {
    class: String,
    text: Vec<String>,
}

#[cfg(test)]
mod tests;
