//! The network as it is: the DNS through hickory, connections through the system.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use hickory_resolver::TokioResolver;
use hickory_resolver::config::{
    ConnectionConfig, NameServerConfig, ResolveHosts, ResolverConfig, ResolverOpts,
};
use hickory_resolver::lookup::Lookup;
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use hickory_resolver::net::{DnsError as Negative, NetError, NoRecords};
use hickory_resolver::proto::op::ResponseCode;
use hickory_resolver::proto::rr::{Name, RData, Record, RecordType};
use mail_core::Domain;
use tokio::net::{TcpSocket, TcpStream};

use crate::config::settings::DnsSettings;
use crate::world::{ConnectError, DnsError, LocalEnd, MxAnswer, MxHost, Net};

/// Answers kept, some 500 octets each; TTLs are obeyed within a day.
const CACHE: u64 = 16_384;
const LONGEST_TTL: Duration = Duration::from_secs(86_400);

/// MX hosts taken of one answer. Some domains list dozens; nobody tries that many.
const MAX_HOSTS: usize = 16;

/// Addresses taken of one host, of each family.
const MAX_ADDRESSES: usize = 8;

/// See the module.
#[derive(Clone)]
pub struct RealNet {
    resolver: TokioResolver,
}

impl RealNet {
    /// Asks the name servers of the settings, or those of /etc/resolv.conf; each question waits `patience` at most.
    /// Belongs to the runtime it is made in.
    pub fn new(settings: &DnsSettings, patience: Duration) -> anyhow::Result<Self> {
        let mut builder = if settings.servers.is_empty() {
            TokioResolver::builder_tokio()?
        } else {
            let servers = settings.servers.iter().map(name_server).collect();
            TokioResolver::builder_with_config(
                ResolverConfig::from_name_servers(servers),
                TokioRuntimeProvider::default(),
            )
        };
        set_options(builder.options_mut(), patience);
        Ok(Self {
            resolver: builder.build()?,
        })
    }

    async fn lookup(&self, name: &Domain, kind: RecordType) -> Result<Answer, DnsError> {
        let failed = |cause: &str| DnsError {
            question: format!("{name} {kind}"),
            cause: cause.to_owned(),
        };
        // With the root's dot, so that no search list of this machine is tried. It is ASCII, and may have underscores, of which text
        // that is taken for a host name may have none.
        let full = Name::from_ascii(format!("{name}.")).map_err(|error| failed(&error.to_string()))?;
        match self.resolver.lookup(full, kind).await {
            Ok(lookup) => Ok(Answer::Records(lookup)),
            Err(NetError::Dns(Negative::NoRecordsFound(NoRecords {
                response_code: ResponseCode::NXDomain,
                ..
            }))) => Ok(Answer::NoName),
            Err(NetError::Dns(Negative::NoRecordsFound(NoRecords {
                response_code: ResponseCode::NoError,
                query,
                soa,
                ..
            }))) => {
                // RFC 2308 §2.2: who says that there are none sends an SOA record along, and most do.
                if soa.is_none() && self.is_alias(query.name()).await {
                    return Err(failed("its aliases lead nowhere"));
                }
                Ok(Answer::NoRecords)
            }
            Err(error) => Err(failed(&error.to_string())),
        }
    }

    /// Whether a name that aliases led to is an alias itself: they go in a circle, or further than the resolver follows. It says
    /// that there are no records then.
    async fn is_alias(&self, name: &Name) -> bool {
        let lookup = self.resolver.lookup(name.clone(), RecordType::CNAME).await;
        let is_alias = |record: &Record| matches!(record.data, RData::CNAME(_));
        lookup.is_ok_and(|lookup| lookup.answers().iter().any(is_alias))
    }
}

enum Answer {
    Records(Lookup),
    NoRecords,
    NoName,
}

fn name_server(server: &SocketAddr) -> NameServerConfig {
    let connections = [ConnectionConfig::udp(), ConnectionConfig::tcp()].map(|mut connection| {
        connection.port = server.port();
        connection
    });
    NameServerConfig::new(server.ip(), true, connections.into())
}

fn set_options(options: &mut ResolverOpts, patience: Duration) {
    options.timeout = patience;
    options.attempts = 2;
    options.cache_size = CACHE;
    options.use_hosts_file = ResolveHosts::Never;
    options.positive_max_ttl = Some(LONGEST_TTL);
    options.negative_max_ttl = Some(Duration::from_secs(300));
    options.try_tcp_on_error = true;
    options.edns0 = true;
}

/// RFC 6761 §6.3: this machine, whatever the DNS says. No mail for others is here, and a client must not aim the relay at
/// what listens on its own machine; an MX host of that name is how some say that a domain takes no mail.
fn is_localhost(name: &Domain) -> bool {
    name.as_str() == "localhost" || name.as_str().ends_with(".localhost")
}

