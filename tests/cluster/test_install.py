"""The operator is installed: by helm into a namespace with the restricted standard, by plain manifests, and its rights suffice."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml
from lmd_plane.audit import AuditLog, Entry
from lmd_plane.binaries import build
from lmd_plane.client import DEFINITIONS, Api, eventually
from lmd_plane.plane import Cluster

from lmd_operator.local.ports import free_ports

pytestmark = pytest.mark.cluster
ROOT = Path(__file__).parents[2]
CHART = ROOT / "charts" / "lmd-operator"
EXAMPLE = ROOT / "crds" / "examples" / "smollm2.yaml"
GROUP = "/apis/largemodel.dev/v1alpha1"
RBAC = "/apis/rbac.authorization.k8s.io/v1"
RELEASE = "lmd-operator"
NEVER_SENT = {("largemodel.dev", "largemodeldeployments/finalizers", "update")}
Helm = Callable[..., str]
Document = dict[str, Any]
Right = tuple[str, str, str]


@pytest.fixture
def helm(plane: Cluster, namespace: str, tmp_path: Path) -> Helm:
    """Helm in the namespace of the test; fails with helm's words."""
    program = build(["helm"], say=lambda words: print(words, file=sys.__stderr__, flush=True))["helm"]
    homes = {f"HELM_{name}_HOME": str(tmp_path / name) for name in ("CACHE", "CONFIG", "DATA")}

    def run(*arguments: str) -> str:
        command = [str(program), "--kubeconfig", str(plane.kubeconfig), "--namespace", namespace, *arguments]
        answer = subprocess.run(command, capture_output=True, text=True, env=os.environ | homes, timeout=180, check=False)
        assert answer.returncode == 0, answer.stderr
        return answer.stdout

    return run


@pytest.fixture
def released(helm: Helm, api: Api, crd: Document) -> Iterator[Callable[..., str]]:
    """Install the release, whatever it needs to take over the CRD; cluster-wide objects go away afterwards."""

    def install(*options: str) -> str:
        return helm("install", RELEASE, str(CHART), "--take-ownership", "--wait", "--timeout", "90s", *options)

    yield install
    helm("uninstall", RELEASE, "--ignore-not-found")
    # the next release, of another namespace, takes the CRD over; nothing of this one may be in its way
    assert crd["metadata"]["name"] == api.get(f"{DEFINITIONS}/{crd['metadata']['name']}")["metadata"]["name"]


def _restrict(api: Api, namespace: str) -> None:
    labels = {"pod-security.kubernetes.io/enforce": "restricted", "pod-security.kubernetes.io/warn": "restricted"}
    api.patch(f"/api/v1/namespaces/{namespace}", {"metadata": {"labels": labels}})


def _gone(api: Api, path: str) -> None:
    eventually(lambda: api.request("GET", path).status == 404, f"end of {path}")


# ---- by helm


def test_a_release_lives_and_ends_and_the_crd_stays(api: Api, namespace: str, helm: Helm, released: Callable[..., str]) -> None:
    _restrict(api, namespace)
    notes = released()
    assert "kubectl describe largemodeldeployment my-model" in notes
    deployments = f"/apis/apps/v1/namespaces/{namespace}/deployments/{RELEASE}"
    assert api.get(deployments)["status"]["readyReplicas"] == 2
    before = {pod["metadata"]["name"] for pod in api.get(f"/api/v1/namespaces/{namespace}/pods")["items"]}
    crd = api.get(f"{DEFINITIONS}/largemodeldeployments.largemodel.dev")
    assert crd["metadata"]["annotations"]["helm.sh/resource-policy"] == "keep"

    changes = ("--set", "settings.workers=8", "--set", "replicas=1")
    helm("upgrade", RELEASE, str(CHART), "--take-ownership", "--wait", "--timeout", "90s", *changes)
    deployment = api.get(deployments)
    env = {entry["name"]: entry.get("value") for entry in deployment["spec"]["template"]["spec"]["containers"][0]["env"]}
    assert env["LMD_OPERATOR_WORKERS"] == "8"
    assert deployment["status"]["readyReplicas"] == 1
    running = [pod for pod in api.get(f"/api/v1/namespaces/{namespace}/pods")["items"] if "deletionTimestamp" not in pod["metadata"]]
    assert before.isdisjoint(pod["metadata"]["name"] for pod in running)
    assert api.request("GET", f"/apis/policy/v1/namespaces/{namespace}/poddisruptionbudgets/{RELEASE}").status == 404

    helm("uninstall", RELEASE, "--wait")
    assert api.request("GET", deployments).status == 404
    assert api.request("GET", f"{RBAC}/clusterroles/{namespace}-{RELEASE}").status == 404
    kept = api.get(f"{DEFINITIONS}/largemodeldeployments.largemodel.dev")
    assert kept["metadata"]["uid"] == crd["metadata"]["uid"]
    assert "deletionTimestamp" not in kept["metadata"]


