//! Sender addresses replaced where an operator asked for it: in the reverse-path, and in the header's From. Nothing else of
//! the message changes.

use bytes::{Bytes, BytesMut};
use mail_core::{Mailbox, ReversePath, header};

use crate::config::rewrites::Rewrite;

/// The reverse-path as it goes on. The null path stays what it is.
pub fn reverse_path(rewrites: &[Rewrite], path: &ReversePath) -> ReversePath {
    let rules = rewrites.iter().filter(|rewrite| rewrite.reverse_path);
    let Some(mailbox) = path.mailbox() else {
        return path.clone();
    };
    first(rules, mailbox).map_or_else(|| path.clone(), ReversePath::Mailbox)
}

/// The message as it goes on: with the addresses in From replaced where they stand, names and comments as they were. One
/// that is not written in one piece (as `ada @ example.com`) stays.
pub fn message(rewrites: &[Rewrite], message: Bytes) -> Bytes {
    let rules: Vec<_> = rewrites.iter().filter(|rewrite| rewrite.header_from).collect();
    if rules.is_empty() {
        return message;
    }
    let (headers, _) = header::split(&message);
    let mut start = 0;
    for field in header::fields(headers) {
        let end = start + field.raw().len();
        if !field.is("From") {
            start = end;
            continue;
        }
        let Ok(addresses) = header::addresses(field.value()) else {
            return message;
        };
        let replacements: Vec<_> = addresses
            .iter()
            .filter_map(|address| {
                Some((
                    address.to_string(),
                    first(rules.iter().copied(), address)?.to_string(),
                ))
            })
            .collect();
        if replacements.is_empty() {
            return message;
        }
        let value_at = end - field.value().len();
        let mut new = BytesMut::with_capacity(message.len() + 256);
        new.extend_from_slice(&message[..value_at]);
        replace(field.value(), &replacements, &mut new);
        new.extend_from_slice(&message[end..]);
        return new.freeze();
    }
    message
}

fn first<'a>(mut rules: impl Iterator<Item = &'a Rewrite>, address: &Mailbox) -> Option<Mailbox> {
    rules.find_map(|rewrite| rewrite.of(address))
}

/// Copies the value of an address field, with these addresses replaced wherever they stand outside of comments and of the
/// quoted strings of display names (RFC 5322 §3.4).
fn replace(value: &[u8], replacements: &[(String, String)], out: &mut BytesMut) {
    let (mut at, mut depth) = (0, 0usize);
    // An address begins only where no other word goes on.
    let mut within_word = false;
    while let Some(&octet) = value.get(at) {
        let rest = &value[at..];
        if depth == 0 && !within_word {
            let found = replacements.iter().find(|(old, _)| {
                let is_here = rest
                    .get(..old.len())
                    .is_some_and(|here| here.eq_ignore_ascii_case(old.as_bytes()));
                is_here && !rest.get(old.len()).is_some_and(|&next| is_of_word(next))
            });
            if let Some((old, new)) = found {
                out.extend_from_slice(new.as_bytes());
                at += old.len();
                continue;
            }
        }
        let length = match octet {
            b'"' if depth == 0 => quoted(rest),
            b'\\' if depth > 0 => 2,
            b'(' => {
                depth += 1;
                1
            }
            b')' => {
                depth = depth.saturating_sub(1);
                1
            }
            _ => 1,
        };
        let length = length.min(rest.len());
        out.extend_from_slice(&rest[..length]);
        within_word = depth == 0 && is_of_word(octet);
        at += length;
    }
}

/// Octets of the quoted string that begins here.
fn quoted(rest: &[u8]) -> usize {
    let mut at = 1;
    while let Some(&octet) = rest.get(at) {
        match octet {
            b'"' => return at + 1,
            b'\\' => at += 2,
            _ => at += 1,
        }
    }
    rest.len()
}

fn is_of_word(octet: u8) -> bool {
    octet.is_ascii_alphanumeric() || !octet.is_ascii() || b"!#$%&'*+-/=?^_`{|}~.@\"".contains(&octet)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::rewrites::Whole;

    fn rule(address: &str, becomes: &str) -> Rewrite {
        Rewrite {
            address: address.parse::<Whole>().unwrap(),
            becomes: becomes.parse::<Whole>().unwrap(),
            reverse_path: true,
            header_from: true,
        }
    }

    fn rules() -> Vec<Rewrite> {
        vec![
            rule("ceo@old.test", "office@new.test"),
            rule("old.test", "new.test"),
        ]
    }

    fn from(value: &str) -> String {
        let text = format!(
            "Subject: ada@old.test\r\nFrom:{value}\r\nTo: ada@old.test\r\n\r\nFrom: ada@old.test\r\n"
        );
        let new = message(&rules(), Bytes::from(text.clone()));
        let new = String::from_utf8(new.to_vec()).unwrap();
        let inner = new
            .strip_prefix("Subject: ada@old.test\r\nFrom:")
            .and_then(|rest| rest.strip_suffix("\r\nTo: ada@old.test\r\n\r\nFrom: ada@old.test\r\n"));
        inner.unwrap_or_else(|| panic!("{new}")).to_owned()
    }

    #[test]
    fn from_is_replaced_and_nothing_around_it() {
        for (old, new) in [
            (" ada@old.test", " ada@new.test"),
            (" ADA@OLD.test", " ADA@new.test"),
            ("CEO@old.test", "office@new.test"),
            (
                " \"ada@old.test\" <ada@old.test> (ada@old.test)",
                " \"ada@old.test\" <ada@new.test> (ada@old.test)",
            ),
            (
                " Ada\r\n\t<ada@old.test>, bob@other.test",
                " Ada\r\n\t<ada@new.test>, bob@other.test",
            ),
            (" bob@old.test, ada@old.test", " bob@new.test, ada@new.test"),
            (" ada@sub.old.test", " ada@sub.old.test"),
            (" ada@old.test.example", " ada@old.test.example"),
            (" \\\"x (ada@old.test", " \\\"x (ada@old.test"),
            (" ada @ old.test", " ada @ old.test"),
        ] {
            assert_eq!(from(old), new, "{old}");
        }
        assert_eq!(message(&rules(), Bytes::from_static(b"hello\r\n")), "hello\r\n");
    }

    #[test]
    fn the_reverse_path_is_replaced_but_never_the_null_path() {
        let path = |text: &str| ReversePath::Mailbox(text.parse().unwrap());
        for (old, new) in [
            ("ada@old.test", "ada@new.test"),
            ("Ceo@old.test", "office@new.test"),
            ("ada@other.test", "ada@other.test"),
        ] {
            assert_eq!(reverse_path(&rules(), &path(old)), path(new));
        }
        assert_eq!(reverse_path(&rules(), &ReversePath::Null), ReversePath::Null);
        let header_only = Rewrite {
            reverse_path: false,
            ..rule("old.test", "new.test")
        };
        assert_eq!(
            reverse_path(&[header_only], &path("ada@old.test")),
            path("ada@old.test")
        );
        let path_only = Rewrite {
            header_from: false,
            ..rule("old.test", "new.test")
        };
        let text = Bytes::from_static(b"From: ada@old.test\r\n\r\n");
        assert_eq!(message(&[path_only], text.clone()), text);
    }
}
