//! A small Internet of scripted peers on a virtual clock, and a relay's delivery side in it.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use dkim_signer::Signer;
use lab::Script;
use lab::ca::Ca;
use lab::script::{Ending, Record, play};
use mail_core::{Domain, Timestamp};
use queue::store::MemoryStore;
use queue::{NewMessage, Queue};
use relay::config;
use relay::delivery::client_tls::ClientTls;
use relay::delivery::courier::{self, Parts};
use relay::delivery::exchange;
use relay::delivery::metrics::Metrics;
use relay::metrics::Registry;
use relay::prepare::{self, Preparer};
use relay::routing::Routing;
use relay::world::{Clock, ConnectError, DnsError, LocalEnd, MxAnswer, MxHost, Net, Random};
use tokio::io::{DuplexStream, duplex};
use tokio::sync::watch;
use tokio::task::{LocalSet, spawn_local};
use tokio::time::sleep;
use tokio_rustls::TlsAcceptor;

/// When a life begins.
pub const START: Timestamp = Timestamp(1_700_000_000_000);

/// A domain's MX hosts in order of preference, and those of the domains below it; nothing listens where there is no script. Other
/// domains take no mail.
pub type Hosts = Vec<Option<Script>>;

/// What came of it.
pub struct Life {
    pub queue: Queue,
    /// By domain, conversations in the order of their ends.
    pub played: BTreeMap<String, Vec<(Ending, Record)>>,
    /// By domain, to each of its hosts.
    pub connections: BTreeMap<String, Vec<u64>>,
}

/// Delivers one message to these peers, on one shard, for so long.
pub fn live(domains: &[(&str, Hosts)], more_config: &str, message: Arc<NewMessage>, span: Duration) -> Life {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .unwrap();
    let dir = tempfile::tempdir().unwrap();
    let ca = Ca::create(&dir.path().join("ca.pem")).unwrap();
    let each = |hosts: &Hosts| vec![0; hosts.len()];
    let world = Rc::new(World {
        domains: domains
            .iter()
            .map(|(name, hosts)| (name.parse().unwrap(), hosts.clone()))
            .collect(),
        tls: ca.issue(&["mx0.to.test"]).unwrap().server_config().into(),
        connections: RefCell::new(
            domains
                .iter()
                .map(|(name, hosts)| ((*name).to_owned(), each(hosts)))
                .collect(),
        ),
        played: RefCell::default(),
    });
    let path = dir.path().join("postrider.toml");
    let text = format!(
        "hostname = \"relay.test\"\n[store]\npath = \"q\"\nexpire_after = \"1d\"\n[tenants.t]\nsenders = [\"*\"]\n\
         [[listener]]\nkind = \"trusted\"\naddress = \"127.0.0.1:0\"\nnetworks = [\"127.0.0.1/32\"]\ntenant = \"t\"\n\
         {more_config}"
    );
    std::fs::write(&path, text).unwrap();
    let settings = Arc::new(config::load(&path).unwrap_or_else(|mistakes| panic!("{mistakes}")));
    let queue = Queue::in_memory(MemoryStore::new()).unwrap();
    let (net, of_courier) = (ScriptedNet(world.clone()), queue.clone());
    LocalSet::new().block_on(&runtime, async move {
        let registry = Registry::new();
        let preparer = Preparer::inline(
            of_courier.clone(),
            Arc::new(Signer::default()),
            prepare::Metrics::new(&registry).unwrap(),
        );
        let (doors, mut seats) = exchange::open(1);
        let (stop, stopped) = watch::channel(false);
        let routing = Arc::new(Routing::open(settings.clone(), &of_courier).unwrap());
        let parts = Parts {
            net,
            preparer,
            tls: Arc::new(ClientTls::new(None).unwrap()),
            metrics: Metrics::new(&registry).unwrap(),
            rates: Arc::default(),
            clock: Clock::anchored(START),
            random: Random::seeded(7),
            queue: of_courier.clone(),
            settings,
            routing,
        };
        let running = spawn_local(courier::run(parts, seats.pop().unwrap(), stopped));
        let kept = of_courier.accept(message).await.unwrap();
        doors.tell(&kept.units, None).await;
        sleep(span).await;
        stop.send(true).unwrap();
        running.await.unwrap();
        // Peers that have been hung up on see it.
        sleep(Duration::from_secs(1)).await;
    });
    let played = world.played.borrow().clone();
    let connections = world.connections.borrow().clone();
    Life {
        queue,
        played,
        connections,
    }
}

#[derive(Clone)]
struct ScriptedNet(Rc<World>);

/// The host `mxN.DOMAIN` has the address 10.0.D.N, D and N counted from 0.
struct World {
    domains: Vec<(Domain, Hosts)>,
    tls: TlsAcceptor,
    connections: RefCell<BTreeMap<String, Vec<u64>>>,
    played: RefCell<BTreeMap<String, Vec<(Ending, Record)>>>,
}

impl Net for ScriptedNet {
    type Stream = DuplexStream;

    async fn mx(&self, domain: &Domain) -> Result<MxAnswer, DnsError> {
        let is_its = |(name, _): &&(Domain, Hosts)| {
            let above = domain.as_str().strip_suffix(name.as_str());
            above.is_some_and(|above| above.is_empty() || above.ends_with('.'))
        };
        let Some((name, hosts)) = self.0.domains.iter().find(is_its) else {
            return Ok(MxAnswer::Null);
        };
        let host = |number: usize| MxHost {
            preference: u16::try_from(number).unwrap(),
            host: format!("mx{number}.{name}").parse().unwrap(),
        };
        Ok(MxAnswer::Hosts((0..hosts.len()).map(host).collect()))
    }

    async fn addresses(&self, host: &Domain) -> Result<Vec<IpAddr>, DnsError> {
        let (number, domain) = host.as_str().strip_prefix("mx").unwrap().split_once('.').unwrap();
        let domain = self
            .0
            .domains
            .iter()
            .position(|(name, _)| name.as_str() == domain);
        let address = Ipv4Addr::new(
            10,
            0,
            u8::try_from(domain.unwrap()).unwrap(),
            number.parse().unwrap(),
        );
        Ok(vec![address.into()])
    }

    async fn connect(&self, _: LocalEnd<'_>, to: SocketAddr) -> Result<DuplexStream, ConnectError> {
        let IpAddr::V4(address) = to.ip() else {
            return Err(io::ErrorKind::AddrNotAvailable.into());
        };
        let [.., domain, host] = address.octets().map(usize::from);
        let (name, hosts) = &self.0.domains[domain];
        let number = {
            let mut connections = self.0.connections.borrow_mut();
            let count = &mut connections.get_mut(name.as_str()).unwrap()[host];
            *count += 1;
            *count
        };
        if hosts[host].is_none() {
            return Err(io::ErrorKind::ConnectionRefused.into());
        }
        // Narrow, so that both sides wait for each other.
        let (ours, theirs) = duplex(256);
        let world = self.0.clone();
        drop(spawn_local(async move {
            let (name, hosts) = &world.domains[domain];
            let Some(section) = hosts[host].as_ref().and_then(|script| script.connection(number)) else {
                return;
            };
            let mut record = Record::default();
            let ending = play(section, theirs, Some(&world.tls), &mut record).await;
            let mut played = world.played.borrow_mut();
            played.entry(name.to_string()).or_default().push((ending, record));
        }));
        Ok(ours)
    }

    fn is_here(&self, _: IpAddr) -> bool {
        false
    }
}
