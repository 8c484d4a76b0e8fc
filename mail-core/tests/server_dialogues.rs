//! Dialogues with the server session, as text: `C:` lines are the client's, `S:` lines the codes of the server's replies.
//!
//! The policy here: senders and recipients `no@…` are refused, ada's password is `secret`, every message is kept. The client
//! says all at once, as a pipelining client would; `\n` in a line is a bare LF.

#![allow(
    clippy::unwrap_used,
    reason = "a test; its helpers are outside of test functions"
)]

use std::sync::Arc;
use std::time::Duration;

use mail_core::smtp::chunk::Chunks;
use mail_core::smtp::data::Decoder;
use mail_core::smtp::inbox::{Inbox, Line};
use mail_core::smtp::server::{Action, Auth, Config, Fate, Input, Question, Session, replies};
use mail_core::{MaxHold, Reply, Timestamp};

fn config(auth: Auth) -> Arc<Config> {
    Arc::new(Config {
        hostname: "mx.test".into(),
        postmaster: "postmaster@mx.test".parse().unwrap(),
        max_message_bytes: 1_000,
        max_recipients: 100,
        max_errors: 5,
        starttls: true,
        auth,
        pipelining: true,
        eight_bit_mime: true,
        smtputf8: true,
        chunking: true,
        dsn: true,
        deliver_by: true,
        mt_priority: true,
        enhanced_codes: true,
        command_timeout: Duration::from_secs(300),
        data_timeout: Duration::from_secs(180),
    })
}

fn answer(question: &Question) -> Reply {
    match question {
        Question::Mail(from)
            if from
                .reverse_path
                .mailbox()
                .is_some_and(|from| from.local() == "no") =>
        {
            Reply::new(550, 7, 1, "not yours")
        }
        Question::Mail(_) => replies::SENDER_OK,
        Question::Rcpt(to) if to.mailbox.local() == "no" => Reply::new(550, 1, 1, "unknown"),
        Question::Rcpt(_) => replies::RECIPIENT_OK,
        Question::Login { user, password } if user == "ada" && password.expose() == b"secret" => {
            replies::LOGGED_IN
        }
        Question::Login { .. } => replies::BAD_LOGIN,
        // A SCRAM of three steps, without its reckoning.
        Question::Scram { message, first, .. } => match (message.expose(), first) {
            (b"first", true) => replies::challenge(b"salt"),
            (b"proof", false) => replies::challenge(b"server's proof"),
            (b"", false) => replies::LOGGED_IN,
            _ => replies::BAD_LOGIN,
        },
        Question::Message(_) => Reply::new(250, 0, 0, "queued"),
        Question::Data | Question::StartTls => replies::GO,
        Question::Xclient(_) => Reply::new(550, 7, 1, "not here"),
    }
}

fn play(auth: Auth, tls: bool, client: &str) -> String {
    // Until 2030, and for an hour.
    let hold = MaxHold {
        interval: Duration::from_secs(3_600),
        until: Timestamp(1_893_456_000_000),
    };
    let mut session = Session::new(config(auth), tls).with_hold(Some(hold));
    let mut inbox = Inbox::default();
    inbox.buffer().extend_from_slice(client.as_bytes());
    let mut said = Vec::new();
    let mut input = Input::Connected;
    let mut chunks = Chunks::new(1_000, None);
    let mut line;
    loop {
        let action;
        (session, action) = session.step(input);
        match action {
            action @ (Action::Say(_) | Action::Listen) => {
                if let Action::Say(reply) = action {
                    reply.write_to(&mut said);
                }
                input = match inbox.line() {
                    Some(Line::Whole(octets)) => {
                        line = octets.to_vec();
                        Input::Line(&line)
                    }
                    Some(Line::TooLong) => Input::LineTooLong,
                    None => break,
                };
            }
            Action::Ask(Question::StartTls) if !inbox.is_empty() => input = Input::EarlyTalk,
            Action::Ask(question) => input = Input::Answer(answer(&question)),
            Action::ReceiveData(reply) => {
                reply.write_to(&mut said);
                let mut decoder = Decoder::new(1_000, None);
                inbox.decode(&mut decoder);
                assert!(decoder.is_at_end(), "the data has no end");
                input = Input::Data(decoder.finish().map(drop));
            }
            Action::ReceiveChunk(chunk, fate) => {
                if fate != Fate::Append {
                    chunks = Chunks::new(1_000, None);
                }
                chunks.begin(chunk.octets);
                inbox.take_chunk(&mut chunks);
                assert!(chunks.is_at_end(), "the chunk has no end");
                let whole = if chunk.last {
                    std::mem::replace(&mut chunks, Chunks::new(0, None))
                        .finish()
                        .map(drop)
                } else {
                    chunks.fault().map_or(Ok(()), Err)
                };
                input = Input::Chunk(whole);
            }
            Action::StartTls(reply) => {
                reply.write_to(&mut said);
                input = Input::TlsStarted;
            }
            Action::Close(reply) => {
                reply.write_to(&mut said);
                break;
            }
            Action::Hangup => break,
        }
    }
    String::from_utf8(said).unwrap()
}

