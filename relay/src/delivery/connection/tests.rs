//! Connections to scripted peers over narrow pipes, on a paused clock: each command dropped, each silence, TLS, odd replies.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::net::IpAddr;
use std::rc::Rc;
use std::sync::Arc;

use lab::ca::Ca;
use mail_core::{BodyType, Domain, DsnOptions, Recipient, ReversePath};
use tokio::io::{DuplexStream, duplex};
use tokio::task::{LocalSet, spawn_local};
use tokio::time::{Instant, sleep};

use super::open::{ADDRESSES_OF_A_HOST, HostPlace, MAX_ADDRESSES, NextHost, OpenFailure, Opener, Terms};
use super::*;
use crate::config::Settings;
use crate::config::egress::Source;
use crate::config::settings::{AddressFamily, TlsLevel};
use crate::delivery::client_tls::ClientTls;
use crate::report::Cause;
use crate::world::{ConnectError, DnsError, LocalEnd, MxAnswer, Net, Random};

/// What a peer does on one connection, in order:
///
/// - `S text`: says a line; `B text`: says it one octet at a time; `R text`: says what follows, `|` being the line end, at once
/// - `C word`: reads a line, which must begin so
/// - `BODY`: reads up to the final dot; `TAKE n`: reads that many octets of it
/// - `WAIT n`: does nothing for so many seconds
/// - `X octets`, `O octets`: hears and says these, in hexadecimal
/// - `TLS`: negotiates; `SILENT`: says nothing ever after
///
/// At the end it hangs up.
type Script = Vec<String>;

#[derive(Clone)]
struct SimNet(Rc<World>);

pub(super) struct World {
    scripts: RefCell<VecDeque<Script>>,
    /// What came in, a line for each command; a connection begins with its host's number.
    heard: RefCell<Vec<String>>,
    /// Octets a pipe holds.
    width: usize,
    /// Of each host.
    pub(super) addresses: Cell<u8>,
    /// An address of this machine's.
    here: Cell<Option<IpAddr>>,
    tls: Option<Arc<rustls::ServerConfig>>,
}

trait Pipe: AsyncRead + AsyncWrite + Unpin {}
impl<T: AsyncRead + AsyncWrite + Unpin> Pipe for T {}

impl Net for SimNet {
    type Stream = DuplexStream;

    async fn mx(&self, _: &Domain) -> Result<MxAnswer, DnsError> {
        Ok(MxAnswer::Implicit)
    }

    async fn addresses(&self, host: &Domain) -> Result<Vec<IpAddr>, DnsError> {
        let number = host.as_str().as_bytes()[2] - b'0';
        Ok((0..self.0.addresses.get())
            .map(|address| IpAddr::from([10, 0, address, number]))
            .collect())
    }

    async fn connect(&self, from: LocalEnd<'_>, to: SocketAddr) -> Result<DuplexStream, ConnectError> {
        if from.address == Some(NOT_HERE) {
            return Err(ConnectError::Ours(io::ErrorKind::AddrNotAvailable.into()));
        }
        let script = self.0.scripts.borrow_mut().pop_front();
        let script = script.ok_or(io::ErrorKind::ConnectionRefused)?;
        let mut said = format!("to {}", to.ip());
        for (word, part) in [
            (" from ", from.address.map(|address| address.to_string())),
            (" by ", from.interface.map(str::to_owned)),
        ] {
            said.extend(part.map(|part| format!("{word}{part}")));
        }
        self.0.heard.borrow_mut().push(said);
        let (ours, theirs) = duplex(self.0.width);
        let world = self.0.clone();
        drop(spawn_local(async move {
            // How it ends is seen on the other side.
            drop(world.play(Box::new(theirs), script).await)
        }));
        Ok(ours)
    }

    fn is_here(&self, address: IpAddr) -> bool {
        self.0.here.get() == Some(address)
    }
}

