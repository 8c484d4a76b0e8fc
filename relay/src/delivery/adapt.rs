//! What replies teach: which of them ask us to go slower, or to come again later, and what becomes of the lane.
//!
//! Nothing here waits, or knows of shards. [`lesson`] reads one reply; [`Pace`] is how slow a lane goes, a value; [`Adapt`] is what
//! a lane has learned and how its attempts went lately. The shard (`shard/adapt.rs`) keeps them, and obeys.

mod lane;
mod pace;
mod tally;
pub mod wording;

use std::time::Duration;

use mail_core::smtp::client::Stage;

use crate::shaping::pattern::Said;
use crate::shaping::{Advice, After, Reach};

pub use lane::{Adapt, Held, SaidTo, Step};
pub use pace::{Limits, Pace};
pub use tally::Tally;

/// What one reply teaches.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Lesson {
    /// The unit's own next attempt is due after this time.
    pub again_after: Option<Duration>,
    /// What it means for others.
    pub others: Others,
}

/// What a reply means for mail that it was not said of, from the least to the most.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Others {
    /// Nothing.
    #[default]
    Nothing,
    /// The lane is to go slower.
    Slower,
    /// Nothing goes for a time.
    Suspend {
        /// Which mail.
        reach: Reach,
        /// For how long.
        time: Duration,
        /// Not before there were several such replies.
        after: Option<Several>,
        /// A rule of the configuration says so: it holds though the lane works.
        ruled: bool,
    },
}

/// How many replies it takes, and what one of them means until then.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Several {
    /// How many, of what kind.
    pub after: After,
    /// The lane is to go slower for each.
    pub slower: bool,
}

impl Several {
    /// What it means before there were as many.
    pub fn until_then(self) -> Others {
        match self.slower {
            true => Others::Slower,
            false => Others::Nothing,
        }
    }
}

impl Others {
    /// The more, the more it changes.
    pub fn weight(self) -> (u8, Duration) {
        match self {
            Self::Nothing => (0, Duration::ZERO),
            Self::Slower => (1, Duration::ZERO),
            // Until there are as many it weighs as what it means by then.
            Self::Suspend {
                after: Some(several),
                time,
                ..
            } => (several.until_then().weight().0, time),
            Self::Suspend { time, .. } => (2, time),
        }
    }
}

/// Classes whose 4.7.x, and whose 421, is about the message or its recipient, or about what no slower lane mends.
const OTHERWISE: [&str; 12] = [
    "greylist",
    "unknown-user",
    "disabled",
    "mailbox-full",
    "bad-domain",
    "bad-sender",
    "size",
    "content",
    "virus",
    "relay-denied",
    "tls",
    "loop",
];

/// What a reply teaches that was said at this stage, is of this class, and of which a rule or the provider's table says `advice`.
/// Words of our own teach nothing.
pub fn lesson(said: &str, class: &str, advice: Option<&Advice>, stage: Stage) -> Lesson {
    let said = Said::read(said);
    let Some(code) = said.code.filter(|code| (400..600).contains(code)) else {
        return Lesson::default();
    };
    let asked = wording::wait(said.text);
    let waits = asked.filter(|_| code < 500);
    if let Some(advice) = advice {
        return advised(*advice, waits, is_about_us(&said, code, class, stage));
    }
    if class == "greylist" {
        return Lesson {
            again_after: waits,
            others: Others::Nothing,
        };
    }
    let others = match asked {
        _ if !is_about_us(&said, code, class, stage) => Others::Nothing,
        Some(time) => Others::Suspend {
            reach: Reach::Lane,
            time,
            after: None,
            ruled: false,
        },
        None => Others::Slower,
    };
    Lesson {
        again_after: waits,
        others,
    }
}

fn advised(advice: Advice, waits: Option<Duration>, slower: bool) -> Lesson {
    match advice {
        // Whatever else is asked for, a time is obeyed.
        Advice::SlowDown => Lesson {
            again_after: waits,
            others: waits.map_or(Others::Slower, |time| Others::Suspend {
                reach: Reach::Lane,
                time,
                after: None,
                ruled: false,
            }),
        },
        Advice::Suspend {
            reach,
            time,
            after,
            ruled,
        } => Lesson {
            // Where it is not the last of several it comes again as usual: whatever is suspended by then waits.
            again_after: if after.is_some() { waits } else { Some(time) },
            others: Others::Suspend {
                reach,
                time,
                after: after.map(|after| Several { after, slower }),
                ruled,
            },
        },
    }
}

