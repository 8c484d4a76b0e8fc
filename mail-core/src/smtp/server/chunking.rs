//! BDAT in a session (RFC 3030 §2). Whatever is wrong with the command, its octets are read before it is answered.

use super::{Action, Asked, Question, Session, State, Transaction, counts, out_of_order};
use crate::Reply;
use crate::smtp::command::Chunk;
use crate::smtp::data::DataFault;

/// Chunks of fewer octets count against the commands a session may say: without that, a message of a few megabytes is
/// millions of commands.
const WORTH_A_COMMAND: u64 = 512;

/// What becomes of a chunk's octets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// They begin a message.
    Begin,
    /// They go on with the message.
    Append,
    /// They are dropped: the command is refused.
    Drop,
}

/// A chunk that is being read.
#[derive(Clone, Debug)]
pub(super) enum Reading {
    Kept(Transaction, Chunk),
    /// What the client is told then, and the transaction that goes on.
    Dropped(Option<Transaction>, Reply),
}

impl Reading {
    pub(super) fn transaction(&self) -> Option<&Transaction> {
        match self {
            Self::Kept(tx, _) => Some(tx),
            Self::Dropped(tx, _) => tx.as_ref(),
        }
    }
}

impl Session {
    pub(super) fn bdat(&mut self, open: Option<Transaction>, chunk: Option<Chunk>) -> Action {
        let Some(chunk) = chunk else {
            return self.close(Reply::new(501, 5, 4, "BDAT takes a number of octets, and LAST"));
        };
        let (open, refusal) = match open {
            _ if !self.config.chunking => (open, Reply::new(502, 5, 1, "not implemented")),
            None => (None, out_of_order("MAIL and RCPT come first")),
            Some(tx) if tx.envelope.recipients.is_empty() => {
                let reply = if tx.refused {
                    Reply::new(554, 5, 1, "no valid recipients")
                } else {
                    out_of_order("RCPT comes first")
                };
                (Some(tx), reply)
            }
            Some(mut tx) => {
                let fate = if tx.chunked { Fate::Append } else { Fate::Begin };
                tx.chunked = true;
                self.chunk_refused = false;
                if chunk.octets >= WORTH_A_COMMAND {
                    self.commands -= 1;
                }
                self.state = State::Chunk(Reading::Kept(tx, chunk));
                return Action::ReceiveChunk(chunk, fate);
            }
        };
        self.state = State::Chunk(Reading::Dropped(open, refusal));
        Action::ReceiveChunk(chunk, Fate::Drop)
    }

    pub(super) fn chunk_read(&mut self, reading: Reading, result: Result<(), DataFault>) -> Action {
        match (reading, result) {
            (Reading::Kept(tx, Chunk { last: true, .. }), Ok(())) => {
                self.ask(Asked::Message, Question::Message(tx.envelope))
            }
            (Reading::Kept(tx, chunk), Ok(())) => {
                let text = format!("{} octets received", chunk.octets);
                self.stay(Some(tx), Reply::new(250, 0, 0, "").with_text(text))
            }
            (Reading::Kept(..), Err(fault)) => self.refuse_chunk(None, fault.reply()),
            (Reading::Dropped(open, reply), _) => self.refuse_chunk(open, reply),
        }
    }

    /// A client that sends all its chunks at once learns of the first one's refusal behind the last: one error in all.
    fn refuse_chunk(&mut self, open: Option<Transaction>, reply: Reply) -> Action {
        if std::mem::replace(&mut self.chunk_refused, true) && counts(&reply) {
            self.errors = self.errors.saturating_sub(1);
        }
        self.stay(open, reply)
    }
}