impl World {
    async fn play(&self, mut pipe: Box<dyn Pipe>, script: Script) -> io::Result<()> {
        for step in script {
            let (verb, rest) = step.split_once(' ').unwrap_or((&step, ""));
            match verb {
                "S" => pipe.write_all(format!("{rest}\r\n").as_bytes()).await?,
                "R" => pipe.write_all(rest.replace('|', "\r\n").as_bytes()).await?,
                "B" => {
                    for octet in format!("{rest}\r\n").bytes() {
                        pipe.write_all(&[octet]).await?;
                        sleep(Duration::from_millis(10)).await;
                    }
                }
                "C" => {
                    let line = line(&mut pipe).await?;
                    assert!(line.starts_with(rest), "{line:?} for {rest:?}");
                    self.heard.borrow_mut().push(line);
                }
                "BODY" => {
                    let mut body = Vec::new();
                    loop {
                        match line(&mut pipe).await?.as_str() {
                            "." => break,
                            line => body.push(line.to_owned()),
                        }
                    }
                    self.heard.borrow_mut().push(body.join("|"));
                }
                "TAKE" => {
                    let mut some = vec![0; rest.parse().unwrap()];
                    pipe.read_exact(&mut some).await?;
                }
                "O" => pipe.write_all(&octets(rest)).await?,
                "X" => {
                    let wanted = octets(rest);
                    let mut heard = vec![0; wanted.len()];
                    pipe.read_exact(&mut heard).await?;
                    assert_eq!(heard, wanted);
                }
                "WAIT" => sleep(Duration::from_secs(rest.parse().unwrap())).await,
                "TLS" => {
                    let acceptor = tokio_rustls::TlsAcceptor::from(self.tls.clone().unwrap());
                    pipe = Box::new(acceptor.accept(pipe).await?);
                }
                "SILENT" => std::future::pending().await,
                other => panic!("{other}"),
            }
        }
        pipe.flush().await
    }

    fn heard(&self) -> String {
        self.heard.borrow().join(" ")
    }

    pub(super) fn connections(&self) -> usize {
        self.heard().matches("to 10.").count()
    }
}

/// No machine of these tests has it.
pub(super) const NOT_HERE: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 66));

fn octets(hexadecimal: &str) -> Vec<u8> {
    let digits: String = hexadecimal.split_whitespace().collect();
    let octet = |at: usize| u8::from_str_radix(&digits[at..at + 2], 16).unwrap();
    (0..digits.len()).step_by(2).map(octet).collect()
}

async fn line(pipe: &mut Box<dyn Pipe>) -> io::Result<String> {
    let mut line = Vec::new();
    while !line.ends_with(b"\r\n") {
        line.push(pipe.read_u8().await?);
    }
    line.truncate(line.len() - 2);
    Ok(String::from_utf8(line).unwrap())
}

/// A test's surroundings, with an authority whose certificate is trusted.
pub(super) struct Lab {
    pub(super) world: Rc<World>,
    pub(super) settings: Settings,
    pub(super) tls: ClientTls,
    _folder: tempfile::TempDir,
}

impl Lab {
    pub(super) fn new(scripts: &[&[&str]]) -> Self {
        Self::with(scripts, 64, "mx1.test")
    }

    /// The peer's certificate names `certified`.
    pub(super) fn with(scripts: &[&[&str]], width: usize, certified: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("postrider.toml");
        let text = "hostname = \"relay.test\"\n[store]\npath = \"q\"\n[tenants.t]\nsenders = [\"*\"]\n\
            [[listener]]\nkind = \"trusted\"\naddress = \"127.0.0.1:0\"\nnetworks = [\"127.0.0.1/32\"]\ntenant = \"t\"\n";
        std::fs::write(&path, text).unwrap();
        let ca = Ca::create(&folder.path().join("ca.pem")).unwrap();
        let scripts = scripts
            .iter()
            .map(|script| script.iter().map(|&step| step.to_owned()).collect());
        let world = World {
            scripts: RefCell::new(scripts.collect()),
            heard: RefCell::default(),
            width,
            addresses: Cell::new(1),
            here: Cell::new(None),
            tls: Some(ca.issue(&[certified]).unwrap().server_config()),
        };
        Self {
            world: Rc::new(world),
            settings: crate::config::load(&path).unwrap(),
            tls: ClientTls::new(Some(ca.file())).unwrap(),
            _folder: folder,
        }
    }

    pub(super) fn heard(&self) -> String {
        self.world.heard()
    }

    async fn open(&self, hosts: u16, level: TlsLevel) -> Result<Connection<DuplexStream>, OpenFailure> {
        self.open_on(hosts, &Terms::of_mx(level, AddressFamily::Any))
            .await
    }

