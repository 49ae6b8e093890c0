"""What a user is told while weights are fetched, when they are there, and when they cannot be had."""

from __future__ import annotations

import asyncio
import http.server
import json
import threading
from collections.abc import Iterator
from typing import Any, get_args

import pytest

from lmd_operator import inspection
from lmd_operator.api.parse import parse
from lmd_operator.observed import FetchState, PodState, Progress, pod_state, progress
from lmd_operator.runtime.progress import ProgressReader
from lmd_operator.status import weights
from lmd_operator.status.causes import ORDER, PASSING, of_pod
from lmd_worker.errors import FetchReason
from lmd_worker.weights import fetch

FETCHED_OWNER = parse(
    {
        "apiVersion": "largemodel.dev/v1alpha1",
        "kind": "LargeModelDeployment",
        "metadata": {"name": "fetched"},
        "spec": {"model": {"source": {"huggingFace": {"repository": "acme/model"}}}},
    }
)
FETCHED = json.dumps({"revision": "c" * 40, "bytes": 1000})


def a_pod(init: dict[str, Any], **more: Any) -> PodState:
    """A pod whose worker waits for its init container, as the API server sends it."""
    return pod_state(
        {
            "metadata": {"name": "pod", "labels": {"largemodel.dev/revision": "new"}},
            "status": {
                "podIP": "127.0.0.1",
                "conditions": [{"type": "PodScheduled", "status": "True"}],
                "initContainerStatuses": [{"name": "fetch", **init}],
                "containerStatuses": [{"name": "worker", "state": {"waiting": {"reason": "PodInitializing"}}}],
                **more,
            },
        }
    )


RUNNING = {"state": {"running": {}}}
DONE = {"state": {"terminated": {"exitCode": 0, "message": FETCHED}}}


def failed(message: str, exit_code: int = 1) -> dict[str, Any]:
    waiting = {"waiting": {"reason": "CrashLoopBackOff", "message": "back-off"}}
    return {"state": waiting, "lastState": {"terminated": {"exitCode": exit_code, "message": message}}, "restartCount": 2}


def test_operator_and_worker_know_the_same_reasons() -> None:
    assert set(weights.FAILURES) == set(get_args(FetchReason))
    assert set(ORDER) >= {*weights.FAILURES, weights.FETCHING}
    assert weights.FETCHING in PASSING
    assert not set(weights.FAILURES) & PASSING


@pytest.mark.parametrize("reason", weights.FAILURES)
def test_a_failed_fetch_is_told_with_its_own_reason_and_sentence(reason: str) -> None:
    cause = of_pod(a_pod(failed(f"{reason}: the thing is wrong; mend it.")))
    assert cause is not None
    assert (cause.reason, cause.message) == (reason, "the weights cannot be fetched: the thing is wrong; mend it")


@pytest.mark.parametrize(
    ("init", "reason", "words"),
    [
        (failed("", 137), "FetchFailed", "exit code 137"),
        (failed("Traceback: something"), "FetchFailed", "Traceback"),
        ({"state": {"waiting": {"reason": "ImagePullBackOff"}}}, "ImagePull", "worker image"),
        (
            {"state": {"waiting": {"reason": "CreateContainerConfigError", "message": 'secret "hub" not found'}}},
            "ContainerRefused",
            'secret "hub" not found',
        ),
        (RUNNING, "FetchingWeights", "being fetched"),
        ({"state": {"waiting": {"reason": "PodInitializing"}}}, "PodsPending", "being made ready"),
        (DONE, "PodsPending", "being made ready"),
    ],
)
def test_every_state_of_the_init_container_is_told(init: dict[str, Any], reason: str, words: str) -> None:
    cause = of_pod(a_pod(init))
    assert cause is not None
    assert cause.reason == reason
    assert words in cause.message


def test_progress_is_told_in_words() -> None:
    cause = of_pod(a_pod(RUNNING), Progress("fetching", 43 * 10**9, 100 * 10**9, 120 * 10**6, 475))
    assert cause is not None
    assert cause.message == "the weights are being fetched: 43% of 100.0 GB, 120.0 MB/s, 8 minutes left"
    standing = of_pod(a_pod(RUNNING), Progress("fetching", 1, 2, 0, None))
    assert standing is not None
    assert "nothing moves" in standing.message


