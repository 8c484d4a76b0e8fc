"""Disks that fail and disks that fill up, under a running relay (CASES 2): nothing that was acknowledged is lost, the client
and the operator are told, and it works again by itself."""

import glob
import os
import resource
import signal
import smtplib
import socket
import subprocess
import threading
import time
import unittest

from lib import Process, RelayTest, command, get, loadtest, main, message, queue_id, wait_for

MIB = 1 << 20


def octets(path):
    with open(path, "rb") as file:
        return file.read()


class Disk(RelayTest):
    def readiness(self):
        status, body = get(f"127.0.0.1:{self.metrics}", "/readyz")
        return status, body.decode()

    def final_reply(self, recipient):
        """What the client is told, at whatever command: code and text."""
        with smtplib.SMTP("127.0.0.1", self.port, timeout=30) as client:
            client.ehlo()
            for reply in (client.mail(self.lab.sender), client.rcpt(recipient)):
                if reply[0] != 250:
                    return reply
            return client.data(message(self.lab.sender, recipient))

    def refused(self, recipient):
        try:
            code, text = self.final_reply(recipient)
        except smtplib.SMTPDataError as error:
            code, text = error.smtp_code, error.smtp_error
        return code, text.decode()


class Failing(Disk):
    """Every write fails: the process may make no file longer than nothing. It can't tell this from a disk's EIO."""

    def setUp(self):
        super().setUp()
        # Else the first write would end the process. A child inherits what is ignored, if it is let.
        before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        self.addCleanup(signal.signal, signal.SIGXFSZ, before)

    def start(self):
        return super().start(restore_signals=False)

    def limit(self, relay, octets):
        resource.prlimit(relay.child.pid, resource.RLIMIT_FSIZE, (octets, resource.RLIM_INFINITY))

    def test_writes_fail_and_work_again(self):
        relay = self.start()
        before = self.submit("before@greylist.test")
        self.limit(relay, 0)
        # The deferral's outcome, or the next message, meets the failure.
        code, text = wait_for(
            lambda: (lambda told: told if told[0] != 250 else None)(self.refused("lost@ok.test")), "a refusal"
        )
        self.assertEqual((code, text[:5]), (451, "4.3.0"), text)
        status, why = self.readiness()
        self.assertEqual(status, 503)
        self.assertIn("store failing: ", why)
        self.assertEqual(get(f"127.0.0.1:{self.metrics}", "/healthz")[0], 200)
        self.assertIsNone(relay.child.poll())
        # Reading goes on.
        self.assertEqual(self.told("message", "show", before)["id"], before)
        self.limit(relay, resource.RLIM_INFINITY)
        wait_for(lambda: self.readiness()[0] == 200, "ready by itself")
        self.submit("after@ok.test")
        self.lab.arrived("after@ok.test")
        [kept] = self.lab.arrived("before@greylist.test")
        self.assertIn(before.encode(), kept)
        self.assertEqual(self.lab.mailbox("lost@ok.test"), [], "it was refused: the client keeps it")
        text = get(f"127.0.0.1:{self.metrics}", "/metrics")[1]
        self.assertIn(b"postrider_store_reopened_total 1\n", text)
        self.assertEqual(relay.stop(), 0)

    def test_a_delivery_under_way_is_recorded_afterwards_and_sent_once(self):
        relay = self.start()
        # Slow to answer the final dot: meanwhile the disk fails.
        self.submit("once@slow.test")
        wait_for(lambda: b"postrider_delivery_connections 1\n" in get(f"127.0.0.1:{self.metrics}", "/metrics")[1], "a connection")
        self.limit(relay, 0)
        self.lab.arrived("once@slow.test")
        wait_for(lambda: self.refused("lost@ok.test")[0] == 451, "a refusal")
        self.limit(relay, resource.RLIM_INFINITY)
        wait_for(lambda: self.readiness()[0] == 200, "ready by itself")
        wait_for(lambda: self.told("queue", "list")["queues"] == [], "an empty queue")
        self.assertEqual(relay.stop(), 0)
        relay = self.start()
        self.submit("last@slow.test")
        self.lab.arrived("last@slow.test")
        self.assertEqual(len(self.lab.mailbox("once@slow.test")), 1)
        self.assertEqual(relay.stop(), 0)


