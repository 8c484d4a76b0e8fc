//! AUTH's dialogue (RFC 4954 §4): PLAIN (RFC 4616) and LOGIN, which many programs still speak, are taken apart here. Of SCRAM
//! (RFC 5802) only the outer form is known: its messages go to the shell, which has the keys.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use zeroize::Zeroizing;

use crate::Reply;
use crate::smtp::command::Secret;

/// The line of EHLO, the strongest first.
pub(super) const OFFER: &str = "AUTH SCRAM-SHA-256-PLUS SCRAM-SHA-256 PLAIN LOGIN";

/// A way to log in without the password on the wire (RFC 5802, RFC 7677).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scram {
    /// SCRAM-SHA-256.
    Plain,
    /// SCRAM-SHA-256-PLUS: bound to the TLS channel (RFC 5802 §6).
    Plus,
}

/// What is still to be said.
#[derive(Clone, Debug)]
pub(super) enum Exchange {
    Plain,
    LoginUser,
    LoginPassword(String),
    /// SCRAM, before its first message.
    ScramFirst(Scram),
    /// SCRAM, after it.
    Scram(Scram),
}

/// What comes of a client's word.
pub(super) enum Turn {
    /// 334 with this text, and on.
    Challenge(&'static str, Exchange),
    /// A name and a password to be checked.
    Login { user: String, password: Secret },
    /// A SCRAM message to be answered.
    Scram {
        mechanism: Scram,
        first: bool,
        message: Secret,
    },
    /// It ends here.
    Failed(Reply),
}

/// `Username:` and `Password:`, as all servers say.
const USERNAME: &str = "VXNlcm5hbWU6";
const PASSWORD: &str = "UGFzc3dvcmQ6";

impl Exchange {
    /// The exchange of a mechanism, whatever its case.
    pub(super) fn start(mechanism: &str) -> Option<Self> {
        match mechanism.to_ascii_uppercase().as_str() {
            "PLAIN" => Some(Self::Plain),
            "LOGIN" => Some(Self::LoginUser),
            "SCRAM-SHA-256" => Some(Self::ScramFirst(Scram::Plain)),
            "SCRAM-SHA-256-PLUS" => Some(Self::ScramFirst(Scram::Plus)),
            _ => None,
        }
    }

    /// Begins, with the client's first word if it came with the command; `=` is an empty one (RFC 4954 §4).
    pub(super) fn begin(self, initial: Option<Secret>) -> Turn {
        match (initial, self) {
            (Some(word), exchange) if word.expose() == b"=" => exchange.take(Zeroizing::new(Vec::new())),
            (Some(word), exchange) => exchange.answer(word.expose()),
            (None, Self::LoginUser) => Turn::Challenge(USERNAME, Self::LoginUser),
            (None, exchange) => Turn::Challenge("", exchange),
        }
    }

    /// A line of the client's: base64, or `*` to give up.
    pub(super) fn answer(self, line: &[u8]) -> Turn {
        if line == b"*" {
            return Turn::Failed(Reply::new(501, 7, 0, "given up"));
        }
        match BASE64.decode(line) {
            Ok(word) => self.take(Zeroizing::new(word)),
            Err(_) => Turn::Failed(Reply::new(501, 5, 2, "not base64")),
        }
    }

