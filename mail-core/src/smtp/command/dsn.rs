//! What MAIL and RCPT ask of reports (RFC 3461 §4): RET, ENVID, NOTIFY, ORCPT.

use std::fmt::Write as _;

use crate::{Notify, Reply, Ret};

use super::bad_value;

/// Octets of ENVID's value (RFC 3461 §4.4).
const MAX_ENVID: usize = 100;

/// Octets of ORCPT's value (RFC 3461 §4.2).
const MAX_ORCPT: usize = 500;

/// RET's value.
pub(super) fn ret(value: Option<&str>) -> Result<Ret, Reply> {
    match value {
        Some(v) if v.eq_ignore_ascii_case("FULL") => Ok(Ret::Full),
        Some(v) if v.eq_ignore_ascii_case("HDRS") => Ok(Ret::Headers),
        _ => Err(bad_value()),
    }
}

/// ENVID's value, kept as it is.
pub(super) fn envid(value: Option<&str>) -> Result<Box<str>, Reply> {
    value
        .filter(|v| (1..=MAX_ENVID).contains(&v.len()) && is_xtext(v))
        .map(Box::from)
        .ok_or_else(bad_value)
}

/// NOTIFY's value: NEVER alone, or any of the others.
pub(super) fn notify(value: Option<&str>) -> Result<Notify, Reply> {
    let value = value.ok_or_else(bad_value)?;
    if value.eq_ignore_ascii_case("NEVER") {
        return Ok(Notify::Never);
    }
    let (mut success, mut failure, mut delay) = (false, false, false);
    for word in value.split(',') {
        let wish = match word.to_ascii_uppercase().as_str() {
            "SUCCESS" => &mut success,
            "FAILURE" => &mut failure,
            "DELAY" => &mut delay,
            _ => return Err(bad_value()),
        };
        *wish = true;
    }
    Ok(Notify::On {
        success,
        failure,
        delay,
    })
}

/// ORCPT's value, `type;xtext`, kept as it is.
pub(super) fn orcpt(value: Option<&str>) -> Result<Box<str>, Reply> {
    let value = value.filter(|v| v.len() <= MAX_ORCPT).ok_or_else(bad_value)?;
    let (kind, address) = value.split_once(';').ok_or_else(bad_value)?;
    // RFC 3461 §4.2: an atom.
    let is_atom = !kind.is_empty() && kind.bytes().all(|c| c.is_ascii_alphanumeric() || c == b'-');
    let is_good = if kind.eq_ignore_ascii_case("utf-8") {
        is_utf8_address(address)
    } else {
        is_xtext(address)
    };
    if !is_atom || address.is_empty() || !is_good {
        return Err(bad_value());
    }
    Ok(value.into())
}

/// RFC 6533 §3: graphic ASCII without `=`, and what is beyond ASCII as it is (where SMTPUTF8 was said) or as `\x{HEX}`.
/// Clients differ on whether xtext goes on top: `+` is let through.
fn is_utf8_address(text: &str) -> bool {
    text.chars().all(|c| {
        if c.is_ascii() {
            c.is_ascii_graphic() && c != '='
        } else {
            !c.is_control()
        }
    })
}

/// An address of the type `utf-8` for places that hold ASCII alone: the rest as `\x{HEX}` (RFC 6533 §3, utf-8-addr-xtext).
pub fn utf8_as_ascii(address: &str) -> String {
    let mut text = String::with_capacity(address.len());
    for c in address.chars() {
        if c.is_ascii() {
            text.push(c);
        } else {
            let _ = write!(text, "\\x{{{:X}}}", u32::from(c));
        }
    }
    text
}

