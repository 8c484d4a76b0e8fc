//! Which class what was said is of. The journal keeps replies as they were said, not what they were taken for: so all that is
//! there has a class, whatever release wrote it, and the table of today.

use admin_api::{EventView, Hold, RecipientState, RecipientView};

use crate::shaping::Shaping;

/// Of each recipient that was not delivered.
pub(super) fn recipients(views: &mut [RecipientView], shaping: &Shaping) {
    for view in views {
        if let RecipientState::Deferred | RecipientState::Bounced | RecipientState::Expired = view.state
            && let Some(said) = &view.last_reply
        {
            let class = shaping.class(said, view.host.as_deref().map(name));
            view.class = Some(class.name.to_string());
        }
    }
}

/// Of each event that says so.
pub(super) fn events(views: &mut [EventView], shaping: &Shaping) {
    for view in views {
        if let "deferred" | "bounced" | "expired" | "in_doubt" = view.kind.as_str() {
            let class = shaping.class(&view.reply, view.host.as_deref().map(name));
            view.class = Some(class.name.to_string());
        }
    }
}

/// Of what makes a destination rest.
pub(super) fn hold(view: &mut Hold, shaping: &Shaping) {
    // A site is its hosts, with commas between.
    let host = view.name.split([',', ' ']).next();
    view.class = Some(shaping.class(&view.cause, host).name.to_string());
}

/// Of a host that is shown with its address.
fn name(host: &str) -> &str {
    host.split_once(' ').map_or(host, |(name, _)| name)
}
