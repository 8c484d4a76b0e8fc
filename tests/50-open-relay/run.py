"""No open relay: without authentication or an explicit network, nothing is accepted for others (promise 7)."""

import smtplib

from lib import LabTest, Raw, main, message

# Each is a way by which relays have been talked into passing mail on.
RECIPIENTS = (
    b"<victim@ok.test>",
    b"<victim%ok.test@reject.test>",
    b"<victim%ok.test@[127.0.0.1]>",
    b"<victim%ok.test@localhost>",
    b"<@second.test:victim@ok.test>",
    b"<@second.test,@reject.test:victim@ok.test>",
    b"<ok.test!victim>",
    b"<ok.test!victim@second.test>",
    b'<"victim@ok.test">',
    b'<"victim@ok.test"@second.test>',
    b'<"victim%ok.test">',
    b"<victim@ok.test@second.test>",
    b"<victim@[127.0.0.1]>",
    b"<victim>",
    b"<postmaster>",
    b"victim@ok.test",
)
SENDERS = (b"<>", b"<victim@ok.test>", b"<postmaster@ok.test>", b"<sender@[127.0.0.1]>", b"<sender@localhost>")


class OpenRelay(LabTest):
    def test_mail_without_authentication(self):
        """The whole way to the final dot; the control of promise 7 watches this test."""
        with self.lab.client(login=False) as client:
            client.ehlo()
            raw = message(self.lab.sender, "relayed@ok.test")
            replies = [client.mail(self.lab.sender), client.rcpt("relayed@ok.test")]
            try:
                replies.append(client.data(raw))
            except smtplib.SMTPResponseException as refused:
                replies.append((refused.smtp_code, refused.smtp_error))
        self.assertEqual([reply[0] for reply in replies[:1]], [530], replies)
        self.assertGreaterEqual(replies[1][0], 500, replies)
        self.assertGreaterEqual(replies[2][0], 500, replies)
        self.nothing_arrived("relayed@ok.test")

    def test_every_shape_of_address_before_authentication(self):
        for tls in (False, True):
            for sender in (*SENDERS, f"<{self.lab.sender}>".encode()):
                for recipient in RECIPIENTS:
                    with self.subTest(tls=tls, sender=sender, recipient=recipient):
                        self.refused(tls, sender, recipient)
        self.nothing_arrived("victim@ok.test")

    def refused(self, tls, sender, recipient):
        with Raw(self.lab.at["submission"]) as peer:
            peer.reply()
            peer.ask(b"EHLO client.example")
            if tls:
                self.assertEqual(peer.ask(b"STARTTLS")[0], 220)
                peer.starttls(self.lab.tls(), self.lab.at["submission"].rsplit(":", 1)[0])
                peer.ask(b"EHLO client.example")
            peer.send(b"MAIL FROM:" + sender + b"\r\nRCPT TO:" + recipient + b"\r\nDATA\r\n")
            replies = [peer.reply() for _ in range(3)]
            for reply in replies:
                if reply is not None:
                    self.assertGreaterEqual(reply[0], 500, replies)
            # An address that we never take is refused as such, whoever asks.
            self.assertIn(replies[0][0], (501, 530), replies)

    def test_authenticated_for_another_domain(self):
        """Who may send is not who may send as anybody."""
        with self.lab.client() as client:
            client.ehlo_or_helo_if_needed()
            for sender in ("victim@ok.test", f"{self.lab.sender.split('@')[0]}@ok.test", "root@localhost"):
                if sender == self.lab.sender:
                    continue
                codes = [client.mail(sender)[0]]
                if codes == [250]:
                    codes.append(client.rcpt("relayed@ok.test")[0])
                self.assertEqual(codes[-1], 550, (sender, codes))
                client.rset()

    def test_percent_and_bang_are_not_taken_apart(self):
        """What a user may send to is a mailbox at the domain behind the last @, and goes there as it stands."""
        with self.lab.client() as client:
            raw = message(self.lab.sender, "percent@ok.test")
            client.ehlo_or_helo_if_needed()
            for local in ("a%second.test", "second.test!a"):
                self.assertEqual(self.lab.transaction(client, [f"{local}@ok.test"], raw)[0], 250)
                self.lab.arrived(f"{local}@ok.test")
        self.nothing_arrived("a@second.test")

    def test_source_routes_are_not_followed(self):
        """RFC 5321 appendix C: the route is ignored or refused, the mail never goes through its hosts."""
        with Raw(self.lab.at["trusted"]) as peer:
            peer.reply()
            peer.ask(b"EHLO client.example")
            self.assertEqual(peer.ask(f"MAIL FROM:<{self.lab.sender}>".encode())[0], 250)
            code, lines = peer.ask(b"RCPT TO:<@second.test:routed@ok.test>")
            self.assertIn(code, (250, 501, 550, 553), lines)
            if code == 250:
                self.assertEqual(peer.ask(b"DATA")[0], 354)
                self.assertEqual(peer.ask(message(self.lab.sender, "routed@ok.test") + b".")[0], 250)
                self.lab.arrived("routed@ok.test")
        self.nothing_arrived("routed@second.test")

    def nothing_arrived(self, address):
        """A message sent afterwards arrives; this address has nothing."""
        sentinel = f"sentinel-{address.replace('@', '-')}@{address.split('@')[1]}"
        before = len(self.lab.mailbox(sentinel))
        self.lab.submit([sentinel], message(self.lab.sender, sentinel))
        self.lab.arrived(sentinel, before + 1)
        self.assertEqual(self.lab.mailbox(address), [], address)


if __name__ == "__main__":
    main()
