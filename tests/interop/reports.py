"""Who reports what (RFC 3461): a next hop that offers DSN answers the sender's wishes itself, else the relay does; and what a
next hop refuses comes back from the relay. All reports arrive at smtp-sink, which sender.test's MX is.
"""

import email
import email.policy
import re
import unittest

from hops import hops
from lib import wait_for
from messages import UTF8_RECIPIENT, messages


class Reports(unittest.TestCase):
    def send(self, name, domain, to, mail_options=(), rcpt_options=(), **more):
        """Returns the message's id, and the sender, who is of this message alone."""
        sender = f"{name}.{domain}@sender.test"
        # Reports arrive there.
        self.sink = hops().sink
        mail = messages()["seven-bit"]._replace(sender=sender, to=(to,), **more)
        (message_id,) = hops().submit([mail], domain, mail_options, rcpt_options)
        return message_id, sender

    def reports(self, sender):
        """On what this sender sent, with the envelope."""
        to = f"\r\nX-Rcpt-Args: <{sender}>".encode()
        return [octets for octets in self.sink.dumps() if to in octets]

    def report(self, neighbour, sender, kind="multipart/report"):
        """The one report: its part by part, once it is known to come from the null path."""
        try:
            (octets,) = wait_for(lambda: self.reports(sender), f"a report to {sender}")
        except AssertionError as wrong:
            logs = f"{hops().relay.logged()[-3000:]}\n{neighbour.log()[-3000:]}"
            raise AssertionError(f"{wrong}\n{logs}") from None
        self.assertRegex(octets, rb"\r\nX-Mail-Args: <>")
        # What smtp-sink writes above the message are fields too.
        report = email.message_from_bytes(octets, policy=email.policy.default)
        self.assertEqual(report.get_content_type(), kind)
        _, status, original = report.iter_parts()
        about_message, about_recipient = status.get_payload()
        return about_message, about_recipient, original

    def settled(self, message_id, end):
        """Waits until the relay has told the message's end; a report of its own on it would be told then too."""
        wait_for(lambda: re.search(rf"{end} id={message_id}", hops().relay.logged()), f"{message_id} {end}")

    def reported(self, message_id):
        return re.search(rf"report queued .*cause={message_id}", hops().relay.logged()) is not None

    # --- success ---

    WISHES = (["RET=HDRS", "ENVID=QQ+2B314"], ["NOTIFY=SUCCESS", "ORCPT=rfc822;first+2Buser@elsewhere.test"])

    def reports_success_itself(self, neighbour, envelope_id="QQ+314", recipient="first+user", kind="multipart/report"):
        message_id, sender = self.send("success", neighbour.domain, "r0", *self.WISHES)
        about_message, about_recipient, _ = self.report(neighbour, sender, kind)
        self.assertEqual(re.sub(r"\s", "", about_message["Reporting-MTA"]), f"dns;mx.{neighbour.domain}")
        self.assertEqual(about_message["Original-Envelope-Id"], envelope_id)
        self.assertEqual(about_recipient["Action"], "delivered")
        original = about_recipient["Original-Recipient"]
        self.assertEqual(original and re.sub(r"\s", "", original), recipient and f"rfc822;{recipient}@elsewhere.test")
        self.settled(message_id, "delivered")
        self.assertFalse(self.reported(message_id), "the next hop reports, not the relay")
        self.assertEqual(len(self.reports(sender)), 1)

    def test_postfix_reports_success_itself(self):
        self.reports_success_itself(hops().postfix)

    def test_exim_reports_success_itself(self):
        """It leaves xtext as it is."""
        self.reports_success_itself(hops().exim, "QQ+2B314", "first+2Buser")

    def test_opensmtpd_reports_success_itself(self):
        """It says neither for which envelope nor for whom, and has a type of its own."""
        self.reports_success_itself(hops().opensmtpd, None, None, "multipart/mixed")

    def test_smtp_sink_hears_the_wishes_as_they_were_said(self):
        message_id, sender = self.send("wishes", "sink.test", "r0", *self.WISHES)
        self.settled(message_id, "delivered")
        (octets,) = [one for one in self.sink.dumps() if f"\r\nX-Mail-Args: <{sender}>".encode() in one]
        head = octets.split(b"\r\n\r\n")[0].decode()
        for word in (*self.WISHES[0], *self.WISHES[1]):
            self.assertIn(f" {word}", head)
        self.assertFalse(self.reported(message_id))

    def is_told_of_relaying(self, neighbour):
        message_id, sender = self.send("success", neighbour.domain, "r0", *self.WISHES)
        about_message, about_recipient, original = self.report(neighbour, sender)
        self.assertEqual(about_message["Reporting-MTA"], "dns; relay.sender.test")
        self.assertEqual(about_recipient["Action"], "relayed")
        self.assertRegex(about_recipient["Status"], r"^2\.")
        self.assertEqual(about_recipient["Remote-MTA"], f"dns; mx.{neighbour.domain}")
        self.assertEqual(about_message["Original-Envelope-Id"], "QQ+314")
        self.assertEqual(about_recipient["Original-Recipient"], "rfc822; first+user@elsewhere.test")
        self.assertEqual(original.get_content_type(), "text/rfc822-headers")
        self.assertTrue(self.reported(message_id))

    def test_senders_are_told_of_relaying_to_chasquid(self):
        self.is_told_of_relaying(hops().chasquid)

    def test_senders_are_told_of_relaying_to_haraka(self):
        self.is_told_of_relaying(hops().haraka)

    def test_senders_are_told_of_relaying_to_smtp_server(self):
        self.is_told_of_relaying(hops().smtp_server)

    # --- failure ---

    def is_told_of_refusal(self, neighbour, reply):
        message_id, sender = self.send("refused", neighbour.domain, "nobody", [], ["ORCPT=rfc822;nobody+2Bx@elsewhere.test"])
        _, about_recipient, _ = self.report(neighbour, sender)
        self.assertEqual(about_recipient["Final-Recipient"], f"rfc822; nobody@{neighbour.domain}")
        self.assertEqual(about_recipient["Original-Recipient"], "rfc822; nobody+x@elsewhere.test")
        self.assertEqual(about_recipient["Action"], "failed")
        self.assertRegex(about_recipient["Status"], r"^5\.")
        self.assertEqual(about_recipient["Remote-MTA"], f"dns; mx.{neighbour.domain}")
        self.assertRegex(re.sub(r"\s+", " ", about_recipient["Diagnostic-Code"]), f"^smtp; {reply}")
        if enhanced := re.match(r"5\d\d (5\.\d+\.\d+)", reply):
            self.assertEqual(about_recipient["Status"], enhanced[1])
        self.settled(message_id, "bounced")

    def test_postfix_refuses(self):
        self.is_told_of_refusal(hops().postfix, "550 5.1.1 .*User unknown")

    def test_exim_refuses(self):
        self.is_told_of_refusal(hops().exim, "550 Unrouteable address")

    def test_opensmtpd_refuses(self):
        self.is_told_of_refusal(hops().opensmtpd, "524 5.2.4 ")

    def test_chasquid_refuses(self):
        self.is_told_of_refusal(hops().chasquid, "550 5.1.1 ")

    def test_haraka_refuses(self):
        self.is_told_of_refusal(hops().haraka, "550 no such user")

    def test_smtp_server_refuses(self):
        self.is_told_of_refusal(hops().smtp_server, "550 no such user")

    def does_not_take_utf8(self, neighbour):
        message_id, sender = self.send("utf8", neighbour.domain, UTF8_RECIPIENT, utf8=True)
        _, about_recipient, _ = self.report(neighbour, sender)
        self.assertEqual(about_recipient["Action"], "failed")
        self.assertEqual(about_recipient["Status"], "5.6.7")
        self.settled(message_id, "bounced")

    def test_opensmtpd_takes_no_utf8_addresses(self):
        self.does_not_take_utf8(hops().opensmtpd)

    def test_smtp_sink_takes_no_utf8_addresses(self):
        self.does_not_take_utf8(hops().sink)
