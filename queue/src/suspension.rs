//! Suspensions: what an operator has set to wait. Expiry holds all the same.

use std::fmt;
use std::sync::Arc;

use mail_core::{Domain, Timestamp};
use serde::{Deserialize, Serialize};

use crate::committer::Request;
use crate::names::{QueueId, QueueName, UnitKey};
use crate::records::{SuspensionRecord, decode};
use crate::store::Family;
use crate::{CommitError, Queue, ReadError};

/// Suspensions at once, some 300 octets each; every shard holds all of them.
pub const MAX_SUSPENSIONS: usize = 1_000;

/// Which queues are meant: those for which all that is given holds. Without anything, all of them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Selector {
    /// Of this tenant.
    pub tenant: Option<Arc<str>>,
    /// Of this stream.
    pub stream: Option<Arc<str>>,
    /// To this destination domain.
    pub domain: Option<Domain>,
    /// This one.
    pub queue: Option<QueueId>,
}

impl Selector {
    /// Whether the queue is meant.
    pub fn selects(&self, id: QueueId, name: &QueueName) -> bool {
        self.queue.is_none_or(|queue| queue == id)
            && self.tenant.as_ref().is_none_or(|tenant| *tenant == name.tenant)
            && self.stream.as_ref().is_none_or(|stream| *stream == name.stream)
            && self.domain.as_ref().is_none_or(|domain| *domain == name.domain)
    }

    /// Its key in `suspension`: names hold no NUL, so the parts are told apart.
    pub(crate) fn key(&self) -> Vec<u8> {
        let part = |text: Option<&str>| text.unwrap_or_default().to_owned();
        [
            part(self.tenant.as_deref()),
            part(self.stream.as_deref()),
            part(self.domain.as_ref().map(Domain::as_str)),
            self.queue.map_or(String::new(), |queue| queue.to_string()),
        ]
        .join("\0")
        .into_bytes()
    }

    /// Reads what [`Selector::key`] made.
    pub(crate) fn from_key(key: &[u8]) -> Option<Self> {
        let mut parts = std::str::from_utf8(key).ok()?.split('\0');
        let mut part = || Some(parts.next()?).map(|text| Some(text).filter(|text| !text.is_empty()));
        let (tenant, stream, domain, queue) = (part()?, part()?, part()?, part()?);
        Some(Self {
            tenant: tenant.map(Arc::from),
            stream: stream.map(Arc::from),
            domain: domain.map(str::parse).transpose().ok()?,
            queue: queue.map(str::parse).transpose().ok()?.map(QueueId),
        })
    }
}

impl SuspensionRecord {
    /// In place of one that does not verify: what an operator wanted to wait does not go for that.
    pub(crate) fn damaged(selector: Selector) -> Self {
        Self {
            selector,
            since: Timestamp(0),
            until: None,
            reason: "the record of a suspension is damaged".into(),
            by: "the relay".into(),
        }
    }
}

impl fmt::Display for Selector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let parts = [
            self.tenant.as_ref().map(|tenant| format!("tenant {tenant}")),
            self.stream.as_ref().map(|stream| format!("stream {stream}")),
            self.domain.as_ref().map(|domain| format!("domain {domain}")),
            self.queue.map(|queue| format!("queue {queue}")),
        ];
        let parts: Vec<_> = parts.into_iter().flatten().collect();
        if parts.is_empty() {
            return f.write_str("everything");
        }
        f.write_str(&parts.join(", "))
    }
}

/// Which of these holds a queue now: the one that does so for longest.
pub fn suspension<'a>(
    all: &'a [SuspensionRecord],
    id: QueueId,
    name: &QueueName,
    now: Timestamp,
) -> Option<&'a SuspensionRecord> {
    let end = |record: &SuspensionRecord| record.until.unwrap_or(Timestamp::MAX);
    all.iter()
        .filter(|record| end(record) > now && record.selector.selects(id, name))
        .max_by_key(|record| end(record))
}

impl Queue {
    /// Sets queues to wait, those too that come to be later. A suspension of the same selector is replaced. Answered once it
    /// is on disk; the shards are to be told apart from this.
    pub async fn suspend(&self, record: SuspensionRecord) -> Result<(), CommitError> {
        let ask = |reply| Request::Suspend {
            record: Box::new(record),
            reply,
        };
        self.intake.ask(ask).await
    }

    /// Ends a suspension; `by` whom. Answered once it is on disk.
    pub async fn resume(&self, selector: Selector, by: &str, at: Timestamp) -> Result<(), CommitError> {
        let by = by.to_owned();
        let ask = |reply| Request::Resume {
            selector,
            by,
            at,
            reply,
        };
        self.intake.ask(ask).await
    }

    /// All suspensions, up to `limit`; those whose time is over may be among them. One whose record is damaged holds until it
    /// is resumed: its key tells what it suspends.
    pub fn suspensions(&self, limit: usize) -> Result<Vec<SuspensionRecord>, ReadError> {
        let mut all = Vec::new();
        self.store
            .scan(Family::Suspension, &[], &[u8::MAX], &mut |key, value| {
                match (decode(value), Selector::from_key(key)) {
                    (Ok(record), _) => all.push(record),
                    (Err(error), Some(selector)) => {
                        tracing::error!(%selector, %error, "suspended until it is resumed");
                        all.push(SuspensionRecord::damaged(selector));
                    }
                    (Err(error), None) => tracing::error!(%error, "a suspension of nothing that can be read"),
                }
                all.len() < limit
            })?;
        Ok(all)
    }

    /// Moves a unit's due time; whoever asks holds its claim. Attempts and replies stay as they are.
    pub async fn retry(&self, unit: UnitKey, due: Timestamp, by: &str) -> Result<(), CommitError> {
        let by = by.to_owned();
        let ask = |reply| Request::Retry { unit, due, by, reply };
        self.intake.ask(ask).await
    }
}
