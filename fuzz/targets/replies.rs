//! Replies of peers: at any cuts the same; what is understood is clean, and reads back as itself.
#![no_main]

use libfuzzer_sys::fuzz_target;
use mail_core::Reply;
use mail_core::smtp::client::Extensions;
use mail_core::smtp::reply_reader::{BadReply, ReplyReader};

fuzz_target!(|octets: &[u8]| {
    let Some((&cut, wire)) = octets.split_first() else {
        return;
    };
    let whole = read(wire, wire.len().max(1));
    assert_eq!(read(wire, usize::from(cut % 32) + 1), whole, "cut otherwise");
    for reply in whole.into_iter().flatten() {
        assert!((200..600).contains(&reply.code), "{reply:?}");
        assert!(!reply.text.contains('\r'), "{reply:?}");
        assert!(!reply.to_string().contains(['\r', '\n']), "{reply:?}");
        if let Some(enhanced) = reply.enhanced {
            assert_eq!(u16::from(enhanced.0), reply.code / 100, "{reply:?}");
        }
        let _ = Extensions::parse(&reply);
        let mut again = Vec::new();
        reply.write_to(&mut again);
        match &read(&again, again.len())[..] {
            [Ok(read)] => assert_eq!(read.code, reply.code),
            other => panic!("{reply:?} reads back as {other:?}"),
        }
    }
});

/// All replies up to the first that is none.
fn read(wire: &[u8], step: usize) -> Vec<Result<Reply, BadReply>> {
    let mut reader = ReplyReader::default();
    let mut all = Vec::new();
    for mut piece in wire.chunks(step) {
        while !piece.is_empty() {
            let (taken, reply) = reader.read(piece);
            assert!(taken > 0, "it stands still");
            piece = &piece[taken..];
            if let Some(reply) = reply {
                let is_bad = reply.is_err();
                all.push(reply);
                if is_bad {
                    return all;
                }
            }
        }
    }
    all.extend(reader.end());
    all
}
