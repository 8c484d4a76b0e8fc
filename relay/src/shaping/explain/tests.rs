use super::*;
use crate::config::settings::DestinationLimits;
use crate::delivery::shard::test_settings as settings;

fn domains(names: &[&str]) -> Vec<Domain> {
    names.iter().map(|name| name.parse().unwrap()).collect()
}

fn told(more: &str, domain: &str, hosts: &[&str]) -> Vec<String> {
    let settings = settings(more);
    let found = explain(&domain.parse().unwrap(), &domains(hosts), &settings);
    let line = |value: &Value<'_>| {
        let from = match &value.from {
            From::Written(key, at) => format!("line {} {key}", at.line),
            From::Shipped(provider, source) => format!("shipped {} {}", provider.name, source.by.name()),
            From::Default => "default".to_owned(),
        };
        format!("{} {} {from}", value.key, value.value)
    };
    found.values.iter().map(line).collect()
}

const GOOGLE: [&str; 2] = ["aspmx.l.google.com", "alt1.aspmx.l.google.com"];

#[test]
fn each_value_tells_where_it_is_from() {
    assert_eq!(
        told("", "hosted.test", &GOOGLE),
        [
            "tls \"opportunistic\" default",
            "address_family \"any\" default",
            "connections 5 shipped google community",
            "messages_per_second unlimited default",
            "messages_per_connection 50 shipped google community",
            "recipients_per_transaction 100 default",
        ]
    );
    // The text of `settings` has 10 lines before these.
    let more = "[delivery]\ntls = \"off\"\n[delivery.limits]\nconnections = 3\nmessages_per_second = 4\n\
                [[provider]]\nname = \"google\"\n[provider.limits]\nmessages_per_connection = 70\n\
                [[destination]]\ndomain = \"*.test\"\naddress_family = \"ipv4\"\n[destination.limits]\nrecipients_per_transaction = 9\n";
    assert_eq!(
        told(more, "hosted.test", &GOOGLE),
        [
            "tls \"off\" line 12 delivery.tls",
            "address_family \"ipv4\" line 22 destination[0].address_family",
            "connections 3 line 14 delivery.limits.connections",
            "messages_per_second 4.0 line 15 delivery.limits.messages_per_second",
            "messages_per_connection 70 line 19 provider[0].limits.messages_per_connection",
            "recipients_per_transaction 9 line 24 destination[0].limits.recipients_per_transaction",
        ]
    );
    assert!(
        told("", "own.test", &["mx.own.test"])
            .iter()
            .all(|line| line.ends_with("default"))
    );
}

/// What is told is what lanes go by, whoever says what.
#[test]
fn the_values_are_those_that_lanes_have() {
    let destination = "[[destination]]\ndomain = \"hosted.test\"\n[destination.limits]\n";
    let provider = "[[provider]]\nname = \"NAME\"\n[provider.limits]\n";
    let keys = [
        "connections = 7\n",
        "messages_per_second = 7\n",
        "messages_per_connection = 7\n",
        "recipients_per_transaction = 7\n",
    ];
    let shipped = super::super::Shaping::shipped();
    let mut seen = 0;
    for known in shipped.providers.all() {
        let host = known.mx[0].to_string().replace("*.", "mx.");
        let provider = provider.replace("NAME", &known.name);
        for head in ["", "[delivery.limits]\n", &provider, destination] {
            for key in keys {
                let more = if head.is_empty() {
                    String::new()
                } else {
                    format!("{head}{key}")
                };
                let settings = settings(&more);
                let domain: Domain = "hosted.test".parse().unwrap();
                let found = explain(&domain, &domains(&[&host]), &settings);
                let provider = found.provider.unwrap();
                assert_eq!(provider.name, known.name);
                let DestinationLimits {
                    connections,
                    messages_per_second,
                    messages_per_connection,
                    recipients_per_transaction,
                } = Rule::of(&domain, Some(provider), &settings.delivery).limits;
                let expected = [
                    connections.to_string(),
                    messages_per_second.map_or("unlimited".into(), |rate| format!("{rate:?}")),
                    messages_per_connection.to_string(),
                    recipients_per_transaction.to_string(),
                ];
                for (value, expected) in found.values[2..].iter().zip(expected) {
                    assert_eq!(value.value, expected, "{more} {}", value.key);
                    let words = match &value.from {
                        From::Written(key, at) => {
                            assert!(key.ends_with(value.key) && at.line > 10, "{more} {key}");
                            "7"
                        }
                        From::Shipped(of, source) => {
                            let limit = of
                                .limits
                                .iter()
                                .find(|limit| limit.key.name() == value.key)
                                .unwrap();
                            assert_eq!(limit.source, **source);
                            &limit.value.to_string()
                        }
                        From::Default => match value.key {
                            "connections" => "20",
                            "messages_per_second" => "unlimited",
                            "messages_per_connection" => "1000",
                            _ => "100",
                        },
                    };
                    let same = value.value.trim_end_matches(".0") == words;
                    assert!(
                        same,
                        "{}: {more}: {} {} is not from {words}",
                        known.name, value.key, value.value
                    );
                    seen += 1;
                }
            }
        }
    }
    assert!(seen > 1_000, "{seen}");
}

/// Rules of ours first, and of the provider's table what is asked for alone.
#[test]
fn what_replies_ask_for_is_told_with_its_place() {
    let settings = settings(
        "[[bounce_rule]]\nclass = \"rate\"\ncodes = [\"421\"]\ntext = [\"come slower\"]\nslow_down = true\n\
         [[bounce_rule]]\nclass = \"block\"\ntext = [\"no more\"]\nprovider = \"yahoo\"\nsuspend = \"site\"\nfor = \"90s\"\n\
         [[bounce_rule]]\nclass = \"block\"\ntext = [\"no more\"]\nprovider = \"outlook\"\nsuspend = \"source\"\nfor = \"1h\"\n",
    );
    let hosts = ["x.olc.protection.outlook.com".parse().unwrap()];
    let found = explain(&"outlook.com".parse().unwrap(), &hosts, &settings);
    let told: Vec<_> = found
        .replies
        .iter()
        .map(|asks| format!("{}: {} ({})", asks.said, asks.advice, asks.from))
        .collect();
    assert!(
        told[0].starts_with("421, \"come slower\": less at once ("),
        "{told:?}"
    );
    assert!(told[0].ends_with("bounce_rule[0].slow_down)"), "{told:?}");
    assert!(
        told[1].starts_with("\"no more\": 60 minutes of nothing for the source (")
            && told[1].ends_with("bounce_rule[2].suspend)"),
        "{told:?}"
    );
    assert!(
        told[2].starts_with(
            "\"on our block list\": 120 minutes of nothing, after 5 within 60 minutes (shipped for outlook: community"
        ),
        "{told:?}"
    );
}
