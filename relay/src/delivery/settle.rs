//! From what was said of each recipient to what is recorded.

use std::sync::Arc;
use std::time::Duration;

use mail_core::{Mailbox, Timestamp};
use queue::{Again, Backoff, End, Fate, Hop, NewMessage, Settle, StillOpen, UnitKey, Waiting};

use crate::report::Cause;
use crate::shaping::classes::ClassId;

use super::attempt::OpenRecipient;

/// What an attempt, or a decision of ours, says of one recipient.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// Its index in the unit.
    pub recipient: u16,
    /// Who.
    pub mailbox: Mailbox,
    /// What.
    pub verdict: Verdict,
    /// The peer's reply, or the cause in our words, on one line.
    pub reply: String,
    /// The host that said it; none where we decided.
    pub host: Option<String>,
    /// What it means, where it is no success; see [`super::judge`].
    pub class: Option<ClassId>,
}

/// What is said of a unit's recipients.
#[derive(Clone, Debug, Default)]
pub struct Outcomes {
    /// One for each of whom something is.
    pub each: Vec<Outcome>,
    /// The others.
    pub rest: Rest,
}

impl From<Vec<Outcome>> for Outcomes {
    /// Of all of them.
    fn from(each: Vec<Outcome>) -> Self {
        let rest = Rest::default();
        Self { each, rest }
    }
}

/// Recipients of whom a part of an attempt says nothing.
#[derive(Clone, Debug, Default)]
pub struct Rest {
    /// Nobody was asked about them yet in this attempt: it goes on with them at once.
    pub untried: Vec<OpenRecipient>,
    /// A part of it before has tried them; they wait for the next attempt.
    pub tried: Vec<OpenRecipient>,
}

impl Rest {
    fn waiting(&self) -> Vec<Waiting> {
        // Who has not been asked about is told by that there is no reply.
        let untried = self.untried.iter().map(|open| (open.index, None));
        let tried = self
            .tried
            .iter()
            .map(|open| (open.index, open.last_reply.as_ref()));
        let waiting = |(recipient, reply): (u16, Option<&String>)| Waiting {
            recipient,
            reply: reply.cloned().unwrap_or_default(),
        };
        untried.chain(tried).map(waiting).collect()
    }
}

/// What becomes of the recipient.
#[derive(Clone, Debug)]
pub enum Verdict {
    /// The next hop has it.
    Delivered,
    /// It ends here.
    Failed(Cause),
    /// It ends here, by rule, and nobody is told.
    Discarded,
    /// It ends here, by an operator, and its sender is told of this cause.
    Deleted(Cause),
    /// Try again.
    Later,
    /// The final dot was sent and no reply came: the next hop may have it (RFC 1047).
    InDoubt,
}

/// What was known of a unit when it was claimed.
#[derive(Clone, Copy, Debug)]
pub struct Past {
    /// Attempts that ended with a deferral.
    pub attempts: u32,
    /// How many of them were left in doubt.
    pub in_doubt: u32,
    /// When the message expires.
    pub expires_at: Timestamp,
    /// When it is returned if it has not been delivered, where its client says so (BY with R): no later than `expires_at`.
    pub return_at: Option<Timestamp>,
    /// When its sender was told of the delay, now or before.
    pub delay_told: Option<Timestamp>,
}

/// The last attempt at what is to be returned in time begins so long before.
const LAST_CHANCE: Duration = Duration::from_secs(60);

/// With less time than this left, no further attempt is planned.
const TOO_LITTLE: Duration = Duration::from_secs(10);

impl Past {
    /// When the last attempt is to be made.
    pub(super) fn last_chance(&self, now: Timestamp) -> Timestamp {
        // What should have ended is left a while after a start, and tried in it as anything else is.
        let end = match self.expires_at < now {
            true => Timestamp::MAX,
            false => self.expires_at,
        };
        match self.return_at {
            // The peer needs time of its own: at the end there is nothing left to promise.
            Some(at) if at <= self.expires_at => match at.since(now) {
                left if left >= 2 * LAST_CHANCE => at - LAST_CHANCE,
                left if left >= TOO_LITTLE => now + left / 2,
                _ => end,
            },
            // It comes just before the message expires, not after.
            _ => end,
        }
    }
}

/// Makes the record of an attempt, or of a part of it that others follow. `reports` tell the sender of it.
pub fn settle(
    unit: UnitKey,
    past: Past,
    outcomes: &Outcomes,
    hop: Option<Hop>,
    reports: Vec<Arc<NewMessage>>,
    retry: (&Backoff, f64),
    now: Timestamp,
) -> Settle {
    let Outcomes { each: outcomes, rest } = outcomes;
    let ends = outcomes.iter().filter_map(end).collect();
    let open: Vec<_> = outcomes
        .iter()
        .filter(|outcome| is_open(outcome))
        .map(still_open)
        .collect();
    let doubtful = outcomes
        .iter()
        .any(|outcome| matches!(outcome.verdict, Verdict::InDoubt));
    let goes_on = !rest.untried.is_empty();
    let attempts = past.attempts + u32::from(!goes_on);
    let (backoff, chance) = retry;
    let due = match goes_on {
        // Never as before, so that what was written is told from what was not.
        true if now == unit.due => now + Duration::from_millis(1),
        true => now,
        false => (now + backoff.delay(attempts, chance)).min(past.last_chance(now)),
    };
    let others = rest.waiting();
    let again = (!open.is_empty() || !others.is_empty()).then(|| Again {
        due,
        attempts,
        in_doubt: past.in_doubt + u32::from(doubtful),
        doubtful,
        open,
        others,
        signature: None,
        delay_told: past.delay_told,
    });
    // What ends of itself ends after the attempts that there were.
    let attempt = past.attempts + u32::from(hop.is_some());
    Settle {
        unit,
        at: now,
        attempt,
        hop,
        ends,
        again,
        reports,
    }
}

