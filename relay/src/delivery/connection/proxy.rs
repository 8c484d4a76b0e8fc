//! Proxies that connect in our stead, from our side: SOCKS version 5 (RFC 1928), with a user and password (RFC 1929), and the PROXY
//! header, version 2 (haproxy's `proxy-protocol.txt`), which names both ends of a connection that is yet to be made.
//!
//! What is said and heard is pure; [`ask`] says and hears it. Not an octet is read beyond the proxy's last word: what follows is the
//! other end's.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::time::timeout;
use zeroize::Zeroizing;

use crate::config::egress::{Proxy, ProxyKind};
use crate::config::smart_hosts::Credentials;

/// Why a proxy gave us no connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refused {
    /// It does not serve us, or nobody in this way.
    Proxy(String),
    /// It hung up when it was to connect: it may have failed, or could not get to the target.
    Midway(String),
    /// It does not serve this: another target may fare better.
    Request(&'static str),
    /// It could not get to the target.
    Target(&'static str),
}

/// Has the proxy at the other end of `stream` connect to `to`, from `from` where it is to know. Each answer may take `patience`.
pub async fn ask<S>(
    stream: &mut S,
    proxy: &Proxy,
    from: Option<IpAddr>,
    to: SocketAddr,
    patience: Duration,
) -> Result<(), Refused>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let within = |what: &'static str| move |_| Refused::Proxy(what.to_owned());
    let login = proxy.login.as_deref();
    match (proxy.kind, from) {
        (ProxyKind::Haproxy, from) => {
            let from = from.ok_or_else(|| Refused::Proxy("there is no address to send from".into()))?;
            let header = proxy_header(SocketAddr::new(from, 0), to);
            timeout(patience, write(stream, &header))
                .await
                .map_err(within("it takes no PROXY header"))?
        }
        (ProxyKind::Socks5, from) => {
            timeout(patience, enter(stream, login))
                .await
                .map_err(within("silence for too long"))??;
            if let Some(from) = from.filter(|_| proxy.bind) {
                timeout(patience, request(stream, Command::Bind, SocketAddr::new(from, 0)))
                    .await
                    .map_err(within("silence for too long after BIND"))?
                    .map_err(|refused| not_bound(from, refused))?;
            }
            timeout(patience, request(stream, Command::Connect, to))
                .await
                // It is the target that it waits for.
                .unwrap_or(Err(Refused::Target("no answer to the connection")))
                .map_err(midway)
        }
    }
}

/// KumoMTA's proxy takes BIND for the wish to connect from an address; RFC 1928 has it for connections that come in, and
/// whoever goes by it says something else.
fn not_bound(from: IpAddr, refused: Refused) -> Refused {
    let why = match refused {
        Refused::Proxy(why) | Refused::Midway(why) => why,
        Refused::Request(why) | Refused::Target(why) => why.to_owned(),
    };
    Refused::Proxy(format!("it does not send from {from}: {why}"))
}

fn midway(refused: Refused) -> Refused {
    match refused {
        Refused::Proxy(why) => Refused::Midway(why),
        refused => refused,
    }
}

async fn write<S: AsyncWrite + Unpin>(stream: &mut S, octets: &[u8]) -> Result<(), Refused> {
    let written = async {
        stream.write_all(octets).await?;
        stream.flush().await
    };
    written.await.map_err(lost)
}

async fn read<S: AsyncRead + Unpin, const N: usize>(stream: &mut S) -> Result<[u8; N], Refused> {
    let mut octets = [0; N];
    stream.read_exact(&mut octets).await.map_err(lost)?;
    Ok(octets)
}

fn lost(error: std::io::Error) -> Refused {
    Refused::Proxy(format!("connection lost: {error}"))
}

/// Agrees on who we are (RFC 1928 §3).
async fn enter<S>(stream: &mut S, login: Option<&Credentials>) -> Result<(), Refused>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    write(stream, greeting(login.is_some())).await?;
    match (method(read(stream).await?)?, login) {
        (Method::Open, _) => Ok(()),
        (Method::Password, Some(login)) => {
            write(stream, &password(login)).await?;
            welcome(read(stream).await?)
        }
        (Method::Password, None) => Err(Refused::Proxy("it wants a user and password".into())),
    }
}

/// Makes a request and hears the answer out (RFC 1928 §4, §6).
async fn request<S>(stream: &mut S, command: Command, address: SocketAddr) -> Result<(), Refused>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    write(stream, &request_for(command, address)).await?;
    granted(read(stream).await?)?;
    let mut rest = [0; MAX_REST];
    let count = rest_of_reply(read(stream).await?)?;
    stream.read_exact(&mut rest[..count]).await.map_err(lost)?;
    Ok(())
}

