"""The objects beside each other: what one names, another has."""

import json
import re
import tomllib

import generate
import pytest
import yaml
from chart import CHART, CI, HELMS, LONG_RELEASE, RELEASE, objects, render, parse, Objects

EVERY = [(name, release) for name in CI for release in (RELEASE, LONG_RELEASE)]
WELL_KNOWN = {"submission": 587, "submissions": 465, "trusted": 25}


@pytest.fixture(params=EVERY, ids=lambda case: f"{case[0]}-{'long' if case[1] == LONG_RELEASE else 'short'}")
def things(request):
    name, release = request.param
    return objects("helm4", name, release)


def selects(selector, labels):
    return bool(selector) and selector.items() <= labels.items()


def test_selectors_are_of_labels_that_are_there(things):
    pods = things.pod["metadata"]["labels"]
    assert things.one("StatefulSet")["spec"]["selector"]["matchLabels"].items() <= pods.items()
    selectors = [thing["spec"]["selector"] for thing in things.of("Service")]
    selectors += [thing["spec"]["selector"]["matchLabels"] for thing in things.of("PodDisruptionBudget")]
    selectors += [thing["spec"]["podSelector"]["matchLabels"] for thing in things.of("NetworkPolicy")]
    selectors += [things.one("StatefulSet")["spec"]["selector"]["matchLabels"]]
    for selector in selectors:
        assert selects(selector, pods), selector
        for test in things.tests:
            assert not selects(selector, test["metadata"]["labels"]), "a test pod would get mail"


def test_the_network_policy_lets_the_test_in(things):
    for policy in things.of("NetworkPolicy"):
        peers = [peer.get("podSelector", {}).get("matchLabels", {}) for peer in policy["spec"]["ingress"][0]["from"]]
        for test in things.tests:
            assert any(selects(peer, test["metadata"]["labels"]) for peer in peers)


def test_the_service_monitor_finds_the_metrics(things):
    for monitor in things.of("ServiceMonitor"):
        selector = monitor["spec"]["selector"]["matchLabels"]
        (service,) = (thing for thing in things.of("Service") if selects(selector, thing["metadata"]["labels"]))
        assert [end["port"] for end in monitor["spec"]["endpoints"]] == [port["name"] for port in service["spec"]["ports"]]
        assert [end["path"] for end in monitor["spec"]["endpoints"]] == ["/metrics"]


def test_named_ports_exist(things):
    ports = {port["name"]: port["containerPort"] for port in things.container["ports"]}
    assert len(ports) == len(things.container["ports"]) == len(set(ports.values()))
    for name in ports:
        assert re.fullmatch(r"[a-z0-9]([a-z0-9-]{0,13}[a-z0-9])?", name) and re.search("[a-z]", name), name
    used = [port["targetPort"] for service in things.of("Service") for port in service["spec"]["ports"]]
    used += [things.container[probe]["httpGet"]["port"] for probe in ("startupProbe", "livenessProbe", "readinessProbe")]
    used += [port["port"] for policy in things.of("NetworkPolicy") for rule in policy["spec"]["ingress"] for port in rule["ports"]]
    assert set(used) <= set(ports), set(used) - set(ports)
    assert set(ports) <= set(used), "a port that nothing leads to"
    for service in things.of("Service"):
        numbers = [port["port"] for port in service["spec"]["ports"]]
        assert len(numbers) == len(set(numbers)), service["metadata"]["name"]


def test_each_listener_is_behind_its_port(things):
    config = tomllib.loads(things.config())
    ports = {port["name"]: port["containerPort"] for port in things.container["ports"]}
    fronts = [
        (ports[port["targetPort"]], port["port"], service["metadata"]["name"].endswith("-trusted"))
        for service in things.of("Service")
        if not service["metadata"]["name"].endswith(("-headless", "-metrics", "-admin"))
        for port in service["spec"]["ports"]
    ]
    wanted, seen, of_both_families = [], set(), set()
    for listener in config["listener"]:
        kind, number = listener["kind"], int(listener["address"].rsplit(":", 1)[1])
        if number in of_both_families:
            continue
        of_both_families.add(number)
        wanted.append((number, number if kind in seen else WELL_KNOWN[kind], kind == "trusted"))
        seen.add(kind)
        assert number >= 1024
    assert sorted(fronts) == sorted(wanted)
    assert ports["metrics"] == int(config["metrics"]["address"].rsplit(":", 1)[1])
    if "address" in config["admin"]:
        assert ports["admin"] == int(config["admin"]["address"].rsplit(":", 1)[1])
    else:
        assert "admin" not in ports


