//! A small Internet on loopback: a name server, receiving mail servers that each behave in their own way, and the mailboxes
//! behind them. No root, no network, no configuration.
//!
//! ```no_run
//! # async fn example() -> Result<(), lab::LabError> {
//! let lab = lab::Lab::builder().start().await?;
//! println!("name server {}, mail servers on port {}", lab.dns, lab.smtp_port);
//! lab.stop().await;
//! # Ok(())
//! # }
//! ```
//!
//! The Internet's mail servers share a port number, so each host here has a loopback address of its own (Linux takes all of
//! 127.0.0.0/8 as local) with one port, free on all of them. [`Builder`] starts from the domains of [`Builder::new`]; tests
//! add their own.

use std::collections::HashSet;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use mail_core::{BadMailbox, Domain, Mailbox};
use tokio::net::TcpListener;
use tokio::task::JoinSet;

use script::{Peers, ScriptedHost};

pub mod behaviour;
pub mod ca;
pub mod dns;
mod http;
pub mod mailbox;
mod receiver;
pub mod script;
pub mod verdict;

pub use behaviour::{
    Accepts, Behaviour, BrokenTls, Busy, DropsAfterDot, Full, Greylists, Plain, SevenBit, Slow, Small,
    Unknown, Utf8, Visit,
};
pub use ca::{Ca, CaError, Issued};
pub use dns::{BadName, DnsServer, Zone};
pub use mailbox::{Delivery, Entry, Keep, Limits, Mailboxes};
pub use receiver::{MAX_MESSAGE_BYTES, Observer};
pub use script::{Played, Script};
pub use verdict::{DkimVerdict, DmarcVerdict, Outcome, SpfVerdict, Verdicts};

/// Where hosts get their addresses, one after the other; a net of its own, so that what else listens on 127.0.0.1 is not in
/// the way.
const FIRST_HOST: Ipv4Addr = Ipv4Addr::new(127, 77, 0, 1);
/// Hosts of one lab: those whose addresses fit into 127.77.0.0/16.
const MAX_HOSTS: usize = 65_000;
/// What `slow.test` takes over a message.
const SLOW: Duration = Duration::from_secs(3);
/// Transactions a second that `busy.test` takes.
const BUSY: u32 = 5;
/// Octets of a message that `small.test` takes.
const SMALL: u64 = 20 << 10;
/// Ports tried until one is free on the addresses of all hosts.
const PORT_TRIES: usize = 64;

