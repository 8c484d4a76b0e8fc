//! BDAT's arguments (RFC 3030 §2).

/// A command line with its CRLF: far more than the longest number and its word.
const MAX_BDAT: usize = 512;

/// What a BDAT command announces.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Chunk {
    /// Octets that follow the command's CRLF.
    pub octets: u64,
    /// They end the message.
    pub last: bool,
}

/// Reads ` OCTETS[ LAST]`. `None`: nobody can tell how many octets follow, so nothing that follows may be read.
pub(super) fn parse(line: &[u8], rest: &[u8]) -> Option<Chunk> {
    if line.len() + 2 > MAX_BDAT {
        return None;
    }
    let text = std::str::from_utf8(rest).ok()?;
    let mut words = text.split(' ').filter(|word| !word.is_empty());
    let octets = words
        .next()
        .filter(|word| word.len() <= 20 && word.bytes().all(|c| c.is_ascii_digit()))?
        .parse()
        .ok()?;
    let last = match words.next() {
        None => false,
        Some(word) if word.eq_ignore_ascii_case("LAST") => true,
        Some(_) => return None,
    };
    words.next().is_none().then_some(Chunk { octets, last })
}

#[cfg(test)]
mod tests {
    use super::super::{Command, parse as command};
    use super::*;

    #[test]
    fn sizes_are_read_or_not_guessed_at() {
        let chunk = |octets, last| Some(Chunk { octets, last });
        for (line, expected) in [
            ("BDAT 0", chunk(0, false)),
            ("bdat 86 last", chunk(86, true)),
            ("BDAT  00012  LAST ", chunk(12, true)),
            ("BDAT 18446744073709551615 LAST", chunk(u64::MAX, true)),
            ("BDAT 18446744073709551616 LAST", None),
            ("BDAT", None),
            ("BDAT LAST", None),
            ("BDAT -1", None),
            ("BDAT +1", None),
            ("BDAT 1 2", None),
            ("BDAT 1 LAST LAST", None),
            ("BDAT 5\nLAST", None),
            ("BDAT 0x10", None),
        ] {
            assert_eq!(command(line.as_bytes()), Ok(Command::Bdat(expected)), "{line}");
        }
        let long = format!("BDAT {}1", " ".repeat(600));
        assert_eq!(command(long.as_bytes()), Ok(Command::Bdat(None)));
    }
}
