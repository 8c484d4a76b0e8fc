"""`loadtest flood` and `loadtest sink` as programs of their own, a relay between them: each door, and the report."""

import json
import os
import re
import signal
import subprocess

from lib import PATIENCE, LabTest, Process, free_port, loadtest, main, get, wait_for

MESSAGES = 300


class FloodAndSink(LabTest):
    """The lab lends its certificate and its credential; its Internet is not used."""

    def test_each_door_hands_on_what_it_took(self):
        sink = subprocess.Popen(
            [loadtest(), "sink", "--domains", "3", "--tls", "--delay", "1-3", "--defer", "0.02", "--json"],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        self.addCleanup(sink.kill)
        started = sink.stderr.readline()
        self.assertRegex(started, r"^3 domains from d0\.load\.test to d2\.load\.test, on port \d+; name server [\d.:]+$")
        port, server = re.search(r"port (\d+); name server (\S+)", started).groups()
        doors, metrics = self.relay(port, server)
        password = os.path.join(self.lab.at["dir"], "load-password")
        with open(password, "w", encoding="utf-8") as file:
            file.write(self.lab.at["password"] + "\n")
        login = ["--user", self.lab.at["username"], "--password-file", password]
        page = os.path.join(self.lab.at["dir"], "flood.html")
        for number, (door, tls, *more) in enumerate((
            ("trusted", "off", "--transfer", "lockstep"),
            ("submission", "starttls", *login, "--transfer", "bdat", "--per-session", "20"),
            ("submissions", "implicit", *login, "--rate", "400", "--report", page),
        ), 1):
            done = subprocess.run(
                [
                    loadtest(), "flood", "--to", f"127.0.0.1:{doors[door]}", "--tls", tls, "--messages", str(MESSAGES), "--sessions", "8",
                    "--domains", "3", "--size", "1KiB:5,30KiB:1", "--from", f"load@{self.lab.sender.split('@')[1]}", "--json", *more,
                ],
                stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=PATIENCE, check=False,
            )
            self.assertEqual(done.returncode, 0, (door, done.stdout, done.stderr))
            told = json.loads(done.stdout)
            self.assertEqual((told["accepted"], told["refused"]), (MESSAGES, 0), told)

            def delivered(least=number * MESSAGES):
                text = get(metrics, "/metrics")[1].decode()
                counts = re.findall(r'^postrider_recipients_ended_total\{[^}]*"delivered"[^}]*\} (\d+)', text, re.MULTILINE)
                return sum(map(int, counts)) >= least

            wait_for(delivered, f"all that came by the {door} door is delivered")
        with open(page, encoding="utf-8") as file:
            text = file.read()
        # A page of its own: the load over time, and how long it took.
        self.assertGreaterEqual(text.count("<svg"), 2)
        self.assertNotRegex(text, r'(src|href)="?https?:')
        sink.send_signal(signal.SIGINT)
        out, err = sink.communicate(timeout=PATIENCE)
        self.assertEqual(sink.returncode, 0, err)
        taken = json.loads(out)
        self.assertEqual((taken["arrived"], taken["missing"], taken["duplicates"]), (3 * MESSAGES, 0, 0), taken)
        self.assertGreater(taken["handshakes"], 0)
        self.assertGreater(taken["deferred"], 0)

    def relay(self, port, server):
        """Starts one that sends to the sink; returns the port of each door, and where its metrics are."""
        doors = {door: free_port() for door in ("trusted", "submission", "submissions")}
        metrics = f"127.0.0.1:{free_port()}"
        folder = self.lab.at["dir"]
        config = os.path.join(folder, "load.toml")
        secure = 'certificate = "relay.crt"\nkey = "relay.key"\n'
        listeners = "".join(
            f'[[listener]]\nkind = "{door}"\naddress = "127.0.0.1:{doors[door]}"\n'
            + (f'networks = ["127.0.0.0/8"]\ntenant = "{self.tenant()}"\n' if door == "trusted" else secure)
            for door in doors
        )
        with open(config, "w", encoding="utf-8") as file:
            file.write(
                'hostname = "relay.sender.test"\ncredentials = "credentials.toml"\n[store]\npath = "load-queue"\nmin_free = "16MiB"\n'
                f'[tenants.{self.tenant()}]\nsenders = ["*"]\n{listeners}'
                f'[delivery]\nport = {port}\n[delivery.retry]\nfirst = "1s"\ncap = "2s"\n'
                f'[dns]\nservers = ["{server}"]\n[metrics]\naddress = "{metrics}"\n'
            )
        relay = Process("run", "--config", config)
        self.addCleanup(relay.kill)

        def ready():
            self.assertIsNone(relay.child.poll(), relay.logged())
            try:
                return get(metrics, "/readyz")[0] == 200
            except OSError:
                return False

        wait_for(ready, "the relay is ready")
        return doors, metrics

    def tenant(self):
        with open(os.path.join(self.lab.at["dir"], "credentials.toml"), encoding="utf-8") as file:
            return re.search(r'tenant = "([^"]+)"', file.read()).group(1)


if __name__ == "__main__":
    main()
