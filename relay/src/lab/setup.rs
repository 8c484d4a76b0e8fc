//! What the lab's relay is given: keys, a certificate, a credential, and the configuration that names them.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use dkim_signer::dns::key_record;
use dkim_signer::key::generate_file;
use dkim_signer::{Algorithm, PrivateKey, Selector, secret};
use lab::Lab;
use mail_core::{Domain, Mailbox};
use zeroize::Zeroizing;

use crate::credentials::file;

/// How the lab is used.
pub(super) struct Access {
    pub(super) username: &'static str,
    pub(super) password: Zeroizing<String>,
    /// May be used in MAIL FROM and From, and has a mailbox.
    pub(super) sender: Mailbox,
    pub(super) config: PathBuf,
}

const USERNAME: &str = "app";
const TENANT: &str = "lab";

/// Writes everything into the lab's folder and the keys' records into its DNS. Keys of an earlier run are used again, since
/// what waits in the queue may be signed with them; the password is made anew. Returns the configuration's path.
pub(super) fn write(lab: &Lab, domain: &Domain) -> anyhow::Result<(PathBuf, Access)> {
    let dir = lab.dir();
    let relay: Domain = format!("relay.{domain}").parse()?;
    let sender = Mailbox::new(USERNAME, domain.clone())?;
    for algorithm in [Algorithm::RsaSha256, Algorithm::Ed25519Sha256] {
        let path = key_file(dir, algorithm);
        let key = match path.exists() {
            true => PrivateKey::load(&path)?,
            false => generate_file(algorithm, &path)?,
        };
        let selector: Selector = algorithm.key_tag().parse()?;
        let record = key_record(domain, &selector, &key);
        lab.zone.txt(&record.name, &record.text)?;
    }

    let issued = lab.ca.issue(&["localhost", "127.0.0.1", "::1", relay.as_str()])?;
    let (certificate, key) = (dir.join("relay.crt"), dir.join("relay.key"));
    write_file(&certificate, &issued.certificate)?;
    remove(&key)?;
    secret::write_new(&key, issued.key.as_bytes())?;

    let credentials = dir.join("credentials.toml");
    remove(&credentials)?;
    let password = file::add(&credentials, USERNAME, TENANT, None, None)?;

    let config = dir.join("postrider.toml");
    write_file(&config, &configuration(lab, domain, &relay))?;
    let access = Access {
        username: USERNAME,
        password,
        sender,
        config: config.clone(),
    };
    Ok((config, access))
}

fn key_file(dir: &Path, algorithm: Algorithm) -> PathBuf {
    dir.join(format!("dkim.{}.pem", algorithm.key_tag()))
}

/// Relative paths start at the configuration's folder.
fn configuration(lab: &Lab, domain: &Domain, relay: &Domain) -> String {
    let Lab { smtp_port, dns, .. } = lab;
    format!(
        r#"# The lab's relay. It differs from others in where its name server and its next hops are, and in its haste.
hostname = "{relay}"
postmaster = "postmaster@{domain}"
credentials = "credentials.toml"
drain_timeout = "5s"

[store]
path = "queue"
min_free = "64MiB"

[tenants.{TENANT}]
senders = ["{domain}"]

[[listener]]
kind = "submission"
address = "127.0.0.1:0"
certificate = "relay.crt"
key = "relay.key"

[[listener]]
kind = "submissions"
address = "127.0.0.1:0"
certificate = "relay.crt"
key = "relay.key"

[[listener]]
kind = "trusted"
address = "127.0.0.1:0"
networks = ["127.0.0.0/8"]
tenant = "{TENANT}"

[delivery]
port = {smtp_port}
ca_file = "ca.pem"

[delivery.retry]
first = "1s"
factor = 1.5
cap = "30s"
jitter = 0.1

[delivery.timeouts]
connect = "5s"

[dns]
servers = ["{dns}"]

[[dkim]]
domain = "{domain}"
selector = "rsa"
key = "dkim.rsa.pem"

[[dkim]]
domain = "{domain}"
selector = "ed25519"
key = "dkim.ed25519.pem"

[metrics]
address = "127.0.0.1:0"

[admin]
socket = "admin.sock"
"#
    )
}

fn write_file(path: &Path, text: &str) -> anyhow::Result<()> {
    fs::write(path, text).with_context(|| path.display().to_string())
}

/// A file of an earlier run, if there is one.
fn remove(path: &Path) -> anyhow::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(error).with_context(|| path.display().to_string())
        }
        _ => Ok(()),
    }
}
