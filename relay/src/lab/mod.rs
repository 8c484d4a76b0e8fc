//! `postrider lab`: the relay within a small Internet on loopback, to be met, tried and tested.
//!
//! The relay is the one that users run: keys, credentials and a configuration file are made for it, and that file is read
//! and checked as any other. Only what is around it is made up: see the crate `lab`.

mod demo;
mod judge;
mod messages;
mod setup;
mod table;

use std::io::Write as _;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::pin::pin;

use anyhow::Context as _;
use clap::Args;
use lab::{Lab, Script};
use mail_core::Domain;
use tokio::runtime::{Builder, Runtime};

use crate::cli;
use crate::config;
use crate::config::settings::LogFormat;
use crate::logging;
use crate::run::{self, Running};

use setup::Access;

/// Options of `postrider lab`.
#[derive(Args)]
pub struct Options {
    /// Print one line of JSON when all is up, and run until told to stop.
    #[arg(long)]
    json: bool,
    /// Send a dozen messages, show what became of each, and end; the exit code tells whether all went as it should.
    #[arg(long, conflicts_with = "json")]
    demo: bool,
    /// Keep everything in this folder, made if it is not there; else in a temporary one, gone at the end.
    #[arg(long, value_name = "FOLDER")]
    dir: Option<PathBuf>,
    /// A domain whose mail server plays a script of C: and S: lines, such as odd.test=odd.smtp; may be given more than once.
    #[arg(long = "peer", value_name = "DOMAIN=FILE", value_parser = peer)]
    peers: Vec<(Domain, Script)>,
}

fn peer(text: &str) -> Result<(Domain, Script), String> {
    let (domain, file) = text
        .split_once('=')
        .ok_or("a domain and a file, as in odd.test=odd.smtp")?;
    let domain = domain.parse().map_err(|error| format!("{domain:?}: {error}"))?;
    let script = Script::load(Path::new(file)).map_err(|error| error.to_string())?;
    Ok((domain, script))
}

/// A relay in its lab.
struct Laboratory {
    /// Before the relay, so that it is dropped first: its receivers answer to the last.
    relay: Running,
    lab: Lab,
    /// Of the lab alone, so that receivers' work is not on the relay's threads.
    runtime: Runtime,
    access: Access,
}

/// Runs the lab until SIGTERM or SIGINT; with [`Options::demo`] until the demo is over. False: the demo saw something go
/// otherwise than it should.
pub fn main(options: &Options) -> anyhow::Result<bool> {
    // The demo's own output tells what happens; the log, unless it is asked for, would only run through it.
    if !options.demo || std::env::var_os("RUST_LOG").is_some() {
        logging::start(LogFormat::Text, logging::USUAL);
    }
    let laboratory = Laboratory::start(options)?;
    let result = laboratory.runtime.block_on(laboratory.serve(options));
    laboratory.stop();
    result
}

impl Laboratory {
    fn start(options: &Options) -> anyhow::Result<Self> {
        let runtime = Builder::new_multi_thread()
            .worker_threads(1)
            .thread_name("lab")
            .enable_all()
            .build()?;
        let sender: Domain = SENDER_DOMAIN.parse()?;
        let mut builder = lab::Builder::new(sender.clone());
        if let Some(dir) = &options.dir {
            // The relay's files are named in a configuration that is itself in the folder.
            builder = builder.dir(&std::path::absolute(dir)?);
        }
        for (domain, script) in &options.peers {
            builder = builder.peer(domain.clone(), script.clone());
        }
        let lab = runtime.block_on(builder.start()).context("the lab")?;
        let (config, access) = setup::write(&lab, &sender)?;
        let settings = config::load(&config)
            .map_err(|mistakes| anyhow::anyhow!("the lab's own configuration: {mistakes}"))?;
        let relay = run::start(settings)?;
        Ok(Self {
            relay,
            lab,
            runtime,
            access,
        })
    }

    async fn serve(&self, options: &Options) -> anyhow::Result<bool> {
        let mut told = pin!(cli::told_to_stop());
        // Polled once, it has its signal handlers: whoever reads that the lab is up can stop it.
        tokio::select! {
            biased;
            told = &mut told => return told.map(|_| true).map_err(Into::into),
            () = std::future::ready(()) => {}
        }
        if options.demo {
            return tokio::select! {
                told = &mut told => Err(anyhow::anyhow!("{} before the demo was over", told?)),
                all_went_well = demo::run(self) => all_went_well,
            };
        }
        let text = if options.json { self.json() } else { self.welcome() };
        let mut out = std::io::stdout().lock();
        out.write_all(text.as_bytes())?;
        out.flush()?;
        drop(out);
        told.await?;
        Ok(true)
    }

