//! SMTP as values: commands, replies, message data, and the sessions of both sides (RFC 5321).
