//! What the queue calls things.

use std::fmt;
use std::sync::Arc;

use mail_core::{Domain, MessageId, Timestamp};
use serde::{Deserialize, Serialize};

/// A queue's number: given once, never again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct QueueId(pub u64);

impl fmt::Display for QueueId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Which next hops and sources may serve a queue. 0 is delivery by MX.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct RouteGroup(pub u16);

/// What makes a queue one queue.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct QueueName {
    /// Who sends.
    pub tenant: Arc<str>,
    /// Which of their streams.
    pub stream: Arc<str>,
    /// By which way.
    pub route_group: RouteGroup,
    /// Where to.
    pub domain: Domain,
}

/// A unit in its queue: one message's recipients at one destination domain, due at one time. It is the key of the due
/// index, and whoever works on the unit holds it as a claim: once the key is gone, or has moved, the claim is void.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct UnitKey {
    /// Where it waits.
    pub queue: QueueId,
    /// When it is to be tried next.
    pub due: Timestamp,
    /// Whose recipients.
    pub id: MessageId,
    /// Number of the unit within the message.
    pub unit: u16,
}

/// Which mail on its way out is meant: all for which each part that is named fits. What limits, adjustments and their suspensions
/// are about. Without any part, all of it.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Scope {
    /// To this site: its MX hosts, sorted, with commas between, or what its lanes are called otherwise.
    pub site: Option<Arc<str>>,
    /// To hosts that this provider runs.
    pub provider: Option<Arc<str>>,
    /// Of this tenant.
    pub tenant: Option<Arc<str>>,
    /// From this source.
    pub source: Option<Arc<str>>,
}

impl Scope {
    /// Whether all of `mail`, whose parts are those of one message on its way, is meant.
    pub fn covers(&self, mail: &Scope) -> bool {
        let fits = |own: &Option<Arc<str>>, of: &Option<Arc<str>>| own.is_none() || own == of;
        fits(&self.site, &mail.site)
            && fits(&self.provider, &mail.provider)
            && fits(&self.tenant, &mail.tenant)
            && fits(&self.source, &mail.source)
    }
}

impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let parts = [
            ("tenant", &self.tenant),
            ("source", &self.source),
            ("provider", &self.provider),
            ("site", &self.site),
        ];
        let named = parts
            .into_iter()
            .filter_map(|(what, name)| Some(format!("{what} {}", name.as_ref()?)));
        let named: Vec<_> = named.collect();
        if named.is_empty() {
            return f.write_str("everything");
        }
        f.write_str(&named.join(", "))
    }
}

/// What rests as a whole, so that no message need be touched.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum HoldScope {
    /// A destination domain that the DNS does not resolve.
    Domain(Domain),
    /// A lane that lets no connection come about, by its own name.
    Lane(String),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_scope_covers_what_each_of_its_parts_fits() {
        let mail = Scope {
            site: Some("mx.a.test".into()),
            provider: None,
            tenant: Some("shop".into()),
            source: Some("out1".into()),
        };
        let of = |site: Option<&str>, provider: Option<&str>, tenant: Option<&str>| Scope {
            site: site.map(Arc::from),
            provider: provider.map(Arc::from),
            tenant: tenant.map(Arc::from),
            source: None,
        };
        assert!(Scope::default().covers(&mail));
        assert!(of(Some("mx.a.test"), None, Some("shop")).covers(&mail));
        assert!(!of(Some("mx.a.test"), None, Some("other")).covers(&mail));
        assert!(!of(None, Some("google"), None).covers(&mail), "nobody's hosts");
        assert_eq!(Scope::default().to_string(), "everything");
        assert_eq!(
            of(Some("mx.a.test"), None, Some("shop")).to_string(),
            "tenant shop, site mx.a.test"
        );
    }
}
