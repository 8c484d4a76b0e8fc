//! What replies have taught: listed, and changed by operators.

use std::sync::Arc;

use admin_api::adjust::{
    Adjustment, AdjustmentKind, AdjustmentList, AdjustmentsQuery, EndAdjustment, Ended, Scope, SetAdjustment,
};
use admin_api::{Caller, ControlError, Time};
use mail_core::{Domain, Timestamp};
use queue::{AdjustmentKey, AdjustmentKind as Kind, AdjustmentRecord, MAX_ADJUSTMENTS, Queue, ReadError};

use crate::config::egress::DEFAULT_SOURCE;

use super::QueueControl;
use super::operate::{alone, end, reason, store};

/// Adjustments in a page, unless said.
const PAGE: usize = 100;

/// Records read at a time.
const READ: usize = 1_000;

/// Connections, and messages a second, that an operator may limit a lane to.
const MAX_CONNECTIONS: u32 = 100_000;
const RATES: std::ops::RangeInclusive<f64> = 0.001..=1_000_000.0;

/// How the site of a smart host begins; no name of a host has a blank.
const SMART_HOST: &str = "smart host ";

impl QueueControl {
    pub(super) async fn list_adjustments(
        &self,
        query: AdjustmentsQuery,
    ) -> Result<AdjustmentList, ControlError> {
        let after = query.after.as_deref().map(cursor).transpose()?;
        let now = self.clock.now();
        self.read(move |queue| list(queue, &query, after, now)).await
    }

    pub(super) async fn set_adjustment(
        &self,
        set: SetAdjustment,
        by: Caller,
    ) -> Result<Adjustment, ControlError> {
        let (key, now) = (key(&set)?, self.clock.now());
        self.check_names(&key.scope)?;
        let cause = reason(&set.reason)?.to_owned();
        let until = end(set.until, set.for_seconds, now)?;
        let _one = alone(&self.suspending).await?;
        let record = AdjustmentRecord {
            since: now,
            changed: now,
            until,
            connections: set.connections,
            rate: set.messages_per_second,
            refused: None,
            cause,
            host: None,
            class: None,
            by: by.0.to_string(),
            key,
        };
        self.queue.adjust_synced(record.clone()).await.map_err(store)?;
        // First of all: lanes that forget what they had learned go by this.
        self.doors.adjusted(&Arc::new(record.clone()));
        if record.key.kind == Kind::Limited {
            // What lanes have learned that no shard has in memory.
            let scope = record.key.scope.clone();
            let learned = |key: &AdjustmentKey| {
                matches!(key.kind, Kind::Learned | Kind::Full) && scope.covers(&key.scope)
            };
            self.end_each(learned, &by, now).await?;
        }
        let until = record.until.map(|until| Time(until).to_string());
        let (scope, kind) = (&record.key.scope, word(record.key.kind));
        tracing::warn!(%scope, kind, by = %by.0, reason = record.cause, connections = record.connections, rate = record.rate, until, "adjusted");
        Ok(view(record))
    }

    /// A name that nothing has would hold nothing up, and nobody would be told.
    fn check_names(&self, scope: &queue::Scope) -> Result<(), ControlError> {
        let Some(settings) = self.settings.as_ref().map(|settings| settings()) else {
            return Ok(());
        };
        let (delivery, smart_hosts) = (&settings.delivery, &settings.routing.smart_hosts);
        let wrong = |what: &str, name: &str| {
            let text = format!("the configuration has no {what} \"{name}\"");
            Err(ControlError::Wrong(text))
        };
        match scope {
            queue::Scope {
                provider: Some(name), ..
            } if delivery.shaping.provider(name).is_none() => wrong("provider", name),
            queue::Scope {
                tenant: Some(name), ..
            } if !settings.tenants.contains_key(name) => wrong("tenant", name),
            queue::Scope {
                source: Some(name), ..
            } if **name != *DEFAULT_SOURCE && delivery.egress.source(name).is_none() => wrong("source", name),
            queue::Scope { site: Some(site), .. } => match site.strip_prefix(SMART_HOST) {
                Some(name) if !smart_hosts.iter().any(|host| *host.name == *name) => {
                    wrong("smart host", name)
                }
                _ => Ok(()),
            },
            _ => Ok(()),
        }
    }

    pub(super) async fn end_adjustments(
        &self,
        end: EndAdjustment,
        by: Caller,
    ) -> Result<Ended, ControlError> {
        let scope = scope(&end.scope)?;
        let _one = alone(&self.suspending).await?;
        let is_meant = |key: &AdjustmentKey| {
            key.scope == scope && end.kind.is_none_or(|kind| kind == view_kind(key.kind))
        };
        let ended = self.end_each(is_meant, &by, self.clock.now()).await?;
        if ended == 0 {
            let text = format!("there is no such adjustment of {scope}; name its scope as it is listed");
            return Err(ControlError::Absent(text));
        }
        Ok(Ended { ended })
    }

