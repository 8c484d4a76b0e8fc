//! The log: lines to standard error, of a level that can change while the relay runs.

use std::io::IsTerminal as _;
use std::sync::OnceLock;

use tracing_subscriber::filter::ParseError;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{EnvFilter, Registry, reload};

use crate::config::settings::LogFormat;

/// How much is said unless the configuration or `RUST_LOG` says otherwise.
pub const USUAL: &str = "info";

/// The DNS libraries tell of each question at `info`.
const QUIET: &str = "hickory_server=warn,hickory_resolver=warn,hickory_proto=warn";

static CHANGE: OnceLock<reload::Handle<EnvFilter, Registry>> = OnceLock::new();

/// Reads a level such as `info` or `info,relay::delivery=debug`.
pub fn filter(level: &str) -> Result<EnvFilter, ParseError> {
    EnvFilter::try_new(format!("{QUIET},{level}"))
}

/// What `RUST_LOG` asks for, if it can be followed.
fn of_environment() -> Option<EnvFilter> {
    let wish = std::env::var(EnvFilter::DEFAULT_ENV)
        .ok()
        .filter(|wish| !wish.is_empty())?;
    let filter = EnvFilter::try_new(&wish);
    filter
        .map_err(|error| eprintln!("postrider: RUST_LOG is passed over: {error}"))
        .ok()
}

/// Begins to log. `RUST_LOG` comes before `level`.
pub fn start(format: LogFormat, level: &str) {
    let usual = || filter(level).unwrap_or_else(|_| EnvFilter::new(USUAL));
    let (filter, handle) = reload::Layer::new(of_environment().unwrap_or_else(usual));
    let registry = tracing_subscriber::registry().with(filter);
    let layer = tracing_subscriber::fmt::layer()
        .with_writer(std::io::stderr)
        .with_target(false);
    let begun = match format {
        LogFormat::Text => registry
            .with(layer.with_ansi(std::io::stderr().is_terminal()))
            .try_init(),
        LogFormat::Json => registry.with(layer.json().flatten_event(true)).try_init(),
    };
    // A second logger in one process changes nothing.
    if begun.is_ok() {
        let _ = CHANGE.set(handle);
    }
}

/// Says more or less from here on; what `RUST_LOG` asked for stays.
pub fn set_level(level: &str) {
    let asked = std::env::var_os(EnvFilter::DEFAULT_ENV).is_some_and(|wish| !wish.is_empty());
    if let (false, Some(change), Ok(filter)) = (asked, CHANGE.get(), filter(level)) {
        // The logger lives as long as the process.
        let _ = change.reload(filter);
    }
}
