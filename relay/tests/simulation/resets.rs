//! Connections that break in each phase: nothing is lost, and nothing doubled but what broke after the final dot (CASES 2, resets).

use super::faulty::books;
use super::*;

/// What became of all: each recipient's message was taken, and more than once only as often as that was in doubt.
fn nothing_is_lost(what: &str, world: &World, queue: &Queue, recipients: &[&str]) -> usize {
    assert!(is_empty(queue), "{what}: {} are left", units(queue));
    let books = books(world, queue);
    let mut doubled = 0;
    for &recipient in recipients {
        let (taken, in_doubt) = books.get(recipient).copied().unwrap_or_default();
        assert!(taken >= 1, "{what}: {recipient} is lost");
        assert!(
            taken <= 1 + in_doubt,
            "{what}: {recipient} was taken {taken} times, {in_doubt} in doubt"
        );
        doubled += taken - 1;
    }
    let kinds = kinds(queue);
    let delivered = kinds.iter().filter(|&&kind| kind == EventKind::Delivered).count();
    assert_eq!(delivered, recipients.len(), "{what}: each ends once");
    doubled
}

#[test]
fn a_connection_reset_in_any_phase_loses_nothing() {
    let recipients: Vec<String> = (0..12).map(|number| format!("r{number}@to.test")).collect();
    let recipients: Vec<&str> = recipients.iter().map(String::as_str).collect();
    for phase in Phase::ALL {
        for fault in [Fault::Instead, Fault::Behind] {
            let what = format!("{fault:?} {phase:?}");
            let shaky = Host::Faulty(fault, phase, 3 * MINUTE);
            let (world, queue) = deliver(world(hosts(&[(10, 0)]), &[shaky]), "", &recipients, 50 * MINUTE);
            let doubled = nothing_is_lost(&what, &world, &queue, &recipients);
            let after_the_dot = (fault, phase) == (Fault::Instead, Phase::Dot);
            assert_eq!(doubled > 0, after_the_dot, "{what}: {doubled} are doubled");
        }
    }
}

#[test]
fn thirty_of_a_hundred_connections_reset_lose_nothing() {
    let seed = 1;
    let mut shaky = world(hosts(&[(10, 0)]), &[]);
    shaky.hosts.resize(30, Host::Shaky(30, 30 * MINUTE));
    shaky.chance = Some(Random::seeded(seed));
    for number in 0..20 {
        let name = format!("d{number}.test");
        shaky.mx.insert(name, hosts(&[(10, 10 + number)]));
    }
    let recipients: Vec<String> = (0..2_000)
        .map(|number| format!("r{number}@d{}.test", number % 20))
        .collect();
    let recipients: Vec<&str> = recipients.iter().map(String::as_str).collect();
    let config = "[delivery.limits]\nconnections = 5\nmessages_per_connection = 3\n";
    let (world, queue) = deliver(shaky, config, &recipients, 58 * MINUTE);
    let doubled = nothing_is_lost(&format!("seed {seed}"), &world, &queue, &recipients);
    let in_doubt = kinds(&queue)
        .into_iter()
        .filter(|&kind| kind == EventKind::InDoubt)
        .count();
    assert!(doubled > 0 && in_doubt >= doubled, "seed {seed}: {doubled}");
}
