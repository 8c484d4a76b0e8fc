//! Which of a pool's sources goes first: by weight among those that can take mail at that moment.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use crate::config::egress::Pool;

/// Turns that a source may be owed, in rounds of its pool: who could send nothing for long does not have all mail afterwards.
const OWED: i64 = 4;

/// A connection that is open already is used out of turn until its source is ahead by so many rounds of its pool: with one domain
/// after the other's mail, each source would open one to each of them.
const AHEAD: i64 = 3;

/// What each pool's sources are owed, in shares of the sum of all weights: smooth weighted round robin.
#[derive(Debug, Default)]
pub struct Shares {
    /// By [`Pool::account`].
    credits: HashMap<Arc<str>, HashMap<Arc<str>, i64>>,
    /// Credits that were asked for.
    #[cfg(test)]
    pub(super) asked: std::cell::Cell<usize>,
}

impl Shares {
    /// The pool's sources by what they are owed, most first; by weight and name among equals.
    pub fn order(&self, pool: &Pool) -> Vec<Arc<str>> {
        let mut order: Vec<_> = pool
            .members
            .iter()
            .map(|member| {
                let (weight, name) = (i64::from(member.weight), &member.source.name);
                (self.credit(pool, name) + weight, weight, name)
            })
            .collect();
        order.sort_by(|one, other| (other.0, other.1).cmp(&(one.0, one.1)).then(one.2.cmp(other.2)));
        order.into_iter().map(|(.., name)| name.clone()).collect()
    }

    /// Tells of each source whether it may send out of its turn, for all that those of the pool which can send are owed.
    pub fn may_go_on<'a>(
        &'a self,
        pool: &'a Pool,
        able: impl IntoIterator<Item = &'a Arc<str>>,
    ) -> impl Fn(&str) -> bool {
        let sum: i64 = pool.members.iter().map(|member| i64::from(member.weight)).sum();
        let most = able.into_iter().map(|name| self.credit(pool, name)).max();
        // What one is ahead the others are behind.
        move |source| most.is_none_or(|most| most - self.credit(pool, source) < 2 * AHEAD * sum)
    }

    fn credit(&self, pool: &Pool, source: &str) -> i64 {
        #[cfg(test)]
        self.asked.update(|asked| asked + 1);
        let credits = self.credits.get(&pool.account);
        credits.and_then(|all| all.get(source)).copied().unwrap_or(0)
    }

    /// A message goes from this source of the pool.
    pub fn served(&mut self, pool: &Pool, source: &str) {
        if pool.members.len() < 2 {
            return;
        }
        let sum: i64 = pool.members.iter().map(|member| i64::from(member.weight)).sum();
        let credits = self.credits.entry(pool.account.clone()).or_default();
        for member in &pool.members {
            let credit = credits.entry(member.source.name.clone()).or_default();
            *credit += i64::from(member.weight);
            if *member.source.name == *source {
                *credit -= sum;
            }
            *credit = (*credit).clamp(-OWED * sum, OWED * sum);
        }
        // Who has left the pool is owed nothing.
        if credits.len() > pool.members.len() {
            let members: HashSet<_> = pool.members.iter().map(|member| &member.source.name).collect();
            credits.retain(|name, _| members.contains(name));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::config::egress::{Member, Source};

    fn pool(weights: &[(&str, u32)]) -> Pool {
        let member = |(name, weight): &(&str, u32)| Member {
            source: Arc::new(Source {
                name: Arc::from(*name),
                addresses: Vec::new(),
                interface: None,
                ehlo: None,
                proxy: None,
                must_be_here: false,
                warm_up: None,
            }),
            weight: *weight,
            tenants: BTreeMap::new(),
            streams: BTreeMap::new(),
        };
        Pool::new("p".into(), weights.iter().map(member).collect())
    }

    fn goes(shares: &mut Shares, pool: &Pool, is_able: impl Fn(&str) -> bool) -> String {
        let order = shares.order(pool);
        let first = order.iter().find(|name| is_able(name)).unwrap();
        shares.served(pool, first);
        first.to_string()
    }

    #[test]
    fn sources_share_by_weight_and_evenly() {
        let pool = pool(&[("a", 3), ("b", 1)]);
        let mut shares = Shares::default();
        let went: Vec<_> = (0..8).map(|_| goes(&mut shares, &pool, |_| true)).collect();
        assert_eq!(went.concat(), "aabaaaba");
    }

    #[test]
    fn who_could_not_send_is_owed_a_little_and_not_all() {
        let pool = pool(&[("a", 1), ("b", 1)]);
        let mut shares = Shares::default();
        for _ in 0..1_000 {
            assert_eq!(goes(&mut shares, &pool, |name| name == "a"), "a");
        }
        let went: Vec<_> = (0..40).map(|_| goes(&mut shares, &pool, |_| true)).collect();
        let of_a = went.iter().filter(|name| *name == "a").count();
        assert!((12..20).contains(&of_a), "{of_a} of 40");
    }

    /// What one that can't send is owed says nothing of the others.
    #[test]
    fn who_goes_on_is_ahead_by_a_few_rounds_at_the_most() {
        let pool = pool(&[("a", 1), ("b", 1), ("c", 1)]);
        let [a, b, c] = ["a", "b", "c"].map(Arc::<str>::from);
        let mut shares = Shares::default();
        let mut ahead = 0;
        while shares.may_go_on(&pool, [&a, &b])("a") && ahead < 100 {
            shares.served(&pool, "a");
            ahead += 1;
        }
        assert!((4..=9).contains(&ahead), "{ahead}");
        for _ in 0..50 {
            shares.served(&pool, "a");
            shares.served(&pool, "b");
        }
        assert!(
            ["a", "b"]
                .iter()
                .all(|name| shares.may_go_on(&pool, [&a, &b])(name))
        );
        assert!(!shares.may_go_on(&pool, [&a, &b, &c])("a"));
    }

    #[test]
    fn who_leaves_the_pool_and_comes_back_begins_anew() {
        let (both, one) = (pool(&[("a", 1), ("b", 1)]), pool(&[("a", 1), ("c", 1)]));
        let mut shares = Shares::default();
        goes(&mut shares, &both, |name| name == "a");
        goes(&mut shares, &one, |name| name == "a");
        assert_eq!(shares.order(&both)[0].as_ref(), "b");
        assert_eq!(shares.credits["p"].len(), 2);
    }
}
