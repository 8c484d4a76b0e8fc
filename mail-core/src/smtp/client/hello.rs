//! From the greeting to the moment mail can be sent.

use super::sasl::{Exchange, Turn};
use super::{Extensions, Login, ScramProof, ScramTask, Stage};
use crate::smtp::command::Secret;
use crate::{Domain, Reply};

/// How much TLS is wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TlsWish {
    /// None.
    Never,
    /// If the peer offers it.
    IfOffered,
    /// Nothing is sent without.
    Required,
}

/// From the greeting to the moment mail can be sent.
#[derive(Clone, Debug)]
pub struct Hello {
    name: Domain,
    wish: TlsWish,
    encrypted: bool,
    login: Option<Login>,
    exchange: Option<Exchange>,
    state: HelloState,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum HelloState {
    Greeting,
    Ehlo,
    Helo,
    StartTls(Extensions),
    Auth(Extensions),
}

/// What the shell does next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HelloAction {
    /// Writes this, then reads one reply.
    Say(String, Stage),
    /// Writes this, of which nobody must learn, then reads one reply.
    SaySecret(Secret),
    /// Computes this with the password, then [`Hello::proven`].
    Prove(ScramTask),
    /// Negotiates TLS, having thrown away whatever else was read: it came in clear (RFC 3207 §4). Then [`Hello::encrypted`].
    StartTls,
    /// Mail can be sent.
    Ready(Extensions),
    /// No mail can be sent here.
    Failed(Refusal),
}

/// A peer refused to go on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// In answer to what.
    pub stage: Stage,
    /// With these words; ours where STARTTLS was required and not offered.
    pub reply: Reply,
}

impl Hello {
    /// A new connection, whose greeting is to be read first. `encrypted`: TLS is up already.
    pub fn new(name: Domain, wish: TlsWish, encrypted: bool) -> Self {
        Self {
            name,
            wish,
            encrypted,
            login: None,
            exchange: None,
            state: HelloState::Greeting,
        }
    }

    /// Logs in before it is ready, or fails.
    pub fn with_login(self, login: Login) -> Self {
        Self {
            login: Some(login),
            ..self
        }
    }

    /// What is being waited for.
    pub fn stage(&self) -> Stage {
        match self.state {
            HelloState::Greeting => Stage::Greeting,
            HelloState::Ehlo => Stage::Ehlo,
            HelloState::Helo => Stage::Helo,
            HelloState::StartTls(_) => Stage::StartTls,
            HelloState::Auth(_) => Stage::Auth,
        }
    }

    /// TLS is up: everything learnt before is forgotten.
    pub fn encrypted(mut self) -> (Self, HelloAction) {
        self.encrypted = true;
        self.ehlo()
    }

    /// A reply has come.
    pub fn step(self, reply: Reply) -> (Self, HelloAction) {
        match (self.state, reply.code / 100) {
            (HelloState::Greeting, 2) => self.ehlo(),
            (HelloState::Ehlo, 2) => {
                let offers = Extensions::parse(&reply);
                self.settle_tls(offers)
            }
            // A peer of the old kind; not one that is busy (RFC 5321 §4.1.1.1).
            (HelloState::Ehlo, 5) => self.helo(),
            (HelloState::Helo, 2) => self.settle_tls(Extensions::default()),
            (HelloState::StartTls(_), 2) => (self, HelloAction::StartTls),
            (HelloState::StartTls(offers), 4 | 5) if reply.code != 421 && self.wish == TlsWish::IfOffered => {
                self.log_in(offers)
            }
            (HelloState::Auth(offers), _) => {
                self.go_on(offers, |exchange, login| exchange.step(reply, login))
            }
            _ => self.fail(reply),
        }
    }

    /// The shell has computed what [`HelloAction::Prove`] asked for.
    pub fn proven(self, proof: &ScramProof) -> (Self, HelloAction) {
        match self.state {
            HelloState::Auth(offers) => self.go_on(offers, |exchange, _| exchange.proven(proof)),
            _ => self.fail(Reply::new(454, 7, 0, "a proof that nothing asked for")),
        }
    }

    fn fail(self, reply: Reply) -> (Self, HelloAction) {
        let stage = self.stage();
        (self, HelloAction::Failed(Refusal { stage, reply }))
    }

