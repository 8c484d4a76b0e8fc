//! What the delivery side counts.

use crate::metrics::Registry;
use prometheus::{Histogram, HistogramOpts, IntCounter, IntCounterVec, IntGauge, Opts, exponential_buckets};
use queue::Fate;

use super::connection::open::OpenFailure;
use super::settle::{Outcome, Verdict};

/// Handles of the delivery side's series; cloning shares them.
#[derive(Clone, Debug)]
pub struct Metrics {
    delivered: IntCounter,
    bounced: IntCounter,
    expired: IntCounter,
    discarded: IntCounter,
    deleted: IntCounter,
    other_ends: IntCounter,
    /// Recipients put off after their own reply or a lost connection.
    pub deferred: IntCounter,
    /// Recipients that were not delivered, by what was said and what followed.
    classes: IntCounterVec,
    /// Steps of adjustments, by the class of the reply and by what was done.
    steps: IntCounterVec,
    /// Queues whose mail began to go by a fallback.
    fallbacks: IntCounterVec,
    /// Transactions whose final reply never came: each may make a duplicate.
    pub in_doubt: IntCounter,
    /// Outcomes the store did not take. Alert on any: the mail may be sent again after a restart.
    pub unrecorded: IntCounter,
    /// Reports, by kind and by what became of them.
    pub reports: IntCounterVec,
    /// Connections that came about.
    connected: IntCounter,
    /// Attempts to connect, over all hosts of a site, that failed.
    not_connected: IntCounter,
    /// Attempts to connect from a source that has a name.
    source_connects: IntCounterVec,
    /// What recipients of attempts from such a source were told.
    source_outcomes: IntCounterVec,
    /// Open now, idle ones too.
    pub connections: IntGauge,
    /// Queues in memory.
    pub active_queues: IntGauge,
    /// From our 250 to the peer's, in seconds.
    pub delay: Histogram,
    /// A transaction, from MAIL to the last reply, in seconds.
    pub transaction: Histogram,
}

impl Metrics {
    /// Makes and registers the series.
    pub fn new(registry: &Registry) -> prometheus::Result<Self> {
        let ends = IntCounterVec::new(
            Opts::new(
                "postrider_recipients_ended_total",
                "Recipients that ended, by how. Alert when bounced grows against delivered.",
            ),
            &["end"],
        )?;
        let connections_made = IntCounterVec::new(
            Opts::new(
                "postrider_delivery_connects_total",
                "Attempts to connect to a site, all its hosts, by result.",
            ),
            &["result"],
        )?;
        let metrics = Self {
            delivered: ends.with_label_values(&["delivered"]),
            bounced: ends.with_label_values(&["bounced"]),
            expired: ends.with_label_values(&["expired"]),
            discarded: ends.with_label_values(&["discarded"]),
            deleted: ends.with_label_values(&["deleted"]),
            other_ends: ends.with_label_values(&["other"]),
            deferred: IntCounter::new(
                "postrider_recipients_deferred_total",
                "Recipients put off by a reply of their own or a lost connection. Alert when it outgrows delivered.",
            )?,
            classes: IntCounterVec::new(
                Opts::new(
                    "postrider_bounce_classes_total",
                    "Recipients that an attempt did not deliver, by the class of what was said (docs/shaping.md) and by what followed: bounced, deferred, \
                     expired, in_doubt. Alert when block, spam, auth or rate grow.",
                ),
                &["class", "then"],
            )?,
            steps: IntCounterVec::new(
                Opts::new(
                    "postrider_adjustment_steps_total",
                    "What replies have taught, step by step, by the class of the reply (docs/shaping.md) and by what was done: suspended, \
                     slower, faster, ended (the limits hold again). Alert when suspended or slower of block or rate grow.",
                ),
                &["class", "step"],
            )?,
            fallbacks: IntCounterVec::new(
                Opts::new(
                    "postrider_fallbacks_total",
                    "Queues whose mail began to go by the fallback of its [[route]] (docs/configuration.md), by the smart host that takes it; once \
                     for each rest of the first way. Alert on many at once: the first way is closed.",
                ),
                &["smart_host"],
            )?,
            in_doubt: IntCounter::new(
                "postrider_in_doubt_total",
                "Transactions whose reply after the final dot never came; each may make a duplicate.",
            )?,
            unrecorded: IntCounter::new(
                "postrider_outcomes_unrecorded_total",
                "Outcomes the store did not take. Alert on any.",
            )?,
            reports: IntCounterVec::new(
                Opts::new(
                    "postrider_reports_total",
                    "Reports to senders by kind (failed, delayed, relayed) and result: queued, or left out because their domain got too many (over_rate). Alert on over_rate: someone sends in the name of others.",
                ),
                &["kind", "result"],
            )?,
            connected: connections_made.with_label_values(&["connected"]),
            not_connected: connections_made.with_label_values(&["failed"]),
            source_connects: IntCounterVec::new(
                Opts::new(
                    "postrider_source_connects_total",
                    "Attempts to connect from each [[source]] (docs/egress.md), by result: connected, failed (none of the site's hosts took us), source_failed (its address,                      interface or proxy did not serve). Alert on source_failed.",
                ),
                &["source", "result"],
            )?,
            source_outcomes: IntCounterVec::new(
                Opts::new(
                    "postrider_source_outcomes_total",
                    "Recipients of attempts from each [[source]] by what came of them: delivered, bounced, deferred, in_doubt. Alert when bounced or                      deferred of one source grow against those of the others: it may be blocked.",
                ),
                &["source", "outcome"],
            )?,
            connections: IntGauge::new(
                "postrider_delivery_connections",
                "Connections to next hops open now.",
            )?,
            active_queues: IntGauge::new("postrider_active_queues", "Queues in memory now.")?,
            delay: Histogram::with_opts(
                HistogramOpts::new(
                    "postrider_delivery_delay_seconds",
                    "From our 250, or the release of what was held, to the next hop's 250.",
                )
                .buckets(exponential_buckets(0.001, 4.0, 12)?),
            )?,
            transaction: Histogram::with_opts(
                HistogramOpts::new(
                    "postrider_transaction_seconds",
                    "A transaction with a next hop, MAIL to last reply.",
                )
                .buckets(exponential_buckets(0.000_5, 4.0, 12)?),
            )?,
        };
        registry.register(Box::new(metrics.reports.clone()))?;
        registry.register(Box::new(metrics.classes.clone()))?;
        registry.register(Box::new(metrics.source_connects.clone()))?;
        registry.register(Box::new(metrics.source_outcomes.clone()))?;
        registry.register(Box::new(metrics.steps.clone()))?;
        registry.register(Box::new(metrics.fallbacks.clone()))?;
        registry.register(Box::new(ends))?;
        registry.register(Box::new(connections_made))?;
        for counter in [&metrics.deferred, &metrics.in_doubt, &metrics.unrecorded] {
            registry.register(Box::new(counter.clone()))?;
        }
        for gauge in [&metrics.connections, &metrics.active_queues] {
            registry.register(Box::new(gauge.clone()))?;
        }
        for histogram in [&metrics.delay, &metrics.transaction] {
            registry.register(Box::new(histogram.clone()))?;
        }
        Ok(metrics)
    }

