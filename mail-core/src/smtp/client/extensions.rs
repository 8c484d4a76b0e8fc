//! What a peer offers at EHLO.

use super::Mechanisms;
use crate::Reply;

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
    pub future_release: bool,
    /// RFC 9422: recipients a transaction.
    pub rcpt_max: Option<usize>,
    /// RFC 9422: transactions a connection.
    pub mail_max: Option<u32>,
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
                "FUTURERELEASE" => offers.future_release = true,
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
                "LIMITS" => words.for_each(|limit| offers.obey(limit)),
                _ => {}
            }
        }
        offers
    }

    fn obey(&mut self, limit: &str) {
        let Some((name, value)) = limit.split_once('=') else {
            return;
        };
        match name.to_ascii_uppercase().as_str() {
            "RCPTMAX" => self.rcpt_max = value.parse().ok().filter(|&most| most > 0),
            "MAILMAX" => self.mail_max = value.parse().ok().filter(|&most| most > 0),
            _ => {}
        }
    }
}
