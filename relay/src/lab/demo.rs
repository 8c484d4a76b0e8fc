//! `postrider lab --demo`: a dozen messages, what became of each, and whether that is what should have.

use std::time::{Duration, Instant};

use anyhow::Context as _;
use lab::{Entry, Outcome as Verdict};
use mail_core::{MessageId, Timestamp};
use queue::{Event, EventKind};

use super::client::Submission;
use super::{SENDER, Stage, USERNAME, address, table};

/// How long the whole may take: a greylisted message comes through at the second or third try.
const PATIENCE: Duration = Duration::from_secs(40);
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// A message, and what should become of it.
struct Letter {
    what: &'static str,
    to: Vec<String>,
    message: Vec<u8>,
}

/// A letter that was submitted.
struct Sent {
    letter: Letter,
    id: MessageId,
}

/// What should become of a recipient.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Expected {
    Delivered,
    Bounced,
    Waiting,
}

/// A recipient, as it stands.
struct Row {
    cells: Vec<String>,
    fault: Option<String>,
}

/// Runs the demo; false if anything did not go as it should.
pub(super) fn run(stage: &Stage) -> anyhow::Result<bool> {
    let submission = Submission::new(
        &stage.listener("submission"),
        stage.lab.ca.file(),
        USERNAME,
        &stage.password,
    )?;
    println!("The lab is up. Sending as {SENDER} over STARTTLS, with a password.\n");
    let mut sent = Vec::new();
    for letter in letters() {
        let id = submission
            .send(SENDER, &letter.to, &letter.message)
            .with_context(|| letter.what.to_owned())?;
        sent.push(Sent {
            id: id.parse()?,
            letter,
        });
    }
    let begun = Instant::now();
    while begun.elapsed() < PATIENCE && !all_ended(stage, &sent)? {
        std::thread::sleep(LOOK_EVERY);
    }
    let mut faults = Vec::new();
    let mut rows = vec![
        [
            "message",
            "recipient",
            "became",
            "after",
            "tries",
            "SPF",
            "DKIM",
            "TLS",
            "reply",
        ]
        .map(str::to_owned)
        .to_vec(),
    ];
    for letter in &sent {
        let events = stage.relay.queue().history(letter.id)?;
        for to in &letter.letter.to {
            let row = row(stage, letter, to, &events)?;
            faults.extend(
                row.fault
                    .map(|fault| format!("{} to {to}: {fault}", letter.letter.what)),
            );
            rows.push(row.cells);
        }
    }
    print!("{}", table::render(&rows));
    match bounce(stage)? {
        Ok(raw) => println!("\nThe one failure came back to {SENDER}:\n\n{}", indented(&raw)),
        Err(fault) => faults.push(fault),
    }
    for fault in &faults {
        println!("NOT AS IT SHOULD BE: {fault}");
    }
    if faults.is_empty() {
        println!(
            "\nAll {} messages went as they should, in {:.1} s.",
            sent.len(),
            begun.elapsed().as_secs_f64()
        );
    }
    Ok(faults.is_empty())
}

fn expected(to: &str) -> Expected {
    match to {
        "nobody@reject.test" => Expected::Bounced,
        to if to.ends_with("@dead.test") => Expected::Waiting,
        _ => Expected::Delivered,
    }
}

/// Whether every recipient has ended that should, and the report has arrived.
fn all_ended(stage: &Stage, sent: &[Sent]) -> anyhow::Result<bool> {
    for letter in sent {
        let events = stage.relay.queue().history(letter.id)?;
        let waits = |to: &&String| expected(to) != Expected::Waiting && end(&events, to).is_none();
        if letter.letter.to.iter().any(|to| waits(&to)) {
            return Ok(false);
        }
    }
    Ok(stage
        .lab
        .mailboxes
        .entries(SENDER)
        .is_some_and(|entries| !entries.is_empty()))
}

fn end<'a>(events: &'a [Event], to: &str) -> Option<&'a Event> {
    let is_end = |event: &&Event| {
        matches!(
            event.kind,
            EventKind::Delivered | EventKind::Bounced | EventKind::Expired
        ) && event.recipients.iter().any(|recipient| recipient == to)
    };
    events.iter().find(is_end)
}

