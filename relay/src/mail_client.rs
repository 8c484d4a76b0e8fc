//! A mail program's side of submission, for `postrider send` and the demo: TLS, a password, one message after the other.
//! Blocking, with mail-core's sending session.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, bail};
use mail_core::smtp::client::{
    Extensions, Hello, HelloAction, Login, Message, RecipientResult, TlsWish, Transaction, TransactionAction,
};
use mail_core::smtp::command::Secret;
use mail_core::smtp::reply_reader::ReplyReader;
use mail_core::smtp::stuff::stuffed;
use mail_core::{BodyType, Domain, DsnOptions, Hold, MessageId, Recipient, Reply, ReversePath};
use rustls::{ClientConnection, StreamOwned};
use rustls_pki_types::ServerName;

use crate::delivery::client_tls::ClientTls;
use crate::delivery::scram;
use crate::world::Random;

/// For each wait; a message waits for a disk at most.
const PATIENCE: Duration = Duration::from_secs(60);

/// How much TLS; its certificate is always verified.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Security {
    /// None.
    Clear,
    /// RFC 3207.
    StartTls,
    /// From the first octet (RFC 8314 §3.3).
    Implicit,
}

/// A server, and who we are to it.
pub struct Server<'a> {
    /// Where it is: the first of these that answers.
    pub addresses: Vec<SocketAddr>,
    /// What its certificate has to say.
    pub name: ServerName<'static>,
    /// How much TLS.
    pub security: Security,
    /// Certificate authorities beside the system's.
    pub ca: Option<&'a Path>,
    /// User and password.
    pub login: Option<(String, Secret)>,
}

/// A connection that takes mail.
pub struct Client {
    wire: Wire,
    reader: ReplyReader,
    unread: Vec<u8>,
    offers: Extensions,
}

enum Wire {
    Clear(TcpStream),
    Tls(Box<StreamOwned<ClientConnection, TcpStream>>),
}

impl Client {
    /// Connects, negotiates TLS and logs in, as far as the server is to have it.
    pub fn open(server: &Server<'_>, ehlo: Domain) -> anyhow::Result<Self> {
        let stream = connect(&server.addresses)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        stream.set_nodelay(true)?;
        let mut client = Self {
            wire: Wire::Clear(stream),
            reader: ReplyReader::default(),
            unread: Vec::new(),
            offers: Extensions::default(),
        };
        let wish = match server.security {
            Security::Clear => TlsWish::Never,
            Security::StartTls | Security::Implicit => TlsWish::Required,
        };
        let encrypted = server.security == Security::Implicit;
        if encrypted {
            client = client.encrypted(server)?;
        }
        let mut hello = Hello::new(ehlo, wish, encrypted);
        if let Some((user, password)) = &server.login {
            hello = hello.with_login(Login {
                user: user.clone(),
                password: password.clone(),
                nonce: Random::system().nonce(),
                only_encrypted: server.security != Security::Clear,
            });
        }
        loop {
            let reply = client.reply()?;
            let mut action;
            (hello, action) = hello.step(reply);
            if action == HelloAction::StartTls {
                client = client.encrypted(server)?;
                (hello, action) = hello.encrypted();
            }
            if let (HelloAction::Prove(task), Some((_, password))) = (&action, &server.login) {
                (hello, action) = hello.proven(&scram::compute(task, password));
            }
            match action {
                HelloAction::Say(line, _) => client.write(&[line.as_bytes()])?,
                HelloAction::SaySecret(line) => client.write(&[line.expose()])?,
                HelloAction::Ready(offers) => {
                    client.offers = offers;
                    return Ok(client);
                }
                HelloAction::Failed(refusal) => {
                    bail!("{}: {}", refusal.stage.name(), refusal.reply)
                }
                HelloAction::StartTls | HelloAction::Prove(_) => bail!("asked for what was not wished"),
            }
        }
    }

