//! Smart hosts: mail servers that take mail for others, as configured.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;

use mail_core::Domain;
use mail_core::smtp::command::Secret;

use super::check::is_name;
use super::delivery::{address_family, limits};
use super::section::{Check, Section, Spot};
use super::settings::{AddressFamily, DeliverySettings, DestinationLimits, Settings, TlsLevel};

/// A group of hosts that serve alike, under one name.
#[derive(Clone, Debug, PartialEq)]
pub struct SmartHost {
    /// As rules name it.
    pub name: Arc<str>,
    /// At least one.
    pub hosts: Vec<RelayHost>,
    /// How much TLS; verified wherever it is required.
    pub tls: TlsLevel,
    /// TLS from the first octet (RFC 8314 §3.3).
    pub implicit_tls: bool,
    /// Who we are to them.
    pub login: Option<Arc<Credentials>>,
    /// Which of a host's addresses.
    pub family: AddressFamily,
    /// Of all its hosts together.
    pub limits: DestinationLimits,
}

/// One host of the group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RelayHost {
    /// A name, whose A and AAAA records are asked for, or an address.
    pub place: Result<Domain, IpAddr>,
    /// Where it listens.
    pub port: u16,
    /// Lower is tried first (as MX preference).
    pub priority: u16,
    /// Among equals, the share of mail that is offered to it first (as in RFC 2782).
    pub weight: u16,
    /// The name in its certificate, where it isn't the host's.
    pub tls_name: Option<Arc<str>>,
}

/// A name and its password.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Credentials {
    /// Our name there.
    pub user: String,
    /// Never printed.
    pub password: Secret,
    /// Where it was read, unless it is of the environment.
    pub file: Option<PathBuf>,
}

/// The files that passwords were read from.
pub fn password_files(settings: &Settings) -> impl Iterator<Item = &Path> {
    let hosts = settings.routing.smart_hosts.iter();
    hosts.filter_map(|host| host.login.as_ref()?.file.as_deref())
}

/// Puts the passwords into the settings that are in their files now.
pub fn read_passwords_anew(settings: &mut Settings) -> Result<(), String> {
    for host in &mut settings.routing.smart_hosts {
        let Some(login) = &host.login else { continue };
        let Some(file) = &login.file else { continue };
        let password = read_password(file)?;
        if password != login.password {
            let login = Credentials {
                password,
                ..(**login).clone()
            };
            *host = Arc::new(SmartHost {
                login: Some(Arc::new(login)),
                ..(**host).clone()
            });
        }
    }
    Ok(())
}

/// Reads `[[smart_host]]`.
pub(super) fn smart_hosts(
    check: &Check<'_>,
    top: &mut Section<'_>,
    delivery: Option<&DeliverySettings>,
) -> Vec<Arc<SmartHost>> {
    let mut all: Vec<Arc<SmartHost>> = Vec::new();
    let mut names = BTreeSet::new();
    for mut section in top.sections("smart_host") {
        let name = section.string("name");
        let name = section.required("name", name, "what [[route]] calls it, such as \"provider\"");
        if let Some(spot) = &name {
            if !is_name(&spot.value) || ["mx", "refuse", "discard"].contains(&spot.value.as_str()) {
                let text = "a smart host's name is made of letters, digits, '-', '_' and '.', 64 at the most, and none of \
                            \"mx\", \"refuse\", \"discard\"";
                check.problem(spot.at, &spot.key, text);
            }
            if !names.insert(spot.value.clone()) {
                check.problem(
                    spot.at,
                    &spot.key,
                    format!("\"{}\" is another smart host's already", spot.value),
                );
            }
        }
        let read = smart_host(check, &mut section, delivery);
        section.end();
        if let (Some(name), Some(host)) = (name, read) {
            all.push(Arc::new(SmartHost {
                name: name.value.into(),
                ..host
            }));
        }
    }
    all
}

/// All but its name.
fn smart_host(
    check: &Check<'_>,
    section: &mut Section<'_>,
    delivery: Option<&DeliverySettings>,
) -> Option<SmartHost> {
    let login = login(check, section, &LOGIN);
    let says_user = login.is_some();
    let level = if says_user {
        (TlsLevel::Required, false)
    } else {
        (TlsLevel::Opportunistic, false)
    };
    let words = [
        ("opportunistic", (TlsLevel::Opportunistic, false)),
        ("required", (TlsLevel::Required, false)),
        ("implicit", (TlsLevel::Required, true)),
        ("off", (TlsLevel::Off, false)),
    ];
    let (tls, implicit_tls) = section.word("tls", &words, level);
    let allowed = section.boolean("allow_unverified_auth", false);
    if says_user && tls != TlsLevel::Required && !allowed {
        section.problem(
            "tls",
            "with a user it is \"required\" or \"implicit\": anyone on the way could take the password; allow_unverified_auth = \
             true accepts that",
        );
    }
    let port = match (implicit_tls, says_user) {
        (true, _) => 465,
        (false, true) => 587,
        (false, false) => 25,
    };
    let hosts = section.sections("hosts");
    if hosts.is_empty() {
        section.required::<()>(
            "hosts",
            None,
            "at least one, such as [{ host = \"smtp.example.net\" }]",
        );
    }
    let hosts: Vec<_> = hosts
        .into_iter()
        .filter_map(|host| relay_host(check, host, port))
        .collect();
    let family = delivery.map_or(AddressFamily::Any, |delivery| delivery.family);
    let family = address_family(section, family);
    let limits = limits(
        section.section("limits"),
        delivery.map(|delivery| &delivery.limits),
    );
    (!hosts.is_empty()).then(|| SmartHost {
        name: "".into(),
        hosts,
        tls,
        implicit_tls,
        login: login.flatten().map(Arc::new),
        family,
        limits,
    })
}

