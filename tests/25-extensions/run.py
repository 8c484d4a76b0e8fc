"""What a client may ask for beside plain mail, through the whole relay: BDAT, addresses beyond ASCII, LIMITS; and what is
done for a host that takes 7-bit alone."""

import email
import email.policy
import json
import os
import re
import time

from lib import Lab, LabTest, expect, get, main, message, queue_id, wait_for
from signatures import Signatures


PEERS = os.path.join(os.path.dirname(os.path.abspath(__file__)), "../../lab/peers")


class Extensions(Signatures, LabTest):
    @classmethod
    def setUpClass(cls):
        cls.lab = Lab("--peer", f"time.test={PEERS}/keeps-time.smtp")

    def reported(self, subject, box=None):
        """The report on the message of this subject, raw."""
        box = box or self.lab.sender
        line = f"Subject: {subject}\r\n".encode()

        def find():
            every = (self.lab.raw(box, number) for number in range(len(self.lab.mailbox(box))))
            return next((raw for raw in every if line in raw), None)

        return wait_for(find, f"a report on {subject!r}")

    def chunked(self, recipients, pieces, options=()):
        """Hands over `pieces` by BDAT, all at once, and returns the queue id."""
        with self.lab.client() as client:
            client.ehlo_or_helo_if_needed()
            self.assertTrue(client.has_extn("chunking"))
            expect(client.mail(self.lab.sender, list(options)), 250)
            for recipient in recipients:
                expect(client.rcpt(recipient), 250)
            for number, piece in enumerate(pieces):
                last = b" LAST" if number == len(pieces) - 1 else b""
                client.sock.sendall(b"BDAT %d%s\r\n%s" % (len(piece), last, piece))
            for _ in pieces[:-1]:
                expect(client.getreply(), 250, "2.0.0")
            return queue_id(client.getreply())

    def test_chunks_arrive_to_the_octet(self):
        recipient = "chunks@ok.test"
        raw = message(self.lab.sender, recipient, body=b".\r\n..\r\nQUIT\r\n" * 5000)
        for size in (1000, 4096, 65536, len(raw)):
            with self.subTest(size=size):
                before = len(self.lab.mailbox(recipient))
                self.chunked([recipient], [raw[at : at + size] for at in range(0, len(raw), size)])
                arrived = self.lab.arrived(recipient, before + 1)[before]
                self.assertTrue(arrived.endswith(raw))

    def test_a_message_without_a_last_line_end(self):
        recipient = "no-end@ok.test"
        raw = message(self.lab.sender, recipient, body=b"the last line has no end")
        self.chunked([recipient], [raw, b""])
        [arrived] = self.lab.arrived(recipient)
        # DATA can't say it: RFC 5321 section 4.1.1.4 wants a CRLF in front of the final dot. The signature holds with it.
        self.assertTrue(arrived.endswith(raw + b"\r\n"))
        self.verified(arrived)

    def test_limits_are_told(self):
        with self.lab.client() as client:
            client.ehlo_or_helo_if_needed()
            self.assertRegex(client.esmtp_features["limits"], r"^RCPTMAX=\d+$")

    def test_what_is_held_is_sent_when_it_is_released(self):
        """RFC 4865."""
        recipient = "held@ok.test"
        with self.lab.client() as client:
            client.ehlo_or_helo_if_needed()
            self.assertRegex(client.esmtp_features["futurerelease"], r"^2592000 20\d\d-\d\d-\d\dT\d\d:\d\d:\d\dZ$")
            for wrong in ("HOLDFOR=2592001", "HOLDFOR=0", "HOLDUNTIL=2020-01-01", "HOLDFOR=5 HOLDFOR=5"):
                expect(client.mail(self.lab.sender, wrong.split()), 501, "5.5.4")
        raw = message(self.lab.sender, recipient, subject="held")
        begun = time.monotonic()
        ident = self.lab.submit([recipient], raw, mail_options=["HOLDFOR=4"])
        code, out, _ = self.lab.command("message", "show", ident)
        self.assertEqual(code, 0)
        self.assertRegex(out, r"\nHeld until +20\d\d-")
        line = next(line for line in self.lab.logged().splitlines() if ident in line and "accepted" in line)
        self.assertIn("held_until", line)
        [arrived] = self.lab.arrived(recipient)
        self.assertGreater(time.monotonic() - begun, 3.5)
        self.assertTrue(arrived.endswith(raw))
        # An operator need not wait.
        recipient = "released@ok.test"
        ident = self.lab.submit([recipient], message(self.lab.sender, recipient), mail_options=["HOLDFOR=86400"])
        code, out, err = self.lab.command("message", "retry", ident)
        self.assertEqual(code, 0, err)
        self.lab.arrived(recipient)

    def said_to(self, peer):
        """The MAIL commands that a scripted peer has heard."""
        status, body = get(self.lab.at["lab"], "/lab/peers")
        self.assertEqual(status, 200)
        return re.findall(r"MAIL FROM:[^\"\\]*", json.dumps([one for one in json.loads(body) if peer in json.dumps(one)]))

    def test_time_and_priority_go_along(self):
        """RFC 2852, RFC 6710."""
        with self.lab.client() as client:
            client.ehlo_or_helo_if_needed()
            self.assertTrue(client.has_extn("deliverby") and client.has_extn("mt-priority"))
            for wrong in ("BY=0;R", "BY=60", "BY=60;X", "HOLDFOR=60 BY=60;R"):
                expect(client.mail(self.lab.sender, wrong.split()), 501, "5.5.4")
            for wrong in ("MT-PRIORITY=10", "MT-PRIORITY=high"):
                expect(client.mail(self.lab.sender, wrong.split()), 501, "5.5.2")
        options = ["BY=600;R", "MT-PRIORITY=-3"]
        ident = self.lab.submit(["to@time.test"], message(self.lab.sender, "to@time.test"), mail_options=options)
        [mail] = wait_for(lambda: self.said_to("time.test"), "the peer has heard of it")
        self.assertRegex(mail, r" BY=(600|5\d\d);R MT-PRIORITY=-3$")
        _, out, _ = self.lab.command("message", "show", ident)
        self.assertIn("stream bulk", out)

    def test_what_is_to_be_in_time_goes_to_nobody_who_does_not_see_to_it(self):
        raw = message(self.lab.sender, "to@ok.test", subject="in time")
        self.lab.submit(["to@ok.test"], raw, mail_options=["BY=600;R"])
        report = self.reported("in time").decode("ascii")
        self.assertIn("Status: 5.4.7\r\n", report)
        self.assertIn("Deliver-By-Date: ", report)
        # Whose sender only wants to know hears that nobody else will tell.
        raw = message(self.lab.sender, "to@ok.test", subject="in some time")
        self.lab.submit(["to@ok.test"], raw, mail_options=["BY=600;N"])
        self.assertIn("Action: relayed\r\n", self.reported("in some time").decode("ascii"))
        [arrived] = [raw for raw in self.lab.arrived("to@ok.test") if b"in some time" in raw]
        self.verified(arrived)

    def utf8(self, recipients, subject, sender=None):
        raw = message(self.lab.sender, recipients[0], subject=subject, body="Grüße\r\n".encode())
        with self.lab.client() as client:
            client.ehlo_or_helo_if_needed()
            client.command_encoding = "utf-8"
            expect(client.mail(sender or self.lab.sender, ["BODY=8BITMIME", "SMTPUTF8"]), 250)
            for recipient in recipients:
                expect(client.rcpt(recipient), 250)
            return raw, queue_id(client.data(raw))

    def test_addresses_and_fields_beyond_ascii_arrive_where_they_are_taken(self):
        raw, _ = self.utf8(["jürgen@utf8.test"], "Grüße")
        [arrived] = self.lab.arrived("jürgen@utf8.test")
        self.assertTrue(arrived.endswith(raw))
        self.assertIn(b"with UTF8SMTPSA", arrived.split(b"\r\n\r\n")[0])
        self.verified(arrived)

    def test_elsewhere_nothing_is_mangled(self):
        # One recipient's address is beyond ASCII, the other's is not: that one gets the message.
        self.utf8(["plain@ok.test", "josé@ok.test"], "address beyond ascii")
        self.lab.arrived("plain@ok.test")
        report = self.reported("address beyond ascii").decode("ascii")
        self.assertIn("Final-Recipient: utf-8; jos\\x{E9}@ok.test\r\n", report)
        self.assertIn("Status: 5.6.7\r\n", report)
        # The header is: nobody there can take it.
        self.utf8(["plain@ok.test"], "Überschrift")
        report = self.reported("=C3=9Cberschrift")
        self.assertIn(b"Status: 5.6.9\r\n", report)

    def test_a_report_beyond_ascii_goes_only_where_it_is_taken(self):
        self.utf8(["nobody@reject.test"], "to nobody from far", sender="josé@sender.test")
        # sender.test does not take such addresses: the report can't be delivered, and none is made on it.
        found = wait_for(lambda: self.ended("josé@sender.test"), "the end of the report")
        self.assertIn("5.6.7", found)

    def ended(self, recipient):
        return next((line for line in self.lab.logged().splitlines() if recipient in line and "bounced" in line), None)

    def test_a_host_of_seven_bits_gets_seven_bits(self):
        """CASES row 29: converted, then signed."""
        recipient = "grete@sevenbit.test"
        text = "Grüße aus München, mit einem = und einem Punkt\r\n.\r\n"
        extra = b"MIME-Version: 1.0\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Transfer-Encoding: 8bit\r\n"
        raw = message(self.lab.sender, recipient, subject="seven", body=text.encode(), extra=extra)
        self.lab.submit([recipient], raw)
        [arrived] = self.lab.arrived(recipient)
        self.assertLess(max(arrived), 128)
        found = email.message_from_bytes(arrived, policy=email.policy.default)
        self.assertEqual(found["content-transfer-encoding"], "quoted-printable")
        self.assertEqual(found.get_content().replace("\n", "\r\n").replace("\r\r", "\r"), text)
        self.verified(arrived)
        # What can't be said in 7-bit is refused, not mangled.
        self.lab.submit([recipient], message(self.lab.sender, recipient, subject="eight").replace(b"eight", "acht-ä".encode()))
        report = self.reported("acht-=C3=A4")
        self.assertTrue(re.search(rb"Status: 5\.6\.3\r\n", report))


if __name__ == "__main__":
    main()