def test_what_notes_propose_is_accepted(api: Api, namespace: str, released: Callable[..., str]) -> None:
    notes = released()
    text = notes.split("<<EOF\n", 1)[1].split("EOF\n", 1)[0]
    document = yaml.safe_load(text)
    answer = api.request(
        "POST", f"{GROUP}/namespaces/{namespace}/largemodeldeployments", document, query={"dryRun": "All", "fieldValidation": "Strict"}
    )
    assert answer.status == 201, answer.message


# ---- by plain manifests


def test_plain_manifests_are_accepted(api: Api, crd: Document, plane: Cluster) -> None:
    assert crd
    program = build(["kubectl"], say=lambda words: print(words, file=sys.__stderr__, flush=True))["kubectl"]
    command = [str(program), "--kubeconfig", str(plane.kubeconfig), "apply", "--server-side", "--force-conflicts", "--validate=strict"]
    # a dry run makes no namespace, and what lies in it would not be looked at
    subprocess.run([*command, "--filename", str(ROOT / "deploy" / "namespace.yaml")], check=True, timeout=60)
    try:
        command += ["--dry-run=server", "--kustomize", str(ROOT / "deploy")]
        answer = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        assert answer.returncode == 0, answer.stderr
        assert "would violate PodSecurity" not in answer.stderr
        assert "deployment.apps/lmd-operator serverside-applied (server dry run)" in answer.stdout
    finally:
        api.delete("/api/v1/namespaces/lmd-system")
        _gone(api, "/api/v1/namespaces/lmd-system")


# ---- rights


def _token_kubeconfig(plane: Cluster, api: Api, namespace: str, file: Path) -> Path:
    """Write a kubeconfig with a token of the operator's service account, and nothing else to log in with."""
    request = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {"expirationSeconds": 3600}}
    token = api.create(f"/api/v1/namespaces/{namespace}/serviceaccounts/{RELEASE}/token", request)["status"]["token"]
    document = yaml.safe_load(plane.kubeconfig.read_text())
    for cluster in document["clusters"]:
        path = cluster["cluster"].get("certificate-authority")
        if path:
            cluster["cluster"]["certificate-authority"] = str(plane.kubeconfig.parent / path)
    document["users"] = [{"name": "operator", "user": {"token": token}}]
    document["contexts"] = [{"name": "test", "context": {"cluster": document["clusters"][0]["name"], "user": "operator"}}]
    document["current-context"] = "test"
    file.write_text(yaml.safe_dump(document))
    return file


@contextmanager
def _operator(kubeconfig: Path, variables: dict[str, str], log: Path) -> Iterator[int]:
    """Run the operator's process as its pod would, and return the port of its probes once it is ready."""
    port = free_ports(1)[0]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("LMD_")}
    environment |= variables | {"KUBECONFIG": str(kubeconfig), "LMD_OPERATOR_HOST": "127.0.0.1", "LMD_OPERATOR_PORT": str(port)}
    with log.open("w") as output:
        process = subprocess.Popen([sys.executable, "-m", "lmd_operator"], env=environment, stdout=output, stderr=subprocess.STDOUT)
        try:

            def ready() -> bool:
                assert process.poll() is None, log.read_text()
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=5) as answer:
                    return bool(answer.status == 200)

            eventually(ready, "ready operator", seconds=60)
            yield port
            process.terminate()
            assert process.wait(30) == 0, log.read_text()
        except BaseException:
            print(log.read_text())
            raise
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()


