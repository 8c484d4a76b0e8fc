//! Against a name server on loopback that answers as told: CASES rows 17 and 20, and the faults of the DNS.

use std::io;
use std::net::Ipv4Addr;

use hickory_proto::op::{Message, Query, ResponseCode};
use hickory_proto::rr::rdata::{A, AAAA, CNAME, MX};
use hickory_proto::rr::{Name, RData, Record};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, UdpSocket};

use super::*;

/// What the server says to a question.
enum Says {
    Records(Vec<(&'static str, RData)>),
    /// The name is an alias of this one.
    Alias(String),
    Code(ResponseCode),
    Truncated,
    Nothing,
    Octets(Vec<u8>),
    /// First someone else's guess, an answer with the wrong id; then the true one.
    Guessed(Vec<(&'static str, RData)>, Vec<(&'static str, RData)>),
    /// The guess has the right id, and comes from another port.
    FromElsewhere(Vec<(&'static str, RData)>, Vec<(&'static str, RData)>),
    /// An answer to another question first.
    OfAnother(&'static str, Vec<(&'static str, RData)>),
}

fn name(text: &str) -> Name {
    let mut name = Name::from_ascii(text).unwrap();
    name.set_fqdn(true);
    name
}

fn mx(preference: u16, host: &str) -> RData {
    RData::MX(MX::new(preference, name(host)))
}

fn many(count: u16) -> Vec<(&'static str, RData)> {
    let host = |number| ("big.test", mx(100 - number, &format!("mx{number}.big.test")));
    (0..count).map(host).collect()
}

/// A hundred hosts of long names: four thousand octets.
fn fat() -> Vec<(&'static str, RData)> {
    let long = "x".repeat(20);
    let host = |number| ("fat.test", mx(number, &format!("mx{number}-{long}.fat.test")));
    (0..100).map(host).collect()
}

fn says(query: &Query, tcp: bool) -> Says {
    use RecordType as T;
    let (owner, kind) = (query.name().to_ascii(), query.query_type());
    let alias = |to: &str| RData::CNAME(CNAME(name(to)));
    let six = |last: u16| RData::AAAA(AAAA([0x2001, 0xdb8, 0, 0, 0, 0, 0, last].into()));
    let four = |last: u8| RData::A(A(Ipv4Addr::new(192, 0, 2, last)));
    match (owner.as_str(), kind) {
        ("sorted.test.", T::MX) => Says::Records(vec![
            ("sorted.test", mx(20, "b.test")),
            ("sorted.test", mx(10, "c.test")),
            ("sorted.test", mx(10, "a.test")),
        ]),
        ("under_score.test.", T::MX) => {
            Says::Records(vec![("under_score.test", mx(10, "mx_1.under_score.test"))])
        }
        ("mx_1.under_score.test.", T::A) => Says::Records(vec![("mx_1.under_score.test", four(9))]),
        ("null.test.", T::MX) => Says::Records(vec![("null.test", mx(0, "."))]),
        ("inward.test.", T::MX) => Says::Records(vec![
            ("inward.test", mx(0, "localhost")),
            ("inward.test", mx(5, "mail.localhost")),
        ]),
        ("half-null.test.", T::MX) => Says::Records(vec![
            ("half-null.test", mx(0, ".")),
            ("half-null.test", mx(10, "a.test")),
        ]),
        ("implicit.test.", _) | ("dangling-target.test.", T::MX) => Says::Code(ResponseCode::NoError),
        ("alias.test.", T::MX) => Says::Records(vec![
            ("alias.test", alias("real.test")),
            ("real.test", mx(10, "a.test")),
        ]),
        ("dangling.test.", T::MX) => Says::Records(vec![("dangling.test", alias("dangling-target.test"))]),
        ("broken.test.", _) => Says::Code(ResponseCode::ServFail),
        ("refused.test.", _) => Says::Code(ResponseCode::Refused),
        ("silent.test.", _) => Says::Nothing,
        ("junk.test.", _) => Says::Octets(vec![0xff; 4_096]),
        ("big.test.", T::MX) if tcp => Says::Records(many(60)),
        ("big.test.", T::MX) => Says::Truncated,
        ("poisoned.test.", T::MX) => Says::Guessed(
            vec![("poisoned.test", mx(1, "evil.test"))],
            vec![("poisoned.test", mx(10, "a.test"))],
        ),
        ("elsewhere.test.", T::MX) => Says::FromElsewhere(
            vec![("elsewhere.test", mx(1, "evil.test"))],
            vec![("elsewhere.test", mx(10, "a.test"))],
        ),
        ("another.test.", T::MX) => Says::OfAnother("a.test", vec![("another.test", mx(10, "a.test"))]),
        ("self.test.", T::MX) => Says::Records(vec![("self.test", mx(10, "self.test"))]),
        // In one packet, and more than any packet has.
        ("fat.test.", T::MX) => Says::Records(fat()),
        ("thousand.test.", T::MX) if tcp => {
            let host = |number: u16| {
                (
                    "thousand.test",
                    mx(10_000 - number, &format!("mx{number}.thousand.test")),
                )
            };
            Says::Records((0..1_000).map(host).collect())
        }
        ("thousand.test.", T::MX) => Says::Truncated,
        ("always-cut.test.", T::MX) => Says::Truncated,
        // Aliases that lead nowhere: in a circle, to a name that no server answers for, and on and on.
        ("circle.test.", _) => Says::Records(vec![("circle.test", alias("circle2.test"))]),
        ("circle2.test.", _) => Says::Records(vec![("circle2.test", alias("circle.test"))]),
        ("own-alias.test.", _) => Says::Records(vec![("own-alias.test", alias("own-alias.test"))]),
        ("lame.test.", _) => Says::Records(vec![("lame.test", alias("broken.test"))]),
        ("lame-silent.test.", _) => Says::Records(vec![("lame-silent.test", alias("silent.test"))]),
        // Longer than anybody follows.
        (link, _) if link.starts_with("link") => {
            let number: u16 = link["link".len()..link.len() - ".test.".len()].parse().unwrap();
            Says::Alias(format!("link{}.test", number + 1))
        }
        ("both.test.", T::AAAA) => Says::Records(vec![("both.test", six(1)), ("both.test", six(2))]),
        ("both.test.", T::A) => Says::Records(vec![("both.test", four(1))]),
        ("four.test.", T::AAAA) => Says::Code(ResponseCode::ServFail),
        ("four.test.", T::A) => Says::Records(vec![("four.test", four(4))]),
        ("untold.test.", T::AAAA) => Says::Code(ResponseCode::NoError),
        ("untold.test.", T::A) => Says::Code(ResponseCode::ServFail),
        ("many.test.", T::A) => Says::Records((0..50).map(|last| ("many.test", four(last))).collect()),
        ("many.test.", T::AAAA) => Says::Code(ResponseCode::NoError),
        _ => Says::Code(ResponseCode::NXDomain),
    }
}

fn response(question: &Message, code: ResponseCode, records: Vec<(&str, RData)>) -> Message {
    let mut response = Message::response(question.metadata.id, question.metadata.op_code);
    response.metadata.response_code = code;
    response.metadata.recursion_available = true;
    response.add_queries(question.queries.iter().cloned());
    for (owner, data) in records {
        response.add_answer(Record::from_rdata(name(owner), 60, data));
    }
    response
}

/// An answer in octets, and whether it comes from another port.
type Answered = (Vec<u8>, bool);

/// The answers to a question.
fn answers(octets: &[u8], tcp: bool) -> Vec<Answered> {
    let question = Message::from_vec(octets).unwrap();
    let plain = |code, records| response(&question, code, records);
    let messages = match says(&question.queries[0], tcp) {
        Says::Records(records) => vec![plain(ResponseCode::NoError, records)],
        Says::Alias(to) => {
            let mut alias = plain(ResponseCode::NoError, Vec::new());
            let owner = question.queries[0].name().clone();
            alias.add_answer(Record::from_rdata(owner, 60, RData::CNAME(CNAME(name(&to)))));
            vec![alias]
        }
        Says::Code(code) => vec![plain(code, Vec::new())],
        Says::Truncated => {
            let mut cut = plain(ResponseCode::NoError, many(1));
            cut.metadata.truncation = true;
            vec![cut]
        }
        Says::Nothing => Vec::new(),
        Says::Octets(octets) => return vec![(octets, false)],
        Says::FromElsewhere(guess, truth) => {
            let octets = |records| plain(ResponseCode::NoError, records).to_vec().unwrap();
            return vec![(octets(guess), true), (octets(truth), false)];
        }
        Says::OfAnother(other, truth) => {
            let mut wrong = plain(ResponseCode::NXDomain, Vec::new());
            wrong.queries = vec![Query::query(name(other), RecordType::MX)];
            vec![wrong, plain(ResponseCode::NoError, truth)]
        }
        Says::Guessed(guess, truth) => {
            let mut guess = plain(ResponseCode::NoError, guess);
            guess.metadata.id ^= 1;
            vec![guess, plain(ResponseCode::NoError, truth)]
        }
    };
    let octets = |message: &Message| (message.to_vec().unwrap(), false);
    messages.iter().map(octets).collect()
}

async fn serve_udp(socket: UdpSocket) -> io::Result<()> {
    let elsewhere = UdpSocket::bind("127.0.0.1:0").await?;
    let mut question = [0; 4_096];
    loop {
        let (length, from) = socket.recv_from(&mut question).await?;
        for (answer, is_elsewhere) in answers(&question[..length], false) {
            let socket = if is_elsewhere { &elsewhere } else { &socket };
            socket.send_to(&answer, from).await?;
        }
    }
}

async fn serve_tcp(listener: TcpListener) -> io::Result<()> {
    loop {
        let (mut stream, _) = listener.accept().await?;
        tokio::spawn(async move {
            while let Ok(length) = stream.read_u16().await {
                let mut question = vec![0; usize::from(length)];
                stream.read_exact(&mut question).await?;
                for (answer, _) in answers(&question, true) {
                    stream.write_u16(u16::try_from(answer.len()).unwrap()).await?;
                    stream.write_all(&answer).await?;
                }
            }
            io::Result::Ok(())
        });
    }
}

/// Sockets on a port that is free for both protocols.
async fn one_port() -> (UdpSocket, TcpListener) {
    loop {
        let udp = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        if let Ok(tcp) = TcpListener::bind(udp.local_addr().unwrap()).await {
            return (udp, tcp);
        }
    }
}

/// Runs a test with a resolver that asks such a server.
fn asking(test: impl AsyncFnOnce(RealNet)) {
    // What is never answered costs a few times this; nothing waits for it but the tests of silence.
    asking_for(Duration::from_millis(150), test);
}

fn asking_for(patience: Duration, test: impl AsyncFnOnce(RealNet)) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        let (udp, tcp) = one_port().await;
        let address = udp.local_addr().unwrap();
        tokio::spawn(serve_udp(udp));
        tokio::spawn(serve_tcp(tcp));
        let servers = vec![address];
        let net = RealNet::new(&DnsSettings { servers }, patience).unwrap();
        test(net).await;
    });
}

