//! What a reply means, and what follows from it: its class, and the class' rule.

use crate::report::Cause;
use crate::shaping::Shaping;
use crate::shaping::classes::{Class, Then};
use crate::shaping::pattern::Said;

use super::settle::{Outcome, Verdict};

/// Gives the outcomes of an attempt their classes, and has the classes' rules decide about what the peer said: a 5yz may be
/// tried again, a 4yz be the end. What we found ourselves (an 8-bit message for a host that takes none, a lost connection) stays.
pub fn decide(outcomes: &mut [Outcome], shaping: &Shaping) {
    for outcome in outcomes.iter_mut() {
        match &outcome.verdict {
            Verdict::Failed(Cause::Refused(_)) => {
                let class = given(outcome, shaping);
                if class.permanent == Then::Retry {
                    outcome.verdict = Verdict::Later;
                }
            }
            Verdict::Later => {
                let class = given(outcome, shaping);
                let said = Said::read(&outcome.reply);
                if class.temporary == Then::End
                    && said.is_transient_reply()
                    && let Some(reply) = said.to_reply()
                {
                    outcome.verdict = Verdict::Failed(Cause::Refused(reply));
                }
            }
            Verdict::Failed(_)
            | Verdict::Delivered
            | Verdict::Discarded
            | Verdict::Deleted(_)
            | Verdict::InDoubt => {}
        }
    }
}

/// Gives those of the outcomes their class that have none yet and are no success. What operators and rules of ours end is
/// no reply, and has none.
pub fn class(outcomes: &mut [Outcome], shaping: &Shaping) {
    for outcome in outcomes.iter_mut().filter(|outcome| outcome.class.is_none()) {
        match outcome.verdict {
            Verdict::Failed(_) | Verdict::Later | Verdict::InDoubt => {
                given(outcome, shaping);
            }
            Verdict::Delivered | Verdict::Discarded | Verdict::Deleted(_) => {}
        }
    }
}

fn given<'a>(outcome: &mut Outcome, shaping: &'a Shaping) -> &'a Class {
    let id = shaping.class_id(&outcome.reply, outcome.host.as_deref());
    outcome.class = Some(id);
    shaping.classes.get(id)
}

/// Whether mail ends that every host of its destination has refused at the door for this cause.
pub fn is_the_end(cause: &Cause, host: &str, shaping: &Shaping) -> bool {
    match cause {
        Cause::Refused(reply) => shaping.class(&reply.to_string(), Some(host)).permanent == Then::End,
        Cause::Undeliverable(..) | Cause::Expired { .. } => true,
    }
}

#[cfg(test)]
mod tests {
    use mail_core::{EnhancedCode, Reply};

    use super::*;

    fn outcome(verdict: Verdict, reply: &str) -> Outcome {
        Outcome {
            recipient: 0,
            mailbox: "bob@example.org".parse().unwrap(),
            verdict,
            reply: reply.into(),
            host: Some("mx.example.org".into()),
            class: None,
        }
    }

    fn refused(said: &str) -> Outcome {
        let reply = Said::read(said).to_reply().unwrap();
        outcome(Verdict::Failed(Cause::Refused(reply)), said)
    }

    /// Full mailboxes are tried again, unknown users are the end, whatever the first digit says.
    fn turned() -> Shaping {
        let mut shaping = (**Shaping::shipped()).clone();
        for (name, temporary, permanent) in [
            ("mailbox-full", Then::Retry, Then::Retry),
            ("unknown-user", Then::End, Then::End),
            ("connection", Then::End, Then::Retry),
        ] {
            shaping.classes.set(Class {
                name: name.into(),
                meaning: "".into(),
                temporary,
                permanent,
            });
        }
        shaping
    }

