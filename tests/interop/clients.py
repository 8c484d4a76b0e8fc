"""Each neighbour hands its mail to the relay, and it arrives in the lab, to the octet."""

import email
import email.policy
import smtplib
import unittest

from hops import hand_over
from lib import Lab, expect, host_port, wait_for
from machine import DEBIAN, HERE, NameServer, folder, free_port, run, self_signed
from messages import digest, message, messages, own
from neighbours.chasquid import Chasquid
from neighbours.exim import Exim
from neighbours.npm import Haraka
from neighbours.opensmtpd import OpenSmtpd
from neighbours.postfix import Postfix

# Of the neighbours, which run one after another.
ADDRESS = "127.88.1.2"
# Of chasquid alone, which asks the DNS for its next hop.
NAME_SERVER = "127.88.1.1"


class Clients(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.folder = folder()
        cls.certificate = self_signed(cls.folder)
        cls.port = free_port([ADDRESS])
        cls.lab = Lab()
        cls.addClassCleanup(cls.lab.kill)
        cls.login = cls.lab.at["username"], cls.lab.at["password"]

    def arrived(self, recipient, octets, log=lambda: ""):
        try:
            (found,) = self.lab.arrived(recipient, 1)
        except AssertionError as wrong:
            raise AssertionError(f"{wrong}\n{self.lab.logged()[-2000:]}\n{log()[-4000:]}") from None
        self.assertEqual(digest(own(found)), digest(octets), f"{recipient}: changed on its way")

    def mails(self, name, utf8=True):
        """All messages by title, each with recipients of its own and handed over by DATA, and the recipients' domain."""
        for title, mail in messages().items():
            if utf8 or not mail.utf8:
                to = tuple(f"{name}-{title}-{local_part}" for local_part in mail.to)
                yield title, mail._replace(to=to, chunks=()), "utf8.test" if mail.utf8 else "ok.test"

    def all_arrive(self, neighbour, name):
        """All messages are handed to a server, which hands them to the relay; so are wishes, where it knows of them."""
        self.addCleanup(neighbour.stop)
        neighbour.check_offers()
        sent = list(self.mails(name, neighbour.utf8))
        with smtplib.SMTP(neighbour.address, neighbour.port, timeout=60) as client:
            if neighbour.login:
                client.starttls()
                client.login(*neighbour.login)
            client.ehlo()
            for _, mail, domain in sent:
                for begin in range(0, len(mail.to), neighbour.at_once):
                    some = mail._replace(to=mail.to[begin : begin + neighbour.at_once])
                    expect(hand_over(client, some, domain), 250)
                    if len(some.to) < len(mail.to):
                        for local_part in some.to:
                            self.arrived(f"{local_part}@{domain}", mail.octets, neighbour.log)
        for _, mail, domain in sent:
            for local_part in mail.to:
                self.arrived(f"{local_part}@{domain}", mail.octets, neighbour.log)
        if neighbour.dsn:
            self.wishes_are_passed_on(neighbour, name)

    def wishes_are_passed_on(self, neighbour, name):
        """What a client asks for in DSN's words goes through the neighbour, and the relay reports that it passed mail on."""
        mail = messages()["seven-bit"]._replace(to=(f"{name}-wishes",))
        with smtplib.SMTP(neighbour.address, neighbour.port, timeout=60) as client:
            client.ehlo()
            wishes = ["NOTIFY=SUCCESS,FAILURE", f"ORCPT=rfc822;{name}+2Bfirst@elsewhere.test"]
            expect(hand_over(client, mail, "ok.test", ["RET=HDRS", f"ENVID={name}+2B1"], wishes), 250)
        self.arrived(f"{name}-wishes@ok.test", mail.octets, neighbour.log)
        self.relayed(name, neighbour.log)

    def relayed(self, name, log):
        def reports():
            box = self.lab.sender
            raw = (self.lab.raw(box, number) for number in range(len(self.lab.mailbox(box))))
            return [one for one in raw if f"{name}+2Bfirst@elsewhere.test".encode() in one or f"{name}+1".encode() in one]

        try:
            (found,) = wait_for(reports, f"the report on {name}'s message")
        except AssertionError as wrong:
            raise AssertionError(f"{wrong}\n{log()[-4000:]}") from None
        _, status, original = email.message_from_bytes(found, policy=email.policy.default).iter_parts()
        about_message, about_recipient = status.get_payload()
        self.assertEqual(about_message["Original-Envelope-Id"], f"{name}+1")
        self.assertEqual(about_recipient["Action"], "relayed")
        self.assertEqual(about_recipient["Original-Recipient"], f"rfc822; {name}+first@elsewhere.test")
        self.assertEqual(original.get_content_type(), "text/rfc822-headers")

    def test_swaks(self):
        perl = ":".join(str(path) for path in [DEBIAN / "usr/share/perl5", *DEBIAN.glob("usr/lib/*/perl5/5.*")])
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

    def nodemailer(self, sender, to, octets, dsn="{}"):
        host, port = host_port(self.lab.at["submission"])
        file = self.folder / "nodemailer.eml"
        file.write_bytes(octets)
        said = run("node", HERE / "send.js", host, port, *self.login, self.lab.at["ca"], sender, ",".join(to), file, dsn)
        self.assertIn("queued as", said)

    def test_nodemailer(self):
        for _, mail, domain in self.mails("nodemailer"):
            to = [f"{local_part}@{domain}" for local_part in mail.to]
            self.nodemailer(mail.sender, to, mail.octets)
            for recipient in to:
                self.arrived(recipient, mail.octets)
        dsn = '{"id": "nodemailer+1", "return": "headers", "notify": "success", "recipient": "nodemailer+first@elsewhere.test"}'
        self.nodemailer(self.lab.sender, ["nodemailer-wishes@ok.test"], messages()["seven-bit"].octets, dsn)
        self.relayed("nodemailer", lambda: "")

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
        postfix = Postfix(self.folder, ADDRESS, self.port, host_port(self.lab.at["trusted"]), self.certificate)
        self.all_arrive(postfix, "postfix")

    def test_exim(self):
        """Through TLS and AUTH, and by BDAT, since the relay offers it."""
        _, port = host_port(self.lab.at["submission"])
        exim = Exim(self.folder, ADDRESS, self.port, ("localhost", port), self.certificate, self.login, self.lab.at["ca"])
        self.all_arrive(exim, "exim")
        sent = [line for line in exim.log().splitlines() if " => " in line]
        self.assertGreaterEqual(len(sent), len(messages()))
        for line in sent:
            # TLS, the way of logging in, and CHUNKING.
            self.assertRegex(line, r' X=TLS1\.3:\S+ .* A=plain K C="250 ')

    def test_opensmtpd(self):
        """Through TLS from the start, and AUTH."""
        _, port = host_port(self.lab.at["submissions"])
        ca = self.lab.at["ca"]
        opensmtpd = OpenSmtpd(self.folder, ADDRESS, self.port, ("localhost", port), self.certificate, self.login, ca)
        self.all_arrive(opensmtpd, "opensmtpd")

    def test_haraka(self):
        """Through TLS and AUTH."""
        host, port = host_port(self.lab.at["submission"])
        name, secret = self.login
        mx = {"priority": 0, "exchange": host, "port": port, "auth_user": name, "auth_pass": secret}
        haraka = Haraka(self.folder, ADDRESS, self.port, self.certificate, mx)
        self.all_arrive(haraka, "haraka")

    def test_chasquid(self):
        """Sends to what the DNS calls its recipients' MX, and is the relay."""
        host, port = host_port(self.lab.at["trusted"])
        NameServer({"ok.test": host, "utf8.test": host}, NAME_SERVER, 53)
        chasquid = Chasquid(
            self.folder, ADDRESS, self.port, self.certificate, self.login, resolver=NAME_SERVER, next_port=port
        )
        self.all_arrive(chasquid, "chasquid")
