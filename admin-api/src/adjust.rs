//! What replies have taught, and operators have set beside, as JSON.

use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use crate::types::Time;

/// Which mail on its way out an adjustment is about: that for which all that is given holds.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Scope {
    /// To this site: its MX hosts, sorted, with commas between; or `smart host NAME`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub site: Option<String>,
    /// To hosts that this provider runs (docs/shaping.md).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub provider: Option<String>,
    /// Of this tenant.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tenant: Option<String>,
    /// From this source.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub source: Option<String>,
}

/// What kind of thing an adjustment is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum AdjustmentKind {
    /// Nothing goes.
    Suspended,
    /// Lanes have fewer connections, or a lower rate, than they are configured to have.
    Slower,
}

/// Which adjustments are asked for.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields, default)]
pub struct AdjustmentsQuery {
    /// Of this kind.
    #[param(inline)]
    pub kind: Option<AdjustmentKind>,
    /// About this site.
    pub site: Option<String>,
    /// About this provider.
    pub provider: Option<String>,
    /// About this tenant.
    pub tenant: Option<String>,
    /// About this source.
    pub source: Option<String>,
    /// [`AdjustmentList::next`] of the page before.
    pub after: Option<String>,
    /// At most so many; 100 unless said.
    pub limit: Option<usize>,
}

/// A page of adjustments.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct AdjustmentList {
    /// Those whose time is over are not among them.
    pub adjustments: Vec<Adjustment>,
    /// To be given as `after`; none where there are no more.
    pub next: Option<String>,
}

/// What a reply has taught, or an operator has set.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Adjustment {
    /// What kind of thing it is.
    pub kind: AdjustmentKind,
    /// Which mail it is about.
    pub scope: Scope,
    /// Of a lane under this destination's rule alone; none: under none.
    pub destination: Option<String>,
    /// Since when.
    pub since: Time,
    /// When it was changed last.
    pub changed: Time,
    /// When it ends by itself; none: once it is ended.
    pub until: Option<Time>,
    /// Connections at once, at the most.
    pub connections: Option<u32>,
    /// Messages a second, at the most.
    pub messages_per_second: Option<f64>,
    /// The reply, or the operator's reason.
    pub cause: String,
    /// The host that said it.
    pub host: Option<String>,
    /// What it was taken for: a bounce class (docs/shaping.md).
    pub class: Option<String>,
    /// `reply`, or who has set it.
    pub by: String,
}

/// An adjustment to be made, in place of those of its scope and kind.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct SetAdjustment {
    /// Which mail; some part has to be given. What is to go slower names a site, and a source or none.
    pub scope: Scope,
    /// Nothing goes.
    #[serde(default)]
    pub suspend: bool,
    /// Connections at once, at the most, of each lane; not with `suspend`.
    #[serde(default)]
    pub connections: Option<u32>,
    /// Messages a second, at the most, of each lane; not with `suspend`.
    #[serde(default)]
    pub messages_per_second: Option<f64>,
    /// When it ends by itself; without it and `for_seconds`, once it is ended.
    #[serde(default)]
    pub until: Option<Time>,
    /// So many seconds from now, by the relay's own clock; not with `until`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 1, maximum = 315_360_000)]
    pub for_seconds: Option<u64>,
    /// Why; up to 500 octets.
    pub reason: String,
}

/// Which adjustments end.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct EndAdjustment {
    /// As they are listed.
    pub scope: Scope,
    /// Those of this kind; unless given, of each.
    #[serde(default)]
    pub kind: Option<AdjustmentKind>,
}

/// What has ended.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Ended {
    /// So many adjustments.
    pub ended: usize,
}
