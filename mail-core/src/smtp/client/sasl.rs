//! AUTH from the client's side (RFC 4954): SCRAM-SHA-256 (RFC 5802, RFC 7677), PLAIN (RFC 4616), LOGIN.
//!
//! SCRAM's arithmetic is the shell's: it takes milliseconds, or what the peer asks for.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use zeroize::Zeroizing;

use crate::Reply;
use crate::smtp::command::Secret;

/// Rounds of PBKDF2 that a peer may ask for: RFC 7677 §4 sets the least, and more than these would hold us up.
const ITERATIONS: std::ops::RangeInclusive<u32> = 4_096..=1_000_000;

/// A salt has as many octets at most.
const MAX_SALT: usize = 1_024;

/// Mechanisms that a peer offers, of those known here.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Mechanisms {
    /// RFC 7677.
    pub scram_sha_256: bool,
    /// RFC 4616.
    pub plain: bool,
    /// Never standardised; some servers know nothing else.
    pub login: bool,
}

impl Mechanisms {
    /// Notes one word of the peer's AUTH line.
    pub(super) fn note(&mut self, word: &str) {
        match word.to_ascii_uppercase().as_str() {
            "SCRAM-SHA-256" => self.scram_sha_256 = true,
            "PLAIN" => self.plain = true,
            "LOGIN" => self.login = true,
            _ => {}
        }
    }
}

/// Who we are to a peer.
#[derive(Clone, Debug)]
pub struct Login {
    /// Our name there.
    pub user: String,
    /// Our password.
    pub password: Secret,
    /// Printable ASCII without commas, never used before.
    pub nonce: String,
    /// The password goes nowhere in clear.
    pub only_encrypted: bool,
}

/// What SCRAM asks the shell to compute, with the password.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ScramTask {
    /// For PBKDF2.
    pub salt: Vec<u8>,
    /// Rounds of it, 1,000,000 at most.
    pub iterations: u32,
    /// AuthMessage (RFC 5802 §3).
    pub auth_message: String,
}

/// What it computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ScramProof {
    /// ClientProof.
    pub client: [u8; 32],
    /// ServerSignature.
    pub server: [u8; 32],
}

/// Where the exchange stands.
#[derive(Clone, Debug)]
pub(super) enum Exchange {
    LoginUser,
    LoginPassword,
    ScramFirst {
        bare: String,
    },
    ScramWork {
        without_proof: String,
    },
    ScramFinal {
        signature: [u8; 32],
    },
    /// All is said; 235 is awaited.
    Last,
}

/// What comes of a reply.
pub(super) enum Turn {
    /// Say this line.
    Say(Secret),
    /// Compute this.
    Work(ScramTask),
    /// The peer knows us.
    Done,
    /// It does not, or can't be understood.
    Failed(Reply),
}

impl Exchange {
    /// Begins with the strongest mechanism offered; `None` where there is none that we know.
    pub(super) fn begin(login: &Login, offered: Mechanisms) -> Option<(Self, Secret)> {
        // Beyond ASCII, SCRAM would need SASLprep (RFC 4013).
        let is_ascii = login.user.is_ascii() && login.password.expose().is_ascii();
        if offered.scram_sha_256 && is_ascii {
            let user = login.user.replace('=', "=3D").replace(',', "=2C");
            let bare = format!("n={user},r={}", login.nonce);
            let first = line("AUTH SCRAM-SHA-256 ", format!("n,,{bare}").as_bytes());
            return Some((Self::ScramFirst { bare }, first));
        }
        if offered.plain {
            let mut word = Zeroizing::new(Vec::new());
            word.push(0);
            word.extend_from_slice(login.user.as_bytes());
            word.push(0);
            word.extend_from_slice(login.password.expose());
            return Some((Self::Last, line("AUTH PLAIN ", &word)));
        }
        offered
            .login
            .then(|| (Self::LoginUser, Secret::new(b"AUTH LOGIN\r\n".to_vec())))
    }

