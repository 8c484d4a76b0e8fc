//! The DATA decoder, against one that is slow and plain; at any cuts, and back again through dot-stuffing.
#![no_main]

use libfuzzer_sys::fuzz_target;
use mail_core::smtp::data::{DataFault, Decoder};
use mail_core::smtp::stuff::stuffed;

const MAX: u64 = 4_000;

fuzz_target!(|octets: &[u8]| {
    let Some((&cut, wire)) = octets.split_first() else {
        return;
    };
    let whole = decode(wire, wire.len().max(1));
    assert_eq!(decode(wire, usize::from(cut) + 1), whole, "cut otherwise");
    let plain = plainly(wire);
    assert_eq!(whole.as_ref().map(|(used, _)| *used), plain.as_ref().map(|(used, _)| *used), "the end");
    let (Some((_, Ok(message))), Some((_, plain))) = (&whole, &plain) else {
        if let (Some((_, Err(fault))), Some((_, plain))) = (whole, plain) {
            assert_eq!(plain.is_none(), fault != DataFault::TooBig, "{fault}");
        }
        return;
    };
    assert_eq!(Some(message), plain.as_ref());
    let again = stuffed(&[message]).concat();
    assert_eq!(decode(&again, again.len()), Some((again.len(), Ok(message.clone()))), "round trip");
});

type Decoded = Option<(usize, Result<Vec<u8>, DataFault>)>;

/// Octets used, and the message; `None`: no end.
fn decode(wire: &[u8], step: usize) -> Decoded {
    let mut decoder = Decoder::new(MAX, None);
    let mut used = 0;
    for piece in wire.chunks(step) {
        used += decoder.decode(piece);
        if decoder.is_at_end() {
            let result = decoder.finish().map(|data| data.octets.to_vec());
            return Some((used, result));
        }
    }
    None
}

/// RFC 5321 §4.1.1.4 and §4.5.2 by the letter; the message is `None` where a line is broken or too long.
fn plainly(wire: &[u8]) -> Option<(usize, Option<Vec<u8>>)> {
    let begun = [b"\r\n", wire].concat();
    let end = begun.windows(5).position(|five| five == b"\r\n.\r\n")?;
    let text = &wire[..end];
    let mut message = Vec::new();
    let mut bad = false;
    // `end` is where the CRLF begins that belongs to the last line.
    let mut rest = text;
    while !rest.is_empty() {
        let line_end = rest.windows(2).position(|two| two == b"\r\n").map_or(rest.len(), |at| at + 2);
        let (line, more) = rest.split_at(line_end);
        rest = more;
        let line = line.strip_prefix(b".").unwrap_or(line);
        let inner = line.strip_suffix(b"\r\n").unwrap_or(line);
        bad |= inner.contains(&b'\r') || inner.contains(&b'\n') || inner.len() > 998;
        message.extend_from_slice(line);
    }
    Some((end + 3, (!bad).then_some(message)))
}
