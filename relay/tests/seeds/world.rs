//! The Internet of a run: name servers and mail hosts whose moods a seed decides, and what they have seen.

use std::cell::{Cell, RefCell};
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Duration;

use mail_core::Domain;
use relay::world::{ConnectError, DnsError, LocalEnd, MxAnswer, MxHost, Net, Random};
use tokio::io::{
    AsyncBufReadExt, AsyncRead, AsyncWrite, AsyncWriteExt, BufReader, DuplexStream, ReadBuf, duplex,
};
use tokio::task::spawn_local;
use tokio::time::{Instant, sleep};

use super::books::Books;
use super::operator::Suspended;
use super::{A_CONNECTION, A_MINUTE, CONNECTIONS, MINUTE, RECIPIENTS};

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

/// From when to when; not over yet where it has no end.
type Span = (Instant, Option<Instant>);

/// See the module.
pub struct World {
    pub random: Random,
    /// Everybody is kind from now on.
    pub calm: Cell<bool>,
    /// The mail of d2.test goes to another host from now on.
    pub moved: Cell<bool>,
    /// What must hold, and whether it did.
    pub books: RefCell<Books>,
    /// What the operator has suspended.
    pub suspensions: RefCell<Vec<Suspended>>,
    /// Since when the disk of this life fails.
    pub failing_from: Cell<Option<Instant>>,
    /// When a MAIL came, by site.
    mails: RefCell<[Vec<Instant>; SITES.len()]>,
    open: RefCell<[usize; SITES.len()]>,
    /// By site, from when to when there was a connection.
    busy: RefCell<[Vec<Span>; SITES.len()]>,
}

impl World {
    pub fn new(random: Random, books: Books) -> Self {
        Self {
            random,
            books: RefCell::new(books),
            suspensions: RefCell::default(),
            failing_from: Cell::default(),
            calm: Cell::default(),
            moved: Cell::default(),
            mails: RefCell::default(),
            open: RefCell::default(),
            busy: RefCell::default(),
        }
    }

    /// When there were connections that a recipient's mail may have been on.
    pub fn busy(&self, recipient: &str) -> Vec<(Instant, Instant)> {
        let sites: &[usize] = match recipient.rsplit('@').next().unwrap() {
            "d0.test" | "d1.test" => &[0],
            "d2.test" => &[1, 3],
            "d3.test" => &[2],
            "d5.test" => &[4],
            "back.test" => &[5],
            _ => &[],
        };
        let busy = self.busy.borrow();
        let all = sites.iter().flat_map(|&site| &busy[site]);
        all.map(|&(from, to)| (from, to.unwrap_or_else(Instant::now)))
            .collect()
    }

    /// Writes down a step.
    pub fn note(&self, what: impl AsRef<str>) {
        self.books.borrow_mut().note(what);
    }

    /// Something that must not be: the run ends at its next look. A panic would be lost with its task.
    pub fn wrong(&self, what: impl AsRef<str>) {
        self.books.borrow_mut().wrong(what);
    }

    pub fn is_failing(&self) -> bool {
        self.failing_from.get().is_some()
    }

    /// The site is begun another transaction.
    fn mail(&self, site: usize) {
        let mut all = self.mails.borrow_mut();
        let mails = &mut all[site];
        let now = Instant::now();
        mails.push(now);
        // A token may be spent a little later than it was drawn, by as many as there are connections.
        let most = A_MINUTE + 2 * CONNECTIONS;
        if mails.len() > most && now - mails[mails.len() - 1 - most] < MINUTE {
            self.wrong(format!("site {site}: too fast"));
        }
    }

