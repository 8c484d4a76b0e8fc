//! Messages with their state as a stream of octets, from one store to another. docs/queue-stream.md describes it for others.

use std::io::{self, Read, Write};

use bytes::Bytes;
use mail_core::{MessageId, Timestamp};
use serde::{Deserialize, Serialize};

use crate::names::QueueName;
use crate::records::{AsideCause, Damaged, Record, SuspensionRecord, decode, encode};

/// How every stream begins: the number is the version of the frames.
pub const MAGIC: &[u8; 18] = b"POSTRIDER QUEUE 1\n";

/// The way of mail whose way is lost. Nobody has a smart host of this name unless they want that mail sent through it.
pub(crate) const LOST_WAY: &str = "smart host lost";

/// Octets of a frame's payload. A message of 100,000 recipients has some 10 MB.
const LONGEST: usize = 64 << 20;

/// What a frame holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Header,
    Suspension,
    Message,
    /// A chunk of the body of the message before.
    Body,
    LeftOut,
    End,
}

impl Kind {
    const ALL: [Self; 6] = [
        Self::Header,
        Self::Suspension,
        Self::Message,
        Self::Body,
        Self::LeftOut,
        Self::End,
    ];

    fn octet(self) -> u8 {
        match self {
            Self::Header => b'H',
            Self::Suspension => b'S',
            Self::Message => b'M',
            Self::Body => b'B',
            Self::LeftOut => b'L',
            Self::End => b'E',
        }
    }
}

/// The first frame.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Header {
    /// Names the stream: whoever takes it in knows it again.
    pub stream: [u8; 16],
    /// The store it is from.
    pub store: [u8; 16],
    /// The version of the program that wrote it.
    pub program: String,
    /// When it was begun.
    pub made_at: Timestamp,
}

/// A suspension.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ExportedSuspension {
    /// As the store keeps it: versioned by itself. The number of a queue in it is the old store's.
    pub(crate) record: Bytes,
    /// The name of that queue.
    pub(crate) queue: Option<ExportedQueue>,
}

/// A queue's name, with what its route group's number stands for.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub(crate) struct ExportedQueue {
    pub(crate) name: QueueName,
    /// None for delivery by MX.
    pub(crate) group: Option<String>,
}

/// A message: its body follows in as many frames as its envelope has chunks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ExportedMessage {
    pub(crate) id: MessageId,
    /// As the store keeps it: versioned by itself. The queues' numbers in it are the old store's.
    pub(crate) envelope: Bytes,
    /// Those that have not ended.
    pub(crate) units: Vec<ExportedUnit>,
}

/// A unit that has not ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ExportedUnit {
    /// Its number within the envelope.
    pub(crate) number: u16,
    pub(crate) queue: ExportedQueue,
    pub(crate) due: Timestamp,
    /// As the store keeps it: versioned by itself. None before the first deferral.
    pub(crate) state: Option<Bytes>,
    /// Since when, and why, it is set aside.
    pub(crate) aside: Option<(Timestamp, AsideCause, String)>,
    /// Its sender wants to hear of a delay, and has not.
    pub(crate) notice: bool,
}

/// What could not be read, and is not in the stream.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeftOut {
    /// Which message, where that is known.
    pub id: Option<MessageId>,
    /// Which of its units; none: all of it.
    pub unit: Option<u16>,
    /// What is wrong.
    pub what: String,
}

/// The last frame: how many there were. Without it, a stream was cut short.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counts {
    /// Messages.
    pub messages: u64,
    /// Their units.
    pub units: u64,
    /// Octets of their bodies.
    pub bytes: u64,
    /// Suspensions.
    pub suspensions: u64,
    /// Entries of what was left out.
    pub left_out: u64,
}

impl Record for Header {}
impl Record for ExportedSuspension {}
impl Record for ExportedMessage {}
impl Record for LeftOut {}
impl Record for Counts {}

/// Why a stream does not read.
#[derive(Debug, thiserror::Error)]
pub enum StreamError {
    /// It could not be read from.
    #[error("the stream can't be read: {0}")]
    Io(#[from] io::Error),
    /// Something else.
    #[error("this is no stream of `postrider queue export`, or of a version that this program does not know")]
    NotAStream,
    /// It ends before its end.
    #[error(
        "the stream ends early, after {messages} messages: it was cut short. What was whole has been taken in; import the whole \
         stream to go on, or export again"
    )]
    Short {
        /// Whole ones before.
        messages: u64,
    },
    /// A checksum does not match, or a frame is out of place.
    #[error("the stream is damaged at octet {offset}, after {messages} messages: {what}")]
    Damaged {
        /// Where, from its beginning.
        offset: u64,
        /// Whole ones before.
        messages: u64,
        /// What.
        what: &'static str,
    },
}

