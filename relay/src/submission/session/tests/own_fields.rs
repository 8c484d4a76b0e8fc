//! Streams, and the header fields of ours that a client may write, from a session to the queue.

use std::time::Duration;

use queue::EventKind;

use super::*;

const ALL: &str = "header_fields = [\"stream\", \"tag\", \"metadata\", \"expires\"]\n";

impl Door {
    pub(super) async fn logged_in(&self) -> Client<Secured> {
        self.logged_in_with(&self.password).await
    }

    pub(super) async fn logged_in_with(&self, password: &str) -> Client<Secured> {
        let mut client = self.secure(&[&version::TLS13]).await;
        let plain = BASE64.encode(format!("\0ada\0{password}"));
        let reply = client.say(&format!("AUTH PLAIN {plain}")).await;
        assert!(reply.starts_with("235 "), "{reply}");
        client
    }

    /// The message accepted last: its envelope, and its body as it is kept.
    pub(super) fn last(&self) -> (queue::EnvelopeRecord, String) {
        let events = self.front.queue.events(0, 99).unwrap();
        let (_, event) = events.last().unwrap();
        assert_eq!(event.kind, EventKind::Accepted);
        let id = event.id.unwrap();
        let message = self.front.queue.message(id).unwrap().unwrap();
        assert_eq!(
            (&event.tag, &event.metadata),
            (&message.envelope.tag, &message.envelope.metadata)
        );
        let body = self.front.queue.body(id, &message.envelope).unwrap();
        (message.envelope, String::from_utf8(body.to_vec()).unwrap())
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> Client<S> {
    /// Hands a message over; the last reply.
    async fn hand_over(&mut self, message: &str) -> String {
        self.hand_over_as("", message).await
    }

    /// The same with more behind MAIL's address.
    pub(super) async fn hand_over_as(&mut self, parameters: &str, message: &str) -> String {
        for line in [
            format!("MAIL FROM:<a@c.test>{parameters}"),
            "RCPT TO:<b@d.test>".into(),
        ] {
            let reply = self.say(&line).await;
            assert!(reply.starts_with("250 "), "{reply}");
        }
        assert!(self.say("DATA").await.starts_with("354 "));
        self.say(&format!("{message}\r\n.")).await
    }
}

/// Promise 6.
#[tokio::test]
async fn fields_that_are_listed_count_and_all_are_taken_off() {
    let door = Door::with(ALL, "", "");
    local(async {
        let mut client = door.logged_in().await;
        let reply = client
            .hand_over(
                "Subject: hi\r\nPostrider-Stream: bulk\r\nPostrider-Tag: spring\r\nX-Kept:  a \r\n\tb\r\n\
                 Postrider-Metadata: order=7;\r\n\tcustomer=x\r\nPostrider-Expires: 1h\r\n\
                 Authentication-Results: mx.test; spf=pass\r\nAuthentication-Results: other.test; none\r\n\r\nhello",
            )
            .await;
        assert!(reply.starts_with("250 2.0.0"), "{reply}");
        let (envelope, body) = door.last();
        assert_eq!(
            body,
            "Subject: hi\r\nX-Kept:  a \r\n\tb\r\nAuthentication-Results: other.test; none\r\n\r\nhello\r\n"
        );
        assert_eq!(&*envelope.stream, "bulk");
        assert_eq!(envelope.tag.as_deref(), Some("spring"));
        let pairs = [("order", "7"), ("customer", "x")];
        assert_eq!(
            envelope.metadata,
            pairs.map(|(key, value)| (key.to_owned(), value.to_owned()))
        );
        let hour = Duration::from_secs(3_600);
        // The span is from when the field was read, a moment before.
        let left = envelope.expires_at.since(envelope.received_at);
        assert!(left <= hour && left > hour - Duration::from_secs(60), "{left:?}");

        // An expiry only shortens.
        let reply = client.hand_over("Postrider-Expires: 300d\r\n\r\nhello").await;
        assert!(reply.starts_with("250 2.0.0"), "{reply}");
        let (envelope, body) = door.last();
        assert_eq!(body, "\r\nhello\r\n");
        assert_eq!(envelope.expires_at, envelope.received_at + 120 * hour);

        // What is refused is not kept, and the session goes on.
        let before = door.front.queue.events(0, 99).unwrap().len();
        let reply = client.hand_over("Postrider-Stream: news\r\n\r\nhello").await;
        assert_eq!(reply, "550 5.7.1 Postrider-Stream: there is no such stream");
        let reply = client.hand_over("Postrider-Tag: a b\r\n\r\nhello").await;
        assert!(reply.starts_with("550 5.6.0 Postrider-Tag: a tag is"), "{reply}");
        assert_eq!(door.front.queue.events(0, 99).unwrap().len(), before);
    })
    .await;
}

#[tokio::test]
async fn fields_that_are_not_listed_are_taken_off_unread() {
    let door = Door::with("", "", "");
    local(async {
        let mut client = door.logged_in().await;
        let reply = client
            .hand_over("Postrider-Stream: news\r\nPostrider-Tag: a b\r\nSubject: hi\r\n\r\nhello")
            .await;
        assert!(reply.starts_with("250 2.0.0"), "{reply}");
        let (envelope, body) = door.last();
        assert_eq!(body, "Subject: hi\r\n\r\nhello\r\n");
        assert_eq!((&*envelope.stream, envelope.tag), ("transactional", None));
    })
    .await;
}

#[tokio::test]
async fn a_stream_is_the_fields_then_the_credentials_then_the_listeners() {
    let own = "[[stream]]\nname = \"news\"\nexpire_after = \"2h\"\n";
    let door = Door::with(ALL, "stream = \"bulk\"\n", own);
    let path = door.folder.path().join("credentials.toml");
    local(async {
        let mut client = door.logged_in().await;
        assert!(client.hand_over("\r\nhello").await.starts_with("250 "));
        assert_eq!(&*door.last().0.stream, "bulk");

        file::remove(&path, "ada").unwrap();
        let password = file::add(&path, "ada", "t", Some("news"), None).unwrap();
        door.front.credentials.as_ref().unwrap().look_now();
        let mut client = door.logged_in_with(&password).await;
        assert!(client.hand_over("\r\nhello").await.starts_with("250 "));
        let (envelope, _) = door.last();
        assert_eq!(&*envelope.stream, "news");
        let two_hours = Duration::from_secs(7_200);
        assert_eq!(envelope.expires_at, envelope.received_at + two_hours);
        let reply = client
            .hand_over("Postrider-Stream: transactional\r\n\r\nhello")
            .await;
        assert!(reply.starts_with("250 "), "{reply}");
        assert_eq!(&*door.last().0.stream, "transactional");
    })
    .await;
}
