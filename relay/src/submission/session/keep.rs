//! A message that has come in whole: what its fields ask for, whether it is let in, and how it is kept.

use std::fmt::{self, Write as _};
use std::sync::Arc;

use mail_core::smtp::command::date_time;
use mail_core::smtp::data::Data;
use mail_core::smtp::server::{Session, replies};
use mail_core::{Envelope, Reply, Timestamp, TransferOptions};
use queue::{CommitError, NewMessage, Origin, Uploaded};
use tokio::io::{AsyncRead, AsyncWrite};

use crate::delivery::courier::Kept;
use crate::rewrite;
use crate::submission::admission;
use crate::submission::fields::{self, Asked};
use crate::submission::stamp::{Arrival, prefix};

use super::Shell;
use super::large::Received;

impl<S: AsyncRead + AsyncWrite + Unpin> Shell<S> {
    /// Keeps the message. 250 only once it is on disk (RFC 5321 §4.2.5, §6.1).
    pub(super) async fn message(&mut self, session: &Session, envelope: Envelope) -> Reply {
        let Some(Received { mut data, rest }) = self.data.take() else {
            return Reply::new(451, 3, 0, "the message is not at hand");
        };
        let asked = match self.admitted(&envelope, &mut data) {
            Ok(asked) => asked,
            Err(reply) => {
                self.entered.received();
                tracing::info!(client = %self.client, tenant = self.tenant.as_deref(), from = %envelope.reverse_path, %reply, "refused");
                return reply;
            }
        };
        let message = Arc::new(self.stamped(session, &envelope, (data, rest), asked));
        let (id, bytes) = (message.id, message.body_bytes());
        let kept = self.service.front.queue.accept(message.clone()).await;
        self.entered.received();
        match kept {
            Ok(accepted) => {
                let front = &self.service.front;
                front.metrics.accepted.inc();
                front.metrics.bytes.inc_by(bytes);
                self.say_accepted(&message, &envelope);
                // Of a large one there is only the beginning at hand.
                // One that is held has time to be read again.
                let stays = message.rest.is_none() && message.held_until().is_none();
                let in_memory = stays.then_some(message);
                let message = in_memory.and_then(|message| Kept::within(&front.keep, message));
                self.service.doors.tell(&accepted.units, message).await;
                Reply::new(250, 0, 0, "").with_text(format!("queued as {id}"))
            }
            Err(error) => {
                tracing::warn!(client = %self.client, tenant = self.tenant.as_deref(), %error, "not kept");
                refusal(&error)
            }
        }
    }

    /// What the message's own fields ask for, all of them taken off; or why it is refused.
    fn admitted(&self, envelope: &Envelope, data: &mut Data) -> Result<Asked, Reply> {
        let settings = &self.service.front.settings;
        let rules = self.rules();
        let listed = rules.map(|tenant| &*tenant.header_fields).unwrap_or_default();
        let now = self.service.front.clock.now();
        let asked = fields::read(&data.octets, listed, &settings.delivery.streams, now)?;
        if let (Some(hold), Some(expires)) = (envelope.hold, asked.expires)
            && hold.release(now) >= expires
        {
            let text = "Postrider-Expires: the message would be released after that";
            return Err(Reply::new(550, 5, 4, text));
        }
        data.octets = fields::taken_off(std::mem::take(&mut data.octets), &settings.hostname);
        let stream = asked.stream.as_ref().unwrap_or(self.stream(envelope.priority));
        let refused = rules
            .and_then(|tenant| admission::content(tenant, &data.octets))
            .or_else(|| admission::looping(&data.octets, settings.submission.max_received))
            .or_else(|| self.refused_by_route(envelope, stream));
        refused.map_or(Ok(asked), Err)
    }

    fn say_accepted(&self, message: &NewMessage, envelope: &Envelope) {
        let recipients = envelope.recipients.iter().take(10);
        let to = listed(recipients.map(|to| &to.mailbox), ",");
        let pairs = message.metadata.iter();
        let pairs = listed(pairs.map(|(key, value)| format!("{key}={value}")), "; ");
        tracing::info!(
            id = %message.id,
            tenant = self.tenant.as_deref(),
            stream = %message.stream,
            tag = message.tag.as_deref(),
            metadata = Some(pairs).filter(|pairs| !pairs.is_empty()),
            client = %self.client,
            from = %envelope.reverse_path,
            recipients = envelope.recipients.len(),
            to,
            bytes = message.body_bytes(),
            held_until = message.held_until().map(date_time),
            deliver_by = envelope.by.map(|by| by.to_string()),
            priority = envelope.priority.map(i8::from),
            "accepted"
        );
    }

