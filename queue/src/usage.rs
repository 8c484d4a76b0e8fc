//! How much waits, and how much may: of all tenants together, and of each.
//!
//! What is taken in is reserved before it is written, so that sessions side by side never exceed a limit; reports on mail that
//! ends are not asked, since they take the place of what they tell of.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use parking_lot::Mutex;

use crate::ReadError;
use crate::index::Totals;

/// Once mail was refused for a limit, it is taken again when no more than this part of the limit is used: clients that are told
/// to come back should not all come for one place.
const LOW_WATER: f64 = 0.95;

/// How much may wait. A message counts once for each of its destination domains.
#[derive(Clone, Debug, PartialEq)]
pub struct Limits {
    /// Messages.
    pub messages: u64,
    /// Octets.
    pub bytes: u64,
    /// The part of both that a tenant may use, where that is less than all.
    pub shares: BTreeMap<Arc<str>, f64>,
}

impl Limits {
    /// No limit but the disk's.
    pub const NONE: Self = Self {
        messages: u64::MAX,
        bytes: u64::MAX,
        shares: BTreeMap::new(),
    };
}

impl Default for Limits {
    fn default() -> Self {
        Self::NONE
    }
}

/// A limit that is reached.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Limit {
    /// [`Limits::messages`].
    #[error("{used} messages wait, and {limit} may")]
    Messages {
        /// So many wait.
        used: u64,
        /// So many may.
        limit: u64,
    },
    /// [`Limits::bytes`].
    #[error("{used} octets wait, and {limit} may")]
    Bytes {
        /// So many wait.
        used: u64,
        /// So many may.
        limit: u64,
    },
    /// A tenant's part of either.
    #[error("tenant {tenant}: {what}")]
    Tenant {
        /// Whose.
        tenant: Arc<str>,
        /// Of which.
        what: Box<Limit>,
    },
}

/// Messages by destination domain, and their octets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Amount {
    pub(crate) messages: u64,
    pub(crate) bytes: u64,
}

impl Amount {
    fn plus(self, other: Self) -> Self {
        Self {
            messages: self.messages.saturating_add(other.messages),
            bytes: self.bytes.saturating_add(other.bytes),
        }
    }

    fn minus(self, other: Self) -> Self {
        Self {
            messages: self.messages.saturating_sub(other.messages),
            bytes: self.bytes.saturating_sub(other.bytes),
        }
    }

    /// Which of these it exceeds, if one.
    fn over(self, messages: u64, bytes: u64) -> Option<Limit> {
        let Self {
            messages: used,
            bytes: octets,
        } = self;
        match (used > messages, octets > bytes) {
            (true, _) => Some(Limit::Messages {
                used,
                limit: messages,
            }),
            (_, true) => Some(Limit::Bytes {
                used: octets,
                limit: bytes,
            }),
            (false, false) => None,
        }
    }
}

fn part(of: u64, share: f64) -> u64 {
    if share >= 1.0 {
        of
    } else {
        (of as f64 * share) as u64
    }
}

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Usage(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    limits: Limits,
    /// What waits, and what is reserved.
    held: Counted,
    reserved: Counted,
    /// The limit of all for which mail was refused, until less waits.
    full: Option<Limit>,
    /// Tenants that were refused for their share, until less of theirs waits.
    told: HashSet<Arc<str>>,
}

#[derive(Debug, Default)]
struct Counted {
    all: Amount,
    tenants: HashMap<Arc<str>, Amount>,
}

impl Counted {
    fn of(&self, tenant: &str) -> Amount {
        self.tenants.get(tenant).copied().unwrap_or_default()
    }

    fn add(&mut self, tenant: &Arc<str>, more: Amount) {
        self.all = self.all.plus(more);
        let of_tenant = self.tenants.entry(tenant.clone()).or_default();
        *of_tenant = of_tenant.plus(more);
    }

    fn take(&mut self, tenant: &str, less: Amount) {
        self.all = self.all.minus(less);
        if let Some(of_tenant) = self.tenants.get_mut(tenant) {
            *of_tenant = of_tenant.minus(less);
            if *of_tenant == Amount::default() {
                self.tenants.remove(tenant);
            }
        }
    }
}

impl Usage {
    /// Takes new limits, for what comes from now on.
    pub(crate) fn limit(&self, limits: Limits) {
        let mut state = self.0.lock();
        state.limits = limits;
        state.look_again();
    }

    /// What waits according to the store, whatever was counted before.
    pub(crate) fn load(&self, totals: Result<Vec<Totals>, ReadError>) {
        let totals = match totals {
            Ok(totals) => totals,
            Err(error) => {
                tracing::error!(%error, "what waits is not known: limits are kept by what was counted before");
                return;
            }
        };
        let mut held = Counted::default();
        for Totals { tenant, total, .. } in totals {
            let amount = Amount {
                messages: total.count,
                bytes: total.bytes,
            };
            held.add(&tenant.into(), amount);
        }
        let mut state = self.0.lock();
        state.held = held;
        state.look_again();
    }

