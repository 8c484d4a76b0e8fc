//! Submission: where clients hand over mail (RFC 6409), and where nobody else does.

mod admission;
mod end_point;
pub mod fields;
pub mod front;
pub mod listener;
pub mod logins;
pub mod metrics;
pub mod proxy_protocol;
pub mod rates;
mod session;
mod stamp;
