//! Commands of SMTP clients, read from octets (RFC 5321 §4.1.1).

use std::fmt;

use memchr::memchr3;
use zeroize::Zeroizing;

use crate::{BadMailbox, BodyType, By, DsnOptions, Hold, Mailbox, Notify, Priority, Reply, ReversePath};

mod bdat;
mod dsn;
mod hold;
mod transfer;
pub(in crate::smtp) mod xclient;

pub use bdat::Chunk;
pub use dsn::{decode_xtext, utf8_as_ascii};
pub use hold::{date_time, max_hold};
pub use xclient::Xclient;

/// The longest line any command may have, CRLF included: AUTH's and its answers' (RFC 4954 §4).
pub const MAX_LINE: usize = 12_288;

/// A command line with its CRLF (RFC 5321 §4.5.3.1.4).
const MAX_COMMAND: usize = 512;

/// MAIL's: SIZE (RFC 1870 §3) adds 26 octets, BODY (RFC 6152 §2) 17, AUTH (RFC 4954 §3) 500, RET and ENVID (RFC 3461 §4)
/// 9 and 107, SMTPUTF8 (RFC 6531 §3.4) 10, HOLDFOR or HOLDUNTIL (RFC 4865 §3) 34, BY (RFC 2852 §2) 17,
/// MT-PRIORITY (RFC 6710 §3) 15.
const MAX_MAIL: usize = MAX_COMMAND + 26 + 17 + 500 + 9 + 107 + 10 + 34 + 17 + 15;

/// RCPT's: NOTIFY (RFC 3461 §4) adds 29 octets, ORCPT 507.
const MAX_RCPT: usize = MAX_COMMAND + 29 + 507;

/// A path with its brackets (RFC 5321 §4.5.3.1.3).
const MAX_PATH: usize = 256;

/// Names in EHLO and HELO (RFC 5321 §4.5.3.1.2).
const MAX_NAME: usize = 255;

/// One command, its arguments read and within their limits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    /// EHLO or HELO.
    Hello(Hello),
    /// MAIL FROM.
    Mail(MailFrom),
    /// RCPT TO.
    Rcpt(RcptTo),
    /// DATA.
    Data,
    /// BDAT (RFC 3030); `None`: how much follows can't be told, and the connection must end here.
    Bdat(Option<Chunk>),
    /// RSET.
    Rset,
    /// NOOP, whatever its argument.
    Noop,
    /// VRFY.
    Vrfy,
    /// EXPN.
    Expn,
    /// HELP.
    Help,
    /// QUIT.
    Quit,
    /// STARTTLS (RFC 3207).
    StartTls,
    /// XCLIENT, or why it can't be read: whether that matters is up to who says it.
    Xclient(Result<Xclient, Reply>),
    /// AUTH (RFC 4954).
    Auth {
        /// Upper case.
        mechanism: String,
        /// The initial response, still in base64; empty where the client wrote `=`.
        initial: Option<Secret>,
    },
    /// A word of another protocol, HTTP above all: a browser made to speak to us. The connection must end here, before
    /// the rest of a request is read as commands.
    Foreign,
}

/// What a client calls itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hello {
    /// As given: a domain or an address literal by RFC 5321 §4.1.1.1; letters, digits and `.-_:[]` are what we see to.
    pub name: String,
    /// EHLO rather than HELO.
    pub esmtp: bool,
}

/// MAIL's arguments.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MailFrom {
    /// Where reports go.
    pub reverse_path: ReversePath,
    /// SIZE: octets the client means to send (RFC 1870 §4).
    pub size: Option<u64>,
    /// BODY (RFC 6152 §2).
    pub body: Option<BodyType>,
    /// SMTPUTF8 (RFC 6531 §3.4).
    pub smtputf8: bool,
    /// RET and ENVID (RFC 3461 §4.3, §4.4).
    pub dsn: DsnOptions,
    /// HOLDFOR or HOLDUNTIL (RFC 4865 §3).
    pub hold: Option<Hold>,
    /// BY (RFC 2852 §4).
    pub by: Option<By>,
    /// MT-PRIORITY (RFC 6710 §3).
    pub priority: Option<Priority>,
}

