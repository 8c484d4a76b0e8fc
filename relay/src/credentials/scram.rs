//! The server's side of SCRAM-SHA-256 and SCRAM-SHA-256-PLUS (RFC 5802, RFC 7677), as values: messages in, messages out.
//!
//! The name in the client's first message chooses a verifier; that of an unknown name is made up, and leads to the same
//! messages and the same end as a wrong password (RFC 5802 §5.1 lets a server choose so).

use aws_lc_rs::constant_time::verify_slices_are_equal;
use aws_lc_rs::{digest, hmac};
use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;

use super::Verifier;

/// A nonce of a client's; ours is put behind it.
const MAX_NONCE: usize = 512;

/// What ties a login to the TLS connection it came over. Empty values are not to be had.
#[derive(Clone, Debug, Default)]
pub struct ChannelBinding {
    /// `tls-exporter` (RFC 9266): 32 octets of key material; TLS 1.3 only.
    pub exporter: Option<Vec<u8>>,
    /// `tls-server-end-point` (RFC 5929 §4): a hash of our certificate.
    pub end_point: Option<Vec<u8>>,
}

/// Why an exchange ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ScramError {
    /// Not what RFC 5802 §7 allows.
    #[error("not a SCRAM message")]
    Malformed,
    /// The client would act for another.
    #[error("acting for another is not done here")]
    Authorization,
    /// The client could bind the channel and believes that we can't: someone took `-PLUS` out of our offer (RFC 5802 §6).
    #[error("the offer of channel binding was lost on the way")]
    Downgrade,
    /// A kind of binding we don't have on this connection.
    #[error("this kind of channel binding can't be had here")]
    BindingType,
    /// The proof or the channel is not the right one.
    #[error("wrong proof")]
    Proof,
}

/// `gs2-cbind-flag`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Flag {
    None,
    Exporter,
    EndPoint,
}

/// The client's first message.
#[derive(Debug)]
pub struct ClientFirst {
    flag: Flag,
    gs2_header: String,
    bare: String,
    nonce: String,
    /// Whom the client says it is.
    pub user: String,
}

impl ClientFirst {
    /// Reads it. `plus`: for the mechanism with channel binding.
    pub fn parse(message: &[u8], plus: bool) -> Result<Self, ScramError> {
        use ScramError::Malformed;
        let text = std::str::from_utf8(message).map_err(|_| Malformed)?;
        let mut parts = text.splitn(3, ',');
        let (Some(flag), Some(acting_for), Some(bare)) = (parts.next(), parts.next(), parts.next()) else {
            return Err(Malformed);
        };
        let flag = match (flag, plus) {
            ("n", false) => Flag::None,
            ("y", false) => return Err(ScramError::Downgrade),
            ("p=tls-exporter", true) => Flag::Exporter,
            ("p=tls-server-end-point", true) => Flag::EndPoint,
            (flag, true) if flag.starts_with("p=") => return Err(ScramError::BindingType),
            _ => return Err(Malformed),
        };
        let mut attributes = bare.split(',');
        // `m=` would come first; an extension that we must understand is one we don't (RFC 5802 §5.1).
        let user = attributes.next().and_then(|name| name.strip_prefix("n="));
        let user = user.and_then(unescaped).filter(|user| !user.is_empty());
        let nonce = attributes.next().and_then(|nonce| nonce.strip_prefix("r="));
        let nonce = nonce.filter(|nonce| is_nonce(nonce) && nonce.len() <= MAX_NONCE);
        let (Some(user), Some(nonce)) = (user, nonce) else {
            return Err(Malformed);
        };
        if !acting_for.is_empty() {
            let name = acting_for
                .strip_prefix("a=")
                .and_then(unescaped)
                .ok_or(Malformed)?;
            if name != user {
                return Err(ScramError::Authorization);
            }
        }
        Ok(Self {
            flag,
            gs2_header: text[..text.len() - bare.len()].to_owned(),
            bare: bare.to_owned(),
            nonce: nonce.to_owned(),
            user,
        })
    }

