//! `loadtest sink`: takes mail until it is interrupted, and tells what came and what should not have.

use std::collections::HashMap;
use std::sync::atomic::Ordering;
use std::time::Duration;

use clap::Args;
use indicatif::ProgressBar;
use serde::Serialize;

use crate::load::letters::Spread;
use crate::load::record::{OTHERS, Zero};
use crate::load::{DRAW_EVERY, more_descriptors};

use super::{Behaviour, Manner, Rule, Sink, Span};

/// Options of `loadtest sink`.
#[derive(Args)]
#[command(after_help = "Examples:\n  \
    loadtest sink --domains 100 --delay 5-50 --defer 0.01\n  \
    loadtest sink --domains 100 --script 0:delay=5000 --script 10-19:refuse=0.2,from=30,until=60\n\n\
    It says its port and its name server when it starts. A relay finds it by those: of Postrider, dns.servers = [\"the name server\"], \
    delivery.port = the port, and delivery.tls = \"off\" unless --tls is given. Send what it takes by loadtest flood, with as many --domains.\n\n\
    It takes mail until SIGINT or SIGTERM, and tells what came. Exit code 1 where a message was damaged, came to a recipient twice, or came \
    without a seal. Missing numbers are told alone: nobody here knows whether those messages were accepted, or are on their way still.")]
pub(crate) struct SinkOptions {
    /// Takes mail for d0.SUFFIX, d1.SUFFIX, …, so many domains, each with an address of its own from 127.78.0.1 on.
    #[arg(long, default_value_t = 1)]
    domains: usize,
    /// What these domains end in.
    #[arg(long, default_value = "load.test")]
    suffix: String,
    /// Milliseconds before the reply to the final dot, or from the least to the most: 5-50.
    #[arg(long, value_name = "MS", default_value = "0")]
    delay: Span,
    /// Milliseconds before anything is written: a round trip.
    #[arg(long, value_name = "MS", default_value_t = 0)]
    round_trip: u64,
    /// The share of recipients answered 451, from 0 to 1.
    #[arg(long, default_value_t = 0.0)]
    defer: f64,
    /// The share of recipients answered 550, from 0 to 1.
    #[arg(long, default_value_t = 0.0)]
    refuse: f64,
    /// What some domains do otherwise, for a time or always; may be there several times, later ones first. DOMAINS:KEY=VALUE,…
    /// with numbers of domains (7 or 10-19), and delay, round-trip, defer, refuse as above, from and until in seconds since the start.
    #[arg(long, value_name = "RULE")]
    script: Vec<Rule>,
    /// Connections at once; a further one is told 421 instead of being greeted.
    #[arg(long, value_name = "CONNECTIONS")]
    most_connections: Option<u64>,
    /// Offer STARTTLS.
    #[arg(long)]
    tls: bool,
    /// Threads.
    #[arg(long, default_value_t = 1)]
    threads: usize,
    /// Print the summary as JSON.
    #[arg(long)]
    json: bool,
}

/// What a sink has taken.
#[derive(Debug, Serialize)]
pub(in crate::load) struct Taken {
    pub(in crate::load) arrived: u64,
    octets: u64,
    connections: u64,
    /// Of those, told 421.
    turned_away: u64,
    handshakes: u64,
    deferred: u64,
    refused: u64,
    /// Messages whose seal can't be read, or that never had one.
    unsealed: u64,
    damaged: usize,
    /// Messages that came to a mailbox that can be none of theirs. How many they have only the load knows.
    astray: usize,
    /// Messages that came to a recipient a second time.
    pub(in crate::load) duplicates: usize,
    /// Numbers below the highest of their load that have not arrived: lost, or never accepted, refused here, or on their way still.
    pub(in crate::load) missing: u64,
}

