//! What a reply means: whatever a peer says has a class, and what it teaches is within bounds. The first line says which host; the
//! rest is read as the client reads replies.
#![no_main]

use libfuzzer_sys::fuzz_target;
use mail_core::smtp::client::Stage;
use mail_core::smtp::reply_reader::ReplyReader;
use relay::delivery::adapt::wording::WAITS;
use relay::delivery::adapt::{self, Others};
use relay::shaping::Shaping;
use relay::shaping::pattern::Said;

/// A rule of an operator's may hold a lane for so long (`bounce_rule.for`), and those that are shipped hold it for less.
const LONGEST: std::time::Duration = std::time::Duration::from_secs(7 * 86_400);

const STAGES: [Stage; 6] = [
    Stage::Greeting,
    Stage::Ehlo,
    Stage::Mail,
    Stage::Rcpt,
    Stage::Data,
    Stage::FinalDot,
];

fuzz_target!(|octets: &[u8]| {
    let end = octets.iter().position(|&octet| octet == b'\n');
    let (host, wire) = octets.split_at(end.map_or(0, |end| end + 1));
    let host = std::str::from_utf8(host).ok().map(str::trim).filter(|host| !host.is_empty());
    // In our words, as they are: causes are classed too.
    if let Ok(cause) = std::str::from_utf8(wire) {
        class(cause, host);
    }
    let mut reader = ReplyReader::default();
    let mut rest = wire;
    while !rest.is_empty() {
        let (taken, reply) = reader.read(rest);
        rest = &rest[taken..];
        let Some(Ok(reply)) = reply else { break };
        let said = reply.to_string();
        let read = Said::read(&said);
        assert_eq!(read.code, Some(reply.code), "{said:?}");
        assert!(reply.enhanced.is_none() || read.enhanced == reply.enhanced, "{said:?}");
        class(&said, host);
    }
});

fn class(said: &str, host: Option<&str>) {
    let shaping = Shaping::shipped();
    let class = shaping.class(said, host);
    assert!(!class.name.is_empty());
    assert_eq!(shaping.classes.get(shaping.class_id(said, host)).name, class.name);
    let advice = shaping.advice(said, host);
    for stage in STAGES {
        let lesson = adapt::lesson(said, &class.name, advice, stage);
        for time in [lesson.again_after, suspended(lesson.others)].into_iter().flatten() {
            assert!((*WAITS.start()..=LONGEST).contains(&time), "{said:?}: {time:?}");
        }
        let is_refusal = Said::read(said).code.is_some_and(|code| (400..600).contains(&code));
        assert!(is_refusal || lesson == adapt::Lesson::default(), "{said:?}: {lesson:?}");
    }
}

fn suspended(others: Others) -> Option<std::time::Duration> {
    match others {
        Others::Suspend { time, .. } => Some(time),
        Others::Nothing | Others::Slower => None,
    }
}
