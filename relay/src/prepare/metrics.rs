//! What preparing counts.

use dkim_signer::sign::DomainKey;
use prometheus::{Histogram, HistogramOpts, IntCounter, IntCounterVec, Opts, exponential_buckets};

use crate::metrics::Registry;

/// What signing counts.
#[derive(Clone, Debug)]
pub struct Metrics {
    pub(super) signatures: IntCounterVec,
    pub(super) unsigned: IntCounter,
    pub(super) seconds: Histogram,
    pub(super) conversions: IntCounterVec,
}

impl Metrics {
    /// Makes and registers the series.
    pub fn new(registry: &Registry) -> prometheus::Result<Self> {
        let signatures = IntCounterVec::new(
            Opts::new(
                "postrider_dkim_signatures_total",
                "DKIM signatures by algorithm and result: made, kept (of an earlier attempt), failed. Messages that no key \
                 signs count once as algorithm none, result unsigned. Alert on any failed.",
            ),
            &["algorithm", "result"],
        )?;
        let seconds = Histogram::with_opts(
            HistogramOpts::new(
                "postrider_dkim_seconds",
                "Signing one message with all its keys, hashing its body included, in seconds.",
            )
            .buckets(exponential_buckets(0.000_1, 2.0, 14)?),
        )?;
        let conversions = IntCounterVec::new(
            Opts::new(
                "postrider_conversions_total",
                "Attempts at 8-bit messages for hosts without 8BITMIME by result: converted to 7-bit, or impossible (the \
                 message bounces, 5.6.3).",
            ),
            &["result"],
        )?;
        registry.register(Box::new(signatures.clone()))?;
        registry.register(Box::new(seconds.clone()))?;
        registry.register(Box::new(conversions.clone()))?;
        Ok(Self {
            conversions,
            unsigned: signatures.with_label_values(&["none", "unsigned"]),
            signatures,
            seconds,
        })
    }

    pub(super) fn count(&self, keys: &[DomainKey], result: &str) {
        for key in keys {
            self.signatures
                .with_label_values(&[key.key.algorithm().signature_tag(), result])
                .inc();
        }
    }
}
