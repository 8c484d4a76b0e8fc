"""A relay whose next hops are all neighbours; each is started when a test first asks for it."""

import functools
import smtplib

from lib import Process, expect, queue_id, wait_for
from machine import NameServer, folder, free_port, listens, self_signed
from neighbours.chasquid import Chasquid
from neighbours.exim import Exim
from neighbours.npm import Haraka, SmtpServer
from neighbours.opensmtpd import OpenSmtpd
from neighbours.postfix import Postfix, Sink

# Each has an address of its own with the one port that the relay delivers to.
ADDRESSES = {
    "postfix.test": "127.88.0.2",
    "sink.test": "127.88.0.3",
    "node.test": "127.88.0.4",
    "chasquid.test": "127.88.0.5",
    "exim.test": "127.88.0.6",
    "opensmtpd.test": "127.88.0.7",
    "haraka.test": "127.88.0.8",
    "sevenbit.test": "127.88.0.9",
}
# Of the relay's door and the name server.
OURS = "127.88.0.1"


def hand_over(client, mail, domain, mail_options=(), rcpt_options=()):
    """One transaction of smtplib's; returns the final reply."""
    expect(client.mail(mail.sender, [*mail.options(), *mail_options]), 250)
    for local_part in mail.to:
        expect(client.rcpt(f"{local_part}@{domain}", rcpt_options), 250)
    if not mail.chunks:
        return client.data(mail.octets)
    pieces, begin = [], 0
    for size in mail.chunks:
        pieces.append(b"BDAT %d\r\n" % size + mail.octets[begin : begin + size])
        begin += size
    pieces.append(b"BDAT %d LAST\r\n" % (len(mail.octets) - begin) + mail.octets[begin:])
    client.send(b"".join(pieces))
    for _ in mail.chunks:
        expect(client.getreply(), 250)
    return client.getreply()


class Hops:
    def __init__(self):
        self.folder = folder()
        self.port = free_port([*ADDRESSES.values(), OURS])
        names = NameServer({**ADDRESSES, "sender.test": ADDRESSES["sink.test"]}, OURS)
        self.certificate = self_signed(self.folder)
        self.door = OURS, free_port([OURS])
        config = self.folder / "postrider.toml"
        config.write_text(
            'hostname = "relay.sender.test"\ndrain_timeout = "5s"\n[store]\npath = "queue"\nmin_free = "16MiB"\n'
            '[tenants.t]\nsenders = ["sender.test"]\n'
            f'[[listener]]\nkind = "trusted"\naddress = "{self.door[0]}:{self.door[1]}"\nnetworks = ["127.0.0.0/8"]\ntenant = "t"\n'
            '[submission]\nmax_message = "40MiB"\n'
            f'[delivery]\nport = {self.port}\n[delivery.retry]\nfirst = "1s"\ncap = "2s"\n'
            f'[dns]\nservers = ["{names.address}"]\n'
        )
        self.relay = Process("run", "--config", str(config))
        wait_for(lambda: listens(*self.door), "the relay listens")

    def submit(self, mails, domain, mail_options=(), rcpt_options=()):
        """Hands over to the relay; returns the ids."""
        with smtplib.SMTP(*self.door, timeout=60) as client:
            client.ehlo()
            return [queue_id(hand_over(client, mail, domain, mail_options, rcpt_options)) for mail in mails]

    def at(self, domain):
        return ADDRESSES[domain], self.port

    @functools.cached_property
    def sink(self):
        """Takes the reports to sender.test too."""
        return Sink(self.folder, "sink.test", *self.at("sink.test"))

    @functools.cached_property
    def sevenbit(self):
        return Sink(self.folder, "sevenbit.test", *self.at("sevenbit.test"), eight_bit=False)

    @functools.cached_property
    def postfix(self):
        return Postfix(self.folder, *self.at("postfix.test"), self.at("sink.test"), self.certificate)

    @functools.cached_property
    def exim(self):
        return Exim(self.folder, *self.at("exim.test"), self.at("sink.test"), self.certificate)

    @functools.cached_property
    def opensmtpd(self):
        return OpenSmtpd(self.folder, *self.at("opensmtpd.test"), self.at("sink.test"), self.certificate)

    @functools.cached_property
    def chasquid(self):
        return Chasquid(self.folder, *self.at("chasquid.test"), self.certificate)

    @functools.cached_property
    def haraka(self):
        return Haraka(self.folder, *self.at("haraka.test"), self.certificate)

    @functools.cached_property
    def smtp_server(self):
        return SmtpServer(self.folder, *self.at("node.test"))


@functools.cache
def hops():
    return Hops()
