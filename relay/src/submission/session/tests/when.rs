//! When a message is to go, as MAIL says it: held, first or last, in time.

use std::time::Duration;

use mail_core::Timestamp;
use mail_core::smtp::command::date_time;

use super::*;

const DAY: Duration = Duration::from_secs(86_400);

/// RFC 4865.
#[tokio::test]
async fn what_is_held_is_due_and_expires_from_its_release_on() {
    let door = Door::new("max_hold = \"10d\"");
    local(async {
        let mut client = door.logged_in().await;
        let ehlo = client.say("EHLO c.test").await;
        assert!(ehlo.contains("FUTURERELEASE 864000 20"), "{ehlo}");
        let reply = client
            .hand_over_as(" HOLDFOR=345600", "Subject: hi\r\n\r\nx")
            .await;
        assert!(reply.starts_with("250 2.0.0"), "{reply}");
        let (envelope, _) = door.last();
        let release = envelope.received_at + 4 * DAY;
        assert_eq!(envelope.held_until(), Some(release));
        assert_eq!(envelope.expires_at, release + 5 * DAY);

        let at = Timestamp((envelope.received_at + DAY).seconds() * 1_000);
        let until = format!(" HOLDUNTIL={}", date_time(at));
        client.hand_over_as(&until, "Subject: hi\r\n\r\nx").await;
        assert_eq!(door.last().0.held_until(), Some(at));
        // A time that has passed is no hold.
        let past = " HOLDUNTIL=2020-01-01T00:00:00Z";
        client.hand_over_as(past, "Subject: hi\r\n\r\nx").await;
        let (envelope, _) = door.last();
        assert_eq!(envelope.held_until(), None);
        assert_eq!(envelope.expires_at, envelope.received_at + 5 * DAY);

        let reply = client.say("MAIL FROM:<a@c.test> HOLDFOR=864001").await;
        assert!(reply.starts_with("501 5.5.4"), "{reply}");
        let late = date_time(envelope.received_at + 11 * DAY);
        let reply = client
            .say(&format!("MAIL FROM:<a@c.test> HOLDUNTIL={late}"))
            .await;
        assert!(reply.starts_with("501 5.5.4"), "{reply}");
    })
    .await;
}

#[tokio::test]
async fn no_hold_is_offered_where_none_is_allowed() {
    let door = Door::with("header_fields = [\"expires\"]\n", "", "max_hold = \"0s\"");
    local(async {
        let mut client = door.logged_in().await;
        assert!(!client.say("EHLO c.test").await.contains("FUTURERELEASE"));
        let reply = client.say("MAIL FROM:<a@c.test> HOLDFOR=1").await;
        assert!(reply.starts_with("555 5.5.4"), "{reply}");
    })
    .await;
}

#[tokio::test]
async fn nothing_is_held_beyond_its_end() {
    let door = Door::with("header_fields = [\"expires\"]\n", "", "");
    local(async {
        let mut client = door.logged_in().await;
        let message = "Postrider-Expires: 1h\r\n\r\nx";
        let reply = client.hand_over_as(" HOLDFOR=3600", message).await;
        assert!(reply.starts_with("550 5.5.4"), "{reply}");
        let reply = client.hand_over_as(" HOLDFOR=3000", message).await;
        assert!(reply.starts_with("250 2.0.0"), "{reply}");
    })
    .await;
}

/// RFC 2852.
#[tokio::test]
async fn what_is_to_be_returned_in_time_ends_then() {
    let door = Door::with("header_fields = [\"expires\"]\n", "", "");
    local(async {
        let mut client = door.logged_in().await;
        let minute = Duration::from_secs(60);
        for (parameters, expires_after) in [
            (" BY=600;R", 10 * minute),
            (" BY=600;N", 5 * DAY),
            (" BY=-600;N", 5 * DAY),
            (" BY=999999999;R", 5 * DAY),
            (" BY=7200;R HOLDFOR=3600", 120 * minute),
        ] {
            client.hand_over_as(parameters, "Subject: hi\r\n\r\nx").await;
            let (envelope, _) = door.last();
            assert_eq!(
                envelope.expires_at,
                envelope.received_at + expires_after,
                "{parameters}"
            );
            let by = envelope.transfer.by.unwrap().left(envelope.received_at);
            assert!(parameters.starts_with(&format!(" BY={by}")), "{by}");
        }
        for wrong in ["HOLDFOR=3600 BY=3600;R", "BY=60;N HOLDFOR=3600"] {
            let reply = client.say(&format!("MAIL FROM:<a@c.test> {wrong}")).await;
            assert!(reply.starts_with("501 5.5.4"), "{wrong}: {reply}");
        }
    })
    .await;
}

/// RFC 6710: who may say what is urgent.
#[tokio::test]
async fn a_priority_chooses_the_stream_where_nothing_stricter_does() {
    let urgent = "[[stream]]\nname = \"urgent\"\nweight = 50\npriority = \"4..9\"\n";
    let cases = [
        (
            "",
            "",
            [
                ("0", "transactional"),
                ("-1", "bulk"),
                ("9", "urgent"),
                ("3", "transactional"),
            ],
        ),
        // A listener's own stream: mail may be less urgent, and not more.
        (
            "stream = \"bulk\"\n",
            "",
            [("0", "bulk"), ("-1", "bulk"), ("9", "bulk"), ("3", "bulk")],
        ),
        (
            "stream = \"urgent\"\n",
            "",
            [("0", "urgent"), ("-1", "bulk"), ("9", "urgent"), ("3", "urgent")],
        ),
        // A field that the tenant may use goes before all.
        (
            "",
            "Postrider-Stream: urgent\r\n",
            [
                ("0", "urgent"),
                ("-1", "urgent"),
                ("9", "urgent"),
                ("3", "urgent"),
            ],
        ),
    ];
    for (listener, field, expected) in cases {
        let door = Door::with("header_fields = [\"stream\"]\n", listener, &format!("\n{urgent}"));
        local(async {
            let mut client = door.logged_in().await;
            for (priority, stream) in expected {
                let parameters = format!(" MT-PRIORITY={priority}");
                let message = format!("{field}MT-Priority: 9\r\nSubject: hi\r\n\r\nx");
                client.hand_over_as(&parameters, &message).await;
                let (envelope, body) = door.last();
                assert_eq!(&*envelope.stream, stream, "{listener}{field}{priority}");
                let kept = envelope.transfer.priority.map(|priority| priority.to_string());
                assert_eq!(kept.as_deref(), Some(priority));
                // RFC 6758's tunnel is the sender's own affair.
                assert!(body.starts_with("MT-Priority: 9\r\n"), "{body}");
            }
        })
        .await;
    }
}
