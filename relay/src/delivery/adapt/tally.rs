//! Replies of which it takes several, counted for each lane.

use std::collections::{HashMap, VecDeque};

use mail_core::Timestamp;

use crate::delivery::lane::LaneKey;
use crate::shaping::After;

/// Lanes and kinds of replies that are counted at once, some hundred octets each.
const MOST: usize = 10_000;

/// A lane may leave memory between two of them, so it is not the lane that counts. A restart begins anew.
#[derive(Debug, Default)]
pub struct Tally(HashMap<(LaneKey, u32), Heard>);

#[derive(Debug)]
struct Heard {
    at: VecDeque<Timestamp>,
    /// None of them counts any more.
    until: Timestamp,
}

impl Tally {
    /// Notes a reply that a lane has heard. Whether that is enough; then it begins anew.
    pub fn hears(&mut self, lane: &LaneKey, after: After, now: Timestamp) -> bool {
        let key = (lane.clone(), after.kind);
        if self.0.len() >= MOST && !self.0.contains_key(&key) {
            self.make_room(now);
        }
        let heard = self.0.entry(key.clone()).or_insert_with(|| Heard {
            at: VecDeque::new(),
            until: now,
        });
        heard.at.push_back(now);
        heard.until = now + after.within;
        while heard.at.front().is_some_and(|&at| at + after.within <= now) {
            heard.at.pop_front();
        }
        // After a reload fewer may be enough.
        let is_enough = heard.at.len() >= after.replies as usize;
        if is_enough {
            self.0.remove(&key);
        }
        is_enough
    }

    /// Who has nothing that counts is forgotten; or else whoever heard nothing for longest.
    fn make_room(&mut self, now: Timestamp) {
        self.0.retain(|_, heard| heard.until > now);
        if self.0.len() >= MOST
            && let Some(oldest) = self.0.iter().min_by_key(|(_, heard)| heard.at.back().copied())
        {
            let oldest = oldest.0.clone();
            self.0.remove(&oldest);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const NOW: Timestamp = Timestamp(1_700_000_000_000);

    fn lane(number: usize) -> LaneKey {
        LaneKey {
            site: format!("mx{number}.test").into(),
            rule: None,
            source: None,
        }
    }

    #[test]
    fn there_are_bounds() {
        let after = After {
            replies: 3,
            within: Duration::from_secs(60),
            kind: 1,
        };
        let mut tally = Tally::default();
        let later = |ms: usize| NOW + Duration::from_millis(ms as u64);
        for number in 0..MOST + 10 {
            assert!(!tally.hears(&lane(number), after, later(number)));
        }
        assert_eq!(tally.0.len(), MOST);
        // The oldest have gone, the newest have not.
        let now = later(MOST + 10);
        assert!(!tally.hears(&lane(0), after, now) && !tally.hears(&lane(MOST), after, now));
        assert!(!tally.hears(&lane(0), after, now) && tally.hears(&lane(MOST), after, now));
        // Once their time is over all of them have.
        for number in [MOST + 11, MOST + 12] {
            tally.hears(&lane(number), after, now + Duration::from_secs(120));
        }
        assert_eq!(tally.0.len(), 2);
    }
}
