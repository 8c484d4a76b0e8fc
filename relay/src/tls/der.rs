//! What we read of a certificate ourselves: rustls and aws-lc-rs show nothing of its fields.

use jiff::Timestamp;

/// The tag of a sequence.
pub(crate) const SEQUENCE: u8 = 0x30;

const INTEGER: u8 = 0x02;
const UTC_TIME: u8 = 0x17;
const GENERALIZED_TIME: u8 = 0x18;
/// `[0]`, the version; absent in version 1.
const VERSION: u8 = 0xa0;

/// When a certificate (DER) ends, in seconds since 1970 (`notAfter`, RFC 5280 §4.1.2.5); `None` where it can't be read.
pub(super) fn expiry(certificate: &[u8]) -> Option<i64> {
    // Certificate ::= SEQUENCE { tbsCertificate SEQUENCE { [0] version, serialNumber, signature, issuer, validity SEQUENCE
    // { notBefore, notAfter }, … }, … }
    let (certificate, _) = element(certificate, SEQUENCE)?;
    let (mut rest, _) = element(certificate, SEQUENCE)?;
    if let Some((_, behind)) = element(rest, VERSION) {
        rest = behind;
    }
    for tag in [INTEGER, SEQUENCE, SEQUENCE] {
        (_, rest) = element(rest, tag)?;
    }
    let (validity, _) = element(rest, SEQUENCE)?;
    let (_, not_after) = time(validity)?;
    let (text, _) = time(not_after)?;
    Some(text.parse::<Timestamp>().ok()?.as_second())
}

/// The time at the front as in RFC 3339, and what follows it. Both forms end in seconds and `Z` (RFC 5280 §4.1.2.5.1, 2).
fn time(der: &[u8]) -> Option<(String, &[u8])> {
    let ((digits, rest), years) = match der.first()? {
        &UTC_TIME => (element(der, UTC_TIME)?, 2),
        _ => (element(der, GENERALIZED_TIME)?, 4),
    };
    let digits = std::str::from_utf8(digits).ok()?.strip_suffix('Z')?;
    if digits.len() != years + 10 || !digits.bytes().all(|octet| octet.is_ascii_digit()) {
        return None;
    }
    let (year, others) = digits.split_at(years);
    let century = match years {
        2 if year < "50" => "20",
        2 => "19",
        _ => "",
    };
    let part = |at: usize| &others[at..at + 2];
    let (month, day, hour, minute, second) = (part(0), part(2), part(4), part(6), part(8));
    Some((
        format!("{century}{year}-{month}-{day}T{hour}:{minute}:{second}Z"),
        rest,
    ))
}

/// The content of the DER element at the front, if it is of this tag, and what follows it.
pub(crate) fn element(der: &[u8], tag: u8) -> Option<(&[u8], &[u8])> {
    let (&[found, first], rest) = der.split_first_chunk::<2>()?;
    let (length, rest) = match first {
        0..=0x7f => (usize::from(first), rest),
        0x81..=0x84 => {
            let (octets, rest) = rest.split_at_checked(usize::from(first & 0x7f))?;
            let length = octets
                .iter()
                .fold(0, |length, &octet| length << 8 | usize::from(octet));
            (length, rest)
        }
        _ => return None,
    };
    (found == tag).then(|| rest.split_at_checked(length))?
}

#[cfg(test)]
mod tests {
    use super::*;

    fn made(year: i32) -> Vec<u8> {
        let key = rcgen::KeyPair::generate().unwrap();
        let mut parameters = rcgen::CertificateParams::new(vec!["mx.test".into()]).unwrap();
        parameters.not_after = rcgen::date_time_ymd(year, 2, 28);
        parameters.self_signed(&key).unwrap().der().to_vec()
    }

    #[test]
    fn the_end_of_a_certificate_is_read_in_both_forms() {
        // From 2050 on a certificate says it by GeneralizedTime.
        assert_eq!(expiry(&made(2049)), Some(2_498_083_200));
        assert_eq!(expiry(&made(2050)), Some(2_529_619_200));
    }

    #[test]
    fn what_is_cut_or_no_certificate_ends_never() {
        let whole = made(2049);
        for length in 0..whole.len() {
            // The first element says how long all of it is.
            assert_eq!(expiry(&whole[..length]), None, "{length}");
        }
        assert_eq!(expiry(b"\x30\x02\x30\x00"), None);
    }

    #[test]
    fn a_time_is_digits_and_z() {
        assert_eq!(time(b"\x17\x0d491231235959Z!").unwrap().0, "2049-12-31T23:59:59Z");
        assert_eq!(time(b"\x17\x0d500101000000Z").unwrap().0, "1950-01-01T00:00:00Z");
        for bad in [
            &b"\x17\x0d4912312359590"[..],
            b"\x17\x0b4912312359Z",
            b"\x17\x0d49123x235959Z",
            b"\x16\x00",
        ] {
            assert_eq!(time(bad), None);
        }
    }
}
