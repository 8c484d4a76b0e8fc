//! SIGINT and SIGTERM, where other programs run for us: they have to end before we do.

use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::ensure;
use tokio::signal::unix::{SignalKind, signal};

/// A process has its signals once, and so this.
static ASKED_TO_END: AtomicBool = AtomicBool::new(false);

/// From here on the first of them is only noted, for [`go_on`] to find; a second one ends us at once.
pub(crate) fn note() -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let (mut interrupt, mut terminate) = {
        let _inside = runtime.enter();
        (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?)
    };
    let wait = async move {
        for asked_before in [false, true] {
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
            }
            if asked_before {
                std::process::exit(2);
            }
            ASKED_TO_END.store(true, Ordering::Relaxed);
        }
    };
    std::thread::Builder::new()
        .name("signals".into())
        .spawn(move || runtime.block_on(wait))?;
    Ok(())
}

/// An error where we were asked to end. Whoever waits for long asks often.
pub(crate) fn go_on() -> anyhow::Result<()> {
    ensure!(!is_asked_to_end(), "ended by a signal");
    Ok(())
}

/// Whether [`go_on`] is an error.
pub(crate) fn is_asked_to_end() -> bool {
    ASKED_TO_END.load(Ordering::Relaxed)
}
