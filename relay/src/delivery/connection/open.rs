//! From hosts to be tried to a connection that is ready for mail.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use bytes::BytesMut;
use mail_core::smtp::client::{Extensions, Hello, HelloAction, Login, Refusal, Stage, TlsWish};
use mail_core::smtp::reply_reader::ReplyReader;
use mail_core::{Domain, EnhancedCode, Reply};
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

use super::{Broken, Connection, Wire};
use crate::config::Settings;
use crate::config::settings::{AddressFamily, Listener, TlsLevel};
use crate::config::smart_hosts::Credentials;
use crate::delivery::client_tls::ClientTls;
use crate::delivery::scram;
use crate::report::Cause;
use crate::world::{Net, Random};

/// Addresses tried for one connection, all hosts together: two of each of as many hosts as the resolver gives.
pub(super) const MAX_ADDRESSES: usize = 32;

/// Addresses tried of one host before the others have had their turn; RFC 5321 §5.1 asks for two
/// at least.
pub(super) const ADDRESSES_OF_A_HOST: usize = 2;

/// A host to be tried.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NextHost {
    /// Where it is.
    pub place: HostPlace,
    /// Its port.
    pub port: u16,
    /// The name its certificate has to have, where it isn't the host's own.
    pub tls_name: Option<Arc<str>>,
}

/// Where a host is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HostPlace {
    /// At the addresses of this name.
    Name(Domain),
    /// At this one.
    Address(IpAddr),
}

impl fmt::Display for HostPlace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Name(name) => name.fmt(f),
            Self::Address(address) => address.fmt(f),
        }
    }
}

/// On what terms all hosts of a lane are spoken to.
#[derive(Clone, Debug, PartialEq)]
pub struct Terms {
    /// How much TLS.
    pub tls: TlsLevel,
    /// TLS from the first octet (RFC 8314 §3.3).
    pub implicit_tls: bool,
    /// Which of a host's addresses.
    pub family: AddressFamily,
    /// They are hosts of our own choosing: what they say of us at the door says nothing of a message.
    pub chosen: bool,
    /// Who we are to them.
    pub login: Option<Arc<Credentials>>,
}

impl Terms {
    /// Of hosts that the DNS names.
    pub fn of_mx(tls: TlsLevel, family: AddressFamily) -> Self {
        Self {
            tls,
            implicit_tls: false,
            family,
            chosen: false,
            login: None,
        }
    }
}

/// Why no host could be spoken to.
#[derive(Debug)]
pub struct OpenFailure {
    tries: Vec<Try>,
    chosen: bool,
    /// Some host was not asked: there were too many.
    cut: bool,
}

#[derive(Debug)]
struct Try {
    host: String,
    why: Why,
}

/// Why one try failed.
#[derive(Debug)]
pub(super) enum Why {
    /// It told us to go away, for now or for good.
    Refused(Refusal),
    /// It, or the way to it, failed.
    Failed(EnhancedCode, String),
    /// It has no address.
    NoAddress,
    /// The TLS handshake failed; in clear it may work.
    Handshake(String),
}

impl OpenFailure {
    /// Why, and which host said it, if every host refuses for good and asking again is no use (RFC 5321 §4.2.4.2). Never so
    /// for hosts that we chose: that they refuse us is for us to mend.
    pub fn permanent(&self) -> Option<(Cause, String)> {
        let last = self.tries.last().filter(|_| !self.chosen && !self.cut)?;
        if self.tries.iter().all(|tried| matches!(tried.why, Why::NoAddress)) {
            let cause = Cause::Undeliverable(
                EnhancedCode(5, 4, 4),
                "none of the domain's mail hosts has an address".into(),
            );
            return Some((cause, last.host.clone()));
        }
        // A refusal of STARTTLS may be the work of someone on the way: mail that requires TLS waits.
        let for_good = |tried: &Try| matches!(&tried.why, Why::Refused(refusal) if refusal.reply.is_permanent() && refusal.stage != Stage::StartTls);
        let refusing = self.tries.iter().rev().find(|tried| for_good(tried))?;
        if !self
            .tries
            .iter()
            .all(|tried| for_good(tried) || matches!(tried.why, Why::NoAddress))
        {
            return None;
        }
        match &refusing.why {
            Why::Refused(refusal) => Some((Cause::Refused(refusal.reply.clone()), refusing.host.clone())),
            _ => None,
        }
    }
}