    /// Counts what a recipient that was not delivered was told. Classes are those of the table and of the configuration, which
    /// is bounded.
    pub fn classed(&self, class: Option<&str>, then: &str) {
        if let Some(class) = class {
            self.classes.with_label_values(&[class, then]).inc();
        }
    }

    /// Counts an attempt to connect. Sources are those of the configuration, which is bounded.
    pub fn connects(&self, source: Option<&str>, failure: Option<&OpenFailure>) {
        let made = if failure.is_none() {
            &self.connected
        } else {
            &self.not_connected
        };
        made.inc();
        if let Some(source) = source {
            let result = match failure {
                None => "connected",
                Some(failure) if failure.of_source() => "source_failed",
                Some(_) => "failed",
            };
            self.source_connects.with_label_values(&[source, result]).inc();
        }
    }

    /// Counts what recipients were told in an attempt from a source.
    pub fn outcomes(&self, source: &str, outcomes: &[Outcome]) {
        for outcome in outcomes {
            let word = match &outcome.verdict {
                Verdict::Delivered => "delivered",
                Verdict::Failed(_) => "bounced",
                Verdict::Later => "deferred",
                Verdict::InDoubt => "in_doubt",
                // No peer had a say in it.
                Verdict::Deleted(_) | Verdict::Discarded => continue,
            };
            self.source_outcomes.with_label_values(&[source, word]).inc();
        }
    }

    /// Counts a step of an adjustment. Classes are bounded, as they are in [`Self::classed`].
    pub fn stepped(&self, step: &str, class: &str) {
        self.steps.with_label_values(&[class, step]).inc();
    }

    /// Counts a queue whose mail goes by its fallback. Smart hosts are those of the configuration, which is bounded.
    pub fn fell_back(&self, smart_host: &str) {
        self.fallbacks.with_label_values(&[smart_host]).inc();
    }

    /// Counts a recipient's end.
    pub fn ended(&self, fate: Fate) {
        match fate {
            Fate::Delivered => self.delivered.inc(),
            Fate::Bounced => self.bounced.inc(),
            Fate::Expired => self.expired.inc(),
            Fate::Discarded => self.discarded.inc(),
            Fate::Deleted => self.deleted.inc(),
            Fate::Cancelled | Fate::Suppressed | Fate::HandedOver => {
                self.other_ends.inc();
            }
        }
    }
}
