"""The chart by itself: Helm's own lint, both Helms, Kubernetes' schemas, the Prometheus operator's types."""

import json
import os
import re
import subprocess
import tomllib

import generate
import pytest
import yaml
from chart import CHART, CI, HELMS, LONG_RELEASE, NAMESPACE, RELEASE, REPO, TOOLS, helm, objects, parse, render, text_of, values_file, values_of

KUBERNETES = ("1.27", "1.31", "1.37")


def test_the_versions_are_the_programs():
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text(encoding="utf-8"))
    cargo = tomllib.loads((REPO / "Cargo.toml").read_text(encoding="utf-8"))
    version = cargo["workspace"]["package"]["version"]
    assert (chart["version"], chart["appVersion"]) == (version, version)


def test_helms_are_3_and_4():
    assert [helm(version, "version", "--short").stdout[:3] for version in HELMS] == ["v3.", "v4."]


@pytest.mark.parametrize("name", CI)
@pytest.mark.parametrize("version", HELMS)
def test_lint(version, name):
    done = helm(version, "lint", "--strict", str(CHART), "--values", values_file(name))
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("release", [RELEASE, LONG_RELEASE])
@pytest.mark.parametrize("name", CI)
def test_helm_3_and_4_render_the_same(name, release):
    three, four = (parse(text_of(version, name, release)) for version in HELMS)
    key = lambda thing: (thing["kind"], thing["metadata"]["name"])
    assert sorted(three, key=key) == sorted(four, key=key)


@pytest.mark.parametrize("kubernetes", KUBERNETES)
@pytest.mark.parametrize("name", CI)
def test_kubernetes_takes_it(name, kubernetes, tmp_path):
    file = tmp_path / "rendered.yaml"
    file.write_text(text_of("helm4", name), encoding="utf-8")
    done = subprocess.run(
        [TOOLS / "python" / "bin" / "kubernetes-validate", "--strict", "-k", kubernetes, file],
        capture_output=True, text=True, timeout=60, check=False,
    )
    said = done.stdout + done.stderr
    assert done.returncode == 0, said
    passed = len(re.findall("^INFO .* passed for resource", said, flags=re.M))
    operators = [thing for thing in objects("helm4", name) if thing["apiVersion"].startswith("monitoring.coreos.com/")]
    assert passed == len(objects("helm4", name)) - len(operators), said


def of_the_operator(things):
    return subprocess.run(
        ["node", REPO / "tests" / "helm" / "operator.mjs"],
        input=json.dumps(things), env={**os.environ, "MODULES": str(TOOLS / "npm" / "node_modules")},
        capture_output=True, text=True, timeout=60, check=False,
    )


def operator_objects():
    full = objects("helm4", "full")
    return [full.one("ServiceMonitor"), full.one("PrometheusRule")]


def test_the_operator_takes_its_objects():
    done = of_the_operator(operator_objects())
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_operator_refuses_mistakes():
    def wrong_type(monitor, rule):
        monitor["spec"]["endpoints"][0]["port"] = 9464

    def unknown_key(monitor, rule):
        monitor["spec"]["endpoints"][0]["intervall"] = "1m"

    def rule_without_expression(monitor, rule):
        del rule["spec"]["groups"][0]["rules"][0]["expr"]

    for mistake in (wrong_type, unknown_key, rule_without_expression):
        things = operator_objects()
        mistake(*things)
        done = of_the_operator(things)
        assert done.returncode == 1, f"{mistake.__name__}: {done.stdout}{done.stderr}"


def test_what_is_made_is_as_made():
    assert generate.main(write=False) == []


def test_the_readme_tells_of_every_value():
    values = yaml.safe_load((CHART / "values.yaml").read_text(encoding="utf-8"))
    text = (CHART / "README.md").read_text(encoding="utf-8")
    told = re.findall(r"^\| `([^`]+)` \| (?!\|)(?:`(.+?)`)? *\| ", text, flags=re.M)
    wanted = {".".join(path): default for path, default in generate.leaves(values)}
    assert {key for key, _ in told} == set(wanted)
    for key, default in told:
        assert (json.loads(default.replace("\\|", "|")) if default else "") == (wanted[key] if wanted[key] is not None else ""), key


@pytest.mark.parametrize("name", CI)
@pytest.mark.parametrize("version", HELMS)
def test_the_toml_says_what_the_values_say(version, name):
    wanted = values_of(name)["config"]
    said = tomllib.loads(objects(version, name).config())
    assert said == wanted

    def same_kinds(left, right):
        if isinstance(left, dict):
            for key in left:
                same_kinds(left[key], right[key])
        elif isinstance(left, list):
            for one, other in zip(left, right, strict=True):
                same_kinds(one, other)
        elif not (isinstance(left, float) and left.is_integer()):
            assert type(left) is type(right), (left, right)

    same_kinds(wanted, said)


def test_numbers_of_every_origin_are_written_as_they_are():
    done = render(
        "helm3", "minimal", "--set", "config.store.max_messages=7000000", "--set", "config.submission.max_in_flight=300000000",
        "--set-json", "config.delivery.retry.jitter=0.05", values={"config": {"delivery": {"max_connections": 123456789}}},
    )
    assert done.returncode == 0, done.stderr
    (text,) = (thing["data"]["postrider.toml"] for thing in parse(done.stdout) if "postrider.toml" in thing.get("data", {}))
    said = tomllib.loads(text)
    found = (said["store"]["max_messages"], said["submission"]["max_in_flight"], said["delivery"]["retry"]["jitter"], said["delivery"]["max_connections"])
    assert found == (7_000_000, 300_000_000, 0.05, 123_456_789)
    assert [type(number) for number in found] == [int, int, float, int]


@pytest.mark.parametrize("name", CI)
def test_the_notes_tell_the_next_three_commands(name):
    """By Helm 4; Helm 3 shows notes of nothing but a cluster."""
    done = helm(
        "helm4", "install", RELEASE, str(CHART), "--namespace", NAMESPACE, "--values", values_file(name), "--dry-run=client"
    )
    assert done.returncode == 0, done.stderr
    notes = done.stdout.split("\nNOTES:\n")[1]
    rollout, test, execute = (
        line.split("#")[0].split() for line in notes.splitlines() if re.match("  (kubectl|helm) ", line)
    )
    things = objects("helm4", name)
    relay = things.one("StatefulSet")["metadata"]["name"]
    assert rollout == ["kubectl", "--namespace", NAMESPACE, "rollout", "status", f"statefulset/{relay}"]
    assert test == ["helm", "test", RELEASE, "--namespace", NAMESPACE]
    assert execute == ["kubectl", "--namespace", NAMESPACE, "exec", f"{relay}-0", "--", "postrider", "queue", "list"]
    doors = {(thing["metadata"]["name"], port["port"]) for thing in things.of("Service") for port in thing["spec"]["ports"]}
    told = re.findall(rf"^  (\S+)\.{NAMESPACE}:(\d+)", notes, flags=re.M)
    assert told and {(name, int(port)) for name, port in told} <= doors
