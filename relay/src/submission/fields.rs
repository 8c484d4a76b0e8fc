//! Header fields of ours that a client may write: what they ask for, and that none of them leaves.
//!
//! `Postrider-*` fields are taken off whoever wrote them and whatever they say; what they ask for counts where the tenant's
//! `header_fields` list them. With them go the Authentication-Results that claim to be ours (RFC 8601 §5): we make none, so
//! whoever trusts our name would trust a forger.

use std::str::FromStr;
use std::sync::Arc;

use bytes::Bytes;
use mail_core::header::{self, Field};
use mail_core::{Domain, Reply, Timestamp};

use crate::config::streams::Streams;

use super::stamp::begins_with_field;

/// What all our fields' names begin with.
const PREFIX: &[u8] = b"Postrider-";

/// Octets of a tag.
pub const MAX_TAG: usize = 64;
/// Pairs of metadata.
pub const MAX_PAIRS: usize = 16;
/// Octets of a pair's key.
pub const MAX_KEY: usize = 64;
/// Octets of a pair's value.
pub const MAX_VALUE: usize = 256;

/// A field that a tenant may be let use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OwnField {
    /// `Postrider-Stream`.
    Stream,
    /// `Postrider-Tag`.
    Tag,
    /// `Postrider-Metadata`.
    Metadata,
    /// `Postrider-Expires`.
    Expires,
}

impl OwnField {
    const ALL: [Self; 4] = [Self::Stream, Self::Tag, Self::Metadata, Self::Expires];

    /// Its name.
    fn name(self) -> &'static str {
        match self {
            Self::Stream => "Postrider-Stream",
            Self::Tag => "Postrider-Tag",
            Self::Metadata => "Postrider-Metadata",
            Self::Expires => "Postrider-Expires",
        }
    }
}

impl FromStr for OwnField {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "stream" => Ok(Self::Stream),
            "tag" => Ok(Self::Tag),
            "metadata" => Ok(Self::Metadata),
            "expires" => Ok(Self::Expires),
            _ => Err("is no field of ours; there are \"stream\", \"tag\", \"metadata\", \"expires\""),
        }
    }
}

/// What a message's own fields ask for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Asked {
    /// In which stream it is to be.
    pub stream: Option<Arc<str>>,
    /// For reports and events.
    pub tag: Option<Arc<str>>,
    /// For reports and events.
    pub metadata: Vec<(String, String)>,
    /// When to give up at the latest.
    pub expires: Option<Timestamp>,
}

/// Reads those of the fields that are `listed`. A bad one refuses the message: what was asked for would not happen.
pub fn read(message: &[u8], listed: &[OwnField], streams: &Streams, now: Timestamp) -> Result<Asked, Reply> {
    let mut asked = Asked::default();
    if listed.is_empty() || !begins_with_field(message) {
        return Ok(asked);
    }
    let (block, _) = header::split(message);
    for field in header::fields(block).filter(is_ours) {
        let own = OwnField::ALL.into_iter().find(|own| field.is(own.name()));
        let Some(own) = own.filter(|own| listed.contains(own)) else {
            continue;
        };
        let bad = |why: &str| bad(own, why);
        let value = value(&field).map_err(|why| bad(&why))?;
        let is_second = match own {
            OwnField::Stream => {
                if streams.get(&value).is_none() {
                    let text = format!("{}: there is no such stream", own.name());
                    return Err(Reply::new(550, 7, 1, "").with_text(text));
                }
                asked.stream.replace(value.into()).is_some()
            }
            OwnField::Tag => {
                if !(1..=MAX_TAG).contains(&value.len()) || !value.bytes().all(|c| c.is_ascii_graphic()) {
                    return Err(bad(&format!(
                        "a tag is 1 to {MAX_TAG} printable ASCII characters without blanks"
                    )));
                }
                asked.tag.replace(value.into()).is_some()
            }
            OwnField::Metadata => {
                pairs(&value, &mut asked.metadata).map_err(|why| bad(&why))?;
                false
            }
            OwnField::Expires => {
                let at = expires(&value, now).map_err(bad)?;
                asked.expires.replace(at).is_some()
            }
        };
        if is_second {
            return Err(bad("the message has more than one"));
        }
    }
    Ok(asked)
}

