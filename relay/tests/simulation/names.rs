//! Name servers that fail: mail waits, and only what is for that name (CASES 2, DNS).

use super::*;

/// What a name server says, or does not.
pub enum Dns {
    /// Whatever [`World::mx`] has.
    AsEver,
    Says(MxAnswer),
    /// SERVFAIL, REFUSED, an answer that does not read.
    Fails(&'static str),
    Silence,
}

pub type Says = Box<dyn Fn(&str, Duration, usize) -> Dns>;

pub async fn answer(world: &World, says: &Says, domain: &Domain) -> Result<MxAnswer, DnsError> {
    let failed = |cause: &str| DnsError {
        question: format!("{domain} MX"),
        cause: cause.into(),
    };
    let before = {
        let mut questions = world.questions.borrow_mut();
        let before = questions.iter().filter(|(_, name)| *name == domain.as_str());
        let before = before.count();
        questions.push((world.since_begin(), domain.to_string()));
        before
    };
    match says(domain.as_str(), world.since_begin(), before) {
        Dns::AsEver => world
            .mx
            .get(domain.as_str())
            .cloned()
            .ok_or_else(|| failed("SERVFAIL")),
        Dns::Says(answer) => Ok(answer),
        Dns::Fails(cause) => Err(failed(cause)),
        Dns::Silence => std::future::pending().await,
    }
}

const UNTIL: Duration = Duration::from_secs(12 * 60);

/// Each with its mail.
const MINUTES: usize = 24;

/// The mail of `to.test` and of others, minute by minute, with such a name server until the twelfth; `to.test` has this host.
fn with_names(what: &str, host: Host, says: Says) -> (Rc<World>, Queue) {
    let mut failing = world(hosts(&[(10, 0)]), &[host]);
    failing.names = Some(says);
    for number in 1..=2 {
        failing
            .mx
            .insert(format!("d{number}.test"), hosts(&[(10, number)]));
    }
    let (world, store) = (Rc::new(failing), MemoryStore::new());
    let queue = live(&world, &store, START, "", async |relay| {
        for minute in 0..MINUTES {
            let others: Vec<_> = (1..=2)
                .map(|number| format!("m{minute}@d{number}.test"))
                .collect();
            let others: Vec<_> = others.iter().map(String::as_str).collect();
            let before = Instant::now();
            relay.take_in(&others).await;
            let lost = format!("m{minute}@to.test");
            relay.take_in(&[lost.as_str()]).await;
            sleep(MINUTE).await;
            for other in others {
                let taken = world.taken.borrow();
                let found = taken.iter().find(|(.., to)| to == &[other]);
                let (at, ..) = found.unwrap_or_else(|| panic!("{what}: {other} does not go"));
                assert!(*at - before <= Duration::from_secs(1), "{what}: {other}");
            }
        }
    });
    (world, queue)
}

fn of_to_test(world: &World) -> usize {
    let taken = world.taken.borrow();
    taken
        .iter()
        .filter(|(.., to)| to[0].ends_with("@to.test"))
        .count()
}

#[test]
fn a_name_that_cannot_be_told_defers_its_own_mail_alone() {
    for (what, says) in [
        ("SERVFAIL", (|_| Dns::Fails("SERVFAIL")) as fn(usize) -> Dns),
        ("REFUSED", |_| Dns::Fails("REFUSED")),
        ("an answer that does not read", |_| Dns::Fails("malformed")),
        ("silence", |_| Dns::Silence),
        ("one or the other", |before| match before % 2 {
            0 => Dns::Silence,
            _ => Dns::Fails("SERVFAIL"),
        }),
    ] {
        let fails = Box::new(move |name: &str, since: Duration, before: usize| {
            if name == "to.test" && since < UNTIL {
                return says(before);
            }
            Dns::AsEver
        });
        let (world, queue) = with_names(what, Host::Takes, fails);
        assert_eq!(of_to_test(&world), MINUTES, "{what}");
        assert!(is_empty(&queue), "{what}");
        assert!(!kinds(&queue).contains(&EventKind::Bounced), "{what}");
        let questions = world.questions.borrow();
        let asked = questions
            .iter()
            .filter(|(at, name)| name == "to.test" && *at < UNTIL);
        // After 1, 2 and 4 minutes, however much mail comes in; silence takes its time, too.
        let asked = asked.count();
        assert!((4..=5).contains(&asked), "{what}: {asked} questions");
    }
}

/// A server of the zone has lost it. Before the first answer nobody can know better; from then on it is not believed.
#[test]
fn a_domain_that_is_there_and_not_there_by_turns_bounces_nothing() {
    let flips = |name: &str, since: Duration, before: usize| match name {
        "to.test" if since < UNTIL && before % 2 == 1 => Dns::Says(MxAnswer::NoDomain),
        _ => Dns::AsEver,
    };
    for host in [
        Host::Takes,
        Host::Dead,
        Host::DeadUntil(UNTIL),
        Host::Rcpt("450 4.2.1 later"),
        Host::GreetsUntil(UNTIL, "421 busy"),
    ] {
        let what = format!("{host:?}");
        let (world, queue) = with_names(&what, host, Box::new(flips));
        let recovers = !matches!(host, Host::Dead | Host::Rcpt(_));
        assert_eq!(is_empty(&queue), recovers, "{what}");
        assert_eq!(of_to_test(&world), if recovers { MINUTES } else { 0 }, "{what}");
        assert!(!kinds(&queue).contains(&EventKind::Bounced), "{what}");
        assert_eq!(reports(&world), 0, "{what}");
    }
}

/// The hosts of `to.test` had addresses, and for a while the DNS says that they have none.
#[test]
fn hosts_that_lose_their_addresses_for_a_while_bounce_nothing() {
    let mut loses = world(hosts(&[(10, 0)]), &[Host::Takes]);
    loses.no_address = Some((MINUTE, UNTIL));
    let (world, store) = (Rc::new(loses), MemoryStore::new());
    let queue = live(&world, &store, START, "", async |relay| {
        for minute in 0..MINUTES {
            relay.take_in(&[format!("m{minute}@to.test").as_str()]).await;
            sleep(MINUTE).await;
        }
    });
    assert_eq!(of_to_test(&world), MINUTES);
    assert!(is_empty(&queue));
    assert!(!kinds(&queue).contains(&EventKind::Bounced));
}

/// More hosts than anybody needs, and all of them dead: so many are tried for each connection, and no more.
#[test]
fn a_domain_of_very_many_hosts_is_bounded() {
    for host in [Host::Dead, Host::BlackHole] {
        let mut many = world(hosts(&[(10, 0)]), &[]);
        many.hosts.resize(250, host);
        many.hosts[9] = Host::Takes;
        let all: Vec<_> = (10..250).map(|number| (10, number)).collect();
        many.mx.insert("to.test".into(), hosts(&all));
        many.mx.insert("other.test".into(), hosts(&[(10, 9)]));
        let (world, queue) = deliver(many, "", &["a@to.test", "b@other.test"], 55 * MINUTE);
        assert_eq!(units(&queue), 1, "{host:?}");
        let connections = world.connections.borrow();
        let tries = connections.iter().filter(|&&number| number >= 10).count();
        assert!((32..=10 * 32).contains(&tries), "{host:?}: {tries}");
        assert!(!kinds(&queue).contains(&EventKind::Bounced), "{host:?}");
    }
}

/// Each of them holds a look-up for twenty seconds, and is asked for again after minutes: not in the place of a name that is new.
#[test]
fn silent_names_do_not_hold_up_those_that_answer() {
    const SILENT: usize = 200 * SHARDS;
    let mut silent = world(hosts(&[(10, 0)]), &[]);
    for number in 0..60 {
        silent.mx.insert(format!("d{number}.test"), hosts(&[(10, 1)]));
    }
    silent.names = Some(Box::new(|name: &str, _, _| match name.starts_with("silent") {
        true => Dns::Silence,
        false => Dns::AsEver,
    }));
    let (world, store) = (Rc::new(silent), MemoryStore::new());
    live(&world, &store, START, "", async |relay| {
        let lost: Vec<_> = (0..SILENT)
            .map(|number| format!("r@silent{number}.test"))
            .collect();
        let lost: Vec<_> = lost.iter().map(String::as_str).collect();
        relay.take_in(&lost).await;
        // Until each has been asked for once.
        sleep(2 * MINUTE).await;
        for number in 0..60 {
            let recipient = format!("r@d{number}.test");
            let before = Instant::now();
            relay.take_in(&[recipient.as_str()]).await;
            sleep(Duration::from_secs(10)).await;
            let taken = world.taken.borrow();
            let found = taken.iter().find(|(.., to)| to[0] == recipient);
            let (at, ..) = found.unwrap_or_else(|| panic!("{recipient} does not go"));
            assert!(*at - before <= Duration::from_secs(1), "{recipient}");
        }
        let questions = world.questions.borrow();
        let again = questions.iter().filter(|(_, name)| name.starts_with("silent"));
        assert!(again.count() >= 3 * SILENT, "they are asked for again");
    });
}
