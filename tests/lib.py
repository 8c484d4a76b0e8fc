"""What the whole-program tests share: the lab as a child process, its doors, and waiting with a bound.

The program under test is the file named by POSTRIDER. Nothing here sleeps for a fixed time: `wait_for` asks again and
again until something holds, and fails with what it waited for when its time is over.
"""

import atexit
import contextlib
import json
import os
import random
import select
import shutil
import signal
import smtplib
import socket
import ssl
import subprocess
import sys
import tempfile
import time
import unittest
import urllib.error
import urllib.parse
import urllib.request

POSTRIDER = os.environ.get("POSTRIDER") or sys.exit("POSTRIDER must name the program under test")
# Seconds; generous, because a busy machine is no fault of the relay's. The controls, which wait for what never comes, have less.
PATIENCE = float(os.environ.get("POSTRIDER_PATIENCE", 60))


def wait_for(probe, what, within=PATIENCE):
    """Asks until `probe()` gives something true, and returns that."""
    end = time.monotonic() + within
    while True:
        found = probe()
        if found:
            return found
        if time.monotonic() > end:
            raise AssertionError(f"not within {within:g} s: {what}")
        time.sleep(0.02)


def host_port(address):
    host, port = address.rsplit(":", 1)
    return host.strip("[]"), int(port)


def get(address, path):
    """A GET at a `host:port`; returns status and body."""
    try:
        with urllib.request.urlopen(f"http://{address}{path}", timeout=20) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as refused:
        return refused.code, refused.read()


class Process:
    """A child that ends with us, whatever happens."""

    def __init__(self, *arguments, env=None, restore_signals=True, within=()):
        """`within`: a command that execs what is put behind it."""
        self.dir = tempfile.mkdtemp(prefix="postrider-test-")
        self.log = os.path.join(self.dir, "stderr")
        with open(self.log, "wb") as log:
            self.child = subprocess.Popen(
                [*within, POSTRIDER, *arguments],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
                env={**os.environ, **(env or {})},
                restore_signals=restore_signals,
            )
        atexit.register(self.kill)

    def line(self, within=PATIENCE):
        """The next line of standard output."""
        text, end = b"", time.monotonic() + within
        while not text.endswith(b"\n"):
            ready, _, _ = select.select([self.child.stdout], [], [], max(0.0, end - time.monotonic()))
            octet = os.read(self.child.stdout.fileno(), 1) if ready else None
            if not octet:
                why = "ended" if ready else f"said nothing within {within:g} s"
                raise AssertionError(f"{POSTRIDER} {why}; its log:\n{self.logged()}")
            text += octet
        return text.decode()

    def logged(self):
        with open(self.log, encoding="utf-8", errors="replace") as log:
            return log.read()

    def stop(self, within=PATIENCE):
        """SIGTERM; returns the exit code."""
        if self.child.poll() is None:
            self.child.send_signal(signal.SIGTERM)
        try:
            return self.child.wait(within)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"still running {within:g} s after SIGTERM; its log:\n{self.logged()}") from None

    def kill(self):
        if self.child.poll() is None:
            self.child.kill()
            self.child.wait()
        self.child.stdout.close()
        shutil.rmtree(self.dir, ignore_errors=True)


