//! XCLIENT from listed peers; CASES §3: from all others, `dialogues/xclient.txt`.

use super::*;

const LISTED: &str = "xclient = [\"192.0.2.0/24\"]\n";

#[tokio::test]
async fn a_listed_peer_says_for_whom_it_speaks() {
    let door = Door::with("", LISTED, "max_connections_per_address = 4");
    local(async {
        let mut client = door.secure(&[&version::TLS13]).await;
        assert!(
            client
                .say("EHLO proxy.test")
                .await
                .contains("XCLIENT NAME ADDR PORT PROTO HELO LOGIN DESTADDR DESTPORT")
        );
        assert!(client.say("MAIL FROM:<a@c.test>").await.starts_with("530 "));
        // Greeted anew, as this client, who has logged in.
        let said =
            "XCLIENT NAME=[UNAVAILABLE] ADDR=IPV6:2001:db8::7 PORT=99 PROTO=ESMTP HELO=c.test LOGIN=ada";
        assert_eq!(client.say(said).await, "220 mx.test ESMTP Postrider");
        assert_eq!(door.front.addresses(), 1, "counted by the client's address alone");
        for line in ["EHLO c.test", "MAIL FROM:<a@c.test>"] {
            let reply = client.say(line).await;
            assert!(reply.starts_with("250"), "{reply}");
        }
        let within = client.say("XCLIENT ADDR=192.0.2.9").await;
        assert!(within.starts_with("550 "), "{within}");
        for (line, code) in [("RCPT TO:<b@d.test>", "250 "), ("DATA", "354 ")] {
            assert!(client.say(line).await.starts_with(code));
        }
        assert!(
            client
                .say("Subject: hi\r\n\r\nhello\r\n.")
                .await
                .starts_with("250 ")
        );
        let (_, event) = door.front.queue.events(0, 9).unwrap().pop().unwrap();
        let message = door.front.queue.message(event.id.unwrap()).unwrap().unwrap();
        let origin = message.envelope.origin;
        assert_eq!(origin.client, Some("2001:db8::7".parse().unwrap()));
        assert_eq!(origin.credential.as_deref(), Some("ada"));
        let received = String::from_utf8(message.envelope.prefix.to_vec()).unwrap();
        assert!(
            received.starts_with("Received: from c.test ([IPv6:2001:db8::7])"),
            "{received}"
        );

        // A proxy passes on what its client says: that it is another is not believed.
        let again = client.say("XCLIENT ADDR=192.0.2.9 LOGIN=ada").await;
        assert!(again.starts_with("550 5.7.1"), "{again}");
        assert!(!client.say("EHLO c.test").await.contains("XCLIENT"));

        // Who has not logged in with the peer has not here.
        let mut client = door.secure(&[&version::TLS13]).await;
        let said = "XCLIENT ADDR=[UNAVAILABLE] HELO=c.test LOGIN=[TEMPUNAVAIL]";
        assert!(client.say(said).await.starts_with("220 "));
        assert!(client.say("MAIL FROM:<a@c.test>").await.starts_with("530 "));

        // Not within a transaction, and that goes on.
        let mut within = door.logged_in().await;
        assert!(within.say("MAIL FROM:<a@c.test>").await.starts_with("250 "));
        assert!(within.say("XCLIENT ADDR=192.0.2.9").await.starts_with("503 "));
        assert!(within.say("RCPT TO:<b@d.test>").await.starts_with("250 "));

        // What can't be believed changes nothing; what is over a limit ends it.
        let mut client = door.secure(&[&version::TLS13]).await;
        for (line, reply) in [
            ("XCLIENT ADDR=c.test", "501 "),
            ("XCLIENT LOGIN=nobody", "550 5.7.1 no such credential"),
        ] {
            assert!(client.say(line).await.starts_with(reply));
        }
        let there: IpAddr = "192.0.2.77".parse().unwrap();
        let _held: Vec<_> = (0..4).map(|_| door.front.enter(there).ok()).collect();
        assert!(client.say("XCLIENT ADDR=192.0.2.77").await.starts_with("421 "));
    })
    .await;
}

#[tokio::test]
async fn a_peer_that_is_not_listed_speaks_for_itself() {
    let door = Door::with("", "xclient = [\"192.0.2.2/32\"]\n", "");
    local(async {
        let mut client = door.secure(&[&version::TLS13]).await;
        assert!(!client.say("EHLO c.test").await.contains("XCLIENT"));
        assert!(client.say("XCLIENT LOGIN=ada").await.starts_with("550 5.7.1"));
        assert!(client.say("MAIL FROM:<a@c.test>").await.starts_with("530 "));
    })
    .await;
}
