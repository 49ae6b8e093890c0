"""What a plan needs to know is asked of the model's files by a Job, once for each revision, and kept in the status."""

from __future__ import annotations

import base64
import json
import zlib
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from lmd_plane.client import eventually
from lmd_plane.objects import CHILDREN, Objects
from lmd_plane.operators import Operator
from lmd_plane.plane import Plane

pytestmark = pytest.mark.reliability
AssertQuiet = Callable[..., None]
AssertPaced = Callable[[Operator, int], None]
SIM = "sim.largemodel.dev"
PUBLISHED = json.loads((Path(__file__).parents[2] / "unit" / "lmd_operator" / "published_models.json").read_text())
CONFIG = next(entry["config"] for entry in PUBLISHED if entry["name"] == "Llama-3.1-70B")
OUTLINE = {"config": CONFIG, "tensors": []}
PACKED = base64.b64encode(zlib.compress(json.dumps(OUTLINE).encode())).decode()
FACTS = {"revision": "c" * 40, "family": "llama", "parameters": 7, "bytes": 14, "heads": 9, "key_value_heads": 3, "layers": 2}
SAID = json.dumps({"model": {**FACTS, "experts": 0, "context_tokens": 512, "dtype": "BF16", "quantization": ""}, "outline": PACKED})


def asking(revision: str = "main", **steering: str) -> dict[str, Any]:
    """A change of the sample's spec to a model whose degree is to be planned."""
    annotations = {f"{SIM}/completion-message": SAID, **{f"{SIM}/{key.replace('_', '-')}": value for key, value in steering.items()}}
    return {
        "model": {"source": {"path": None, "huggingFace": {"repository": "acme/model", "revision": revision}}},
        "parallelism": {"strategy": "Auto", "tensor": "Auto"},
        "accelerator": {"type": "Nvidia", "memory": "80Gi"},
        "engine": {"dtype": "bfloat16"},
        "template": {"metadata": {"annotations": annotations}},
        "replicas": 2,
    }


def looks(objects: Objects) -> list[dict[str, Any]]:
    return [job for job in objects.children("small", ("Job",)).values() if job["metadata"]["labels"]["largemodel.dev/task"] == "inspect"]


def test_a_model_is_looked_at_once_and_then_planned(
    own_plane: Plane, operator: Operator, objects: Objects, assert_quiet: AssertQuiet, assert_paced: AssertPaced
) -> None:
    mark = own_plane.audit.mark()
    objects.create("small", asking())
    objects.wait_settled("small")
    assert_quiet(operator, seconds=3)
    written = operator.writes(own_plane, mark)
    per_object = Counter((entry.resource, entry.subresource, entry.name) for entry in written)
    status = per_object.pop(("largemodeldeployments", "status", "small"))
    print(f"writes: {sum(per_object.values())} of children, {status} of the status")
    assert set(per_object.values()) == {1}
    assert len(per_object) == len(CHILDREN) + 2, "the Job and the policy of its pod more"
    assert_paced(operator, mark)
    found = objects.parent("small")["status"]
    assert (found["model"]["family"], found["model"]["revision"], found["model"]["outline"]) == ("llama", "c" * 40, PACKED)
    assert (found["plan"]["strategy"], found["plan"]["tensor"], found["plan"]["gpusPerReplica"]) == ("DeepSpeed", 2, 2)
    assert found["plan"]["memory"]["fits"]
    assert found["plan"]["memory"]["weightsGiB"] > 60
    assert "smallest legal split that fits" in objects.condition("small", "Planned")["message"]

    (look,) = looks(objects)
    assert look["spec"]["ttlSecondsAfterFinished"] > 0
    objects.api.delete(f"{objects.path('Job', look['metadata']['name'])}?propagationPolicy=Background")
    eventually(lambda: not looks(objects), "end of the Job")
    mark = own_plane.audit.mark()
    operator.kill()
    operator.start()
    operator.wait_leading()
    objects.change("small", {"engine": {"concurrency": 4}})
    objects.wait_settled("small")
    assert_quiet(operator, seconds=3)
    assert not [entry for entry in operator.writes(own_plane, mark) if entry.resource == "jobs"], "what is in the status is enough"
    assert objects.parent("small")["status"]["model"]["outline"] == PACKED


