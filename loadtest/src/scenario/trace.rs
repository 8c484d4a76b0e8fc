//! What a relay asks of the disk, by its system calls: a run of its own under strace, which slows it down, so that nothing else is
//! measured there.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use rustix::process::{Pid, Signal, kill_process};

use super::usage::members;

/// What makes what was written durable, what writes, and what would hide either from us.
const CALLS: &str = "trace=fsync,fdatasync,sync,syncfs,msync,open,openat,creat,write,writev,pwrite64,pwritev,pwritev2,\
                     sendfile,copy_file_range,splice,io_uring_setup";
const PATIENCE: Duration = Duration::from_secs(30);
const LOOK_EVERY: Duration = Duration::from_millis(5);
/// The longest trace that is read.
const MAX_TRACE: u64 = 1 << 30;

/// An strace at work; it lets go when dropped.
pub(super) struct Tracer {
    child: Child,
}

impl Tracer {
    /// Attaches to a process, all that it has started and all that it will start.
    pub(super) fn attach(pid: u32, file: &Path) -> anyhow::Result<Self> {
        let mut command = Command::new("strace");
        command
            .args([
                "-f",
                "-qq",
                "-y",
                "-ttt",
                "-s",
                "0",
                "-e",
                "signal=none",
                "-e",
                CALLS,
                "-o",
            ])
            .arg(file)
            .stdin(Stdio::null());
        for member in members(pid)? {
            command.args(["-p", &member.to_string()]);
        }
        let mut tracer = Self {
            child: command.spawn().context("strace")?,
        };
        let begun = Instant::now();
        while !members(pid)?.into_iter().all(is_traced) {
            ensure!(tracer.child.try_wait()?.is_none(), "strace has ended");
            ensure!(begun.elapsed() < PATIENCE, "strace does not get hold of all");
            std::thread::sleep(LOOK_EVERY);
        }
        Ok(tracer)
    }
}

impl Drop for Tracer {
    fn drop(&mut self) {
        let pid = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw);
        if let (Ok(None), Some(pid)) = (self.child.try_wait(), pid) {
            let _ = kill_process(pid, Signal::INT);
        }
        let _ = self.child.wait();
    }
}

/// All threads of it; what has ended is no concern.
fn is_traced(pid: u32) -> bool {
    let Ok(tasks) = fs::read_dir(format!("/proc/{pid}/task")) else {
        return true;
    };
    tasks.flatten().all(|task| {
        fs::read_to_string(task.path().join("status"))
            .is_ok_and(|status| !status.contains("\nTracerPid:\t0\n"))
    })
}

/// What was asked for in a span of time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Calls {
    pub(super) syncs: u64,
    /// Octets written to files.
    pub(super) written: u64,
    /// Some may have gone by way of io_uring, where strace does not see them.
    pub(super) unseen: bool,
}

impl Calls {
    /// Those begun between two moments, since 1970.
    pub(super) fn read(file: &Path, between: (Duration, Duration)) -> anyhow::Result<Self> {
        let octets = fs::metadata(file)?.len();
        ensure!(octets <= MAX_TRACE, "a trace of {octets} octets");
        Ok(Self::count(&String::from_utf8_lossy(&fs::read(file)?), between))
    }

    fn count(trace: &str, (from, until): (Duration, Duration)) -> Self {
        let mut calls = Self::default();
        let mut durable = HashSet::new();
        let mut begun: HashMap<&str, (f64, &str)> = HashMap::new();
        for line in trace.lines() {
            let mut fields = line.trim_start().splitn(2, ' ');
            let (Some(thread), Some(rest)) = (fields.next(), fields.next()) else {
                continue;
            };
            let Some((at, call)) = rest.trim_start().split_once(' ') else {
                continue;
            };
            let Ok(at) = at.parse::<f64>() else { continue };
            if let Some(head) = call.strip_suffix(" <unfinished ...>") {
                begun.insert(thread, (at, head));
                continue;
            }
            let Some((head, result)) = call.rsplit_once(" = ") else {
                continue;
            };
            let (at, head) = if call.starts_with("<... ") {
                match begun.remove(thread) {
                    Some(begun) => begun,
                    None => continue,
                }
            } else {
                (at, head)
            };
            let done = result
                .split(|c: char| !c.is_ascii_digit())
                .next()
                .unwrap_or_default();
            // Failed, or never heard of again.
            let Ok(done) = done.parse::<u64>() else { continue };
            let Some((name, arguments)) = head.split_once('(') else {
                continue;
            };
            let counts = (from.as_secs_f64()..=until.as_secs_f64()).contains(&at);
            match name {
                "open" | "openat" if arguments.contains("O_SYNC") || arguments.contains("O_DSYNC") => {
                    durable.extend(path(result).map(str::to_owned));
                }
                "io_uring_setup" => calls.unseen = true,
                "msync" if !arguments.contains("MS_SYNC") => {}
                "fsync" | "fdatasync" | "sync" | "syncfs" | "msync" if counts => calls.syncs += 1,
                "write" | "writev" | "pwrite64" | "pwritev" | "pwritev2" if counts => {
                    if let Some(path) = path(arguments) {
                        calls.written += done;
                        let asks = durable.contains(path)
                            || arguments.contains("RWF_DSYNC")
                            || arguments.contains("RWF_SYNC");
                        calls.syncs += u64::from(asks);
                    }
                }
                // Where to: the first argument, the second of two descriptors.
                "sendfile" if counts && path(arguments).is_some() => calls.written += done,
                "copy_file_range" | "splice" if counts => {
                    let to = arguments.split(", ").nth(2).unwrap_or_default();
                    calls.written += path(to).map_or(0, |_| done);
                }
                _ => {}
            }
        }
        calls
    }
}

