//! Which source of a pool serves a queue.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;

use queue::QueueId;

use crate::config::egress::{Member, Pool, Source};

impl Pool {
    /// The source for a queue: always the same, so that what a destination learns of a source's mail it learns of one stream of it,
    /// and over many queues each source as often as its weight says. A source that comes or goes moves no more queues than
    /// it gains or loses (weighted rendezvous hashing). `None`: the pool has no members.
    pub fn source_for(&self, queue: QueueId) -> Option<&Arc<Source>> {
        let scored = self.members.iter().map(|member| (score(member, queue), member));
        let best = scored.max_by(|left, right| left.0.total_cmp(&right.0));
        best.map(|(_, member)| &member.source)
    }
}

/// For a uniform `u`, `-ln(u) / w` is exponentially distributed with rate `w`, and the smallest of several such is that of each in
/// proportion to its `w`. This is its inverse, so that the greatest wins.
fn score(member: &Member, queue: QueueId) -> f64 {
    let mut hasher = DefaultHasher::new();
    (&*member.source.name, queue.0).hash(&mut hasher);
    // 53 bits, never 0 nor 1.
    let drawn = ((hasher.finish() >> 11) as f64 + 0.5) / (1_u64 << 53) as f64;
    f64::from(member.weight) / -drawn.ln()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn pool(members: &[(&str, u32)]) -> Pool {
        let member = |&(name, weight): &(&str, u32)| Member {
            source: Arc::new(Source {
                name: name.into(),
                addresses: Vec::new(),
                interface: None,
                ehlo: None,
                proxy: None,
                must_be_here: true,
            }),
            weight,
        };
        Pool {
            name: "p".into(),
            members: members.iter().map(member).collect(),
        }
    }

    fn chosen(pool: &Pool) -> Vec<String> {
        let of = |queue| {
            pool.source_for(QueueId(queue))
                .map(|source| source.name.to_string())
        };
        (0..10_000).filter_map(of).collect()
    }

    #[test]
    fn queues_spread_by_weight() {
        let mut counts = BTreeMap::<String, u32>::new();
        for name in chosen(&pool(&[("a", 1), ("b", 3), ("c", 6)])) {
            *counts.entry(name).or_default() += 1;
        }
        for (name, share) in [("a", 1_000), ("b", 3_000), ("c", 6_000)] {
            let count = counts.get(name).copied().unwrap_or_default();
            assert!(count.abs_diff(share) < 200, "{counts:?}");
        }
        assert_eq!(pool(&[]).source_for(QueueId(1)), None);
    }

    #[test]
    fn a_source_that_goes_moves_its_own_queues_alone() {
        let before = chosen(&pool(&[("a", 1), ("b", 3), ("c", 6)]));
        let after = chosen(&pool(&[("c", 6), ("a", 1)]));
        let moved = before
            .iter()
            .zip(&after)
            .filter(|(before, after)| before != after);
        assert!(moved.clone().count() > 2_000);
        assert!(moved.clone().all(|(before, _)| before == "b"));
    }
}
