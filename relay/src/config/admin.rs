//! The admin API, as configured: its Unix socket, and over TCP where that is wanted.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use mail_core::Domain;

use super::listeners::tls_files;
use super::section::{Check, Section};
use super::settings::TlsFiles;

/// What a socket's address holds (unix(7)), less room for the name under which it is made.
const MAX_SOCKET_PATH: usize = 100;

/// The admin API.
#[derive(Clone, Debug, Default)]
pub struct AdminSettings {
    /// Its Unix socket.
    pub socket: Option<PathBuf>,
    /// Over TCP, for those who have a token.
    pub http: Option<AdminHttp>,
}

/// The admin API over TCP.
#[derive(Clone, Debug)]
pub struct AdminHttp {
    /// Where it listens.
    pub address: SocketAddr,
    /// The file with the hashes of the tokens, made by `postrider token add`.
    pub tokens: PathBuf,
    /// Names under which browsers may know it.
    pub hosts: Arc<[String]>,
    /// Its certificate; without one it speaks plain HTTP.
    pub tls: Option<TlsFiles>,
}

/// Reads `[admin]`.
pub(super) fn admin(check: &Check<'_>, mut section: Section<'_>, store: Option<&PathBuf>) -> AdminSettings {
    let socket = section.file("socket").map(|spot| spot.value);
    let socket = socket.or_else(|| Some(store?.join("admin.sock")));
    if let Some(socket) = &socket {
        if socket.as_os_str().len() > MAX_SOCKET_PATH {
            let text = format!(
                "{} is longer than the {MAX_SOCKET_PATH} octets that a socket's path may have; set a shorter one",
                socket.display()
            );
            section.problem("socket", text);
        }
        section.taken_as("socket", socket.display());
    }
    let address = section.parsed::<SocketAddr>("address");
    let tokens = section.file("tokens");
    let hosts = section.list::<Domain>("hosts");
    let tls = tls_files(check, &mut section);
    let allow_plain = section.boolean("allow_plain", false);
    let http = match address {
        None => {
            for (key, given) in [
                ("tokens", tokens.is_some()),
                ("hosts", hosts.is_some()),
                ("certificate", tls.is_some()),
            ] {
                if given {
                    section.problem(
                        key,
                        "is of no use without address, where the API listens over TCP",
                    );
                }
            }
            None
        }
        Some(address) => {
            if tls.is_none() && !allow_plain && !address.value.ip().is_loopback() {
                let text = "other machines can reach it, and tokens would go over the network in clear: set certificate and key, or \
                            listen on 127.0.0.1; allow_plain = true is for where something in front does TLS";
                check.problem(address.at, &address.key, text);
            }
            let tokens = tokens.unwrap_or_else(|| section.default_file("tokens", "tokens.toml"));
            if let Err(error) = crate::tokens::read(&tokens.value) {
                check.problem(tokens.at, &tokens.key, error.to_string());
            }
            let hosts = hosts.unwrap_or_default();
            Some(AdminHttp {
                address: address.value,
                tokens: tokens.value,
                hosts: hosts.into_iter().map(|spot| spot.value.to_string()).collect(),
                tls,
            })
        }
    };
    section.end();
    AdminSettings { socket, http }
}
