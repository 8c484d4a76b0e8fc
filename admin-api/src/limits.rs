//! Limits that more than one lane shares, and what is used of them.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Limits in use, or of which something was used within an hour or a day, up to a bound.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct LimitList {
    /// By scope.
    pub limits: Vec<LimitUse>,
    /// Whether there are more.
    pub more: bool,
    /// Sources that are new, and how far they are.
    #[serde(default)]
    pub warming: Vec<Warming>,
}

/// A source that warms up. What was sent from it stands among the limits, by provider.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Warming {
    /// Its name.
    pub source: String,
    /// Which day of its warm-up this is, from 1; 0 before the first.
    pub day: u64,
    /// After how many days it is warm.
    pub days: u64,
    /// So many messages may go within 24 hours to each provider, and to each site that is nobody's.
    pub messages_per_day: u64,
}

/// What a scope may use, and does. It is about all mail for which each part that is named fits.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct LimitUse {
    /// To this site: its MX hosts, with commas between.
    pub site: Option<String>,
    /// To hosts of this provider.
    pub provider: Option<String>,
    /// Of this tenant.
    pub tenant: Option<String>,
    /// From this source.
    pub source: Option<String>,
    /// Each limit that is set.
    pub uses: Vec<Use>,
}

/// One limit.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Use {
    /// Its key in the configuration, such as `messages_per_day`.
    pub limit: String,
    /// How much is allowed.
    pub allowed: f64,
    /// How much of it is used now; of rates by the second nothing is counted.
    pub used: Option<u64>,
}
