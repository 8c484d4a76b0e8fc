//! What happened to each message of a load, and what it comes to. Pure.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use parking_lot::Mutex;
use serde::Serialize;

/// The most messages of a load, and of what a sink remembers: 64 octets each there, 80 here.
pub(crate) const MAX_MESSAGES: u32 = 20_000_000;
/// The longest time told apart from longer ones, in nanoseconds.
const LONGEST: u64 = 6 * 3_600 * 1_000_000_000;
/// How many findings are told in words.
const TOLD: usize = 5;
/// So long after a message was taken its outcome is on disk, on a machine that is not stalled.
const SETTLED_WITHIN: Duration = Duration::from_secs(5);

/// A message that was handed over, or was not.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sent {
    pub(crate) number: u32,
    /// The domain of its recipients, and how many they are; 0: it was not begun.
    pub(crate) domain: u32,
    pub(crate) recipients: u8,
    /// The reply to its end, or the first one that refused it; 0: the connection broke.
    pub(crate) code: u16,
    /// When it was meant to be begun, when it was, when its data had been written, when it was answered; since the run's zero.
    pub(crate) meant: Duration,
    pub(crate) begun: Duration,
    pub(crate) written: Duration,
    pub(crate) answered: Duration,
}

impl Sent {
    pub(crate) fn is_accepted(&self) -> bool {
        (200..300).contains(&self.code)
    }
}

/// A message that has arrived.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Arrival {
    pub(crate) run: u64,
    pub(crate) number: u32,
    pub(crate) domain: u32,
    /// A bit for each of the message's recipients that it came to, and [`OTHERS`] for all that are none of them.
    pub(crate) recipients: u128,
    pub(crate) intact: bool,
    /// When the sink took it, since the run's zero.
    pub(crate) at: Duration,
    /// How long its transaction had gone on by then, from its MAIL. Microseconds, at most 71 minutes.
    pub(crate) transaction_us: u32,
    /// How long the sink had had all of its octets by then, its delay included: the peer's own time. Microseconds, at most 71 minutes.
    pub(crate) own_us: u32,
}

impl Arrival {
    /// When its last octet had been read, since the run's zero: up to here it is the relay's time.
    pub(crate) fn read(&self) -> Duration {
        self.at.saturating_sub(Duration::from_micros(self.own_us.into()))
    }
}

/// How many transactions were under way at once, on average over a span, by what has arrived: each from its MAIL until the message was
/// taken. One that nothing came of does not count.
pub(crate) fn under_way(arrivals: &[Arrival], span: &Range<Duration>) -> f64 {
    let within = arrivals.iter().map(|arrival| {
        let begun = arrival
            .at
            .saturating_sub(Duration::from_micros(arrival.transaction_us.into()));
        arrival.at.min(span.end).saturating_sub(begun.max(span.start))
    });
    within.sum::<Duration>().as_secs_f64() / span.end.saturating_sub(span.start).as_secs_f64()
}

/// Microseconds, at most 71 minutes.
pub(crate) fn micros(time: Duration) -> u32 {
    u32::try_from(time.as_micros()).unwrap_or(u32::MAX)
}

/// Of [`Arrival::recipients`].
pub(crate) const OTHERS: u128 = 1 << 127;

/// A growing list that many write and that is read at the end; its length can be asked for at any time.
pub(crate) struct Rows<T> {
    rows: Mutex<Vec<T>>,
    count: AtomicU64,
}

impl<T> Default for Rows<T> {
    fn default() -> Self {
        Self {
            rows: Mutex::default(),
            count: AtomicU64::new(0),
        }
    }
}

impl<T: Clone> Rows<T> {
    /// Beyond [`MAX_MESSAGES`] it is counted and not kept.
    pub(crate) fn push(&self, row: T) {
        let mut rows = self.rows.lock();
        if rows.len() < MAX_MESSAGES as usize {
            rows.push(row);
        }
        drop(rows);
        self.count.fetch_add(1, Ordering::Release);
    }

    pub(crate) fn count(&self) -> u64 {
        self.count.load(Ordering::Acquire)
    }

    /// Of those kept so far.
    pub(crate) fn count_of(&self, these: impl Fn(&T) -> bool) -> u64 {
        self.rows.lock().iter().filter(|row| these(row)).count() as u64
    }

    /// All kept so far.
    pub(crate) fn all(&self) -> Vec<T> {
        self.rows.lock().clone()
    }
}

