"""`postrider send` and what else of the command line makes things: messages, credentials, keys."""

import json
import os
import subprocess

from lib import POSTRIDER, RelayTest, command, main


class Send(RelayTest):
    def send(self, *arguments, text=b"", code=0, env=None):
        done = subprocess.run(
            [POSTRIDER, "send", "--config", self.config, *arguments],
            input=text,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**os.environ, **(env or {})},
            timeout=60,
            check=False,
        )
        self.assertEqual(done.returncode, code, done.stderr.decode())
        return done.stdout.decode(), done.stderr.decode()

    def test_a_text_goes_by_the_relay_s_own_listener(self):
        self.start()
        out, _ = self.send(
            "--from", "me@sender.test", "--to", "text@ok.test", "--to", "text@second.test", "--subject", "Grüße",
            text="Es geht.\n.\nWirklich".encode(),
        )
        self.assertIn("accepted  text@ok.test  250 2.0.0 queued as ", out)
        self.assertIn("accepted  text@second.test", out)
        [raw] = self.lab.arrived("text@ok.test")
        self.assertIn("Subject: =?utf-8?B?R3LDvMOfZQ==?=\r\n", raw.decode())
        self.assertTrue(raw.endswith(b"\r\n\r\nEs geht.\r\n.\r\nWirklich\r\n"), raw)

    def test_a_message_from_a_file_and_json(self):
        self.start()
        path = os.path.join(self.dir, "message.eml")
        with open(path, "wb") as file:
            file.write(b"From: Me <me@sender.test>\nTo: file@ok.test\nSubject: file\n\nLine\n")
        out, _ = self.send("--to", "file@ok.test", "--json", path)
        told = json.loads(out)
        [recipient] = told["recipients"]
        self.assertEqual((recipient["address"], recipient["accepted"]), ("file@ok.test", True))
        self.assertEqual(recipient["reply"], f"250 2.0.0 queued as {told['id']}")
        [raw] = self.lab.arrived("file@ok.test")
        self.assertTrue(raw.endswith(b"Subject: file\r\n\r\nLine\r\n"), raw)
        self.assertEqual(self.lab.mailbox("file@ok.test")[0]["mail_from"], "me@sender.test")

    def test_the_relay_holds_it_where_asked(self):
        self.start()
        arguments = ["--from", "me@sender.test", "--subject", "later", "--json"]
        for to, hold in (("for@ok.test", ("--hold-for", "1h")), ("until@ok.test", ("--hold-until", "2026-01-01T00:00:00Z"))):
            out, _ = self.send(*arguments, "--to", to, *hold, text=b"x")
            view = self.told("message", "show", json.loads(out)["id"])
            # The one is held, the other's time has passed.
            self.assertEqual(bool(view["held_until"]), to == "for@ok.test", view)
        self.lab.arrived("until@ok.test")
        self.assertEqual(self.lab.mailbox("for@ok.test"), [])
        out, _ = self.send(*arguments, "--to", "long@ok.test", "--hold-for", "40d", text=b"x", code=1)
        self.assertIn("554 5.5.4 the host holds mail for 2592000 s", json.loads(out)["recipients"][0]["reply"])

    def test_a_password_over_starttls_and_tls(self):
        at = self.lab.at
        for door, tls in (("submission", "starttls"), ("submissions", "implicit")):
            to = f"login-{door}@ok.test"
            arguments = ["--server", at[door], "--tls", tls, "--ca", at["ca"], "--user", at["username"], "--to", to]
            arguments += ["--from", self.lab.sender, "--subject", "login"]
            self.send(*arguments, text=b"x", env={"POSTRIDER_PASSWORD": at["password"]})
            self.lab.arrived(to)
            _, err = self.send(*arguments, text=b"x", env={"POSTRIDER_PASSWORD": "not-this-one"}, code=1)
            self.assertIn("535", err)
            self.assertNotIn("not-this-one", err)
        _, err = self.send(
            "--server", at["submission"], "--user", "u", "--to", "a@ok.test", "--from", "a@b.test", text=b"x\n\n",
            env={"POSTRIDER_PASSWORD": "x"}, code=1,
        )
        self.assertIn("certificate", err)

    def test_what_is_refused_is_told(self):
        self.start()
        out, err = self.send("--from", "me@elsewhere.test", "--to", "a@ok.test", "--subject", "s", text=b"x", code=1)
        self.assertIn("refused   a@ok.test  550 5.7.1", out)
        self.assertIn("1 of 1 recipients were not accepted", err)
        self.assertIn("no From field", self.send("--to", "a@ok.test", text=b"no header\n", code=2)[1])
        self.assertIn("empty", self.send("--to", "a@ok.test", code=1)[1])
        self.assertIn("--to", self.send(text=b"x", code=2)[1])
        self.assertIn("password", self.send("--to", "a@ok.test", "--user", "u", "--server", "localhost", code=2)[1])
        self.assertIn("asks for a password", self.send("--to", "a@ok.test", "--user", "u", text=b"x", code=2)[1])
        gone = self.send("--server", "127.0.0.1:1", "--to", "a@ok.test", "--from", "a@b.test", text=b"x\n\n", code=1)
        self.assertIn("127.0.0.1:1", gone[1])


class Json(RelayTest):
    def told(self, *arguments):
        code, out, err = command(*arguments, "--json")
        self.assertEqual(code, 0, err)
        return json.loads(out)

    def test_credentials(self):
        file = os.path.join(self.dir, "credentials.toml")
        made = self.told("credential", "add", "app", "--tenant", "t", "--file", file)
        self.assertEqual((made["name"], made["tenant"]), ("app", "t"))
        self.assertGreaterEqual(len(made["password"]), 20)
        self.assertEqual([row["name"] for row in self.told("credential", "list", "--file", file)], ["app"])
        self.assertTrue(self.told("credential", "remove", "app", "--file", file)["removed"])
        self.assertEqual(self.told("credential", "list", "--file", file), [])

    def test_dkim(self):
        key = os.path.join(self.dir, "key.pem")
        made = self.told("dkim", "keygen", "sender.test", "--algorithm", "ed25519", "--out", key)
        self.assertEqual((made["key"], made["record"]["name"]), (key, "s1._domainkey.sender.test"))
        with open(self.config, "a", encoding="utf-8") as config:
            config.write(f'[[dkim]]\ndomain = "sender.test"\nselector = "s1"\nkey = "{key}"\n')
        records = self.told("dkim", "dns", "sender.test", "--config", self.config)
        self.assertEqual(records["keys"], [made["record"]])
        self.assertEqual(records["suggested"][1]["name"], "_dmarc.sender.test")


if __name__ == "__main__":
    main()