fn relay_host(check: &Check<'_>, mut section: Section<'_>, port: u16) -> Option<RelayHost> {
    let says_where = section.has("host") || section.has("address");
    let name = section.parsed::<Domain>("host");
    let address = section.parsed::<BareAddress>("address");
    if let (Some(_), Some(spot)) = (&name, &address) {
        check.problem(spot.at, &spot.key, "a host has a name or an address, not both");
    }
    let place = match (name, address) {
        (Some(name), _) => Some(Ok(name.value)),
        (None, Some(address)) => Some(Err(address.value.0)),
        (None, None) => {
            if !says_where {
                section.required::<()>("host", None, "its name; or address, its IP address");
            }
            None
        }
    };
    let tls_name = section.parsed::<TlsName>("tls_name");
    let host = RelayHost {
        place: place.clone().unwrap_or(Err(IpAddr::from([0, 0, 0, 0]))),
        port: section.integer("port", 1..=65_535, u64::from(port)) as u16,
        priority: section.integer("priority", 0..=65_535, 0) as u16,
        weight: section.integer("weight", 0..=65_535, 1) as u16,
        tls_name: tls_name.map(|spot| spot.value.0.into()),
    };
    section.end();
    place.map(|_| host)
}

/// The keys by which a table says who we are to some other server.
pub(super) struct LoginKeys {
    pub(super) user: &'static str,
    pub(super) file: &'static str,
    pub(super) variable: &'static str,
}

const LOGIN: LoginKeys = LoginKeys {
    user: "user",
    file: "password_file",
    variable: "password_env",
};

/// `None`: no user. `Some(None)`: one whose password can't be had.
pub(super) fn login(
    check: &Check<'_>,
    section: &mut Section<'_>,
    keys: &LoginKeys,
) -> Option<Option<Credentials>> {
    let says_user = section.has(keys.user);
    let user = section.parsed::<User>(keys.user);
    let file = section.file(keys.file);
    let variable = section.string(keys.variable);
    match (&user, &file, &variable) {
        (_, Some(_), Some(spot)) => {
            check.problem(
                spot.at,
                &spot.key,
                "the password is in a file or in the environment, not in both",
            );
        }
        (None, Some(Spot { at, key, .. }), _) if !says_user => {
            check.problem(*at, key, format!("is of no use without {}", keys.user));
        }
        (None, _, Some(Spot { at, key, .. })) if !says_user => {
            check.problem(*at, key, format!("is of no use without {}", keys.user));
        }
        (Some(_), None, None) => {
            let what = format!(
                "the file with the user's password; or {}, a variable of the environment",
                keys.variable
            );
            section.required::<()>(keys.file, None, &what);
        }
        _ => {}
    }
    let user = user?.value.0;
    let place = file.as_ref().map(|file| file.value.clone());
    let read = match (file, variable) {
        (Some(file), _) => read_password(&file.value).map_err(|why| check.problem(file.at, &file.key, why)),
        (None, Some(variable)) => match std::env::var(&variable.value) {
            Ok(text) => sound(text.into_bytes()).map_err(|why| {
                check.problem(variable.at, &variable.key, format!("{}: {why}", variable.value))
            }),
            Err(_) => {
                let text = format!("there is no variable {} in the environment", variable.value);
                check.problem(variable.at, &variable.key, text);
                Err(())
            }
        },
        (None, None) => Err(()),
    };
    Some(read.ok().map(|password| Credentials {
        user,
        password,
        file: place,
    }))
}

pub(super) fn read_password(path: &Path) -> Result<Secret, String> {
    let octets = dkim_signer::secret::read(path).map_err(|error| error.to_string())?;
    sound(octets.to_vec()).map_err(|why| format!("{}: {why}", path.display()))
}

/// Without the line end that editors put behind it.
fn sound(mut octets: Vec<u8>) -> Result<Secret, &'static str> {
    while octets.last().is_some_and(|octet| b"\r\n".contains(octet)) {
        octets.pop();
    }
    if octets.is_empty() || octets.len() > 1_024 {
        return Err("a password has 1 to 1,024 octets");
    }
    if octets.iter().any(u8::is_ascii_control) {
        return Err("a password is one line without control characters");
    }
    Ok(Secret::new(octets))
}

/// `user`.
struct User(String);

impl FromStr for User {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let fits = (1..=255).contains(&text.len()) && !text.chars().any(char::is_control);
        fits.then(|| Self(text.to_owned()))
            .ok_or("a user name has 1 to 255 octets and no control characters")
    }
}

/// An IP address; IPv6 with or without brackets.
struct BareAddress(IpAddr);

impl FromStr for BareAddress {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let bare = text.strip_prefix('[').and_then(|text| text.strip_suffix(']'));
        bare.unwrap_or(text).parse().map(Self).map_err(
            |_| "an IP address is needed, such as \"192.0.2.1\" or \"[2001:db8::1]\"; a name goes into host",
        )
    }
}

/// What a certificate can name.
struct TlsName(String);

impl FromStr for TlsName {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match rustls_pki_types::ServerName::try_from(text) {
            Ok(_) => Ok(Self(text.to_owned())),
            Err(_) => Err("a certificate names a host or an IP address"),
        }
    }
}
