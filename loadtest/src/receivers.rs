//! The receiving side of a proof: a lab whose hosts take the mail, and what has arrived there.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use lab::{Keep, Lab, Limits, Slow};
use parking_lot::Mutex;

use crate::flood::Position;
use crate::ledger::{Arrival, Known};
use crate::message::Plan;
use crate::relay::{LOOK_EVERY, Relay};

/// How long the first receiver takes for a recipient: so that there is always something on the wire.
const SLOW: Duration = Duration::from_millis(15);
/// How long nothing may arrive before it is given up.
const STILL: Duration = Duration::from_secs(12);

/// See the module.
pub(crate) struct Receivers {
    lab: Lab,
    arrivals: Arc<Mutex<Vec<Arrival>>>,
}

impl Receivers {
    pub(crate) async fn start(plan: Plan, position: Position) -> anyhow::Result<Self> {
        let arrivals = Arc::new(Mutex::new(Vec::new()));
        let seen = arrivals.clone();
        let observe = move |delivery: &lab::Delivery| {
            // When its final dot was read: what comes later may be another life's doing.
            let at = delivery.at.0 * 1_000;
            let recipients: Vec<String> = delivery.recipients.iter().map(ToString::to_string).collect();
            let sender = delivery.mail_from.to_string();
            let of = Arrival::of(plan, &sender, &recipients, &delivery.raw, at, position());
            seen.lock().extend(of);
        };
        let limits = Limits {
            mailboxes: 1_000_000,
            messages: 1_000_000,
            bytes: u64::MAX,
        };
        let domain = |name: &str| name.parse().map_err(anyhow::Error::from);
        let lab = lab::Builder::bare(domain("second.test")?, domain("relay.second.test")?)
            .receiver(domain("ok.test")?, Slow(SLOW))
            .receiver(domain("second.test")?, lab::Accepts)
            .receiver(domain("greylist.test")?, lab::Greylists::default())
            .receiver(domain("reject.test")?, lab::Unknown(vec!["nobody".into()]))
            .keep(Keep::Digest)
            .limits(limits)
            .verify(false)
            .observe(observe);
        Ok(Self {
            lab: lab.start().await?,
            arrivals,
        })
    }

    pub(crate) fn smtp_port(&self) -> u16 {
        self.lab.smtp_port
    }

    pub(crate) fn dns(&self) -> SocketAddr {
        self.lab.dns
    }

    /// All so far.
    pub(crate) fn arrivals(&self) -> Vec<Arrival> {
        self.arrivals.lock().clone()
    }

    /// Until the relay's queues are empty, or nothing has come for a while; adds what has arrived to `known`.
    pub(crate) async fn drain(&self, relay: &Relay, known: &mut Known) -> anyhow::Result<()> {
        let before = known.arrivals.len();
        let (mut last, mut since) = (0, Instant::now());
        loop {
            tokio::time::sleep(LOOK_EVERY * 5).await;
            let count = self.arrivals.lock().len();
            if count != last {
                (last, since) = (count, Instant::now());
                continue;
            }
            // What was never acknowledged may come too, and copies that nobody should get: until nothing is left to come.
            // Its command line may not be served yet.
            match relay.is_empty().await {
                Ok(true) => break,
                Ok(false) if since.elapsed() > STILL => break,
                Err(error) if since.elapsed() > STILL => return Err(error),
                Ok(false) | Err(_) => {}
            }
        }
        known.arrivals.truncate(before);
        known.arrivals.extend(self.arrivals());
        Ok(())
    }

    pub(crate) async fn stop(self) {
        self.lab.stop().await;
    }
}
