//! The lab's name server: every record it was given, and NXDOMAIN for all the rest of the world.
//!
//! One zone, the root's, on UDP and TCP: a question never leaves the machine, and any domain can be added. The table is
//! our own rather than hickory's in-memory zone, which walks through all its records for each name it does not have.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use hickory_proto::ProtoError;
use hickory_proto::op::{Edns, Header, HeaderCounts, MessageType, Metadata, OpCode, ResponseCode};
use hickory_proto::rr::rdata::{A, AAAA, MX, SOA, TXT};
use hickory_proto::rr::{DNSClass, LowerName, Name, RData, Record, RecordType};
use hickory_server::Server;
use hickory_server::net::runtime::Time;
use hickory_server::server::{Request, RequestHandler, ResponseHandler, ResponseInfo};
use hickory_server::zone_handler::MessageResponseBuilder;
use parking_lot::RwLock;
use tokio::net::{TcpListener, UdpSocket};

/// Seconds that answers may be kept. Short: a lab's records change while it runs.
const TTL: u32 = 30;
/// Seconds that a "no" may be kept.
const NEGATIVE_TTL: u32 = 1;
/// A TCP connection that asks nothing for so long is closed.
const TCP_PATIENCE: Duration = Duration::from_secs(10);
/// Answers that wait for a TCP client to read them.
const TCP_BACKLOG: usize = 32;
/// Octets of a UDP answer to clients that take more than 512 (the DNS flag day's figure).
const UDP_PAYLOAD: u16 = 1_232;
/// Ports tried until UDP and TCP have the same one.
const PORT_TRIES: usize = 32;

/// A name or record that cannot be.
#[derive(Clone, Debug, thiserror::Error)]
#[error("no DNS name: {0:?}")]
pub struct BadName(pub String);

/// The records. Cloning gives another handle to the same.
#[derive(Clone, Default)]
pub struct Zone(Arc<RwLock<Nodes>>);

/// Every name that exists, those that only stand above others included (RFC 8020 §2), with its records.
type Nodes = HashMap<LowerName, Vec<Record>>;

impl Zone {
    /// Adds the host as a mail server of `domain`.
    pub fn mx(&self, domain: &str, preference: u16, host: &str) -> Result<(), BadName> {
        let host = name(host)?;
        self.add(domain, RData::MX(MX::new(preference, host)))
    }

    /// Adds an address.
    pub fn address(&self, host: &str, address: IpAddr) -> Result<(), BadName> {
        self.add(
            host,
            match address {
                IpAddr::V4(address) => RData::A(A(address)),
                IpAddr::V6(address) => RData::AAAA(AAAA(address)),
            },
        )
    }

    /// Adds a text of any length, in strings of 255 octets (RFC 1035 §3.3).
    pub fn txt(&self, owner: &str, text: &str) -> Result<(), BadName> {
        let strings = text.as_bytes().chunks(255).collect();
        self.add(owner, RData::TXT(TXT::from_bytes(strings)))
    }

    /// Adds any record.
    pub fn add(&self, owner: &str, data: RData) -> Result<(), BadName> {
        let owner = name(owner)?;
        let record = Record::from_rdata(owner.clone(), TTL, data);
        let mut nodes = self.0.write();
        let node = nodes.entry(LowerName::new(&owner)).or_default();
        if !node.contains(&record) {
            node.push(record);
        }
        let mut above = owner;
        while !above.is_root() {
            above = above.base_name();
            nodes.entry(LowerName::new(&above)).or_default();
        }
        Ok(())
    }

    /// Takes all records of a name away; the name still exists. Caches may hold on to them for half a minute.
    pub fn clear(&self, owner: &str) -> Result<(), BadName> {
        if let Some(node) = self.0.write().get_mut(&LowerName::new(&name(owner)?)) {
            node.clear();
        }
        Ok(())
    }

    fn answer(&self, owner: &LowerName, kind: RecordType) -> (ResponseCode, Vec<Record>) {
        match self.0.read().get(owner) {
            None => (ResponseCode::NXDomain, Vec::new()),
            Some(node) => {
                let fits = |record: &&Record| kind == RecordType::ANY || record.record_type() == kind;
                (ResponseCode::NoError, node.iter().filter(fits).cloned().collect())
            }
        }
    }
}

