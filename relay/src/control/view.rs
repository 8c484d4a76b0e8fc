//! One message as the admin API shows it.

use std::collections::HashMap;

use admin_api::{EventView, MessageView, RecipientState, RecipientView, Time};
use mail_core::{Mailbox, MessageId};
use queue::{Event, EventKind, Message, SetAside, StateRecord};

use super::aside;

/// What is known of a message: from the queue while some of it is there, and from the journal.
pub(super) fn view(
    id: MessageId,
    message: Option<Message>,
    history: &[Event],
    set_aside: &[SetAside],
) -> Option<MessageView> {
    if message.is_none() && history.is_empty() && set_aside.is_empty() {
        return None;
    }
    let told = Told::new(history);
    let name = history.iter().find_map(|event| event.queue.as_ref());
    let envelope = message.as_ref().map(|message| &message.envelope);
    let accepted = history.iter().find(|event| event.kind == EventKind::Accepted);
    let has_units = |message: &Message| !message.units.is_empty();
    let queued = !set_aside.is_empty() || message.as_ref().is_some_and(has_units);
    Some(MessageView {
        id: id.to_string(),
        queued,
        tenant: envelope
            .map(|envelope| envelope.tenant.to_string())
            .or_else(|| Some(name?.tenant.to_string())),
        stream: envelope
            .map(|envelope| envelope.stream.to_string())
            .or_else(|| Some(name?.stream.to_string())),
        tag: accepted
            .and_then(|event| event.tag.as_deref())
            .or_else(|| envelope?.tag.as_deref())
            .map(str::to_owned),
        metadata: accepted
            .map(|event| &event.metadata)
            .or_else(|| Some(&envelope?.metadata))
            .map(|pairs| pairs.iter().cloned().collect())
            .unwrap_or_default(),
        sender: envelope.map(|envelope| {
            let sender = envelope.reverse_path.mailbox();
            sender.map(Mailbox::to_string).unwrap_or_default()
        }),
        bytes: envelope.map(|envelope| envelope.body_bytes),
        received_at: Time(envelope.map_or_else(|| id.created(), |envelope| envelope.received_at)),
        expires_at: envelope.map(|envelope| Time(envelope.expires_at)),
        held_until: message.as_ref().and_then(held_until),
        client: envelope.and_then(|envelope| Some(envelope.origin.client?.to_string())),
        helo: envelope.map(|envelope| envelope.origin.helo.clone()),
        credential: envelope.and_then(|envelope| envelope.origin.credential.clone()),
        protocol: envelope.map(|envelope| envelope.origin.protocol.clone()),
        cause: envelope.and_then(|envelope| Some(envelope.cause?.to_string())),
        recipients: match &message {
            Some(message) => recipients_in_queue(message, &told),
            None => recipients_told_of(history, &told, set_aside),
        },
        events: history.iter().map(event).collect(),
    })
}

/// Until when some of it is held, as its client asked.
fn held_until(message: &Message) -> Option<Time> {
    let held = message.envelope.held_until()?;
    let mut untouched = message.units.iter().filter(|unit| unit.state.is_none());
    untouched.any(|unit| unit.key.due == held).then_some(Time(held))
}

/// The last that the journal says of each recipient. An address may stand in two units only if its domain is routed anew.
pub(super) struct Told<'a>(HashMap<&'a str, &'a Event>);

impl<'a> Told<'a> {
    pub fn new(history: &'a [Event]) -> Self {
        let about_one = history.iter().filter(|event| event.kind != EventKind::Accepted);
        Self(
            about_one
                .flat_map(|event| event.recipients.iter().map(move |who| (who.as_str(), event)))
                .collect(),
        )
    }

    /// A recipient that has ended, or waits without more being known.
    pub fn of(&self, recipient: &str, unknown: RecipientState) -> RecipientView {
        let event = self.0.get(recipient);
        RecipientView {
            recipient: recipient.to_owned(),
            state: event.and_then(|event| end(event.kind)).unwrap_or(unknown),
            attempts: event.map_or(0, |event| event.attempt),
            in_doubt: 0,
            next_due: None,
            last_attempt: event.map(|event| Time(event.at)),
            last_reply: event
                .map(|event| event.reply.clone())
                .filter(|reply| !reply.is_empty()),
            host: event.and_then(|event| host(event)),
            class: None,
            queue: None,
            waits: None,
        }
    }
}