class Full(Disk):
    """A small file system of the test's own, which others fill up."""

    def setUp(self):
        super().setUp()
        self.disk = os.path.join(self.dir, "disk")
        os.mkdir(self.disk)
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=96m", "tmpfs", self.disk], check=True)
        self.addCleanup(subprocess.run, ["umount", "--lazy", self.disk], check=True)
        with open(self.config, encoding="utf-8") as config:
            text = config.read()
        text = text.replace('path = "queue"\nmin_free = "16MiB"', f'path = "{self.disk}/queue"\nmin_free = "32MiB"')
        with open(self.config, "w", encoding="utf-8") as config:
            config.write(text)

    def fill(self, leave):
        """Uses up the disk but for so many octets, or gives space back."""
        path = os.path.join(self.disk, "others")
        stat = os.statvfs(self.disk)
        size = os.path.getsize(path) if os.path.exists(path) else 0
        size += stat.f_bavail * stat.f_frsize - leave
        with open(path, "ab") as others:
            if size < others.tell():
                others.truncate(size)
            else:
                os.posix_fallocate(others.fileno(), 0, size)

    def test_it_fills_up_and_recovers(self):
        relay = self.start()
        ballast = os.path.join(self.disk, "queue", "ballast")
        wait_for(lambda: os.path.exists(ballast), "a ballast")
        self.assertEqual(os.path.getsize(ballast), 4 * MIB)
        self.submit("kept@greylist.test")
        self.fill(leave=20 * MIB)
        wait_for(lambda: self.readiness()[0] == 503, "not ready")
        self.assertIn("disk full: ", self.readiness()[1])
        code, text = self.refused("refused@ok.test")
        self.assertEqual((code, text[:5]), (452, "4.3.1"), text)
        # Deliveries go on, and are recorded, also with the last blocks: the ballast is there for that.
        self.lab.arrived("kept@greylist.test")
        self.fill(leave=1 * MIB)
        wait_for(lambda: not os.path.exists(ballast), "the ballast let go of")
        wait_for(lambda: b'ended_total{end="delivered"} 1' in get(f"127.0.0.1:{self.metrics}", "/metrics")[1], "counted")
        self.assertIn("the ballast is let go of", relay.logged())
        self.fill(leave=60 * MIB)
        wait_for(lambda: self.readiness()[0] == 200, "ready by itself")
        wait_for(lambda: os.path.exists(ballast), "the ballast taken back")
        self.submit("after@ok.test")
        self.lab.arrived("after@ok.test")
        self.assertEqual(relay.stop(), 0)

    def test_not_a_block_is_left(self):
        """ENOSPC at a write, before the watermark could tell."""
        relay = self.start()
        ballast = os.path.join(self.disk, "queue", "ballast")
        wait_for(lambda: os.path.exists(ballast), "a ballast")
        self.fill(leave=0)
        told = [self.refused(f"n{number}@ok.test") for number in range(40)]
        self.assertTrue(all(code in (250, 451, 452) for code, _ in told), told)
        wait_for(lambda: self.readiness()[0] == 503, "not ready")
        self.fill(leave=60 * MIB)
        wait_for(lambda: self.readiness()[0] == 200, "ready by itself")
        for number, (code, _) in enumerate(told):
            if code == 250:
                self.lab.arrived(f"n{number}@ok.test")
        self.submit("after-all@ok.test")
        self.lab.arrived("after-all@ok.test")
        self.assertEqual(relay.stop(), 0)


class Beginning(RelayTest):
    def test_without_a_name_server_it_does_not_only_seem_to_run(self):
        """An empty /etc/resolv.conf, as there may be one while a machine starts."""
        with open(self.config, encoding="utf-8") as config:
            text = config.read()
        with open(self.config, "w", encoding="utf-8") as config:
            config.write(text.replace(f'[dns]\nservers = ["{self.lab.at["dns"]}"]\n', ""))
        command = 'mount --bind /dev/null /etc/resolv.conf && exec "$POSTRIDER" run --config "$0"'
        run = subprocess.run(
            ["unshare", "--mount", "sh", "-c", command, self.config], capture_output=True, text=True, timeout=60
        )
        self.assertEqual(run.returncode, 1, run.stderr)
        self.assertIn("neither dns.servers nor /etc/resolv.conf names a server", run.stderr)