def quantity(text):
    """A Kubernetes quantity as a number."""
    number, unit = re.fullmatch(r"([0-9.]+)([a-zA-Z]*)", str(text)).groups()
    units = {"": 1, "m": 1e-3, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40}
    return float(number) * units[unit]


def test_requests_are_not_above_limits(things):
    containers = [things.container] + [container for test in things.tests for container in test["spec"]["containers"]]
    for container in containers:
        resources = container["resources"]
        assert resources["requests"] and "memory" in resources["limits"]
        for name, limit in resources["limits"].items():
            assert quantity(resources["requests"].get(name, 0)) <= quantity(limit), name


def test_claims_are_mounts(things):
    spec = things.one("StatefulSet")["spec"]
    claims = [claim["metadata"]["name"] for claim in spec["volumeClaimTemplates"]]
    volumes = [volume["name"] for volume in things.pod["spec"]["volumes"]]
    mounts = {mount["name"]: mount["mountPath"] for mount in things.container["volumeMounts"]}
    assert sorted(mounts) == sorted(claims + volumes), "each volume is mounted once, and nothing else"
    paths = sorted(mounts.values())
    for one, other in zip(paths, paths[1:]):
        assert not f"{other}/".startswith(f"{one}/"), f"{other} is within {one}"
    assert claims == ["queue"]
    config = tomllib.loads(things.config())
    assert config["store"]["path"].startswith(mounts["queue"] + "/")
    assert config["admin"]["socket"].startswith(mounts["run"] + "/")
    for test in things.tests:
        (container,) = test["spec"]["containers"]
        mounted = [mount["name"] for mount in container.get("volumeMounts", [])]
        assert mounted == [volume["name"] for volume in test["spec"].get("volumes", [])]


def test_files_of_the_configuration_are_mounted(things):
    mounts = [mount["mountPath"] for mount in things.container["volumeMounts"]]
    for path in re.findall(r'"(/[^"]+)"', things.config()):
        assert any(path.startswith(mount + "/") for mount in mounts), path
    (config,) = (entry["value"] for entry in things.container["env"] if entry["name"] == "POSTRIDER_CONFIG")
    assert config.rsplit("/", 1)[0] in mounts


