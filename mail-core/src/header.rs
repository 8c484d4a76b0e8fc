//! Header fields of a message as bytes: where the header block ends, its fields, and the addresses of an address field.
//!
//! Nothing is decoded or unfolded, so that what is read can be signed and sent on byte for byte.

use memchr::{memchr, memmem};

use crate::mailbox::{BadMailbox, Mailbox};

/// Addresses read from one field; more are refused. A From with more than a few is no mail anyone sends.
pub const MAX_ADDRESSES: usize = 100;

/// Divides a message at the empty line after its header block (RFC 5322 §2.1): the block with its last CRLF, and what
/// follows the empty line. A message without that line is all header.
pub fn split(message: &[u8]) -> (&[u8], &[u8]) {
    if let Some(body) = message.strip_prefix(b"\r\n") {
        return (&[], body);
    }
    match memmem::find(message, b"\r\n\r\n") {
        Some(at) => (&message[..at + 2], &message[at + 4..]),
        None => (message, &[]),
    }
}

/// One header field, from its name to its final CRLF, folded lines included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Field<'a> {
    raw: &'a [u8],
    colon: usize,
}

impl<'a> Field<'a> {
    /// The name as written, without the blanks before the colon that RFC 5322 §4.5 once allowed.
    pub fn name(&self) -> &'a [u8] {
        self.raw[..self.colon].trim_ascii_end()
    }

    /// Whether this is the field `name`, in any case.
    pub fn is(&self, name: &str) -> bool {
        self.name().eq_ignore_ascii_case(name.as_bytes())
    }

    /// All after the colon, with folds and the final CRLF.
    pub fn value(&self) -> &'a [u8] {
        &self.raw[self.colon + 1..]
    }

    /// The whole field.
    pub fn raw(&self) -> &'a [u8] {
        self.raw
    }
}

/// The fields of a header block, in order. Lines that belong to no field (no colon, or no name before it) are passed over.
#[derive(Clone, Debug)]
pub struct Fields<'a> {
    rest: &'a [u8],
}

/// See [`Fields`].
pub fn fields(block: &[u8]) -> Fields<'_> {
    Fields { rest: block }
}

impl<'a> Iterator for Fields<'a> {
    type Item = Field<'a>;

    fn next(&mut self) -> Option<Field<'a>> {
        while !self.rest.is_empty() {
            let (raw, rest) = self.rest.split_at(field_end(self.rest));
            self.rest = rest;
            let colon = memchr(b':', raw).filter(|&at| is_name(raw[..at].trim_ascii_end()));
            if let Some(colon) = colon {
                return Some(Field { raw, colon });
            }
        }
        None
    }
}

