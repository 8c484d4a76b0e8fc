"""Debian's chasquid."""

import pathlib
import shutil

from machine import DEBIAN, run

from . import USERS, Neighbour
from .root import Root


class Chasquid(Neighbour):
    """Pipes what comes for chasquid.test into files; or, with a `login`, takes mail for all from who knows that."""

    domain = "chasquid.test"
    # It makes a connection for each recipient, all at once, and the relay takes a hundred from an address.
    at_once = 40

    def __init__(self, folder, address, port, certificate, login=None, resolver=None, next_port=25):
        home = folder / "chasquid"
        program = DEBIAN / "usr/bin/chasquid"
        command, below = [program], home
        if resolver:
            # It asks the system's name servers, and only those.
            root = Root(home, [program], [])
            root.write("etc/resolv.conf", f"nameserver {resolver}\n")
            command, below = root.command("/usr/bin/chasquid"), pathlib.Path("/")
        certificates = home / "etc" / "chasquid" / "certs" / "mx.chasquid.test"
        certificates.mkdir(parents=True)
        shutil.copy(certificate.chain, certificates / "fullchain.pem")
        shutil.copy(certificate.key, certificates / "privkey.pem")
        domain = home / "etc" / "chasquid" / "domains" / "chasquid.test"
        domain.mkdir(parents=True)
        (home / "mail").mkdir(exist_ok=True)
        save = home / "save"
        save.write_text(f'#!/bin/sh\nfile=$(mktemp -p {home}/mail .XXXXXX)\ncat > "$file"\nmv "$file" "$file.done"\n')
        save.chmod(0o755)
        (domain / "aliases").write_text("".join(f"{user}: | {save}\n" for user in USERS))
        kind = "submission_address" if login else "smtp_address"
        (home / "etc" / "chasquid" / "chasquid.conf").write_text(
            f'hostname: "mx.chasquid.test"\n{kind}: "{address}:{port}"\ndata_dir: "{below}/data"\n'
            f'max_data_size_mb: 60\nmail_log_path: "{below}/log"\n'
        )
        if login:
            # It rewrites senders of domains that aren't its own.
            (home / "etc/chasquid/domains/sender.test").mkdir()
            self.login = "client@sender.test", login[1]
            util = DEBIAN / "usr/bin/chasquid-util"
            run(util, f"-C={home}/etc/chasquid", "user-add", self.login[0], f"--password={login[1]}")
        command += ["-config_dir", below / "etc/chasquid", f"-testing__outgoing_smtp_port={next_port}"]
        self.start(home, command, address, port)

    def arrived(self):
        return self.digests(self.home / "mail", "*.done")
