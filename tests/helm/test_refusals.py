"""What the chart refuses, each with its reason, and the like of it that it takes."""

import re

import pytest
import yaml
from chart import CHART, HELMS, REPO, Objects, helm, parse, render

LISTENER = {"kind": "trusted", "address": "0.0.0.0:1025", "networks": ["10.0.0.0/8"], "tenant": "cluster"}
SUBMISSION = {
    "kind": "submission", "address": "0.0.0.0:1587",
    "certificate": "/etc/postrider/tls/tls.crt", "key": "/etc/postrider/tls/tls.key",
}


def config(**keys):
    return {"config": keys}


# The file of ci/, more values, and what has to be said.
REFUSED = {
    "two replicas": ("minimal", {"replicas": 2}, "queue of its own"),
    "no hostname": ("minimal", config(hostname=""), "config.hostname is needed"),
    "a trusted listener behind a load balancer": ("trusted", {"trustedService": {"type": "LoadBalancer"}}, "SNAT"),
    "a trusted listener on a node's port": ("trusted", {"trustedService": {"type": "NodePort"}}, "SNAT"),
    "the policy Cluster": ("trusted", {"trustedService": {"type": "NodePort", "externalTrafficPolicy": "Cluster"}}, "SNAT"),
    "one trusted listener of two without PROXY": (
        "trusted",
        {
            "trustedService": {"type": "LoadBalancer"},
            **config(listener=[{**LISTENER, "proxy_protocol": ["10.0.0.1"]}, {**LISTENER, "address": "0.0.0.0:1026"}]),
        },
        "config.listener[1].proxy_protocol",
    ),
    "a traffic policy without outside": ("minimal", {"service": {"externalTrafficPolicy": "Local"}}, "service.externalTrafficPolicy"),
    "a class without a load balancer": (
        "minimal", {"service": {"type": "NodePort", "loadBalancerClass": "a"}}, "service.loadBalancerClass",
    ),
    "no Secret for a certificate": ("minimal", {"secrets": {"tls": None}}, "set secrets.tls"),
    "no Secret for a DKIM key": (
        "minimal", config(dkim=[{"domain": "example.com", "selector": "s1", "key": "/etc/postrider/dkim/a.pem"}]), "set secrets.dkim",
    ),
    "a file in no volume": ("minimal", config(credentials="/opt/credentials.toml"), "is in no volume"),
    "a password of nobody's": (
        "minimal",
        config(smart_host=[{"name": "a", "hosts": [{"host": "a.example"}], "user": "u", "password_env": "A_PASSWORD"}]),
        "set secretEnvironment.A_PASSWORD",
    ),
    "a queue outside of the volume": ("minimal", config(store={"path": "/queue"}), "not below the volume"),
    "no door for the probes": ("minimal", config(metrics={"address": None}), "the probes ask there"),
    "probes that can't reach": ("minimal", config(metrics={"address": "127.0.0.1:9464"}), "the probes can't reach"),
    "a listener that nobody reaches": ("minimal", config(listener=[{**SUBMISSION, "address": "127.0.0.1:1587"}]), "nobody reaches"),
    "a listener that nobody reaches by IPv6": ("minimal", config(listener=[{**SUBMISSION, "address": "[::1]:1587"}]), "nobody reaches"),
    "a kind of listener that does not exist": ("minimal", config(listener=[{**SUBMISSION, "kind": "submision"}]), "not submision"),
    "a listener of no kind": ("minimal", config(listener=[{"address": "0.0.0.0:1587"}]), "config.listener[0].kind"),
    "two kinds on one port": ("minimal", config(listener=[SUBMISSION, {**SUBMISSION, "kind": "submissions", "address": "[::]:1587"}]), "already"),
    "a port for root": ("minimal", config(listener=[{**SUBMISSION, "address": "0.0.0.0:587"}]), "port 587 is for root"),
    "a listener without a port": ("minimal", config(listener=[{**SUBMISSION, "address": "0.0.0.0"}]), "names no port"),
    "parts of the configuration": ("minimal", config(include=["conf.d/*.toml"]), "config.include"),
    "nobody who sends": ("trusted", config(tenants={"cluster": None}), "tenants"),
    "no tenants": ("minimal", config(tenants=None), "config.tenants is needed"),
    "no listener": ("minimal", config(listener=[]), "config.listener is needed"),
    "a listener on the port of metrics": (
        "minimal", config(listener=[{**SUBMISSION, "address": "[::]:9464"}]), "port 9464 is a submission listener's already",
    ),
    "admin on the port of metrics": (
        "minimal", config(admin={"address": "0.0.0.0:9464", "tokens": "/var/lib/postrider/t"}), "port 9464 is config.metrics.address's already",
    ),
    "metrics without a port": ("minimal", config(metrics={"address": "0.0.0.0"}), "names no port"),
    "metrics on a port for root": ("minimal", config(metrics={"address": "0.0.0.0:80"}), "port 80 is for root"),
    "a socket in no volume": ("minimal", config(admin={"socket": "/tmp/admin.sock"}), "config.admin.socket"),
    "XCLIENT on a node's port": (
        "minimal", {"service": {"type": "NodePort"}, **config(listener=[{**SUBMISSION, "xclient": ["10.0.0.0/24"]}])}, "XCLIENT",
    ),
    "clients kept out by nothing": (
        "minimal", {"service": {"type": "NodePort", "loadBalancerSourceRanges": ["10.0.0.0/8"]}}, "service.loadBalancerSourceRanges",
    ),
    "a drain of octal digits above the grace": (
        "minimal", {"terminationGracePeriodSeconds": 100, **config(drain_timeout="0100s")}, "not above config.drain_timeout (100 s)",
    ),
    "a drain in minutes above the grace": (
        "minimal", {"terminationGracePeriodSeconds": 90, **config(drain_timeout="1m30s")}, "not above config.drain_timeout (90 s)",
    ),
    "a drain of more than a grace of whole seconds": (
        "minimal", {"terminationGracePeriodSeconds": 1, **config(drain_timeout="1001ms")}, "not above config.drain_timeout (2 s)",
    ),
    "a drain of years": ("minimal", config(drain_timeout="400d"), "not within 1ms and 1d"),
    "a drain that no number holds": ("minimal", config(drain_timeout="99999999999999999999s"), "is no time span"),
    "too short a grace": ("minimal", {"terminationGracePeriodSeconds": 30}, "not above config.drain_timeout (30 s)"),
    "a drain of nonsense": ("minimal", config(drain_timeout="30 seconds"), "is no time span"),
    "a full name that no Service may have": ("minimal", {"fullnameOverride": "1mail"}, "set fullnameOverride"),
    "a full name in capitals": ("minimal", {"fullnameOverride": "Mail"}, "a Service's name"),
    "a full name with a dot": ("minimal", {"fullnameOverride": "mail.prod"}, "a Service's name"),
    "a test without a sender": ("trusted", {"test": {"from": ""}}, "test.from is needed"),
    "a test without a password": ("minimal", {"test": {"from": "a@example.com", "to": "b@example.com", "user": "u"}}, "test.passwordSecret.name"),
    "a test without a way": ("minimal", {"test": {"from": "a@example.com", "to": "b@example.com"}}, "no trusted listener"),
    # By the schema, in the words of Helm's validator.
    "a value that does not exist": ("minimal", {"replica": 1}, "replica"),
    "a key that the relay does not know": ("minimal", config(store={"pth": "/var/lib/postrider/queue"}), "pth"),
    "a key in the wrong table": ("minimal", config(max_messages=5), "max_messages"),
    "a key of a list that the relay does not know": ("minimal", config(listener=[{**SUBMISSION, "password": "x"}]), "password"),
    "a number as text": ("minimal", config(delivery={"max_connections": "many"}), "max_connections"),
    "a text as a number": ("minimal", config(drain_timeout=30), "drain_timeout"),
    "a type of Service that does not exist": ("minimal", {"service": {"type": "ExternalName"}}, "type"),
    "a shared volume": ("minimal", {"persistence": {"accessModes": ["ReadWriteMany"]}}, "accessModes"),
    "a secret over the configuration": ("minimal", {"secrets": {"config": "a"}}, "secrets"),
    "a secret in its own text": ("minimal", {"secrets": {"tls": "-----BEGIN PRIVATE KEY-----"}}, "tls"),
    "half a reference": ("minimal", {"secretEnvironment": {"A": {"name": "a"}}}, "key"),
    "a name that no label may have": ("minimal", {"nameOverride": "a mail relay"}, "nameOverride"),
    "a span in words": ("minimal", config(store={"expire_after": "5 days"}), "expire_after"),
    "a span without a unit": ("minimal", config(delivery={"timeouts": {"connect": "30"}}), "connect"),
    "a size in words": ("minimal", config(store={"min_free": "a lot"}), "min_free"),
    "a size that no Kubernetes knows": ("minimal", {"persistence": {"size": "10ki"}}, "size"),
    "a label of the chart's own": ("minimal", {"podLabels": {"app.kubernetes.io/component": "a"}}, "app.kubernetes.io/component"),
    "an annotation of the chart's own": ("minimal", {"podAnnotations": {"checksum/config": "a"}}, "checksum/config"),
    "another configuration": (
        "minimal", {"secretEnvironment": {"POSTRIDER_CONFIG": {"name": "a", "key": "a"}}}, "POSTRIDER_CONFIG",
    ),
    "a digest of something else": ("minimal", {"image": {"digest": "latest"}}, "digest"),
}

