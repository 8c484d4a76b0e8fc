"""Failure reports, read as an application would: by Python's email package, from the sender's own mailbox (promise 2)."""

import email
import email.policy

from lib import LabTest, main, message, wait_for
from signatures import Signatures

UNKNOWN = "nobody@reject.test"


class Reports(Signatures, LabTest):
    def reports(self):
        """All that came back to the sender, raw."""
        box = self.lab.sender
        return [self.lab.raw(box, number) for number in range(len(self.lab.mailbox(box)))]

    def report(self, subject, recipients=(UNKNOWN,), **more):
        """Submits a message with this subject, which must be its own, and returns the report on it."""
        self.lab.submit(list(recipients), message(self.lab.sender, recipients[0], subject=subject, **more))
        return self.report_on(subject)

    def report_on(self, subject):
        line = f"Subject: {subject}\r\n".encode()
        return wait_for(lambda: next((raw for raw in self.reports() if line in raw), None), f"the report on {subject!r}")

    def parts(self, raw_report):
        report = email.message_from_bytes(raw_report, policy=email.policy.default)
        self.assertEqual(report.get_content_type(), "multipart/report")
        self.assertEqual(report.get_param("report-type"), "delivery-status")
        self.assertEqual(report.defects, [])
        parts = list(report.iter_parts())
        self.assertEqual(len(parts), 3)
        return report, parts

    def test_unknown_user_is_reported(self):
        found = self.report("unknown user")
        report, (text, status, original) = self.parts(found)
        self.assertIn("mailer-daemon@", report["from"].lower())
        self.assertEqual(report["to"].addresses[0].addr_spec, self.lab.sender)
        self.assertIn(report["auto-submitted"], ("auto-replied", "auto-generated"))
        self.assertTrue(report["message-id"] and report["date"] and report["subject"])
        self.assertEqual(text.get_content_type(), "text/plain")
        self.assertIn(UNKNOWN, text.get_content())
        self.assertEqual(status.get_content_type(), "message/delivery-status")
        about_message, *about_recipients = status.get_payload()
        self.assertRegex(about_message["Reporting-MTA"], r"^dns; ?\S+$")
        self.assertEqual(len(about_recipients), 1)
        fields = about_recipients[0]
        self.assertRegex(fields["Final-Recipient"], r"(?i)^rfc822; ?nobody@reject\.test$")
        self.assertEqual(fields["Action"].lower(), "failed")
        self.assertRegex(fields["Status"], r"^5\.\d{1,3}\.\d{1,3}$")
        self.assertRegex(fields["Diagnostic-Code"], r"(?s)^smtp; ?550")
        self.assertEqual(fields["X-Postrider-Class"], "unknown-user")
        self.assertRegex(fields["Remote-MTA"], r"^dns; ?\S+")
        self.assertIsNone(fields["Original-Recipient"], "only from an ORCPT (RFC 3464 §2.3.1)")
        self.assertIn(original.get_content_type(), ("message/rfc822", "text/rfc822-headers"))
        self.assertLess(max(found), 128, "a report is 7-bit")

    def test_success_is_reported_as_relayed_where_it_was_asked_for(self):
        subject = "tell me of success"
        self.lab.submit(
            ["happy@ok.test"],
            message(self.lab.sender, "happy@ok.test", subject=subject),
            mail_options=["RET=HDRS", "ENVID=QQ+2B314159"],
            rcpt_options=["NOTIFY=SUCCESS,FAILURE", "ORCPT=rfc822;Happy+2Bnews@ok.test"],
        )
        _, (_, status, original) = self.parts(self.report_on(subject))
        about_message, fields = status.get_payload()
        self.assertEqual(about_message["Original-Envelope-Id"], "QQ+314159")
        self.assertEqual(fields["Action"], "relayed")
        self.assertRegex(fields["Status"], r"^2\.")
        self.assertEqual(fields["Original-Recipient"], "rfc822; Happy+news@ok.test")
        self.assertEqual(original.get_content_type(), "text/rfc822-headers")

    def test_never_is_never(self):
        quiet = message(self.lab.sender, UNKNOWN, subject="never tell me")
        self.lab.submit([UNKNOWN], quiet, rcpt_options=["NOTIFY=NEVER"])
        self.report("a later failure")
        self.assertFalse(any(b"Subject: never tell me\r\n" in raw for raw in self.reports()))

    def test_reports_come_from_the_null_sender(self):
        self.report("null sender")
        for entry in self.lab.mailbox(self.lab.sender):
            self.assertIn(envelope_sender(entry), ("", "<>"), f"not the null sender: {entry}")

    def test_reports_are_signed(self):
        found = self.report("signed report")
        tags = self.verified(found)
        domain = email.message_from_bytes(found, policy=email.policy.default)["from"].addresses[0].domain
        for tag in tags:
            self.assertTrue(domain == tag["d"] or domain.endswith("." + tag["d"]), f"{domain} is not of {tag['d']}")

    def test_a_partial_failure_is_one_report_on_the_failed(self):
        found = self.report("partial failure", ["partial@reject.test", UNKNOWN, "partial@ok.test"])
        self.lab.arrived("partial@reject.test")
        self.lab.arrived("partial@ok.test")
        _, (_, status, _) = self.parts(found)
        self.assertEqual(len(status.get_payload()) - 1, 1, "only the failed recipient")
        self.report("after the partial failure")
        self.assertEqual(sum(b"Subject: partial failure\r\n" in raw for raw in self.reports()), 1)

    def test_eight_bit_and_white_space_in_the_original(self):
        found = self.report(
            "eight bits",
            body="Grüße\r\n".encode() + b"\xff\xfe.\r\n \r\n\t\r\n",
            extra=b"MIME-Version: 1.0\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Transfer-Encoding: 8bit\r\n",
        )
        self.parts(found)
        self.verified(found)
        self.assertLess(max(found), 128, "nothing of the original's eighth bit leaks (RFC 3464 §2)")

    def test_the_null_sender_gets_no_report(self):
        raw = message(self.lab.sender, UNKNOWN, subject="from nobody at all")
        self.lab.submit([UNKNOWN], raw, sender="", door="trusted")
        # A later message's report shows that there was time enough for a wrong one.
        self.report("a sentinel")
        for found in self.reports():
            self.assertNotIn(b"from nobody at all", found)

    def test_a_large_original_is_cut(self):
        body = (b"x" * 76 + b"\r\n") * 60000
        found = self.report("large original", body=body)
        self.parts(found)
        self.assertLess(len(found), len(body))


def envelope_sender(entry):
    for key in ("mail_from", "from", "sender", "reverse_path", "envelope_from"):
        if key in entry:
            return entry[key] or ""
    raise AssertionError(f"no envelope sender in {entry}")


if __name__ == "__main__":
    main()
