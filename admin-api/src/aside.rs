//! What is set aside, as JSON.

use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use crate::types::{RecipientState, Time};

/// Which page of what is set aside.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields, default)]
pub struct AsideQuery {
    /// [`AsideList::next`] of the page before.
    pub after: Option<String>,
    /// At most so many; 100 unless said.
    pub limit: Option<usize>,
}

/// A page of what is set aside.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct AsideList {
    /// Messages at a destination, by id.
    pub messages: Vec<AsideMessage>,
    /// Records that no message depends on. On the first page alone; 100 at the most.
    pub records: Vec<AsideEntry>,
    /// To be given as `after`; none where there are no more messages.
    pub next: Option<String>,
}

/// A message at a destination that nobody tries.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct AsideMessage {
    /// Its name.
    pub id: String,
    /// The queue it counts in.
    pub queue: u64,
    /// Who sends, where the queue's record tells.
    pub tenant: Option<String>,
    /// Which of their streams.
    pub stream: Option<String>,
    /// Where to.
    pub domain: Option<String>,
    /// `damaged` or `parked`.
    pub cause: RecipientState,
    /// Since when.
    pub since: Time,
    /// What is wrong.
    pub why: String,
    /// When it expires.
    pub expires_at: Time,
}

/// A record that no message depends on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct AsideEntry {
    /// What it was part of: `event` is the journal, `hold` the destinations that rest.
    pub family: String,
    /// Its key, hexadecimal.
    pub key: String,
    /// Since when.
    pub since: Time,
    /// What is wrong.
    pub what: String,
    /// How long it is, in octets.
    pub bytes: usize,
}
