//! The one door to time, randomness and the network, so that tests run on a virtual clock, a seed and a made-up Internet.

use std::cell::RefCell;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use mail_core::{Domain, MessageId, Timestamp};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::Instant;

/// The runtime's monotonic time with a wall-clock anchor. A paused runtime drives it.
///
/// The anchor is read once: a jump of the system's clock moves neither timers nor due times. [`Clock::anchored`] makes one
/// with any wall time.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    start: Instant,
    wall: Timestamp,
}

impl Clock {
    /// Anchored at the system's wall clock now.
    pub fn system() -> Self {
        Self::anchored(wall())
    }

    /// Anchored at `wall` now.
    pub fn anchored(wall: Timestamp) -> Self {
        Self {
            start: Instant::now(),
            wall,
        }
    }

    /// Wall-clock time.
    pub fn now(&self) -> Timestamp {
        if crate::sabotage::is_on("follow-clock") {
            return wall();
        }
        self.wall + self.start.elapsed()
    }

    /// The moment at which [`Clock::now`] is `at`. Reads no clock: it may have passed.
    pub fn instant(&self, at: Timestamp) -> Instant {
        self.start + at.since(self.wall)
    }
}

/// What the system's wall clock says.
fn wall() -> Timestamp {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Timestamp(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}

/// All random draws of a thread, from one seed.
#[derive(Clone, Debug)]
pub struct Random(Rc<RefCell<StdRng>>);

impl Random {
    /// Seeded by the operating system.
    pub fn system() -> Self {
        Self(Rc::new(RefCell::new(StdRng::from_os_rng())))
    }

    /// The same draws for the same seed.
    pub fn seeded(seed: u64) -> Self {
        Self(Rc::new(RefCell::new(StdRng::seed_from_u64(seed))))
    }

    /// Uniform in 0.0..1.0.
    pub fn fraction(&self) -> f64 {
        self.0.borrow_mut().random()
    }

    /// Uniform in `0..below`; 0 where `below` is 0.
    pub fn below(&self, below: usize) -> usize {
        if below == 0 {
            0
        } else {
            self.0.borrow_mut().random_range(0..below)
        }
    }

    /// `wait`, longer or shorter by up to `share` of itself.
    pub fn jitter(&self, wait: Duration, share: f64) -> Duration {
        wait.mul_f64((1.0 + share * (2.0 * self.fraction() - 1.0)).max(0.0))
    }

    /// 144 bits as letters and digits, for SCRAM.
    pub fn nonce(&self) -> String {
        const LETTERS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
        (0..24)
            .map(|_| char::from(LETTERS[self.below(LETTERS.len())]))
            .collect()
    }

    /// A new message's id.
    pub fn message_id(&self, now: Timestamp) -> MessageId {
        MessageId::new(now, &self.0.borrow_mut().random())
    }
}

/// An MX host (RFC 5321 §5.1).
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MxHost {
    /// Lower is tried first.
    pub preference: u16,
    /// Its name.
    pub host: Domain,
}

/// What the DNS says of where a domain's mail goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MxAnswer {
    /// At least one host, as answered: not sorted.
    Hosts(Vec<MxHost>),
    /// No MX records, but the domain exists: its own address serves (RFC 5321 §5.1).
    Implicit,
    /// The domain takes no mail (RFC 7505).
    Null,
    /// The name does not exist.
    NoDomain,
}

/// A question the DNS did not answer; mail waits.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("DNS: {question}: {cause}")]
pub struct DnsError {
    /// As in `example.com MX`.
    pub question: String,
    /// SERVFAIL, timed out, …
    pub cause: String,
}

/// Our end of a connection, as far as it is not left to the system.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LocalEnd<'a> {
    /// The address it comes from. One of another family than the target's is left out.
    pub address: Option<IpAddr>,
    /// The network interface it leaves by.
    pub interface: Option<&'a str>,
}

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// Our end could not be had: an address or interface that is not there, or has no port left. Says nothing of the other end.
    #[error("{0}")]
    Ours(io::Error),
    /// The other end, or the way to it.
    #[error("{0}")]
    Theirs(#[from] io::Error),
}

impl From<io::ErrorKind> for ConnectError {
    fn from(kind: io::ErrorKind) -> Self {
        Self::Theirs(kind.into())
    }
}

/// The network as the delivery side sees it.
///
/// Tasks stay on the core that made them, so futures need not be `Send` (docs/architecture.md, "The runtime").
pub trait Net: Clone + 'static {
    /// A connection.
    type Stream: AsyncRead + AsyncWrite + Unpin + 'static;

    /// Where mail for `domain` goes. CNAMEs are followed.
    fn mx(&self, domain: &Domain) -> impl Future<Output = Result<MxAnswer, DnsError>>;

    /// The host's addresses, IPv6 and IPv4; empty where it has none or does not exist.
    fn addresses(&self, host: &Domain) -> impl Future<Output = Result<Vec<IpAddr>, DnsError>>;

    /// Connects. The caller bounds the time.
    fn connect(
        &self,
        from: LocalEnd<'_>,
        to: SocketAddr,
    ) -> impl Future<Output = Result<Self::Stream, ConnectError>>;

    /// Whether it is an address of this machine's.
    fn is_here(&self, address: IpAddr) -> bool;
}

/// A time as logs have it: RFC 3339, in UTC.
pub fn log_time(at: Timestamp) -> jiff::Timestamp {
    let millis = i64::try_from(at.0).unwrap_or(i64::MAX);
    jiff::Timestamp::from_millisecond(millis).unwrap_or(jiff::Timestamp::MAX)
}