/// Quantiles of a time, in milliseconds.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub(crate) struct Quantiles {
    pub(crate) p50: f64,
    pub(crate) p90: f64,
    pub(crate) p99: f64,
    pub(crate) p999: f64,
    pub(crate) max: f64,
}

impl Quantiles {
    /// To three digits.
    pub(crate) fn of(times: impl Iterator<Item = Duration>) -> Self {
        // Its only error is about these figures: from a nanosecond to six hours.
        let Ok(mut histogram) = Histogram::<u64>::new_with_bounds(1, LONGEST, 3) else {
            return Self::default();
        };
        for time in times {
            histogram.saturating_record(u64::try_from(time.as_nanos()).unwrap_or(u64::MAX));
        }
        let at = |quantile| histogram.value_at_quantile(quantile) as f64 / 1e6;
        Self {
            p50: at(0.5),
            p90: at(0.9),
            p99: at(0.99),
            p999: at(0.999),
            max: histogram.max() as f64 / 1e6,
        }
    }
}

impl std::fmt::Display for Quantiles {
    fn fmt(&self, to: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self {
            p50,
            p90,
            p99,
            p999,
            max,
        } = self;
        write!(
            to,
            "p50 {p50:.2}, p90 {p90:.2}, p99 {p99:.2}, p99.9 {p999:.2}, max {max:.2} ms"
        )
    }
}

/// In what order mail to a domain came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Order {
    pub(crate) domain: u32,
    /// That have arrived.
    pub(crate) messages: u64,
    /// As [`Balance::overtaken`].
    pub(crate) overtaken: u64,
}

/// What became of what was accepted.
#[derive(Clone, Debug, Default, Serialize)]
pub(crate) struct Balance {
    pub(crate) accepted: u64,
    /// Different messages that have arrived.
    pub(crate) arrived: u64,
    /// Accepted and not arrived.
    pub(crate) lost: u64,
    /// Arrived otherwise than sent, or not to be recognised.
    pub(crate) damaged: u64,
    /// Arrivals more than one of a message.
    pub(crate) duplicates: u64,
    /// Of further arrivals those that a kill explains: it fell between the two, and the outcome of the first was not yet on disk.
    pub(crate) in_doubt: u64,
    /// Arrived without having been accepted, though answered so.
    pub(crate) invented: u64,
    /// Came to a mailbox that they were not sent to.
    pub(crate) astray: u64,
    /// The most messages to the same domain that arrived before one although they were begun after it had been accepted.
    pub(crate) overtaken: u64,
    /// The same by domain, of those that were judged.
    #[serde(skip)]
    pub(crate) order: Vec<Order>,
    /// Some of what should not be, in words.
    pub(crate) findings: Vec<String>,
}

impl Balance {
    /// Draws it for the load `run`, during which the relay was killed at these moments, since the run's zero.
    pub(crate) fn of(run: u64, sent: &[Sent], arrivals: &[Arrival], kills: &[Duration]) -> Self {
        let mut balance = Self::default();
        let mut by_number: HashMap<u32, (&Sent, u32)> =
            sent.iter().map(|sent| (sent.number, (sent, 0))).collect();
        let mut last_at: HashMap<u32, Duration> = HashMap::new();
        let explained = |before: Option<Duration>, at: Duration| {
            let since = |kill: &Duration| Some(kill.checked_sub(before?)? <= SETTLED_WITHIN && *kill <= at);
            kills.iter().any(|kill| since(kill) == Some(true))
        };
        let mut found = Vec::new();
        for arrival in arrivals {
            let number = arrival.number;
            if arrival.run != run {
                continue; // another load's, or nobody's: the sink counts those
            }
            if !arrival.intact {
                balance.damaged += 1;
                found.push(format!("message {number} is damaged"));
            }
            match by_number.get_mut(&number) {
                Some((sent, copies)) => {
                    // The first of its recipients is bit 0; none of them is `OTHERS`.
                    let elsewhere =
                        arrival.domain != sent.domain || arrival.recipients >> sent.recipients != 0;
                    if sent.recipients > 0 && elsewhere {
                        balance.astray += 1;
                        found.push(format!(
                            "message {number} came to a mailbox that it was not sent to"
                        ));
                    }
                    *copies += 1;
                    let before = match kills {
                        [] => None,
                        _ => last_at.insert(number, arrival.at),
                    };
                    match *copies {
                        1 => balance.arrived += 1,
                        _ if explained(before, arrival.at) => balance.in_doubt += 1,
                        _ => {
                            balance.duplicates += 1;
                            found.push(format!("message {number} arrived {copies} times"));
                        }
                    }
                    // Without an answer it may be the relay's or not.
                    if !matches!(sent.code, 0 | 200..300) {
                        balance.invented += 1;
                        found.push(format!(
                            "message {number} arrived although it was answered {}",
                            sent.code
                        ));
                    }
                }
                None => {
                    balance.invented += 1;
                    found.push(format!("message {number} arrived and was never sent"));
                }
            }
        }
        for (sent, copies) in by_number.values() {
            if sent.is_accepted() {
                balance.accepted += 1;
                if *copies == 0 {
                    balance.lost += 1;
                    found.push(format!("message {} was accepted and did not arrive", sent.number));
                }
            }
        }
        balance.ordered(orders(&by_number, run, arrivals.iter()));
        found.sort();
        found.truncate(TOLD);
        balance.findings = found;
        balance
    }

