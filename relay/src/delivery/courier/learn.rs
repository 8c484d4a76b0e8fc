//! What was said is read for what it teaches: of the unit, and of others.

use std::time::Duration;

use mail_core::Timestamp;
use mail_core::smtp::client::Stage;
use queue::{Again, UnitKey};

use crate::delivery::adapt::{Lesson, Others, lesson};
use crate::delivery::connection::open::OpenFailure;
use crate::delivery::lane::ConnectionId;
use crate::delivery::settle::Outcome;
use crate::delivery::shard::{Heard, LaneId};
use crate::world::Net;

use super::{Courier, Event};

/// As often a unit comes again just when it was asked to. A peer that asks for a short time again and again gets our own waits then.
const OBEYED: u32 = 3;

/// What the outcomes of an attempt teach.
#[derive(Default)]
pub(super) struct Learned {
    again_after: Option<Duration>,
    others: Others,
    said: String,
    host: String,
    class: String,
}

impl Learned {
    /// Something for others than the unit.
    pub(super) fn teaches(&self) -> bool {
        self.others != Others::Nothing
    }
}

impl<N: Net> Courier<N> {
    /// What outcomes teach that have their classes, decided at these stages. What means most counts for others; the longest time
    /// that a recipient asks for counts for the unit.
    pub(super) fn learn(&self, outcomes: &[Outcome], stages: &[Stage]) -> Learned {
        let shaping = &self.parts.settings.delivery.shaping;
        let mut learned = Learned::default();
        for (outcome, &stage) in outcomes.iter().zip(stages) {
            let Some(class) = outcome.class.map(|id| shaping.classes.get(id)) else {
                continue;
            };
            let advice = shaping.advice(&outcome.reply, outcome.host.as_deref());
            let Lesson { again_after, others } = lesson(&outcome.reply, &class.name, advice, stage);
            learned.again_after = learned.again_after.max(again_after);
            if others.weight() > learned.others.weight() {
                learned.others = others;
                learned.said.clone_from(&outcome.reply);
                learned.host = outcome.host.clone().unwrap_or_default();
                learned.class = class.name.to_string();
            }
        }
        learned
    }

    /// Tells the shard what an attempt that was begun then has taught. The unit's own next attempt is due after the time that is
    /// given back.
    pub(super) fn pass_on(
        &self,
        lane: LaneId,
        unit: UnitKey,
        learned: Learned,
        begun: Timestamp,
    ) -> Option<Duration> {
        if learned.teaches() {
            let heard = Heard {
                others: learned.others,
                begun,
                door: None,
                unit,
                said: learned.said,
                host: learned.host,
                class: learned.class.into(),
            };
            self.tell(Event::Heard(lane, Box::new(heard)));
        }
        learned.again_after
    }

    /// Tells the shard what a connection has taught that did not come about. False where that is nothing.
    pub(super) fn learn_at_the_door(
        &self,
        lane: LaneId,
        connection: ConnectionId,
        unit: UnitKey,
        failure: &OpenFailure,
        begun: Timestamp,
    ) -> bool {
        let Some((host, refusal)) = failure.refusal() else {
            return false;
        };
        let shaping = &self.parts.settings.delivery.shaping;
        let said = refusal.reply.to_string();
        let class = shaping.class(&said, Some(host));
        let advice = shaping.advice(&said, Some(host));
        let Lesson { others, .. } = lesson(&said, &class.name, advice, refusal.stage);
        if others == Others::Nothing {
            return false;
        }
        let heard = Heard {
            others,
            begun,
            door: Some(connection),
            unit,
            host: host.to_owned(),
            class: class.name.clone(),
            said,
        };
        self.tell(Event::Heard(lane, Box::new(heard)));
        true
    }
}

/// Makes the next attempt due after the time that the peer has asked for, and not past the unit's end.
pub(super) fn put_off(again: &mut Again, after: Duration, (now, expires_at): (Timestamp, Timestamp)) {
    let asked = now + after;
    let due = if again.attempts <= OBEYED {
        asked
    } else {
        asked.max(again.due)
    };
    again.due = due.min(expires_at.max(now));
}
