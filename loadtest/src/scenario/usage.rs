//! What a program costs: it and all that it has started, read from /proc, and from its control group where it has one.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::Context as _;
use parking_lot::Mutex;
use serde::Serialize;

use crate::load::record::Zero;

use super::group;

/// Ticks of a CPU second in /proc: fixed on x86-64 and aarch64, whatever the kernel's own.
const TICKS: f64 = 100.0;
/// How often memory is looked at. Of several processes the peak of a short run may go unseen.
const LOOK_EVERY: Duration = Duration::from_millis(500);
const LOOK_AT_FIRST: Duration = Duration::from_millis(200);
/// For so long after the run's zero.
const FIRST: Duration = Duration::from_secs(5);
/// A day's.
const MAX_SAMPLES: usize = 172_800;

/// Since the program's start.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Usage {
    /// User and system, of all threads, and of children that have ended: in a control group all, else those that were waited for.
    pub(crate) cpu_seconds: f64,
    /// Octets that it caused to be written to disks; children that have ended count where they were waited for.
    pub(crate) written: u64,
    /// Where the seconds are from.
    pub(crate) cpu_from: CpuFrom,
    /// When this was so, since 1970.
    pub(crate) at: Duration,
}

/// Where a program's CPU time is read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum CpuFrom {
    /// By hundredths of a second, without children that nobody waited for.
    #[default]
    Proc,
    /// A control group's, by microseconds, of all who were ever in it.
    Cgroup,
}

impl Usage {
    /// Of the process and its descendants that live.
    pub(crate) fn of(root: u32) -> anyhow::Result<Self> {
        let mut usage = Self {
            at: SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default(),
            ..Self::default()
        };
        for (pid, ticks) in family(root).context("reading /proc")? {
            usage.cpu_seconds += ticks as f64 / TICKS;
            usage.written += field(&format!("/proc/{pid}/io"), "write_bytes:").unwrap_or(0);
        }
        if let Some(of_all) = group::around(root).and_then(|group| group::usage(&group)) {
            (usage.cpu_seconds, usage.cpu_from) = (of_all, CpuFrom::Cgroup);
        }
        Ok(usage)
    }
}

/// The process, its living descendants, and who else is in its control group.
pub(super) fn members(root: u32) -> anyhow::Result<Vec<u32>> {
    let family = family(root).context("reading /proc")?;
    Ok(family.into_iter().map(|(pid, _)| pid).collect())
}

/// The process and its living descendants, each with its ticks.
fn family(root: u32) -> std::io::Result<Vec<(u32, u64)>> {
    let mut all = HashMap::new();
    for entry in fs::read_dir("/proc")? {
        let Ok(pid) = entry?.file_name().to_string_lossy().parse::<u32>() else {
            continue;
        };
        // It may have ended by now.
        let Ok(stat) = fs::read_to_string(format!("/proc/{pid}/stat")) else {
            continue;
        };
        if let Some((parent, ticks)) = parse(&stat) {
            all.insert(pid, (parent, ticks));
        }
    }
    // Daemons leave their parents.
    let group = group::around(root).and_then(|group| group::members(&group));
    let mut members = HashSet::from([root]);
    members.extend(group.unwrap_or_default());
    loop {
        let before = members.len();
        for (pid, (parent, _)) in &all {
            if members.contains(parent) {
                members.insert(*pid);
            }
        }
        if members.len() == before {
            break;
        }
    }
    let ticks = |pid: u32| Some((pid, all.get(&pid)?.1));
    Ok(members.into_iter().filter_map(ticks).collect())
}

/// The parent, and the ticks of the process and of children it has waited for (proc(5): fields 4 and 14 to 17).
fn parse(stat: &str) -> Option<(u32, u64)> {
    // The name, in parentheses, may hold anything.
    let fields: Vec<&str> = stat[stat.rfind(')')? + 1..].split_ascii_whitespace().collect();
    let parent = fields.get(1)?.parse().ok()?;
    let ticks = fields.get(11..15)?.iter().map(|ticks| ticks.parse::<u64>());
    Some((parent, ticks.sum::<Result<u64, _>>().ok()?))
}

fn field(file: &str, name: &str) -> Option<u64> {
    let text = fs::read_to_string(file).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    line.trim().trim_end_matches(" kB").trim().parse().ok()
}

/// How a program was at a moment.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sample {
    /// Since the run's zero.
    pub(crate) at: Duration,
    /// Octets: what one process alone has resident, shared libraries included (RSS); of several what each has for itself, and its share of
    /// what it has with others (PSS).
    pub(crate) memory: u64,
    /// The most so far: the kernel's own mark of one process alone, else as `memory`.
    most: u64,
    pub(crate) cpu_seconds: f64,
}

