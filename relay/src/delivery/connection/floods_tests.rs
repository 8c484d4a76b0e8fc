//! Peers that take and give an octet at a time, and peers that say more than anyone asked for: every wait ends, and nothing that we
//! keep grows with what a peer says (CASES 2, slow readers and trickles).

use std::cell::Cell;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::time::Duration;

use mail_core::{BodyType, Domain, DsnOptions, Recipient, ReversePath};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, DuplexStream, duplex};
use tokio::task::spawn_local;
use tokio::time::{Instant, sleep};

use super::fuzz_tests::{opened, settings};
use super::open::OpenFailure;
use super::tests::{paused, send, word};
use super::*;
use crate::delivery::attempt::{self, Load, OpenRecipient};
use crate::delivery::settle::Verdict;
use crate::world::{ConnectError, DnsError, LocalEnd, MxAnswer, Net};

/// Where in a conversation a peer begins to misbehave.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Greeting,
    Ehlo,
    Mail,
    Rcpt,
    Data,
    Dot,
    /// Behind the reply to the message.
    Idle,
}

const PHASES: [Phase; 7] = [
    Phase::Greeting,
    Phase::Ehlo,
    Phase::Mail,
    Phase::Rcpt,
    Phase::Data,
    Phase::Dot,
    Phase::Idle,
];

/// What it says there, again and again.
#[derive(Clone, Copy, Debug)]
struct Flood {
    phase: Phase,
    words: &'static [u8],
    /// Between two of them.
    pause: Duration,
}

#[derive(Clone)]
struct OddNet {
    flood: Flood,
    hosts: u8,
    pipelining: bool,
    /// Octets that were taken from the peer, of all connections.
    said: Rc<Cell<usize>>,
}

impl OddNet {
    fn new(flood: Flood) -> Self {
        Self {
            flood,
            hosts: 1,
            pipelining: false,
            said: Rc::default(),
        }
    }
}

/// Octets that a pipe holds.
const WIDTH: usize = 1_024;

impl Net for OddNet {
    type Stream = DuplexStream;

    async fn mx(&self, _: &Domain) -> Result<MxAnswer, DnsError> {
        Ok(MxAnswer::Implicit)
    }

    async fn addresses(&self, _: &Domain) -> Result<Vec<IpAddr>, DnsError> {
        Ok((0..self.hosts)
            .map(|last| IpAddr::from([10, 0, 0, last]))
            .collect())
    }

    async fn connect(&self, _: LocalEnd<'_>, _: SocketAddr) -> Result<DuplexStream, ConnectError> {
        let (ours, theirs) = duplex(WIDTH);
        let net = self.clone();
        // How it ends is seen on the other side.
        drop(spawn_local(async move { drop(net.converse(theirs).await) }));
        Ok(ours)
    }

    fn is_here(&self, _: IpAddr) -> bool {
        false
    }
}

impl OddNet {
    async fn say(&self, peer: &mut BufReader<DuplexStream>, phase: Phase, words: &str) -> io::Result<()> {
        let Flood {
            phase: at,
            words: flood,
            pause,
        } = self.flood;
        if phase != at {
            return peer.get_mut().write_all(format!("{words}\r\n").as_bytes()).await;
        }
        loop {
            peer.get_mut().write_all(flood).await?;
            self.said.update(|said| said + flood.len());
            if self.said.get() > 2 * MOST_READ {
                return Ok(());
            }
            sleep(pause).await;
        }
    }

    async fn converse(&self, stream: DuplexStream) -> io::Result<()> {
        let mut peer = BufReader::new(stream);
        self.say(&mut peer, Phase::Greeting, "220 hi").await?;
        let mut line = String::new();
        loop {
            line.clear();
            if peer.read_line(&mut line).await? == 0 {
                return Ok(());
            }
            let (phase, words) = match &line[..4] {
                "EHLO" if self.pipelining => (Phase::Ehlo, "250-mx\r\n250 PIPELINING"),
                "EHLO" => (Phase::Ehlo, "250 mx"),
                "MAIL" => (Phase::Mail, "250 a"),
                "RCPT" => (Phase::Rcpt, "250 b"),
                _ => (Phase::Data, "354 go"),
            };
            self.say(&mut peer, phase, words).await?;
            if phase == Phase::Data {
                while line != ".\r\n" {
                    line.clear();
                    if peer.read_line(&mut line).await? == 0 {
                        return Ok(());
                    }
                }
                self.say(&mut peer, Phase::Dot, "250 kept").await?;
                self.say(&mut peer, Phase::Idle, "").await?;
            }
        }
    }
}

/// What we keep of what a peer says, at most: what may come while commands are written, and one more read.
const MOST_KEPT: usize = MAX_AHEAD + 2 * READ;

