//! The demo's mail program: STARTTLS, a password, one message after the other. Blocking, with mail-core's sending session.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use mail_core::smtp::client::{
    Extensions, Hello, HelloAction, Message, RecipientResult, TlsWish, Transaction, TransactionAction,
};
use mail_core::smtp::reply_reader::ReplyReader;
use mail_core::smtp::stuff::stuffed;
use mail_core::{BodyType, Domain, DsnOptions, Mailbox, MessageId, Recipient, Reply, ReversePath};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, ServerName};

/// The relay is on this machine; a message waits for a disk at most.
const PATIENCE: Duration = Duration::from_secs(60);

pub(super) struct Client {
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
    /// Connects, takes TLS whose certificate the lab's authority must have issued, and logs in.
    pub(super) fn log_in(relay: SocketAddr, ca: &Path, user: &str, password: &str) -> anyhow::Result<Self> {
        let stream = TcpStream::connect_timeout(&relay, PATIENCE).context("no connection")?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        stream.set_nodelay(true)?;
        let mut client = Self {
            wire: Wire::Clear(stream),
            reader: ReplyReader::default(),
            unread: Vec::new(),
            offers: Extensions::default(),
        };
        let name: Domain = "demo.sender.test".parse()?;
        let mut hello = Hello::new(name, TlsWish::Required, false);
        loop {
            let reply = client.reply()?;
            let mut action;
            (hello, action) = hello.step(reply);
            if action == HelloAction::StartTls {
                client = client.encrypted(relay, ca)?;
                (hello, action) = hello.encrypted();
            }
            match action {
                HelloAction::Say(line, _) => client.write(&[line.as_bytes()])?,
                HelloAction::Ready(offers) => {
                    client.offers = offers;
                    break;
                }
                HelloAction::Failed(refusal) => {
                    bail!("{} answered {}", refusal.stage.name(), refusal.reply)
                }
                HelloAction::StartTls | HelloAction::SaySecret(_) | HelloAction::Prove(_) => {
                    bail!("asked for what was not wished")
                }
            }
        }
        let secret = BASE64.encode(format!("\0{user}\0{password}"));
        client.write(&[format!("AUTH PLAIN {secret}\r\n").as_bytes()])?;
        match client.reply()? {
            reply if reply.code == 235 => Ok(client),
            reply => bail!("AUTH answered {reply}"),
        }
    }

    fn encrypted(mut self, relay: SocketAddr, ca: &Path) -> anyhow::Result<Self> {
        let Wire::Clear(stream) = self.wire else {
            bail!("TLS twice")
        };
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_file(ca)?)?;
        let config =
            ClientConfig::builder_with_provider(Arc::new(rustls::crypto::aws_lc_rs::default_provider()))
                .with_safe_default_protocol_versions()?
                .with_root_certificates(roots)
                .with_no_client_auth();
        let connection = ClientConnection::new(Arc::new(config), ServerName::IpAddress(relay.ip().into()))?;
        self.wire = Wire::Tls(Box::new(StreamOwned::new(connection, stream)));
        self.unread.clear();
        Ok(self)
    }

    /// Hands a message over for all of these recipients; returns the id by which the relay keeps it.
    pub(super) fn send(&mut self, from: &Mailbox, to: &[Mailbox], raw: &[u8]) -> anyhow::Result<MessageId> {
        let eight_bit = !raw.is_ascii();
        let recipients: Vec<_> = to.iter().cloned().map(Recipient::new).collect();
        let message = Message {
            reverse_path: &ReversePath::Mailbox(from.clone()),
            recipients: &recipients,
            dsn: &DsnOptions::default(),
            body_type: if eight_bit {
                BodyType::EightBitMime
            } else {
                BodyType::SevenBit
            },
            eight_bit,
            utf8_header: false,
            size: raw.len() as u64,
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
                TransactionAction::Done { .. } => break,
            }
        }
        let mut id = None;
        for (result, recipient) in transaction.results().into_iter().zip(to) {
            match result {
                RecipientResult::Delivered(reply) => {
                    let told = reply
                        .text
                        .strip_prefix("queued as ")
                        .and_then(|id| id.parse().ok());
                    id = Some(told.with_context(|| format!("no queue id in {reply}"))?);
                }
                other => bail!("<{recipient}>: {other:?}"),
            }
        }
        id.context("a message for nobody")
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
