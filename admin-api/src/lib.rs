//! The HTTP API for operators: its routes and JSON types, a server and a client, over a Unix socket and over TCP.
//!
//! The program is reached through [`Control`] alone. Errors are problem details (RFC 9457).

pub mod access;
pub mod adjust;
pub mod aside;
pub mod client;
mod control;
pub mod limits;
pub mod manage;
pub mod openapi;
pub mod operate;
mod routes;
pub mod server;
pub mod socket;
mod types;

pub use control::{Caller, Control, ControlError, Raw};
pub use routes::{MAX_MESSAGES, MAX_PAGE, router};
pub use types::{
    EventView, Hold, HoldList, MessageView, Problem, QueueList, QueueSummary, QueuesQuery, RecipientState,
    RecipientView, Time,
};
