//! What travels beside a message: who sent it, to whom, and what the client asked for.

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::Timestamp;
use crate::mailbox::{Mailbox, ReversePath};

/// The envelope of one mail transaction (RFC 5321 §2.3.1).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Envelope {
    /// Where reports go.
    pub reverse_path: ReversePath,
    /// What BODY said at MAIL (RFC 6152).
    pub body: BodyType,
    /// SMTPUTF8 was said at MAIL (RFC 6531 §3.4).
    pub smtputf8: bool,
    /// What MAIL asked of reports.
    pub dsn: DsnOptions,
    /// Until when MAIL asked for the message to be held.
    pub hold: Option<Hold>,
    /// In what time MAIL asked for it to be delivered.
    pub by: Option<By>,
    /// How urgent MAIL said it is.
    pub priority: Option<Priority>,
    /// At least one; in the order the client gave them.
    pub recipients: Vec<Recipient>,
}

/// One forward-path of an envelope.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Recipient {
    /// Where the message shall go.
    pub mailbox: Mailbox,
    /// NOTIFY (RFC 3461 §4.1); `None` where it was not said: failures are reported, delays as the relay sees fit.
    pub notify: Option<Notify>,
    /// ORCPT as it was said, `type;address`, the address in xtext or utf-8-addr-xtext (RFC 3461 §4.2, RFC 6533 §3).
    pub orcpt: Option<Box<str>>,
}

impl Recipient {
    /// A recipient of whom nothing more was said.
    pub fn new(mailbox: Mailbox) -> Self {
        Self {
            mailbox,
            notify: None,
            orcpt: None,
        }
    }
}

/// How long a message is to be held before it is sent (RFC 4865 §3).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Hold {
    /// HOLDFOR: from the moment it comes in.
    For(Duration),
    /// HOLDUNTIL.
    Until(Timestamp),
}

impl Hold {
    /// When a message that comes in at `now` is released; at once where that time has passed.
    pub fn release(self, now: Timestamp) -> Timestamp {
        match self {
            Self::For(span) => now + span,
            Self::Until(at) => at.max(now),
        }
    }
}

/// How long a server holds mail (RFC 4865 §3): both bounds are told at EHLO.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MaxHold {
    /// HOLDFOR's, in whole seconds.
    pub interval: Duration,
    /// HOLDUNTIL's.
    pub until: Timestamp,
}

impl MaxHold {
    /// `interval` from `now` on.
    pub fn new(interval: Duration, now: Timestamp) -> Self {
        let interval = Duration::from_secs(interval.as_secs().min(999_999_999));
        let until = now + interval;
        Self { interval, until }
    }

    /// Whether a hold is within them.
    pub fn allows(&self, hold: Hold) -> bool {
        match hold {
            Hold::For(span) => span <= self.interval,
            Hold::Until(at) => at <= self.until,
        }
    }
}

/// What MAIL asked of the way a message takes, and what next hops are told again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct TransferOptions {
    /// MT-PRIORITY.
    pub priority: Option<Priority>,
    /// BY.
    pub by: Option<DeliverBy>,
}

impl TransferOptions {
    /// The time at which a message that has not been delivered is to be returned (BY with R).
    pub fn return_at(&self) -> Option<Timestamp> {
        self.by.filter(|by| by.late == WhenLate::Return).map(|by| by.at)
    }

    /// The time at which the sender is to hear that the message is late (BY with N).
    pub fn notify_at(&self) -> Option<Timestamp> {
        self.by.filter(|by| by.late == WhenLate::Notify).map(|by| by.at)
    }
}

/// How urgent a message is (RFC 6710 §3): -9 to 9, 0 where nothing is said.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "i8", into = "i8")]
pub struct Priority(i8);

impl TryFrom<i8> for Priority {
    type Error = &'static str;

    fn try_from(value: i8) -> Result<Self, Self::Error> {
        (-9..=9)
            .contains(&value)
            .then_some(Self(value))
            .ok_or("a priority is a number from -9 to 9")
    }
}

impl From<Priority> for i8 {
    fn from(priority: Priority) -> Self {
        priority.0
    }
}

