//! The name of a message: the one in the reply, the log, the API, the queue and the Received field.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::Timestamp;

/// A time-ordered message id (UUIDv7, RFC 9562 §5.7), written as 32 lower-case hexadecimal digits.
///
/// Byte order is creation order to the millisecond, so ids sort in the store as they came in.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct MessageId([u8; 16]);

/// The text is not a message id.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a message id: 32 hexadecimal digits expected")]
pub struct BadMessageId;

impl MessageId {
    /// Before all that are given: where looking through them begins.
    pub const LEAST: Self = Self([0; 16]);

    /// An id for a message that came in at `now`. `random` must differ between messages of one millisecond.
    pub fn new(now: Timestamp, random: &[u8; 10]) -> Self {
        Self(
            uuid::Builder::from_unix_timestamp_millis(now.0, random)
                .into_uuid()
                .into_bytes(),
        )
    }

    /// The id as stored: 16 octets, big-endian, so that byte order is time order.
    pub const fn from_bytes(bytes: [u8; 16]) -> Self {
        Self(bytes)
    }

    /// See [`MessageId::from_bytes`].
    pub const fn as_bytes(&self) -> &[u8; 16] {
        &self.0
    }

    /// When the id was made, to the millisecond.
    pub fn created(&self) -> Timestamp {
        let mut millis = [0; 8];
        millis[2..].copy_from_slice(&self.0[..6]);
        Timestamp(u64::from_be_bytes(millis))
    }
}

impl fmt::Display for MessageId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(Uuid::from_bytes_ref(&self.0).as_simple(), f)
    }
}

impl fmt::Debug for MessageId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for MessageId {
    type Err = BadMessageId;

    /// Reads 32 hexadecimal digits, hyphens of the UUID form allowed.
    fn from_str(text: &str) -> Result<Self, BadMessageId> {
        let id = Uuid::try_parse(text).map_err(|_| BadMessageId)?;
        Ok(Self(id.into_bytes()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn orders_by_time_and_reads_back() {
        let early = MessageId::new(Timestamp(1_700_000_000_000), &[0xff; 10]);
        let late = MessageId::new(Timestamp(1_700_000_000_001), &[0; 10]);
        assert!(early < late);
        assert_eq!(late.created(), Timestamp(1_700_000_000_001));
        assert_eq!(early.to_string().parse(), Ok(early));
        assert_eq!(early.to_string().len(), 32);
        assert_eq!("../etc/passwd".parse::<MessageId>(), Err(BadMessageId));
    }
}
