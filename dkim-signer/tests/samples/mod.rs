//! Messages as they come, odd ones among them; signed here, verified by other people's verifiers.
#![allow(
    unreachable_pub,
    clippy::unwrap_used,
    reason = "fixed inputs, shared by a test and an example"
)]

use std::sync::Arc;

use dkim_signer::{DomainKey, PrivateKey, Signer, sign};
use mail_core::{Timestamp, header};

/// Name, and the message.
pub const MESSAGES: &[(&str, &[u8])] = &[
    (
        "plain",
        b"From: Shop <shop@example.com>\r\nTo: a@example.net\r\nSubject: Your order\r\nDate: Tue, 14 Nov 2023 22:13:20 +0000\r\n\
          Message-ID: <1@example.com>\r\n\r\nThank you.\r\n",
    ),
    (
        "folded",
        b"FROM:\r\n Shop\r\n\t<shop@example.com>\r\nTo: a@example.net,\r\n b@example.net\r\nsubject:   many \t blanks  \r\n \r\n\
          X-Long: x\r\n\r\na  b\t c \r\n\td\r\n",
    ),
    ("empty-body", b"From: shop@example.com\r\nSubject: none\r\n\r\n"),
    ("no-body", b"From: shop@example.com\r\nSubject: none\r\n"),
    (
        "blank-tail",
        b"From: shop@example.com\r\nSubject: tail\r\n\r\ntext\r\n\r\n \r\n\t \r\n   \r\n",
    ),
    (
        "blank-tail-cut",
        b"From: shop@example.com\r\nSubject: tail\r\n\r\ntext\r\n \t",
    ),
    (
        "blanks-alone",
        b"From: shop@example.com\r\nSubject: tail\r\n\r\n \r\n\t\r\n",
    ),
    (
        "empty-lines",
        b"From: shop@example.com\r\nSubject: lines\r\n\r\n\r\n\r\na\r\n\r\n\r\nb\r\n\r\n\r\n",
    ),
    (
        "no-final-crlf",
        b"From: shop@example.com\r\nSubject: cut\r\n\r\nno end of line",
    ),
    (
        "eight-bit",
        b"From: J\xc3\xb6 <shop@example.com>\r\nSubject: Gr\xc3\xbc\xc3\x9fe\r\nMIME-Version: 1.0\r\n\
          Content-Type: text/plain; charset=utf-8\r\nContent-Transfer-Encoding: 8bit\r\n\r\nSch\xc3\xb6ne Gr\xc3\xbc\xc3\x9fe \xff\xfe\r\n",
    ),
    ("no-subject", b"From: shop@example.com\r\n\r\nNo subject.\r\n"),
    (
        "duplicates",
        b"To: a@example.net\r\nReceived: one\r\nTo: b@example.net\r\nFrom: shop@example.com\r\nSubject: x\r\nReceived: two\r\n\
          Subject: y\r\nReferences: <1@x>\r\n\r\nTwice.\r\n",
    ),
    (
        "newsletter",
        b"From: News <news@mail.example.com>\r\nTo: a@example.net\r\nSubject: News\r\n\
          List-Unsubscribe: <https://example.com/u/1>,\r\n <mailto:u@example.com>\r\n\
          List-Unsubscribe-Post: List-Unsubscribe=One-Click\r\nList-Id: <news.example.com>\r\nFeedback-ID: 1:2:3\r\n\r\nNews.\r\n",
    ),
    (
        "dots",
        b"From: shop@example.com\r\nSubject: dots\r\n\r\n.\r\n..\r\n. a\r\nFrom here\r\n",
    ),
    ("empty-subject", b"From: shop@example.com\r\nSubject:\r\nCc: \r\n\r\nx\r\n"),
];

/// RSA and Ed25519 for `example.com`.
pub fn signer() -> Signer {
    let key = |selector: &str, pem: &str| DomainKey {
        domain: "example.com".parse().unwrap(),
        selector: selector.parse().unwrap(),
        key: Arc::new(PrivateKey::from_pem(pem.as_bytes()).unwrap()),
    };
    Signer::new([
        key("r1", include_str!("../keys/rsa2048.pkcs8.pem")),
        key("e1", include_str!("../keys/ed25519.pkcs8.pem")),
    ])
    .unwrap()
}

/// The message under a Received field and its signatures, as the relay sends it.
pub fn signed(signer: &Signer, message: &[u8]) -> Vec<u8> {
    let prefix = b"Received: from client by relay.example.com; Tue, 14 Nov 2023 22:13:20 +0000\r\n";
    let (headers, body) = header::split(message);
    let from = header::fields(headers).find(|field| field.is("From")).unwrap();
    let from = header::addresses(from.value()).unwrap();
    let keys = signer.keys_for(from[0].domain());
    let fields = sign(keys, &[prefix, headers], body, Timestamp(1_700_000_000_000)).unwrap();
    // SMTP has no message that does not end in CRLF (RFC 5321 §4.1.1.4).
    let end: &[u8] = if message.ends_with(b"\r\n") { b"" } else { b"\r\n" };
    [&fields, &prefix[..], message, end].concat()
}
