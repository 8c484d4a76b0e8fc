"""The neighbours: programs of tests/interop/fetch, run from where they are unpacked or in a root of their own.

A neighbour with a `domain` takes mail for it: for `r0` to `r149` and, where it has `utf8`, for a local part beyond ASCII; every
other recipient is refused. Mail for other domains it hands on to `onward`, and `arrived()` tells what has come for its own.
"""

import atexit
import json
import os
import signal
import smtplib
import subprocess

from lib import wait_for
from machine import environment, listens
from messages import UTF8_RECIPIENT, digest, own

USERS = [*(f"r{n}" for n in range(150)), UTF8_RECIPIENT]


class Neighbour:
    """A process, and all that it starts; ended with its group."""

    domain = None
    # What it offers, beside what every one does; the tests check it, and expect what follows from what it lacks.
    starttls = eight_bit = utf8 = True
    dsn = broken_tls = False
    # How many recipients of a message it can be given at once.
    at_once = 150
    login = None

    def start(self, folder, command, address, port, **more):
        """Runs it, and waits until it listens."""
        self.home, self.address, self.port = folder, address, port
        self.seen = {}
        self.out = folder / "out"
        with open(self.out, "wb") as out:
            self.child = subprocess.Popen(
                [str(word) for word in command],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                env=environment(**more),
                start_new_session=True,
            )
        atexit.register(self.stop)
        try:
            wait_for(lambda: self.ended() or listens(address, port), f"{folder.name} listens", 30)
            if ended := self.ended():
                raise AssertionError(f"{folder.name} ended with {ended.si_status}")
        except AssertionError as wrong:
            raise AssertionError(f"{wrong}: {self.said()}") from None

    def ended(self):
        """How, if it has. It isn't reaped, so that its number, which is its group's too, stays its own."""
        return os.waitid(os.P_PID, self.child.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)

    def stop(self):
        if self.child.returncode is not None:
            return
        os.killpg(self.child.pid, signal.SIGTERM)
        try:
            wait_for(self.ended, f"{self.home.name} ends", 10)
        except AssertionError as late:
            print(late)
        # What it has left behind, too.
        os.killpg(self.child.pid, signal.SIGKILL)
        self.child.wait()

    def check_offers(self):
        """That it offers what it is taken to offer, no more and no less."""
        taken = {"starttls": self.starttls, "8bitmime": self.eight_bit, "smtputf8": self.utf8, "dsn": self.dsn}
        with smtplib.SMTP(self.address, self.port, timeout=30) as client:
            client.ehlo()
            offered = {name: client.has_extn(name) for name in taken}
        if offered != taken:
            raise AssertionError(f"{self.home.name} offers {offered}, not {taken}")

    def said(self):
        return self.out.read_text(errors="replace")

    def log(self):
        """What may tell why something failed."""
        return self.said()

    def printed(self):
        """The digests in lines of JSON on standard output, once for each recipient."""
        for line in self.said().splitlines():
            if line.startswith('{"from"') and line.endswith("}"):
                told = json.loads(line)
                yield from [told["sha256"]] * len(told["to"])

    def digests(self, folder, pattern="*"):
        """Of files with messages for one recipient each; most have the system's line ends."""
        for file in folder.glob(pattern):
            if file not in self.seen:
                octets = file.read_bytes()
                self.seen[file] = digest(own(octets if b"\r\n" in octets else octets.replace(b"\n", b"\r\n")))
        return list(self.seen.values())
