//! Adjustments: what replies have taught of some mail on its way, and what operators have set beside. A suspension lets nothing go
//! for a time; slower lanes have fewer connections, or a lower rate, than they are configured to have.
//!
//! They are kept in the family `hold`, under keys of their own, [`MAX_ADJUSTMENTS`] at the most.

use std::fmt;
use std::sync::Arc;

use mail_core::Timestamp;
use serde::{Deserialize, Serialize};

use crate::committer::Request;
use crate::names::Scope;
use crate::store::Family;
use crate::{CommitError, Queue, ReadError, keys};

/// Adjustments at once, some 500 octets each. Where there is one more, the least important falls out: first those whose time is over,
/// then slower lanes, then suspensions by replies, and what operators have set last; of each kind the one that changed longest ago, and of
/// several such the one whose key comes first.
pub const MAX_ADJUSTMENTS: usize = 10_000;

/// Octets of a cause that are kept.
pub const MAX_CAUSE: usize = 500;

/// Who says so where no operator does.
pub const BY_REPLY: &str = "reply";

/// The same of a source that does not serve.
pub const BY_FAILURE: &str = "failure";

/// What kind of thing an adjustment is. One of each kind may stand for one scope.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum AdjustmentKind {
    /// Nothing goes.
    Suspended,
    /// A lane goes slower, as replies have taught it.
    Learned,
    /// Lanes go no faster than an operator wants.
    Limited,
    /// A lane opens no further connection, since a host said until when it takes none.
    Full,
}

impl AdjustmentKind {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Suspended, Self::Learned, Self::Limited, Self::Full];

    /// The octet in its keys.
    pub(crate) const fn mark(self) -> u8 {
        match self {
            Self::Suspended => b's',
            Self::Learned => b'r',
            Self::Limited => b'l',
            Self::Full => b'f',
        }
    }

    pub(crate) fn of_mark(mark: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.mark() == mark)
    }
}

/// What tells adjustments apart.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct AdjustmentKey {
    /// Which mail it is about.
    pub scope: Scope,
    /// Of a lane under this destination rule alone; `None`: under none.
    pub rule: Option<Arc<str>>,
    /// What kind of thing it is.
    pub kind: AdjustmentKind,
}

impl AdjustmentKey {
    /// A suspension of all that the scope covers.
    pub fn suspended(scope: Scope) -> Self {
        Self {
            scope,
            rule: None,
            kind: AdjustmentKind::Suspended,
        }
    }

    /// What replies taught the lane of this scope and destination rule.
    pub fn learned(scope: Scope, rule: Option<Arc<str>>) -> Self {
        Self {
            scope,
            rule,
            kind: AdjustmentKind::Learned,
        }
    }

    /// How many connections a host bears of the lane of this scope and destination rule.
    pub fn full(scope: Scope, rule: Option<Arc<str>>) -> Self {
        Self {
            scope,
            rule,
            kind: AdjustmentKind::Full,
        }
    }

    /// What an operator limits the scope's lanes to.
    pub fn limited(scope: Scope) -> Self {
        Self {
            scope,
            rule: None,
            kind: AdjustmentKind::Limited,
        }
    }
}

impl fmt::Display for AdjustmentKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.rule {
            None => self.scope.fmt(f),
            Some(rule) => write!(f, "{}, destination {rule}", self.scope),
        }
    }
}

/// `hold`: an adjustment.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct AdjustmentRecord {
    /// What tells it apart.
    pub key: AdjustmentKey,
    /// When it began.
    pub since: Timestamp,
    /// When it was changed last.
    pub changed: Timestamp,
    /// When it ends by itself; `None`: once it is ended.
    pub until: Option<Timestamp>,
    /// Connections at once, at the most. Of a suspension: none.
    pub connections: Option<u32>,
    /// Messages a second, at the most. Of a suspension: none.
    pub rate: Option<f64>,
    /// What is known of where a slower lane was refused; none where an operator has set it.
    pub refused: Option<Refused>,
    /// The reply, or an operator's reason; up to [`MAX_CAUSE`] octets.
    pub cause: String,
    /// The host that said it.
    pub host: Option<String>,
    /// The class of what it said.
    pub class: Option<String>,
    /// [`BY_REPLY`], [`BY_FAILURE`], or the operator's name.
    pub by: String,
}

/// Where a lane was refused last.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Refused {
    /// With so many connections open, a further one was.
    pub connections: Option<u32>,
    /// At so many messages a second.
    pub rate: Option<f64>,
    /// How long it works before it goes beyond that again, in milliseconds.
    pub wait_millis: u64,
}

/// What says how much an adjustment matters.
#[derive(Clone, Copy)]
pub(crate) struct Stands {
    pub(crate) changed: Timestamp,
    until: Option<Timestamp>,
    is_operators: bool,
}

impl Stands {
    pub(crate) fn of(record: &AdjustmentRecord) -> Self {
        Self {
            changed: record.changed,
            until: record.until,
            is_operators: record.is_operators(),
        }
    }

