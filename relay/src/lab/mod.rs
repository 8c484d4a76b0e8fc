//! `postrider lab`: the relay in the middle of a small Internet on loopback (DESIGN: how a newcomer meets the relay).
//!
//! It writes the files that a user would write, keys and configuration and credentials, and reads them as `postrider run`
//! does: what is shown here is what runs elsewhere.

mod client;
mod demo;
mod table;

use std::path::{Path, PathBuf};

use anyhow::Context as _;
use clap::Args;
use dkim_signer::key::generate_file;
use dkim_signer::{Algorithm, dns::key_record};
use lab::Lab;
use mail_core::{Domain, Mailbox};
use tokio::runtime::{Builder, Runtime};
use zeroize::Zeroizing;

use crate::config;
use crate::run::{self, Running};

/// The domain that sends.
const SENDER_DOMAIN: &str = "sender.test";
/// Whom applications send as.
const SENDER: &str = "app@sender.test";
/// What the relay calls itself: within the sender's domain, so that its reports are signed by the same keys.
const HOSTNAME: &str = "relay.sender.test";
const TENANT: &str = "lab";
const USERNAME: &str = "app";

/// Options of `postrider lab`.
#[derive(Args)]
pub struct Options {
    /// Print one line of JSON when all is up, and run until told to stop.
    #[arg(long)]
    json: bool,
    /// Send a dozen messages, show what becomes of each, and end.
    #[arg(long, conflicts_with = "json")]
    demo: bool,
    /// Keep everything in this folder, made if it is not there; else in a temporary one, gone at the end.
    #[arg(long, value_name = "FOLDER")]
    dir: Option<PathBuf>,
}

/// The lab with its relay.
struct Stage {
    lab: Lab,
    relay: Running,
    password: Zeroizing<String>,
    runtime: Runtime,
}

/// Runs the lab. False if the demo did not go as it should.
pub fn main(options: &Options) -> anyhow::Result<bool> {
    // The demo's own output tells what happens; the log would only run through it.
    if !options.demo {
        crate::cli::log(crate::config::settings::LogFormat::Text);
    }
    let stage = Stage::set(options.dir.as_deref())?;
    let went_well = if options.demo {
        demo::run(&stage)?
    } else {
        if options.json {
            println!("{}", stage.addresses());
        } else {
            print!("{}", stage.welcome());
        }
        stage.runtime.block_on(crate::cli::told_to_stop())?;
        true
    };
    stage.strike();
    Ok(went_well)
}

impl Stage {
    fn set(dir: Option<&Path>) -> anyhow::Result<Self> {
        if let Some(dir) = dir {
            std::fs::create_dir_all(dir).with_context(|| format!("folder {}", dir.display()))?;
        }
        // Paths in the configuration are the same wherever the command was called from.
        let dir = dir.map(|dir| dir.canonicalize()).transpose()?;
        let runtime = Builder::new_multi_thread()
            .worker_threads(2)
            .thread_name("lab")
            .enable_all()
            .build()?;
        let mut builder = Lab::builder();
        if let Some(dir) = &dir {
            builder = builder.dir(dir);
        }
        let lab = runtime.block_on(builder.start())?;
        let keys = make_keys(&lab)?;
        make_certificate(&lab)?;
        let credentials = lab.dir().join("credentials.toml");
        if credentials.exists() {
            crate::credentials::file::remove(&credentials, USERNAME)?;
        }
        let password = crate::credentials::file::add(&credentials, USERNAME, TENANT, None)?;
        let path = lab.dir().join("postrider.toml");
        std::fs::write(&path, configuration(&lab, &keys)).with_context(|| path.display().to_string())?;
        let relay = run::start(config::load(&path)?)?;
        Ok(Self {
            lab,
            relay,
            password,
            runtime,
        })
    }

    /// `host:port` of a listener of this kind.
    fn listener(&self, kind: &str) -> String {
        let found = self.relay.listeners.iter().find(|(of, _)| *of == kind);
        found.map(|(_, address)| address.to_string()).unwrap_or_default()
    }

    /// As `POSTRIDER_ADMIN` takes it.
    fn admin(&self) -> Option<String> {
        let path = self.relay.admin.as_ref()?;
        Some(format!("unix:{}", path.display()))
    }

    fn addresses(&self) -> serde_json::Value {
        serde_json::json!({
            "submission": self.listener("submission"),
            "submissions": self.listener("submissions"),
            "trusted": self.listener("trusted"),
            "metrics": self.relay.metrics.map(|address| address.to_string()),
            "dns": self.lab.dns.to_string(),
            "lab": self.lab.http.to_string(),
            "admin": self.admin(),
            "username": USERNAME,
            "password": *self.password,
            "sender": SENDER,
            "ca": self.lab.ca.file(),
            "dir": self.lab.dir(),
        })
    }

