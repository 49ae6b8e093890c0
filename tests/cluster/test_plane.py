"""The control plane does what tests rely on: it places, fails, recovers, collects, and tells what it was asked."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
from lmd_plane.audit import AuditLog
from lmd_plane.client import Api, eventually
from lmd_plane.components import ARGUMENTS
from lmd_plane.plane import Plane
from lmd_plane.processes import marked

pytestmark = pytest.mark.cluster
Manifest = dict[str, Any]
MakePod = Callable[..., Manifest]
OWNER = """
import sys
from lmd_plane.binaries import build
from lmd_plane.plane import owned
with owned(build(say=lambda words: None)) as plane:
    print(plane.site.folder, flush=True)
    sys.stdin.read()
"""


def _pods(api: Api, namespace: str) -> list[Manifest]:
    items: list[Manifest] = api.get(f"/api/v1/namespaces/{namespace}/pods")["items"]
    return items


def _container(api: Api, namespace: str, pod: str) -> Manifest:
    statuses = api.get(f"/api/v1/namespaces/{namespace}/pods/{pod}")["status"].get("containerStatuses")
    return statuses[0] if statuses else {}


def _when(api: Api, namespace: str, pod: str, holds: Callable[[Manifest], bool], what: str) -> Manifest:
    """Return the container's status once something holds of it."""

    def found() -> Manifest | None:
        status = _container(api, namespace, pod)
        return status if status and holds(status) else None

    return eventually(found, what)


def _gone(api: Api, path: str) -> None:
    eventually(lambda: api.request("GET", path).status == 404, f"end of {path}")


# ---- nodes and pods


def test_nodes_are_ready_and_have_eight_gpus_and_no_taint(api: Api) -> None:
    nodes = {node["metadata"]["name"]: node for node in api.get("/api/v1/nodes")["items"]}
    assert {"gpu-0", "gpu-1", "gpu-2"} <= set(nodes)
    node = nodes["gpu-0"]
    assert node["status"]["allocatable"]["nvidia.com/gpu"] == "8"
    assert node["metadata"]["labels"]["nvidia.com/gpu.product"] == "NVIDIA-H100-80GB-HBM3"
    assert "taints" not in node["spec"]


def test_two_pods_of_four_gpus_fill_a_node_and_the_next_gpu_waits(api: Api, namespace: str, make_pod: MakePod) -> None:
    template = make_pod("unused", gpus=4)
    template["spec"]["nodeSelector"] = {"kubernetes.io/hostname": "gpu-2"}
    template = {"metadata": {"labels": {"app": "filler"}}, "spec": template["spec"]}
    deployment = {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": "filler"},
        "spec": {"replicas": 2, "selector": {"matchLabels": {"app": "filler"}}, "template": template},
    }
    path = f"/apis/apps/v1/namespaces/{namespace}/deployments"
    api.create(path, deployment)
    eventually(lambda: api.get(f"{path}/filler")["status"].get("readyReplicas") == 2, "two ready replicas")
    assert {pod["spec"]["nodeName"] for pod in _pods(api, namespace)} == {"gpu-2"}

    ninth = make_pod("ninth", gpus=1)
    ninth["spec"]["nodeSelector"] = {"kubernetes.io/hostname": "gpu-2"}
    api.create(f"/api/v1/namespaces/{namespace}/pods", ninth)

    def refusal() -> str | None:
        conditions = api.get(f"/api/v1/namespaces/{namespace}/pods/ninth")["status"].get("conditions", [])
        return next((each["message"] for each in conditions if each.get("reason") == "Unschedulable"), None)

    assert "Insufficient nvidia.com/gpu" in eventually(refusal, "word of the scheduler")
    api.patch(f"{path}/filler", {"spec": {"replicas": 1}})
    _when(api, namespace, "ninth", lambda status: status["ready"], "place for the ninth GPU")


def test_a_pod_becomes_ready_when_its_annotation_says(api: Api, namespace: str, make_pod: MakePod) -> None:
    pods = f"/api/v1/namespaces/{namespace}/pods"
    api.create(pods, make_pod("late", probe=True, ready_after="2s"))
    early = _when(api, namespace, "late", lambda status: "running" in status["state"], "running container")
    assert (early["ready"], early["started"]) == (False, False)
    late = _when(api, namespace, "late", lambda status: status["ready"], "ready container")
    assert late["started"]


