//! A message in 7-bit, for hosts without 8BITMIME (RFC 6152 §3): the parts that are 8-bit are encoded, all else stays as it
//! is, octet by octet.
//!
//! What can't be said in 7-bit is not converted, and the message is refused with 5.6.3: header fields beyond ASCII, what is
//! signed as it is (RFC 1847 §2.1), types of which nobody knows what an encoding does to them.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use mail_core::header::{self, Field};
use memchr::memmem;

use crate::report::text::write_quoted_printable;

/// Octets of a message that is converted: it stands in memory twice meanwhile.
pub const MAX_CONVERTED: usize = 32 << 20;

/// Parts within parts.
const MAX_DEPTH: usize = 20;

/// Octets of one line of base64 decoded: 76 characters (RFC 2045 §6.8).
const BASE64_LINE: usize = 57;

/// Why a message stays 8-bit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Stays {
    /// A header field, or text around the parts, is beyond ASCII.
    #[error("a header field is 8-bit")]
    Header,
    /// A signature over 8-bit octets would break.
    #[error("an 8-bit part is signed or encrypted")]
    Signed,
    /// 8-bit octets in a type that allows no encoding, or in what claims to be encoded.
    #[error("an 8-bit part that no encoding is allowed for")]
    Type,
    /// A Content-Type, Content-Transfer-Encoding or boundary that can't be read in one way only.
    #[error("its MIME structure is unclear")]
    Unclear,
    /// Parts within parts, too many.
    #[error("its parts are nested too deep")]
    Deep,
    /// Over [`MAX_CONVERTED`].
    #[error("it is too large to be converted")]
    Large,
}

/// The message in 7-bit.
pub fn convert(message: &[u8]) -> Result<Vec<u8>, Stays> {
    if message.len() > MAX_CONVERTED {
        return Err(Stays::Large);
    }
    let mut out = Vec::with_capacity(message.len() + message.len() / 3);
    entity(message, Place::Message, 0, &mut out)?;
    Ok(out)
}

/// What an entity is within.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    /// It is a message: MIME-Version says whether its fields mean anything.
    Message,
    Part,
    /// A part is a message where it doesn't say otherwise (RFC 2046 §5.1.5).
    DigestPart,
}

/// What the header says of a body.
struct Content<'a> {
    /// `type/subtype`, lower case; `None` where nothing is said.
    kind: Option<String>,
    boundary: Option<Vec<u8>>,
    encoding: Option<(Field<'a>, String)>,
    has_mime_version: bool,
}

fn entity(octets: &[u8], place: Place, depth: usize, out: &mut Vec<u8>) -> Result<(), Stays> {
    if octets.is_ascii() {
        out.extend_from_slice(octets);
        return Ok(());
    }
    if depth > MAX_DEPTH {
        return Err(Stays::Deep);
    }
    let (headers, body) = header::split(octets);
    if !headers.is_ascii() {
        return Err(Stays::Header);
    }
    let content = read(headers)?;
    let encoding = content.encoding.as_ref().map_or("7bit", |(_, word)| word);
    if !matches!(encoding, "7bit" | "8bit" | "binary") {
        return Err(Stays::Type);
    }
    let usual = match place {
        Place::Message | Place::Part => "text/plain",
        Place::DigestPart => "message/rfc822",
    };
    let kind = content.kind.as_deref().unwrap_or(usual);
    match kind.split_once('/').ok_or(Stays::Unclear)? {
        ("multipart", "signed" | "encrypted") => Err(Stays::Signed),
        ("multipart", kind) => {
            let place_of_parts = match kind {
                "digest" => Place::DigestPart,
                _ => Place::Part,
            };
            let boundary = content.boundary.as_deref().ok_or(Stays::Unclear)?;
            write_header(headers, &content, place, body, None, out);
            parts(body, boundary, (place_of_parts, depth), out)
        }
        ("message", "rfc822") => {
            write_header(headers, &content, place, body, None, out);
            entity(body, Place::Message, depth + 1, out)
        }
        ("message", _) => Err(Stays::Type),
        (main, _) => {
            let encoding = if main == "text" && is_mostly_plain(body) {
                "quoted-printable"
            } else {
                "base64"
            };
            write_header(headers, &content, place, body, Some(encoding), out);
            if encoding == "base64" {
                write_base64(body, out);
            } else {
                write_quoted_printable(out, body);
            }
            Ok(())
        }
    }
}

