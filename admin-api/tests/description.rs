//! The API's description: committed, whole, and true. `POSTRIDER_WRITE=1 cargo test -p admin-api --test description` writes
//! docs/openapi.json anew.

#![allow(
    clippy::unwrap_used,
    reason = "a test; its helpers are outside of test functions"
)]

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use admin_api::adjust::{Adjustment, AdjustmentKind, AdjustmentList, Ended, Scope};
use admin_api::aside::{AsideList, AsideMessage};
use admin_api::openapi::description;
use admin_api::operate::{Deletion, Preview, Progress, Selector, Suspension, Waits, WaitsFor};
use admin_api::{EventView, Hold, MessageView, QueueList, QueueSummary, RecipientState, RecipientView, Time};
use mail_core::Timestamp;
use serde_json::Value;

fn api() -> Value {
    serde_json::to_value(description()).unwrap()
}

#[test]
fn the_committed_one_is_as_the_program() {
    let made = serde_json::to_string_pretty(&api()).unwrap() + "\n";
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/openapi.json");
    if std::env::var_os("POSTRIDER_WRITE").is_some() {
        std::fs::write(&file, &made).unwrap();
    }
    assert!(
        std::fs::read_to_string(&file).unwrap_or_default() == made,
        "docs/openapi.json is out of date: POSTRIDER_WRITE=1 cargo test -p admin-api --test description"
    );
}

/// The routes as the source gives them to the router, against the paths described.
#[test]
fn every_route_is_described_with_its_role_and_its_errors() {
    let mut routes = BTreeSet::new();
    for source in [include_str!("../src/routes.rs"), include_str!("../src/manage.rs")] {
        for route in source.split(".route(").skip(1) {
            let mut parts = route.split('"');
            let path = parts.nth(1).unwrap();
            let methods = parts.next().unwrap().split("\n").next().unwrap();
            for method in ["get", "post"]
                .into_iter()
                .filter(|method| methods.contains(&format!("{method}(")))
            {
                routes.insert((path.to_owned(), method.to_owned()));
            }
        }
    }
    let api = api();
    let mut described = BTreeSet::new();
    for (path, item) in api["paths"].as_object().unwrap() {
        for (method, operation) in item.as_object().unwrap() {
            described.insert((path.clone(), method.clone()));
            let role = match (method.as_str(), path.ends_with("/raw")) {
                ("get", true) => "admin",
                ("get", false) => "viewer",
                _ => "operator",
            };
            assert_eq!(operation["x-role"], role, "{method} {path}");
            assert!(operation["summary"].is_string(), "{method} {path}");
            let error = &operation["responses"]["default"]["content"];
            assert!(error["application/problem+json"].is_object(), "{method} {path}");
        }
    }
    assert!(routes.len() >= 16, "{routes:?}");
    assert_eq!(routes, described);
}

/// What is wrong with a value by a schema; of JSON Schema what the description uses.
fn check(api: &Value, schema: &Value, value: &Value, at: &str) -> Result<(), String> {
    if let Some(name) = schema["$ref"].as_str() {
        let found = api
            .pointer(name.trim_start_matches('#'))
            .ok_or(format!("{at}: no {name}"))?;
        return check(api, found, value, at);
    }
    if let Some(choices) = schema["oneOf"].as_array() {
        let wrong: Vec<_> = choices
            .iter()
            .filter_map(|choice| check(api, choice, value, at).err())
            .collect();
        return if wrong.len() + 1 == choices.len() {
            Ok(())
        } else {
            Err(format!("{at}: not one of {wrong:?}"))
        };
    }
    let types: Vec<_> = match &schema["type"] {
        Value::String(one) => vec![one.as_str()],
        Value::Array(several) => several.iter().filter_map(Value::as_str).collect(),
        _ => return Err(format!("{at}: a schema without a type: {schema}")),
    };
    let is = match value {
        Value::Null => "null",
        Value::Bool(_) => "boolean",
        Value::Number(_) => "integer",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    };
    // Whole numbers are numbers too.
    let is_number = value.is_number() && types.contains(&"number");
    if !types.contains(&is) && !is_number {
        return Err(format!("{at}: {is} is none of {types:?}"));
    }
    if let Some(words) = schema["enum"].as_array().filter(|words| !words.contains(value)) {
        return Err(format!("{at}: {value} is none of {words:?}"));
    }
    match value {
        Value::Array(items) => items
            .iter()
            .try_for_each(|item| check(api, &schema["items"], item, at)),
        Value::Object(fields) => {
            for required in schema["required"]
                .as_array()
                .into_iter()
                .flatten()
                .filter_map(Value::as_str)
            {
                fields
                    .get(required)
                    .ok_or(format!("{at}.{required} is missing"))?;
            }
            fields.iter().try_for_each(|(name, field)| {
                let of_any_name = &schema["additionalProperties"];
                let schema = schema["properties"].get(name).unwrap_or(of_any_name);
                check(api, schema, field, &format!("{at}.{name}"))
            })
        }
        _ => Ok(()),
    }
}

