//! Another relay in the same scenario. A peer is an executable file that is told by its environment what to be: `FOLDER` to keep all it
//! has in, `LISTEN` and `NEXT` (address:port) to take mail on and to hand it to, `CONNECTIONS` at the most, and the `SCENARIO`. It runs in
//! the foreground, and ends with SIGTERM. In `accept` it keeps all mail until the same file is run with the word `release`; in `relay-dkim` it
//! signs for sender.test as s1 with the RSA key in the file `DKIM_KEY`.

use std::ffi::OsString;
use std::net::SocketAddr;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Instant;

use anyhow::{Context as _, ensure};
use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, kill_process_group, waitid};

use super::Name;
use super::group::Group;
use crate::relay::{LOOK_EVERY, PATIENCE, greets};
use crate::signals;

/// What a peer is told.
pub(super) struct Part<'a> {
    pub(super) scenario: Name,
    pub(super) listen: SocketAddr,
    pub(super) next: SocketAddr,
    pub(super) connections: usize,
    /// What it signs with.
    pub(super) key: Option<&'a Path>,
}

impl Part<'_> {
    fn environment(&self, folder: &Path) -> Vec<(&'static str, OsString)> {
        let key = self.key.map(|key| ("DKIM_KEY", key.into()));
        [
            ("FOLDER", folder.into()),
            ("LISTEN", self.listen.to_string().into()),
            ("NEXT", self.next.to_string().into()),
            ("CONNECTIONS", self.connections.to_string().into()),
            ("SCENARIO", self.scenario.to_string().into()),
        ]
        .into_iter()
        .chain(key)
        .collect()
    }
}

/// A running one, in a process group and, where it can be had, a control group of its own, which end with it.
pub(super) struct Peer {
    child: Child,
    program: PathBuf,
    environment: Vec<(&'static str, OsString)>,
    log: PathBuf,
    release: Option<Child>,
    group: Option<Group>,
}

impl Peer {
    /// Starts it, and waits until it greets.
    pub(super) async fn start(program: &Path, folder: &Path, part: &Part<'_>) -> anyhow::Result<Self> {
        let log = folder.join("out");
        let out = std::fs::File::create(&log)?;
        // Where it may be run from is its own business.
        let program = std::path::absolute(program)?;
        let environment = part.environment(folder);
        let child = Command::new(&program)
            .envs(environment.iter().cloned())
            .stdin(Stdio::null())
            .stdout(out.try_clone()?)
            .stderr(out)
            .process_group(0)
            .spawn()
            .with_context(|| program.display().to_string())?;
        let mut peer = Self {
            child,
            program,
            environment,
            log,
            release: None,
            group: None,
        };
        // It has not come to start anything yet.
        match Group::around(peer.pid()) {
            Ok(group) => peer.group = Some(group),
            Err(error) => eprintln!(
                "no control group ({error:#}): what its children cost counts where they live or are waited for, and no others"
            ),
        }
        let begun = Instant::now();
        while !greets(part.listen).await {
            signals::go_on()?;
            ensure!(peer.runs(), "the peer does not start: {}", peer.tail());
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

    /// Looks without waiting for it: until then its group's number is still its own.
    pub(super) fn runs(&self) -> bool {
        let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
        self.group_id()
            .is_some_and(|pid| matches!(waitid(WaitId::Pid(pid), options), Ok(None)))
    }

    /// Lets it hand on what it has kept, and doesn't wait for that.
    pub(super) fn release(&mut self) -> anyhow::Result<()> {
        let out = std::fs::OpenOptions::new().append(true).open(&self.log)?;
        let child = Command::new(&self.program)
            .arg("release")
            .envs(self.environment.iter().cloned())
            .stdin(Stdio::null())
            .stdout(out.try_clone()?)
            .stderr(out)
            .process_group(i32::try_from(self.child.id())?)
            .spawn()
            .with_context(|| self.program.display().to_string())?;
        if let Some(group) = &self.group {
            group.take(child.id())?;
        }
        self.release = Some(child);
        Ok(())
    }

    /// The last lines it has said.
    pub(super) fn tail(&self) -> String {
        let text = std::fs::read_to_string(&self.log).unwrap_or_default();
        text.lines().rev().take(3).collect::<Vec<_>>().join(" | ")
    }

    /// What it is, as it said when it started.
    pub(super) fn version(&self) -> Option<String> {
        version_in(&std::fs::read_to_string(&self.log).unwrap_or_default())
    }

    /// The child's number, and its group's.
    fn group_id(&self) -> Option<Pid> {
        i32::try_from(self.child.id()).ok().and_then(Pid::from_raw)
    }

    /// To its group, while the child has not been waited for.
    fn signal(&self, signal: Signal) {
        if let Some(group) = self.group_id() {
            let _ = kill_process_group(group, signal);
        }
    }
}

fn version_in(said: &str) -> Option<String> {
    let version = said.lines().find_map(|line| line.strip_prefix("version: "))?;
    Some(version.trim().to_owned())
}

impl Drop for Peer {
    fn drop(&mut self) {
        self.signal(Signal::TERM);
        let begun = Instant::now();
        while begun.elapsed() < PATIENCE / 6 && self.runs() {
            std::thread::sleep(LOOK_EVERY);
        }
        // Or what is left of it, though the child may have ended long ago.
        self.signal(Signal::KILL);
        drop(self.group.take());
        if let Some(release) = &mut self.release {
            let _ = release.kill();
            let _ = release.wait();
        }
        let _ = self.child.wait();
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn a_peer_says_its_version_in_a_line() {
        let said = "starting\nversion: Postfix 3.7.11\nversion: another\n";
        assert_eq!(version_in(said).as_deref(), Some("Postfix 3.7.11"));
        assert_eq!(version_in("its version: 1\n"), None);
    }

    #[tokio::test]
    async fn a_peer_that_does_not_start_says_why() {
        let folder = tempfile::tempdir().unwrap();
        let program = folder.path().join("peer");
        std::fs::write(
            &program,
            "#!/bin/sh\necho \"no $NEXT over $CONNECTIONS for $SCENARIO\"; exit 3\n",
        )
        .unwrap();
        std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
        let part = Part {
            scenario: Name::RelayDkim,
            listen: ([127, 0, 0, 1], 1).into(),
            next: ([127, 78, 0, 1], 25).into(),
            connections: 7,
            key: None,
        };
        let started = Peer::start(&program, folder.path(), &part).await;
        let error = started.err().unwrap().to_string();
        assert!(
            error.contains("no 127.78.0.1:25 over 7 for relay-dkim"),
            "{error}"
        );
    }

    #[tokio::test]
    async fn a_peer_ends_with_all_it_has_started() {
        let folder = tempfile::tempdir().unwrap();
        let mut child = Command::new("sh")
            // The one ends by SIGTERM, the other does not.
            .args(["-c", "sleep 60 & (trap '' TERM; echo; exec sleep 60) & wait"])
            .stdout(Stdio::piped())
            .process_group(0)
            .spawn()
            .unwrap();
        let group = Pid::from_raw(i32::try_from(child.id()).unwrap()).unwrap();
        // It has come that far.
        let mut said = [0];
        std::io::Read::read_exact(child.stdout.as_mut().unwrap(), &mut said).unwrap();
        let peer = Peer {
            child,
            program: "sh".into(),
            environment: Vec::new(),
            log: folder.path().join("out"),
            release: None,
            group: None,
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