def texts(value):
    """Every text in an object."""
    if isinstance(value, dict):
        for inner in value.values():
            yield from texts(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from texts(inner)
    elif isinstance(value, str):
        yield value


def test_no_secret_is_in_an_object(things):
    assert not things.of("Secret"), "Secrets come by reference alone"
    for thing in things:
        for text in texts(thing):
            assert not re.search(r"PRIVATE KEY|SCRAM-SHA-256\$|\b(password|token|secret) *=", text), thing["metadata"]["name"]
    containers = [things.container] + [container for test in things.tests for container in test["spec"]["containers"]]
    for container in containers:
        for entry in container.get("env", []):
            assert "PASSWORD" not in entry["name"] or "secretKeyRef" in entry["valueFrom"], entry["name"]


def test_secrets_are_for_the_pods_group_alone(things):
    security = things.pod["spec"]["securityContext"]
    assert security["fsGroup"] == security["runAsGroup"] == security["runAsUser"] == 65532
    secrets = [volume["secret"] for volume in things.pod["spec"]["volumes"] if "secret" in volume]
    assert all(secret["defaultMode"] == 0o440 for secret in secrets)


def test_names_fit(things):
    for thing in things:
        name = thing["metadata"]["name"]
        assert len(name) <= 63 and re.fullmatch(r"[a-z]([-a-z0-9]*[a-z0-9])?", name), name
        for key, value in thing["metadata"]["labels"].items():
            assert len(value) <= 63 and re.fullmatch(r"([A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?)?", value), (key, value)
    # Its revisions' label is its name and a hash of ten.
    assert len(things.one("StatefulSet")["metadata"]["name"]) <= 52
    assert len({(thing["kind"], thing["metadata"]["name"]) for thing in things}) == len(things)


@pytest.mark.parametrize("override", ["a-very-long-name-that-is-cut-within-its-hyphens-----behind", "--a"])
def test_a_name_is_cut_before_its_hyphens(override):
    done = render("helm4", "full", "--set", f"fullnameOverride={override}", release="mail")
    assert done.returncode == 0, done.stderr
    for thing in parse(done.stdout):
        assert re.fullmatch(r"[a-z]([-a-z0-9]*[a-z0-9])?", thing["metadata"]["name"]), thing["metadata"]["name"]


def test_texts_that_look_like_numbers_stay_texts():
    """A name of 1234 written plainly is a number to YAML, and refused by the cluster."""
    odd = "1234"
    done = render(
        "helm4", "full",
        values={
            "nameOverride": odd, "fullnameOverride": "mail", "priorityClassName": odd,
            "imagePullSecrets": [{"name": odd}], "persistence": {"storageClass": odd},
            "secrets": dict.fromkeys(("tls", "credentials", "dkim", "tokens", "provider", "authorities"), odd),
            "secretEnvironment": {"PROVIDER_PASSWORD": {"name": odd, "key": odd}},
            "service": {"loadBalancerClass": odd}, "serviceAccount": {"name": odd},
            "test": {
                "from": '"a: b #c"@example.com', "to": "true", "user": "null", "passwordSecret": {"name": odd, "key": odd},
                "caSecret": {"name": odd, "key": odd},
            },
        },
    )
    assert done.returncode == 0, done.stderr
    things = Objects(parse(done.stdout))

    def scalars(value):
        for inner in value.values() if isinstance(value, dict) else value:
            if isinstance(inner, (dict, list)):
                yield from scalars(inner)
            else:
                yield inner

    kinds = [type(value) for thing in things for value in scalars(thing) if str(value) == odd]
    assert len(kinds) > 25 and set(kinds) == {str}
    (test,) = things.tests
    arguments = test["spec"]["containers"][0]["args"]
    assert {'--from="a: b #c"@example.com', "--to=true", "--user=null", f"--ca=/etc/postrider/ca/{odd}"} <= set(arguments)


def test_the_headless_service_is_the_pods_own(things):
    (service,) = (thing for thing in things.of("Service") if thing["spec"].get("clusterIP") == "None")
    assert things.one("StatefulSet")["spec"]["serviceName"] == service["metadata"]["name"]


def test_pods_that_are_not_ready_can_be_asked_and_get_no_mail(things):
    """Metrics tell why, and operators mend it."""
    for service in things.of("Service"):
        inside = service["metadata"]["name"].endswith(("-headless", "-metrics", "-admin"))
        assert bool(service["spec"].get("publishNotReadyAddresses")) == inside, service["metadata"]["name"]
        assert not inside or service["spec"].get("type", "ClusterIP") == "ClusterIP"


def test_what_a_stateful_set_can_never_change_stays_from_version_to_version(things):
    spec = things.one("StatefulSet")["spec"]
    (claim,) = spec["volumeClaimTemplates"]
    for labels in (spec["selector"]["matchLabels"], claim["metadata"]["labels"]):
        assert set(labels) == {f"app.kubernetes.io/{name}" for name in ("name", "instance", "component")}
    assert spec["podManagementPolicy"] == "Parallel", "a pod that can't start would keep a rollback from replacing it"


def test_the_service_account_is_there(things):
    (account,) = things.of("ServiceAccount")
    assert things.pod["spec"]["serviceAccountName"] == account["metadata"]["name"]
    assert things.pod["spec"]["automountServiceAccountToken"] is False


def test_the_restricted_profile(things):
    """https://kubernetes.io/docs/concepts/security/pod-security-standards/, restricted, and a root that can't be written to."""
    for spec in [things.pod["spec"], *(test["spec"] for test in things.tests)]:
        for key in ("hostNetwork", "hostPID", "hostIPC"):
            assert not spec.get(key)
        assert spec["securityContext"]["runAsNonRoot"] is True
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        for volume in spec.get("volumes", []):
            (kind,) = set(volume) - {"name"}
            assert kind in ("configMap", "emptyDir", "secret", "projected", "persistentVolumeClaim"), kind
        for container in spec["containers"]:
            security = container["securityContext"]
            assert security == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }
            assert all("hostPort" not in port for port in container.get("ports", []))


def test_there_is_more_time_than_the_drain_takes(things):
    config = tomllib.loads(things.config())
    units = {"ms": 0.001, "s": 1, "m": 60, "h": 3600, "d": 86400}
    drain = sum(int(number) * units[unit] for number, unit in re.findall(r"([0-9]+)(ms|s|m|h|d)", config["drain_timeout"]))
    assert things.pod["spec"]["terminationGracePeriodSeconds"] > drain


