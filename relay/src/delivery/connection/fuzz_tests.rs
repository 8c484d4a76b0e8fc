//! A peer that says anything at all, cut anywhere, in each phase of a conversation: the client ends, each recipient has an outcome,
//! and no reply is taken for the answer to another command.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeSet, HashMap, VecDeque};
use std::net::IpAddr;
use std::rc::Rc;
use std::sync::LazyLock;

use mail_core::Domain;
use proptest::prelude::*;
use tokio::io::{AsyncBufReadExt, BufReader, DuplexStream, duplex};
use tokio::task::{spawn_local, yield_now};
use tokio::time::Instant;

use super::open::{HostPlace, NextHost, OpenFailure, Opener, Terms};
use super::tests::{paused, send};
use super::*;
use crate::config::Settings;
use crate::config::settings::{AddressFamily, TlsLevel};
use crate::delivery::client_tls::ClientTls;
use crate::delivery::known::Known;
use crate::world::{Clock, ConnectError, DnsError, LocalEnd, MxAnswer, Net, Random};

/// As they are unless something is configured.
pub(super) fn settings() -> &'static Settings {
    static SETTINGS: LazyLock<Settings> = LazyLock::new(|| {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("postrider.toml");
        let text = "hostname = \"relay.test\"\n[store]\npath = \"q\"\n[tenants.t]\nsenders = [\"*\"]\n\
            [[listener]]\nkind = \"trusted\"\naddress = \"127.0.0.1:0\"\nnetworks = [\"127.0.0.1/32\"]\ntenant = \"t\"\n";
        std::fs::write(&path, text).unwrap();
        crate::config::load(&path).unwrap()
    });
    &SETTINGS
}

/// A connection to the first of so many hosts, with TLS where they offer it.
pub(super) async fn opened<N: Net>(net: &N, hosts: usize) -> Result<Connection<N::Stream>, OpenFailure> {
    static TLS: LazyLock<ClientTls> = LazyLock::new(|| ClientTls::new(None).unwrap());
    let host = |number| NextHost {
        place: HostPlace::Name(format!("mx{number}.test").parse().unwrap()),
        port: 25,
        tls_name: None,
    };
    let hosts: Vec<_> = (1..=hosts).map(host).collect();
    let opener = Opener {
        clock: Clock::anchored(mail_core::Timestamp(1_700_000_000_000)),
        answers: &Answers::default(),
        known: &Known::default(),
        net,
        settings: settings(),
        tls: &TLS,
        random: &Random::seeded(5),
        terms: &Terms::of_mx(TlsLevel::Opportunistic, AddressFamily::Any),
    };
    opener.open(&hosts).await
}

/// A connection that is ready for mail.
pub(super) fn over<S>(stream: S, pipelining: bool) -> Connection<S> {
    Connection {
        wire: Wire::Clear(stream),
        reader: ReplyReader::default(),
        input: BytesMut::new(),
        offers: Extensions {
            pipelining,
            ..Extensions::default()
        },
        timeouts: settings().delivery.timeouts.clone(),
        host: "mx1.test".into(),
        address: SocketAddr::from(([10, 0, 0, 1], 25)),
        source: String::new(),
        tls: String::new(),
        messages: 0,
        domains: BTreeSet::new(),
        left: false,
        usable: true,
        stale: false,
    }
}

/// A stream that counts how often it is asked for something.
struct Counted(DuplexStream, Rc<Cell<usize>>);

impl AsyncRead for Counted {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.1.update(|steps| steps + 1);
        Pin::new(&mut self.0).poll_read(context, into)
    }
}

impl AsyncWrite for Counted {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        octets: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.1.update(|steps| steps + 1);
        Pin::new(&mut self.0).poll_write(context, octets)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(context)
    }
}

/// What a peer says to a command. `#` is a number that no other reply has.
#[derive(Clone, Debug)]
enum Says {
    /// What the command asks for.
    Good,
    Octets(Vec<u8>),
    /// One, and another behind it in the same packet.
    Both(Vec<u8>, Vec<u8>),
    Silence,
    HangsUp,
}

/// What a peer is.
#[derive(Clone, Debug)]
struct Peer {
    pipelining: bool,
    starttls: bool,
    says: Vec<Says>,
    /// Where its octets are cut.
    cuts: Vec<usize>,
}

