//! The switches that break promises on purpose, so that CI sees the promises' tests fail (docs/promises.md); the relay's too.

/// Whether `POSTRIDER_SABOTAGE` names the switch. Never in a build without the feature `sabotage`, and so in nothing shipped.
#[inline]
pub fn is_on(switch: &str) -> bool {
    cfg!(feature = "sabotage")
        && std::env::var("POSTRIDER_SABOTAGE")
            .is_ok_and(|switches| switches.split(',').any(|on| on == switch))
}
