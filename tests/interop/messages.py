"""What is sent, to all next hops and by all clients."""

import hashlib
import os
from typing import NamedTuple

SENDER = "app@sender.test"
UTF8_SENDER = "müller@sender.test"
UTF8_RECIPIENT = "jürgen"


class Mail(NamedTuple):
    """A message, its recipients' local parts, and how it is handed over."""

    octets: bytes
    to: tuple[str, ...] = ("r0",)
    sender: str = SENDER
    utf8: bool = False
    # The sizes of all BDAT's chunks but the last; none: by DATA.
    chunks: tuple[int, ...] = ()

    def options(self):
        """The parameters of MAIL."""
        body = [] if self.octets.isascii() else ["BODY=8BITMIME"]
        return [*body, "SMTPUTF8"] if self.utf8 else body


def message(title, body, kind="text/plain", encoding="7bit", subject=None):
    head = (
        f"X-Interop: {title}\r\nFrom: {SENDER}\r\nTo: undisclosed-recipients:;\r\nSubject: {subject or title}\r\n"
        "Date: Mon, 23 Nov 2026 12:00:00 +0000\r\n"
        f"Message-ID: <{title}.{os.urandom(8).hex()}@sender.test>\r\nMIME-Version: 1.0\r\n"
        f"Content-Type: {kind}; charset=utf-8\r\nContent-Transfer-Encoding: {encoding}\r\n\r\n"
    )
    return head.encode() + body


def messages():
    """All messages, by title."""
    dots = b"".join(b"." * n + b"\r\n" + b"." * n + b"x\r\n" for n in range(70))
    line = b"0123456789" * 99 + b"01234567\r\n"
    twenty = (b"A" * 76 + b"\r\n") * (20 * 1024 * 1024 // 78)
    chunked = message("chunks", dots + line * 3)
    first, second = chunked.index(b"\r\n\r\n") + 1, chunked.index(b"\r\n.") + 2
    return {
        "seven-bit": Mail(message("seven-bit", b"Hello.\r\n")),
        "eight-bit": Mail(message("eight-bit", "Grüße, смотри, ☕\r\n".encode(), encoding="8bit")),
        "long-lines": Mail(message("long-lines", line * 20)),
        "dots": Mail(message("dots", dots)),
        "empty": Mail(message("empty", b"")),
        "many": Mail(message("many", b"To all of you.\r\n"), to=tuple(f"r{n}" for n in range(150))),
        "big": Mail(message("big", twenty)),
        # A chunk ends between CR and LF, one before a dot, one is empty.
        "chunks": Mail(chunked, chunks=(first, second - first, 0, 400)),
        "utf8": Mail(
            message("utf8", "Смотри.\r\n".encode(), encoding="8bit", subject="Überschrift"),
            to=(UTF8_RECIPIENT, "r0"),
            sender=UTF8_SENDER,
            utf8=True,
        ),
    }


def digest(octets):
    return hashlib.sha256(octets).hexdigest()


def own(octets):
    """The message from its own first field on, as it was handed over: Received fields and signatures are put on top."""
    return octets[octets.index(b"X-Interop: ") :]
