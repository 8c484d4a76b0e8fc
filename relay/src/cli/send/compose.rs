//! What goes out, of what was given.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use mail_core::Mailbox;

use crate::cli::Failure;

/// Octets of text in an encoded word, so that with its frame it stays within 75 (RFC 2047 §2).
const WORD: usize = 45;

/// Files have LF, mail has CRLF. Also adds one behind a last line that has none.
pub(super) fn with_crlf(raw: &[u8]) -> Vec<u8> {
    let mut lines = Vec::with_capacity(raw.len() + raw.len() / 32);
    for line in raw.split_inclusive(|&octet| octet == b'\n') {
        let line = line.strip_suffix(b"\n").unwrap_or(line);
        lines.extend_from_slice(line.strip_suffix(b"\r").unwrap_or(line));
        lines.extend_from_slice(b"\r\n");
    }
    lines
}

/// A message of a text in UTF-8. Date and Message-ID are the relay's to add.
pub(super) fn text(from: &Mailbox, to: &[Mailbox], subject: &str, text: &[u8]) -> Result<Vec<u8>, Failure> {
    if subject.contains(char::is_control) {
        return Err(Failure::Usage("--subject: it has control characters".into()));
    }
    if std::str::from_utf8(text).is_err() {
        return Err(Failure::Usage(
            "the text is not UTF-8; a whole message, which says its charset, goes without --subject".into(),
        ));
    }
    let to: Vec<_> = to.iter().map(Mailbox::to_string).collect();
    let mut message = format!(
        "From: {from}\r\nTo: {}\r\nSubject: {}\r\nMIME-Version: 1.0\r\nContent-Type: text/plain; charset=utf-8\r\n\
         Content-Transfer-Encoding: {}\r\n\r\n",
        to.join(",\r\n "),
        unstructured(subject),
        if text.is_ascii() { "7bit" } else { "8bit" },
    )
    .into_bytes();
    message.extend(with_crlf(text));
    Ok(message)
}

/// A field's text, with encoded words where it has to (RFC 2047): beyond ASCII, or too long for a line.
fn unstructured(text: &str) -> String {
    if text.is_ascii() && text.len() <= 900 && !text.contains("=?") {
        return text.to_owned();
    }
    let mut words = Vec::new();
    let mut rest = text;
    while !rest.is_empty() {
        let mut end = WORD.min(rest.len());
        while !rest.is_char_boundary(end) {
            end -= 1;
        }
        let (word, behind) = rest.split_at(end);
        words.push(format!("=?utf-8?B?{}?=", BASE64.encode(word)));
        rest = behind;
    }
    words.join("\r\n ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_end_in_crlf() {
        for (raw, wire) in [
            ("a\nb\n", "a\r\nb\r\n"),
            ("a\r\nb", "a\r\nb\r\n"),
            ("\n\n", "\r\n\r\n"),
            ("a\r\r\n", "a\r\r\n"),
        ] {
            assert_eq!(with_crlf(raw.as_bytes()), wire.as_bytes(), "{raw:?}");
        }
    }

    #[test]
    fn a_text_becomes_a_message() {
        let from: Mailbox = "a@example.com".parse().unwrap();
        let to: Vec<Mailbox> = ["b@example.net", "c@example.net"]
            .map(|to| to.parse().unwrap())
            .into();
        let message = text(&from, &to, "Hello", b"It works.").unwrap_or_default();
        let message = String::from_utf8(message).unwrap();
        assert!(message.starts_with(
            "From: a@example.com\r\nTo: b@example.net,\r\n c@example.net\r\nSubject: Hello\r\n"
        ));
        assert!(message.ends_with("7bit\r\n\r\nIt works.\r\n"), "{message}");
        assert!(text(&from, &to, "a\r\nBcc: x@y", b"x").is_err());
        assert!(text(&from, &to, "a", b"\xff").is_err());
    }

    #[test]
    fn a_long_subject_is_cut_between_characters() {
        let subject = "Grüße, смотри, 日本語. ".repeat(40);
        let encoded = unstructured(&subject);
        let mut decoded = Vec::new();
        for line in encoded.split("\r\n ") {
            assert!(line.len() <= 75, "{line}");
            let word = line
                .strip_prefix("=?utf-8?B?")
                .and_then(|word| word.strip_suffix("?="))
                .unwrap();
            let word = BASE64.decode(word).unwrap();
            assert!(
                std::str::from_utf8(&word).is_ok(),
                "each word by itself (RFC 2047 §5)"
            );
            decoded.extend(word);
        }
        assert_eq!(decoded, subject.as_bytes());
    }
}
