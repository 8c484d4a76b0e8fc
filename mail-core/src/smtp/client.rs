//! The sending side of SMTP as values: greeting and extensions ([`Hello`]), then one mail transaction after another
//! ([`Transaction`]). The shell writes what they say and tells them what was answered.

use std::time::Duration;

mod extensions;
mod hello;
mod sasl;
mod transaction;

pub use extensions::Extensions;
pub use hello::{Hello, HelloAction, Refusal, TlsWish};
pub use sasl::{Login, Mechanisms, ScramProof, ScramTask};
pub use transaction::{Message, RecipientResult, Transaction, TransactionAction};

/// What is being waited for; its longest wait is the shell's to choose (RFC 5321 §4.5.3.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[expect(missing_docs, reason = "the commands' own names")]
pub enum Stage {
    Greeting,
    Ehlo,
    Helo,
    StartTls,
    Auth,
    Mail,
    Rcpt,
    Data,
    FinalDot,
    Rset,
    Quit,
}

impl Stage {
    /// The word for it in logs and reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::Greeting => "the connection",
            Self::Ehlo => "EHLO",
            Self::Helo => "HELO",
            Self::StartTls => "STARTTLS",
            Self::Auth => "AUTH",
            Self::Mail => "MAIL",
            Self::Rcpt => "RCPT",
            Self::Data => "DATA",
            Self::FinalDot => "the message",
            Self::Rset => "RSET",
            Self::Quit => "QUIT",
        }
    }

    /// RFC 5321 §4.5.3.2: what a client should bear at the least.
    pub fn least_patience(self) -> Duration {
        Duration::from_secs(match self {
            Self::Data => 120,
            Self::FinalDot => 600,
            _ => 300,
        })
    }
}

#[cfg(test)]
fn reply(line: &str) -> crate::Reply {
    crate::smtp::reply_reader::ReplyReader::default()
        .read(format!("{line}\r\n").as_bytes())
        .1
        .unwrap()
        .unwrap()
}
