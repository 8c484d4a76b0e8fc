//! The PROXY header, fed as its reader asks for it: it comes to an end within its bound, takes nothing beyond the header, and
//! what it takes for a header of version 1 is one.
#![no_main]

use libfuzzer_sys::fuzz_target;
use relay::submission::proxy_protocol::{Found, read};

/// Version 2 with as much as is taken behind the fixed part.
const MOST: usize = 16 + 2_048;

fuzz_target!(|wire: &[u8]| {
    let mut taken = 0;
    loop {
        match read(&wire[..taken]) {
            Found::More(more) => {
                assert!(more > 0, "asks for nothing");
                assert!(taken + more <= MOST, "asks for too much");
                if taken + more > wire.len() {
                    return;
                }
                taken += more;
            }
            Found::Client(client) => {
                let header = &wire[..taken];
                if let Some(line) = header.strip_prefix(b"PROXY ") {
                    let line = line.strip_suffix(b"\r\n").expect("a whole line");
                    assert!(!line.contains(&b'\n') && header.len() <= 107);
                    if let Some(client) = client {
                        let text = std::str::from_utf8(line).expect("ASCII");
                        assert_eq!(text.split(' ').nth(3), Some(&*client.port().to_string()));
                    }
                } else {
                    assert!(header.starts_with(b"\r\n\r\n\0\r\nQUIT\n"));
                }
                return;
            }
            Found::Bad(why) => {
                assert!(!why.is_empty());
                return;
            }
        }
    }
});
