//! Another relay in the same scenario. A peer is an executable file that is told by its environment what to be: `FOLDER` to keep all it
//! has in, `LISTEN` and `NEXT` (address:port) to take mail on and to hand it to, `CONNECTIONS` at the most. It runs in the foreground, and ends
//! with SIGTERM.

use std::net::SocketAddr;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Instant;

use anyhow::{Context as _, ensure};
use rustix::process::{Pid, Signal, kill_process_group};

use crate::relay::{LOOK_EVERY, PATIENCE, greets};

/// A running one, in a process group of its own, which ends with it.
pub(super) struct Peer {
    child: Child,
    log: PathBuf,
}

impl Peer {
    /// Starts it, and waits until it greets.
    pub(super) async fn start(
        program: &Path,
        folder: &Path,
        listen: SocketAddr,
        next: SocketAddr,
        connections: usize,
    ) -> anyhow::Result<Self> {
        let log = folder.join("out");
        let out = std::fs::File::create(&log)?;
        let child = Command::new(program)
            .env("FOLDER", folder)
            .env("LISTEN", listen.to_string())
            .env("NEXT", next.to_string())
            .env("CONNECTIONS", connections.to_string())
            .stdin(Stdio::null())
            .stdout(out.try_clone()?)
            .stderr(out)
            .process_group(0)
            .spawn()
            .with_context(|| program.display().to_string())?;
        let mut peer = Self { child, log };
        let begun = Instant::now();
        while !greets(listen).await {
            ensure!(peer.runs()?, "the peer does not start: {}", peer.tail());
            ensure!(
                begun.elapsed() < PATIENCE,
                "the peer does not greet: {}",
                peer.tail()
            );
            tokio::time::sleep(LOOK_EVERY).await;
        }
        Ok(peer)
    }

    pub(super) fn pid(&self) -> u32 {
        self.child.id()
    }

    pub(super) fn runs(&mut self) -> anyhow::Result<bool> {
        Ok(self.child.try_wait()?.is_none())
    }

    /// The last lines it has said.
    pub(super) fn tail(&self) -> String {
        let text = std::fs::read_to_string(&self.log).unwrap_or_default();
        text.lines().rev().take(3).collect::<Vec<_>>().join(" | ")
    }

    /// To its group, while the child has not been waited for, so that the group's number is still its own.
    fn signal(&self, signal: Signal) {
        if let Some(group) = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw) {
            let _ = kill_process_group(group, signal);
        }
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) {
            self.signal(Signal::TERM);
            let begun = Instant::now();
            while begun.elapsed() < PATIENCE / 6 && matches!(self.child.try_wait(), Ok(None)) {
                std::thread::sleep(LOOK_EVERY);
            }
            if matches!(self.child.try_wait(), Ok(None)) {
                self.signal(Signal::KILL);
            }
        }
        let _ = self.child.wait();
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[tokio::test]
    async fn a_peer_that_does_not_start_says_why() {
        let folder = tempfile::tempdir().unwrap();
        let program = folder.path().join("peer");
        std::fs::write(
            &program,
            "#!/bin/sh\necho \"no $NEXT over $CONNECTIONS\"; exit 3\n",
        )
        .unwrap();
        std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
        let nobody = ([127, 0, 0, 1], 1).into();
        let next = ([127, 78, 0, 1], 25).into();
        let started = Peer::start(&program, folder.path(), nobody, next, 7).await;
        let error = started.err().unwrap().to_string();
        assert!(error.contains("no 127.78.0.1:25 over 7"), "{error}");
    }

    #[tokio::test]
    async fn a_peer_ends_with_all_it_has_started() {
        let folder = tempfile::tempdir().unwrap();
        let child = Command::new("sh")
            .args(["-c", "sleep 60 & wait"])
            .process_group(0)
            .spawn()
            .unwrap();
        let group = Pid::from_raw(i32::try_from(child.id()).unwrap()).unwrap();
        let peer = Peer {
            child,
            log: folder.path().join("out"),
        };
        drop(peer);
        // Orphans that have ended stay until init has looked at them.
        let begun = Instant::now();
        while rustix::process::test_kill_process_group(group).is_ok() {
            assert!(begun.elapsed() < PATIENCE, "some of the group are left");
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }
}
