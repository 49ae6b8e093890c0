"""The Kubernetes objects, one readable file per object and kind, and the official schemas they must satisfy."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from lmd_operator.api.parse import parse
from lmd_operator.resources.desired import desired, document
from lmd_operator.settings import Settings

ROOT = Path(__file__).parents[2]
EXAMPLES = sorted((ROOT / "crds" / "examples").glob("*.yaml"))
SCENARIOS = sorted((ROOT / "tests" / "scenarios").glob("*.yaml"))
KINDS_OF_SCENARIO = {
    "accelerate": {"ConfigMap", "Deployment"},
    "cache-removed-with-the-object": {"ConfigMap", "Job-fetch", "Job-remove", "NetworkPolicy", "NetworkPolicy-tasks"},
    "expert": {"ConfigMap"},
    "fetched-from-a-hub": {"ConfigMap", "Deployment", "NetworkPolicy"},
    "fetched-from-s3": {"ConfigMap", "Deployment", "NetworkPolicy"},
    "handler-in-a-config-map": {"ConfigMap", "Deployment"},
    "handler-in-an-archive": {"ConfigMap"},
    "model-in-an-image": {"Deployment"},
    "node-port-service": {"Service"},
    "one-rank-on-cpu": {"ConfigMap", "Deployment"},
    "owned-by-uid": {"ConfigMap", "Deployment", "NetworkPolicy", "PodDisruptionBudget", "Service"},
    "pipeline": {"ConfigMap"},
    "pipeline-tensor": {"ConfigMap", "Deployment"},
    "recreate": {"Deployment"},
    "restart-token": {"Deployment"},
    "rolling-update-with-surge-only": {"Deployment", "PodDisruptionBudget"},
    "shared-cache": {"ConfigMap", "Deployment", "Job-fetch"},
    "suspended": {"Deployment"},
    "tensor": {"ConfigMap"},
    "verified-on-a-claim": {"ConfigMap", "Deployment"},
    "template-with-everything": {"Deployment", "PodDisruptionBudget"},
    "zero-inference": {"ConfigMap"},
    "zero-inference-on-disk": {"ConfigMap", "Deployment"},
}
"""What a scenario is about; its other children are those of any object and are not repeated here."""

VERSIONS = ["1.29", "1.33", kubernetes_validate.latest_version()]
"""The oldest whose API server knows all that the CRD says, one between, the newest that the package brings."""

EMPTY_ON_PURPOSE = {
    "spec.egress": "a NetworkPolicy that names Egress and lists nothing lets nothing out",
    "spec.template.spec.volumes[4].emptyDir": "weights that are fetched, or parameters on disk: their size is known only to their source",
}


class Readable(yaml.SafeDumper):
    """Writes texts of several lines as blocks."""


def _text(dumper: yaml.SafeDumper, value: str) -> Any:
    return dumper.represent_scalar("tag:yaml.org,2002:str", value, style="|" if "\n" in value else None)


Readable.add_representer(str, _text)


@functools.cache
def children(manifest: Path) -> dict[str, dict[str, Any]]:
    """Every child of the object by its kind, with its task where there are several of a kind."""
    owner = parse(yaml.safe_load(manifest.read_text()))
    documents = [document(resource) for resource in desired(owner, Settings()).resources]
    found = {_key(content): content for content in documents}
    assert len(found) == len(documents)
    return found


def _key(content: dict[str, Any]) -> str:
    task = content["metadata"]["labels"].get("largemodel.dev/task")
    return f"{content['kind']}-{task}" if task else content["kind"]


def cases() -> Iterator[Any]:
    for manifest in EXAMPLES:
        for kind in children(manifest):
            yield pytest.param(manifest, kind, id=f"{manifest.stem}-{kind}")
    for manifest in SCENARIOS:
        for kind in sorted(KINDS_OF_SCENARIO[manifest.stem]):
            yield pytest.param(manifest, kind, id=f"{manifest.stem}-{kind}")


def empty_parts(node: object, path: str = "") -> Iterator[str]:
    """The paths of empty mappings, lists and texts."""
    if node in ({}, [], ""):
        yield path
    elif isinstance(node, dict):
        for key, value in node.items():
            yield from empty_parts(value, f"{path}.{key}" if path else key)
    elif isinstance(node, list):
        for index, value in enumerate(node):
            yield from empty_parts(value, f"{path}[{index}]")


@pytest.mark.parametrize(("manifest", "kind"), list(cases()))
def test_the_children_of_an_object_are_those_reviewed(golden, manifest: Path, kind: str) -> None:
    content = children(manifest)[kind]
    golden(f"resources/{manifest.stem}.{kind.lower()}.yaml", yaml.dump(content, Dumper=Readable, sort_keys=True))


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("manifest", [*EXAMPLES, *SCENARIOS], ids=lambda path: path.stem)
def test_every_child_satisfies_the_official_schema(manifest: Path, version: str) -> None:
    if manifest.stem == "model-in-an-image" and version == "1.29":
        with pytest.raises(kubernetes_validate.ValidationError, match="image"):  # the operator then names the version that has them
            kubernetes_validate.validate(children(manifest)["Deployment"], version, strict=True)
        return
    for kind, content in children(manifest).items():
        assert version.startswith(kubernetes_validate.validate(content, version, strict=True)), kind


@pytest.mark.parametrize("manifest", [*EXAMPLES, *SCENARIOS], ids=lambda path: path.stem)
def test_nothing_is_empty_where_something_was_meant(manifest: Path) -> None:
    """The typed client drops arguments that it does not know: probes once went out without their command."""
    for kind, content in children(manifest).items():
        assert set(empty_parts(content)) <= set(EMPTY_ON_PURPOSE), kind


@pytest.mark.parametrize("manifest", [*EXAMPLES, *SCENARIOS], ids=lambda path: path.stem)
def test_probes_and_the_drain_say_what_to_do(manifest: Path) -> None:
    (container,) = children(manifest)["Deployment"]["spec"]["template"]["spec"]["containers"]
    assert container["startupProbe"]["exec"] == {"command": ["lmd-worker", "started"]}
    assert container["readinessProbe"]["httpGet"] == {"path": "/readyz", "port": 8406}
    assert container["livenessProbe"]["httpGet"] == {"path": "/livez", "port": 8406}
    assert container["lifecycle"] == {"preStop": {"exec": {"command": ["lmd-worker", "drain"]}}}


def _pod(content: dict[str, Any]) -> dict[str, Any]:
    return content["spec"]["template"]["spec"]


def _misspelt(content: dict[str, Any]) -> None:
    _pod(content)["containers"][0]["livenesProbe"] = {}


def _text_as_count(content: dict[str, Any]) -> None:
    content["spec"]["replicas"] = "2"


def _no_selector(content: dict[str, Any]) -> None:
    del content["spec"]["selector"]


def _nameless(content: dict[str, Any]) -> None:
    del _pod(content)["volumes"][0]["name"]


@pytest.mark.parametrize("spoil", [_misspelt, _text_as_count, _no_selector, _nameless])
def test_the_official_schema_refuses_what_is_wrong(spoil: Callable[[dict[str, Any]], None]) -> None:
    content = copy.deepcopy(children(EXAMPLES[0])["Deployment"])
    spoil(content)
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(content, VERSIONS[0], strict=True)


def test_empty_parts_finds_what_is_empty() -> None:
    assert set(empty_parts({"a": {}, "b": [{"c": []}, {"d": ""}], "e": 0, "f": False})) == {"a", "b[0].c", "b[1].d"}


def test_every_scenario_says_which_children_it_is_about() -> None:
    assert {path.stem for path in SCENARIOS} == set(KINDS_OF_SCENARIO)