    pub(crate) fn importance(&self, kind: AdjustmentKind, now: Timestamp) -> (u8, Timestamp) {
        let rank = match kind {
            _ if self.until.is_some_and(|until| until <= now) => 0,
            AdjustmentKind::Learned | AdjustmentKind::Full => 1,
            AdjustmentKind::Suspended if !self.is_operators => 2,
            AdjustmentKind::Suspended | AdjustmentKind::Limited => 3,
        };
        (rank, self.changed)
    }
}

impl AdjustmentRecord {
    /// What falls out first where there are too many: the least, and of several the one of the least key. Whoever else keeps them
    /// as the store does drops the same, if it goes by the moment at which the one that is too many was changed.
    pub fn importance(&self, now: Timestamp) -> (u8, Timestamp) {
        Stands::of(self).importance(self.key.kind, now)
    }

    /// Whether it still stands.
    pub fn holds(&self, now: Timestamp) -> bool {
        self.until.is_none_or(|until| until > now)
    }

    /// Whether an operator says so.
    pub fn is_operators(&self) -> bool {
        self.by != BY_REPLY && self.by != BY_FAILURE
    }

    /// Who suspended it, or slowed it down, and why: for people.
    pub fn told(&self) -> String {
        let what = match self.key.kind {
            AdjustmentKind::Suspended => "suspended",
            AdjustmentKind::Learned | AdjustmentKind::Limited | AdjustmentKind::Full => "slower",
        };
        if self.is_operators() {
            return format!("{what} by {}: {}", self.by, self.cause);
        }
        if self.by == BY_FAILURE {
            return format!("{what} by a failure: {}", self.cause);
        }
        let host = self.host.as_deref().map(|host| format!(" of {host}"));
        format!("{what} by a reply{}: {}", host.unwrap_or_default(), self.cause)
    }

    /// On one line, with its effect: for the journal.
    pub(crate) fn in_words(&self) -> String {
        let mut words = format!("{}: {}", self.key, self.told());
        let tells_end = matches!(self.key.kind, AdjustmentKind::Suspended | AdjustmentKind::Full);
        if let Some(until) = self.until.filter(|_| tells_end) {
            words.push_str(&format!("; until {} ms", until.0));
        }
        if let Some(connections) = self.connections {
            words.push_str(&format!("; {connections} connections"));
        }
        if let Some(rate) = self.rate {
            words.push_str(&format!("; {rate:.2} messages a second"));
        }
        words
    }

    /// A cause cut to what is kept of it.
    pub fn cut(cause: &str) -> String {
        let end = (0..=MAX_CAUSE.min(cause.len()))
            .rev()
            .find(|&end| cause.is_char_boundary(end));
        cause[..end.unwrap_or_default()].to_owned()
    }
}

impl Queue {
    /// Notes an adjustment, in place of the one of its key. False where it is not taken: the committer is busy, and it holds in memory alone.
    pub fn adjust(&self, record: AdjustmentRecord) -> bool {
        let record = Box::new(record);
        self.intake.tell(Request::Adjust { record, reply: None })
    }

    /// The same. Answered once it is on disk.
    pub async fn adjust_synced(&self, record: AdjustmentRecord) -> Result<(), CommitError> {
        let ask = |reply| Request::Adjust {
            record: Box::new(record),
            reply: Some(reply),
        };
        self.intake.ask(ask).await
    }

    /// Ends an adjustment, unless it has been changed since `as_of`; `by` whom, or why. May be lost when the committer is busy: one
    /// whose time is over is ended again then.
    pub fn end_adjustment(&self, key: AdjustmentKey, as_of: Timestamp, by: &str, at: Timestamp) {
        self.intake.tell(Request::EndAdjustment {
            key: Box::new(key),
            as_of: Some(as_of),
            by: by.to_owned(),
            at,
            reply: None,
        });
    }

    /// Ends an adjustment whatever it is by now. Answered once it is on disk.
    pub async fn end_adjustment_synced(
        &self,
        key: AdjustmentKey,
        by: &str,
        at: Timestamp,
    ) -> Result<(), CommitError> {
        let ask = |reply| Request::EndAdjustment {
            key: Box::new(key),
            as_of: None,
            by: by.to_owned(),
            at,
            reply: Some(reply),
        };
        self.intake.ask(ask).await
    }

    /// The adjustment of this key; its time may be over.
    pub fn adjustment(&self, key: &AdjustmentKey) -> Result<Option<AdjustmentRecord>, ReadError> {
        crate::committer::read(&*self.store, Family::Hold, &keys::adjustment(key))
    }

    /// Adjustments after the one of key `after`, up to `limit`, each with its key in the store; those whose time is over may be among
    /// them.
    pub fn adjustments(
        &self,
        after: Option<&[u8]>,
        limit: usize,
    ) -> Result<Vec<(Vec<u8>, AdjustmentRecord)>, ReadError> {
        let from = match after {
            // The next key there can be.
            Some(after) => [after, &[0]].concat(),
            None => vec![keys::ADJUSTMENT],
        };
        let of = |key: &[u8]| keys::parse_adjustment(key).map(|_| key.to_vec());
        self.page(Family::Hold, &from, &[keys::ADJUSTMENT + 1], limit, of)
    }
}
