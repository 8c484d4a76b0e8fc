//! How receiving hosts behave: what they say at each stage, and how long they take.

use std::collections::{HashSet, VecDeque};
use std::hash::Hash;
use std::net::IpAddr;
use std::time::Duration;

use mail_core::smtp::server::Config;
use mail_core::{Mailbox, Reply, ReversePath};
use parking_lot::Mutex;
use tokio::time::Instant;

/// A client's visit, as far as it has come.
#[derive(Clone, Copy, Debug)]
pub struct Visit<'a> {
    /// Where the connection comes from.
    pub client: IpAddr,
    /// What the client calls itself.
    pub helo: &'a str,
    /// MAIL FROM.
    pub sender: &'a ReversePath,
}

/// A host's ways, a hook for each stage. What a behaviour does not speak of is accepted at once.
///
/// Hooks are synchronous and quick: waiting is what the delays are for.
pub trait Behaviour: Send + Sync + 'static {
    /// Changes what the host offers and how much it takes; asked once, before the first connection.
    fn offer(&self, _: &mut Config) {}

    /// STARTTLS is answered with 220, and the handshake then fails.
    fn breaks_tls(&self) -> bool {
        false
    }

    /// `Some`: the reply that refuses MAIL; a 421 also closes.
    fn mail(&self, _: Visit<'_>) -> Option<Reply> {
        None
    }

    /// `Some`: the reply that refuses this recipient. It is asked after the domain was found to be one of the host's.
    fn rcpt(&self, _: Visit<'_>, _: &Mailbox) -> Option<Reply> {
        None
    }

    /// `Some`: the reply that refuses a whole message after its final dot; nothing is kept.
    fn message(&self, _: Visit<'_>, _: &[Mailbox]) -> Option<Reply> {
        None
    }

    /// The connection is closed instead of the reply to a message that has been kept.
    fn hangs_up(&self, _: Visit<'_>, _: &[Mailbox]) -> bool {
        false
    }

    /// How long a message's reply takes, from the final dot on.
    fn message_delay(&self) -> Duration {
        Duration::ZERO
    }
}

/// Every local part has a mailbox, and everything is taken.
#[derive(Clone, Copy, Debug, Default)]
pub struct Accepts;

impl Behaviour for Accepts {}

/// Some local parts have no mailbox; those are told so at RCPT.
#[derive(Clone, Debug)]
pub struct Unknown(pub Vec<String>);

impl Behaviour for Unknown {
    fn rcpt(&self, _: Visit<'_>, recipient: &Mailbox) -> Option<Reply> {
        let is_unknown = self
            .0
            .iter()
            .any(|local| local.eq_ignore_ascii_case(recipient.local()));
        is_unknown.then(|| Reply::new(550, 1, 1, "no mailbox of that name here"))
    }
}

/// Puts off what it has not seen before: the first RCPT of each (client, sender, recipient) is told to come again, and
/// taken when it does.
#[derive(Debug, Default)]
pub struct Greylists(Mutex<Seen<(IpAddr, ReversePath, Mailbox)>>);

/// Things remembered, some 200 octets each; the oldest is forgotten first.
const MAX_SEEN: usize = 100_000;

#[derive(Debug)]
struct Seen<T> {
    all: HashSet<T>,
    order: VecDeque<T>,
}

impl<T> Default for Seen<T> {
    fn default() -> Self {
        Self {
            all: HashSet::new(),
            order: VecDeque::new(),
        }
    }
}

impl<T: Clone + Eq + Hash> Seen<T> {
    /// Remembers it. False: it is there already.
    fn is_new(&mut self, thing: T) -> bool {
        if !self.all.insert(thing.clone()) {
            return false;
        }
        self.order.push_back(thing);
        if self.order.len() > MAX_SEEN
            && let Some(oldest) = self.order.pop_front()
        {
            self.all.remove(&oldest);
        }
        true
    }
}

impl Behaviour for Greylists {
    fn rcpt(&self, visit: Visit<'_>, recipient: &Mailbox) -> Option<Reply> {
        let triple = (visit.client, visit.sender.clone(), recipient.clone());
        self.0
            .lock()
            .is_new(triple)
            .then(|| Reply::new(450, 7, 1, "greylisted: not seen before, please come again"))
    }
}

/// Takes everything, and its time over it.
#[derive(Clone, Copy, Debug)]
pub struct Slow(pub Duration);

impl Behaviour for Slow {
    fn message_delay(&self) -> Duration {
        self.0
    }
}

/// All its mailboxes are full.
#[derive(Clone, Copy, Debug, Default)]
pub struct Full;

impl Behaviour for Full {
    fn rcpt(&self, _: Visit<'_>, _: &Mailbox) -> Option<Reply> {
        Some(Reply::new(452, 2, 2, "mailbox full"))
    }
}

