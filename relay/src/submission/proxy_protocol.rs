//! The PROXY protocol, versions 1 and 2 (haproxy's `proxy-protocol.txt`): a load balancer tells whose connection it passes on.
//!
//! Pure: octets in, [`Found`] out. The caller reads no octet beyond the header, so that TLS or SMTP begins right behind it.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// Version 1 ends within this many octets (§2.1).
const MAX_V1: usize = 107;

/// What version 2 may bring in addresses and TLVs. The protocol's own bound is 65,535; proxies send some hundred octets.
const MAX_V2_BODY: usize = 2_048;

/// §2.2.
const SIGNATURE: &[u8; 12] = b"\r\n\r\n\0\r\nQUIT\n";

/// Octets of version 2 before the addresses.
const V2_FIXED: usize = 16;

/// `PP2_TYPE_CRC32C` (§2.2.3).
const CRC32C: u8 = 0x03;

/// What the octets so far say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Found {
    /// Read as many more, and ask again.
    More(usize),
    /// The header is whole; `None` where the proxy speaks for itself (LOCAL, UNKNOWN), such as to see whether we are well.
    Client(Option<SocketAddr>),
    /// No header, or a broken one: nothing that follows can be believed.
    Bad(&'static str),
}

/// Reads a header from `octets`, which hold nothing beyond it: start with none, and put as many in as [`Found::More`] asks for.
pub fn read(octets: &[u8]) -> Found {
    let common = octets.len().min(SIGNATURE.len());
    if octets.is_empty() {
        // Enough to tell the versions apart, and less than the shortest header of either.
        return Found::More(SIGNATURE.len());
    }
    if octets[..common] == SIGNATURE[..common] {
        version_2(octets)
    } else if octets.starts_with(b"PROXY ") {
        version_1(octets)
    } else if octets.len() < SIGNATURE.len() && b"PROXY ".starts_with(&octets[..common.min(6)]) {
        Found::More(SIGNATURE.len() - octets.len())
    } else {
        Found::Bad("no PROXY header")
    }
}

fn version_1(octets: &[u8]) -> Found {
    let Some(line) = octets.strip_suffix(b"\r\n") else {
        if octets.len() >= MAX_V1 {
            return Found::Bad("PROXY line too long");
        }
        // One octet at a time, so that nothing behind the line is taken.
        return Found::More(1);
    };
    // Control characters too: what a proxy sent for one line, something on the way may have made of two.
    let Some(line) = std::str::from_utf8(line).ok().filter(|line| {
        line.bytes()
            .all(|octet| octet == b' ' || octet.is_ascii_graphic())
    }) else {
        return Found::Bad("PROXY line is not printable ASCII");
    };
    let mut words = line.split(' ').skip(1);
    let mut word = || words.next().unwrap_or_default();
    let family = word();
    if family == "UNKNOWN" {
        return Found::Client(None);
    }
    let (source, destination, source_port, destination_port) = (word(), word(), word(), word());
    if words.next().is_some() {
        return Found::Bad("PROXY line has words too many");
    }
    let address = |text: &str| -> Option<IpAddr> {
        match family {
            "TCP4" => text.parse::<Ipv4Addr>().ok().map(IpAddr::V4),
            "TCP6" => text.parse::<Ipv6Addr>().ok().map(IpAddr::V6),
            _ => None,
        }
    };
    // Digits alone, without leading zeros (§2.1).
    let port = |text: &str| text.parse::<u16>().ok().filter(|port| port.to_string() == text);
    match (
        address(source),
        address(destination),
        port(source_port),
        port(destination_port),
    ) {
        (Some(source), Some(_), Some(port), Some(_)) => Found::Client(Some(SocketAddr::new(source, port))),
        _ => Found::Bad("PROXY line has no two addresses and ports"),
    }
}

