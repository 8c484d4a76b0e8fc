//! What a cut left: the relay is started on it and drained.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use rand::Rng;
use rand::rngs::SmallRng;

use super::CAPACITY;
use super::disk::{Disk, Mounted};
use super::platter::Platter;
use super::recording::{Recording, time, unmount};
use super::volume::Volume;
use crate::ledger::{Account, Kill, Known};
use crate::receivers::Receivers;
use crate::relay::{Program, Relay, now};

/// How long a relay lives that loses power again, once it listens, at the most.
const SHORT_LIFE: Duration = Duration::from_millis(400);

/// A moment of a run, and what the disk holds when the power goes then.
pub(crate) struct Cut {
    pub(crate) number: usize,
    /// Operations before it.
    pub(crate) position: usize,
    /// Octets that were not synced.
    pub(crate) at_risk: u64,
    pub(crate) volume: Volume,
    /// The power goes once more while it recovers.
    pub(crate) again: bool,
    pub(crate) rng: SmallRng,
}

/// What became of it.
pub(crate) struct Outcome {
    number: usize,
    position: usize,
    at_risk: u64,
    again: bool,
    /// Recipients who had their message, or whose sender had its report, before the cut.
    before: usize,
    pub(crate) account: Account,
    /// Why the relay did not start.
    pub(crate) refused: Option<String>,
}

/// Starts the relay on what is left, until its queues are empty, and draws the balance.
pub(crate) async fn open(
    program: Program,
    keep: Option<PathBuf>,
    recording: Arc<Recording>,
    cut: Cut,
) -> anyhow::Result<Outcome> {
    let folder = tempfile::tempdir()?;
    let number = cut.number;
    let at = recording.time(cut.position);
    let mut known = recording.known.until(cut.position, at);
    let mut outcome = Outcome {
        number,
        position: cut.position,
        at_risk: cut.at_risk,
        again: cut.again,
        before: ended(&Account::of(&known)),
        account: Account::default(),
        refused: None,
    };
    let first = cut.volume.clone();
    let lived = lives(&program, folder.path(), cut, at, &mut known)
        .await
        .with_context(|| format!("state {number}"));
    match lived {
        Ok(()) => outcome.account = Account::of(&known),
        // What it would have delivered is not lost more than it is refused.
        Err(error) => match error.downcast::<Refused>() {
            Ok(Refused(why)) => {
                outcome.account.messages = known.acknowledged.len();
                outcome.refused = Some(why);
            }
            Err(error) => return Err(error),
        },
    }
    if let Some(keep) = keep
        && !outcome.holds()
    {
        let keep = keep.join(format!("state-{number}"));
        first.write_to(&keep.join("disk"))?;
        for life in ["first", "last"] {
            let log = folder.path().join(life).join("log");
            if log.exists() {
                std::fs::copy(log, keep.join(format!("log-{life}")))?;
            }
        }
    }
    Ok(outcome)
}

/// The relay did not start.
#[derive(Debug)]
struct Refused(String);

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the store was refused: {}", self.0)
    }
}

impl std::error::Error for Refused {}

/// The one that loses power again, and the one that drains.
async fn lives(
    program: &Program,
    folder: &Path,
    cut: Cut,
    mut at: u64,
    known: &mut Known,
) -> anyhow::Result<()> {
    let Cut {
        mut volume,
        again,
        mut rng,
        ..
    } = cut;
    if again {
        let disk = Disk::new(volume.clone(), CAPACITY, true);
        let mut life = Life::start(program, folder.join("first"), &disk, at, known).await?;
        tokio::time::sleep(SHORT_LIFE.mul_f64(rng.random())).await;
        life.relay.kill()?;
        let (arrivals, told) = (life.receivers.arrivals(), life.relay.told()?);
        life.end().await?;
        let log = disk.take_log();
        let position = rng.random_range(0..=log.len());
        at = time(&log, position);
        let of_it = arrivals
            .into_iter()
            .filter(|arrival| arrival.position <= position);
        known.arrivals.extend(of_it);
        known.told.extend(told.into_iter().filter(|told| told.at <= at));
        let mut platter = Platter::of(&volume);
        log[..position]
            .iter()
            .for_each(|logged| platter.apply(&logged.op));
        volume = platter.cut(&mut rng);
    }
    let disk = Disk::new(volume, CAPACITY, false);
    let mut life = Life::start(program, folder.join("last"), &disk, at, known).await?;
    life.receivers.drain(&life.relay, known).await?;
    life.relay.stop().await?;
    known.told.extend(life.relay.told()?);
    life.end().await
}

/// A relay on a disk after a cut.
struct Life {
    relay: Relay,
    receivers: Receivers,
    mounted: Mounted,
}

impl Life {
    /// After a cut `at` that moment. [`Refused`] where it does not come to listen.
    async fn start(
        program: &Program,
        folder: PathBuf,
        disk: &Disk,
        at: u64,
        known: &mut Known,
    ) -> anyhow::Result<Self> {
        let mount = folder.join("disk");
        std::fs::create_dir_all(&mount)?;
        let mounted = disk.mount(&mount)?;
        let counting = disk.clone();
        let receivers = Receivers::start(known.plan, Arc::new(move || counting.position())).await?;
        known.kills.push(Kill { at, back: now() });
        let mut relay = Relay::new(program, &folder, &mount.join("queue"), &receivers)?;
        if let Err(error) = relay.start().await {
            drop(relay);
            unmount(mounted).await?;
            return Err(Refused(format!("{error:#}")).into());
        }
        Ok(Self {
            relay,
            receivers,
            mounted,
        })
    }

    async fn end(self) -> anyhow::Result<()> {
        self.receivers.stop().await;
        unmount(self.mounted).await
    }
}

impl Outcome {
    fn holds(&self) -> bool {
        self.account.holds() && self.refused.is_none()
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let account = &self.account;
        write!(
            f,
            "{:>5} {:>9} {:>7}K {:>7} {:>7} {:>7} {:>7} {:>5} {:>8} {:>11}  {:?}",
            self.number,
            self.position,
            self.at_risk >> 10,
            account.messages,
            self.before,
            ended(account).saturating_sub(self.before),
            account.queued,
            account.lost.len(),
            account.damaged.len(),
            account.unexplained.len() + account.invented.len(),
            account.explained,
        )?;
        if self.again {
            write!(f, ", cut again")?;
        }
        match &self.refused {
            Some(why) => write!(f, ", REFUSED: {why}"),
            None => Ok(()),
        }
    }
}

/// Recipients whose message has come to an end.
fn ended(account: &Account) -> usize {
    account.delivered + account.bounced
}
