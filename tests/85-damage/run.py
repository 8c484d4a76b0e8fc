"""Stores that no relay has open: verified, taken out as a stream, put into another store, salvaged (docs/durability.md, Damage)."""

import glob
import json
import os
import smtplib
import subprocess

from lib import PATIENCE, POSTRIDER, Process, RelayTest, command, get, main, message, wait_for

MESSAGES = 40


class Damage(RelayTest):
    """Each test has mailboxes of its own: the lab's are all tests'."""

    def setUp(self):
        super().setUp()
        self.store = os.path.join(self.dir, "queue")

    def box(self, number):
        return f"{self.id().rsplit('.', 1)[1][5:30]}-{number}@ok.test"

    def flip(self, path, place):
        with open(path, "r+b") as file:
            file.seek(place)
            octet = file.read(1)[0]
            file.seek(place)
            file.write(bytes([octet ^ 0x10]))

    def attempts(self, ident):
        return self.told("message", "show", ident)["recipients"][0]["attempts"]

    def mail_reply(self):
        """What a client is told in the end."""
        with smtplib.SMTP("127.0.0.1", self.port, timeout=30) as client:
            client.ehlo()
            for reply in (client.mail(self.lab.sender), client.rcpt("met@second.test")):
                if reply[0] != 250:
                    return reply
            return client.data(message(self.lab.sender, "met@second.test"))

    def holds(self, path, octets):
        with open(path, "rb") as file:
            return octets in file.read()

    def closed(self, *arguments):
        """A command on the store's folder; returns (exit code, what it printed)."""
        code, out, err = command("queue", *arguments, "--config", self.config)
        return code, out + err

    def fill(self):
        """A stopped relay's store with suspended mail for as many mailboxes; returns the message's IDs."""
        relay = self.start()
        self.told("queue", "suspend", "--domain", "ok.test", "--reason", "a test")
        idents = [self.submit(self.box(number)) for number in range(MESSAGES)]
        self.assertEqual(relay.stop(), 0)
        return idents

    def serve(self, folder):
        """A relay on another folder, whose mail goes."""
        with open(self.config, encoding="utf-8") as config:
            text = config.read().replace(f'path = "{os.path.basename(self.store)}"', f'path = "{folder}"')
        with open(self.config, "w", encoding="utf-8") as config:
            config.write(text)
        self.store = os.path.join(self.dir, folder)
        relay = self.start()
        self.told_at("queue", "resume", "--domain", "ok.test")
        return relay

    def told_at(self, *arguments):
        code, out, err = command(*arguments, "--json", env={"POSTRIDER_ADMIN": f"unix:{self.store}/admin.sock"})
        self.assertEqual((code, err), (0, ""))
        return json.loads(out)

    def test_mail_moves_to_another_store(self):
        relay = self.start()
        for arguments in (("verify",), ("export", "--output", f"{self.dir}/none"), ("import", self.config)):
            code, text = self.closed(*arguments)
            self.assertEqual(code, 1, text)
            self.assertIn("in use by another process", text)
        self.assertEqual(relay.stop(), 0)
        idents = self.fill()
        code, text = self.closed("verify", "--json")
        self.assertEqual(code, 0, text)
        verified = json.loads(text)
        self.assertEqual((verified["ok"], verified["messages"], verified["units"]), (True, MESSAGES, MESSAGES))
        stream = os.path.join(self.dir, "stream")
        code, text = self.closed("export", "--output", stream)
        self.assertEqual(code, 0, text)
        self.assertTrue(text.startswith(f"{MESSAGES} messages ({MESSAGES} units"), text)
        code, text = self.closed("export", "--output", stream)
        self.assertEqual(code, 1, "what is there is not written over")
        self.assertIn("File exists", text)
        # Cut short, then whole, then once more.
        with open(stream, "rb") as whole:
            octets = whole.read()
        with open(f"{stream}.short", "wb") as short:
            short.write(octets[: len(octets) // 2])
        other = ["--store", os.path.join(self.dir, "other")]
        code, text = self.closed("import", f"{stream}.short", *other)
        self.assertEqual(code, 1, text)
        self.assertIn("the stream ends early, after ", text)
        imported = [json.loads(self.closed("import", stream, *other, "--json")[1]) for _ in range(2)]
        self.assertGreater(imported[0]["taken_in_before"], 0)
        self.assertEqual(imported[0]["messages"] + imported[0]["taken_in_before"], MESSAGES)
        self.assertEqual((imported[1]["messages"], imported[1]["taken_in_before"]), (0, MESSAGES))
        code, text = self.closed("import", self.config, *other)
        self.assertEqual(code, 1)
        self.assertIn("this is no stream of `postrider queue export`", text)
        self.assertEqual(self.closed("verify", *other)[0], 0)
        relay = self.serve("other")
        for number in range(MESSAGES):
            self.assertEqual(len(self.lab.arrived(self.box(number))), 1)
        shown = self.told_at("message", "show", idents[7])
        self.assertEqual([event["kind"] for event in shown["events"]][:1], ["restored"], shown)
        self.assertEqual(relay.stop(), 0)

    def test_a_damaged_table_is_told_and_the_rest_salvaged(self):
        idents = self.fill()
        # Opened once more, the log has become tables.
        self.assertEqual(self.start().stop(), 0)
        tables = glob.glob(f"{self.store}/store/*.sst") + glob.glob(f"{self.store}/store/*.blob")
        largest = max(tables, key=os.path.getsize)
        self.flip(largest, os.path.getsize(largest) // 3)
        code, text = self.closed("verify")
        self.assertEqual(code, 1, text)
        self.assertIn("postrider queue export --salvage", text)
        code, text = self.closed("export", "--output", f"{self.dir}/plain")
        self.assertEqual(code, 1, "it is not whole, and says so")
        config = ["--config", self.config]
        with subprocess.Popen(
            [POSTRIDER, "queue", "export", "--salvage", *config], stdout=subprocess.PIPE, stderr=subprocess.PIPE
        ) as export:
            done = subprocess.run(
                [POSTRIDER, "queue", "import", "--store", f"{self.dir}/new", "--json", *config],
                stdin=export.stdout,
                capture_output=True,
                timeout=PATIENCE,
                check=False,
            )
            told = export.stderr.read().decode()
        self.assertEqual(done.returncode, 0, done.stderr)
        there = json.loads(done.stdout)["messages"]
        gone = [ident for ident in idents if ident in told]
        self.assertEqual(there + len(gone), MESSAGES, told)
        self.assertGreater(there, 0)
        if gone:
            self.assertEqual(export.returncode, 1, told)
        relay = self.serve("new")
        wait_for(lambda: sum(len(self.lab.mailbox(self.box(n))) for n in range(MESSAGES)) >= there, "what was salvaged")
        for number in range(MESSAGES):
            wanted = 0 if idents[number] in gone else 1
            self.assertEqual(len(self.lab.mailbox(self.box(number))), wanted, idents[number])
        self.assertEqual(relay.stop(), 0)

    def test_a_relay_whose_store_is_found_damaged_takes_nothing_more_and_delivers_the_rest(self):
        relay = self.start()
        self.told("queue", "suspend", "--domain", "ok.test", "--reason", "a test")
        for number in range(MESSAGES):
            self.submit(self.box(number))
        deferred = [self.submit(f"{name}@full.test") for name in ("one", "other")]
        for turn in range(4):
            self.told("queue", "retry", "--domain", "full.test")
            wait_for(lambda turn=turn: all(self.attempts(one) > turn for one in deferred), "they are tried")
            self.assertEqual(relay.stop(), 0)
            if turn < 3:
                relay = self.start()
        # Each start makes a table of each family of the log. With the fourth RocksDB puts those together that overlap, which
        # those of what changes do; the newest alone is read by others.
        tables = [table for table in sorted(glob.glob(f"{self.store}/store/*.sst")) if self.holds(table, b"state")]
        self.assertEqual(len(tables), 3)
        self.flip(tables[1], 40)
        relay = Process("run", "--config", self.config)
        self.addCleanup(relay.kill)

        def readiness():
            try:
                status, body = get(f"127.0.0.1:{self.metrics}", "/readyz")
                return status, body.decode()
            except OSError:
                return 0, ""

        def damaged():
            self.assertIsNone(relay.child.poll(), relay.logged())
            if readiness()[0] == 200:
                # What is written lets it meet the damage, if nothing has.
                self.mail_reply()
            return readiness()[1].startswith("store damaged: Corruption: ")

        wait_for(damaged, "the damage is met")
        code, text = self.mail_reply()
        self.assertEqual((code, text[:5]), (451, b"4.3.0"))
        metrics = get(f"127.0.0.1:{self.metrics}", "/metrics")[1]
        self.assertIn(b"postrider_store_damaged 1", metrics)
        self.told("queue", "resume", "--domain", "ok.test")

        for number in range(MESSAGES):
            self.assertEqual(len(self.lab.arrived(self.box(number))), 1)
        self.assertEqual(relay.stop(), 0)
        # Known from the start now.
        relay = Process("run", "--config", self.config)
        self.addCleanup(relay.kill)
        wait_for(lambda: readiness()[0] == 503, "it is not ready")
        self.assertIn("store damaged: ", readiness()[1])
        self.assertEqual(relay.stop(), 0)


if __name__ == "__main__":
    main()
