"""A claim that replicas share: filled once by a Job, awaited with a reason, and given up when the object is gone."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
from lmd_plane.client import eventually
from lmd_plane.objects import CHILDREN, Objects
from lmd_plane.operators import Operator
from lmd_plane.plane import Plane

pytestmark = pytest.mark.reliability
AssertQuiet = Callable[..., None]
AssertPaced = Callable[[Operator, int], None]
EnrolOne = Callable[..., Operator]
KINDS = (*CHILDREN, "Job")
COMMIT = "c" * 40
FACTS = {"family": "llama", "parameters": 7, "bytes": 14, "heads": 9, "key_value_heads": 3, "layers": 2, "context_tokens": 512}
BROUGHT = json.dumps({"revision": COMMIT, "bytes": 20, "model": FACTS})
SIM = "sim.largemodel.dev"


def cached(revision: str = "main", on_delete: str = "Retain", **steering: str) -> dict[str, Any]:
    """A change of the sample's spec to a fetched model in a claim, whose Job is steered."""
    annotations = {f"{SIM}/completion-message": BROUGHT, **{f"{SIM}/{key.replace('_', '-')}": value for key, value in steering.items()}}
    return {
        "model": {
            "source": {"path": None, "huggingFace": {"repository": "acme/model", "revision": revision}},
            "cache": {"claimName": "models", "onDelete": on_delete},
        },
        "replicas": 2,
        "template": {"metadata": {"annotations": annotations}},
    }


