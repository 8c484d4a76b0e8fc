#!/usr/bin/python3
"""Reads reports with Python's email package and asserts that each is as RFC 3464, 6522 and 3834 have it.

    check.py [--max-bytes N] REPORT...

Of a report named several.eml, forged.eml and so on (tests/dsn/run.sh) the contents are checked too.
"""

import argparse
import email
import email.policy
import email.utils
import os
import re
import sys


def header(part, name):
    found = part.get_all(name, [])
    assert len(found) == 1, f"{name}: {found}"
    return str(found[0])


def check(raw, limit, is_global=False):
    """Returns the fields of each recipient, the explanation and the third part. `is_global`: in UTF-8, as RFC 6533 has it."""
    assert len(raw) <= limit, f"{len(raw)} octets"
    assert is_global or all(octet < 128 for octet in raw), "not 7-bit"
    assert b"\0" not in raw and raw.decode()
    assert b"\r" not in raw.replace(b"\r\n", b"") and b"\n" not in raw.replace(b"\r\n", b""), "bare CR or LF"
    assert all(len(line) <= 998 for line in raw.split(b"\r\n")), "a long line"
    report = email.message_from_bytes(raw, policy=email.policy.default)
    assert not report.defects, report.defects
    for name in ("Subject", "Message-ID", "MIME-Version"):
        assert header(report, name)
    assert re.fullmatch(r"Mail Delivery System <MAILER-DAEMON@[a-z0-9.-]+>", header(report, "From"))
    assert email.utils.parseaddr(header(report, "To"))[1]
    assert email.utils.parsedate_to_datetime(header(report, "Date")).tzinfo is not None
    assert header(report, "Auto-Submitted") == "auto-replied"
    assert report.get_content_type() == "multipart/report"
    assert report.get_param("report-type") == "delivery-status"
    parts = report.get_payload()
    assert len(parts) == 3, [part.get_content_type() for part in parts]
    text, status, original = parts
    assert text.get_content_type() == "text/plain"
    explanation = text.get_content()
    if is_global:
        assert status.get_content_type() == "message/global-delivery-status"
        # Python's email does not know the type's inside: the groups between its empty lines are read one by one.
        groups = status.as_bytes().split(b"\n\n", 1)[1].strip().split(b"\n\n")
        about, *recipients = [email.message_from_bytes(group, policy=email.policy.SMTPUTF8) for group in groups]
    else:
        assert status.get_content_type() == "message/delivery-status"
        about, *recipients = status.get_payload()
    assert re.fullmatch(r"dns; ?[a-z0-9.-]+", header(about, "Reporting-MTA"))
    assert email.utils.parsedate_to_datetime(header(about, "Arrival-Date")).tzinfo is not None
    assert recipients, "no recipient"
    for recipient in recipients:
        assert not recipient.defects, recipient.defects
        address = re.fullmatch(r"(?:rfc822|utf-8); ?(.+@[a-z0-9.-]+)", header(recipient, "Final-Recipient"))
        assert address, recipient["Final-Recipient"]
        assert f"<{address[1]}>" in explanation, "not told to people"
        action = header(recipient, "Action")
        statuses = {"failed": r"5\.\d{1,3}\.\d{1,3}|4\.4\.7", "delayed": r"4\.\d{1,3}\.\d{1,3}", "relayed": r"2\.\d{1,3}\.\d{1,3}"}
        assert re.fullmatch(statuses[action], header(recipient, "Status")), (action, recipient["Status"])
        if action == "delayed":
            assert email.utils.parsedate_to_datetime(header(recipient, "Will-Retry-Until"))
        if "Diagnostic-Code" in recipient:
            assert re.match(r"smtp; ?[245]\d\d", header(recipient, "Diagnostic-Code"))
        if "Remote-MTA" in recipient:
            assert re.fullmatch(r"dns; ?[a-zA-Z0-9.:-]+", header(recipient, "Remote-MTA"))
        if "Last-Attempt-Date" in recipient:
            assert email.utils.parsedate_to_datetime(header(recipient, "Last-Attempt-Date"))
        known = {"final-recipient", "action", "status", "diagnostic-code", "remote-mta", "last-attempt-date"}
        known |= {"will-retry-until", "original-recipient", "x-postrider-class"}
        assert {name.lower() for name in recipient.keys()} <= known, recipient.keys()
    originals = ("message/global",) if is_global else ("message/rfc822", "text/rfc822-headers")
    assert original.get_content_type() in originals, original.get_content_type()
    return recipients, explanation, original


def contents(name, recipients, explanation, original):
    """What our own samples must say."""
    kind = original.get_content_type()
    # Only from ORCPT (RFC 3464 section 2.3.1).
    named = [str(r["Original-Recipient"]) for r in recipients if "Original-Recipient" in r]
    expected = {
        "named": ["rfc822; Bob+News@Old.example"],
        "beyond-ascii": ["utf-8; j\\x{FC}rgen@example.org"],
        "global": ["utf-8; j\u00fcrgen@example.org"],
    }
    assert named == expected.get(name, []), named
    if name in ("delayed", "relayed"):
        assert kind == "text/rfc822-headers"
        assert header(recipients[0], "Action") == name
    if name == "several":
        assert [header(r, "Status") for r in recipients] == ["5.1.1", "4.4.7", "4.4.7", "5.1.10"]
        assert ["Diagnostic-Code" in r for r in recipients] == [True, True, False, False]
        assert header(recipients[0], "Diagnostic-Code") == "smtp; 550 5.1.1 no such user"
        assert [r["X-Postrider-Class"] for r in recipients] == ["unknown-user", "greylist", "connection", "bad-domain"]
        assert "not delivered within 5 days" in explanation
    if name in ("plain", "several", "forged", "long-reply"):
        assert kind == "message/rfc822"
        inner = original.get_payload()[0]
        assert inner["Subject"] == "Hello" and inner["Received"]
        assert inner.get_payload() in ("hello\r\n.\r\n", "hello\n.\n"), repr(inner.get_payload())
    if name in ("large", "eight-bit", "many-fields"):
        assert kind == "text/rfc822-headers"
        fields = email.message_from_bytes(original.get_payload(decode=True))
        assert fields["Received"]
        if name == "eight-bit":
            assert "Gr\u00fc\u00dfe".encode() in original.get_payload(decode=True)
        if name == "large":
            assert fields["Subject"] == "Hello"
    if name == "forged":
        assert len(recipients) == 1 and "X-Evil" not in recipients[0]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--max-bytes", type=int, default=1 << 20)
    parser.add_argument("reports", nargs="+")
    arguments = parser.parse_args()
    failed = 0
    for path in arguments.reports:
        with open(path, "rb") as file:
            raw = file.read()
        try:
            name = os.path.basename(path).removesuffix(".eml")
            contents(name, *check(raw, arguments.max_bytes, is_global=name == "global"))
            print(f"{path}: good")
        except AssertionError as error:
            failed += 1
            line = error.__traceback__
            while line.tb_next:
                line = line.tb_next
            print(f"{path}: line {line.tb_lineno}: {error or 'not so'}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
