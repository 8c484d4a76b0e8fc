//! The configuration: as written (TOML), then as proven ([`Settings`]).

pub mod settings;

pub use settings::Settings;
