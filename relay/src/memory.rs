//! Memory where the process may have little, as in a container: what is bounded in octets is fitted into it. The store's buffers and what
//! waits for the disk are fitted by the queue, in the same way.

use queue::memory::{limit, part};

use crate::config::Settings;

/// Takes down what the configuration allows to what there is room for, and says so.
pub fn fit(settings: &mut Settings) {
    let limit = limit();
    let (bodies, in_flight) = (
        &mut settings.store.body_cache_bytes,
        &mut settings.submission.max_bytes_in_flight,
    );
    let wanted = (*bodies, *in_flight);
    (*bodies, *in_flight) = share(limit, wanted);
    if (*bodies, *in_flight) != wanted {
        tracing::info!(
            memory = limit,
            body_cache = *bodies,
            max_in_flight = *in_flight,
            "memory is limited: fewer octets of messages are in it at once than configured"
        );
    }
}

/// Of so much, the octets of bodies kept and of messages received, of those wanted. Messages that wait for the disk are among the
/// latter.
fn share(limit: Option<u64>, (bodies, in_flight): (u64, u64)) -> (u64, u64) {
    let bodies = bodies.min(limit.map_or(u64::MAX, |limit| limit / 8));
    (bodies, part(limit, in_flight))
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    #[test]
    fn messages_take_an_eighth_each_of_what_there_is() {
        let wanted = (64 * MIB, 256 * MIB);
        for (limit, fitted) in [
            (None, wanted),
            (Some(8_192 * MIB), wanted),
            (Some(1_024 * MIB), (64 * MIB, 128 * MIB)),
            (Some(256 * MIB), (32 * MIB, 32 * MIB)),
            (Some(32 * MIB), (4 * MIB, 8 * MIB)),
        ] {
            assert_eq!(share(limit, wanted), fitted, "{limit:?}");
        }
        assert_eq!(
            share(Some(1_024 * MIB), (0, MIB)),
            (0, MIB),
            "never more than configured"
        );
    }
}
