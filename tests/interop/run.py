"""The relay among its neighbours: Postfix, its smtp-source and smtp-sink, chasquid, npm's smtp-server and nodemailer, swaks.

Each is a client of the relay, or a next hop, or both, on loopback. What arrives has the digest of what was handed over. The
programs are unpacked in the folder INTEROP (tests/interop/fetch) and run from there; nothing is installed.
"""

import hashlib
import json
import os
import pathlib
import shutil
import signal
import smtplib
import socket
import subprocess
import sys
import tempfile
import threading
import unittest

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), ".."))

from lib import Lab, Process, expect, host_port, main, queue_id, wait_for  # noqa: E402

HERE = pathlib.Path(__file__).resolve().parent
INTEROP = pathlib.Path(os.environ.get("INTEROP") or sys.exit("INTEROP must name the folder of tests/interop/fetch"))
DEBIAN = INTEROP / "debian"
SENDER = "app@sender.test"
# The nets of next hops: each has an address of its own with the one port that the relay delivers to.
NAME_SERVER, POSTFIX, SINK, NODE, CHASQUID = (f"127.88.0.{n}" for n in range(1, 6))


def free_port():
    """Free on the addresses of all next hops."""
    for _ in range(50):
        with socket.socket() as probe:
            probe.bind((POSTFIX, 0))
            port = probe.getsockname()[1]
        others = []
        try:
            for address in (NAME_SERVER, SINK, NODE, CHASQUID):
                others.append(socket.create_server((address, port)))
            return port
        except OSError:
            continue
        finally:
            for other in others:
                other.close()
    raise AssertionError("no port is free")


def environment(**more):
    libraries = f"{DEBIAN}/usr/lib/postfix"
    return {**os.environ, "LD_LIBRARY_PATH": libraries, "NODE_PATH": f"{INTEROP}/npm/node_modules", **more}


def run(*command, check=True, **more):
    done = subprocess.run(
        [str(word) for word in command],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=environment(**more),
        timeout=60,
        check=False,
    )
    text = done.stdout.decode(errors="replace")
    if check and done.returncode != 0:
        raise AssertionError(f"{command[0]} exited {done.returncode}: {text}")
    return text


# --- messages ---


def message(title, body, kind="text/plain", encoding="7bit"):
    head = (
        f"X-Interop: {title}\r\nFrom: {SENDER}\r\nTo: undisclosed-recipients:;\r\nSubject: {title}\r\n"
        "Date: Mon, 23 Nov 2026 12:00:00 +0000\r\n"
        f"Message-ID: <{title}.{os.urandom(8).hex()}@sender.test>\r\nMIME-Version: 1.0\r\n"
        f"Content-Type: {kind}; charset=utf-8\r\nContent-Transfer-Encoding: {encoding}\r\n\r\n"
    )
    return head.encode() + body


