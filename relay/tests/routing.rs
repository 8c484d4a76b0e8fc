//! Rules, smart hosts, rewriting and safe mode in a whole relay, between a client and a next hop on loopback.

#![allow(
    clippy::unwrap_used,
    reason = "a test; its helpers are outside of test functions"
)]

use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::mpsc;
use std::time::Duration;

use queue::EventKind;
use relay::run::{self, Running};

/// Longer than anything here takes.
const PATIENCE: Duration = Duration::from_secs(20);

/// What the next hop got: commands, then the message.
type Got = Vec<String>;

/// A next hop on IPv6 that takes everything.
fn next_hop() -> (SocketAddr, mpsc::Receiver<Got>) {
    let listener = TcpListener::bind("[::1]:0").unwrap();
    let address = listener.local_addr().unwrap();
    let (tell, got) = mpsc::channel();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let tell = tell.clone();
            std::thread::spawn(move || take(stream.unwrap(), &tell));
        }
    });
    (address, got)
}

fn take(stream: TcpStream, tell: &mpsc::Sender<Got>) {
    let mut out = stream.try_clone().unwrap();
    let mut lines = BufReader::new(stream).lines().map_while(Result::ok);
    let mut got = Vec::new();
    out.write_all(b"220 hop\r\n").unwrap();
    while let Some(line) = lines.next() {
        let reply: &[u8] = match line.get(..4).unwrap_or_default() {
            "QUIT" => return,
            "DATA" => {
                out.write_all(b"354 go\r\n").unwrap();
                got.extend(lines.by_ref().take_while(|line| line != "."));
                tell.send(std::mem::take(&mut got)).unwrap();
                b"250 kept\r\n"
            }
            _ => {
                got.push(line);
                b"250 ok\r\n"
            }
        };
        out.write_all(reply).unwrap();
    }
}

fn start(more: &str) -> (Running, tempfile::TempDir) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("postrider.toml");
    let text = format!(
        "hostname = \"relay.test\"\n[store]\npath = \"q\"\nmin_free = \"1MiB\"\n[tenants.t]\nsenders = [\"*\"]\nheader_fields = [\"stream\"]\n[[listener]]\n\
         kind = \"trusted\"\naddress = \"127.0.0.1:0\"\nnetworks = [\"127.0.0.1/32\"]\ntenant = \"t\"\n\
         [dns]\nservers = [\"127.0.0.1:1\"]\n{more}"
    );
    std::fs::write(&path, text).unwrap();
    (run::start(relay::config::load(&path).unwrap()).unwrap(), folder)
}

struct Client {
    out: TcpStream,
    input: BufReader<TcpStream>,
}

impl Client {
    fn new(running: &Running) -> Self {
        let stream = TcpStream::connect(running.listeners[0].1).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut client = Self {
            out: stream.try_clone().unwrap(),
            input: BufReader::new(stream),
        };
        client.reply();
        client.say("HELO client.test");
        client
    }

    fn reply(&mut self) -> String {
        let mut line = String::new();
        self.input.read_line(&mut line).unwrap();
        line.trim_end().to_owned()
    }

    fn say(&mut self, line: &str) -> String {
        self.out.write_all(format!("{line}\r\n").as_bytes()).unwrap();
        self.reply()
    }

    /// The replies to each RCPT, and to the message if any was taken.
    fn send(&mut self, from: &str, to: &[&str], message: &str) -> Vec<String> {
        assert!(self.say(&format!("MAIL FROM:<{from}>")).starts_with("250"));
        let mut replies: Vec<_> = to.iter().map(|to| self.say(&format!("RCPT TO:<{to}>"))).collect();
        if replies.iter().any(|reply| reply.starts_with("250")) {
            assert!(self.say("DATA").starts_with("354"));
            replies.push(self.say(&format!("{message}\r\n.")));
        } else {
            self.say("RSET");
        }
        replies
    }
}