    /// Judges the order of those alone that go to domains that `these` names.
    pub(crate) fn order_among(
        &mut self,
        run: u64,
        sent: &[Sent],
        arrivals: &[Arrival],
        these: impl Fn(u32) -> bool,
    ) {
        let by_number = sent.iter().map(|sent| (sent.number, (sent, 0))).collect();
        let arrivals = arrivals.iter().filter(|arrival| these(arrival.domain));
        self.ordered(orders(&by_number, run, arrivals));
    }

    fn ordered(&mut self, order: Vec<Order>) {
        self.overtaken = order.iter().map(|order| order.overtaken).max().unwrap_or(0);
        self.order = order;
    }

    /// Whether nothing is lost, damaged, invented, astray or there twice.
    pub(crate) fn holds(&self) -> bool {
        [
            self.lost,
            self.damaged,
            self.duplicates,
            self.invented,
            self.astray,
        ] == [0; 5]
    }

    pub(crate) fn words(&self) -> String {
        let Self {
            accepted,
            arrived,
            lost,
            damaged,
            duplicates,
            in_doubt,
            invented,
            astray,
            overtaken,
            ..
        } = self;
        let in_doubt = match in_doubt {
            0 => String::new(),
            count => format!(", {count} again after a kill"),
        };
        format!(
            "{accepted} accepted, {arrived} arrived, {lost} lost, {damaged} damaged, {duplicates} duplicates{in_doubt}, \
             {invented} invented, {astray} astray, {overtaken} overtaken at the most"
        )
    }
}

/// By how many at the most a message to each domain was overtaken: they were begun after its 250 had been read, and arrived before it
/// did. A message that comes again, after a kill, came when it came first. Counts, for each arrival, those before it that were begun
/// later, by a Fenwick tree over the order of beginnings.
fn orders<'a>(
    by_number: &HashMap<u32, (&Sent, u32)>,
    run: u64,
    arrivals: impl Iterator<Item = &'a Arrival>,
) -> Vec<Order> {
    let mut domains: HashMap<u32, HashMap<u32, (Duration, &Sent)>> = HashMap::new();
    for arrival in arrivals.filter(|arrival| arrival.run == run) {
        if let Some((sent, _)) = by_number.get(&arrival.number) {
            let came = domains.entry(arrival.domain).or_default();
            let (first, _) = came.entry(arrival.number).or_insert((arrival.at, sent));
            *first = arrival.at.min(*first);
        }
    }
    let orders = domains.into_iter().map(|(domain, came)| {
        let mut came: Vec<_> = came.into_values().collect();
        came.sort_unstable_by_key(|(at, sent)| (*at, sent.number));
        Order {
            domain,
            messages: came.len() as u64,
            overtaken: overtaken(&came),
        }
    });
    orders.collect()
}

/// Of one domain's messages, as they came.
fn overtaken(came: &[(Duration, &Sent)]) -> u64 {
    let mut most = 0;
    let mut begun: Vec<Duration> = came.iter().map(|(_, sent)| sent.begun).collect();
    begun.sort_unstable();
    let mut tree = vec![0_u32; begun.len() + 1];
    for (before, (_, sent)) in came.iter().enumerate() {
        // Of those that arrived before, all but those begun by the time this one was answered.
        let mut at = begun.partition_point(|begun| *begun <= sent.answered);
        let mut earlier = 0;
        while at > 0 {
            earlier += u64::from(tree[at]);
            at &= at - 1;
        }
        most = most.max((before as u64).saturating_sub(earlier));
        let mut at = begun.partition_point(|begun| *begun < sent.begun) + 1;
        while at < tree.len() {
            tree[at] += 1;
            at += at & at.wrapping_neg();
        }
    }
    most
}

