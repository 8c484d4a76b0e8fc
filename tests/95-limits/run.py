"""What little a process may have: 256 MiB of memory with 100,000 messages queued and large ones passing through, 256 descriptors
with 500 clients (CASES 2). As root: a control group is made for the first."""

import hashlib
import os
import resource
import smtplib
import socket
import subprocess
import threading
import unittest

from lib import RelayTest, free_port, get, loadtest, main, message, queue_id, wait_for

MIB = 1 << 20
V1, V2 = "/sys/fs/cgroup/memory", "/sys/fs/cgroup"


class Memory(RelayTest):
    """Memory and page cache together are what the kernel counts; it ends the process where it can't take enough back."""

    CAP = 256 * MIB
    QUEUED = 100_000
    SIZE = 50_000_000
    AT_ONCE = 5

    def setUp(self):
        super().setUp()
        self.door = free_port()
        with open(self.config, "a", encoding="utf-8") as config:
            config.write(
                '[tenants.load]\nsenders = ["sender.test"]\n'
                f'[[listener]]\nkind = "trusted"\naddress = "127.0.0.1:{self.door}"\nnetworks = ["127.0.0.0/8"]\ntenant = "load"\n'
                '[submission]\nmax_message = "60MB"\n'
            )
        self.group = self.make_group()

    def make_group(self):
        """A control group with the cap, of either version."""
        old = os.path.exists(f"{V1}/memory.limit_in_bytes")
        if not old and "memory" not in self.read(f"{V2}/cgroup.controllers").split():
            self.fail("no control group for memory is to be had here, and this test needs one")
        if not old and "memory" not in self.read(f"{V2}/cgroup.subtree_control").split():
            with open(f"{V2}/cgroup.subtree_control", "w", encoding="ascii") as control:
                control.write("+memory")
        group = os.path.join(V1 if old else V2, f"postrider-test-{os.getpid()}")
        os.mkdir(group)
        self.addCleanup(lambda: wait_for(lambda: self.removed(group), "the control group is empty"))
        self.limit, self.peak, self.kills = (
            ("memory.limit_in_bytes", "memory.max_usage_in_bytes", "memory.oom_control")
            if old
            else ("memory.max", "memory.peak", "memory.events")
        )
        with open(f"{group}/{self.limit}", "w", encoding="ascii") as limit:
            limit.write(str(self.CAP))
        return group

    @staticmethod
    def removed(group):
        try:
            os.rmdir(group)
        except OSError:
            return False
        return True

    @staticmethod
    def read(path):
        with open(path, encoding="ascii") as file:
            return file.read()

    def started(self):
        enter = f'echo $$ > {self.group}/cgroup.procs && exec "$@"'
        self.relay = self.start(within=("sh", "-c", enter, "sh"))
        return self.relay

    def lives(self):
        self.assertIsNone(self.relay.child.poll(), "ended by the kernel")

    def resident(self, relay, which="VmHWM"):
        line = next(line for line in self.read(f"/proc/{relay.child.pid}/status").splitlines() if line.startswith(which))
        return int(line.split()[1]) * 1024

    def send(self, recipient, raw, sent):
        with smtplib.SMTP("127.0.0.1", self.port, timeout=120) as client:
            client.ehlo()
            client.mail(self.lab.sender, [f"SIZE={len(raw)}"])
            client.rcpt(recipient)
            client.putcmd("DATA")
            client.getreply()
            client.sock.sendall(raw + b".\r\n")
            sent.append(queue_id(client.getreply()))

    def waiting(self):
        text = get(f"127.0.0.1:{self.metrics}", "/metrics")[1].decode()
        lines = [line for line in text.splitlines() if line.startswith("postrider_suspended_messages")]
        return sum(float(line.split()[-1]) for line in lines)

    def test_a_hundred_thousand_wait_and_large_ones_pass(self):
        relay = self.started()
        code, _, told = self.command("queue", "suspend", "--tenant", "load", "--reason", "a test")
        self.assertEqual(code, 0, told)
        flood = [loadtest(), "flood", "--to", f"127.0.0.1:{self.door}", "--messages", str(self.QUEUED)]
        flood += ["--size", "2KiB", "--domains", "1000", "--sessions", "40"]
        line = b"0123456789abcdef" * 4 + b".\r\n"
        raw = message(self.lab.sender, "large@ok.test", subject="large", body=line * (self.SIZE // len(line)))
        # While the others come in, and again beside them all.
        with subprocess.Popen(flood, stdout=subprocess.PIPE) as flooding:
            first = self.pass_through("first", raw)
            code, told = flooding.wait(120), flooding.stdout.read()
        self.lives()
        self.assertEqual(code, 0, told)
        wait_for(lambda: self.waiting() == self.QUEUED, f"{self.QUEUED} messages wait")
        self.pass_through("second", raw)
        peak = self.resident(relay)
        self.assertEqual(relay.stop(), 0)
        # And a start with all of them there.
        relay = self.started()
        wait_for(lambda: self.waiting() == self.QUEUED, f"{self.QUEUED} messages wait")
        again = self.resident(relay)
        self.assertEqual(relay.stop(), 0)
        killed = [line for line in self.read(f"{self.group}/{self.kills}").splitlines() if line.startswith("oom_kill ")]
        self.assertEqual(killed, ["oom_kill 0"], killed)
        counted = int(self.read(f"{self.group}/{self.peak}"))
        print(
            f"\nmemory: cap {self.CAP / MIB:.0f} MiB, {self.QUEUED} queued, 2 x {self.AT_ONCE} x {self.SIZE / 1e6:.0f} MB in {first:.0f} s: "
            f"resident {peak / MIB:.0f} MiB, after a restart {again / MIB:.0f} MiB, with the page cache {counted / MIB:.0f} MiB"
        )

    def pass_through(self, name, raw):
        sent, threads = [], []
        begun = os.times().elapsed
        for number in range(self.AT_ONCE):
            thread = threading.Thread(target=self.send, args=(f"{name}{number}@ok.test", raw, sent))
            thread.start()
            threads.append(thread)
        for thread in threads:
            thread.join()
        self.lives()
        self.assertEqual(len(sent), self.AT_ONCE)
        for number in range(self.AT_ONCE):
            [arrived] = self.lab.arrived(f"{name}{number}@ok.test", within=120)
            self.assertEqual(hashlib.sha256(arrived[-len(raw) :]).digest(), hashlib.sha256(raw).digest())
        return os.times().elapsed - begun


class Descriptors(RelayTest):
    ALLOWED = 256
    CLIENTS = 500

    def setUp(self):
        super().setUp()
        with open(self.config, "a", encoding="utf-8") as config:
            config.write("[submission]\nmax_connections_per_address = 1000\n")
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        self.addCleanup(resource.setrlimit, resource.RLIMIT_NOFILE, (soft, hard))

    def metric(self, line):
        text = get(f"127.0.0.1:{self.metrics}", "/metrics")[1].decode()
        return next((float(found.split()[-1]) for found in text.splitlines() if found.startswith(line + " ")), None)

    @staticmethod
    def greeting(client):
        """What a client hears first: a code, or nothing where it is hung up on."""
        try:
            return client.recv(3).decode()
        except ConnectionError:
            return ""

    def test_more_clients_than_descriptors(self):
        relay = self.start(within=("sh", "-c", f'ulimit -n {self.ALLOWED} && exec "$@"', "sh"))
        self.assertIn("fewer connections at once than configured", relay.logged())
        waiting = [f"w{number}@greylist.test" for number in range(40)]
        for recipient in waiting:
            self.submit(recipient)
        clients = []
        self.addCleanup(lambda: [client.close() for client in clients])
        for _ in range(self.CLIENTS):
            client = socket.create_connection(("127.0.0.1", self.port), timeout=30)
            clients.append(client)
        heard = [self.greeting(client) for client in clients]
        served = heard.count("220")
        self.assertEqual(sorted({"220", *heard} - {"421", ""}), ["220"], heard)
        self.assertGreater(served, 20, heard)
        self.assertLess(served, self.ALLOWED, heard)
        # All that may be is open, and the queue drains.
        for recipient in waiting:
            self.lab.arrived(recipient)
        # Of those who are served each can hand its mail over.
        last = clients[len(heard) - 1 - heard[::-1].index("220")]
        last.sendall(b"EHLO client.test\r\nMAIL FROM:<" + self.lab.sender.encode() + b">\r\nRCPT TO:<served@ok.test>\r\nDATA\r\n")
        last.sendall(message(self.lab.sender, "served@ok.test") + b".\r\n")
        self.lab.arrived("served@ok.test")
        self.assertEqual(get(f"127.0.0.1:{self.metrics}", "/readyz")[0], 200)
        self.assertLess(self.metric("process_open_fds"), self.ALLOWED)
        self.assertEqual(self.metric("process_max_fds"), self.ALLOWED)
        full = self.metric('postrider_submission_connections_total{result="full"}')
        self.assertEqual(full, self.CLIENTS - served)
        for client in clients:
            client.close()
        wait_for(lambda: self.metric("postrider_submission_sessions") == 0, "they have gone")
        self.submit("after@ok.test")
        self.lab.arrived("after@ok.test")
        logged = relay.logged()
        self.assertIn("turned away", logged)
        self.assertNotIn("Too many open files", logged)
        print(f"\ndescriptors: {self.ALLOWED} allowed, {self.CLIENTS} clients: {served} served, {self.CLIENTS - served} turned away")
        self.assertEqual(relay.stop(), 0)


if __name__ == "__main__":
    main()