    /// A reply has come.
    pub(super) fn step(self, reply: Reply, login: &Login) -> (Self, Turn) {
        if reply.code / 100 == 4 || reply.code / 100 == 5 {
            return (self, Turn::Failed(reply));
        }
        let challenge = (reply.code == 334).then_some(&*reply.text);
        match (self, challenge) {
            (Self::Last, None) if reply.code == 235 => (Self::Last, Turn::Done),
            (Self::LoginUser, Some(_)) => {
                let word = line("", login.user.as_bytes());
                (Self::LoginPassword, Turn::Say(word))
            }
            (Self::LoginPassword, Some(_)) => (Self::Last, Turn::Say(line("", login.password.expose()))),
            (Self::ScramFirst { bare }, Some(word)) => match server_first(word, &bare, &login.nonce) {
                Some((task, without_proof)) => (Self::ScramWork { without_proof }, Turn::Work(task)),
                None => (Self::Last, failed("its SCRAM challenge can't be understood")),
            },
            (Self::ScramFinal { signature }, Some(word)) => match server_final(word) {
                // The last word of a SCRAM exchange is answered by an empty line (RFC 4954 §4).
                Some(proven) if proven == signature => (Self::Last, Turn::Say(Secret::new(b"\r\n".to_vec()))),
                _ => (Self::Last, failed("it does not prove that it knows the password")),
            },
            (state, _) => {
                let text = format!("{reply} does not fit into the exchange");
                (state, failed(&text))
            }
        }
    }

    /// The shell has computed.
    pub(super) fn proven(self, proof: &ScramProof) -> (Self, Turn) {
        let Self::ScramWork { without_proof } = self else {
            return (self, failed("a proof that nothing asked for"));
        };
        let words = format!("{without_proof},p={}", BASE64.encode(proof.client));
        let signature = proof.server;
        (
            Self::ScramFinal { signature },
            Turn::Say(line("", words.as_bytes())),
        )
    }
}

fn failed(why: &str) -> Turn {
    Turn::Failed(Reply::new(454, 7, 0, "").with_text(format!("no login: {why}")))
}

fn line(command: &str, word: &[u8]) -> Secret {
    let encoded = Zeroizing::new(BASE64.encode(word));
    let mut line = Vec::with_capacity(command.len() + encoded.len() + 2);
    line.extend_from_slice(command.as_bytes());
    line.extend_from_slice(encoded.as_bytes());
    line.extend_from_slice(b"\r\n");
    Secret::new(line)
}

/// `r=NONCE,s=SALT,i=ITERATIONS` (RFC 5802 §7). The nonce has to go on from ours.
fn server_first(word: &str, bare: &str, own_nonce: &str) -> Option<(ScramTask, String)> {
    let first = String::from_utf8(BASE64.decode(word).ok()?).ok()?;
    let mut parts = first.split(',');
    let nonce = parts.next()?.strip_prefix("r=")?;
    let salt = BASE64.decode(parts.next()?.strip_prefix("s=")?).ok()?;
    let iterations: u32 = parts.next()?.strip_prefix("i=")?.parse().ok()?;
    let is_sound = nonce.len() > own_nonce.len()
        && nonce.starts_with(own_nonce)
        && (1..=MAX_SALT).contains(&salt.len())
        && ITERATIONS.contains(&iterations);
    if !is_sound {
        return None;
    }
    // `biws` is `n,,`: no channel is bound.
    let without_proof = format!("c=biws,r={nonce}");
    let auth_message = format!("{bare},{first},{without_proof}");
    let task = ScramTask {
        salt,
        iterations,
        auth_message,
    };
    Some((task, without_proof))
}

