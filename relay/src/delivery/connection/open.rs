//! From hosts to be tried to a connection that is ready for mail.

use std::collections::BTreeSet;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use bytes::BytesMut;
use mail_core::smtp::client::{Extensions, Hello, HelloAction, Login, Refusal, Stage, TlsWish};
use mail_core::smtp::reply_reader::ReplyReader;
use mail_core::{Domain, EnhancedCode, Reply, Timestamp};
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

use super::answers::{Answers, SHORT, Turn, Way};
use super::proxy::{self, Refused};
use super::{Broken, Connection, Wire};
use crate::config::Settings;
use crate::config::egress::{Proxy, Source};
use crate::config::settings::{AddressFamily, Listener, TlsLevel};
use crate::config::smart_hosts::Credentials;
use crate::delivery::client_tls::ClientTls;
use crate::delivery::known::Known;
use crate::delivery::scram;
use crate::report::Cause;
use crate::world::{Clock, ConnectError, LocalEnd, Net, Random};

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
    /// What is sent from; `None`: whatever `delivery.source` says.
    pub source: Option<Arc<Source>>,
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
            source: None,
        }
    }
}

/// Why no host could be spoken to.
#[derive(Debug)]
pub struct OpenFailure {
    tries: Vec<Try>,
    chosen: bool,
    /// Some host was not asked: there were too many, or they took too long.
    cut: bool,
    /// The host that is being tried.
    trying: String,
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
    /// What we send from could not be had, or its proxy does not serve us: nothing is said of the host.
    Source(SourceFailure),
}

/// See [`Why::Source`].
#[derive(Debug)]
pub(super) struct SourceFailure {
    /// What it says of the source, the source's name included.
    pub(super) cause: String,
    /// Other hosts would fare alike, and trying each would cost its time.
    pub(super) for_all: bool,
    /// Nothing that is sent from it would fare otherwise, whatever the site.
    pub(super) whole: bool,
}

impl OpenFailure {
    /// Nothing more is to be tried.
    fn ends(&self) -> bool {
        let last = self.tries.last().map(|tried| &tried.why);
        matches!(last, Some(Why::Source(failure)) if failure.for_all)
    }

    /// Whether it was the source that failed: then nothing is said of the hosts, which may be reached from another one.
    pub fn of_source(&self) -> bool {
        let by_source = |tried: &Try| matches!(tried.why, Why::Source(_));
        let for_all = |tried: &Try| matches!(&tried.why, Why::Source(failure) if failure.for_all);
        !self.tries.is_empty() && (self.tries.iter().all(by_source) || self.tries.iter().any(for_all))
    }

    /// Whether the source failed as a whole, so that nothing is to be sent from it for a while.
    pub fn is_sources_end(&self) -> bool {
        let is_whole = |tried: &Try| matches!(&tried.why, Why::Source(failure) if failure.whole);
        self.tries.last().is_some_and(is_whole)
    }

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

impl OpenFailure {
    /// The last host that told us to go away, what it said, and when in the conversation.
    pub fn refusal(&self) -> Option<(&str, &Refusal)> {
        let refusal = |tried: &'_ Try| matches!(tried.why, Why::Refused(_));
        let tried = self.tries.iter().rev().find(|tried| refusal(tried))?;
        match &tried.why {
            Why::Refused(refusal) => Some((&tried.host, refusal)),
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
                Why::Source(failure) => write!(f, "4.4.0 {}", failure.cause),
            },
        }
    }
}

/// As [`ConnectError`], or nobody answered in time.
enum NotConnected {
    Ours(String),
    Theirs(String),
}

fn unreachable(to: SocketAddr, cause: &str) -> Why {
    Why::Failed(EnhancedCode(4, 4, 1), format!("[{}]: {cause}", to.ip()))
}

