//! A virtual day with four providers that behave as they say they do (relay/shaping/providers.toml has the sources): what they allow
//! is used and not exceeded, everybody gets the share that is configured, and a password reset does not stand behind newsletters.

use std::collections::BTreeMap;
use std::time::Duration;

use mail_core::Timestamp;

use super::fleet::{Answer, Fleet, START, Sent};

const MINUTE: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(3_600);
const DAY: Duration = Duration::from_secs(86_400);

/// What a message takes, where connections are what is short: few messages make a busy day.
const GOOGLE_TAKES: Duration = Duration::from_secs(100);
const OUTLOOK_TAKES: Duration = Duration::from_secs(30);
const OTHERS_TAKE: Duration = Duration::from_secs(5);

/// Connections at once.
const GOOGLE: usize = 5;
const OUTLOOK: usize = 20;
const GMX: usize = 4;
/// Messages a minute.
const YAHOO: usize = 2;

/// A stream of three times the newsletters' weight.
const DIGEST: &str = "digest";

const CONFIGURATION: &str = "[tenants.u]\nsenders = [\"*\"]\n[[stream]]\nname = \"digest\"\nweight = 3\n\
    [[provider]]\nname = \"outlook\"\n[provider.limits]\nconnections = 40\n\
    [[limit]]\nprovider = \"yahoo\"\nmessages_per_minute = 2\n";

/// The domains of each, and the hosts of these.
const SITES: [(&str, &str); 6] = [
    ("gmail.test", "gmail-smtp-in.l.google.com"),
    ("workspace.test", "aspmx.l.google.com"),
    ("outlook.test", "outlook-com.olc.protection.outlook.com"),
    ("yahoo.test", "mta5.am0.yahoodns.net"),
    ("aol.test", "mx-aol.mail.gm0.yahoodns.net"),
    ("gmx.test", "mx00.emig.gmx.net"),
];

/// GMX's hosts don't answer for three hours.
fn is_down(at: Timestamp) -> bool {
    let since = at.since(START);
    since >= 12 * HOUR && since < 15 * HOUR
}

fn peer(sent: &Sent, open: usize, yahoo: &mut BTreeMap<u64, usize>) -> Answer {
    match sent.domain.as_str() {
        // Google's two sites are lanes of their own, and have the five connections that are shipped together.
        "gmail.test" | "workspace.test" if sent.opened && open > GOOGLE => {
            Answer::Refuses("421 4.7.0 Try again later, closing connection.")
        }
        "gmail.test" | "workspace.test" => Answer::Takes(GOOGLE_TAKES),
        "outlook.test" if sent.opened && open > OUTLOOK => {
            Answer::Refuses("451 4.7.652 The mail server has exceeded the maximum number of connections.")
        }
        "outlook.test" => Answer::Takes(OUTLOOK_TAKES),
        "yahoo.test" | "aol.test" => {
            let in_minute = yahoo.entry(sent.at.0 / 60_000).or_default();
            *in_minute += 1;
            match *in_minute > 2 * YAHOO {
                true => Answer::Refuses(
                    "421 4.7.0 [TSS04] Messages temporarily deferred due to unexpected volume",
                ),
                false => Answer::Takes(OTHERS_TAKE),
            }
        }
        _ if is_down(sent.at) => Answer::Silence,
        _ if sent.opened && open > GMX => Answer::Refuses("421 too many connections"),
        _ => Answer::Takes(OTHERS_TAKE),
    }
}

async fn day() -> Fleet {
    let mut fleet = Fleet::new(2, CONFIGURATION);
    for (domain, host) in SITES {
        fleet.hosts.insert(domain.into(), vec![host.into()]);
    }
    let mut yahoo = BTreeMap::new();
    fleet.peer = Some(Box::new(move |sent, open| peer(sent, open, &mut yahoo)));
    // More newsletters than a day takes, of two tenants; to Outlook, which takes more at once, some hours' worth.
    for (domain, count) in [
        ("gmail.test", 2_400),
        ("workspace.test", 2_400),
        ("outlook.test", 2_000),
        ("yahoo.test", 1_600),
        ("aol.test", 1_600),
    ] {
        for tenant in ["t", "u"] {
            fleet.accept(count, tenant, "bulk", domain, 10).await;
        }
    }
    // And, to those two that are slowest, more of another stream than a day takes.
    for domain in ["gmail.test", "workspace.test", "yahoo.test", "aol.test"] {
        fleet.accept(2_400, "t", DIGEST, domain, 10).await;
    }
    for _ in 0..144 {
        for (domain, _) in SITES {
            fleet.accept(1, "t", "transactional", domain, 10).await;
        }
        fleet.accept(5, "u", "bulk", "gmx.test", 10).await;
        fleet.run(10 * MINUTE).await;
    }
    fleet
}