fn row(stage: &Stage, sent: &Sent, to: &str, events: &[Event]) -> anyhow::Result<Row> {
    let accepted = events.first().map_or(Timestamp(0), |event| event.at);
    let end = end(events, to);
    let found = match end.map(|end| end.kind) {
        Some(EventKind::Delivered) => Expected::Delivered,
        Some(_) => Expected::Bounced,
        None => Expected::Waiting,
    };
    let mut fault = (found != expected(to)).then(|| format!("{found:?}, should be {:?}", expected(to)));
    let (mut spf, mut dkim, mut tls) = (String::new(), String::new(), String::new());
    if found == Expected::Delivered {
        match arrived(stage, to, &sent.letter.message)? {
            Ok(entry) => {
                (spf, dkim) = verdicts(&entry);
                tls = entry
                    .tls
                    .as_deref()
                    .map_or("none", |tls| tls.split(' ').next().unwrap_or("yes"))
                    .to_owned();
                fault = fault.or_else(|| (spf != "pass").then(|| format!("SPF {spf}")));
                fault = fault.or_else(|| (dkim != "pass pass").then(|| format!("DKIM {dkim}")));
            }
            Err(why) => fault = Some(why),
        }
    }
    let waits = || match stage.relay.queue().message(sent.id) {
        Ok(Some(_)) => "in the queue, tried again later".to_owned(),
        _ => "LOST".to_owned(),
    };
    let cells = vec![
        sent.letter.what.to_owned(),
        to.to_owned(),
        format!("{found:?}").to_lowercase(),
        end.map(|end| format!("{} ms", end.at.since(accepted).as_millis()))
            .unwrap_or_default(),
        end.map(|end| end.attempt.to_string()).unwrap_or_default(),
        spf,
        dkim,
        tls,
        end.map_or_else(waits, |end| end.reply.clone()),
    ];
    if cells.last().is_some_and(|reply| reply == "LOST") {
        fault = Some("neither ended nor in the queue".into());
    }
    Ok(Row { cells, fault })
}

/// The message as it came in for `to`: once, and byte for byte what was sent, below what the relay put on top.
fn arrived(stage: &Stage, to: &str, message: &[u8]) -> anyhow::Result<Result<Entry, String>> {
    let to = address(to)?.to_string();
    let entries = stage.lab.mailboxes.entries(&to).unwrap_or_default();
    let mut matching = Vec::new();
    for (number, entry) in entries.iter().enumerate() {
        if stage
            .lab
            .mailboxes
            .raw(&to, number)?
            .is_some_and(|raw| raw.ends_with(message))
        {
            matching.push(entry);
        }
    }
    Ok(match matching.as_slice() {
        [one] => Ok(Entry::clone(one)),
        [] => Err("it did not arrive as it was sent".into()),
        more => Err(format!("it arrived {} times", more.len())),
    })
}

fn verdicts(entry: &Entry) -> (String, String) {
    let Some(verdicts) = &entry.verdicts else {
        return ("unchecked".into(), "unchecked".into());
    };
    let dkim: Vec<_> = verdicts
        .dkim
        .iter()
        .map(|verdict| verdict.result.to_string())
        .collect();
    (
        verdicts.spf.result.to_string(),
        if dkim.is_empty() {
            Verdict::None.to_string()
        } else {
            dkim.join(" ")
        },
    )
}

/// The report on the one recipient that is refused: exactly one, from the null path, of the right form.
fn bounce(stage: &Stage) -> anyhow::Result<Result<Vec<u8>, String>> {
    let entries = stage.lab.mailboxes.entries(SENDER).unwrap_or_default();
    let [entry] = entries.as_slice() else {
        return Ok(Err(format!("{} reports came back, should be 1", entries.len())));
    };
    let raw = stage.lab.mailboxes.raw(SENDER, 0)?.unwrap_or_default();
    let text = String::from_utf8_lossy(&raw);
    let wanted = [
        "report-type=delivery-status",
        "Final-Recipient: rfc822;",
        "nobody@reject.test",
        "Status: 5.1.1",
        "Action: failed",
    ];
    let missing: Vec<_> = wanted
        .into_iter()
        .filter(|wanted| !text.contains(wanted))
        .collect();
    let (_, dkim) = verdicts(entry);
    Ok(
        match (entry.mail_from.as_str(), missing.as_slice(), dkim.as_str()) {
            ("", [], "pass pass") => Ok(raw),
            (from, missing, dkim) => Err(format!(
                "the report is from {from:?}, lacks {missing:?}, DKIM {dkim}"
            )),
        },
    )
}

