//! Who is told of what (RFC 3461 §4.1, §5.2): from outcomes to the notices of reports.

use mail_core::{DeliverBy, Notify, Recipient, Timestamp, WhenLate};

use crate::report::{Kind, Notice, Told};

use super::settle::{Outcome, Verdict};
use crate::shaping::Shaping;

/// What decides beside the outcome and the recipient's own wishes.
#[derive(Clone, Copy, Debug)]
pub struct Circumstances<'a> {
    /// When the outcomes came.
    pub now: Timestamp,
    /// The message is old enough to be called delayed, and its sender has not been told.
    pub delay_due: bool,
    /// When the message expires.
    pub expires_at: Timestamp,
    /// The time that the client named (BY).
    pub by: Option<DeliverBy>,
    /// Of the peer that has taken the message, if one has.
    pub peer: Peer,
    /// The names of classes.
    pub shaping: &'a Shaping,
}

/// What a peer that takes a message will do about it.
#[derive(Clone, Copy, Debug, Default)]
pub struct Peer {
    /// It took the wishes over (it offers DSN): it reports on what it has.
    pub reports: bool,
    /// It was told of the time (it offers DELIVERBY).
    pub keeps_time: bool,
}

/// The notices of an attempt, of all kinds. `recipients` are the unit's, by index.
pub fn notices(outcomes: &[Outcome], recipients: &[Recipient], now: &Circumstances<'_>) -> Vec<Notice> {
    outcomes
        .iter()
        .filter_map(|outcome| {
            let to = recipients.get(usize::from(outcome.recipient))?;
            if !is_wanted(kind(outcome, now)?, to.notify, now) {
                return None;
            }
            Some(Notice {
                to: to.clone(),
                told: told(outcome, now)?,
                remote: outcome.host.clone(),
                class: outcome.class.map(|id| now.shaping.classes.get(id).name.clone()),
                last_attempt: outcome.host.is_some().then_some(now.now),
            })
        })
        .collect()
}

/// Of which kind a notice of it is, if there is one. Most are not wanted, and need not be made to know that.
fn kind(outcome: &Outcome, now: &Circumstances<'_>) -> Option<Kind> {
    match &outcome.verdict {
        Verdict::Failed(_) | Verdict::Deleted(_) => Some(Kind::Failed),
        Verdict::Delivered if !now.peer.reports || is_traced(now) => Some(Kind::Relayed),
        Verdict::Later | Verdict::InDoubt if now.delay_due => Some(Kind::Delayed),
        Verdict::Delivered | Verdict::Later | Verdict::InDoubt | Verdict::Discarded => None,
    }
}

fn told(outcome: &Outcome, now: &Circumstances<'_>) -> Option<Told> {
    match &outcome.verdict {
        Verdict::Failed(cause) | Verdict::Deleted(cause) => Some(Told::Failed(cause.clone())),
        Verdict::Delivered if !now.peer.reports || is_traced(now) => {
            Some(Told::Relayed(outcome.reply.clone()))
        }
        Verdict::Later | Verdict::InDoubt if now.delay_due => {
            Some(Told::Delayed(outcome.reply.clone(), now.expires_at))
        }
        Verdict::Delivered | Verdict::Later | Verdict::InDoubt | Verdict::Discarded => None,
    }
}

/// Whether the sender hears that the message was passed on because of the time it named (RFC 2852 §4.1.4): in that time to a host
/// that was not told of it, so that nobody will say when it is late; or to any, where it is traced.
fn is_traced(now: &Circumstances<'_>) -> bool {
    let is_untold = |by: DeliverBy| by.late == WhenLate::Notify && now.now < by.at && !now.peer.keeps_time;
    now.by.is_some_and(|by| by.trace || is_untold(by))
}

/// Failures unless told otherwise, and what BY asked for; the rest only where it was asked for.
fn is_wanted(kind: Kind, notify: Option<Notify>, now: &Circumstances<'_>) -> bool {
    let named = now.by.is_some_and(|by| by.late == WhenLate::Notify);
    match (kind, notify) {
        (_, Some(Notify::Never)) => false,
        (Kind::Failed, None) => true,
        (Kind::Delayed, None) if named => true,
        (Kind::Relayed, _) if is_traced(now) => true,
        (Kind::Delayed | Kind::Relayed, None) => false,
        (Kind::Failed, Some(Notify::On { failure, .. })) => failure,
        (Kind::Delayed, Some(Notify::On { delay, .. })) => delay,
        (Kind::Relayed, Some(Notify::On { success, .. })) => success,
    }
}

#[cfg(test)]
mod tests {
    use mail_core::{EnhancedCode, Reply};

    use crate::report::Cause;

    use super::*;

