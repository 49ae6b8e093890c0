"""What is in the rendered manifests: valid, hardened, with exactly the rights the code uses and settings it knows."""

from __future__ import annotations

import ast
import dataclasses
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from lmd_operator.api.crd import custom_resource_definition
from lmd_operator.cluster import kinds
from lmd_operator.cluster.kinds import CHILDREN, DEPLOYMENT, LARGE_MODEL_DEPLOYMENT, WATCHED, Kind
from lmd_operator.names import FIELD_MANAGER, LABEL_DEPLOYMENT, LABEL_MANAGED_BY, PORT_PROGRESS
from lmd_operator.rendering.layout import POD
from lmd_operator.settings import PREFIX, Settings
from lmd_operator.version import VERSION

ROOT = Path(__file__).parents[2]
SOURCES = ROOT / "operator" / "src" / "lmd_operator"
MANIFESTS = [ROOT / "deploy" / "operator.yaml", *sorted((Path(__file__).parent / "golden").glob("*.yaml"))]
EXTENSIONS = ("monitoring.coreos.com/v1",)
Document = dict[str, Any]
Right = tuple[str, str, str]

VERBS = {
    "get": {"get"},
    "list": {"list"},
    "watch": {"watch"},
    "apply": {"patch", "create"},
    "apply_content": {"patch", "create"},
    "apply_new": {"patch", "create"},
    "merge": {"patch"},
    "create": {"create"},
    "replace": {"update"},
    "delete": {"delete"},
}
"""Method of `cluster.api.Api` -> what the API server asks a right for. Applying an object that is not there is creating it."""
GENERAL = {
    ("cluster/door.py", "child.kind"): CHILDREN,
    ("cluster/door.py", "record.kind"): tuple(kind for kind in CHILDREN if kind is not DEPLOYMENT),
    ("cluster/reflector.py", "self._cache.kind"): WATCHED,
}
"""What stands for several kinds in the code. The reconciler never has a Deployment deleted."""
BY_KOPF = {("largemodel.dev", "largemodeldeployments", verb) for verb in ("list", "watch")}
NEVER_SENT = {("largemodel.dev", "largemodeldeployments/finalizers", "update")}
"""Asked for where OwnerReferencesPermissionEnforcement is on, as we set blockOwnerDeletion."""


def documents(path: Path) -> list[Document]:
    return [document for document in yaml.safe_load_all(path.read_text()) if document]


def operator(path: Path) -> Document:
    return next(document for document in documents(path) if document["kind"] == "Deployment")


def every_object() -> Iterator[Any]:
    for path in MANIFESTS:
        for document in documents(path):
            if document["apiVersion"] not in EXTENSIONS:
                yield pytest.param(document, id=f"{path.stem}-{document['kind']}-{document['metadata']['name']}")


@pytest.mark.parametrize("document", list(every_object()))
def test_every_object_is_valid(document: Document) -> None:
    kubernetes_validate.validate(document, kubernetes_validate.latest_version(), strict=True)


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: path.stem)
def test_namespaces_are_written(path: Path) -> None:
    cluster_wide = {"ClusterRole", "ClusterRoleBinding", "CustomResourceDefinition"}
    for document in documents(path):
        assert ("namespace" in document["metadata"]) == (document["kind"] not in cluster_wide), document["metadata"]["name"]


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: path.stem)
def test_the_pod_meets_the_restricted_standard(path: Path) -> None:
    pod = operator(path)["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert pod["securityContext"] == {
        "runAsNonRoot": True,
        "runAsUser": 65532,
        "runAsGroup": 65532,
        "seccompProfile": {"type": "RuntimeDefault"},
    }
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "runAsNonRoot": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert not {"hostNetwork", "hostPID", "hostIPC"} & pod.keys()
    assert all("emptyDir" in volume for volume in pod["volumes"])
    assert container["resources"]["limits"]["memory"]
    assert container["resources"]["requests"]["cpu"]


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: path.stem)
def test_the_operator_does_not_take_itself_for_a_model(path: Path) -> None:
    assert LABEL_DEPLOYMENT not in path.read_text().split("kind: Deployment", 1)[1]


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: path.stem)
def test_selectors_select_the_pods(path: Path) -> None:
    labels = operator(path)["spec"]["template"]["metadata"]["labels"].items()
    selectors = [operator(path)["spec"]["selector"]["matchLabels"]]
    for document in documents(path):
        spec = document.get("spec", {})
        if document["kind"] == "Service":
            selectors.append(spec["selector"])
        if document["kind"] == "PodDisruptionBudget":
            selectors.append(spec["selector"]["matchLabels"])
        if document["kind"] == "NetworkPolicy":
            selectors.append(spec["podSelector"]["matchLabels"])
    assert len(selectors) > 1
    assert all(selector.items() <= labels for selector in selectors)


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: path.stem)
def test_a_policy_lets_the_operator_ask_the_pods_of_its_objects(path: Path) -> None:
    policies = [document for document in documents(path) if document["kind"] == "NetworkPolicy"]
    assert policies or path.stem != "everything"
    for policy in policies:
        (rule,) = [rule for rule in policy["spec"]["egress"] if "to" in rule]
        assert rule["to"] == [{"namespaceSelector": {}, "podSelector": {"matchLabels": {LABEL_MANAGED_BY: FIELD_MANAGER}}}]
        assert {port["port"] for port in rule["ports"]} == {PORT_PROGRESS, POD.operations_port}


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: path.stem)
def test_variables_are_settings(path: Path) -> None:
    (container,) = operator(path)["spec"]["template"]["spec"]["containers"]
    given = {entry["name"]: entry.get("value", "from the pod") for entry in container["env"]}
    settings = Settings.from_environment(given)
    host = {"host"}  # all interfaces, which is the default
    assert set(given) == {PREFIX + field.name.upper() for field in dataclasses.fields(Settings) if field.name not in host}
    assert {port["containerPort"] for port in container["ports"]} == {settings.port}
    assert settings.lease_namespace == "lmd-system"