fn name(text: &str) -> Result<Name, BadName> {
    // `from_ascii` keeps names such as `_dmarc` as they are.
    let mut name = Name::from_ascii(text).map_err(|_: ProtoError| BadName(text.to_owned()))?;
    name.set_fqdn(true);
    Ok(name)
}

/// A running name server.
pub struct DnsServer {
    /// Where it listens, UDP and TCP.
    pub address: SocketAddr,
    server: Server<Authority>,
}

impl DnsServer {
    /// Binds UDP and TCP to `address`; port 0 lets the system choose one that is free for both.
    pub async fn start(address: SocketAddr, zone: Zone) -> io::Result<Self> {
        let (udp, tcp) = bind(address).await?;
        let address = tcp.local_addr()?;
        let mut server = Server::new(Authority::new(zone));
        server.register_socket(udp);
        server.register_listener(tcp, TCP_PATIENCE, TCP_BACKLOG);
        Ok(Self { address, server })
    }

    /// Closes both sockets.
    pub async fn stop(mut self) {
        // Its only failures are of connections that broke off.
        let _ = tokio::time::timeout(TCP_PATIENCE, self.server.shutdown_gracefully()).await;
    }
}

async fn bind(address: SocketAddr) -> io::Result<(UdpSocket, TcpListener)> {
    let mut tries = 0;
    loop {
        let tcp = TcpListener::bind(address).await?;
        match UdpSocket::bind(tcp.local_addr()?).await {
            Ok(udp) => return Ok((udp, tcp)),
            Err(_) if address.port() == 0 && tries < PORT_TRIES => tries += 1,
            Err(error) => return Err(error),
        }
    }
}

struct Authority {
    zone: Zone,
    soa: Record,
}

impl Authority {
    fn new(zone: Zone) -> Self {
        let host = |label: &str| Name::from_ascii(label).unwrap_or_else(|_| Name::root());
        let soa = SOA::new(
            host("ns.test."),
            host("postmaster.test."),
            1,
            3_600,
            600,
            86_400,
            NEGATIVE_TTL,
        );
        Self {
            zone,
            soa: Record::from_rdata(Name::root(), NEGATIVE_TTL, RData::SOA(soa)),
        }
    }

    fn decide(&self, request: &Request) -> (ResponseCode, Vec<Record>) {
        if request.metadata.message_type != MessageType::Query {
            return (ResponseCode::FormErr, Vec::new());
        }
        if request.metadata.op_code != OpCode::Query {
            return (ResponseCode::NotImp, Vec::new());
        }
        if request.edns.as_ref().is_some_and(|edns| edns.version() > 0) {
            return (ResponseCode::BADVERS, Vec::new());
        }
        match request.request_info() {
            Ok(info) if info.query.query_class() == DNSClass::IN => {
                self.zone.answer(info.query.name(), info.query.query_type())
            }
            Ok(_) => (ResponseCode::Refused, Vec::new()),
            Err(_) => (ResponseCode::FormErr, Vec::new()),
        }
    }
}

#[async_trait]
impl RequestHandler for Authority {
    async fn handle_request<R: ResponseHandler, T: Time>(
        &self,
        request: &Request,
        mut client: R,
    ) -> ResponseInfo {
        let (code, answers) = self.decide(request);
        let mut metadata = Metadata::response_from_request(&request.metadata);
        metadata.response_code = code;
        metadata.authoritative = matches!(code, ResponseCode::NoError | ResponseCode::NXDomain);
        let negative = metadata.authoritative && answers.is_empty(); // RFC 2308 §3
        let edns = request.edns.as_ref().map(|asked| {
            let mut edns = Edns::new();
            edns.set_max_payload(asked.max_payload().clamp(512, UDP_PAYLOAD));
            edns.set_rcode_high(code.high());
            edns
        });
        let response = MessageResponseBuilder::new(&request.queries, edns.as_ref()).build(
            metadata,
            &answers,
            [],
            negative.then_some(&self.soa),
            [],
        );
        match client.send_response(response).await {
            Ok(info) => info,
            Err(error) => {
                tracing::debug!(%error, "DNS answer not sent");
                let mut metadata = Metadata::response_from_request(&request.metadata);
                metadata.response_code = ResponseCode::ServFail;
                let counts = HeaderCounts::default();
                Header { metadata, counts }.into()
            }
        }
    }
}
