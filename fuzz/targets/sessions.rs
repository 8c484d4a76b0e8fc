//! A whole session of a server, as its shell runs it. The first octet says how the rest is cut: however that is, the client
//! hears the same, each reply is well formed, and no message that is kept has a bare CR or LF.
#![no_main]

use std::sync::Arc;
use std::time::Duration;

use libfuzzer_sys::fuzz_target;
use mail_core::Reply;
use mail_core::smtp::chunk::Chunks;
use mail_core::smtp::data::Decoder;
use mail_core::smtp::inbox::{Inbox, Line};
use mail_core::smtp::server::{Action, Auth, Config, Fate, Input, Question, Session, replies};

fuzz_target!(|octets: &[u8]| {
    let Some((&cut, octets)) = octets.split_first() else {
        return;
    };
    let whole = converse(octets, octets.len().max(1));
    assert_eq!(converse(octets, usize::from(cut % 64) + 1), whole, "cut otherwise");
});

const MAX_MESSAGE: u64 = 10_000;

fn converse(octets: &[u8], step: usize) -> Vec<u8> {
    let config = Config {
        hostname: "mx.test".into(),
        postmaster: "postmaster@mx.test".parse().expect("a mailbox"),
        max_message_bytes: MAX_MESSAGE,
        max_recipients: 5,
        max_errors: 50,
        starttls: true,
        auth: Auth::None,
        pipelining: true,
        eight_bit_mime: true,
        smtputf8: true,
        chunking: true,
        dsn: true,
        deliver_by: true,
        mt_priority: true,
        enhanced_codes: true,
        command_timeout: Duration::from_secs(1),
        data_timeout: Duration::from_secs(1),
    };
    let mut session = Session::new(Arc::new(config), false);
    let mut inbox = Inbox::default();
    let mut pieces = octets.chunks(step);
    let mut said = Vec::new();
    let mut message: Option<bytes::Bytes> = None;
    let mut chunks = Chunks::new(MAX_MESSAGE, None);
    let mut line = Vec::new();
    let mut input = Input::Connected;
    loop {
        let action;
        (session, action) = session.step(input);
        input = match action {
            Action::Say(_) | Action::Listen => {
                if let Action::Say(reply) = &action {
                    say(reply, &mut said);
                }
                let taken = loop {
                    match inbox.line() {
                        Some(Line::Whole(octets)) => {
                            line.clear();
                            line.extend_from_slice(octets);
                            break Some(false);
                        }
                        Some(Line::TooLong) => break Some(true),
                        None => match pieces.next() {
                            Some(piece) => inbox.buffer().extend_from_slice(piece),
                            None => break None,
                        },
                    }
                };
                match taken {
                    Some(false) => Input::Line(&line),
                    Some(true) => Input::LineTooLong,
                    None => return said,
                }
            }
            // Whether more has come by then depends on the cuts: TLS is put off in any case.
            Action::Ask(Question::StartTls) => Input::Answer(Reply::new(454, 7, 0, "not now")),
            Action::Ask(question) => Input::Answer(match question {
                Question::Mail(_) => replies::SENDER_OK,
                Question::Rcpt(_) => replies::RECIPIENT_OK,
                Question::Data => replies::GO,
                Question::Message(envelope) => {
                    assert!((1..=5).contains(&envelope.recipients.len()));
                    kept(&message.take().expect("data came before"));
                    Reply::new(250, 0, 0, "kept")
                }
                _ => replies::BAD_LOGIN,
            }),
            Action::ReceiveData(reply) => {
                say(&reply, &mut said);
                let mut decoder = Decoder::new(MAX_MESSAGE, session.declared_bytes());
                loop {
                    inbox.decode(&mut decoder);
                    if decoder.is_at_end() {
                        break;
                    }
                    match pieces.next() {
                        Some(piece) => inbox.buffer().extend_from_slice(piece),
                        None => return said,
                    }
                }
                match decoder.finish() {
                    Ok(data) => {
                        message = Some(data.octets);
                        Input::Data(Ok(()))
                    }
                    Err(fault) => Input::Data(Err(fault)),
                }
            }
            Action::ReceiveChunk(chunk, fate) => {
                if fate != Fate::Append {
                    chunks = Chunks::new(MAX_MESSAGE, None);
                }
                chunks.begin(chunk.octets);
                loop {
                    inbox.take_chunk(&mut chunks);
                    assert!(chunks.kept() as u64 <= MAX_MESSAGE);
                    if chunks.is_at_end() {
                        break;
                    }
                    match pieces.next() {
                        Some(piece) => inbox.buffer().extend_from_slice(piece),
                        None => return said,
                    }
                }
                Input::Chunk(match (fate, chunk.last) {
                    (Fate::Drop, _) => Ok(()),
                    (_, false) => chunks.fault().map_or(Ok(()), Err),
                    (_, true) => std::mem::replace(&mut chunks, Chunks::new(MAX_MESSAGE, None))
                        .finish()
                        .map(|data| message = Some(data.octets)),
                })
            }
            Action::Close(reply) => {
                say(&reply, &mut said);
                return said;
            }
            Action::Hangup => return said,
            Action::StartTls(_) => panic!("TLS was put off"),
        };
    }
}

fn say(reply: &Reply, said: &mut Vec<u8>) {
    assert!((200..600).contains(&reply.code), "{reply}");
    if let Some(enhanced) = reply.enhanced {
        assert_eq!(u16::from(enhanced.0), reply.code / 100, "{reply}");
    }
    let begin = said.len();
    reply.write_to(said);
    for line in said[begin..].split_inclusive(|&octet| octet == b'\n') {
        let line = line.strip_suffix(b"\r\n").expect("CRLF");
        assert!(line.len() >= 4 && line[..3].iter().all(u8::is_ascii_digit), "{reply}");
        assert!(!line.contains(&b'\r') && line.len() <= 510, "{reply}");
    }
}

fn kept(message: &[u8]) {
    assert!(message.len() as u64 <= MAX_MESSAGE);
    for line in message.split_inclusive(|&octet| octet == b'\n') {
        // A chunk may end a message within a line.
        let line = line.strip_suffix(b"\r\n").unwrap_or(line);
        assert!(!line.contains(&b'\n'), "a bare LF");
        assert!(!line.contains(&b'\r') && line.len() <= 998, "bare CR, or a long line");
    }
}
