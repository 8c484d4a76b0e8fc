"""The checks run in a network and with mounts of their own (`unshare --mount --net`, see scripts/test): ports are always free, and no
mount is left behind.
"""

import fcntl
import socket
import struct

import lib
import pytest

SIOCGIFFLAGS, SIOCSIFFLAGS, IFF_UP = 0x8913, 0x8914, 0x1


@pytest.fixture(scope="session", autouse=True)
def loopback():
    """A new network has its loopback interface down."""
    request = struct.Struct("16sh14x")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        _, flags = request.unpack(fcntl.ioctl(any_socket, SIOCGIFFLAGS, request.pack(b"lo", 0)))
        if flags & IFF_UP:
            pytest.exit("these checks want a network of their own: `scripts/test helm`", returncode=1)
        fcntl.ioctl(any_socket, SIOCSIFFLAGS, request.pack(b"lo", flags | IFF_UP))


@pytest.fixture(scope="module")
def lab():
    """A small Internet, with a relay in its middle."""
    lab = lib.Lab()
    yield lab
    lab.kill()