/// How much of what is possible goes to these domains. While a lane comes to know its peer it is less, and that counts.
fn used(fleet: &Fleet, domains: &[&str], best: f64) -> f64 {
    let sent = fleet.count(|sent| domains.contains(&sent.domain.as_str()));
    sent as f64 / best
}

#[tokio::test]
async fn four_providers_for_a_day() {
    let fleet = day().await;
    // Limits: of the table, of the configuration, and what replies taught.
    let to = |domain: &'static str| move |sent: &Sent| sent.domain == domain;
    let to_google = |sent: &Sent| ["gmail.test", "workspace.test"].contains(&sent.domain.as_str());
    assert_eq!(fleet.most_at_once(to_google), GOOGLE);
    assert!(fleet.most_at_once(to("gmx.test")) <= GMX);
    let to_yahoo = |sent: &Sent| ["yahoo.test", "aol.test"].contains(&sent.domain.as_str());
    assert!(fleet.most_within(MINUTE, to_yahoo) <= YAHOO);
    let refused = |domain: &str| fleet.refused.iter().filter(|(_, of)| of == domain).count();
    assert_eq!(
        refused("gmail.test") + refused("workspace.test") + refused("yahoo.test") + refused("aol.test"),
        0
    );
    let by_outlook = refused("outlook.test");
    assert!(by_outlook <= 60, "{by_outlook} connections too many in a day");

    // Throughput.
    let seconds = DAY.as_secs_f64();
    let by_connections =
        |connections: usize, takes: Duration| connections as f64 * seconds / takes.as_secs_f64();
    let google = used(
        &fleet,
        &["gmail.test", "workspace.test"],
        by_connections(GOOGLE, GOOGLE_TAKES),
    );
    let newsletters = fleet
        .sent
        .iter()
        .filter(|sent| sent.domain == "outlook.test" && sent.stream == "bulk");
    let last = newsletters.map(|sent| sent.until.since(START)).max().unwrap();
    let outlook = 4_000.0 * OUTLOOK_TAKES.as_secs_f64() / OUTLOOK as f64 / last.as_secs_f64();
    let yahoo = used(&fleet, &["yahoo.test", "aol.test"], YAHOO as f64 * 24.0 * 60.0);
    assert!(
        google >= 0.9 && outlook >= 0.9 && yahoo >= 0.9,
        "{google} {outlook} {yahoo}"
    );
    assert_eq!(
        fleet.count(to("gmx.test")),
        6 * 144,
        "all of it, for all that its hosts were down"
    );

    // Shares.
    for domain in [
        "gmail.test",
        "workspace.test",
        "outlook.test",
        "yahoo.test",
        "aol.test",
    ] {
        let of = |tenant: &str| {
            fleet.count(|sent| sent.domain == domain && sent.tenant == tenant && sent.stream == "bulk") as f64
        };
        let (t, u) = (of("t"), of("u"));
        assert!(
            (t / u - 1.0).abs() < 0.05,
            "{domain}: {t} of one tenant and {u} of the other"
        );
    }
    for domains in [["gmail.test", "workspace.test"], ["yahoo.test", "aol.test"]] {
        let of = |stream: &str| {
            fleet.count(|sent| domains.contains(&sent.domain.as_str()) && sent.stream == stream) as f64
        };
        let (digest, bulk) = (of(DIGEST), of("bulk"));
        assert!(
            (digest / bulk / 3.0 - 1.0).abs() < 0.05,
            "{domains:?}: {digest} of three times the weight, {bulk} of the other"
        );
    }
    let resets: Vec<_> = fleet
        .sent
        .iter()
        .filter(|sent| sent.stream == "transactional")
        .collect();
    assert!(resets.len() >= 6 * 143, "{}", resets.len());
    let late = resets.iter().filter(|sent| {
        // They come every ten minutes.
        let waited = Duration::from_millis(sent.at.since(START).as_millis() as u64 % 600_000);
        waited > GOOGLE_TAKES
    });
    let late = late.count();
    assert!(
        late <= resets.len() / 20,
        "{late} of {} waited for longer than a connection takes to come free",
        resets.len()
    );
}