def test_a_fetch_that_waits_for_another_says_so() -> None:
    assert weights.WAITING == fetch.WAITING
    cause = of_pod(a_pod(RUNNING), Progress(weights.WAITING, 0, 0, 0, None))
    assert cause is not None
    assert (cause.reason, "for another object" in cause.message) == ("FetchingWeights", True)


def test_the_status_tells_of_the_replica_that_has_least() -> None:
    one, other = a_pod(RUNNING), a_pod(RUNNING)
    told = {"pod": Progress("fetching", 50, 100, 10, 5)}
    status = weights.weights_status([one, other], "new", told, None)
    assert status is not None
    assert (status.percent, status.bytes_per_second, status.remaining_seconds) == (50, 10, 5)
    assert weights.weights_status([one], "other", told, None) is None
    assert weights.weights_status([one], "new", {}, status) == status, "a pod that did not answer changes nothing"


def test_what_was_fetched_is_told_with_its_commit() -> None:
    status = weights.weights_status([a_pod(DONE)], "new", {}, None)
    assert status is not None
    assert (status.revision, status.percent, status.total_bytes) == ("c" * 40, 100, 1000)


def test_what_the_files_say_of_the_model_is_told() -> None:
    facts = {
        "family": "llama",
        "parameters": 7,
        "bytes": 14,
        "heads": 9,
        "key_value_heads": 3,
        "layers": 2,
        "context_tokens": 512,
        "experts": 0,
    }
    told = json.dumps({"revision": "c" * 40, "bytes": 20, "model": facts})
    pod = a_pod({"state": {"terminated": {"exitCode": 0, "message": told}}})
    found = inspection.told(FETCHED_OWNER, weights.newest([pod], "new"))
    assert found is not None
    assert (found.family, found.parameters, found.key_value_heads, found.context_tokens) == ("llama", 7, 3, 512)


@pytest.mark.parametrize(
    "message", ["", "[]", "{", '{"model": 1}', '{"model": {"family": 1}}', '{"model": {"family": "a", "parameters": -1}}']
)
def test_last_words_that_are_none_say_nothing(message: str) -> None:
    pod = a_pod({"state": {"terminated": {"exitCode": 0, "message": message}}})
    assert inspection.told(FETCHED_OWNER, weights.newest([pod], "new")) is None
    assert weights.weights_status([pod], "new", {}, None) is not None


@pytest.mark.parametrize(
    "document",
    [None, [], {}, {"state": 1}, {"state": "a", "bytes": -1, "total": 1, "bytes_per_second": 1}, {"state": "a", "bytes": True, "total": 1}],
)
def test_an_answer_that_is_none_is_ignored(document: object) -> None:
    assert progress(document) is None


@pytest.fixture
def answering() -> Iterator[tuple[int, dict[str, Any]]]:
    """A server on loopback that answers with what the test puts in; and what it was asked."""
    told: dict[str, Any] = {"body": b"{}", "headers": []}

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            told["headers"].append((self.path, dict(self.headers)))
            self.send_response(200)
            self.send_header("Content-Length", str(len(told["body"])))
            self.end_headers()
            self.wfile.write(told["body"])

        def log_message(self, *words: object) -> None:
            pass

    server = http.server.HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server.server_port, told
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_pod_is_asked_without_any_credential(answering: tuple[int, dict[str, Any]]) -> None:
    port, told = answering
    told["body"] = json.dumps({"state": "fetching", "bytes": 1, "total": 2, "bytes_per_second": 3, "remaining_seconds": None}).encode()

    async def ask() -> dict[str, Progress]:
        reader = ProgressReader(port)
        try:
            return await reader.read([a_pod(RUNNING), a_pod(DONE)])
        finally:
            await reader.close()

    assert asyncio.run(ask()) == {"pod": Progress("fetching", 1, 2, 3, None)}
    ((path, headers),) = told["headers"]
    assert path == "/progress"
    assert "Authorization" not in headers
    told["body"] = b"[" * 5000
    assert asyncio.run(ask()) == {}


def test_a_pod_that_does_not_answer_has_told_nothing() -> None:
    async def ask() -> dict[str, Progress]:
        reader = ProgressReader(1)
        try:
            return await reader.read([a_pod(RUNNING)])
        finally:
            await reader.close()

    assert asyncio.run(ask()) == {}


def test_fetch_state_is_read_from_the_status() -> None:
    assert a_pod(RUNNING).fetch == FetchState(True, False, "", "", 0, 0, "")