def test_a_pod_may_never_become_ready(api: Api, namespace: str, make_pod: MakePod) -> None:
    pods = f"/api/v1/namespaces/{namespace}/pods"
    api.create(pods, make_pod("never", probe=True, never_ready="true"))
    api.create(pods, make_pod("witness"))
    _when(api, namespace, "never", lambda status: "running" in status["state"], "running container")
    _when(api, namespace, "witness", lambda status: status["ready"], "ready container of another pod")
    status = _container(api, namespace, "never")
    assert (status["ready"], status["started"]) == (False, False)
    api.patch(f"{pods}/never", {"metadata": {"annotations": {"sim.largemodel.dev/never-ready": None}}})
    _when(api, namespace, "never", lambda status: status["ready"], "ready container once it may")


def test_a_pod_crashes_with_its_exit_code_and_message_and_recovers(api: Api, namespace: str, make_pod: MakePod) -> None:
    message = 'rank 3: "out of luck"\nsecond line'
    steering = {"crash_after": "200ms", "exit_code": "64", "termination_message": message, "crashes": "1", "recover_after": "2s"}
    api.create(f"/api/v1/namespaces/{namespace}/pods", make_pod("crasher", **steering))
    waiting = _when(api, namespace, "crasher", lambda status: "waiting" in status["state"], "crash")
    assert waiting["state"]["waiting"]["reason"] == "CrashLoopBackOff"
    assert not waiting["ready"]
    recovered = _when(api, namespace, "crasher", lambda status: status["ready"] and status["restartCount"] == 1, "recovery")
    last = recovered["lastState"]["terminated"]
    assert (last["exitCode"], last["reason"], last["message"]) == (64, "Error", message)


def test_a_pod_that_is_never_ready_may_crash_out_of_memory(api: Api, namespace: str, make_pod: MakePod) -> None:
    steering = {"never_ready": "true", "crash_after": "100ms", "oom": "true", "recover_after": "100ms"}
    api.create(f"/api/v1/namespaces/{namespace}/pods", make_pod("hungry", **steering))
    status = _when(api, namespace, "hungry", lambda status: status["restartCount"] >= 2, "second restart")
    assert (status["lastState"]["terminated"]["exitCode"], status["lastState"]["terminated"]["reason"]) == (137, "OOMKilled")
    assert not status["ready"]


def test_an_image_may_be_impossible_to_pull(api: Api, namespace: str, make_pod: MakePod) -> None:
    words = 'failed to pull image "none": not found'
    api.create(f"/api/v1/namespaces/{namespace}/pods", make_pod("imageless", image_pull_error=words))
    status = _when(api, namespace, "imageless", lambda status: "waiting" in status["state"], "waiting container")
    assert status["state"]["waiting"] == {"reason": "ImagePullBackOff", "message": words}
    assert api.get(f"/api/v1/namespaces/{namespace}/pods/imageless")["status"]["phase"] == "Pending"


def test_a_deleted_pod_stays_as_long_as_its_annotation_says(api: Api, namespace: str, make_pod: MakePod) -> None:
    pods = f"/api/v1/namespaces/{namespace}/pods"
    for pod in (make_pod("slow", stop_after="1h"), make_pod("quick")):
        api.create(pods, pod)
    for name in ("slow", "quick"):
        _when(api, namespace, name, lambda status: status["ready"], "ready container")
        api.delete(f"{pods}/{name}")
    _gone(api, f"{pods}/quick")
    assert "deletionTimestamp" in api.get(f"{pods}/slow")["metadata"]
    api.delete(f"{pods}/slow", {"apiVersion": "v1", "kind": "DeleteOptions", "gracePeriodSeconds": 0})
    _gone(api, f"{pods}/slow")


# ---- controllers, audit, kubectl


def test_what_is_owned_goes_with_its_owner(api: Api, namespace: str) -> None:
    path = f"/api/v1/namespaces/{namespace}/configmaps"
    owner = api.create(path, {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "owner"}})
    reference = {"apiVersion": "v1", "kind": "ConfigMap", "name": "owner", "uid": owner["metadata"]["uid"]}
    api.create(path, {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "owned", "ownerReferences": [reference]}})
    api.delete(f"{path}/owner")
    _gone(api, f"{path}/owned")


