"""The image, and the chart's pods run from it: every rendered configuration is accepted, a message goes through, nothing is written
outside of the volumes, and secrets lie as a kubelet leaves them."""

import contextlib
import itertools
import json
import os
import re
import signal
import socket
import ssl
import stat
import subprocess
import time

import lib
import pytest
from chart import CI, REPO, Objects, objects, parse, render
from pod import Dockerfile, Pod, Service, words, mount

USER = 65532


@pytest.fixture(scope="session")
def tree(tmp_path_factory):
    root = tmp_path_factory.mktemp("image") / "root"
    subprocess.run([REPO / "scripts" / "image", root], check=True, timeout=120)
    return root


@pytest.fixture(scope="module")
def secrets(lab, tmp_path_factory):
    """Secrets by name; those of users are made by the program itself."""
    folder = tmp_path_factory.mktemp("secrets")

    def made(*arguments):
        return subprocess.run([lib.POSTRIDER, *arguments], check=True, capture_output=True, text=True, cwd=folder, timeout=60).stdout

    password = json.loads(made("credential", "add", "--tenant", "acme", "--file", "credentials.toml", "--json", "app"))["password"]
    made("token", "add", "--role", "viewer", "--file", "tokens.toml", "board")
    made("dkim", "keygen", "example.com", "--out", "s1.pem")
    made("dkim", "keygen", "example.com", "--out", "s2.pem", "--selector", "s2", "--algorithm", "ed25519")
    read = lambda name: (folder / name).read_bytes()
    of_lab = lambda name: open(os.path.join(lab.at["dir"], name), "rb").read()
    return {
        "mail-example-com-tls": {"tls.crt": of_lab("relay.crt"), "tls.key": of_lab("relay.key"), "ca.crt": of_lab("ca.pem")},
        "postrider-credentials": {"credentials.toml": read("credentials.toml")},
        "postrider-tokens": {"tokens.toml": read("tokens.toml")},
        "postrider-dkim": {"example.com.s1.pem": read("s1.pem"), "example.com.s2.pem": read("s2.pem")},
        "private-ca": {"ca.crt": of_lab("ca.pem")},
        "other-provider": {"password": b"of the other provider"},
        "provider": {"password": b"of the provider"},
        "test-password": {"password": password.encode()},
    }


@pytest.fixture
def make(tree, secrets, tmp_path):
    """Makes pods; their mounts go with the test."""
    pods, claims = [], {"queue": tmp_path / "queue"}
    claims["queue"].mkdir()
    # As ext4 makes it; the relay can't look into it.
    (claims["queue"] / "lost+found").mkdir(mode=0o700)

    def make(spec, things, claims=claims, **options):
        folder = tmp_path / f"pod-{len(pods)}"
        folder.mkdir()
        pods.append(Pod(spec, things, tree, secrets, folder, claims, **options))
        return pods[-1]

    yield make
    for pod in pods:
        pod.remove()


# --- the image ---


def test_the_dockerfile_is_what_runs_here(tree):
    """Nobody here can build it: what it says is held against the tree that its own script makes."""
    docker = Dockerfile()
    assert docker.final.startswith("scratch\n")
    assert re.search(r"scripts/image /image$", docker.build, flags=re.M)
    assert docker.the("COPY") == "--from=build /image/ /"
    assert docker.the("USER") == f"{USER}:{USER}"
    (entry,) = words(docker.the("ENTRYPOINT"))
    assert os.access(tree / entry.lstrip("/"), os.X_OK)
    assert entry.rsplit("/", 1)[0] == docker.the("ENV").removeprefix("PATH="), "`kubectl exec POD -- postrider` looks in PATH"
    full = objects("helm4", "full")
    assert words(docker.the("CMD")) == full.container["args"]
    ports = {port["containerPort"] for port in full.container["ports"]} - {1026}
    assert {int(port) for port in docker.the("EXPOSE").split()} == ports


def test_what_is_in_the_image(tree):
    own = {"var/lib/postrider", "run/postrider"}
    for folder, folders, files in os.walk(tree):
        for name in folders + files:
            path = os.path.join(folder, name)
            facts, short = os.lstat(path), os.path.relpath(path, tree)
            owner = USER if short in own else 0
            assert (facts.st_uid, facts.st_gid) == (owner, owner), short
            assert not facts.st_mode & (stat.S_ISUID | stat.S_ISGID | stat.S_IWOTH), short
    assert not list(tree.glob("**/*sh")), "no shell"
    program = tree / "usr" / "bin" / "postrider"
    assert b".debug_info" not in subprocess.run(["readelf", "--sections", program], capture_output=True, check=True).stdout
    assert program.stat().st_size < 64 << 20
    authorities = (tree / "etc/ssl/certs/ca-certificates.crt").read_text(encoding="ascii")
    assert authorities.count("BEGIN CERTIFICATE") > 100