    /// TLS is as wished: what is left is to say who we are, where that is asked for.
    fn log_in(mut self, offers: Extensions) -> (Self, HelloAction) {
        let Some(login) = &self.login else {
            return (self, HelloAction::Ready(offers));
        };
        self.state = HelloState::Auth(offers);
        if login.only_encrypted && !self.encrypted {
            return self.fail(Reply::new(
                454,
                7,
                0,
                "no password is sent in clear, and there is no TLS",
            ));
        }
        let Some((exchange, line)) = Exchange::begin(login, offers.auth) else {
            let reply = Reply::new(
                454,
                7,
                0,
                "the host offers none of SCRAM-SHA-256, PLAIN and LOGIN",
            );
            return self.fail(reply);
        };
        self.exchange = Some(exchange);
        (self, HelloAction::SaySecret(line))
    }

    fn go_on(
        mut self,
        offers: Extensions,
        step: impl FnOnce(Exchange, &Login) -> (Exchange, Turn),
    ) -> (Self, HelloAction) {
        let (Some(exchange), Some(login)) = (self.exchange.take(), &self.login) else {
            return self.fail(Reply::new(454, 7, 0, "no login was begun"));
        };
        let (exchange, turn) = step(exchange, login);
        self.exchange = Some(exchange);
        match turn {
            Turn::Say(line) => (self, HelloAction::SaySecret(line)),
            Turn::Work(task) => (self, HelloAction::Prove(task)),
            Turn::Done => (self, HelloAction::Ready(offers)),
            Turn::Failed(reply) => self.fail(reply),
        }
    }

    fn ehlo(mut self) -> (Self, HelloAction) {
        self.state = HelloState::Ehlo;
        let line = format!("EHLO {}\r\n", self.name);
        (self, HelloAction::Say(line, Stage::Ehlo))
    }

    fn helo(mut self) -> (Self, HelloAction) {
        self.state = HelloState::Helo;
        let line = format!("HELO {}\r\n", self.name);
        (self, HelloAction::Say(line, Stage::Helo))
    }

