//! Egress: the addresses that mail is sent from, and the pools that rules choose among, as configured.

mod pool;

use std::collections::BTreeSet;
use std::fmt;
use std::net::IpAddr;
use std::path::Path;
use std::str::FromStr;
use std::sync::Arc;

use mail_core::Domain;

use super::check::is_name;
use super::section::{Check, OwnName, Section, Spot};
use super::settings::Settings;
use super::smart_hosts::{Credentials, LoginKeys, login, read_password};
use super::source::Problem;
use super::streams::Streams;
use super::warm_up::{WarmUp, warm_up};

pub use pool::{MAX_POOLS, Member, Pool};
use pool::{Named, pools};

/// Sources of one configuration. Each has lanes, and series among the metrics.
pub const MAX_SOURCES: usize = 1_000;

/// What limits call the source of mail that goes from no pool, by `delivery.source`.
pub const DEFAULT_SOURCE: &str = "default";

/// RFC 1929 §2: the password's length is one octet.
const MAX_PROXY_PASSWORD: usize = 255;

/// What mail is sent from.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Egress {
    /// All of them, as they are written.
    pub sources: Vec<Arc<Source>>,
    /// What rules may name.
    pub pools: Vec<Arc<Pool>>,
    /// The one of mail that no rule gives another.
    pub default_pool: Option<Arc<Pool>>,
}

impl Egress {
    /// The source of this name.
    pub fn source(&self, name: &str) -> Option<&Arc<Source>> {
        self.sources.iter().find(|source| *source.name == *name)
    }

    /// The pool of this name.
    pub fn pool(&self, name: &str) -> Option<&Arc<Pool>> {
        self.pools.iter().find(|pool| *pool.name == *name)
    }
}

/// One place that mail is sent from.
#[derive(Clone, Debug, PartialEq)]
pub struct Source {
    /// As pools, lanes, logs and metrics say it.
    pub name: Arc<str>,
    /// At most one of each family, and none where the proxy or the interface decides.
    pub addresses: Vec<IpAddr>,
    /// The network interface that connections leave by.
    pub interface: Option<Arc<str>>,
    /// What is said at EHLO; `None`: `delivery.ehlo`.
    pub ehlo: Option<Domain>,
    /// What connects in our stead.
    pub proxy: Option<Proxy>,
    /// The addresses have to be this machine's when the relay starts.
    pub must_be_here: bool,
    /// While it is new.
    pub warm_up: Option<WarmUp>,
}

impl Source {
    /// Its address for connections to an address of this family.
    pub fn address_for(&self, to: IpAddr) -> Option<IpAddr> {
        let same_family = |own: &&IpAddr| own.is_ipv4() == to.is_ipv4();
        self.addresses.iter().find(same_family).copied()
    }

    /// Whether it can reach an address of this family. One without addresses of its own may.
    pub fn reaches(&self, to: IpAddr) -> bool {
        self.addresses.is_empty() || self.address_for(to).is_some()
    }
}

/// What connects in a source's stead.
#[derive(Clone, Debug, PartialEq)]
pub struct Proxy {
    /// What it speaks.
    pub kind: ProxyKind,
    /// A name, whose A and AAAA records are asked for, or an address.
    pub place: Result<Domain, IpAddr>,
    /// Where it listens.
    pub port: u16,
    /// Who we are to it (RFC 1929).
    pub login: Option<Arc<Credentials>>,
    /// It is asked by BIND for the source's address, before CONNECT.
    pub bind: bool,
}

impl fmt::Display for Proxy {
    /// As the configuration writes it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = self.kind.name();
        match &self.place {
            Ok(name) => write!(f, "{kind}://{name}:{}", self.port),
            Err(IpAddr::V4(address)) => write!(f, "{kind}://{address}:{}", self.port),
            Err(IpAddr::V6(address)) => write!(f, "{kind}://[{address}]:{}", self.port),
        }
    }
}

/// What a proxy speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProxyKind {
    /// SOCKS version 5 (RFC 1928).
    Socks5,
    /// A PROXY header of version 2, which says from where and to where it is to connect (haproxy with `usesrc clientip`).
    Haproxy,
}

impl ProxyKind {
    fn name(self) -> &'static str {
        match self {
            Self::Socks5 => "socks5",
            Self::Haproxy => "haproxy",
        }
    }
}