/// The zero that all times of a run are told from.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Zero(Instant);

impl Zero {
    pub(crate) fn now() -> Self {
        Self(Instant::now())
    }

    pub(crate) fn elapsed(self) -> Duration {
        self.0.elapsed()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    fn sent(number: u32, begun: u64, code: u16) -> Sent {
        Sent {
            number,
            domain: 0,
            recipients: 1,
            code,
            meant: ms(begun),
            begun: ms(begun),
            written: ms(begun),
            answered: ms(begun + 5),
        }
    }

    fn arrival(number: u32, at: u64) -> Arrival {
        Arrival {
            run: 1,
            number,
            domain: 0,
            recipients: 1,
            intact: true,
            at: ms(at),
            transaction_us: 0,
            own_us: 0,
        }
    }

    #[test]
    fn what_arrives_once_and_whole_balances() {
        let sent: Vec<_> = (0..10).map(|number| sent(number, 10, 250)).collect();
        let arrivals: Vec<_> = (0..10).map(|number| arrival(number, 20)).collect();
        let balance = Balance::of(1, &sent, &arrivals, &[]);
        assert!(balance.holds(), "{balance:?}");
        assert_eq!(
            (balance.accepted, balance.arrived, balance.overtaken),
            (10, 10, 0)
        );
    }

    #[test]
    fn who_got_what_another_was_sent_is_found() {
        let sent = [Sent {
            recipients: 2,
            ..sent(0, 1, 250)
        }];
        for (domain, recipients, astray) in [
            (0, 1, 0),
            (0, 0b11, 0),
            (0, 0b100, 1),
            (0, 1 | OTHERS, 1),
            (1, 1, 1),
        ] {
            let arrivals = [Arrival {
                domain,
                recipients,
                ..arrival(0, 2)
            }];
            let balance = Balance::of(1, &sent, &arrivals, &[]);
            assert_eq!(
                (balance.astray, balance.holds()),
                (astray, astray == 0),
                "{balance:?}"
            );
        }
    }

    #[test]
    fn each_fault_is_found() {
        let sent = [
            sent(0, 1, 250),
            sent(1, 1, 250),
            sent(2, 1, 250),
            sent(3, 1, 451),
            sent(4, 1, 0),
        ];
        let arrivals = [
            arrival(0, 2),
            arrival(0, 3),
            Arrival {
                intact: false,
                ..arrival(1, 2)
            },
            arrival(3, 2),
            arrival(4, 2),
            arrival(9, 2),
            Arrival {
                run: 2,
                ..arrival(0, 2)
            },
        ];
        let balance = Balance::of(1, &sent, &arrivals, &[]);
        assert!(!balance.holds());
        assert_eq!(
            (
                balance.lost,
                balance.damaged,
                balance.duplicates,
                balance.invented
            ),
            (1, 1, 1, 2)
        );
        assert_eq!(balance.findings.len(), 5);
    }

    #[test]
    fn overtaking_counts_only_what_was_begun_after_the_answer() {
        let sent: Vec<_> = (0..6)
            .map(|number| sent(number, u64::from(number) * 10, 250))
            .collect();
        // Message 1 comes last: 2 to 5 are before it. Of 3, which comes after 5, that one is.
        let arrivals: Vec<_> = [0, 2, 5, 3, 4, 1]
            .into_iter()
            .enumerate()
            .map(|(at, number)| arrival(number, 100 + at as u64))
            .collect();
        assert_eq!(Balance::of(1, &sent, &arrivals, &[]).overtaken, 4);
        // All at once: none was answered before another began.
        let together: Vec<_> = (0..6).map(|number| Sent { number, ..sent[0] }).collect();
        assert_eq!(Balance::of(1, &together, &arrivals, &[]).overtaken, 0);
        // To other domains.
        let apart: Vec<_> = arrivals
            .iter()
            .map(|arrival| Arrival {
                domain: arrival.number,
                ..*arrival
            })
            .collect();
        assert_eq!(Balance::of(1, &sent, &apart, &[]).overtaken, 0);
    }

    #[test]
    fn a_kill_explains_what_was_under_way_and_nothing_else() {
        let sent: Vec<_> = (0..4).map(|number| sent(number, 1, 250)).collect();
        let arrivals: Vec<_> = [
            (0, 10_000),
            (0, 20_000),
            (1, 10_000),
            (1, 11_000),
            (2, 1_000),
            (2, 20_000),
        ]
        .into_iter()
        .map(|(number, at)| arrival(number, at))
        .chain([arrival(3, 10_000)])
        .collect();
        // The first is in doubt; the second came again before the kill, the third long after it was taken.
        let balance = Balance::of(1, &sent, &arrivals, &[ms(12_000)]);
        assert_eq!((balance.in_doubt, balance.duplicates, balance.lost), (1, 2, 0));
        assert!(!balance.holds());
        assert_eq!(Balance::of(1, &sent, &arrivals, &[]).duplicates, 3);
        let kept: Vec<_> = arrivals
            .iter()
            .filter(|one| one.number % 3 == 0)
            .copied()
            .collect();
        let balance = Balance::of(1, &sent[..1], &kept[..2], &[ms(12_000)]);
        assert!(balance.holds(), "{balance:?}");
    }

    #[test]
    fn what_comes_again_came_when_it_came_first() {
        let sent: Vec<_> = (0..3)
            .map(|number| sent(number, u64::from(number) * 10, 250))
            .collect();
        let arrivals: Vec<_> = [(0, 100), (1, 101), (2, 102), (0, 200)]
            .map(|(number, at)| arrival(number, at))
            .into();
        let balance = Balance::of(1, &sent, &arrivals, &[ms(150)]);
        assert_eq!((balance.in_doubt, balance.overtaken), (1, 0), "{balance:?}");
        let order = Order {
            domain: 0,
            messages: 3,
            overtaken: 0,
        };
        assert_eq!(balance.order, [order]);
    }

    #[test]
    fn order_is_judged_where_it_is_promised() {
        let sent: Vec<_> = (0..3)
            .map(|number| sent(number, u64::from(number) * 10, 250))
            .collect();
        let arrivals: Vec<_> = [2, 1, 0]
            .into_iter()
            .map(|number| arrival(number, 100 - u64::from(number)))
            .collect();
        let mut balance = Balance::of(1, &sent, &arrivals, &[]);
        assert_eq!(balance.overtaken, 2);
        balance.order_among(1, &sent, &arrivals, |domain| domain != 0);
        assert_eq!(balance.overtaken, 0);
    }

    #[test]
    fn a_connection_that_idles_is_missed() {
        // Each takes 200 ms, and a connection's next one begins so long after.
        let came = |connections: u64, idle: u64| {
            let each = (0..100).flat_map(move |turn| (0..connections).map(move |which| (turn, which)));
            let at = move |(turn, which)| 200 + turn * (200 + idle) + which * 20;
            let arrivals = each.map(at).enumerate().map(|(number, at)| Arrival {
                transaction_us: 200_000,
                ..arrival(number as u32, at)
            });
            arrivals.collect::<Vec<_>>()
        };
        // From before a transaction's end to after another's begin: what is outside of it does not count.
        let of = |arrivals: &[Arrival]| under_way(arrivals, &(ms(5_050)..ms(15_130)));
        for (connections, idle, expected) in [(10, 0, 10.0), (10, 10, 9.52), (10, 20, 9.09), (9, 0, 9.0)] {
            let measured = of(&came(connections, idle));
            assert!(
                (measured - expected).abs() < 0.05,
                "{connections} connections, {idle} ms: {measured}"
            );
        }
        assert_eq!(of(&[]), 0.0);
        let one = Arrival {
            transaction_us: 1_000_000,
            ..arrival(0, 5_100)
        };
        assert!((under_way(&[one], &(ms(5_000)..ms(6_000))) - 0.1).abs() < 1e-9);
    }

    #[test]
    fn quantiles_are_in_milliseconds() {
        let of = Quantiles::of((1..=1000).map(ms));
        assert!(
            (of.p50 - 500.0).abs() < 1.0 && (of.p99 - 990.0).abs() < 2.0 && of.max >= 999.0,
            "{of}"
        );
        assert_eq!(Quantiles::of(std::iter::empty()).max, 0.0);
    }
}