def test_nothing_is_planned_before_and_why_is_told(operator: Operator, objects: Objects, assert_quiet: AssertQuiet) -> None:
    objects.create("small", asking(never_completes="true"))
    eventually(lambda: objects.condition("small", "Planned").get("reason") == "ModelUnknown", "word of the plan")
    (look,) = looks(objects)
    pods = f"{objects.path('Pod')}?labelSelector=batch.kubernetes.io%2Fjob-name%3D{look['metadata']['name']}"
    pod = eventually(lambda: [each for each in objects.api.get(pods)["items"] if each.get("status", {}).get("podIP")], "pod")[0]
    path = f"{objects.path('Pod', pod['metadata']['name'])}/status"
    assert set(objects.children("small")) == {("NetworkPolicy", "small-tasks")}

    container = {"name": "inspect", "image": "w", "imageID": "", "ready": False, "started": False, "restartCount": 1}
    ended = {
        "terminated": {"exitCode": 1, "message": "RevisionNotFound: acme/model has no revision main (any more); name one that exists."}
    }
    waiting = {"waiting": {"reason": "CrashLoopBackOff", "message": "back-off"}}
    objects.api.patch(path, {"status": {"containerStatuses": [{**container, "state": waiting, "lastState": ended}]}})
    eventually(lambda: objects.condition("small", "Ready").get("reason") == "RevisionNotFound", "cause", seconds=30)
    assert "name one that exists" in objects.condition("small", "Planned")["message"]

    done = {"terminated": {"exitCode": 0, "reason": "Completed", "message": SAID}}
    objects.api.patch(path, {"status": {"phase": "Succeeded", "containerStatuses": [{**container, "state": done}]}})
    objects.wait_settled("small")
    assert_quiet(operator, seconds=1)


def test_what_runs_goes_on_while_another_model_is_looked_at(operator: Operator, objects: Objects, assert_quiet: AssertQuiet) -> None:
    objects.create("small", asking())
    objects.wait_settled("small")
    assert_quiet(operator, seconds=0.2)
    before = {key: child["metadata"]["uid"] for key, child in objects.children("small", (*CHILDREN, "Pod")).items()}
    objects.change("small", asking("v2", never_completes="true"))
    eventually(lambda: objects.condition("small", "Planned")["reason"] == "ModelUnknown", "word of the plan")
    assert objects.condition("small", "Ready")["status"] == "True"
    assert objects.condition("small", "Reconciling")["status"] == "True"
    after = {key: child["metadata"]["uid"] for key, child in objects.children("small", (*CHILDREN, "Pod")).items()}
    assert before.items() <= after.items()
    objects.change("small", asking("v2", never_completes="false"))
    objects.wait_settled("small")
    assert objects.parent("small")["status"]["revision"]["current"] != ""
    assert_quiet(operator, seconds=1)
    assert len(looks(objects)) <= 2


def test_nobody_looks_where_nothing_is_planned(operator: Operator, objects: Objects) -> None:
    objects.create("small", {"replicas": 1})
    objects.wait_settled("small")
    assert objects.children("small", ("Job",)) == {}


def test_a_model_that_fits_nowhere_is_refused_with_the_sum(operator: Operator, objects: Objects, assert_quiet: AssertQuiet) -> None:
    objects.create("small", {**asking(), "accelerator": {"type": "Nvidia", "memory": "1Gi"}})
    eventually(lambda: objects.condition("small", "Accepted").get("reason") == "DoesNotFit", "word of the plan", seconds=30)
    assert "is Auto, but" in objects.condition("small", "Accepted")["message"]
    assert not objects.children("small", ("Deployment",))
    objects.change("small", {"accelerator": {"memory": "80Gi"}})
    objects.wait_settled("small")
    assert_quiet(operator, seconds=1)