/// What we read at most until we have had enough: a reply of the greatest length, or what may come ahead.
const MOST_READ: usize = MAX_AHEAD + 2 * READ + WIDTH;

const FLOODS: [&[u8]; 8] = [
    // A line without end, and text without end.
    &[b'2'; 500],
    &[b'x'; 500],
    // Replies without end: of lines, of lines of nothing, of long lines.
    b"250-and another thing\r\n",
    b"\r\n",
    &LONG_LINE,
    // Replies ahead of their commands.
    b"250 ok\r\n",
    b"354 go\r\n",
    b"550 5.1.1 no\r\n",
];

const LONG_LINE: [u8; 5_000] = {
    let mut line = [b'y'; 5_000];
    (line[0], line[1], line[2], line[3]) = (b'2', b'5', b'0', b'-');
    (line[4_998], line[4_999]) = (b'\r', b'\n');
    line
};

#[test]
fn a_peer_that_talks_without_end_is_left_and_nothing_grows() {
    for phase in PHASES {
        for words in FLOODS {
            for pipelining in [false, true] {
                let pause = Duration::ZERO;
                let net = OddNet {
                    pipelining,
                    ..OddNet::new(Flood { phase, words, pause })
                };
                paused(is_left(net));
            }
        }
    }
}

async fn is_left(net: OddNet) {
    let words = net.flood.words;
    let what = format!(
        "{:?}, {:?}",
        net.flood.phase,
        String::from_utf8_lossy(&words[..words.len().min(9)])
    );
    let begun = Instant::now();
    if let Ok(mut connection) = opened(&net, 1).await {
        for _ in 0..2 {
            let results = send(&mut connection, 3, &b"x\r\n".repeat(2_000)).await;
            assert_eq!(results.len(), 3, "{what}");
            // The host has a whole message at the last two phases alone.
            let is_over = matches!(net.flood.phase, Phase::Dot | Phase::Idle);
            for result in &results {
                let may = is_over || word(result) != "delivered" && word(result) != "in doubt";
                assert!(may, "{what}: {result:?}");
            }
            assert!(connection.input.capacity() <= MOST_KEPT, "{what}");
            if !connection.is_usable() {
                break;
            }
            sleep(Duration::from_secs(1)).await;
        }
        connection.hangs_up().await;
        assert!(!connection.is_usable(), "{what}");
        connection.quit().await;
    }
    assert!(begun.elapsed() < Duration::from_secs(60), "{what}");
    let read = net.said.get();
    assert!(read <= MOST_READ, "{what}: {read} octets were read");
}

/// An octet each second, in each phase: each reply has its time as a whole, not each octet.
#[test]
fn a_peer_that_drips_is_left_in_the_time_of_its_phase() {
    for (phase, minutes) in [
        (Phase::Greeting, 5),
        (Phase::Ehlo, 5),
        (Phase::Mail, 5),
        (Phase::Rcpt, 5),
        (Phase::Data, 2),
        (Phase::Dot, 10),
    ] {
        paused(async move {
            let net = OddNet::new(Flood {
                phase,
                words: b"2",
                pause: Duration::from_secs(1),
            });
            let begun = Instant::now();
            if let Ok(mut connection) = opened(&net, 1).await {
                let result = word(&send(&mut connection, 1, b"x\r\n").await[0]);
                let expected = if phase == Phase::Dot {
                    "in doubt"
                } else {
                    "deferred"
                };
                assert_eq!(result, expected, "{phase:?}");
                assert!(!connection.is_usable(), "{phase:?}");
            }
            assert_eq!(begun.elapsed().as_secs(), minutes * 60, "{phase:?}");
        });
    }
}

/// A connection for which so many hosts are tried, of which each has its time for each reply.
#[test]
fn until_some_host_is_ready_it_takes_no_longer_than_a_transaction_may() {
    paused(async {
        let drips = Flood {
            phase: Phase::Ehlo,
            words: b"2",
            pause: Duration::from_secs(1),
        };
        let net = OddNet {
            hosts: 8,
            ..OddNet::new(drips)
        };
        let begun = Instant::now();
        let failure: OpenFailure = opened(&net, 4).await.err().unwrap();
        assert_eq!(begun.elapsed(), settings().delivery.timeouts.transaction);
        assert!(failure.permanent().is_none());
        let told = failure.to_string();
        assert!(
            told.starts_with("4.4.2 mx") && told.ends_with("no host was ready for mail in time"),
            "{told}"
        );
    });
}

