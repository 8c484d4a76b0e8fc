//! When the relay last ran, kept across restarts: whoever starts has to know how long nobody tried what waits.

use std::time::Duration;

use mail_core::Timestamp;
use serde::{Deserialize, Serialize};

use crate::committer::{Request, read};
use crate::store::Family;
use crate::{Queue, ReadError, keys};

/// `meta` under [`keys::PRESENCE`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PresenceRecord {
    /// When it was written.
    pub last: Timestamp,
    /// How much longer what was overdue at the start was left to be tried in.
    pub grace: Duration,
}

impl Queue {
    /// Notes that the relay runs. May be lost when the committer is busy, or to a power cut: the next one says so again.
    pub fn note_presence(&self, record: PresenceRecord) {
        self.intake.tell(Request::Present(record));
    }

    /// The last note; none where the store is new, or of a version that made none.
    pub fn presence(&self) -> Result<Option<PresenceRecord>, ReadError> {
        read(&*self.store, Family::Meta, keys::PRESENCE)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::records::decode;

    /// As the first version wrote it; it is read for ever.
    #[test]
    fn the_first_version_is_read() {
        let written: &[u8] = &[
            1, 128, 160, 241, 194, 177, 52, 210, 9, 192, 247, 174, 142, 2, 242, 42, 45, 51,
        ];
        let record = PresenceRecord {
            last: Timestamp(1_800_000_000_000),
            grace: Duration::from_millis(1_234_567),
        };
        assert_eq!(decode::<PresenceRecord>(written).as_ref(), Ok(&record));
    }
}
