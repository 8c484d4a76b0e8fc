//! The accounts: what was acknowledged against what arrived, was reported, or still waits. Pure.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use bytes::Bytes;

use super::flood::Acknowledged;
use super::message::{Message, SENDER, UNKNOWN, number_in};

/// Receivers and the relay's log don't note the same moment; so far apart they may be, in milliseconds.
const SLACK_MS: u64 = 2_000;

/// The relay's death and its next life, in milliseconds since 1970.
#[derive(Clone, Copy, Debug)]
pub(super) struct Kill {
    pub(super) at: u64,
    /// When it was started again: nothing that a receiver has taken before is the next life's doing.
    pub(super) back: u64,
}

/// A message as a receiver of the lab took it, for one recipient.
#[derive(Clone, Debug)]
pub(super) struct Arrival {
    pub(super) recipient: String,
    /// Without brackets; empty: the null sender.
    pub(super) sender: String,
    pub(super) raw: Bytes,
    /// Milliseconds since 1970.
    pub(super) at: u64,
}

/// A line of the relay's log that tells of a recipient.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Told {
    pub(super) id: String,
    /// Empty: of all of them.
    pub(super) recipient: String,
    /// As in the journal: delivered, deferred, bounced, in_doubt, …; and `on_the_wire`, when its transaction begins.
    pub(super) event: String,
    /// Milliseconds since 1970.
    pub(super) at: u64,
}

/// Everything known at the end of a round.
#[derive(Debug, Default)]
pub(super) struct Known {
    pub(super) seed: u64,
    pub(super) acknowledged: Vec<Acknowledged>,
    pub(super) arrivals: Vec<Arrival>,
    pub(super) told: Vec<Told>,
    pub(super) kills: Vec<Kill>,
    /// Ids that the queue still holds.
    pub(super) queued: BTreeSet<String>,
}

/// What the comparison found.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Account {
    pub(super) messages: usize,
    /// Recipients of acknowledged messages.
    pub(super) recipients: usize,
    pub(super) delivered: usize,
    pub(super) bounced: usize,
    pub(super) queued: usize,
    /// Recipients without any of the three.
    pub(super) lost: Vec<String>,
    /// Messages that arrived otherwise than sent.
    pub(super) damaged: Vec<String>,
    /// Arrivals more than one, by the window that explains them.
    pub(super) explained: BTreeMap<&'static str, usize>,
    /// Arrivals more than one that nothing explains.
    pub(super) unexplained: Vec<String>,
    /// A failed recipient that was reported by more than one report, or a report on none.
    pub(super) invented: Vec<String>,
}

impl Account {
    /// Draws the balance.
    pub(super) fn of(known: &Known) -> Self {
        let mut account = Self {
            messages: known.acknowledged.len(),
            ..Self::default()
        };
        // The number → the ids of reports on it.
        let mut reports: HashMap<u64, BTreeSet<String>> = HashMap::new();
        // (id, recipient) → times of arrival.
        let mut copies: BTreeMap<(String, &str), Vec<u64>> = BTreeMap::new();
        let mut arrived: HashMap<(u64, &str), usize> = HashMap::new();
        for arrival in &known.arrivals {
            let id = received_id(&arrival.raw).unwrap_or_default();
            let Some(number) = number_in(&arrival.raw) else {
                account
                    .damaged
                    .push(format!("{id} for {}: no number in it", arrival.recipient));
                continue;
            };
            copies
                .entry((id.clone(), &arrival.recipient))
                .or_default()
                .push(arrival.at);
            if arrival.sender.is_empty() && arrival.recipient == SENDER {
                reports.entry(number).or_default().insert(id);
                continue;
            }
            *arrived.entry((number, &arrival.recipient)).or_default() += 1;
            if !arrival.raw.ends_with(&Message::new(known.seed, number).raw) {
                account
                    .damaged
                    .push(format!("{id} (message {number}) for {}", arrival.recipient));
            }
        }
        for sent in &known.acknowledged {
            for recipient in &Message::new(known.seed, sent.number).recipients {
                account.recipients += 1;
                if recipient != UNKNOWN && arrived.contains_key(&(sent.number, recipient.as_str())) {
                    account.delivered += 1;
                } else if recipient == UNKNOWN && reports.contains_key(&sent.number) {
                    account.bounced += 1;
                } else if known.queued.contains(&sent.id) {
                    account.queued += 1;
                } else {
                    account
                        .lost
                        .push(format!("{} (message {}) for {recipient}", sent.id, sent.number));
                }
            }
        }
        for (number, ids) in &reports {
            let expected = Message::new(known.seed, *number)
                .recipients
                .iter()
                .any(|to| to == UNKNOWN);
            if ids.len() > 1 || !expected {
                account
                    .invented
                    .push(format!("message {number}: {} reports", ids.len()));
            }
        }
        account.invented.sort();
        for ((id, recipient), mut times) in copies {
            times.sort_unstable();
            for pair in times.windows(2) {
                match known.window(&id, recipient, pair[0], pair[1]) {
                    Some(window) => *account.explained.entry(window).or_default() += 1,
                    None => account
                        .unexplained
                        .push(format!("{id} for {recipient}, at {} and {}", pair[0], pair[1])),
                }
            }
        }
        account
    }

