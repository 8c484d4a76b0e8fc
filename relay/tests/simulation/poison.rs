//! Messages that bring out a mistake of the relay's: they are parked, and all others go.

use std::pin::Pin;
use std::task::{Context, Poll};

use admin_api::aside::AsideQuery;
use admin_api::operate::{Retry, Selector};
use admin_api::{Caller, Control as _, RecipientState};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::*;

/// A connection over which nobody can write this word.
const POISON: &[u8] = b"poison";

pub(super) struct Wire(
    pub(super) DuplexStream,
    #[expect(dead_code, reason = "held")] pub(super) faulty::Slot,
);

impl AsyncRead for Wire {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(context, into)
    }
}

impl AsyncWrite for Wire {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        octets: &[u8],
    ) -> Poll<io::Result<usize>> {
        let is_poison = octets.windows(POISON.len()).any(|word| word == POISON);
        assert!(!is_poison, "a mistake, made for the test");
        Pin::new(&mut self.0).poll_write(context, octets)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(context)
    }
}

/// CASES 2: a shard's panic, a poisoned message.
#[test]
fn a_message_that_panics_the_relay_is_parked_and_all_others_go() {
    let world = Rc::new(world(hosts(&[(1, 0)]), &[Host::Takes]));
    let store = MemoryStore::new();
    let queue = live(&world, &store, START, "", async |relay| {
        relay.take_in(&["a@to.test"]).await;
        relay.take_in(&["poison@to.test"]).await;
        relay.take_in(&["b@to.test"]).await;
        sleep(MINUTE).await;
        let list = relay.control.aside(AsideQuery::default()).await.unwrap();
        let [parked] = &list.messages[..] else {
            panic!("{list:?}");
        };
        assert_eq!(parked.cause, RecipientState::Parked);
        assert!(parked.why.contains("may have been delivered"), "{}", parked.why);
        relay.take_in(&["c@to.test"]).await;
        sleep(MINUTE).await;
        // Whoever has mended the mistake lets it go; this one comes back.
        let selector = Selector {
            set_aside: true,
            message: Some(parked.id.clone()),
            ..Selector::default()
        };
        let (after, by) = (None, Caller("uid 7".into()));
        let progress = relay.control.retry(Retry { selector, after }, by).await.unwrap();
        assert_eq!(progress.done, 1);
        sleep(MINUTE).await;
        let list = relay.control.aside(AsideQuery::default()).await.unwrap();
        assert_eq!(list.messages.len(), 1, "parked again");
    });
    assert_eq!(delivered(&world), ["a@to.test", "b@to.test", "c@to.test"]);
    assert!(!is_empty(&queue));
    assert_eq!(world.open.get(), 0, "no connection is left open");
}

#[test]
fn a_panic_before_anything_is_sent_is_tried_again_first() {
    let world = Rc::new(world(hosts(&[(1, 0)]), &[Host::Panics]));
    let store = MemoryStore::new();
    live(&world, &store, START, "", async |relay| {
        relay.take_in(&["a@to.test"]).await;
        sleep(Duration::from_secs(1)).await;
        let list = relay.control.aside(AsideQuery::default()).await.unwrap();
        assert_eq!(list.messages.len(), 0);
        sleep(MINUTE).await;
        let list = relay.control.aside(AsideQuery::default()).await.unwrap();
        let [parked] = &list.messages[..] else {
            panic!("{list:?}");
        };
        assert_eq!(parked.why, "the relay panicked over it 3 times");
    });
    assert_eq!(world.connections.borrow().len(), 3);
}

fn delivered(world: &World) -> Vec<String> {
    let taken = world.taken.borrow();
    let mut to: Vec<_> = taken.iter().flat_map(|(_, _, to)| to.clone()).collect();
    to.sort();
    to
}