@pytest.fixture
def claim(objects: Objects) -> None:
    """The claim, bound to a volume that is nowhere."""
    name = f"models-{objects.namespace}"
    size = {"storage": "1Gi"}
    modes = {"accessModes": ["ReadWriteMany"], "storageClassName": ""}
    volume = {"capacity": size, **modes, "hostPath": {"path": "/nowhere"}, "claimRef": {"name": "models", "namespace": objects.namespace}}
    claims = f"/api/v1/namespaces/{objects.namespace}/persistentvolumeclaims"
    objects.api.create(
        "/api/v1/persistentvolumes", {"apiVersion": "v1", "kind": "PersistentVolume", "metadata": {"name": name}, "spec": volume}
    )
    spec = {**modes, "volumeName": name, "resources": {"requests": size}}
    objects.api.create(claims, {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": "models"}, "spec": spec})
    eventually(lambda: objects.api.get(f"{claims}/models")["status"].get("phase") == "Bound", "bound claim")


def jobs(objects: Objects, task: str, owner: str = "small") -> list[dict[str, Any]]:
    found = objects.children(owner, ("Job",)).values()
    return [each for each in found if each["metadata"]["labels"]["largemodel.dev/task"] == task]


def is_complete(job: dict[str, Any]) -> bool:
    return any(each["type"] == "Complete" and each["status"] == "True" for each in job.get("status", {}).get("conditions") or [])


def job_pods(objects: Objects, job: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = objects.api.get(f"{objects.path('Pod')}?labelSelector=batch.kubernetes.io%2Fjob-name%3D{job}")["items"]
    return found


def the_pod(objects: Objects, job: str) -> str:
    """Wait for the running pod of a Job and return its name."""

    def running() -> str | None:
        found = [pod for pod in job_pods(objects, job) if pod.get("status", {}).get("phase") == "Running"]
        return found[0]["metadata"]["name"] if found else None

    return eventually(running, f"running pod of {job}")


def ends(objects: Objects, pod: str, container: dict[str, Any], phase: str = "Running") -> None:
    """Make the one container of a Job's pod look like this."""
    found = objects.api.get(objects.path("Pod", pod))["spec"]["containers"][0]["name"]
    status = {"name": found, "image": "w", "imageID": "", "ready": False, "started": False, "restartCount": 0, **container}
    objects.api.patch(f"{objects.path('Pod', pod)}/status", {"status": {"phase": phase, "containerStatuses": [status]}})


def succeeds(objects: Objects, pod: str) -> None:
    ends(objects, pod, {"state": {"terminated": {"exitCode": 0, "reason": "Completed", "message": BROUGHT}}}, "Succeeded")


def test_a_cache_is_filled_once_and_then_there_is_silence(
    own_plane: Plane, operator: Operator, objects: Objects, assert_quiet: AssertQuiet, assert_paced: AssertPaced, claim: None
) -> None:
    mark = own_plane.audit.mark()
    objects.create("small", cached(on_delete="Delete"))
    objects.wait_settled("small")
    assert_quiet(operator, seconds=5)
    written = operator.writes(own_plane, mark)
    per_object = Counter((entry.resource, entry.subresource, entry.name) for entry in written)
    status = per_object.pop(("largemodeldeployments", "status", "small"))
    print(f"writes: {sum(per_object.values())} of children, {status} of the status")
    assert set(per_object.values()) == {1}
    assert len(per_object) == len(objects.children("small", KINDS)) == len(CHILDREN) + 3, "two Jobs and the policy of their pods more"
    assert_paced(operator, mark)
    found = objects.parent("small")["status"]
    assert (found["weights"]["revision"], found["model"]["family"]) == (COMMIT, "llama")

    mark = own_plane.audit.mark()
    operator.kill()
    operator.start()
    operator.wait_leading()
    assert_quiet(operator, seconds=5)
    assert operator.writes(own_plane, mark) == []

    objects.change("small", {"engine": {"concurrency": 4}})
    objects.wait_settled("small")
    assert_quiet(operator, seconds=1)
    again = [entry for entry in operator.writes(own_plane, mark) if entry.resource == "jobs"]
    assert again == [], "a roll-out uses what is there"


def test_replicas_wait_for_the_job_and_say_why(operator: Operator, objects: Objects, claim: None, assert_quiet: AssertQuiet) -> None:
    objects.create("small", cached(never_completes="true"))
    job = eventually(lambda: jobs(objects, "fetch"), "Job")[0]["metadata"]["name"]
    pod = the_pod(objects, job)
    eventually(lambda: objects.condition("small", "Ready").get("reason") == "FetchingWeights", "reason")
    assert objects.get("Deployment", "small") is None, "nothing holds devices"
    assert "largemodel.dev/deployment" not in objects.api.get(objects.path("Pod", pod))["metadata"]["labels"], (
        "no Service sends it requests"
    )

    failed = {"terminated": {"exitCode": 1, "message": "TokenMissing: acme/model is private; set tokenSecretRef."}}
    waiting = {"waiting": {"reason": "CrashLoopBackOff", "message": "back-off"}}
    ends(objects, pod, {"state": waiting, "lastState": failed, "restartCount": 1})
    eventually(lambda: objects.condition("small", "Ready").get("reason") == "TokenMissing", "cause", seconds=30)
    assert "set tokenSecretRef" in objects.condition("small", "Reconciling")["message"]
    assert objects.condition("small", "Stalled")["status"] == "False", "it is tried again"
    ends(objects, pod, {"state": waiting, "lastState": failed, "restartCount": 6})
    eventually(lambda: objects.condition("small", "Stalled").get("reason") == "TokenMissing", "standstill", seconds=30)

    succeeds(objects, pod)
    objects.wait_settled("small")
    assert_quiet(operator, seconds=1)


def test_a_new_model_comes_before_the_old_one_goes(operator: Operator, objects: Objects, claim: None, assert_quiet: AssertQuiet) -> None:
    objects.create("small", cached())
    objects.wait_settled("small")
    assert_quiet(operator, seconds=0.2)
    first = objects.get("Deployment", "small")
    assert first is not None
    objects.change("small", cached("v2", never_completes="true"))
    eventually(lambda: objects.condition("small", "Reconciling").get("reason") == "FetchingWeights", "fetch", seconds=30)
    (fill,) = jobs(objects, "fetch")
    pod = the_pod(objects, fill["metadata"]["name"])
    now = objects.get("Deployment", "small")
    assert now is not None
    assert now["spec"] == first["spec"], "old replicas answer until the new model is there"
    assert objects.condition("small", "Ready")["status"] == "True"
    succeeds(objects, pod)
    objects.wait_settled("small")
    assert objects.parent("small")["status"]["weights"]["revision"] == COMMIT


def test_a_job_that_vanishes_is_made_anew_and_nobody_is_disturbed(
    operator: Operator, objects: Objects, claim: None, assert_quiet: AssertQuiet
) -> None:
    objects.create("small", cached())
    objects.wait_settled("small")
    assert_quiet(operator, seconds=0.2)
    (job,) = jobs(objects, "fetch")
    pods = {pod["metadata"]["uid"] for pod in objects.children("small", ("Pod",)).values()}
    objects.api.delete(f"{objects.path('Job', job['metadata']['name'])}?propagationPolicy=Background")

    def is_anew() -> bool:
        found = jobs(objects, "fetch")
        return bool(found) and found[0]["metadata"]["uid"] != job["metadata"]["uid"] and is_complete(found[0])

    eventually(is_anew, "new Job")
    assert_quiet(operator, seconds=1)
    assert {pod["metadata"]["uid"] for pod in objects.children("small", ("Pod",)).values()} == pods
    assert objects.is_settled("small")


@pytest.mark.parametrize("is_down", [False, True], ids=["while it runs", "while it is down"])
def test_what_is_in_the_cache_is_given_up_after_the_last_pod(
    operator: Operator, objects: Objects, claim: None, assert_quiet: AssertQuiet, is_down: bool
) -> None:
    objects.create("small", cached(on_delete="Delete", stop_after="3s"))
    objects.wait_settled("small")
    assert_quiet(operator, seconds=0.2)
    (removal,) = jobs(objects, "remove")
    assert removal["spec"]["suspend"] is True
    assert "ownerReferences" not in removal["metadata"]
    if is_down:
        operator.kill()
    objects.delete("small")
    if is_down:
        operator.start()
    name = removal["metadata"]["name"]
    replicas = f"{objects.path('Pod')}?labelSelector=largemodel.dev%2Fdeployment%3Dsmall"
    eventually(lambda: objects.get("Deployment", "small") is None, "end of the Deployment")

    def is_done() -> bool:
        job = objects.get("Job", name)  # before the pods: one may end between the two looks, but none may begin
        left = objects.api.get(replicas)["items"]
        assert job is not None
        assert not left or job["spec"]["suspend"] is True, "a replica may still read what would be removed"
        return is_complete(job)

    eventually(is_done, "removal", seconds=60)
    assert jobs(objects, "fetch") == []


def test_what_is_retained_is_not_touched_and_the_choice_may_change(
    operator: Operator, objects: Objects, claim: None, assert_quiet: AssertQuiet
) -> None:
    objects.create("small", cached(on_delete="Delete"))
    objects.create("kept", cached())
    objects.wait_settled("small", "kept")
    assert jobs(objects, "remove", "kept") == []
    (before,) = jobs(objects, "remove")
    objects.change("small", {"model": {"source": {"huggingFace": {"revision": "v2"}}}})
    eventually(lambda: len(jobs(objects, "remove")) == 2, "Jobs of both models")
    objects.wait_settled("small")
    objects.change("small", {"model": {"cache": {"onDelete": "Retain"}}})
    eventually(lambda: jobs(objects, "remove") == [], "end of the Jobs that would remove")
    objects.change("small", {"model": {"cache": {"onDelete": "Delete"}}})
    (after,) = eventually(lambda: jobs(objects, "remove"), "Job that waits")
    assert after["metadata"]["name"] != before["metadata"]["name"]
    objects.wait_settled("small")
    assert_quiet(operator, seconds=1)
    for name in ("small", "kept"):
        objects.delete(name)
        objects.wait_gone(name)


def test_a_successor_of_the_same_name_inherits_the_waiting_job(
    operator: Operator, objects: Objects, claim: None, assert_quiet: AssertQuiet
) -> None:
    objects.create("small", cached(on_delete="Delete"))
    objects.wait_settled("small")
    assert_quiet(operator, seconds=0.2)
    operator.kill()
    objects.delete("small")
    eventually(lambda: objects.get("LargeModelDeployment", "small") is None, "end of the object")
    objects.create("small", cached(on_delete="Delete"))
    operator.start()
    objects.wait_settled("small", seconds=120)
    (removal,) = jobs(objects, "remove")
    assert removal["spec"]["suspend"] is True
    assert_quiet(operator, seconds=1)


def test_a_suspended_object_has_no_pods_and_goes_on_where_it_was(
    operator: Operator, objects: Objects, claim: None, assert_quiet: AssertQuiet
) -> None:
    objects.create("small", {**cached(never_completes="true"), "suspend": True})
    objects.wait_settled("small")
    (job,) = jobs(objects, "fetch")
    assert job_pods(objects, job["metadata"]["name"]) == []
    objects.change("small", {"suspend": False})
    succeeds(objects, the_pod(objects, job["metadata"]["name"]))
    objects.wait_settled("small")
    objects.change("small", {"suspend": True})
    objects.wait_settled("small")
    assert_quiet(operator, seconds=1)
    assert is_complete(jobs(objects, "fetch")[0])
