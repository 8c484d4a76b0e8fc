//! What the configuration adds to the tables of classes and providers: `[[provider]]`, `[[bounce_class]]`, `[[bounce_rule]]`.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use crate::shaping::classes::{Class, Classes, Rule, Then};
use crate::shaping::pattern::{CodePattern, TextPattern};
use crate::shaping::providers::{After, HostPattern, Provider, Providers, SUSPENDED};
use crate::shaping::{Advice, Reach, Shaping};

use super::check::is_name;
use super::delivery::own_limits;
use super::section::{Check, Section, Spot};

/// Classes there may be beside the shipped ones: each is a value of a label of metrics.
const MAX_CLASSES: usize = 50;

/// Rules there may be: each is looked at for each reply that refuses something.
const MAX_RULES: usize = 1_000;

/// Characters of a class's meaning.
const MAX_MEANING: usize = 200;

/// Reads all three. `shipped_limits`: those of the shipped table count.
pub(super) fn shaping(check: &Check<'_>, top: &mut Section<'_>, shipped_limits: bool) -> Shaping {
    let shipped = Shaping::shipped();
    let providers = providers(check, top, &shipped.providers, shipped_limits);
    let mut classes = classes(check, top, &shipped.classes);
    rules(check, top, &mut classes, &providers);
    Shaping { classes, providers }
}

fn providers(
    check: &Check<'_>,
    top: &mut Section<'_>,
    shipped: &Providers,
    shipped_limits: bool,
) -> Providers {
    let mut all: Vec<Provider> = shipped
        .all()
        .iter()
        .map(|provider| (**provider).clone())
        .collect();
    for provider in &mut all {
        provider.without_shipped = !shipped_limits;
    }
    let shipped = all.len();
    let mut named = BTreeSet::new();
    // Hosts that the configuration names, each with the place of its provider.
    let mut hosts: Vec<(HostPattern, usize)> = Vec::new();
    for (number, mut section) in top.sections("provider").into_iter().enumerate() {
        let name = section.string("name");
        let what = "a shipped provider, such as \"google\", or a name for one of your own";
        let name = section.required("name", name, what);
        let says_mx = section.has("mx") && !section.is_empty_list("mx");
        let mx = section.list::<HostPattern>("mx").unwrap_or_default();
        let own = own_limits(section.section("limits"));
        let is_known = |known: &Provider| name.as_ref().is_none_or(|name| *known.name == *name.value);
        let known = all[..shipped].iter().position(is_known);
        // Of one's own there are none.
        let with_shipped = known.is_some() && section.boolean("shipped_limits", shipped_limits);
        let Some(name) = name else {
            section.end();
            continue;
        };
        if !named.insert(name.value.clone()) {
            check.problem(
                name.at,
                &name.key,
                format!("there is another \"{}\" already", name.value),
            );
        }
        if known.is_none() {
            check_own(check, &section, &name, says_mx);
        }
        section.end();
        let at = known.unwrap_or_else(|| {
            all.push(Provider::new(name.value.as_str().into()));
            all.len() - 1
        });
        for spot in mx {
            if hosts.iter().any(|(known, _)| *known == spot.value) {
                let text = format!("{} is another provider's already", spot.value);
                check.problem(spot.at, &spot.key, text);
            }
            hosts.push((spot.value.clone(), at));
            all[at].mx.push(spot.value);
        }
        let provider = &mut all[at];
        provider.without_shipped = !with_shipped;
        provider.own = own;
        provider.written = Some(number);
    }
    // What the configuration says of a host goes before what is shipped.
    for (number, provider) in all.iter_mut().enumerate() {
        let is_anothers = |pattern: &HostPattern| {
            let mut named = hosts.iter();
            named.any(|(host, of)| host == pattern && *of != number)
        };
        provider.mx.retain(|pattern| !is_anothers(pattern));
    }
    Providers::new(all)
}

/// A provider that is not shipped.
fn check_own(check: &Check<'_>, section: &Section<'_>, name: &Spot<String>, says_mx: bool) {
    if !is_name(&name.value) {
        let text = "a provider's name is made of letters, digits, '-', '_' and '.', 64 at the most";
        check.problem(name.at, &name.key, text);
    }
    if !says_mx {
        let text = "is needed for a provider of your own: its MX hosts, such as [\"*.example.net\"]; docs/shaping.md lists those \
                    that are shipped";
        section.problem("mx", text);
    }
}

fn classes(check: &Check<'_>, top: &mut Section<'_>, shipped: &Classes) -> Classes {
    let mut classes = shipped.clone();
    let mut named = BTreeSet::new();
    let words = [("retry", Then::Retry), ("end", Then::End)];
    for mut section in top.sections("bounce_class") {
        let name = section.string("name");
        let what = "a shipped class, such as \"mailbox-full\", or one of your own";
        let name = section.required("name", name, what);
        let meaning = section.parsed::<Meaning>("meaning");
        let temporary = section.word("temporary", &words, Then::Retry);
        let permanent = section.word("permanent", &words, Then::End);
        if classes.all().len() == shipped.all().len() + MAX_CLASSES {
            section.problem(
                "",
                format!("is one too many: there may be {MAX_CLASSES} of your own"),
            );
        }
        section.end();
        let Some(name) = name else { continue };
        if !is_name(&name.value) {
            let text = "a class's name is made of letters, digits, '-', '_' and '.', 64 at the most";
            check.problem(name.at, &name.key, text);
        }
        if !named.insert(name.value.clone()) {
            check.problem(
                name.at,
                &name.key,
                format!("there is another \"{}\" already", name.value),
            );
        }
        let known = classes
            .find(&name.value)
            .map(|id| classes.get(id).meaning.clone());
        classes.set(Class {
            name: name.value.as_str().into(),
            meaning: meaning.map_or_else(|| known.unwrap_or_default(), |spot| spot.value.0),
            temporary,
            permanent,
        });
    }
    classes
}

