"""A fetch reaches the status by asking the pod: percent and speed, few writes, and none while nothing moves."""

from __future__ import annotations

import http.server
import json
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from lmd_plane.client import eventually
from lmd_plane.objects import Objects
from lmd_plane.operators import Operator
from lmd_plane.plane import Plane

from lmd_operator.names import PORT_PROGRESS

pytestmark = pytest.mark.reliability
POD_ADDRESS = "127.77.0.1"
TOTAL = 100_000
MOVING_SECONDS = 25.0
STANDING_SECONDS = 25.0
AssertPaced = Callable[[Operator, int], None]


@pytest.fixture
def fetching() -> Iterator[dict[str, Any]]:
    """What a fetch answers at the address of a pod; the test changes it."""
    told: dict[str, Any] = {"state": "fetching", "bytes": 0, "total": TOTAL, "bytes_per_second": 500, "remaining_seconds": 200}

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = json.dumps(told).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *words: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer((POD_ADDRESS, PORT_PROGRESS), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield told
    server.shutdown()
    thread.join()
    server.server_close()


def _status_of_a_pod(init: dict[str, Any]) -> dict[str, Any]:
    worker = {
        "name": "worker",
        "image": "w",
        "imageID": "",
        "ready": False,
        "restartCount": 0,
        "state": {"waiting": {"reason": "PodInitializing"}},
    }
    fetch = {"name": "fetch", "image": "w", "imageID": "", "ready": False, "restartCount": 0, **init}
    return {"podIP": POD_ADDRESS, "podIPs": [{"ip": POD_ADDRESS}], "initContainerStatuses": [fetch], "containerStatuses": [worker]}


def test_progress_is_in_the_status_with_few_writes(
    own_plane: Plane, operator: Operator, objects: Objects, fetching: dict[str, Any], assert_paced: AssertPaced
) -> None:
    steering = {"metadata": {"annotations": {"sim.largemodel.dev/image-pull-error": "stays as the test makes it"}}}
    source = {"huggingFace": {"repository": "acme/model"}, "path": None}
    objects.create("fetched", {"model": {"source": source}, "replicas": 1, "template": steering})
    pods = f"{objects.path('Pod')}?labelSelector=largemodel.dev%2Fdeployment%3Dfetched"

    def waiting() -> str | None:
        found = [pod for pod in objects.api.get(pods)["items"] if pod.get("status", {}).get("containerStatuses")]
        return found[0]["metadata"]["name"] if found else None

    pod = objects.path("Pod", eventually(waiting, "pod that waits"))
    objects.api.patch(f"{pod}/status", {"status": _status_of_a_pod({"state": {"running": {}}})})

    def percent() -> int | None:
        weights = objects.parent("fetched").get("status", {}).get("weights")
        return weights["percent"] if weights else None

    fetching["bytes"] = TOTAL // 10
    eventually(lambda: percent() == 10 or None, "first news of the fetch", seconds=30)
    assert objects.condition("fetched", "Ready")["reason"] == "FetchingWeights"

    mark = own_plane.audit.mark()
    until = time.monotonic() + MOVING_SECONDS
    while time.monotonic() < until:
        fetching["bytes"] += TOTAL // 100
        time.sleep(0.5)
    moved = [entry for entry in operator.writes(own_plane, mark) if entry.subresource == "status"]
    assert moved
    assert_paced(operator, mark)
    eventually(lambda: (percent() or 0) > 20, "what has moved since", seconds=30)

    fetching.update(bytes_per_second=0, remaining_seconds=None)
    eventually(lambda: "nothing moves" in objects.condition("fetched", "Ready")["message"] or None, "news that nothing moves", seconds=30)
    mark = own_plane.audit.mark()
    time.sleep(STANDING_SECONDS)
    assert operator.writes(own_plane, mark) == []

    facts = {"family": "llama", "parameters": 7, "bytes": 14, "heads": 9, "key_value_heads": 3, "layers": 2, "context_tokens": 512}
    words = json.dumps({"revision": "c" * 40, "bytes": TOTAL, "model": facts})
    objects.api.patch(f"{pod}/status", {"status": _status_of_a_pod({"state": {"terminated": {"exitCode": 0, "message": words}}})})
    eventually(lambda: percent() == 100 or None, "end of the fetch", seconds=30)
    status = objects.parent("fetched")["status"]
    assert status["weights"]["revision"] == "c" * 40
    assert (status["model"]["family"], status["model"]["keyValueHeads"]) == ("llama", 3)
