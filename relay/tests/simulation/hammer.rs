//! Peers that want nothing of us are not asked again and again, whatever waits for them.

use super::*;

const THREE: &str = "[delivery]\npool = \"all\"\n\
    [[source]]\nname = \"s1\"\naddresses = [\"192.0.2.1\"]\n[[source]]\nname = \"s2\"\naddresses = [\"192.0.2.2\"]\n\
    [[source]]\nname = \"s3\"\naddresses = [\"192.0.2.3\"]\n[[pool]]\nname = \"all\"\nsources = [\"s1\", \"s2\", \"s3\"]\n";

/// Of a lane, at once, as they are configured unless told otherwise.
const CONNECTIONS: usize = 20;

/// After 1, 2, 4 and 8 minutes, and then every ten, one connection tries whether the host works again.
const TRIES_AN_HOUR: usize = 9;

/// After 1, 2, 4 … 32 seconds, and then every minute, where that is what the peer asks for.
const ASKED_AN_HOUR: usize = 6 + 59;

/// The connections that a host gets within an hour, with a thousand messages waiting for it.
fn connections(host: Host, config: &str, domains: usize) -> Vec<Instant> {
    let recipients: Vec<String> = (0..1_000)
        .map(|number| format!("r{number}@d{}.test", number % domains))
        .collect();
    let recipients: Vec<&str> = recipients.iter().map(String::as_str).collect();
    let store = MemoryStore::new();
    let world = Rc::new(hosted(host));
    live(&world, &store, START, config, async |relay| {
        relay.take_in(&recipients).await;
        // Then they expire.
        sleep(59 * MINUTE).await;
        assert_eq!(units(&relay.queue), 1_000, "{host:?}: nothing has become of any");
    });
    let connected = world.connected.borrow();
    let to = connected.iter().filter(|(_, number)| *number == 0);
    to.map(|(at, _)| *at).collect()
}

/// From each source it may see as many connections at first as a lane may have, and then one by one.
fn is_not_hammered(host: Host, (config, sources): (&str, usize), domains: usize, tries: usize) {
    let what = format!("{host:?}, {sources} sources, {domains} domains");
    let all = connections(host, config, domains);
    let bound = sources * (CONNECTIONS + tries);
    assert!(all.len() <= bound, "{what}: {} of {bound}", all.len());
    let begun = all[0] + Duration::from_millis(100);
    let late = all.iter().filter(|&&at| at > begun).count();
    assert!(late <= sources * tries, "{what}: {late} one by one");
    assert!(late >= sources * tries / 2, "{what}: it is tried, {late}");
}

const ONE: (&str, usize) = ("", 1);
const ALL: (&str, usize) = (THREE, 3);

#[test]
fn who_says_421_at_once_is_not_hammered() {
    is_not_hammered(Host::Greets("421 busy"), ALL, 1, TRIES_AN_HOUR);
    is_not_hammered(Host::Greets("421 busy"), ONE, 40, TRIES_AN_HOUR);
    let words = "421 4.7.0 too many connections";
    is_not_hammered(Host::Greets(words), ALL, 40, TRIES_AN_HOUR);
}

/// What a peer asks for is heard, within reason: also where the lane leaves memory in between, as that of a single queue does.
#[test]
fn who_says_421_and_asks_for_a_second_is_not_hammered() {
    let words = "421 4.3.2 try again in 1 second";
    is_not_hammered(Host::Greets(words), ONE, 1, ASKED_AN_HOUR);
    is_not_hammered(Host::Greets(words), ALL, 40, ASKED_AN_HOUR);
}

#[test]
fn who_hangs_up_at_once_is_not_hammered() {
    let resets = |phase| Host::Faulty(Fault::Instead, phase, 60 * MINUTE);
    is_not_hammered(Host::Dead, ALL, 40, TRIES_AN_HOUR);
    is_not_hammered(resets(Phase::Greeting), ALL, 1, TRIES_AN_HOUR);
    is_not_hammered(resets(Phase::Ehlo), ONE, 40, TRIES_AN_HOUR);
}

/// A message is put off for each connection.
#[test]
fn who_hangs_up_later_is_not_hammered() {
    let resets = |phase| Host::Faulty(Fault::Instead, phase, 60 * MINUTE);
    is_not_hammered(resets(Phase::Mail), ALL, 40, TRIES_AN_HOUR);
    is_not_hammered(resets(Phase::Rcpt), ONE, 1, TRIES_AN_HOUR);
    is_not_hammered(resets(Phase::Body), ALL, 1, TRIES_AN_HOUR);
}
