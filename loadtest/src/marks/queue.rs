//! The marks of the durable queue.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Context as _;

use super::program::{Program, Start};
use super::runs::{self, Values, program};
use super::{Common, Mark, Told, median};

/// Messages of the full size, and of the small one they are compared with.
const MANY: f64 = 5_000_000.0;
const FEW: u64 = 5_000;
/// Destinations of both.
const DOMAINS: u64 = 1_000;
/// Units that a shard reads of a queue at a time.
const PAGE: u64 = 128;
/// Queues of one message each, and how many of them are due.
const QUEUES: f64 = 500_000.0;
const DUE: u64 = 1_000;
/// Units deleted at a queue's head; messages deleted by an operator.
const TOMBSTONES: f64 = 1_000_000.0;
const DELETED: f64 = 1_000_000.0;
/// Octets of WAL that a killed store is left with. RocksDB flushes 128 MiB of memtables before its WALs are 192 MiB, their cap: of messages of
/// 1 KiB they are some 150 MiB when the second half of the memtables is full and the first is not flushed yet. This is a little below.
const WAL: f64 = 140.0 * MIB;
/// Messages that pass through a relay before its memory is looked at: more than memtables hold, which fill up with a backlog or without.
const PASS: u64 = 200_000;
const MIB: f64 = 1_048_576.0;

struct Bench<'a> {
    common: &'a Common,
    figures: PathBuf,
    folder: PathBuf,
}

pub(super) fn measure(common: &Common, told: &mut Told) -> anyhow::Result<()> {
    let figures = program(common.figures.as_deref(), "queue-figures")?;
    let postrider = program(common.postrider.as_deref(), "postrider")?;
    let folder = match &common.folder {
        Some(folder) => tempfile::tempdir_in(folder)?,
        None => tempfile::tempdir()?,
    };
    let bench = Bench {
        common,
        figures,
        folder: folder.path().to_owned(),
    };
    bench.commit(told)?;
    bench.life(told)?;
    bench.tombstones(told)?;
    let program = Program::new(&postrider, &bench.folder)?;
    bench.backlog(&program, told)?;
    bench.many_queues(&program, told)?;
    bench.deletion(&program, told)
}

