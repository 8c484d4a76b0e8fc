"""A network that loses three packets in ten, to one of two destinations, and then all of them (CASES 2): what it takes is that
destination's alone, and nothing is lost or sent twice.

In a network namespace of its own, where the kernel's packet filter throws packets away by chance."""

import json
import os
import subprocess
import sys

import dns.message
import dns.query
import dns.rdatatype

from lib import RelayTest, host_port, main, wait_for

INSIDE = "POSTRIDER_TEST_NAMESPACE"
MESSAGES = 20
# Twenty sessions of some fifteen round trips each. What is lost is sent again after 0.2 s, then after twice as long each time.
WITHIN = 120.0


def enter():
    """Runs this program again in a namespace where nothing but the loopback is."""
    unshare = ["unshare", "--net"] if os.geteuid() == 0 else ["unshare", "--net", "--map-root-user"]
    os.environ[INSIDE] = "yes"
    os.execvp(unshare[0], [*unshare, sys.executable, *sys.argv])


def filtered(rules):
    """Has the namespace's packets go by these rules, and by no others."""
    table = "table inet test\ndelete table inet test\n"
    chain = "type filter hook input priority 0; policy accept;\n" + rules
    subprocess.run(["nft", "-f", "-"], input=f"{table}table inet test {{\nchain in {{\n{chain}}}\n}}\n", text=True, check=True)


def losing(address, chance=""):
    """Packets to an address are lost: all, or those that this match takes by chance."""
    filtered(f"ip daddr {address} {chance} counter drop\n")


def dropped():
    told = subprocess.run(["nft", "-j", "list", "table", "inet", "test"], stdout=subprocess.PIPE, check=True).stdout
    rules = [entry["rule"]["expr"] for entry in json.loads(told)["nftables"] if "rule" in entry]
    return sum(part["counter"]["packets"] for rule in rules for part in rule if "counter" in part)


class Loss(RelayTest):
    def address(self, domain):
        """Of the host that takes the domain's mail."""
        server, port = host_port(self.lab.at["dns"])

        def ask(name, kind):
            answer = dns.query.udp(dns.message.make_query(name, kind), server, timeout=10, port=port)
            return next(rr for rrset in answer.answer for rr in rrset if rr.rdtype == dns.rdatatype.from_text(kind))

        return ask(ask(domain, "MX").exchange, "A").address

    def tearDown(self):
        filtered("")

    def test_a_lossy_destination_takes_its_mail_once_and_holds_up_no_other(self):
        lossy, sound = self.address("ok.test"), self.address("second.test")
        self.assertNotEqual(lossy, sound)
        self.start()
        losing(lossy, "numgen random mod 100 < 30")
        for number in range(MESSAGES):
            self.submit(f"lossy{number}@ok.test")
        for number in range(MESSAGES):
            self.submit(f"sound{number}@second.test")
        for who, domain in (("sound", "second.test"), ("lossy", "ok.test")):
            for number in range(MESSAGES):
                self.lab.arrived(f"{who}{number}@{domain}", within=WITHIN)
        wait_for(lambda: self.told("queue", "list")["queues"] == [], "everything is recorded", WITHIN)
        for number in range(MESSAGES):
            for address in (f"lossy{number}@ok.test", f"sound{number}@second.test"):
                self.assertEqual(len(self.lab.mailbox(address)), 1, address)
        self.assertGreater(dropped(), MESSAGES, "packets were lost")

    def test_a_destination_that_falls_silent_waits_and_is_found_again(self):
        silent = self.address("ok.test")
        with open(self.config, "a", encoding="utf-8") as config:
            config.write('[delivery.timeouts]\nconnect = "2s"\n')
        relay = self.start()
        losing(silent)
        ident = self.submit("silent@ok.test")
        self.submit("sound@second.test")
        self.lab.arrived("sound@second.test")
        wait_for(lambda: "deferred: destination rests" in relay.logged(), "the destination rests", WITHIN)
        self.assertEqual(self.lab.mailbox("silent@ok.test"), [])
        filtered("")
        [kept] = self.lab.arrived("silent@ok.test", within=WITHIN)
        self.assertIn(ident.encode(), kept)


if __name__ == "__main__":
    if INSIDE not in os.environ:
        enter()
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    main()
