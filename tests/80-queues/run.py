"""Queues at work, from the command line: suspended over a crash, resumed, retried, deleted; messages listed and read."""

import json
import smtplib

from lib import RelayTest, get, main, message, queue_id, wait_for


class Queues(RelayTest):
    def state(self, ident):
        return self.told("message", "show", ident)["recipients"][0]["state"]

    def test_a_suspension_outlives_a_crash(self):
        relay = self.start()
        reason = "maintenance of theirs"
        self.told("queue", "suspend", "--domain", "ok.test", "--for", "1h", "--reason", reason)
        ident = self.submit("suspended@ok.test")
        self.submit("other@second.test")
        self.lab.arrived("other@second.test")
        relay.child.kill()
        relay.child.wait()
        relay = self.start()
        listed = self.told("queue", "list")
        self.assertEqual([queue["domain"] for queue in listed["queues"]], ["ok.test"])
        suspension = listed["queues"][0]["suspension"]
        self.assertEqual((suspension["reason"], suspension["selector"]), (reason, {"domain": "ok.test"}))
        self.assertIsNotNone(suspension["until"])
        self.assertEqual(listed["suspensions"], [suspension])
        waits = self.told("message", "show", ident)["recipients"][0]["waits"]
        self.assertEqual((waits["for"], waits["until"]), ("resume", suspension["until"]))
        shown = self.command("queue", "list")[1]
        self.assertIn(f"suspended until {suspension['until']}: {reason}", shown)
        metrics = get(f"127.0.0.1:{self.metrics}", "/metrics")[1]
        self.assertIn(b'postrider_suspended_messages{tenant="t"} 1', metrics)
        # A retry moves nothing that is suspended, and a restart sends none of it.
        self.told("queue", "retry", "--all")
        self.submit("second@second.test")
        self.lab.arrived("second@second.test")
        self.assertEqual(self.lab.mailbox("suspended@ok.test"), [])
        self.assertEqual(self.command("queue", "resume", "--all")[0], 1, "named otherwise than it was suspended")
        self.told("queue", "resume", "--domain", "ok.test")
        self.lab.arrived("suspended@ok.test")
        self.assertEqual(relay.stop(), 0)

    def test_a_delete_is_previewed_and_senders_are_told_where_asked(self):
        relay = self.start()
        reason = "not for them"
        self.told("queue", "suspend", "--all", "--reason", "a test")
        silent, told, kept = (self.submit(f"deleted@{domain}") for domain in ("ok.test", "second.test", "slow.test"))
        which = ["queue", "delete", "--domain", "ok.test"]
        self.assertEqual(self.told(*which)["messages"], 1)
        self.assertEqual(self.state(silent), "queued", "a preview alone")
        self.assertEqual(self.told(*which, "--yes")["done"], 1)
        which = ["message", "delete", told, "--tell", reason]
        self.assertEqual(self.told(*which)["messages"], 1)
        self.assertEqual(self.told(*which, "--yes")["done"], 1)
        for ident, end in ((silent, "deleted"), (told, "deleted"), (kept, "queued")):
            self.assertEqual(self.state(ident), end)
        # The report waits like all else, and then is the only one.
        self.told("queue", "resume", "--all")
        (report,) = self.lab.arrived(self.lab.sender)
        self.assertIn(b"deleted@second.test", report)
        self.assertIn(reason.encode(), report)
        self.lab.arrived("deleted@slow.test")
        self.assertEqual(self.lab.mailbox("deleted@ok.test") + self.lab.mailbox("deleted@second.test"), [])
        self.assertEqual(relay.stop(), 0)

    def test_a_retry_does_not_wait_for_the_rest_to_end(self):
        with open(self.config, encoding="utf-8") as config:
            text = config.read()
        with open(self.config, "w", encoding="utf-8") as config:
            config.write(text.replace('first = "2s"\ncap = "4s"', 'first = "1h"\ncap = "2h"'))
        relay = self.start()
        rested = self.submit("nobody@dead.test")
        put_off = self.submit("later@greylist.test")
        wait_for(lambda: "deferred" in self.events(relay, put_off), "deferred")
        wait_for(lambda: "destination rests" in relay.logged(), "the destination rests")
        waits = wait_for(lambda: self.told("message", "show", rested)["recipients"][0]["waits"], "it waits")
        self.assertEqual(waits["for"], "rest")
        self.assertIn("refused", waits["cause"])
        self.told("queue", "retry", "--all")
        self.lab.arrived("later@greylist.test")
        wait_for(lambda: relay.logged().count("destination rests") == 2, "the destination was tried again")
        self.assertEqual(relay.stop(), 0)

    def test_messages_are_listed_and_read_and_the_log_says_by_whom(self):
        relay = self.start()
        self.told("queue", "suspend", "--stream", "transactional", "--reason", "a test")
        sent = [self.submit(f"to{number}@{domain}") for domain in ("ok.test", "second.test") for number in range(3)]
        every = self.told("message", "list")["messages"]
        self.assertEqual(sorted(each["id"] for each in every), sorted(sent))
        some = self.told("message", "list", "--domain", "second.test", "--limit", "2")
        self.assertEqual([each["domain"] for each in some["messages"]], ["second.test"] * 2)
        self.assertIsNotNone(some["next"])
        code, out, err = self.command("message", "raw", sent[0])
        self.assertEqual((code, err), (0, ""))
        self.assertTrue(out.startswith("Received: ") and out.endswith("Hello.\r\n") or out.endswith("Hello.\n"), out)
        read = [json.loads(line) for line in relay.logged().splitlines() if "message read" in line]
        self.assertEqual([(line["id"], line["by"].startswith("uid ")) for line in read], [(sent[0], True)])
        self.assertEqual(self.command("queue", "delete")[0], 2, "all of it is deleted by --all alone")
        self.told("queue", "delete", "--all", "--yes")
        self.assertEqual(self.command("message", "raw", sent[0])[0], 1)
        self.assertEqual(relay.stop(), 0)

    def test_mail_is_found_by_sender_recipient_and_age(self):
        relay = self.start()
        self.told("queue", "suspend", "--all", "--reason", "a test")
        other = f"other@{self.lab.sender.split('@')[1]}"
        sent = {}
        for sender, recipients in (
            (self.lab.sender, ["one@ok.test"]),
            (self.lab.sender, ["one@ok.test", "two@ok.test"]),
            (other, ["two@ok.test"]),
            (other, ["one@second.test"]),
        ):
            with smtplib.SMTP("127.0.0.1", self.port, timeout=30) as client:
                client.ehlo()
                client.mail(sender)
                for recipient in recipients:
                    client.rcpt(recipient)
                ident = queue_id(client.data(message(sender, recipients[0])))
                sent[ident] = (sender, recipients)

        def found(*which):
            listed = self.told("message", "list", *which)
            self.assertIsNone(listed["next"])
            return sorted(each["id"] for each in listed["messages"])

        def meant(sender=None, recipient=None):
            return sorted(
                ident
                for ident, (by, to) in sent.items()
                if (sender is None or by == sender) and (recipient is None or recipient in to)
            )

        domain = self.lab.sender.split("@")[1].upper()
        self.assertEqual(found("--sender", other), meant(other))
        self.assertEqual(found("--sender", f"@{domain}"), meant())
        self.assertEqual(found("--sender", "<>"), [])
        self.assertEqual(found("--recipient", "one@OK.test"), meant(None, "one@ok.test"))
        self.assertEqual(found("--recipient", "one@ok.test", "--sender", other), [])
        self.assertEqual(found("--recipient", "@second.test"), meant(None, "one@second.test"))
        self.assertEqual((found("--older-than", "1h"), found("--tag", "june")), ([], []))
        for wrong in (["--sender", ""], ["--recipient", "<>"], ["--older-than", "0s"], ["--sender", "<>", "--all"]):
            code, out, err = self.command("queue", "delete", *wrong, "--yes")
            self.assertEqual((code, out), (2, ""), wrong)
            self.assertNotEqual(err, "")
        # What another waits for too is left alone.
        which = ["queue", "delete", "--recipient", "one@ok.test"]
        preview = self.told(*which)
        self.assertEqual((preview["messages"], preview["shared"], preview["queues"]), (1, 1, 1))
        self.assertIn("1 message for which others wait too", self.command(*which)[1])
        self.assertEqual(self.told("queue", "retry", "--sender", other)["failed"], 0)
        done = self.told(*which, "--yes")
        self.assertEqual((done["done"], done["shared"]), (1, 1))
        states = {ident: self.state(ident) for ident in sent}
        self.assertEqual(sorted(states.values()), ["deleted", "queued", "queued", "queued"])
        self.assertEqual(self.told("queue", "delete", "--sender", other, "--yes")["done"], 2)
        self.told("queue", "resume", "--all")
        self.lab.arrived("two@ok.test")
        self.lab.arrived("one@ok.test")
        self.assertEqual(self.lab.mailbox("one@second.test"), [])
        self.assertEqual(relay.stop(), 0)

    def configure(self, old, new):
        with open(self.config, encoding="utf-8") as config:
            text = config.read()
        self.assertIn(old, text)
        with open(self.config, "w", encoding="utf-8") as config:
            config.write(text.replace(old, new))

    def mail_reply(self, size=""):
        with smtplib.SMTP("127.0.0.1", self.port, timeout=30) as client:
            client.ehlo()
            return client.mail(self.lab.sender, [size] if size else [])

    def readiness(self):
        status, body = get(f"127.0.0.1:{self.metrics}", "/readyz")
        return status, body.decode().strip()

    def test_a_full_queue_refuses_and_goes_on_delivering(self):
        self.configure("[store]\n", '[store]\nmax_messages = 6\nmax_bytes = "1MiB"\n')
        relay = self.start()
        sender = self.lab.sender.split("@")[1]
        for domain in ("ok.test", "reject.test", sender):
            self.told("queue", "suspend", "--domain", domain, "--reason", "a test")
        before = len(self.lab.mailbox(self.lab.sender))
        for _ in range(5):
            self.submit("full@ok.test")
        # Too large for what is left, by its own word.
        self.assertEqual(self.mail_reply("SIZE=1048000")[0], 452)
        self.assertEqual(self.mail_reply("SIZE=1000")[0], 250)
        # Its report takes the place of what it tells of, though the queue be full.
        self.submit("nobody@reject.test")
        code, text = self.mail_reply()
        self.assertEqual((code, text[:5]), (452, b"4.3.1"))
        self.assertEqual(self.readiness(), (503, "queue full: 7 messages wait, and 6 may"))
        metrics = get(f"127.0.0.1:{self.metrics}", "/metrics")[1]
        self.assertIn(b"postrider_queue_used_ratio 1\n", metrics)
        self.told("queue", "resume", "--domain", "reject.test")
        wait_for(lambda: any(one["domain"] == sender for one in self.told("queue", "list")["queues"]), "the report waits")
        self.assertEqual(self.readiness()[0], 503, "as much waits as before")
        self.told("queue", "resume", "--domain", "ok.test")
        self.assertEqual(len(self.lab.arrived("full@ok.test", 5)), 5)
        wait_for(lambda: self.readiness()[0] == 200, "there is room")
        self.told("queue", "resume", "--domain", sender)
        self.lab.arrived(self.lab.sender, before + 1)
        self.submit("again@second.test")
        full = [line for line in relay.logged().splitlines() if "the queue is full" in line]
        self.assertEqual(len(full), 1, "told once")
        # A tenant's share is taken by a reload.
        self.configure("[tenants.t]\n", "[tenants.t]\nqueue_share = 0.5\n")
        self.told("reload")
        self.told("queue", "suspend", "--all", "--reason", "a test")
        for _ in range(3):
            self.submit("share@ok.test")
        self.assertEqual(self.mail_reply()[0], 452)
        self.assertEqual(self.readiness()[0], 200)
        self.assertEqual(relay.stop(), 0)


if __name__ == "__main__":
    main()