    pub(super) async fn open_on(
        &self,
        hosts: u16,
        terms: &Terms,
    ) -> Result<Connection<DuplexStream>, OpenFailure> {
        let hosts: Vec<_> = (1..=hosts)
            .map(|number| NextHost {
                place: HostPlace::Name(format!("mx{number}.test").parse().unwrap()),
                port: 25,
                tls_name: None,
            })
            .collect();
        let opener = Opener {
            clock: crate::world::Clock::anchored(mail_core::Timestamp(1_700_000_000_000)),
            answers: &super::Answers::default(),
            known: &crate::delivery::known::Known::default(),
            net: &SimNet(self.world.clone()),
            settings: &self.settings,
            tls: &self.tls,
            random: &Random::seeded(5),
            terms,
        };
        opener.open(&hosts).await
    }

    /// Opens in clear to one host and sends one message to one recipient. What became of it, in a word, and how long it took.
    async fn one_message(&self, body: &[u8]) -> (&'static str, Duration) {
        let begun = Instant::now();
        let result = match self.open(1, TlsLevel::Off).await {
            Ok(mut connection) => word(&send(&mut connection, 1, body).await[0]),
            Err(_) => "no connection",
        };
        (result, begun.elapsed())
    }
}

pub(super) async fn send<S: AsyncRead + AsyncWrite + Unpin>(
    connection: &mut Connection<S>,
    to: usize,
    body: &[u8],
) -> Vec<RecipientResult> {
    let reverse_path = ReversePath::Mailbox("s@a.test".parse().unwrap());
    let recipients: Vec<Recipient> = (0..to)
        .map(|number| Recipient::new(format!("r{number}@ok.test").parse().unwrap()))
        .collect();
    let head = b"Subject: x\r\n\r\n";
    let message = Message {
        reverse_path: &reverse_path,
        recipients: &recipients,
        dsn: &DsnOptions::default(),
        body_type: BodyType::SevenBit,
        eight_bit: false,
        utf8_header: false,
        size: (head.len() + body.len()) as u64,
        by: None,
        priority: None,
        hold: None,
    };
    connection.send(&message, &[head, body], None).await
}

pub(super) fn word(result: &RecipientResult) -> &'static str {
    match result {
        RecipientResult::Delivered(_) => "delivered",
        RecipientResult::Refused(..) => "refused",
        RecipientResult::Unfit(_) => "unfit",
        RecipientResult::Deferred(..) => "deferred",
        RecipientResult::InDoubt(_) => "in doubt",
    }
}

/// Runs a test on a paused clock.
pub(super) fn paused(test: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .unwrap();
    LocalSet::new().block_on(&runtime, test);
}

pub(super) const HELLO: [&str; 3] = ["S 220 hi", "C EHLO relay.test", "R 250-mx|250 PIPELINING|"];
const MAIL: [&str; 8] = [
    "C MAIL",
    "C RCPT",
    "C DATA",
    "S 250 a",
    "S 250 b",
    "S 354 go",
    "BODY",
    "S 250 kept",
];

pub(super) fn script<'a>(parts: &[&[&'a str]]) -> Vec<&'a str> {
    parts.concat()
}

#[test]
fn a_message_arrives_byte_for_byte() {
    paused(async {
        let peer = script(&[&HELLO, &MAIL, &["C QUIT", "S 221 bye"]]);
        let lab = Lab::new(&[&peer]);
        let mut connection = lab.open(1, TlsLevel::Off).await.unwrap();
        let results = send(&mut connection, 1, b".dot\r\n..\r\nlast").await;
        assert_eq!(word(&results[0]), "delivered");
        assert!(connection.is_usable());
        connection.quit().await;
        assert_eq!(
            lab.world.heard(),
            "to 10.0.0.1 EHLO relay.test MAIL FROM:<s@a.test> RCPT TO:<r0@ok.test> DATA Subject: x||..dot|...|last QUIT"
        );
    });
}

