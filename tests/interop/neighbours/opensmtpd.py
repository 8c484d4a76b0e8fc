"""Debian's OpenSMTPD."""

import pathlib

from machine import DEBIAN

from . import USERS, Neighbour
from .root import Root


class OpenSmtpd(Neighbour):
    """In a root of its own: spool and users are built in. With `login`, `onward` is told it, over TLS from the start."""

    domain = "opensmtpd.test"
    utf8 = False
    # Debian 12's offers STARTTLS, but no handshake succeeds: 6.8 can't sign under OpenSSL 3 (OpenSMTPD's issue 1171).
    dsn = broken_tls = True

    def __init__(self, folder, address, port, onward, certificate, login=None, ca=None):
        programs = [DEBIAN / "usr/sbin/smtpd", *(DEBIAN / "usr/libexec/opensmtpd").glob("mail.maildir"), pathlib.Path("/bin/sh")]
        root = Root(folder / "opensmtpd", programs, ["opensmtpd", "opensmtpq", "vmail"])
        (root.folder / "var/lib/opensmtpd/empty").mkdir(parents=True)
        root.own("mail", "vmail")
        root.copy(certificate.chain, "etc/tls/chain.pem")
        root.copy(certificate.key, "etc/tls/key.pem", mode=0o600)
        root.write("etc/mailname", "mx.opensmtpd.test\n")
        root.write("etc/users", "".join(f"{user}@opensmtpd.test vmail\n" for user in USERS if user.isascii()))
        out = f'relay host "smtp+notls://{onward[0]}:{onward[1]}"'
        if login:
            root.copy(ca, "etc/ssl/certs/ca-certificates.crt")
            root.write("etc/secrets", f"login {login[0]}:{login[1]}\n", "opensmtpd", 0o600)
            out = f'relay host "smtps://login@{onward[0]}:{onward[1]}" auth <secrets>'
        root.write(
            "etc/smtpd.conf",
            f"""pki ours cert "/etc/tls/chain.pem"
pki ours key "/etc/tls/key.pem"
table users file:/etc/users
{"table secrets file:/etc/secrets" if login else ""}
smtp max-message-size "60M"
listen on {address} port {port} tls pki ours hostname mx.opensmtpd.test
action store maildir "/mail" virtual <users>
action out {out}
match from any for domain opensmtpd.test action store
match from any for any action out
""",
        )
        self.start(root.folder, root.command("/usr/sbin/smtpd", "-d", "-f", "/etc/smtpd.conf"), address, port)

    def arrived(self):
        return self.digests(self.home / "mail/new")