/// Quoted-printable makes three octets of one that it encodes, base64 four of any three.
fn is_mostly_plain(text: &[u8]) -> bool {
    let is_plain = |octet: u8| octet != b'=' && (octet.is_ascii_graphic() || b" \t\r\n".contains(&octet));
    let encoded = text.iter().filter(|octet| !is_plain(**octet)).count();
    encoded <= text.len() / 6
}

fn read(headers: &[u8]) -> Result<Content<'_>, Stays> {
    let mut content = Content {
        kind: None,
        boundary: None,
        encoding: None,
        has_mime_version: false,
    };
    for field in header::fields(headers) {
        let speaks = ["Content-Type", "Content-Transfer-Encoding", "MIME-Version"];
        if speaks.iter().any(|name| field.is(name)) && field.raw().get(field.name().len()) != Some(&b':') {
            // A blank before the colon (RFC 5322 §4.5): some readers don't take it for the field.
            return Err(Stays::Unclear);
        }
        if field.is("Content-Type") {
            if content.kind.is_some() {
                return Err(Stays::Unclear);
            }
            let (kind, boundary) = content_type(field.value())?;
            (content.kind, content.boundary) = (Some(kind), boundary);
        } else if field.is("Content-Transfer-Encoding") {
            let word = without_comments(field.value())?.trim_ascii().to_ascii_lowercase();
            let word = String::from_utf8(word).map_err(|_| Stays::Unclear)?;
            if content.encoding.replace((field, word)).is_some() {
                return Err(Stays::Unclear);
            }
        } else if field.is("MIME-Version") {
            content.has_mime_version = true;
        }
    }
    Ok(content)
}

/// The type, and the boundary if it names one (RFC 2045 §5.1).
fn content_type(value: &[u8]) -> Result<(String, Option<Vec<u8>>), Stays> {
    let value = without_comments(value)?;
    let mut rest = value.as_slice();
    let end = memchr::memchr(b';', rest).unwrap_or(rest.len());
    let kind =
        String::from_utf8(rest[..end].trim_ascii().to_ascii_lowercase()).map_err(|_| Stays::Unclear)?;
    rest = &rest[end..];
    let mut boundary = None;
    while let Some(parameter) = rest.strip_prefix(b";") {
        let parameter = parameter.trim_ascii_start();
        let Some(equals) = memchr::memchr2(b'=', b';', parameter).filter(|&at| parameter[at] == b'=') else {
            rest = &parameter[memchr::memchr(b';', parameter).unwrap_or(parameter.len())..];
            continue;
        };
        let name = parameter[..equals].trim_ascii();
        let (text, after) = parameter_value(parameter[equals + 1..].trim_ascii_start())?;
        if name.eq_ignore_ascii_case(b"boundary") && boundary.replace(text).is_some() {
            return Err(Stays::Unclear);
        }
        rest = after.trim_ascii_start();
    }
    // RFC 2046 §5.1.1: 1 to 70 characters.
    if boundary
        .as_ref()
        .is_some_and(|text| !(1..=70).contains(&text.len()))
    {
        return Err(Stays::Unclear);
    }
    Ok((kind, boundary))
}

/// A token or a quoted string, and what follows it.
fn parameter_value(text: &[u8]) -> Result<(Vec<u8>, &[u8]), Stays> {
    let Some(quoted) = text.strip_prefix(b"\"") else {
        let end = memchr::memchr(b';', text).unwrap_or(text.len());
        return Ok((text[..end].trim_ascii().to_vec(), &text[end..]));
    };
    let mut value = Vec::new();
    let mut octets = quoted.iter().enumerate();
    while let Some((at, &octet)) = octets.next() {
        match octet {
            b'"' => return Ok((value, &quoted[at + 1..])),
            b'\\' => value.push(*octets.next().ok_or(Stays::Unclear)?.1),
            b'\r' | b'\n' => {}
            other => value.push(other),
        }
    }
    Err(Stays::Unclear)
}

