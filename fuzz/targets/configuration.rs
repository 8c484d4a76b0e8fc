//! A configuration file. It is taken or refused, never a panic; each mistake has its place, and a second look finds the same.
#![no_main]

use std::path::PathBuf;
use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use relay::config::load;

/// In memory where the system has such a place.
static FOLDER: LazyLock<tempfile::TempDir> = LazyLock::new(|| {
    let memory = PathBuf::from("/dev/shm");
    let place = if memory.is_dir() { memory } else { std::env::temp_dir() };
    tempfile::tempdir_in(place).expect("a folder")
});

fuzz_target!(|octets: &[u8]| {
    // Other files are not part of the input.
    if octets.windows(7).any(|seven| seven == b"include") {
        return;
    }
    let path = FOLDER.path().join("postrider.toml");
    std::fs::write(&path, octets).expect("written");
    let lines = octets.iter().filter(|&&octet| octet == b'\n').count() + 1;
    if let Err(mistakes) = load(&path) {
        assert!(!mistakes.0.is_empty(), "refused without a reason");
        for mistake in &mistakes.0 {
            assert!(mistake.line as usize <= lines, "{mistake}");
        }
        let again = load(&path).err().map(|again| again.to_string());
        assert_eq!(again, Some(mistakes.to_string()));
    }
});
