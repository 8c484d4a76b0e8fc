//! Submission: where clients hand over mail (RFC 6409), and where nobody else does.

mod admission;
pub mod front;
pub mod listener;
pub mod metrics;
mod session;
mod stamp;