/// Whether a reply is about how we send, rather than about what we sent, or to whom.
fn is_about_us(said: &Said<'_>, code: u16, class: &str, stage: Stage) -> bool {
    let (subject, detail) = said.enhanced.map_or((0, 0), |code| (code.1, code.2));
    // Too many recipients of one transaction: it gets the next one.
    let is_too_many = (subject, detail) == (5, 3) || (stage == Stage::Rcpt && matches!(code, 452 | 552));
    // RFC 3463: subjects 1 and 2 are the address and its mailbox.
    let is_recipients = stage == Stage::Rcpt && matches!(subject, 1 | 2);
    // We had said nothing for too long.
    let is_idle = class == "connection";
    if code == 421 {
        return !is_idle && (class == "rate" || !OTHERWISE.contains(&class));
    }
    if is_too_many || is_recipients {
        return false;
    }
    match class {
        "rate" => true,
        "block" => code < 500,
        class => code < 500 && subject == 7 && !OTHERWISE.contains(&class),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shaping::Shaping;

    const MINUTE: Duration = Duration::from_secs(60);

    fn of(said: &str, host: &str, stage: Stage) -> Lesson {
        let shaping = Shaping::shipped();
        let class = shaping.class(said, Some(host));
        lesson(said, &class.name, shaping.advice(said, Some(host)), stage)
    }

    fn others(said: &str, stage: Stage) -> Others {
        of(said, "mx.example.org", stage).others
    }

    fn suspend(minutes: u32) -> Others {
        Others::Suspend {
            reach: Reach::Lane,
            time: minutes * MINUTE,
            after: None,
            ruled: false,
        }
    }

    #[test]
    fn what_asks_for_less() {
        for (said, stage) in [
            ("421 too many connections from you", Stage::Greeting),
            ("421 4.3.2 shutting down", Stage::Mail),
            ("421 Service not available", Stage::Greeting),
            ("450 4.7.1 not so fast", Stage::Rcpt),
            ("451 4.7.0 temporarily deferred due to policy", Stage::FinalDot),
            ("452 4.3.1 rate limit exceeded", Stage::Mail),
            ("550 5.7.1 too many messages from your address", Stage::FinalDot),
            ("450 4.0.0 your address has a bad reputation", Stage::Data),
        ] {
            assert_eq!(others(said, stage), Others::Slower, "{said}");
        }
    }

    #[test]
    fn what_is_the_messages_own_matter() {
        for (said, stage) in [
            ("550 5.1.1 no such user", Stage::Rcpt),
            ("552 5.2.2 mailbox full", Stage::Rcpt),
            ("450 4.2.1 later", Stage::Rcpt),
            (
                "450 4.2.1 the user is receiving mail at a rate that is too high",
                Stage::Rcpt,
            ),
            ("452 4.5.3 too many recipients", Stage::Rcpt),
            ("452 too many recipients", Stage::Rcpt),
            ("554 5.7.1 message looks like spam", Stage::FinalDot),
            ("554 5.7.1 blocked by spamhaus", Stage::Greeting),
            ("451 4.3.0 out of disk", Stage::Data),
            ("454 4.7.5 certificate", Stage::StartTls),
            ("421 4.4.2 idle for too long", Stage::Mail),
            ("connection lost at RCPT", Stage::Rcpt),
            ("4.4.1 no answer", Stage::Greeting),
            ("250 2.0.0 try again in 5 minutes", Stage::FinalDot),
        ] {
            assert_eq!(others(said, stage), Others::Nothing, "{said}");
        }
    }

    #[test]
    fn a_time_is_obeyed() {
        for (said, stage) in [
            ("421 4.7.0 try again in 5 minutes", Stage::Greeting),
            ("451 4.7.1 rate exceeded, retry after 300 seconds", Stage::Mail),
        ] {
            assert_eq!(others(said, stage), suspend(5), "{said}");
        }
        let mailbox = of(
            "450 4.2.2 mailbox full, try again in 5 minutes",
            "mx.example.org",
            Stage::Rcpt,
        );
        assert_eq!(mailbox.others, Others::Nothing, "the recipient's own matter");
        assert_eq!(mailbox.again_after, Some(5 * MINUTE));
    }

    #[test]
    fn greylisting_concerns_the_unit_alone() {
        for (said, minutes) in [
            ("451 4.7.1 Greylisted, try again in 5 minutes", Some(5)),
            (
                "450 4.2.0 <a@b.test>: greylisting in action, come back in 00:02:00",
                Some(2),
            ),
            ("451 4.7.1 Greylisted", None),
        ] {
            let lesson = of(said, "mx.example.org", Stage::Rcpt);
            let again_after = minutes.map(|minutes| minutes * MINUTE);
            let others = Others::Nothing;
            assert_eq!(lesson, Lesson { again_after, others }, "{said}");
        }
    }

    #[test]
    fn what_is_known_of_a_provider_goes_first() {
        let rest = of(
            "550 5.7.1 Mail from 192.0.2.1 is on our block list (S3150)",
            "x.olc.protection.outlook.com",
            Stage::Mail,
        );
        let Others::Suspend {
            after: Some(several),
            time,
            ..
        } = rest.others
        else {
            panic!("{rest:?}");
        };
        assert_eq!(
            (time, several.after.replies, several.slower),
            (120 * MINUTE, 5, false)
        );
        let slower = of(
            "421 4.7.28 unusual rate of unsolicited mail, try again in 5 minutes",
            "gmail-smtp-in.l.google.com",
            Stage::Greeting,
        );
        assert_eq!(slower.others, suspend(5), "a time is obeyed");
        assert_eq!(slower.again_after, Some(5 * MINUTE));
        let slower = of(
            "421 4.7.28 unusual rate of unsolicited mail",
            "gmail-smtp-in.l.google.com",
            Stage::Greeting,
        );
        assert_eq!((slower.others, slower.again_after), (Others::Slower, None));
    }

    #[test]
    fn the_longer_suspension_weighs_more() {
        let mut all = [suspend(5), Others::Nothing, suspend(9), Others::Slower];
        all.sort_by_key(|others| others.weight());
        assert_eq!(all, [Others::Nothing, Others::Slower, suspend(5), suspend(9)]);
    }
}
