"""The relay among its neighbours: as next hops, as clients, and as scanners.

`run.py` runs all of it, groups side by side; `run.py CLASS[.TEST]...` some of it.
"""

import os
import signal
import subprocess
import sys
import tempfile
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), ".."))

from clients import Clients  # noqa: E402, F401
from lib import main  # noqa: E402
from next_hops import NextHops  # noqa: E402, F401
from reports import Reports  # noqa: E402, F401
from scans import Scans  # noqa: E402, F401

# Each in a process of its own; those named together share their neighbours.
GROUPS = [["Clients"], ["NextHops", "Reports"], ["Scans"]]
# Seconds; what isn't done then has failed.
LIMIT = 220


def end(*_):
    """Leaves by way of atexit, where all that was started is ended; unittest stops for nothing less."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    raise KeyboardInterrupt


def side_by_side():
    """Runs all groups; returns those that failed."""
    running, over = [], time.monotonic() + LIMIT
    for names in GROUPS:
        out = tempfile.TemporaryFile()
        command = [sys.executable, os.path.abspath(__file__), *names]
        child = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT)
        running.append((names, out, child))
    failed = []
    try:
        for names, _, child in running:
            try:
                child.wait(max(0, over - time.monotonic()))
            except subprocess.TimeoutExpired:
                print(f"{names}: not done within {LIMIT} s")
    finally:
        for _, _, child in running:
            if child.poll() is None:
                child.terminate()
        for names, out, child in running:
            if child.wait() != 0:
                failed.append(names)
            out.seek(0)
            print(out.read().decode(errors="replace"), flush=True)
    return failed


if __name__ == "__main__":
    if os.geteuid() != 0:
        sys.exit("these tests need root: the neighbours change to users of their own, some in a root of their own")
    os.umask(0o022)
    signal.signal(signal.SIGTERM, end)
    if len(sys.argv) > 1:
        main()
    elif failed := side_by_side():
        sys.exit(f"failed: {failed}")