def test_defaults_are_those_of_the_code() -> None:
    (container,) = operator(MANIFESTS[0])["spec"]["template"]["spec"]["containers"]
    given = {entry["name"]: entry["value"] for entry in container["env"] if "value" in entry}
    assert dataclasses.replace(Settings.from_environment(given), lease_namespace="") == Settings()
    assert container["image"] == f"lmd-operator:{VERSION}"


def test_probes_are_paths_of_the_health_server() -> None:
    source = (SOURCES / "runtime" / "health.py").read_text()
    (container,) = operator(MANIFESTS[0])["spec"]["template"]["spec"]["containers"]
    for probe in ("livenessProbe", "readinessProbe"):
        assert f'web.get("{container[probe]["httpGet"]["path"]}"' in source


def test_the_plain_manifests_hold_the_crd() -> None:
    crd = next(document for document in documents(MANIFESTS[0]) if document["kind"] == "CustomResourceDefinition")
    assert crd["metadata"].pop("annotations") == {"helm.sh/resource-policy": "keep"}
    assert crd == custom_resource_definition()


# ---- rights


def used() -> set[Right]:
    """Every right that a call of `Api` in the operator's sources needs; commands of people have the rights of these people."""
    rights = set(BY_KOPF)
    for path in sorted(path for path in SOURCES.rglob("*.py") if path.parent.name != "commands"):
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
                continue
            if not re.fullmatch(r"(self\.)?_?api", ast.unparse(node.func.value)):
                continue
            assert node.func.attr in VERBS, f"{path}: Api.{node.func.attr} is not known here"
            subresource = next((ast.literal_eval(word.value) for word in node.keywords if word.arg == "subresource"), "")
            for kind in named(path.relative_to(SOURCES).as_posix(), ast.unparse(node.args[0])):
                for verb in VERBS[node.func.attr] - ({"create"} if subresource else set()):
                    rights.add((kind.group, f"{kind.plural}/{subresource}".rstrip("/"), verb))
    return rights


def named(path: str, words: str) -> tuple[Kind, ...]:
    return GENERAL[path, words] if (path, words) in GENERAL else (getattr(kinds, words),)


def granted(path: Path, *, of: str) -> set[Right]:
    rules = [
        rule
        for document in documents(path)
        if document["kind"] in ("Role", "ClusterRole") and not document["metadata"]["name"].endswith(("-view", "-edit"))
        if document["metadata"]["name"].endswith("-lease") == (of == "lease")
        for rule in document["rules"]
    ]
    assert rules
    return {
        (group, resource, verb) for rule in rules for group in rule["apiGroups"] for resource in rule["resources"] for verb in rule["verbs"]
    }


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: path.stem)
def test_rights_are_those_the_code_uses(path: Path) -> None:
    assert granted(path, of="lease") | granted(path, of="work") == used() | NEVER_SENT


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: path.stem)
def test_leases_are_written_in_the_own_namespace_only(path: Path) -> None:
    lease = {right for right in used() if right[1] == "leases"}
    assert granted(path, of="lease") == lease
    settings = {entry["name"]: entry.get("value") for entry in operator(path)["spec"]["template"]["spec"]["containers"][0]["env"]}
    role = next(each for each in documents(path) if each["kind"] == "Role" and each["metadata"]["name"].endswith("-lease"))
    assert [rule.get("resourceNames") for rule in role["rules"]] == [None, [settings["LMD_OPERATOR_LEASE_NAME"]]]


def test_namespaced_rights_stay_in_their_namespaces() -> None:
    found = documents(Path(__file__).parent / "golden" / "namespaced.yaml")
    assert not [document for document in found if document["kind"].startswith("Cluster")]
    roles = [document["metadata"]["namespace"] for document in found if document["kind"] == "Role"]
    assert sorted(roles) == ["lmd-system", "team-a", "team-b"]
    bindings = [document for document in found if document["kind"] == "RoleBinding"]
    subject = {"kind": "ServiceAccount", "name": "lmd-operator", "namespace": "lmd-system"}
    assert [document["subjects"] for document in bindings] == [[subject]] * 3


def test_people_may_do_what_objects_offer() -> None:
    edit = next(each for each in documents(MANIFESTS[0]) if each["metadata"]["name"].endswith("-edit"))
    assert {rule["apiGroups"][0] for rule in edit["rules"]} == {LARGE_MODEL_DEPLOYMENT.group}
    assert not [rule for rule in edit["rules"] if "largemodeldeployments/status" in rule["resources"]]
