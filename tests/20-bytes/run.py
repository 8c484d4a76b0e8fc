"""Bytes are sacred: what a client sent arrives byte for byte under the fields added on top (promise 6)."""

import re

from lib import LabTest, main, message

# A body starts at another offset of the stream for each length of the header in front, so dots are put at every offset
# around each edge that a buffer may have.
EDGES = (4095, 4096, 8191, 8192, 16384)


class Bytes(LabTest):
    def unchanged(self, name, body, extra=b""):
        recipient = f"{name}@ok.test"
        raw = message(self.lab.sender, recipient, subject=name, body=body, extra=extra)
        for door in ("submission", "trusted"):
            before = len(self.lab.mailbox(recipient))
            self.lab.submit([recipient], raw, door=door)
            arrived = self.lab.arrived(recipient, before + 1)[before]
            self.assertEqual(len(arrived[-len(raw):]), len(raw))
            if arrived[-len(raw):] != raw:
                at = next(n for n, (a, b) in enumerate(zip(arrived[-len(raw):], raw)) if a != b)
                self.fail(f"{name} through {door}: first difference at octet {at}: "
                          f"sent {raw[at - 20:at + 20]!r}, got {arrived[-len(raw):][at - 20:at + 20]!r}")
            self.only_fields(arrived[: -len(raw)])

    def only_fields(self, added):
        """What is on top are whole header fields, and only those the relay adds."""
        fields = re.findall(rb"([!-9;-~]+):(?:[^\r\n]|\r\n[ \t])*\r\n", added)
        self.assertEqual(b"".join(m.group() for m in re.finditer(rb"[!-9;-~]+:(?:[^\r\n]|\r\n[ \t])*\r\n", added)), added)
        self.assertIn(b"received", [field.lower() for field in fields])
        self.assertLessEqual({field.lower() for field in fields},
                             {b"received", b"dkim-signature"}, "Date and Message-ID were there already")
        for line in added.split(b"\r\n"):
            self.assertLessEqual(len(line), 998)

    def test_every_byte_value(self):
        octets = bytes(n for n in range(256) if n not in (10, 13))
        self.unchanged("every-byte", octets + b"\r\n" + octets[::-1] + b"\r\n")

    def test_no_text_at_all(self):
        self.unchanged("empty", b"")

    def test_lines_of_white_space_at_the_end(self):
        self.unchanged("white-end", b"text  \t\r\n \r\n\t\r\n\r\n\r\n")

    def test_lines_of_dots(self):
        self.unchanged("dots", b"".join(b"." * n + b"\r\n" for n in range(1, 70)) + b".a\r\n..a\r\n")

    def test_dots_at_buffer_edges(self):
        for edge in EDGES:
            with self.subTest(edge=edge):
                body = b""
                # Lines of 61 octets up to shortly before the edge, then only the shortest lines there are.
                while len(body) < edge - 700:
                    body += b"x" * 59 + b"\r\n"
                while len(body) < edge + 60:
                    body += b".\r\n"
                self.unchanged(f"edge-{edge}", body + b"..\r\n.end\r\n")

    def test_one_dot_at_each_offset_of_an_edge(self):
        for edge in (4096, 8192):
            for shift in range(-4, 5):
                with self.subTest(edge=edge, shift=shift):
                    # The field pads the header so that, with the message's own head, `\r\n.\r\n` lies around the edge.
                    head = message(self.lab.sender, f"shift@ok.test", subject="shift", body=b"")
                    fill = edge + shift - len(head)
                    lines = b""
                    while fill - len(lines) > 900:
                        lines += b"y" * 498 + b"\r\n"
                    lines += b"z" * (fill - len(lines) - 2) + b"\r\n"
                    self.unchanged(f"shift-{edge}-{shift + 4}", lines + b".\r\n..\r\nend\r\n")

    def test_lines_of_998_octets(self):
        self.unchanged("long-lines", (b"a" * 998 + b"\r\n") * 40 + b"." * 998 + b"\r\n")

    def test_fields_that_broke_others(self):
        """CVE-2026-34752 and its kin: names that are words of a programming language, and a message within a message."""
        nested = b"Content-Type: message/rfc822\r\n\r\n" * 500
        self.unchanged("odd-fields", nested + b"text\r\n",
                       extra=b"__proto__: x\r\nconstructor: y\r\nhasOwnProperty: z\r\nMIME-Version: 1.0\r\n"
                             b"Content-Type: message/rfc822\r\n")

    def test_long_and_folded_fields(self):
        self.unchanged("long-fields", b"text\r\n",
                       extra=b"X-Long: " + b"b" * 990 + b"\r\nX-Folded: a\r\n\tb\r\n  c\r\nx-empty:\r\n")

    def test_eight_bit(self):
        self.unchanged("eight-bit", "Grüße aus Köln\r\n".encode() + "Grüße\r\n".encode("latin-1"),
                       extra=b"Content-Type: text/plain; charset=utf-8\r\nContent-Transfer-Encoding: 8bit\r\n")

    def test_a_megabyte(self):
        line = bytes(n for n in range(256) if n not in (10, 13))
        self.unchanged("megabyte", (line + b"\r\n.\r\n" + line[100:] + b"\r\n") * 2500)


if __name__ == "__main__":
    main()
