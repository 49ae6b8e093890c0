"""ParallelismVerified on the real plane: replicas that run what is planned, something else, or say nothing; few writes, and quiet."""

from __future__ import annotations

import contextlib
import copy
import http.server
import json
import random
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from lmd_plane.client import eventually
from lmd_plane.objects import Objects
from lmd_plane.operators import Operator
from lmd_plane.plane import Plane

from lmd_operator.rendering.layout import POD
from lmd_operator.runtime.reports import LARGEST_ANSWER_BYTES

pytestmark = pytest.mark.reliability
NOBODY = "127.77.0.3"
AssertQuiet = Callable[..., None]
AssertPaced = Callable[[Operator, int], None]
Document = dict[str, Any]


def _bound(handler: type[http.server.BaseHTTPRequestHandler]) -> http.server.ThreadingHTTPServer:
    """Return a server at a loopback address of its own, as the port is fixed and other tests run beside."""
    for _ in range(100):
        with contextlib.suppress(OSError):
            address = f"127.78.{random.randrange(256)}.{random.randrange(1, 255)}"
            return http.server.ThreadingHTTPServer((address, POD.operations_port), handler)
    raise AssertionError("no loopback address is free")


class Replicas:
    """Answers for the pods at one address, whatever the test wants."""

    def __init__(self) -> None:
        self.status, self.body = 200, b""
        self.asked: list[dict[str, str]] = []
        told = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                told.asked.append({"path": self.path, **{name.lower(): value for name, value in self.headers.items()}})
                self.send_response(told.status)
                self.send_header("Content-Length", str(len(told.body)))
                self.end_headers()
                self.wfile.write(told.body)

            def log_message(self, *words: object) -> None:
                pass

        self.server = _bound(Handler)
        self.address = str(self.server.server_address[0])

    def report(self, plan: Document, change: Callable[[list[Document]], object] = lambda ranks: None) -> None:
        """Answer what ranks of the plan report, with a change."""
        count = plan["tensor"]
        rank = {"world_size": count, "strategy": plan["strategy"], "degree": count, "device_id": "cpu of pod"}
        rank |= {"parameter_bytes": 45_000_000, "allowed_bytes": 50_000_000, "model_bytes": 134_500_000}
        ranks = [{"rank": number, **rank} for number in range(count)]
        change(ranks)
        self.body = json.dumps({"ranks": ranks}).encode()


@pytest.fixture
def replicas() -> Iterator[Replicas]:
    found = Replicas()
    thread = threading.Thread(target=found.server.serve_forever)
    thread.start()
    yield found
    found.server.shutdown()
    thread.join()
    found.server.server_close()


def _at(address: str, **more: Any) -> Document:
    return {"template": {"metadata": {"annotations": {"sim.largemodel.dev/address": address}}}, **more}


def _verified(objects: Objects) -> tuple[str, str]:
    condition = objects.condition("small", "ParallelismVerified")
    return condition.get("status", ""), condition.get("reason", "")


def _becomes(objects: Objects, status: str, reason: str) -> str:
    """Wait for a verdict and return its message."""
    eventually(lambda: _verified(objects) == (status, reason), f"ParallelismVerified={status}/{reason}", seconds=30)
    return str(objects.condition("small", "ParallelismVerified")["message"])


def _restart(operator: Operator) -> None:
    operator.kill()
    operator.start()
    operator.wait_leading()


def _plan(objects: Objects) -> Document:
    """Return how the sample is planned; three ranks on CPUs."""
    spec = objects.manifest("small")["spec"]
    return {"strategy": "DeepSpeed", "tensor": spec["parallelism"]["tensor"]}