impl fmt::Display for Priority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// What becomes of a message that has not been delivered in time (RFC 2852 §4.1.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum WhenLate {
    /// `R`: it is returned, and goes to no host that does not promise the same.
    Return,
    /// `N`: its sender is told, and it is tried on.
    Notify,
}

/// BY's value: a time that is counted from the moment in which it is said (RFC 2852 §4).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct By {
    /// Up to nine digits; above 0 with [`WhenLate::Return`].
    pub seconds: i32,
    /// What then.
    pub late: WhenLate,
    /// `T`: every host on the way tells the sender that it has passed the message on.
    pub trace: bool,
}

impl By {
    /// The most that nine digits say.
    pub const MOST: i32 = 999_999_999;

    /// What it means for a message that comes in at `now`.
    pub fn from(self, now: Timestamp) -> DeliverBy {
        let span = Duration::from_secs(self.seconds.unsigned_abs().into());
        DeliverBy {
            at: if self.seconds < 0 { now - span } else { now + span },
            late: self.late,
            trace: self.trace,
        }
    }
}

impl fmt::Display for By {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let late = match self.late {
            WhenLate::Return => 'R',
            WhenLate::Notify => 'N',
        };
        let trace = if self.trace { "T" } else { "" };
        write!(f, "{};{late}{trace}", self.seconds)
    }
}

/// When a message is to be delivered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct DeliverBy {
    /// In time.
    pub at: Timestamp,
    /// What then.
    pub late: WhenLate,
    /// As [`By::trace`].
    pub trace: bool,
}

impl DeliverBy {
    /// What the next hop is told at `now`: the time that is left, in whole seconds that have not begun.
    pub fn left(&self, now: Timestamp) -> By {
        let millis = i128::from(self.at.0) - i128::from(now.0);
        let most = i128::from(By::MOST);
        By {
            seconds: i32::try_from(millis.div_euclid(1_000).clamp(-most, most)).unwrap_or(0),
            late: self.late,
            trace: self.trace,
        }
    }
}

/// What MAIL asked of reports (RFC 3461 §4.3, §4.4).
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct DsnOptions {
    /// How much of the message a failure report returns; `None` where it was not said.
    pub ret: Option<Ret>,
    /// ENVID as it was said, in xtext.
    pub envid: Option<Box<str>>,
}

/// The RET parameter of MAIL (RFC 3461 §4.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Ret {
    /// The whole message.
    Full,
    /// Its header.
    Headers,
}

/// The NOTIFY parameter of RCPT (RFC 3461 §4.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Notify {
    /// Nothing is ever reported.
    Never,
    /// What is named is reported; at least one is.
    On {
        /// Delivery, or the handing on to a host that does not report.
        success: bool,
        /// Failure for good.
        failure: bool,
        /// A delay.
        delay: bool,
    },
}

/// The BODY parameter of MAIL (RFC 6152 §2).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum BodyType {
    /// Declared, or implied by silence, as 7-bit. Clients do err: the octets decide, not this.
    #[default]
    SevenBit,
    /// `BODY=8BITMIME`.
    EightBitMime,
    /// `BODY=BINARYMIME` (RFC 3030 §3): lines may be of any length, CR and LF may stand alone.
    BinaryMime,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_time_that_is_left_runs_out() {
        let now = Timestamp(1_700_000_000_000);
        let by = By {
            seconds: 600,
            late: WhenLate::Notify,
            trace: true,
        };
        let until = by.from(now);
        assert_eq!((by.to_string(), until.left(now)), ("600;NT".to_owned(), by));
        for (millis, seconds) in [(1, 599), (1_000, 599), (599_001, 0), (600_000, 0), (600_001, -1)] {
            let later = now + Duration::from_millis(millis);
            assert_eq!(until.left(later).seconds, seconds, "{millis}");
        }
        let past = By { seconds: -5, ..by };
        assert_eq!(past.from(now).left(now), past);
        let ever = DeliverBy {
            at: Timestamp::MAX,
            ..until
        };
        assert_eq!(ever.left(now).seconds, By::MOST);
    }
}