/// What opening takes.
pub struct Opener<'a, N> {
    /// The network.
    pub net: &'a N,
    /// The configuration.
    pub settings: &'a Settings,
    /// TLS towards next hops.
    pub tls: &'a ClientTls,
    /// Time.
    pub clock: Clock,
    /// Which hosts answer.
    pub answers: &'a Answers,
    /// What the DNS knew lately.
    pub known: &'a Known,
    /// For nonces.
    pub random: &'a Random,
    /// Of all the hosts.
    pub terms: &'a Terms,
}

impl<N: Net> Opener<'_, N> {
    /// Connects to the first of `hosts`, in their order, that takes mail. All tries together take no longer than a transaction may:
    /// each reply of each address may take minutes, and a unit waits for it meanwhile.
    pub async fn open(&self, hosts: &[NextHost]) -> Result<Connection<N::Stream>, OpenFailure> {
        let mut failure = OpenFailure {
            tries: Vec::new(),
            chosen: self.terms.chosen,
            cut: false,
            trying: String::new(),
        };
        let patience = self.settings.delivery.timeouts.transaction;
        match timeout(patience, self.open_any(hosts, &mut failure)).await {
            Ok(Some(connection)) => return Ok(connection),
            Ok(None) => {}
            Err(_) => {
                failure.cut = true;
                let why = Why::Failed(EnhancedCode(4, 4, 2), "no host was ready for mail in time".into());
                let host = std::mem::take(&mut failure.trying);
                failure.tries.push(Try { host, why });
            }
        }
        Err(failure)
    }

    async fn open_any(&self, hosts: &[NextHost], failure: &mut OpenFailure) -> Option<Connection<N::Stream>> {
        let mut left = MAX_ADDRESSES;
        // Of hosts with many addresses those that were not tried at first: nobody has refused for good who was not asked.
        let mut more = Vec::new();
        // Those that did not answer lately.
        let mut silent = Vec::new();
        for next in hosts {
            let host = next.place.to_string();
            failure.trying.clone_from(&host);
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
            let now = self.clock.now();
            let turn = |&address: &IpAddr| (address, self.answers.turn(&self.way(next, address), now));
            let (last, addresses): (Vec<_>, Vec<_>) = addresses
                .iter()
                .map(turn)
                .partition(|(_, turn)| *turn == Turn::Last);
            let others_work = self.others_work(hosts, next, now);
            silent.push((next, last));
            let (first, rest) = addresses.split_at(addresses.len().min(ADDRESSES_OF_A_HOST));
            if let Some(connection) = self.try_each(next, first, others_work, &mut left, failure).await {
                return Some(connection);
            }
            if failure.ends() {
                return None;
            }
            more.push((next, rest.to_vec()));
        }
        for (next, addresses) in more.into_iter().chain(silent) {
            let others_work = self.others_work(hosts, next, self.clock.now());
            if let Some(connection) = self
                .try_each(next, &addresses, others_work, &mut left, failure)
                .await
            {
                return Some(connection);
            }
            if failure.ends() {
                break;
            }
        }
        None
    }

    /// Connects to the first of a host's `addresses` that takes mail, as long as there are tries `left`.
    async fn try_each(
        &self,
        next: &NextHost,
        addresses: &[(IpAddr, Turn)],
        others_work: bool,
        left: &mut usize,
        failure: &mut OpenFailure,
    ) -> Option<Connection<N::Stream>> {
        let host = next.place.to_string();
        failure.trying.clone_from(&host);
        let usual = self.settings.delivery.timeouts.connect;
        for &(address, turn) in addresses {
            if *left == 0 {
                failure.cut = true;
                return None;
            }
            *left -= 1;
            let patience = match turn {
                Turn::Again | Turn::Last if others_work => usual.min(SHORT),
                _ => usual,
            };
            match self
                .open_one(next, &host, SocketAddr::new(address, next.port), patience)
                .await
            {
                Ok(connection) => {
                    self.answers.works(&host, self.clock.now());
                    return Some(connection);
                }
                Err(why) => failure.tries.push(Try {
                    host: host.clone(),
                    why,
                }),
            }
            if failure.ends() {
                return None;
            }
        }
        None
    }

    /// From where a connection to a host's address is made, and to where.
    fn way(&self, next: &NextHost, address: IpAddr) -> Way {
        let source = self.terms.source.as_ref().map(|source| source.name.clone());
        (source, SocketAddr::new(address, next.port))
    }

    /// Whether a host other than this one took a connection lately.
    fn others_work(&self, hosts: &[NextHost], but: &NextHost, now: Timestamp) -> bool {
        let mut others = hosts.iter().filter(|host| host.place != but.place);
        others.any(|host| self.answers.worked(&host.place.to_string(), now))
    }

    /// Whether a connection would end at a listener of this relay's, as far as can be known: behind a port that is mapped to
    /// ours only `own_addresses` tells. An address that we send from leads to listeners on all addresses, though address
    /// translation may keep it from being this machine's; at other ports there may be another mail server on the same address.
    fn is_ourselves(&self, address: IpAddr, port: u16) -> bool {
        let delivery = &self.settings.delivery;
        let is_source = || {
            let mut sources = delivery.egress.sources.iter();
            sources.any(|source| source.addresses.contains(&address))
        };
        let listens = |listener: &Listener| {
            let own = listener.address;
            let anywhere = || own.ip().is_unspecified() && (self.net.is_here(address) || is_source());
            own.port() == port && (own.ip() == address || anywhere())
        };
        delivery.own_addresses.contains(&address) || self.settings.listeners.iter().any(listens)
    }

    /// At least one.
    async fn addresses(&self, place: &HostPlace) -> Result<Vec<IpAddr>, Why> {
        let name = match place {
            HostPlace::Address(address) => return self.within_reach(vec![*address]),
            HostPlace::Name(name) => name,
        };
        let patience = self.settings.delivery.timeouts.dns * 2;
        let all = match timeout(patience, self.net.addresses(name)).await {
            Ok(Ok(all)) => all,
            Ok(Err(error)) => return Err(Why::Failed(EnhancedCode(4, 4, 3), error.to_string())),
            Err(_) => return Err(Why::Failed(EnhancedCode(4, 4, 3), "DNS timed out".into())),
        };
        let now = self.clock.now();
        if all.is_empty() {
            if self.known.has_no_address(name, now) {
                return Err(Why::NoAddress);
            }
            let text = "no address, though it had one a short time ago";
            return Err(Why::Failed(EnhancedCode(4, 4, 3), text.into()));
        }
        self.known.has_address(name, now);
        let wanted = self.terms.family.order(all);
        if wanted.is_empty() {
            // Our own rule's doing, so nothing for good.
            let text = "no address of the family that address_family asks for";
            return Err(Why::Failed(EnhancedCode(4, 4, 4), text.into()));
        }
        self.within_reach(wanted)
    }

    /// Those that the source can get to.
    fn within_reach(&self, mut addresses: Vec<IpAddr>) -> Result<Vec<IpAddr>, Why> {
        if let Some(source) = &self.terms.source {
            addresses.retain(|address| source.reaches(*address));
            if addresses.is_empty() {
                let text = format!("no address of a family that the source {} has", source.name);
                return Err(Why::Failed(EnhancedCode(4, 4, 4), text));
            }
        }
        Ok(addresses)
    }

    async fn open_one(
        &self,
        next: &NextHost,
        host: &str,
        to: SocketAddr,
        patience: Duration,
    ) -> Result<Connection<N::Stream>, Why> {
        let (wish, connector) = match self.terms.tls {
            TlsLevel::Off => (TlsWish::Never, None),
            TlsLevel::Opportunistic => (TlsWish::IfOffered, Some(self.tls.unverified())),
            TlsLevel::Required => (TlsWish::Required, Some(self.tls.verified())),
        };
        match self.greet(next, host, to, patience, (wish, connector)).await {
            // RFC 7435: better in clear than not at all, but never on the connection that failed.
            Err(Why::Handshake(cause)) if self.terms.tls == TlsLevel::Opportunistic => {
                tracing::info!(host, %to, cause, "TLS failed: once more in clear");
                self.greet(next, host, to, patience, (TlsWish::Never, None)).await
            }
            greeted => greeted,
        }
    }

    /// Connects from the source, by its proxy where it has one.
    async fn connect(&self, to: SocketAddr, patience: Duration) -> Result<N::Stream, Why> {
        let mut from = self.local_end(to.ip());
        let Some(proxy) = self.proxy() else {
            return match self.connect_from(from, to, patience).await {
                Ok(stream) => Ok(stream),
                Err(NotConnected::Ours(cause)) => {
                    Err(self.source_failed(&cause, true, self.has_one_address()))
                }
                Err(NotConnected::Theirs(cause)) => Err(unreachable(to, &cause)),
            };
        };
        // The address is the proxy's.
        let address = from.address.take();
        let failed = |cause: &str, for_all, whole| {
            let cause = format!("{proxy}: {cause}");
            self.source_failed(&cause, for_all, whole)
        };
        let stream = self.connect_to_proxy(proxy, from).await;
        let mut stream = stream.map_err(|cause| failed(&cause, true, true))?;
        // Of two addresses the proxy may have lost the one that this target is spoken to from.
        let whole = self.has_one_address() || !proxy.bind;
        match proxy::ask(&mut stream, proxy, address, to, patience).await {
            Ok(()) => Ok(stream),
            Err(Refused::Proxy(cause)) => Err(failed(&cause, true, whole)),
            Err(Refused::Midway(cause)) => Err(failed(&cause, true, false)),
            Err(Refused::Request(cause)) => Err(failed(&format!("{cause} ([{}])", to.ip()), false, false)),
            Err(Refused::Target(cause)) => Err(unreachable(to, &format!("{cause}, says {proxy}"))),
        }
    }

    fn local_end(&self, to: IpAddr) -> LocalEnd<'_> {
        match &self.terms.source {
            None => LocalEnd {
                address: self.settings.delivery.source,
                interface: None,
            },
            Some(source) => LocalEnd {
                address: source.address_for(to),
                interface: source.interface.as_deref(),
            },
        }
    }

    /// What fails by one address of two leaves the other.
    fn has_one_address(&self) -> bool {
        let source = self.terms.source.as_ref();
        source.is_none_or(|source| source.addresses.len() < 2)
    }

    fn source_failed(&self, cause: &str, for_all: bool, whole: bool) -> Why {
        let of = match (&self.terms.source, self.settings.delivery.source) {
            (Some(source), _) => format!("source {}", source.name),
            (None, Some(_)) => "delivery.source".to_owned(),
            (None, None) => "our own end".to_owned(),
        };
        let cause = format!("{of}: {cause}");
        Why::Source(SourceFailure {
            cause,
            for_all,
            whole,
        })
    }

    async fn connect_from(
        &self,
        from: LocalEnd<'_>,
        to: SocketAddr,
        patience: Duration,
    ) -> Result<N::Stream, NotConnected> {
        match timeout(patience, self.net.connect(from, to)).await {
            Ok(Ok(stream)) => Ok(stream),
            Ok(Err(ConnectError::Theirs(error))) => Err(NotConnected::Theirs(error.to_string())),
            Ok(Err(ConnectError::Ours(error))) => {
                let address = from.address.map(|address| format!("[{address}]: "));
                Err(NotConnected::Ours(format!(
                    "{}{error}",
                    address.unwrap_or_default()
                )))
            }
            Err(_) => Err(NotConnected::Theirs("no answer to the connection".into())),
        }
    }

    /// To the first of its addresses that answers. Whatever fails is the source's failure.
    async fn connect_to_proxy(&self, proxy: &Proxy, from: LocalEnd<'_>) -> Result<N::Stream, String> {
        let addresses = match &proxy.place {
            Err(address) => vec![*address],
            Ok(name) => {
                let patience = self.settings.delivery.timeouts.dns * 2;
                match timeout(patience, self.net.addresses(name)).await {
                    Ok(Ok(all)) => all,
                    Ok(Err(error)) => return Err(error.to_string()),
                    Err(_) => return Err("DNS timed out".into()),
                }
            }
        };
        let patience = self.settings.delivery.timeouts.connect;
        let mut why = "it has no address".to_owned();
        for address in addresses.into_iter().take(ADDRESSES_OF_A_HOST) {
            match self
                .connect_from(from, SocketAddr::new(address, proxy.port), patience)
                .await
            {
                Ok(stream) => return Ok(stream),
                Err(NotConnected::Ours(cause) | NotConnected::Theirs(cause)) => why = cause,
            }
        }
        Err(why)
    }

    /// For the journal: the source's name, or the address where it has none.
    pub fn source_name(&self) -> String {
        match (&self.terms.source, self.settings.delivery.source) {
            (Some(source), _) => source.name.to_string(),
            (None, Some(address)) => address.to_string(),
            (None, None) => String::new(),
        }
    }

    fn proxy(&self) -> Option<&Proxy> {
        self.terms.source.as_ref()?.proxy.as_ref()
    }

    fn ehlo(&self) -> &Domain {
        let of_source = self.terms.source.as_ref().and_then(|source| source.ehlo.as_ref());
        of_source.unwrap_or(&self.settings.delivery.ehlo)
    }

    async fn greet(
        &self,
        next: &NextHost,
        host: &str,
        to: SocketAddr,
        patience: Duration,
        (wish, connector): (TlsWish, Option<TlsConnector>),
    ) -> Result<Connection<N::Stream>, Why> {
        let delivery = &self.settings.delivery;
        let (way, begun) = (self.way(next, to.ip()), self.clock.now());
        let is_silent = || self.answers.is_silent(&way, begun, self.clock.now());
        let stream = match self.connect(to, patience).await {
            Ok(stream) => stream,
            Err(why) => {
                // What fails at our own end says nothing of the host.
                if matches!(why, Why::Failed(..)) {
                    is_silent();
                }
                return Err(why);
            }
        };
        let mut connection = Connection {
            wire: Wire::Clear(stream),
            reader: ReplyReader::default(),
            input: BytesMut::new(),
            offers: Extensions::default(),
            timeouts: delivery.timeouts.clone(),
            host: host.to_owned(),
            address: to,
            source: self.source_name(),
            tls: String::new(),
            messages: 0,
            domains: BTreeSet::new(),
            left: false,
            usable: true,
            stale: false,
        };
        let tls_name = next.tls_name.as_deref().unwrap_or(host);
        let encrypted = self.terms.implicit_tls;
        if encrypted && let Some(connector) = &connector {
            connection = connection.start_tls(connector, tls_name).await?;
        }
        let mut session = Hello::new(self.ehlo().clone(), wish, encrypted);
        if let Some(login) = &self.terms.login {
            session = session.with_login(self.login(login));
        }
        loop {
            let stage = session.stage();
            let lost = |cause: Broken| {
                let mut told = format!("{cause} at {}", stage.name());
                if let (Stage::Greeting, Some(proxy)) = (stage, self.proxy()) {
                    // A PROXY header has no answer: that it was not followed is seen here alone.
                    told.push_str(&format!(" through {proxy}"));
                }
                match stage {
                    // As good as a handshake that failed: whoever can't do TLS, or is kept from it, may take mail in clear.
                    Stage::StartTls => Why::Handshake(told),
                    _ => Why::Failed(EnhancedCode(4, 4, 2), told),
                }
            };
            let reply = match connection.read_reply(stage).await {
                Ok(reply) => reply,
                Err(broken) => {
                    if stage == Stage::Greeting {
                        is_silent();
                    }
                    return Err(lost(broken));
                }
            };
            if stage == Stage::Greeting {
                self.answers.answers(&way);
            }
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