/// `v=SIGNATURE`.
fn server_final(word: &str) -> Option<[u8; 32]> {
    let last = String::from_utf8(BASE64.decode(word).ok()?).ok()?;
    let signature = last.split(',').next()?.strip_prefix("v=")?.to_owned();
    BASE64.decode(signature).ok()?.try_into().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn login(user: &str, password: &str) -> Login {
        Login {
            user: user.into(),
            password: Secret::new(password.as_bytes().to_vec()),
            nonce: "rOprNGfwEbeRWgbNEkqO".into(),
            only_encrypted: true,
        }
    }

    fn text(line: &Secret) -> String {
        String::from_utf8(line.expose().to_vec())
            .unwrap()
            .trim_end()
            .to_owned()
    }

    fn say(turn: Turn) -> String {
        match turn {
            Turn::Say(line) => text(&line),
            Turn::Work(task) => panic!("{task:?}"),
            Turn::Done => "done".into(),
            Turn::Failed(reply) => reply.to_string(),
        }
    }

    fn reply(code: u16, text: &str) -> Reply {
        Reply {
            code,
            enhanced: None,
            text: text.to_owned().into(),
        }
    }

    const ALL: Mechanisms = Mechanisms {
        scram_sha_256: true,
        plain: true,
        login: true,
    };

    #[test]
    fn the_strongest_that_is_offered_is_taken() {
        let plain = Mechanisms {
            scram_sha_256: false,
            ..ALL
        };
        let only_login = Mechanisms {
            plain: false,
            ..plain
        };
        let first = |login: &Login, offered| text(&Exchange::begin(login, offered).unwrap().1);
        let ada = login("ada", "secret");
        assert!(first(&ada, ALL).starts_with("AUTH SCRAM-SHA-256 biwsbj1hZGEs"));
        assert_eq!(
            first(&ada, plain),
            format!("AUTH PLAIN {}", BASE64.encode("\0ada\0secret"))
        );
        assert_eq!(first(&ada, only_login), "AUTH LOGIN");
        assert!(
            first(&login("ada", "gr\u{fc}n"), ALL).starts_with("AUTH PLAIN "),
            "SASLprep"
        );
        assert!(Exchange::begin(&ada, Mechanisms::default()).is_none());
    }

    #[test]
    fn login_answers_twice() {
        let ada = login("ada", "secret");
        let (exchange, _) = Exchange::begin(
            &ada,
            Mechanisms {
                login: true,
                ..Mechanisms::default()
            },
        )
        .unwrap();
        let (exchange, turn) = exchange.step(reply(334, "VXNlcm5hbWU6"), &ada);
        assert_eq!(say(turn), "YWRh");
        let (exchange, turn) = exchange.step(reply(334, "UGFzc3dvcmQ6"), &ada);
        assert_eq!(say(turn), "c2VjcmV0");
        assert!(matches!(exchange.step(reply(235, "in"), &ada).1, Turn::Done));
    }

    /// RFC 7677 §3.
    #[test]
    fn scram_as_in_its_rfc() {
        let user = login("user", "pencil");
        let (exchange, first) = Exchange::begin(&user, ALL).unwrap();
        assert_eq!(
            text(&first),
            format!(
                "AUTH SCRAM-SHA-256 {}",
                BASE64.encode("n,,n=user,r=rOprNGfwEbeRWgbNEkqO")
            )
        );
        let server = "r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096";
        let (exchange, turn) = exchange.step(reply(334, &BASE64.encode(server)), &user);
        let Turn::Work(task) = turn else {
            panic!("{}", say(turn))
        };
        assert_eq!(task.iterations, 4096);
        let octets = |text| BASE64.decode(text).unwrap().try_into().unwrap();
        let proof = ScramProof {
            client: octets("dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ="),
            server: octets("6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4="),
        };
        let (exchange, turn) = exchange.proven(&proof);
        let last = "c=biws,r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,p=dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ=";
        assert_eq!(say(turn), BASE64.encode(last));
        let right = BASE64.encode("v=6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4=");
        let wrong = BASE64.encode("v=7rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4=");
        assert!(say(exchange.clone().step(reply(334, &wrong), &user).1).starts_with("454 4.7.0"));
        // A peer that has not proven itself is not believed, whatever it says.
        assert!(say(exchange.clone().step(reply(235, "in"), &user).1).starts_with("454 4.7.0"));
        let (exchange, turn) = exchange.step(reply(334, &right), &user);
        assert_eq!(say(turn), "");
        assert!(matches!(exchange.step(reply(235, "in"), &user).1, Turn::Done));
    }

    #[test]
    fn what_a_peer_may_not_ask_for() {
        let user = login("us=e,r", "pencil");
        for server in [
            "r=other,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096",
            "r=rOprNGfwEbeRWgbNEkqO,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096",
            "r=rOprNGfwEbeRWgbNEkqOx,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=1",
            "r=rOprNGfwEbeRWgbNEkqOx,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4000000000",
            "r=rOprNGfwEbeRWgbNEkqOx,s=,i=4096",
            "m=ext,r=rOprNGfwEbeRWgbNEkqOx,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096",
            "",
        ] {
            let (exchange, first) = Exchange::begin(&user, ALL).unwrap();
            let sent = text(&first);
            let word = BASE64.decode(sent.rsplit(' ').next().unwrap()).unwrap();
            assert!(word.starts_with(b"n,,n=us=3De=2Cr,r="));
            let (_, turn) = exchange.step(reply(334, &BASE64.encode(server)), &user);
            assert!(say(turn).starts_with("454 4.7.0"), "{server}");
        }
        let (exchange, _) = Exchange::begin(&user, ALL).unwrap();
        assert_eq!(say(exchange.clone().step(reply(535, "no"), &user).1), "535 no");
        assert!(say(exchange.step(reply(334, "!"), &user).1).starts_with("454 4.7.0"));
    }
}