def test_the_audit_log_tells_who_asked_what(audit: AuditLog, api: Api, namespace: str) -> None:
    path = f"/api/v1/namespaces/{namespace}/configmaps"
    mark = audit.mark()
    api.request("POST", path, {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "a"}}, user_agent="probe/1")
    api.request("GET", f"{path}/a", user_agent="somebody-else")
    api.request("DELETE", f"{path}/b", user_agent="probe/1")
    first, second = audit.since(mark, user_agent="probe")
    assert (first.verb, first.resource, first.namespace, first.name, first.code) == ("create", "configmaps", namespace, "a", 201)
    assert (second.verb, second.name, second.code, second.user) == ("delete", "b", 404, "admin")
    assert audit.since(audit.mark(), user_agent="probe") == []


def test_kubectl_speaks_to_the_namespace(kubectl: Any, namespace: str) -> None:
    kubectl.apply({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "mine"}, "data": {"key": "value"}})
    found = kubectl.json("get", "configmap", "mine")
    assert (found["metadata"]["namespace"], found["data"]) == (namespace, {"key": "value"})
    assert "not found" in kubectl.run("get", "configmap", "other").stderr


# ---- parts that fail


def test_a_killed_api_server_comes_back_with_everything(own_plane: Plane, api: Api, namespace: str) -> None:
    path = f"/api/v1/namespaces/{namespace}/configmaps"
    api.create(path, {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "survivor"}})
    before = own_plane.identity("kube-apiserver")
    with own_plane.killed("kube-apiserver"):
        assert own_plane.identity("kube-apiserver") is None
        with pytest.raises(ConnectionError):
            api.get(path)
    assert own_plane.identity("kube-apiserver") not in (None, before)
    assert api.get(f"{path}/survivor")["metadata"]["name"] == "survivor"


def test_nothing_can_be_written_while_etcd_is_paused_and_everything_after(own_plane: Plane, api: Api, namespace: str) -> None:
    path = f"/api/v1/namespaces/{namespace}/configmaps"
    document = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "late"}}
    with own_plane.paused("etcd"):
        answer = api.request("POST", path, document, query={"timeout": "1s"})
    assert answer.status >= 500
    eventually(lambda: api.request("POST", path, document).status in (201, 409), "write after the pause")


@pytest.mark.parametrize("component", ["etcd", "kube-controller-manager", "kube-scheduler", "kwok"])
def test_a_part_that_is_restarted_works_again(own_plane: Plane, api: Api, namespace: str, make_pod: MakePod, component: str) -> None:
    own_plane.restart(component)
    job = {"metadata": {"labels": {"app": "after"}}, "spec": make_pod("unused", gpus=1)["spec"]}
    selector = {"matchLabels": {"app": "after"}}
    document = {
        "apiVersion": "apps/v1",
        "kind": "ReplicaSet",
        "metadata": {"name": "after"},
        "spec": {"selector": selector, "template": job},
    }
    path = f"/apis/apps/v1/namespaces/{namespace}/replicasets"
    eventually(lambda: api.request("POST", path, document).status in (201, 409), "write")
    eventually(lambda: api.get(f"{path}/after")["status"].get("readyReplicas") == 1, f"ready pod after a restart of {component}")


def test_nothing_is_left_of_a_plane_whose_owner_is_killed() -> None:
    owner = subprocess.Popen([sys.executable, "-c", OWNER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=_importable())
    with owner:
        assert owner.stdout is not None
        folder = Path(owner.stdout.readline().strip())
        assert folder.is_dir()
        running = marked(folder)
        assert len(running) == len(ARGUMENTS)
        owner.kill()
    psutil.wait_procs(running, timeout=60)
    assert not [process for process in running if process.is_running() and process.status() != psutil.STATUS_ZOMBIE]
    eventually(lambda: not folder.exists(), f"end of {folder}")


def _importable() -> dict[str, str]:
    return os.environ | {"PYTHONPATH": str(Path(__file__).parent / "src")}
