"""A root of its own for a program with paths or users built in."""

import os
import pathlib
import re
import shutil
import stat

from machine import DEBIAN, run


class Root:
    """Programs and their libraries at their places, and users that only they know."""

    def __init__(self, folder, programs, users):
        self.folder = folder
        for name in ("etc", "dev", "tmp", "run", "var/log", "var/spool", "mail"):
            (folder / name).mkdir(parents=True)
        (folder / "var/run").symlink_to("/run")
        (folder / "tmp").chmod(0o1777)
        for name, minor in (("null", 3), ("urandom", 9)):
            os.mknod(folder / "dev" / name, stat.S_IFCHR, os.makedev(1, minor))
            (folder / "dev" / name).chmod(0o666)
        names = ["root", *users]
        ids = {name: number * 100 for number, name in enumerate(names)}
        (folder / "etc/passwd").write_text("".join(f"{n}:x:{i}:{i}::/:/bin/sh\n" for n, i in ids.items()))
        (folder / "etc/group").write_text("".join(f"{n}:x:{i}:\n" for n, i in ids.items()))
        (folder / "etc/hosts").write_text("127.0.0.1 localhost\n")
        self.ids = ids
        for program in programs:
            self.add(program)
            for library in re.findall(r"(/\S+) \(0x", run("ldd", program)):
                self.add(pathlib.Path(library))

    def add(self, file):
        inside = file.relative_to(DEBIAN if file.is_relative_to(DEBIAN) else "/")
        if not (self.folder / inside).exists():
            (self.folder / inside).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(file, self.folder / inside)

    def write(self, path, text, user="root", mode=0o644):
        file = self.folder / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
        file.chmod(mode)
        os.chown(file, self.ids[user], self.ids[user])

    def copy(self, source, path, user="root", mode=0o644):
        self.write(path, pathlib.Path(source).read_text(), user, mode)

    def own(self, path, user, mode=0o755):
        """Makes a folder that belongs to that user."""
        (self.folder / path).mkdir(parents=True, exist_ok=True)
        (self.folder / path).chmod(mode)
        os.chown(self.folder / path, self.ids[user], self.ids[user])

    def command(self, *words):
        return ["chroot", self.folder, *words]