fn bad(own: OwnField, why: &str) -> Reply {
    Reply::new(550, 6, 0, "").with_text(format!("{}: {why}", own.name()))
}

/// A field's value without folds.
fn value(field: &Field<'_>) -> Result<String, String> {
    let text = std::str::from_utf8(field.value()).map_err(|_| "not UTF-8")?;
    // RFC 5322 §2.2.3: unfolding takes the line ends away and leaves the blanks.
    let text = text.replace("\r\n", "");
    let text = text.trim_matches([' ', '\t']);
    match text.chars().any(|c| c.is_control() && c != '\t') {
        true => Err("there are control characters in it".into()),
        false => Ok(text.to_owned()),
    }
}

/// `key=value; key=value`.
fn pairs(text: &str, into: &mut Vec<(String, String)>) -> Result<(), String> {
    for pair in text.split(';').map(str::trim).filter(|pair| !pair.is_empty()) {
        let (key, value) = pair
            .split_once('=')
            .ok_or("write pairs such as key=value; key=value")?;
        let (key, value) = (key.trim(), value.trim());
        let is_key = |c: u8| c.is_ascii_alphanumeric() || b"-_.".contains(&c);
        if !(1..=MAX_KEY).contains(&key.len()) || !key.bytes().all(is_key) {
            return Err(format!("a key is 1 to {MAX_KEY} letters, digits or any of - _ ."));
        }
        if value.len() > MAX_VALUE {
            return Err(format!("the value of {key} is longer than {MAX_VALUE} octets"));
        }
        if into.iter().any(|(known, _)| known == key) {
            return Err(format!("{key} is there twice"));
        }
        if into.len() == MAX_PAIRS {
            return Err(format!("more than {MAX_PAIRS} pairs"));
        }
        into.push((key.to_owned(), value.to_owned()));
    }
    Ok(())
}

/// A time span from now on, or a date and time as in RFC 3339 or RFC 5322.
fn expires(text: &str, now: Timestamp) -> Result<Timestamp, &'static str> {
    let span = crate::config::parse_duration(text).map(|span| now + span);
    let date = || {
        let date = text.parse::<jiff::Timestamp>().ok().or_else(|| {
            jiff::fmt::rfc2822::DateTimeParser::new()
                .parse_timestamp(text)
                .ok()
        })?;
        // Before 1970 is past, too.
        Some(Timestamp(u64::try_from(date.as_millisecond()).unwrap_or(0)))
    };
    let at = span
        .ok()
        .or_else(date)
        .ok_or("write a time span such as 30m or 2d, or a date such as 2030-01-31T12:00:00Z")?;
    if at <= now {
        return Err("that time has passed");
    }
    Ok(at)
}

/// The message without what must not leave; all other octets stay as they are.
pub fn taken_off(message: Bytes, us: &Domain) -> Bytes {
    if !begins_with_field(&message) {
        return message;
    }
    let goes = |field: &Field<'_>| is_ours(field) || claims_to_be_ours(field, us);
    match header::without(&message, goes) {
        Some(rest) => rest.into(),
        None => message,
    }
}

fn is_ours(field: &Field<'_>) -> bool {
    let start = field.name().get(..PREFIX.len());
    start.is_some_and(|start| start.eq_ignore_ascii_case(PREFIX))
}

/// Whether the field is Authentication-Results with our name as its authserv-id (RFC 8601 §2.2).
fn claims_to_be_ours(field: &Field<'_>, us: &Domain) -> bool {
    let is_us = |id: &str| id.parse::<Domain>().is_ok_and(|id| id == *us);
    field.is("Authentication-Results") && authserv_id(field.value()).is_some_and(|id| is_us(&id))
}

