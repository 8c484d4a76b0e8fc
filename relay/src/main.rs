//! The program `postrider`.

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> std::process::ExitCode {
    // The allocator asks for huge pages, and its first octet on one makes 2 MiB resident: an idle relay had 15 MiB of noughts, and no
    // message cost less for it (docs/performance.md). Where the kernel does not know this it goes on with them.
    let _ = rustix::thread::disable_transparent_huge_pages(true);
    #[cfg(target_env = "gnu")]
    one_arena();
    relay::cli::main()
}

/// RocksDB allocates by the C library, which gives each thread an arena of its own: blocks that many threads read leave holes in all of them. With five
/// million messages in the queue it kept 65 MiB more than it needed; in one arena no message costs more (docs/performance.md). Nothing depends on it.
#[cfg(target_env = "gnu")]
#[expect(
    unsafe_code,
    reason = "the C library's own setting has no other way in than a call or the environment"
)]
fn one_arena() {
    // SAFETY: mallopt takes two numbers by value and keeps no pointer. It changes what malloc does from now on, under malloc's own lock; no
    // other thread runs yet.
    unsafe { libc::mallopt(libc::M_ARENA_MAX, 1) };
}