def test_ranks_as_planned_are_verified_and_a_restart_writes_nothing(
    own_plane: Plane, operator: Operator, objects: Objects, replicas: Replicas, assert_quiet: AssertQuiet, assert_paced: AssertPaced
) -> None:
    replicas.report(_plan(objects))
    mark = own_plane.audit.mark()
    objects.create("small", _at(replicas.address, replicas=2))
    objects.wait_settled("small")
    message = _becomes(objects, "True", "AsPlanned")
    assert message == "All 3 ranks run what is planned: DeepSpeed at degree 3, 45.0 MB of parameters each of 134.5 MB."
    assert_quiet(operator, seconds=3)
    assert_paced(operator, mark)
    assert [request["path"] for request in replicas.asked] == ["/report"] * 2, "each replica once"
    assert all("authorization" not in request for request in replicas.asked)

    mark = own_plane.audit.mark()
    _restart(operator)
    eventually(lambda: len(replicas.asked) == 4, "the same questions after a restart")
    replicas.status = 503
    _restart(operator)
    eventually(lambda: len(replicas.asked) > 4, "questions that are not answered")
    assert_quiet(operator, seconds=3)
    assert operator.writes(own_plane, mark) == []
    assert _verified(objects) == ("True", "AsPlanned")


def test_ready_and_verified_are_told_together_where_a_replica_loads_before_it_is_ready(
    operator: Operator, objects: Objects, replicas: Replicas, assert_quiet: AssertQuiet
) -> None:
    replicas.report(_plan(objects))
    steering = {"sim.largemodel.dev/image-pull-error": "stays as the test makes it", "sim.largemodel.dev/never-ready": "true"}
    stays = {"template": {"metadata": {"annotations": steering}}}
    objects.create("small", {**stays, "replicas": 1})

    def waiting() -> str | None:
        found = [name for (_, name), pod in objects.children("small", ("Pod",)).items() if pod.get("status", {}).get("containerStatuses")]
        return found[0] if found else None

    pod = f"{objects.path('Pod', eventually(waiting, 'pod that waits'))}/status"
    eventually(lambda: objects.condition("small", "Ready").get("reason") == "ImagePull", "the first status")
    worker = {"name": "worker", "image": "w", "imageID": "", "ready": False, "restartCount": 0, "state": {"running": {}}, "started": True}
    address = {"podIP": replicas.address, "podIPs": [{"ip": replicas.address}], "phase": "Running"}
    objects.api.patch(pod, {"status": {**address, "containerStatuses": [worker]}})
    eventually(lambda: replicas.asked, "the question")
    ready = [{"type": kind, "status": "True"} for kind in ("Ready", "ContainersReady", "PodScheduled")]
    assert_quiet(operator, seconds=0.1)  # as long as two writes are apart
    assert _verified(objects) == ("Unknown", "NotReported"), "nothing is said of a replica that is not ready"
    objects.api.patch(pod, {"status": {"conditions": ready, "containerStatuses": [{**worker, "ready": True}]}})
    objects.wait_settled("small")
    assert _verified(objects) == ("True", "AsPlanned")
    verified, ready_said = (objects.condition("small", name) for name in ("ParallelismVerified", "Ready"))
    assert verified["lastTransitionTime"] == ready_said["lastTransitionTime"]


def _cut_by_two(ranks: list[Document]) -> None:
    del ranks[2]
    for rank in ranks:
        rank.update(world_size=2, degree=2)


def _of_the_last(**change: Any) -> Callable[[list[Document]], object]:
    return lambda ranks: ranks[-1].update(change)


DIFFERENCES: dict[str, tuple[Callable[[list[Document]], object], str, str]] = {
    "degree": (_cut_by_two, "DegreeMismatch", "rank 0 runs DeepSpeed at degree 2 on 2 ranks, but DeepSpeed at degree 3 on 3 ranks"),
    "missing": (lambda ranks: ranks.pop(), "RankMissing", "rank 2 does not report; 2 of 3 planned ranks do"),
    "not cut": (_of_the_last(parameter_bytes=134_500_000), "NotSharded", "rank 2 holds 134.5 MB of parameters of a model of 134.5 MB"),
}


