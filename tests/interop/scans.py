"""What scanners find: nothing."""

import re
import unittest

from lib import Lab, Process, wait_for
from machine import DEBIAN, INTEROP, folder, free_port, listens, run


class Scans(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.lab = Lab()
        cls.addClassCleanup(cls.lab.kill)

    def test_sslyze_finds_nothing_wrong_with_tls(self):
        for door, starttls in (("submission", ["--starttls", "smtp"]), ("submissions", [])):
            # Against Mozilla's intermediate configuration, unless told otherwise.
            said = run(
                INTEROP / "python/bin/python", "-W", "ignore", "-m", "sslyze", *starttls,
                "--certinfo_ca_file", self.lab.at["ca"], self.lab.at[door], check=False,
            )
            self.assertEqual(said.count("the server rejected all cipher suites"), 4, said)
            for found in (
                "Forward Secrecy                    OK", "OK - Compression disabled",
                "OK - Not vulnerable to OpenSSL CCS injection", "TLS_FALLBACK_SCSV:                 OK",
                "OK - Not vulnerable to Heartbleed", "OK - Not vulnerable, RSA cipher suites not supported",
                "Client Renegotiation DoS Attack:   OK", "Secure Renegotiation:              OK",
            ):
                self.assertIn(found, said)
            self.assertNotIn("VULNERABLE", said)
            wrong = re.findall(r"(?m)^        \* (\w+): ", said[said.index("COMPLIANCE AGAINST TLS CONFIGURATION") :])
            # Nothing but that the lab's certificate never ends.
            self.assertEqual(wrong, ["maximum_certificate_lifespan"], said)

    def open_relay(self, address):
        """What nmap's smtp-open-relay says, knowing a sender of ours."""
        host, port = address.rsplit(":", 1)
        said = run(
            DEBIAN / "usr/bin/nmap", "--datadir", DEBIAN / "usr/share/nmap", "--unprivileged", "-n", "-Pn", "-p", port,
            "--script", "+smtp-open-relay", "--script-args", "smtp-open-relay.domain=sender.test", host,
        )
        found = re.search(r"smtp-open-relay: (.*)", said)
        self.assertIsNotNone(found, said)
        return found[1].strip()

    def test_nmap_finds_no_open_relay(self):
        # The control: who speaks for the tenant gets something through.
        self.assertRegex(self.open_relay(self.lab.at["trusted"]), r"^Server is an open relay \([1-9]\d*/16 tests\)$")
        for door in ("submission", "submissions"):
            self.assertEqual(self.open_relay(self.lab.at[door]), "Server isn't an open relay, authentication needed", door)
        # One that trusts others, not the scanner, turns it away before its EHLO.
        home, port = folder(), free_port()
        config = home / "postrider.toml"
        config.write_text(
            'hostname = "relay.sender.test"\n[store]\npath = "queue"\nmin_free = "16MiB"\n'
            '[tenants.t]\nsenders = ["sender.test"]\n'
            f'[[listener]]\nkind = "trusted"\naddress = "127.0.0.1:{port}"\nnetworks = ["127.0.0.2/32"]\ntenant = "t"\n'
        )
        relay = Process("run", "--config", str(config))
        self.addCleanup(relay.kill)
        wait_for(lambda: listens("127.0.0.1", port), "the relay listens")
        self.assertRegex(self.open_relay(f"127.0.0.1:{port}"), "^SMTP EHLO sender.test: failed to receive data: ")
