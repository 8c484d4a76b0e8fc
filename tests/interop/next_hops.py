"""The relay hands over to each neighbour; each has what was handed to the relay, to the octet."""

import collections
import email
import email.policy
import unittest

from hops import hops
from lib import wait_for
from messages import digest, messages, own


class NextHops(unittest.TestCase):
    def all_arrive(self, neighbour):
        neighbour.check_offers()
        mails = [mail for mail in messages().values() if neighbour.utf8 or not mail.utf8]
        sent = {digest(mail.octets): len(mail.to) for mail in mails}
        hops().submit(mails, neighbour.domain)

        def found():
            # What other tests sent there is none of ours.
            return collections.Counter(one for one in neighbour.arrived() if one in sent)

        try:
            wait_for(lambda: found() == sent, "all that was sent is there, unchanged", 60)
        except AssertionError as wrong:
            logs = f"{hops().relay.logged()[-4000:]}\n{neighbour.log()[-4000:]}"
            raise AssertionError(f"{neighbour.domain}: {wrong}: sent {sent}, found {found()}\n{logs}") from None
        # Where TLS is offered and works, mail goes through TLS.
        in_clear = f'TLS failed: once more in clear host="mx.{neighbour.domain}"' in hops().relay.logged()
        self.assertEqual(in_clear, neighbour.broken_tls)

    def test_postfix(self):
        self.all_arrive(hops().postfix)

    def test_exim(self):
        self.all_arrive(hops().exim)

    def test_opensmtpd(self):
        self.all_arrive(hops().opensmtpd)

    def test_chasquid(self):
        self.all_arrive(hops().chasquid)

    def test_haraka(self):
        self.all_arrive(hops().haraka)

    def test_smtp_server(self):
        self.all_arrive(hops().smtp_server)

    def test_smtp_sink(self):
        self.all_arrive(hops().sink)

    def test_smtp_sink_without_8bitmime(self):
        """Mail beyond 7 bits is converted for it (RFC 6152 §3), other mail is not."""
        sevenbit, mails = hops().sevenbit, messages()
        sevenbit.check_offers()
        hops().submit([mails["eight-bit"], mails["dots"]], sevenbit.domain)
        wait_for(lambda: len(sevenbit.dumps()) == 2, "both are there")
        eight, dots = sorted(map(own, sevenbit.dumps()), key=len)
        self.assertEqual(digest(dots), digest(mails["dots"].octets))
        self.assertTrue(eight.isascii())
        found, sent = (email.message_from_bytes(octets, policy=email.policy.default) for octets in (eight, mails["eight-bit"].octets))
        self.assertIn(found["Content-Transfer-Encoding"], ("quoted-printable", "base64"))
        self.assertEqual(found.get_payload(decode=True), sent.get_payload(decode=True))
        self.assertEqual(found["Message-ID"], sent["Message-ID"])
