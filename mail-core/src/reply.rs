//! Replies of SMTP servers: ours to clients, and peers' to us.

use std::borrow::Cow;
use std::fmt;
use std::io::Write as _;

use serde::{Deserialize, Serialize};

/// An enhanced status code `class.subject.detail` (RFC 3463 §2).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct EnhancedCode(pub u8, pub u16, pub u16);

impl fmt::Display for EnhancedCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.0, self.1, self.2)
    }
}

/// One reply (RFC 5321 §4.2): a three-digit code, the enhanced code where there is one, and the text.
///
/// `text` holds the lines with `\n` between them and never a CR; the enhanced code is not part of it.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Reply {
    /// 200..=599.
    pub code: u16,
    /// RFC 2034; its class equals the code's first digit in every reply we make.
    pub enhanced: Option<EnhancedCode>,
    /// Without code and enhanced code.
    pub text: Cow<'static, str>,
}

impl Reply {
    /// A reply without an enhanced code: greeting, EHLO, 354 and AUTH's 334 (RFC 2034 §4).
    pub const fn plain(code: u16, text: &'static str) -> Self {
        Self {
            code,
            enhanced: None,
            text: Cow::Borrowed(text),
        }
    }

    /// A reply whose enhanced code takes its class from `code`.
    pub const fn new(code: u16, subject: u16, detail: u16, text: &'static str) -> Self {
        Self {
            code,
            enhanced: Some(EnhancedCode((code / 100) as u8, subject, detail)),
            text: Cow::Borrowed(text),
        }
    }

    /// The same codes with other words. Line breaks in `text` make further lines; CR becomes a space.
    pub fn with_text(mut self, text: impl Into<String>) -> Self {
        let text = text.into();
        self.text = Cow::Owned(if text.contains('\r') {
            text.replace('\r', " ")
        } else {
            text
        });
        self
    }

    /// 2yz.
    pub fn is_positive(&self) -> bool {
        self.code / 100 == 2
    }

    /// 4yz: the same may succeed later.
    pub fn is_transient(&self) -> bool {
        self.code / 100 == 4
    }

    /// 5yz: the same will not succeed.
    pub fn is_permanent(&self) -> bool {
        self.code / 100 == 5
    }

    /// Appends the reply as it goes on the wire, each line with its CRLF.
    pub fn write_to(&self, wire: &mut Vec<u8>) {
        let mut lines = self.text.split('\n').peekable();
        while let Some(line) = lines.next() {
            let mark = if lines.peek().is_some() { '-' } else { ' ' };
            // Nothing written into memory fails.
            let _ = write!(wire, "{}{mark}", self.code);
            if let Some(enhanced) = self.enhanced {
                let _ = write!(wire, "{enhanced} ");
            }
            wire.extend_from_slice(line.as_bytes());
            wire.extend_from_slice(b"\r\n");
        }
    }
}

impl fmt::Display for Reply {
    /// On one line, as logs and reports show it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.code)?;
        if let Some(enhanced) = self.enhanced {
            write!(f, " {enhanced}")?;
        }
        for line in self.text.split('\n').filter(|line| !line.is_empty()) {
            write!(f, " {line}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn writes_every_line_with_its_code() {
        let mut wire = Vec::new();
        Reply::plain(250, "relay.test\nPIPELINING\nSIZE 1000").write_to(&mut wire);
        Reply::new(550, 1, 1, "no such user")
            .with_text("no\rsuch\nuser")
            .write_to(&mut wire);
        assert_eq!(
            String::from_utf8(wire).unwrap(),
            "250-relay.test\r\n250-PIPELINING\r\n250 SIZE 1000\r\n550-5.1.1 no such\r\n550 5.1.1 user\r\n"
        );
    }
}
