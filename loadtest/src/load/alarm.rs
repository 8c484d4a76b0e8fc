//! A moment to wait for, to some 50 µs. The runtime's own timer goes by whole milliseconds: at 4,000 messages a second four would begin
//! together, each time.

use std::io;
use std::os::fd::OwnedFd;
use std::time::Duration;

use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create, timerfd_settime,
};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// A timer of the kernel's (timerfd_create(2)).
pub(super) struct Alarm(AsyncFd<OwnedFd>);

impl Alarm {
    #[expect(
        unsafe_code,
        reason = "a descriptor is registered with the runtime by no call that is both safe and not deprecated"
    )]
    pub(super) fn new() -> io::Result<Self> {
        let timer = timerfd_create(
            TimerfdClockId::Monotonic,
            TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC,
        )?;
        // SAFETY: the timer is owned by what is made of it, which never gives it away or replaces it, so that its descriptor is open, and the
        // same, as long as it is registered.
        let timer = unsafe { AsyncFd::register_with_interest(timer, Interest::READABLE) };
        Ok(Self(timer?))
    }

    /// Until so long from now.
    pub(super) async fn wait(&self, time: Duration) -> io::Result<()> {
        const ZERO: Timespec = Timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        let set = Itimerspec {
            it_interval: ZERO,
            // Nought would stop it.
            it_value: Timespec::try_from(time.max(Duration::from_nanos(1))).map_err(io::Error::other)?,
        };
        timerfd_settime(self.0.get_ref(), TimerfdTimerFlags::empty(), &set)?;
        let read = |timer: &OwnedFd| Ok(rustix::io::read(timer, &mut [0; 8])?);
        self.0.async_io(Interest::READABLE, read).await.map(drop)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn it_rings_no_earlier_than_it_should_and_again() {
        let alarm = Alarm::new().unwrap();
        for time in [0, 300, 2_000].map(Duration::from_micros) {
            let begun = std::time::Instant::now();
            alarm.wait(time).await.unwrap();
            assert!(begun.elapsed() >= time);
        }
    }
}