/// The first word, comments and folds passed over: a token, or a quoted string (RFC 2045 §5.1).
fn authserv_id(value: &[u8]) -> Option<String> {
    let mut rest = value;
    loop {
        rest = rest.trim_ascii_start();
        match rest.first()? {
            b'(' => rest = &rest[comment(rest)?..],
            b'"' => break,
            _ => {
                let end = rest.iter().position(|c| b" \t\r\n;(\"".contains(c));
                let word = &rest[..end.unwrap_or(rest.len())];
                return Some(String::from_utf8_lossy(word).into_owned());
            }
        }
    }
    let mut word = Vec::new();
    let mut octets = rest[1..].iter();
    loop {
        match octets.next()? {
            b'"' => return Some(String::from_utf8_lossy(&word).trim().to_owned()),
            b'\\' => word.push(*octets.next()?),
            b'\r' | b'\n' => {}
            &other => word.push(other),
        }
    }
}

/// Where the comment at the front ends.
fn comment(text: &[u8]) -> Option<usize> {
    let (mut depth, mut at) = (0_usize, 0);
    loop {
        match text.get(at)? {
            b'(' => depth += 1,
            b')' => depth -= 1,
            b'\\' => at += 1,
            _ => {}
        }
        at += 1;
        if depth == 0 {
            return Some(at);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    const NOW: Timestamp = Timestamp(1_700_000_000_000);

    fn streams() -> Streams {
        let day = Duration::from_secs(86_400);
        let retry = crate::config::settings::Retry {
            first: day,
            factor: 1.0,
            cap: day,
            jitter: 0.0,
        };
        Streams::usual(day, &retry)
    }

    fn asked(header: &str) -> Result<Asked, String> {
        let message = format!("{header}Subject: x\r\n\r\nPostrider-Stream: in the body\r\n");
        read(message.as_bytes(), &OwnField::ALL, &streams(), NOW).map_err(|reply| reply.to_string())
    }

    fn off(message: &str) -> String {
        let us = "mx.test".parse().unwrap();
        let rest = taken_off(Bytes::copy_from_slice(message.as_bytes()), &us);
        String::from_utf8(rest.to_vec()).unwrap()
    }

    #[test]
    fn what_is_listed_counts() {
        let all = "Postrider-Stream: bulk\r\npostrider-tag:\r\n\tspring/24\r\nPOSTRIDER-METADATA : a=1; b = x=y ;\r\n \
                   c=\r\nPostrider-Metadata: d=grün\r\nPostrider-Expires: 30m\r\nPostrider-Other: ?\r\n";
        let found = asked(all).unwrap();
        assert_eq!(found.stream.as_deref(), Some("bulk"));
        assert_eq!(found.tag.as_deref(), Some("spring/24"));
        let pairs = [("a", "1"), ("b", "x=y"), ("c", ""), ("d", "grün")];
        assert_eq!(
            found.metadata,
            pairs.map(|(key, value)| (key.to_owned(), value.to_owned()))
        );
        assert_eq!(found.expires, Some(NOW + Duration::from_secs(1_800)));
        let message = format!("{all}\r\n");
        assert_eq!(
            read(message.as_bytes(), &[], &streams(), NOW),
            Ok(Asked::default())
        );
        let listed = [OwnField::Tag];
        let of_tag = read(message.as_bytes(), &listed, &streams(), NOW).unwrap();
        assert_eq!((of_tag.stream, of_tag.expires), (None, None));
        assert!(of_tag.tag.is_some());
    }

    #[test]
    fn expiry_is_a_span_or_a_date() {
        let at = |text: &str| asked(&format!("Postrider-Expires: {text}\r\n")).map(|asked| asked.expires);
        let hour = Some(NOW + Duration::from_secs(3_600));
        for text in [
            "1h",
            "2023-11-14T23:13:20Z",
            "2023-11-15T00:13:20+01:00",
            "Tue, 14 Nov 2023 23:13:20 +0000",
        ] {
            assert_eq!(at(text), Ok(hour), "{text}");
        }
        for text in ["0s", "2023-11-14T22:13:20Z", "1960-01-01T00:00:00Z"] {
            assert!(at(text).unwrap_err().contains("has passed"), "{text}");
        }
        for text in ["", "soon", "2023-11-14", "-1h"] {
            assert!(at(text).unwrap_err().contains("write a time span"), "{text}");
        }
    }

    #[test]
    fn bad_values_are_refused_with_the_reason() {
        let long = format!("Postrider-Tag: {}\r\n", "x".repeat(MAX_TAG + 1));
        let value = format!("Postrider-Metadata: k={}\r\n", "x".repeat(MAX_VALUE + 1));
        let many: String = (0..=MAX_PAIRS)
            .map(|number| format!("Postrider-Metadata: k{number}=v\r\n"))
            .collect();
        for (header, said) in [
            (
                "Postrider-Stream: news\r\n",
                "550 5.7.1 Postrider-Stream: there is no such stream",
            ),
            (
                "Postrider-Stream: bulk\r\nPostrider-Stream: bulk\r\n",
                "550 5.6.0 Postrider-Stream: the message has more than one",
            ),
            ("Postrider-Tag: a b\r\n", "550 5.6.0 Postrider-Tag: a tag is"),
            ("Postrider-Tag:\r\n", "550 5.6.0 Postrider-Tag: a tag is"),
            (&long, "550 5.6.0 Postrider-Tag: a tag is"),
            (
                "Postrider-Tag: a\u{7}b\r\n",
                "550 5.6.0 Postrider-Tag: there are control",
            ),
            (
                "Postrider-Metadata: a\r\n",
                "550 5.6.0 Postrider-Metadata: write pairs",
            ),
            (
                "Postrider-Metadata: a=1; a=2\r\n",
                "550 5.6.0 Postrider-Metadata: a is there twice",
            ),
            (
                "Postrider-Metadata: a b=1\r\n",
                "550 5.6.0 Postrider-Metadata: a key is",
            ),
            (&value, "550 5.6.0 Postrider-Metadata: the value of k"),
            (&many, "550 5.6.0 Postrider-Metadata: more than 16 pairs"),
        ] {
            let told = asked(header).unwrap_err();
            assert!(told.starts_with(said), "{told}");
        }
    }

    /// Promise 6.
    #[test]
    fn only_our_fields_go_and_nothing_else_moves() {
        assert_eq!(
            off(
                "Received: a\r\n b\r\nPostrider-Tag: x\r\n\ty\r\nSubject : \tz \r\npostrider-anything\t:\r\nX: \r\n .\r\n\r\n\
                 Postrider-Tag: body\r\n"
            ),
            "Received: a\r\n b\r\nSubject : \tz \r\nX: \r\n .\r\n\r\nPostrider-Tag: body\r\n"
        );
        for whole in [
            "Subject: x\r\n\r\nPostrider-Tag: x\r\n\r\n",
            "no header\r\nPostrider-Tag: x\r\n\r\nx\r\n",
            "\r\nPostrider-Tag: x\r\n\r\nx\r\n",
            "X-Postrider-Tag: x\r\nPostriderTag: y\r\n\r\n",
            "",
        ] {
            assert_eq!(off(whole), whole);
        }
        assert_eq!(off("Postrider-Tag: x\r\n\r\nbody\r\n"), "\r\nbody\r\n");
        assert_eq!(off("Postrider-Tag: x\r\n"), "");
    }

    /// CASES row 50, RFC 8601 §5.
    #[test]
    fn results_in_our_name_go_and_those_of_others_stay() {
        for ours in [
            "mx.test; spf=pass",
            "MX.Test.; none",
            "\r\n\t(a (nested \\) one) comment) mx.test (x) 1; none",
            "\"mx.test\"; none",
            "\"mx\\.test\" 1; none",
            "mx.test(comment);none",
        ] {
            let message = format!("Subject: x\r\nauthentication-results: {ours}\r\nTo: y\r\n\r\n");
            assert_eq!(off(&message), "Subject: x\r\nTo: y\r\n\r\n", "{ours}");
        }
        for theirs in [
            "mx.test.example; spf=pass",
            "sub.mx.test; none",
            "other.test; spf=pass smtp.mailfrom=mx.test",
            "other.test (mx.test); none",
            "(mx.test) other.test; none",
            "(mx.test; none",
            "",
        ] {
            let message = format!("Authentication-Results: {theirs}\r\n\r\n");
            assert_eq!(off(&message), message);
        }
        let arc = "ARC-Authentication-Results: i=1; mx.test; spf=pass\r\n\r\n";
        assert_eq!(off(arc), arc);
    }
}