#[test]
fn a_peer_that_goes_away_at_any_step() {
    paused(async {
        let whole = script(&[&HELLO, &MAIL]);
        for kept in 0..=whole.len() {
            let lab = Lab::new(&[&whole[..kept]]);
            let (result, took) = lab.one_message(b"x\r\n").await;
            let expected = match kept {
                0..3 => "no connection",
                // It has read the final dot, or may have.
                10 => "in doubt",
                11 => "delivered",
                _ => "deferred",
            };
            assert_eq!(result, expected, "after {:?}", &whole[..kept]);
            assert!(took < GOODBYE, "{took:?} after {:?}", &whole[..kept]);
        }
    });
}

#[test]
fn silence_is_borne_as_long_as_the_rfc_says_and_no_longer() {
    paused(async {
        let whole = script(&[&HELLO, &MAIL]);
        // Minutes, RFC 5321 §4.5.3.2.
        for (kept, result, minutes) in [
            (0, "no connection", 5),
            (2, "no connection", 5),
            (6, "deferred", 5),
            (7, "deferred", 5),
            (8, "deferred", 2),
            (10, "in doubt", 10),
        ] {
            let peer = script(&[&whole[..kept], &["SILENT"]]);
            let lab = Lab::new(&[&peer]);
            let (found, took) = lab.one_message(b"x\r\n").await;
            assert_eq!(
                (found, took.as_secs()),
                (result, minutes * 60),
                "after {:?}",
                &whole[..kept]
            );
        }
        // A peer that takes no more of the message.
        let peer = script(&[&whole[..9], &["TAKE 100", "SILENT"]]);
        let lab = Lab::new(&[&peer]);
        let (found, took) = lab.one_message(&b"x\r\n".repeat(1_000)).await;
        assert_eq!((found, took.as_secs()), ("deferred", 180));
    });
}

/// CASES, faults: a slow reader. Each step is within its time, all of them together are not.
#[test]
fn a_peer_that_takes_the_message_by_the_spoonful_holds_the_connection_no_longer_than_a_transaction_may_last()
{
    paused(async {
        let whole = script(&[&HELLO, &MAIL]);
        let spoons = ["TAKE 100", "WAIT 120"].repeat(100);
        let lab = Lab::new(&[&script(&[&whole[..9], &spoons])]);
        let (found, took) = lab.one_message(&b"x\r\n".repeat(10_000)).await;
        assert_eq!((found, took.as_secs()), ("deferred", 3_600));
    });
}

#[test]
fn replies_one_octet_at_a_time_and_commands_one_by_one() {
    paused(async {
        let peer = [
            "B 220 hi",
            "C EHLO",
            "B 502 what",
            "C HELO",
            "B 250 mx",
            "C MAIL",
            "B 250 a",
            "C RCPT",
            "B 250 b",
            "C DATA",
            "B 354 go",
            "BODY",
            "B 250 kept",
        ];
        let lab = Lab::new(&[&peer]);
        assert_eq!(lab.one_message(b"x\r\n").await.0, "delivered");
    });
}

#[test]
fn odd_replies_to_the_message() {
    paused(async {
        for (said, expected) in [
            ("R 250|", "delivered"),
            ("R 250 kept", "delivered"),
            ("R 250-a|250 b|", "delivered"),
            ("R 550 5.7|", "refused"),
            ("R 550-5.7.2|550|", "refused"),
            ("R 550 2.0.0 odd|", "refused"),
            ("R 450 5.1.1 odd|", "deferred"),
            ("R 421 bye|", "deferred"),
            // Nothing can be concluded from these, and the peer may have the message.
            ("R 2500 ok|", "in doubt"),
            ("R |", "in doubt"),
            ("R yes|", "in doubt"),
            ("R 650 x|", "in doubt"),
            ("R 250-a|550 b|", "in doubt"),
        ] {
            let peer = script(&[&HELLO, &MAIL[..7], &[said]]);
            let lab = Lab::new(&[&peer]);
            assert_eq!(lab.one_message(b"x\r\n").await.0, expected, "{said}");
        }
    });
}

#[test]
fn a_peer_that_answers_before_it_has_read_all() {
    paused(async {
        let body = b"0123456789abcde\r\n".repeat(10_000);
        for (peer, expected) in [
            (&["TAKE 500", "S 552 5.3.4 too big"][..], "refused"),
            (&["TAKE 500", "S 552 5.3.4 too big", "SILENT"], "refused"),
            (&["TAKE 500", "S 421 bye"], "deferred"),
            (&["TAKE 500", "S 250 what", "SILENT"], "deferred"),
            // Most of the message is out, but not its end: nothing is in doubt.
            (&["TAKE 150000"], "deferred"),
        ] {
            let peer = script(&[&HELLO, &MAIL[..6], peer]);
            let lab = Lab::new(&[&peer]);
            assert_eq!(lab.one_message(&body).await.0, expected, "{peer:?}");
        }
    });
}