/// The files that proxies' passwords were read from.
pub fn password_files(settings: &Settings) -> impl Iterator<Item = &Path> {
    let sources = settings.delivery.egress.sources.iter();
    sources.filter_map(|source| source.proxy.as_ref()?.login.as_ref()?.file.as_deref())
}

/// Puts the passwords into the settings that are in their files now.
pub fn read_passwords_anew(settings: &mut Settings) -> Result<(), String> {
    let egress = &mut settings.delivery.egress;
    let mut changed = false;
    for source in &mut egress.sources {
        let Some(proxy) = &source.proxy else { continue };
        let Some(login) = &proxy.login else { continue };
        let Some(file) = &login.file else { continue };
        let password = read_password(file)?;
        if password == login.password {
            continue;
        }
        if password.expose().len() > MAX_PROXY_PASSWORD {
            return Err(format!("{}: {LONG_PASSWORD}", file.display()));
        }
        let login = Credentials {
            password,
            ..(**login).clone()
        };
        let proxy = Proxy {
            login: Some(Arc::new(login)),
            ..proxy.clone()
        };
        *source = Arc::new(Source {
            proxy: Some(proxy),
            ..(**source).clone()
        });
        changed = true;
    }
    if changed {
        egress.refer_anew();
    }
    Ok(())
}

impl Egress {
    /// Has the pools hold the sources as they are now.
    fn refer_anew(&mut self) {
        let of_now = |member: &Member| Member {
            source: self.source(&member.source.name).unwrap_or(&member.source).clone(),
            ..member.clone()
        };
        let pool = |pool: &Arc<Pool>| {
            let members = pool.members.iter().map(of_now).collect();
            Arc::new(Pool::new(pool.name.clone(), members))
        };
        let pools: Vec<_> = self.pools.iter().map(pool).collect();
        self.pools = pools;
        let default = self.default_pool.take();
        self.default_pool = default.and_then(|pool| self.pool(&pool.name).cloned());
    }
}

/// Sources that can't be used on this machine, `delivery.source` among them: of addresses that it does not own, by interfaces that it
/// does not have. What a proxy sends from is no matter of this machine.
pub fn not_here(
    settings: &Settings,
    is_here: impl Fn(IpAddr) -> bool,
    has_interface: impl Fn(&str) -> bool,
) -> Vec<Problem> {
    let mut problems = Vec::new();
    let mut tell = |key: String, text: String| {
        let at = settings.effective.place(&key).cloned();
        problems.extend(at.map(|at| Problem { key, text, ..at }));
    };
    if let Some(address) = settings.delivery.source.filter(|address| !is_here(*address)) {
        let text = format!(
            "{address} is no address of this machine's: mail could not be sent from it. Where it comes later, a pool of a \
             [[source]] with must_be_here = false says so"
        );
        tell("delivery.source".to_owned(), text);
    }
    for (number, source) in settings.delivery.egress.sources.iter().enumerate() {
        let key = |key: &str| format!("source[{number}].{key}");
        if !source.must_be_here {
            continue;
        }
        let own = source.addresses.iter().filter(|_| source.proxy.is_none());
        for address in own.filter(|address| !is_here(**address)) {
            let text = format!(
                "{address} is no address of this machine's: mail could not be sent from it. Where it comes later, as those do \
                 that move between machines, must_be_here = false says so"
            );
            tell(key("addresses"), text);
        }
        if let Some(interface) = &source.interface
            && !has_interface(interface)
        {
            tell(
                key("interface"),
                format!("there is no network interface {interface} here"),
            );
        }
    }
    problems
}

/// Whether this machine has a network interface of this name, as far as can be told.
pub fn has_interface(name: &str) -> bool {
    let all = Path::new("/sys/class/net");
    !all.is_dir() || all.join(name).exists()
}

const LONG_PASSWORD: &str = "a proxy takes passwords of 255 octets at the most (RFC 1929)";

