"""Jobs of objects: when they are other ones, and what is told of them."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from lmd_operator.api.parse import parse
from lmd_operator.api.status import Status
from lmd_operator.api.v1alpha1 import LargeModelDeployment
from lmd_operator.observed import DeploymentState, JobState, PodState, Progress, TaskState, job_state, pod_state
from lmd_operator.resources.cache import fill_job, removal_job
from lmd_operator.resources.desired import desired, document
from lmd_operator.settings import Settings
from lmd_operator.status import Observed, summarize, tasks

ROOT = Path(__file__).parents[3]
SCENARIO = yaml.safe_load((ROOT / "tests" / "scenarios" / "cache-removed-with-the-object.yaml").read_text())
T1 = "2026-01-01T00:00:00Z"
RUNS = JobState(is_complete=False, is_suspended=False, failure="")
COMPLETE = JobState(is_complete=True, is_suspended=False, failure="")
SAID = json.dumps({"revision": "c" * 40, "bytes": 1000})


def an_owner(**changes: Any) -> LargeModelDeployment:
    """The scenario's object; keys are paths into its spec, with __ between the names."""
    manifest = copy.deepcopy(SCENARIO)
    for path, value in changes.items():
        node = manifest["spec"]
        *names, last = path.split("__")
        for name in names:
            node = node.setdefault(name, {})
        node[last] = value
    return parse(manifest)


def fill(owner: LargeModelDeployment, settings: Settings = Settings()) -> dict[str, Any]:  # noqa: B008 - frozen
    found = fill_job(owner, settings)
    assert found is not None
    return document(found)


def name_of(job: dict[str, Any]) -> str:
    name: str = job["metadata"]["name"]
    return name


@pytest.mark.parametrize(
    ("changes", "is_another"),
    [
        ({"engine__concurrency": 4}, False),
        ({"replicas": 3}, False),
        ({"suspend": True}, False),
        ({"restart": "again"}, False),
        ({"parallelism__tensor": 2}, False),
        ({"model__cache__onDelete": "Retain"}, False),
        ({"model__source__huggingFace__revision": "v2"}, True),
        ({"model__source__huggingFace__repository": "acme/other"}, True),
        ({"model__cache__claimName": "other"}, True),
        ({"model__verify": {"sha256": {"config.json": "0" * 64}}}, True),
        ({"template__image": "other"}, True),
    ],
    ids=str,
)
def test_a_job_is_another_one_when_its_pod_would_be(changes: dict[str, Any], is_another: bool) -> None:
    """A pod template of a Job cannot be changed, so what changes it must change the name; and a roll-out needs no new fetch."""
    before, after = fill(an_owner()), fill(an_owner(**changes))
    assert (name_of(before) != name_of(after)) is is_another
    assert (before["spec"]["template"] != after["spec"]["template"]) is is_another


def test_two_objects_of_one_model_find_it_in_the_same_place() -> None:
    owner = an_owner()
    other = owner.model_copy(update={"metadata": owner.metadata.model_copy(update={"name": "other"})})
    orders = [json.loads(fill(each)["spec"]["template"]["metadata"]["annotations"]["largemodel.dev/order"]) for each in (owner, other)]
    assert orders[0]["into"] == orders[1]["into"]
    assert [order["user"] for order in orders] == ["prod.passing", "prod.other"]
    assert fill(owner)["metadata"]["labels"]["largemodel.dev/revision"] == fill(other)["metadata"]["labels"]["largemodel.dev/revision"]


def test_only_delete_has_a_job_that_waits_and_nobody_owns_it() -> None:
    assert removal_job(an_owner(model__cache__onDelete="Retain"), Settings()) is None
    found = removal_job(an_owner(), Settings())
    assert found is not None
    job = document(found)
    assert job["spec"]["suspend"] is True
    assert "ownerReferences" not in job["metadata"]
    assert "app.kubernetes.io/instance" not in job["metadata"]["labels"], "Argo CD would prune what has it and nobody owns"
    assert fill(an_owner())["metadata"]["ownerReferences"][0]["uid"] == SCENARIO["metadata"]["uid"]


def test_an_object_without_a_cache_has_no_jobs() -> None:
    manifest = copy.deepcopy(SCENARIO)
    del manifest["spec"]["model"]["cache"]
    built = desired(parse(manifest), Settings())
    assert built.fill == ""
    kinds = [document(resource)["kind"] for resource in built.resources]
    assert "Job" not in kinds
    assert kinds.count("NetworkPolicy") == 1


# ---- what is told


def a_pod(container: dict[str, Any], *, scheduled: str = "", job: str = "fill") -> PodState:
    """The pod of a Job, as the API server sends it."""
    condition = {"type": "PodScheduled", "status": "False" if scheduled else "True", "message": scheduled}
    return pod_state(
        {
            "metadata": {"name": "pod", "labels": {"batch.kubernetes.io/job-name": job}},
            "status": {
                "podIP": "127.0.0.1",
                "conditions": [condition, {"type": "Ready", "status": "True"}],
                "containerStatuses": [{"name": "fetch", "restartCount": 0, **container}],
            },
        }
    )


def failed(message: str, restarts: int) -> dict[str, Any]:
    waiting = {"waiting": {"reason": "CrashLoopBackOff", "message": "back-off"}}
    return {"state": waiting, "lastState": {"terminated": {"exitCode": 1, "message": message}}, "restartCount": restarts}


RUNNING = {"state": {"running": {}}}
DONE = {"state": {"terminated": {"exitCode": 0, "message": SAID}}}
DENIED = "TokenMissing: acme/model is private; set tokenSecretRef."


