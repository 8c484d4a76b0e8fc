//! A mistake of ours that one message brings out must not stop all others: what panics is caught, its claim is given back, and
//! a message that does it again and again is parked.

use std::cell::RefCell;
use std::collections::{HashMap, HashSet};
use std::panic::AssertUnwindSafe;
use std::rc::Rc;

use futures_util::FutureExt as _;
use mail_core::MessageId;
use queue::{Aside, UnitKey};

use crate::world::Net;

use super::{Courier, Event};

/// Panics after which a unit is parked.
const MOST: u32 = 3;

/// Units whose panics are counted at once; beyond that counting begins anew.
const COUNTED: usize = 1_024;

/// What is on the wire, and how often which unit has made us panic since the start.
#[derive(Default)]
pub(super) struct Stumbles {
    counts: RefCell<HashMap<(MessageId, u16), u32>>,
    on_wire: RefCell<HashSet<(MessageId, u16)>>,
}

impl Stumbles {
    /// From here on a peer may come to own the message.
    pub(super) fn goes_out(&self, unit: &UnitKey) {
        self.on_wire.borrow_mut().insert((unit.id, unit.unit));
    }

    /// What became of it is recorded, or nothing was sent.
    pub(super) fn came_back(&self, unit: &UnitKey) {
        self.on_wire.borrow_mut().remove(&(unit.id, unit.unit));
    }

    /// Whether it was on the wire, and how often it has made us panic.
    fn count(&self, unit: &UnitKey) -> (bool, u32) {
        let key = (unit.id, unit.unit);
        let mut counts = self.counts.borrow_mut();
        if counts.len() >= COUNTED {
            counts.clear();
        }
        let count = counts.entry(key).or_default();
        *count += 1;
        (self.on_wire.borrow_mut().remove(&key), *count)
    }
}

impl<N: Net> Courier<N> {
    /// Works on a unit. `None` where that panicked: the claim is dealt with then, and whatever was worked with must not be used
    /// again.
    pub(super) async fn guarded<T>(
        self: &Rc<Self>,
        unit: UnitKey,
        work: impl Future<Output = T>,
    ) -> Option<T> {
        // What is shared with it are counts and channels, whole between two awaits.
        match AssertUnwindSafe(work).catch_unwind().await {
            Ok(done) => Some(done),
            Err(_) => {
                self.stumbled(unit).await;
                None
            }
        }
    }

    /// It has made us panic: it is tried again in a while, or parked. At once where it was on the wire: nobody knows whether
    /// the peer has it, and it is not for us to send it again and again.
    pub(super) async fn stumbled(self: &Rc<Self>, unit: UnitKey) {
        let (on_wire, times) = self.memory.stumbles.count(&unit);
        tracing::error!(id = %unit.id, unit = unit.unit, times, on_wire, "a mistake of the relay's: it panicked over this message");
        if !on_wire && times < MOST || crate::sabotage::is_on("never-park") {
            return self.later(unit);
        }
        let why = match on_wire {
            true => "the relay panicked while it was being sent; it may have been delivered".to_owned(),
            false => format!("the relay panicked over it {times} times"),
        };
        let aside = Aside::parked(why, self.parts.clock.now());
        if !on_wire {
            return self.set_unsent_aside(unit, aside).await;
        }
        let settled = self.set_aside(unit, aside).await;
        self.tell(Event::Settled(unit, settled));
    }
}
