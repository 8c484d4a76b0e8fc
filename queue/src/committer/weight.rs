//! What a request costs in memory while it waits and in its group: about the octets of its own, which it adds to the batch.

use mail_core::{Mailbox, Recipient};

use super::Request;
use crate::import::{Batch, Importing};
use crate::message::{NewMessage, Settle};
use crate::records::{Hop, StateRecord};

/// Any request, with the counters, its journal entry and a queue's records.
const REQUEST: usize = 500;

/// Of each further unit: its keys, its queue's record, its part of the envelope.
const UNIT: usize = 300;

/// Of each recipient beside its names.
const RECIPIENT: usize = 16;

/// Of each further entry of the journal.
const ENTRY: usize = 150;

/// What is kept under a scope, and a key that is deleted.
const COUNTED: usize = 300;
const KEY: usize = 40;

impl Request {
    /// See the module.
    pub(crate) fn weight(&self) -> usize {
        let own = match self {
            Self::Accept { message, .. } => of_message(message),
            Self::Settle { settle, .. } => of_settle(settle),
            Self::Chunk { octets, .. } => octets.len(),
            Self::Import { batch, .. } => of_import(batch),
            Self::Count { counts, .. } => counts.len() * COUNTED,
            Self::Forget { notices } => notices.len() * KEY,
            Self::Abandon(abandoned) => abandoned.chunks() as usize * KEY,
            // Reasons and causes are cut where they come from.
            Self::SetAside { .. }
            | Self::Suspend { .. }
            | Self::Resume { .. }
            | Self::Adjust { .. }
            | Self::EndAdjustment { .. }
            | Self::Hold { .. } => 2 * REQUEST,
            Self::Rest { .. }
            | Self::Lift { .. }
            | Self::Present(_)
            | Self::Retry { .. }
            | Self::Damaged(_)
            | Self::Mend { .. }
            | Self::Nudge => 0,
        };
        REQUEST + own
    }
}

fn of_message(message: &NewMessage) -> usize {
    let recipients = message.units.iter().flat_map(|unit| &unit.recipients);
    message.body.len()
        + message.prefix.len()
        // In the envelope, and in the journal.
        + 2 * of_tags(message.tag.as_deref(), &message.metadata)
        + message.units.len() * UNIT
        + recipients.map(of_recipient).sum::<usize>()
}

fn of_tags(tag: Option<&str>, metadata: &[(String, String)]) -> usize {
    let metadata = metadata.iter().map(|(name, value)| name.len() + value.len() + 2);
    tag.map_or(0, str::len) + metadata.sum::<usize>()
}

/// In the envelope, and in the journal.
fn of_recipient(recipient: &Recipient) -> usize {
    RECIPIENT + 2 * of_mailbox(&recipient.mailbox) + recipient.orcpt.as_deref().map_or(0, str::len)
}

fn of_mailbox(mailbox: &Mailbox) -> usize {
    mailbox.local().len() + 1 + mailbox.domain().as_str().len()
}

fn of_settle(settle: &Settle) -> usize {
    let hop = settle.hop.as_ref().map_or(0, of_hop);
    let entry = |mailbox, reply: &str| ENTRY + hop + of_mailbox(mailbox) + reply.len();
    let ends = settle.ends.iter().map(|end| entry(&end.mailbox, &end.reply));
    let again = settle.again.iter().flat_map(|again| &again.open);
    // What waits has its reply in its state, too.
    let open = again.map(|open| entry(&open.mailbox, &open.reply) + RECIPIENT + open.reply.len());
    let others = settle.again.iter().flat_map(|again| &again.others);
    let others = others.map(|waiting| RECIPIENT + waiting.reply.len());
    let signature = settle.again.as_ref().and_then(|again| again.signature.as_ref());
    let reports = settle.reports.iter().map(|report| REQUEST + of_message(report));
    ends.chain(open).chain(others).chain(reports).sum::<usize>()
        + signature.map_or(0, |signature| signature.fields.len())
}

fn of_hop(hop: &Hop) -> usize {
    [&hop.site, &hop.host, &hop.address, &hop.source, &hop.tls]
        .map(String::len)
        .into_iter()
        .sum()
}

fn of_import(batch: &Batch) -> usize {
    batch.messages.iter().map(of_imported).sum()
}

fn of_imported(message: &Importing) -> usize {
    let envelope = &message.envelope;
    let recipients = envelope.units.iter().flat_map(|unit| &unit.recipients);
    let states = message.units.iter().filter_map(|(_, _, state)| state.as_ref());
    REQUEST
        + message.first.as_ref().map_or(0, bytes::Bytes::len)
        + envelope.prefix.len()
        + 2 * of_tags(envelope.tag.as_deref(), &envelope.metadata)
        + envelope.units.len() * UNIT
        + recipients.map(of_recipient).sum::<usize>()
        + states.map(of_state).sum::<usize>()
}