impl Bench<'_> {
    fn wants(&self, name: &str) -> bool {
        self.common.wants(name)
    }

    fn scaled(&self, full: f64) -> u64 {
        (full * self.common.scale).max(1_000.0) as u64
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    fn run(&self, arguments: &[String], killed: bool) -> anyhow::Result<Values> {
        runs::figures(&self.figures, arguments, killed)
    }

    /// Medians of several runs, each on a store of its own.
    fn medians(&self, command: &str, arguments: &[String], runs: usize) -> anyhow::Result<Values> {
        let mut all = Vec::new();
        for _ in 0..runs {
            let store = self.path(command);
            fs::create_dir_all(&store)?;
            let mut whole = vec![command.to_owned(), store.display().to_string()];
            whole.extend_from_slice(arguments);
            all.push(self.run(&whole, false)?);
            fs::remove_dir_all(&store)?;
        }
        Ok(medians(all))
    }

    /// The median of what is measured of copies of a store, a run each.
    fn of_copies(&self, store: &Path, measure: impl Fn(&Path) -> anyhow::Result<f64>) -> anyhow::Result<f64> {
        let mut all = Vec::new();
        for _ in 0..self.common.runs {
            let copy = self.path("copy");
            copy_store(store, &copy)?;
            all.push(measure(&copy)?);
            fs::remove_dir_all(&copy)?;
        }
        Ok(median(all))
    }

    fn commit(&self, told: &mut Told) -> anyhow::Result<()> {
        if !self.wants("commit") {
            return Ok(());
        }
        let values = self.medians("commit", &[], self.common.runs)?;
        let value = |name: &str| values.get(name).copied().unwrap_or(f64::NAN);
        told.figure(
            "commit: 64 waiting / append+fdatasync",
            value("accept_64_ratio"),
            Mark::AtLeast(0.45),
            "",
        )?;
        told.figure(
            "commit: over three flushes",
            value("accept_64_flushes_ratio"),
            Mark::AtLeast(0.40),
            "",
        )?;
        told.figure(
            "commit: one waiting, times the floor",
            value("accept_1_ratio"),
            Mark::AtMost(1.6),
            "",
        )?;
        told.figure(
            "commit: CPU of accept and settle",
            value("cpu_microseconds"),
            Mark::AtMost(60.0),
            "us",
        )
    }

    fn life(&self, told: &mut Told) -> anyhow::Result<()> {
        if !self.wants("life") {
            return Ok(());
        }
        let values = self.medians("life", &[], self.common.runs)?;
        let written = values.get("written_ratio").copied().unwrap_or(f64::NAN);
        told.figure("life: octets written / accepted", written, Mark::AtMost(1.3), "")
    }

    fn tombstones(&self, told: &mut Told) -> anyhow::Result<()> {
        if !self.wants("tombstones") {
            return Ok(());
        }
        let messages = ["--messages".to_owned(), self.scaled(TOMBSTONES).to_string()];
        let values = self.medians("tombstones", &messages, self.common.runs)?;
        for (name, value) in [
            ("tombstones: next due", "next_due_first_microseconds"),
            (
                "tombstones: next due after a restart",
                "next_due_restarted_microseconds",
            ),
        ] {
            let micros = values.get(value).copied().unwrap_or(f64::NAN);
            told.figure(name, micros / 1_000.0, Mark::AtMost(1.0), "ms")?;
        }
        Ok(())
    }

    /// Makes a store of so many messages.
    fn fill(&self, name: &str, messages: u64, more: &[(&str, u64)]) -> anyhow::Result<PathBuf> {
        Ok(self.fill_and_end(name, messages, more, false)?.0)
    }

    /// The same with a WAL of messages that have left, killed before that is flushed; the octets of the WAL too.
    fn fill_and_kill(&self, name: &str, messages: u64) -> anyhow::Result<(PathBuf, f64)> {
        let wal = (WAL * self.common.scale.min(1.0)).max(MIB) as u64;
        let (store, values) =
            self.fill_and_end(name, messages, &[("domains", DOMAINS), ("wal", wal)], true)?;
        let wal = values.get("wal_bytes").copied();
        Ok((store, wal.context("no wal_bytes of a killed store")?))
    }

    fn fill_and_end(
        &self,
        name: &str,
        messages: u64,
        more: &[(&str, u64)],
        killed: bool,
    ) -> anyhow::Result<(PathBuf, Values)> {
        let store = self.path(name);
        let mut arguments = vec!["fill".to_owned(), store.display().to_string()];
        let all = [("messages", messages)];
        for (name, value) in all.iter().chain(more) {
            arguments.extend([format!("--{name}"), value.to_string()]);
        }
        if killed {
            arguments.push("--abort".to_owned());
        }
        let values = self.run(&arguments, killed)?;
        Ok((store, values))
    }

    fn probe(&self, store: &Path) -> anyhow::Result<Values> {
        let copy = self.path("probe");
        let mut all = Vec::new();
        for _ in 0..self.common.runs {
            copy_store(store, &copy)?;
            all.push(self.run(&["probe".to_owned(), copy.display().to_string()], false)?);
            fs::remove_dir_all(&copy)?;
        }
        Ok(medians(all))
    }

    fn backlog(&self, program: &Program, told: &mut Told) -> anyhow::Result<()> {
        if !self.wants("backlog") {
            return Ok(());
        }
        let clean = [("domains", DOMAINS)];
        let many = self.scaled(MANY);
        let (few, _) = self.fill_and_kill("few", FEW)?;
        // Large first: what is short of disk is told at once. The killed store is the clean one with a WAL behind it.
        let big = self.fill("many", many, &clean)?;
        // What a shard asks for is a page, so that there is one in each queue of the store that is compared, all in one WAL.
        let paged = [("domains", DOMAINS), ("bytes", 64)];
        let (empty, pages, full) = (
            self.probe(&self.fill("empty", DOMAINS, &clean)?)?,
            self.probe(&self.fill("pages", DOMAINS * PAGE, &paged)?)?,
            self.probe(&big)?,
        );
        let of = |values: &Values, name: &str| values.get(name).copied().unwrap_or(f64::NAN);
        let rate = of(&full, "accept_per_second") / of(&empty, "accept_per_second");
        told.figure(
            "backlog: accepts / those of an empty store",
            rate,
            Mark::AtLeast(0.7),
            "",
        )?;
        let page = of(&pages, "page_microseconds") / of(&full, "page_microseconds");
        told.figure(
            "backlog: a page of next due / that of few",
            page,
            Mark::AtLeast(0.7),
            "",
        )?;

        // A page is what the relay asks for; of one unit alone each sorted run of tables that is looked into shows.
        let one = of(&empty, "next_due_microseconds") / of(&full, "next_due_microseconds");
        told.figure(
            "backlog: one next due / that of an empty store",
            one,
            Mark::AtLeast(0.7),
            "",
        )?;

        let starts =
            |store: &Path| self.of_copies(store, |copy| program.start(copy, DOMAINS)?.until_first_delivery());
        let after_stop = starts(&big)?;
        told.figure(
            "backlog: first delivery after a clean stop",
            after_stop,
            Mark::AtMost(2.0),
            "s",
        )?;
        let small = starts(&few)?;
        let memory = |store: &Path| -> anyhow::Result<f64> {
            self.of_copies(store, |copy| {
                let resident = program.start(copy, DOMAINS)?.resident_after(PASS)?;
                Ok(resident as f64)
            })
        };
        // Closed as the large one is: what a start reads back of a long WAL is no part of the base.
        let calm = self.fill("calm", FEW, &clean)?;
        let (with_many, with_few) = (memory(&big)?, memory(&calm)?);
        told.figure(
            "backlog: memory over that of 5,000",
            (with_many - with_few) / MIB,
            Mark::AtMost(64.0),
            "MiB",
        )?;
        // The same store, with a WAL as long as that of the small one.
        let (_, wal) = self.fill_and_kill("many", 1)?;
        let after_kill = starts(&big)?;
        told.figure(
            &format!("backlog: first delivery after kill -9, WAL {:.0} MiB", wal / MIB),
            after_kill,
            Mark::AtMost(2.0),
            "s",
        )?;
        told.figure(
            "backlog: times that of 5,000",
            after_kill / small,
            Mark::AtMost(1.5),
            "",
        )?;
        for store in [big, few, calm, self.path("empty"), self.path("pages")] {
            fs::remove_dir_all(store)?;
        }
        Ok(())
    }

    fn many_queues(&self, program: &Program, told: &mut Told) -> anyhow::Result<()> {
        if !self.wants("queues") {
            return Ok(());
        }
        let queues = self.scaled(QUEUES);
        let few = self.fill("base", DUE, &[("domains", DUE)])?;
        let peak = |store: &Path| {
            self.of_copies(store, |copy| {
                let resident = program.start(copy, DUE)?.peak_once_gone(DUE)?;
                Ok(resident as f64)
            })
        };
        let base = peak(&few)?;
        fs::remove_dir_all(&few)?;
        let many = self.fill("queues", queues, &[("domains", queues), ("due", DUE)])?;
        let resident = peak(&many)?;
        fs::remove_dir_all(&many)?;
        let more = (resident - base) / MIB;
        told.figure(
            "queues: peak memory of 500,000 over the base, a minute after those due",
            more,
            Mark::AtMost(64.0),
            "MiB",
        )
    }

    fn deletion(&self, program: &Program, told: &mut Told) -> anyhow::Result<()> {
        if !self.wants("deletion") {
            return Ok(());
        }
        let mut waits = Vec::new();
        // Each on a store of its own: to remove a table that another store shares frees nothing, and takes no time.
        for _ in 0..self.common.runs {
            let shape = [("domains", DOMAINS), ("due", 0)];
            let store = self.fill("deletion", self.scaled(DELETED), &shape)?;
            waits.push(program.start(&store, DOMAINS)?.accepts_while_deleting()?);
            fs::remove_dir_all(&store)?;
        }
        told.figure(
            "deletion: longest accept / usual p99",
            median(waits),
            Mark::AtMost(5.0),
            "",
        )
    }
}

impl Program {
    fn start(&self, store: &Path, domains: u64) -> anyhow::Result<Start<'_>> {
        Start::new(self, store, domains)
    }
}

/// Of each figure, the median of several runs.
fn medians(runs: Vec<Values>) -> Values {
    let mut all: HashMap<String, Vec<f64>> = HashMap::new();
    for (name, value) in runs.into_iter().flatten() {
        all.entry(name).or_default().push(value);
    }
    all.into_iter().map(|(name, of)| (name, median(of))).collect()
}

/// A copy that shares what never changes: tables and blob files by hard links, the rest as copies.
fn copy_store(from: &Path, to: &Path) -> anyhow::Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let (path, target) = (entry.path(), to.join(entry.file_name()));
        let never_changes = path
            .extension()
            .is_some_and(|name| name == "sst" || name == "blob");
        if entry.file_type()?.is_dir() {
            copy_store(&path, &target)?;
        } else if never_changes {
            fs::hard_link(&path, &target)?;
        } else {
            fs::copy(&path, &target)?;
        }
    }
    Ok(())
}