class Faulty(Disk):
    """A file system that fails and dawdles on command: `loadtest faultfs`."""

    def setUp(self):
        super().setUp()
        self.disk, self.control = os.path.join(self.dir, "disk"), os.path.join(self.dir, "control")
        os.mkdir(self.disk)
        log = open(os.path.join(self.dir, "faultfs"), "wb")
        self.addCleanup(log.close)
        served = subprocess.Popen([loadtest(), "faultfs", "--mount", self.disk, "--control", self.control], stdout=log, stderr=log)
        self.addCleanup(self.unmount, served)
        wait_for(lambda: os.path.ismount(self.disk), "the file system")
        # The admin socket stays where commands look for it: a socket is no file of this file system's.
        os.mkdir(os.path.join(self.dir, "queue"))
        self.replace('path = "queue"\n', f'path = "{self.disk}/deep/queue"\n')
        self.replace("[dns]\n", f'[admin]\nsocket = "{self.dir}/queue/admin.sock"\n[dns]\n')

    def replace(self, old, new):
        with open(self.config, encoding="utf-8") as config:
            text = config.read()
        self.assertIn(old, text)
        with open(self.config, "w", encoding="utf-8") as config:
            config.write(text.replace(old, new, 1))

    @staticmethod
    def unmount(served):
        served.terminate()
        served.wait(30)

    def order(self, text):
        with socket.socket(socket.AF_UNIX) as control:
            control.connect(self.control)
            control.sendall(text.encode() + b"\n")
            answer = control.makefile().readline()
        self.assertTrue(answer.startswith("ok"), answer)

    def metric(self, line):
        text = get(f"127.0.0.1:{self.metrics}", "/metrics")[1].decode()
        return next((float(found.split()[-1]) for found in text.splitlines() if found.startswith(line + " ")), None)

    def test_each_way_to_fail_is_told_and_mended(self):
        relay = self.start()
        failures = ["fail sync EIO of .log", "fail write EIO of .log", "fail change EROFS", "fail write ENOSPC"]
        for number, failure in enumerate(failures, 1):
            self.submit(f"before{number}@greylist.test")
            self.order(failure)
            code, text = wait_for(
                lambda: (lambda told: told if told[0] != 250 else None)(self.refused(f"lost{number}@ok.test")), failure
            )
            self.assertEqual(code // 10, 45, (failure, text))
            self.order("heal")
            wait_for(lambda: self.readiness()[0] == 200, f"ready by itself after {failure}")
            self.submit(f"after{number}@ok.test")
            self.lab.arrived(f"after{number}@ok.test")
            self.lab.arrived(f"before{number}@greylist.test")
            self.assertEqual(len(self.lab.mailbox(f"before{number}@greylist.test")), 1, failure)
            self.assertIsNone(relay.child.poll())
        self.assertEqual(self.metric("postrider_store_reopened_total"), len(failures))
        self.assertEqual(relay.stop(), 0)

    def test_a_retry_asked_for_while_it_fails_keeps_nothing_back(self):
        """Nothing of it was sent: once the store is back its mail goes as it would have gone."""
        self.replace('first = "2s"\ncap = "4s"', 'first = "15s"\ncap = "20s"')
        self.start()
        self.submit("waits@greylist.test")
        wait_for(lambda: self.told("queue", "list", "--domain", "greylist.test")["queues"][0]["next_due"], "it is put off")
        self.order("fail sync EIO of .log")
        wait_for(lambda: self.refused("lost@ok.test")[0] != 250, "it fails")
        code, _, err = self.command("queue", "retry", "--domain", "greylist.test")
        self.assertEqual(code, 1, err)
        self.order("heal")
        wait_for(lambda: self.readiness()[0] == 200, "ready by itself")
        self.lab.arrived("waits@greylist.test")

    def test_what_can_not_be_read_is_set_aside_and_all_else_goes_on(self):
        """Bad sectors below a table and below a file of bodies."""
        store = f"{self.disk}/deep/queue/store"
        large = message(self.lab.sender, "unread-large@ok.test", body=b"hello\r\n" * 2_000)
        relay = self.start()
        self.told("queue", "suspend", "--domain", "ok.test", "--reason", "a test")
        lost = [self.submit("unread-early@ok.test")]
        # Each start makes tables of the log.
        self.assertEqual(relay.stop(), 0)
        relay = self.start()
        [table] = [path for path in glob.glob(f"{store}/*.sst") if b"nameenvelope" in octets(path)]
        lost.append(self.submit("unread-large@ok.test", large))
        self.assertEqual(relay.stop(), 0)
        relay = self.start()
        self.submit("unread-not@ok.test")
        self.order(f"fail read EIO of {os.path.basename(table)}")
        self.order("fail read EIO of .blob")
        with open(table, "rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        self.told("queue", "resume", "--domain", "ok.test")
        self.lab.arrived("unread-not@ok.test")
        wait_for(lambda: self.metric("postrider_store_damaged") == 1, "it is known to be damaged")
        wait_for(lambda: len(self.told("queue", "damaged")["messages"]) == 2, "they are set aside")
        self.assertEqual({each["id"] for each in self.told("queue", "damaged")["messages"]}, set(lost))
        code, text = self.refused("unread-refused@ok.test")
        self.assertEqual((code, text[:5]), (451, "4.3.0"), text)
        self.assertEqual(self.metric("postrider_store_reopened_total"), 0, "it did not fail")
        self.order("heal")
        self.assertEqual(relay.stop(), 0)
        code, out, err = command("queue", "export", "--salvage", "--output", f"{self.dir}/salvaged", "--config", self.config)
        self.assertEqual(code, 0, out + err)
        self.assertIn("2 messages", out + err)

    def test_names_are_synced_by_each_start(self):
        """Whoever made the store's folder may have been killed before its name was synced."""
        self.assertEqual(self.start().stop(), 0)
        for folder in ("deep", "queue"):
            self.order(f"fail sync EIO of {folder}")
            code, told = self.run_once()
            self.assertEqual(code, 1, told)
            self.assertIn("Input/output error", told)
            self.order("heal")
        self.assertEqual(self.start().stop(), 0)

    def run_once(self):
        relay = Process("run", "--config", self.config)
        self.addCleanup(relay.kill)
        return relay.child.wait(60), relay.logged()

    def flood(self, name, clients, each):
        """So many messages by so many clients at once: (code, enhanced code, seconds) of each final reply, by recipient."""
        told, lock = {}, threading.Lock()

        def client(number):
            for message_number in range(each):
                recipient = f"{name}{number}n{message_number}@ok.test"
                begun = time.monotonic()
                code, text = self.refused(recipient)
                with lock:
                    told[recipient] = (code, text[:5], time.monotonic() - begun)

        threads = [threading.Thread(target=client, args=(number,)) for number in range(clients)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return told

    def resident(self, relay):
        with open(f"/proc/{relay.child.pid}/status", encoding="ascii") as status:
            return int(next(line for line in status if line.startswith("VmRSS:")).split()[1]) * 1024

    def test_a_slow_disk_makes_answers_late_and_nothing_else(self):
        relay = self.start()
        self.submit("quick@ok.test")
        before = self.resident(relay)
        self.order("delay sync 200")
        told = self.flood("late", clients=40, each=5)
        self.assertEqual({code for code, _, _ in told.values()}, {250})
        self.assertGreaterEqual(min(seconds for _, _, seconds in told.values()), 0.2)
        # One sync for each message would take 40 s.
        self.assertLess(max(seconds for _, _, seconds in told.values()), 10)
        self.assertLess(self.resident(relay) - before, 48 * MIB)
        self.assertEqual(self.readiness()[0], 200)
        for recipient in told:
            self.lab.arrived(recipient)
        self.order("heal")
        self.assertEqual(relay.stop(), 0)

    def test_who_would_wait_too_long_is_told_to_come_back(self):
        self.replace("min_free = ", 'commit_patience = "20ms"\nmin_free = ')
        relay = self.start()
        self.order("delay sync 200")
        told = self.flood("patient", clients=30, each=6)
        kinds = {(code, enhanced) for code, enhanced, _ in told.values()}
        self.assertEqual(kinds, {(250, "2.0.0"), (451, "4.3.2")})
        self.order("heal")
        for recipient, (code, _, _) in told.items():
            if code == 250:
                self.lab.arrived(recipient)
        wait_for(lambda: self.told("queue", "list")["queues"] == [], "an empty queue")
        for recipient, (code, _, _) in told.items():
            self.assertEqual(len(self.lab.mailbox(recipient)), int(code == 250), recipient)
        self.assertEqual(relay.stop(), 0)


if __name__ == "__main__":
    main()
