"""DKIM signatures checked by code that is not ours (dkimpy), with the keys that the lab's name server publishes."""

import re

import dkim
import dns.message
import dns.query
import dns.rdatatype

from lib import host_port


class Signatures:
    """Mixed into a `LabTest`."""

    def txt(self, name, timeout=5):
        """dkimpy's door to DNS: the TXT record of a name, as one string of octets."""
        host, port = host_port(self.lab.at["dns"])
        name = name.decode() if isinstance(name, bytes) else name
        question = dns.message.make_query(name, dns.rdatatype.TXT)
        answer, _ = dns.query.udp_with_fallback(question, host, port=port, timeout=timeout)
        for rrset in answer.answer:
            for record in rrset:
                if record.rdtype == dns.rdatatype.TXT:
                    return b"".join(record.strings)
        return None

    def verified(self, raw):
        """Checks each signature of a message and returns their tags."""
        head = raw.split(b"\r\n\r\n", 1)[0] + b"\r\n"
        fields = re.findall(rb"(?mi)^dkim-signature:((?:[^\r\n]|\r\n[ \t])*)", head)
        self.assertTrue(fields, "not signed")
        for number, field in enumerate(fields):
            self.assertTrue(self.holds(raw, number), f"does not verify: {field.decode()}")
        return [
            dict(tag.strip().split("=", 1) for tag in re.sub(r"\s+", " ", field.decode()).split(";") if tag.strip())
            for field in fields
        ]

    def holds(self, raw, number=0):
        """Whether the message's nth signature verifies."""
        try:
            return dkim.DKIM(raw).verify(idx=number, dnsfunc=self.txt)
        except dkim.DKIMException:
            return False