fn of_state(state: &StateRecord) -> usize {
    state.open.iter().map(|open| RECIPIENT + open.reply.len()).sum()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use bytes::Bytes;
    use mail_core::{MessageId, Timestamp};
    use tokio::sync::oneshot;

    use super::*;
    use crate::committer::Committer;
    use crate::intake::tests::{message, message_to_many};
    use crate::message::{Again, End, Fate, StillOpen};
    use crate::names::{QueueId, UnitKey};
    use crate::records::Waiting;
    use crate::store::MemoryStore;

    /// Octets of the batch that a request makes on its own.
    fn written(committer: &mut Committer, store: &MemoryStore, request: Request) -> usize {
        store.recorded();
        committer
            .commit([request])
            .map_err(|failed| failed.error)
            .unwrap();
        store
            .recorded()
            .iter()
            .map(|recorded| recorded.batch.size())
            .sum()
    }

    fn accept(message: &Arc<NewMessage>) -> Request {
        Request::Accept {
            message: message.clone(),
            chunks: Vec::new(),
            reserved: None,
            reply: oneshot::channel().0,
        }
    }

    /// A message that is large in one way.
    fn large(number: u8, change: impl FnOnce(&mut NewMessage)) -> Arc<NewMessage> {
        let mut message = NewMessage::clone(&message(number));
        change(&mut message);
        Arc::new(message)
    }

    fn messages() -> [Arc<NewMessage>; 6] {
        [
            message(1),
            message_to_many(2, 100_000),
            large(3, |message| message.prefix = vec![b'x'; 100_000].into()),
            large(4, |message| message.body = vec![b'x'; 100_000].into()),
            large(5, |message| {
                message.metadata = vec![("name".to_owned(), "x".repeat(100)); 1_000];
            }),
            large(6, |message| {
                let first = message.units[0].clone();
                let mailbox = |domain: &str| format!("to@{domain}").parse().unwrap();
                message.units = (0..1_000)
                    .map(|number| {
                        let domain = format!("d{number}.test");
                        let recipients = vec![Recipient::new(mailbox(&domain))];
                        let domain = domain.parse().unwrap();
                        crate::NewUnit {
                            domain,
                            recipients,
                            ..first.clone()
                        }
                    })
                    .collect();
            }),
        ]
    }

    fn settle(number: u8, change: impl FnOnce(&mut Settle)) -> Request {
        let mut settle = Settle {
            unit: UnitKey {
                queue: QueueId(1),
                due: Timestamp(1),
                id: MessageId::from_bytes([number; 16]),
                unit: 0,
            },
            at: Timestamp(2),
            attempt: 1,
            hop: Some(Hop {
                host: "mx.ok.test".to_owned(),
                ..Hop::default()
            }),
            ends: Vec::new(),
            again: None,
            reports: Vec::new(),
        };
        change(&mut settle);
        let (settle, reply) = (Box::new(settle), oneshot::channel().0);
        Request::Settle { settle, reply }
    }

    fn settles() -> [Request; 4] {
        let mailbox = || "somebody@ok.test".parse().unwrap();
        let end = || End {
            mailbox: mailbox(),
            fate: Fate::Bounced,
            reply: "550 5.1.1 no such user".to_owned(),
        };
        let open = |recipient| StillOpen {
            recipient,
            mailbox: mailbox(),
            reply: "450 4.2.1 later".repeat(10),
        };
        let waiting = |recipient| Waiting {
            recipient,
            reply: "450 4.2.1 later".repeat(10),
        };
        [
            settle(1, |settle| settle.ends = vec![end()]),
            settle(2, |settle| settle.ends = vec![end(); 1_000]),
            settle(3, |settle| {
                settle.again = Some(Again {
                    due: Timestamp(9),
                    attempts: 1,
                    in_doubt: 0,
                    doubtful: false,
                    open: (0..1_000).map(open).collect(),
                    others: (0..1_000).map(waiting).collect(),
                    signature: None,
                    delay_told: None,
                });
            }),
            settle(4, |settle| {
                settle.ends = vec![end()];
                let body = |message: &mut NewMessage| message.body = Bytes::from(vec![b'x'; 50_000]);
                settle.reports = vec![large(9, body), message_to_many(10, 50_000)];
            }),
        ]
    }

    #[test]
    fn a_request_weighs_about_what_it_writes() {
        let store = MemoryStore::recording();
        crate::Queue::in_memory(store.clone()).unwrap();
        let mut committer = Committer::new(Arc::new(store.clone()), Arc::default(), Arc::default()).unwrap();
        for (number, request) in messages().iter().map(accept).chain(settles()).enumerate() {
            let weight = request.weight();
            let written = written(&mut committer, &store, request);
            // A little one's structures are most of it.
            assert!(
                ((written / 2).saturating_sub(500)..=2 * written + 500).contains(&weight),
                "request {number} weighs {weight}, and writes {written}"
            );
        }
    }
}