    fn settle_tls(mut self, offers: Extensions) -> (Self, HelloAction) {
        if self.encrypted || self.wish == TlsWish::Never {
            return self.log_in(offers);
        }
        if offers.starttls {
            self.state = HelloState::StartTls(offers);
            return (self, HelloAction::Say("STARTTLS\r\n".into(), Stage::StartTls));
        }
        if self.wish == TlsWish::IfOffered {
            return self.log_in(offers);
        }
        self.fail(Reply::new(
            450,
            7,
            10,
            "TLS is required, and the host does not offer it",
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::super::reply;
    use super::*;

    fn hello(wish: TlsWish) -> Hello {
        Hello::new("relay.test".parse().unwrap(), wish, false)
    }

    fn say(line: &str, stage: Stage) -> HelloAction {
        HelloAction::Say(format!("{line}\r\n"), stage)
    }

    #[test]
    fn old_peers_are_greeted_in_the_old_way_and_busy_ones_are_left() {
        let (session, action) = hello(TlsWish::IfOffered).step(reply("220 hi"));
        assert_eq!(action, say("EHLO relay.test", Stage::Ehlo));
        let (_, action) = session.clone().step(reply("502 what"));
        assert_eq!(action, say("HELO relay.test", Stage::Helo));
        for line in ["421 busy", "451 later"] {
            assert!(
                matches!(session.clone().step(reply(line)).1, HelloAction::Failed(_)),
                "{line}"
            );
        }
        let (_, action) = session
            .clone()
            .step(reply("502 what"))
            .0
            .step(reply("250-mx\r\n250 PIPELINING"));
        assert_eq!(
            action,
            HelloAction::Ready(Extensions::default()),
            "HELO has no extensions"
        );
        assert!(matches!(
            hello(TlsWish::Never).step(reply("554 no")).1,
            HelloAction::Failed(_)
        ));
    }

    #[test]
    fn tls_is_as_wished() {
        let greeted = |wish| hello(wish).step(reply("220 hi")).0;
        let offer =
            reply("250-mx\r\n250-SIZE 0\r\n250-starttls\r\n250-LIMITS RCPTMAX=3 X MAILMAX=0\r\n250 8BITMIME");
        let plain = reply("250 mx");
        assert!(matches!(
            greeted(TlsWish::Never).step(offer.clone()).1,
            HelloAction::Ready(_)
        ));
        assert!(matches!(
            greeted(TlsWish::IfOffered).step(plain.clone()).1,
            HelloAction::Ready(_)
        ));
        let (_, action) = greeted(TlsWish::Required).step(plain);
        assert!(matches!(action, HelloAction::Failed(refusal) if refusal.reply.code == 450));
        let (session, action) = greeted(TlsWish::IfOffered).step(offer.clone());
        assert_eq!(action, say("STARTTLS", Stage::StartTls));
        assert_eq!(session.clone().step(reply("220 go")).1, HelloAction::StartTls);
        assert!(matches!(
            session.clone().step(reply("454 not now")).1,
            HelloAction::Ready(_)
        ));
        assert!(matches!(
            session.clone().step(reply("421 bye")).1,
            HelloAction::Failed(_)
        ));
        let (required, _) = greeted(TlsWish::Required).step(offer.clone());
        assert!(matches!(
            required.step(reply("454 not now")).1,
            HelloAction::Failed(_)
        ));
        // All that was learnt in clear is asked again.
        let (session, action) = session.step(reply("220 go")).0.encrypted();
        assert_eq!(action, say("EHLO relay.test", Stage::Ehlo));
        let expected = Extensions {
            starttls: true,
            eight_bit_mime: true,
            size: Some(None),
            rcpt_max: Some(3),
            ..Extensions::default()
        };
        assert_eq!(session.clone().step(offer).1, HelloAction::Ready(expected));
        // Limits, too: those that were told in clear are forgotten (RFC 9422 §3.6).
        let other = reply("250-mx\r\n250 LIMITS MAILMAX=7");
        let expected = Extensions {
            mail_max: Some(7),
            ..Extensions::default()
        };
        assert_eq!(session.step(other).1, HelloAction::Ready(expected));
    }

    #[test]
    fn a_password_is_said_under_tls_only_and_before_anything_else() {
        let login = |only_encrypted| Login {
            user: "ada".into(),
            password: Secret::new(b"secret".to_vec()),
            nonce: "n".into(),
            only_encrypted,
        };
        let greeted = |wish, login| hello(wish).with_login(login).step(reply("220 hi")).0;
        let offer = reply("250-mx\r\n250-STARTTLS\r\n250 AUTH PLAIN LOGIN X-ODD");
        let failure = |action| match action {
            HelloAction::Failed(Refusal { stage, reply }) => format!("{} {reply}", stage.name()),
            other => panic!("{other:?}"),
        };
        // In clear: not a word, where it must not be.
        let (_, action) = greeted(TlsWish::Never, login(true)).step(offer.clone());
        assert!(failure(action).starts_with("AUTH 454 4.7.0 no password is sent in clear"));
        let (_, action) = greeted(TlsWish::IfOffered, login(true)).step(reply("250 mx"));
        assert!(failure(action).starts_with("AUTH 454 4.7.0 no password is sent in clear"));
        let (_, action) = greeted(TlsWish::Never, login(false)).step(offer.clone());
        assert!(matches!(action, HelloAction::SaySecret(_)));
        // Under TLS, after the EHLO there.
        let (session, action) = greeted(TlsWish::Required, login(true)).step(offer.clone());
        assert_eq!(action, say("STARTTLS", Stage::StartTls));
        let session = session.step(reply("220 go")).0.encrypted().0;
        let (session, action) = session.step(offer);
        let HelloAction::SaySecret(line) = action else {
            panic!("{action:?}")
        };
        assert!(line.expose().starts_with(b"AUTH PLAIN "));
        assert_eq!(session.stage(), Stage::Auth);
        assert!(matches!(
            session.clone().step(reply("235 2.7.0 in")).1,
            HelloAction::Ready(_)
        ));
        for line in ["535 5.7.8 wrong", "454 4.7.0 later", "530 5.7.0 no", "421 bye"] {
            let action = session.clone().step(reply(line)).1;
            assert_eq!(failure(action), format!("AUTH {line}"));
        }
        // Nothing on offer that is known here.
        let (_, action) = greeted(TlsWish::Never, login(false)).step(reply("250-mx\r\n250 AUTH GSSAPI"));
        assert!(failure(action).contains("offers none of"));
    }
}
