//! Limits: how much of what may go out. All of them are asked before a unit is claimed, so that throttled mail stays queued.
//!
//! A lane has a [`limiter`] of its own. What is wider than a lane (a site, a provider, a tenant, a source, or two of them together)
//! has a [`budget`] that all shards share, found in the [`ledger`] by its [`queue::Scope`].

pub mod bucket;
pub mod budget;
pub mod ledger;
pub mod limiter;
mod line;
mod reserved;
pub mod window;

use mail_core::Timestamp;

/// What a limit says to whoever asks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Grant {
    /// Go ahead; it is spent unless it is refunded.
    Granted,
    /// Nothing before this moment, because of the named limit.
    NotBefore {
        /// When to ask again; always later than the moment of asking.
        at: Timestamp,
        /// The limit's configuration key.
        held_by: &'static str,
    },
    /// Nothing before something is given back, because of the named limit.
    WhenFreed {
        /// The limit's configuration key.
        held_by: &'static str,
    },
}
