//! How MAIL wants a message to go: BY (RFC 2852 §4), MT-PRIORITY (RFC 6710 §7).

use crate::{By, Priority, Reply, WhenLate};

use super::bad_value;

/// Digits of BY's time.
const MAX_DIGITS: usize = 9;

/// BY's value: `600;R`, `-5;NT`.
pub(super) fn by(value: Option<&str>) -> Result<By, Reply> {
    let (time, mode) = value
        .and_then(|value| value.split_once(';'))
        .ok_or_else(bad_value)?;
    let digits = time.strip_prefix(['-', '+']).unwrap_or(time);
    let is_number = (1..=MAX_DIGITS).contains(&digits.len()) && digits.bytes().all(|c| c.is_ascii_digit());
    let seconds: i32 = time.parse().ok().filter(|_| is_number).ok_or_else(bad_value)?;
    let (late, trace) = match mode.to_ascii_uppercase().as_str() {
        "R" => (WhenLate::Return, false),
        "RT" => (WhenLate::Return, true),
        "N" => (WhenLate::Notify, false),
        "NT" => (WhenLate::Notify, true),
        _ => return Err(bad_value()),
    };
    // RFC 2852 §4.
    if late == WhenLate::Return && seconds <= 0 {
        return Err(Reply::new(501, 5, 4, "with R the time has to be above 0"));
    }
    Ok(By { seconds, late, trace })
}

/// MT-PRIORITY's value: -9 to 9, in one way each.
pub(super) fn priority(value: Option<&str>) -> Result<Priority, Reply> {
    let read = |value: &str| {
        let digit = match value.strip_prefix('-') {
            Some(digit) if digit != "0" => digit,
            Some(_) => return None,
            None => value,
        };
        let is_digit = digit.len() == 1 && digit.bytes().all(|c| c.is_ascii_digit());
        let number: i8 = value.parse().ok().filter(|_| is_digit)?;
        Priority::try_from(number).ok()
    };
    value.and_then(read).ok_or_else(one_priority)
}

/// RFC 6710 §4.1 has 5.5.2 for what is no priority, and for a second one; the other parameters' RFCs have 5.5.4.
pub(super) fn one_priority() -> Reply {
    Reply::new(501, 5, 2, "MT-PRIORITY is a number from -9 to 9, once")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_and_priorities_are_read_or_refused() {
        for (value, written) in [
            ("600;R", Some("600;R")),
            ("600;rt", Some("600;RT")),
            ("+600;N", Some("600;N")),
            ("-5;NT", Some("-5;NT")),
            ("0;N", Some("0;N")),
            ("999999999;R", Some("999999999;R")),
            ("1000000000;R", None),
            ("0;R", None),
            ("-1;RT", None),
            ("600", None),
            ("600;", None),
            ("600;T", None),
            ("600;RN", None),
            ("600;R;T", None),
            (";R", None),
            ("+-6;R", None),
            ("1h;R", None),
        ] {
            let read = by(Some(value)).ok().map(|by| by.to_string());
            assert_eq!(read.as_deref(), written, "{value}");
        }
        for number in -9..=9_i8 {
            let text = number.to_string();
            assert_eq!(priority(Some(&text)).map(i8::from), Ok(number), "{text}");
        }
        for value in ["", "-", "10", "-10", "+3", "03", "-0", "3.0", "high"] {
            assert!(priority(Some(value)).is_err(), "{value}");
        }
        assert!(by(None).is_err() && priority(None).is_err());
    }
}