def test_probes_ask_for_what_they_are_for(things):
    """A full disk makes a pod not ready; to kill it for that would make no disk larger."""
    path = {probe: things.container[probe]["httpGet"]["path"] for probe in ("startupProbe", "livenessProbe", "readinessProbe")}
    assert path == {"startupProbe": "/healthz", "livenessProbe": "/healthz", "readinessProbe": "/readyz"}
    startup, liveness = things.container["startupProbe"], things.container["livenessProbe"]
    assert startup["periodSeconds"] * startup["failureThreshold"] >= 600, "recovery may take minutes"
    assert liveness["periodSeconds"] * liveness["failureThreshold"] >= 60


def test_a_pod_that_is_not_ready_can_be_evicted(things):
    """By default a budget counts a single pod that is not ready as one too few, and keeps it on its node for ever."""
    for budget in things.of("PodDisruptionBudget"):
        allowed = budget["spec"]["maxUnavailable"] > 0
        assert (budget["spec"].get("unhealthyPodEvictionPolicy") == "AlwaysAllow") == allowed


def test_what_the_network_policy_lets_through(things):
    for policy in things.of("NetworkPolicy"):
        spec = policy["spec"]
        assert sorted(spec["policyTypes"]) == ["Egress", "Ingress"]
        dns, mail = spec["egress"]
        assert set(dns) == set(mail) == {"ports"}
        both = {(port["port"], protocol) for port in dns["ports"] for protocol in ("TCP", "UDP")}
        assert {(port["port"], port["protocol"]) for port in dns["ports"]} == both
        assert all(port.get("protocol", "TCP") == "TCP" for port in mail["ports"])
        names = [{port["port"] for port in rule["ports"]} for rule in spec["ingress"]]
        doors = {port["name"] for port in things.container["ports"]} - {"metrics", "admin"}
        assert names[:2] == [doors, {"metrics"}] and names[2:] in ([], [{"admin"}])
        assert spec["ingress"][0]["from"], "no peer would be everyone"
        assert all(rule["from"] for rule in spec["ingress"][2:]), "the admin API is for nobody else"


def test_nobody_may_submit_where_no_client_is_named():
    done = render("helm4", "trusted", values={"networkPolicy": {"clients": []}})
    things = Objects(parse(done.stdout))
    (only,) = things.one("NetworkPolicy")["spec"]["ingress"][0]["from"]
    assert only["podSelector"]["matchLabels"]["app.kubernetes.io/component"] == "test"


def test_no_variables_of_other_services(things):
    """A Service called postrider would give the pod POSTRIDER_PORT and more, which nobody meant for it."""
    for spec in [things.pod["spec"], *(test["spec"] for test in things.tests)]:
        assert spec["enableServiceLinks"] is False


def test_smart_hosts_may_be_reached(things):
    config = tomllib.loads(things.config())
    for policy in things.of("NetworkPolicy"):
        dns, mail = ({port["port"] for port in rule["ports"]} for rule in policy["spec"]["egress"])
        wanted = {config.get("delivery", {}).get("port", 25)}
        for smart_host in config.get("smart_host", []):
            default = 465 if smart_host.get("tls") == "implicit" else 587 if "user" in smart_host else 25
            wanted |= {host.get("port", default) for host in smart_host["hosts"]}
        assert mail == wanted
        servers = config.get("dns", {}).get("servers", [])
        assert dns == {53} | {int(server.rsplit(":", 1)[1]) for server in servers if re.search(r"(^[^:]*|\]):[0-9]+$", server)}


def test_admin_on_loopback_is_for_port_forwards_alone():
    done = render("helm4", "full", values={"config": {"admin": {"address": "127.0.0.1:8081"}}})
    assert done.returncode == 0, done.stderr
    things = Objects(parse(done.stdout))
    assert "admin" not in {port["name"] for port in things.container["ports"]}
    assert not [thing for thing in things.of("Service") if thing["metadata"]["name"].endswith("-admin")]
    assert "admin" not in {port["port"] for rule in things.one("NetworkPolicy")["spec"]["ingress"] for port in rule["ports"]}


