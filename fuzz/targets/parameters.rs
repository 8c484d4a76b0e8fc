//! Parameters of MAIL and RCPT: SIZE, BODY, AUTH, and those of RFC 3461 and 6531. They must neither panic nor change which
//! address is meant, and a refusal names what is wrong (501, 504, 555, …).
#![no_main]

use libfuzzer_sys::fuzz_target;
use mail_core::smtp::command::{Command, ForwardPath, parse};

fuzz_target!(|parameters: &[u8]| {
    for command in ["MAIL FROM:<ada@example.test> ", "RCPT TO:<ada@example.test> "] {
        let line = [command.as_bytes(), parameters].concat();
        match parse(&line) {
            Ok(Command::Mail(from)) => assert_eq!(from.reverse_path.to_string(), "ada@example.test"),
            Ok(Command::Rcpt(to)) => {
                let text = format!("{:?}", to.path);
                assert!(!matches!(to.path, ForwardPath::Postmaster), "{text}");
                assert!(text.contains("ada"), "{text}");
            }
            Ok(other) => panic!("{other:?}"),
            Err(reply) => assert!(reply.is_permanent(), "{reply}"),
        }
    }
});
