//! SMTP as values: commands, replies, message data, and the sessions of both sides (RFC 5321).

pub mod client;
pub mod reply_reader;
pub mod stuff;