/// Reads `[[source]]` and `[[pool]]`. `default` is what `delivery.pool` says. One that is partly wrong is there all the same, so
/// that whoever names it is not told of it as well.
pub(super) fn egress(
    check: &Check<'_>,
    top: &mut Section<'_>,
    default: Option<Spot<String>>,
    streams: &Streams,
) -> Egress {
    let mut egress = Egress {
        sources: sources(check, top),
        ..Egress::default()
    };
    let named = Named {
        tenants: top.names_in("tenants"),
        streams,
    };
    egress.pools = pools(check, top, &egress, &named);
    egress.default_pool = default.and_then(|spot| known_pool(check, &spot, &egress.pools));
    egress
}

/// The pool that a key names; told where there is none.
pub(super) fn known_pool(check: &Check<'_>, spot: &Spot<String>, pools: &[Arc<Pool>]) -> Option<Arc<Pool>> {
    let found = pools.iter().find(|pool| *pool.name == *spot.value);
    if found.is_none() {
        let text = format!(
            "there is no pool \"{0}\"; it would be a [[pool]] with name = \"{0}\"",
            spot.value
        );
        check.problem(spot.at, &spot.key, text);
    }
    found.cloned()
}

/// Tells of a name that is none, or another one's already.
fn check_name(check: &Check<'_>, spot: &Spot<String>, what: &str, taken: &mut BTreeSet<String>) {
    if !is_name(&spot.value) {
        let text = format!("a {what}'s name is made of letters, digits, '-', '_' and '.', 64 at the most");
        check.problem(spot.at, &spot.key, text);
    }
    if !taken.insert(spot.value.clone()) {
        let text = format!("\"{}\" is another {what}'s already", spot.value);
        check.problem(spot.at, &spot.key, text);
    }
}

fn sources(check: &Check<'_>, top: &mut Section<'_>) -> Vec<Arc<Source>> {
    let mut all = Vec::new();
    let mut taken = BTreeSet::new();
    for (number, mut section) in top.sections("source").into_iter().enumerate() {
        let name = section.string("name");
        let name = section.required(
            "name",
            name,
            "what pools, logs and metrics call it, such as \"out1\"",
        );
        if let Some(spot) = &name {
            check_name(check, spot, "source", &mut taken);
            if spot.value == DEFAULT_SOURCE {
                let text = "is what limits call mail that goes from no pool: the source needs another name";
                check.problem(spot.at, &spot.key, text);
            }
        }
        if number == MAX_SOURCES {
            section.problem("", format!("is one too many: there may be {MAX_SOURCES} sources"));
        }
        let read = source(check, &mut section);
        section.end();
        all.extend(name.map(|name| {
            Arc::new(Source {
                name: name.value.into(),
                ..read
            })
        }));
    }
    all
}

/// All but its name.
fn source(check: &Check<'_>, section: &mut Section<'_>) -> Source {
    let says_address = section.has("addresses") && !section.is_empty_list("addresses");
    let says_other = section.has("interface") || section.has("proxy");
    let addresses = addresses(check, section);
    let proxy = proxy(check, section);
    let tells_proxy = |proxy: &Proxy| proxy.bind || proxy.kind == ProxyKind::Haproxy;
    if !says_address && proxy.as_ref().is_some_and(tells_proxy) {
        let what = "the proxy is told by it which of its own addresses to send from";
        section.required::<()>("addresses", None, what);
    } else if !says_address && !says_other {
        let what = "an IP address, or one of each family, such as [\"192.0.2.25\", \"2001:db8::25\"]; or interface; or proxy";
        section.required::<()>("addresses", None, what);
    }
    Source {
        name: "".into(),
        addresses,
        interface: section
            .parsed::<Interface>("interface")
            .map(|spot| spot.value.0.into()),
        ehlo: section.parsed::<OwnName>("ehlo").map(|spot| spot.value.0),
        proxy,
        must_be_here: section.boolean("must_be_here", true),
        warm_up: warm_up(section),
    }
}

fn addresses(check: &Check<'_>, section: &mut Section<'_>) -> Vec<IpAddr> {
    let mut addresses: Vec<IpAddr> = Vec::new();
    for spot in section.list::<UnicastAddress>("addresses").unwrap_or_default() {
        let UnicastAddress(address) = spot.value;
        if addresses.iter().any(|one| one.is_ipv4() == address.is_ipv4()) {
            let text = "is a second address of its family: each address is a source of its own, with its own limits and reputation";
            check.problem(spot.at, &spot.key, text);
        } else {
            addresses.push(address);
        }
    }
    addresses
}

