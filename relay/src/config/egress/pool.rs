//! Pools: sources that serve the same mail, and what part of it each of them has.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::{Egress, Source, check_name};
use crate::config::section::{Check, Section, Spot};
use crate::config::streams::Streams;

/// Pools of one configuration.
pub const MAX_POOLS: usize = 100;

/// The heaviest a member of a pool may be.
const MAX_WEIGHT: u64 = 10_000;

/// Sources that serve the same mail.
#[derive(Clone, Debug, PartialEq)]
pub struct Pool {
    /// As rules, and route groups in the store, say it.
    pub name: Arc<str>,
    /// Under which name it is noted what each source has sent: that of the pool, and whose mail it is about.
    pub account: Arc<str>,
    /// At least one, each source once.
    pub members: Vec<Member>,
    /// What it is for the mail of some tenants and streams, and for all other, where its sources have weights of their own for some.
    of_mail: BTreeMap<Whose, Arc<Pool>>,
}

/// Mail of a tenant that is named, in a stream that is; `None`: of any other.
type Whose = (Option<Arc<str>>, Option<Arc<str>>);

/// Sources of all that a pool is for tenants and streams, some 100 octets each.
const MAX_OF_MAIL: usize = 100_000;

/// A source in a pool.
#[derive(Clone, Debug, PartialEq)]
pub struct Member {
    /// Which.
    pub source: Arc<Source>,
    /// Its share of the pool's mail, beside the weights of the others; 0: it has none but of those that are named.
    pub weight: u32,
    /// The same of the mail of tenants, by name; before that of streams.
    pub tenants: BTreeMap<Arc<str>, u32>,
    /// The same of the mail of streams.
    pub streams: BTreeMap<Arc<str>, u32>,
}

impl Member {
    /// Its weight for mail that is told by what of it is named.
    fn weight_of(&self, (tenant, stream): &Whose) -> u32 {
        let of_tenant = tenant.as_ref().and_then(|tenant| self.tenants.get(tenant));
        let of_stream = || stream.as_ref().and_then(|stream| self.streams.get(stream));
        of_tenant.or_else(of_stream).copied().unwrap_or(self.weight)
    }
}

impl Pool {
    /// One of these, which are each another source.
    pub fn new(name: Arc<str>, members: Vec<Member>) -> Self {
        let mut pool = Self {
            account: name.clone(),
            name,
            members,
            of_mail: BTreeMap::new(),
        };
        let (tenants, streams) = pool.named();
        if tenants.is_empty() && streams.is_empty() {
            return pool;
        }
        let with_others = |names: BTreeSet<Arc<str>>| [None].into_iter().chain(names.into_iter().map(Some));
        let mut count = 0;
        for tenant in with_others(tenants) {
            for stream in with_others(streams.clone()) {
                let whose = (tenant.clone(), stream);
                let part = pool.part(&whose);
                count += part.members.len();
                // The check tells of it.
                if count > MAX_OF_MAIL {
                    pool.of_mail.clear();
                    return pool;
                }
                pool.of_mail.insert(whose, Arc::new(part));
            }
        }
        pool
    }

    /// What it is for the mail of a tenant, in a stream; what is not known is of none that is named.
    pub fn for_mail(self: &Arc<Self>, tenant: Option<&str>, stream: Option<&str>) -> &Arc<Self> {
        if self.of_mail.is_empty() {
            return self;
        }
        let (tenant, stream): Whose = (tenant.map(Arc::from), stream.map(Arc::from));
        let all = [
            (tenant.clone(), stream.clone()),
            (tenant, None),
            (None, stream),
            (None, None),
        ];
        all.iter()
            .find_map(|whose| self.of_mail.get(whose))
            .unwrap_or(self)
    }

    /// Tenants and streams for whose mail some source has a weight of its own.
    pub fn named(&self) -> (BTreeSet<Arc<str>>, BTreeSet<Arc<str>>) {
        let tenants = self
            .members
            .iter()
            .flat_map(|member| member.tenants.keys().cloned());
        let streams = self
            .members
            .iter()
            .flat_map(|member| member.streams.keys().cloned());
        (tenants.collect(), streams.collect())
    }

    /// Its sources that have a share of some mail, with that.
    fn part(&self, whose: &Whose) -> Self {
        let member = |member: &Member| Member {
            source: member.source.clone(),
            weight: member.weight_of(whose),
            tenants: BTreeMap::new(),
            streams: BTreeMap::new(),
        };
        let members = self.members.iter().map(member);
        Self {
            name: self.name.clone(),
            account: format!("{}{}", self.name, words(whose)).into(),
            members: members.filter(|member| member.weight > 0).collect(),
            of_mail: BTreeMap::new(),
        }
    }
}