/// What a peer knows afterwards.
#[derive(Debug, Default)]
struct Seen {
    /// To which command a reply of this number was the answer, and its code; for RCPT the recipient is in it.
    answers: HashMap<usize, (String, u16)>,
    /// Messages that were taken whole, with the number of the reply.
    taken: Vec<usize>,
    /// Something was said that answers nothing.
    extra: bool,
    /// What the client did that it must not.
    wrong: Vec<String>,
}

#[derive(Clone)]
struct FuzzNet {
    peer: Rc<RefCell<Peer>>,
    seen: Rc<RefCell<Seen>>,
    steps: Rc<Cell<usize>>,
    connections: Rc<Cell<usize>>,
}

impl Net for FuzzNet {
    type Stream = Counted;

    async fn mx(&self, _: &Domain) -> Result<MxAnswer, DnsError> {
        Ok(MxAnswer::Implicit)
    }

    async fn addresses(&self, _: &Domain) -> Result<Vec<IpAddr>, DnsError> {
        Ok(vec![IpAddr::from([10, 0, 0, 1])])
    }

    async fn connect(&self, _: LocalEnd<'_>, _: SocketAddr) -> Result<Counted, ConnectError> {
        let (ours, theirs) = duplex(512);
        self.connections.update(|count| count + 1);
        let net = self.clone();
        // How it ends is seen on the other side.
        drop(spawn_local(async move { drop(net.converse(theirs).await) }));
        Ok(Counted(ours, self.steps.clone()))
    }

    fn is_here(&self, _: IpAddr) -> bool {
        false
    }
}

impl FuzzNet {
    /// Writes octets, cut where the peer is cut. The last piece is at least as long as `last`.
    async fn write(&self, wire: &mut BufReader<DuplexStream>, octets: &[u8], last: usize) -> io::Result<()> {
        let mut rest = octets;
        while rest.len() > last {
            let cut = {
                let mut peer = self.peer.borrow_mut();
                let cut = peer.cuts.pop().unwrap_or(usize::MAX);
                peer.cuts.insert(0, cut);
                cut.clamp(1, rest.len() - last)
            };
            wire.get_mut().write_all(&rest[..cut]).await?;
            rest = &rest[cut..];
            yield_now().await;
        }
        wire.get_mut().write_all(rest).await
    }

    /// Answers a command. The code, where it was a reply; an error where the conversation is over.
    async fn answer(
        &self,
        wire: &mut BufReader<DuplexStream>,
        command: &str,
        good: &str,
    ) -> io::Result<Option<u16>> {
        let says = self.peer.borrow_mut().says.pop().unwrap_or(Says::Good);
        let number = self.seen.borrow().answers.len();
        let numbered = |octets: &[u8]| {
            let mut out = Vec::new();
            for &octet in octets {
                match octet {
                    b'#' => out.extend(format!("#{number}#").bytes()),
                    octet => out.push(octet),
                }
            }
            out
        };
        let (first, second) = match says {
            Says::Good => (format!("{good} #\r\n").into_bytes(), Vec::new()),
            Says::Octets(octets) => (octets, Vec::new()),
            Says::Both(first, second) => (first, second),
            Says::Silence => std::future::pending().await,
            Says::HangsUp => return Err(io::ErrorKind::ConnectionReset.into()),
        };
        let first = numbered(&first);
        let second: Vec<u8> = second
            .iter()
            .map(|&octet| if octet == b'#' { b'+' } else { octet })
            .collect();
        let (code, behind) = match ReplyReader::default().read(&first) {
            (taken, Some(Ok(reply))) => (Some(reply.code), first.len() - taken + second.len()),
            (_, Some(Err(_))) => (None, 0),
            // What comes next ends it.
            (_, None) => (None, 1),
        };
        self.seen.borrow_mut().extra |= behind > 0;
        self.seen
            .borrow_mut()
            .answers
            .insert(number, (command.to_owned(), code.unwrap_or(0)));
        // What is behind a reply is there when the reply is.
        let last = if behind > 0 { behind + 1 } else { 0 };
        self.write(wire, &[first, second].concat(), last).await?;
        Ok(code)
    }

