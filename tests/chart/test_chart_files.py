"""The chart's files themselves: one version, values that explain themselves, alerts and panels about metrics that exist."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from lmd_operator.api.status import Condition, ConditionType, Status
from lmd_operator.runtime.metrics import Metrics
from lmd_operator.version import VERSION

ROOT = Path(__file__).parents[2]
CHART = ROOT / "charts" / "lmd-operator"
VALUES_TEXT = (CHART / "values.yaml").read_text()
VALUES = yaml.safe_load(VALUES_TEXT)
SCHEMA = json.loads((CHART / "values.schema.json").read_text())
ALERTS = [rule for group in yaml.safe_load((CHART / "files" / "alerts.yaml").read_text())["groups"] for rule in group["rules"]]
DASHBOARD = json.loads((CHART / "files" / "dashboard.json").read_text())


def test_there_is_one_version() -> None:
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    assert (chart["version"], chart["appVersion"]) == (VERSION, VERSION)


def test_the_chart_has_the_crd_that_is_generated() -> None:
    assert (CHART / "files" / "crd.yaml").read_bytes() == (ROOT / "crds" / "largemodel.dev_largemodeldeployments.yaml").read_bytes()


# ---- values


def test_every_value_is_explained() -> None:
    lines = VALUES_TEXT.splitlines()
    quantities = {"requests", "limits", "cpu", "memory", "grafana_dashboard"}
    silent = [
        line.strip()
        for number, line in enumerate(lines)
        if (key := re.match(r" *([A-Za-z_]+):", line)) and key[1] not in quantities and not lines[number - 1].lstrip().startswith("# ")
    ]
    assert silent == []


def test_defaults_fit_the_schema() -> None:
    jsonschema.Draft7Validator.check_schema(SCHEMA)
    jsonschema.validate(VALUES, SCHEMA)


def objects(values: dict[str, Any], schema: dict[str, Any], path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], dict[str, Any]]]:
    """Every object of the schema that names its keys, and where it is."""
    if "$ref" in schema:
        schema = SCHEMA["definitions"][schema["$ref"].rsplit("/", 1)[1]]
    if "properties" in schema:
        yield path, schema
        for name, inner in schema["properties"].items():
            yield from objects(values.get(name, {}) if isinstance(values, dict) else {}, inner, (*path, name))


@pytest.mark.parametrize("path", [".".join(path) for path, _ in objects(VALUES, SCHEMA)])
def test_unknown_keys_are_refused(path: str) -> None:
    values = copy.deepcopy(VALUES)
    place = values
    for name in path.split(".") if path else []:
        place = place[name]
    place["tyop"] = 1
    with pytest.raises(jsonschema.ValidationError, match="'tyop' was unexpected"):
        jsonschema.validate(values, SCHEMA)


def test_schema_and_values_have_the_same_keys() -> None:
    for path, schema in objects(VALUES, SCHEMA):
        place = VALUES
        for name in path:
            place = place[name]
        assert set(schema["properties"]) - {"global"} == set(place), path


# ---- metrics


def samples() -> dict[str, set[str]]:
    """Every series the operator can have, with its labels."""
    metrics = Metrics()
    for collector in vars(metrics).values():
        if getattr(collector, "_labelnames", ()):
            collector.labels(*collector._labelnames)
    condition = Condition(
        type="Ready", status="True", reason="ReplicasReady", message="", observed_generation=1, last_transition_time="2026-01-01T00:00:00Z"
    )
    metrics.tell_of(lambda: [(("prod", "llama"), Status(conditions=[condition]))])
    found = {sample.name: set(sample.labels) for family in metrics.registry.collect() for sample in family.samples}
    return {name: labels for name, labels in found.items() if not name.endswith("_created")}


SERIES = samples()
TARGET_LABELS = {"namespace", "pod", "job", "instance"}


def expressions() -> Iterator[Any]:
    for rule in ALERTS:
        yield pytest.param(rule["expr"], id=rule["alert"])
    for panel in DASHBOARD["panels"]:
        for target in panel["targets"]:
            yield pytest.param(target["expr"], id=f"{panel['title']}-{target['refId']}")
    yield pytest.param(DASHBOARD["templating"]["list"][1]["query"], id="namespaces")


@pytest.mark.parametrize("expression", list(expressions()))
def test_queries_ask_for_metrics_and_labels_that_exist(expression: str) -> None:
    names = re.findall(r"\blmd_operator_\w+", expression)
    assert names
    assert set(names) <= set(SERIES)
    for name, selector in re.findall(r"\b(lmd_operator_\w+)\{([^}]*)\}", expression):
        assert set(re.findall(r"(\w+)\s*[=!]~?", re.sub(r'"[^"]*"', '""', selector))) <= SERIES[name] | TARGET_LABELS
    asked = {word.strip() for group in re.findall(r"\b(?:by|on) \(([^)]*)\)", expression) for word in group.split(",")}
    assert asked <= set().union(*(SERIES[name] for name in names)) | TARGET_LABELS
    assert expression.count("(") == expression.count(")")


def test_every_series_is_on_the_dashboard() -> None:
    text = json.dumps(DASHBOARD)
    without = {"lmd_operator_reconcile_seconds_sum", "lmd_operator_reconcile_seconds_count", "lmd_operator_objects"}
    assert {name for name in SERIES if name not in text} == without


def test_values_of_labels_exist() -> None:
    sources = ROOT / "operator" / "src" / "lmd_operator"
    source = "".join((sources / name).read_text() for name in ("app.py", "runtime/metrics.py"))
    text = "\n".join(rule["expr"] for rule in ALERTS) + json.dumps(DASHBOARD).replace('\\"', '"')
    words = {word for label in ("outcome", "state") for value in re.findall(rf'\b{label}=~?"([^"]+)"', text) for word in value.split("|")}
    assert words
    assert [word for word in sorted(words) if f'"{word}"' not in source] == []
    conditions = {word for value in re.findall(r'\bcondition=~?"([^"]+)"', text) for word in value.split("|")}
    assert conditions <= set(ConditionType.__args__)


@pytest.mark.parametrize("rule", ALERTS, ids=lambda rule: rule["alert"])
def test_every_alert_says_what_to_do(rule: dict[str, Any]) -> None:
    assert rule["labels"]["severity"] in ("critical", "warning")
    assert rule["annotations"]["runbook_url"] == f"RUNBOOK#{rule['alert'].lower()}"
    sections = re.split(r"^## ", (ROOT / "docs" / "runbook.md").read_text(), flags=re.MULTILINE)
    (section,) = [each for each in sections if each.split("\n", 1)[0] == rule["alert"]]
    assert len(section.split()) > 30
    for key in ("summary", "description"):
        text = rule["annotations"][key]
        assert text.endswith(".")
        named = set(re.findall(r"\$labels\.(\w+)", text))
        assert named <= set().union(*(SERIES[name] for name in re.findall(r"lmd_operator_\w+", rule["expr"])))


def test_the_runbook_has_no_other_sections() -> None:
    text = (ROOT / "docs" / "runbook.md").read_text()
    assert re.findall(r"^## (.*)$", text, flags=re.MULTILINE) == [rule["alert"] for rule in ALERTS]


# ---- image


def test_the_image_is_small_and_not_root() -> None:
    folder = ROOT / "images" / "operator"
    text = (folder / "Dockerfile").read_text()
    assert text.index("requirements.txt /") < text.index("COPY operator/src")
    assert 'ENTRYPOINT ["/opt/lmd/bin/python", "-m", "lmd_operator"]' in text
    pod = next(
        each for each in yaml.safe_load_all((ROOT / "deploy" / "operator.yaml").read_text()) if each and each["kind"] == "Deployment"
    )
    context = pod["spec"]["template"]["spec"]["securityContext"]
    assert f"USER {context['runAsUser']}:{context['runAsGroup']}" in text
    sources = [line.split()[1] for line in text.splitlines() if line.startswith("COPY ") and "--from" not in line]
    ignore = (folder / "Dockerfile.dockerignore").read_text().splitlines()
    assert next(line for line in ignore if not line.startswith("#")) == "*"
    assert {f"!{source}" for source in sources} == {line for line in ignore if line.startswith("!")}
    assert all((ROOT / source).exists() for source in sources)