    fn welcome(&self) -> String {
        let (dir, ca) = (self.lab.dir().display(), self.lab.ca.file().display());
        format!(
            "The lab is up, in {dir}.\n\n\
             Send mail as {SENDER}, user {USERNAME}, password {password}:\n  \
             submission (STARTTLS)  {submission}\n  submissions (TLS)      {submissions}\n  trusted (no password)  {trusted}\n  \
             certificate authority  {ca}\n\n\
             To ok.test, second.test (take all), greylist.test (asks for a second try), reject.test (does not know nobody@),\n\
             dead.test (nothing listens). What arrives:  curl http://{http}/lab/mailboxes\n\
             Metrics:  curl http://{metrics}/metrics\n\
             Queues:   POSTRIDER_ADMIN={admin} postrider queue list\n\n\
             A first message:\n  \
             swaks --server {submission} --tls --auth PLAIN --auth-user {USERNAME} --auth-password {password} \\\n    \
             --from {SENDER} --to you@ok.test\n\nCtrl-C ends it.\n",
            password = *self.password,
            submission = self.listener("submission"),
            submissions = self.listener("submissions"),
            trusted = self.listener("trusted"),
            http = self.lab.http,
            admin = self.admin().unwrap_or_default(),
            metrics = self
                .relay
                .metrics
                .map(|address| address.to_string())
                .unwrap_or_default(),
        )
    }

    fn strike(self) {
        self.relay.stop();
        self.runtime.block_on(self.lab.stop());
    }
}

/// One key of each kind, published in the lab's DNS. Keys that are there from an earlier run are used again.
fn make_keys(lab: &Lab) -> anyhow::Result<Vec<(&'static str, PathBuf)>> {
    let domain: Domain = SENDER_DOMAIN.parse()?;
    let mut keys = Vec::new();
    for (selector, algorithm) in [
        ("rsa", Algorithm::RsaSha256),
        ("ed25519", Algorithm::Ed25519Sha256),
    ] {
        let path = lab.dir().join(format!("{selector}.pem"));
        let key = if path.exists() {
            dkim_signer::PrivateKey::load(&path)?
        } else {
            generate_file(algorithm, &path)?
        };
        let record = key_record(&domain, &selector.parse()?, &key);
        lab.zone.txt(&record.name, &record.text)?;
        keys.push((selector, path));
    }
    Ok(keys)
}

fn make_certificate(lab: &Lab) -> anyhow::Result<()> {
    let issued = lab.ca.issue(&["localhost", "127.0.0.1", HOSTNAME])?;
    std::fs::write(lab.dir().join("certificate.pem"), &issued.certificate)?;
    let key = lab.dir().join("key.pem");
    if key.exists() {
        std::fs::remove_file(&key)?;
    }
    dkim_signer::secret::write_new(&key, issued.key.as_bytes())?;
    Ok(())
}

fn configuration(lab: &Lab, keys: &[(&str, PathBuf)]) -> String {
    let listener = |kind: &str, rest: &str| {
        format!("[[listener]]\nkind = \"{kind}\"\naddress = \"127.0.0.1:0\"\n{rest}\n")
    };
    let tls = "certificate = \"certificate.pem\"\nkey = \"key.pem\"\n";
    let mut text = format!(
        "# The lab's relay: what a user would write, with short waits.\n\
         hostname = \"{HOSTNAME}\"\npostmaster = \"{SENDER}\"\ncredentials = \"credentials.toml\"\ndrain_timeout = \"5s\"\n\n\
         [store]\npath = \"queue\"\nmin_free = \"16MiB\"\n\n\
         [tenants.{TENANT}]\nsenders = [\"{SENDER_DOMAIN}\"]\n\n"
    );
    text.push_str(&listener("submission", tls));
    text.push_str(&listener("submissions", tls));
    text.push_str(&listener(
        "trusted",
        &format!("networks = [\"127.0.0.0/8\"]\ntenant = \"{TENANT}\"\n"),
    ));
    text.push_str(&format!(
        "[delivery]\nport = {}\nca_file = \"ca.pem\"\n\n\
         [delivery.retry]\nfirst = \"2s\"\nfactor = 2.0\ncap = \"1m\"\njitter = 0.1\n\n\
         [dns]\nservers = [\"{}\"]\n\n[metrics]\naddress = \"127.0.0.1:0\"\n\n",
        lab.smtp_port, lab.dns
    ));
    for (selector, path) in keys {
        let path = path.display();
        text.push_str(&format!(
            "[[dkim]]\ndomain = \"{SENDER_DOMAIN}\"\nselector = \"{selector}\"\nkey = \"{path}\"\n\n"
        ));
    }
    text
}

/// Reads an address of this module's own.
fn address(text: &str) -> anyhow::Result<Mailbox> {
    text.parse().with_context(|| text.to_owned())
}