#[test]
fn replies_that_come_while_commands_are_written() {
    paused(async {
        // Narrow pipes both ways: a peer that answers each command as it comes stops reading when nobody reads.
        let mut peer = script(&[&HELLO, &["C MAIL", "S 250 a"]]);
        for _ in 0..300 {
            peer.extend(["C RCPT", "S 250 2.1.5 recipient ok"]);
        }
        peer.extend(["C DATA", "S 354 go", "BODY", "S 250 kept"]);
        let lab = Lab::new(&[&peer]);
        let mut connection = lab.open(1, TlsLevel::Off).await.unwrap();
        let results = send(&mut connection, 300, b"x\r\n").await;
        assert!(
            results
                .iter()
                .all(|result| matches!(result, RecipientResult::Delivered(_)))
        );
    });
}

#[test]
fn replies_out_of_turn() {
    paused(async {
        // Two greetings: every reply would be taken for the answer to the command before.
        let lab = Lab::new(&[&["R 220 a|220 b|", "SILENT"]]);
        assert_eq!(lab.one_message(b"x\r\n").await.0, "no connection");
        // An answer to the message before a word of it.
        for said in ["R 250 a|250 b|354 go|250 kept|", "R 250 a|250 b|354 go|421 bye|"] {
            let peer = script(&[&HELLO, &MAIL[..3], &[said, "SILENT"]]);
            let lab = Lab::with(&[&peer], 4_096, "mx1.test");
            assert_eq!(lab.one_message(b"x\r\n").await.0, "deferred", "{said}");
        }
        // A goodbye behind the reply: this message is delivered, the next one goes elsewhere.
        let peer = script(&[&HELLO, &MAIL[..7], &["R 250 kept|421 enough|", "SILENT"]]);
        let lab = Lab::with(&[&peer], 4_096, "mx1.test");
        let mut connection = lab.open(1, TlsLevel::Off).await.unwrap();
        assert_eq!(word(&send(&mut connection, 1, b"x\r\n").await[0]), "delivered");
        assert!(!connection.is_usable());
    });
}

#[test]
fn a_peer_that_hangs_up_between_messages_has_refused_nothing() {
    paused(async {
        let peer = script(&[&HELLO, &MAIL]);
        let lab = Lab::new(&[&peer]);
        let mut connection = lab.open(1, TlsLevel::Off).await.unwrap();
        assert_eq!(word(&send(&mut connection, 1, b"x\r\n").await[0]), "delivered");
        assert!(connection.is_usable() && !connection.is_stale());
        assert_eq!(word(&send(&mut connection, 1, b"x\r\n").await[0]), "deferred");
        assert!(connection.is_stale() && !connection.is_usable());
        // A new connection lost in the same way is a failure of the host's.
        let lab = Lab::new(&[&HELLO]);
        let mut connection = lab.open(1, TlsLevel::Off).await.unwrap();
        send(&mut connection, 1, b"x\r\n").await;
        assert!(!connection.is_stale());
    });
}

const OFFER: [&str; 5] = [
    "S 220 hi",
    "C EHLO",
    "R 250-mx|250 STARTTLS|",
    "C STARTTLS",
    "S 220 go",
];

#[test]
fn tls_where_it_is_offered() {
    paused(async {
        // The name on the certificate is another's: opportunistic TLS does not care.
        let peer = script(&[&OFFER, &["TLS", "C EHLO", "R 250-mx|250 PIPELINING|"], &MAIL]);
        let lab = Lab::with(&[&peer], 4_096, "other.test");
        let mut connection = lab.open(1, TlsLevel::Opportunistic).await.unwrap();
        assert_eq!(word(&send(&mut connection, 1, b"x\r\n").await[0]), "delivered");
        assert!(
            connection.hop().tls.starts_with("TLSv1_3"),
            "{:?}",
            connection.hop()
        );
    });
}

