//! A small mail program for the demo: one message over STARTTLS and AUTH PLAIN, blocking, with a limit on every wait.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use mail_core::smtp::stuff::stuffed;
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, ServerName};

/// The longest wait for a word of the relay's.
const PATIENCE: Duration = Duration::from_secs(30);

/// Where to submit, and as whom.
pub(super) struct Submission {
    address: SocketAddr,
    tls: Arc<ClientConfig>,
    login: String,
}

impl Submission {
    /// Trusts the certificate authority in `ca`.
    pub(super) fn new(address: &str, ca: &Path, user: &str, password: &str) -> anyhow::Result<Self> {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_file(ca)?)?;
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let tls = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots)
            .with_no_client_auth();
        let login = BASE64.encode(format!("\0{user}\0{password}"));
        Ok(Self {
            address: address.parse()?,
            tls: Arc::new(tls),
            login,
        })
    }

    /// Submits a message and returns the ID in the reply.
    pub(super) fn send(&self, from: &str, to: &[String], message: &[u8]) -> anyhow::Result<String> {
        let mut clear = BufReader::new(self.connect()?);
        expect(&mut clear, 220)?;
        say(&mut clear, "EHLO demo.test", 250)?;
        say(&mut clear, "STARTTLS", 220)?;
        let session = ClientConnection::new(self.tls.clone(), ServerName::try_from("localhost")?)?;
        let mut wire = BufReader::new(StreamOwned::new(session, clear.into_inner()));
        say(&mut wire, "EHLO demo.test", 250)?;
        say(&mut wire, &format!("AUTH PLAIN {}", self.login), 235)?;
        say(&mut wire, &format!("MAIL FROM:<{from}> BODY=8BITMIME"), 250)?;
        for to in to {
            say(&mut wire, &format!("RCPT TO:<{to}>"), 250)?;
        }
        say(&mut wire, "DATA", 354)?;
        wire.get_mut().write_all(&stuffed(&[message]).concat())?;
        let reply = expect(&mut wire, 250)?;
        say(&mut wire, "QUIT", 221)?;
        let id = reply.split_whitespace().last().context("the reply names no ID")?;
        Ok(id.to_owned())
    }

    fn connect(&self) -> anyhow::Result<TcpStream> {
        let stream = TcpStream::connect_timeout(&self.address, PATIENCE)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        stream.set_nodelay(true)?;
        Ok(stream)
    }
}

fn say<S: Read + Write>(wire: &mut BufReader<S>, command: &str, code: u16) -> anyhow::Result<String> {
    wire.get_mut().write_all(format!("{command}\r\n").as_bytes())?;
    wire.get_mut().flush()?;
    expect(wire, code)
}

/// Reads a reply up to its last line, which is returned.
fn expect<S: Read + Write>(wire: &mut BufReader<S>, code: u16) -> anyhow::Result<String> {
    loop {
        let mut line = String::new();
        wire.take(4_096).read_line(&mut line)?;
        anyhow::ensure!(
            line.starts_with(&code.to_string()),
            "the relay said {:?} where {code} was due",
            line.trim_end()
        );
        if line.as_bytes().get(3) != Some(&b'-') {
            return Ok(line);
        }
    }
}
