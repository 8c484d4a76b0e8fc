//! `postrider run`.

use tokio::signal::unix::{SignalKind, signal};

use crate::config::Settings;
use crate::logging;
use crate::run::{self, Running};

use super::Failure;

/// Runs the relay until it is told to stop.
pub(super) fn run(settings: Settings) -> Result<(), Failure> {
    logging::start(settings.log, &settings.log_level);
    let running = run::start(settings)?;
    let told = running.doors().block_on(until_told_to_stop(&running))?;
    tracing::info!(signal = told, "told to stop");
    running.stop();
    Ok(())
}

/// Reloads at each SIGHUP, until SIGTERM or SIGINT.
async fn until_told_to_stop(running: &Running) -> std::io::Result<&'static str> {
    let mut hangup = signal(SignalKind::hangup())?;
    let mut told = std::pin::pin!(told_to_stop());
    loop {
        tokio::select! {
            told = &mut told => return told,
            _ = hangup.recv() => {
                let reloader = running.reloader().clone();
                // It tells in the log what came of it.
                let _ = tokio::task::spawn_blocking(move || reloader.reload()).await;
            }
        }
    }
}

/// Waits for SIGTERM or SIGINT.
pub(crate) async fn told_to_stop() -> std::io::Result<&'static str> {
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    Ok(tokio::select! {
        _ = terminate.recv() => "SIGTERM",
        _ = interrupt.recv() => "SIGINT",
    })
}