#[test]
fn a_failed_handshake_is_followed_by_a_new_connection_in_clear() {
    paused(async {
        let clear = script(&[
            &["S 220 hi", "C EHLO", "R 250-mx|250 STARTTLS|"],
            &["C MAIL", "S 250 a", "C RCPT", "S 250 b"],
            &["C DATA", "S 354 go", "BODY", "S 250 kept"],
        ]);
        for broken in [&["S 500 what is that"][..], &[], &["SILENT"]] {
            let first = script(&[&OFFER, broken]);
            let lab = Lab::with(&[&first, &clear], 4_096, "mx1.test");
            let mut connection = lab.open(1, TlsLevel::Opportunistic).await.unwrap();
            assert_eq!(word(&send(&mut connection, 1, b"x\r\n").await[0]), "delivered");
            assert_eq!((lab.world.connections(), connection.hop().tls.as_str()), (2, ""));
        }
    });
}

#[test]
fn required_tls_is_never_done_without() {
    paused(async {
        let over_tls = script(&[&OFFER, &["TLS", "C EHLO", "R 250-mx|250 PIPELINING|"], &MAIL]);
        // Not offered, refused for now or for good, broken, another's certificate; and as it should be.
        for (peer, certified, works) in [
            (
                &["S 220 hi", "C EHLO", "R 250 mx|", "C QUIT"][..],
                "mx1.test",
                false,
            ),
            (
                &[
                    "S 220 hi",
                    "C EHLO",
                    "R 250-mx|250 STARTTLS|",
                    "C STARTTLS",
                    "S 454 no",
                ],
                "mx1.test",
                false,
            ),
            (
                &[
                    "S 220 hi",
                    "C EHLO",
                    "R 250-mx|250 STARTTLS|",
                    "C STARTTLS",
                    "S 502 no",
                ],
                "mx1.test",
                false,
            ),
            (
                &[
                    "S 220 hi",
                    "C EHLO",
                    "R 250-mx|250 STARTTLS|",
                    "C STARTTLS",
                    "S 220 go",
                ],
                "mx1.test",
                false,
            ),
            (&over_tls, "other.test", false),
            (&over_tls, "mx1.test", true),
        ] {
            let clear = script(&[&HELLO, &MAIL]);
            let lab = Lab::with(&[peer, &clear], 4_096, certified);
            let opened = lab.open(1, TlsLevel::Required).await;
            assert_eq!(opened.is_ok(), works, "{peer:?} {certified}");
            if let Err(failure) = opened {
                assert!(failure.permanent().is_none(), "{failure}: mail waits");
            }
            assert_eq!(lab.world.connections(), 1, "{}", lab.world.heard());
            assert!(!lab.world.heard().contains("MAIL"));
        }
    });
}

#[test]
fn what_came_in_clear_behind_starttls_is_not_the_peers_word() {
    paused(async {
        let offer = &OFFER[..4];
        let injected = "R 220 go|250-mx|250-SIZE 1|250 PIPELINING|";
        let peer = script(&[
            offer,
            &[injected, "TLS", "C EHLO", "R 250-mx|250 PIPELINING|"],
            &MAIL,
        ]);
        let lab = Lab::with(&[&peer], 4_096, "mx1.test");
        let mut connection = lab.open(1, TlsLevel::Required).await.unwrap();
        assert_eq!(connection.offers.size, None);
        assert_eq!(word(&send(&mut connection, 1, b"x\r\n").await[0]), "delivered");
        // A reply to STARTTLS that came before it was asked for.
        let lab = Lab::with(
            &[&["S 220 hi", "C EHLO", "R 250-mx|250 STARTTLS|220 go|", "SILENT"]],
            4_096,
            "mx1.test",
        );
        assert!(lab.open(1, TlsLevel::Required).await.is_err());
    });
}