    fn stop(self) {
        self.relay.stop();
        self.runtime.block_on(self.lab.stop());
        self.runtime.shutdown_background();
    }

    fn listener(&self, kind: &str) -> Option<SocketAddr> {
        let mut listeners = self.relay.listeners.iter();
        listeners.find(|(is, _)| *is == kind).map(|(_, address)| *address)
    }

    /// As `POSTRIDER_ADMIN` takes it.
    fn admin(&self) -> Option<String> {
        let path = self.relay.admin.as_ref()?;
        Some(format!("unix:{}", path.display()))
    }

    /// One line.
    fn json(&self) -> String {
        let Access {
            username,
            password,
            sender,
            ..
        } = &self.access;
        let line = serde_json::json!({
            "submission": self.listener("submission"),
            "submissions": self.listener("submissions"),
            "trusted": self.listener("trusted"),
            "metrics": self.relay.metrics,
            "dns": self.lab.dns,
            "lab": self.lab.http,
            "username": username,
            "password": password.as_str(),
            "sender": sender,
            "ca": self.lab.ca.file(),
            "dir": self.lab.dir(),
            "admin": self.admin(),
        });
        format!("{line}\n")
    }

    fn welcome(&self) -> String {
        let Access {
            username,
            password,
            sender,
            config,
        } = &self.access;
        let password = password.as_str();
        let at = |kind| {
            self.listener(kind)
                .map(|address| address.to_string())
                .unwrap_or_default()
        };
        let metrics = self
            .relay
            .metrics
            .map(|address| address.to_string())
            .unwrap_or_default();
        let submission = at("submission");
        let (host, port) = submission.rsplit_once(':').unwrap_or_default();
        let ca = self.lab.ca.file().display();
        let http = self.lab.http;
        format!(
            "\
Postrider is running in a lab: a small Internet on this machine, from which nothing gets out.

  Submission, STARTTLS    {submission}
  Submissions, TLS        {}
  Trusted, no password    {}
  User, password          {username}  {password}
  Sender                  {sender}
  CA certificate          {ca}
  Mailboxes               http://{http}/lab/mailboxes
  Scripted peers          http://{http}/lab/peers
  Metrics and health      http://{metrics}/metrics  http://{metrics}/readyz
  Name server             {}
  Configuration           {}

  ok.test, second.test    take everything, and so does {sender}
  greylist.test           wants to be asked twice
  reject.test             does not know nobody@reject.test: a failure report comes to the sender
  dead.test, nullmx.test  nothing listens there: mail waits in the queue; takes no mail, and says so in the DNS
  slow.test, busy.test    three seconds for a reply; 421 to more than five messages a second
  full.test, small.test   452, its mailboxes are full; takes 20 KiB at most
  plain.test, broken-tls.test, sevenbit.test   no TLS; TLS that fails; no 8-bit messages
  utf8.test               takes addresses beyond ASCII (SMTPUTF8), which the others don't
  drop-after-dot.test     hangs up instead of a reply: mail comes twice

Send a message, with Python or with swaks:

  python3 - <<'END'
  import smtplib, ssl
  with smtplib.SMTP('{host}', {port}) as relay:
      relay.starttls(context=ssl.create_default_context(cafile='{ca}'))
      relay.login('{username}', '{password}')
      relay.sendmail('{sender}', ['you@ok.test', 'nobody@reject.test'],
          'From: {sender}\\r\\nTo: you@ok.test\\r\\nSubject: Hello\\r\\n\\r\\nFirst mail.\\r\\n')
  END

  swaks --server {submission} --tls --auth PLAIN --auth-user {username} --auth-password {password} \\
      --from {sender} --to you@ok.test

See what arrived, with the receiver's verdict on SPF and DKIM, and the message itself:

  curl http://{http}/lab/mailboxes/you@ok.test
  curl http://{http}/lab/mailboxes/you@ok.test/0
  curl http://{http}/lab/mailboxes/{sender}/0

Ask the relay, from another terminal:

  export POSTRIDER_ADMIN={}
  postrider queue list

Ctrl-C ends it.
",
            at("submissions"),
            at("trusted"),
            self.lab.dns,
            config.display(),
            self.admin().unwrap_or_default(),
        )
    }
}

/// Whose mail the lab's relay sends.
const SENDER_DOMAIN: &str = "sender.test";