/// A peer that takes an octet a second: commands, as the message, have their time together.
#[test]
fn a_peer_that_takes_an_octet_a_second_ends_with_its_transaction() {
    for (recipients, octets, phase) in [(200, 3, "RCPT"), (1, 9_000, "the message")] {
        paused(async move {
            let (ours, theirs) = duplex(1);
            drop(spawn_local(async move { drop(by_the_octet(theirs).await) }));
            let mut connection = super::fuzz_tests::over(ours, recipients > 1);
            let begun = Instant::now();
            let results = send(&mut connection, recipients, &b"x\r\n".repeat(octets)).await;
            assert_eq!(begun.elapsed().as_secs(), 3_600, "{phase}");
            for result in results {
                let RecipientResult::Deferred(told, _) = result else {
                    panic!("{phase}: {result:?}");
                };
                assert!(told.starts_with("the transaction took too long"), "{told}");
            }
        });
    }
}

/// Takes an octet each second, and answers each line at once but for the message's.
async fn by_the_octet(mut peer: DuplexStream) -> io::Result<()> {
    let (mut line, mut body) = (Vec::new(), false);
    loop {
        line.push(peer.read_u8().await?);
        sleep(Duration::from_secs(1)).await;
        if !line.ends_with(b"\r\n") {
            continue;
        }
        if !body {
            body = line.starts_with(b"DATA");
            let reply: &[u8] = if body { b"354 go\r\n" } else { b"250 ok\r\n" };
            peer.write_all(reply).await?;
        }
        line.clear();
    }
}

/// It takes one recipient a transaction, and its time for each.
#[test]
fn a_unit_of_many_recipients_is_not_held_for_days() {
    paused(async {
        let (ours, theirs) = duplex(WIDTH);
        drop(spawn_local(async move { drop(takes_one(theirs).await) }));
        let mut connection = super::fuzz_tests::over(ours, false);
        let recipients = (0..200).map(|index| OpenRecipient {
            index,
            to: Recipient::new(format!("r{index}@ok.test").parse().unwrap()),
            last_reply: None,
        });
        let load = Load {
            reverse_path: ReversePath::Null,
            body_type: BodyType::SevenBit,
            head: "Subject: x\r\n".into(),
            body: "\r\nx\r\n".into(),
            rest: None,
            eight_bit: false,
            utf8_header: false,
            dsn: DsnOptions::default(),
            transfer: mail_core::TransferOptions::default(),
            recipients: recipients.collect(),
        };
        let begun = Instant::now();
        let at = mail_core::Timestamp(0);
        let mut attempt = attempt::run(&mut connection, &load, 100, async |_| true, at).await;
        // The last transaction was begun within the hour.
        let took = begun.elapsed().as_secs();
        assert!((3_600..3_600 + 700).contains(&took), "{took}");
        assert_eq!((attempt.transactions, attempt.through), (7, 7));
        assert_eq!(
            (attempt.cut, attempt.untried.len()),
            (Some(attempt::Cut::Time), 193)
        );
        assert!(attempt.goes_on());
        attempt.give_up("mx.test");
        assert_eq!((attempt.outcomes.len(), attempt.stages.len()), (200, 200));
        assert!(
            matches!(attempt.outcomes[0].verdict, Verdict::Later),
            "they are first"
        );
        let of = |verdict: fn(&Verdict) -> bool| {
            attempt
                .outcomes
                .iter()
                .filter(|one| verdict(&one.verdict))
                .count()
        };
        assert_eq!(of(|verdict| matches!(verdict, Verdict::Delivered)), 7);
        assert_eq!(of(|verdict| matches!(verdict, Verdict::Later)), 193);
        let mut indices: Vec<_> = attempt.outcomes.iter().map(|one| one.recipient).collect();
        indices.sort_unstable();
        assert!(indices.into_iter().eq(0..200), "each once");
    });
}

/// One recipient a transaction; it thinks about each message for nine minutes.
async fn takes_one(stream: DuplexStream) -> io::Result<()> {
    let mut peer = BufReader::new(stream);
    let (mut line, mut taken) = (String::new(), 0);
    loop {
        line.clear();
        if peer.read_line(&mut line).await? == 0 {
            return Ok(());
        }
        let reply = match &line[..4] {
            "MAIL" => {
                taken = 0;
                "250 ok\r\n"
            }
            "RCPT" if taken > 0 => "452 4.5.3 too many\r\n",
            "RCPT" => {
                taken += 1;
                "250 ok\r\n"
            }
            "DATA" => {
                peer.get_mut().write_all(b"354 go\r\n").await?;
                while line != ".\r\n" {
                    line.clear();
                    peer.read_line(&mut line).await?;
                }
                sleep(Duration::from_secs(540)).await;
                "250 kept\r\n"
            }
            _ => "250 ok\r\n",
        };
        peer.get_mut().write_all(reply.as_bytes()).await?;
    }
}