/// RCPT's arguments.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RcptTo {
    /// To whom.
    pub path: ForwardPath,
    /// NOTIFY (RFC 3461 §4.1).
    pub notify: Option<Notify>,
    /// ORCPT (RFC 3461 §4.2), as given.
    pub orcpt: Option<Box<str>>,
    /// Something in it is beyond ASCII: only of a transaction with SMTPUTF8.
    pub utf8: bool,
}

/// Whom RCPT names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ForwardPath {
    /// `<postmaster>` in any case: ours (RFC 5321 §4.5.1).
    Postmaster,
    /// All others, source routes cut (RFC 5321 Appendix C).
    Mailbox(Mailbox),
}

/// Octets that must not be seen: wiped when dropped, never printed.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(Zeroizing<Vec<u8>>);

impl Secret {
    /// Wraps `octets`.
    pub fn new(octets: Vec<u8>) -> Self {
        Self(Zeroizing::new(octets))
    }

    /// The octets; for checking, not for keeping.
    pub fn expose(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(..)")
    }
}

/// Reads one command line, given without its CRLF. The error is the reply that tells what is wrong; the session goes on.
pub fn parse(line: &[u8]) -> Result<Command, Reply> {
    let (verb, rest) = match line.iter().position(|&c| c == b' ') {
        Some(at) => line.split_at(at),
        None => (line, &[][..]),
    };
    let is = |name: &str| verb.eq_ignore_ascii_case(name.as_bytes());
    if is("BDAT") {
        return Ok(Command::Bdat(bdat::parse(line, rest)));
    }
    let limit = if is("MAIL") {
        MAX_MAIL
    } else if is("RCPT") {
        MAX_RCPT
    } else if is("AUTH") {
        MAX_LINE
    } else {
        MAX_COMMAND
    };
    if line.len() + 2 > limit {
        return Err(too_long());
    }
    // The third line of a PROXY header of version 2, from someone who may not say so.
    if line == b"\0" {
        return Ok(Command::Foreign);
    }
    // Only CRLF ends a line (RFC 5321 §2.3.8): what stands inside was meant to be read as an end by someone else.
    if memchr3(b'\r', b'\n', 0, line).is_some() {
        return Err(Reply::new(500, 5, 2, "bare CR, bare LF or NUL in a command"));
    }
    if is("MAIL") {
        return mail(rest);
    }
    if is("RCPT") {
        return rcpt(rest);
    }
    let argument = rest.trim_ascii();
    if is("EHLO") || is("HELO") {
        let esmtp = is("EHLO");
        return hello(argument).map(|name| Command::Hello(Hello { name, esmtp }));
    }
    if is("AUTH") {
        return auth(argument);
    }
    if is("XCLIENT") {
        return Ok(Command::Xclient(xclient::parse(argument)));
    }
    for (name, command) in [
        ("NOOP", Command::Noop),
        ("VRFY", Command::Vrfy),
        ("EXPN", Command::Expn),
        ("HELP", Command::Help),
    ] {
        if is(name) {
            return Ok(command);
        }
    }
    for (name, command) in [
        ("DATA", Command::Data),
        ("RSET", Command::Rset),
        ("QUIT", Command::Quit),
        ("STARTTLS", Command::StartTls),
    ] {
        if is(name) {
            return if argument.is_empty() {
                Ok(command)
            } else {
                Err(no_argument())
            };
        }
    }
    if is_foreign(verb) {
        return Ok(Command::Foreign);
    }
    Err(Reply::new(500, 5, 1, "command not recognised"))
}

/// Whether the line is RCPT, right or wrong.
pub(super) fn is_rcpt(line: &[u8]) -> bool {
    line.get(..5)
        .is_some_and(|verb| verb.eq_ignore_ascii_case(b"RCPT "))
}

/// The reply to a line over its limit.
pub fn too_long() -> Reply {
    Reply::new(500, 5, 2, "line too long")
}

fn no_argument() -> Reply {
    Reply::new(501, 5, 4, "this command takes no argument")
}