def messages():
    """By title, what is sent; recipients are counted from 0."""
    dots = b"".join(b"." * n + b"\r\n" + b"." * n + b"x\r\n" for n in range(70))
    line = b"0123456789" * 99 + b"01234567\r\n"
    twenty = (b"A" * 76 + b"\r\n") * (20 * 1024 * 1024 // 78)
    return {
        "seven-bit": (1, message("seven-bit", b"Hello.\r\n")),
        "eight-bit": (1, message("eight-bit", "Grüße, смотри, ☕\r\n".encode(), encoding="8bit")),
        "long-lines": (1, message("long-lines", line * 20)),
        "dots": (1, message("dots", dots)),
        "empty": (1, message("empty", b"")),
        "many": (150, message("many", b"To all of you.\r\n")),
        "big": (1, message("big", twenty)),
    }


def digest(octets):
    return hashlib.sha256(octets).hexdigest()


def own(octets):
    """The message from its own first field on, as it was handed over."""
    return octets[octets.index(b"X-Interop: ") :]


# --- neighbours ---


class NameServer:
    """`NAME.test` has the MX `mx.NAME.test`, which has an address; nothing else exists."""

    def __init__(self, hosts):
        import dns.flags
        import dns.message
        import dns.rcode
        import dns.rrset

        self.socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.socket.bind((NAME_SERVER, 0))
        self.address = "%s:%d" % self.socket.getsockname()

        def answer(octets):
            question = dns.message.from_wire(octets)
            reply = dns.message.make_response(question)
            reply.flags |= dns.flags.AA
            asked = question.question[0]
            name, kind = asked.name.to_text(omit_final_dot=True).lower(), asked.rdtype
            if kind == 15 and name in hosts:
                reply.answer.append(dns.rrset.from_text(asked.name, 30, "IN", "MX", f"10 mx.{name}."))
            elif kind == 1 and name.startswith("mx.") and name[3:] in hosts:
                reply.answer.append(dns.rrset.from_text(asked.name, 30, "IN", "A", hosts[name[3:]]))
            elif name not in hosts and not (name.startswith("mx.") and name[3:] in hosts):
                reply.set_rcode(dns.rcode.NXDOMAIN)
            return reply.to_wire()

        def serve():
            while True:
                try:
                    octets, peer = self.socket.recvfrom(4096)
                    self.socket.sendto(answer(octets), peer)
                except OSError:
                    return

        threading.Thread(target=serve, daemon=True).start()

    def close(self):
        self.socket.close()


class Child:
    """A neighbour's process, and all that it starts; ended with its group."""

    def __init__(self, folder, name, command, **more):
        self.log = folder / f"{name}.out"
        with open(self.log, "wb") as log:
            self.child = subprocess.Popen(
                [str(word) for word in command],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=environment(**more),
                start_new_session=True,
            )

    def said(self):
        return self.log.read_text(errors="replace")

    def stop(self):
        if self.child.poll() is None:
            os.killpg(self.child.pid, signal.SIGTERM)
            try:
                self.child.wait(10)
            except subprocess.TimeoutExpired:
                os.killpg(self.child.pid, signal.SIGKILL)
                self.child.wait()


def listens(address, port):
    try:
        socket.create_connection((address, port), 1).close()
        return True
    except OSError:
        return False


def postfix(folder, listen, more=""):
    """A Postfix of its own: queue, configuration and log below `folder`; mail for postfix.test goes into a maildir."""
    home = folder / "postfix"
    spool = home / "spool"
    for name in ("etc", "data", "mail"):
        (home / name).mkdir(parents=True)
    for name in "active bounce corrupt defer deferred flush hold incoming private saved trace pid public maildrop".split():
        (spool / name).mkdir(parents=True)
        if name != "pid":
            shutil.chown(spool / name, "daemon")
        (spool / name).chmod(0o730 if name == "maildrop" else 0o710 if name == "public" else 0o700)
    for name in ("public", "maildrop"):
        shutil.chown(spool / name, group="games")
    shutil.chown(home / "data", "daemon")
    shutil.chown(home / "mail", "nobody")
    for above in (home, *home.relative_to("/tmp").parents[:-1]):
        os.chmod(pathlib.Path("/tmp") / above, 0o755)
    (home / "etc" / "main.cf").write_text(
        f"""compatibility_level = 3.6
queue_directory = {spool}
data_directory = {home}/data
command_directory = {DEBIAN}/usr/sbin
daemon_directory = {DEBIAN}/usr/lib/postfix/sbin
meta_directory = {DEBIAN}/etc/postfix
shlib_directory = {DEBIAN}/usr/lib/postfix
mail_owner = daemon
setgid_group = games
default_privs = nobody
import_environment = MAIL_CONFIG LD_LIBRARY_PATH TZ
export_environment = MAIL_CONFIG LD_LIBRARY_PATH TZ
maillog_file = {home}/log
maillog_file_prefixes = /tmp
myhostname = mx.postfix.test
mydestination =
mynetworks = 127.0.0.0/8
inet_interfaces = all
inet_protocols = ipv4
virtual_mailbox_domains = postfix.test
virtual_mailbox_base = {home}/mail
virtual_mailbox_maps = static:inbox/
virtual_uid_maps = static:65534
virtual_gid_maps = static:65534
virtual_minimum_uid = 100
virtual_mailbox_limit = 0
message_size_limit = 60000000
smtputf8_enable = yes
alias_maps =
alias_database =
local_recipient_maps =
smtpd_recipient_restrictions = permit_mynetworks, reject
{more}
"""
    )
    (home / "etc" / "master.cf").write_text(
        f"""{listen} inet n - n - - smtpd
cleanup unix n - n - 0 cleanup
qmgr unix n - n 300 1 qmgr
tlsmgr unix - - n 1000? 1 tlsmgr
rewrite unix - - n - - trivial-rewrite
bounce unix - - n - 0 bounce
defer unix - - n - 0 bounce
trace unix - - n - 0 bounce
proxymap unix - - n - - proxymap
smtp unix - - n - - smtp
error unix - - n - - error
retry unix - - n - - error
virtual unix - n n - - virtual
anvil unix - - n - 1 anvil
scache unix - - n - 1 scache
postlog unix-dgram n - n - 1 postlogd
"""
    )
    master = DEBIAN / "usr/lib/postfix/sbin/master"
    child = Child(folder, "postfix", [master, "-c", home / "etc", "-d"], MAIL_CONFIG=str(home / "etc"))
    address, port = host_port(listen)
    wait_for(lambda: listens(address, port), "Postfix listens")
    return child, home


def chasquid(folder, port, certificate, key):
    """A chasquid that pipes what comes for chasquid.test into files."""
    home = folder / "chasquid"
    certificates = home / "etc" / "certs" / "mx.chasquid.test"
    certificates.mkdir(parents=True)
    shutil.copy(certificate, certificates / "fullchain.pem")
    shutil.copy(key, certificates / "privkey.pem")
    domain = home / "etc" / "domains" / "chasquid.test"
    domain.mkdir(parents=True)
    (home / "mail").mkdir()
    save = home / "save"
    save.write_text(f'#!/bin/sh\nfile=$(mktemp -p {home}/mail .XXXXXX)\ncat > "$file"\nmv "$file" "$file.done"\n')
    save.chmod(0o755)
    (domain / "aliases").write_text("".join(f"r{n}: | {save}\n" for n in range(150)))
    (home / "etc" / "chasquid.conf").write_text(
        f'hostname: "mx.chasquid.test"\nsmtp_address: "{CHASQUID}:{port}"\ndata_dir: "{home}/data"\n'
        f'max_data_size_mb: 60\nmail_log_path: "{home}/log"\n'
    )
    child = Child(folder, "chasquid", [DEBIAN / "usr/bin/chasquid", "-config_dir", home / "etc"])
    wait_for(lambda: listens(CHASQUID, port), "chasquid listens", 20)
    return child, home


# --- tests ---


class NextHops(unittest.TestCase):
    """The relay hands over to each neighbour; each has what was handed to the relay, to the octet."""

    @classmethod
    def setUpClass(cls):
        cls.folder = pathlib.Path(tempfile.mkdtemp(prefix="postrider-interop-", dir="/tmp"))
        cls.addClassCleanup(shutil.rmtree, cls.folder, True)
        cls.folder.chmod(0o755)
        cls.port = free_port()
        names = NameServer(
            {"postfix.test": POSTFIX, "sink.test": SINK, "node.test": NODE, "chasquid.test": CHASQUID, "sender.test": SINK}
        )
        cls.addClassCleanup(names.close)
        # A certificate for chasquid, from a lab that is needed for nothing else.
        lab = Lab()
        child, cls.postfix = postfix(cls.folder, f"{POSTFIX}:{cls.port}")
        cls.addClassCleanup(child.stop)
        there = pathlib.Path(lab.at["dir"])
        child, cls.chasquid = chasquid(cls.folder, cls.port, there / "relay.crt", there / "relay.key")
        cls.addClassCleanup(child.stop)
        lab.stop()
        lab.kill()
        cls.node = Child(cls.folder, "node", ["node", HERE / "sink.js", NODE, cls.port])
        cls.addClassCleanup(cls.node.stop)
        cls.sink = cls.folder / "sink"
        cls.sink.mkdir()
        command = [DEBIAN / "usr/sbin/smtp-sink", "-u", "nobody", "-d", "%M.", f"inet:{SINK}:{cls.port}", "1024"]
        shutil.chown(cls.sink, "nobody")
        sink = Child(cls.folder, "smtp-sink", ["env", "-C", cls.sink, *command])
        cls.addClassCleanup(sink.stop)
        wait_for(lambda: listens(SINK, cls.port), "smtp-sink listens")
        wait_for(lambda: "ready" in cls.node.said(), "smtp-server listens")
        cls.submission = free_port()
        config = cls.folder / "postrider.toml"
        config.write_text(
            'hostname = "relay.sender.test"\ndrain_timeout = "5s"\n[store]\npath = "queue"\nmin_free = "16MiB"\n'
            '[tenants.t]\nsenders = ["sender.test"]\n'
            f'[[listener]]\nkind = "trusted"\naddress = "127.0.0.1:{cls.submission}"\nnetworks = ["127.0.0.0/8"]\ntenant = "t"\n'
            '[submission]\nmax_message = "40MiB"\n'
            f'[delivery]\nport = {cls.port}\n[delivery.retry]\nfirst = "1s"\ncap = "2s"\n'
            f'[dns]\nservers = ["{names.address}"]\n'
        )
        cls.relay = Process("run", "--config", str(config))
        cls.addClassCleanup(cls.relay.kill)
        wait_for(lambda: listens("127.0.0.1", cls.submission), "the relay listens")

    def hand_over(self, domain):
        """All messages, for that domain; returns the digests with the number of recipients."""
        sent = {}
        with smtplib.SMTP("127.0.0.1", self.submission, timeout=60) as client:
            client.ehlo()
            for recipients, octets in messages().values():
                options = ["BODY=8BITMIME"] if not octets.isascii() else []
                expect(client.mail(SENDER, options), 250)
                for number in range(recipients):
                    expect(client.rcpt(f"r{number}@{domain}"), 250)
                queue_id(client.data(octets))
                sent[digest(octets)] = recipients
        return sent

    def arrive(self, name, sent, found):
        """`found()` gives the digests of what has arrived, once for each recipient."""

        def counted():
            counts = {}
            for one in found():
                counts[one] = counts.get(one, 0) + 1
            return counts

        try:
            wait_for(lambda: counted() == sent, f"all that was sent is at {name}, unchanged", 90)
        except AssertionError:
            raise AssertionError(f"{name}: sent {sent}, found {counted()}\n{self.relay.logged()[-4000:]}") from None

    def test_postfix(self):
        sent = self.hand_over("postfix.test")

        def found():
            for file in (self.postfix / "mail" / "inbox" / "new").glob("*"):
                # Maildirs have the system's line ends.
                yield digest(own(file.read_bytes().replace(b"\n", b"\r\n")))

        self.arrive("Postfix", sent, found)

    def test_chasquid(self):
        sent = self.hand_over("chasquid.test")

        def found():
            for file in (self.chasquid / "mail").glob("*.done"):
                octets = file.read_bytes()
                yield digest(own(octets if b"\r\n" in octets else octets.replace(b"\n", b"\r\n")))

        self.arrive("chasquid", sent, found)

    def test_smtp_server(self):
        sent = self.hand_over("node.test")

        def found():
            for line in self.node.said().splitlines():
                if not line.startswith("{"):
                    continue
                told = json.loads(line)
                for _ in told["to"]:
                    yield told["sha256"]

        self.arrive("smtp-server", sent, found)

    def test_smtp_sink(self):
        sent = self.hand_over("sink.test")

        def found():
            for file in self.sink.iterdir():
                octets = file.read_bytes()
                if b"\n\n" not in octets:
                    continue
                recipients = sum(line.startswith(b"X-Rcpt-Args: ") for line in octets.splitlines())
                # smtp-sink puts a blank line behind each message, and has the system's line ends.
                text = octets.removesuffix(b"\n").replace(b"\n", b"\r\n")
                for _ in range(recipients):
                    yield digest(own(text))

        self.arrive("smtp-sink", sent, found)


class Clients(unittest.TestCase):
    """Each neighbour hands its mail to the relay, and it arrives in the lab."""

    @classmethod
    def setUpClass(cls):
        cls.folder = pathlib.Path(tempfile.mkdtemp(prefix="postrider-interop-", dir="/tmp"))
        cls.addClassCleanup(shutil.rmtree, cls.folder, True)
        cls.folder.chmod(0o755)
        cls.lab = Lab()
        cls.addClassCleanup(cls.lab.kill)

    def arrived(self, recipient, octets):
        (found,) = self.lab.arrived(recipient, 1)
        self.assertEqual(digest(own(found)), digest(octets), "changed on its way")

    def test_swaks(self):
        perl = f"{DEBIAN}/usr/share/perl5:{DEBIAN}/usr/lib/x86_64-linux-gnu/perl5/5.36"
        at = self.lab.at
        for door, tls in (("submission", "--tls"), ("submissions", "--tls-on-connect")):
            host, port = host_port(at[door])
            octets = message(f"swaks-{door}", b"Hello.\r\n.\r\n..\r\n")
            file = self.folder / "swaks.eml"
            # swaks ends what it reads with a line end of its own.
            file.write_bytes(octets.removesuffix(b"\r\n"))
            said = run(
                "perl", DEBIAN / "usr/bin/swaks", "--server", host, "--port", port, tls, "--tls-ca-path", at["ca"],
                "--tls-verify", "--auth", "PLAIN", "--auth-user", at["username"], "--auth-password", at["password"],
                "--from", self.lab.sender, "--to", f"swaks-{door}@ok.test", "--data", f"@{file}",
                PERL5LIB=perl,
            )
            self.assertIn("queued as", said)
            self.arrived(f"swaks-{door}@ok.test", octets)

    def test_nodemailer(self):
        host, port = host_port(self.lab.at["submission"])
        for title in ("seven-bit", "eight-bit", "dots", "long-lines"):
            octets = messages()[title][1]
            file = self.folder / f"{title}.eml"
            file.write_bytes(octets)
            said = run(
                "node", HERE / "send.js", host, port, self.lab.at["username"], self.lab.at["password"], self.lab.at["ca"],
                self.lab.sender, f"node-{title}@ok.test", file,
            )
            self.assertIn("queued as", said)
            self.arrived(f"node-{title}@ok.test", octets)

    def test_smtp_source(self):
        host, port = host_port(self.lab.at["trusted"])
        run(
            DEBIAN / "usr/sbin/smtp-source", "-s", 10, "-m", 200, "-l", 10_240, "-r", 5, "-f", self.lab.sender,
            "-t", "source@ok.test", f"{host}:{port}",
        )
        # smtp-source numbers the recipients from the second on.
        for name in ["source@ok.test"] + [f"{number}source@ok.test" for number in range(2, 6)]:
            wait_for(lambda name=name: len(self.lab.mailbox(name)) == 200, f"200 for {name}")

    def test_postfix(self):
        with socket.create_server(("127.0.0.1", 0)) as probe:
            port = probe.getsockname()[1]
        host, relay = host_port(self.lab.at["trusted"])
        child, home = postfix(self.folder, f"127.0.0.1:{port}", f"relayhost = [{host}]:{relay}\nsmtp_host_lookup = native")
        self.addCleanup(child.stop)
        for title, (recipients, octets) in messages().items():
            names = [f"postfix-{title}-{number}@ok.test" for number in range(recipients)]
            with smtplib.SMTP("127.0.0.1", port, timeout=60) as client:
                client.ehlo()
                expect(client.mail(self.lab.sender, ["BODY=8BITMIME"] if not octets.isascii() else []), 250)
                for name in names:
                    expect(client.rcpt(name), 250)
                expect(client.data(octets), 250)
            for name in names:
                try:
                    self.arrived(name, octets)
                except AssertionError as wrong:
                    raise AssertionError(f"{name}: {wrong}\n{(home / 'log').read_text()[-3000:]}") from None


class Scans(unittest.TestCase):
    """sslyze finds nothing wrong with TLS on both listeners."""

    def test_sslyze(self):
        sslyze = INTEROP / "python/bin/python"
        if run(sslyze, "-c", "import sslyze", check=False) != "":
            self.skipTest("sslyze could not be fetched")
        lab = Lab()
        self.addCleanup(lab.kill)
        for door, starttls in (("submission", ["--starttls", "smtp"]), ("submissions", [])):
            said = run(
                sslyze, "-W", "ignore", "-m", "sslyze", *starttls, "--sslv2", "--sslv3", "--tlsv1", "--tlsv1_1", "--tlsv1_2",
                "--tlsv1_3", "--heartbleed", "--openssl_ccs", "--reneg", "--robot", "--compression", "--fallback",
                "--mozilla_config", "disable", lab.at[door], check=False,
            )
            self.assertEqual(said.count("the server rejected all cipher suites"), 4, said)
            self.assertEqual(said.count("OK - "), 9, said)
            self.assertNotIn("VULNERABLE", said)


if __name__ == "__main__":
    main()