    /// A group has been written in which queues changed: whose, what they held, what they hold now.
    pub(crate) fn change(&self, changes: impl Iterator<Item = (Arc<str>, Amount, Amount)>) {
        let mut state = self.0.lock();
        for (tenant, before, now) in changes {
            state.held.add(&tenant, now);
            state.held.take(&tenant, before);
        }
        state.look_again();
    }

    /// Sets room aside, if there is room.
    pub(crate) fn reserve(self: &Arc<Self>, tenant: &Arc<str>, amount: Amount) -> Result<Reserved, Limit> {
        let mut state = self.0.lock();
        if let Some(limit) = state.over(tenant, amount) {
            state.refuse(tenant, &limit);
            return Err(limit);
        }
        state.reserved.add(tenant, amount);
        Ok(Reserved {
            usage: self.clone(),
            tenant: tenant.clone(),
            amount,
        })
    }

    /// The limit that a message of so many octets to one domain would exceed, if any: it is taken for refused.
    pub(crate) fn over(&self, tenant: &Arc<str>, bytes: u64) -> Option<Limit> {
        let mut state = self.0.lock();
        let limit = state.over(tenant, Amount { messages: 1, bytes })?;
        state.refuse(tenant, &limit);
        Some(limit)
    }

    /// The limit of all for which mail is refused, if it is.
    pub(crate) fn full(&self) -> Option<Limit> {
        self.0.lock().full.clone()
    }

    /// How much of the limits is used: the greater part of both; 0 where there are none.
    pub(crate) fn ratio(&self) -> f64 {
        let state = self.0.lock();
        let of = |used: u64, limit: u64| {
            if limit == u64::MAX {
                0.0
            } else {
                used as f64 / limit.max(1) as f64
            }
        };
        of(state.held.all.messages, state.limits.messages).max(of(state.held.all.bytes, state.limits.bytes))
    }
}

impl State {
    fn over(&self, tenant: &str, more: Amount) -> Option<Limit> {
        if let Some(full) = &self.full {
            return Some(full.clone());
        }
        let all = self.held.all.plus(self.reserved.all).plus(more);
        if let Some(limit) = all.over(self.limits.messages, self.limits.bytes) {
            return Some(limit);
        }
        let share = *self.limits.shares.get(tenant)?;
        let of_tenant = self.held.of(tenant).plus(self.reserved.of(tenant)).plus(more);
        let limits = &self.limits;
        let what = of_tenant.over(part(limits.messages, share), part(limits.bytes, share))?;
        Some(Limit::Tenant {
            tenant: tenant.into(),
            what: Box::new(what),
        })
    }

    fn refuse(&mut self, tenant: &Arc<str>, limit: &Limit) {
        if let Limit::Tenant { .. } = limit {
            if self.told.insert(tenant.clone()) {
                tracing::warn!(%limit, "a tenant's share of the queue is used up: its mail is refused");
            }
            return;
        }
        // One that is too large for what is left keeps no smaller ones out.
        if self.full.is_none() && self.is_above(LOW_WATER) {
            tracing::warn!(%limit, "the queue is full: nothing is accepted, deliveries go on");
            self.full = Some(limit.clone());
        }
    }

    fn is_above(&self, part_of: f64) -> bool {
        let (messages, bytes) = (
            part(self.limits.messages, part_of),
            part(self.limits.bytes, part_of),
        );
        self.held
            .all
            .plus(self.reserved.all)
            .over(messages, bytes)
            .is_some()
    }

    /// Something has left, or the limits are others.
    fn look_again(&mut self) {
        if self.full.is_some() && !self.is_above(LOW_WATER) {
            tracing::info!("the queue has room again");
            self.full = None;
        }
        if self.told.is_empty() {
            return;
        }
        let (limits, held) = (&self.limits, &self.held);
        self.told.retain(|tenant| {
            let share = limits.shares.get(tenant).copied().unwrap_or(1.0) * LOW_WATER;
            held.of(tenant)
                .over(part(limits.messages, share), part(limits.bytes, share))
                .is_some()
        });
    }
}

/// Room set aside until it is dropped: by then the message is counted, or will not come.
#[derive(Debug)]
pub(crate) struct Reserved {
    usage: Arc<Usage>,
    tenant: Arc<str>,
    amount: Amount,
}

impl Drop for Reserved {
    fn drop(&mut self) {
        self.usage.0.lock().reserved.take(&self.tenant, self.amount);
    }
}
