//! What a peer offers at EHLO.

use super::Mechanisms;
use crate::smtp::command::max_hold;
use crate::{MaxHold, Reply};

/// What a peer offered at EHLO.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Extensions {
    /// RFC 2920.
    pub pipelining: bool,
    /// RFC 6152.
    pub eight_bit_mime: bool,
    /// RFC 6531.
    pub smtputf8: bool,
    /// RFC 1870; `Some(None)` offers it without a limit.
    pub size: Option<Option<u64>>,
    /// RFC 3461.
    pub dsn: bool,
    /// RFC 3207.
    pub starttls: bool,
    /// RFC 4954.
    pub auth: Mechanisms,
    /// RFC 2852: the least time, in seconds; 0 where none is told.
    pub deliver_by: Option<u32>,
    /// RFC 6710, whatever profile.
    pub mt_priority: bool,
    /// RFC 4865.
    pub future_release: Option<MaxHold>,
    /// RFC 9422: recipients a transaction.
    pub rcpt_max: Option<usize>,
    /// RFC 9422: transactions a connection.
    pub mail_max: Option<u32>,
    /// RFC 9422: domains of recipients a connection.
    pub rcpt_domain_max: Option<usize>,
}

impl Extensions {
    /// Reads the lines of a reply to EHLO, the first of which is the peer's name.
    pub fn parse(reply: &Reply) -> Self {
        let mut offers = Self::default();
        for line in reply.text.split('\n').skip(1) {
            let mut words = line.split_ascii_whitespace();
            let Some(keyword) = words.next() else { continue };
            match keyword.to_ascii_uppercase().as_str() {
                "PIPELINING" => offers.pipelining = true,
                "8BITMIME" => offers.eight_bit_mime = true,
                "SMTPUTF8" => offers.smtputf8 = true,
                "STARTTLS" => offers.starttls = true,
                "DSN" => offers.dsn = true,
                // What can't be read is a least time that nobody can know.
                "DELIVERBY" => {
                    let least = words
                        .next()
                        .and_then(|options| options.split(',').next()?.parse().ok());
                    offers.deliver_by = Some(least.unwrap_or(0));
                }
                "MT-PRIORITY" => offers.mt_priority = true,
                "FUTURERELEASE" => {
                    offers.future_release = Some(max_hold(words.next(), words.next()));
                }
                "AUTH" => words.for_each(|mechanism| offers.auth.note(mechanism)),
                // 0, like nothing at all or what is no number, is no limit (RFC 1870 §4).
                "SIZE" => {
                    offers.size = Some(
                        words
                            .next()
                            .and_then(|size| size.parse().ok())
                            .filter(|&size| size > 0),
                    )
                }
                // RFC 9422 §3.7: where one is no limit at all, nobody knows what the others are.
                "LIMITS" if words.clone().all(is_limit) => words.for_each(|limit| offers.obey(limit)),
                _ => {}
            }
        }
        offers
    }

    /// RFC 9422 §4. What is no value of its limit is passed over (§3.7), and unsays nothing.
    fn obey(&mut self, limit: &str) {
        let Some((name, value)) = limit.split_once('=') else {
            return;
        };
        let Some(most) = limit_value(value) else { return };
        match name.to_ascii_uppercase().as_str() {
            "RCPTMAX" => self.rcpt_max = Some(usize::try_from(most).unwrap_or(usize::MAX)),
            "MAILMAX" => self.mail_max = Some(most),
            "RCPTDOMAINMAX" => self.rcpt_domain_max = Some(usize::try_from(most).unwrap_or(usize::MAX)),
            _ => {}
        }
    }
}

/// A limit's name, with its value if it has one (RFC 9422 §3).
fn is_limit(text: &str) -> bool {
    let (name, value) = match text.split_once('=') {
        Some((name, value)) => (name, Some(value)),
        None => (text, None),
    };
    let is_named = !name.is_empty()
        && name
            .bytes()
            .all(|c| c.is_ascii_alphanumeric() || b"-_".contains(&c));
    let is_value =
        |value: &str| !value.is_empty() && value.bytes().all(|c| c.is_ascii_graphic() && c != b';');
    is_named && value.is_none_or(is_value)
}