impl Net for RealNet {
    type Stream = TcpStream;

    async fn mx(&self, domain: &Domain) -> Result<MxAnswer, DnsError> {
        if is_localhost(domain) {
            return Ok(MxAnswer::NoDomain);
        }
        let lookup = match self.lookup(domain, RecordType::MX).await? {
            Answer::Records(lookup) => lookup,
            Answer::NoRecords => return Ok(MxAnswer::Implicit),
            Answer::NoName => return Ok(MxAnswer::NoDomain),
        };
        let (mut hosts, mut null, mut any) = (Vec::new(), false, false);
        for record in lookup.answers() {
            let RData::MX(mx) = &record.data else { continue };
            any = true;
            let host = mx.exchange.to_ascii().parse();
            if mx.exchange.is_root() || host.as_ref().is_ok_and(is_localhost) {
                null = true;
            } else if let Ok(host) = host {
                hosts.push(MxHost {
                    preference: mx.preference,
                    host,
                });
            }
        }
        hosts.sort_unstable();
        hosts.truncate(MAX_HOSTS);
        match (hosts.is_empty(), null, any) {
            (false, ..) => Ok(MxAnswer::Hosts(hosts)),
            (true, true, _) => Ok(MxAnswer::Null),
            // Only a CNAME in the answer: its target has no MX.
            (true, false, false) => Ok(MxAnswer::Implicit),
            (true, false, true) => Err(DnsError {
                question: format!("{domain} MX"),
                cause: "no answer names a usable host".into(),
            }),
        }
    }

    async fn addresses(&self, host: &Domain) -> Result<Vec<IpAddr>, DnsError> {
        let (six, four) = tokio::join!(
            self.lookup(host, RecordType::AAAA),
            self.lookup(host, RecordType::A)
        );
        let found = |answer: &Result<Answer, DnsError>| -> Vec<IpAddr> {
            let Ok(Answer::Records(lookup)) = answer else {
                return Vec::new();
            };
            let addresses = lookup.answers().iter().filter_map(|record| match &record.data {
                RData::A(address) => Some(IpAddr::V4(address.0)),
                RData::AAAA(address) => Some(IpAddr::V6(address.0)),
                _ => None,
            });
            addresses.take(MAX_ADDRESSES).collect()
        };
        let (sixes, fours) = (found(&six), found(&four));
        if sixes.is_empty() && fours.is_empty() {
            // One family that can't be told may be the one that has the address.
            four?;
            six?;
        }
        // By turns, so that one family that is down does not use up all tries.
        let most = sixes.len().max(fours.len());
        let turns = (0..most).flat_map(|turn| [sixes.get(turn), fours.get(turn)]);
        Ok(turns.flatten().copied().collect())
    }

    async fn connect(&self, from: LocalEnd<'_>, to: SocketAddr) -> Result<TcpStream, ConnectError> {
        let socket = own_end(from, to).map_err(ConnectError::Ours)?;
        let connected = socket.connect(to).await;
        connected.map_err(|error| match error.kind() {
            // From this address, or by this interface, nobody gets there.
            io::ErrorKind::AddrNotAvailable | io::ErrorKind::InvalidInput if from != LocalEnd::default() => {
                ConnectError::Ours(error)
            }
            _ => ConnectError::Theirs(error),
        })
    }

    fn is_here(&self, address: IpAddr) -> bool {
        is_here(address)
    }
}

/// Whether it is an address of this machine's: only those can be bound. Where the system lets foreign ones be bound too
/// (`net.ipv4.ip_nonlocal_bind`), all are.
pub fn is_here(address: IpAddr) -> bool {
    std::net::UdpSocket::bind((address, 0)).is_ok()
}

fn own_end(from: LocalEnd<'_>, to: SocketAddr) -> io::Result<TcpSocket> {
    let socket = if to.is_ipv6() {
        TcpSocket::new_v6()?
    } else {
        TcpSocket::new_v4()?
    };
    if let Some(interface) = from.interface {
        leave_by(&socket, interface)?;
    }
    if let Some(address) = from.address.filter(|address| address.is_ipv6() == to.is_ipv6()) {
        socket.bind(SocketAddr::new(address, 0))?;
    }
    socket.set_nodelay(true)?;
    Ok(socket)
}

#[cfg(target_os = "linux")]
fn leave_by(socket: &TcpSocket, interface: &str) -> io::Result<()> {
    let named = |error: io::Error| io::Error::new(error.kind(), format!("interface {interface}: {error}"));
    socket.bind_device(Some(interface.as_bytes())).map_err(named)
}

#[cfg(not(target_os = "linux"))]
fn leave_by(_: &TcpSocket, interface: &str) -> io::Result<()> {
    let text = format!("interface {interface}: only Linux lets a connection be bound to one");
    Err(io::Error::new(io::ErrorKind::Unsupported, text))
}

#[cfg(test)]
mod tests;
