//! Conversion to 7-bit: what comes out is 7-bit, has lines that any host takes where the message had such, leaves alone what is
//! 7-bit already, and is left alone itself.
#![no_main]

use libfuzzer_sys::fuzz_target;
use relay::seven_bit::convert;

fuzz_target!(|message: &[u8]| {
    let Ok(converted) = convert(message) else {
        assert!(!message.is_ascii(), "7-bit, and refused");
        return;
    };
    assert!(converted.is_ascii());
    assert_eq!(message.is_ascii(), message == converted);
    assert_eq!(convert(&converted).as_deref(), Ok(&*converted));
    let good = |text: &[u8]| {
        let lines = text.split(|&octet| octet == b'\n');
        text.split(|&octet| octet == b'\n').rev().skip(1).all(|line| line.ends_with(b"\r"))
            && lines.clone().all(|line| line.len() <= 999)
            && !text.windows(2).any(|two| two[0] == b'\r' && two[1] != b'\n')
            && !text.ends_with(b"\r")
    };
    assert!(!good(message) || good(&converted), "bare or long lines");
});
