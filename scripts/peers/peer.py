"""What the peers written in Python share: what `loadtest compare` tells them, and the folder of tests/interop/fetch."""

import os
import pathlib
import subprocess
import sys

HERE = pathlib.Path(__file__).resolve().parent
TESTS = HERE.parents[1] / "tests/interop"


def told(name):
    return os.environ.get(name) or sys.exit(f"{name} is not set: this is a peer of `loadtest compare` (docs/performance.md)")


FOLDER = pathlib.Path(told("FOLDER"))
CONNECTIONS = int(told("CONNECTIONS"))
SCENARIO = told("SCENARIO")
# Where mail is kept until this file is run with the word `release`.
HOLDS = SCENARIO == "accept"
SIGNS = SCENARIO == "relay-dkim"
RELEASE = sys.argv[1:] == ["release"]


def say_version(text):
    """For the tables; before the relay takes this process's place."""
    print(f"version: {text.strip()}", flush=True)


def said(command, env=None):
    """What a program says, by whatever way and with whatever end."""
    done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False, env=env)
    return done.stdout


def address(name):
    host, port = told(name).rsplit(":", 1)
    return host, int(port)


def fetched():
    """Where the packages are; the interop tests' own modules can be imported from then on."""
    found = subprocess.run([TESTS / "fetch", "--where"], stdout=subprocess.PIPE, text=True, check=False).stdout.strip()
    if not found:
        sys.exit("its packages are not in the cache; tests/interop/fetch fetches them")
    os.environ["INTEROP"] = found
    sys.path[:0] = [str(TESTS), str(TESTS / "neighbours")]
    return pathlib.Path(found)
