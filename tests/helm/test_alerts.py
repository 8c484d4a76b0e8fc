"""Alert rules and the dashboard: promtool's tests of the rules, and every query run by a Prometheus that has scraped the relay in the lab."""

import json
import re
import shutil
import subprocess
import urllib.parse

import lib
import pytest
import yaml
from chart import CHART, REPO, TOOLS, objects

RULES, DASHBOARD = CHART / "files" / "alerts.yaml", CHART / "files" / "dashboard.json"
CASES = REPO / "tests" / "helm" / "alerts_test.yaml"


def rules():
    return [rule for group in yaml.safe_load(RULES.read_text(encoding="utf-8"))["groups"] for rule in group["rules"]]


def queries():
    """Each panel's queries, with its title."""
    for panel in json.loads(DASHBOARD.read_text(encoding="utf-8"))["panels"]:
        for target in panel.get("targets", []):
            yield f"{panel['title']}: {target['refId']}", target["expr"]


def reference():
    text = (REPO / "docs" / "reference.md").read_text(encoding="utf-8")
    return dict(re.findall(r"^\| `((?:postrider|process)_[a-z_]+)` \| (\w+) \|", text, flags=re.M))


def promtool(*arguments, **options):
    return subprocess.run(
        [TOOLS / "bin" / "promtool", *arguments], capture_output=True, text=True, timeout=60, check=False, **options
    )


# --- the rules ---


@pytest.fixture
def folder(tmp_path):
    for file in (RULES, CASES):
        shutil.copy(file, tmp_path)
    return tmp_path


def test_promtools_tests_of_the_rules(folder):
    for command in (("check", "rules", "--lint-fatal", RULES.name), ("test", "rules", CASES.name)):
        done = promtool(*command, cwd=folder)
        assert done.returncode == 0, done.stdout + done.stderr


def test_every_rule_has_a_case_that_fires_and_one_that_does_not():
    fires, silent = set(), set()
    for case in yaml.safe_load(CASES.read_text(encoding="utf-8"))["tests"]:
        expected = [(test["alertname"], bool(test["exp_alerts"])) for test in case["alert_rule_test"]]
        (name,) = {name for name, _ in expected}
        assert case["name"].startswith(name)
        assert len(case["input_series"]) > 0
        (fires if any(fired for _, fired in expected) else silent).add(name)
    names = {rule["alert"] for rule in rules()}
    assert fires == silent == names and len(names) == len(rules()) >= 5


@pytest.mark.parametrize("rule", [rule["alert"] for rule in rules()])
def test_each_part_of_a_rule_is_needed(rule, folder):
    """The cases notice a rule that fires always, one that never does, and one that fires at once."""
    text = RULES.read_text(encoding="utf-8")
    of_rule = next(one for one in rules() if one["alert"] == rule)
    cases = yaml.safe_load((folder / CASES.name).read_text(encoding="utf-8"))
    cases["tests"] = [case for case in cases["tests"] if case["name"].startswith(rule)]
    (folder / CASES.name).write_text(yaml.safe_dump(cases), encoding="utf-8")
    for change in ({"expr": "vector(1)"}, {"expr": "vector(1) < 0"}, {"for": "0s"} if "for" in of_rule else {"expr": "vector(0)"}):
        whole = yaml.safe_load(text)
        for group in whole["groups"]:
            for one in group["rules"]:
                if one["alert"] == rule:
                    one.update(change)
        (folder / RULES.name).write_text(yaml.safe_dump(whole), encoding="utf-8")
        done = promtool("test", "rules", CASES.name, cwd=folder)
        assert done.returncode != 0, f"{rule} with {change}: nobody noticed"


def test_every_rule_has_its_runbook():
    text = (REPO / "docs" / "alerts.md").read_text(encoding="utf-8")
    for rule in rules():
        assert f"\n## {rule['alert']}\n" in text
        assert f"docs/alerts.md#{rule['alert'].lower()}" in rule["annotations"]["description"]
        section = text.split(f"\n## {rule['alert']}\n")[1].split("\n## ")[0]
        for part in ("**Means**", "**Look at**", "**Do**"):
            assert part in section, f"{rule['alert']}: {part}"


def test_the_chart_ships_these_rules_and_this_dashboard():
    full = objects("helm4", "full")
    assert full.one("PrometheusRule")["spec"] == yaml.safe_load(RULES.read_text(encoding="utf-8"))
    (text,) = (thing["data"]["postrider.json"] for thing in full.of("ConfigMap") if "postrider.json" in thing["data"])
    assert json.loads(text) == json.loads(DASHBOARD.read_text(encoding="utf-8"))


def test_every_metric_is_the_programs():
    known = reference()
    asked = [rule["expr"] for rule in rules()] + [query for _, query in queries()]
    for expression in asked:
        for name in re.findall(r"\b(?:postrider|process)_[a-z_]+", expression):
            plain = re.sub(r"_(bucket|sum|count)$", "", name)
            assert name in known or known.get(plain) == "histogram", name
            if re.search(rf"(rate|increase)\({name}", expression):
                assert known.get(name, known.get(plain)) in ("counter", "histogram"), f"a rate of {name}"