#[test]
fn the_next_host_is_tried_and_all_must_refuse_for_a_bounce() {
    paused(async {
        let refuses = ["S 554 5.7.1 go away", "C QUIT", "S 221 bye"];
        let works = script(&[&HELLO, &MAIL]);
        let lab = Lab::new(&[&refuses, &works]);
        let connection = lab.open(2, TlsLevel::Off).await.unwrap();
        assert_eq!(connection.host(), "mx2.test");
        let lab = Lab::new(&[&refuses, &refuses]);
        let failure = lab.open(2, TlsLevel::Off).await.err().unwrap();
        let (cause, host) = failure.permanent().unwrap();
        assert!(matches!(cause, Cause::Refused(reply) if reply.code == 554));
        assert_eq!(host, "mx2.test");
        // One that is merely away, or busy, may take it later.
        for other in [None, Some(&["S 421 busy"][..])] {
            let scripts: Vec<_> = [Some(&refuses[..]), other].into_iter().flatten().collect();
            let failure = Lab::new(&scripts).open(2, TlsLevel::Off).await.err().unwrap();
            assert!(failure.permanent().is_none(), "{failure}");
        }
    });
}

/// CASES row 16: hosts of many addresses don't keep the next host from being asked.
#[test]
fn a_host_of_many_addresses_leaves_room_for_the_next() {
    paused(async {
        let refuses = &["S 554 5.7.1 go away", "C QUIT", "S 221 bye"][..];
        let works = script(&[&HELLO, &MAIL]);
        let scripts = [vec![refuses; 2 * ADDRESSES_OF_A_HOST], vec![&works]].concat();
        let lab = Lab::new(&scripts);
        lab.world.addresses.set(8);
        let connection = lab.open(3, TlsLevel::Off).await.unwrap();
        assert_eq!(connection.host(), "mx3.test");
        // Its own other addresses come after them.
        let scripts = [vec![refuses; 7], vec![&works[..]]].concat();
        let lab = Lab::new(&scripts);
        lab.world.addresses.set(8);
        assert!(lab.open(1, TlsLevel::Off).await.is_ok());
        let lab = Lab::new(&[refuses; 8]);
        lab.world.addresses.set(8);
        let failure = lab.open(1, TlsLevel::Off).await.err().unwrap();
        assert!(failure.permanent().is_some(), "{failure}");
        // Some that were not asked may take it.
        let lab = Lab::new(&vec![refuses; 100]);
        lab.world.addresses.set(8);
        let failure = lab.open(9, TlsLevel::Off).await.err().unwrap();
        assert_eq!(lab.world.connections(), MAX_ADDRESSES);
        assert!(failure.permanent().is_none(), "{failure}");
    });
}

/// CASES row 18: never to ourselves, whatever name leads here.
#[test]
fn a_host_that_is_ourselves_is_never_connected_to() {
    paused(async {
        let here = IpAddr::from([10, 0, 0, 1]);
        for (listens, is_here, is_own) in [
            ("10.0.0.1:25", false, true),
            ("0.0.0.0:25", true, true),
            ("0.0.0.0:25", false, false),
            ("10.0.0.2:25", false, false),
            ("10.0.0.1:587", true, false),
        ] {
            let mut lab = Lab::new(&[&["S 554 5.7.1 go away", "C QUIT", "S 221 bye"]]);
            lab.settings.listeners[0].address = listens.parse().unwrap();
            lab.world.here.set(is_here.then_some(here));
            let failure = lab.open(1, TlsLevel::Off).await.err().unwrap();
            assert_eq!(lab.world.connections(), usize::from(!is_own), "{listens}");
            let (cause, _) = failure.permanent().unwrap();
            assert_eq!(cause.status().to_string(), if is_own { "5.4.6" } else { "5.7.1" });
        }
        // An address that we send from is ours where we listen on all, whatever the machine says; another mail server may be there
        // at another port.
        for (listens, connections) in [("0.0.0.0:25", 0), ("0.0.0.0:587", 1)] {
            let mut lab = Lab::new(&[&["S 554 5.7.1 go away", "C QUIT", "S 221 bye"]]);
            lab.settings.listeners[0].address = listens.parse().unwrap();
            lab.settings.delivery.egress.sources.push(source(&[here]));
            assert!(lab.open(1, TlsLevel::Off).await.is_err());
            assert_eq!(lab.world.connections(), connections, "{listens}");
        }
    });
}

pub(super) fn source(addresses: &[IpAddr]) -> Arc<Source> {
    Arc::new(Source {
        name: "out1".into(),
        addresses: addresses.to_vec(),
        interface: None,
        ehlo: None,
        proxy: None,
        must_be_here: true,
        warm_up: None,
    })
}