def told(task: TaskState, progress: Progress | None = None, deployment: DeploymentState | None = None) -> Status:
    owner = an_owner()
    seen = Observed(deployment, (), (), (), {"pod": progress} if progress else {}, task)
    return summarize(owner, desired(owner, Settings()), seen, Status(), T1)


@pytest.mark.parametrize(
    ("task", "ready", "words"),
    [
        (TaskState("fill", None), "PodsPending", "is being started"),
        (TaskState("fill", RUNS), "PodsPending", "kubectl describe job fill"),
        (
            TaskState("fill", RUNS, (a_pod({}, scheduled='persistentvolumeclaim "model-cache" not found'),)),
            "Unschedulable",
            "spec.model.cache",
        ),
        (TaskState("fill", RUNS, (a_pod({"state": {"waiting": {"reason": "ImagePullBackOff"}}}),)), "ImagePull", "imagePullSecrets"),
        (TaskState("fill", RUNS, (a_pod(RUNNING),)), "FetchingWeights", "being fetched"),
        (TaskState("fill", RUNS, (a_pod(failed(DENIED, 2)),)), "TokenMissing", "set tokenSecretRef"),
        (TaskState("fill", RUNS, (a_pod(DONE),)), "PodsPending", "done its work"),
        (TaskState("fill", JobState(False, False, "deadline")), "FetchFailed", "delete it, and it is made anew"),
        (TaskState("fill", COMPLETE), "Creating", "Deployment is being created"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_every_state_of_the_job_is_told(task: TaskState, ready: str, words: str) -> None:
    found = {condition.type: condition for condition in told(task).conditions}
    assert (found["Ready"].status, found["Ready"].reason) == ("False", ready)
    assert words in found["Ready"].message
    assert found["Ready"].message.startswith("0 of 1 replica answer.")


def test_progress_of_the_job_is_told() -> None:
    status = told(TaskState("fill", RUNS, (a_pod(RUNNING),)), Progress("fetching", 43, 100, 10, 6))
    assert status.weights is not None
    assert status.weights.percent == 43
    assert "43%" in next(condition.message for condition in status.conditions if condition.type == "Ready")


def test_what_the_job_brought_is_told() -> None:
    status = told(TaskState("fill", COMPLETE, (a_pod(DONE),)))
    assert status.weights is not None
    assert (status.weights.revision, status.weights.percent) == ("c" * 40, 100)


@pytest.mark.parametrize(
    ("container", "progress", "is_stuck"),
    [
        (failed(DENIED, 4), None, False),
        (failed(DENIED, 5), None, True),
        ({**failed(DENIED, 5), **RUNNING}, None, True),
        ({**failed(DENIED, 5), **RUNNING}, Progress("fetching", 1, 2, 1, 1), False),
        (failed("Killed", 9), None, False),
    ],
    ids=["few tries", "many tries", "one more try", "it moves", "not of its own will"],
)
def test_a_job_that_fails_again_and_again_needs_somebody(container: dict[str, Any], progress: Progress | None, is_stuck: bool) -> None:
    task = TaskState("fill", RUNS, (a_pod(container),))
    status = told(task, progress)
    found = {condition.type: condition for condition in status.conditions}
    assert (found["Stalled"].status == "True") is is_stuck
    assert (found["Reconciling"].status == "True") is not is_stuck
    if is_stuck:
        assert found["Stalled"].reason == found["Ready"].reason == "TokenMissing"


def test_replicas_that_answer_are_not_excused_by_a_job_that_runs_again() -> None:
    """Somebody deleted the Job: the replicas have what they need, and the object stays settled."""
    owner = an_owner()
    built = desired(owner, Settings())
    state = DeploymentState(generation=1, observed_generation=1, replicas=1, ready=1, updated=1, available=1, is_stuck=False, failure="")
    pod = pod_state(
        {
            "metadata": {"name": "a", "labels": {"largemodel.dev/revision": built.files.revision}},
            "status": {
                "conditions": [{"type": "PodScheduled", "status": "True"}, {"type": "Ready", "status": "True"}],
                "containerStatuses": [{"name": "worker", "started": True, "state": {"running": {}}}],
            },
        }
    )
    seen = Observed(state, (pod,), (), (), {}, TaskState("fill", RUNS))
    found = {condition.type: condition for condition in summarize(owner, built, seen, Status(), T1).conditions}
    assert [found[each].status for each in ("Ready", "Reconciling", "Stalled")] == ["True", "False", "False"]


def test_a_pod_of_a_job_is_never_ready() -> None:
    """Without a probe Kubernetes takes it for ready as soon as it runs."""
    assert not a_pod(RUNNING).is_ready
    assert tasks.STUCK_RESTARTS > 1


@pytest.mark.parametrize(
    ("status", "expected"),
    [
        ({}, RUNS),
        ({"conditions": [{"type": "Complete", "status": "True"}]}, COMPLETE),
        ({"conditions": [{"type": "Complete", "status": "False"}]}, RUNS),
        ({"conditions": [{"type": "SuccessCriteriaMet", "status": "True"}]}, RUNS),
        ({"conditions": [{"type": "Failed", "status": "True", "message": "deadline"}]}, JobState(False, False, "deadline")),
        ({"conditions": [{"type": "Failed", "status": "True"}]}, JobState(False, False, "it has failed")),
    ],
)
def test_a_job_is_read(status: dict[str, Any], expected: JobState) -> None:
    assert job_state({"metadata": {}, "spec": {}, "status": status}) == expected
    assert expected.is_finished == (expected.is_complete or bool(expected.failure))