async fn hosts(net: &RealNet, domain: &str) -> Result<Vec<String>, String> {
    match net.mx(&domain.parse().unwrap()).await {
        Ok(MxAnswer::Hosts(hosts)) => Ok(hosts
            .iter()
            .map(|mx| format!("{} {}", mx.preference, mx.host))
            .collect()),
        Ok(other) => Ok(vec![format!("{other:?}")]),
        Err(error) => Err(error.question),
    }
}

#[test]
fn what_the_dns_says_of_a_domain() {
    asking(async |net| {
        for (domain, answer) in [
            ("sorted.test", &["10 a.test", "10 c.test", "20 b.test"][..]),
            ("null.test", &["Null"]),
            // A client must not aim the relay at its own machine (RFC 6761 §6.3).
            ("inward.test", &["Null"]),
            ("localhost", &["NoDomain"]),
            ("x.localhost", &["NoDomain"]),
            // RFC 7505 §3: a null MX stands alone; where it doesn't, the others count.
            ("half-null.test", &["10 a.test"]),
            ("implicit.test", &["Implicit"]),
            ("alias.test", &["10 a.test"]),
            ("dangling.test", &["Implicit"]),
            ("nowhere.test", &["NoDomain"]),
            ("poisoned.test", &["10 a.test"]),
            ("elsewhere.test", &["10 a.test"]),
            ("another.test", &["10 a.test"]),
            ("self.test", &["10 self.test"]),
            ("under_score.test", &["10 mx_1.under_score.test"]),
        ] {
            assert_eq!(hosts(&net, domain).await.unwrap(), answer, "{domain}");
        }
    });
}

