//! Options that say which mail is meant.

use std::time::Duration;

use admin_api::operate::Selector;

use super::operate::seconds;
use super::{Failure, send};
use crate::control::scan;

/// Which mail. All that is given has to hold.
#[derive(clap::Args)]
pub(super) struct Names {
    /// Of this tenant.
    #[arg(long)]
    pub(super) tenant: Option<String>,
    /// Of this stream.
    #[arg(long)]
    pub(super) stream: Option<String>,
    /// To this destination domain.
    #[arg(long)]
    pub(super) domain: Option<String>,
}

/// The same, or one queue, or everything.
#[derive(clap::Args)]
pub(super) struct Which {
    #[command(flatten)]
    names: Names,
    /// The queue of this number, as `queue list` shows it.
    #[arg(long, value_name = "NUMBER")]
    queue: Option<u64>,
    /// Everything.
    #[arg(long)]
    all: bool,
}

/// The same for messages, and by what no index knows of them: then all that waits in these queues is gone through, page by page.
#[derive(clap::Args)]
pub(super) struct Mail {
    #[command(flatten)]
    which: Which,
    /// With this reverse-path: an address, @DOMAIN for all of a domain, or <> for reports. Goes through all mail of the queues that are meant.
    #[arg(long, value_name = "ADDRESS", value_parser = scan::sender)]
    sender: Option<String>,
    /// With this recipient waiting: an address, or @DOMAIN. Goes through the mail of its domain.
    #[arg(long, value_name = "ADDRESS", value_parser = scan::recipient)]
    recipient: Option<String>,
    /// With this tag of its sender's. Goes through all mail of the queues that are meant.
    #[arg(long, value_parser = clap::builder::NonEmptyStringValueParser::new())]
    tag: Option<String>,
    /// Accepted so long ago or longer, such as 30m or 2h. Goes through all mail of the queues that are meant.
    #[arg(long, value_name = "TIME", value_parser = send::span)]
    older_than: Option<Duration>,
}

impl Which {
    fn named(&self) -> Selector {
        Selector {
            tenant: self.names.tenant.clone(),
            stream: self.names.stream.clone(),
            domain: self.names.domain.clone(),
            queue: self.queue,
            ..Selector::default()
        }
    }

    pub(super) fn selector(&self) -> Result<Selector, Failure> {
        let ways = "--tenant, --stream, --domain or --queue";
        with_all(self.named(), self.all, ways)
    }
}

impl Mail {
    pub(super) fn named(&self) -> Selector {
        Selector {
            sender: self.sender.clone(),
            recipient: self.recipient.clone(),
            tag: self.tag.clone(),
            older_than_seconds: self.older_than.map(seconds),
            ..self.which.named()
        }
    }

    pub(super) fn selector(&self) -> Result<Selector, Failure> {
        let ways = "--tenant, --stream, --domain, --queue, --sender, --recipient, --tag or --older-than";
        with_all(self.named(), self.which.all, ways)
    }
}

/// Everything is meant only where that is said.
fn with_all(named: Selector, all: bool, ways: &str) -> Result<Selector, Failure> {
    if all != (named == Selector::default()) {
        let text = format!("say which: {ways}, or else --all");
        return Err(Failure::Usage(text));
    }
    Ok(Selector { all, ..named })
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::super::queue::MessageCommand;
    use super::super::{Cli, Command};
    use super::*;

    fn listed(options: &[&str]) -> Result<Mail, clap::Error> {
        let words = ["postrider", "message", "list"].iter().chain(options);
        match Cli::try_parse_from(words)?.command {
            Command::Message(MessageCommand::List { which, .. }) => Ok(which),
            _ => panic!("{options:?}"),
        }
    }

    #[test]
    fn what_a_scan_looks_for_is_sent_as_given_and_needs_no_all() {
        let given = ["--sender", "<>", "--recipient", "\"a b\"@a.test", "--tag", "June"];
        let mail = listed(&[&given[..], &["--older-than", "1h30m", "--domain", "a.test"]].concat());
        let Ok(sent) = mail.unwrap().selector() else {
            panic!("{given:?}");
        };
        let expected = Selector {
            domain: Some("a.test".into()),
            sender: Some("<>".into()),
            recipient: Some("\"a b\"@a.test".into()),
            tag: Some("June".into()),
            older_than_seconds: Some(5_400),
            ..Selector::default()
        };
        assert_eq!(sent, expected);
        for one in [
            "--sender=@a.test",
            "--recipient=@a.test",
            "--tag=x",
            "--older-than=1s",
        ] {
            let Ok(sent) = listed(&[one]).unwrap().selector() else {
                panic!("{one}");
            };
            assert!(!sent.all, "{one}");
            assert!(listed(&[one, "--all"]).unwrap().selector().is_err(), "{one}");
        }
        for wrong in [
            "--sender=",
            "--sender=a",
            "--sender=a@b@c",
            "--sender=a\0@a.test",
            "--recipient=",
            "--recipient=<>",
            "--recipient=@",
            "--tag=",
            "--older-than=0s",
            "--older-than=2",
        ] {
            let error = listed(&[wrong]).err().map(|error| error.exit_code());
            assert_eq!(error, Some(2), "{wrong:?}");
        }
    }
}