/// The lab did not start.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say all")]
pub enum LabError {
    #[error("the lab's folder {}: {cause}", path.display())]
    Folder {
        path: PathBuf,
        #[source]
        cause: io::Error,
    },
    #[error(transparent)]
    Name(#[from] BadName),
    #[error("the lab has a domain {0} already")]
    Twice(Domain),
    #[error("no host {0} was named before domain {1}")]
    NoHost(Domain, Domain),
    #[error("a lab has at most {MAX_HOSTS} hosts")]
    TooManyHosts,
    #[error("postmaster of {0}: {1}")]
    Postmaster(Domain, #[source] BadMailbox),
    #[error(transparent)]
    Ca(#[from] CaError),
    #[error("the lab's name server on {0}: {1}")]
    Dns(SocketAddr, #[source] io::Error),
    #[error("the lab's HTTP door on {0}: {1}")]
    Http(SocketAddr, #[source] io::Error),
    #[error("asking the lab's name server: {0}")]
    Verifier(String),
    #[error("no port is free on {hosts} loopback addresses from {FIRST_HOST} on: {last}")]
    NoPort { hosts: usize, last: io::Error },
}

/// A receiving host as it runs.
#[derive(Clone, Debug)]
pub struct HostInfo {
    /// Its name, which has an A record.
    pub name: Domain,
    /// Where it listens, or would.
    pub address: SocketAddr,
    /// False: nothing listens there.
    pub is_up: bool,
}

struct HostPlan {
    name: Domain,
    role: Role,
    domains: HashSet<Domain>,
}

enum Role {
    Receives(Arc<dyn Behaviour>),
    Plays(Arc<Script>),
    /// Nothing listens.
    Dead,
}

impl HostPlan {
    fn new(name: Domain, role: Role) -> Self {
        Self {
            name,
            role,
            domains: HashSet::new(),
        }
    }
}

struct DomainPlan {
    name: Domain,
    /// In order of preference.
    hosts: Vec<Domain>,
}

/// What a lab is to be.
pub struct Builder {
    dir: Option<PathBuf>,
    sender: Domain,
    helo: Domain,
    hosts: Vec<HostPlan>,
    domains: Vec<DomainPlan>,
    null_mx: Vec<Domain>,
    texts: Vec<(String, String)>,
    keep: Keep,
    limits: Limits,
    verify: bool,
    observer: Option<Observer>,
    dns: SocketAddr,
    http: SocketAddr,
}

impl Builder {
    /// The lab as users meet it, sending from `sender`, which has mailboxes, and SPF and DMARC records that let this machine
    /// send for it; with the domains that docs/lab.md lists.
    pub fn new(sender: Domain) -> Self {
        let relay = domain(&format!("relay.{sender}"));
        // The sender's host comes first: see `bind`.
        Self::bare(sender.clone(), relay)
            .receiver(sender, Accepts)
            .receiver(domain("ok.test"), Accepts)
            .receiver(domain("second.test"), Accepts)
            .receiver(domain("greylist.test"), Greylists::default())
            .receiver(domain("reject.test"), Unknown(vec!["nobody".into()]))
            .dead(domain("dead.test"))
            .null_mx(domain("nullmx.test"))
            .receiver(domain("slow.test"), Slow(SLOW))
            .receiver(domain("full.test"), Full)
            .receiver(domain("busy.test"), Busy::above(BUSY))
            .receiver(domain("plain.test"), Plain)
            .receiver(domain("broken-tls.test"), BrokenTls)
            .receiver(domain("drop-after-dot.test"), DropsAfterDot::default())
            .receiver(domain("sevenbit.test"), SevenBit)
            .receiver(domain("small.test"), Small(SMALL))
            .receiver(domain("utf8.test"), Utf8)
    }

    /// A lab without any receiving domain. `helo` is what the relay under test calls itself.
    pub fn bare(sender: Domain, helo: Domain) -> Self {
        Self {
            dir: None,
            sender,
            helo,
            hosts: Vec::new(),
            domains: Vec::new(),
            null_mx: Vec::new(),
            texts: Vec::new(),
            keep: Keep::All,
            limits: Limits::default(),
            verify: true,
            observer: None,
            dns: ANYWHERE,
            http: ANYWHERE,
        }
    }

    /// Where files go: mailboxes and the CA's certificate. Without it a temporary folder, gone when the lab stops.
    pub fn dir(mut self, dir: &Path) -> Self {
        self.dir = Some(dir.to_owned());
        self
    }

    /// A domain with a receiving host of its own, `mx.DOMAIN`.
    pub fn receiver(self, name: Domain, behaviour: impl Behaviour) -> Self {
        let host = domain(&format!("mx.{name}"));
        self.host(host.clone(), behaviour).domain(name, &[host])
    }

    /// A domain whose MX host is an address on which nothing listens.
    pub fn dead(self, name: Domain) -> Self {
        let host = domain(&format!("mx.{name}"));
        self.dead_host(host.clone()).domain(name, &[host])
    }

    /// A domain that takes no mail, and says so with a null MX (RFC 7505).
    pub fn null_mx(mut self, name: Domain) -> Self {
        self.null_mx.push(name);
        self
    }

    /// A receiving host, for [`Builder::domain`].
    pub fn host(mut self, name: Domain, behaviour: impl Behaviour) -> Self {
        self.hosts
            .push(HostPlan::new(name, Role::Receives(Arc::new(behaviour))));
        self
    }

    /// A host that has an address and no listener.
    pub fn dead_host(mut self, name: Domain) -> Self {
        self.hosts.push(HostPlan::new(name, Role::Dead));
        self
    }

    /// A domain whose MX host plays a script. What is said to it is in [`Lab::played`] and at the HTTP door; mail is not kept.
    pub fn peer(mut self, name: Domain, script: Script) -> Self {
        let host = domain(&format!("mx.{name}"));
        self.hosts
            .push(HostPlan::new(host.clone(), Role::Plays(Arc::new(script))));
        self.domain(name, &[host])
    }

    /// A domain whose mail these hosts take, the preferred one first; many domains may share hosts.
    pub fn domain(mut self, name: Domain, hosts: &[Domain]) -> Self {
        self.domains.push(DomainPlan {
            name,
            hosts: hosts.to_vec(),
        });
        self
    }

    /// A TXT record of any length, such as a DKIM key's.
    pub fn txt(mut self, name: impl Into<String>, text: impl Into<String>) -> Self {
        self.texts.push((name.into(), text.into()));
        self
    }

    /// What is kept of messages; by default all.
    pub fn keep(mut self, keep: Keep) -> Self {
        self.keep = keep;
        self
    }

    /// How much is kept.
    pub fn limits(mut self, limits: Limits) -> Self {
        self.limits = limits;
        self
    }

    /// Whether receivers check SPF, DKIM and DMARC, as they do by default. It costs more than all the rest.
    pub fn verify(mut self, verify: bool) -> Self {
        self.verify = verify;
        self
    }

    /// Is called with every message once it is kept and before its 250, on a thread that may block.
    pub fn observe(mut self, observer: impl Fn(&Delivery) + Send + Sync + 'static) -> Self {
        self.observer = Some(Arc::new(observer));
        self
    }

    /// Where the name server listens; by default a free port of 127.0.0.1.
    pub fn dns(mut self, address: SocketAddr) -> Self {
        self.dns = address;
        self
    }

    /// Where the HTTP door listens, a loopback address; by default a free port of 127.0.0.1.
    pub fn http(mut self, address: SocketAddr) -> Self {
        self.http = address;
        self
    }

    /// Starts everything, on the runtime that this is called in. When it returns, all sockets are open.
    pub async fn start(mut self) -> Result<Lab, LabError> {
        let mut names = HashSet::new();
        let mut all = self.domains.iter().map(|plan| &plan.name).chain(&self.null_mx);
        if let Some(twice) = all.find(|name| !names.insert(*name)) {
            return Err(LabError::Twice(twice.clone()));
        }
        let folder = Folder::open(self.dir.take())?;
        let in_folder = |error| unusable(&folder.path, error);
        let mailboxes =
            Mailboxes::open(&folder.path.join("mailboxes"), self.keep, self.limits).map_err(in_folder)?;
        let mailboxes = Arc::new(mailboxes);
        let ca = Ca::create(&folder.path.join("ca.pem"))?;

        let bound = bind(&self.hosts).await?;
        let zone = self.publish(&bound)?;
        let dns = dns::DnsServer::start(self.dns, zone.clone())
            .await
            .map_err(|error| LabError::Dns(self.dns, error))?;
        let peers = Arc::new(Peers::default());
        let http = http::HttpDoor::start(self.http, Arc::clone(&mailboxes), Arc::clone(&peers))
            .await
            .map_err(|error| LabError::Http(self.http, error))?;

        let verifier = match self.verify {
            true => Some(
                verdict::Verifier::new(dns.address).map_err(|error| LabError::Verifier(error.to_string()))?,
            ),
            false => None,
        };
        let shared = Arc::new(receiver::Shared::new(
            Arc::clone(&mailboxes),
            verifier,
            self.observer.take(),
        ));
        let mut receivers = JoinSet::new();
        let mut hosts = Vec::with_capacity(bound.hosts.len());
        for (plan, (address, listener)) in self.hosts.into_iter().zip(bound.hosts) {
            hosts.push(HostInfo {
                name: plan.name.clone(),
                address: SocketAddr::new(address, bound.port),
                is_up: listener.is_some(),
            });
            let Some(listener) = listener else { continue };
            let behaviour = match plan.role {
                Role::Receives(behaviour) => behaviour,
                Role::Plays(script) => {
                    let host = ScriptedHost {
                        tls: ca.issue(&[plan.name.as_str()])?.server_config().into(),
                        name: plan.name,
                        script,
                        peers: Arc::clone(&peers),
                        connections: AtomicU64::new(0),
                    };
                    receivers.spawn(Arc::new(host).run(listener));
                    continue;
                }
                Role::Dead => continue,
            };
            let postmaster = Mailbox::new(
                "postmaster",
                plan.domains.iter().min().unwrap_or(&plan.name).clone(),
            )
            .map_err(|error| LabError::Postmaster(plan.name.clone(), error))?;
            let tls = ca.issue(&[plan.name.as_str()])?.server_config();
            let host = receiver::Host::new(
                &plan.name,
                postmaster,
                plan.domains,
                behaviour,
                tls,
                Arc::clone(&shared),
            );
            receivers.spawn(Arc::new(host).run(listener));
        }
        Ok(Lab {
            dns: dns.address,
            http: http.address,
            smtp_port: bound.port,
            hosts,
            ca,
            mailboxes,
            zone,
            peers,
            dns_server: dns,
            _http: http,
            receivers,
            folder,
        })
    }

    /// Fills the zone, and tells each host its domains.
    fn publish(&mut self, bound: &Bound) -> Result<Zone, LabError> {
        let zone = Zone::default();
        for (host, (address, _)) in self.hosts.iter().zip(&bound.hosts) {
            zone.address(host.name.as_str(), *address)?;
        }
        for DomainPlan { name, hosts } in &self.domains {
            for (number, host_name) in hosts.iter().enumerate() {
                let host = self.hosts.iter_mut().find(|host| host.name == *host_name);
                let host = host.ok_or_else(|| LabError::NoHost(host_name.clone(), name.clone()))?;
                host.domains.insert(name.clone());
                let preference = u16::try_from((number + 1) * 10).unwrap_or(u16::MAX);
                zone.mx(name.as_str(), preference, host_name.as_str())?;
            }
        }
        for name in &self.null_mx {
            zone.mx(name.as_str(), 0, ".")?;
        }
        for name in [&self.sender, &self.helo] {
            zone.txt(name.as_str(), "v=spf1 ip4:127.0.0.0/8 -all")?;
        }
        zone.address(self.helo.as_str(), Ipv4Addr::LOCALHOST.into())?;
        zone.txt(&format!("_dmarc.{}", self.sender), "v=DMARC1; p=reject")?;
        for (name, text) in &self.texts {
            zone.txt(name, text)?;
        }
        Ok(zone)
    }
}

const ANYWHERE: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 0);

/// For names made of literals and of domains.
fn domain(text: &str) -> Domain {
    // A host below a domain of nearly 255 octets has no name; the domain's own serves then.
    let parent = || text.split_once('.').map(|(_, parent)| domain(parent));
    text.parse()
        .ok()
        .or_else(parent)
        .expect("the last label of a domain is a domain")
}

/// The lab's folder, removed with it where it is temporary.
struct Folder {
    path: PathBuf,
    _temporary: Option<tempfile::TempDir>,
}

impl Folder {
    fn open(dir: Option<PathBuf>) -> Result<Self, LabError> {
        match dir {
            Some(path) => {
                std::fs::create_dir_all(&path).map_err(|error| unusable(&path, error))?;
                Ok(Self {
                    path,
                    _temporary: None,
                })
            }
            None => {
                let temporary = tempfile::Builder::new().prefix("postrider-lab-").tempdir();
                let temporary = temporary.map_err(|error| unusable(&std::env::temp_dir(), error))?;
                Ok(Self {
                    path: temporary.path().to_owned(),
                    _temporary: Some(temporary),
                })
            }
        }
    }
}

fn unusable(path: &Path, cause: io::Error) -> LabError {
    LabError::Folder {
        path: path.to_owned(),
        cause,
    }
}

struct Bound {
    port: u16,
    hosts: Vec<(IpAddr, Option<TcpListener>)>,
}

/// Gives each host an address, and listens on all of them on one port.
///
/// The first host that is up takes the port on its address for as long as the lab lives, so two labs of one machine that
/// begin alike never share a port, and a dead host of one is not by chance a living one of the other.
async fn bind(hosts: &[HostPlan]) -> Result<Bound, LabError> {
    if hosts.len() > MAX_HOSTS {
        return Err(LabError::TooManyHosts);
    }
    let mut last = io::Error::from(io::ErrorKind::AddrInUse);
    for _ in 0..PORT_TRIES {
        match try_bind(hosts).await {
            Ok(bound) => return Ok(bound),
            Err(error) => last = error,
        }
    }
    Err(LabError::NoPort {
        hosts: hosts.len(),
        last,
    })
}

async fn try_bind(hosts: &[HostPlan]) -> io::Result<Bound> {
    let mut bound = Bound {
        port: 0,
        hosts: Vec::with_capacity(hosts.len()),
    };
    for (address, host) in (u32::from(FIRST_HOST)..).zip(hosts) {
        let address = IpAddr::V4(address.into());
        let listener = match &host.role {
            Role::Dead => None,
            Role::Receives(_) | Role::Plays(_) => {
                let listener = TcpListener::bind((address, bound.port)).await?;
                bound.port = listener.local_addr()?.port();
                Some(listener)
            }
        };
        bound.hosts.push((address, listener));
    }
    Ok(bound)
}

/// A running lab. Dropped, it stops at once; [`Lab::stop`] also waits for the name server.
pub struct Lab {
    /// The name server, UDP and TCP.
    pub dns: SocketAddr,
    /// The HTTP door.
    pub http: SocketAddr,
    /// Where the hosts listen, each on its address; 0 where there are none.
    pub smtp_port: u16,
    /// In the order they were named.
    pub hosts: Vec<HostInfo>,
    /// Issued the hosts' certificates, and makes more.
    pub ca: Ca,
    /// What came in.
    pub mailboxes: Arc<Mailboxes>,
    /// The name server's records; they can be changed while it runs.
    pub zone: Zone,
    peers: Arc<Peers>,
    dns_server: dns::DnsServer,
    _http: http::HttpDoor,
    receivers: JoinSet<()>,
    folder: Folder,
}

impl Lab {
    /// The lab as users meet it, with `sender.test` as the domain that sends: see [`Builder::new`].
    pub fn builder() -> Builder {
        Builder::new(domain("sender.test"))
    }

    /// The folder of its files.
    pub fn dir(&self) -> &Path {
        &self.folder.path
    }

    /// The latest conversations with scripted peers, in the order in which they ended.
    pub fn played(&self) -> Vec<Played> {
        self.peers.all()
    }

    /// Closes every socket. A temporary folder is removed.
    pub async fn stop(mut self) {
        self.receivers.shutdown().await;
        self.dns_server.stop().await;
    }
}