TAKEN = {
    "no replica": ("minimal", {"replicas": 0}),
    "a trusted listener with its clients' addresses": (
        "trusted", {"trustedService": {"type": "LoadBalancer", "externalTrafficPolicy": "Local"}},
    ),
    "a trusted listener behind PROXY": (
        "trusted", {"trustedService": {"type": "LoadBalancer"}, **config(listener=[{**LISTENER, "proxy_protocol": ["10.0.0.1"]}])},
    ),
    "a trusted listener inside, submission outside": (
        "trusted", {"service": {"type": "LoadBalancer"}, "secrets": {"tls": "a"}, **config(listener=[LISTENER, SUBMISSION])},
    ),
    "credentials on the volume": ("minimal", {"secrets": {"credentials": None}, **config(credentials="/var/lib/postrider/credentials.toml")}),
    "IPv6": ("minimal", config(listener=[{**SUBMISSION, "address": "[::]:1587"}], metrics={"address": "[::]:9464"})),
    "XCLIENT from clients' addresses": (
        "minimal",
        {
            "service": {"type": "NodePort", "externalTrafficPolicy": "Local"},
            **config(listener=[{**SUBMISSION, "xclient": ["10.0.0.0/24"]}]),
        },
    ),
    "sizes as the relay reads them": ("minimal", config(store={"min_free": "1 GiB", "max_bytes": "200GB"}, submission={"max_message": "5000000"})),
    "a span of several units": ("minimal", config(store={"expire_after": "1d12h"})),
    "grace enough": ("minimal", {"terminationGracePeriodSeconds": 31}),
    "a size in octets": ("minimal", config(store={"min_free": 1 << 30})),
    "a test by password": (
        "minimal",
        {"test": {"from": "a@example.com", "to": "b@example.com", "user": "u", "passwordSecret": {"name": "p"}}},
    ),
    "an account of somebody else's": ("minimal", {"serviceAccount": {"create": False, "name": "mail"}}),
}


