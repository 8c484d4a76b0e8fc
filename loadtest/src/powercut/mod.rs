//! `loadtest powercut`: the power goes at a random moment, and every message is accounted for (promises 1 to 3).
//!
//! The relay's store is on a disk of our own ([`disk`]), which logs what it is asked for. One run under load, with a kill -9 in
//! its middle, is enough for many cuts: the operations up to some moment are played to a [`platter`], which knows what is
//! durable and leaves what it likes of the rest. On each such state the relay is started; some lose power again while
//! they recover. What it delivers until its queues are empty, with what had been delivered before, has to be all that was
//! acknowledged before the cut.

mod disk;
pub(crate) mod faultfs;
mod faults;
mod platter;
mod recording;
mod state;
mod volume;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use anyhow::Context as _;
use clap::Args;
use rand::rngs::{SmallRng, StdRng};
use rand::{Rng, SeedableRng};
use tokio::task::JoinSet;

use crate::ledger::Account;
use crate::message::{Plan, Sizes};
use crate::relay::Program;
use platter::Platter;
use recording::Recording;
use state::{Cut, Outcome};

/// Room on the disk: more than a run fills.
const CAPACITY: u64 = 8 << 30;

/// Options of `loadtest powercut`.
#[derive(Args)]
pub(crate) struct Options {
    #[command(flatten)]
    program: Program,
    /// How many times the relay runs under load. In every other run its disk fails now and then, and the relay goes on by itself.
    #[arg(long, default_value_t = 1)]
    runs: usize,
    /// How many cuts of each run.
    #[arg(long, default_value_t = 40)]
    states: usize,
    /// MiB that a run writes to the disk. The default takes the store over several flushes and recycled logs.
    #[arg(long, default_value_t = 600, value_name = "MIB")]
    write: u64,
    /// How many states are opened at a time.
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u16).range(1..=64))]
    jobs: u16,
    /// Makes the same messages and chooses the same cuts again, of the log that the run makes; drawn and printed unless given.
    #[arg(long)]
    seed: Option<u64>,
    /// Leaves the files of states with findings, and the relay's log of them, in this folder.
    #[arg(long, value_name = "DIR")]
    keep: Option<PathBuf>,
}

/// Runs all; false if a promise did not hold.
pub(crate) async fn run(options: &Options) -> anyhow::Result<bool> {
    let seed = options.seed.unwrap_or_else(|| StdRng::from_os_rng().random());
    let note = options.program.sabotage_note();
    println!(
        "powercut: seed {seed}, {} runs, {} states of each{note}",
        options.runs, options.states
    );
    let (mut total, mut refused) = (Account::default(), 0);
    for number in 0..options.runs {
        let (account, more) = one_run(options, seed, number)
            .await
            .with_context(|| format!("run {number}, seed {seed}"))?;
        total.add(&account);
        refused += more;
    }
    for finding in total.findings().take(20) {
        println!("found: {finding}");
    }
    let holds = total.holds() && refused == 0;
    println!(
        "powercut: {} states, {} messages acknowledged, {} recipients lost, {refused} stores refused, duplicates {:?}: {} (seed {seed})",
        options.runs * options.states,
        total.messages,
        total.lost.len(),
        total.explained,
        if holds {
            total.verdict()
        } else {
            "A PROMISE DID NOT HOLD"
        }
    );
    Ok(holds)
}

/// The balance of all states of a run, and how many stores were refused.
async fn one_run(options: &Options, seed: u64, number: usize) -> anyhow::Result<(Account, usize)> {
    let mut rng = SmallRng::seed_from_u64(seed.wrapping_add(number as u64));
    let plan = Plan {
        seed: rng.random(),
        sizes: Sizes::Mixed,
    };
    let begun = Instant::now();
    let fails = number % 2 == 1;
    let recording = Recording::make(&options.program, plan, options.write << 20, fails).await?;
    println!("run {number}: {recording}, {} s", begun.elapsed().as_secs());
    println!(
        "{:>5} {:>9} {:>8} {:>7} {:>7} {:>7} {:>7} {:>5} {:>8} {:>11}  duplicates by cause",
        "state",
        "operation",
        "unsynced",
        "acked",
        "before",
        "found",
        "queued",
        "lost",
        "damaged",
        "unexplained"
    );
    let recording = Arc::new(recording);
    let (mut total, mut refused) = (Account::default(), 0);
    let mut tell = |outcome: Outcome| {
        println!("{outcome}");
        refused += usize::from(outcome.refused.is_some());
        total.add(&outcome.account);
    };
    let mut platter = Platter::new();
    let mut played = 0;
    let mut opened = JoinSet::new();
    for (state, position) in recording.cuts(options.states, &mut rng).into_iter().enumerate() {
        recording.log[played..position]
            .iter()
            .for_each(|logged| platter.apply(&logged.op));
        played = position;
        let cut = Cut {
            number: state,
            position,
            at_risk: platter.at_risk(),
            volume: platter.cut(&mut rng),
            again: rng.random_ratio(1, 4),
            rng: SmallRng::seed_from_u64(rng.random()),
        };
        if opened.len() >= usize::from(options.jobs)
            && let Some(done) = opened.join_next().await
        {
            tell(done??);
        }
        let (program, keep) = (options.program.clone(), options.keep.clone());
        opened.spawn(state::open(program, keep, recording.clone(), cut));
    }
    while let Some(done) = opened.join_next().await {
        tell(done??);
    }
    Ok((total, refused))
}
