//! When a message is to go, as MAIL says it: held, first or last, in time.

use std::time::Duration;

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
