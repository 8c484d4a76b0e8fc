//! The made-up Internet: hosts that do what a test says, the names that lead to them, and what all of them saw.

use std::cell::RefCell;
use std::net::SocketAddr;

use relay::world::{ConnectError, LocalEnd, MxHost, Net};
use tokio::io::duplex;

use super::*;

/// What a host does.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Host {
    /// Takes everything.
    Takes,
    /// Nothing listens.
    Dead,
    /// Greets with this.
    Greets(&'static str),
    /// Takes connections and says nothing.
    Silent,
    /// Takes the message, and hangs up instead of saying so, the first time.
    HangsUpAfterDot,
    /// Says this to RCPT.
    Rcpt(&'static str),
    /// Takes everything, but thinks for a minute about the final dot.
    Slow,
    /// Says this to RCPT, so long after it was asked.
    RcptAfter(Duration, &'static str),
    /// The relay panics when it connects.
    Panics,
    /// From this long after the start on it bears so many conversations at once, and says 421 to the others at the next word. It takes
    /// five seconds for each message.
    Crowded(Duration, usize),
    /// Greets with this until so long after the start, and takes everything then.
    GreetsUntil(Duration, &'static str),
    /// Greets nobody before so long after the start, and takes everything then.
    GreetsFrom(Duration),
    /// Nothing listens until so long after the start.
    DeadUntil(Duration),
    /// Greets who comes from 192.0.2 and this with these words.
    Blocks(u8, &'static str),
    /// Connections are never answered.
    BlackHole,
    /// Says this to RCPT of addresses that begin so.
    Picky(&'static str, &'static str),
    /// Something goes wrong at one place of each conversation that begins within so long after the start.
    Faulty(Fault, Phase, Duration),
    /// Of conversations that begin within so long after the start, so many in a hundred are reset somewhere.
    Shaky(usize, Duration),
    /// Tells of LIMITS: so many recipients a transaction, so many transactions a connection. It says these words to addresses that begin
    /// so.
    Few(usize, usize, (&'static str, &'static str)),
    /// Says 421 after each message.
    Leaves,
}

/// A message as a host has it: when, where, and for whom.
pub(super) type Taken = (Instant, usize, Vec<String>);

#[derive(Clone)]
pub(super) struct SimNet(pub(super) Rc<World>);

#[derive(Default)]
pub(super) struct World {
    pub(super) mx: HashMap<String, MxAnswer>,
    /// From this long after the start on, all of `d*.test` is here.
    pub(super) moves: Option<(Duration, MxAnswer)>,
    pub(super) begun: Cell<Option<Instant>>,
    /// The host `hN.test` has the address 10.0.0.N.
    pub(super) hosts: Vec<Host>,
    pub(super) taken: RefCell<Vec<Taken>>,
    pub(super) connections: RefCell<Vec<usize>>,
    pub(super) connected: RefCell<Vec<(Instant, usize)>>,
    pub(super) came_from: RefCell<Vec<(Option<IpAddr>, usize)>>,
    pub(super) open: Cell<usize>,
    pub(super) most_open: Cell<usize>,
    doubted: RefCell<bool>,
    /// By host, conversations that it bears.
    pub(super) borne: RefCell<HashMap<usize, usize>>,
    /// When somebody was told 421.
    pub(super) too_many: RefCell<Vec<Instant>>,
    /// What name servers say instead of `mx`, by domain, the time since the start, and how often it was asked for before.
    pub(super) names: Option<names::Says>,
    /// From this long after the start to that long, no host has an address.
    pub(super) no_address: Option<(Duration, Duration)>,
    /// The domains that the name servers were asked for, and how long after the start.
    pub(super) questions: RefCell<Vec<(Duration, String)>>,
    /// By host, connections and tries of connections: now, and at most.
    pub(super) slots: RefCell<HashMap<usize, (usize, usize)>>,
    pub(super) chance: Option<Random>,
}

impl World {
    pub(super) fn since_begin(&self) -> Duration {
        self.begun.get().map(|begun| begun.elapsed()).unwrap_or_default()
    }

    /// Whether it is too much for the host that one more speaks to it, or goes on.
    pub(super) fn is_crowded(&self, number: usize, own: usize) -> bool {
        let Host::Crowded(from, most) = self.hosts[number] else {
            return false;
        };
        let borne = self.borne.borrow().get(&number).copied().unwrap_or(0);
        let crowded = self.since_begin() >= from && borne + 1 - own > most;
        if crowded {
            self.too_many.borrow_mut().push(Instant::now());
        }
        crowded
    }
}

impl Net for SimNet {
    type Stream = poison::Wire;

    async fn mx(&self, domain: &Domain) -> Result<MxAnswer, DnsError> {
        let unknown = || DnsError {
            question: format!("{domain} MX"),
            cause: "SERVFAIL".into(),
        };
        let begun = self.0.begun.get().unwrap_or_else(Instant::now);
        self.0.begun.set(Some(begun));
        if let Some(says) = &self.0.names {
            return names::answer(&self.0, says, domain).await;
        }
        if let Some((after, answer)) = &self.0.moves
            && domain.as_str().starts_with('d')
            && begun.elapsed() >= *after
        {
            return Ok(answer.clone());
        }
        self.0.mx.get(domain.as_str()).cloned().ok_or_else(unknown)
    }

    async fn addresses(&self, host: &Domain) -> Result<Vec<IpAddr>, DnsError> {
        let number = host
            .as_str()
            .trim_start_matches('h')
            .split('.')
            .next()
            .unwrap()
            .parse()
            .unwrap();
        let since = self.0.since_begin();
        if let Some((from, to)) = self.0.no_address
            && (from..to).contains(&since)
        {
            return Ok(Vec::new());
        }
        Ok(vec![Ipv4Addr::new(10, 0, 0, number).into()])
    }

    async fn connect(&self, from: LocalEnd<'_>, to: SocketAddr) -> Result<poison::Wire, ConnectError> {
        let IpAddr::V4(address) = to.ip() else {
            return Err(io::ErrorKind::AddrNotAvailable.into());
        };
        let number = usize::from(address.octets()[3]);
        self.0.connections.borrow_mut().push(number);
        self.0.connected.borrow_mut().push((Instant::now(), number));
        let from = from.address;
        self.0.came_from.borrow_mut().push((from, number));
        let slot = faulty::Slot::taken(&self.0, number);
        match self.0.hosts[number] {
            Host::Faulty(Fault::Silence, Phase::Connect, until) if self.0.since_begin() < until => {
                sleep(Duration::from_secs(86_400)).await;
            }
            Host::Dead => return Err(io::ErrorKind::ConnectionRefused.into()),
            Host::DeadUntil(then) if self.0.since_begin() < then => {
                return Err(io::ErrorKind::ConnectionRefused.into());
            }
            Host::BlackHole => sleep(Duration::from_secs(86_400)).await,
            _ => {}
        }
        assert!(
            self.0.hosts[number] != Host::Panics,
            "a mistake, made for the test"
        );
        let (ours, theirs) = duplex(faulty::width(&self.0.hosts[number]));
        let world = self.0.clone();
        // How a conversation ends is seen on the other side.
        drop(spawn_local(async move {
            world.open.update(|open| open + 1);
            world.most_open.set(world.most_open.get().max(world.open.get()));
            adapt::converse(&world, number, theirs, from).await;
            world.open.update(|open| open - 1);
        }));
        Ok(poison::Wire(ours, slot))
    }

    fn is_here(&self, _: IpAddr) -> bool {
        false
    }
}

pub(super) async fn converse(world: &World, number: usize, stream: DuplexStream) -> io::Result<()> {
    let host = world.hosts[number];
    let mut peer = BufReader::new(stream);
    if let Some(fault) = faulty::of(world, host) {
        return faulty::converse(world, number, peer, fault).await;
    }
    if host == Host::Silent {
        sleep(Duration::from_secs(86_400)).await;
    }
    if let Host::GreetsFrom(then) = host {
        sleep(then.saturating_sub(world.since_begin())).await;
    }
    let greeting = match host {
        Host::Greets(words) => words,
        Host::GreetsUntil(then, words) if world.since_begin() < then => words,
        _ => "220 hello",
    };
    say(&mut peer, greeting).await?;
    let mut to = Vec::new();
    loop {
        let mut line = String::new();
        if peer.read_line(&mut line).await? == 0 {
            return Ok(());
        }
        match line.get(..4).unwrap_or_default() {
            "MAIL" if world.is_crowded(number, 1) => return adapt::too_many(&mut peer).await,
            "EHLO" => {
                say(&mut peer, "250-hN\r\n250-PIPELINING").await?;
                if let Host::Few(recipients, messages, _) = host {
                    let limits = format!("250-LIMITS RCPTMAX={recipients} MAILMAX={messages}");
                    say(&mut peer, &limits).await?;
                }
                say(&mut peer, "250 8BITMIME").await?;
            }
            "RCPT" => match host {
                Host::Rcpt(words) => say(&mut peer, words).await?,
                Host::RcptAfter(wait, words) => {
                    sleep(wait).await;
                    say(&mut peer, words).await?;
                }
                Host::Picky(begin, words) | Host::Few(_, _, (begin, words))
                    if line.contains(&format!("<{begin}")) =>
                {
                    say(&mut peer, words).await?
                }
                _ => {
                    to.push(
                        line.trim()
                            .trim_start_matches("RCPT TO:<")
                            .trim_end_matches('>')
                            .to_owned(),
                    );
                    say(&mut peer, "250 ok").await?;
                }
            },
            "DATA" => {
                say(&mut peer, "354 go").await?;
                while line != ".\r\n" {
                    line.clear();
                    if peer.read_line(&mut line).await? == 0 {
                        return Ok(());
                    }
                }
                match host {
                    Host::Slow => sleep(MINUTE).await,
                    Host::Crowded(..) => sleep(Duration::from_secs(5)).await,
                    _ => {}
                }
                if !to.is_empty() {
                    world
                        .taken
                        .borrow_mut()
                        .push((Instant::now(), number, std::mem::take(&mut to)));
                }
                if host == Host::HangsUpAfterDot && !world.doubted.replace(true) {
                    return Ok(());
                }
                say(&mut peer, "250 kept").await?;
                if host == Host::Leaves {
                    return say(&mut peer, "421 4.3.2 come again").await;
                }
            }
            "QUIT" => return say(&mut peer, "221 bye").await,
            _ => say(&mut peer, "250 ok").await?,
        }
    }
}

pub(super) async fn say(peer: &mut BufReader<DuplexStream>, words: &str) -> io::Result<()> {
    peer.get_mut().write_all(format!("{words}\r\n").as_bytes()).await
}

pub(super) fn hosts(preferences: &[(u16, usize)]) -> MxAnswer {
    let host = |&(preference, number)| MxHost {
        preference,
        host: format!("h{number}.test").parse().unwrap(),
    };
    MxAnswer::Hosts(preferences.iter().map(host).collect())
}

/// A world whose `to.test` has these hosts, and whose reports come back to a host of their own, number 9.
pub(super) fn world(answer: MxAnswer, first_hosts: &[Host]) -> World {
    let mut all = vec![Host::Takes; 10];
    all[..first_hosts.len()].copy_from_slice(first_hosts);
    let mx = HashMap::from([
        ("to.test".to_owned(), answer),
        ("back.test".to_owned(), hosts(&[(1, 9)])),
    ]);
    World {
        mx,
        hosts: all,
        ..World::default()
    }
}

/// Forty domains whose mail one host takes.
pub(super) fn hosted(host: Host) -> World {
    let mut world = world(hosts(&[(10, 0)]), &[host]);
    for number in 0..40 {
        world.mx.insert(format!("d{number}.test"), hosts(&[(10, 0)]));
    }
    world
}
