#!/usr/bin/python3
"""Has two programs that handle bounces for a living read our sample reports, and asserts that both find what Python's email
package finds: the same recipients, failed or only delayed. flufl.bounce is Mailman's; BounceParser is Perl's.

    readers.py REPORT...
"""

import email
import email.policy
import os
import subprocess
import sys

from flufl.bounce import all_failures

HERE = os.path.dirname(os.path.abspath(__file__))
# Neither knows UTF-8 in addresses, nor message/global-delivery-status (RFC 6533): nothing is the best they can say.
UNKNOWN_TO_BOTH = {"global"}
UNKNOWN_TO_FLUFL = {"beyond-ascii"}


def name(path):
    return os.path.basename(path).removesuffix(".eml")


def reported(path):
    """Action and recipients, as the status part has them; a recipient by the name that the sender knew."""
    with open(path, "rb") as file:
        report = email.message_from_binary_file(file, policy=email.policy.compat32)
    _, *groups = report.get_payload()[1].get_payload()
    addresses = {(g["Original-Recipient"] or g["Final-Recipient"]).split(";", 1)[1].strip() for g in groups}
    (action,) = {g["Action"] for g in groups}
    return action, addresses


def flufl(path):
    with open(path, "rb") as file:
        temporary, permanent = all_failures(email.message_from_binary_file(file))
    return {a.decode() for a in temporary}, {a.decode() for a in permanent}


def bounceparser(paths):
    said = subprocess.run(
        ["perl", os.path.join(HERE, "bounceparser.pl"), *paths], stdout=subprocess.PIPE, check=True, timeout=60
    )
    found = {}
    for line in said.stdout.decode().splitlines():
        path, bounce, rest = (line + " ").split(" ", 2)
        found[path] = bounce == "1", rest
    return found


def main():
    paths = sys.argv[1:]
    assert len(paths) >= 12, "a dozen kinds"
    perl = bounceparser(paths)
    kinds = set()
    for path in paths:
        if name(path) in UNKNOWN_TO_BOTH:
            continue
        action, addresses = reported(path)
        kinds.add(action)
        if name(path) not in UNKNOWN_TO_FLUFL:
            expected = {
                "failed": (set(), addresses),
                "delayed": (addresses, set()),
                "relayed": (set(), set()),
            }[action]
            assert flufl(path) == expected, f"{path}: flufl.bounce: {flufl(path)}, expected {expected}"
        is_bounce, rest = perl[path]
        assert is_bounce == (action == "failed"), f"{path}: BounceParser: {is_bounce}"
        if is_bounce:
            # An address with a space is in quotes; theirs have lost it.
            for address in addresses:
                assert address.replace(" ", "") + "=" in rest, f"{path}: BounceParser: {address} is not in {rest}"
        if name(path) in ("plain", "named", "eight-bit"):
            assert "=user_unknown" in rest, f"{path}: BounceParser: {rest}"
    assert kinds == {"failed", "delayed", "relayed"}, kinds
    print(f"{len(paths)} reports read alike by email, flufl.bounce and BounceParser")


main()