fn is_foreign(verb: &[u8]) -> bool {
    const WORDS: [&str; 14] = [
        "PROXY",
        "GET",
        "POST",
        "PUT",
        "HEAD",
        "OPTIONS",
        "DELETE",
        "PATCH",
        "CONNECT",
        "TRACE",
        "PRI",
        "PROPFIND",
        "HOST:",
        "USER-AGENT:",
    ];
    WORDS
        .iter()
        .any(|word| verb.eq_ignore_ascii_case(word.as_bytes()))
}

fn hello(name: &[u8]) -> Result<String, Reply> {
    let allowed = |c: &u8| c.is_ascii_alphanumeric() || b".-_:[]".contains(c);
    if name.is_empty() || name.len() > MAX_NAME || !name.iter().all(allowed) {
        return Err(Reply::new(501, 5, 4, "a domain or an address literal is needed"));
    }
    Ok(String::from_utf8_lossy(name).into_owned())
}

fn auth(argument: &[u8]) -> Result<Command, Reply> {
    let bad = || {
        Reply::new(
            501,
            5,
            4,
            "AUTH takes a mechanism and at most one initial response",
        )
    };
    let mut words = argument.split(|&c| c == b' ').filter(|word| !word.is_empty());
    let mechanism = words.next().ok_or_else(bad)?;
    // RFC 4422 §3.1: 1 to 20 upper-case letters, digits, hyphens, underscores.
    let allowed = |c: &u8| c.is_ascii_alphanumeric() || b"-_".contains(c);
    if mechanism.len() > 20 || !mechanism.iter().all(allowed) {
        return Err(bad());
    }
    let initial = match words.next() {
        None => None,
        Some(b"=") => Some(Secret::new(Vec::new())), // RFC 4954 §4: an empty initial response
        Some(base64) => Some(Secret::new(base64.to_vec())),
    };
    if words.next().is_some() {
        return Err(bad());
    }
    let mechanism = String::from_utf8_lossy(mechanism).to_ascii_uppercase();
    Ok(Command::Auth { mechanism, initial })
}

fn mail(rest: &[u8]) -> Result<Command, Reply> {
    let (path, parameters) = path(rest, "FROM:", 7)?;
    let reverse_path = match path {
        "" => ReversePath::Null,
        address => ReversePath::Mailbox(mailbox(address, 7)?),
    };
    let (mut size, mut body, mut auth, mut smtputf8, mut hold) = (None, None, None, None, None);
    let mut dsn = DsnOptions::default();
    let (mut by, mut priority) = (None, None);
    for (name, value) in each(parameters) {
        let repeated = if name.eq_ignore_ascii_case("SIZE") {
            size.replace(octets(value)?).is_some()
        } else if name.eq_ignore_ascii_case("BODY") {
            body.replace(body_type(value)?).is_some()
        } else if name.eq_ignore_ascii_case("AUTH") {
            // RFC 4954 §5: who first submitted it, by the client's word. We trust none, so none is passed on.
            auth.replace(value.filter(|v| !v.is_empty()).ok_or_else(bad_value)?)
                .is_some()
        } else if name.eq_ignore_ascii_case("SMTPUTF8") {
            if value.is_some() {
                return Err(bad_value());
            }
            smtputf8.replace(()).is_some()
        } else if name.eq_ignore_ascii_case("RET") {
            dsn.ret.replace(dsn::ret(value)?).is_some()
        } else if name.eq_ignore_ascii_case("ENVID") {
            dsn.envid.replace(dsn::envid(value)?).is_some()
        } else if name.eq_ignore_ascii_case("HOLDFOR") {
            hold.replace(hold::hold_for(value)?).is_some()
        } else if name.eq_ignore_ascii_case("HOLDUNTIL") {
            // One of the two, and once.
            hold.replace(hold::hold_until(value)?).is_some()
        } else if name.eq_ignore_ascii_case("BY") {
            by.replace(transfer::by(value)?).is_some()
        } else if name.eq_ignore_ascii_case("MT-PRIORITY") {
            if priority.replace(transfer::priority(value)?).is_some() {
                return Err(transfer::one_priority());
            }
            false
        } else {
            return Err(unknown_parameter());
        };
        if repeated {
            return Err(given_twice());
        }
    }
    if smtputf8.is_none() && !rest.is_ascii() {
        return Err(needs_smtputf8());
    }
    Ok(Command::Mail(MailFrom {
        reverse_path,
        size,
        body,
        smtputf8: smtputf8.is_some(),
        dsn,
        hold,
        by,
        priority,
    }))
}