    /// Ends all that are meant, on disk and then in the shards.
    async fn end_each(
        &self,
        is_meant: impl Fn(&AdjustmentKey) -> bool,
        by: &Caller,
        now: Timestamp,
    ) -> Result<usize, ControlError> {
        let all = self
            .read(|queue| queue.adjustments(None, MAX_ADJUSTMENTS))
            .await?;
        let mut ended = 0;
        for (_, record) in all.into_iter().filter(|(_, record)| is_meant(&record.key)) {
            let done = self
                .queue
                .end_adjustment_synced(record.key.clone(), &by.0, now)
                .await;
            done.map_err(store)?;
            let (scope, kind) = (&record.key.scope, word(record.key.kind));
            tracing::info!(%scope, kind, by = %by.0, "adjustment ended");
            self.doors.adjustment_ended(&record.key, &by.0);
            ended += usize::from(record.holds(now));
        }
        Ok(ended)
    }
}

fn list(
    queue: &Queue,
    query: &AdjustmentsQuery,
    mut after: Option<Vec<u8>>,
    now: Timestamp,
) -> Result<AdjustmentList, ReadError> {
    let limit = query.limit.unwrap_or(PAGE);
    let mut list = AdjustmentList::default();
    // There are no more than MAX_ADJUSTMENTS to be looked at.
    loop {
        let page = queue.adjustments(after.as_deref(), READ)?;
        let is_last = page.len() < READ;
        for (key, record) in page {
            if record.holds(now) && fits(query, &record.key) {
                if list.adjustments.len() == limit {
                    list.next = after.map(|after| hex(&after));
                    return Ok(list);
                }
                list.adjustments.push(view(record));
            }
            after = Some(key);
        }
        if is_last {
            return Ok(list);
        }
    }
}

fn fits(query: &AdjustmentsQuery, key: &AdjustmentKey) -> bool {
    let named = |wanted: &Option<String>, has: &Option<Arc<str>>| {
        wanted
            .as_deref()
            .is_none_or(|wanted| has.as_deref() == Some(wanted))
    };
    let queue::Scope {
        site,
        provider,
        tenant,
        source,
    } = &key.scope;
    query.kind.is_none_or(|kind| kind == view_kind(key.kind))
        && named(&query.site, site)
        && named(&query.provider, provider)
        && named(&query.tenant, tenant)
        && named(&query.source, source)
}

fn key(set: &SetAdjustment) -> Result<AdjustmentKey, ControlError> {
    let wrong = |text: &str| Err(ControlError::Wrong(text.into()));
    let mut scope = scope(&set.scope)?;
    scope.site = scope.site.as_deref().map(site).transpose()?;
    let limits = set.connections.is_some() || set.messages_per_second.is_some();
    if set.suspend == limits {
        return wrong("say suspend, or else connections, messages_per_second, or both");
    }
    if set.suspend {
        return Ok(AdjustmentKey::suspended(scope));
    }
    if scope.site.is_none() || scope.provider.is_some() || scope.tenant.is_some() {
        return wrong("what goes slower are the lanes of a site: name the site, and a source or none");
    }
    if set
        .connections
        .is_some_and(|most| !(1..=MAX_CONNECTIONS).contains(&most))
    {
        return wrong("connections are 1 to 100000; to let nothing go, suspend");
    }
    if set.messages_per_second.is_some_and(|rate| !RATES.contains(&rate)) {
        return wrong("messages_per_second is 0.001 to 1000000; to let nothing go, suspend");
    }
    Ok(AdjustmentKey::limited(scope))
}

fn scope(asked: &Scope) -> Result<queue::Scope, ControlError> {
    let parts = [&asked.site, &asked.provider, &asked.tenant, &asked.source];
    for name in parts.into_iter().flatten() {
        if name.is_empty() || name.contains('\0') {
            return Err(ControlError::Wrong("a name is empty, or holds NUL".into()));
        }
    }
    let part = |text: &Option<String>| text.as_deref().map(Arc::from);
    let scope = queue::Scope {
        // As lanes are named: names of hosts are the same in either case.
        site: asked
            .site
            .as_deref()
            .map(|site| match site.strip_prefix(SMART_HOST) {
                Some(_) => site.into(),
                None => site.to_ascii_lowercase().into(),
            }),
        provider: part(&asked.provider),
        tenant: part(&asked.tenant),
        source: part(&asked.source),
    };
    if scope == queue::Scope::default() {
        let text = "name a site, a provider, a tenant, a source, or several of them";
        return Err(ControlError::Wrong(text.into()));
    }
    Ok(scope)
}

