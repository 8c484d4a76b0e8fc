use std::sync::Arc;

use mail_core::smtp::command::Secret;
use tokio::io::duplex;
use tokio::time::Instant;

use super::*;

const PATIENCE: Duration = Duration::from_secs(30);

fn address(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

fn proxy(kind: ProxyKind, login: bool, bind: bool) -> Proxy {
    let login = login.then(|| {
        Arc::new(Credentials {
            user: "ann".into(),
            password: Secret::new(b"pass".to_vec()),
            file: None,
        })
    });
    Proxy {
        kind,
        place: Err([10, 0, 0, 9].into()),
        port: 1080,
        login,
        bind,
    }
}

fn socks(login: bool, bind: bool) -> Proxy {
    proxy(ProxyKind::Socks5, login, bind)
}

/// What a proxy hears and says, in turns; then it is asked for what the target says.
async fn talk(proxy: &Proxy, turns: &[(&[u8], &[u8])]) -> Result<Vec<u8>, Refused> {
    let (mut ours, mut theirs) = duplex(4_096);
    let from = Some("192.0.2.1".parse().unwrap());
    let play = async {
        for (hears, says) in turns {
            let mut heard = vec![0; hears.len()];
            theirs.read_exact(&mut heard).await.unwrap();
            assert_eq!(heard, *hears);
            theirs.write_all(says).await.unwrap();
        }
        theirs
    };
    let (asked, mut theirs) = tokio::join!(
        ask(&mut ours, proxy, from, address("198.51.100.2:25"), PATIENCE),
        play
    );
    asked?;
    theirs.write_all(b"220 mx").await.unwrap();
    drop(theirs);
    let mut rest = Vec::new();
    ours.read_to_end(&mut rest).await.unwrap();
    Ok(rest)
}

/// RFC 1928 §4: VER CMD RSV ATYP DST.ADDR DST.PORT.
const CONNECT: &[u8] = &[5, 1, 0, 1, 198, 51, 100, 2, 0, 25];
const BIND: &[u8] = &[5, 2, 0, 1, 192, 0, 2, 1, 0, 0];
/// RFC 1928 §6: VER REP RSV ATYP BND.ADDR BND.PORT.
const GRANTED: &[u8] = &[5, 0, 0, 1, 192, 0, 2, 1, 0x30, 0x39];

#[tokio::test]
async fn socks5_without_a_login() {
    let turns: [(&[u8], &[u8]); 2] = [(&[5, 1, 0], &[5, 0]), (CONNECT, GRANTED)];
    assert_eq!(talk(&socks(false, false), &turns).await, Ok(b"220 mx".to_vec()));
}

/// RFC 1929: VER ULEN UNAME PLEN PASSWD; VER STATUS.
#[tokio::test]
async fn socks5_with_a_login_and_an_address_of_the_proxys() {
    let turns: [(&[u8], &[u8]); 4] = [
        (&[5, 2, 0, 2], &[5, 2]),
        (b"\x01\x03ann\x04pass", &[1, 0]),
        (BIND, GRANTED),
        (CONNECT, GRANTED),
    ];
    assert_eq!(talk(&socks(true, true), &turns).await, Ok(b"220 mx".to_vec()));
}

#[tokio::test]
async fn a_login_that_is_not_asked_for_is_not_said() {
    let turns: [(&[u8], &[u8]); 2] = [(&[5, 2, 0, 2], &[5, 0]), (CONNECT, GRANTED)];
    assert_eq!(talk(&socks(true, false), &turns).await, Ok(b"220 mx".to_vec()));
}

/// Whatever address a reply names, it is read to its end, and what the target says is left.
#[tokio::test]
async fn replies_of_each_kind_of_address() {
    let mut six = vec![5, 0, 0, 4];
    six.extend([0; 18]);
    let mut name = vec![5, 0, 0, 3, 4];
    name.extend(b"mx.t\0\x19");
    let longest = [&[5, 0, 0, 3, 255][..], &[b'x'; 257]].concat();
    let empty = vec![5, 0, 0, 3, 0, 0, 25];
    for reply in [six, name, longest, empty] {
        let turns: [(&[u8], &[u8]); 2] = [(&[5, 1, 0], &[5, 0]), (CONNECT, &reply)];
        assert_eq!(
            talk(&socks(false, false), &turns).await,
            Ok(b"220 mx".to_vec()),
            "{reply:?}"
        );
    }
}

#[tokio::test]
async fn whose_fault_a_refusal_is() {
    for (code, refused) in [
        (1, Refused::Request("general failure")),
        (2, Refused::Request("not allowed by its rules")),
        (3, Refused::Target("network unreachable")),
        (4, Refused::Target("host unreachable")),
        (5, Refused::Target("connection refused")),
        (6, Refused::Target("no answer to the connection")),
        (7, Refused::Request("it does not know the command")),
        (8, Refused::Request("it does not know addresses of this family")),
        (9, Refused::Request("a failure that RFC 1928 does not name")),
    ] {
        // No more than the code: some proxies hang up behind it.
        let turns: [(&[u8], &[u8]); 2] = [(&[5, 1, 0], &[5, 0]), (CONNECT, &[5, code])];
        assert_eq!(talk(&socks(false, false), &turns).await, Err(refused));
    }
    let no_login: [(&[u8], &[u8]); 1] = [(&[5, 1, 0], &[5, 0xff])];
    let wants_login: [(&[u8], &[u8]); 1] = [(&[5, 1, 0], &[5, 2])];
    let gssapi: [(&[u8], &[u8]); 1] = [(&[5, 1, 0], &[5, 1])];
    let http: [(&[u8], &[u8]); 1] = [(&[5, 1, 0], b"HTTP/1.1 400")];
    for turns in [no_login, wants_login, gssapi, http] {
        let told = talk(&socks(false, false), &turns).await;
        assert!(matches!(told, Err(Refused::Proxy(_))), "{told:?}");
    }
    let wrong: [(&[u8], &[u8]); 2] = [(&[5, 2, 0, 2], &[5, 2]), (b"\x01\x03ann\x04pass", &[1, 1])];
    let told = talk(&socks(true, false), &wrong).await;
    assert_eq!(
        told,
        Err(Refused::Proxy("it does not take our user and password".into()))
    );
    let not_bound: [(&[u8], &[u8]); 2] = [(&[5, 1, 0], &[5, 0]), (BIND, &[5, 7])];
    let told = talk(&socks(false, true), &not_bound).await;
    let why = "it does not send from 192.0.2.1: it does not know the command";
    assert_eq!(told, Err(Refused::Proxy(why.into())));
}

#[tokio::test(start_paused = true)]
async fn every_silence_ends() {
    for (turns, waits) in [(0, 1), (1, 2), (2, 3)] {
        let all: [(&[u8], &[u8]); 2] = [(&[5, 1, 0], &[5, 0]), (BIND, GRANTED)];
        let begun = Instant::now();
        let (mut ours, mut theirs) = duplex(4_096);
        let from = Some("192.0.2.1".parse().unwrap());
        let silent = async {
            for (hears, says) in &all[..turns] {
                let mut heard = vec![0; hears.len()];
                theirs.read_exact(&mut heard).await.unwrap();
                theirs.write_all(says).await.unwrap();
            }
        };
        let (bound, to) = (socks(false, true), address("198.51.100.2:25"));
        let (asked, ()) = tokio::join!(ask(&mut ours, &bound, from, to, PATIENCE), silent);
        match waits {
            3 => assert_eq!(asked, Err(Refused::Target("no answer to the connection"))),
            _ => assert!(matches!(asked, Err(Refused::Proxy(_))), "{asked:?}"),
        }
        assert_eq!(begun.elapsed(), PATIENCE);
    }
}

/// haproxy's `proxy-protocol.txt` §2.2, as the side that takes such headers reads it, too.
#[tokio::test]
async fn a_proxy_header_names_both_ends() {
    let four = [
        b"\r\n\r\n\0\r\nQUIT\n".as_slice(),
        &[0x21, 0x11, 0, 12, 192, 0, 2, 1, 198, 51, 100, 2, 0, 0, 0, 25],
    ]
    .concat();
    let turns: [(&[u8], &[u8]); 1] = [(&four, b"")];
    let haproxy = proxy(ProxyKind::Haproxy, false, false);
    assert_eq!(talk(&haproxy, &turns).await, Ok(b"220 mx".to_vec()));
    let six = proxy_header(address("[2001:db8::1]:0"), address("[2001:db8::2]:25"));
    assert_eq!(six[12..16], [0x21, 0x21, 0, 36]);
    assert_eq!(six.len(), 16 + 36);
    for (header, client) in [(four, "192.0.2.1:0"), (six, "[2001:db8::1]:0")] {
        let found = crate::submission::proxy_protocol::read(&header);
        let client = Some(address(client));
        assert_eq!(found, crate::submission::proxy_protocol::Found::Client(client));
    }
}

#[test]
fn requests_and_replies_of_both_families() {
    assert_eq!(
        request_for(Command::Connect, address("[2001:db8::2]:587")),
        [
            &[
                5, 1, 0, 4, 0x20, 0x01, 0x0d, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2
            ][..],
            &[2, 75]
        ]
        .concat()
    );
    assert_eq!(rest_of_reply([0, 1, 9]), Ok(5));
    assert_eq!(rest_of_reply([0, 4, 9]), Ok(17));
    assert_eq!(rest_of_reply([0, 2, 9]), Err(not_socks()));
}