    /// The server's first message, with our part of the nonce: printable ASCII without a comma, never used before.
    pub fn challenge(self, verifier: Verifier, our_nonce: &str) -> (String, AwaitProof) {
        let nonce = format!("{}{our_nonce}", self.nonce);
        let salt = BASE64.encode(verifier.salt());
        let message = format!("r={nonce},s={salt},i={}", verifier.iterations());
        let state = AwaitProof {
            auth: format!("{},{message}", self.bare),
            flag: self.flag,
            gs2_header: self.gs2_header,
            user: self.user,
            nonce,
            verifier,
        };
        (message, state)
    }
}

/// An exchange whose client was asked for its proof.
#[derive(Debug)]
pub struct AwaitProof {
    flag: Flag,
    gs2_header: String,
    nonce: String,
    /// The first two messages, of which the proof speaks.
    auth: String,
    verifier: Verifier,
    /// Whom the client says it is.
    pub user: String,
}

impl AwaitProof {
    /// What the client was asked with.
    pub fn verifier(&self) -> &Verifier {
        &self.verifier
    }

    /// Checks the client's final message and gives the server's, by which the client knows us. Takes as long for a wrong
    /// proof as for a right one.
    pub fn finish(&self, message: &[u8], binding: &ChannelBinding) -> Result<String, ScramError> {
        use ScramError::Malformed;
        let text = std::str::from_utf8(message).map_err(|_| Malformed)?;
        let (without_proof, proof) = text.rsplit_once(",p=").ok_or(Malformed)?;
        let mut attributes = without_proof.split(',');
        let channel = attributes.next().and_then(|channel| channel.strip_prefix("c="));
        let nonce = attributes.next().and_then(|nonce| nonce.strip_prefix("r="));
        let (Some(channel), Some(nonce)) = (channel, nonce) else {
            return Err(Malformed);
        };
        let channel = BASE64.decode(channel).map_err(|_| Malformed)?;
        let proof = BASE64.decode(proof).map_err(|_| Malformed)?;
        if proof.len() != digest::SHA256_OUTPUT_LEN {
            return Err(Malformed);
        }
        let bound = match self.flag {
            Flag::None => Some(&[][..]),
            Flag::Exporter => binding.exporter.as_deref(),
            Flag::EndPoint => binding.end_point.as_deref(),
        };
        let expected = [self.gs2_header.as_bytes(), bound.ok_or(ScramError::BindingType)?].concat();
        let same_channel = verify_slices_are_equal(&channel, &expected).is_ok();
        let same_nonce = nonce == self.nonce;

        let auth = format!("{},{without_proof}", self.auth);
        let sign = |key: &[u8]| hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, key), auth.as_bytes());
        let mask = sign(self.verifier.stored_key());
        let client_key: Vec<u8> = proof.iter().zip(mask.as_ref()).map(|(a, b)| a ^ b).collect();
        let stored_key = digest::digest(&digest::SHA256, &client_key);
        let right = verify_slices_are_equal(stored_key.as_ref(), self.verifier.stored_key()).is_ok();
        let ours = sign(self.verifier.server_key());
        if right & same_channel & same_nonce {
            Ok(format!("v={}", BASE64.encode(ours)))
        } else {
            Err(ScramError::Proof)
        }
    }
}

/// `saslname` with its escapes undone (RFC 5802 §5.1).
fn unescaped(name: &str) -> Option<String> {
    let mut pieces = name.split('=');
    let mut plain = pieces.next()?.to_owned();
    for piece in pieces {
        let (letter, rest) = match (piece.strip_prefix("2C"), piece.strip_prefix("3D")) {
            (Some(rest), _) => (',', rest),
            (_, Some(rest)) => ('=', rest),
            _ => return None,
        };
        plain.push(letter);
        plain.push_str(rest);
    }
    (!plain.contains('\0')).then_some(plain)
}