/// Writes frames.
pub(crate) struct Writer<W> {
    out: W,
    buffer: Vec<u8>,
}

impl<W: Write> Writer<W> {
    pub(crate) fn begin(mut out: W) -> io::Result<Self> {
        out.write_all(MAGIC)?;
        Ok(Self {
            out,
            buffer: Vec::new(),
        })
    }

    pub(crate) fn record(&mut self, kind: Kind, record: &impl Record) -> io::Result<()> {
        let mut buffer = std::mem::take(&mut self.buffer);
        let done = self.frame(kind, encode(record, &mut buffer));
        self.buffer = buffer;
        done
    }

    pub(crate) fn frame(&mut self, kind: Kind, payload: &[u8]) -> io::Result<()> {
        let head = head(kind, payload.len())?;
        let sum = crc32c::crc32c_append(crc32c::crc32c(&head), payload);
        self.out.write_all(&head)?;
        self.out.write_all(payload)?;
        self.out.write_all(&sum.to_le_bytes())
    }

    pub(crate) fn finish(mut self) -> io::Result<W> {
        self.out.flush()?;
        Ok(self.out)
    }
}

fn head(kind: Kind, length: usize) -> io::Result<[u8; 5]> {
    if length > LONGEST {
        let text = format!("a record of {length} octets is too long for a stream");
        return Err(io::Error::new(io::ErrorKind::InvalidData, text));
    }
    let mut head = [kind.octet(); 5];
    head[1..].copy_from_slice(&(length as u32).to_be_bytes());
    Ok(head)
}

/// Reads frames, in order.
pub(crate) struct Reader<R> {
    input: R,
    offset: u64,
    /// Whole messages so far, for errors.
    pub(crate) messages: u64,
}

impl<R: Read> Reader<R> {
    pub(crate) fn begin(input: R) -> Result<Self, StreamError> {
        let mut reader = Self {
            input,
            offset: 0,
            messages: 0,
        };
        let mut magic = [0; MAGIC.len()];
        match reader.fill(&mut magic) {
            Ok(()) if magic == *MAGIC => Ok(reader),
            Ok(()) | Err(StreamError::Short { .. }) => Err(StreamError::NotAStream),
            Err(error) => Err(error),
        }
    }

    pub(crate) fn next(&mut self) -> Result<(Kind, Bytes), StreamError> {
        let mut head = [0; 5];
        self.fill(&mut head)?;
        let [octet, length @ ..] = head;
        let length = u32::from_be_bytes(length) as usize;
        let kind = Kind::ALL.into_iter().find(|kind| kind.octet() == octet);
        let kind = kind.ok_or_else(|| self.damaged("no known frame"))?;
        if length > LONGEST {
            return Err(self.damaged("a frame that is too long"));
        }
        // Grown as it is read: the length may be what is damaged.
        let mut payload = Vec::new();
        let read = (&mut self.input).take(length as u64).read_to_end(&mut payload)?;
        self.offset += read as u64;
        if read < length {
            return Err(self.short());
        }
        let mut sum = [0; 4];
        self.fill(&mut sum)?;
        if crc32c::crc32c_append(crc32c::crc32c(&head), &payload) != u32::from_le_bytes(sum) {
            return Err(self.damaged("a checksum does not match"));
        }
        Ok((kind, payload.into()))
    }

    pub(crate) fn damaged(&self, what: &'static str) -> StreamError {
        StreamError::Damaged {
            offset: self.offset,
            messages: self.messages,
            what,
        }
    }

    pub(crate) fn decode<T: Record>(&self, payload: &[u8]) -> Result<T, StreamError> {
        decode(payload).map_err(|Damaged(what)| match what {
            "version" => StreamError::NotAStream,
            what => self.damaged(what),
        })
    }

    fn short(&self) -> StreamError {
        let messages = self.messages;
        StreamError::Short { messages }
    }

    fn fill(&mut self, octets: &mut [u8]) -> Result<(), StreamError> {
        match self.input.read_exact(octets) {
            Ok(()) => {
                self.offset += octets.len() as u64;
                Ok(())
            }
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Err(self.short()),
            Err(error) => Err(error.into()),
        }
    }
}

/// The record of a suspension in the form of a stream.
pub(crate) fn suspension(record: &SuspensionRecord, queue: Option<ExportedQueue>) -> ExportedSuspension {
    let mut buffer = Vec::new();
    ExportedSuspension {
        record: Bytes::copy_from_slice(encode(record, &mut buffer)),
        queue,
    }
}