    async fn converse(&self, stream: DuplexStream) -> io::Result<()> {
        let mut wire = BufReader::new(stream);
        self.answer(&mut wire, "", "220").await?;
        let mut line = Vec::new();
        let mut data = None;
        loop {
            line.clear();
            if wire.read_until(b'\n', &mut line).await? == 0 {
                return Ok(());
            }
            let text = String::from_utf8_lossy(&line).trim_end().to_owned();
            let word = text.get(..4).unwrap_or_default().to_owned();
            match word.as_str() {
                "EHLO" | "HELO" => {
                    let (pipelining, starttls) = {
                        let peer = self.peer.borrow();
                        (peer.pipelining, peer.starttls)
                    };
                    let more = if pipelining { "250-PIPELINING\r\n" } else { "" };
                    let tls = if starttls { "250-STARTTLS\r\n" } else { "" };
                    let good = format!("250-mx\r\n{more}{tls}250");
                    self.answer(&mut wire, &text, &good).await?;
                }
                "STAR" => drop(self.answer(&mut wire, &text, "220").await?),
                "MAIL" | "RCPT" | "RSET" => drop(self.answer(&mut wire, &text, "250").await?),
                "QUIT" => return self.answer(&mut wire, &text, "221").await.map(drop),
                "DATA" => {
                    data = self.answer(&mut wire, &text, "354").await?;
                    if data.is_some_and(|code| code / 100 == 3) {
                        self.message(&mut wire).await?;
                    }
                }
                _ if text.starts_with("Subject") || text == "." || text == "x" => {
                    let wrong = format!("{text:?} behind {data:?}");
                    self.seen.borrow_mut().wrong.push(wrong);
                    return Ok(());
                }
                // The beginning of a handshake.
                _ => return Ok(()),
            }
        }
    }

    async fn message(&self, wire: &mut BufReader<DuplexStream>) -> io::Result<()> {
        let mut line = Vec::new();
        let mut lines = 0;
        while line != b".\r\n" {
            line.clear();
            lines += 1;
            if wire.read_until(b'\n', &mut line).await? == 0 {
                return Ok(());
            }
        }
        let number = self.seen.borrow().answers.len();
        if lines > 1 {
            self.seen.borrow_mut().taken.push(number);
        }
        self.answer(wire, "the message", "250").await.map(drop)
    }
}

const CODES: [&str; 22] = [
    "000", "100", "199", "200", "220", "221", "250", "251", "299", "354", "399", "421", "450", "451", "452",
    "500", "550", "552", "554", "600", "777", "999",
];

const ODD: [&[u8]; 12] = [
    b"\r\n",
    b"25 # ok\r\n",
    b"2500 # ok\r\n",
    b"abc # ok\r\n",
    b"250-#\r\n550 #\r\n",
    b"450-#\r\n451 #\r\n",
    b"250-#\r\n",
    b"550 5.7\r\n",
    b"550-5.7.2\r\n550\r\n",
    b"550 2.0.0 #\r\n",
    b"\xff\xfe\x00\r\n",
    b"421 #",
];

/// One line or more, by no rule in particular.
fn line() -> impl Strategy<Value = Vec<u8>> {
    let code = prop::sample::select(&CODES[..]);
    let text = prop::sample::select(
        &[
            " # ok",
            " #",
            "",
            " ",
            "-",
            " 2.0.0 # ok",
            " 5.7 #",
            " 5.1.1 # no",
            " 4.7.1 #",
            " 2.1.5 # odd",
            "x #",
            " \0 #",
            " \u{e9}\u{200b} #",
            "\t#",
        ][..],
    );
    let end = prop::sample::select(&["\r\n", "\r\n", "\r\n", "\r\n", "\n", "\r", "", "\r\r\n"][..]);
    let odd = prop::sample::select(&ODD[..]);
    prop_oneof![
        6 => (code, text, end).prop_map(|(code, text, end)| format!("{code}{text}{end}").into_bytes()),
        2 => odd.prop_map(<[u8]>::to_vec),
        1 => (0..1_200_usize).prop_map(|lines| [b"250-a\r\n".repeat(lines), b"250 #\r\n".to_vec()].concat()),
        1 => (0..9_000_usize).prop_map(|octets| [b"550 # ".to_vec(), vec![b'z'; octets], b"\r\n".to_vec()].concat()),
        1 => prop::collection::vec(any::<u8>(), 0..30),
    ]
}

/// A reply to a command that is one, with nothing behind it.
fn whole() -> impl Strategy<Value = Vec<u8>> {
    let code = prop::sample::select(&CODES[3..19]);
    let text = prop::sample::select(&["", " 5.1.1", " 4.7.1", " 2.1.5"][..]);
    (code, text).prop_map(|(code, text)| format!("{code}{text} #\r\n").into_bytes())
}

