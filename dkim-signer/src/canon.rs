//! The `relaxed` canonicalisation (RFC 6376 §3.4.2, §3.4.4). `simple` is not offered: a relay on the way that trims a blank
//! would break it.

use std::sync::LazyLock;

use aws_lc_rs::digest::{Context, Digest, SHA256};
use mail_core::header::Field;
use memchr::memmem::Finder;
use memchr::{memchr, memchr_iter, memrchr_iter};

/// Appends a field: name in lower case, unfolded, blanks made one, none around the colon or at the end; with its CRLF.
pub fn write_field(field: &Field<'_>, into: &mut Vec<u8>) {
    into.extend(field.name().iter().map(u8::to_ascii_lowercase));
    into.push(b':');
    let start = into.len();
    write_tidy(field.value(), into);
    // What is left of the final CRLF and of blanks at either end.
    if into.get(start) == Some(&b' ') {
        into.remove(start);
    }
    into.extend_from_slice(b"\r\n");
}

/// SHA-256 of a body in relaxed form: each line without blanks at its end and with runs of blanks made one space, no empty
/// lines at the end, and a CRLF behind the last line if there is any.
///
/// Lines of blanks only are empty once tidied, so at the end they go too: "reduce" comes before "ignore" in §3.4.4. Lines
/// that need no change are hashed where they stand; the body is not copied.
pub fn body_hash(body: &[u8]) -> Digest {
    let mut hasher = BodyHasher::default();
    hasher.update(body);
    hasher.finish()
}

/// [`body_hash`] of a body that comes in parts, cut anywhere. Keeps nothing of it, however long its lines are.
pub struct BodyHasher {
    hash: Context,
    /// Not hashed yet: at the end they are not.
    empty_lines: usize,
    /// Some octet of a line whose end has not come.
    within: bool,
    /// Some of it was hashed, which is no blank.
    text: bool,
    /// Blanks came last, before the CR if there is one.
    gap: bool,
    /// A CR came last.
    cr: bool,
    tidy: Vec<u8>,
}

impl Default for BodyHasher {
    fn default() -> Self {
        Self {
            hash: Context::new(&SHA256),
            empty_lines: 0,
            within: false,
            text: false,
            gap: false,
            cr: false,
            tidy: Vec::new(),
        }
    }
}

impl BodyHasher {
    /// Takes the next part of the body.
    pub fn update(&mut self, part: &[u8]) {
        let begin = if self.within { self.go_on(part) } else { 0 };
        let body = &part[begin..];
        let whole = lines_until(body, 0, body.len());
        let (lines, rest) = body.split_at(whole);
        let mut changes = Changes::default();
        let mut start = 0;
        while start < lines.len() {
            let next = changes.next_from(lines, start).unwrap_or(lines.len());
            let untidy = lines_until(lines, start, next);
            self.hash_as_they_are(&lines[start..untidy]);
            start = line_end(lines, untidy);
            if start > untidy {
                self.hash_untidy(&lines[untidy..start - CRLF.len()]);
            }
        }
        if !rest.is_empty() {
            self.go_on(rest);
        }
    }

    /// Takes lines that tidying would not change, each with its CRLF.
    fn hash_as_they_are(&mut self, lines: &[u8]) {
        let mut text = lines;
        while text == CRLF || text.ends_with(b"\r\n\r\n") {
            text = &text[..text.len() - CRLF.len()];
        }
        if !text.is_empty() {
            self.hash_empty_lines();
            self.hash.update(text);
        }
        self.empty_lines += (lines.len() - text.len()) / CRLF.len();
    }

    /// Takes a line, without its CRLF.
    fn hash_untidy(&mut self, line: &[u8]) {
        if line.iter().all(|&octet| is_blank(octet)) {
            self.empty_lines += 1;
            return;
        }
        self.hash_empty_lines();
        self.tidy.clear();
        write_tidy(line, &mut self.tidy);
        self.tidy.extend_from_slice(CRLF);
        self.hash.update(&self.tidy);
    }

    /// The hash of all that came.
    pub fn finish(mut self) -> Digest {
        self.tidy.clear();
        if self.cr {
            self.text(b'\r');
        }
        if self.text {
            self.tidy.extend_from_slice(b"\r\n");
        }
        self.hash.update(&self.tidy);
        self.hash.finish()
    }

    /// Takes what belongs to the line that has begun, its end included if it is there, and tells how much that was.
    fn go_on(&mut self, part: &[u8]) -> usize {
        self.within = true;
        self.tidy.clear();
        let mut taken = 0;
        for &octet in part {
            taken += 1;
            if std::mem::take(&mut self.cr) {
                if octet == b'\n' {
                    self.end_line();
                    break;
                }
                self.text(b'\r');
            }
            match octet {
                b'\r' => self.cr = true,
                octet if is_blank(octet) => self.gap = true,
                octet => self.text(octet),
            }
        }
        self.hash.update(&self.tidy);
        taken
    }