@pytest.mark.parametrize("version", HELMS)
@pytest.mark.parametrize("case", REFUSED)
def test_refused(case, version):
    name, values, reason = REFUSED[case]
    done = render(version, name, values=values)
    assert done.returncode != 0, "taken"
    assert reason in done.stderr, done.stderr


@pytest.mark.parametrize("version", HELMS)
@pytest.mark.parametrize("case", TAKEN)
def test_taken(case, version):
    name, values = TAKEN[case]
    done = render(version, name, values=values)
    assert done.returncode == 0, done.stderr


def test_the_values_of_the_docs_are_taken(tmp_path):
    """docs/kubernetes.md: those to begin with, and each of the others on top."""
    text = (REPO / "docs" / "kubernetes.md").read_text(encoding="utf-8")
    begin, *others = re.findall(r"^```yaml\n(.*?)^```", text, flags=re.M | re.S)
    assert others
    (tmp_path / "begin.yaml").write_text(begin, encoding="utf-8")
    for more in ["{}", *others]:
        (tmp_path / "more.yaml").write_text(more, encoding="utf-8")
        done = helm(
            "helm4", "template", "mail", str(CHART), "--values", str(tmp_path / "begin.yaml"), "--values", str(tmp_path / "more.yaml")
        )
        assert done.returncode == 0, done.stderr


def paths(value, path=()):
    for key, inner in value.items():
        yield (*path, key)
        if isinstance(inner, dict):
            yield from paths(inner, (*path, key))


@pytest.mark.parametrize("version", HELMS)
def test_what_is_taken_away_is_missed_in_words(version):
    """A null takes a value away; a template that looks into it all the same tells nobody what to do."""
    for path in paths(yaml.safe_load((CHART / "values.yaml").read_text(encoding="utf-8"))):
        values = None
        for key in reversed(path):
            values = {key: values}
        done = render(version, "minimal", values=values)
        said = done.stderr if done.returncode else done.stdout
        assert not re.search(r"nil pointer|error calling|wrong type|<nil>", said), f"{path}: {said}"
        if done.returncode == 0:
            assert Objects(parse(done.stdout)).one("StatefulSet")["spec"]["replicas"] == 1