/// Comments (RFC 5322 §3.2.2) made a space; what stands within quotes is none.
fn without_comments(value: &[u8]) -> Result<Vec<u8>, Stays> {
    let mut out = Vec::with_capacity(value.len());
    let (mut depth, mut quoted) = (0_usize, false);
    let mut octets = value.iter();
    while let Some(&octet) = octets.next() {
        match octet {
            b'\\' if quoted || depth > 0 => {
                let next = *octets.next().ok_or(Stays::Unclear)?;
                if depth == 0 {
                    out.extend([octet, next]);
                }
            }
            b'"' if depth == 0 => {
                quoted = !quoted;
                out.push(octet);
            }
            b'(' if !quoted => depth += 1,
            b')' if depth > 0 => {
                depth -= 1;
                out.push(b' ');
            }
            _ if depth == 0 => out.push(octet),
            _ => {}
        }
    }
    (depth == 0 && !quoted).then_some(out).ok_or(Stays::Unclear)
}

/// The header with the encoding that the body has from now on (`None`: 7-bit), and the empty line behind it.
fn write_header(
    headers: &[u8],
    content: &Content<'_>,
    place: Place,
    body: &[u8],
    encoding: Option<&str>,
    out: &mut Vec<u8>,
) {
    let line = encoding.map_or_else(String::new, |word| {
        format!("Content-Transfer-Encoding: {word}\r\n")
    });
    match &content.encoding {
        Some((field, _)) => {
            let at = field.raw().as_ptr() as usize - headers.as_ptr() as usize;
            out.extend_from_slice(&headers[..at]);
            out.extend_from_slice(line.as_bytes());
            out.extend_from_slice(&headers[at + field.raw().len()..]);
        }
        None => {
            out.extend_from_slice(headers);
            out.extend_from_slice(line.as_bytes());
        }
    }
    if place == Place::Message && !content.has_mime_version {
        out.extend_from_slice(b"MIME-Version: 1.0\r\n");
    }
    if place == Place::Message && content.kind.is_none() {
        // RFC 1428 §3: nothing was said of the text's characters.
        let charset = if std::str::from_utf8(body).is_ok() {
            "utf-8"
        } else {
            "unknown-8bit"
        };
        out.extend_from_slice(format!("Content-Type: text/plain; charset={charset}\r\n").as_bytes());
    }
    out.extend_from_slice(b"\r\n");
}

fn write_base64(octets: &[u8], out: &mut Vec<u8>) {
    for line in octets.chunks(BASE64_LINE) {
        out.extend_from_slice(BASE64.encode(line).as_bytes());
        out.extend_from_slice(b"\r\n");
    }
}

/// The parts between the lines of a boundary (RFC 2046 §5.1.1), each converted; the CRLF in front of such a line is the
/// line's own.
fn parts(
    body: &[u8],
    boundary: &[u8],
    (place, depth): (Place, usize),
    out: &mut Vec<u8>,
) -> Result<(), Stays> {
    let mut at = match next_delimiter(body, 0, boundary) {
        Some(first) if body[..first.begin].is_ascii() => {
            out.extend_from_slice(&body[..first.end]);
            if first.closes {
                return Err(Stays::Unclear);
            }
            first.end
        }
        Some(_) => return Err(Stays::Header),
        None => return Err(Stays::Unclear),
    };
    loop {
        // Without a last boundary the body's end ends the last part.
        let Some(next) = next_delimiter(body, at, boundary) else {
            return entity(&body[at..], place, depth + 1, out);
        };
        entity(&body[at..next.begin.max(at)], place, depth + 1, out)?;
        out.extend_from_slice(&body[next.begin.max(at)..next.end]);
        at = next.end;
        if next.closes {
            let epilogue = &body[at..];
            out.extend_from_slice(epilogue);
            return epilogue.is_ascii().then_some(()).ok_or(Stays::Header);
        }
    }
}

/// A line of the boundary, the CRLF before it included.
struct Delimiter {
    begin: usize,
    end: usize,
    closes: bool,
}

