//! XCLIENT's arguments (Postfix's XCLIENT_README): what a proxy or filter says of the client it speaks for.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::dsn::is_xtext;
use super::{decode_xtext, hello};
use crate::Reply;

/// What EHLO says that can be told.
pub(in crate::smtp) const OFFER: &str = "XCLIENT NAME ADDR PORT PROTO HELO LOGIN DESTADDR DESTPORT";

/// The longest user name, as of our own.
const MAX_LOGIN: usize = 128;

/// An attribute that may be told to be unknown, for now (`[TEMPUNAVAIL]`) or for good (`[UNAVAILABLE]`): both are `None`.
pub type Told<T> = Option<T>;

/// What is told. Names and ports are checked and then dropped: nothing here goes by them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Xclient {
    /// ADDR: where the client connects from.
    pub address: Option<Told<IpAddr>>,
    /// HELO: what it calls itself.
    pub helo: Option<Told<String>>,
    /// PROTO: it said EHLO rather than HELO.
    pub esmtp: Option<bool>,
    /// LOGIN: the user that it has proven to be.
    pub login: Option<Told<String>>,
}

pub(super) fn parse(argument: &[u8]) -> Result<Xclient, Reply> {
    let bad = || Reply::new(501, 5, 4, "XCLIENT takes NAME=value, the value as xtext");
    let text = std::str::from_utf8(argument).map_err(|_| bad())?;
    let mut said = Xclient::default();
    let mut seen = Vec::new();
    for word in text.split(' ').filter(|word| !word.is_empty()) {
        let (name, value) = word.split_once('=').ok_or_else(bad)?;
        let name = name.to_ascii_uppercase();
        if value.is_empty() || !is_xtext(value) || seen.contains(&name) {
            return Err(bad());
        }
        let value = decode_xtext(value);
        let is_unknown = ["[UNAVAILABLE]", "[TEMPUNAVAIL]"]
            .iter()
            .any(|word| word.eq_ignore_ascii_case(&value));
        let known = (!is_unknown).then_some(value.as_str());
        match name.as_str() {
            "NAME" => {
                known.map(|name| hello(name.as_bytes())).transpose()?;
            }
            "ADDR" => said.address = Some(known.map(|text| address(text).ok_or_else(bad)).transpose()?),
            "DESTADDR" => {
                known.map(|text| address(text).ok_or_else(bad)).transpose()?;
            }
            "PORT" | "DESTPORT" => {
                known.map(str::parse::<u16>).transpose().map_err(|_| bad())?;
            }
            "PROTO" => {
                said.esmtp = match known.map(str::to_ascii_uppercase).as_deref() {
                    None => None,
                    Some("ESMTP") => Some(true),
                    Some("SMTP") => Some(false),
                    Some(_) => return Err(bad()),
                }
            }
            "HELO" => said.helo = Some(known.map(|name| hello(name.as_bytes())).transpose()?),
            "LOGIN" => {
                let is_name =
                    |name: &&str| name.len() <= MAX_LOGIN && name.bytes().all(|c| c.is_ascii_graphic());
                if known.is_some_and(|name| !is_name(&name)) {
                    return Err(bad());
                }
                said.login = Some(known.map(str::to_owned));
            }
            _ => return Err(Reply::new(501, 5, 4, "XCLIENT knows no such name")),
        }
        seen.push(name);
    }
    if seen.is_empty() { Err(bad()) } else { Ok(said) }
}

/// IPv4 as it is, IPv6 with its prefix.
fn address(text: &str) -> Option<IpAddr> {
    match text.get(..5).filter(|start| start.eq_ignore_ascii_case("IPV6:")) {
        Some(_) => text[5..].parse::<Ipv6Addr>().ok().map(IpAddr::V6),
        None => text.parse::<Ipv4Addr>().ok().map(IpAddr::V4),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_is_told() {
        let said = parse(
            b"NAME=c.test ADDR=IPV6:2001:db8::1 port=1234 PROTO=esmtp HELO=c+2Etest LOGIN=a+2Bb@c.test DESTADDR=192.0.2.1 DESTPORT=25",
        )
        .unwrap();
        assert_eq!(said.address, Some(Some("2001:db8::1".parse().unwrap())));
        assert_eq!(said.helo, Some(Some("c.test".into())));
        assert_eq!(
            (said.esmtp, said.login),
            (Some(true), Some(Some("a+b@c.test".into())))
        );
        let said =
            parse(b"ADDR=[UNAVAILABLE] HELO=[TEMPUNAVAIL] LOGIN=[unavailable] NAME=[TEMPUNAVAIL]").unwrap();
        assert_eq!(
            (said.address, said.helo, said.login),
            (Some(None), Some(None), Some(None))
        );
        assert_eq!(parse(b"ADDR=192.0.2.1").unwrap().login, None);
    }

    #[test]
    fn refuses_the_rest() {
        for wrong in [
            "",
            "ADDR",
            "ADDR=",
            "ADDR=x",
            "ADDR=2001:db8::1",
            "ADDR=IPV6:192.0.2.1",
            "ADDR=192.0.2.1 ADDR=192.0.2.2",
            "PORT=99999",
            "PROTO=HTTP",
            "HELO=a+0D+0Ab",
            "HELO=a b",
            "LOGIN=a+20b",
            "HELO=a=b",
            "OTHER=x",
        ] {
            assert_eq!(
                parse(wrong.as_bytes()).map_err(|reply| reply.code),
                Err(501),
                "{wrong}"
            );
        }
    }
}
