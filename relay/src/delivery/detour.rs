//! When mail leaves its first way for the fallback of its rule: while nobody there can be spoken to, and no longer.

use std::sync::Arc;

use mail_core::Timestamp;

use crate::shaping::pattern::Said;

use super::lane::Rest;

/// That a queue's mail goes by its fallback.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Detour {
    /// By which smart host.
    pub by: Arc<str>,
    /// Why.
    pub closed: Closed,
}

/// That all lanes of a first way rest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Closed {
    /// When its first way is to be tried again.
    pub until: Timestamp,
    /// What its first way rests for.
    pub cause: Arc<str>,
}

impl Closed {
    /// What follows from the rests of all lanes that the mail could go through: until the first of them is over. `None` where one may
    /// be used, or has failed fewer than `after` times in a row.
    pub fn of(rests: impl IntoIterator<Item = Option<Rest>>, after: u32, now: Timestamp) -> Option<Self> {
        let mut first: Option<Rest> = None;
        for rest in rests {
            let rest = rest.filter(|rest| rest.until > now && rest.failures >= after)?;
            if first.as_ref().is_none_or(|first| rest.until < first.until) {
                first = Some(rest);
            }
        }
        first.map(|Rest { until, cause, .. }| Self {
            until,
            cause: cause.into(),
        })
    }
}

/// Whether a destination rests because nobody there could be spoken to. One that answers and wants nothing from us, or whose TLS is not
/// what was asked for, is not to be got round.
pub fn is_silence(cause: &str) -> bool {
    let said = Said::read(cause);
    // RFC 3463: subject 7 is security.
    said.code.is_none() && said.enhanced.is_none_or(|code| code.1 != 7)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rest(failures: u32, until: u64) -> Option<Rest> {
        Some(Rest {
            failures,
            until: Timestamp(until),
            cause: format!("4.4.1 until {until}"),
        })
    }

    #[test]
    fn all_lanes_have_to_have_failed_often_enough() {
        let closed = |rests: Vec<_>| Closed::of(rests, 3, Timestamp(100));
        for rests in [
            vec![],
            vec![None],
            vec![rest(2, 200)],
            vec![rest(3, 100)],
            vec![rest(3, 200), None],
            vec![rest(9, 200), rest(2, 200)],
        ] {
            assert_eq!(closed(rests.clone()), None, "{rests:?}");
        }
        let both = closed(vec![rest(3, 300), rest(4, 200)]).unwrap();
        assert_eq!(
            (both.until, &*both.cause),
            (Timestamp(200), "4.4.1 until 200"),
            "the first that is over"
        );
    }

    #[test]
    fn who_answers_is_not_got_round() {
        for cause in [
            "4.4.1 mx.test: [192.0.2.1]: connection refused",
            "4.4.2 mx.test: no greeting",
            "connection lost at MAIL",
        ] {
            assert!(is_silence(cause), "{cause}");
        }
        for cause in [
            "421 4.7.0 too much mail from you (mx.test at greeting)",
            "451 later (mx.test at EHLO)",
            "4.7.5 mx.test: TLS: bad certificate",
        ] {
            assert!(!is_silence(cause), "{cause}");
        }
    }
}