#[test]
fn a_name_server_that_fails_says_nothing_of_the_domain() {
    asking(async |net| {
        for domain in ["broken.test", "refused.test", "junk.test", "silent.test"] {
            assert_eq!(hosts(&net, domain).await, Err(format!("{domain} MX")));
        }
    });
}

#[test]
fn a_truncated_answer_is_asked_for_over_tcp_and_the_best_hosts_are_taken() {
    asking(async |net| {
        let found = hosts(&net, "big.test").await.unwrap();
        assert_eq!(found.len(), MAX_HOSTS);
        assert_eq!(found[0], "41 mx59.big.test");
    });
}

/// CASES 2, DNS: answers as big as they get.
#[test]
fn a_domain_of_a_thousand_hosts_has_its_best_sixteen() {
    asking_for(Duration::from_secs(10), async |net| {
        let found = hosts(&net, "thousand.test").await.unwrap();
        let best = (0..MAX_HOSTS).map(|place| {
            let number = 999 - place;
            format!("{} mx{number}.thousand.test", 10_000 - number)
        });
        assert_eq!(found, best.collect::<Vec<_>>());
    });
}

/// CASES 2, DNS: what cannot be told is no reason to bounce.
#[test]
fn answers_that_lead_nowhere_say_nothing_of_the_domain() {
    asking(async |net| {
        for domain in [
            // More in one packet than we said that we take.
            "fat.test",
            "always-cut.test",
            "circle.test",
            "own-alias.test",
            "lame.test",
            "lame-silent.test",
            "link0.test",
        ] {
            assert_eq!(hosts(&net, domain).await, Err(format!("{domain} MX")));
        }
        for host in ["circle.test", "own-alias.test", "lame.test", "link0.test"] {
            let found = net.addresses(&host.parse().unwrap()).await;
            assert!(found.is_err(), "{host}: {found:?}");
        }
    });
}