    fn stamped(
        &self,
        session: &Session,
        envelope: &Envelope,
        (data, rest): (Data, Option<Uploaded>),
        asked: Asked,
    ) -> NewMessage {
        let front = &self.service.front;
        let now = front.clock.now();
        let named = rest.as_ref().map(Uploaded::id);
        let id = named.unwrap_or_else(|| self.service.random.message_id(now));
        let hello = session.hello();
        let protocol = protocol(
            hello.is_some_and(|hello| hello.esmtp),
            session.is_tls(),
            session.is_logged_in(),
            envelope.smtputf8,
        );
        let helo = hello.map_or("", |hello| hello.name.as_str());
        let arrival = Arrival {
            id,
            now,
            hostname: &front.settings.hostname,
            client: self.client,
            helo,
            protocol,
            tls: self.tls.as_deref(),
        };
        let stream = asked
            .stream
            .unwrap_or_else(|| self.stream(envelope.priority).clone());
        let streams = &front.settings.delivery.streams;
        let expire_after = streams
            .get(&stream)
            .map_or(front.settings.store.expire_after, |stream| stream.expire_after);
        // RFC 4865: what is held counts as submitted when it is released.
        let release = envelope.hold.map_or(now, |hold| hold.release(now));
        let transfer = TransferOptions {
            priority: envelope.priority,
            by: envelope.by.map(|by| by.from(now)),
        };
        let sender = self.sender(&envelope.reverse_path, Some(&stream));
        let rewrites = &front.settings.routing.rewrites;
        let placed = front.routing.place(sender, &envelope.recipients);
        if !placed.field.is_empty() {
            tracing::warn!(%id, "safe mode: sent elsewhere than to its recipients");
        }
        let prefix = placed.above(prefix(&arrival, envelope, &data.octets));
        NewMessage {
            id,
            received_at: now,
            // RFC 2852 §4.1.3: what is to be returned in time ends then.
            expires_at: [asked.expires, transfer.return_at()]
                .into_iter()
                .flatten()
                .fold(release + expire_after, Timestamp::min),
            tenant: self.tenant.clone().unwrap_or_else(|| "none".into()),
            stream: stream.clone(),
            reverse_path: rewrite::reverse_path(rewrites, &envelope.reverse_path),
            body_type: envelope.body,
            smtputf8: envelope.smtputf8,
            dsn: envelope.dsn.clone(),
            transfer,
            tag: asked.tag,
            metadata: asked.metadata,
            prefix,
            body: rewrite::message(rewrites, data.octets),
            rest,
            origin: Origin {
                client: Some(self.client),
                helo: helo.to_owned(),
                credential: self.credential.as_ref().map(|name| name.to_string()),
                protocol: protocol.to_owned(),
            },
            cause: None,
            units: placed.due(release),
        }
    }

    /// What a rule refuses that could not be told before. All or nothing: the client knows whom to leave out.
    fn refused_by_route(&self, envelope: &Envelope, stream: &str) -> Option<Reply> {
        let sender = self.sender(&envelope.reverse_path, Some(stream));
        envelope.recipients.iter().find_map(|recipient| {
            let reply = self.service.front.routing.refusal(sender, &recipient.mailbox)?;
            let text = format!("<{}>: {}", recipient.mailbox, reply.text);
            Some(reply.with_text(text))
        })
    }
}

/// All of them, with `between` between them.
fn listed(all: impl Iterator<Item = impl fmt::Display>, between: &str) -> String {
    let mut text = String::new();
    for (number, one) in all.enumerate() {
        // Nothing written into a string fails.
        let _ = write!(text, "{}{one}", if number > 0 { between } else { "" });
    }
    text
}

/// RFC 3848, RFC 6531 §4.3.
fn protocol(esmtp: bool, tls: bool, logged_in: bool, smtputf8: bool) -> &'static str {
    match (esmtp, smtputf8, tls, logged_in) {
        (false, ..) => "SMTP",
        (_, false, false, false) => "ESMTP",
        (_, false, true, false) => "ESMTPS",
        (_, false, false, true) => "ESMTPA",
        (_, false, true, true) => "ESMTPSA",
        (_, true, false, false) => "UTF8SMTP",
        (_, true, true, false) => "UTF8SMTPS",
        (_, true, false, true) => "UTF8SMTPA",
        (_, true, true, true) => "UTF8SMTPSA",
    }
}

fn refusal(error: &CommitError) -> Reply {
    match error {
        CommitError::Withdrawn => Reply::new(451, 3, 2, "too busy; come back later"),
        CommitError::Full => Reply::new(452, 3, 1, "too little space; come back later"),
        CommitError::Over(_) => replies::TOO_MUCH_WAITS,
        CommitError::Failing(_) | CommitError::Damaged(_) | CommitError::Gone | CommitError::OtherUpload => {
            Reply::new(451, 3, 0, "the queue does not take mail; come back later")
        }
        CommitError::Units => Reply::new(452, 5, 3, "too many destination domains"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// CASES row 22: RFC 3848's and RFC 6531's words.
    #[test]
    fn received_tells_how_the_message_came() {
        for (esmtp, tls, logged_in, smtputf8, word) in [
            (false, false, false, false, "SMTP"),
            (false, true, true, false, "SMTP"),
            (true, false, false, false, "ESMTP"),
            (true, true, false, false, "ESMTPS"),
            (true, false, true, false, "ESMTPA"),
            (true, true, true, false, "ESMTPSA"),
            (true, false, false, true, "UTF8SMTP"),
            (true, true, false, true, "UTF8SMTPS"),
            (true, false, true, true, "UTF8SMTPA"),
            (true, true, true, true, "UTF8SMTPSA"),
        ] {
            assert_eq!(protocol(esmtp, tls, logged_in, smtputf8), word);
        }
    }
}