/// The message without the fields that `goes` names, each with its folded lines; all other octets stay as they are. `None` where
/// there is no such field.
pub fn without(message: &[u8], goes: impl Fn(&Field<'_>) -> bool) -> Option<Vec<u8>> {
    let (block, _) = split(message);
    let mut fields = fields(block);
    let (mut rest, mut copied) = (Vec::new(), 0);
    while let Some(field) = fields.next() {
        if goes(&field) {
            let end = block.len() - fields.rest.len();
            rest.reserve(message.len() - copied);
            rest.extend_from_slice(&message[copied..end - field.raw.len()]);
            copied = end;
        }
    }
    (copied > 0).then(|| {
        rest.extend_from_slice(&message[copied..]);
        rest
    })
}

/// RFC 5322 §2.2: printable US-ASCII without the colon.
fn is_name(name: &[u8]) -> bool {
    !name.is_empty() && name.iter().all(u8::is_ascii_graphic)
}

/// Where the first field ends: behind a CRLF that no space or tab follows (RFC 5322 §2.2.3).
fn field_end(block: &[u8]) -> usize {
    memmem::find_iter(block, b"\r\n")
        .map(|at| at + 2)
        .find(|&end| !matches!(block.get(end), Some(b' ' | b'\t')))
        .unwrap_or(block.len())
}

/// Why a field's value is not a list of addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadAddressList {
    /// No address at all, as in `<>` or an empty group.
    #[error("no address")]
    None,
    /// More than [`MAX_ADDRESSES`].
    #[error("more than {MAX_ADDRESSES} addresses")]
    TooMany,
    /// Quotes, comments or angle brackets that don't close, or text behind `>`.
    #[error("quotes, brackets or comments out of order")]
    Syntax,
    /// What stands where an address should is none.
    #[error(transparent)]
    Mailbox(#[from] BadMailbox),
}

/// The addresses of an address field's value (From, To, …; RFC 5322 §3.4, groups by RFC 6854), names and comments cut.
///
/// Strict where leniency would let two readers see two senders: text behind `>`, a second `<`, an `@` too many are errors.
pub fn addresses(value: &[u8]) -> Result<Vec<Mailbox>, BadAddressList> {
    let mut list = AddressList::default();
    let mut octets = value.iter().copied();
    while let Some(octet) = octets.next() {
        match octet {
            b'"' => quoted(&mut octets, list.part()?)?,
            b'(' => skip_comment(&mut octets)?,
            b'<' if list.angle.is_none() => {
                list.angle = Some(Vec::new());
                list.inside = true;
            }
            b'>' if list.inside => list.inside = false,
            b'<' | b'>' => return Err(BadAddressList::Syntax),
            // A colon within brackets stays and fails there.
            b':' if !list.inside && list.angle.is_none() => list.begin_group()?,
            b',' if !list.inside => list.end_address()?,
            b';' if !list.inside => list.end_group()?,
            b'\r' | b'\n' => {}
            b' ' | b'\t' if list.is_behind_angle() => {}
            other => list.part()?.push(other),
        }
    }
    if list.inside || list.in_group {
        return Err(BadAddressList::Syntax);
    }
    list.end_address()?;
    if list.found.is_empty() {
        return Err(BadAddressList::None);
    }
    Ok(list.found)
}

#[derive(Default)]
struct AddressList {
    found: Vec<Mailbox>,
    /// What stands outside angle brackets: a name, or the address itself.
    plain: Vec<u8>,
    /// What stands within them.
    angle: Option<Vec<u8>>,
    inside: bool,
    in_group: bool,
}

impl AddressList {
    fn is_behind_angle(&self) -> bool {
        self.angle.is_some() && !self.inside
    }

    fn part(&mut self) -> Result<&mut Vec<u8>, BadAddressList> {
        match &mut self.angle {
            Some(angle) if self.inside => Ok(angle),
            Some(_) => Err(BadAddressList::Syntax),
            None => Ok(&mut self.plain),
        }
    }

    /// What stood before is a name, and no address. One with an `@` would be read as one by some.
    fn begin_group(&mut self) -> Result<(), BadAddressList> {
        let name = std::mem::take(&mut self.plain);
        if self.in_group || has_bare_at(&name) {
            return Err(BadAddressList::Syntax);
        }
        self.in_group = true;
        Ok(())
    }

    fn end_group(&mut self) -> Result<(), BadAddressList> {
        self.end_address()?;
        // A semicolon in place of a comma, as Outlook's users write it.
        self.in_group = false;
        Ok(())
    }

    fn end_address(&mut self) -> Result<(), BadAddressList> {
        let plain = std::mem::take(&mut self.plain);
        let angle = self.angle.take();
        // `a@b <c@d>`: the name in front of the brackets is what some readers take for the address.
        if let Some(angle) = &angle
            && has_bare_at(&plain)
            && !plain.trim_ascii().eq_ignore_ascii_case(angle.trim_ascii())
        {
            return Err(BadAddressList::Syntax);
        }
        let address = angle.unwrap_or(plain);
        let address = address.trim_ascii();
        if address.is_empty() {
            return Ok(()); // RFC 5322 §4.4 lets lists have empty members.
        }
        if self.found.len() == MAX_ADDRESSES {
            return Err(BadAddressList::TooMany);
        }
        let text = std::str::from_utf8(address).map_err(|_| BadMailbox::LocalCharacter)?;
        self.found.push(text.parse::<Mailbox>()?);
        Ok(())
    }
}

/// Whether there is an `@` outside of quoted strings.
fn has_bare_at(name: &[u8]) -> bool {
    let mut quoted = false;
    let mut octets = name.iter();
    while let Some(octet) = octets.next() {
        match octet {
            b'\\' if quoted => drop(octets.next()),
            b'"' => quoted = !quoted,
            b'@' if !quoted => return true,
            _ => {}
        }
    }
    false
}

/// Copies a quoted string, its quotes and pairs included, without folds.
fn quoted(octets: &mut impl Iterator<Item = u8>, into: &mut Vec<u8>) -> Result<(), BadAddressList> {
    into.push(b'"');
    while let Some(octet) = octets.next() {
        match octet {
            b'\r' | b'\n' => continue,
            other => into.push(other),
        }
        match octet {
            b'"' => return Ok(()),
            b'\\' => into.push(octets.next().ok_or(BadAddressList::Syntax)?),
            _ => {}
        }
    }
    Err(BadAddressList::Syntax)
}

fn skip_comment(octets: &mut impl Iterator<Item = u8>) -> Result<(), BadAddressList> {
    let mut depth = 1_usize;
    while let Some(octet) = octets.next() {
        match octet {
            b'(' => depth += 1,
            b')' => depth -= 1,
            b'\\' => drop(octets.next()),
            _ => {}
        }
        if depth == 0 {
            return Ok(());
        }
    }
    Err(BadAddressList::Syntax)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn splits_at_the_first_empty_line() {
        assert_eq!(
            split(b"A: 1\r\nB: 2\r\n\r\nx\r\n\r\ny"),
            (&b"A: 1\r\nB: 2\r\n"[..], &b"x\r\n\r\ny"[..])
        );
        assert_eq!(split(b"\r\nbody"), (&b""[..], &b"body"[..]));
        assert_eq!(split(b"A: 1\r\n"), (&b"A: 1\r\n"[..], &b""[..]));
        assert_eq!(split(b"A: 1\r\n\r\n"), (&b"A: 1\r\n"[..], &b""[..]));
        assert_eq!(split(b""), (&b""[..], &b""[..]));
    }

    #[test]
    fn finds_fields_with_their_folds() {
        let block = b"Subject : a\r\n b\r\n\tc\r\nnonsense\r\n: no name\r\nto:x\r\nb ad: 1\r\nLast: cut";
        let found: Vec<_> = fields(block).map(|f| (f.name(), f.value())).collect();
        assert_eq!(
            found,
            [
                (&b"Subject"[..], &b" a\r\n b\r\n\tc\r\n"[..]),
                (b"to", b"x\r\n"),
                (b"Last", b" cut"),
            ]
        );
        assert!(fields(block).next().unwrap().is("SUBJECT"));
    }

    #[test]
    fn reads_addresses_as_mail_programs_write_them() {
        for (value, expected) in [
            (" a@example.com\r\n", &["a@example.com"][..]),
            (" Jo <a@example.com>\r\n", &["a@example.com"]),
            (
                " \"x@evil.test, <y@evil.test>\" <a@example.com>\r\n",
                &["a@example.com"],
            ),
            (
                " (b@evil.test (nested \\) )) a@example.com (x)\r\n",
                &["a@example.com"],
            ),
            (
                " =?utf-8?q?J=C3=B6?=\r\n\t<a@EXAMPLE.com>\r\n",
                &["a@example.com"],
            ),
            (
                " a@example.com, B <b@example.com>,\r\n",
                &["a@example.com", "b@example.com"],
            ),
            (
                " Team: a@example.com, b@example.com;\r\n",
                &["a@example.com", "b@example.com"],
            ),
            (" \"q \\\" p\"@example.com\r\n", &["\"q \\\" p\"@example.com"]),
            (" < a@example.com > \r\n", &["a@example.com"]),
            (" a@example.com <a@example.com>\r\n", &["a@example.com"]),
            (" A@Example.com <a@example.com>\r\n", &["a@example.com"]),
            (" \"x@evil.test\": a@example.com;\r\n", &["a@example.com"]),
            (
                " a@example.com; b@example.com\r\n",
                &["a@example.com", "b@example.com"],
            ),
        ] {
            let found: Vec<_> = addresses(value.as_bytes())
                .unwrap_or_else(|e| panic!("{value}: {e}"))
                .iter()
                .map(ToString::to_string)
                .collect();
            assert_eq!(found, expected, "{value}");
        }
        assert_eq!(
            addresses(b" J\xf6rg <a@example.com>\r\n").unwrap()[0].to_string(),
            "a@example.com"
        );
    }

    #[test]
    fn refuses_what_two_readers_would_read_differently() {
        let many = "a@example.com,".repeat(MAX_ADDRESSES + 1);
        for value in [
            "",
            " <>\r\n",
            " nobody:;\r\n",
            " <a@example.com> <b@bank.test>\r\n",
            " ceo@bank.test: a@example.com;\r\n",
            " ceo@bank.test:a@example.com\r\n",
            " Team: a@example.com\r\n",
            " Team: Other: a@example.com;\r\n",
            " ceo@bank.test <a@example.com>\r\n",
            " \"Boss\" ceo@bank.test <a@example.com>\r\n",
            " <a@example.com> b@bank.test\r\n",
            " a@example.com <b@bank.test\r\n",
            " a@evil.test@bank.test\r\n",
            " a b@bank.test\r\n",
            " \"open <a@bank.test>\r\n",
            " (open <a@bank.test>\r\n",
            " <a@evil.test\r\n ,b@bank.test>\r\n",
            " a@[192.0.2.1]\r\n",
            " plain\r\n",
            &many,
        ] {
            assert!(addresses(value.as_bytes()).is_err(), "{value:?}");
        }
    }

    /// CASES §3: an address parser's recursion (CVE-2025-14874), and its time. There is no recursion here to be deep.
    #[test]
    fn nested_comments_and_groups_end() {
        let deep = [
            "(".repeat(100_000),
            format!("{}a@example.com{}", "(".repeat(100_000), ")".repeat(100_000)),
            "a:b;".repeat(25_000),
            "a:".repeat(50_000),
            "<".repeat(100_000),
            "\"".repeat(100_001),
        ];
        for value in deep {
            assert!(addresses(value.as_bytes()).is_err());
        }
    }
}