impl Taken {
    pub(in crate::load) fn of(sink: &Sink) -> Self {
        let counts = &sink.counts;
        let read = |count: &std::sync::atomic::AtomicU64| count.load(Ordering::Relaxed);
        let arrivals = sink.arrivals();
        let mut came: HashMap<(u64, u32), u128> = HashMap::new();
        let mut duplicates = 0;
        for arrival in &arrivals {
            let to = came.entry((arrival.run, arrival.number)).or_default();
            duplicates += usize::from(*to & arrival.recipients != 0);
            *to |= arrival.recipients;
        }
        let mut runs: HashMap<u64, (u32, u64)> = HashMap::new();
        for (run, number) in came.keys() {
            let (highest, count) = runs.entry(*run).or_default();
            *highest = (*highest).max(*number);
            *count += 1;
        }
        let missing = runs
            .values()
            .map(|(highest, count)| u64::from(*highest) + 1 - count)
            .sum();
        Self {
            arrived: counts.arrivals.count(),
            octets: read(&counts.octets),
            connections: read(&counts.connections),
            turned_away: read(&counts.turned_away),
            handshakes: read(&counts.handshakes),
            deferred: read(&counts.deferred),
            refused: read(&counts.refused),
            unsealed: read(&counts.unsealed),
            damaged: arrivals.iter().filter(|arrival| !arrival.intact).count(),
            astray: arrivals
                .iter()
                .filter(|arrival| arrival.recipients & OTHERS != 0)
                .count(),
            duplicates,
            missing,
        }
    }
}

impl std::fmt::Display for Taken {
    fn fmt(&self, to: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self {
            arrived,
            octets,
            connections,
            turned_away,
            handshakes,
            deferred,
            refused,
            unsealed,
            damaged,
            astray,
            duplicates,
            missing,
        } = self;
        writeln!(
            to,
            "{arrived} messages arrived, {octets} octets, over {connections} connections, {handshakes} of them under TLS, \
             {turned_away} turned away"
        )?;
        writeln!(to, "{deferred} recipients put off, {refused} refused")?;
        write!(
            to,
            "{damaged} damaged, {astray} astray, {duplicates} duplicates, {unsealed} without a seal, {missing} missing"
        )
    }
}

impl Taken {
    /// What should not be, in words. Of what is missing nobody here knows whether it was accepted.
    fn found(&self) -> Vec<String> {
        let faults = [
            (self.damaged as u64, "arrived otherwise than sent"),
            (self.astray as u64, "came to a mailbox that can be none of theirs"),
            (self.duplicates as u64, "came to a recipient again"),
            (
                self.unsealed,
                "came without a seal that can be read: its line is damaged, or no load has sent them",
            ),
        ];
        let found = faults.into_iter().filter(|(count, _)| *count > 0);
        found
            .map(|(count, what)| format!("{count} messages {what}"))
            .collect()
    }
}