fn indented(raw: &[u8]) -> String {
    String::from_utf8_lossy(raw)
        .lines()
        .map(|line| format!("    {line}\n"))
        .collect()
}

fn letters() -> Vec<Letter> {
    let one = |to: &str| vec![to.to_owned()];
    let letter = |what, to, subject: &str, rest: &str| {
        let message = format!(
            "From: The App <{SENDER}>\r\nTo: undisclosed-recipients:;\r\nSubject: {subject}\r\n{rest}"
        );
        Letter {
            what,
            to,
            message: message.into_bytes(),
        }
    };
    let mime = "MIME-Version: 1.0\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Transfer-Encoding: 8bit\r\n\r\n";
    let thirty = (1..=30)
        .map(|number| format!("list{number}@{}", ["ok.test", "second.test"][number % 2]))
        .collect();
    let attachment = format!(
        "MIME-Version: 1.0\r\nContent-Type: multipart/mixed; boundary=b1\r\n\r\n--b1\r\nContent-Type: text/plain\r\n\r\n\
         See the file.\r\n--b1\r\nContent-Type: application/octet-stream; name=data.bin\r\n\
         Content-Transfer-Encoding: base64\r\n\r\n{}--b1--\r\n",
        "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8gISIjJCUmJygpKissLS4v\r\n".repeat(200)
    );
    let alternative = "MIME-Version: 1.0\r\nContent-Type: multipart/alternative; boundary=b2\r\n\r\n--b2\r\n\
                       Content-Type: text/plain\r\n\r\nHello\r\n--b2\r\nContent-Type: text/html\r\n\r\n<p>Hello</p>\r\n--b2--\r\n";
    let newsletter = "List-Unsubscribe: <https://sender.test/u/1>\r\nList-Unsubscribe-Post: List-Unsubscribe=One-Click\r\n\r\n\
                      News.\r\n";
    let big = format!(
        "\r\n{}",
        "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcde\r\n".repeat(48_000)
    );
    vec![
        letter("plain text", one("ada@ok.test"), "Hello", "\r\nJust a line.\r\n"),
        letter(
            "8-bit text",
            one("grace@ok.test"),
            "Grüße",
            &format!("{mime}Grüße aus München: 10 €\r\n"),
        ),
        letter("attachment", one("ada@second.test"), "A file", &attachment),
        letter("HTML and text", one("alan@ok.test"), "Twice", alternative),
        letter("newsletter", one("reader@ok.test"), "News", newsletter),
        letter(
            "leading dots",
            one("dots@ok.test"),
            "Dots",
            "\r\n.\r\n..\r\n.dot\r\n...\r\nend\r\n",
        ),
        letter(
            "long lines",
            one("long@ok.test"),
            "Long",
            &format!("\r\n{}\r\n", "x".repeat(998)),
        ),
        letter("3 MB", one("big@second.test"), "Big", &big),
        letter("empty body", one("bare@ok.test"), "None", "\r\n"),
        letter(
            "greylisted",
            one("ada@greylist.test"),
            "Later",
            "\r\nAsk twice.\r\n",
        ),
        letter(
            "unknown user",
            one("nobody@reject.test"),
            "Who?",
            "\r\nNobody there.\r\n",
        ),
        letter(
            "dead host",
            one("ada@dead.test"),
            "Anyone?",
            "\r\nNobody home.\r\n",
        ),
        letter(
            "30 recipients",
            thirty,
            "To all",
            "\r\nTo thirty at two domains.\r\n",
        ),
    ]
}