    /// Whether every promise held.
    pub(super) fn holds(&self) -> bool {
        self.lost.is_empty()
            && self.damaged.is_empty()
            && self.unexplained.is_empty()
            && self.invented.is_empty()
    }

    /// Adds up rounds for the table's last line; the findings stay with their rounds.
    pub(super) fn add(&mut self, other: &Self) {
        self.messages += other.messages;
        self.recipients += other.recipients;
        self.delivered += other.delivered;
        self.bounced += other.bounced;
        self.queued += other.queued;
        self.lost.extend_from_slice(&other.lost);
        self.damaged.extend_from_slice(&other.damaged);
        self.unexplained.extend_from_slice(&other.unexplained);
        self.invented.extend_from_slice(&other.invented);
        for (window, count) in &other.explained {
            *self.explained.entry(window).or_default() += count;
        }
    }
}

impl Known {
    /// The window that explains a copy at `second` after one at `first` (promise 3), or none.
    fn window(&self, id: &str, recipient: &str, first: u64, second: u64) -> Option<&'static str> {
        let told = |event: &str, from: u64, to: u64| {
            self.told.iter().any(|line| {
                line.id == id
                    && line.event == event
                    && (line.recipient == recipient || line.recipient.is_empty())
                    && (from..=to).contains(&line.at)
            })
        };
        // The connection broke after the final dot and the relay wrote that down.
        if told("in_doubt", first.saturating_sub(SLACK_MS), second + SLACK_MS) {
            return Some("in doubt");
        }
        // It was killed between the final dot and the settle: the log has it on the wire before the kill, and no end of it.
        let kill = self
            .kills
            .iter()
            .find(|kill| first <= kill.back && kill.at <= second)?;
        let in_flight = told("on_the_wire", 0, kill.at) && !told("delivered", 0, kill.at);
        in_flight.then_some("in flight at the kill")
    }
}

