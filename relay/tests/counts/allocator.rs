//! The system's allocator, which counts what this thread asks of it.

use std::alloc::{GlobalAlloc, Layout, System};
use std::backtrace::Backtrace;
use std::cell::Cell;
use std::pin::Pin;
use std::sync::Mutex;
use std::task::{Context, Poll};

/// What has been asked for so far. Giving back is not counted: all that is taken is given back once.
#[derive(Clone, Copy, Debug, Default)]
pub struct Asked {
    /// Allocations, those that grow one too.
    pub times: u64,
    /// Octets of all of them.
    pub octets: u64,
    /// Those of at least [`body_bytes`] octets.
    pub of_body_size: u64,
    /// Octets that were there when something grew: they are moved, as far as the system's allocator has no room behind them.
    pub moved: u64,
}

thread_local! {
    // Without destructors and without a first use that allocates: the allocator itself reads them.
    static COUNTING: Cell<bool> = const { Cell::new(false) };
    static BODY: Cell<usize> = const { Cell::new(usize::MAX) };
    static ASKED: Cell<Asked> = const { Cell::new(Asked { times: 0, octets: 0, of_body_size: 0, moved: 0 }) };
    static SITES: Cell<bool> = const { Cell::new(false) };
}

/// From which size on an allocation counts as one for a body, on this thread.
pub fn body_bytes(octets: usize) {
    BODY.set(octets);
}

/// Counts what this thread allocates from here on, but for [`Uncounted`].
pub fn count() {
    COUNTING.set(true);
}

/// What has been counted on this thread.
pub fn asked() -> Asked {
    ASKED.get()
}

/// Runs `work` uncounted.
pub fn uncounted<T>(work: impl FnOnce() -> T) -> T {
    let before = COUNTING.replace(false);
    let done = work();
    COUNTING.set(before);
    done
}

/// A future whose own allocations are not counted: what only the test needs.
pub struct Uncounted<F>(Pin<Box<F>>);

impl<F> Uncounted<F> {
    /// Of this future.
    pub fn new(future: F) -> Self {
        Self(Box::pin(future))
    }
}

impl<F: Future> Future for Uncounted<F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<F::Output> {
        uncounted(|| self.0.as_mut().poll(context))
    }
}

/// Where allocations come from, one line of size and stack each, while `wanted` was said.
static FOUND: Mutex<Vec<String>> = Mutex::new(Vec::new());

/// Notes from here on, or no more, where each counted allocation comes from.
pub fn note_sites(wanted: bool) {
    SITES.set(wanted);
}

/// What [`note_sites`] has found.
pub fn sites() -> Vec<String> {
    std::mem::take(&mut FOUND.lock().unwrap())
}

/// The stack's functions of this workspace's crates, the innermost first, and the innermost of all others.
fn site(octets: usize) -> String {
    let stack = Backtrace::force_capture().to_string();
    let mut names = stack
        .lines()
        .map(str::trim)
        .filter(|line| !line.starts_with("at "))
        .filter_map(|line| line.split_once(": ").map(|(_, name)| name))
        .filter(|name| {
            !["counts::allocator", "std::backtrace", "__rust", "alloc::alloc"]
                .iter()
                .any(|of| name.contains(of))
        });
    let first = names.next().unwrap_or_default().to_owned();
    let ours: Vec<_> = names
        .filter(|name| {
            ["relay::", "queue::", "mail_core::", "dkim_signer::"]
                .iter()
                .any(|of| name.contains(of))
        })
        .take(3)
        .collect();
    format!("{octets:>7} {first} < {}", ours.join(" < "))
}

fn note(octets: usize) {
    if !COUNTING.get() {
        return;
    }
    let mut asked = ASKED.get();
    asked.times += 1;
    asked.octets += octets as u64;
    asked.of_body_size += u64::from(octets >= BODY.get());
    ASKED.set(asked);
    if SITES.get() {
        uncounted(|| FOUND.lock().unwrap().push(site(octets)));
    }
}

fn note_move(octets: usize) {
    if COUNTING.get() {
        let mut asked = ASKED.get();
        asked.moved += octets as u64;
        ASKED.set(asked);
    }
}

struct Counting;

#[global_allocator]
static ALLOCATOR: Counting = Counting;

// SAFETY: every call is handed on to `System` as it came, with the caller's own promises, and its answer is given back as it
// is; so whatever `System` guarantees holds. Counting touches only thread-local cells that are constant at first and have no
// destructor. It unwinds nowhere, and where it allocates, to note a site, it does not count that again.
#[expect(
    unsafe_code,
    reason = "an allocator can't be written without, and this one adds nothing but counts"
)]
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        note(layout.size());
        // SAFETY: the caller's promises for `layout` are those that `System` asks for.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        note(layout.size());
        // SAFETY: as above.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        note(size);
        note_move(layout.size());
        // SAFETY: `pointer` came from this allocator, hence from `System`, with `layout`: the caller promises it.
        unsafe { System.realloc(pointer, layout, size) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: as for `realloc`.
        unsafe { System.dealloc(pointer, layout) }
    }
}