@pytest.mark.parametrize("difference", DIFFERENCES)
def test_a_replica_that_differs_is_told_until_it_is_put_right(
    own_plane: Plane, operator: Operator, objects: Objects, replicas: Replicas, assert_quiet: AssertQuiet, difference: str
) -> None:
    change, reason, words = DIFFERENCES[difference]
    replicas.report(_plan(objects), change)
    objects.create("small", _at(replicas.address, replicas=1))
    objects.wait_settled("small")
    assert words in _becomes(objects, "False", reason)
    assert objects.condition("small", "Ready")["status"] == "True"
    events = [event for event in objects.api.get(objects.path("Event"))["items"] if event["reason"] == reason]
    assert [event["type"] for event in events] == ["Warning"]

    assert_quiet(operator, seconds=0.1)
    mark = own_plane.audit.mark()
    _restart(operator)
    assert_quiet(operator, seconds=2)
    assert operator.writes(own_plane, mark) == []

    replicas.report(_plan(objects))
    for _, name in objects.children("small", ("Pod",)):
        objects.api.delete(objects.path("Pod", name))
    _becomes(objects, "True", "AsPlanned")


def test_two_ranks_on_one_gpu_are_told(operator: Operator, objects: Objects, replicas: Replicas) -> None:
    replicas.report(_plan(objects), lambda ranks: [rank.update(device_id=f"GPU-{min(rank['rank'], 1)}") for rank in ranks])
    objects.create("small", _at(replicas.address, replicas=1, accelerator={"type": "Nvidia"}))
    objects.wait_settled("small")
    assert "ranks 1 and 2 both run on GPU-1" in _becomes(objects, "False", "SharedDevice")


@pytest.mark.parametrize(
    ("is_there", "status", "body", "words"),
    [
        pytest.param(False, 200, b"", "no ready replica has told what its ranks run", id="nobody answers"),
        pytest.param(True, 503, b"", "no ready replica has told what its ranks run", id="not now"),
        pytest.param(True, 200, b"hello", "the answer is no JSON", id="junk"),
        pytest.param(True, 200, b'{"ranks": {}}', "what answers there is no report of ranks", id="another document"),
        pytest.param(True, 200, b" " * (LARGEST_ANSWER_BYTES + 1), "the answer is larger than", id="too large"),
    ],
)
def test_who_reports_nothing_is_not_known_and_quiet(
    operator: Operator,
    objects: Objects,
    replicas: Replicas,
    assert_quiet: AssertQuiet,
    is_there: bool,
    status: int,
    body: bytes,
    words: str,
) -> None:
    replicas.status, replicas.body = status, body
    objects.create("small", _at(replicas.address if is_there else NOBODY, replicas=1))
    objects.wait_settled("small")
    eventually(lambda: words in objects.condition("small", "ParallelismVerified")["message"], f"the words {words}", seconds=30)
    assert _verified(objects) == ("Unknown", "NotReported")
    assert_quiet(operator, seconds=8)


def test_a_fault_in_the_last_words_is_told(operator: Operator, objects: Objects) -> None:
    words = "SharedDevice: Rank 1: it runs on GPU-0, as rank 0 does. Request one GPU per rank."
    steering = {"never-ready": "true", "crash-after": "1s", "recover-after": "1s", "exit-code": "70", "termination-message": words}
    change = _at(NOBODY, replicas=1)
    change["template"]["metadata"]["annotations"] |= {f"sim.largemodel.dev/{name}": value for name, value in steering.items()}
    objects.create("small", copy.deepcopy(change))
    message = _becomes(objects, "False", "SharedDevice")
    assert message == "A replica ended before it was ready. Rank 1: it runs on GPU-0, as rank 0 does. Request one GPU per rank."
    ready = objects.condition("small", "Ready")
    assert ready["status"] == "False"
    assert "its last words: Rank 1: it runs on GPU-0" in ready["message"]
