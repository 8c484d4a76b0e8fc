//! The relay `postrider`: submission in front, the durable queue in the middle, delivery behind.

pub mod by_domain;
pub mod cli;
pub mod config;
pub mod control;
pub mod credentials;
pub mod delivery;
mod descriptors;
pub mod dkim_cli;
pub mod health;
pub mod lab;
pub mod logging;
pub mod mail_client;
mod memory;
pub mod metrics;
pub mod prepare;
pub mod reload;
pub mod report;
pub mod rewrite;
pub mod routing;
pub mod run;
pub mod seven_bit;
pub mod shaping;
pub mod submission;
pub mod tls;
pub mod tokens;
pub mod worker;
pub mod world;

use queue::sabotage;
