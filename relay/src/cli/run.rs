//! `postrider run`.

use std::io::IsTerminal as _;

use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::EnvFilter;

use crate::config::Settings;
use crate::config::settings::LogFormat;
use crate::run;

use super::Failure;

/// Runs the relay until it is told to stop.
pub(super) fn run(settings: Settings) -> Result<(), Failure> {
    log(settings.log);
    let running = run::start(settings)?;
    let told = running.doors().block_on(told_to_stop())?;
    tracing::info!(signal = told, "told to stop");
    running.stop();
    Ok(())
}

/// Waits for SIGTERM or SIGINT.
pub(crate) async fn told_to_stop() -> std::io::Result<&'static str> {
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    Ok(tokio::select! {
        _ = terminate.recv() => "SIGTERM",
        _ = interrupt.recv() => "SIGINT",
    })
}

/// Sends log lines to standard error, those of `RUST_LOG`'s choice.
pub(crate) fn log(format: LogFormat) {
    // The DNS libraries tell of each question at `info`.
    let usual = || EnvFilter::new("info,hickory_server=warn,hickory_resolver=warn,hickory_proto=warn");
    let filter = match std::env::var(EnvFilter::DEFAULT_ENV) {
        Ok(wish) if !wish.is_empty() => EnvFilter::try_new(&wish).unwrap_or_else(|error| {
            eprintln!("postrider: RUST_LOG is passed over: {error}");
            usual()
        }),
        _ => usual(),
    };
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr);
    // A second logger in one process changes nothing.
    let _ = match format {
        LogFormat::Text => builder
            .with_ansi(std::io::stderr().is_terminal())
            .with_target(false)
            .try_init(),
        LogFormat::Json => builder.json().flatten_event(true).with_target(false).try_init(),
    };
}
