"""Every delivered message's signatures, verified by dkimpy with the keys that the lab's name server publishes."""

from lib import LabTest, main, message
from signatures import Signatures


class Delivered(Signatures, LabTest):
    def deliver(self, name, body, extra=b"", door="submission", domain="ok.test"):
        recipient = f"{name}@{domain}"
        self.lab.submit([recipient], message(self.lab.sender, recipient, body=body, extra=extra), door=door)
        (arrived,) = self.lab.arrived(recipient)
        return arrived, self.verified(arrived)

    def test_both_algorithms_sign(self):
        _, tags = self.deliver("both", b"Hello.\r\n")
        self.assertEqual({tag["a"] for tag in tags}, {"rsa-sha256", "ed25519-sha256"})
        for tag in tags:
            self.assertEqual(tag["d"], self.lab.sender.split("@")[1])
            self.assertNotIn("l", tag, "l= lets others append")
            signed = [name.strip().lower() for name in tag["h"].split(":")]
            self.assertEqual(signed.count("from"), 2, "From is over-signed")
            for name in ("to", "subject", "date", "message-id"):
                self.assertIn(name, signed)

    def test_bodies(self):
        octets = bytes(n for n in range(256) if n not in (10, 13))
        bodies = {
            "nothing": b"",
            "one-empty-line": b"\r\n",
            "empty-lines": b"\r\n\r\n\r\n",
            "white-lines-at-end": b"text\r\n \r\n\t \r\n\r\n",  # other signers get this bh= wrong
            "white-line-only": b" \t\r\n",
            "white-inside": b"a  b\t\tc \r\n d\r\n",
            "dots": b".\r\n..\r\n...\r\n",
            "bytes": octets + b"\r\n",
            "long": b"l" * 998 + b"\r\n",
            "large": (b"All work and no play makes a dull relay.\r\n") * 20000,
        }
        for name, body in bodies.items():
            with self.subTest(body=name):
                self.deliver("body-" + name, body)

    def test_fields(self):
        fields = {
            "folded": b"X-Folded: a\r\n\tb\r\n   c  d\r\n",
            "list": b"List-Unsubscribe: <https://example.test/u/1>\r\nList-Unsubscribe-Post: List-Unsubscribe=One-Click\r\n",
            "mime": b"MIME-Version: 1.0\r\nContent-Type: text/plain;\r\n charset=\"utf-8\"\r\nContent-Transfer-Encoding: 8bit\r\n",
            "reply": b"Reply-To:  Someone   <someone@ok.test>\r\nCc: a@ok.test,\r\n b@ok.test\r\nReferences: <a@b>\r\n",
            "space-before-colon-free": b"x-MiXeD-CaSe:   v  \r\n",
        }
        for name, extra in fields.items():
            with self.subTest(field=name):
                _, tags = self.deliver("field-" + name, b"text\r\n", extra=extra)
                if name == "list":
                    for tag in tags:
                        signed = tag["h"].lower().replace(" ", "").split(":")
                        self.assertIn("list-unsubscribe", signed, "RFC 8058 §4")
                        self.assertIn("list-unsubscribe-post", signed, "RFC 8058 §4")

    def test_after_greylisting_the_signature_still_holds(self):
        self.deliver("signed", b"text\r\n", domain="greylist.test")

    def test_a_second_from_breaks_it(self):
        arrived, _ = self.deliver("oversigned", b"text\r\n")
        forged = b"From: boss@elsewhere.example\r\n" + arrived
        self.assertFalse(self.holds(forged), "a From put on top must break the signature")

    def test_a_changed_octet_breaks_it(self):
        arrived, _ = self.deliver("changed", b"pay 100\r\n")
        self.assertFalse(self.holds(arrived.replace(b"pay 100", b"pay 900")))

    def test_every_copy_is_signed(self):
        names = [f"copy{n}@{domain}" for n in range(3) for domain in ("ok.test", "second.test")]
        self.lab.submit(names, message(self.lab.sender, "undisclosed:;"))
        for name in names:
            (arrived,) = self.lab.arrived(name)
            self.verified(arrived)


if __name__ == "__main__":
    main()