/// Whose mail it is. Neither name has a blank.
fn words((tenant, stream): &Whose) -> String {
    let tenant = tenant.as_ref().map(|tenant| format!(" tenant {tenant}"));
    let stream = stream.as_ref().map(|stream| format!(" stream {stream}"));
    [tenant, stream].into_iter().flatten().collect()
}

/// What a source's weights may name.
pub(super) struct Named<'a> {
    pub(super) tenants: BTreeSet<String>,
    pub(super) streams: &'a Streams,
}

/// Reads `[[pool]]`.
pub(super) fn pools(
    check: &Check<'_>,
    top: &mut Section<'_>,
    egress: &Egress,
    named: &Named<'_>,
) -> Vec<Arc<Pool>> {
    let mut all = Vec::new();
    let mut taken = BTreeSet::new();
    for (number, mut section) in top.sections("pool").into_iter().enumerate() {
        let name = section.string("name");
        let name = section.required(
            "name",
            name,
            "what [[route]] and delivery.pool call it, such as \"bulk\"",
        );
        if let Some(spot) = &name {
            check_name(check, spot, "pool", &mut taken);
        }
        if number == MAX_POOLS {
            section.problem("", format!("is one too many: there may be {MAX_POOLS} pools"));
        }
        let entries = section.sections_or_strings("sources", "name");
        if entries.is_empty() {
            let what =
                "at least one, such as [\"out1\"] or [{ name = \"out1\", weight = 3 }, { name = \"out2\" }]";
            section.required::<()>("sources", None, what);
        }
        let mut members: Vec<Member> = Vec::new();
        for entry in entries {
            let Some(member) = member(check, entry, egress, (&members, named)) else {
                continue;
            };
            members.push(member);
        }
        let pool = name.map(|name| Pool::new(name.value.into(), members));
        if let Some(pool) = &pool {
            check_shares(&section, pool);
        }
        section.end();
        all.extend(pool.map(Arc::new));
    }
    all
}

/// Tells where the weights leave some mail without a source.
fn check_shares(section: &Section<'_>, pool: &Pool) {
    // Told already.
    if pool.members.is_empty() {
        return;
    }
    let (tenants, streams) = pool.named();
    if !(tenants.is_empty() && streams.is_empty()) && pool.of_mail.is_empty() {
        let text = "name too many tenants and streams, each of which is a pool of its own: use several pools and [[route]]";
        return section.problem("sources", text);
    }
    let nobodys = |part: &&(&Whose, &Arc<Pool>)| part.1.members.is_empty();
    if let Some((whose, _)) = pool.of_mail.iter().find(|part| nobodys(&part)) {
        let whose = match words(whose) {
            words if words.is_empty() => " that no weight names".to_owned(),
            words => format!(" of{words}"),
        };
        let text = format!("have the weight 0, all of them, for mail{whose}: it would go from nowhere");
        section.problem("sources", text);
    }
}

/// Weights for the mail of some tenants, or streams.
fn own_weights(
    section: &mut Section<'_>,
    key: &'static str,
    tell: impl Fn(&Spot<String>),
) -> BTreeMap<Arc<str>, u32> {
    let mut weights = BTreeMap::new();
    for (name, spot) in section.integers(key, 0..=MAX_WEIGHT).unwrap_or_default() {
        let value = spot.value as u32;
        tell(&Spot {
            value: name.clone(),
            at: spot.at,
            key: spot.key,
        });
        weights.insert(name.into(), value);
    }
    weights
}

fn member(
    check: &Check<'_>,
    mut section: Section<'_>,
    egress: &Egress,
    (others, named): (&[Member], &Named<'_>),
) -> Option<Member> {
    let name = section.string("name");
    let name = section.required("name", name, "a source's name");
    let tenants = own_weights(&mut section, "tenants", |spot| {
        if !named.tenants.contains(&spot.value) {
            let text = format!(
                "there is no tenant \"{0}\"; it would be a table [tenants.{0}]",
                spot.value
            );
            check.problem(spot.at, &spot.key, text);
        }
    });
    let streams = own_weights(&mut section, "streams", |spot| named.streams.check(check, spot));
    // None but of those that it names.
    let least = u64::from(tenants.is_empty() && streams.is_empty());
    let weight = section.integer("weight", least..=MAX_WEIGHT, 1) as u32;
    section.end();
    let name = name?;
    let Some(source) = egress.source(&name.value) else {
        let text = format!(
            "there is no source \"{0}\"; it would be a [[source]] with name = \"{0}\"",
            name.value
        );
        check.problem(name.at, &name.key, text);
        return None;
    };
    if others.iter().any(|other| other.source.name == source.name) {
        let text = format!(
            "\"{}\" is in the pool already; its weight says how much it sends",
            name.value
        );
        check.problem(name.at, &name.key, text);
        return None;
    }
    Some(Member {
        source: source.clone(),
        weight,
        tenants,
        streams,
    })
}