fn smart_host(address: SocketAddr) -> String {
    format!(
        "[[smart_host]]\nname = \"hop\"\ntls = \"off\"\nhosts = [{{ address = \"[::1]\", port = {} }}]\n",
        address.port()
    )
}

#[test]
fn rules_refuse_discard_and_send_to_a_smart_host() {
    let (address, got) = next_hop();
    let (running, _folder) = start(&format!(
        "{}[[route]]\nto = [\"no.test\"]\nnext_hop = \"refuse\"\nreason = \"not from here\"\n\
         [[route]]\nto = [\"late.test\"]\nstreams = [\"transactional\"]\nnext_hop = \"refuse\"\nreason = \"not this stream\"\n\
         [[route]]\nto = [\"drop.test\"]\nnext_hop = \"discard\"\nreason = \"test domain\"\n\
         [[route]]\nnext_hop = \"hop\"\n\
         [[rewrite]]\naddress = \"old.test\"\nbecomes = \"new.test\"\n",
        smart_host(address)
    ));
    let mut client = Client::new(&running);
    let message = "From: Ada <ada@old.test>\r\nSubject: hi\r\n\r\nhello";
    let replies = client.send(
        "ada@old.test",
        &["x@no.test", "x@drop.test", "x@ok.test"],
        message,
    );
    assert_eq!(replies[0], "550 5.7.1 not from here");
    assert!(
        replies[1..].iter().all(|reply| reply.starts_with("250")),
        "{replies:?}"
    );
    let got = got.recv_timeout(PATIENCE).unwrap();
    assert!(got.contains(&"MAIL FROM:<ada@new.test>".to_owned()), "{got:?}");
    assert!(
        got.contains(&"RCPT TO:<x@ok.test>".to_owned()) && !got.contains(&"RCPT TO:<x@drop.test>".to_owned())
    );
    assert!(got.contains(&"From: Ada <ada@new.test>".to_owned()), "{got:?}");

    // What the stream decides is told at the end, for the whole message, where a field of it may name the stream.
    let replies = client.send("ada@old.test", &["x@late.test", "x@ok.test"], message);
    assert_eq!(replies[2], "550 5.7.1 <x@late.test>: not this stream");

    let begun = std::time::Instant::now();
    let discarded = loop {
        let events = running.queue().events(0, 100).unwrap();
        if let Some((_, event)) = events
            .iter()
            .find(|(_, event)| event.kind == EventKind::Discarded)
        {
            break event.clone();
        }
        assert!(begun.elapsed() < PATIENCE, "{events:?}");
        std::thread::yield_now();
    };
    assert_eq!(
        (discarded.recipients[0].as_str(), discarded.reply.as_str()),
        ("x@drop.test", "test domain")
    );
    assert!(running.stop());
}

#[test]
fn safe_mode_sends_all_mail_to_one_address_that_learns_whom_it_was_for() {
    let (address, got) = next_hop();
    let (running, _folder) = start(&format!(
        "{}[[route]]\nnext_hop = \"hop\"\n[safe_mode]\nredirect_all = \"box@staging.test\"\n",
        smart_host(address)
    ));
    let mut client = Client::new(&running);
    let replies = client.send(
        "a@app.test",
        &["one@real.test", "two@people.test"],
        "Subject: hi\r\n\r\nhello",
    );
    assert!(
        replies.iter().all(|reply| reply.starts_with("250")),
        "{replies:?}"
    );
    let got = got.recv_timeout(PATIENCE).unwrap();
    let to: Vec<_> = got.iter().filter(|line| line.starts_with("RCPT")).collect();
    assert_eq!(to, ["RCPT TO:<box@staging.test>"]);
    let text = got.join("\n");
    assert!(
        text.contains("Postrider-Original-To: <one@real.test>,\n\t<two@people.test>\n"),
        "{text}"
    );
    assert!(running.stop());
}