#[test]
fn addresses_of_both_families_take_turns() {
    asking(async |net| {
        let addresses = async |host: &str| {
            let found = net.addresses(&host.parse().unwrap()).await;
            found.map(|found| found.iter().map(ToString::to_string).collect::<Vec<_>>())
        };
        assert_eq!(
            addresses("both.test").await.unwrap(),
            ["2001:db8::1", "192.0.2.1", "2001:db8::2"]
        );
        assert_eq!(addresses("four.test").await.unwrap(), ["192.0.2.4"]);
        assert_eq!(addresses("mx_1.under_score.test").await.unwrap(), ["192.0.2.9"]);
        assert_eq!(addresses("nowhere.test").await.unwrap(), Vec::<String>::new());
        assert_eq!(addresses("many.test").await.unwrap().len(), MAX_ADDRESSES);
        // The family that can't be told may be the one that has the address: no reason to bounce.
        assert!(addresses("untold.test").await.is_err());
    });
}

#[tokio::test]
async fn a_connection_comes_from_where_it_is_told() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let to = listener.local_addr().unwrap();
    let net = RealNet::new(
        &DnsSettings {
            servers: vec!["127.0.0.1:1".parse().unwrap()],
        },
        Duration::from_secs(1),
    )
    .unwrap();
    let from = |address: &str, interface| LocalEnd {
        address: Some(address.parse().unwrap()),
        interface,
    };
    let stream = net.connect(from("127.0.0.23", None), to).await.unwrap();
    let (_, peer) = listener.accept().await.unwrap();
    assert_eq!(peer.ip().to_string(), "127.0.0.23");
    assert_eq!(stream.local_addr().unwrap(), peer);
    // One of another family is left out.
    assert!(net.connect(from("::1", None), to).await.is_ok());
    let told = net.connect(from("127.0.0.23", Some("none9")), to).await;
    assert!(
        matches!(&told, Err(ConnectError::Ours(error)) if error.to_string().starts_with("interface none9: ")),
        "{told:?}"
    );
    if !is_here("192.0.2.66".parse().unwrap()) {
        let told = net.connect(from("192.0.2.66", None), to).await;
        assert!(matches!(told, Err(ConnectError::Ours(_))), "{told:?}");
    }
    drop(listener);
    let told = net.connect(from("127.0.0.23", None), to).await;
    assert!(
        matches!(told, Err(ConnectError::Theirs(_))),
        "nobody listens: {told:?}"
    );
}
