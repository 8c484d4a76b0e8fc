//! Which rules decide the way of mail of which not everything is known: what `postrider config effective` tells.

use std::sync::Arc;

use mail_core::{Domain, ReversePath};

use crate::config::Settings;
use crate::config::egress::Pool;
use crate::config::routes::{NextHop, RouteRule};
use crate::config::settings::SenderPattern;

/// Which mail is asked about. What is `None` may be anything.
#[derive(Clone, Copy, Debug)]
pub struct Asked<'a> {
    /// Where it goes.
    pub domain: &'a Domain,
    /// Whose it is.
    pub tenant: Option<&'a str>,
    /// In which stream.
    pub stream: Option<&'a str>,
    /// MAIL's address.
    pub reverse_path: Option<&'a ReversePath>,
}

/// The rules that decide, by their numbers.
#[derive(Debug, PartialEq, Eq)]
pub struct Deciding {
    /// Those that may, in order, by what is not known of the mail.
    pub perhaps: Vec<usize>,
    /// The one that does where none of these: it fits whatever is not known. `None`: no rule does.
    pub surely: Option<usize>,
}

/// How far a rule fits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Fit {
    No,
    Perhaps,
    Yes,
}

impl From<bool> for Fit {
    fn from(fits: bool) -> Self {
        if fits { Self::Yes } else { Self::No }
    }
}

/// The rules that decide which way the mail goes, where safe mode does not.
pub fn deciding(asked: Asked<'_>, rules: &[RouteRule]) -> Deciding {
    let mut deciding = Deciding {
        perhaps: Vec::new(),
        surely: None,
    };
    for (number, rule) in rules.iter().enumerate() {
        match fit(asked, rule) {
            Fit::No => {}
            Fit::Perhaps => deciding.perhaps.push(number),
            Fit::Yes => {
                deciding.surely = Some(number);
                break;
            }
        }
    }
    deciding
}

/// The pool of mail that goes by a rule, or by none, and the key that says so.
pub fn pool(settings: &Settings, rule: Option<usize>) -> Option<(&Arc<Pool>, String)> {
    let egress = &settings.delivery.egress;
    let of_rule = rule.and_then(|number| {
        let name = settings.routing.rules.get(number)?.pool.as_ref()?;
        Some((egress.pool(name)?, format!("route[{number}].pool")))
    });
    let goes_on = rule
        .and_then(|number| settings.routing.rules.get(number))
        .is_none_or(|rule| matches!(rule.next_hop, NextHop::Mx | NextHop::SmartHost(_)));
    let default = || Some((egress.default_pool.as_ref()?, "delivery.pool".to_owned()));
    of_rule.or_else(default).filter(|_| goes_on)
}

fn fit(asked: Asked<'_>, rule: &RouteRule) -> Fit {
    let named = |names: &[Arc<str>], name: Option<&str>| match name {
        _ if names.is_empty() => Fit::Yes,
        None => Fit::Perhaps,
        Some(name) => names.iter().any(|own| **own == *name).into(),
    };
    let from = match asked.reverse_path {
        _ if rule.from.is_empty() => Fit::Yes,
        None => Fit::Perhaps,
        Some(path) => rule.from.iter().any(|pattern| pattern.fits(path)).into(),
    };
    let to = rule.to.iter().map(|pattern| recipients(pattern, asked.domain));
    let to = if rule.to.is_empty() {
        Fit::Yes
    } else {
        to.max().unwrap_or(Fit::No)
    };
    to.min(from)
        .min(named(&rule.tenants, asked.tenant))
        .min(named(&rule.streams, asked.stream))
}

/// Whether the addresses of a domain are among these.
fn recipients(pattern: &SenderPattern, domain: &Domain) -> Fit {
    match pattern {
        SenderPattern::Any => Fit::Yes,
        SenderPattern::Domain(of) => (of == domain).into(),
        SenderPattern::Below(parent) => (domain != parent && domain.is_within(parent)).into(),
        SenderPattern::Mailbox(mailbox) if mailbox.domain() == domain => Fit::Perhaps,
        SenderPattern::Mailbox(_) => Fit::No,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::delivery::shard::test_settings as settings;

    const RULES: &str = "[[smart_host]]\nname = \"out\"\nhosts = [{ address = \"::1\" }]\n\
        [[source]]\nname = \"s\"\naddresses = [\"192.0.2.1\"]\n[[pool]]\nname = \"p\"\nsources = [\"s\"]\n\
        [[pool]]\nname = \"main\"\nsources = [\"s\"]\n[delivery]\npool = \"main\"\n\
        [[route]]\nto = [\"other.test\"]\nnext_hop = \"out\"\n\
        [[route]]\nto = [\"*.test\", \"a@own.example\"]\nstreams = [\"bulk\"]\nnext_hop = \"mx\"\npool = \"p\"\n\
        [[route]]\nto = [\"own.test\"]\nnext_hop = \"mx\"\n\
        [[route]]\nfrom = [\"<>\", \"s.test\"]\ntenants = [\"t\"]\nnext_hop = \"discard\"\nreason = \"no reports\"\n";

    /// The rules that may decide, the one that surely does, and the key of the pool that is then in force.
    type Told = (Vec<usize>, Option<usize>, Option<String>);

    fn told(domain: &str, tenant: Option<&str>, stream: Option<&str>, from: Option<&str>) -> Told {
        let settings = settings(RULES);
        let from = from.map(|text| match text {
            "" => ReversePath::Null,
            text => ReversePath::Mailbox(text.parse().unwrap()),
        });
        let asked = Asked {
            domain: &domain.parse().unwrap(),
            tenant,
            stream,
            reverse_path: from.as_ref(),
        };
        let Deciding { perhaps, surely } = deciding(asked, &settings.routing.rules);
        let pool = pool(&settings, surely).map(|(_, key)| key);
        (perhaps, surely, pool)
    }

    #[test]
    fn what_is_not_known_leaves_rules_open() {
        let main = || Some("delivery.pool".to_owned());
        assert_eq!(told("other.test", None, None, None), (vec![], Some(0), main()));
        assert_eq!(told("own.test", None, None, None), (vec![1], Some(2), main()));
        assert_eq!(
            told("own.test", None, Some("bulk"), None),
            (vec![], Some(1), Some("route[1].pool".into()))
        );
        assert_eq!(
            told("own.test", None, Some("other"), None),
            (vec![], Some(2), main())
        );
        // One mailbox of the domain, and one tenant's reports.
        assert_eq!(told("own.example", None, None, None), (vec![1, 3], None, main()));
        assert_eq!(told("else.example", None, None, None), (vec![3], None, main()));
        assert_eq!(
            told("else.example", Some("u"), None, None),
            (vec![], None, main())
        );
        assert_eq!(
            told("else.example", Some("t"), None, Some("x@y.test")),
            (vec![], None, main())
        );
        assert_eq!(
            told("else.example", Some("t"), None, Some("")),
            (vec![], Some(3), None)
        );
        assert_eq!(
            told("else.example", Some("t"), None, Some("x@s.test")),
            (vec![], Some(3), None)
        );
    }
}