/// Parameters with their values, if they have one.
fn each(parameters: &str) -> impl Iterator<Item = (&str, Option<&str>)> {
    parameters
        .split(' ')
        .filter(|parameter| !parameter.is_empty())
        .map(|parameter| match parameter.split_once('=') {
            Some((name, value)) => (name, Some(value)),
            None => (parameter, None),
        })
}

fn rcpt(rest: &[u8]) -> Result<Command, Reply> {
    let (path, parameters) = path(rest, "TO:", 3)?;
    let (mut notify, mut orcpt) = (None, None);
    for (name, value) in each(parameters) {
        let repeated = if name.eq_ignore_ascii_case("NOTIFY") {
            notify.replace(dsn::notify(value)?).is_some()
        } else if name.eq_ignore_ascii_case("ORCPT") {
            orcpt.replace(dsn::orcpt(value)?).is_some()
        } else {
            return Err(unknown_parameter());
        };
        if repeated {
            return Err(given_twice());
        }
    }
    let path = if path.eq_ignore_ascii_case("postmaster") {
        ForwardPath::Postmaster
    } else {
        ForwardPath::Mailbox(mailbox(path, 3)?)
    };
    Ok(Command::Rcpt(RcptTo {
        path,
        notify,
        orcpt,
        utf8: !rest.is_ascii(),
    }))
}

/// Divides ` FROM:<PATH> PARAMETERS` into the address without brackets and source route, and the parameters. `detail` is
/// the enhanced code's for a bad address: 7 of the sender, 3 of a recipient (RFC 3463 §3.2).
fn path<'a>(rest: &'a [u8], keyword: &str, detail: u16) -> Result<(&'a str, &'a str), Reply> {
    let syntax = |text| Reply::new(501, 5, 2, text);
    let rest = rest.trim_ascii();
    let (key, rest) = rest.split_at_checked(keyword.len()).unwrap_or_default();
    if !key.eq_ignore_ascii_case(keyword.as_bytes()) {
        return Err(syntax("FROM: or TO: is missing"));
    }
    let rest = std::str::from_utf8(rest).map_err(|_| syntax("not UTF-8"))?;
    // A space behind the colon is not allowed, yet common.
    let inside = rest
        .trim_start()
        .strip_prefix('<')
        .ok_or_else(|| syntax("an address stands between < and >"))?;
    let end =
        closing_bracket(inside.as_bytes()).ok_or_else(|| syntax("an address stands between < and >"))?;
    let (address, parameters) = (&inside[..end], &inside[end + 1..]);
    if address.len() + 2 > MAX_PATH {
        return Err(Reply::new(501, 1, detail, "address too long"));
    }
    if !parameters.is_empty() && !parameters.starts_with(' ') {
        return Err(syntax("a space is needed behind the address"));
    }
    // RFC 5321 §4.1.1.3: source routes are read and dropped.
    let address = match address.strip_prefix('@').and_then(|route| route.split_once(':')) {
        Some((_, mailbox)) => mailbox,
        None => address,
    };
    Ok((address, parameters))
}

/// Where the `>` stands that is not within quotes.
fn closing_bracket(text: &[u8]) -> Option<usize> {
    let mut quoted = false;
    let mut octets = text.iter().enumerate();
    while let Some((at, octet)) = octets.next() {
        match octet {
            b'\\' if quoted => drop(octets.next()),
            b'"' => quoted = !quoted,
            b'>' if !quoted => return Some(at),
            _ => {}
        }
    }
    None
}

fn mailbox(address: &str, detail: u16) -> Result<Mailbox, Reply> {
    let mailbox: Mailbox = address
        .parse()
        .map_err(|wrong: BadMailbox| Reply::new(501, 1, detail, "").with_text(wrong.to_string()))?;
    // A domain beyond ASCII is longer in the form in which it is sent on.
    if !address.is_ascii() && mailbox.to_string().len() + 2 > MAX_PATH {
        return Err(Reply::new(501, 1, detail, "address too long"));
    }
    Ok(mailbox)
}

