//! `postrider send`.

use std::io::Read as _;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, ToSocketAddrs as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, anyhow, bail};
use clap::{Args, ValueEnum};
use mail_core::smtp::client::RecipientResult;
use mail_core::smtp::command::Secret;
use mail_core::{Domain, Hold, Mailbox, Recipient, ReversePath, Timestamp, header};
use rustls_pki_types::ServerName;
use serde_json::json;

use crate::config::parse_duration;
use crate::config::settings::{Listener, ListenerKind};
use crate::mail_client::{Client, Security, Server, queue_id};

use super::output::{plain, print, print_json};
use super::{ConfigFile, Failure};

mod compose;

/// The most that is read of a message: it is kept in memory.
const MAX_MESSAGE: u64 = 256 << 20;

/// Port of submissions (RFC 8314 §3.3).
const SUBMISSIONS: u16 = 465;

/// `postrider send`.
#[derive(Args)]
#[command(
    after_help = "Without --server it goes to this machine's relay: the configuration's first trusted listener, or with \
    --user its first one that asks for a password.\n\nExamples:\n  \
    postrider send --from me@example.com --to you@example.net message.eml\n  \
    echo It works. | postrider send --from me@example.com --to you@example.net --subject Test\n  \
    postrider send --from me@example.com --to you@example.net --hold-for 2h message.eml\n  \
    POSTRIDER_PASSWORD=... postrider send --server mail.example.com:587 --user app --from ... --to ... message.eml"
)]
pub(super) struct Send {
    /// The message: header, empty line, body; with --subject a text. Lines may end in LF. "-": standard input.
    #[arg(default_value = "-")]
    file: PathBuf,
    /// The reverse-path [default: the address in the From field]; "" for none, as reports have.
    #[arg(long, value_name = "ADDRESS")]
    from: Option<String>,
    /// A forward-path; may be given several times.
    #[arg(long, value_name = "ADDRESS", required = true)]
    to: Vec<Mailbox>,
    /// Make a message of the text: with this subject, From and To.
    #[arg(long, requires = "from")]
    subject: Option<String>,
    /// Hand it to this server [default port: 587].
    #[arg(long, value_name = "HOST[:PORT]")]
    server: Option<String>,
    /// How it is encrypted [default: starttls with --user, implicit on port 465, else off]. The certificate has to be right.
    #[arg(long, value_enum)]
    tls: Option<Tls>,
    /// Certificate authorities (PEM) to trust beside the system's.
    #[arg(long, value_name = "FILE")]
    ca: Option<PathBuf>,
    /// The name that the certificate has to say [default: the server's].
    #[arg(long, value_name = "NAME")]
    tls_name: Option<String>,
    /// Log in, with the password from --password-file or the variable POSTRIDER_PASSWORD.
    #[arg(long, value_name = "NAME")]
    user: Option<String>,
    /// The password is this file's first line.
    #[arg(long, value_name = "FILE", requires = "user")]
    password_file: Option<PathBuf>,
    /// Have the server hold it for so long before it is sent, such as 90m or 2d; the server has to offer FUTURERELEASE.
    #[arg(long, value_name = "SPAN", value_parser = span, conflicts_with = "hold_until")]
    hold_for: Option<Duration>,
    /// Have it held until then, such as 2030-01-31T08:00:00Z.
    #[arg(long, value_name = "TIME")]
    hold_until: Option<jiff::Timestamp>,
    /// Print JSON.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    config: ConfigFile,
}

/// HOLDFOR counts seconds, and from one on (RFC 4865 §3).
pub(super) fn span(text: &str) -> Result<Duration, String> {
    let span = parse_duration(text)?;
    if span < Duration::from_secs(1) {
        return Err("a second is the least".into());
    }
    Ok(span)
}

/// How the connection is encrypted.
#[derive(Clone, Copy, ValueEnum)]
enum Tls {
    /// Not at all.
    Off,
    /// By STARTTLS; nothing is sent without.
    Starttls,
    /// From the first octet, as on port 465.
    Implicit,
}

impl From<Tls> for Security {
    fn from(tls: Tls) -> Self {
        match tls {
            Tls::Off => Self::Clear,
            Tls::Starttls => Self::StartTls,
            Tls::Implicit => Self::Implicit,
        }
    }
}

/// Where it goes: addresses, the name to verify, and the encryption unless told otherwise.
struct Target {
    addresses: Vec<SocketAddr>,
    name: String,
    security: Security,
}