/// As lanes are named: each host once, in order.
fn site(named: &str) -> Result<Arc<str>, ControlError> {
    if named.starts_with(SMART_HOST) {
        return Ok(named.into());
    }
    let hosts = named.split(',').map(|host| host.trim().parse::<Domain>());
    let mut hosts = hosts.collect::<Result<Vec<_>, _>>().map_err(|error| {
        let text = format!("{named:?} is no site, which is its MX hosts with commas between: {error}");
        ControlError::Wrong(text)
    })?;
    hosts.sort_unstable();
    hosts.dedup();
    let hosts: Vec<_> = hosts.iter().map(Domain::as_str).collect();
    Ok(hosts.join(",").into())
}

fn view(record: AdjustmentRecord) -> Adjustment {
    let text = |part: Option<Arc<str>>| part.map(|part| part.to_string());
    let scope = record.key.scope;
    Adjustment {
        kind: view_kind(record.key.kind),
        scope: Scope {
            site: text(scope.site),
            provider: text(scope.provider),
            tenant: text(scope.tenant),
            source: text(scope.source),
        },
        destination: text(record.key.rule),
        since: Time(record.since),
        changed: Time(record.changed),
        until: record.until.map(Time),
        connections: record.connections,
        messages_per_second: record.rate,
        cause: record.cause,
        host: record.host,
        class: record.class,
        by: record.by,
    }
}

fn view_kind(kind: Kind) -> AdjustmentKind {
    match kind {
        Kind::Suspended => AdjustmentKind::Suspended,
        Kind::Learned | Kind::Limited | Kind::Full => AdjustmentKind::Slower,
    }
}

fn word(kind: Kind) -> &'static str {
    match kind {
        Kind::Suspended => "suspended",
        Kind::Learned | Kind::Limited | Kind::Full => "slower",
    }
}

fn hex(octets: &[u8]) -> String {
    octets.iter().map(|octet| format!("{octet:02x}")).collect()
}

/// Reads what [`hex`] wrote.
fn cursor(text: &str) -> Result<Vec<u8>, ControlError> {
    let octet = |pair: &[u8]| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok();
    let octets: Option<Vec<u8>> = match text.len() % 2 {
        0 => text.as_bytes().chunks(2).map(octet).collect(),
        _ => None,
    };
    // Only keys of adjustments: a cursor never leads elsewhere.
    octets
        .filter(|key| queue::keys::parse_adjustment(key).is_some())
        .ok_or_else(|| ControlError::Wrong("after is to be the `next` of an answer".into()))
}

#[cfg(test)]
mod tests {
    use admin_api::Control as _;

    use super::super::tests::control;
    use super::*;
    use crate::delivery::shard::test_settings;

    #[tokio::test]
    async fn a_name_that_nothing_has_is_a_mistake() {
        let settings = test_settings(
            "[[smart_host]]\nname = \"Hub\"\nhosts = [{ address = \"192.0.2.9\" }]\n\
             [[source]]\nname = \"out1\"\naddresses = [\"127.0.0.1\"]\n",
        );
        let (_, control) = control();
        let control = control.with_settings(move || settings.clone());
        // Site, provider, tenant, source.
        for (names, wrong) in [
            ([None, Some("google"), Some("t"), Some("out1")], None),
            ([Some("smart host Hub"), None, None, None], None),
            ([Some("mx2.a.test, MX1.a.test"), None, None, None], None),
            ([None, Some("gogle"), None, None], Some("no provider \"gogle\"")),
            ([None, None, Some("shop"), None], Some("no tenant \"shop\"")),
            ([None, None, None, Some("out2")], Some("no source \"out2\"")),
            (
                [Some("smart host hub"), None, None, None],
                Some("no smart host \"hub\""),
            ),
            (
                [Some("mx1.a.test;mx2.a.test"), None, None, None],
                Some("is no site"),
            ),
        ] {
            let [site, provider, tenant, source] = names.map(|name| name.map(str::to_owned));
            let scope = Scope {
                site,
                provider,
                tenant,
                source,
            };
            let set = SetAdjustment {
                scope,
                suspend: true,
                reason: "a test".into(),
                ..SetAdjustment::default()
            };
            let done = control.adjust(set, Caller("uid 7".into())).await;
            match (done, wrong) {
                (Ok(_), None) => {}
                (Err(ControlError::Wrong(text)), Some(part)) if text.contains(part) => {}
                (done, _) => panic!("{names:?}: {done:?}"),
            }
        }
        let list = control.adjustments(AdjustmentsQuery::default()).await.unwrap();
        let sites: Vec<_> = list
            .adjustments
            .iter()
            .map(|one| one.scope.site.as_deref())
            .collect();
        assert!(sites.contains(&Some("mx1.a.test,mx2.a.test")), "{sites:?}");
    }
}