    fn kinds(verdict: Verdict, notify: Option<Notify>, delay_due: bool, peer_reports: bool) -> String {
        let peer = Peer {
            reports: peer_reports,
            keeps_time: false,
        };
        kinds_by(verdict, notify, delay_due, peer, None)
    }

    fn kinds_by(
        verdict: Verdict,
        notify: Option<Notify>,
        delay_due: bool,
        peer: Peer,
        by: Option<DeliverBy>,
    ) -> String {
        let to = Recipient {
            notify,
            ..Recipient::new("bob@example.org".parse().unwrap())
        };
        let outcome = Outcome {
            recipient: 0,
            mailbox: to.mailbox.clone(),
            verdict,
            reply: "250 2.0.0 ok".into(),
            host: None,
            class: None,
        };
        let now = Circumstances {
            now: Timestamp(1),
            delay_due,
            expires_at: Timestamp(9),
            by,
            peer,
            shaping: Shaping::shipped(),
        };
        let kinds: Vec<_> = notices(&[outcome], &[to], &now)
            .iter()
            .map(|notice| notice.told.kind().action())
            .collect();
        kinds.join(",")
    }

    /// CASES row 47, RFC 2852 §4.1.3, §4.1.4.
    #[test]
    fn who_named_a_time_hears_what_becomes_of_it() {
        let by = |at, late, trace| Some(DeliverBy { at, late, trace });
        let (now, soon) = (Timestamp(1), Timestamp(2));
        let (n, r) = (
            by(soon, WhenLate::Notify, false),
            by(soon, WhenLate::Return, false),
        );
        // The sender has heard by then that it is late.
        let over = by(now, WhenLate::Notify, false);
        let traced = by(now, WhenLate::Return, true);
        let failure_only = Some(Notify::On {
            success: false,
            failure: true,
            delay: false,
        });
        let peer = |reports, keeps_time| Peer { reports, keeps_time };
        for (by, peer, none, failures) in [
            (n, peer(true, true), "", ""),
            (n, peer(true, false), "relayed", "relayed"),
            (n, peer(false, true), "", ""),
            (over, peer(true, false), "", ""),
            (over, peer(false, false), "", ""),
            (r, peer(true, true), "", ""),
            (traced, peer(true, true), "relayed", "relayed"),
            (traced, peer(false, true), "relayed", "relayed"),
        ] {
            let told = |notify| kinds_by(Verdict::Delivered, notify, false, peer, by);
            assert_eq!(
                (&*told(None), &*told(failure_only)),
                (none, failures),
                "{by:?} {peer:?}"
            );
            assert_eq!(told(Some(Notify::Never)), "");
        }
        let late = |by, notify| kinds_by(Verdict::Later, notify, true, Peer::default(), by);
        assert_eq!((&*late(over, None), &*late(r, None)), ("delayed", ""));
        assert_eq!(
            (late(over, failure_only), late(over, Some(Notify::Never))),
            (String::new(), String::new())
        );
    }

    /// CASES row 34: passed on, told as relayed, never silent by mistake, silent when asked.
    #[test]
    fn each_is_told_of_what_was_asked_for() {
        let failed = || Verdict::Failed(Cause::Refused(Reply::new(550, 1, 1, "no")));
        let on = |success, failure, delay| {
            Some(Notify::On {
                success,
                failure,
                delay,
            })
        };
        for (notify, failure, delay, success) in [
            (None, "failed", "", ""),
            (Some(Notify::Never), "", "", ""),
            (on(true, false, false), "", "", "relayed"),
            (on(false, true, false), "failed", "", ""),
            (on(false, false, true), "", "delayed", ""),
            (on(true, true, true), "failed", "delayed", "relayed"),
        ] {
            assert_eq!(kinds(failed(), notify, true, false), failure, "{notify:?}");
            let deleted = || Verdict::Deleted(Cause::Undeliverable(EnhancedCode(5, 7, 1), "no".into()));
            assert_eq!(kinds(deleted(), notify, true, false), failure, "{notify:?}");
            assert_eq!(kinds(Verdict::Later, notify, true, false), delay, "{notify:?}");
            assert_eq!(kinds(Verdict::InDoubt, notify, true, false), delay, "{notify:?}");
            assert_eq!(
                kinds(Verdict::Delivered, notify, true, false),
                success,
                "{notify:?}"
            );
            // Not yet old, or told before; and a peer that reports by itself.
            assert_eq!(kinds(Verdict::Later, notify, false, false), "", "{notify:?}");
            assert_eq!(kinds(Verdict::Delivered, notify, true, true), "", "{notify:?}");
            assert_eq!(kinds(failed(), notify, true, true), failure, "{notify:?}");
        }
    }
}
