//! What goes over the wire, as JSON.

use std::collections::BTreeMap;
use std::fmt;

use mail_core::Timestamp;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use utoipa::{IntoParams, ToSchema};

/// A moment, written as RFC 3339 in UTC with milliseconds: `2026-01-31T12:00:00.000Z`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ToSchema)]
#[schema(value_type = String, format = DateTime, example = "2026-01-31T12:00:00.000Z")]
pub struct Time(pub Timestamp);

impl fmt::Display for Time {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let millis = i64::try_from(self.0.0).unwrap_or(i64::MAX);
        // Later than the calendar reaches: the year 9999.
        let time = jiff::Timestamp::from_millisecond(millis).unwrap_or(jiff::Timestamp::MAX);
        write!(f, "{time:.3}")
    }
}

impl Serialize for Time {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Time {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let time: jiff::Timestamp = text.parse().map_err(serde::de::Error::custom)?;
        let millis = u64::try_from(time.as_millisecond()).map_err(serde::de::Error::custom)?;
        Ok(Self(Timestamp(millis)))
    }
}

/// Which queues are asked for.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub struct QueuesQuery {
    /// Of this tenant.
    pub tenant: Option<String>,
    /// Of this stream.
    pub stream: Option<String>,
    /// To this destination domain.
    pub domain: Option<String>,
    /// Those with a higher number; [`QueueList::next`] of the page before.
    pub after: Option<u64>,
    /// At most so many; 100 unless said.
    pub limit: Option<usize>,
    /// Those without mail too.
    #[serde(default)]
    pub empty: bool,
}

/// A page of queues.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct QueueList {
    /// By number.
    pub queues: Vec<QueueSummary>,
    /// To be given as `after`; none where there are no more.
    pub next: Option<u64>,
}

/// A queue: one tenant's stream to one destination domain.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct QueueSummary {
    /// Its number: given once, never again.
    pub id: u64,
    /// Who sends.
    pub tenant: String,
    /// Which of their streams.
    pub stream: String,
    /// By which way; 0 is by MX.
    pub route_group: u16,
    /// Where to.
    pub domain: String,
    /// Messages that wait, each once however many recipients it has here.
    pub messages: u64,
    /// Their octets.
    pub bytes: u64,
    /// Of them those that are set aside: nobody tries them.
    #[serde(default)]
    pub set_aside: u64,
    /// When the first of them came in, by due time: an older one may have been put off.
    pub oldest: Option<Time>,
    /// When the next is due.
    pub next_due: Option<Time>,
    /// The queue is not looked at before: its destination may rest.
    pub wake: Option<Time>,
    /// Why the destination domain rests, if it does.
    pub hold: Option<Hold>,
    /// What an operator has set it to wait for, if it was.
    pub suspension: Option<crate::operate::Suspension>,
    /// What its first message that is not on the wire waits for, where that isn't its own time. In lists only of queues that are at work, about to be, or rest.
    pub waits: Option<crate::operate::Waits>,
}

/// All holds, up to a bound.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct HoldList {
    /// By name.
    pub holds: Vec<Hold>,
    /// Whether there are more.
    pub more: bool,
}

/// A destination that rests as a whole: its messages' own times do not move.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Hold {
    /// `domain` or `lane`.
    pub scope: String,
    /// The domain, or the site of the lane.
    pub name: String,
    /// Since when.
    pub since: Time,
    /// Until when.
    pub until: Time,
    /// Failures in a row.
    pub failures: u32,
    /// What went wrong last.
    pub cause: String,
    /// What that means: a bounce class (docs/shaping.md).
    pub class: Option<String>,
}

/// A message with all that is known of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct MessageView {
    /// Its name.
    pub id: String,
    /// Whether some of it is in the queue still.
    pub queued: bool,
    /// Who sends; not known once all has ended and the journal has forgotten it.
    pub tenant: Option<String>,
    /// Which of their streams.
    pub stream: Option<String>,
    /// The sender's own word for messages of a kind (`Postrider-Tag`).
    pub tag: Option<String>,
    /// The sender's own names and values (`Postrider-Metadata`).
    pub metadata: BTreeMap<String, String>,
    /// Where reports go; empty for the null path.
    pub sender: Option<String>,
    /// Octets, as the client sent it.
    pub bytes: Option<u64>,
    /// When it came in.
    pub received_at: Time,
    /// When it is given up.
    pub expires_at: Option<Time>,
    /// Until when it is held, as its client asked (HOLDFOR, HOLDUNTIL); none once it was tried, or released by an operator.
    pub held_until: Option<Time>,
    /// The client's address.
    pub client: Option<String>,
    /// What the client called itself.
    pub helo: Option<String>,
    /// The credential it proved.
    pub credential: Option<String>,
    /// How it came in, as in Received.
    pub protocol: Option<String>,
    /// The message that this one reports on.
    pub cause: Option<String>,
    /// Each with its state.
    pub recipients: Vec<RecipientView>,
    /// What happened, oldest first, as far as the journal reaches back.
    pub events: Vec<EventView>,
}