fn version_2(octets: &[u8]) -> Found {
    let Some(fixed) = octets.first_chunk::<V2_FIXED>() else {
        return Found::More(V2_FIXED - octets.len());
    };
    let (version, family) = (fixed[12], fixed[13]);
    let length = usize::from(u16::from_be_bytes([fixed[14], fixed[15]]));
    if version >> 4 != 2 {
        return Found::Bad("PROXY version is not 2");
    }
    if length > MAX_V2_BODY {
        return Found::Bad("PROXY header too long");
    }
    let missing = V2_FIXED + length - octets.len().min(V2_FIXED + length);
    if missing > 0 {
        return Found::More(missing);
    }
    let body = &octets[V2_FIXED..];
    let (client, tlvs) = match (version & 0x0f, family) {
        // LOCAL: what follows is passed over, whatever it is (§2.2).
        (0, _) => return Found::Client(None),
        (1, 0x11) => match body.split_first_chunk::<12>() {
            Some((addresses, tlvs)) => (Some(v4(addresses)), tlvs),
            None => return Found::Bad("PROXY header has no room for its addresses"),
        },
        (1, 0x21) => match body.split_first_chunk::<36>() {
            Some((addresses, tlvs)) => (Some(v6(addresses)), tlvs),
            None => return Found::Bad("PROXY header has no room for its addresses"),
        },
        // UNSPEC: the proxy does not know. Datagrams and Unix sockets are not what we listen on.
        (1, 0x00) => (None, body),
        (1, _) => return Found::Bad("PROXY family is not TCP"),
        (_, _) => return Found::Bad("PROXY command not known"),
    };
    match check_tlvs(octets, octets.len() - tlvs.len()) {
        Ok(()) => Found::Client(client),
        Err(why) => Found::Bad(why),
    }
}

fn v4(octets: &[u8; 12]) -> SocketAddr {
    let [a, b, c, d, _, _, _, _, high, low, ..] = *octets;
    SocketAddr::new(Ipv4Addr::new(a, b, c, d).into(), u16::from_be_bytes([high, low]))
}

fn v6(octets: &[u8; 36]) -> SocketAddr {
    let mut address = [0; 16];
    address.copy_from_slice(&octets[..16]);
    SocketAddr::new(
        Ipv6Addr::from(address).into(),
        u16::from_be_bytes([octets[32], octets[33]]),
    )
}

