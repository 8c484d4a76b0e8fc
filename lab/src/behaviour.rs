//! How receiving hosts behave: what they say at each stage, and how long they take.

use std::collections::{HashSet, VecDeque};
use std::net::IpAddr;
use std::time::Duration;

use mail_core::{Mailbox, Reply, ReversePath};
use parking_lot::Mutex;

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
    /// `Some`: the reply that refuses this recipient. It is asked after the domain was found to be one of the host's.
    fn rcpt(&self, _: Visit<'_>, _: &Mailbox) -> Option<Reply> {
        None
    }

    /// `Some`: the reply that refuses a whole message after its final dot; nothing is kept.
    fn message(&self, _: Visit<'_>, _: &[Mailbox]) -> Option<Reply> {
        None
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
pub struct Greylists(Mutex<Seen>);

/// Triples remembered, some 200 octets each; the oldest is forgotten first.
const MAX_SEEN: usize = 100_000;

#[derive(Debug, Default)]
struct Seen {
    triples: HashSet<Triple>,
    order: VecDeque<Triple>,
}

type Triple = (IpAddr, ReversePath, Mailbox);

impl Behaviour for Greylists {
    fn rcpt(&self, visit: Visit<'_>, recipient: &Mailbox) -> Option<Reply> {
        let triple = (visit.client, visit.sender.clone(), recipient.clone());
        let mut seen = self.0.lock();
        if !seen.triples.insert(triple.clone()) {
            return None;
        }
        seen.order.push_back(triple);
        if seen.order.len() > MAX_SEEN
            && let Some(oldest) = seen.order.pop_front()
        {
            seen.triples.remove(&oldest);
        }
        Some(Reply::new(
            450,
            7,
            1,
            "greylisted: not seen before, please come again",
        ))
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
}
