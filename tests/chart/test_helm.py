"""What helm says of the chart: it is well-formed, renders what is kept, and refuses what it does not know."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from lmd_operator.api.crd import custom_resource_definition

pytestmark = pytest.mark.cluster
ROOT = Path(__file__).parents[2]
CHART = "charts/lmd-operator"
HERE = Path(__file__).parent
VALUES = sorted((HERE / "values").glob("*.yaml"))
GENERATED = "# Generated from charts/lmd-operator by `make generate`; do not edit.\n"
Helm = Callable[..., subprocess.CompletedProcess[str]]
Golden = Callable[[Path, str], None]


def rendered(helm: Helm, *arguments: str) -> str:
    answer = helm("template", "lmd-operator", CHART, "--namespace", "lmd-system", *arguments)
    assert answer.returncode == 0, answer.stderr
    return answer.stdout


@pytest.mark.parametrize("values", [None, *VALUES], ids=lambda values: values.stem if values else "default")
def test_the_linter_is_content(helm: Helm, values: Path | None) -> None:
    answer = helm("lint", "--strict", CHART, *(["--values", str(values)] if values else []))
    assert answer.returncode == 0, answer.stdout + answer.stderr
    assert "[WARNING]" not in answer.stdout + answer.stderr


@pytest.mark.parametrize("values", VALUES, ids=lambda values: values.stem)
def test_what_is_rendered(helm: Helm, golden: Golden, values: Path) -> None:
    golden(HERE / "golden" / values.name, rendered(helm, "--values", str(values)))


def test_the_plain_manifests_are_the_chart_with_its_defaults(helm: Helm, golden: Golden) -> None:
    golden(ROOT / "deploy" / "operator.yaml", GENERATED + rendered(helm))


@pytest.mark.parametrize(
    ("options", "annotations"),
    [
        ([], {"helm.sh/resource-policy": "keep"}),
        (["crds.keep=false"], None),
        (["crds.annotations.a=b {{ c }}"], {"helm.sh/resource-policy": "keep", "a": "b {{ c }}"}),
    ],
)
def test_the_crd_is_ours_word_for_word(helm: Helm, options: list[str], annotations: dict[str, str] | None) -> None:
    text = rendered(helm, "--show-only", "templates/crds.yaml", *(word for option in options for word in ("--set", option)))
    crd = yaml.safe_load(text)
    assert crd["metadata"].pop("annotations", None) == annotations
    assert crd == custom_resource_definition()


@pytest.mark.parametrize(
    ("option", "words"),
    [
        ("replica=2", "'replica' not allowed"),
        ("settings.worker=2", "'worker' not allowed"),
        ("settings.workers=many", "got string, want integer"),
        ("watchNamespaces=default", "got string, want array"),
        ("settings.logLevel=LOUD", "/settings/logLevel"),
        ("image.digest=latest", "/image/digest"),
        ("serviceAccount.create=false", "serviceAccount.name is needed"),
        ("metrics.serviceMonitor.create=true,metrics.service.create=false", "needs metrics.service.create"),
    ],
)
def test_what_is_refused(helm: Helm, option: str, words: str) -> None:
    answer = helm("template", "x", CHART, "--set", option)
    assert answer.returncode != 0
    assert words in answer.stderr


def test_long_names_stay_names(helm: Helm) -> None:
    answer = helm("template", "r" * 53, CHART, "--namespace", "n" * 63)
    assert answer.returncode == 0, answer.stderr
    crd = "largemodeldeployments.largemodel.dev"
    longer = ("Role", "RoleBinding", "ClusterRole", "ClusterRoleBinding")  # may have 253 characters, and more than labels in them
    for document in yaml.safe_load_all(answer.stdout):
        if document and document["metadata"]["name"] != crd:
            assert len(document["metadata"]["name"]) <= (253 if document["kind"] in longer else 63)
    assert f"{'n' * 63}-{'r' * 53}" in answer.stdout, "the namespace leaves room for the release"