def _granted(api: Api, roles: list[str]) -> set[Right]:
    rules = [rule for role in roles for rule in api.get(f"{RBAC}/{role}")["rules"]]
    return {
        (group, resource, verb) for rule in rules for group in rule["apiGroups"] for resource in rule["resources"] for verb in rule["verbs"]
    }


def _seen(entries: list[Entry]) -> set[Right]:
    rights: set[Right] = set()
    for entry in entries:
        if not entry.resource:
            continue  # what every account may ask: versions and the list of kinds
        resource = f"{entry.resource}/{entry.subresource}".rstrip("/")
        rights.add((entry.group, resource, entry.verb))
        if entry.verb == "patch" and entry.code == 201:
            rights.add((entry.group, resource, "create"))  # an apply that made the object was asked for both
    return rights


def _children(api: Api, namespace: str) -> dict[str, list[Document]]:
    selector = "labelSelector=largemodel.dev/deployment%3Dsmollm2"
    paths = {
        "configmaps": "/api/v1",
        "services": "/api/v1",
        "networkpolicies": "/apis/networking.k8s.io/v1",
        "poddisruptionbudgets": "/apis/policy/v1",
        "deployments": "/apis/apps/v1",
    }
    return {plural: api.get(f"{root}/namespaces/{namespace}/{plural}?{selector}")["items"] for plural, root in paths.items()}


def _is_observed(document: Document) -> bool:
    return bool(document["status"]["observedGeneration"] == document["metadata"]["generation"])


