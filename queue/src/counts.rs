//! What limits by the minute, the hour and the day have counted, kept across restarts.

use std::sync::Arc;

use mail_core::Timestamp;
use serde::{Deserialize, Serialize};

use crate::committer::{Request, read};
use crate::names::Scope;
use crate::records::decode;
use crate::store::Family;
use crate::{CommitError, Queue, ReadError};

/// A window's counts by parts of it. Whoever counts says how long a part is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counts {
    /// The newest part, in parts since 1970.
    pub newest: u64,
    /// The newest part first.
    pub parts: Vec<u64>,
}

/// `count`: what is counted for one scope.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CountsRecord {
    /// When it was written.
    pub at: Timestamp,
    /// Of a minute, where there is such a limit.
    pub minute: Option<Counts>,
    /// Of an hour.
    pub hour: Option<Counts>,
    /// Of a day.
    pub day: Option<Counts>,
}

impl Scope {
    /// Its key in `count`: names hold no NUL, and are not empty.
    pub(crate) fn key(&self) -> Vec<u8> {
        let part = |name: &Option<Arc<str>>| name.as_deref().unwrap_or_default().to_owned();
        [&self.site, &self.provider, &self.tenant, &self.source]
            .map(part)
            .join("\0")
            .into_bytes()
    }

    /// Reads what [`Scope::key`] made.
    pub(crate) fn from_key(key: &[u8]) -> Option<Self> {
        let mut parts = std::str::from_utf8(key).ok()?.split('\0');
        let mut part = || {
            Some(parts.next()?).map(|name| Some(Arc::from(name)).filter(|name: &Arc<str>| !name.is_empty()))
        };
        let scope = Self {
            site: part()?,
            provider: part()?,
            tenant: part()?,
            source: part()?,
        };
        // A page goes on after a scope's key: no other key may read as the same scope.
        parts.next().is_none().then_some(scope)
    }
}

impl Queue {
    /// Keeps what was counted; `None` forgets it. Answered once it is on disk.
    pub async fn keep_counts(&self, counts: Vec<(Scope, Option<CountsRecord>)>) -> Result<(), CommitError> {
        self.intake.ask(|reply| Request::Count { counts, reply }).await
    }

    /// What was counted for a scope, if anything is kept of it.
    pub fn counts_of(&self, scope: &Scope) -> Result<Option<CountsRecord>, ReadError> {
        read(&*self.store, Family::Count, &scope.key())
    }

    /// Counts in the order of their keys, after those of `after`, up to `limit`; `None` where a record is damaged.
    pub fn counts(
        &self,
        after: Option<&Scope>,
        limit: usize,
    ) -> Result<Vec<(Scope, Option<CountsRecord>)>, ReadError> {
        // The next key there can be.
        let from = after.map_or_else(Vec::new, |after| [&after.key()[..], &[0]].concat());
        let mut page = Vec::new();
        self.store
            .scan_past(Family::Count, &from, &[u8::MAX], &mut |key, value| {
                match Scope::from_key(key) {
                    Some(scope) => page.push((scope, decode(value).ok())),
                    None => tracing::error!("counts of nothing that can be read"),
                }
                page.len() < limit
            })?;
        Ok(page)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_scope_is_read_back_from_its_key() {
        let scope = Scope {
            site: None,
            provider: Some("google".into()),
            tenant: Some("shop".into()),
            source: None,
        };
        assert_eq!(Scope::from_key(&scope.key()), Some(scope.clone()));
        assert_eq!(Scope::from_key(&Scope::default().key()), Some(Scope::default()));
        assert_eq!(Scope::from_key(b"a\0b"), None);
        assert_eq!(Scope::from_key(&[&scope.key()[..], b"\0"].concat()), None);
    }
}