class Lab(Process):
    """`postrider lab --json`."""

    def __init__(self, *arguments):
        self.at = {}
        super().__init__("lab", "--json", *arguments)
        self.at = json.loads(self.line())
        self.sender = self.at["sender"]

    def kill(self):
        super().kill()
        # A lab that is killed leaves its folder.
        if "dir" in self.at:
            shutil.rmtree(self.at["dir"], ignore_errors=True)

    def tls(self):
        return ssl.create_default_context(cafile=self.at["ca"])

    # --- submitting ---

    def client(self, door="submission", login=True):
        """A client of smtplib's, through TLS and AUTH as the door asks for."""
        host, port = host_port(self.at[door])
        if door == "submissions":
            client = smtplib.SMTP_SSL(host, port, timeout=PATIENCE, context=self.tls())
        else:
            client = smtplib.SMTP(host, port, timeout=PATIENCE)
        if door == "submission":
            client.starttls(context=self.tls())
        if login and door != "trusted":
            client.login(self.at["username"], self.at["password"])
        return client

    def submit(self, recipients, message, sender=None, door="submission", mail_options=(), rcpt_options=()):
        """Hands over raw bytes; returns the queue id of the reply."""
        with self.client(door) as client:
            return queue_id(self.transaction(client, recipients, message, sender, mail_options, rcpt_options))

    def transaction(self, client, recipients, message, sender=None, mail_options=(), rcpt_options=()):
        """MAIL, RCPT, DATA; returns the final reply as (code, text)."""
        options = [*mail_options, *(["BODY=8BITMIME"] if any(octet > 127 for octet in message) else [])]
        client.ehlo_or_helo_if_needed()
        expect(client.mail(self.sender if sender is None else sender, options), 250)
        for recipient in recipients:
            expect(client.rcpt(recipient, rcpt_options), 250)
        return client.data(message)

    # --- what became of it ---

    def mailbox(self, address):
        status, body = get(self.at["lab"], "/lab/mailboxes/" + urllib.parse.quote(address))
        return json.loads(body) if status == 200 else []

    def raw(self, address, number):
        status, body = get(self.at["lab"], f"/lab/mailboxes/{urllib.parse.quote(address)}/{number}")
        if status != 200:
            raise AssertionError(f"{address}/{number}: HTTP {status}")
        return body

    def arrived(self, address, count=1, within=PATIENCE):
        """Waits until the mailbox has `count` messages; returns them raw."""
        wait_for(lambda: len(self.mailbox(address)) >= count, f"{count} message(s) for {address}", within)
        return [self.raw(address, number) for number in range(len(self.mailbox(address)))]

    def command(self, *arguments):
        """The command line against the lab's relay; returns (exit code, standard output)."""
        return command(*arguments, env={"POSTRIDER_ADMIN": self.at["admin"]})


def command(*arguments, env=None):
    done = subprocess.run(
        [POSTRIDER, *arguments],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, **(env or {})},
        timeout=PATIENCE,
        check=False,
    )
    return done.returncode, done.stdout.decode(), done.stderr.decode()


def expect(reply, code, enhanced=None):
    """Fails unless a reply, as smtplib gives it, has this code (and enhanced code)."""
    got, text = reply[0], reply[1]
    if got != code or (enhanced and not text.startswith(enhanced.encode())):
        raise AssertionError(f"expected {code} {enhanced or ''}, got {got} {text!r}")
    return text


def queue_id(reply):
    text = expect(reply, 250, "2.0.0")
    if not text.startswith(b"2.0.0 queued as "):
        raise AssertionError(f"not the final reply of the contract: {text!r}")
    return text.removeprefix(b"2.0.0 queued as ").decode()


class Raw:
    """A TCP connection that sends what it is told and reads replies; for all that smtplib would not send."""

    def __init__(self, address, within=PATIENCE):
        self.socket = socket.create_connection(host_port(address), timeout=within)
        self.buffer = b""

    def send(self, octets):
        self.socket.sendall(octets)

    def starttls(self, context, name="localhost"):
        self.socket = context.wrap_socket(self.socket, server_hostname=name)

    def reply(self):
        """The next reply as (code, all its lines); None where the peer has closed."""
        lines = []
        while True:
            line = self.line()
            if line is None:
                return None
            lines.append(line)
            if line[3:4] != b"-":
                return int(line[:3]), lines

    def line(self):
        while b"\r\n" not in self.buffer:
            try:
                some = self.socket.recv(65536)
            except (ConnectionResetError, BrokenPipeError):
                some = b""
            if not some:
                return None
            self.buffer += some
        line, self.buffer = self.buffer.split(b"\r\n", 1)
        return line

    def ask(self, command):
        self.send(command + b"\r\n")
        return self.reply()

    def replies_until_closed(self):
        found = []
        while (reply := self.reply()) is not None:
            found.append(reply)
        return found

    def close(self):
        self.socket.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


