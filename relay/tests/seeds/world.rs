//! The Internet of a run: name servers and mail hosts whose moods a seed decides, and what they have seen.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Duration;

use mail_core::Domain;
use relay::world::{DnsError, MxAnswer, MxHost, Net, Random};
use tokio::io::{
    AsyncBufReadExt, AsyncRead, AsyncWrite, AsyncWriteExt, BufReader, DuplexStream, ReadBuf, duplex,
};
use tokio::task::spawn_local;
use tokio::time::{Instant, sleep};

/// Hosts by site: whatever goes to the hosts of one entry shares a lane.
pub const SITES: [&[usize]; 6] = [&[0, 1], &[2], &[3, 4], &[5], &[DEAD], &[REPORTS]];

/// The host that takes what goes back to the senders.
pub const REPORTS: usize = 9;

/// The host that does not answer before times are calm.
const DEAD: usize = 6;

/// A domain that does not exist.
pub const NOWHERE: &str = "d4.test";

/// Domains that mail is sent to.
pub const DOMAINS: [&str; 6] = ["d0.test", "d1.test", "d2.test", "d3.test", NOWHERE, "d5.test"];

/// See the module.
pub struct World {
    pub random: Random,
    /// Everybody is kind from now on.
    pub calm: Cell<bool>,
    /// The mail of d2.test goes to another host from now on.
    pub moved: Cell<bool>,
    /// When a recipient's mail was taken.
    pub taken: RefCell<HashMap<String, Vec<Instant>>>,
    /// When a MAIL came, by site.
    pub mails: RefCell<[Vec<Instant>; SITES.len()]>,
    open: RefCell<[usize; SITES.len()]>,
    /// The most connections there were at once, by site.
    pub most_open: RefCell<[usize; SITES.len()]>,
}

impl World {
    pub fn new(random: Random) -> Self {
        Self {
            random,
            calm: Cell::default(),
            moved: Cell::default(),
            taken: RefCell::default(),
            mails: RefCell::default(),
            open: RefCell::default(),
            most_open: RefCell::default(),
        }
    }

    /// True in `percent` of cases, and never in calm times.
    fn trouble(&self, percent: usize) -> bool {
        !self.calm.get() && self.random.below(100) < percent
    }
}

fn site(host: usize) -> usize {
    SITES.iter().position(|hosts| hosts.contains(&host)).unwrap()
}

#[derive(Clone)]
pub struct SimNet(pub Rc<World>);

/// The relay's end of a connection, counted while it is open.
pub struct Counted {
    pipe: DuplexStream,
    world: Rc<World>,
    site: usize,
}

impl Counted {
    fn new(pipe: DuplexStream, world: Rc<World>, site: usize) -> Self {
        let now = {
            let mut open = world.open.borrow_mut();
            open[site] += 1;
            open[site]
        };
        let before = world.most_open.borrow()[site];
        world.most_open.borrow_mut()[site] = before.max(now);
        Self { pipe, world, site }
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.world.open.borrow_mut()[self.site] -= 1;
    }
}

impl AsyncRead for Counted {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.pipe).poll_read(context, buffer)
    }
}

impl AsyncWrite for Counted {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        octets: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.pipe).poll_write(context, octets)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.pipe).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.pipe).poll_shutdown(context)
    }
}

fn hosts(preferences: &[(u16, usize)]) -> MxAnswer {
    let host = |&(preference, number)| MxHost {
        preference,
        host: format!("h{number}.test").parse().unwrap(),
    };
    MxAnswer::Hosts(preferences.iter().map(host).collect())
}

impl Net for SimNet {
    type Stream = Counted;

    async fn mx(&self, domain: &Domain) -> Result<MxAnswer, DnsError> {
        let world = &self.0;
        if world.trouble(20) {
            return Err(DnsError {
                question: format!("{domain} MX"),
                cause: "SERVFAIL".into(),
            });
        }
        Ok(match domain.as_str() {
            "back.test" => hosts(&[(1, REPORTS)]),
            // Two domains of one provider.
            "d0.test" | "d1.test" => hosts(&[(10, 0), (20, 1)]),
            "d2.test" if world.moved.get() => hosts(&[(10, 5)]),
            "d2.test" => hosts(&[(10, 2)]),
            "d3.test" => hosts(&[(10, 3), (10, 4)]),
            "d5.test" => hosts(&[(10, DEAD)]),
            _ => MxAnswer::NoDomain,
        })
    }

    async fn addresses(&self, host: &Domain) -> Result<Vec<IpAddr>, DnsError> {
        let number = host.as_str()[1..2].parse().unwrap();
        Ok(vec![Ipv4Addr::new(10, 0, 0, number).into()])
    }