/// Where a recipient stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
#[expect(missing_docs, reason = "DESIGN's names, which say it")]
pub enum RecipientState {
    /// Waits for its first attempt.
    Queued,
    /// Waits for its next attempt.
    Deferred,
    /// Set aside: what the store holds of it is damaged.
    Damaged,
    /// Set aside: working on it brings out a mistake of the relay's.
    Parked,
    Delivered,
    Bounced,
    Expired,
    Cancelled,
    Deleted,
    Suppressed,
    Discarded,
    HandedOver,
    /// It has ended, and the journal no longer says how.
    Ended,
}

impl fmt::Display for RecipientState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Queued => "queued",
            Self::Deferred => "deferred",
            Self::Damaged => "damaged",
            Self::Parked => "parked",
            Self::Delivered => "delivered",
            Self::Bounced => "bounced",
            Self::Expired => "expired",
            Self::Cancelled => "cancelled",
            Self::Deleted => "deleted",
            Self::Suppressed => "suppressed",
            Self::Discarded => "discarded",
            Self::HandedOver => "handed_over",
            Self::Ended => "ended",
        })
    }
}

/// A recipient of a message.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct RecipientView {
    /// The address.
    pub recipient: String,
    /// Where it stands.
    pub state: RecipientState,
    /// Attempts so far.
    pub attempts: u32,
    /// Attempts whose end is not known: each may have made a duplicate.
    pub in_doubt: u32,
    /// When it is tried next.
    pub next_due: Option<Time>,
    /// When it was tried last, or ended.
    pub last_attempt: Option<Time>,
    /// The last reply, or what else went wrong.
    pub last_reply: Option<String>,
    /// What that means, where it is no success: a bounce class (docs/shaping.md).
    pub class: Option<String>,
    /// The host that it was tried at last.
    pub host: Option<String>,
    /// The queue it waits in.
    pub queue: Option<u64>,
    /// What it waits for, where that isn't its own time. Not in lists.
    pub waits: Option<crate::operate::Waits>,
}

/// An entry of the journal.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct EventView {
    /// When.
    pub at: Time,
    /// What: `accepted`, `delivered`, `deferred`, …
    pub kind: String,
    /// Whom it concerns.
    pub recipients: Vec<String>,
    /// Number of the attempt; 0 where there was none.
    pub attempt: u32,
    /// Host and address where it was tried.
    pub host: Option<String>,
    /// The source that it was sent from, by its name; or the address, where `delivery.source` names one.
    pub source: Option<String>,
    /// The TLS version and cipher suite.
    pub tls: Option<String>,
    /// How long the transaction took, in milliseconds.
    pub millis: Option<u64>,
    /// The reply, or the cause.
    pub reply: String,
    /// What that means, of `deferred`, `bounced`, `expired` and `in_doubt`: a bounce class (docs/shaping.md).
    pub class: Option<String>,
}

/// Problem details (RFC 9457).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Problem {
    /// `about:blank`: the status says it all (RFC 9457 §4.2.1).
    #[serde(rename = "type")]
    pub kind: String,
    /// The status' own words.
    pub title: String,
    /// The HTTP status.
    pub status: u16,
    /// What is wrong here.
    pub detail: String,
    /// Of a configuration that was refused: every mistake, a line each.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub mistakes: Vec<String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_written_as_rfc_3339() {
        let time = Time(Timestamp(1_700_000_000_120));
        let json = serde_json::to_string(&time).unwrap();
        assert_eq!(json, "\"2023-11-14T22:13:20.120Z\"");
        assert_eq!(serde_json::from_str::<Time>(&json).unwrap(), time);
        assert!(Time(Timestamp::MAX).to_string().starts_with("9999-"));
    }
}