/// RFC 3461 §4: `+` stands before two upper-case hexadecimal digits; neither `=` nor anything else than graphic ASCII.
pub(super) fn is_xtext(text: &str) -> bool {
    let mut rest = text.as_bytes();
    loop {
        rest = match rest {
            [] => return true,
            [b'+', one, two, rest @ ..] if is_digit(*one) && is_digit(*two) => rest,
            [b'+' | b'=', ..] => return false,
            [octet, rest @ ..] if octet.is_ascii_graphic() => rest,
            _ => return false,
        };
    }
}

fn is_digit(octet: u8) -> bool {
    matches!(octet, b'0'..=b'9' | b'A'..=b'F')
}

/// The text that an xtext stands for; what could not stand in a header field is left encoded.
pub fn decode_xtext(xtext: &str) -> String {
    let mut text = String::with_capacity(xtext.len());
    let mut rest = xtext;
    while let Some((before, after)) = rest.split_once('+') {
        text.push_str(before);
        let octet = after.get(..2).and_then(|hex| u8::from_str_radix(hex, 16).ok());
        match octet.filter(|octet| (b' '..=b'~').contains(octet)) {
            Some(octet) => {
                text.push(char::from(octet));
                rest = &after[2..];
            }
            None => {
                text.push('+');
                rest = after;
            }
        }
    }
    text.push_str(rest);
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn xtext_is_checked_and_decoded() {
        for (text, decoded) in [
            ("QQ314159", Some("QQ314159")),
            ("a+2Bb+3Dc", Some("a+b=c")),
            ("+41", Some("A")),
            // Neither a line end nor what is not ASCII gets into a header field.
            ("a+0D+0Ab+E9", Some("a+0D+0Ab+E9")),
            ("a=b", None),
            ("a+4", None),
            ("a+zz", None),
            ("a+2b", None),
            ("a b", None),
        ] {
            assert_eq!(is_xtext(text), decoded.is_some(), "{text}");
            if let Some(decoded) = decoded {
                assert_eq!(decode_xtext(text), decoded);
            }
        }
    }

    #[test]
    fn wishes_are_read_or_refused() {
        let on = |success, failure, delay| Notify::On {
            success,
            failure,
            delay,
        };
        for (value, wish) in [
            ("NEVER", Some(Notify::Never)),
            ("never", Some(Notify::Never)),
            ("SUCCESS", Some(on(true, false, false))),
            ("failure,DELAY", Some(on(false, true, true))),
            ("SUCCESS,FAILURE,DELAY", Some(on(true, true, true))),
            ("NEVER,SUCCESS", None),
            ("", None),
            ("SUCCESS,", None),
            ("ALWAYS", None),
        ] {
            assert_eq!(notify(Some(value)).ok(), wish, "{value}");
        }
        for (value, good) in [
            ("rfc822;Bob@Example.COM", true),
            ("rfc822;a+2Bb@x.test", true),
            ("utf-8;x", true),
            ("utf-8;j\\x{FC}rgen@x.test", true),
            ("UTF-8;j\u{fc}rgen@x.test", true),
            ("utf-8;a=b", false),
            ("utf-8;a\u{85}b", false),
            ("rfc822;j\u{fc}rgen@x.test", false),
            ("rfc822;", false),
            (";a@b", false),
            ("rfc822", false),
            ("rfc822;a=b", false),
        ] {
            assert_eq!(orcpt(Some(value)).is_ok(), good, "{value}");
        }
        assert!(orcpt(Some(&format!("rfc822;{}", "x".repeat(493)))).is_ok());
        assert!(orcpt(Some(&format!("rfc822;{}", "x".repeat(494)))).is_err());
        assert_eq!(utf8_as_ascii("j\u{fc}rgen@x.test"), "j\\x{FC}rgen@x.test");
        assert!(envid(Some(&"x".repeat(100))).is_ok());
        assert!(envid(Some(&"x".repeat(101))).is_err());
        assert!(envid(Some("")).is_err());
        assert_eq!(ret(Some("hdrs")).ok(), Some(Ret::Headers));
        assert!(ret(Some("HALF")).is_err());
    }
}