def test_the_dashboard_is_in_order():
    panels = json.loads(DASHBOARD.read_text(encoding="utf-8"))["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    taken = set()
    for panel in panels:
        at = panel["gridPos"]
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert at["x"] + at["w"] <= 24 and not cells & taken, panel["title"]
        taken |= cells
    for title, query in queries():
        assert query.count('job=~"$job", instance=~"$instance"') == len(re.findall(r"\b(?:postrider|process)_[a-z_]+", query)), title


def test_a_relay_that_is_gone_shows_no_nought():
    for title, query in queries():
        assert "vector(" not in query, title


# --- in the lab ---


@pytest.fixture(scope="module")
def prometheus(lab, tmp_path_factory):
    """Debian's Prometheus, scraping the lab's relay every quarter of a second; yields what asks it."""
    folder = tmp_path_factory.mktemp("prometheus")
    shutil.copy(RULES, folder)
    port = lib.free_port()
    config = {
        "global": {"scrape_interval": "250ms", "scrape_timeout": "250ms", "evaluation_interval": "1s"},
        "rule_files": [RULES.name],
        "scrape_configs": [{"job_name": "postrider", "static_configs": [{"targets": [lab.at["metrics"]]}]}],
    }
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config), encoding="utf-8")
    with open(folder / "log", "wb") as log:
        server = subprocess.Popen(
            [
                TOOLS / "bin" / "prometheus", f"--config.file={folder}/prometheus.yml", f"--storage.tsdb.path={folder}/data",
                f"--web.listen-address=127.0.0.1:{port}",
            ],
            stdin=subprocess.DEVNULL, stdout=log, stderr=log,
        )

    def ask(path, **parameters):
        assert server.poll() is None, (folder / "log").read_text(encoding="utf-8")
        try:
            status, body = lib.get(f"127.0.0.1:{port}", f"/api/v1/{path}?{urllib.parse.urlencode(parameters)}")
        except OSError:
            return None
        if status == 503:
            return None
        answer = json.loads(body)
        assert answer["status"] == "success", f"{parameters}: {answer}"
        return answer["data"]

    lib.wait_for(lambda: (ask("query", query="up == 1") or {}).get("result"), "Prometheus has scraped the relay")
    yield ask
    server.terminate()
    try:
        server.wait(30)
    except subprocess.TimeoutExpired:
        server.kill()
        server.wait()


def test_the_metrics_are_as_they_should_be(lab):
    text = lib.get(lab.at["metrics"], "/metrics")[1].decode()
    assert "postrider_accepting 1" in text
    done = promtool("check", "metrics", input=text)
    assert done.returncode == 0 and not done.stdout + done.stderr, done.stdout + done.stderr
    broken = promtool("check", "metrics", input="# TYPE postrider_mails counter\npostrider_mails 1\n")
    assert broken.returncode != 0, "the control"


def test_every_panel_shows_something(lab, prometheus):
    # Something of everything, after the first scrape: a delivery, a failure with its report, a deferral, a message that waits, a login
    # that fails, a sender that is refused, one that is over a rate.
    body = f"From: {lab.sender}\r\nTo: a@ok.test\r\nSubject: x\r\n\r\nx\r\n".encode()
    lab.submit(["a@ok.test", "nobody@reject.test", "b@greylist.test", "c@dead.test"], body)
    with lab.client(login=False) as client, pytest.raises(lib.smtplib.SMTPAuthenticationError):
        client.login("app", "a wrong password")
    with lab.client() as client, pytest.raises(lib.smtplib.SMTPSenderRefused):
        client.sendmail("somebody@else.test", ["a@ok.test"], body)
    with open(f"{lab.at['dir']}/postrider.toml", "a", encoding="utf-8") as config:
        config.write('[submission.rates]\naddress_messages = "1/day"\n')
    assert lab.command("reload")[0] == 0
    lab.submit(["a@ok.test"], body)
    with lab.client() as client, pytest.raises(lib.smtplib.SMTPSenderRefused, match="4.7.1"):
        client.sendmail(lab.sender, ["a@ok.test"], body)
    lab.arrived("a@ok.test", 2)
    lab.arrived(lab.sender)
    empty = {}

    def shown(title, query):
        for variable, value in (("$job", ".*"), ("$instance", ".*"), ("$__rate_interval", "1m")):
            query = query.replace(variable, value)
        # What a relay without such data shows would be shown of a query that is wrong, too.
        result = prometheus("query", query=query.split(" or 0 * ")[0])["result"]
        empty[title] = [series["metric"] for series in result]
        return result and all(series["value"][1] not in ("NaN", "+Inf") for series in result)

    asked = 0
    for title, query in queries():
        asked += 1
        try:
            lib.wait_for(lambda: shown(title, query), title)
        except AssertionError as error:
            raise AssertionError(f"{title}: {query}: {empty[title]}") from error
    assert asked > 30


def test_prometheus_takes_the_rules(prometheus):
    def healthy():
        found = [rule for group in prometheus("rules")["groups"] for rule in group["rules"]]
        return len(found) == len(rules()) and all(rule["health"] == "ok" for rule in found)

    lib.wait_for(healthy, "every rule has been evaluated")
