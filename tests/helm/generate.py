"""What of the chart is made from something else: the table of values in its README from values.yaml, and what its schema says of
`config` from docs/reference.md, which is made from the program. `generate.py --write` writes them, `generate.py` tells whether they
are as they should be.
"""

import json
import pathlib
import re
import sys

import yaml

REPO = pathlib.Path(__file__).resolve().parents[2]
CHART = REPO / "helm" / "postrider"
README, SCHEMA, VALUES = CHART / "README.md", CHART / "values.schema.json", CHART / "values.yaml"
BEGIN, END = "<!-- values: made by tests/helm/generate.py -->\n", "<!-- end of values -->\n"


# --- the table of values ---


def leaves(value, path=()):
    """Each value that is no map, or an empty one, by its path."""
    if isinstance(value, dict) and value:
        for key, inner in value.items():
            yield from leaves(inner, (*path, key))
    else:
        yield path, value


def comments(text):
    """The comment above each key of a values file, by its path."""
    found, above, stack = {}, [], []
    for line in text.splitlines():
        stripped = line.strip()
        if stripped.startswith("#"):
            above.append(stripped.lstrip("# "))
            continue
        key = re.match(r"( *)([A-Za-z0-9_]+):", line)
        if key and not stripped.startswith("-"):
            depth = len(key[1])
            stack = [(at, name) for at, name in stack if at < depth] + [(depth, key[2])]
            found[tuple(name for _, name in stack)] = " ".join(above)
        above = []
    return found


def table():
    text = VALUES.read_text(encoding="utf-8")
    said = comments(text)
    rows, told = [], set()
    for path, default in leaves(yaml.safe_load(text)):
        # A map's own comment is told before the first of its keys.
        for depth in range(1, len(path)):
            if path[:depth] not in told:
                told.add(path[:depth])
                if said.get(path[:depth]):
                    rows.append(f"| `{'.'.join(path[:depth])}` | | {cell(said[path[:depth]])} |")
        shown = "" if default in ("", None) else f"`{cell(json.dumps(default))}`"
        rows.append(f"| `{'.'.join(path)}` | {shown} | {cell(said.get(path, ''))} |")
    return "| value | default | meaning |\n|---|---|---|\n" + "\n".join(rows) + "\n"


def cell(text):
    return text.replace("|", "\\|")


def readme():
    text = README.read_text(encoding="utf-8")
    before, rest = text.split(BEGIN)
    _, after = rest.split(END)
    return f"{before}{BEGIN}{table()}{END}{after}"


# --- the schema of `config` ---


def reference():
    """Each key of the configuration as (table, key, an example), in docs/reference.md's order."""
    text = (REPO / "docs" / "reference.md").read_text(encoding="utf-8")
    section = text.split("\n## Configuration\n")[1].split("\n## ")[0]
    for part in re.split(r"^### ", section, flags=re.M)[1:]:
        name, _, rows = part.partition("\n")
        for key, example in re.findall(r"^\| `([^`]+)` \| (?:e\.g\. )?`(.*?)` \|", rows, flags=re.M):
            yield name.strip(), key, example


def type_of(example):
    """What a value may be, told from its example. A size is written as text, or as a number of octets; spans and sizes as
    `duration` and `size` of relay/src/config/section.rs read them."""
    if example.startswith("["):
        inner = {"type": "object"} if example.startswith("[{") else {"type": "string"}
        if '}, "' in example:
            # A name stands for a table that says nothing else.
            inner = {"type": ["object", "string"]}
        return {"type": "array", "items": inner}
    if example.startswith('"'):
        if re.fullmatch(r'"[0-9]+[KMG]iB"', example):
            return {"type": ["string", "integer"], "pattern": "^[0-9]+ *(B|[KMG]iB|[kKMG]B)?$", "minimum": 0}
        if re.fullmatch(r'"([0-9]+(ms|s|m|h|d))+"', example):
            return {"type": "string", "pattern": "^([0-9]+(ms|s|m|h|d))+$"}
        return {"type": "string"}
    if example in ("true", "false"):
        return {"type": "boolean"}
    return {"type": "number" if "." in example else "integer"}


def config_schema():
    """Tables by their names: `NAME` stands for any, `[]` for a list of them."""

    def closed():
        return {"type": "object", "additionalProperties": False, "properties": {}}

    root = closed()
    for name, key, example in reference():
        at = root
        steps = [] if name == "(top)" else name.split(".")
        for step, following in zip(steps, [*steps[1:], None]):
            if step == "NAME":
                at = at["additionalProperties"]
            elif following == "NAME":
                at = at["properties"].setdefault(step, {"type": "object", "additionalProperties": closed()})
            elif step.endswith("[]"):
                at = at["properties"].setdefault(step.removesuffix("[]"), {"type": "array", "items": closed()})["items"]
            else:
                at = at["properties"].setdefault(step, closed())
        at["properties"][key] = type_of(example)
    # Tables that the templates look into: nobody takes them away by a null.
    root["required"] = ["metrics", "store"]
    # Its example is one, and it may be several.
    root["properties"]["route"]["items"]["properties"]["fallback"] = {
        "type": ["string", "array"],
        "items": {"type": "string"},
    }
    # The template's own check tells more of it.
    del root["properties"]["drain_timeout"]["pattern"]
    return root


def schema():
    whole = json.loads(SCHEMA.read_text(encoding="utf-8"))
    whole["properties"]["config"] = {
        "description": "postrider.toml as YAML; made from docs/reference.md by tests/helm/generate.py",
        **config_schema(),
    }
    return json.dumps(whole, indent=2, ensure_ascii=False) + "\n"


def main(write):
    stale = []
    for file, wanted in ((README, readme()), (SCHEMA, schema())):
        if file.read_text(encoding="utf-8") != wanted:
            stale.append(str(file.relative_to(REPO)))
            if write:
                file.write_text(wanted, encoding="utf-8")
    return stale


if __name__ == "__main__":
    stale = main("--write" in sys.argv)
    if stale and "--write" not in sys.argv:
        sys.exit(f"not as made: {', '.join(stale)}; python3 tests/helm/generate.py --write")