    fn text(&mut self, octet: u8) {
        if !std::mem::replace(&mut self.text, true) {
            self.hash_empty_lines();
        }
        if std::mem::take(&mut self.gap) {
            self.tidy.push(b' ');
        }
        self.tidy.push(octet);
    }

    fn end_line(&mut self) {
        if std::mem::take(&mut self.text) {
            self.tidy.extend_from_slice(b"\r\n");
        } else {
            self.empty_lines += 1;
        }
        (self.within, self.gap) = (false, false);
    }

    fn hash_empty_lines(&mut self) {
        let mut count = std::mem::take(&mut self.empty_lines);
        while count > 0 {
            let some = count.min(EMPTY_LINES.len() / 2);
            self.hash.update(&EMPTY_LINES[..some * 2]);
            count -= some;
        }
    }
}

fn is_blank(octet: u8) -> bool {
    octet == b' ' || octet == b'\t'
}

const CRLF: &[u8] = b"\r\n";

// To make a finder takes as long as to go through some lines with it.
static RUN: LazyLock<Finder<'_>> = LazyLock::new(|| Finder::new("  "));
static TRAILING: LazyLock<Finder<'_>> = LazyLock::new(|| Finder::new(" \r"));

/// Where the next of what tidying may change is: a tab, a run of spaces, a space before a CR. Each is looked for on its own and not again
/// before it is passed, since a body that has many of one may have none of another.
#[derive(Default)]
struct Changes {
    tab: Next,
    run: Next,
    trailing: Next,
}

#[derive(Clone, Copy, Default)]
enum Next {
    #[default]
    Unknown,
    At(usize),
    None,
}

impl Changes {
    fn next_from(&mut self, lines: &[u8], start: usize) -> Option<usize> {
        let found = [
            self.tab.from(start, || memchr(b'\t', &lines[start..])),
            self.run.from(start, || RUN.find(&lines[start..])),
            self.trailing.from(start, || TRAILING.find(&lines[start..])),
        ];
        found.into_iter().flatten().min()
    }
}

impl Next {
    /// `find` tells how far behind `start`.
    fn from(&mut self, start: usize, find: impl FnOnce() -> Option<usize>) -> Option<usize> {
        if matches!(*self, Self::Unknown) || matches!(*self, Self::At(at) if at < start) {
            *self = find().map_or(Self::None, |ahead| Self::At(start + ahead));
        }
        match *self {
            Self::At(at) => Some(at),
            Self::Unknown | Self::None => None,
        }
    }
}

/// The end of the last line from `start` that ends at `limit` or before: `start` where there is none.
fn lines_until(body: &[u8], start: usize, limit: usize) -> usize {
    memrchr_iter(b'\n', &body[start..limit])
        .map(|at| start + at)
        .find(|&at| at > start && body[at - 1] == b'\r')
        .map_or(start, |at| at + 1)
}

/// Where the line from `start` ends: behind its CRLF, or at the body's end. A bare CR or LF is a character like others.
fn line_end(body: &[u8], start: usize) -> usize {
    memchr_iter(b'\n', &body[start..])
        .map(|at| start + at)
        .find(|&at| at > start && body[at - 1] == b'\r')
        .map_or(body.len(), |at| at + 1)
}

/// Appends `text` with folds undone and runs of blanks made one space, none at the end.
fn write_tidy(text: &[u8], into: &mut Vec<u8>) {
    into.reserve(text.len());
    let mut gap = false;
    let mut rest = text;
    while let [octet, behind @ ..] = rest {
        rest = match octet {
            b' ' | b'\t' => {
                gap = true;
                behind
            }
            b'\r' if behind.first() == Some(&b'\n') => &behind[1..],
            _ => {
                if std::mem::take(&mut gap) {
                    into.push(b' ');
                }
                let word = behind.iter().position(|octet| b" \t\r".contains(octet));
                let (word, left) = rest.split_at(word.map_or(rest.len(), |at| at + 1));
                into.extend_from_slice(word);
                left
            }
        };
    }
}

const EMPTY_LINES: [u8; 128] = {
    let mut lines = [b'\r'; 128];
    let mut at = 1;
    while at < lines.len() {
        lines[at] = b'\n';
        at += 2;
    }
    lines
};

#[cfg(test)]
mod tests {
    use aws_lc_rs::digest::digest;
    use mail_core::header::fields;
    use proptest::prelude::*;

    use super::*;

