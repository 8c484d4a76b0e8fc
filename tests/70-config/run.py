"""The program as an operator meets it: checks, exit codes, one process a store, stopping, and what a restart keeps."""

import json
import os
import smtplib
import unittest

from lib import Process, RelayTest, command, free_port, get, main, wait_for

ROOT = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "..")


class Check(unittest.TestCase):
    def test_the_example_is_right(self):
        code, out, err = command("check", os.path.join(ROOT, "docs", "postrider.example.toml"))
        self.assertEqual((code, err), (0, ""), out)

    def test_every_mistake_is_told_and_the_code_is_2(self):
        case = os.path.join(ROOT, "relay", "tests", "bad_configs", "many-at-once")
        code, out, err = command("check", os.path.join(case, "postrider.toml"))
        self.assertEqual((code, out), (2, ""))
        self.assertEqual(len(err.strip().splitlines()), 4, err)
        code, out, _ = command("check", "--json", os.path.join(case, "postrider.toml"))
        self.assertEqual(code, 2)
        self.assertEqual(len(json.loads(out)["mistakes"]), 4)

    def test_wrong_usage_is_2(self):
        self.assertEqual(command("no-such-command")[0], 2)
        code, _, err = command("run", "--config", "/nonexistent.toml")
        self.assertEqual(code, 2)
        self.assertIn("postrider check --example", err)


class Relay(RelayTest):
    def test_health_and_metrics(self):
        relay = self.start()
        at = f"127.0.0.1:{self.metrics}"
        self.assertEqual(get(at, "/healthz")[0], 200)
        self.submit("metrics@ok.test")
        self.lab.arrived("metrics@ok.test")
        wait_for(lambda: b'postrider_recipients_ended_total{end="delivered"} 1' in get(at, "/metrics")[1], "counted")
        self.assertEqual(relay.stop(), 0)

    def test_a_store_has_one_process(self):
        self.start()
        with open(self.config, encoding="utf-8") as config:
            other = config.read().replace(str(self.port), str(free_port())).replace(str(self.metrics), str(free_port()))
        path = os.path.join(self.dir, "other.toml")
        with open(path, "w", encoding="utf-8") as config:
            config.write(other)
        code, _, err = command("run", "--config", path)
        self.assertEqual(code, 1)
        self.assertIn("in use by another process", err)

    def test_what_waits_is_tried_again_after_a_restart(self):
        relay = self.start()
        first = self.submit("later@greylist.test")
        wait_for(lambda: "deferred" in self.events(relay, first), "deferred")
        self.assertEqual(relay.stop(), 0)
        relay = self.start()
        self.lab.arrived("later@greylist.test")
        wait_for(lambda: "delivered" in self.events(relay, first), "delivered")
        self.assertEqual(relay.stop(), 0)

    def test_a_full_disk_is_told_and_nothing_is_taken(self):
        """CASES row 28: 452 4.3.1, and readiness says why. (What is queued still goes: queue's tests.)"""
        with open(self.config, encoding="utf-8") as config:
            text = config.read()
        with open(self.config, "w", encoding="utf-8") as config:
            config.write(text.replace('min_free = "16MiB"', 'min_free = "1000000GB"'))
        relay = Process("run", "--config", self.config)
        self.addCleanup(relay.kill)
        at = f"127.0.0.1:{self.metrics}"

        def status():
            try:
                return get(at, "/readyz")
            except OSError:
                return None

        code, why = wait_for(status, "the relay answers")
        self.assertEqual(code, 503)
        self.assertIn(b"disk full", why)
        with smtplib.SMTP("127.0.0.1", self.port, timeout=30) as client:
            client.ehlo()
            code, text = client.mail(self.lab.sender)
            self.assertEqual((code, text[:5]), (452, b"4.3.1"))
        self.assertEqual(relay.stop(), 0)

    def required_tls(self, more):
        with open(self.config, encoding="utf-8") as config:
            text = config.read()
        rule = '\n[[destination]]\ndomain = "ok.test"\ntls = "required"\n'
        with open(self.config, "w", encoding="utf-8") as config:
            config.write(text.replace("[delivery]\n", "[delivery]\n" + more) + rule)

    def test_required_tls_takes_a_certificate_that_verifies(self):
        self.required_tls(f'ca_file = "{self.lab.at["ca"]}"\n')
        relay = self.start()
        self.submit("verified@ok.test")
        self.lab.arrived("verified@ok.test")
        self.assertIn("TLS", self.lab.mailbox("verified@ok.test")[0]["tls"])
        self.assertEqual(relay.stop(), 0)

    def test_required_tls_waits_rather_than_trust_anyone(self):
        self.required_tls("")
        relay = self.start()
        self.submit("unverified@ok.test")
        wait_for(lambda: "destination rests" in relay.logged(), "the destination rests")
        self.assertIn("4.7.5", relay.logged())
        self.assertEqual(self.lab.mailbox("unverified@ok.test"), [], "sent to a host that could not be verified")
        self.assertEqual(relay.stop(), 0)

    def test_stopping_is_clean_and_quick_when_nothing_listens(self):
        relay = self.start()
        self.submit("nobody@dead.test")
        wait_for(lambda: "destination rests" in relay.logged(), "the destination rests")
        self.assertEqual(relay.stop(within=10), 0)
        relay = self.start()
        self.assertEqual(relay.stop(within=10), 0)


if __name__ == "__main__":
    main()