pub(super) fn recipients_in_queue(message: &Message, told: &Told<'_>) -> Vec<RecipientView> {
    let mut views = Vec::new();
    for (number, unit) in (0..u16::MAX).zip(&message.envelope.units) {
        let open = message.units.iter().find(|open| open.key.unit == number);
        for (index, recipient) in (0..u16::MAX).zip(&unit.recipients) {
            let recipient = recipient.mailbox.to_string();
            let mut view = told.of(&recipient, RecipientState::Ended);
            if let Some(open) = open {
                let waits = |state: &StateRecord| {
                    let waiting = state.open.iter().find(|waiting| waiting.recipient == index)?;
                    Some(waiting.reply.clone())
                };
                match &open.state {
                    // Who of them has ended is what is damaged.
                    None if open.aside.is_some() && view.state != RecipientState::Ended => {}
                    None => view.state = RecipientState::Queued,
                    // Only moved.
                    Some(state) if state.attempts == 0 => view.state = RecipientState::Queued,
                    Some(state) => {
                        if let Some(reply) = waits(state) {
                            view.state = RecipientState::Deferred;
                            view.attempts = state.attempts;
                            view.in_doubt = state.in_doubt;
                            view.last_attempt = Some(Time(state.last_attempt));
                            view.last_reply = Some(reply);
                        }
                    }
                }
                let waits = matches!(view.state, RecipientState::Queued | RecipientState::Deferred);
                if let Some(aside) = open.aside.as_ref().filter(|_| waits) {
                    view.state = aside::state(aside.cause);
                    view.last_reply = Some(aside.why.clone());
                    view.queue = Some(open.key.queue.0);
                } else if waits {
                    view.next_due = Some(Time(open.key.due));
                    view.queue = Some(open.key.queue.0);
                }
            }
            views.push(view);
        }
    }
    views
}

/// Of a message that has left the queue.
fn recipients_told_of(history: &[Event], told: &Told<'_>, set_aside: &[SetAside]) -> Vec<RecipientView> {
    let accepted = history.iter().find(|event| event.kind == EventKind::Accepted);
    let mut names: Vec<&str> = match accepted {
        Some(event) => event.recipients.iter().map(String::as_str).collect(),
        None => told.0.keys().copied().collect(),
    };
    if accepted.is_none() {
        names.sort_unstable();
    }
    // Of what is set aside without its envelope: which recipients are meant is told by nothing but their having no end.
    let unknown = set_aside.first();
    let state = unknown.map_or(RecipientState::Ended, |aside| aside::state(aside.record.cause));
    names
        .into_iter()
        .map(|name| {
            let mut view = told.of(name, state);
            if let Some(aside) = unknown.filter(|_| view.state == state) {
                view.last_reply = Some(aside.record.why.clone());
            }
            view
        })
        .collect()
}

fn end(kind: EventKind) -> Option<RecipientState> {
    Some(match kind {
        EventKind::Delivered => RecipientState::Delivered,
        EventKind::Bounced => RecipientState::Bounced,
        EventKind::Expired => RecipientState::Expired,
        EventKind::Cancelled => RecipientState::Cancelled,
        EventKind::Deleted => RecipientState::Deleted,
        EventKind::Suppressed => RecipientState::Suppressed,
        EventKind::Discarded => RecipientState::Discarded,
        EventKind::HandedOver => RecipientState::HandedOver,
        EventKind::Accepted
        | EventKind::Deferred
        | EventKind::InDoubt
        | EventKind::Complained
        | EventKind::Unsubscribed
        | EventKind::Parked
        | EventKind::Damaged
        | EventKind::Restored
        | EventKind::Suspended
        | EventKind::Resumed
        | EventKind::Retried
        | EventKind::Adjusted
        | EventKind::AdjustmentEnded => return None,
    })
}

fn host(event: &Event) -> Option<String> {
    let hop = event.hop.as_ref()?;
    match hop.address.as_str() {
        "" => Some(hop.host.clone()),
        address => Some(format!("{} [{address}]", hop.host)),
    }
}

fn event(event: &Event) -> EventView {
    let hop = event.hop.as_ref();
    EventView {
        at: Time(event.at),
        kind: kind(event.kind).to_owned(),
        recipients: event.recipients.clone(),
        attempt: event.attempt,
        host: host(event),
        source: hop
            .map(|hop| hop.source.clone())
            .filter(|source| !source.is_empty()),
        tls: hop.map(|hop| hop.tls.clone()).filter(|tls| !tls.is_empty()),
        millis: hop.map(|hop| hop.millis),
        reply: event.reply.clone(),
        class: None,
    }
}

/// DESIGN's word for it.
fn kind(kind: EventKind) -> &'static str {
    match kind {
        EventKind::Accepted => "accepted",
        EventKind::Delivered => "delivered",
        EventKind::Deferred => "deferred",
        EventKind::Bounced => "bounced",
        EventKind::Expired => "expired",
        EventKind::Cancelled => "cancelled",
        EventKind::Deleted => "deleted",
        EventKind::Suppressed => "suppressed",
        EventKind::InDoubt => "in_doubt",
        EventKind::Complained => "complained",
        EventKind::Unsubscribed => "unsubscribed",
        EventKind::Parked => "parked",
        EventKind::Damaged => "damaged",
        EventKind::Restored => "restored",
        EventKind::Suspended => "suspended",
        EventKind::Resumed => "resumed",
        EventKind::Retried => "retried",
        EventKind::Adjusted => "adjusted",
        EventKind::AdjustmentEnded => "adjustment_ended",
        EventKind::HandedOver => "handed_over",
        EventKind::Discarded => "discarded",
    }
}
