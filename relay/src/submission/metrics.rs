//! What the submission side counts.

use crate::metrics::Registry;
use prometheus::{IntCounter, IntCounterVec, IntGauge, Opts};

/// Handles of the submission side's series; cloning shares them.
#[derive(Clone, Debug)]
pub struct Metrics {
    /// Sessions open now.
    pub sessions: IntGauge,
    /// Connections, by what came of them.
    pub connections: IntCounterVec,
    /// Messages kept.
    pub accepted: IntCounter,
    /// Their octets.
    pub bytes: IntCounter,
    /// Messages, senders and recipients refused, by the reply's three digits.
    pub refused: IntCounterVec,
    /// Connections, messages and recipients over a rate, by limit.
    pub over_rate: IntCounterVec,
    /// TLS handshakes under way.
    pub handshaking: IntGauge,
    /// TLS handshakes, by result.
    pub handshakes: IntCounterVec,
    /// Logins, by result.
    pub logins: IntCounterVec,
}

impl Metrics {
    /// Makes and registers the series.
    pub fn new(registry: &Registry) -> prometheus::Result<Self> {
        let vector = |name, help, label| IntCounterVec::new(Opts::new(name, help), &[label]);
        let metrics = Self {
            sessions: IntGauge::new("postrider_submission_sessions", "Submission sessions open now.")?,
            connections: vector(
                "postrider_submission_connections_total",
                "Connections by result: served, turned away by a limit (full) or a network (foreign), or closed for want of a PROXY header (proxy). Alert on full and proxy.",
                "result",
            )?,
            accepted: IntCounter::new(
                "postrider_messages_accepted_total",
                "Messages kept and acknowledged.",
            )?,
            bytes: IntCounter::new(
                "postrider_accepted_bytes_total",
                "Octets of messages kept and acknowledged.",
            )?,
            refused: vector(
                "postrider_submission_refusals_total",
                "Senders, recipients and messages refused, by reply code. Alert on 451 and 452.",
                "code",
            )?,
            over_rate: vector(
                "postrider_submission_over_rate_total",
                "Connections, messages and recipients put off because of a rate, by limit.",
                "limit",
            )?,
            handshaking: IntGauge::new(
                "postrider_submission_handshaking",
                "TLS handshakes with clients under way now. Alert when it stays near submission.max_handshakes.",
            )?,
            handshakes: vector(
                "postrider_submission_handshakes_total",
                "TLS handshakes with clients by result: done, failed, late (not done within tls_timeout), put off because too many were under way (full). Alert on late and full.",
                "result",
            )?,
            logins: vector(
                "postrider_submission_logins_total",
                "Logins by result: ok, failed, put off because too many came at once (busy). Alert on failed and busy.",
                "result",
            )?,
        };
        registry.register(Box::new(metrics.sessions.clone()))?;
        registry.register(Box::new(metrics.handshaking.clone()))?;
        registry.register(Box::new(metrics.accepted.clone()))?;
        registry.register(Box::new(metrics.bytes.clone()))?;
        for vector in [
            &metrics.connections,
            &metrics.refused,
            &metrics.over_rate,
            &metrics.handshakes,
            &metrics.logins,
        ] {
            registry.register(Box::new(vector.clone()))?;
        }
        Ok(metrics)
    }
}
