"""Debian's Postfix, and smtp-sink, which comes with it."""

import re
import shutil

from machine import DEBIAN
from messages import UTF8_RECIPIENT, digest, own

from . import Neighbour


class Postfix(Neighbour):
    """Queue, configuration and log below its folder; mail for postfix.test goes into a maildir."""

    domain = "postfix.test"
    dsn = True

    def __init__(self, folder, address, port, onward, certificate):
        home = folder / "postfix"
        spool = home / "spool"
        for name in ("etc", "data", "mail"):
            (home / name).mkdir(parents=True)
        for name in "active bounce corrupt defer deferred flush hold incoming private saved trace pid public maildrop".split():
            (spool / name).mkdir(parents=True)
            if name != "pid":
                shutil.chown(spool / name, "daemon")
            (spool / name).chmod(0o730 if name == "maildrop" else 0o710 if name == "public" else 0o700)
        for name in ("public", "maildrop"):
            shutil.chown(spool / name, group="games")
        shutil.chown(home / "data", "daemon")
        shutil.chown(home / "mail", "nobody")
        (home / "etc" / "main.cf").write_text(
            f"""compatibility_level = 3.6
queue_directory = {spool}
data_directory = {home}/data
command_directory = {DEBIAN}/usr/sbin
daemon_directory = {DEBIAN}/usr/lib/postfix/sbin
meta_directory = {DEBIAN}/etc/postfix
shlib_directory = {DEBIAN}/usr/lib/postfix
mail_owner = daemon
setgid_group = games
default_privs = nobody
import_environment = MAIL_CONFIG LD_LIBRARY_PATH TZ
export_environment = MAIL_CONFIG LD_LIBRARY_PATH TZ
maillog_file = {home}/log
maillog_file_prefixes = /tmp
myhostname = mx.postfix.test
mydestination =
mynetworks = 127.0.0.0/8
inet_interfaces = all
inet_protocols = ipv4
virtual_mailbox_domains = postfix.test
virtual_mailbox_base = {home}/mail
virtual_mailbox_maps = regexp:{{{{/^(r[0-9]+|{UTF8_RECIPIENT})@/ inbox/}}}}
virtual_uid_maps = static:65534
virtual_gid_maps = static:65534
virtual_minimum_uid = 100
virtual_mailbox_limit = 0
message_size_limit = 60000000
smtputf8_enable = yes
alias_maps =
alias_database =
local_recipient_maps =
smtpd_recipient_restrictions = reject_unlisted_recipient, permit_mynetworks, reject
relayhost = [{onward[0]}]:{onward[1]}
smtp_host_lookup = native
smtpd_tls_security_level = may
smtpd_tls_chain_files = {certificate.key}, {certificate.chain}
"""
        )
        (home / "etc" / "master.cf").write_text(
            f"""{address}:{port} inet n - n - - smtpd
cleanup unix n - n - 0 cleanup
qmgr unix n - n 300 1 qmgr
tlsmgr unix - - n 1000? 1 tlsmgr
rewrite unix - - n - - trivial-rewrite
bounce unix - - n - 0 bounce
defer unix - - n - 0 bounce
trace unix - - n - 0 bounce
proxymap unix - - n - - proxymap
smtp unix - - n - - smtp
error unix - - n - - error
retry unix - - n - - error
virtual unix - n n - - virtual
anvil unix - - n - 1 anvil
scache unix - - n - 1 scache
postlog unix-dgram n - n - 1 postlogd
"""
        )
        master = DEBIAN / "usr/lib/postfix/sbin/master"
        self.start(home, [master, "-c", home / "etc", "-d"], address, port, MAIL_CONFIG=str(home / "etc"))

    def arrived(self):
        return self.digests(self.home / "mail/inbox/new")

    def log(self):
        return (self.home / "log").read_text(errors="replace")


class Sink(Neighbour):
    """Takes mail for every domain and nearly every user. Without `eight_bit` it doesn't offer 8BITMIME."""

    starttls = utf8 = False
    dsn = True

    def __init__(self, folder, domain, address, port, eight_bit=True):
        self.domain, self.eight_bit = domain, eight_bit
        home = folder / domain
        self.mail = home / "mail"
        self.mail.mkdir(parents=True)
        shutil.chown(self.mail, "nobody")
        lacks = [] if eight_bit else ["-8"]
        command = [DEBIAN / "usr/sbin/smtp-sink", "-u", "nobody", *lacks, "-d", "%M.", f"inet:{address}:{port}", "1024"]
        self.start(home, ["env", "-C", self.mail, *command], address, port)

    def dumps(self):
        """Envelope and message as it writes them down: X-Mail-Args, X-Rcpt-Args, then the message, all with CRLF."""
        for file in self.mail.iterdir():
            if file not in self.seen:
                octets = file.read_bytes()
                # It puts a blank line behind each message, and has the system's line ends.
                if octets.endswith(b"\n\n"):
                    self.seen[file] = octets.removesuffix(b"\n").replace(b"\n", b"\r\n")
        return list(self.seen.values())

    def arrived(self):
        to = rb"(?m)^X-Rcpt-Args: <r[0-9]+@%s>" % re.escape(self.domain.encode())
        for octets in self.dumps():
            if recipients := re.findall(to, octets):
                yield from [digest(own(octets))] * len(recipients)
