#!/usr/bin/python3
"""Verifies every DKIM signature of messages with dkimpy (Debian: python3-dkim python3-nacl).

    verify.py [--signatures N] DNS.json MESSAGE...

DNS.json maps names of TXT records, without the final dot, to their text. Each message must carry at least one signature
(exactly N where given), and each must verify; none may once a From or Subject is put on top or a line is added below.
"""

import argparse
import json
import sys

import dkim


def verdicts(message, records):
    """True or False for each signature, from the top."""

    def lookup(name, timeout=5):
        text = records.get(name.decode("ascii").rstrip(".").lower())
        return None if text is None else text.encode("ascii")

    checker = dkim.DKIM(message)
    count = sum(1 for name, _ in checker.headers if name.lower() == b"dkim-signature")
    found = []
    for index in range(count):
        try:
            found.append(bool(dkim.DKIM(message).verify(idx=index, dnsfunc=lookup)))
        except dkim.DKIMException:
            found.append(False)
    return found


def problems(message, records, signatures):
    found = verdicts(message, records)
    if not found or (signatures is not None and len(found) != signatures):
        yield f"{len(found)} signatures"
    for index, good in enumerate(found):
        if not good:
            yield f"signature {index} does not verify"
    for what, forged in (
        ("a second From", b"From: evil@example.org\r\n" + message),
        ("a second Subject", b"Subject: other\r\n" + message),
        ("a line below", message + (b"" if message.endswith(b"\n") else b"\r\n") + b"more\r\n"),
    ):
        # Without an empty line all is header, and a line below is no body.
        if b"\r\n\r\n" in message and any(verdicts(forged, records)):
            yield f"verifies with {what}"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--signatures", type=int)
    parser.add_argument("dns")
    parser.add_argument("messages", nargs="+")
    arguments = parser.parse_args()
    with open(arguments.dns, encoding="ascii") as file:
        records = {name.rstrip(".").lower(): text for name, text in json.load(file).items()}
    failed = 0
    for path in arguments.messages:
        with open(path, "rb") as file:
            message = file.read()
        try:
            found = list(problems(message, records, arguments.signatures))
        except dkim.DKIMException as error:
            found = [str(error)]
        failed += bool(found)
        print(f"{path}: {'; '.join(found) or 'good'}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
