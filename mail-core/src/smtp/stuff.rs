//! Dot-stuffing on the way out (RFC 5321 §4.5.2), without copying the message.

/// The message as it goes on the wire after 354: a dot is doubled where it begins a line, a CRLF is added where the message
/// does not end in one, and the final dot follows. `parts` are the message in order, cut anywhere. Each slice returned
/// borrows from `parts` or is constant.
pub fn stuffed<'a>(parts: &[&'a [u8]]) -> Vec<&'a [u8]> {
    let mut slices = Vec::with_capacity(parts.len() + 1);
    let mut stuffer = Stuffer::default();
    for part in parts {
        stuffer.part(part, &mut slices);
    }
    slices.push(stuffer.end());
    slices
}

/// Stuffs a message of which never more than a part is at hand.
#[derive(Debug, Default)]
pub struct Stuffer {
    before: Before,
}

/// What stands before the next octet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Before {
    /// A line's end, or nothing.
    #[default]
    Line,
    Cr,
    Text,
}

impl Stuffer {
    /// Adds the next part of the message to `slices`.
    pub fn part<'a>(&mut self, part: &'a [u8], slices: &mut Vec<&'a [u8]>) {
        let Some(&last) = part.last() else { return };
        let mut begin = 0;
        let mut cut = |dot: usize| {
            if begin < dot {
                slices.push(&part[begin..dot]);
            }
            slices.push(b".");
            begin = dot;
        };
        // A cut comes before the dot, so that what follows begins with it and the constant dot is the one put in.
        match self.before {
            Before::Line if part.starts_with(b".") => cut(0),
            Before::Cr if part.starts_with(b"\n.") => cut(1),
            Before::Line | Before::Cr | Before::Text => {}
        }
        for newline in memchr::memmem::find_iter(part, b"\r\n.") {
            cut(newline + 2);
        }
        slices.push(&part[begin..]);
        let ends_line = part.ends_with(b"\r\n") || (self.before == Before::Cr && part == b"\n");
        self.before = match last {
            _ if ends_line => Before::Line,
            b'\r' => Before::Cr,
            _ => Before::Text,
        };
    }

    /// What follows the last part.
    pub fn end(&self) -> &'static [u8] {
        if self.before == Before::Line {
            b".\r\n"
        } else {
            b"\r\n.\r\n"
        }
    }
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
    fn a_cut_anywhere_makes_no_difference() {
        let message = b".a\r\n.\r\n..b\r\nc\r.\r\n\r\n.\n.d\r\n.";
        let whole = wire(&[message]);
        assert_eq!(whole, b"..a\r\n..\r\n...b\r\nc\r.\r\n\r\n..\n.d\r\n..\r\n.\r\n");
        for first in 0..=message.len() {
            for second in first..=message.len() {
                let parts = [&message[..first], &message[first..second], &message[second..]];
                assert_eq!(wire(&parts), whole, "cut at {first} and {second}");
            }
        }
        for end in [&b"a\r\n"[..], b"a\r", b"a"] {
            let octets: Vec<&[u8]> = end.chunks(1).collect();
            assert_eq!(wire(&octets), wire(&[end]));
        }
    }

    #[test]
    fn nothing_is_copied_where_no_line_begins_with_a_dot() {
        let body = b"line\r\n".repeat(1_000);
        let slices = stuffed(&[&body]);
        assert_eq!(slices.len(), 2);
        assert!(std::ptr::eq(slices[0], &body[..]));
    }
}