pub(super) fn end(outcome: &Outcome) -> Option<End> {
    let fate = match outcome.verdict {
        Verdict::Delivered => Fate::Delivered,
        Verdict::Failed(Cause::Refused(_) | Cause::Undeliverable(..)) => Fate::Bounced,
        Verdict::Failed(Cause::Expired { .. }) => Fate::Expired,
        Verdict::Discarded => Fate::Discarded,
        Verdict::Deleted(_) => Fate::Deleted,
        Verdict::Later | Verdict::InDoubt => return None,
    };
    Some(End {
        mailbox: outcome.mailbox.clone(),
        fate,
        reply: outcome.reply.clone(),
    })
}

fn is_open(outcome: &Outcome) -> bool {
    matches!(outcome.verdict, Verdict::Later | Verdict::InDoubt)
}

fn still_open(outcome: &Outcome) -> StillOpen {
    StillOpen {
        recipient: outcome.recipient,
        mailbox: outcome.mailbox.clone(),
        reply: outcome.reply.clone(),
    }
}

#[cfg(test)]
mod tests {
    use mail_core::{MessageId, Reply};
    use queue::QueueId;

    use super::*;

    const NOW: Timestamp = Timestamp(1_000_000);
    const RETRY: Backoff = Backoff {
        first: Duration::from_secs(60),
        factor: 2.0,
        cap: Duration::from_secs(600),
        jitter: 0.0,
    };

    fn outcome(recipient: u16, verdict: Verdict) -> Outcome {
        let mailbox = format!("r{recipient}@ok.test").parse().unwrap();
        Outcome {
            recipient,
            mailbox,
            verdict,
            reply: "said so".into(),
            host: None,
            class: None,
        }
    }

    fn settled(outcomes: &[Outcome], expires_in: u64) -> Settle {
        settled_by(outcomes, expires_in, None)
    }

    fn settled_by(outcomes: &[Outcome], expires_in: u64, return_at: Option<Timestamp>) -> Settle {
        settled_at(Some(Hop::default()), outcomes, expires_in, return_at)
    }

    fn settled_at(
        hop: Option<Hop>,
        outcomes: &[Outcome],
        expires_in: u64,
        return_at: Option<Timestamp>,
    ) -> Settle {
        let unit = UnitKey {
            queue: QueueId(1),
            due: NOW,
            id: MessageId::from_bytes([1; 16]),
            unit: 0,
        };
        let past = Past {
            attempts: 2,
            in_doubt: 1,
            expires_at: NOW + Duration::from_secs(expires_in),
            return_at,
            delay_told: None,
        };
        let outcomes = outcomes.to_vec().into();
        settle(unit, past, &outcomes, hop, Vec::new(), (&RETRY, 0.5), NOW)
    }

    #[test]
    fn ends_and_waits_are_told_apart() {
        let settle = settled(
            &[
                outcome(0, Verdict::Delivered),
                outcome(
                    3,
                    Verdict::Failed(Cause::Refused(Reply::new(550, 1, 1, "no such user"))),
                ),
                outcome(4, Verdict::Later),
            ],
            10_000,
        );
        assert_eq!(
            settle.ends.iter().map(|end| end.fate).collect::<Vec<_>>(),
            [Fate::Delivered, Fate::Bounced]
        );
        let again = settle.again.unwrap();
        assert_eq!(again.open[0].recipient, 4);
        assert_eq!((again.attempts, again.in_doubt, again.doubtful), (3, 1, false));
        assert_eq!(again.due, NOW + Duration::from_secs(240));
    }

    #[test]
    fn doubt_is_counted_and_tried_again() {
        let again = settled(&[outcome(0, Verdict::InDoubt)], 10_000).again.unwrap();
        assert_eq!((again.in_doubt, again.doubtful), (2, true));
    }

    #[test]
    fn no_attempt_is_planned_past_the_end() {
        let again = settled(&[outcome(0, Verdict::Later)], 30).again.unwrap();
        assert_eq!(again.due, NOW + Duration::from_secs(30));
    }

    /// RFC 2852: the next wait would be four minutes.
    #[test]
    fn what_is_to_be_returned_is_tried_once_more_in_time() {
        for (left, next) in [
            (1_000, 240),
            (300, 240),
            (299, 239),
            (120, 60),
            (100, 50),
            (10, 5),
            (9, 9),
            (0, 0),
        ] {
            let span = Duration::from_secs;
            let by = Some(NOW + span(left));
            let again = settled_by(&[outcome(0, Verdict::Later)], left, by).again.unwrap();
            assert_eq!(again.due, NOW + span(next), "{left}");
        }
    }

    #[test]
    fn what_ends_of_itself_is_no_attempt() {
        let cause = Cause::Expired {
            last: None,
            held_by: None,
        };
        let expired = [outcome(0, Verdict::Failed(cause))];
        assert_eq!(settled(&expired, 0).attempt, 3);
        assert_eq!(settled_at(None, &expired, 0, None).attempt, 2);
    }

    #[test]
    fn all_ended_is_the_units_end() {
        assert!(settled(&[outcome(0, Verdict::Delivered)], 30).again.is_none());
    }
}
