//! `loadtest flood` and `loadtest sink`: both ends of a relay, each usable alone, and what scenarios are made of.

mod alarm;
pub(crate) mod client;
pub(crate) mod flood;
pub(crate) mod letters;
pub(crate) mod record;
pub(crate) mod sink;
pub(crate) mod wire;

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use anyhow::Context as _;
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;

use client::Load;
use record::{Quantiles, Sent};

/// How often a progress bar and a sink's figures are drawn.
const DRAW_EVERY: Duration = Duration::from_millis(250);

/// What a load came to.
#[derive(Debug, Default, Serialize)]
pub(crate) struct Summary {
    pub(crate) seconds: f64,
    pub(crate) messages: usize,
    pub(crate) accepted: u64,
    pub(crate) per_second: f64,
    pub(crate) octets: u64,
    /// Messages that got another reply than 2xx, or of which no recipient was taken.
    pub(crate) refused: usize,
    /// Of several recipients the others may have been taken.
    pub(crate) recipients_refused: u64,
    /// Messages whose connection broke.
    pub(crate) unanswered: usize,
    /// Connections that broke or were refused.
    pub(crate) broken: u64,
    /// From the intended begin to the last reply, of those that were accepted.
    pub(crate) transaction_ms: Quantiles,
    /// From the last octet written to the reply, of those that were accepted.
    pub(crate) end_of_data_ms: Quantiles,
    /// The longest of those that were not: from the intended begin until they were refused, or given up.
    pub(crate) longest_not_accepted_ms: f64,
}

impl Summary {
    pub(crate) fn of(load: &Load, sent: &[Sent]) -> Self {
        let last = sent.iter().map(|sent| sent.answered).max().unwrap_or_default();
        let seconds = last.saturating_sub(load.began()).as_secs_f64();
        let accepted = || sent.iter().filter(|sent| sent.is_accepted());
        let unanswered = sent.iter().filter(|sent| sent.code == 0).count();
        let others = sent.iter().filter(|sent| !sent.is_accepted());
        let longest = others.map(|sent| sent.answered.saturating_sub(sent.meant)).max();
        Self {
            seconds,
            messages: sent.len(),
            accepted: accepted().count() as u64,
            per_second: accepted().count() as f64 / seconds.max(1e-9),
            octets: load.octets.load(Ordering::Relaxed),
            refused: sent.len() - accepted().count() - unanswered,
            recipients_refused: load.recipients_refused.load(Ordering::Relaxed),
            unanswered,
            broken: load.broken.load(Ordering::Relaxed),
            transaction_ms: Quantiles::of(accepted().map(|sent| sent.answered.saturating_sub(sent.meant))),
            end_of_data_ms: Quantiles::of(accepted().map(|sent| sent.answered.saturating_sub(sent.written))),
            longest_not_accepted_ms: longest.unwrap_or_default().as_secs_f64() * 1e3,
        }
    }
}

impl std::fmt::Display for Summary {
    fn fmt(&self, to: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        writeln!(
            to,
            "{} messages in {:.2} s, {} accepted: {:.0} a second; {} refused, {} recipients refused, {} unanswered, {} connections broken",
            self.messages,
            self.seconds,
            self.accepted,
            self.per_second,
            self.refused,
            self.recipients_refused,
            self.unanswered,
            self.broken
        )?;
        writeln!(
            to,
            "from the intended begin to the reply: {}",
            self.transaction_ms
        )?;
        write!(to, "from the end of data to the reply: {}", self.end_of_data_ms)?;
        match self.refused + self.unanswered {
            0 => Ok(()),
            count => write!(
                to,
                "\nthese times are of {} that were accepted; {count} were refused or unanswered, after {:.2} ms at the longest",
                self.accepted, self.longest_not_accepted_ms
            ),
        }
    }
}

/// Begins a load on a thread of its own, without a bar.
pub(crate) fn begin(load: &Arc<Load>) -> anyhow::Result<std::thread::JoinHandle<anyhow::Result<()>>> {
    let load = Arc::clone(load);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let thread = std::thread::Builder::new().name("load".into());
    Ok(thread.spawn(move || runtime.block_on(load.run()))?)
}

