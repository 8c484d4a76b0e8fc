//! A control group (cgroup, version 2) around a relay: what processes cost that came and went is still known there, even of those that
//! nobody waits for and that /proc forgets, such as Exim's deliveries.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};

/// What our groups' names begin with.
const PREFIX: &str = "postrider-loadtest-";
/// How long what was killed may take to be gone.
const PATIENCE: Duration = Duration::from_secs(10);
const LOOK_EVERY: Duration = Duration::from_millis(10);

/// Ends all in it when dropped, and goes.
#[derive(Debug)]
pub(super) struct Group {
    folder: PathBuf,
}

impl Group {
    /// Takes in a process that was just started, and with it all that it will start. An error where there are no such groups, or we
    /// may not make one: that takes root, or a group that was delegated to us.
    pub(super) fn around(pid: u32) -> anyhow::Result<Self> {
        let own = fs::read_to_string("/proc/self/cgroup").context("/proc/self/cgroup")?;
        let folder = folder_of(&own)
            .context("no version 2 of control groups")?
            .join(format!("{PREFIX}{pid}"));
        fs::create_dir(&folder).with_context(|| folder.display().to_string())?;
        let group = Self { folder };
        ensure!(usage(&group.folder).is_some(), "cpu.stat tells no usage");
        group.take(pid)?;
        Ok(group)
    }

    /// Takes in one more.
    pub(super) fn take(&self, pid: u32) -> anyhow::Result<()> {
        let members = self.folder.join("cgroup.procs");
        fs::write(&members, pid.to_string()).with_context(|| members.display().to_string())
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        // Older kernels have no such file; what is left in the group then keeps it from going.
        let _ = fs::write(self.folder.join("cgroup.kill"), "1");
        let begun = Instant::now();
        while fs::remove_dir(&self.folder).is_err() && begun.elapsed() < PATIENCE {
            std::thread::sleep(LOOK_EVERY);
        }
    }
}

/// The group of ours that a process is in.
pub(super) fn around(pid: u32) -> Option<PathBuf> {
    let folder = folder_of(&fs::read_to_string(format!("/proc/{pid}/cgroup")).ok()?)?;
    let name = folder.file_name()?.to_string_lossy().into_owned();
    name.starts_with(PREFIX).then_some(folder)
}

/// Seconds of CPU that all who were ever in it have used.
pub(super) fn usage(folder: &Path) -> Option<f64> {
    let text = fs::read_to_string(folder.join("cpu.stat")).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("usage_usec "))?;
    Some(line.trim().parse::<f64>().ok()? / 1e6)
}

/// Who is in it now.
pub(super) fn members(folder: &Path) -> Option<Vec<u32>> {
    let text = fs::read_to_string(folder.join("cgroup.procs")).ok()?;
    Some(text.lines().filter_map(|line| line.parse().ok()).collect())
}

/// Where the group is that /proc/PID/cgroup names.
fn folder_of(cgroup: &str) -> Option<PathBuf> {
    let path = cgroup.lines().find_map(|line| line.strip_prefix("0::/"))?;
    let mounts = fs::read_to_string("/proc/self/mounts").ok()?;
    let root = mounts.lines().find_map(|line| {
        let mut fields = line.split(' ').skip(1);
        let at = fields.next()?;
        (fields.next() == Some("cgroup2")).then_some(at)
    })?;
    Some(Path::new(root).join(path))
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use super::*;
    use crate::scenario::usage::{CpuFrom, Usage};

    /// Its children ignore SIGCHLD, so that the kernel forgets what they used; where groups can't be made this shows nothing, and says so.
    #[test]
    fn children_that_nobody_waits_for_count() {
        let mut child = Command::new("python3")
            .args([
                "-c",
                "import os, signal, sys, time\n\
                 sys.stdin.readline()\n\
                 signal.signal(signal.SIGCHLD, signal.SIG_IGN)\n\
                 if os.fork() == 0:\n    \
                     while time.process_time() < 0.3: pass\n    \
                     os._exit(0)\n\
                 try: os.wait()\n\
                 except ChildProcessError: pass\n\
                 print('done', flush=True)\n\
                 sys.stdin.readline()\n",
            ])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let pid = child.id();
        let group = match Group::around(pid) {
            Ok(group) => group,
            Err(error) => {
                eprintln!("NOT SHOWN: no control group: {error:#}");
                child.kill().unwrap();
                child.wait().unwrap();
                return;
            }
        };
        assert_eq!(around(pid).unwrap(), group.folder);
        assert_eq!(members(&group.folder).unwrap(), [pid]);
        let before = Usage::of(pid).unwrap().cpu_seconds;
        let mut input = child.stdin.take().unwrap();
        std::io::Write::write_all(&mut input, b"\n").unwrap();
        let mut line = String::new();
        let mut output = std::io::BufReader::new(child.stdout.take().unwrap());
        std::io::BufRead::read_line(&mut output, &mut line).unwrap();
        assert_eq!(line, "done\n");
        let after = Usage::of(pid).unwrap();
        assert!(after.cpu_seconds - before >= 0.3 && after.cpu_from == CpuFrom::Cgroup);
        let folder = group.folder.clone();
        drop(group);
        assert!(!folder.exists(), "the group is still there");
        child.wait().unwrap();
    }
}