    /// The host keeps a message.
    fn keep(&self, number: usize, to: &mut Vec<String>, octets: &[u8]) {
        let mut books = self.books.borrow_mut();
        for recipient in to.drain(..) {
            books.note(format!("h{number}: keeps it for {recipient}"));
            books.takes(&recipient, octets);
            let Some(letter) = books.letters.get(&recipient) else {
                continue;
            };
            let now = Instant::now();
            let mut suspensions = self.suspensions.borrow().clone();
            suspensions.retain(|one| one.held(&letter.tenant, &recipient, now));
            if let Some(one) = suspensions.first() {
                books.wrong(format!("{recipient} was taken though {one:?}"));
            }
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
        if now == 1 {
            world.busy.borrow_mut()[site].push((Instant::now(), None));
        }
        world.note(format!("site {site}: connection, {now} open"));
        if now > CONNECTIONS {
            world.wrong(format!("{now} connections to site {site}"));
        }
        Self { pipe, world, site }
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        let left = {
            let mut open = self.world.open.borrow_mut();
            open[self.site] -= 1;
            open[self.site]
        };
        if left == 0
            && let Some((_, to)) = self.world.busy.borrow_mut()[self.site].last_mut()
        {
            *to = Some(Instant::now());
        }
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
        let fails = world.trouble(20);
        world.note(format!("dns: {domain}, fails: {fails}"));
        if fails {
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

    async fn connect(&self, _: LocalEnd<'_>, to: SocketAddr) -> Result<Counted, ConnectError> {
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
    let mut peer = Peer {
        world,
        number,
        stream: BufReader::new(stream),
    };
    match step(world, number, &["421 busy", "554 not here", "450 what"]) {
        Step::Go => say(&mut peer, "220 hello").await?,
        Step::Say(words) => say(&mut peer, words).await?,
        Step::HangUp => return Ok(()),
        Step::Silence => return silence().await,
    }
    let (mut open, mut to) = (false, Vec::new());
    let (mut mails, mut rcpts) = (0, 0);
    loop {
        let Some(line) = peer.line().await? else {
            return Ok(());
        };
        world.note(format!("h{number} < {}", line.trim_end()));
        let verb = line.get(..4).unwrap_or_default();
        let refusals: &[&str] = match verb {
            "MAIL" => {
                world.mail(site(number));
                (open, to) = (false, Vec::new());
                (mails, rcpts) = (mails + 1, 0);
                if mails > A_CONNECTION {
                    world.wrong(format!("h{number}: {mails} transactions over one connection"));
                }
                &["421 later", "451 4.3.0 later"]
            }
            "RCPT" => {
                rcpts += 1;
                if rcpts > RECIPIENTS {
                    world.wrong(format!("h{number}: {rcpts} recipients in one transaction"));
                }
                &["450 4.2.1 later", "550 5.1.1 unknown", "452 4.5.3 too many"]
            }
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
                let mut octets = String::new();
                loop {
                    let Some(line) = peer.line().await? else {
                        return Ok(());
                    };
                    if line == ".\r\n" {
                        break;
                    }
                    octets.push_str(line.strip_prefix('.').unwrap_or(&line));
                }
                let octets = octets.as_bytes();
                match step(world, number, &["451 4.3.0 later", "554 5.6.0 spam"]) {
                    Step::Say(words) => {
                        say(&mut peer, words).await?;
                        continue;
                    }
                    // It keeps the message all the same: nobody can tell.
                    Step::HangUp => {
                        world.keep(number, &mut to, octets);
                        return Ok(());
                    }
                    Step::Silence => {
                        world.keep(number, &mut to, octets);
                        return silence().await;
                    }
                    Step::Go => {
                        world.keep(number, &mut to, octets);
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

async fn silence() -> io::Result<()> {
    sleep(Duration::from_secs(86_400)).await;
    Ok(())
}

/// A host's end of a connection.
struct Peer<'a> {
    world: &'a World,
    number: usize,
    stream: BufReader<DuplexStream>,
}

impl Peer<'_> {
    async fn line(&mut self) -> io::Result<Option<String>> {
        let mut line = String::new();
        let read = self.stream.read_line(&mut line).await?;
        Ok((read > 0).then_some(line))
    }
}

async fn say(peer: &mut Peer<'_>, words: &str) -> io::Result<()> {
    peer.world.note(format!("h{} > {words:?}", peer.number));
    peer.stream
        .get_mut()
        .write_all(format!("{words}\r\n").as_bytes())
        .await
}
