//! A command line. What is accepted reads back as itself, what is refused gets a 5yz reply that is one clean line.
#![no_main]

use libfuzzer_sys::fuzz_target;
use mail_core::smtp::command::{Command, ForwardPath, parse};

fuzz_target!(|line: &[u8]| {
    match parse(line) {
        Err(reply) => {
            assert!(reply.is_permanent(), "{reply}");
            let mut wire = Vec::new();
            reply.write_to(&mut wire);
            let text = wire.strip_suffix(b"\r\n").expect("a reply is a line");
            assert!(text.is_ascii() && !text.contains(&b'\r') && !text.contains(&b'\n'), "{reply}");
        }
        // Whatever it holds, it ends the connection.
        Ok(Command::Foreign | Command::Bdat(None)) => {}
        Ok(command) => {
            assert!(!line.iter().any(|octet| matches!(octet, b'\r' | b'\n' | 0)), "{command:?}");
            match command {
                Command::Mail(from) => match parse(format!("MAIL FROM:<{}>", from.reverse_path).as_bytes()) {
                    Ok(Command::Mail(again)) => assert_eq!(again.reverse_path, from.reverse_path),
                    // An address beyond ASCII needs the parameter that came with it.
                    other => assert!(!from.reverse_path.to_string().is_ascii(), "{other:?}"),
                },
                Command::Rcpt(to) => {
                    let again = match &to.path {
                        ForwardPath::Postmaster => parse(b"RCPT TO:<postmaster>"),
                        other => parse(format!("RCPT TO:<{}>", path(other)).as_bytes()),
                    };
                    match again {
                        Ok(Command::Rcpt(again)) => assert_eq!(path(&again.path), path(&to.path)),
                        other => panic!("{other:?}"),
                    }
                }
                Command::Auth { mechanism, .. } => assert_eq!(mechanism, mechanism.to_ascii_uppercase()),
                _ => {}
            }
        }
    }
});

fn path(path: &ForwardPath) -> String {
    match path {
        ForwardPath::Postmaster => "postmaster".into(),
        ForwardPath::Mailbox(mailbox) => mailbox.to_string(),
    }
}
