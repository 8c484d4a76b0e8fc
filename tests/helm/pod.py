"""A pod without a cluster: what the chart renders is run from the image's root tree as a kubelet would have it run, in a chroot.

The root is read-only, the user and group those of the pod's spec without a capability, volumes are mounted where the spec says, and
Secrets lie there as a kubelet writes them: links to links, owned by root and the fsGroup, of the spec's mode.
"""

import ctypes
import os
import pathlib
import re
import shutil
import socket
import subprocess
import threading

from chart import REPO, Objects

PR_SET_NO_NEW_PRIVS = 38


def mount(*arguments):
    subprocess.run(["mount", *arguments], check=True, timeout=20)


class Dockerfile:
    """What the Dockerfile's last stage says."""

    def __init__(self):
        stages = re.split(r"^FROM ", (REPO / "Dockerfile").read_text(encoding="utf-8"), flags=re.M)
        self.build, self.final = "".join(stages[:-1]), stages[-1]

    def the(self, word):
        (argument,) = re.findall(rf"^{word} (.+)$", self.final, flags=re.M)
        return argument


def write_files(folder, files, gid, mode):
    """As a kubelet's atomic writer and fsGroup leave them."""
    data = folder / "..2026_01_01"
    data.mkdir()
    for name, content in files.items():
        file = data / name
        file.write_bytes(content)
        os.chown(file, 0, gid)
        file.chmod(mode)
        (folder / name).symlink_to(f"..data/{name}")
    (folder / "..data").symlink_to(data.name)
    for each in (data, folder):
        os.chown(each, 0, gid)
    data.chmod(0o2755)
    folder.chmod(0o3777)


class Pod:
    """A pod's only container. `claims` are folders for its volume claims, by name; they outlive it."""

    def __init__(self, spec, things: Objects, tree, secrets, folder, claims, hosts="", secret_mode=None):
        (self.container,) = spec["containers"]
        self.secrets = secrets
        security = spec["securityContext"]
        self.user, self.group, self.groups = security["runAsUser"], security["runAsGroup"], [security["fsGroup"]]
        self.root = pathlib.Path(folder) / "root"
        subprocess.run(["cp", "-a", tree, self.root], check=True, timeout=60)
        (self.root / "etc" / "hosts").write_text(f"127.0.0.1 localhost\n{hosts}", encoding="utf-8")
        volumes = self.volumes = pathlib.Path(folder) / "volumes"
        volumes.mkdir()
        sources = {}
        for volume in spec.get("volumes", []):
            source = sources[volume["name"]] = volumes / volume["name"]
            source.mkdir()
            if "secret" in volume:
                mode = volume["secret"]["defaultMode"] if secret_mode is None else secret_mode
                # A read-only volume of an fsGroup becomes readable by it.
                write_files(source, secrets[volume["secret"]["secretName"]], security["fsGroup"], mode | 0o440)
            elif "configMap" in volume:
                (data,) = (
                    thing["data"] for thing in things.of("ConfigMap") if thing["metadata"]["name"] == volume["configMap"]["name"]
                )
                write_files(source, {name: text.encode() for name, text in data.items()}, security["fsGroup"], 0o644)
            else:
                assert "emptyDir" in volume, volume
                os.chown(source, 0, security["fsGroup"])
                source.chmod(0o2777)
        for name, source in claims.items():
            sources[name] = pathlib.Path(source)
            os.chown(source, 0, security["fsGroup"])
            sources[name].chmod(0o2775)
        mounts = self.container.get("volumeMounts", [])
        for each in mounts:
            (self.root / each["mountPath"].lstrip("/")).mkdir(parents=True, exist_ok=True)
        mount("--bind", self.root, self.root)
        assert self.container["securityContext"]["readOnlyRootFilesystem"]
        mount("-o", "remount,bind,ro", self.root)
        for each in mounts:
            at = self.root / each["mountPath"].lstrip("/")
            mount("--bind", sources[each["name"]], at)
            if each.get("readOnly"):
                mount("-o", "remount,bind,ro", at)
        mount("-t", "proc", "proc", self.root / "proc")
        mount("-t", "tmpfs", "-o", "mode=755", "dev", self.root / "dev")
        for number, device in ((3, "null"), (5, "zero"), (8, "random"), (9, "urandom")):
            os.mknod(self.root / "dev" / device, 0o666 | 0o020000, os.makedev(1, number))
            (self.root / "dev" / device).chmod(0o666)
        mount("-o", "remount,ro", self.root / "dev")

    def environment(self):
        environment = dict([Dockerfile().the("ENV").split("=", 1)])
        for entry in self.container.get("env", []):
            if "value" in entry:
                environment[entry["name"]] = entry["value"]
            else:
                reference = entry["valueFrom"]["secretKeyRef"]
                environment[entry["name"]] = self.secrets[reference["name"]][reference["key"]].decode()
        return environment

    def _become(self):
        os.chroot(self.root)
        os.chdir("/")
        os.setgroups(self.groups)
        os.setresgid(self.group, self.group, self.group)
        os.setresuid(self.user, self.user, self.user)
        ctypes.CDLL(None).prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)

    def start(self, log):
        """Its entry point with its arguments; standard error goes to the file `log`."""
        return subprocess.Popen(
            [*words(Dockerfile().the("ENTRYPOINT")), *self.container["args"]],
            stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=self.environment(), preexec_fn=self._become,
        )

    def run(self, *arguments):
        """The entry point with other arguments, or with the spec's own where there are none; returns the finished process."""
        return subprocess.run(
            [*words(Dockerfile().the("ENTRYPOINT")), *(arguments or self.container["args"])],
            stdin=subprocess.DEVNULL, capture_output=True, text=True, env=self.environment(), preexec_fn=self._become, timeout=60,
            check=False,
        )

    def remove(self):
        subprocess.run(["umount", "--recursive", self.root], check=True, timeout=20)
        shutil.rmtree(self.root)


def words(text):
    """A Dockerfile's list of words."""
    return re.findall(r'"([^"]*)"', text)


class Service:
    """Passes connections to an address's port on to a port of the pod, as a Service does."""

    def __init__(self, address, port, target):
        self.listener = socket.create_server((address, port))
        threading.Thread(target=self._serve, args=(target,), daemon=True).start()

    def _serve(self, target):
        while True:
            try:
                client, _ = self.listener.accept()
            except OSError:
                return
            pod = socket.create_connection(("127.0.0.1", target), timeout=30)
            for source, sink in ((client, pod), (pod, client)):
                threading.Thread(target=self._pass_on, args=(source, sink), daemon=True).start()

    @staticmethod
    def _pass_on(source, sink):
        try:
            while octets := source.recv(65536):
                sink.sendall(octets)
            sink.shutdown(socket.SHUT_WR)
        except OSError:
            sink.close()