def _live_through_everything(api: Api, namespace: str) -> None:
    """Have one object do all that an operator has to act on."""
    path = f"{GROUP}/namespaces/{namespace}/largemodeldeployments"
    document = yaml.safe_load(EXAMPLE.read_text())
    document["spec"]["replicas"] = 2  # so that there is a PodDisruptionBudget
    owner = api.create(path, document)
    one = f"{path}/smollm2"
    eventually(lambda: all(_children(api, namespace).values()), "five children")

    def conditions() -> dict[str, str]:
        status = api.get(one).get("status", {})
        return {each["type"]: each["status"] for each in status.get("conditions", [])}

    eventually(lambda: conditions().get("Ready") == "True", "Ready object")

    # a child that vanishes is made anew
    api.delete(f"/api/v1/namespaces/{namespace}/services/smollm2")
    eventually(lambda: _children(api, namespace)["services"], "new Service")

    # children of an older version of the operator are removed
    reference = {
        "apiVersion": owner["apiVersion"],
        "kind": owner["kind"],
        "name": "smollm2",
        "uid": owner["metadata"]["uid"],
        "controller": True,
    }
    metadata = {"name": "left-over", "labels": {"largemodel.dev/deployment": "smollm2"}, "ownerReferences": [reference]}
    api.create(f"/api/v1/namespaces/{namespace}/services", {"metadata": metadata, "spec": {"ports": [{"port": 80}]}})
    policies = f"/apis/networking.k8s.io/v1/namespaces/{namespace}/networkpolicies"
    api.create(policies, {"metadata": metadata, "spec": {"podSelector": {"matchLabels": {"left": "over"}}}})
    eventually(lambda: api.request("GET", f"/api/v1/namespaces/{namespace}/services/left-over").status == 404, "end of the Service")
    eventually(lambda: api.request("GET", f"{policies}/left-over").status == 404, "end of the NetworkPolicy")

    # a spec that is refused, twice: the second time counts up the Event of the first
    for _ in range(2):
        api.patch(one, {"spec": {"engine": {"deepspeed": {"replaceWithKernelInject": True}}}})
        eventually(lambda: conditions().get("Accepted") == "False", "refusal")
        api.patch(one, {"spec": {"engine": {"deepspeed": {"replaceWithKernelInject": None}}}})
        eventually(lambda: conditions().get("Accepted") == "True", "acceptance")

    # one replica needs no budget, and an old ConfigMap goes when no revision needs it
    api.patch(one, {"spec": {"replicas": 1, "rollout": {"revisionHistoryLimit": 1}}})
    eventually(lambda: not _children(api, namespace)["poddisruptionbudgets"], "end of the budget")
    first = _children(api, namespace)["configmaps"][0]["metadata"]["name"]
    for concurrency in (4, 5):  # the newest two are kept
        api.patch(one, {"spec": {"engine": {"concurrency": concurrency}}})
        eventually(lambda: conditions().get("Reconciling") == "False" and _is_observed(api.get(one)), "settled object")
    eventually(
        lambda: api.request("GET", f"/api/v1/namespaces/{namespace}/configmaps/{first}").status == 404,
        "end of the old ConfigMap",
        seconds=90,
    )

    # a cache has Jobs; the one that removes runs when the object is gone
    model = api.get(one)["spec"]["model"]["source"]
    hub = {"huggingFace": {"repository": "acme/model"}, **dict.fromkeys(model)}
    api.patch(one, {"spec": {"model": {"source": hub, "cache": {"claimName": "models", "onDelete": "Delete"}}}})
    jobs = f"/apis/batch/v1/namespaces/{namespace}/jobs"
    eventually(lambda: len(api.get(jobs)["items"]) == 2, "two Jobs")
    (fetching,) = [job["metadata"]["name"] for job in api.get(jobs)["items"] if not job["spec"]["suspend"]]
    api.patch(one, {"spec": {"model": {"source": {"huggingFace": {"revision": "v2"}}}}})
    eventually(lambda: api.request("GET", f"{jobs}/{fetching}").status == 404, "end of the Job that fetched the old model")
    eventually(lambda: len(api.get(jobs)["items"]) == 3, "Jobs of two models, and one that fetches")
    api.delete(one)
    eventually(lambda: not any(job["spec"]["suspend"] for job in api.get(jobs)["items"]), "start of the removal", seconds=180)


@pytest.mark.parametrize("mode", ["cluster", "namespaced"])
def test_the_rights_are_enough_and_none_is_too_many(
    plane: Cluster,
    api: Api,
    audit: AuditLog,
    namespace: str,
    released: Callable[..., str],
    tmp_path: Path,
    mode: str,
) -> None:
    watched = f"{namespace}-models"
    api.create("/api/v1/namespaces", {"metadata": {"name": watched}})
    try:
        released("--set", "replicas=0", *(("--set", f"watchNamespaces={{{watched}}}") if mode == "namespaced" else ()))
        own = f"namespaces/{namespace}/roles/{RELEASE}-lease"
        work = f"clusterroles/{namespace}-{RELEASE}" if mode == "cluster" else f"namespaces/{watched}/roles/{namespace}-{RELEASE}"
        granted = _granted(api, [own, work])
        pod = api.get(f"/apis/apps/v1/namespaces/{namespace}/deployments/{RELEASE}")["spec"]["template"]["spec"]
        variables = {entry["name"]: entry["value"] for entry in pod["containers"][0]["env"] if "value" in entry}
        user = f"system:serviceaccount:{namespace}:{RELEASE}"
        mark = audit.mark()
        log = tmp_path / "operator.log"
        with _operator(_token_kubeconfig(plane, api, namespace, tmp_path / "kubeconfig"), variables, log) as port:
            _live_through_everything(api, watched)
            metrics = urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5).read().decode()
        asked = [entry for entry in audit.since(mark) if entry.user == user]
        # what other tests have left in namespaces that are ending is nobody's to write, in cluster mode either
        own_places = (watched, namespace, "")
        assert [entry for entry in asked if entry.code == 403 and entry.namespace in own_places] == []
        assert _seen(asked) == granted - NEVER_SENT
        assert "lmd_operator_leader 1.0" in metrics
        if mode == "namespaced":
            assert {entry.namespace for entry in asked if entry.resource} == {namespace, watched}
        lease = api.get(f"/apis/coordination.k8s.io/v1/namespaces/{namespace}/leases/{RELEASE}")
        assert lease["spec"]["holderIdentity"] == "", "it was given back at the end"
    finally:
        api.delete(f"/api/v1/namespaces/{watched}")


