//! The relay `postrider`: submission in front, the durable queue in the middle, delivery behind.

pub mod config;
pub mod credentials;
pub mod delivery;
pub mod dkim_cli;
pub mod prepare;
pub mod report;
pub mod tls;
pub mod world;
