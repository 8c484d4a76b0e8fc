"""What the tests need of the machine: folders, ports, certificates, names, and the programs fetched by tests/interop/fetch."""

import atexit
import functools
import os
import pathlib
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
from typing import NamedTuple

import dns.flags
import dns.message
import dns.rcode
import dns.rrset

HERE = pathlib.Path(__file__).resolve().parent
INTEROP = pathlib.Path(os.environ.get("INTEROP") or sys.exit("INTEROP must name the folder of tests/interop/fetch"))
DEBIAN = INTEROP / "debian"


class Certificate(NamedTuple):
    chain: pathlib.Path
    key: pathlib.Path


def folder():
    """One that goes when the tests end."""
    made = pathlib.Path(tempfile.mkdtemp(prefix="postrider-interop-", dir="/tmp"))
    atexit.register(shutil.rmtree, made, True)
    made.chmod(0o755)
    return made


def self_signed(home):
    """With an RSA key; the lab's certificates have others."""
    made = Certificate(home / "chain.pem", home / "key.pem")
    run(
        "openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", 2, "-subj", "/CN=localhost",
        "-addext", "subjectAltName=DNS:localhost", "-out", made.chain, "-keyout", made.key,
    )
    return made


def free_port(addresses=("127.0.0.1",)):
    """Free on all of the addresses."""
    for _ in range(50):
        with socket.socket() as probe:
            probe.bind((addresses[0], 0))
            port = probe.getsockname()[1]
        others = []
        try:
            for address in addresses:
                others.append(socket.create_server((address, port)))
            return port
        except OSError:
            continue
        finally:
            for other in others:
                other.close()
    raise AssertionError("no port is free")


@functools.cache
def libraries():
    """The folders with what the programs load."""
    return ":".join(sorted({str(file.parent) for file in DEBIAN.rglob("lib*.so*")}))


def environment(**more):
    return {
        **os.environ,
        "LD_LIBRARY_PATH": libraries(),
        "NODE_PATH": f"{INTEROP}/npm/node_modules",
        **more,
    }


def run(*command, check=True, **more):
    done = subprocess.run(
        [str(word) for word in command],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=environment(**more),
        timeout=60,
        check=False,
    )
    text = done.stdout.decode(errors="replace")
    if check and done.returncode != 0:
        raise AssertionError(f"{command[0]} exited {done.returncode}: {text}")
    return text


def listens(address, port):
    try:
        socket.create_connection((address, port), 1).close()
        return True
    except OSError:
        return False


class NameServer:
    """`NAME` has the MX `mx.NAME`, which has the address that `hosts` says; nothing else exists."""

    def __init__(self, hosts, address, port=0):
        self.socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.socket.bind((address, port))
        self.address = "%s:%d" % self.socket.getsockname()
        atexit.register(self.socket.close)

        def answer(octets):
            question = dns.message.from_wire(octets)
            reply = dns.message.make_response(question)
            reply.flags |= dns.flags.AA
            asked = question.question[0]
            name, kind = asked.name.to_text(omit_final_dot=True).lower(), asked.rdtype
            if kind == 15 and name in hosts:
                reply.answer.append(dns.rrset.from_text(asked.name, 30, "IN", "MX", f"10 mx.{name}."))
            elif kind == 1 and name.startswith("mx.") and name[3:] in hosts:
                reply.answer.append(dns.rrset.from_text(asked.name, 30, "IN", "A", hosts[name[3:]]))
            elif name not in hosts and not (name.startswith("mx.") and name[3:] in hosts):
                reply.set_rcode(dns.rcode.NXDOMAIN)
            return reply.to_wire()

        def serve():
            while True:
                try:
                    octets, peer = self.socket.recvfrom(4096)
                    self.socket.sendto(answer(octets), peer)
                except OSError:
                    return

        threading.Thread(target=serve, daemon=True).start()