impl fmt::Display for OpenFailure {
    /// The last try, which is the one of least preference, and what went wrong with it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.tries.last() {
            None => write!(f, "4.4.4 no host to try"),
            Some(Try { host, why }) => match why {
                Why::Refused(Refusal {
                    stage: Stage::Auth,
                    reply,
                }) => write!(f, "4.7.0 {host} does not let us log in: {reply}"),
                Why::Refused(refusal) => write!(f, "{} ({host} at {})", refusal.reply, refusal.stage.name()),
                Why::Failed(code, cause) => write!(f, "{code} {host}: {cause}"),
                Why::NoAddress => write!(f, "4.4.4 {host} has no address"),
                Why::Handshake(cause) => write!(f, "4.7.5 {host}: TLS: {cause}"),
            },
        }
    }
}

/// What opening takes.
pub struct Opener<'a, N> {
    /// The network.
    pub net: &'a N,
    /// The configuration.
    pub settings: &'a Settings,
    /// TLS towards next hops.
    pub tls: &'a ClientTls,
    /// For nonces.
    pub random: &'a Random,
    /// Of all the hosts.
    pub terms: &'a Terms,
}

impl<N: Net> Opener<'_, N> {
    /// Connects to the first of `hosts`, in their order, that takes mail.
    pub async fn open(&self, hosts: &[NextHost]) -> Result<Connection<N::Stream>, OpenFailure> {
        let mut failure = OpenFailure {
            tries: Vec::new(),
            chosen: self.terms.chosen,
            cut: false,
        };
        let mut left = MAX_ADDRESSES;
        // Of hosts with many addresses those that were not tried at first: nobody has refused for good who was not asked.
        let mut more = Vec::new();
        for next in hosts {
            let host = next.place.to_string();
            let addresses = match self.addresses(&next.place).await {
                Ok(addresses) => addresses,
                Err(why) => {
                    failure.tries.push(Try { host, why });
                    continue;
                }
            };
            if addresses
                .iter()
                .any(|address| self.is_ourselves(*address, next.port))
            {
                // This is ourselves under another name: it and all that is no better would send the mail back (§5.1).
                let reply = Reply::new(554, 4, 6, "mail loops back to this relay");
                let refusal = Refusal {
                    stage: Stage::Greeting,
                    reply,
                };
                failure.tries.push(Try {
                    host,
                    why: Why::Refused(refusal),
                });
                break;
            }
            let (first, rest) = addresses.split_at(addresses.len().min(ADDRESSES_OF_A_HOST));
            if let Some(connection) = self.try_each(next, first, &mut left, &mut failure).await {
                return Ok(connection);
            }
            more.push((next, rest.to_vec()));
        }
        for (next, addresses) in more {
            if let Some(connection) = self.try_each(next, &addresses, &mut left, &mut failure).await {
                return Ok(connection);
            }
        }
        Err(failure)
    }

    /// Connects to the first of a host's `addresses` that takes mail, as long as there are tries `left`.
    async fn try_each(
        &self,
        next: &NextHost,
        addresses: &[IpAddr],
        left: &mut usize,
        failure: &mut OpenFailure,
    ) -> Option<Connection<N::Stream>> {
        let host = next.place.to_string();
        for &address in addresses {
            if *left == 0 {
                failure.cut = true;
                return None;
            }
            *left -= 1;
            match self
                .open_one(next, &host, SocketAddr::new(address, next.port))
                .await
            {
                Ok(connection) => return Some(connection),
                Err(why) => failure.tries.push(Try {
                    host: host.clone(),
                    why,
                }),
            }
        }
        None
    }

    /// Whether a connection would end at a listener of this relay's, as far as can be known: behind a port that is mapped to
    /// ours only `own_addresses` tells.
    fn is_ourselves(&self, address: IpAddr, port: u16) -> bool {
        let listens = |listener: &Listener| {
            let own = listener.address;
            own.port() == port
                && (own.ip() == address || (own.ip().is_unspecified() && self.net.is_here(address)))
        };
        self.settings.delivery.own_addresses.contains(&address) || self.settings.listeners.iter().any(listens)
    }

    /// At least one.
    async fn addresses(&self, place: &HostPlace) -> Result<Vec<IpAddr>, Why> {
        let name = match place {
            HostPlace::Address(address) => return Ok(vec![*address]),
            HostPlace::Name(name) => name,
        };
        let patience = self.settings.delivery.timeouts.dns * 2;
        let all = match timeout(patience, self.net.addresses(name)).await {
            Ok(Ok(all)) => all,
            Ok(Err(error)) => return Err(Why::Failed(EnhancedCode(4, 4, 3), error.to_string())),
            Err(_) => return Err(Why::Failed(EnhancedCode(4, 4, 3), "DNS timed out".into())),
        };
        if all.is_empty() {
            return Err(Why::NoAddress);
        }
        let wanted = self.terms.family.order(all);
        if wanted.is_empty() {
            // Our own rule's doing, so nothing for good.
            let text = "no address of the family that address_family asks for";
            return Err(Why::Failed(EnhancedCode(4, 4, 4), text.into()));
        }
        Ok(wanted)
    }

    async fn open_one(
        &self,
        next: &NextHost,
        host: &str,
        to: SocketAddr,
    ) -> Result<Connection<N::Stream>, Why> {
        let (wish, connector) = match self.terms.tls {
            TlsLevel::Off => (TlsWish::Never, None),
            TlsLevel::Opportunistic => (TlsWish::IfOffered, Some(self.tls.unverified())),
            TlsLevel::Required => (TlsWish::Required, Some(self.tls.verified())),
        };
        match self.greet(next, host, to, wish, connector).await {
            // RFC 7435: better in clear than not at all, but never on the connection that failed.
            Err(Why::Handshake(cause)) if self.terms.tls == TlsLevel::Opportunistic => {
                tracing::info!(host, %to, cause, "TLS failed: once more in clear");
                self.greet(next, host, to, TlsWish::Never, None).await
            }
            greeted => greeted,
        }
    }

    async fn greet(
        &self,
        next: &NextHost,
        host: &str,
        to: SocketAddr,
        wish: TlsWish,
        connector: Option<TlsConnector>,
    ) -> Result<Connection<N::Stream>, Why> {
        let delivery = &self.settings.delivery;
        let unreachable =
            |cause: String| Why::Failed(EnhancedCode(4, 4, 1), format!("[{}]: {cause}", to.ip()));
        let connected = timeout(delivery.timeouts.connect, self.net.connect(delivery.source, to));
        let stream = match connected.await {
            Ok(Ok(stream)) => stream,
            Ok(Err(error)) => return Err(unreachable(error.to_string())),
            Err(_) => return Err(unreachable("no answer to the connection".into())),
        };
        let mut connection = Connection {
            wire: Wire::Clear(stream),
            reader: ReplyReader::default(),
            input: BytesMut::new(),
            offers: Extensions::default(),
            timeouts: delivery.timeouts.clone(),
            host: host.to_owned(),
            address: to,
            source: delivery.source,
            tls: String::new(),
            messages: 0,
            usable: true,
            stale: false,
        };
        let tls_name = next.tls_name.as_deref().unwrap_or(host);
        let encrypted = self.terms.implicit_tls;
        if encrypted && let Some(connector) = &connector {
            connection = connection.start_tls(connector, tls_name).await?;
        }
        let mut session = Hello::new(delivery.ehlo.clone(), wish, encrypted);
        if let Some(login) = &self.terms.login {
            session = session.with_login(self.login(login));
        }
        loop {
            let stage = session.stage();
            let lost = |cause: Broken| {
                let told = format!("{cause} at {}", stage.name());
                match stage {
                    // As good as a handshake that failed: whoever can't do TLS, or is kept from it, may take mail in clear.
                    Stage::StartTls => Why::Handshake(told),
                    _ => Why::Failed(EnhancedCode(4, 4, 2), told),
                }
            };
            let reply = connection.read_reply(stage).await.map_err(lost)?;
            let mut action;
            (session, action) = session.step(reply);
            if action == HelloAction::StartTls {
                let Some(connector) = &connector else {
                    return Err(Why::Handshake("not wanted".into()));
                };
                connection = connection.start_tls(connector, tls_name).await?;
                (session, action) = session.encrypted();
            }
            if let (HelloAction::Prove(task), Some(login)) = (&action, &self.terms.login) {
                let proof = scram::prove(task.clone(), login.password.clone()).await;
                let missing = || Why::Failed(EnhancedCode(4, 3, 0), "the proof was not computed".into());
                (session, action) = session.proven(&proof.ok_or_else(missing)?);
            }
            let speaks = matches!(action, HelloAction::Say(..) | HelloAction::SaySecret(_));
            match action {
                _ if speaks && connection.has_spoken() => return Err(lost(Broken::OutOfTurn)),
                HelloAction::Say(line, _) => connection.write(line.as_bytes()).await.map_err(lost)?,
                HelloAction::SaySecret(line) => connection.write(line.expose()).await.map_err(lost)?,
                HelloAction::Ready(offers) => {
                    connection.offers = offers;
                    return Ok(connection);
                }
                HelloAction::Failed(refusal) => {
                    connection.quit().await;
                    return Err(Why::Refused(refusal));
                }
                HelloAction::StartTls | HelloAction::Prove(_) => {
                    return Err(Why::Handshake("asked for twice".into()));
                }
            }
        }
    }

    fn login(&self, login: &Credentials) -> Login {
        Login {
            user: login.user.clone(),
            password: login.password.clone(),
            nonce: self.random.nonce(),
            only_encrypted: self.terms.tls != TlsLevel::Off,
        }
    }
}
