"""Attacks on the front door: smuggled messages, injected commands, other protocols, floods of nonsense."""

import itertools
import socket

from lib import LabTest, Raw, main, message

# What some servers take for the end of data, and we never do (CVE-2023-51764 and its kin).
FALSE_ENDS = (
    b"\n.\n",
    b"\r\n.\n",
    b"\n.\r\n",
    b"\r.\r",
    b"\r\n.\r",
    b"\r.\r\n",
    b"\r\n\x00.\r\n",
    b"\r\n.\x00\r\n",
    b"\n.\r",
    b"\r.\n",
    b"\r\r\n.\r\r\n",
)


class Smuggling(LabTest):
    def open(self, tenant_door="trusted"):
        peer = Raw(self.lab.at[tenant_door])
        self.addCleanup(peer.close)
        self.assertEqual(peer.reply()[0], 220)
        self.assertEqual(peer.ask(b"EHLO client.example")[0], 250)
        return peer

    def smuggled(self, number):
        return f"smuggled{number}@ok.test"

    def test_false_ends_of_data(self):
        for number, end in enumerate(FALSE_ENDS):
            for split in (False, True):
                with self.subTest(end=end, split=split):
                    self.attempt(f"{number}-{int(split)}", end, split)
        self.nothing_smuggled()

    def attempt(self, number, end, split):
        peer = self.open()
        sender = self.lab.sender.encode()
        carrier = f"carrier{number}@ok.test".encode()
        victim = self.smuggled(number).encode()
        self.assertEqual(peer.ask(b"MAIL FROM:<" + sender + b">")[0], 250)
        self.assertEqual(peer.ask(b"RCPT TO:<" + carrier + b">")[0], 250)
        self.assertEqual(peer.ask(b"DATA")[0], 354)
        inner = (b"MAIL FROM:<" + sender + b">\r\nRCPT TO:<" + victim + b">\r\nDATA\r\n"
                 + message(self.lab.sender, victim.decode(), subject="smuggled"))
        outer = message(self.lab.sender, carrier.decode(), subject="carrier", body=b"before")
        pieces = [outer, end, inner, b"\r\n.\r\n"]
        if split:  # each octet of the false end in a packet of its own, as far as TCP lets us say so
            peer.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            pieces = [outer, *(bytes([octet]) for octet in end), inner, b"\r\n.\r\n"]
        for piece in pieces:
            peer.send(piece)
        # One message's worth of data has exactly one reply, and the session is in step after it.
        code, lines = peer.reply()
        # RSET may itself fall into the data where the attack left it unfinished; a lone QUIT closes either way.
        after = peer.ask(b"NOOP")
        self.assertIsNotNone(after, lines)
        self.assertEqual(after[0], 250, (code, lines, after))
        if b"\x00" not in end:
            self.assertGreaterEqual(code, 500, lines)  # bare CR or LF: refused, after the real end
        peer.send(b"QUIT\r\n")
        self.assertEqual([reply[0] for reply in peer.replies_until_closed()], [221])

    def nothing_smuggled(self):
        self.lab.submit(["after@ok.test"], message(self.lab.sender, "after@ok.test"))
        self.lab.arrived("after@ok.test")
        code, out, err = self.lab.command("queue", "list", "--json")
        self.assertEqual(code, 0, err)
        self.assertNotIn("smuggled", out)
        for number, split in itertools.product(range(len(FALSE_ENDS)), (0, 1)):
            self.assertEqual(self.lab.mailbox(self.smuggled(f"{number}-{split}")), [])

    def test_bare_line_ends_are_refused_and_the_session_goes_on(self):
        for body in (b"a\nb\r\n", b"a\rb\r\n", b"a\r", b"\n", b"a\r\r\n"):
            with self.subTest(body=body):
                peer = self.open()
                peer.ask(f"MAIL FROM:<{self.lab.sender}>".encode())
                peer.ask(b"RCPT TO:<bare@ok.test>")
                self.assertEqual(peer.ask(b"DATA")[0], 354)
                code, lines = peer.ask(message(self.lab.sender, "bare@ok.test", body=body) + b"\r\n.")
                self.assertGreaterEqual(code, 500, lines)
                self.assertEqual(peer.ask(f"MAIL FROM:<{self.lab.sender}>".encode())[0], 250)

    def test_bare_line_ends_in_commands(self):
        for command in (b"NOOP\nNOOP", b"NOOP\rNOOP", b"MAIL FROM:<a@ok.test>\nRCPT TO:<b@ok.test>"):
            with self.subTest(command=command):
                peer = self.open()
                code, lines = peer.ask(command)
                self.assertGreaterEqual(code, 500, lines)
                # One line, one reply.
                peer.send(b"QUIT\r\n")
                self.assertEqual([reply[0] for reply in peer.replies_until_closed()], [221])

    def test_line_too_long_in_data(self):
        for octets, good in ((998, True), (999, False), (1000, False), (5000, False)):
            with self.subTest(octets=octets):
                peer = self.open()
                peer.ask(f"MAIL FROM:<{self.lab.sender}>".encode())
                peer.ask(b"RCPT TO:<lines@ok.test>")
                peer.ask(b"DATA")
                code, lines = peer.ask(message(self.lab.sender, "lines@ok.test", body=b"l" * octets + b"\r\n") + b".")
                self.assertEqual(code == 250, good, lines)
                self.assertEqual(peer.ask(b"NOOP")[0], 250)

    # --- commands ---

    def test_commands_injected_before_starttls(self):
        """What was sent in clear behind STARTTLS is thrown away, not run inside TLS (RFC 3207 §4.2, CVE-2011-0411)."""
        peer = Raw(self.lab.at["submission"])
        self.addCleanup(peer.close)
        peer.reply()
        peer.ask(b"EHLO client.example")
        peer.send(b"STARTTLS\r\nNOOP\r\nVRFY injected\r\n")
        reply = peer.reply()
        if reply is None or reply[0] >= 500:
            return  # refused outright: as good
        self.assertEqual(reply[0], 220)
        self.assertEqual(peer.buffer, b"", "nothing is said in clear after 220")
        try:
            peer.starttls(self.lab.tls(), self.lab.at["submission"].rsplit(":", 1)[0])
        except OSError:
            return  # closed: as good
        code, lines = peer.ask(b"EHLO client.example")
        self.assertEqual(code, 250)
        self.assertNotIn(b"252", lines[0][:3])
        self.assertTrue(lines[0].startswith(b"250-"), lines)
        self.assertIn(b"AUTH", b" ".join(lines))
        # In step: the next reply belongs to the next command.
        self.assertEqual(peer.ask(b"VRFY someone")[0], 252)

    def test_nothing_said_before_starttls_counts_after_it(self):
        peer = Raw(self.lab.at["submission"])
        self.addCleanup(peer.close)
        peer.reply()
        peer.ask(b"EHLO client.example")
        self.assertEqual(peer.ask(b"STARTTLS now")[0], 501)
        self.assertEqual(peer.ask(b"STARTTLS")[0], 220)
        peer.starttls(self.lab.tls(), self.lab.at["submission"].rsplit(":", 1)[0])
        self.assertGreaterEqual(peer.ask(f"MAIL FROM:<{self.lab.sender}>".encode())[0], 500, "a new EHLO is needed")
        peer.ask(b"EHLO client.example")
        self.assertIn(peer.ask(b"STARTTLS")[0], (502, 503, 554), "not inside TLS")

    def test_other_protocols(self):
        """An HTTP request is hung up on at its first line (ALPACA and friends)."""
        for request in (b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 60\r\n\r\n"
                        b"EHLO x\r\nMAIL FROM:<a@ok.test>\r\nRCPT TO:<b@ok.test>\r\nDATA\r\n"):
            for door in ("submission", "trusted"):
                with self.subTest(request=request[:4], door=door), Raw(self.lab.at[door]) as peer:
                    self.assertEqual(peer.reply()[0], 220)
                    peer.send(request)
                    replies = peer.replies_until_closed()
                    self.assertLessEqual(len(replies), 1, replies)
                    for code, lines in replies:
                        self.assertTrue(code == 421 or code >= 500, lines)

    def test_vrfy_and_expn_tell_nothing(self):
        peer = self.open()
        self.assertEqual(peer.ask(b"VRFY postmaster")[0], 252)
        self.assertEqual(peer.ask(b"VRFY no-such-user")[0], 252)
        self.assertIn(peer.ask(b"EXPN staff")[0], (252, 500, 502, 550))

    def test_command_lines_beyond_the_bound(self):
        peer = self.open()
        code, lines = peer.ask(b"NOOP " + b"x" * 100_000)
        self.assertIn(code, (421, 500, 501), lines)
        if code != 421:
            self.assertEqual(peer.ask(b"NOOP")[0], 250, "in step after it")

    def test_line_without_an_end(self):
        """A line that never ends meets a bound, not memory."""
        peer = self.open()
        sent = 0
        try:
            peer.socket.settimeout(2)
            while sent < 64 << 20:
                peer.send(b"y" * 65536)
                sent += 65536
        except OSError:
            pass  # cut off, or no longer read: both bound it
        finally:
            peer.close()
        with Raw(self.lab.at["trusted"]) as other:
            self.assertEqual(other.reply()[0], 220)

    def test_nonsense_ends_the_session(self):
        peer = self.open()
        codes = []
        for _ in range(2000):
            try:
                reply = peer.ask(b"\xff\xfe\x00 nonsense")
            except OSError:
                break
            if reply is None:
                break
            codes.append(reply[0])
        self.assertLess(len(codes), 2000, "an error budget for each session")
        self.assertEqual(codes[-1], 421)

    def test_crlf_in_addresses(self):
        peer = self.open()
        for command in (b'MAIL FROM:<"a\r\nRCPT TO:<x"@ok.test>', b"MAIL FROM:<a@ok.test\x00>", b"MAIL FROM:<a@ok.test>\x00",
                        b'MAIL FROM:<"a\nb"@ok.test>', "MAIL FROM:<a@\u760d\u760a.test>".encode()):
            with self.subTest(command=command):
                peer.send(command + b"\r\n")
                self.assertGreaterEqual(peer.reply()[0], 500)
                if b"\r\n" in command:
                    self.assertGreaterEqual(peer.reply()[0], 500)

    def test_pipelined_group_is_answered_in_order(self):
        peer = self.open()
        peer.send(f"MAIL FROM:<{self.lab.sender}>\r\nRCPT TO:<pipe@ok.test>\r\nRCPT TO:<bad\r\nRSET\r\nNOOP\r\nVRFY x\r\n"
                  f"MAIL FROM:<{self.lab.sender}>\r\nDATA\r\n".encode())
        codes = [peer.reply()[0] for _ in range(8)]
        self.assertEqual(codes[:2] + codes[3:7], [250, 250, 250, 250, 252, 250])
        self.assertEqual(codes[2], 501)
        self.assertIn(codes[7], (503, 554), "DATA without a recipient")

    def test_messages_sent_before_the_banner(self):
        """A client that talks first is either turned away or understood; never half."""
        with Raw(self.lab.at["trusted"]) as peer:
            peer.send(b"EHLO client.example\r\nNOOP\r\nQUIT\r\n")
            codes = [reply[0] for reply in peer.replies_until_closed()]
        self.assertIn(codes, ([220, 250, 250, 221], [554], [220, 554], [220, 503]))

    def test_dropped_connections_leave_nothing(self):
        """A connection that ends before the final dot accepts nothing."""
        for upto in (b"", b"Subject: x\r\n", b"Subject: x\r\n\r\ntext\r\n", b"Subject: x\r\n\r\ntext\r\n."):
            peer = self.open()
            peer.ask(f"MAIL FROM:<{self.lab.sender}>".encode())
            peer.ask(b"RCPT TO:<dropped@ok.test>")
            self.assertEqual(peer.ask(b"DATA")[0], 354)
            peer.send(upto)
            peer.close()
        self.lab.submit(["after-drop@ok.test"], message(self.lab.sender, "after-drop@ok.test"))
        self.lab.arrived("after-drop@ok.test")
        self.assertEqual(self.lab.mailbox("dropped@ok.test"), [])


if __name__ == "__main__":
    main()
