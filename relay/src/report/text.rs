//! Text that a report can hold: 7-bit, in bounded lines, with nothing in it that could be taken for a report's own lines.

use std::time::Duration;

use mail_core::Timestamp;

use crate::world::log_time;

/// Characters of a peer's reply that a report quotes.
pub const MAX_REPLY_CHARS: usize = 500;

/// 7-bit by RFC 2045 §2.7: no octet over 127 and no NUL, CR and LF only together, lines of at most 998 octets.
pub(super) fn is_clean(octets: &[u8]) -> bool {
    octets.is_ascii() && has_lines(octets)
}

/// The same with UTF-8 in it, as message/global is (RFC 6532 §3.7).
pub(super) fn is_clean_utf8(octets: &[u8]) -> bool {
    has_lines(octets) && std::str::from_utf8(octets).is_ok()
}

fn has_lines(octets: &[u8]) -> bool {
    memchr::memchr(0, octets).is_none()
        && octets
            .split(|&octet| octet == b'\n')
            .all(|line| line.len() <= 999)
        && memchr::memchr2_iter(b'\r', b'\n', octets).all(|at| match octets[at] {
            b'\r' => octets.get(at + 1) == Some(&b'\n'),
            _ => at > 0 && octets[at - 1] == b'\r',
        })
}

/// RFC 2045 §6.7.
pub(crate) fn write_quoted_printable(into: &mut Vec<u8>, text: &[u8]) {
    let mut column = 0;
    let mut at = 0;
    // A boundary of the message around must not come to stand at the beginning of a line by a soft break.
    let mut after_soft_break = false;
    while let Some(&octet) = text.get(at) {
        if text[at..].starts_with(b"\r\n") {
            into.extend_from_slice(b"\r\n");
            column = 0;
            at += 2;
            continue;
        }
        let plain = match octet {
            b'=' => false,
            b'-' if after_soft_break => false,
            // At the end of a line some would cut them.
            b' ' | b'\t' => !matches!(text.get(at + 1), None | Some(b'\r')),
            other => other.is_ascii_graphic(),
        };
        // One column is kept for the "=" of a soft break.
        if column + if plain { 1 } else { 3 } > 75 {
            into.extend_from_slice(b"=\r\n");
            (column, after_soft_break) = (0, true);
            continue;
        }
        after_soft_break = false;
        if plain {
            into.push(octet);
            column += 1;
        } else {
            into.extend_from_slice(format!("={octet:02X}").as_bytes());
            column += 3;
        }
        at += 1;
    }
}

/// Foreign text made fit for any place in a report: printable US-ASCII with single spaces, of bounded length. No line end
/// survives, so no field, part or line can be forged.
pub(super) fn clean(text: &str) -> String {
    let mut out = String::new();
    for word in text.split(|c: char| c.is_whitespace() || c.is_control()) {
        if word.is_empty() {
            continue;
        }
        if !out.is_empty() {
            out.push(' ');
        }
        out.extend(word.chars().map(|c| if c.is_ascii_graphic() { c } else { '?' }));
        if out.len() > MAX_REPLY_CHARS {
            out.truncate(MAX_REPLY_CHARS); // ASCII alone, so any octet is a boundary.
            out.push_str("...");
            break;
        }
    }
    out
}

/// A host's name as the resolver gave it, without anything a name does not have.
pub(super) fn host_name(text: &str) -> String {
    text.chars()
        .filter(|c| c.is_ascii_alphanumeric() || "-._:[]".contains(*c))
        .take(255)
        .collect()
}

/// Lines of at most `width` characters, broken at spaces; a longer word has a line of its own.
pub(super) fn wrap(text: &str, width: usize) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for word in text.split(' ') {
        match lines.last_mut() {
            Some(line) if line.len() + 1 + word.len() <= width => {
                line.push(' ');
                line.push_str(word);
            }
            _ => lines.push(word.to_owned()),
        }
    }
    lines
}

/// About how long, in the largest unit of which there are two.
pub(super) fn span(time: Duration) -> String {
    let seconds = time.as_secs();
    let (count, unit) = match seconds {
        ..120 => (seconds, "second"),
        120..7_200 => (seconds / 60, "minute"),
        7_200..172_800 => (seconds / 3_600, "hour"),
        _ => (seconds / 86_400, "day"),
    };
    let plural = if count == 1 { "" } else { "s" };
    format!("{count} {unit}{plural}")
}

/// RFC 5322 §3.3, in UTC.
pub(crate) fn date(at: Timestamp) -> String {
    log_time(at).strftime("%a, %d %b %Y %H:%M:%S +0000").to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quoted_printable_lines_are_short_and_read_back() {
        let mut out = Vec::new();
        write_quoted_printable(
            &mut out,
            format!("{}\u{e4} \r\n{}\t", "a".repeat(74), "\u{e4}".repeat(40)).as_bytes(),
        );
        let text = String::from_utf8(out).unwrap();
        assert!(text.split("\r\n").all(|line| line.len() <= 76), "{text}");
        let joined = text.replace("=\r\n", "");
        assert_eq!(
            joined,
            format!("{}=C3=A4=20\r\n{}=09", "a".repeat(74), "=C3=A4".repeat(40))
        );
    }
}