    async fn connect(&self, _source: Option<IpAddr>, to: SocketAddr) -> io::Result<Counted> {
        let IpAddr::V4(address) = to.ip() else {
            return Err(io::ErrorKind::AddrNotAvailable.into());
        };
        let number = usize::from(address.octets()[3]);
        let is_ours = number == REPORTS;
        if !is_ours && self.0.trouble(if number == DEAD { 100 } else { 10 }) {
            return Err(io::ErrorKind::ConnectionRefused.into());
        }
        let (ours, theirs) = duplex(64 * 1024);
        let world = self.0.clone();
        // How a conversation ends is seen on the other side.
        drop(spawn_local(async move {
            drop(converse(&world, number, theirs).await)
        }));
        Ok(Counted::new(ours, self.0.clone(), site(number)))
    }

    fn is_here(&self, _: IpAddr) -> bool {
        false
    }
}

/// What a host may do instead of what it should.
enum Step {
    Go,
    Say(&'static str),
    HangUp,
    Silence,
}

fn step(world: &World, number: usize, refusals: &[&'static str]) -> Step {
    if number == REPORTS || !world.trouble(12) {
        return Step::Go;
    }
    match world.random.below(refusals.len() + 2) {
        0 => Step::HangUp,
        1 => Step::Silence,
        other => Step::Say(refusals[other - 2]),
    }
}

async fn converse(world: &World, number: usize, stream: DuplexStream) -> io::Result<()> {
    let mut peer = BufReader::new(stream);
    match step(world, number, &["421 busy", "554 not here", "450 what"]) {
        Step::Go => say(&mut peer, "220 hello").await?,
        Step::Say(words) => say(&mut peer, words).await?,
        Step::HangUp => return Ok(()),
        Step::Silence => return silence().await,
    }
    let (mut open, mut to) = (false, Vec::new());
    loop {
        let mut line = String::new();
        if peer.read_line(&mut line).await? == 0 {
            return Ok(());
        }
        let verb = line.get(..4).unwrap_or_default();
        let refusals: &[&str] = match verb {
            "MAIL" => {
                world.mails.borrow_mut()[site(number)].push(Instant::now());
                (open, to) = (false, Vec::new());
                &["421 later", "451 4.3.0 later"]
            }
            "RCPT" => &["450 4.2.1 later", "550 5.1.1 unknown", "452 4.5.3 too many"],
            "DATA" => &["451 4.3.0 later", "554 5.7.1 no"],
            _ => &["421 later"],
        };
        match step(world, number, refusals) {
            Step::Go => {}
            Step::Say(words) => {
                say(&mut peer, words).await?;
                if words.starts_with("421") {
                    return Ok(());
                }
                continue;
            }
            Step::HangUp => return Ok(()),
            Step::Silence => return silence().await,
        }
        match verb {
            "MAIL" => {
                open = true;
                say(&mut peer, "250 ok").await?;
            }
            "RCPT" | "DATA" if !open || (verb == "DATA" && to.is_empty()) => {
                say(&mut peer, "503 out of order").await?;
            }
            "EHLO" => say(&mut peer, "250-hN\r\n250-PIPELINING\r\n250 8BITMIME").await?,
            "RCPT" => {
                to.push(path(&line));
                say(&mut peer, "250 ok").await?;
            }
            "DATA" => {
                say(&mut peer, "354 go").await?;
                while line != ".\r\n" {
                    line.clear();
                    if peer.read_line(&mut line).await? == 0 {
                        return Ok(());
                    }
                }
                match step(world, number, &["451 4.3.0 later", "554 5.6.0 spam"]) {
                    Step::Say(words) => {
                        say(&mut peer, words).await?;
                        continue;
                    }
                    // It keeps the message all the same: nobody can tell.
                    Step::HangUp => return keep(world, &mut to),
                    Step::Silence => {
                        keep(world, &mut to)?;
                        return silence().await;
                    }
                    Step::Go => {
                        keep(world, &mut to)?;
                        say(&mut peer, "250 kept").await?;
                    }
                }
            }
            "QUIT" => return say(&mut peer, "221 bye").await,
            _ => say(&mut peer, "250 ok").await?,
        }
    }
}

fn path(line: &str) -> String {
    let path = line.split_once('<').map_or("", |(_, rest)| rest);
    path.split('>').next().unwrap_or_default().to_owned()
}

fn keep(world: &World, to: &mut Vec<String>) -> io::Result<()> {
    let mut taken = world.taken.borrow_mut();
    for recipient in to.drain(..) {
        taken.entry(recipient).or_default().push(Instant::now());
    }
    Ok(())
}

async fn silence() -> io::Result<()> {
    sleep(Duration::from_secs(86_400)).await;
    Ok(())
}

async fn say(peer: &mut BufReader<DuplexStream>, words: &str) -> io::Result<()> {
    peer.get_mut().write_all(format!("{words}\r\n").as_bytes()).await
}