/// Printable ASCII without commas, which end it.
fn is_nonce(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|octet| octet.is_ascii_graphic())
}

/// What a client says in the end (RFC 5802 §5.1), for tests. `auth` is both first messages, `server_first` the server's.
#[cfg(test)]
pub(crate) fn client_final(password: &[u8], auth: &str, server_first: &str, channel: &[u8]) -> String {
    let value = |key: &str| server_first.split(',').find_map(|part| part.strip_prefix(key));
    let (nonce, salt, rounds) = (
        value("r=").unwrap(),
        BASE64.decode(value("s=").unwrap()).unwrap(),
        value("i=").unwrap().parse().unwrap(),
    );
    let mut salted = [0; 32];
    let algorithm = aws_lc_rs::pbkdf2::PBKDF2_HMAC_SHA256;
    aws_lc_rs::pbkdf2::derive(algorithm, rounds, &salt, password, &mut salted);
    let sign = |key: &[u8], text: &[u8]| hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, key), text);
    let client_key = sign(&salted, b"Client Key");
    let stored_key = digest::digest(&digest::SHA256, client_key.as_ref());
    let text = format!("c={},r={nonce}", BASE64.encode(channel));
    let mask = sign(stored_key.as_ref(), format!("{auth},{text}").as_bytes());
    let proof = client_key.as_ref().iter().zip(mask.as_ref()).map(|(a, b)| a ^ b);
    format!("{text},p={}", BASE64.encode(proof.collect::<Vec<_>>()))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// RFC 7677 §3.
    const FIRST: &str = "n,,n=user,r=rOprNGfwEbeRWgbNEkqO";
    const OURS: &str = "%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0";
    const SERVER_FIRST: &str =
        "r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096";
    const FINAL: &str = "c=biws,r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,\
        p=dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ=";
    const SERVER_FINAL: &str = "v=6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4=";
    const PENCIL: &str = "SCRAM-SHA-256$4096:W22ZaJ0SNY7soEsUEjb6gQ==$\
        WG5d8oPm3OtcPnkdi4Uo7BkeZkBFzpcXkuLmtbsT4qY=:wfPLwcE6nTWhTAmQ7tl2KeoiWGPlZqQxSrmfPwDl2dU=";

    fn asked(first: &str, plus: bool) -> (String, AwaitProof) {
        let first = ClientFirst::parse(first.as_bytes(), plus).unwrap();
        first.challenge(PENCIL.parse().unwrap(), OURS)
    }

    /// A final message with a right proof of `pencil`, but for its nonce.
    fn proof(state: &AwaitProof, channel: &[u8], nonce: &str) -> String {
        let salt = BASE64.encode(state.verifier.salt());
        let server_first = format!("r={nonce},s={salt},i=4096");
        client_final(b"pencil", &state.auth, &server_first, channel)
    }

    #[test]
    fn agrees_with_rfc_7677() {
        let (message, state) = asked(FIRST, false);
        assert_eq!(message, SERVER_FIRST);
        assert_eq!(state.user, "user");
        let end = state.finish(FINAL.as_bytes(), &ChannelBinding::default());
        assert_eq!(end.as_deref(), Ok(SERVER_FINAL));
        assert_eq!(proof(&state, b"n,,", &state.nonce), FINAL);
    }

    #[test]
    fn one_letter_of_difference_is_wrong() {
        let (_, state) = asked(FIRST, false);
        let told = |message: &str| state.finish(message.as_bytes(), &ChannelBinding::default());
        for wrong in [
            FINAL.replace("dHzb", "dHzc"),
            FINAL.replace("k0,", "k1,"),
            FINAL.replace("k0,", "k0,x=1,"),
            proof(&state, b"y,,", &state.nonce),
            proof(&state, b"n,,more", &state.nonce),
            proof(&state, b"n,,", "rOprNGfwEbeRWgbNEkqO"),
        ] {
            assert_eq!(told(&wrong), Err(ScramError::Proof), "{wrong}");
        }
        for malformed in [
            "",
            "c=biws",
            "c=biws,r=x",
            "c=biws,r=x,p=",
            "c=biws,r=x,p=!",
            "r=x,c=biws,p=AAAA",
            "c=!,r=x,p=dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ=",
        ] {
            assert_eq!(told(malformed), Err(ScramError::Malformed), "{malformed}");
        }
    }

    #[test]
    fn an_unknown_name_is_asked_the_same_and_never_right() {
        let first = ClientFirst::parse(FIRST.as_bytes(), false).unwrap();
        let verifier = PENCIL.parse::<Verifier>().unwrap().disguised(b"seed");
        assert_eq!(verifier.iterations(), 4_096);
        let (message, state) = first.challenge(verifier, OURS);
        assert_eq!(message.len(), SERVER_FIRST.len());
        let end = state.finish(FINAL.as_bytes(), &ChannelBinding::default());
        assert_eq!(end, Err(ScramError::Proof));
    }

    #[test]
    fn the_channel_is_bound() {
        let binding = ChannelBinding {
            exporter: Some(vec![7; 32]),
            end_point: Some(vec![9; 48]),
        };
        for (flag, octets) in [
            ("tls-exporter", vec![7; 32]),
            ("tls-server-end-point", vec![9; 48]),
        ] {
            let header = format!("p={flag},,");
            let (_, state) = asked(&format!("{header}n=user,r=abc"), true);
            let right = proof(
                &state,
                &[header.as_bytes(), octets.as_slice()].concat(),
                &state.nonce,
            );
            assert_eq!(
                state.finish(right.as_bytes(), &binding).map(|_| ()),
                Ok(()),
                "{flag}"
            );
            // A man in the middle has a channel of his own.
            let other = proof(&state, &[header.as_bytes(), &[8; 32]].concat(), &state.nonce);
            assert_eq!(
                state.finish(other.as_bytes(), &binding),
                Err(ScramError::Proof),
                "{flag}"
            );
            let none = state.finish(right.as_bytes(), &ChannelBinding::default());
            assert_eq!(none, Err(ScramError::BindingType));
        }
    }

    #[test]
    fn first_messages() {
        use ScramError::{Authorization, BindingType, Downgrade, Malformed};
        for (message, plus, error) in [
            ("y,,n=user,r=abc", false, Downgrade),
            ("p=tls-unique,,n=user,r=abc", true, BindingType),
            ("p=tls-exporter,,n=user,r=abc", false, Malformed),
            ("n,,n=user,r=abc", true, Malformed),
            ("n,a=other,n=user,r=abc", false, Authorization),
            ("n,b,n=user,r=abc", false, Malformed),
            ("n,,m=x,n=user,r=abc", false, Malformed),
            ("n,,n=,r=abc", false, Malformed),
            ("n,,n=us=er,r=abc", false, Malformed),
            ("n,,n=user,r=", false, Malformed),
            ("n,,n=user,r=a\u{7f}", false, Malformed),
            ("n,,n=user", false, Malformed),
            ("n", false, Malformed),
            ("", false, Malformed),
        ] {
            let told = ClientFirst::parse(message.as_bytes(), plus);
            assert_eq!(told.map(|first| first.user), Err(error), "{message}");
        }
        assert_eq!(
            ClientFirst::parse(b"n,a=a=2Cb=3Dc,n=a=2Cb=3Dc,r=abc,x=ignored", false)
                .unwrap()
                .user,
            "a,b=c"
        );
        assert!(ClientFirst::parse(b"n,,n=\xff,r=abc", false).is_err());
        let long = format!("n,,n=user,r={}", "x".repeat(MAX_NONCE + 1));
        assert!(ClientFirst::parse(long.as_bytes(), false).is_err());
    }
}