fn says() -> impl Strategy<Value = Says> {
    prop_oneof![
        8 => Just(Says::Good),
        3 => whole().prop_map(Says::Octets),
        2 => line().prop_map(Says::Octets),
        1 => (whole(), whole()).prop_map(|(first, second)| Says::Both(first, second)),
        1 => Just(Says::Both(b"250 #\r\n".to_vec(), b"421 bye\r\n".to_vec())),
        1 => Just(Says::Silence),
        1 => Just(Says::HangsUp),
    ]
}

/// So many good replies first that each phase is reached as often.
fn peer() -> impl Strategy<Value = Peer> {
    let good = (0..12_usize).prop_map(|count| vec![Says::Good; count]);
    let rest = prop::collection::vec(says(), 1..16);
    let cuts = prop::collection::vec(1..40_usize, 0..8);
    (any::<bool>(), prop::bool::weighted(0.2), good, rest, cuts).prop_map(
        |(pipelining, starttls, good, rest, cuts)| {
            // The first is at the end.
            let says = rest.into_iter().rev().chain(good).collect();
            Peer {
                pipelining,
                starttls,
                says,
                cuts,
            }
        },
    )
}

const RECIPIENTS: usize = 3;

/// The number that a reply's words have, if they have one.
fn number(words: &str) -> Option<usize> {
    words.split('#').nth(1)?.parse().ok()
}

async fn play(peer: Peer) -> Result<(), TestCaseError> {
    let octets: usize = peer
        .says
        .iter()
        .map(|says| match says {
            Says::Octets(octets) => octets.len(),
            Says::Both(first, second) => first.len() + second.len(),
            Says::Good | Says::Silence | Says::HangsUp => 40,
        })
        .sum();
    let pipelining = peer.pipelining;
    let net = FuzzNet {
        peer: Rc::new(RefCell::new(peer)),
        seen: Rc::default(),
        steps: Rc::default(),
        connections: Rc::default(),
    };
    let begun = Instant::now();
    let mut outcomes = VecDeque::new();
    if let Ok(mut connection) = opened(&net, 1).await {
        for _ in 0..3 {
            let results = send(&mut connection, RECIPIENTS, b"x\r\n").await;
            prop_assert_eq!(results.len(), RECIPIENTS);
            outcomes.extend(results.into_iter().enumerate());
            if !connection.is_usable() {
                break;
            }
        }
        prop_assert!(connection.input.capacity() <= MAX_AHEAD + 2 * READ);
        connection.quit().await;
    }
    prop_assert!(net.connections.get() <= 2, "one with TLS, and one in clear");
    // Each reply in its time, and of all of them not many.
    prop_assert!(begun.elapsed() <= Duration::from_secs(4 * 3_600));
    let steps = net.steps.get();
    prop_assert!(
        steps <= 1_000 + 10 * octets,
        "{} steps for {} octets",
        steps,
        octets
    );
    let seen = net.seen.borrow();
    // Replies that are not there when the next command is written can't be told from answers to it.
    let in_step = !seen.extra || !pipelining;
    prop_assert!(!in_step || seen.wrong.is_empty(), "{:?}", seen.wrong);
    for (index, result) in outcomes {
        let (words, commands): (String, &[&str]) = match &result {
            RecipientResult::Delivered(reply) => {
                prop_assert_eq!(reply.code / 100, 2);
                (reply.to_string(), &["the message"])
            }
            RecipientResult::Refused(reply, stage) => {
                prop_assert_eq!(reply.code / 100, 5);
                let command = match stage {
                    Stage::Mail => "MAIL",
                    Stage::Rcpt => "RCPT",
                    Stage::Data => "DATA",
                    _ => "the message",
                };
                (reply.to_string(), &[command])
            }
            _ => continue,
        };
        // One without a number can't be told from others.
        let Some(number) = number(&words).filter(|_| in_step) else {
            continue;
        };
        let (command, code) = &seen.answers[&number];
        prop_assert!(command.starts_with(commands[0]), "{}: {:?}", command, result);
        prop_assert!(
            commands[0] != "RCPT" || command.contains(&format!("<r{index}@")),
            "{}: {:?}",
            command,
            result
        );
        prop_assert!(words.starts_with(&code.to_string()), "{}: {}", code, words);
        if matches!(result, RecipientResult::Delivered(_)) {
            prop_assert!(seen.taken.contains(&number), "{:?} was not taken", result);
        }
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn whatever_a_peer_says_each_recipient_has_an_outcome_and_no_reply_is_taken_for_anothers(peer in peer()) {
        let result = Rc::new(RefCell::new(Ok(())));
        let found = result.clone();
        paused(async move { *found.borrow_mut() = play(peer).await });
        result.replace(Ok(()))?;
    }
}