class LabTest(unittest.TestCase):
    """Tests that share one lab."""

    lab: Lab

    @classmethod
    def setUpClass(cls):
        cls.lab = Lab()

    @classmethod
    def tearDownClass(cls):
        code = cls.lab.stop()
        cls.lab.kill()
        if code != 0:
            raise AssertionError(f"the lab ended with {code}")


def loadtest():
    """The program of that name."""
    return os.environ.get("LOADTEST") or sys.exit("LOADTEST must name the program `loadtest`")


def free_port():
    """One that the kernel gives to nobody's outgoing connection, which could take it between here and the relay."""
    while True:
        port = random.randrange(10_000, 32_768)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


class RelayTest(LabTest):
    """A relay of the test's own beside the lab's, in the same Internet."""

    def setUp(self):
        self.dir = tempfile.mkdtemp(prefix="postrider-test-")
        self.addCleanup(shutil.rmtree, self.dir, True)
        self.port, self.metrics = free_port(), free_port()
        self.config = os.path.join(self.dir, "postrider.toml")
        with open(os.path.join(self.lab.at["dir"], "postrider.toml"), encoding="utf-8") as lab:
            delivery_port = next(line for line in lab if line.startswith("port = "))
        with open(self.config, "w", encoding="utf-8") as config:
            config.write(
                'hostname = "relay.sender.test"\ndrain_timeout = "5s"\n[store]\npath = "queue"\nmin_free = "16MiB"\n'
                '[tenants.t]\nsenders = ["sender.test"]\n'
                f'[[listener]]\nkind = "trusted"\naddress = "127.0.0.1:{self.port}"\nnetworks = ["127.0.0.0/8"]\ntenant = "t"\n'
                f'[delivery]\n{delivery_port}[delivery.retry]\nfirst = "2s"\ncap = "4s"\n'
                f'[dns]\nservers = ["{self.lab.at["dns"]}"]\n[metrics]\naddress = "127.0.0.1:{self.metrics}"\n'
                '[log]\nformat = "json"\n'
            )

    def start(self, **options):
        relay = Process("run", "--config", self.config, **options)
        self.addCleanup(relay.kill)

        def ready():
            self.assertIsNone(relay.child.poll(), relay.logged())
            try:
                return get(f"127.0.0.1:{self.metrics}", "/readyz")[0] == 200
            except OSError:
                return False

        wait_for(ready, "the relay is ready")
        return relay

    def submit(self, recipient, raw=None):
        with smtplib.SMTP("127.0.0.1", self.port, timeout=30) as client:
            client.ehlo()
            client.mail(self.lab.sender)
            client.rcpt(recipient)
            return queue_id(client.data(raw or message(self.lab.sender, recipient)))

    def command(self, *arguments):
        """The command line against this relay; returns (exit code, standard output, standard error)."""
        return command(*arguments, env={"POSTRIDER_ADMIN": f"unix:{self.dir}/queue/admin.sock"})

    def told(self, *arguments):
        """What such a command prints as JSON."""
        code, out, err = self.command(*arguments, "--json")
        self.assertEqual((code, err), (0, ""))
        return json.loads(out)

    def events(self, relay, ident):
        lines = [json.loads(line) for line in relay.logged().splitlines()]
        return [line["message"] for line in lines if line.get("id") == ident]

def message(sender, recipient, subject="test", body=b"Hello.\r\n", extra=b""):
    """A plain message with all the fields it should have, so that nothing needs to be added but Received."""
    head = (
        f"From: {sender}\r\nTo: {recipient}\r\nSubject: {subject}\r\n"
        f"Date: Mon, 23 Nov 2026 12:00:00 +0000\r\nMessage-ID: <{time.time_ns()}.{os.getpid()}@test.invalid>\r\n"
    ).encode()
    return head + extra + b"\r\n" + body


def main():
    unittest.main(module="__main__", verbosity=2)