def test_the_program_needs_nothing_else(tree):
    """Not even an environment."""
    loaded = subprocess.run(
        ["/usr/sbin/chroot", f"--userspec={USER}:{USER}", tree, "/usr/bin/postrider", "--version"],
        env={}, capture_output=True, text=True, check=False, timeout=20,
    )
    assert loaded.returncode == 0, loaded.stderr
    assert re.fullmatch(r"postrider [0-9.]+\n", loaded.stdout)


# --- every configuration of ci/ ---


@pytest.mark.parametrize("name", CI)
def test_the_program_accepts_the_rendered_configuration(name, make):
    things = objects("helm4", name)
    pod = make(things.pod["spec"], things)
    told = pod.run("check")
    assert told.returncode == 0, told.stdout + told.stderr
    # And it is this one that it has read.
    shown = pod.run("config", "show")
    assert shown.returncode == 0 and 'hostname = "mail.example.com"' in shown.stdout, shown.stderr


@pytest.mark.parametrize("mode", [0o444, 0o446])
def test_secrets_for_everyone_would_be_refused(mode, make):
    things = objects("helm4", "minimal")
    told = make(things.pod["spec"], things, secret_mode=mode).run("check")
    assert told.returncode == 2 and "tls.key" in told.stdout + told.stderr, told.stdout + told.stderr


def test_secrets_of_another_group_would_be_refused(make):
    things = objects("helm4", "minimal")
    pod = make(things.pod["spec"], things)
    keys = pod.root / "etc" / "postrider" / "tls" / "..data" / "tls.key"
    mount("-o", "remount,bind,rw", pod.root / "etc" / "postrider" / "tls")
    assert pod.run("check").returncode == 0
    os.chown(keys, USER, 12345)
    told = pod.run("check")
    assert told.returncode == 2 and "group 12345 can read" in told.stdout + told.stderr, told.stdout + told.stderr


def test_flags_and_variables_are_the_programs(make):
    """Every argument and variable of the pods' specs is known to the binary."""
    reference = (REPO / "docs" / "reference.md").read_text(encoding="utf-8")
    variables = re.findall(r"^\| `([A-Z_]+)` \|", reference.split("\n## Environment\n")[1].split("\n## ")[0], flags=re.M)
    for name in CI:
        things = objects("helm4", name)
        containers = [things.container] + [container for test in things.tests for container in test["spec"]["containers"]]
        of_smart_hosts = set(re.findall(r'^password_env = "(.+)"$', things.config(), flags=re.M))
        for container in containers:
            assert "command" not in container, "the image's entry point"
            command, *flags = container["args"]
            told = subprocess.run([lib.POSTRIDER, command, "--help"], capture_output=True, text=True, check=True, timeout=20).stdout
            for flag in (flag for flag in flags if flag.startswith("-")):
                assert re.search(rf"(^|\s){re.escape(flag.split('=')[0])}\b", told), f"{command} {flag}"
            for entry in container.get("env", []):
                variable = entry["name"]
                assert variable in of_smart_hosts or variable in variables, variable
                if variable in of_smart_hosts:
                    of_smart_hosts.discard(variable)
                else:
                    # It is told by the command that reads it.
                    assert variable in told, f"{command}: {variable}"
        assert not of_smart_hosts, "a smart host without its password"


# --- a message through ---


def lab_values(lab):
    with open(os.path.join(lab.at["dir"], "postrider.toml"), encoding="utf-8") as file:
        (port,) = re.findall("^port = ([0-9]+)$", file.read(), flags=re.M)
    return {
        "config": {
            "hostname": "relay.sender.test",
            "tenants": {"acme": {"senders": ["sender.test"]}},
            "store": {"min_free": "16MiB"},
            "listener": [
                *(
                    {
                        "kind": kind, "address": f"0.0.0.0:{number}",
                        "certificate": "/etc/postrider/tls/tls.crt", "key": "/etc/postrider/tls/tls.key",
                    }
                    for kind, number in (("submission", 1587), ("submissions", 1465))
                ),
                {"kind": "trusted", "address": "0.0.0.0:1025", "networks": ["127.0.0.0/8"], "tenant": "acme"},
            ],
            "dns": {"servers": [lab.at["dns"]]},
            "delivery": {"port": int(port), "timeouts": {"connect": "5s"}},
        },
        "test": {
            "from": "app@sender.test", "to": "helm@ok.test", "user": "app",
            "passwordSecret": {"name": "test-password"}, "caSecret": {"name": "mail-example-com-tls"},
        },
    }