/// Takes mail until it is interrupted; false where something was damaged, came twice or without a seal.
pub(crate) fn sink(options: &SinkOptions) -> anyhow::Result<bool> {
    more_descriptors()?;
    let usual = Behaviour {
        delay: options.delay,
        round_trip: Duration::from_millis(options.round_trip),
        defer: options.defer,
        refuse: options.refuse,
    };
    let spread = Spread::zipf(options.domains, 0.0, &options.suffix)?;
    let manner = Manner {
        usual,
        script: options.script.clone(),
        tls: options.tls,
        most_connections: options.most_connections,
    };
    manner.check(options.domains)?;
    let sink = Sink::start(manner, &spread, options.threads, Zero::now())?;
    eprintln!(
        "{} domains from {} to {}, on port {}; name server {}",
        options.domains,
        spread.name(0),
        spread.name(options.domains - 1),
        sink.port,
        sink.dns
    );
    let bar = ProgressBar::new_spinner();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let mut terminate = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
        loop {
            tokio::select! {
                interrupted = tokio::signal::ctrl_c() => return interrupted,
                _ = terminate.recv() => return Ok(()),
                () = tokio::time::sleep(DRAW_EVERY) => bar.set_message(format!("{} messages", sink.counts.arrivals.count())),
            }
        }
    })?;
    bar.finish_and_clear();
    let taken = Taken::of(&sink);
    if options.json {
        println!("{}", serde_json::to_string(&taken)?);
    } else {
        println!("{taken}");
    }
    let found = taken.found();
    for finding in &found {
        eprintln!("found: {finding}");
    }
    if taken.missing > 0 {
        eprintln!(
            "{} messages are missing, which is no fault where they were not accepted, were refused or are on their way",
            taken.missing
        );
    }
    Ok(found.is_empty())
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpStream;

    use crate::load::letters::Letters;
    use crate::load::sink;
    use crate::load::wire::Peer;

    use super::*;

    /// A connection too many is told so at its greeting, or when it begins a message; where one has ended there is room for the next.
    #[test]
    fn connections_too_many_are_turned_away() {
        let most = |most| Manner {
            most_connections: Some(most),
            ..Manner::default()
        };
        let spread = Spread::zipf(1, 0.0, "load.test").unwrap();
        let sink = Sink::start(most(2), &spread, 2, Zero::now()).unwrap();
        let greeted = async || {
            let stream = TcpStream::connect((sink::address(0), sink.port)).await.unwrap();
            let mut peer = Peer::new(stream);
            (peer.reply().await.unwrap().code, peer)
        };
        let until_one_is_left = async || {
            while sink.counts.open.load(Ordering::Relaxed) > 1 {
                tokio::task::yield_now().await;
            }
        };
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(async {
            let (one, two, three) = (greeted().await, greeted().await, greeted().await);
            assert_eq!((one.0, two.0, three.0), (220, 220, 421));
            drop(two);
            until_one_is_left().await;
            let (code, mut four) = greeted().await;
            assert_eq!(code, 220);
            sink.behave(most(1));
            let (_, mut one) = one;
            assert_eq!(four.say("MAIL FROM:<>").await.unwrap().code, 421);
            until_one_is_left().await;
            assert_eq!(one.say("MAIL FROM:<>").await.unwrap().code, 250);
        });
        let taken = Taken::of(&sink);
        assert_eq!((taken.connections, taken.turned_away), (4, 2));
    }

    /// Each fault has its words; what comes later for those put off is none.
    #[test]
    fn a_sink_finds_what_should_not_be() {
        let spread = Spread::zipf(1, 0.0, "load.test").unwrap();
        let sink = Sink::start(Manner::default(), &spread, 1, Zero::now()).unwrap();
        let found = || Taken::of(&sink).found();
        let letters = Letters::new(9, "a@sender.test", "1KiB".parse().unwrap(), spread).with_recipients(3);
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        let address = (sink::address(0), sink.port);
        let hand_over = |number, to: &[usize], change: (&str, &str)| {
            let letter = letters.letter(number);
            let text = String::from_utf8(letters.data(&letter).flatten().copied().collect()).unwrap();
            let text = text.replacen(change.0, change.1, 1);
            runtime.block_on(async {
                let mut peer = Peer::new(TcpStream::connect(address).await.unwrap());
                peer.reply().await.unwrap();
                peer.say("MAIL FROM:<a@sender.test>").await.unwrap();
                for which in to {
                    let recipient = &letter.recipients[*which];
                    let reply = peer.say(&format!("RCPT TO:<{recipient}>")).await.unwrap();
                    assert_eq!(reply.code, 250);
                }
                assert_eq!(peer.say("DATA").await.unwrap().code, 354);
                peer.write(&[text.as_bytes()]).await.unwrap();
                assert_eq!(peer.code().await.unwrap(), 250);
            });
        };
        let nothing = ("", "");
        hand_over(70, &[0, 2], nothing);
        hand_over(70, &[1], nothing);
        assert_eq!(found(), Vec::<String>::new());
        assert_eq!(Taken::of(&sink).missing, 70);
        hand_over(70, &[2], nothing);
        assert_eq!(found(), ["1 messages came to a recipient again"]);
        hand_over(72, &[0], ("X-Load: 9", "X-Load: ?"));
        assert!(found()[1].starts_with("1 messages came without a seal that can be read"));
        // A number that has become another one's.
        hand_over(73, &[0], ("X-Load: 9 73", "X-Load: 9 74"));
        assert_eq!(found()[0], "1 messages arrived otherwise than sent");
    }
}