# Another value for each that values.yaml has, outside of `config`, on top of full-values.yaml and of this.
PLAIN = {"image": {"digest": ""}, "service": {"loadBalancerClass": "", "loadBalancerSourceRanges": []}, "trustedService": {"type": "LoadBalancer"}}
PEER = [{"podSelector": {"matchLabels": {"other": "yes"}}}]
OTHERS = {
    "replicas": 0,
    "image.repository": "other",
    "image.tag": "2.0",
    "image.digest": f"sha256:{'1' * 64}",
    "image.pullPolicy": "Always",
    "imagePullSecrets": [{"name": "other"}],
    "secrets": {"tls": "other"},
    "secretEnvironment": {"OTHER": {"name": "other", "key": "other"}},
    "persistence.size": "1Gi",
    "persistence.storageClass": "other",
    "persistence.accessModes": ["ReadWriteOncePod"],
    "persistence.annotations": {"a": "b"},
    **{f"{service}.{key}": value for service in ("service", "trustedService") for key, value in {
        "type": "NodePort",
        "annotations": {"a": "b"},
        "ipFamilyPolicy": "PreferDualStack",
        "loadBalancerClass": "other",
        "loadBalancerSourceRanges": ["192.0.2.0/24"],
    }.items()},
    "service.externalTrafficPolicy": "Cluster",
    "trustedService.externalTrafficPolicy": None,  # what else there is would be refused
    "resources.requests.cpu": "2",
    "resources.requests.memory": "2Gi",
    "resources.limits.memory": "8Gi",
    "serviceAccount.create": False,
    "serviceAccount.name": "other",
    "serviceAccount.annotations": {"a": "b"},
    "podDisruptionBudget.enabled": False,
    "podDisruptionBudget.maxUnavailable": 1,
    "networkPolicy.enabled": False,
    "networkPolicy.clients": PEER,
    "networkPolicy.monitoring": PEER,
    "networkPolicy.operators": PEER,
    "serviceMonitor.enabled": False,
    "serviceMonitor.labels": {"a": "b"},
    "serviceMonitor.interval": "1m",
    "prometheusRule.enabled": False,
    "prometheusRule.labels": {"a": "b"},
    "dashboard.enabled": False,
    "dashboard.labels.grafana_dashboard": "2",
    "test.from": "other@example.com",
    "test.to": "other@example.com",
    "test.user": "other",
    "test.passwordSecret.name": "other",
    "test.passwordSecret.key": "other",
    "test.caSecret.name": "other",
    "test.caSecret.key": "other",
    "terminationGracePeriodSeconds": 300,
    "podAnnotations": {"a": "b"},
    "podLabels": {"a": "b"},
    "nodeSelector": {"a": "b"},
    "tolerations": [{"key": "other", "operator": "Exists"}],
    "affinity": {"podAntiAffinity": {}},
    "topologySpreadConstraints": [],
    "priorityClassName": "low",
    "nameOverride": "other",
    "fullnameOverride": "other",
}


def test_every_value_does_something():
    values = yaml.safe_load((CHART / "values.yaml").read_text(encoding="utf-8"))
    assert set(OTHERS) == {".".join(path) for path, _ in generate.leaves(values) if path[0] != "config"}

    def rendered(*more):
        done = render("helm4", "full", *more, values=PLAIN)
        assert done.returncode == 0, done.stderr
        return parse(done.stdout)

    before = rendered()
    for key, other in OTHERS.items():
        if other is not None:
            # A map is merged with what is there.
            parts = {f"{key}.{inner}": value for inner, value in other.items()} if isinstance(other, dict) else {key: other}
            settings = [word for at, value in parts.items() for word in ("--set-json", f"{at}={json.dumps(value)}")]
            assert rendered(*settings) != before, f"{key} does nothing"


@pytest.mark.parametrize("kind", ["LoadBalancer", "NodePort"])
def test_a_trusted_listener_outside_has_what_it_was_let_out_by(kind):
    """The policy is asked for, and it is what the cluster is told."""
    done = render("helm4", "trusted", values={"trustedService": {"type": kind, "externalTrafficPolicy": "Local"}})
    (service,) = (thing for thing in parse(done.stdout) if thing["kind"] == "Service" and thing["metadata"]["name"].endswith("-trusted"))
    assert (service["spec"]["type"], service["spec"]["externalTrafficPolicy"]) == (kind, "Local")


@pytest.mark.parametrize("version", HELMS)
def test_the_checksum_follows_the_configuration(version):
    def checksum(*settings):
        done = render(version, "minimal", *settings)
        assert done.returncode == 0, done.stderr
        return Objects(parse(done.stdout)).pod["metadata"]["annotations"]["checksum/config"]

    before = checksum()
    assert checksum("--set", "config.log.level=debug") != before
    assert checksum("--set", "resources.limits.memory=3Gi") == before