/// Runs a load to its end on a runtime of its own thread, with a bar; hidden where standard error is no terminal. An error of `watch`,
/// which is asked several times a second, breaks it off.
pub(crate) fn drive(
    load: &Arc<Load>,
    of: Option<u64>,
    mut watch: impl FnMut() -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let bar = of.map_or_else(ProgressBar::no_length, ProgressBar::new);
    bar.set_style(ProgressStyle::with_template(
        "{elapsed_precise} {wide_bar} {pos}/{len} {per_sec}",
    )?);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let run = load.run();
        tokio::pin!(run);
        loop {
            tokio::select! {
                ended = &mut run => return ended,
                _ = tokio::signal::ctrl_c() => load.stop(),
                () = tokio::time::sleep(DRAW_EVERY) => {
                    bar.set_position(load.sent.count());
                    watch()?;
                }
            }
        }
    })?;
    bar.finish_and_clear();
    Ok(())
}

/// As many descriptors as the system lets a process have without asking.
pub(crate) fn more_descriptors() -> anyhow::Result<()> {
    use rustix::process::{Resource, getrlimit, setrlimit};
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    setrlimit(Resource::Nofile, limit).context("raising the limit of descriptors")
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpStream;

    use super::client::{Beat, Pace, Target, Tls, Transfer};
    use super::letters::{Letters, Spread};
    use super::record::{Balance, Zero};
    use super::sink::command::Taken;
    use super::sink::{Behaviour, Manner, Sink, Span};
    use super::wire::Peer;
    use super::*;

    /// A flood straight into a sink: all arrives, once and whole, by each way to transfer it.
    #[test]
    fn a_flood_reaches_a_sink_whole() {
        let zero = Zero::now();
        let spread = Spread::zipf(3, 1.0, "load.test").unwrap();
        let manner = Manner {
            tls: true,
            ..Manner::default()
        };
        let sink = Sink::start(manner, &spread, 2, zero).unwrap();
        let sizes = "1KiB:2,300KiB:1".parse().unwrap();
        let letters = Arc::new(Letters::new(9, "a@sender.test", sizes, spread).with_recipients(2));
        let mut first = 0;
        let every = Duration::from_millis(10);
        let bursts = Beat::Bursts { of: 20, every };
        for (transfer, tls, beat) in [
            (Transfer::Lockstep, Tls::Off, Beat::AsAnswered),
            (Transfer::Pipelined, Tls::Starttls, bursts),
            (Transfer::Bdat, Tls::Off, Beat::Rate(2_000.0)),
        ] {
            let mut target = Target::plain((sink::address(0), sink.port).into()).unwrap();
            (target.transfer, target.tls) = (transfer, tls);
            let pace = Pace {
                sessions: 4,
                beat,
                messages: 60,
                time: None,
                per_session: 7,
            };
            let load = Load::new(Arc::clone(&letters), target, pace, zero, first);
            drive(&load, None, || Ok(())).unwrap();
            first += 60;
            let sent = load.sent.all();
            let arrivals: Vec<_> = sink
                .arrivals()
                .into_iter()
                .filter(|arrival| arrival.number >= first - 60)
                .collect();
            let balance = Balance::of(9, &sent, &arrivals, &[]);
            assert!(balance.holds(), "{transfer:?}: {balance:?}");
            assert_eq!(balance.arrived, 60, "{transfer:?}: {balance:?}");
            if beat == bursts {
                let last = sent.iter().map(|sent| sent.meant).max().unwrap();
                assert_eq!(last - load.began(), every * 2);
            }
            let summary = Summary::of(&load, &sent);
            assert_eq!((summary.accepted, summary.broken), (60, 0), "{summary}");
            assert!(summary.transaction_ms.max >= summary.end_of_data_ms.p50);
        }
        assert!(sink.counts.handshakes.load(Ordering::Relaxed) >= 4);
        let taken = Taken::of(&sink);
        assert_eq!(
            (taken.arrived, taken.missing, taken.duplicates),
            (180, 0, 0),
            "{taken:?}"
        );
    }

    /// Of one domain, which takes so long for each message.
    fn slow_sink(delay: Duration, zero: Zero) -> (Sink, Spread) {
        let spread = Spread::zipf(1, 0.0, "load.test").unwrap();
        let manner = Manner {
            usual: Behaviour {
                delay: Span::just(delay),
                ..Behaviour::default()
            },
            ..Manner::default()
        };
        let sink = Sink::start(manner, &spread, 1, zero).unwrap();
        (sink, spread)
    }

    /// One session does a third of the rate: the last message stands behind all others, whenever its own transaction begins.
    #[test]
    fn what_is_kept_waiting_counts_from_its_own_moment() {
        let zero = Zero::now();
        let delay = Duration::from_millis(3);
        let (sink, spread) = slow_sink(delay, zero);
        let letters = Arc::new(Letters::new(9, "a@sender.test", "1KiB".parse().unwrap(), spread));
        let pace = Pace {
            sessions: 1,
            beat: Beat::Rate(1_000.0),
            messages: 60,
            time: None,
            per_session: 60,
        };
        let target = Target::plain((sink::address(0), sink.port).into()).unwrap();
        let load = Load::new(letters, target, pace, zero, 0);
        drive(&load, None, || Ok(())).unwrap();
        let sent = load.sent.all();
        let longest = sent
            .iter()
            .map(|sent| sent.answered - sent.begun)
            .sum::<Duration>()
            - Duration::from_millis(59);
        let told = Summary::of(&load, &sent).transaction_ms.max;
        assert!(
            longest >= delay * 40 && told >= longest.as_secs_f64() * 1e3 * 0.99,
            "{told} ms of {longest:?}"
        );
    }

    /// The sink's own time is its delay, and nothing that it waited for.
    #[test]
    fn a_sinks_own_time_begins_at_the_last_octet() {
        let zero = Zero::now();
        let delay = Duration::from_millis(20);
        let (sink, spread) = slow_sink(delay, zero);
        let letters = Letters::new(9, "a@sender.test", "1KiB".parse().unwrap(), spread);
        let letter = letters.letter(0);
        let text: Vec<u8> = letters.data(&letter).flatten().copied().collect();
        let (most, dot) = text.split_at(text.len() - 3);
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        let all_but_the_dot = runtime.block_on(async {
            let mut peer = Peer::new(TcpStream::connect((sink::address(0), sink.port)).await.unwrap());
            peer.reply().await.unwrap();
            for line in ["MAIL FROM:<a@sender.test>", "RCPT TO:<u0@d0.load.test>", "DATA"] {
                assert!(peer.say(line).await.unwrap().code < 400, "{line}");
            }
            peer.write(&[most]).await.unwrap();
            let moment = zero.elapsed();
            peer.write(&[dot]).await.unwrap();
            assert_eq!(peer.code().await.unwrap(), 250);
            moment
        });
        let arrival = sink.arrivals()[0];
        assert!(arrival.read() >= all_but_the_dot, "{arrival:?}");
        assert!(arrival.at - arrival.read() >= delay, "{arrival:?}");
    }

    /// What a sink refuses is told as refused, and the session goes on.
    #[test]
    fn shares_are_refused() {
        let zero = Zero::now();
        let spread = Spread::zipf(1, 0.0, "load.test").unwrap();
        let usual = Behaviour {
            defer: 0.3,
            refuse: 0.3,
            ..Behaviour::default()
        };
        let manner = Manner {
            usual,
            ..Manner::default()
        };
        let sink = Sink::start(manner, &spread, 1, zero).unwrap();
        let letters = Arc::new(Letters::new(9, "a@sender.test", "1KiB".parse().unwrap(), spread));
        for (number, transfer) in [Transfer::Lockstep, Transfer::Pipelined, Transfer::Bdat]
            .into_iter()
            .enumerate()
        {
            let mut target = Target::plain((sink::address(0), sink.port).into()).unwrap();
            target.transfer = transfer;
            let pace = Pace {
                sessions: 1,
                beat: Beat::AsAnswered,
                messages: 100,
                time: None,
                per_session: 1_000,
            };
            let load = Load::new(Arc::clone(&letters), target, pace, zero, number as u32 * 100);
            drive(&load, None, || Ok(())).unwrap();
            let summary = Summary::of(&load, &load.sent.all());
            assert!((30..80).contains(&summary.refused), "{transfer:?}: {summary}");
            assert_eq!(
                (summary.messages, summary.broken),
                (100, 0),
                "{transfer:?}: {summary}"
            );
        }
    }

    /// A load that gives up ends with what it has: each message whose moment had come, and how long it waited.
    #[test]
    fn what_was_not_accepted_has_its_wait() {
        let spread = Spread::zipf(1, 0.0, "load.test").unwrap();
        let sink = Sink::start(Manner::default(), &spread, 1, Zero::now()).unwrap();
        let letters = Arc::new(Letters::new(9, "a@sender.test", "1KiB".parse().unwrap(), spread));
        let target = Target::plain((sink::address(0), sink.port).into()).unwrap();
        let pace = Pace {
            sessions: 2,
            // The second one's moment does not come: it is not waited for, and not counted.
            beat: Beat::Rate(0.01),
            messages: 10,
            time: None,
            per_session: 7,
        };
        let of = |target| Load::new(Arc::clone(&letters), target, pace, Zero::now(), 0);
        // The sink knows no AUTH.
        let load = of(Target {
            login: Some(("a".to_owned(), "b".to_owned())),
            ..target.clone()
        });
        let error = drive(&load, None, || Ok(())).unwrap_err().to_string();
        assert!(error.starts_with("AUTH PLAIN: 500"), "{error}");
        let mut sent = load.sent.all();
        assert_eq!((sent.len(), sent[0].number), (1, 0));
        sent[0].answered = sent[0].meant + Duration::from_millis(1_250);
        let told = Summary::of(&load, &sent).to_string();
        assert!(
            told.ends_with(
                "these times are of 0 that were accepted; 1 were refused or unanswered, after 1250.00 ms at the longest"
            ),
            "{told}"
        );
        let load = of(target);
        let thread = begin(&load).unwrap();
        while load.sent.count() == 0 {
            std::thread::yield_now();
        }
        load.stop();
        thread.join().unwrap().unwrap();
        assert_eq!(load.sent.count(), 1);
        let told = Summary::of(&load, &load.sent.all()).to_string();
        assert!(!told.contains("these times"), "{told}");
    }

    /// A message some of whose recipients are refused goes to the others, whole.
    #[test]
    fn those_that_are_taken_get_the_message() {
        let zero = Zero::now();
        let spread = Spread::zipf(1, 0.0, "load.test").unwrap();
        let usual = Behaviour {
            refuse: 0.5,
            ..Behaviour::default()
        };
        let manner = Manner {
            usual,
            ..Manner::default()
        };
        let sink = Sink::start(manner, &spread, 1, zero).unwrap();
        let sizes = "1KiB".parse().unwrap();
        let letters = Arc::new(Letters::new(9, "a@sender.test", sizes, spread).with_recipients(3));
        for (number, transfer) in [Transfer::Lockstep, Transfer::Pipelined, Transfer::Bdat]
            .into_iter()
            .enumerate()
        {
            let mut target = Target::plain((sink::address(0), sink.port).into()).unwrap();
            target.transfer = transfer;
            let pace = Pace {
                sessions: 1,
                beat: Beat::AsAnswered,
                messages: 80,
                time: None,
                per_session: 1_000,
            };
            let first = number as u32 * 80;
            let load = Load::new(Arc::clone(&letters), target, pace, zero, first);
            drive(&load, None, || Ok(())).unwrap();
            let sent = load.sent.all();
            let summary = Summary::of(&load, &sent);
            assert!(
                (80..160).contains(&summary.recipients_refused),
                "{transfer:?}: {summary}"
            );
            // One of eight has no recipient left.
            assert!((1..30).contains(&summary.refused), "{transfer:?}: {summary}");
            let arrivals: Vec<_> = sink
                .arrivals()
                .into_iter()
                .filter(|arrival| arrival.number >= first)
                .collect();
            let balance = Balance::of(9, &sent, &arrivals, &[]);
            assert!(balance.holds(), "{transfer:?}: {balance:?}");
            assert_eq!(balance.arrived, summary.accepted, "{transfer:?}");
        }
        assert_eq!(sink.counts.unsealed.load(Ordering::Relaxed), 0);
    }
}