fn octets(value: Option<&str>) -> Result<u64, Reply> {
    let digits = value.filter(|v| (1..=20).contains(&v.len()) && v.bytes().all(|c| c.is_ascii_digit()));
    // RFC 1870 §3 allows 20 digits, more than fit: too big in any case.
    digits
        .map(|v| v.parse().unwrap_or(u64::MAX))
        .ok_or_else(bad_value)
}

fn body_type(value: Option<&str>) -> Result<BodyType, Reply> {
    match value {
        Some(v) if v.eq_ignore_ascii_case("7BIT") => Ok(BodyType::SevenBit),
        Some(v) if v.eq_ignore_ascii_case("8BITMIME") => Ok(BodyType::EightBitMime),
        _ => Err(bad_value()),
    }
}

fn given_twice() -> Reply {
    Reply::new(501, 5, 4, "parameter given twice")
}

fn bad_value() -> Reply {
    Reply::new(501, 5, 4, "bad parameter value")
}

/// To what is beyond ASCII, where that was not agreed on (RFC 6531 §3.5).
pub(super) fn needs_smtputf8() -> Reply {
    Reply::new(553, 6, 7, "addresses beyond ASCII need SMTPUTF8")
}

/// RFC 5321 §4.1.1.11.
pub(super) fn unknown_parameter() -> Reply {
    Reply::new(555, 5, 4, "parameter not recognised")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn code(line: &[u8]) -> String {
        match parse(line) {
            Ok(command) => format!("{command:?}"),
            Err(reply) => format!("{} {}", reply.code, reply.enhanced.unwrap()),
        }
    }

    fn from(line: &str) -> MailFrom {
        match parse(line.as_bytes()) {
            Ok(Command::Mail(from)) => from,
            other => panic!("{line}: {other:?}"),
        }
    }

    fn to(line: &str) -> String {
        match parse(line.as_bytes()) {
            Ok(Command::Rcpt(RcptTo { path, .. })) => match path {
                ForwardPath::Mailbox(mailbox) => mailbox.to_string(),
                ForwardPath::Postmaster => "postmaster".to_owned(),
            },
            other => panic!("{line}: {other:?}"),
        }
    }

    #[test]
    fn reads_commands_in_any_case() {
        for (line, command) in [
            ("DATA", Command::Data),
            ("data ", Command::Data),
            ("RsEt", Command::Rset),
            ("NOOP whatever", Command::Noop),
            ("vrfy someone", Command::Vrfy),
            ("EXPN list", Command::Expn),
            ("help", Command::Help),
            ("quit", Command::Quit),
            ("starttls", Command::StartTls),
            ("POST / HTTP/1.1", Command::Foreign),
            ("get / HTTP/1.0", Command::Foreign),
            ("Host: relay.test", Command::Foreign),
            ("PROXY TCP4 192.0.2.1 192.0.2.2 1 25", Command::Foreign),
            ("\0", Command::Foreign),
        ] {
            assert_eq!(parse(line.as_bytes()), Ok(command), "{line}");
        }
        let hello = |name: &str, esmtp| {
            Ok(Command::Hello(Hello {
                name: name.to_owned(),
                esmtp,
            }))
        };
        assert_eq!(parse(b"EHLO client.test"), hello("client.test", true));
        assert_eq!(
            parse(b"helo  [IPv6:2001:db8::1] "),
            hello("[IPv6:2001:db8::1]", false)
        );
    }

    #[test]
    fn reads_mail() {
        let all = from("MAIL FROM:<a@example.com> SIZE=1000 body=8bitmime AUTH=<>");
        assert_eq!(all.reverse_path.to_string(), "a@example.com");
        assert_eq!((all.size, all.body), (Some(1000), Some(BodyType::EightBitMime)));
        let null = from("mail from:<>");
        assert_eq!(
            (null.reverse_path, null.size, null.body),
            (ReversePath::Null, None, None)
        );
        assert_eq!(
            from("MAIL FROM: <@a.test,@b.test:a@example.com>")
                .reverse_path
                .to_string(),
            "a@example.com"
        );
        assert_eq!(
            from("MAIL FROM:<a@b.test> SIZE=99999999999999999999").size,
            Some(u64::MAX)
        );
    }

    /// CASES row 32.
    #[test]
    fn reads_addresses_beyond_ascii() {
        let sender = from("MAIL FROM:<j\u{fc}rgen@m\u{fc}nchen.test> SIZE=9 SMTPUTF8");
        assert!(sender.smtputf8);
        // The domain goes on as A-labels, which any host takes.
        assert_eq!(sender.reverse_path.to_string(), "j\u{fc}rgen@xn--mnchen-3ya.test");
        assert_eq!(
            to("RCPT TO:<\u{7528}\u{6237}@ok.test>"),
            "\u{7528}\u{6237}@ok.test"
        );
        for (line, utf8) in [
            ("RCPT TO:<a@ok.test>", false),
            ("RCPT TO:<a@\u{fc}.test>", true),
            ("RCPT TO:<a@ok.test> ORCPT=utf-8;\u{fc}@ok.test", true),
        ] {
            let Ok(Command::Rcpt(rcpt)) = parse(line.as_bytes()) else {
                panic!("{line}")
            };
            assert_eq!(rcpt.utf8, utf8, "{line}");
        }
        assert_eq!(code(b"MAIL FROM:<j\xfc@b.test> SMTPUTF8"), "501 5.5.2");
        assert_eq!(code(b"RCPT TO:<j\xfc@b.test>"), "501 5.5.2");
        assert_eq!(code("RCPT TO:<a\u{85}b@b.test>".as_bytes()), "501 5.1.3");
    }

    #[test]
    fn reads_rcpt() {
        assert_eq!(to("RCPT TO:<Bob@Example.COM>"), "Bob@example.com");
        assert_eq!(to("rcpt to:<PostMaster>"), "postmaster");
        assert_eq!(to("RCPT TO:<@hop.test:b@example.com>"), "b@example.com");
        assert_eq!(
            to(r#"RCPT TO:<"a> b\"@x"@example.com>"#),
            r#""a> b\"@x"@example.com"#
        );
        assert_eq!(to("RCPT TO:<a%b.test@example.com>"), "a%b.test@example.com");
    }

    #[test]
    fn tells_what_is_wrong() {
        for (line, expected) in [
            ("", "500 5.5.1"),
            (" ", "500 5.5.1"),
            ("XYZZY", "500 5.5.1"),
            ("\u{e9}", "500 5.5.1"),
            ("EHLO", "501 5.5.4"),
            ("EHLO a b", "501 5.5.4"),
            ("EHLO a(b)", "501 5.5.4"),
            ("DATA now", "501 5.5.4"),
            ("RSET x", "501 5.5.4"),
            ("QUIT x", "501 5.5.4"),
            ("STARTTLS x", "501 5.5.4"),
            ("MAIL", "501 5.5.2"),
            ("MAIL TO:<a@b.test>", "501 5.5.2"),
            ("MAIL FROM:a@b.test", "501 5.5.2"),
            ("MAIL FROM:<a@b.test", "501 5.5.2"),
            ("MAIL FROM:<a@b.test>SIZE=1", "501 5.5.2"),
            ("MAIL FROM:<a@b..test>", "501 5.1.7"),
            ("MAIL FROM:<a>", "501 5.1.7"),
            ("MAIL FROM:<postmaster>", "501 5.1.7"),
            ("MAIL FROM:<j\u{fc}rgen@b.test>", "553 5.6.7"),
            ("MAIL FROM:<a@m\u{fc}nchen.test>", "553 5.6.7"),
            ("MAIL FROM:<a@b.test> SIZE", "501 5.5.4"),
            ("MAIL FROM:<a@b.test> SIZE=-1", "501 5.5.4"),
            ("MAIL FROM:<a@b.test> SIZE=1 SIZE=2", "501 5.5.4"),
            ("MAIL FROM:<a@b.test> BODY=BINARYMIME", "501 5.5.4"),
            ("MAIL FROM:<a@b.test> AUTH", "501 5.5.4"),
            ("MAIL FROM:<a@b.test> HOLDFOR", "501 5.5.4"),
            ("MAIL FROM:<a@b.test> HOLDFOR=1 HOLDFOR=1", "501 5.5.4"),
            (
                "MAIL FROM:<a@b.test> HOLDFOR=1 HOLDUNTIL=2030-01-01T00:00:00Z",
                "501 5.5.4",
            ),
            ("MAIL FROM:<a@b.test> HOLDUNTIL=2030-01-01", "501 5.5.4"),
            ("MAIL FROM:<a@b.test> X-HOLD=60", "555 5.5.4"),
            ("MAIL FROM:<a@b.test> BY=0;R", "501 5.5.4"),
            ("MAIL FROM:<a@b.test> BY=5;N BY=5;N", "501 5.5.4"),
            ("MAIL FROM:<a@b.test> MT-PRIORITY=10", "501 5.5.2"),
            ("MAIL FROM:<a@b.test> MT-PRIORITY=1 MT-PRIORITY=1", "501 5.5.2"),
            ("MAIL FROM:<a@b.test> SMTPUTF8=1", "501 5.5.4"),
            ("MAIL FROM:<a@b.test> SMTPUTF8 smtputf8", "501 5.5.4"),
            ("MAIL FROM:<a@b.test> \u{fc}", "555 5.5.4"),
            ("RCPT TO:<>", "501 5.1.3"),
            ("RCPT TO:<a@[192.0.2.1]>", "501 5.1.3"),
            ("RCPT TO:<a b@example.com>", "501 5.1.3"),
            ("RCPT TO:<a@example.com> RRVS=x", "555 5.5.4"),
            ("AUTH", "501 5.5.4"),
            ("AUTH PLAIN a b", "501 5.5.4"),
            ("AUTH PL/AIN", "501 5.5.4"),
            ("NOOP a\nRSET", "500 5.5.2"),
            ("RCPT TO:<a@b.test>\rx", "500 5.5.2"),
            ("RCPT TO:<a\0@b.test>", "500 5.5.2"),
        ] {
            assert_eq!(code(line.as_bytes()), expected, "{line:?}");
        }
    }

    #[test]
    fn holds_the_limits() {
        let noop = |octets: usize| format!("NOOP {}", "x".repeat(octets - 7));
        assert_eq!(code(noop(512).as_bytes()), "Noop");
        assert_eq!(code(noop(513).as_bytes()), "500 5.5.2");
        let mail = |octets: usize| format!("MAIL FROM:<a@b.test> AUTH={}", "x".repeat(octets - 28));
        assert!(parse(mail(MAX_MAIL).as_bytes()).is_ok());
        assert_eq!(code(mail(MAX_MAIL + 1).as_bytes()), "500 5.5.2");
        let auth = |octets: usize| format!("AUTH PLAIN {}", "x".repeat(octets - 13));
        assert!(parse(auth(MAX_LINE).as_bytes()).is_ok());
        assert_eq!(code(auth(MAX_LINE + 1).as_bytes()), "500 5.5.2");
        let local = |n: usize| format!("RCPT TO:<{}@example.com>", "x".repeat(n));
        assert!(parse(local(64).as_bytes()).is_ok());
        assert_eq!(code(local(65).as_bytes()), "501 5.1.3");
        let path = |n: usize| {
            format!(
                "RCPT TO:<{}@{}.test>",
                "x".repeat(64),
                vec!["abcdefg"; n].join(".")
            )
        };
        assert!(parse(path(23).as_bytes()).is_ok()); // 64 + 1 + 183 + 5 + 2 = 255
        assert_eq!(code(path(24).as_bytes()), "501 5.1.3");
        let name = |n: usize| format!("EHLO {}", "x".repeat(n));
        assert!(parse(name(255).as_bytes()).is_ok());
        assert_eq!(code(name(256).as_bytes()), "501 5.5.4");
    }

    #[test]
    fn hides_secrets() {
        let auth = parse(b"auth plain AGEAYg==").unwrap();
        assert_eq!(
            format!("{auth:?}"),
            "Auth { mechanism: \"PLAIN\", initial: Some(Secret(..)) }"
        );
        let Command::Auth { initial, .. } = auth else {
            panic!()
        };
        assert_eq!(initial.unwrap().expose(), b"AGEAYg==");
        let Ok(Command::Auth { initial, .. }) = parse(b"AUTH LOGIN =") else {
            panic!()
        };
        assert_eq!(initial.unwrap().expose(), b"");
    }
}
