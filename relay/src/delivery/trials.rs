//! Sources that have failed, and were left alone for a while: one connection, of all shards, tries whether they serve again.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use mail_core::Timestamp;
use parking_lot::Mutex;

/// A trial that nobody has told the end of for so long counts no more: its host may be slow to greet.
const PATIENCE: Duration = Duration::from_secs(120);

/// When each source's trial was begun; shared by all shards.
#[derive(Clone, Debug, Default)]
pub struct Trials(Arc<Mutex<BTreeMap<Arc<str>, Timestamp>>>);

impl Trials {
    /// Whether a source may be tried.
    pub fn may_begin(&self, source: &str, now: Timestamp) -> bool {
        may_begin(&self.0.lock(), source, now)
    }

    /// Begins to try a source; false while another connection does.
    pub fn begin(&self, source: &Arc<str>, now: Timestamp) -> bool {
        let mut trials = self.0.lock();
        let may = may_begin(&trials, source, now);
        if may {
            trials.insert(source.clone(), now);
        }
        may
    }

    /// It is known whether it serves.
    pub fn end(&self, source: &str) {
        self.0.lock().remove(source);
    }
}

fn may_begin(trials: &BTreeMap<Arc<str>, Timestamp>, source: &str, now: Timestamp) -> bool {
    // A clock that was set back has been ahead.
    let is_over = |&begun: &Timestamp| now >= begun + PATIENCE || now < begun;
    trials.get(source).is_none_or(is_over)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_tries_until_it_is_known_or_for_long_enough() {
        let (trials, source) = (Trials::default(), Arc::from("s1"));
        let at = |seconds: u64| Timestamp(1_000_000 + seconds * 1_000);
        assert!(trials.may_begin("s1", at(0)) && trials.begin(&source, at(0)));
        assert!(!trials.may_begin("s1", at(1)) && !trials.begin(&source, at(1)));
        assert!(trials.begin(&Arc::from("s2"), at(1)), "another source's");
        trials.end("s1");
        assert!(trials.begin(&source, at(2)));
        assert!(!trials.begin(&source, at(121)));
        assert!(trials.begin(&source, at(122)));
    }
}