fn next_delimiter(body: &[u8], from: usize, boundary: &[u8]) -> Option<Delimiter> {
    let dashed = [b"--", boundary].concat();
    memmem::find_iter(&body[from..], &dashed).find_map(|found| {
        let at = from + found;
        let begins_line = at == 0 || at == from || body[..at].ends_with(b"\r\n");
        let rest = &body[at + dashed.len()..];
        let closes = rest.starts_with(b"--");
        let tail = if closes { &rest[2..] } else { rest };
        let line = memmem::find(tail, b"\r\n").map_or(tail, |end| &tail[..end + 2]);
        let is_alone = line.trim_ascii().is_empty();
        (begins_line && is_alone).then(|| Delimiter {
            begin: if at >= from + 2 { at - 2 } else { at },
            end: body.len() - tail.len() + line.len(),
            closes,
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn converted(message: &str) -> String {
        let out = convert(message.as_bytes()).unwrap();
        assert!(out.is_ascii());
        String::from_utf8(out).unwrap()
    }

    /// CASES row 29.
    #[test]
    fn text_becomes_quoted_printable() {
        assert_eq!(
            converted(
                "From: a@b.test\r\nMIME-Version: 1.0\r\nContent-Type: text/plain; charset=utf-8\r\n\
                 Content-Transfer-Encoding: 8bit\r\nX-Last: 1\r\n\r\nGr\u{fc}\u{df}e = 1, and more words \r\n.\r\n"
            ),
            "From: a@b.test\r\nMIME-Version: 1.0\r\nContent-Type: text/plain; charset=utf-8\r\n\
             Content-Transfer-Encoding: quoted-printable\r\nX-Last: 1\r\n\r\nGr=C3=BC=C3=9Fe =3D 1, and more words=20\r\n.\r\n"
        );
        // Nothing said of what it is.
        assert_eq!(
            converted("From: a@b.test\r\n\r\nA long line of text with one \u{fc}\r\n"),
            "From: a@b.test\r\nContent-Transfer-Encoding: quoted-printable\r\nMIME-Version: 1.0\r\n\
             Content-Type: text/plain; charset=utf-8\r\n\r\nA long line of text with one =C3=BC\r\n"
        );
        let latin = convert(b"A: b\r\n\r\nA long line of text with one \xfc\r\n").unwrap();
        assert!(String::from_utf8(latin).unwrap().contains("charset=unknown-8bit"));
    }

    #[test]
    fn other_octets_become_base64() {
        let chinese = "\u{7528}\u{6237}".repeat(30);
        let text = converted(&format!(
            "Content-Type: text/plain; charset=utf-8\r\n\r\n{chinese}\r\n"
        ));
        let (header, body) = text.split_once("\r\n\r\n").unwrap();
        assert!(header.contains("Content-Transfer-Encoding: base64"));
        assert!(body.split("\r\n").all(|line| line.len() <= 76));
        let back = BASE64.decode(body.replace("\r\n", "")).unwrap();
        assert_eq!(back, format!("{chinese}\r\n").as_bytes());
        let image = converted("Content-Type: image/png\r\n\r\nabc \u{fc}\r\n");
        assert!(image.contains("Content-Transfer-Encoding: base64\r\n"));
    }

    #[test]
    fn only_the_parts_that_need_it_are_touched() {
        let part = |encoding: &str, text: &str| {
            format!(
                "Content-Type: text/plain; charset=utf-8\r\nContent-Transfer-Encoding: {encoding}\r\n\r\n{text}"
            )
        };
        let around = |encoding: &str, parts: &str| {
            format!(
                "From: a@b.test\r\nMIME-Version: 1.0\r\n{encoding}Content-Type: multipart/mixed;\r\n\
                 \tboundary=\"=_a (x)\"\r\n\r\npreamble\r\n{parts}--=_a (x)--\r\nepilogue\r\n"
            )
        };
        let inner = |encoding: &str, text: &str| {
            format!(
                "Content-Type: multipart/alternative; boundary=inner (not this)\r\n\r\n--inner \r\n{}\r\n--inner--\r\n",
                part(encoding, text)
            )
        };
        let parts = |encoding: &str, text: &str, no_boundary: &str| {
            format!(
                "--=_a (x)\r\n{}\r\n--=_a (x)\r\n{}\r\n{no_boundary}\r\n--=_a (x)\r\n{}\r\n",
                part("8bit", "all in ascii"),
                part(encoding, text),
                inner(encoding, text)
            )
        };
        assert_eq!(
            converted(&around(
                "Content-Transfer-Encoding: 8BIT (as is)\r\n",
                &parts("8bit", "text with \u{fc} in it", "--=_a (x)y")
            )),
            around(
                "",
                &parts("quoted-printable", "text with =C3=BC in it", "--=3D_a (x)y")
            )
        );
        let forwarded = converted(
            "MIME-Version: 1.0\r\nContent-Type: message/rfc822\r\nContent-Transfer-Encoding: 8bit\r\n\r\n\
             Subject: inner\r\nMIME-Version: 1.0\r\nContent-Type: text/plain; charset=utf-8\r\n\r\na long text with \u{fc}\r\n",
        );
        assert!(
            forwarded
                .contains("Content-Transfer-Encoding: quoted-printable\r\n\r\na long text with =C3=BC\r\n")
        );
        assert!(!forwarded.contains("8bit"));
    }

    #[test]
    fn parts_of_a_digest_are_messages() {
        let digest = converted(
            "Content-Type: multipart/digest; boundary=b\r\n\r\n--b\r\n\r\nSubject: inner\r\n\r\n\
             a long text with \u{fc}\r\n--b--\r\n",
        );
        let inner = "--b\r\n\r\nSubject: inner\r\nContent-Transfer-Encoding: quoted-printable\r\n";
        assert!(digest.contains(inner), "{digest}");
    }

    /// What a soft break puts at the beginning of a line is no boundary.
    #[test]
    fn no_boundary_is_made() {
        let broken = converted(&format!(
            "Content-Type: multipart/mixed; boundary=b\r\n\r\n--b\r\n\r\n{}--b\r\n\u{fc}\r\n--b--\r\n",
            "x".repeat(75)
        ));
        assert!(broken.contains("x=\r\n=2D-b\r\n"), "{broken}");
    }

    #[test]
    fn what_would_break_stays() {
        let signed = "Content-Type: multipart/signed; boundary=b\r\n\r\n--b\r\n\r\n\u{fc}\r\n--b--\r\n";
        let deep = "Content-Type: message/rfc822\r\n\r\n".repeat(30) + "\r\n\u{fc}\r\n";
        for (message, why) in [
            ("Subject: \u{fc}\r\n\r\n", Stays::Header),
            (signed, Stays::Signed),
            ("Content-Transfer-Encoding: base64\r\n\r\n\u{fc}\r\n", Stays::Type),
            (
                "Content-Transfer-Encoding : 8bit\r\n\r\n\u{fc}\r\n",
                Stays::Unclear,
            ),
            ("Content-Type: message/partial\r\n\r\n\u{fc}\r\n", Stays::Type),
            ("Content-Type: multipart/mixed\r\n\r\n\u{fc}\r\n", Stays::Unclear),
            (
                "Content-Type: multipart/mixed; boundary=b\r\n\r\n\u{fc}\r\n",
                Stays::Unclear,
            ),
            (
                "Content-Type: multipart/mixed; boundary=b\r\n\r\n\u{fc}\r\n--b\r\n\r\na\r\n--b--\r\n",
                Stays::Header,
            ),
            (
                "Content-Type: text/plain\r\nContent-Type: text/html\r\n\r\n\u{fc}\r\n",
                Stays::Unclear,
            ),
            (
                "Content-Type: text/plain; boundary=\"open\r\n\r\n\u{fc}\r\n",
                Stays::Unclear,
            ),
            (&deep, Stays::Deep),
        ] {
            assert_eq!(convert(message.as_bytes()), Err(why), "{message}");
        }
        assert_eq!(convert(&vec![0xfc; MAX_CONVERTED + 1]), Err(Stays::Large));
    }
}