fn rules(check: &Check<'_>, top: &mut Section<'_>, classes: &mut Classes, providers: &Providers) {
    for (number, mut section) in top.sections("bounce_rule").into_iter().enumerate() {
        let class = section.string("class");
        let class = section.required(
            "class",
            class,
            "what such a reply means, such as \"mailbox-full\"",
        );
        let has = |key| section.has(key) && !section.is_empty_list(key);
        let says_something = has("codes") || has("text");
        let codes = section.list::<CodePattern>("codes");
        let text = section.list::<TextPattern>("text");
        let provider = section.string("provider");
        let advice = advice(check, &mut section, number);
        if let Some(spot) = &provider
            && !providers.all().iter().any(|known| *known.name == *spot.value)
        {
            let text = format!(
                "there is no provider \"{}\"; docs/shaping.md lists those that are shipped, and your own would be a \
                 [[provider]] of that name",
                spot.value
            );
            check.problem(spot.at, &spot.key, text);
        }
        if !says_something {
            section.problem(
                "",
                "fits every reply: name codes, such as [\"5.2.2\"], or text, such as [\"mailbox*full\"]",
            );
        }
        if number == MAX_RULES {
            section.problem(
                "",
                format!("is one too many: there may be {MAX_RULES} at the most"),
            );
        }
        section.end();
        let id = class.and_then(|spot| {
            let id = classes.find(&spot.value);
            if id.is_none() {
                let all: Vec<_> = classes.all().iter().map(|class| &*class.name).collect();
                let text = format!(
                    "there is no class \"{}\" among {}; it would be a [[bounce_class]] of that name",
                    spot.value,
                    all.join(", ")
                );
                check.problem(spot.at, &spot.key, text);
            }
            id
        });
        let values = |list: Option<Vec<Spot<TextPattern>>>| -> Vec<_> {
            list.unwrap_or_default()
                .into_iter()
                .map(|spot| spot.value)
                .collect()
        };
        if let Some(class) = id {
            classes.add(Rule {
                codes: codes
                    .unwrap_or_default()
                    .into_iter()
                    .map(|spot| spot.value)
                    .collect(),
                text: values(text),
                provider: provider.map(|spot| Arc::from(spot.value)),
                class,
                advice,
            });
        }
    }
}

/// What replies that a rule fits ask for.
fn advice(check: &Check<'_>, section: &mut Section<'_>, number: usize) -> Option<Advice> {
    let slow_down = section.boolean("slow_down", false);
    let (says_suspend, says_time) = (section.has("suspend"), section.has("for"));
    let suspend = section.parsed::<Reach>("suspend");
    let time = section.parsed::<Span>("for");
    let after = section.parsed::<After>("after");
    if let Some(after) = after.as_ref().filter(|_| !says_suspend) {
        let text = "says after how many replies there is a suspension, and there is no suspend";
        check.problem(after.at, &after.key, text);
    }
    // There are no more than MAX_RULES.
    let kind = u32::try_from(number).unwrap_or(u32::MAX);
    match (suspend, time) {
        (Some(reach), Some(_)) if slow_down => {
            check.problem(reach.at, &reach.key, "is one or the other: slow_down, or suspend");
            None
        }
        (Some(reach), Some(time)) => Some(Advice::Suspend {
            reach: reach.value,
            time: time.value.0,
            after: after.map(|after| After { kind, ..after.value }),
            ruled: true,
        }),
        // One that does not read is told of already.
        (Some(reach), None) if !says_time => {
            check.problem(reach.at, &reach.key, "needs to say for how long: for = \"5m\"");
            None
        }
        (None, Some(time)) if !says_suspend => {
            let text = "says how long suspend is for, and there is no suspend";
            check.problem(time.at, &time.key, text);
            None
        }
        (None, None) => slow_down.then_some(Advice::SlowDown),
        _ => None,
    }
}

/// How long a rule suspends mail for.
struct Span(Duration);

impl std::str::FromStr for Span {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let span = super::parse_duration(text)?;
        let fits = SUSPENDED.contains(&span);
        fits.then_some(Self(span))
            .ok_or_else(|| "is not within 1s and 1d".to_owned())
    }
}

/// What a class means, for people.
struct Meaning(Arc<str>);

impl std::str::FromStr for Meaning {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let fits = (1..=MAX_MEANING).contains(&text.chars().count()) && !text.chars().any(char::is_control);
        fits.then(|| Self(text.into()))
            .ok_or_else(|| format!("a meaning is a line of 1 to {MAX_MEANING} characters"))
    }
}