/// The queue id that our own Received field, the first one, tells. A report has none: it tells its id in its Message-ID.
fn received_id(raw: &[u8]) -> Option<String> {
    let head = raw
        .windows(4)
        .position(|w| w == b"\r\n\r\n")
        .map_or(raw, |end| &raw[..end]);
    let head = String::from_utf8_lossy(head);
    let start = match head.find("\r\nReceived:") {
        _ if head.starts_with("Received:") => 0,
        Some(found) => found + 2,
        None => {
            return head
                .split_once("\r\nMessage-ID: <")?
                .1
                .split_once('@')
                .map(|(id, _)| id.to_owned());
        }
    };
    let mut field = String::new();
    for (n, line) in head[start..].split("\r\n").enumerate() {
        if n > 0 && !line.starts_with([' ', '\t']) {
            break;
        }
        field.push_str(line);
        field.push(' ');
    }
    let mut words = field.split_ascii_whitespace();
    words.find(|word| *word == "id")?;
    words.next().map(|id| id.trim_end_matches(';').to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    const SEED: u64 = 11;

    /// A number whose message has exactly the one recipient wanted.
    fn number_for(wanted: impl Fn(&[String]) -> bool) -> u64 {
        (0..100_000)
            .find(|number| wanted(&Message::new(SEED, *number).recipients))
            .expect("some message has these recipients")
    }

    fn plain() -> u64 {
        number_for(|to| to.len() == 1 && to[0].ends_with("@ok.test"))
    }

    fn arrival(number: u64, id: &str, recipient: &str, at: u64) -> Arrival {
        let mut raw = format!("Received: from x by y\r\n\twith ESMTP id {id}; now\r\n").into_bytes();
        raw.extend_from_slice(&Message::new(SEED, number).raw);
        Arrival {
            recipient: recipient.to_owned(),
            sender: SENDER.to_owned(),
            raw: raw.into(),
            at,
        }
    }

    fn known(number: u64) -> Known {
        Known {
            seed: SEED,
            acknowledged: vec![Acknowledged {
                number,
                id: "A".to_owned(),
            }],
            kills: vec![Kill {
                at: 5_000,
                back: 5_300,
            }],
            ..Known::default()
        }
    }

    fn delivered_at(at: u64, recipient: &str) -> Told {
        Told {
            id: "A".to_owned(),
            recipient: recipient.to_owned(),
            event: "delivered".to_owned(),
            at,
        }
    }

    #[test]
    fn what_is_nowhere_is_lost() {
        let account = Account::of(&known(plain()));
        assert_eq!(account.lost.len(), 1);
        assert!(!account.holds());
    }

    #[test]
    fn what_waits_is_not_lost() {
        let mut known = known(plain());
        known.queued.insert("A".to_owned());
        let account = Account::of(&known);
        assert_eq!((account.queued, account.holds()), (1, true));
    }

    #[test]
    fn what_arrived_is_delivered_and_a_changed_octet_is_seen() {
        let number = plain();
        let to = &Message::new(SEED, number).recipients[0];
        let mut known = known(number);
        known.arrivals.push(arrival(number, "A", to, 1));
        assert!(Account::of(&known).holds());
        let mut raw = known.arrivals[0].raw.to_vec();
        let end = raw.len() - 3;
        raw[end] ^= 1;
        known.arrivals[0].raw = raw.into();
        assert_eq!(Account::of(&known).damaged.len(), 1);
    }

    #[test]
    fn a_second_copy_needs_a_window() {
        let number = plain();
        let to = Message::new(SEED, number).recipients[0].clone();
        let mut known = known(number);
        known.arrivals = vec![arrival(number, "A", &to, 4_900), arrival(number, "A", &to, 6_000)];
        // Nothing in the log says that it was sent before.
        assert_eq!(Account::of(&known).unexplained.len(), 1);
        let wire = Told {
            event: "on_the_wire".to_owned(),
            ..delivered_at(4_800, "")
        };
        known.told = vec![wire.clone()];
        assert_eq!(
            Account::of(&known).explained.get("in flight at the kill"),
            Some(&1)
        );
        // Told as delivered before the kill: then nothing may send it again.
        known.told = vec![wire.clone(), delivered_at(4_950, &to)];
        assert_eq!(Account::of(&known).unexplained.len(), 1);
        // Both copies are the next life's.
        known.told = vec![wire];
        known.arrivals = vec![arrival(number, "A", &to, 5_400), arrival(number, "A", &to, 6_000)];
        assert_eq!(Account::of(&known).unexplained.len(), 1);
        // No kill between the two copies.
        known.told.clear();
        known.kills = vec![Kill {
            at: 50_000,
            back: 50_300,
        }];
        assert_eq!(Account::of(&known).unexplained.len(), 1);
        known.told = vec![Told {
            event: "in_doubt".to_owned(),
            ..delivered_at(5_500, &to)
        }];
        assert_eq!(Account::of(&known).explained.get("in doubt"), Some(&1));
    }

    #[test]
    fn a_failure_is_reported_exactly_once() {
        let number = number_for(|to| to == [UNKNOWN]);
        let report = |id: &str, at| Arrival {
            sender: String::new(),
            ..arrival(number, id, SENDER, at)
        };
        let mut known = known(number);
        assert_eq!(Account::of(&known).lost.len(), 1);
        known.arrivals = vec![report("R", 1)];
        assert_eq!(
            (Account::of(&known).bounced, Account::of(&known).holds()),
            (1, true)
        );
        // The same report twice, around the kill, is a duplicate; another report is an invention.
        known.arrivals = vec![report("R", 4_999), report("R", 7_000)];
        known.told = vec![Told {
            id: "R".to_owned(),
            event: "on_the_wire".to_owned(),
            ..delivered_at(4_900, "")
        }];
        assert!(Account::of(&known).holds());
        known.arrivals = vec![report("R", 4_999), report("S", 7_000)];
        assert_eq!(Account::of(&known).invented.len(), 1);
    }

    #[test]
    fn the_id_is_read_from_the_first_received_field() {
        let raw = b"DKIM-Signature: a\r\nReceived: from c ([127.0.0.1])\r\n\tby r with ESMTP\r\n\tid 018f; Mon\r\nReceived: x id other\r\n\r\n";
        assert_eq!(received_id(raw).as_deref(), Some("018f"));
        assert_eq!(received_id(b"Subject: id 3\r\n\r\nReceived: id 4\r\n"), None);
        assert_eq!(
            received_id(b"From: x\r\nMessage-ID: <018a@r.test>\r\n\r\n").as_deref(),
            Some("018a")
        );
    }
}
