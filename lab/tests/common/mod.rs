//! A client that says what a test tells it to.
#![allow(dead_code, reason = "each test uses its part")]

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use lab::{HostInfo, Lab};
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, ServerName};
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

/// More than any of these tests needs.
const PATIENCE: Duration = Duration::from_secs(20);

trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

/// The host of that name.
pub fn host<'a>(lab: &'a Lab, name: &str) -> &'a HostInfo {
    lab.hosts.iter().find(|host| host.name.as_str() == name).unwrap()
}

/// A connection.
pub struct Client(BufReader<Box<dyn Stream>>);

impl Client {
    /// Connects and takes the greeting.
    pub async fn connect(lab: &Lab, name: &str) -> Self {
        let stream = TcpStream::connect(host(lab, name).address).await.unwrap();
        let mut client = Self(BufReader::new(Box::new(stream)));
        assert!(client.reply().await.starts_with(&format!("220 {name} ")));
        client
    }

    /// The next reply, lines joined by `\n`.
    pub async fn reply(&mut self) -> String {
        let mut all = String::new();
        loop {
            let mut line = String::new();
            timeout(PATIENCE, self.0.read_line(&mut line))
                .await
                .unwrap()
                .unwrap();
            let line = line.strip_suffix("\r\n").expect("a whole line");
            all.push_str(line);
            if line.as_bytes().get(3) != Some(&b'-') {
                return all;
            }
            all.push('\n');
        }
    }

    /// All that still comes, up to the end.
    pub async fn rest(&mut self) -> Vec<u8> {
        let mut rest = Vec::new();
        timeout(PATIENCE, self.0.read_to_end(&mut rest))
            .await
            .unwrap()
            .unwrap();
        rest
    }

    /// Writes octets as they are.
    pub async fn send(&mut self, octets: &[u8]) {
        self.0.write_all(octets).await.unwrap();
        self.0.flush().await.unwrap();
    }

    /// One command and its reply.
    pub async fn ask(&mut self, line: &str) -> String {
        self.send(format!("{line}\r\n").as_bytes()).await;
        self.reply().await
    }

    /// Plays a dialogue of lines `C: …` and `S: …`; an `S:` line is what the reply begins with.
    pub async fn play(&mut self, script: &str) {
        for line in script.lines().map(str::trim).filter(|line| !line.is_empty()) {
            match line.split_once(": ").unwrap() {
                ("C", line) => self.send(format!("{line}\r\n").as_bytes()).await,
                ("S", start) => {
                    let reply = self.reply().await;
                    assert!(reply.starts_with(start), "expected {start:?}, got {reply:?}");
                }
                _ => panic!("{line}"),
            }
        }
    }

    /// One message in one transaction; returns the last reply. `octets`: dot-stuffed here.
    pub async fn message(&mut self, from: &str, to: &[&str], octets: &[u8]) -> String {
        let answer = self.ask(&format!("MAIL FROM:<{from}> BODY=8BITMIME")).await;
        assert!(answer.starts_with("250 "), "{answer}");
        for to in to {
            let answer = self.ask(&format!("RCPT TO:<{to}>")).await;
            assert!(answer.starts_with("250 "), "{answer}");
        }
        assert!(self.ask("DATA").await.starts_with("354 "));
        let mut stuffed = Vec::new();
        for line in octets.split_inclusive(|&octet| octet == b'\n') {
            if line.starts_with(b".") {
                stuffed.push(b'.');
            }
            stuffed.extend_from_slice(line);
        }
        self.send(&stuffed).await;
        self.send(b".\r\n").await;
        self.reply().await
    }

    /// STARTTLS; the certificate must be the lab CA's for `name`.
    pub async fn starttls(mut self, lab: &Lab, name: &str) -> Self {
        assert!(self.ask("STARTTLS").await.starts_with("220 "));
        let mut roots = RootCertStore::empty();
        let pem = std::fs::read(lab.ca.file()).unwrap();
        roots.add(CertificateDer::from_pem_slice(&pem).unwrap()).unwrap();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        let name = ServerName::try_from(name.to_owned()).unwrap();
        let stream = TlsConnector::from(Arc::new(config))
            .connect(name, self.0.into_inner())
            .await;
        Self(BufReader::new(Box::new(stream.unwrap())))
    }
}

/// What an HTTP door answers: status and body.
pub async fn http(address: SocketAddr, request: &str) -> (u16, Vec<u8>) {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    timeout(PATIENCE, stream.read_to_end(&mut answer))
        .await
        .unwrap()
        .unwrap();
    let end = answer.windows(4).position(|four| four == b"\r\n\r\n").unwrap();
    let status = std::str::from_utf8(&answer[9..12]).unwrap().parse().unwrap();
    (status, answer.split_off(end + 4))
}

/// A GET as a client of this machine makes it.
pub async fn get(address: SocketAddr, path: &str) -> (u16, Vec<u8>) {
    let request = format!("GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n");
    http(address, &request).await
}
