//! What all sessions of all listeners share.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

use mail_core::smtp::server::replies;
use mail_core::{Mailbox, Reply};
use parking_lot::Mutex;
use queue::{Queue, Status};

use crate::config::Settings;
use crate::config::settings::Tenant;
use crate::credentials::Credentials;
use crate::routing::Routing;
use crate::world::Clock;

use super::logins::Logins;
use super::metrics::Metrics;
use super::rates::{Limit, Over, Rates, Who};

/// Ends the session: another relay may take the mail.
const DRAINING: Reply = Reply::new(421, 3, 2, "this server is being drained; use another");

/// See the module. Made anew for each configuration; what is counted goes on.
pub struct Front {
    /// The configuration.
    pub settings: Arc<Settings>,
    /// Who may log in.
    pub credentials: Option<Credentials>,
    /// Which way each recipient's mail goes.
    pub routing: Arc<Routing>,
    /// The durable queue.
    pub queue: Queue,
    /// What is counted.
    pub metrics: Metrics,
    /// Failed logins.
    pub logins: Arc<Logins>,
    /// What was handed over lately.
    pub rates: Arc<Rates>,
    /// Time.
    pub clock: Clock,
    /// Octets that messages may still take in memory between accept and delivery.
    pub keep: Arc<AtomicU64>,
    counts: Arc<Counts>,
}

/// What is open now, whatever the configuration.
#[derive(Default)]
struct Counts {
    /// No mail is taken: an operator drains the relay.
    draining: AtomicBool,
    sessions: AtomicUsize,
    /// TLS handshakes under way.
    handshakes: AtomicUsize,
    /// Octets of messages being received.
    receiving: AtomicU64,
    by_address: Mutex<HashMap<IpAddr, usize>>,
    by_tenant: Mutex<HashMap<Arc<str>, usize>>,
}

impl Front {
    /// With no session open.
    pub fn new(
        settings: Arc<Settings>,
        credentials: Option<Credentials>,
        routing: Arc<Routing>,
        queue: Queue,
        metrics: Metrics,
        clock: Clock,
    ) -> Self {
        Self {
            keep: Arc::new(AtomicU64::new(settings.store.body_cache_bytes)),
            settings,
            credentials,
            routing,
            queue,
            metrics,
            logins: Arc::default(),
            rates: Arc::default(),
            clock,
            counts: Arc::default(),
        }
    }

    /// The same front under another configuration: sessions, rates and failed logins are counted on, so that a reload is no way
    /// around a limit.
    pub fn renewed(
        &self,
        settings: Arc<Settings>,
        credentials: Option<Credentials>,
        routing: Arc<Routing>,
    ) -> Self {
        Self {
            settings,
            credentials,
            routing,
            queue: self.queue.clone(),
            metrics: self.metrics.clone(),
            logins: self.logins.clone(),
            rates: self.rates.clone(),
            clock: self.clock,
            keep: self.keep.clone(),
            counts: self.counts.clone(),
        }
    }

    /// Counts a connection in, or says why it is turned away.
    pub fn enter(self: &Arc<Self>, address: IpAddr) -> Result<Entered, Reply> {
        if self.is_draining() {
            return Err(DRAINING);
        }
        let settings = &self.settings.submission;
        let full = Reply::new(421, 3, 2, "too many connections; come back later");
        let mut by_address = self.counts.by_address.lock();
        let count = by_address.entry(address).or_default();
        let sessions = self.counts.sessions.load(Ordering::Relaxed);
        if *count >= settings.max_connections_per_address || sessions >= settings.max_connections {
            if *count == 0 {
                by_address.remove(&address);
            }
            return Err(full);
        }
        let rate = settings.address_rates.connections;
        let wanted = [(Limit::AddressConnections, Some(Who::address(address)), rate)];
        if let Err(over) = self.rates.take(&wanted, tokio::time::Instant::now()) {
            if *count == 0 {
                by_address.remove(&address);
            }
            return Err(self.over(421, over));
        }
        *count += 1;
        self.counts.sessions.fetch_add(1, Ordering::Relaxed);
        self.metrics.sessions.inc();
        Ok(Entered {
            front: self.clone(),
            address,
            tenant: None,
            receiving: 0,
        })
    }

