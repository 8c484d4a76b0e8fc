//! SMTP as values: commands, replies, message data, and the sessions of both sides (RFC 5321).

pub mod chunk;
pub mod client;
pub mod command;
pub mod data;
pub mod inbox;
pub mod reply_reader;
pub mod server;
pub mod stuff;
