//! The accounts: what was acknowledged against what arrived, was reported, or still waits. Pure.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use crate::flood::Acknowledged;
use crate::message::{Plan, SENDER, UNKNOWN, number_in};

/// Receivers and the relay's log don't note the same moment; so far apart they may be, in microseconds.
const SLACK: u64 = 2_000_000;

/// The relay's death and its next life, in microseconds since 1970.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Kill {
    pub(crate) at: u64,
    /// When it was started again: nothing that a receiver has taken before is the next life's doing.
    pub(crate) back: u64,
}

/// A message as a receiver of the lab took it, for one recipient.
#[derive(Clone, Debug)]
pub(crate) struct Arrival {
    pub(crate) recipient: String,
    /// From the null sender to the one who sends: a report on the message of this number.
    pub(crate) report: bool,
    /// The queue id that it tells; empty where it tells none.
    pub(crate) id: String,
    /// `None`: no message of the plan's.
    pub(crate) number: Option<u64>,
    /// A message ends with just what was sent, a report can be of anything.
    pub(crate) intact: bool,
    /// Microseconds since 1970.
    pub(crate) at: u64,
    /// See [`crate::flood::Position`]: all that is done because it has arrived is done after it.
    pub(crate) position: usize,
}

impl Arrival {
    /// One for each recipient. An empty sender is the null sender.
    pub(crate) fn of(
        plan: Plan,
        sender: &str,
        recipients: &[String],
        raw: &[u8],
        at: u64,
        position: usize,
    ) -> Vec<Self> {
        let (id, number) = (received_id(raw).unwrap_or_default(), number_in(raw));
        let arrival = |recipient: &String| {
            let report = sender.is_empty() && recipient == SENDER;
            Self {
                recipient: recipient.clone(),
                report,
                id: id.clone(),
                number,
                intact: report || number.is_some_and(|number| raw.ends_with(&plan.message(number).raw)),
                at,
                position,
            }
        };
        recipients.iter().map(arrival).collect()
    }
}

/// A line of the relay's log that tells of a recipient.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Told {
    pub(crate) id: String,
    /// Empty: of all of them.
    pub(crate) recipient: String,
    /// As in the journal: delivered, deferred, bounced, in_doubt, …; and `on_the_wire`, when its transaction begins.
    pub(crate) event: String,
    /// Microseconds since 1970.
    pub(crate) at: u64,
}

/// Everything known at the end of a round.
#[derive(Debug)]
pub(crate) struct Known {
    pub(crate) plan: Plan,
    pub(crate) acknowledged: Vec<Acknowledged>,
    pub(crate) arrivals: Vec<Arrival>,
    pub(crate) told: Vec<Told>,
    pub(crate) kills: Vec<Kill>,
    /// Ids that the queue still holds.
    pub(crate) queued: BTreeSet<String>,
}

/// What the comparison found.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Account {
    pub(crate) messages: usize,
    /// Recipients of acknowledged messages.
    pub(crate) recipients: usize,
    pub(crate) delivered: usize,
    pub(crate) bounced: usize,
    pub(crate) queued: usize,
    /// Recipients without any of the three.
    pub(crate) lost: Vec<String>,
    /// Messages that arrived otherwise than sent.
    pub(crate) damaged: Vec<String>,
    /// Arrivals more than one, by the window that explains them.
    pub(crate) explained: BTreeMap<&'static str, usize>,
    /// Arrivals more than one that nothing explains.
    pub(crate) unexplained: Vec<String>,
    /// A failed recipient that was reported by more than one report, or a report on none.
    pub(crate) invented: Vec<String>,
}

