//! Hosts that stop, drip or hang up at one place of the conversation.

use super::*;

/// Where in a conversation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Before there is a connection.
    Connect,
    Greeting,
    Ehlo,
    /// Having asked for TLS.
    Handshake,
    Mail,
    Rcpt,
    Data,
    /// Having taken a part of the message.
    Body,
    /// Having taken the message.
    Dot,
    Quit,
}

impl Phase {
    pub const ALL: [Self; 10] = [
        Self::Connect,
        Self::Greeting,
        Self::Ehlo,
        Self::Handshake,
        Self::Mail,
        Self::Rcpt,
        Self::Data,
        Self::Body,
        Self::Dot,
        Self::Quit,
    ];
}

/// What goes wrong there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Nothing is said or read any more.
    Silence,
    /// A reply of which an octet comes each second, without end.
    Drips,
    /// The connection is gone, instead of a reply.
    Instead,
    /// The connection is gone, behind the reply.
    Behind,
}

/// A host's connection, or somebody who waits for one.
pub struct Slot(Rc<World>, usize);

impl Slot {
    pub fn taken(world: &Rc<World>, host: usize) -> Self {
        let mut slots = world.slots.borrow_mut();
        let (now, most) = slots.entry(host).or_default();
        *now += 1;
        *most = (*most).max(*now);
        Self(world.clone(), host)
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.0.slots.borrow_mut().entry(self.1).or_default().0 -= 1;
    }
}

/// The most connections that a host had at once.
pub fn most_slots(world: &World, host: usize) -> usize {
    world.slots.borrow().get(&host).map_or(0, |(_, most)| *most)
}

/// Octets that are under way to a host: so few to a faulty one that a message does not go at once.
pub fn width(host: &Host) -> usize {
    match host {
        Host::Faulty(..) | Host::Shaky(..) => 32,
        _ => 64 * 1024,
    }
}

/// What goes wrong in a conversation that begins now.
pub fn of(world: &World, host: Host) -> Option<(Fault, Phase)> {
    match host {
        Host::Faulty(fault, phase, until) => (world.since_begin() < until).then_some((fault, phase)),
        Host::Shaky(percent, until) => {
            let random = world.chance.as_ref()?;
            let is_hit = random.below(100) < percent && world.since_begin() < until;
            let fault = [Fault::Instead, Fault::Behind][random.below(2)];
            is_hit.then(|| (fault, Phase::ALL[random.below(Phase::ALL.len())]))
        }
        _ => None,
    }
}

/// `Err`: it ends here.
async fn go_wrong(peer: &mut BufReader<DuplexStream>, fault: Fault) -> io::Result<()> {
    match fault {
        Fault::Silence => sleep(Duration::from_secs(86_400)).await,
        Fault::Drips => loop {
            for octet in "250-well\r\n".bytes() {
                peer.get_mut().write_all(&[octet]).await?;
                sleep(Duration::from_secs(1)).await;
            }
        },
        Fault::Instead | Fault::Behind => {}
    }
    Err(io::ErrorKind::ConnectionReset.into())
}

/// A conversation in which this goes wrong. All else is taken.
pub async fn converse(
    world: &World,
    number: usize,
    mut peer: BufReader<DuplexStream>,
    (fault, at): (Fault, Phase),
) -> io::Result<()> {
    if at == Phase::Connect {
        return Ok(());
    }
    let mut to = Vec::new();
    let mut line = String::new();
    let (mut phase, mut words) = (Phase::Greeting, "220 hello");
    loop {
        if phase == at && fault != Fault::Behind {
            return go_wrong(&mut peer, fault).await;
        }
        say(&mut peer, words).await?;
        if phase == at || phase == Phase::Quit {
            return Ok(());
        }
        if phase == Phase::Handshake {
            // No handshake here is done.
            return Ok(());
        }
        if phase == Phase::Data {
            read_message(&mut peer, (at == Phase::Body).then_some(fault)).await?;
            let now = Instant::now();
            world
                .taken
                .borrow_mut()
                .push((now, number, std::mem::take(&mut to)));
            (phase, words) = (Phase::Dot, "250 kept");
            continue;
        }
        line.clear();
        if peer.read_line(&mut line).await? == 0 {
            return Ok(());
        }
        (phase, words) = match line.get(..4).unwrap_or_default() {
            "EHLO" if at == Phase::Handshake => (Phase::Ehlo, "250-hN\r\n250 STARTTLS"),
            "EHLO" => (Phase::Ehlo, "250-hN\r\n250 PIPELINING"),
            "STAR" => (Phase::Handshake, "220 go"),
            "RCPT" => {
                let address = line.trim().trim_start_matches("RCPT TO:<");
                to.push(address.trim_end_matches('>').to_owned());
                (Phase::Rcpt, "250 ok")
            }
            "DATA" => (Phase::Data, "354 go"),
            "QUIT" => (Phase::Quit, "221 bye"),
            _ => (Phase::Mail, "250 ok"),
        };
    }
}

async fn read_message(peer: &mut BufReader<DuplexStream>, fault: Option<Fault>) -> io::Result<()> {
    let mut line = String::new();
    while line != ".\r\n" {
        line.clear();
        if peer.read_line(&mut line).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        if let Some(fault) = fault {
            return go_wrong(peer, fault).await;
        }
    }
    Ok(())
}

/// How often each recipient's message was taken, and how often that was left in doubt.
pub fn books(world: &World, queue: &Queue) -> HashMap<String, (usize, usize)> {
    let mut books: HashMap<String, (usize, usize)> = HashMap::new();
    for (.., to) in world.taken.borrow().iter() {
        for recipient in to {
            books.entry(recipient.clone()).or_default().0 += 1;
        }
    }
    for (_, event) in queue.events(0, usize::MAX).unwrap() {
        if event.kind == EventKind::InDoubt {
            for recipient in &event.recipients {
                books.entry(recipient.clone()).or_default().1 += 1;
            }
        }
    }
    books
}