/// Walks the TLVs from `at` on. They say nothing we need, but a checksum among them has to be right (§2.2.3).
fn check_tlvs(header: &[u8], mut at: usize) -> Result<(), &'static str> {
    while at < header.len() {
        let Some(&[kind, high, low]) = header[at..].first_chunk::<3>() else {
            return Err("PROXY TLV cut short");
        };
        let value = at + 3..at + 3 + usize::from(u16::from_be_bytes([high, low]));
        let Some(found) = header.get(value.clone()) else {
            return Err("PROXY TLV cut short");
        };
        if kind == CRC32C {
            let zeroed = crc32c::crc32c(&header[..value.start]);
            let zeroed = crc32c::crc32c_append(zeroed, &vec![0; found.len()]);
            let sum = crc32c::crc32c_append(zeroed, &header[value.end..]);
            if found != sum.to_be_bytes() {
                return Err("PROXY checksum wrong");
            }
        }
        at = value.end;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Reads as a listener does; what it found, and how many octets it took.
    fn taken(octets: &[u8]) -> (Found, usize) {
        let mut at = 0;
        loop {
            match read(&octets[..at]) {
                Found::More(count) if at + count > octets.len() => return (Found::More(count), at),
                Found::More(count) => at += count,
                found => return (found, at),
            }
        }
    }

    fn client(text: &str) -> Found {
        Found::Client(Some(text.parse().unwrap()))
    }

    fn v2(command: u8, family: u8, body: &[u8]) -> Vec<u8> {
        let mut header = SIGNATURE.to_vec();
        header.extend([0x20 | command, family]);
        header.extend((body.len() as u16).to_be_bytes());
        header.extend(body);
        header
    }

    const V4: [u8; 12] = [192, 0, 2, 1, 198, 51, 100, 2, 0x30, 0x39, 0x02, 0x4b];

    #[test]
    fn version_1_and_not_an_octet_more() {
        for (line, found) in [
            (
                "PROXY TCP4 192.0.2.1 198.51.100.2 12345 587\r\n",
                client("192.0.2.1:12345"),
            ),
            (
                "PROXY TCP6 2001:db8::1 2001:db8::2 65535 587\r\n",
                client("[2001:db8::1]:65535"),
            ),
            ("PROXY UNKNOWN\r\n", Found::Client(None)),
            ("PROXY UNKNOWN ff:: whatever 1 2\r\n", Found::Client(None)),
        ] {
            let behind = format!("{line}EHLO c.test\r\n");
            assert_eq!(taken(behind.as_bytes()), (found, line.len()), "{line:?}");
        }
    }

    #[test]
    fn version_1_broken() {
        for line in [
            "EHLO c.test\r\nMAIL",
            "PROXY TCP4 192.0.2.1 198.51.100.2 12345\r\n",
            "PROXY TCP4 192.0.2.1 198.51.100.2 12345 65536\r\n",
            "PROXY TCP4 192.0.2.1 198.51.100.2 012345 587\r\n",
            "PROXY TCP4 192.0.2.1 198.51.100.2 12345 587 x\r\n",
            "PROXY TCP4 192.0.2.1  198.51.100.2 12345 587\r\n",
            "PROXY TCP4 2001:db8::1 2001:db8::2 1 2\r\n",
            "PROXY TCP6 192.0.2.1 198.51.100.2 1 2\r\n",
            "PROXY TCP5 192.0.2.1 198.51.100.2 1 2\r\n",
            "PROXY tcp4 192.0.2.1 198.51.100.2 1 2\r\n",
            "proxy TCP4 192.0.2.1 198.51.100.2 1 2\r\n",
            "PROXY UNKNOWN UNKNO\rW\n\r\n",
            "PROXY UNKNOWN \0\r\n",
            &format!("PROXY UNKNOWN {}\r\n", "x".repeat(200)),
        ] {
            assert!(matches!(taken(line.as_bytes()).0, Found::Bad(_)), "{line:?}");
        }
        // Longer than any may be: not read to its end.
        assert_eq!(
            taken(format!("PROXY UNKNOWN {}", "x".repeat(5_000)).as_bytes()).1,
            MAX_V1
        );
    }

    #[test]
    fn version_2_in_pieces_and_whole() {
        let mut v6_body = [0_u8; 36];
        v6_body[..16].copy_from_slice(&"2001:db8::1".parse::<Ipv6Addr>().unwrap().octets());
        v6_body[32..34].copy_from_slice(&443_u16.to_be_bytes());
        let tlvs = [&V4[..], &[0x04, 0, 2, 9, 9], &[0xe0, 0, 0]].concat();
        for (header, found) in [
            (v2(1, 0x11, &V4), client("192.0.2.1:12345")),
            (v2(1, 0x11, &tlvs), client("192.0.2.1:12345")),
            (v2(1, 0x21, &v6_body), client("[2001:db8::1]:443")),
            (v2(0, 0x00, &[]), Found::Client(None)),
            (v2(0, 0x11, b"anything"), Found::Client(None)),
            (v2(1, 0x00, &[]), Found::Client(None)),
        ] {
            let behind = [header.as_slice(), b"EHLO c.test\r\n"].concat();
            assert_eq!(taken(&behind), (found, header.len()));
            for end in 0..header.len() {
                assert!(matches!(read(&header[..end]), Found::More(1..)), "{end}");
            }
        }
    }

    #[test]
    fn version_2_broken() {
        let mut version_3 = v2(1, 0x11, &V4);
        version_3[12] = 0x31;
        for header in [
            version_3,
            v2(2, 0x11, &V4),
            v2(1, 0x12, &V4),
            v2(1, 0x31, &[0; 216]),
            v2(1, 0x11, &V4[..11]),
            v2(1, 0x21, &V4),
            v2(1, 0x11, &[&V4[..], &[4]].concat()),
            v2(1, 0x11, &[&V4[..], &[4, 0, 9, 1]].concat()),
            v2(1, 0x11, &[0; MAX_V2_BODY + 1]),
        ] {
            assert!(matches!(taken(&header).0, Found::Bad(_)), "{header:?}");
        }
    }

    #[test]
    fn a_checksum_has_to_be_right() {
        let mut header = v2(
            1,
            0x11,
            &[&V4[..], &[CRC32C, 0, 4, 0, 0, 0, 0], &[4, 0, 1, 7]].concat(),
        );
        let sum = crc32c::crc32c(&header).to_be_bytes();
        header[31..35].copy_from_slice(&sum);
        assert_eq!(taken(&header).0, client("192.0.2.1:12345"));
        header[38] ^= 1;
        assert_eq!(taken(&header).0, Found::Bad("PROXY checksum wrong"));
        assert!(matches!(
            taken(&v2(1, 0x11, &[&V4[..], &[CRC32C, 0, 3, 0, 0, 0]].concat())).0,
            Found::Bad(_)
        ));
    }
}