def rendered(values):
    done = render("helm4", "minimal", values=values)
    assert done.returncode == 0, done.stderr
    return Objects(parse(done.stdout))


class Running:
    """The relay's pod, up and ready."""

    def __init__(self, make, things, log):
        self.things, self.pod = things, make(things.pod["spec"], things)
        self.ports = {port["name"]: port["containerPort"] for port in things.container["ports"]}
        self.log = log
        with open(log, "wb") as out:
            self.process = self.pod.start(out)
        lib.wait_for(lambda: self.probe("startupProbe") and self.probe("readinessProbe"), Log(log), within=30)

    def probe(self, name):
        assert self.process.poll() is None, open(self.log, encoding="utf-8").read()
        get = self.pod.container[name]["httpGet"]
        try:
            return lib.get(f"127.0.0.1:{self.ports[get['port']]}", get["path"])[0] == 200
        except OSError:
            return False

    def stop(self):
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(self.things.pod["spec"]["terminationGracePeriodSeconds"])


class Log:
    """A log as it is by the time that somebody wants to read it."""

    def __init__(self, file):
        self.file = file

    def __str__(self):
        return f"the pod is ready; its log:\n{open(self.file, encoding='utf-8').read()}"


@pytest.fixture
def running(lab, make, tmp_path):
    started = []

    def start(things):
        started.append(Running(make, things, tmp_path / f"log-{len(started)}"))
        return started[-1]

    yield start
    for each in started:
        if each.process.poll() is None:
            each.process.kill()
            each.process.wait()


ADDRESSES = itertools.count(1)


def services(things, ports):
    """Plays the Services; returns the lines of /etc/hosts that name them."""
    lines, open_ones = "", []
    for service in things.of("Service"):
        if service["spec"].get("clusterIP") == "None":
            continue
        address = f"127.9.0.{next(ADDRESSES)}"
        lines += f"{address} {service['metadata']['name']}\n"
        for port in service["spec"]["ports"]:
            # The relay has its own numbers on every address; only a front's differ.
            if port["port"] != ports[port["targetPort"]]:
                open_ones.append(Service(address, port["port"], ports[port["targetPort"]]))
    return lines, open_ones


@pytest.mark.parametrize("way", ["submission", "trusted"])
def test_helm_test_sends_a_message_through(way, lab, make, running):
    values = lab_values(lab)
    values["test"]["to"] = f"{way}@ok.test"
    if way == "trusted":
        values["test"]["user"] = ""
    things = rendered(values)
    relay = running(things)
    hosts, fronts = services(things, relay.ports)
    (test,) = things.tests
    sent = make(test["spec"], things, claims={}, hosts=hosts).run()
    for front in fronts:
        front.listener.close()
    assert sent.returncode == 0, sent.stdout + sent.stderr
    (octets,) = lab.arrived(f"{way}@ok.test")
    text = octets.decode()
    assert "Subject: helm test of mail in post" in text and "Sent by helm test" in text and "by relay.sender.test" in text
    assert relay.stop() == 0
    assert '"message":"stopped"' in open(relay.log, encoding="utf-8").read()


def descriptors(pid):
    """What a process has open."""
    opened = set()
    for fd in os.listdir(f"/proc/{pid}/fd"):
        with contextlib.suppress(FileNotFoundError):  # it may be closed meanwhile
            opened.add(os.readlink(f"/proc/{pid}/fd/{fd}"))
    return opened


def test_it_runs_without_rights_on_a_root_that_nobody_writes_to(lab, running):
    relay = running(rendered(lab_values(lab)))
    facts = dict(re.findall(r"^(\w+):\t(.*)$", open(f"/proc/{relay.process.pid}/status", encoding="utf-8").read(), flags=re.M))
    assert facts["Uid"].split() == [str(USER)] * 4 and facts["Gid"].split() == [str(USER)] * 4
    assert int(facts["CapEff"], 16) == int(facts["CapPrm"], 16) == 0 and facts["NoNewPrivs"] == "1"
    for folder in ("", "etc", "etc/postrider/tls", "etc/postrider/config", "dev"):
        with pytest.raises(OSError, match="Read-only file system"):
            (relay.pod.root / folder / "x").write_text("x")
    # What is read now and then, as the certificate authorities are, is not open each time.
    opened = descriptors(relay.process.pid)
    for _ in range(4):
        time.sleep(0.25)
        opened &= descriptors(relay.process.pid)
    root = str(relay.pod.root)
    inside = [path.removeprefix(root) for path in opened if path.startswith(root)]
    assert inside and all(path.startswith("/var/lib/postrider/queue/") for path in inside), inside
    assert stat.S_ISSOCK(os.stat(f"{root}/run/postrider/admin.sock").st_mode)