impl Account {
    /// Draws the balance.
    pub(crate) fn of(known: &Known) -> Self {
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
            let (id, recipient) = (&arrival.id, arrival.recipient.as_str());
            let Some(number) = arrival.number else {
                account
                    .damaged
                    .push(format!("{id} for {recipient}: no number in it"));
                continue;
            };
            copies
                .entry((id.clone(), recipient))
                .or_default()
                .push(arrival.at);
            if arrival.report {
                reports.entry(number).or_default().insert(id.clone());
                continue;
            }
            *arrived.entry((number, recipient)).or_default() += 1;
            if !arrival.intact {
                account
                    .damaged
                    .push(format!("{id} (message {number}) for {recipient}"));
            }
        }
        for sent in &known.acknowledged {
            for recipient in &known.plan.recipients(sent.number) {
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
            let expected = known.plan.recipients(*number).iter().any(|to| to == UNKNOWN);
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
    pub(crate) fn holds(&self) -> bool {
        self.lost.is_empty()
            && self.damaged.is_empty()
            && self.unexplained.is_empty()
            && self.invented.is_empty()
    }

    /// The verdict in words.
    pub(crate) fn verdict(&self) -> &'static str {
        if self.holds() {
            "every promise held"
        } else {
            "A PROMISE DID NOT HOLD"
        }
    }

    /// What should not be.
    pub(crate) fn findings(&self) -> impl Iterator<Item = &String> {
        [&self.lost, &self.damaged, &self.unexplained, &self.invented]
            .into_iter()
            .flatten()
    }

    /// Adds up rounds for the table's last line; the findings stay with their rounds.
    pub(crate) fn add(&mut self, other: &Self) {
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
    /// What was so when something watched had come to `position`, and it was so late.
    pub(crate) fn until(&self, position: usize, at: u64) -> Self {
        let acknowledged = self.acknowledged.iter().filter(|one| one.position <= position);
        let arrivals = self.arrivals.iter().filter(|one| one.position <= position);
        let told = self.told.iter().filter(|one| one.at <= at);
        let kills = self.kills.iter().filter(|one| one.at <= at);
        Self {
            plan: self.plan,
            acknowledged: acknowledged.cloned().collect(),
            arrivals: arrivals.cloned().collect(),
            told: told.cloned().collect(),
            kills: kills.copied().collect(),
            queued: BTreeSet::new(),
        }
    }

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
        if told("in_doubt", first.saturating_sub(SLACK), second + SLACK) {
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
    use crate::message::Sizes;

    const PLAN: Plan = Plan {
        seed: 11,
        sizes: Sizes::Small,
    };

    /// A number whose message has exactly the one recipient wanted.
    fn number_for(wanted: impl Fn(&[String]) -> bool) -> u64 {
        (0..100_000)
            .find(|number| wanted(&PLAN.recipients(*number)))
            .expect("some message has these recipients")
    }

    fn plain() -> u64 {
        number_for(|to| to.len() == 1 && to[0].ends_with("@ok.test"))
    }

    fn arrival(number: u64, id: &str, recipient: &str, at: u64) -> Arrival {
        let mut raw = format!("Received: from x by y\r\n\twith ESMTP id {id}; now\r\n").into_bytes();
        raw.extend_from_slice(&PLAN.message(number).raw);
        let of = Arrival::of(PLAN, SENDER, &[recipient.to_owned()], &raw, at, 0);
        of.into_iter().next().expect("one recipient, one arrival")
    }

    fn known(number: u64) -> Known {
        Known {
            plan: PLAN,
            acknowledged: vec![Acknowledged {
                number,
                id: "A".to_owned(),
                position: 0,
            }],
            arrivals: Vec::new(),
            told: Vec::new(),
            queued: BTreeSet::new(),
            kills: vec![Kill {
                at: 5_000,
                back: 5_300,
            }],
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
        let to = PLAN.recipients(number).remove(0);
        let mut known = known(number);
        known.arrivals.push(arrival(number, "A", &to, 1));
        assert!(Account::of(&known).holds());
        let mut raw = PLAN.message(number).raw.to_vec();
        let end = raw.len() - 3;
        raw[end] ^= 1;
        known.arrivals = Arrival::of(PLAN, SENDER, &[to], &raw, 1, 0);
        assert_eq!(Account::of(&known).damaged.len(), 1);
    }

    #[test]
    fn a_second_copy_needs_a_window() {
        let number = plain();
        let to = PLAN.recipients(number)[0].clone();
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
            report: true,
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