    fn take(self, word: Zeroizing<Vec<u8>>) -> Turn {
        match self {
            Self::Plain => plain(&word),
            Self::LoginUser => match std::str::from_utf8(&word) {
                Ok(user) => Turn::Challenge(PASSWORD, Self::LoginPassword(user.to_owned())),
                Err(_) => malformed(),
            },
            Self::LoginPassword(user) => Turn::Login {
                user,
                password: Secret::new(word.to_vec()),
            },
            Self::ScramFirst(mechanism) => Turn::Scram {
                mechanism,
                first: true,
                message: Secret::new(word.to_vec()),
            },
            Self::Scram(mechanism) => Turn::Scram {
                mechanism,
                first: false,
                message: Secret::new(word.to_vec()),
            },
        }
    }
}

/// `[authorization] NUL user NUL password` (RFC 4616 §2). Whoever would act for another is refused.
fn plain(word: &[u8]) -> Turn {
    let mut parts = word.split(|&octet| octet == 0);
    let (Some(acting_for), Some(user), Some(password), None) =
        (parts.next(), parts.next(), parts.next(), parts.next())
    else {
        return malformed();
    };
    match std::str::from_utf8(user) {
        Ok(user) if !user.is_empty() && (acting_for.is_empty() || acting_for == user.as_bytes()) => {
            Turn::Login {
                user: user.to_owned(),
                password: Secret::new(password.to_vec()),
            }
        }
        _ => malformed(),
    }
}

fn malformed() -> Turn {
    Turn::Failed(Reply::new(501, 5, 2, "not what the mechanism asks for"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn login(turn: Turn) -> (String, Vec<u8>) {
        match turn {
            Turn::Login { user, password } => (user, password.expose().to_vec()),
            Turn::Challenge(text, _) => panic!("{text}"),
            Turn::Scram { message, .. } => panic!("{message:?}"),
            Turn::Failed(reply) => panic!("{reply}"),
        }
    }

    fn word(text: &str) -> Vec<u8> {
        BASE64.encode(text).into_bytes()
    }

    #[test]
    fn plain_with_and_without_a_first_word() {
        let expected = ("ada".to_owned(), b"pass word".to_vec());
        for text in ["\0ada\0pass word", "ada\0ada\0pass word"] {
            let first = Some(Secret::new(word(text)));
            assert_eq!(login(Exchange::start("plain").unwrap().begin(first)), expected);
        }
        let Turn::Challenge("", exchange) = Exchange::start("PLAIN").unwrap().begin(None) else {
            panic!()
        };
        assert_eq!(login(exchange.answer(&word("\0ada\0pass word"))), expected);
    }

    #[test]
    fn login_asks_twice() {
        let Turn::Challenge(USERNAME, exchange) = Exchange::start("LOGIN").unwrap().begin(None) else {
            panic!()
        };
        let Turn::Challenge(PASSWORD, exchange) = exchange.answer(&word("ada")) else {
            panic!()
        };
        assert_eq!(
            login(exchange.answer(&word("secret"))),
            ("ada".into(), b"secret".to_vec())
        );
    }

    #[test]
    fn scram_messages_go_to_the_shell() {
        let first = Some(Secret::new(word("n,,n=ada,r=x")));
        let turn = Exchange::start("scram-sha-256-plus").unwrap().begin(first);
        assert!(matches!(
            turn,
            Turn::Scram { mechanism: Scram::Plus, first: true, message } if message.expose() == b"n,,n=ada,r=x"
        ));
        // An empty challenge asks for the first message.
        let Turn::Challenge("", exchange) = Exchange::start("SCRAM-SHA-256").unwrap().begin(None) else {
            panic!()
        };
        assert!(matches!(exchange, Exchange::ScramFirst(Scram::Plain)));
        // The last line is empty: the client has seen the server's proof (RFC 4954 §4).
        assert!(matches!(
            Exchange::Scram(Scram::Plain).answer(b""),
            Turn::Scram { mechanism: Scram::Plain, first: false, message } if message.expose().is_empty()
        ));
    }

    #[test]
    fn what_does_not_fit_fails() {
        for line in [
            &b"*"[..],
            b"!",
            b"YQ",
            &word("no nul"),
            &word("\0\0"),
            &word("a\0b\0c"),
            &word("\0a\0b\0c"),
            b"AP8A",
        ] {
            let turn = Exchange::Plain.answer(line);
            assert!(
                matches!(turn, Turn::Failed(Reply { code: 501, .. })),
                "{}",
                String::from_utf8_lossy(line)
            );
        }
        assert!(Exchange::start("CRAM-MD5").is_none());
        assert!(matches!(
            Exchange::Plain.begin(Some(Secret::new(b"=".to_vec()))),
            Turn::Failed(_)
        ));
    }
}
