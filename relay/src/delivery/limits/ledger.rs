//! All budgets, found by their scope; shared by all shards.

use std::collections::HashMap;
use std::sync::Arc;

use mail_core::Timestamp;
use parking_lot::Mutex;
use queue::Scope;

use super::budget::{Budget, Used};
use crate::config::limits::ScopeLimits;

/// Cloning shares it.
#[derive(Clone, Debug, Default)]
pub struct Ledger(Arc<Mutex<HashMap<Scope, Arc<Mutex<Budget>>>>>);

impl Ledger {
    /// The budget of a scope, made where there is none, with these limits from here on.
    pub fn budget(&self, scope: &Scope, limits: &ScopeLimits, now: Timestamp) -> Arc<Mutex<Budget>> {
        let mut all = self.0.lock();
        if let Some(known) = all.get(scope) {
            known.lock().renew(limits, now);
            return known.clone();
        }
        let fresh = Arc::new(Mutex::new(Budget::new(
            limits.clone(),
            scope.tenant.is_some(),
            now,
        )));
        all.insert(scope.clone(), fresh.clone());
        fresh
    }

    /// The budget of a scope, if there is one.
    pub fn find(&self, scope: &Scope) -> Option<Arc<Mutex<Budget>>> {
        self.0.lock().get(scope).cloned()
    }

    /// Forgets budgets that nobody holds and that count nothing any more.
    pub fn tidy(&self, now: Timestamp) {
        self.0
            .lock()
            .retain(|_, budget| Arc::strong_count(budget) > 1 || !budget.lock().is_idle(now));
    }

    /// What is used of each, by scope.
    pub fn used(&self, now: Timestamp) -> Vec<(Scope, Used)> {
        let all = self.0.lock();
        let mut used: Vec<_> = all
            .iter()
            .map(|(scope, budget)| (scope.clone(), budget.lock().used(now)))
            .collect();
        used.sort_by(|one, other| one.0.cmp(&other.0));
        used
    }
}
