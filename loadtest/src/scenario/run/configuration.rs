//! The relay's ports, its key, and its configuration.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, ensure};

use crate::relay::free_listener;
use crate::scenario::{Name, Plan};

/// Where a relay is reached.
#[derive(Clone, Copy)]
pub(super) struct Doors {
    pub(super) usual: SocketAddr,
    /// What comes in here is in the stream `bulk`.
    pub(super) bulk: SocketAddr,
    pub(super) metrics: SocketAddr,
}

impl Doors {
    /// Ports that are free now.
    pub(super) fn find() -> anyhow::Result<Self> {
        let held = (0..3)
            .map(|_| free_listener())
            .collect::<std::io::Result<Vec<_>>>()?;
        let address = |number: usize| {
            held.get(number)
                .context("a port")?
                .local_addr()
                .map_err(anyhow::Error::from)
        };
        Ok(Self {
            usual: address(0)?,
            bulk: address(1)?,
            metrics: address(2)?,
        })
    }
}

/// Makes a key.
pub(super) fn dkim_key(postrider: &Path, folder: &Path, algorithm: &str) -> anyhow::Result<PathBuf> {
    let key = folder.join("dkim.pem");
    let keygen = std::process::Command::new(postrider)
        .args(["dkim", "keygen", "sender.test", "--algorithm", algorithm, "--out"])
        .arg(&key)
        .output()
        .with_context(|| postrider.display().to_string())?;
    ensure!(
        keygen.status.success(),
        "dkim keygen: {}",
        String::from_utf8_lossy(&keygen.stderr)
    );
    Ok(key)
}

/// The relay's: what anyone would have, but for a port and a name server of the sink's, and limits that let the load in.
pub(super) fn configuration(
    plan: &Plan,
    postrider: &Path,
    folder: &Path,
    doors: Doors,
    (port, dns): (u16, SocketAddr),
) -> anyhow::Result<String> {
    let listener = |address: SocketAddr| {
        format!(
            "[[listener]]\nkind = \"trusted\"\naddress = \"{address}\"\nnetworks = [\"127.0.0.0/8\"]\ntenant = \"load\"\n"
        )
    };
    let mut text = format!(
        "hostname = \"relay.sender.test\"\n\
         [store]\npath = \"{folder}/store\"\n\
         [admin]\nsocket = \"{folder}/admin.sock\"\n\
         [metrics]\naddress = \"{metrics}\"\n\
         [tenants.load]\nsenders = [\"sender.test\"]\n\
         [submission]\nmax_connections = 10100\nmax_connections_per_address = 10100\nmax_message = \"65MiB\"\n\
         [delivery]\nport = {port}\ntls = \"{tls}\"\n{limits}{retry}\
         [dns]\nservers = [\"{dns}\"]\n[log]\nformat = \"json\"\n",
        folder = folder.display(),
        metrics = doors.metrics,
        tls = match plan.name {
            Name::RelayTls => "opportunistic",
            _ => "off",
        },
        limits = plan.limits(),
        // They have mail put off, and want to see it come.
        retry = match plan.name {
            Name::Soak | Name::Crowded => "[delivery.retry]\nfirst = \"1s\"\ncap = \"10s\"\n",
            _ => "",
        },
    );
    if let Some(algorithm) = plan.name.signs() {
        dkim_key(postrider, folder, algorithm)?;
        text.push_str("[[dkim]]\ndomain = \"sender.test\"\nselector = \"s1\"\nkey = \"dkim.pem\"\n");
    }
    text.push_str(&listener(doors.bulk));
    text.push_str("stream = \"bulk\"\n");
    text.push_str(&listener(doors.usual));
    if plan.name == Name::RelayTls {
        use std::os::unix::fs::PermissionsExt as _;
        let issued = lab::Ca::create(&folder.join("ca.pem"))?.issue(&["relay.sender.test"])?;
        fs::write(folder.join("chain.pem"), &issued.certificate)?;
        fs::write(folder.join("key.pem"), &issued.key)?;
        fs::set_permissions(folder.join("key.pem"), fs::Permissions::from_mode(0o600))?;
        text.push_str("certificate = \"chain.pem\"\nkey = \"key.pem\"\n");
    }
    text.push_str(&plan.tables());
    Ok(text)
}