    /// The words of RFC 6376 §3.4.4 one after the other, with no eye to speed.
    fn relaxed_by_the_book(body: &[u8]) -> Vec<u8> {
        let text: Vec<u8> = body.to_vec();
        let mut lines: Vec<Vec<u8>> = Vec::new();
        let mut rest = &text[..];
        while !rest.is_empty() {
            let at = rest.windows(2).position(|two| two == b"\r\n");
            let (line, next) = at.map_or((rest, &b""[..]), |at| (&rest[..at], &rest[at + 2..]));
            let mut out: Vec<u8> = Vec::new();
            for &octet in line {
                match octet {
                    b' ' | b'\t' if out.last() == Some(&b' ') => {}
                    b' ' | b'\t' => out.push(b' '),
                    other => out.push(other),
                }
            }
            if out.last() == Some(&b' ') {
                out.pop();
            }
            lines.push(out);
            rest = next;
        }
        while lines.last().is_some_and(Vec::is_empty) {
            lines.pop();
        }
        lines
            .into_iter()
            .flat_map(|line| [line, b"\r\n".to_vec()])
            .flatten()
            .collect()
    }

    fn assert_hash(body: &[u8], canonical: &[u8]) {
        assert_eq!(relaxed_by_the_book(body), canonical, "{:?}", body.escape_ascii());
        assert_eq!(
            body_hash(body).as_ref(),
            digest(&SHA256, canonical).as_ref(),
            "{}",
            body.escape_ascii()
        );
    }

    #[test]
    fn bodies_are_hashed_in_relaxed_form() {
        for (body, canonical) in [
            // RFC 6376 §3.4.5
            (&b" C \r\nD \t E\r\n\r\n\r\n"[..], &b" C\r\nD E\r\n"[..]),
            (b"", b""),
            (b"\r\n", b""),
            (b"a", b"a\r\n"),
            (b"a\r\nb", b"a\r\nb\r\n"),
            (b"a\r\n\r\n\r\nb\r\n", b"a\r\n\r\n\r\nb\r\n"),
            (b"\r\n\r\na\r\n", b"\r\n\r\na\r\n"),
            (b"a\nb\rc\r\n", b"a\nb\rc\r\n"),
            (b"a\r", b"a\r\r\n"),
            (b"\xff \x00\r\n", b"\xff \x00\r\n"),
        ] {
            assert_hash(body, canonical);
        }
    }

    /// Lines of blanks at the end are no lines: widespread code hashes them as empty ones, and is refused everywhere.
    #[test]
    fn lines_of_blanks_at_the_end_are_cut() {
        for tail in [
            &b"\r\n"[..],
            b" \r\n",
            b"\t\r\n",
            b" \t \r\n\r\n  \r\n",
            b"\r\n \r\n\r\n",
            b" ",
            b"\r\n\t",
        ] {
            assert_hash(&[b"a\r\n", tail].concat(), b"a\r\n");
            assert_hash(tail, b"");
            assert_hash(&[b"a\r\n", tail, b"\r\nb"].concat(), &{
                let lines = [b"a\r\n", tail, b"\r\n"].concat();
                let count = lines.windows(2).filter(|two| two == b"\r\n").count();
                [&b"a"[..], &b"\r\n".repeat(count), b"b\r\n"].concat()
            });
        }
    }

    #[test]
    fn fields_are_written_in_relaxed_form() {
        // RFC 6376 §3.4.5, and folds in odd places.
        for (field, canonical) in [
            (&b"A: X\r\n"[..], &b"a:X\r\n"[..]),
            (b"B : Y\t\r\n\tZ  \r\n", b"b:Y Z\r\n"),
            (b"Subject:\r\n \r\n  x\r\n \t\r\n", b"subject:x\r\n"),
            (b"Empty:\r\n", b"empty:\r\n"),
            (b"Empty: \t\r\n", b"empty:\r\n"),
            (b"Bare: a\rb", b"bare:a\rb\r\n"),
        ] {
            let mut written = Vec::new();
            write_field(&fields(field).next().unwrap(), &mut written);
            assert_eq!(
                written.escape_ascii().to_string(),
                canonical.escape_ascii().to_string()
            );
        }
    }

    proptest! {
        #[test]
        fn a_body_in_parts_has_the_hash_of_the_whole(
            parts in proptest::collection::vec("([ab]|  ?|\t|\r\n|\r\n|\r|\n){0,9}", 0..12),
        ) {
            let mut hasher = BodyHasher::default();
            for part in &parts {
                hasher.update(part.as_bytes());
            }
            let canonical = relaxed_by_the_book(parts.concat().as_bytes());
            prop_assert_eq!(hasher.finish().as_ref().to_vec(), digest(&SHA256, &canonical).as_ref().to_vec());
        }

        #[test]
        fn any_body_is_hashed_by_the_book(body in "([ab]|  ?|\t|\r\n|\r\n|\r|\n){0,60}") {
            let canonical = relaxed_by_the_book(body.as_bytes());
            prop_assert_eq!(body_hash(body.as_bytes()).as_ref().to_vec(), digest(&SHA256, &canonical).as_ref().to_vec());
        }
    }
}