/// One to six digits, the first of them no zero.
fn limit_value(text: &str) -> Option<u32> {
    let is_number = (1..=6).contains(&text.len()) && text.bytes().all(|c| c.is_ascii_digit());
    text.parse().ok().filter(|_| is_number && !text.starts_with('0'))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::reply;
    use super::*;
    use crate::Timestamp;

    fn offers(line: &str) -> Extensions {
        Extensions::parse(&reply(&format!("250-mx\r\n250 {line}")))
    }

    /// CASES row 47, RFC 9422.
    #[test]
    fn limits_are_read_and_garbage_is_not() {
        for (line, rcpt_max, mail_max) in [
            ("LIMITS RCPTMAX= MAILMAX=9", None, None),
            ("LIMITS MAILMAX=9;RCPTMAX=3", None, None),
            ("LIMITS MAILMAX=9 ; RCPTMAX=3", None, None),
            ("LIMITS MAILMAX=9 =3", None, None),
            ("LIMITS RCPTMAX=05 MAILMAX=9 X_NEW", None, Some(9)),
            ("LIMITS RCPTMAX=3 MAILMAX=100", Some(3), Some(100)),
            ("limits mailmax=1", None, Some(1)),
            ("LIMITS RCPTMAX=999999", Some(999_999), None),
            ("LIMITS RCPTDOMAINMAX=1 MAILMAX=9 X-NEW=y", None, Some(9)),
            ("LIMITS", None, None),
            ("LIMITS RCPTMAX", None, None),
            ("LIMITS RCPTMAX= MAILMAX=0", None, None),
            ("LIMITS RCPTMAX=+5 MAILMAX=-1", None, None),
            ("LIMITS RCPTMAX=05 MAILMAX=1000000", None, None),
            ("LIMITS RCPTMAX=many MAILMAX=2x", None, None),
            ("LIMITS RCPTMAX=5 RCPTMAX=many", Some(5), None),
            ("LIMITSX RCPTMAX=5", None, None),
        ] {
            let found = offers(line);
            assert_eq!((found.rcpt_max, found.mail_max), (rcpt_max, mail_max), "{line}");
        }
    }

    #[test]
    fn domains_of_a_connection_are_a_limit_too() {
        for (line, most) in [
            ("LIMITS RCPTDOMAINMAX=1", Some(1)),
            ("LIMITS MAILMAX=9 rcptdomainmax=20", Some(20)),
            ("LIMITS RCPTDOMAINMAX=0", None),
            ("LIMITS RCPTMAX=1", None),
        ] {
            assert_eq!(offers(line).rcpt_domain_max, most, "{line}");
        }
    }

    /// RFC 4865 §3.
    #[test]
    fn both_bounds_of_a_hold_are_read() {
        let (day, at) = (Duration::from_secs(86_400), Timestamp(1_700_000_000_000));
        for (line, interval, until) in [
            ("FUTURERELEASE 86400 2023-11-14T22:13:20Z", day, at),
            ("futurerelease 86400", day, Timestamp::MAX),
            ("FUTURERELEASE 0 2023-11-14T22:13:20Z", Duration::MAX, at),
            ("FUTURERELEASE", Duration::MAX, Timestamp::MAX),
        ] {
            let most = MaxHold { interval, until };
            assert_eq!(offers(line).future_release, Some(most), "{line}");
        }
        assert_eq!(offers("FUTURERELEASES 86400").future_release, None);
    }

    /// RFC 2852 §2, RFC 6710 §3.
    #[test]
    fn a_least_time_is_read_where_one_is_told() {
        for (line, least) in [
            ("DELIVERBY", Some(0)),
            ("DELIVERBY 240", Some(240)),
            ("deliverby 240,X=y", Some(240)),
            ("DELIVERBY soon", Some(0)),
            ("DELIVERBY -4", Some(0)),
            ("MT-PRIORITY STANAG4406", None),
        ] {
            let found = offers(line);
            assert_eq!(
                (found.deliver_by, found.mt_priority),
                (least, least.is_none()),
                "{line}"
            );
        }
    }
}