const PROXY_LOGIN: LoginKeys = LoginKeys {
    user: "proxy_user",
    file: "proxy_password_file",
    variable: "proxy_password_env",
};

fn proxy(check: &Check<'_>, section: &mut Section<'_>) -> Option<Proxy> {
    let says = |key: &&str| section.has(key);
    let about_proxy = [
        PROXY_LOGIN.user,
        PROXY_LOGIN.file,
        PROXY_LOGIN.variable,
        "proxy_bind",
    ];
    let without: Vec<_> = about_proxy.into_iter().filter(says).collect();
    if !section.has("proxy") {
        for key in without {
            section.problem(key, "is of no use without proxy");
        }
    }
    let place = section.parsed::<ProxyPlace>("proxy");
    let login = login(check, section, &PROXY_LOGIN);
    let bind = section.boolean("proxy_bind", false);
    let spot = place?;
    let place = spot.value;
    if place.says_login {
        // Without the text, in which the password is.
        let text = format!(
            "user and password go into {} and {}",
            PROXY_LOGIN.user, PROXY_LOGIN.file
        );
        check.problem(spot.at, &spot.key, text);
    }
    if place.kind == ProxyKind::Haproxy {
        for (key, said) in [(PROXY_LOGIN.user, login.is_some()), ("proxy_bind", bind)] {
            if said {
                section.problem(key, "is for socks5:// alone; a PROXY header has no room for it");
            }
        }
    }
    let login = login.flatten();
    if login
        .as_ref()
        .is_some_and(|login| login.password.expose().len() > MAX_PROXY_PASSWORD)
    {
        section.problem(PROXY_LOGIN.user, LONG_PASSWORD);
    }
    Some(Proxy {
        kind: place.kind,
        place: place.place,
        port: place.port,
        login: login.map(Arc::new),
        bind,
    })
}

/// An address that connections can come from.
struct UnicastAddress(IpAddr);

impl FromStr for UnicastAddress {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let address: IpAddr = text
            .parse()
            .map_err(|_| "an IP address is needed, such as \"192.0.2.25\" or \"2001:db8::25\"")?;
        let is_mapped = matches!(address, IpAddr::V6(six) if six.to_ipv4_mapped().is_some());
        if address.is_unspecified() || address.is_multicast() || is_mapped {
            return Err("no connection comes from such an address");
        }
        Ok(Self(address))
    }
}

/// What Linux takes for a network interface's name: 15 octets, no blank, no slash.
struct Interface(String);

impl FromStr for Interface {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let fits = (1..=15).contains(&text.len())
            && text
                .bytes()
                .all(|octet| octet.is_ascii_graphic() && octet != b'/')
            && ![".", ".."].contains(&text);
        fits.then(|| Self(text.to_owned()))
            .ok_or("a network interface's name has 1 to 15 characters, such as \"eth1\"")
    }
}

/// What `proxy` says.
struct ProxyPlace {
    kind: ProxyKind,
    place: Result<Domain, IpAddr>,
    port: u16,
    /// Before the place stands who we are.
    says_login: bool,
}

impl FromStr for ProxyPlace {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        const FORM: &str = "write such as \"socks5://10.0.0.9:1080\" or \"haproxy://proxy.example.net:2526\"";
        let (kind, rest) = text.split_once("://").ok_or(FORM)?;
        let kinds = [ProxyKind::Socks5, ProxyKind::Haproxy];
        let kind = kinds.into_iter().find(|known| known.name() == kind).ok_or(FORM)?;
        let (says_login, rest) = match rest.rsplit_once('@') {
            Some((_, rest)) => (true, rest),
            None => (false, rest),
        };
        let (place, port) = rest.rsplit_once(':').ok_or(FORM)?;
        let port = port.parse().ok().filter(|port| *port > 0).ok_or(FORM)?;
        let in_brackets = place.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
        let place = match in_brackets {
            Some(six) => Err(IpAddr::V6(six.parse().map_err(|_| FORM)?)),
            None => match place.parse() {
                Ok(four) => Err(IpAddr::V4(four)),
                Err(_) => Ok(place.parse().map_err(|_| FORM)?),
            },
        };
        Ok(Self {
            kind,
            place,
            port,
            says_login,
        })
    }
}

#[cfg(test)]
mod tests;
