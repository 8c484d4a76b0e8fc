//! What changes queues and messages, as JSON.

use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use crate::types::{RecipientView, Time};

/// Which mail is meant: that for which all that is given holds. Without anything, none, unless `all` says so.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Selector {
    /// Of this tenant.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tenant: Option<String>,
    /// Of this stream.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stream: Option<String>,
    /// To this destination domain.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub domain: Option<String>,
    /// In the queue of this number.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub queue: Option<u64>,
    /// With this reverse-path: an address, `@` and a domain for all of that domain, `<>` for the null path. A scan; not for suspensions.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sender: Option<String>,
    /// With this recipient waiting: an address, its local part as it was written, or `@` and a domain, which is the same as `domain`. A
    /// message is not deleted if others wait in it. A scan of the domain's queues; not for suspensions.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub recipient: Option<String>,
    /// With this tag of its sender's. A scan; not for suspensions.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tag: Option<String>,
    /// Accepted so many seconds before the first page was asked for, or longer, by the time in its id. A scan; not for suspensions.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 1, maximum = 315_360_000)]
    pub older_than_seconds: Option<u64>,
    /// This message alone. Not for suspensions.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
    /// With a message: only where it is set aside.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub set_aside: bool,
    /// Everything.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub all: bool,
}

/// What is to wait, and why.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Suspend {
    /// Which queues, those too that come to be later.
    pub selector: Selector,
    /// When they go on by themselves; without it and `for_seconds`, once they are resumed.
    #[serde(default)]
    pub until: Option<Time>,
    /// So many seconds from now, by the relay's own clock; not with `until`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 1, maximum = 315_360_000)]
    pub for_seconds: Option<u64>,
    /// Why; up to 500 octets.
    pub reason: String,
}

/// Which suspension ends.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Resume {
    /// As it was suspended.
    pub selector: Selector,
}

/// What an operator has set to wait.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Suspension {
    /// Which queues.
    pub selector: Selector,
    /// Since when.
    pub since: Time,
    /// Until when; none: until it is resumed.
    pub until: Option<Time>,
    /// Why.
    pub reason: String,
    /// Who said so.
    pub by: String,
}

/// All suspensions.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct SuspensionList {
    /// Those whose time is over are not among them.
    pub suspensions: Vec<Suspension>,
}

/// What mail waits for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Waits {
    /// Kind of thing.
    #[serde(rename = "for")]
    pub what: WaitsFor,
    /// Until when, where that is known.
    pub until: Option<Time>,
    /// In words: who suspended it and why, what its destination rests for, which limit holds it, what is kept for others.
    pub cause: Option<String>,
    /// In words, where it goes by the fallback of its route: by which smart host, and why.
    #[serde(default)]
    pub fallback: Option<String>,
}

/// See [`Waits`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum WaitsFor {
    /// Nothing: it is being worked on.
    Underway,
    /// Its queue to be resumed.
    Resume,
    /// The end of a suspension that a reply has caused, or an operator has set: see `/v1/adjustments`.
    Adjustment,
    /// The end of its destination's rest.
    Rest,
    /// A limit.
    Limit,
    /// Its stream's part: what is left of a limit, or of the connections, is kept for other streams.
    Reserved,
    /// A connection: all that there may be are taken.
    Connection,
    /// An answer of the DNS, or its turn.
    Turn,
}

/// Which mail is to be tried at once.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Retry {
    /// Which.
    pub selector: Selector,
    /// [`Progress::next`] of the answer before.
    #[serde(default)]
    pub after: Option<String>,
}

/// Which mail is to be deleted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Delete {
    /// Which.
    pub selector: Selector,
    /// Tells the senders, by a report that gives this reason: one line of up to 500 octets. Unless given, nobody is told.
    #[serde(default)]
    pub tell: Option<String>,
    /// [`Preview::token`] for the same selector. Without it nothing is deleted: the answer is a preview.
    #[serde(default)]
    pub token: Option<String>,
    /// [`Preview::next`], or [`Progress::next`], of the answer before.
    #[serde(default)]
    pub after: Option<String>,
}

/// What would be deleted. By a scan it comes in pages, to be added up.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Preview {
    /// Queues that are meant, empty ones left out.
    pub queues: u64,
    /// Messages in them: one that waits in two queues counts twice.
    pub messages: u64,
    /// Their octets.
    pub bytes: u64,
    /// Messages that would stay: others wait in them beside the recipient that is meant.
    #[serde(default)]
    pub shared: u64,
    /// Messages that a scan has gone through for this page.
    #[serde(default)]
    pub looked: u64,
    /// To be given as `after` for the next page; none: this is the last.
    #[serde(default)]
    pub next: Option<String>,
    /// To be given to go through with it, in place of `next`; with the last page alone. What came in since the first page stays.
    pub token: Option<String>,
}

/// How far an order has come.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Progress {
    /// Messages at one destination each, done and on disk.
    pub done: u64,
    /// Left alone: on the wire just now.
    pub busy: u64,
    /// Left alone: the store failed, or a record is damaged. The log tells which.
    pub failed: u64,
    /// Left alone by a deletion: others wait in them beside the recipient that is meant.
    #[serde(default)]
    pub shared: u64,
    /// Messages gone through for this answer.
    #[serde(default)]
    pub looked: u64,
    /// To be given as `after` to go on; none: all of it was gone through.
    pub next: Option<String>,
}

/// The answer to [`Delete`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Deletion {
    /// Nothing was deleted yet.
    Preview(Preview),
    /// Some was, or all.
    Progress(Progress),
}

/// Which messages are asked for: a selector and a place.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields, default)]
pub struct MessagesQuery {
    /// Of this tenant.
    pub tenant: Option<String>,
    /// Of this stream.
    pub stream: Option<String>,
    /// To this destination domain.
    pub domain: Option<String>,
    /// In the queue of this number.
    pub queue: Option<u64>,
    /// With this reverse-path: see the selector's `sender`. A scan, whose pages may be short, or empty, and have a `next` all the same.
    pub sender: Option<String>,
    /// With this recipient waiting: see the selector's `recipient`. A scan.
    pub recipient: Option<String>,
    /// With this tag. A scan.
    pub tag: Option<String>,
    /// Accepted so many seconds ago or longer. A scan.
    #[param(minimum = 1, maximum = 315_360_000)]
    pub older_than_seconds: Option<u64>,
    /// [`MessageList::next`] of the page before.
    pub after: Option<String>,
    /// At most so many; 100 unless said.
    pub limit: Option<usize>,
}

/// A page of messages that wait.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct MessageList {
    /// By queue, then by due time.
    pub messages: Vec<WaitingMessage>,
    /// Messages gone through for this page.
    #[serde(default)]
    pub looked: u64,
    /// To be given as `after`; none where there are no more.
    pub next: Option<String>,
}

/// A message at one destination.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct WaitingMessage {
    /// Its name.
    pub id: String,
    /// The queue it waits in.
    pub queue: u64,
    /// Who sends.
    pub tenant: String,
    /// Which of their streams.
    pub stream: String,
    /// Where to.
    pub domain: String,
    /// Where reports go; empty for the null path.
    pub sender: String,
    /// Octets, as the client sent it.
    pub bytes: u64,
    /// When it came in.
    pub received_at: Time,
    /// Those that wait.
    pub recipients: Vec<RecipientView>,
}
