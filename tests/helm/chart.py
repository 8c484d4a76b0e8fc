"""What the checks of the chart share: Helm, what it renders, and values to render with.

HELM_TOOLS is the folder that tests/helm/fetch prints, POSTRIDER the program.
"""

import functools
import os
import pathlib
import subprocess
import tempfile

import yaml

REPO = pathlib.Path(__file__).resolve().parents[2]
CHART = REPO / "helm" / "postrider"
CI = sorted(path.name.removesuffix("-values.yaml") for path in (CHART / "ci").glob("*-values.yaml"))
TOOLS = pathlib.Path(os.environ["HELM_TOOLS"])
HELMS = ("helm3", "helm4")
RELEASE, NAMESPACE = "mail", "post"
# Helm allows 53 characters.
LONG_RELEASE = "a-very-long-name-that-somebody-gave-to-a-release-1234"
assert CI, "no values to render with"


def helm(version, *arguments):
    """Runs Helm, away from whatever it is set to on this machine; returns the finished process."""
    with tempfile.TemporaryDirectory() as empty:
        environment = {"PATH": os.environ["PATH"], "HOME": empty, "KUBECONFIG": os.path.join(empty, "none")}
        return subprocess.run(
            [TOOLS / "bin" / version, *arguments], env=environment, capture_output=True, text=True, timeout=60, check=False
        )


def values_file(name):
    return str(CHART / "ci" / f"{name}-values.yaml")


def render(version, name, *settings, release=RELEASE, values=None):
    """`helm template` over a file of ci/, with further settings or values; returns the finished process."""
    with tempfile.TemporaryDirectory() as folder:
        more = []
        if values is not None:
            file = os.path.join(folder, "values.yaml")
            with open(file, "w", encoding="utf-8") as out:
                yaml.safe_dump(values, out)
            more = ["--values", file]
        return helm(
            version, "template", release, str(CHART), "--namespace", NAMESPACE, "--values", values_file(name), *more, *settings
        )


@functools.cache
def text_of(version, name, release=RELEASE):
    done = render(version, name, release=release)
    assert done.returncode == 0, done.stderr
    return done.stdout


def parse(text):
    return [thing for thing in yaml.safe_load_all(text) if thing is not None]


class Objects(list):
    """What is rendered."""

    def of(self, kind):
        return [thing for thing in self if thing["kind"] == kind]

    def one(self, kind):
        (only,) = self.of(kind)
        return only

    @property
    def pod(self):
        """The template of the relay's pods."""
        return self.one("StatefulSet")["spec"]["template"]

    @property
    def container(self):
        (only,) = self.pod["spec"]["containers"]
        return only

    @property
    def tests(self):
        return self.of("Pod")

    def config(self):
        """The text of postrider.toml."""
        (text,) = (thing["data"]["postrider.toml"] for thing in self.of("ConfigMap") if "postrider.toml" in thing["data"])
        return text


def objects(version, name, release=RELEASE):
    return Objects(parse(text_of(version, name, release)))


def values_of(name):
    """The chart's values with those of a file in ci/, merged as Helm does: a null takes a key away."""

    def merge(base, over):
        if not (isinstance(base, dict) and isinstance(over, dict)):
            return over
        merged = {**base}
        for key, value in over.items():
            if value is None:
                merged.pop(key, None)
            else:
                merged[key] = merge(base.get(key), value)
        return merged

    base = yaml.safe_load((CHART / "values.yaml").read_text(encoding="utf-8"))
    over = yaml.safe_load((CHART / "ci" / f"{name}-values.yaml").read_text(encoding="utf-8"))
    return merge(base, over)
