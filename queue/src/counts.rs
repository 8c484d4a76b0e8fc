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
        Some(Self {
            site: part()?,
            provider: part()?,
            tenant: part()?,
            source: part()?,
        })
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

    /// All counts; `None` where a record is damaged.
    pub fn counts(&self) -> Result<Vec<(Scope, Option<CountsRecord>)>, ReadError> {
        let mut all = Vec::new();
        self.store
            .scan(Family::Count, &[], &[u8::MAX], &mut |key, value| {
                match Scope::from_key(key) {
                    Some(scope) => all.push((scope, decode(value).ok())),
                    None => tracing::error!("counts of nothing that can be read"),
                }
                true
            })?;
        Ok(all)
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
        assert_eq!(Scope::from_key(&scope.key()), Some(scope));
        assert_eq!(Scope::from_key(&Scope::default().key()), Some(Scope::default()));
        assert_eq!(Scope::from_key(b"a\0b"), None);
    }
}