/// The code of each reply's last line, with the enhanced code if it has one.
fn codes(said: &str) -> Vec<String> {
    let last_lines = said.lines().filter(|line| line.as_bytes().get(3) == Some(&b' '));
    let code = |line: &str| match line.split(' ').nth(1) {
        Some(word) if word.split('.').count() == 3 && word.starts_with(['2', '4', '5']) => {
            line[..4 + word.len()].to_owned()
        }
        _ => line[..3].to_owned(),
    };
    last_lines.map(code).collect()
}

#[test]
fn every_dialogue_goes_as_written() {
    let mut count = 0;
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/dialogues");
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let text = std::fs::read_to_string(&path).unwrap();
        let (mut client, mut expected) = (String::new(), Vec::new());
        let (mut auth, mut tls) = (Auth::None, false);
        for line in text.lines() {
            match line.split_once(": ") {
                Some(("C", said)) => client.push_str(&format!("{}\r\n", said.replace("\\n", "\n"))),
                Some(("S", said)) => expected.push(said.to_owned()),
                Some(("with", "auth")) => auth = Auth::Required,
                Some(("with", "tls")) => tls = true,
                _ => assert!(
                    line.is_empty() || line.starts_with('#'),
                    "{}: {line}",
                    path.display()
                ),
            }
        }
        let said = play(auth, tls, &client);
        assert_eq!(codes(&said), expected, "{}:\n{said}", path.display());
        count += 1;
    }
    assert!(count >= 10, "{count}");
}

#[test]
fn ehlo_offers_what_there_is() {
    let clear = play(Auth::Required, false, "EHLO c.test\r\n");
    assert!(
        clear.contains("250-SIZE 1000\r\n") && clear.contains("STARTTLS\r\n") && !clear.contains("AUTH"),
        "{clear}"
    );
    let under_tls = play(Auth::Required, true, "EHLO c.test\r\n");
    assert!(
        under_tls.contains("250 AUTH SCRAM-SHA-256-PLUS SCRAM-SHA-256 PLAIN LOGIN\r\n")
            && !under_tls.contains("STARTTLS"),
        "{under_tls}"
    );
    assert!(
        under_tls.contains("250-FUTURERELEASE 3600 2030-01-01T00:00:00Z\r\n"),
        "{under_tls}"
    );
    for offer in ["250-DELIVERBY\r\n", "250-MT-PRIORITY\r\n"] {
        assert!(under_tls.contains(offer), "{under_tls}");
    }
    assert!(!play(Auth::None, true, "HELO c.test\r\n").contains("SIZE"));
}

#[test]
fn what_is_not_offered_is_not_known() {
    let (mut session, _) = Session::new(config(Auth::None), false).step(Input::Connected);
    for (line, code) in [
        ("EHLO c.test", "250"),
        ("MAIL FROM:<a@c.test> HOLDFOR=1", "555 5.5.4"),
    ] {
        let action;
        (session, action) = session.step(Input::Line(line.as_bytes()));
        let Action::Say(reply) = action else {
            panic!("{action:?}")
        };
        assert!(reply.to_string().starts_with(code), "{line}: {reply}");
        assert!(!reply.text.contains("FUTURERELEASE"), "{reply}");
    }
}

#[test]
fn silence_and_shutdown_end_a_session() {
    for (input, code) in [(Input::Timeout, "421 4.4.2"), (Input::Shutdown, "421 4.3.2")] {
        let (session, _) = Session::new(config(Auth::None), false).step(Input::Connected);
        let (session, action) = session.step(input);
        assert!(
            matches!(&action, Action::Close(reply) if reply.to_string().starts_with(code)),
            "{action:?}"
        );
        assert!(session.is_over());
    }
    let (_, action) = Session::new(config(Auth::None), false).step(Input::EarlyTalk);
    assert!(matches!(action, Action::Close(reply) if reply.code == 554));
}

/// CASES §3, floods: commands that lead to no mail come to an end, those that do go on.
#[test]
fn a_flood_of_commands_is_ended() {
    for command in ["NOOP", "RSET", "EHLO c.test", "VRFY a"] {
        let said = play(Auth::None, false, &format!("{command}\r\n").repeat(6_000));
        assert!(
            said.ends_with("421 4.7.0 mx.test too many commands\r\n"),
            "{command}"
        );
        assert_eq!(codes(&said).len(), 1 + 5_000 + 1, "{command}");
    }
    // Recipients beyond the limit are no errors, and yet have an end.
    let rcpt = "RCPT TO:<a@c.test>\r\n".repeat(6_000);
    let said = play(
        Auth::None,
        false,
        &format!("EHLO c.test\r\nMAIL FROM:<a@c.test>\r\n{rcpt}"),
    );
    assert!(said.ends_with("too many commands\r\n"));
    let mail = "MAIL FROM:<a@c.test>\r\nRCPT TO:<b@c.test>\r\nDATA\r\n.\r\n".repeat(3_000);
    let said = play(Auth::None, false, &format!("EHLO c.test\r\n{mail}QUIT\r\n"));
    assert!(said.ends_with("221 2.0.0 mx.test bye\r\n"));
}
