//! The process's file descriptors, shared out at the start: where few are allowed, no session may take the one that the store or a
//! delivery needs next. A store that can't open a file takes no more writes.

use rustix::process::{Resource, getrlimit, setrlimit};

use crate::config::Settings;

/// For what is neither a file of the store's, a session nor a delivery: listeners, event queues, the doors for metrics and
/// operators, questions to name servers, clients on their way out.
const OTHERS: usize = 80;

/// Takes the configured numbers of connections down to what there are descriptors for, and says so. The limit itself is raised as
/// far as the process may.
pub fn fit(settings: &mut Settings) {
    let mut limit = getrlimit(Resource::Nofile);
    if limit.current != limit.maximum {
        limit.current = limit.maximum;
        if let Err(error) = setrlimit(Resource::Nofile, limit) {
            tracing::debug!(%error, "the limit of descriptors can't be raised");
        }
        limit = getrlimit(Resource::Nofile);
    }
    let Some(limit) = limit.current.and_then(|limit| usize::try_from(limit).ok()) else {
        return;
    };
    let sessions = &mut settings.submission.max_connections;
    let deliveries = &mut settings.delivery.max_connections;
    let wanted = (*sessions, *deliveries);
    (*sessions, *deliveries) = share(limit, wanted.0, wanted.1);
    if (*sessions, *deliveries) != wanted {
        tracing::warn!(
            descriptors = limit,
            sessions,
            deliveries,
            "fewer connections at once than configured: the process may open too few files; raise its limit (ulimit -n, LimitNOFILE)"
        );
    }
}

/// Of so many descriptors, how many sessions and how many deliveries may be open at once, of those wanted. Each gets half of what
/// the store and the others leave, and what the other one does not want.
fn share(limit: usize, sessions: usize, deliveries: usize) -> (usize, usize) {
    let left = limit.saturating_sub(queue::descriptors(limit) + OTHERS);
    let sessions = sessions.min((left / 2).max(left.saturating_sub(deliveries)));
    let deliveries = deliveries.min(left.saturating_sub(sessions));
    // Of none at all nobody could make out why.
    (sessions.max(1), deliveries.max(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_shared_out_is_never_more_than_there_is() {
        for limit in [256, 300, 512, 1_024, 4_096, 1 << 20] {
            for wanted in [(1_000, 1_000), (10, 1_000), (1_000, 10), (5, 5)] {
                let (sessions, deliveries) = share(limit, wanted.0, wanted.1);
                assert!(sessions <= wanted.0 && deliveries <= wanted.1);
                let used = sessions + deliveries + queue::descriptors(limit) + OTHERS;
                assert!(used <= limit, "{limit}, {wanted:?}: {used}");
                // Nothing is left over that somebody wants.
                assert!(
                    (sessions, deliveries) == wanted || used == limit,
                    "{limit}, {wanted:?}: {used}"
                );
            }
        }
    }

    #[test]
    fn few_are_shared_by_both() {
        assert_eq!(share(256, 1_000, 1_000), (40, 40));
        assert_eq!(share(256, 1_000, 10), (70, 10));
        assert_eq!(share(10, 1_000, 1_000), (1, 1));
    }
}