    /// Counts a TLS handshake in; `None` if there are too many already (CASES §3, half-open TLS).
    pub(super) fn begin_handshake(self: &Arc<Self>) -> Option<Handshaking> {
        let most = self.settings.submission.max_handshakes;
        let more = |now: usize| (now < most).then_some(now + 1);
        let counted = self
            .counts
            .handshakes
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, more);
        if counted.is_err() {
            self.count_handshake("full");
            return None;
        }
        self.metrics.handshaking.inc();
        Some(Handshaking(self.clone()))
    }

    /// Counts what became of one.
    pub(super) fn count_handshake(&self, result: &str) {
        self.metrics.handshakes.with_label_values(&[result]).inc();
    }

    /// What a client over a limit is told, with a code of 4yz.
    pub(super) fn over(&self, code: u16, over: Over) -> Reply {
        let limit = over.limit.word();
        self.metrics.over_rate.with_label_values(&[limit]).inc();
        let text = format!(
            "over the rate of {limit}; come back in {} s",
            over.wait.as_millis().div_ceil(1_000)
        );
        Reply::new(code, 7, 1, "").with_text(text)
    }

    /// Takes no mail from here on, or takes it again.
    pub fn set_draining(&self, draining: bool) {
        self.counts.draining.store(draining, Ordering::Relaxed);
    }

    /// Whether an operator drains the relay.
    pub fn is_draining(&self) -> bool {
        self.counts.draining.load(Ordering::Relaxed)
    }

    /// Sessions that are open.
    pub fn sessions(&self) -> usize {
        self.counts.sessions.load(Ordering::Relaxed)
    }

    /// Whether mail can be taken now; if not, what a client is told.
    pub fn readiness(&self) -> Option<Reply> {
        if self.is_draining() {
            return Some(DRAINING);
        }
        match self.queue.status() {
            Status::Healthy => None,
            Status::Full { .. } => Some(Reply::new(452, 3, 1, "too little space; come back later")),
            Status::Over(_) => Some(replies::TOO_MUCH_WAITS),
            Status::Failing(_) | Status::Corrupt(_) => Some(Reply::new(
                451,
                3,
                0,
                "the queue does not take mail; come back later",
            )),
        }
    }

    /// Addresses with a connection.
    #[cfg(test)]
    pub(super) fn addresses(&self) -> usize {
        self.counts.by_address.lock().len()
    }

    /// Octets of messages being received.
    #[cfg(test)]
    pub(super) fn receiving(&self) -> u64 {
        self.counts.receiving.load(Ordering::Relaxed)
    }

    /// A tenant's rules.
    pub fn tenant(&self, name: &str) -> Option<&Tenant> {
        self.settings.tenants.get(name)
    }
}

/// Whether a tenant may use an address.
pub fn may_use(tenant: &Tenant, address: &Mailbox) -> bool {
    tenant.senders.iter().any(|pattern| pattern.fits(address))
}

/// A TLS handshake that is counted; dropping it counts it out.
pub(super) struct Handshaking(Arc<Front>);

impl Drop for Handshaking {
    fn drop(&mut self) {
        self.0.counts.handshakes.fetch_sub(1, Ordering::Relaxed);
        self.0.metrics.handshaking.dec();
    }
}

/// A connection that is counted; dropping it counts it out.
pub struct Entered {
    front: Arc<Front>,
    address: IpAddr,
    tenant: Option<Arc<str>>,
    receiving: u64,
}

impl Entered {
    /// Goes by another configuration from here on; what is counted stays counted.
    pub(super) fn renew(&mut self, front: &Arc<Front>) {
        self.front = front.clone();
    }

    /// Counts the session to a tenant; false if it has too many.
    pub fn speak_for(&mut self, name: &Arc<str>, tenant: &Tenant) -> bool {
        let mut by_tenant = self.front.counts.by_tenant.lock();
        let count = by_tenant.entry(name.clone()).or_default();
        if *count >= tenant.max_connections.unwrap_or(usize::MAX) {
            return false;
        }
        *count += 1;
        self.tenant = Some(name.clone());
        true
    }

    /// Counts octets in memory, `kept` in all of this message; false if all sessions together have too many.
    pub fn receive(&mut self, kept: u64) -> bool {
        let receiving = &self.front.counts.receiving;
        let fewer = self.receiving.saturating_sub(kept);
        let more = kept.saturating_sub(self.receiving);
        receiving.fetch_sub(fewer, Ordering::Relaxed);
        let before = receiving.fetch_add(more, Ordering::Relaxed);
        self.receiving = kept;
        before + more <= self.front.settings.submission.max_bytes_in_flight
    }

    /// The message is kept, or refused.
    pub fn received(&mut self) {
        self.front
            .counts
            .receiving
            .fetch_sub(std::mem::take(&mut self.receiving), Ordering::Relaxed);
    }
}

impl Drop for Entered {
    fn drop(&mut self) {
        self.received();
        self.front.counts.sessions.fetch_sub(1, Ordering::Relaxed);
        self.front.metrics.sessions.dec();
        count_out(&mut self.front.counts.by_address.lock(), &self.address);
        if let Some(tenant) = &self.tenant {
            count_out(&mut self.front.counts.by_tenant.lock(), tenant);
        }
    }
}

fn count_out<K: std::hash::Hash + Eq>(counts: &mut HashMap<K, usize>, key: &K) {
    if let Some(count) = counts.get_mut(key) {
        *count -= 1;
        if *count == 0 {
            counts.remove(key);
        }
    }
}