/// Says 421 to more than so many transactions a second, all clients together.
#[derive(Debug)]
pub struct Busy {
    most: u32,
    /// When the second began, and the transactions in it.
    second: Mutex<(Instant, u32)>,
}

impl Busy {
    /// Takes `most` a second.
    pub fn above(most: u32) -> Self {
        Self {
            most,
            second: Mutex::new((Instant::now(), 0)),
        }
    }
}

impl Behaviour for Busy {
    fn mail(&self, _: Visit<'_>) -> Option<Reply> {
        let mut second = self.second.lock();
        if second.0.elapsed() >= Duration::from_secs(1) {
            *second = (Instant::now(), 0);
        }
        second.1 = second.1.saturating_add(1);
        (second.1 > self.most).then(|| Reply::new(421, 3, 2, "too much at once, please come again"))
    }
}

/// Does not offer STARTTLS.
#[derive(Clone, Copy, Debug, Default)]
pub struct Plain;

impl Behaviour for Plain {
    fn offer(&self, config: &mut Config) {
        config.starttls = false;
    }
}

/// Offers STARTTLS, and its handshakes fail.
#[derive(Clone, Copy, Debug, Default)]
pub struct BrokenTls;

impl Behaviour for BrokenTls {
    fn breaks_tls(&self) -> bool {
        true
    }
}

/// Does not offer 8BITMIME.
#[derive(Clone, Copy, Debug, Default)]
pub struct SevenBit;

impl Behaviour for SevenBit {
    fn offer(&self, config: &mut Config) {
        config.eight_bit_mime = false;
    }
}

/// Takes addresses and header fields beyond ASCII (RFC 6531).
#[derive(Clone, Copy, Debug, Default)]
pub struct Utf8;

impl Behaviour for Utf8 {
    fn offer(&self, config: &mut Config) {
        config.smtputf8 = true;
    }
}

/// Takes messages of so many octets at most, and says so with SIZE.
#[derive(Clone, Copy, Debug)]
pub struct Small(pub u64);

impl Behaviour for Small {
    fn offer(&self, config: &mut Config) {
        config.max_message_bytes = self.0;
    }
}

/// Keeps a message and hangs up without a word; when the same sender comes again for the same recipients, it answers.
#[derive(Debug, Default)]
pub struct DropsAfterDot(Mutex<Seen<(ReversePath, Vec<Mailbox>)>>);

impl Behaviour for DropsAfterDot {
    fn hangs_up(&self, visit: Visit<'_>, recipients: &[Mailbox]) -> bool {
        self.0.lock().is_new((visit.sender.clone(), recipients.to_vec()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn greylisting_goes_by_all_three() {
        let greylist = Greylists::default();
        let [one, two]: [IpAddr; 2] = ["127.0.0.1", "127.0.0.2"].map(|a| a.parse().unwrap());
        let sender = ReversePath::Mailbox("a@sender.test".parse().unwrap());
        let ask = |client, sender, to: &str| {
            let visit = Visit {
                client,
                helo: "x",
                sender,
            };
            greylist
                .rcpt(visit, &to.parse().unwrap())
                .map(|reply| reply.to_string())
        };
        let told = Some("450 4.7.1 greylisted: not seen before, please come again".to_owned());
        for (client, sender, to) in [
            (one, &sender, "b@greylist.test"),
            (two, &sender, "b@greylist.test"),
            (one, &ReversePath::Null, "b@greylist.test"),
            (one, &sender, "c@greylist.test"),
        ] {
            assert_eq!(ask(client, sender, to), told);
            assert_eq!(ask(client, sender, to), None);
            assert_eq!(ask(client, sender, to), None);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn busy_hosts_count_by_the_second() {
        let busy = Busy::above(2);
        let sender = ReversePath::Null;
        let visit = Visit {
            client: IpAddr::from([127, 0, 0, 1]),
            helo: "x",
            sender: &sender,
        };
        let ask = || busy.mail(visit).map(|reply| reply.code);
        assert_eq!([ask(), ask(), ask(), ask()], [None, None, Some(421), Some(421)]);
        tokio::time::advance(Duration::from_secs(1)).await;
        assert_eq!([ask(), ask(), ask()], [None, None, Some(421)]);
    }

    #[test]
    fn a_message_is_dropped_once() {
        let drops = DropsAfterDot::default();
        let sender = ReversePath::Null;
        let visit = Visit {
            client: IpAddr::from([127, 0, 0, 1]),
            helo: "x",
            sender: &sender,
        };
        let [a, b]: [Mailbox; 2] = ["a@x.test", "b@x.test"].map(|to| to.parse().unwrap());
        assert!(drops.hangs_up(visit, std::slice::from_ref(&a)));
        assert!(!drops.hangs_up(visit, std::slice::from_ref(&a)));
        assert!(drops.hangs_up(visit, &[a, b]));
    }
}
