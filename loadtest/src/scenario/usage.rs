//! What a program costs: it and all that it has started, read from /proc, and from its control group where it has one.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::Context as _;

use super::group;

/// Ticks of a CPU second in /proc: fixed on x86-64 and aarch64, whatever the kernel's own.
const TICKS: f64 = 100.0;
/// How often memory is looked at. Each look costs the looker, not the program.
const LOOK_EVERY: Duration = Duration::from_millis(200);

/// Since the program's start.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Usage {
    /// User and system, of all threads, and of children that have ended: in a control group all, else those that were waited for.
    pub(crate) cpu_seconds: f64,
    /// Octets that it caused to be written to disks; children that have ended count where they were waited for.
    pub(crate) written: u64,
    /// When this was so, since 1970.
    pub(crate) at: Duration,
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
            usage.cpu_seconds = of_all;
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

/// Watches memory until dropped.
pub(crate) struct Memory {
    peak: Arc<AtomicU64>,
    over: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Memory {
    /// Of the process and its descendants: what they have for themselves, and their share of what they have with others (PSS).
    pub(crate) fn watch(root: u32) -> anyhow::Result<Self> {
        let (peak, over) = (Arc::<AtomicU64>::default(), Arc::<AtomicBool>::default());
        let (highest, end) = (Arc::clone(&peak), Arc::clone(&over));
        let thread = std::thread::Builder::new().name("memory".into()).spawn(move || {
            while !end.load(Ordering::Relaxed) {
                let members = family(root).unwrap_or_default();
                let kib: u64 = members
                    .iter()
                    .filter_map(|(pid, _)| field(&format!("/proc/{pid}/smaps_rollup"), "Pss:"))
                    .sum();
                highest.fetch_max(kib << 10, Ordering::Relaxed);
                std::thread::sleep(LOOK_EVERY);
            }
        })?;
        Ok(Self {
            peak,
            over,
            thread: Some(thread),
        })
    }

    /// The most octets seen.
    pub(crate) fn peak(&self) -> u64 {
        self.peak.load(Ordering::Relaxed)
    }
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
        let memory = Memory::watch(child.id()).unwrap();
        let begun = std::time::Instant::now();
        while Usage::of(child.id()).unwrap().cpu_seconds < 0.03 || memory.peak() == 0 {
            assert!(
                begun.elapsed() < Duration::from_secs(30),
                "no ticks, or no memory"
            );
            std::thread::yield_now();
        }
        assert!(Usage::of(std::process::id()).unwrap().cpu_seconds >= 0.03);
        child.kill().unwrap();
        child.wait().unwrap();
    }
}