pub(super) fn run(command: Send) -> Result<(), Failure> {
    let target = command.target()?;
    let login = command.login()?;
    let raw = read(&command.file)?;
    let (from, raw) = command.message(&raw)?;
    let name = command.tls_name.clone().unwrap_or(target.name);
    let server = Server {
        addresses: target.addresses,
        name: ServerName::try_from(name.clone())
            .map_err(|_| Failure::Usage(format!("{name:?} is no name that a certificate could say")))?,
        security: command.tls.map_or(target.security, Security::from),
        ca: command.ca.as_deref(),
        login,
    };
    let recipients: Vec<_> = command.to.iter().cloned().map(Recipient::new).collect();
    let sent = Client::open(&server, greeting_name(&from)?)
        .and_then(|mut client| client.send(&from, &recipients, &raw, command.hold()))
        .with_context(|| format!("the message was not handed over to {name}"))?;
    command.tell(&sent)?;
    let refused = sent
        .iter()
        .filter(|result| !matches!(result, RecipientResult::Delivered(_)))
        .count();
    if refused > 0 {
        return Err(Failure::Failed(anyhow!(
            "{refused} of {} recipients were not accepted",
            sent.len()
        )));
    }
    Ok(())
}

/// EHLO wants a name; ours to the relay says nothing, so the sender's domain has to do.
fn greeting_name(from: &ReversePath) -> anyhow::Result<Domain> {
    Ok(match from {
        ReversePath::Mailbox(mailbox) => mailbox.domain().clone(),
        ReversePath::Null => "localhost".parse()?,
    })
}

impl Send {
    fn target(&self) -> Result<Target, Failure> {
        if let Some(server) = &self.server {
            return Ok(self.resolved(server)?);
        }
        let (settings, mistakes) = self.config.look()?;
        let settings = settings.ok_or_else(|| Failure::Usage(mistakes.to_string()))?;
        let fits = |listener: &&Listener| {
            matches!(listener.kind, ListenerKind::Trusted { .. }) != self.user.is_some()
        };
        let listener = settings.listeners.iter().find(fits).ok_or_else(|| {
            Failure::Usage(match self.user {
                Some(_) => "the configuration has no listener that asks for a password".to_owned(),
                None => "the configuration has no trusted listener: log in with --user, or name another server with \
                         --server"
                    .to_owned(),
            })
        })?;
        Ok(Target {
            addresses: vec![reachable(listener.address)],
            name: settings.hostname.to_string(),
            security: match listener.kind {
                ListenerKind::Submission(_) => Security::StartTls,
                ListenerKind::Submissions(_) => Security::Implicit,
                ListenerKind::Trusted { .. } => Security::Clear,
            },
        })
    }

    fn resolved(&self, server: &str) -> anyhow::Result<Target> {
        let (host, port) = split_port(server)?;
        let addresses: Vec<_> = (host, port)
            .to_socket_addrs()
            .with_context(|| format!("{host} can't be found"))?
            .collect();
        if addresses.is_empty() {
            bail!("{host} has no address");
        }
        Ok(Target {
            addresses,
            name: host.to_owned(),
            security: match port {
                SUBMISSIONS => Security::Implicit,
                _ if self.user.is_some() => Security::StartTls,
                _ => Security::Clear,
            },
        })
    }

    fn hold(&self) -> Option<Hold> {
        let until = |at: jiff::Timestamp| Timestamp(u64::try_from(at.as_millisecond()).unwrap_or(0));
        let until = self.hold_until.map(|at| Hold::Until(until(at)));
        self.hold_for.map(Hold::For).or(until)
    }

    fn login(&self) -> Result<Option<(String, Secret)>, Failure> {
        let Some(user) = &self.user else { return Ok(None) };
        let password = match &self.password_file {
            Some(file) => std::fs::read_to_string(file)
                .with_context(|| format!("the password in {}", file.display()))?
                .lines()
                .next()
                .unwrap_or_default()
                .to_owned(),
            None => std::env::var("POSTRIDER_PASSWORD").map_err(|_| {
                Failure::Usage("--user needs a password: --password-file, or POSTRIDER_PASSWORD".into())
            })?,
        };
        Ok(Some((user.clone(), Secret::new(password.into_bytes()))))
    }

    /// The reverse-path, and the message as it goes out.
    fn message(&self, raw: &[u8]) -> Result<(ReversePath, Vec<u8>), Failure> {
        let from = match self.from.as_deref() {
            Some("") => ReversePath::Null,
            Some(text) => ReversePath::Mailbox(
                text.parse()
                    .map_err(|error| Failure::Usage(format!("--from {text:?}: {error}")))?,
            ),
            None => ReversePath::Mailbox(from_field(raw)?),
        };
        let raw = match (&self.subject, &from) {
            (Some(subject), ReversePath::Mailbox(from)) => compose::text(from, &self.to, subject, raw)?,
            (Some(_), ReversePath::Null) => {
                return Err(Failure::Usage(
                    "--subject makes a From field of --from: it can't be empty".into(),
                ));
            }
            (None, _) => compose::with_crlf(raw),
        };
        Ok((from, raw))
    }

