//! Dot-stuffing on the way out (RFC 5321 §4.5.2), without copying the message.

/// The message as it goes on the wire after 354: a dot is doubled where it begins a line, a CRLF is added where the message
/// does not end in one, and the final dot follows. `parts` are the message in order; each ends with a whole line but the
/// last. Each slice returned borrows from `parts` or is constant.
pub fn stuffed<'a>(parts: &[&'a [u8]]) -> Vec<&'a [u8]> {
    let mut slices = Vec::with_capacity(parts.len() + 1);
    for part in parts.iter().filter(|part| !part.is_empty()) {
        stuff_part(part, &mut slices);
    }
    let ends_line = parts
        .iter()
        .rev()
        .find(|part| !part.is_empty())
        .is_none_or(|part| part.ends_with(b"\r\n"));
    slices.push(if ends_line { b".\r\n" } else { b"\r\n.\r\n" });
    slices
}

fn stuff_part<'a>(part: &'a [u8], slices: &mut Vec<&'a [u8]>) {
    let mut begin = 0;
    if part.starts_with(b".") {
        slices.push(b".");
    }
    // A cut comes before the dot, so that what follows begins with it and the constant dot is the one put in.
    for newline in memchr::memmem::find_iter(part, b"\r\n.") {
        let dot = newline + 2;
        slices.push(&part[begin..dot]);
        slices.push(b".");
        begin = dot;
    }
    slices.push(&part[begin..]);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wire(parts: &[&[u8]]) -> Vec<u8> {
        stuffed(parts).concat()
    }

    #[test]
    fn dots_are_doubled_where_lines_begin() {
        assert_eq!(
            wire(&[b"a\r\n.\r\n..b\r\nc.\r\n"]),
            b"a\r\n..\r\n...b\r\nc.\r\n.\r\n"
        );
        assert_eq!(wire(&[b"h: x\r\n", b".\r\n"]), b"h: x\r\n..\r\n.\r\n");
        assert_eq!(wire(&[b".\r\n.\r\n.\r\n"]), b"..\r\n..\r\n..\r\n.\r\n");
    }

    #[test]
    fn a_missing_line_end_is_added() {
        assert_eq!(wire(&[b"a"]), b"a\r\n.\r\n");
        assert_eq!(wire(&[b"a\r"]), b"a\r\r\n.\r\n");
        assert_eq!(wire(&[b""]), b".\r\n");
        assert_eq!(wire(&[b"a\r\n", b""]), b"a\r\n.\r\n");
    }

    #[test]
    fn nothing_is_copied_where_no_line_begins_with_a_dot() {
        let body = b"line\r\n".repeat(1_000);
        let slices = stuffed(&[&body]);
        assert_eq!(slices.len(), 2);
        assert!(std::ptr::eq(slices[0], &body[..]));
    }
}