    fn decided(outcome: Outcome, shaping: &Shaping) -> (String, String) {
        let mut outcomes = [outcome];
        decide(&mut outcomes, shaping);
        class(&mut outcomes, shaping);
        let [outcome] = outcomes;
        let verdict = match outcome.verdict {
            Verdict::Failed(Cause::Refused(reply)) => format!("ends: {reply}"),
            Verdict::Failed(_) => "ends".to_owned(),
            Verdict::Later => "later".to_owned(),
            Verdict::InDoubt => "in doubt".to_owned(),
            other => format!("{other:?}"),
        };
        (
            verdict,
            outcome
                .class
                .map_or("none", |id| &shaping.classes.get(id).name)
                .to_owned(),
        )
    }

    #[test]
    fn unless_a_rule_says_otherwise_the_first_digit_decides() {
        let shaping = Shaping::shipped();
        for (outcome, verdict, class) in [
            (refused("552 5.2.2 full"), "ends: 552 5.2.2 full", "mailbox-full"),
            (
                outcome(Verdict::Later, "450 4.1.1 no such user"),
                "later",
                "unknown-user",
            ),
            (outcome(Verdict::Delivered, "250 ok"), "Delivered", "none"),
        ] {
            assert_eq!(decided(outcome, shaping), (verdict.to_owned(), class.to_owned()));
        }
    }

    #[test]
    fn a_rule_turns_what_the_peer_said() {
        let shaping = turned();
        for (outcome, verdict, class) in [
            (refused("552 5.2.2 full"), "later", "mailbox-full"),
            (
                outcome(Verdict::Later, "450 4.1.1 no such user"),
                "ends: 450 4.1.1 no such user",
                "unknown-user",
            ),
            (
                refused("550 5.1.1 no such user"),
                "ends: 550 5.1.1 no such user",
                "unknown-user",
            ),
            // Words of ours, and what was on the wire.
            (
                outcome(Verdict::Later, "connection lost at RCPT"),
                "later",
                "connection",
            ),
            (
                outcome(Verdict::InDoubt, "connection lost after the final dot"),
                "in doubt",
                "connection",
            ),
            (
                outcome(
                    Verdict::Failed(Cause::Undeliverable(EnhancedCode(5, 2, 2), "full".into())),
                    "552 5.2.2 full",
                ),
                "ends",
                "mailbox-full",
            ),
            (
                outcome(
                    Verdict::Failed(Cause::Expired {
                        last: None,
                        held_by: None,
                    }),
                    "4.4.7 delivery time expired; last: 452 4.2.2 full",
                ),
                "ends",
                "mailbox-full",
            ),
            (
                outcome(Verdict::Discarded, "550 5.1.1 by rule"),
                "Discarded",
                "none",
            ),
        ] {
            assert_eq!(decided(outcome, &shaping), (verdict.to_owned(), class.to_owned()));
        }
    }

    #[test]
    fn a_refusal_at_the_door_is_judged_likewise() {
        let full = Cause::Refused(Reply::new(552, 2, 2, "full"));
        let user = Cause::Refused(Reply::new(550, 1, 1, "no such user"));
        let shaping = turned();
        assert!(!is_the_end(&full, "mx.test", &shaping) && is_the_end(&user, "mx.test", &shaping));
        assert!(is_the_end(&full, "mx.test", Shaping::shipped()));
        let ours = Cause::Undeliverable(EnhancedCode(5, 2, 2), "full".into());
        assert!(is_the_end(&ours, "mx.test", &shaping));
    }

    /// The end of a 4yz is told as what it is: for good, with the peer's own words.
    #[test]
    fn a_report_of_a_4yz_that_is_the_end_has_a_status_of_class_5() {
        let status = |reply: Reply| Cause::Refused(reply).status();
        assert_eq!(status(Reply::new(450, 1, 1, "no")), EnhancedCode(5, 1, 1));
        assert_eq!(status(Reply::plain(450, "no")), EnhancedCode(5, 0, 0));
        let odd = Reply {
            enhanced: Some(EnhancedCode(4, 1, 1)),
            ..Reply::plain(550, "no")
        };
        assert_eq!(status(odd), EnhancedCode(5, 0, 0));
    }
}
