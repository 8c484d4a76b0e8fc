"""Messages of 100 MB through a relay of the test's own: what arrives is what was sent, and the relay's memory stays small."""

import hashlib
import smtplib
import threading

from lib import LabTest, RelayTest, expect, main, message, queue_id
from signatures import Signatures

LINE = b"0123456789abcdef" * 4 + b".\r\n"
SIZE = 100_000_000
AT_ONCE = 5
# Octets: the store's write buffers, which are bounded for all messages together, are most of it. Measured: 195 MB with one
# message, 312 MB with six, of 600 MB.
MOST = 380 << 20


class Large(RelayTest):
    def peak(self, relay):
        """The most memory that the relay has had so far, in octets."""
        with open(f"/proc/{relay.child.pid}/status", encoding="ascii") as status:
            line = next(line for line in status if line.startswith("VmHWM:"))
        return int(line.split()[1]) * 1024

    def send(self, recipient, raw, sent):
        with smtplib.SMTP("127.0.0.1", self.port, timeout=120) as client:
            client.ehlo()
            client.mail(self.lab.sender, [f"SIZE={len(raw)}"])
            client.rcpt(recipient)
            client.putcmd("DATA")
            client.getreply()
            # The lines begin with no dot, so nothing is to be stuffed.
            client.sock.sendall(raw + b".\r\n")
            sent.append(queue_id(client.getreply()))

    def test_several_at_once(self):
        with open(self.config, "a", encoding="utf-8") as config:
            config.write('[submission]\nmax_message = "110MB"\nmax_in_flight = "110MB"\n')
        relay = self.start()
        idle = self.peak(relay)
        raw = message(self.lab.sender, "large@ok.test", subject="large", body=LINE * (SIZE // len(LINE)))
        sent, threads = [], []
        for number in range(AT_ONCE):
            thread = threading.Thread(target=self.send, args=(f"large{number}@ok.test", raw, sent))
            thread.start()
            threads.append(thread)
        for thread in threads:
            thread.join()
        self.assertEqual(len(sent), AT_ONCE)
        for number in range(AT_ONCE):
            [arrived] = self.lab.arrived(f"large{number}@ok.test", within=120)
            self.assertEqual(hashlib.sha256(arrived[-len(raw) :]).digest(), hashlib.sha256(raw).digest())
        peak = self.peak(relay)
        print(f"\nlarge: {AT_ONCE} x {len(raw) / 1e6:.0f} MB, peak {peak / 1e6:.0f} MB, {idle / 1e6:.0f} MB idle")
        self.assertLess(peak, MOST)
        self.assertEqual(relay.stop(), 0)


class Signed(Signatures, LabTest):
    def test_a_large_message_is_signed(self):
        """Hashed chunk by chunk, and verified by code that hashes it whole."""
        raw = message(self.lab.sender, "signed@ok.test", subject="large", body=LINE * 60_000 + b"\r\n \r\n\r\n")
        self.lab.submit(["signed@ok.test"], raw)
        [arrived] = self.lab.arrived("signed@ok.test")
        self.assertTrue(arrived.endswith(raw))
        self.verified(arrived)

    def test_one_too_large_is_refused_and_the_session_goes_on(self):
        with self.lab.client() as client:
            client.ehlo_or_helo_if_needed()
            limit = int(client.esmtp_features["size"])
            raw = message(self.lab.sender, "over@ok.test", body=LINE * (limit // len(LINE) + 1))
            expect(client.mail(self.lab.sender), 250)
            expect(client.rcpt("over@ok.test"), 250)
            expect(client.data(raw), 552, "5.3.4")
            expect(client.noop(), 250)


if __name__ == "__main__":
    main()
