//! Scripts of the lab's peers: read or refused with the line of the mistake.
#![no_main]

use lab::Script;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    match text.parse::<Script>() {
        Ok(script) => {
            let _ = script.connection(1);
        }
        Err(mistake) => {
            assert!((1..=text.lines().count().max(1)).contains(&mistake.line), "{mistake}");
            assert!(!mistake.why.is_empty());
        }
    }
});
