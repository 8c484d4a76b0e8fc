//! `loadtest crash`: kill -9 under load, and every message accounted for (promises 1 to 3).
//!
//! Each round floods a fresh store, kills the relay at a random moment with enough acknowledged and on the wire, starts it
//! again, waits until its queues are empty, and draws the balance.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context as _, bail, ensure};
use clap::Args;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use crate::flood::{Flood, Position};
use crate::ledger::{Account, Kill, Known};
use crate::message::{Plan, Sizes};
use crate::receivers::Receivers;
use crate::relay::{LOOK_EVERY, PATIENCE, Program, Relay, now};

/// Messages acknowledged before the kill, at the least.
const ACKNOWLEDGED: usize = 500;
/// Transactions under way at the kill, at the least.
const ON_THE_WIRE: usize = 20;
/// How often a round whose kill met fewer on the wire is played again.
const AGAIN: usize = 5;
/// Sessions that submit.
const SESSIONS: usize = 20;

/// Options of `loadtest crash`.
#[derive(Args)]
pub(crate) struct Options {
    #[command(flatten)]
    program: Program,
    /// How many kills.
    #[arg(long, default_value_t = 10)]
    rounds: usize,
    /// Makes the same messages and moments again; drawn and printed unless given.
    #[arg(long)]
    seed: Option<u64>,
}

/// Runs all rounds; false if a promise did not hold.
pub(crate) async fn run(options: &Options) -> anyhow::Result<bool> {
    let seed = options.seed.unwrap_or_else(|| StdRng::from_os_rng().random());
    let note = options.program.sabotage_note();
    println!("crash: seed {seed}, {} rounds{note}", options.rounds);
    println!(
        "{:>5} {:>8} {:>8} {:>9} {:>9} {:>8} {:>6} {:>9} {:>10}  duplicates by window",
        "round", "acked", "on wire", "delivered", "bounced", "queued", "lost", "damaged", "unexplained"
    );
    let mut total = Account::default();
    for number in 0..options.rounds {
        let account = again(options, seed, number).await;
        total.add(&account.with_context(|| format!("round {number}, seed {seed}"))?);
    }
    for finding in total.findings().take(20) {
        println!("found: {finding}");
    }
    println!(
        "crash: {} rounds, {} messages acknowledged, {} recipients lost, duplicates {:?}: {} (seed {seed})",
        options.rounds,
        total.messages,
        total.lost.len(),
        total.explained,
        total.verdict()
    );
    Ok(total.holds())
}

/// A round, until one meets enough on the wire: what was there when the kill was decided may have ended when it struck.
async fn again(options: &Options, seed: u64, number: usize) -> anyhow::Result<Account> {
    for _ in 0..AGAIN {
        if let Some(account) = round(options, seed, number).await? {
            return Ok(account);
        }
    }
    bail!("{AGAIN} kills met fewer than {ON_THE_WIRE} transactions on the wire")
}

/// `None` where the kill met too few on the wire.
async fn round(options: &Options, seed: u64, number: usize) -> anyhow::Result<Option<Account>> {
    let folder = tempfile::tempdir()?;
    let mut rng = StdRng::seed_from_u64(seed.wrapping_add(number as u64));
    let plan = Plan {
        seed: rng.random(),
        sizes: Sizes::Small,
    };
    let nothing_watched: Position = Arc::new(|| 0);
    let receivers = Receivers::start(plan, nothing_watched.clone()).await?;
    let mut relay = Relay::new(
        &options.program,
        folder.path(),
        &folder.path().join("store"),
        &receivers,
    )?;
    relay.start().await?;
    let flood = Flood::new(plan, nothing_watched, false);
    let mut sessions = flood.start(relay.address, SESSIONS);
    let enough = ACKNOWLEDGED + rng.random_range(0..400);
    let begun = Instant::now();
    let mut wire = 0;
    while flood.count() < enough || wire < ON_THE_WIRE {
        ensure!(
            begun.elapsed() < PATIENCE,
            "{} acknowledged, {wire} on the wire: not enough to kill",
            flood.count()
        );
        ensure!(relay.runs()?, "the relay ended by itself: {}", relay.tail());
        tokio::time::sleep(LOOK_EVERY).await;
        wire = relay.on_the_wire()?;
    }
    let killed = relay.kill()?;
    flood.stop();
    while let Some(ended) = sessions.join_next().await {
        ended??;
    }
    wire = relay.on_the_wire()?;
    if wire < ON_THE_WIRE {
        receivers.stop().await;
        return Ok(None);
    }
    let back = now();
    relay.start().await?;
    let mut known = Known {
        plan,
        acknowledged: flood.acknowledged(),
        kills: vec![Kill { at: killed, back }],
        arrivals: Vec::new(),
        told: Vec::new(),
        queued: BTreeSet::new(),
    };
    receivers.drain(&relay, &mut known).await?;
    relay.stop().await?;
    known.told = relay.told()?;
    receivers.stop().await;
    let account = Account::of(&known);
    println!(
        "{number:>5} {:>8} {wire:>8} {:>9} {:>9} {:>8} {:>6} {:>9} {:>10}  {:?}, {} unanswered",
        account.messages,
        account.delivered,
        account.bounced,
        account.queued,
        account.lost.len(),
        account.damaged.len(),
        account.unexplained.len() + account.invented.len(),
        account.explained,
        flood.unanswered()
    );
    Ok(Some(account))
}
