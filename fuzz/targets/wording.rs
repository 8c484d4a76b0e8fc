//! How long a reply asks us to wait: whatever the words, nothing or a time within bounds, and the same in any case of letters.
#![no_main]

use libfuzzer_sys::fuzz_target;
use relay::delivery::adapt::wording::{WAITS, wait};

fuzz_target!(|text: &str| {
    let waits = wait(text);
    assert!(waits.is_none_or(|time| WAITS.contains(&time)), "{waits:?}");
    assert_eq!(wait(&text.to_ascii_uppercase()), waits);
    // What is said before does not change it; of very many words not all are looked at.
    if text.split_whitespace().count() < 100 {
        assert_eq!(wait(&format!("no. {text}")), waits);
    }
});