fn conforms(name: &str, value: &impl serde::Serialize) {
    let api = api();
    let schema = &api["components"]["schemas"][name];
    assert!(schema.is_object(), "{name} is not described");
    check(&api, schema, &serde_json::to_value(value).unwrap(), name).unwrap();
}

#[test]
fn answers_are_as_described() {
    let time = Time(Timestamp(1_700_000_000_000));
    let waits = Waits {
        what: WaitsFor::Resume,
        until: Some(time),
        cause: None,
        fallback: Some("smart host provider, since 4.4.1 mx.example.org: timed out".into()),
    };
    let suspension = Suspension {
        selector: Selector {
            tenant: Some("acme".into()),
            all: true,
            ..Selector::default()
        },
        since: time,
        until: None,
        reason: "maintenance".into(),
        by: "uid 7".into(),
    };
    let hold = Hold {
        scope: "lane".into(),
        name: "mx.example.net".into(),
        since: time,
        until: time,
        failures: 3,
        cause: "no answer".into(),
        class: Some("connection".into()),
    };
    let queue = QueueSummary {
        id: 1,
        tenant: "acme".into(),
        stream: "bulk".into(),
        route_group: 0,
        domain: "example.net".into(),
        messages: 3,
        bytes: 4,
        set_aside: 1,
        oldest: Some(time),
        next_due: None,
        wake: Some(time),
        hold: Some(hold),
        suspension: Some(suspension),
        waits: Some(waits.clone()),
    };
    let page = QueueList {
        queues: vec![queue],
        next: Some(7),
    };
    conforms("QueueList", &page);
    conforms("QueueList", &QueueList::default());
    let recipient = RecipientView {
        recipient: "a@example.net".into(),
        state: RecipientState::HandedOver,
        attempts: 1,
        in_doubt: 0,
        next_due: None,
        last_attempt: Some(time),
        last_reply: Some("250 ok".into()),
        class: None,
        host: None,
        queue: Some(1),
        waits: Some(waits),
    };
    let event = EventView {
        at: time,
        kind: "delivered".into(),
        recipients: vec!["a@example.net".into()],
        attempt: 1,
        host: None,
        source: Some("out1".into()),
        tls: None,
        millis: Some(12),
        reply: "250 ok".into(),
        class: None,
    };
    conforms(
        "MessageView",
        &MessageView {
            id: "x".into(),
            queued: true,
            tenant: Some("acme".into()),
            stream: None,
            tag: None,
            metadata: BTreeMap::from([("order".into(), "7".into())]),
            sender: Some(String::new()),
            bytes: Some(5),
            received_at: time,
            expires_at: None,
            held_until: None,
            client: None,
            helo: None,
            credential: None,
            protocol: Some("ESMTPSA".into()),
            cause: None,
            recipients: vec![recipient],
            events: vec![event],
        },
    );
    let aside = AsideMessage {
        id: "x".into(),
        queue: 1,
        tenant: None,
        stream: None,
        domain: Some("example.net".into()),
        cause: RecipientState::Parked,
        since: time,
        why: "a mistake".into(),
        expires_at: time,
    };
    let list = AsideList {
        messages: vec![aside],
        ..AsideList::default()
    };
    conforms("AsideList", &list);
    let adjustment = Adjustment {
        kind: AdjustmentKind::Slower,
        scope: Scope {
            site: Some("mx.example.net".into()),
            ..Scope::default()
        },
        destination: None,
        since: time,
        changed: time,
        until: Some(time),
        connections: Some(45),
        messages_per_second: Some(0.85),
        cause: "421 too many".into(),
        host: Some("mx.example.net".into()),
        class: Some("rate".into()),
        by: "reply".into(),
    };
    let list = AdjustmentList {
        adjustments: vec![adjustment],
        next: Some("61".into()),
    };
    conforms("AdjustmentList", &list);
    conforms("Ended", &Ended { ended: 1 });
    let preview = Preview {
        queues: 1,
        messages: 2,
        bytes: 3,
        shared: 4,
        looked: 5,
        next: None,
        token: Some("t".into()),
    };
    conforms("Deletion", &Deletion::Preview(preview.clone()));
    let first = Preview {
        next: Some("0:1.2.x.3".into()),
        token: None,
        ..preview
    };
    conforms("Deletion", &Deletion::Preview(first));
    conforms("Deletion", &Deletion::Progress(Progress::default()));
    // A check that lets everything pass would prove nothing.
    let api = api();
    let schema = &api["components"]["schemas"]["Hold"];
    assert!(check(&api, schema, &serde_json::json!({ "scope": 1 }), "").is_err());
}
