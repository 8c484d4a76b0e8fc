"""Debian's Exim."""

import os

from machine import DEBIAN
from messages import UTF8_RECIPIENT

from . import Neighbour
from .root import Root


class Exim(Neighbour):
    """In a root of its own, since it looks for its user Debian-exim before all else. With `login`, `onward` is told it."""

    domain = "exim.test"
    dsn = True

    def __init__(self, folder, address, port, onward, certificate, login=None, ca=None):
        program = DEBIAN / "usr/sbin/exim4"
        root = Root(folder / "exim", [program], ["Debian-exim", "vmail"])
        root.own("var/spool/exim4", "Debian-exim", 0o750)
        root.own("var/log/exim4", "Debian-exim", 0o750)
        root.own("mail", "vmail")
        # It calls itself for each delivery.
        (root.folder / "usr/sbin/exim4").chmod(0o4755)
        root.copy(certificate.chain, "etc/exim4/chain.pem")
        root.copy(certificate.key, "etc/exim4/key.pem", "Debian-exim", 0o600)
        secure = ""
        if login:
            root.copy(ca, "etc/exim4/ca.pem")
            secure = (
                "hosts_require_tls = *\n  hosts_require_auth = *\n  tls_verify_certificates = /etc/exim4/ca.pem\n"
                "  tls_verify_hosts = *\n"
            )
        name, secret = login or ("", "")
        root.write(
            "etc/exim4/exim4.conf",
            f"""primary_hostname = mx.exim.test
exim_path = /usr/sbin/exim4
local_interfaces = {address}
daemon_smtp_ports = {port}
log_file_path = /var/log/exim4/%slog
keep_environment =
message_size_limit = 60M
recipients_max = 1000
smtp_accept_max = 100
smtputf8_advertise_hosts = *
dsn_advertise_hosts = *
tls_advertise_hosts = *
tls_certificate = /etc/exim4/chain.pem
tls_privatekey = /etc/exim4/key.pem
acl_smtp_rcpt = rcpt
acl_smtp_data = accept
begin acl
rcpt:
  accept domains = !exim.test
         hosts = 127.0.0.0/8
  require verify = recipient
  accept
begin routers
ours:
  driver = accept
  domains = exim.test
  local_parts = ^r[0-9]+\\$ : {UTF8_RECIPIENT}
  transport = store
out:
  driver = manualroute
  domains = !exim.test
  route_list = * {onward[0]} byname
  self = send
  transport = smtp
begin transports
store:
  driver = appendfile
  maildir_format
  directory = /mail
  user = vmail
smtp:
  driver = smtp
  port = {onward[1]}
  {secure}
begin retry
* * F,1h,1s
begin authenticators
plain:
  driver = plaintext
  public_name = PLAIN
  client_send = ^{name}^{secret}
""",
            mode=0o640,
        )
        os.chown(root.folder / "etc/exim4/exim4.conf", 0, root.ids["Debian-exim"])
        command = root.command("/usr/sbin/exim4", "-bdf", "-q10s")
        self.start(root.folder, command, address, port)

    def arrived(self):
        return self.digests(self.home / "mail/new")

    def log(self):
        files = sorted((self.home / "var/log/exim4").glob("*log"))
        return self.said() + "".join(file.read_text(errors="replace") for file in files)
