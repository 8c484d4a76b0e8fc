//! Domains, mailboxes, and the addresses of header fields: what is accepted reads back as itself and can't break a line.
#![no_main]

use libfuzzer_sys::fuzz_target;
use mail_core::header;
use mail_core::{Domain, Mailbox};

fuzz_target!(|octets: &[u8]| {
    for field in header::fields(octets) {
        assert!(octets.windows(field.raw().len().max(1)).any(|window| window == field.raw()));
    }
    let (head, body) = header::split(octets);
    assert!(head.len() + body.len() <= octets.len());
    if let Ok(addresses) = header::addresses(octets) {
        assert!(addresses.len() <= header::MAX_ADDRESSES);
        addresses.iter().for_each(check);
    }
    let Ok(text) = std::str::from_utf8(octets) else {
        return;
    };
    if let Ok(mailbox) = text.parse::<Mailbox>() {
        check(&mailbox);
    }
    if let Ok(domain) = text.parse::<Domain>() {
        check_domain(&domain);
    }
});

fn check(mailbox: &Mailbox) {
    let text = mailbox.to_string();
    assert!(!text.contains(|c: char| c.is_ascii_control()), "{text:?}");
    assert!(mailbox.local().len() <= 64);
    assert_eq!(text.parse().as_ref(), Ok(mailbox));
    check_domain(mailbox.domain());
}

fn check_domain(domain: &Domain) {
    let text = domain.as_str();
    assert!((1..=255).contains(&text.len()), "{text}");
    assert!(text.bytes().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || b"-._".contains(&c)), "{text}");
    assert!(!text.ends_with('.'));
    assert_eq!(text.parse().as_ref(), Ok(domain));
}