/// The file of a descriptor as strace shows it, `5</var/spool/x>`; none for sockets, pipes and devices.
fn path(descriptor: &str) -> Option<&str> {
    let (number, rest) = descriptor.trim().split_once('<')?;
    let path = rest.split_once('>')?.0;
    let is_file = number.bytes().all(|octet| octet.is_ascii_digit()) && path.starts_with('/');
    (is_file && !path.starts_with("/dev/")).then_some(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn count(trace: &str) -> Calls {
        Calls::count(trace, (Duration::from_secs(10), Duration::from_secs(20)))
    }

    #[test]
    fn what_is_asked_of_the_disk_is_counted() {
        let trace = "\
17 9.500000 fsync(3</s/a>) = 0
17 10.500000 write(3</s/a>, \"\"..., 100) = 100
17 10.600000 write(4<socket:[81]>, \"\"..., 1000) = 1000
17 10.610000 write(5</dev/null<char 1:3>>, \"\"..., 1000) = 1000
17 10.700000 fdatasync(3</s/a>) = 0
17 10.800000 fsync(4<socket:[81]>) = -1 EINVAL (Invalid argument)
18 10.900000 writev(6</s/b>, [{iov_base=\"\"..., iov_len=7}, {iov_base=\"\"..., iov_len=8}], 2) = 15
19 11.000000 msync(0x7f0000000000, 4096, MS_ASYNC) = 0
19 11.000000 msync(0x7f0000000000, 4096, MS_SYNC) = 0
19 25.000000 fsync(3</s/a>) = 0";
        let calls = count(trace);
        assert_eq!((calls.syncs, calls.written, calls.unseen), (2, 115, false));
    }

    #[test]
    fn a_call_counts_where_it_began() {
        let trace = "\
17 19.900000 fsync(3</s/a> <unfinished ...>
18 19.950000 pwrite64(3</s/a>, \"\"..., 100, 0 <unfinished ...>
17 20.100000 <... fsync resumed>) = 0
18 20.200000 <... pwrite64 resumed>) = 64
19 20.300000 <... fsync resumed>) = 0
17 20.400000 fsync(3</s/a>";
        let calls = count(trace);
        assert_eq!((calls.syncs, calls.written), (1, 64));
    }

    #[test]
    fn writes_that_sync_are_syncs() {
        let trace = "\
17 1.000000 openat(AT_FDCWD</>, \"/s/wal\", O_WRONLY|O_CREAT|O_DSYNC, 0600) = 7</s/wal>
17 11.000000 write(7</s/wal>, \"\"..., 100) = 100
17 11.100000 pwritev2(8</s/log>, [{iov_base=\"\"..., iov_len=5}], 1, 0, RWF_DSYNC) = 5
17 11.200000 pwritev2(8</s/log>, [{iov_base=\"\"..., iov_len=5}], 1, 0, 0) = 5
17 11.300000 copy_file_range(8</s/log>, NULL, 9</s/copy>, NULL, 50, 0) = 50
17 11.300000 sendfile(9</s/copy>, 8</s/log>, [0] => [60], 60) = 60";
        let calls = count(trace);
        assert_eq!((calls.syncs, calls.written), (2, 220));
        assert!(count("17 1.000000 io_uring_setup(64, {...}) = 9<anon_inode:[io_uring]>").unseen);
    }
}
