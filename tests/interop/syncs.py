"""What each server has synced when it says 250: its system calls between the last command and that reply, traced.

Prints a line for each server. It runs by name alone (`scripts/test syncs`): what it prints stands in docs/durability.md.
"""

import os
import re
import signal
import smtplib
import subprocess
import sys
import unittest
from pathlib import Path

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), ".."))

from lib import Lab, expect, host_port, main, wait_for  # noqa: E402
from machine import folder, free_port, self_signed  # noqa: E402
from messages import message  # noqa: E402
from neighbours.chasquid import Chasquid  # noqa: E402
from neighbours.exim import Exim  # noqa: E402
from neighbours.npm import Haraka  # noqa: E402
from neighbours.opensmtpd import OpenSmtpd  # noqa: E402
from neighbours.postfix import Postfix  # noqa: E402

ADDRESS = "127.88.2.2"
CALLS = "fsync,fdatasync,sync,syncfs,msync,open,openat,rename,renameat,renameat2,write,writev,sendto,sendmsg"
SYNC = re.compile(r"(?:(?:fsync|fdatasync|syncfs|msync)\((?P<of>[^,)]*).*|(?:fsync|fdatasync|syncfs|msync) resumed>.*)= 0$")
RENAMED = re.compile(r'rename(?:at2?)?\(.*"(?P<of>[^"]*)"[^"]*"(?P<to>[^"]*)"')
OPENED = re.compile(r'open(?:at)?\(.*"(?P<of>[^"]*)", [^)]*O_D?SYNC')


def family(pid):
    """A process and all that come of it."""
    pids, found = [pid], []
    while pids:
        pid = pids.pop()
        found.append(pid)
        for children in Path(f"/proc/{pid}/task").glob("*/children"):
            pids += map(int, children.read_text().split())
    return found


def is_traced(pid):
    try:
        return "TracerPid:\t0\n" not in Path(f"/proc/{pid}/status").read_text()
    except FileNotFoundError:
        return True


def traced(pid, file, talk):
    """The system calls of a server while a client talks."""
    members = family(pid)
    pids = [word for one in members for word in ("-p", str(one))]
    command = ["strace", "-q", "-f", "-y", "-s", "200", "-e", f"trace={CALLS}", "-e", "signal=none", "-o", str(file), *pids]
    tracer = subprocess.Popen(command, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE)
    try:
        wait_for(lambda: all(map(is_traced, members)), "strace is attached", 10)
        talk()
    finally:
        tracer.send_signal(signal.SIGINT)
        tracer.communicate(timeout=10)
    return file.read_text(errors="replace").splitlines()


def before_the_reply(lines):
    """What was synced and renamed between the reply to DATA and the one to the message, in order."""
    replies = [number for number, line in enumerate(lines) if re.search(r'(write|writev|sendto|sendmsg)\(.*"[23]\d\d[ -]', line)]
    data = next(number for number in replies if '"354' in lines[number])
    last = next(number for number in replies if number > data)
    synced, begun = [], {}
    for line in lines[data:last]:
        pid = line.split()[0]
        if "unfinished ..." in line and "sync(" in line:
            begun[pid] = line.partition("sync(")[2].split(" <")[0]
        elif found := SYNC.search(line):
            of = re.sub(r"^\d+<(.*)>$", r"\1", found["of"] or begun.get(pid, "?"))
            synced.append(f"sync {os.path.basename(of)}")
        elif found := RENAMED.search(line):
            synced.append(f"rename to {os.path.basename(found['to'])}")
        elif found := OPENED.search(line):
            synced.append(f"sync each write to {os.path.basename(found['of'])}")
    return synced


class Syncs(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.folder = folder()
        cls.certificate = self_signed(cls.folder)
        cls.port = free_port([ADDRESS])
        # Where nobody listens: nothing is to be delivered.
        cls.nowhere = ADDRESS, free_port([ADDRESS])

    def measure(self, name, pid, address, port, recipient="someone@elsewhere.test"):
        def talk():
            with smtplib.SMTP(address, port, timeout=60) as client:
                client.ehlo()
                expect(client.mail("a@sender.test"), 250)
                expect(client.rcpt(recipient), 250)
                expect(client.data(message("synced", b"x" * 70 + b"\r\n")), 250)

        # What is set up for a first client counts for nobody's message.
        talk()
        lines = traced(pid, self.folder / f"{name}.trace", talk)
        synced = before_the_reply(lines)
        print(f"{name}, before the reply:", *synced or ["nothing is synced"], sep="\n  ")
        return synced

    def neighbour(self, neighbour, recipient="someone@elsewhere.test"):
        self.addCleanup(neighbour.stop)
        name = type(neighbour).__name__
        return self.measure(name, neighbour.child.pid, neighbour.address, neighbour.port, recipient)

    def test_postrider(self):
        lab = Lab()
        self.addCleanup(lab.kill)
        host, port = host_port(lab.at["trusted"])
        synced = self.measure("Postrider", lab.child.pid, host, port)
        self.assertEqual(len(synced), 1, synced)
        self.assertRegex(synced[0], r"^sync \d+\.log$")

    def test_postfix(self):
        self.neighbour(Postfix(self.folder, ADDRESS, self.port, self.nowhere, self.certificate))

    def test_exim(self):
        self.neighbour(Exim(self.folder, ADDRESS, self.port, self.nowhere, self.certificate))

    def test_opensmtpd(self):
        self.neighbour(OpenSmtpd(self.folder, ADDRESS, self.port, self.nowhere, self.certificate))

    def test_haraka(self):
        mx = {"priority": 0, "exchange": self.nowhere[0], "port": self.nowhere[1]}
        self.neighbour(Haraka(self.folder, ADDRESS, self.port, self.certificate, mx))

    def test_chasquid(self):
        self.neighbour(Chasquid(self.folder, ADDRESS, self.port, self.certificate), "r0@chasquid.test")


if __name__ == "__main__":
    main()