def test_a_missing_right_is_told(plane: Cluster, api: Api, namespace: str, released: Callable[..., str], tmp_path: Path) -> None:
    """Without the right to make Services, the object says so, and the other children exist."""
    released("--set", "replicas=0")
    path = f"{RBAC}/clusterroles/{namespace}-{RELEASE}"
    rules = api.get(path)["rules"]
    for rule in rules:
        if "services" in rule["resources"]:
            rule["resources"].remove("services")
    rules.append({"apiGroups": [""], "resources": ["services"], "verbs": ["get", "list", "watch"]})
    api.patch(path, {"rules": rules})
    kubeconfig = _token_kubeconfig(plane, api, namespace, tmp_path / "kubeconfig")
    variables = {"LMD_OPERATOR_LEASE_NAMESPACE": namespace, "LMD_OPERATOR_LEASE_NAME": RELEASE}
    with _operator(kubeconfig, variables, tmp_path / "operator.log"):
        one = f"{GROUP}/namespaces/{namespace}/largemodeldeployments"
        api.create(one, yaml.safe_load(EXAMPLE.read_text()))

        def told() -> bool:
            conditions = api.get(f"{one}/smollm2").get("status", {}).get("conditions", [])
            return any(each["reason"] == "Forbidden" and "services" in each["message"] for each in conditions)

        eventually(told, "condition that tells of it")
        found = _children(api, namespace)
        assert not found["services"]
        assert found["deployments"]


# ---- by the documentation


def test_the_commands_of_the_documentation_work(plane: Cluster, api: Api, crd: Document, tmp_path: Path) -> None:
    """Every block of docs/install.md, in order, on a cluster whose CRD is there already."""
    assert crd
    blocks = re.findall(r"```sh\n(.*?)```", (ROOT / "docs" / "install.md").read_text(), flags=re.DOTALL)
    assert len(blocks) == 6
    programs = build(["helm", "kubectl"], say=lambda words: print(words, file=sys.__stderr__, flush=True))
    homes = {f"HELM_{name}_HOME": str(tmp_path / name) for name in ("CACHE", "CONFIG", "DATA")}
    path = ":".join([*(str(program.parent) for program in programs.values()), os.environ["PATH"]])
    environment = os.environ | homes | {"KUBECONFIG": str(plane.kubeconfig), "PATH": path}
    try:
        for block in blocks:
            command = block.replace("helm install ", "helm install --take-ownership ").replace(
                "--server-side ", "--server-side --force-conflicts "
            )
            answer = subprocess.run(
                ["bash", "-euc", command], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=180, check=False
            )
            assert answer.returncode == 0, f"{block}{answer.stdout}{answer.stderr}"
        assert api.get(f"{GROUP}/namespaces/models/largemodeldeployments/smollm2")
        deployment = "/apis/apps/v1/namespaces/lmd-system/deployments/lmd-operator"
        eventually(lambda: api.get(deployment)["status"].get("readyReplicas") == 2, "operator of the plain manifests")
    finally:
        for name in ("models", "lmd-system"):
            api.request("DELETE", f"/api/v1/namespaces/{name}")
        for name in ("clusterroles", "clusterrolebindings"):
            for suffix in ("", "-view", "-edit"):
                api.request("DELETE", f"{RBAC}/{name}/lmd-system-{RELEASE}{suffix}")
        for name in ("models", "lmd-system"):
            _gone(api, f"/api/v1/namespaces/{name}")