/// Watches memory and CPU until dropped.
pub(crate) struct Memory {
    samples: Arc<Mutex<Vec<Sample>>>,
    root: Arc<AtomicU32>,
    over: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Memory {
    /// Of the process and its descendants.
    pub(crate) fn watch(root: u32, zero: Zero) -> anyhow::Result<Self> {
        let samples = Arc::<Mutex<Vec<Sample>>>::default();
        let (root, over) = (Arc::new(AtomicU32::new(root)), Arc::<AtomicBool>::default());
        let (kept, of, end) = (Arc::clone(&samples), Arc::clone(&root), Arc::clone(&over));
        let thread = std::thread::Builder::new().name("memory".into()).spawn(move || {
            while !end.load(Ordering::Relaxed) {
                if let Some(sample) = sample(of.load(Ordering::Relaxed), zero) {
                    let mut kept = kept.lock();
                    // A run of a day and more keeps what it has.
                    if kept.len() < MAX_SAMPLES {
                        kept.push(sample);
                    }
                }
                let is_first = zero.elapsed() < FIRST;
                std::thread::sleep(if is_first { LOOK_AT_FIRST } else { LOOK_EVERY });
            }
        })?;
        Ok(Self {
            samples,
            root,
            over,
            thread: Some(thread),
        })
    }

    /// Of this process from here on.
    pub(crate) fn follow(&self, root: u32) {
        self.root.store(root, Ordering::Relaxed);
    }

    /// The most octets seen.
    pub(crate) fn peak(&self) -> u64 {
        let samples = self.samples.lock();
        samples.iter().map(|sample| sample.most).max().unwrap_or(0)
    }

    pub(crate) fn samples(&self) -> Vec<Sample> {
        self.samples.lock().clone()
    }
}

/// Of a process that lives.
fn sample(root: u32, zero: Zero) -> Option<Sample> {
    let members = family(root).ok()?;
    let (memory, most) = match members[..] {
        // To add up its share the kernel walks through all pages of a process, and lets nobody else have the processor meanwhile: 7 ms of a
        // relay of 200 MiB, twice a second, are one message in a hundred that waits for it.
        [(alone, _)] => resident(alone)?,
        _ => {
            let memory = shares(&members);
            (memory, memory)
        }
    };
    let ticks: u64 = members.iter().map(|(_, ticks)| ticks).sum();
    (memory > 0).then(|| Sample {
        at: zero.elapsed(),
        memory,
        most,
        cpu_seconds: ticks as f64 / TICKS,
    })
}

/// Octets that a process has resident, and the most that it had.
fn resident(pid: u32) -> Option<(u64, u64)> {
    let status = format!("/proc/{pid}/status");
    Some((field(&status, "VmRSS:")? << 10, field(&status, "VmHWM:")? << 10))
}

/// Octets that processes have for themselves, and their share of what they have with others (PSS).
fn shares(members: &[(u32, u64)]) -> u64 {
    let pss = |pid: &u32| field(&format!("/proc/{pid}/smaps_rollup"), "Pss:");
    let kib: u64 = members.iter().filter_map(|(pid, _)| pss(pid)).sum();
    kib << 10
}

/// Octets that a process and its descendants have now for themselves, and their share of what they have with others (PSS).
pub(crate) fn memory_of(root: u32) -> Option<u64> {
    let memory = shares(&family(root).ok()?);
    (memory > 0).then_some(memory)
}

/// Descriptors that a process has open.
pub(crate) fn descriptors(pid: u32) -> Option<usize> {
    Some(fs::read_dir(format!("/proc/{pid}/fd")).ok()?.count())
}

impl Drop for Memory {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_of_the_process_and_its_waited_children() {
        let stat = "17 (a) b (c) S 5 17 17 0 -1 4194560 100 200 0 0 11 22 33 44 20 0 3 0 999 1 2";
        assert_eq!(parse(stat), Some((5, 110)));
        assert_eq!(parse("17 (a) S 5"), None);
        assert_eq!(parse(""), None);
    }

    #[test]
    fn children_count() {
        let mut child = std::process::Command::new("sh")
            .args(["-c", "i=0; while [ $i -lt 200000 ]; do i=$((i+1)); done; read x"])
            .stdin(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        let memory = Memory::watch(child.id(), Zero::now()).unwrap();
        let begun = std::time::Instant::now();
        while Usage::of(child.id()).unwrap().cpu_seconds < 0.03 || memory.peak() == 0 {
            assert!(
                begun.elapsed() < Duration::from_secs(30),
                "no ticks, or no memory"
            );
            std::thread::yield_now();
        }
        assert!(Usage::of(std::process::id()).unwrap().cpu_seconds >= 0.03);
        assert!(memory_of(child.id()).is_some() && descriptors(child.id()) >= Some(3));
        child.kill().unwrap();
        child.wait().unwrap();
    }

    #[test]
    fn the_peak_of_one_process_is_the_kernels_though_nobody_looked_then() {
        let mut child = std::process::Command::new("sh")
            .args([
                "-c",
                "x=$(head -c 30000000 /dev/zero | tr '\\0' x); unset x; echo; read y",
            ])
            .stdin(std::process::Stdio::piped())
            .stdout(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = [0];
        std::io::Read::read_exact(child.stdout.as_mut().unwrap(), &mut line).unwrap();
        let sample = sample(child.id(), Zero::now()).unwrap();
        assert!(
            sample.most > 30_000_000 && sample.memory < sample.most / 2,
            "{sample:?}"
        );
        child.kill().unwrap();
        child.wait().unwrap();
    }
}