    fn tell(&self, sent: &[RecipientResult]) -> anyhow::Result<()> {
        let id = sent.iter().find_map(|result| match result {
            RecipientResult::Delivered(reply) => queue_id(reply),
            _ => None,
        });
        if self.json {
            let recipients: Vec<_> = self
                .to
                .iter()
                .zip(sent)
                .map(|(to, result)| {
                    let (accepted, reply) = words(result);
                    json!({ "address": to.to_string(), "accepted": accepted, "reply": reply })
                })
                .collect();
            return print_json(&json!({ "id": id.map(|id| id.to_string()), "recipients": recipients }));
        }
        let mut text = String::new();
        for (to, result) in self.to.iter().zip(sent) {
            let (accepted, reply) = words(result);
            let word = if accepted { "accepted" } else { "refused " };
            text.push_str(&format!("{word}  {to}  {}\n", plain(&reply)));
        }
        if let Some(id) = id {
            text.push_str(&format!("See what becomes of it: postrider message show {id}\n"));
        }
        Ok(print(&text)?)
    }
}

/// Whether it was accepted, and the server's words.
fn words(result: &RecipientResult) -> (bool, String) {
    match result {
        RecipientResult::Delivered(reply) => (true, reply.to_string()),
        RecipientResult::Refused(reply, _) | RecipientResult::Unfit(reply) => (false, reply.to_string()),
        RecipientResult::Deferred(words, _) | RecipientResult::InDoubt(words) => (false, words.clone()),
    }
}

/// A listener on all addresses is found on loopback.
fn reachable(address: SocketAddr) -> SocketAddr {
    let ip = match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    SocketAddr::new(ip, address.port())
}

/// `host`, `host:port`, `[v6]:port`, `v6`.
fn split_port(server: &str) -> anyhow::Result<(&str, u16)> {
    const PORT: u16 = 587;
    let (host, port) = match server.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((host, rest)) => (host, rest.strip_prefix(':')),
        None if server.matches(':').count() > 1 => (server, None),
        None => match server.split_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (server, None),
        },
    };
    let port = match port {
        Some(port) => port.parse().with_context(|| format!("{port:?} is no port"))?,
        None => PORT,
    };
    if host.is_empty() {
        bail!("--server {server:?} names no host");
    }
    Ok((host, port))
}

/// The one address of the From field.
fn from_field(raw: &[u8]) -> Result<Mailbox, Failure> {
    let usage = |text: &str| Failure::Usage(format!("{text}; say --from"));
    let message = compose::with_crlf(raw);
    let (block, _) = header::split(&message);
    let field = header::fields(block).find(|field| field.is("From"));
    let field = field.ok_or_else(|| usage("the message has no From field"))?;
    let mut addresses =
        header::addresses(field.value()).map_err(|_| usage("the From field can't be understood"))?;
    match (addresses.pop(), addresses.is_empty()) {
        (Some(address), true) => Ok(address),
        _ => Err(usage("the From field has not one address")),
    }
}

/// Standard input or a file, whole.
fn read(file: &Path) -> anyhow::Result<Vec<u8>> {
    let mut raw = Vec::new();
    let what = || format!("the message from {}", file.display());
    if file == Path::new("-") {
        std::io::stdin().take(MAX_MESSAGE + 1).read_to_end(&mut raw)
    } else {
        std::fs::File::open(file).and_then(|file| file.take(MAX_MESSAGE + 1).read_to_end(&mut raw))
    }
    .with_context(what)?;
    if raw.len() as u64 > MAX_MESSAGE {
        bail!("the message has over {} MiB", MAX_MESSAGE >> 20);
    }
    if raw.is_empty() {
        bail!("the message is empty");
    }
    Ok(raw)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn servers_are_named_with_and_without_port() {
        for (server, host, port) in [
            ("mail.example.com", "mail.example.com", 587),
            ("mail.example.com:465", "mail.example.com", 465),
            ("192.0.2.1:25", "192.0.2.1", 25),
            ("2001:db8::1", "2001:db8::1", 587),
            ("[2001:db8::1]", "2001:db8::1", 587),
            ("[2001:db8::1]:25", "2001:db8::1", 25),
        ] {
            assert_eq!(split_port(server).unwrap(), (host, port));
        }
        for server in ["mail:x", "mail:70000", ":25", "[]:25"] {
            assert!(split_port(server).is_err(), "{server}");
        }
    }

    #[test]
    fn the_reverse_path_is_the_from_field_s() {
        for (raw, from) in [
            ("From: a@example.com\n\nx\n", Some("a@example.com")),
            (
                "Subject: x\r\nfrom: A\r\n <a@example.com>\r\n\r\nx\r\n",
                Some("a@example.com"),
            ),
            ("Subject: x\n\nFrom: a@example.com\n", None),
            ("From: a@example.com, b@example.com\n\n", None),
            ("From:\n\n", None),
        ] {
            assert_eq!(
                from_field(raw.as_bytes())
                    .ok()
                    .map(|from| from.to_string())
                    .as_deref(),
                from,
                "{raw:?}"
            );
        }
    }
}