    fn encrypted(mut self, server: &Server<'_>) -> anyhow::Result<Self> {
        let Wire::Clear(mut stream) = self.wire else {
            bail!("TLS twice")
        };
        let config = ClientTls::new(server.ca)?.verified().config().clone();
        let mut connection = ClientConnection::new(config, server.name.clone())?;
        while connection.is_handshaking() {
            connection.complete_io(&mut stream).context("TLS")?;
        }
        self.wire = Wire::Tls(Box::new(StreamOwned::new(connection, stream)));
        self.unread.clear();
        Ok(self)
    }

    /// Hands a message over, to be held or not; tells what became of each recipient.
    pub fn send(
        &mut self,
        from: &ReversePath,
        recipients: &[Recipient],
        raw: &[u8],
        hold: Option<Hold>,
    ) -> anyhow::Result<Vec<RecipientResult>> {
        let eight_bit = !raw.is_ascii();
        let message = Message {
            reverse_path: from,
            recipients,
            dsn: &DsnOptions::default(),
            body_type: if eight_bit {
                BodyType::EightBitMime
            } else {
                BodyType::SevenBit
            },
            eight_bit,
            utf8_header: !mail_core::header::split(raw).0.is_ascii(),
            size: raw.len() as u64,
            by: None,
            priority: None,
            hold,
        };
        let mut transaction = Transaction::new(&message, &self.offers);
        loop {
            match transaction.advance() {
                TransactionAction::Write(octets) => self.write(&[&octets])?,
                TransactionAction::Read(_) => transaction.reply(self.reply()?),
                TransactionAction::WriteBody => {
                    transaction.body_sent();
                    self.write(&stuffed(&[raw]))?;
                }
                TransactionAction::Done { .. } => return Ok(transaction.results()),
            }
        }
    }

    fn write(&mut self, slices: &[&[u8]]) -> io::Result<()> {
        let stream: &mut dyn Write = match &mut self.wire {
            Wire::Clear(stream) => stream,
            Wire::Tls(stream) => stream,
        };
        slices.iter().try_for_each(|slice| stream.write_all(slice))?;
        stream.flush()
    }

    fn reply(&mut self) -> anyhow::Result<Reply> {
        loop {
            let (taken, reply) = self.reader.read(&self.unread);
            self.unread.drain(..taken);
            if let Some(reply) = reply {
                return reply.context("the relay's reply");
            }
            let mut some = [0; 4_096];
            let stream: &mut dyn Read = match &mut self.wire {
                Wire::Clear(stream) => stream,
                Wire::Tls(stream) => stream,
            };
            match stream.read(&mut some).context("no reply")? {
                0 => bail!("the relay closed the connection"),
                read => self.unread.extend_from_slice(&some[..read]),
            }
        }
    }
}

/// A name may have an address of IPv6, while the server listens on that of IPv4 alone.
fn connect(addresses: &[SocketAddr]) -> anyhow::Result<TcpStream> {
    let mut failures = Vec::new();
    for address in addresses {
        match TcpStream::connect_timeout(address, PATIENCE) {
            Ok(stream) => return Ok(stream),
            Err(error) => failures.push(format!("no connection to {address}: {error}")),
        }
    }
    bail!("{}", failures.join("; "))
}

/// The id by which a Postrider keeps a message: the last words of its reply.
pub fn queue_id(reply: &Reply) -> Option<MessageId> {
    reply.text.strip_prefix("queued as ")?.parse().ok()
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    #[test]
    fn the_first_address_that_answers_is_taken() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let there = listener.local_addr().unwrap();
        // Bound and given back: nobody listens.
        let nobody = TcpListener::bind("127.0.0.2:0").unwrap().local_addr().unwrap();
        let stream = connect(&[nobody, there]).unwrap();
        assert_eq!(stream.peer_addr().unwrap(), there);
        let told = connect(&[nobody]).unwrap_err().to_string();
        assert!(
            told.starts_with(&format!("no connection to {nobody}: ")),
            "{told}"
        );
    }
}
