//! The program `postrider`.

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> std::process::ExitCode {
    // The allocator asks for huge pages, and its first octet on one makes 2 MiB resident: an idle relay had 15 MiB of noughts, and no
    // message cost less for it (docs/performance.md). Where the kernel does not know this it goes on with them.
    let _ = rustix::thread::disable_transparent_huge_pages(true);
    relay::cli::main()
}