const SOCKS: u8 = 5;

/// The longest address of a reply, a name of 255 octets, and its port.
const MAX_REST: usize = 255 + 2;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Method {
    Open,
    Password,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Command {
    Connect = 1,
    Bind = 2,
}

/// Methods that we offer: none, and user and password where there are such.
fn greeting(has_login: bool) -> &'static [u8] {
    match has_login {
        false => &[SOCKS, 1, 0],
        true => &[SOCKS, 2, 0, 2],
    }
}

fn method(octets: [u8; 2]) -> Result<Method, Refused> {
    match octets {
        [SOCKS, 0] => Ok(Method::Open),
        [SOCKS, 2] => Ok(Method::Password),
        [SOCKS, 0xff] => Err(Refused::Proxy("it lets us in by no method that we offer".into())),
        [SOCKS, other] => Err(Refused::Proxy(format!(
            "it wants method {other}, which we did not offer"
        ))),
        _ => Err(not_socks()),
    }
}

fn not_socks() -> Refused {
    Refused::Proxy("it does not speak SOCKS version 5".into())
}

/// RFC 1929 §2. The check of the configuration sees to it that both lengths fit.
fn password(login: &Credentials) -> Zeroizing<Vec<u8>> {
    let mut octets = Zeroizing::new(Vec::with_capacity(513));
    octets.push(1);
    for part in [login.user.as_bytes(), login.password.expose()] {
        let part = &part[..part.len().min(255)];
        octets.push(part.len() as u8);
        octets.extend_from_slice(part);
    }
    octets
}

fn welcome(octets: [u8; 2]) -> Result<(), Refused> {
    match octets {
        [_, 0] => Ok(()),
        [_, _] => Err(Refused::Proxy("it does not take our user and password".into())),
    }
}

fn request_for(command: Command, address: SocketAddr) -> Vec<u8> {
    let mut octets = vec![SOCKS, command as u8, 0];
    match address.ip() {
        IpAddr::V4(four) => {
            octets.push(1);
            octets.extend(four.octets());
        }
        IpAddr::V6(six) => {
            octets.push(4);
            octets.extend(six.octets());
        }
    }
    octets.extend(address.port().to_be_bytes());
    octets
}

/// The first two octets of a reply.
fn granted(octets: [u8; 2]) -> Result<(), Refused> {
    let [version, code] = octets;
    if version != SOCKS {
        return Err(not_socks());
    }
    Err(match code {
        0 => return Ok(()),
        1 => Refused::Request("general failure"),
        2 => Refused::Request("not allowed by its rules"),
        3 => Refused::Target("network unreachable"),
        4 => Refused::Target("host unreachable"),
        5 => Refused::Target("connection refused"),
        6 => Refused::Target("no answer to the connection"),
        7 => Refused::Request("it does not know the command"),
        8 => Refused::Request("it does not know addresses of this family"),
        _ => Refused::Request("a failure that RFC 1928 does not name"),
    })
}

/// How many octets follow the next three: reserved, the kind of address, and the address's first.
fn rest_of_reply(octets: [u8; 3]) -> Result<usize, Refused> {
    match octets {
        [_, 1, _] => Ok(4 - 1 + 2),
        [_, 3, length] => Ok(usize::from(length) + 2),
        [_, 4, _] => Ok(16 - 1 + 2),
        _ => Err(not_socks()),
    }
}

/// A header of version 2 (§2.2): a connection over TCP from one address to another. Of two families: none that says anything.
fn proxy_header(from: SocketAddr, to: SocketAddr) -> Vec<u8> {
    let mut octets = b"\r\n\r\n\0\r\nQUIT\n\x21".to_vec();
    let mut addresses = Vec::with_capacity(36);
    let family: u8 = match (from.ip(), to.ip()) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            addresses.extend(from.octets().into_iter().chain(to.octets()));
            0x11
        }
        (IpAddr::V6(from), IpAddr::V6(to)) => {
            addresses.extend(from.octets().into_iter().chain(to.octets()));
            0x21
        }
        _ => 0,
    };
    if !addresses.is_empty() {
        addresses.extend(from.port().to_be_bytes());
        addresses.extend(to.port().to_be_bytes());
    }
    octets.push(family);
    octets.extend((addresses.len() as u16).to_be_bytes());
    octets.extend(addresses);
    octets
}

#[cfg(test)]
mod tests;