def test_a_secret_that_changes_is_read_anew(lab, running):
    """As a kubelet changes it: a link comes to name another folder. The relay looks every ten seconds."""
    relay = running(rendered(lab_values(lab)))
    door = ("127.0.0.1", relay.ports["submissions"])
    of_lab = lambda other: open(os.path.join(other.at["dir"], "relay.crt"), encoding="ascii").read()
    shown = lambda: ssl.get_server_certificate(door)
    assert shown() == of_lab(lab)
    ends = re.search(
        r'^postrider_certificate_expiry_timestamp_seconds\{file="/etc/postrider/tls/tls.crt"\} ([0-9]+)$',
        lib.get(f"127.0.0.1:{relay.ports['metrics']}", "/metrics")[1].decode(), flags=re.M,
    )
    assert int(ends[1]) > time.time()
    secret = relay.pod.volumes / "secret-tls"
    other = lib.Lab()
    try:
        later = secret / "..2026_01_02"
        later.mkdir()
        for name, file in (("tls.crt", "relay.crt"), ("tls.key", "relay.key")):
            (later / name).write_bytes(open(os.path.join(other.at["dir"], file), "rb").read())
            os.chown(later / name, 0, USER)
            (later / name).chmod(0o440)
        (secret / "..data_tmp").symlink_to(later.name)
        (secret / "..data_tmp").rename(secret / "..data")
        lib.wait_for(lambda: shown() == of_lab(other), "the new certificate is shown", within=30)
    finally:
        other.kill()


def test_the_queue_outlives_the_pod_and_operators_get_at_it(lab, running):
    """`kubectl exec`: a process in the same root, as the same user, with the same variables."""
    things = rendered(lab_values(lab))
    first = running(things)
    with lib.smtplib.SMTP("127.0.0.1", first.ports["trusted"], timeout=30) as client:
        client.sendmail("app@sender.test", ["x@dead.test"], b"From: app@sender.test\r\nSubject: waits\r\n\r\nx\r\n")

    def waiting(relay):
        told = relay.pod.run("queue", "list", "--json")
        assert told.returncode == 0, told.stderr
        return [queue["domain"] for queue in json.loads(told.stdout)["queues"]]

    assert waiting(first) == ["dead.test"]
    assert first.stop() == 0
    # Another pod, with the same claim.
    second = running(things)
    assert waiting(second) == ["dead.test"]
    assert second.stop() == 0


def test_credentials_may_be_kept_on_the_volume_and_listeners_be_of_both_families(lab, running):
    """As docs/kubernetes.md says: the file comes to be by `kubectl exec`."""
    values = lab_values(lab)
    values["config"] |= {"credentials": "/var/lib/postrider/credentials.toml", "metrics": {"address": "[::]:9464"}}
    values["secrets"] = {"credentials": None}
    values["config"]["listener"].append({"kind": "trusted", "address": "[::]:1025", "networks": ["::1/128"], "tenant": "acme"})
    relay = running(rendered(values))
    added = relay.pod.run("credential", "add", "--tenant", "acme", "--json", "app")
    assert added.returncode == 0, added.stderr
    context = ssl.create_default_context(cafile=os.path.join(lab.at["dir"], "ca.pem"))
    context.check_hostname = False

    def logs_in():
        with lib.smtplib.SMTP_SSL("127.0.0.1", relay.ports["submissions"], context=context, timeout=30) as client:
            try:
                return client.login("app", json.loads(added.stdout)["password"])[0] == 235
            except lib.smtplib.SMTPAuthenticationError:
                return False

    lib.wait_for(logs_in, "the credential is known")
    for address in ("127.0.0.1", "::1"):
        with lib.smtplib.SMTP(address, relay.ports["trusted"], timeout=30) as client:
            client.ehlo()
            assert client.mail("app@sender.test")[0] == 250, address
    # Probes come by either, to the one socket.
    assert relay.probe("readinessProbe")
    with socket.create_connection(("::1", relay.ports["metrics"]), timeout=30):
        pass
    assert relay.stop() == 0
