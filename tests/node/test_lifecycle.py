"""What ends and what goes on: killed and stopped processes, an eviction and a rolling update under load."""

from __future__ import annotations

import contextlib
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import openai
import psutil
import pytest
from lmd_plane.client import eventually

pytestmark = pytest.mark.node

CLIENTS = 20
TOKENS = 16
RESPONSE_SECONDS = 20
NOTICED_SECONDS = 10
"""To the restart of a container whose rank has died; the kubelet's probes and the end of the JVM are in it."""
RESTARTED_SECONDS = 300
SMALL = {"sharedMemory": "1Gi", "resources": {"requests": {"cpu": "100m", "memory": "1Gi"}, "limits": {"memory": "6Gi"}}}


def ranks(found: list[psutil.Process]) -> dict[int, psutil.Process]:
    """The ranks among a container's processes, by number."""
    numbered = {}
    for process in found:
        with contextlib.suppress(psutil.Error):
            command = " ".join(process.cmdline())
            if "model_service_worker" in command and "torchrun" not in command:
                numbered[int(process.environ()["RANK"])] = process
    return numbered


def one(found: list[psutil.Process], name: str) -> psutil.Process:
    """The process whose command line names a program."""
    for process in found:
        with contextlib.suppress(psutil.Error):
            if any(part.rpartition("/")[2] == name for part in process.cmdline()[:2]):
                return process
    raise AssertionError(f"no {name} among {[process.cmdline() for process in found]}")


VICTIMS: dict[str, tuple[str, Callable[[list[psutil.Process]], psutil.Process], str]] = {
    "rank 0": ("worker", lambda found: ranks(found)[0], "RanksLost"),
    "rank 1": ("worker", lambda found: ranks(found)[1], "RanksLost"),
    "rank 2": ("worker", lambda found: ranks(found)[2], "RanksLost"),
    "torchrun": ("worker", lambda found: one(found, "torchrun"), "RanksLost"),
    "the JVM": ("worker", lambda found: one(found, "java"), "OutOfMemory"),
    "HAProxy": ("front-door", lambda found: one(found, "haproxy"), ""),
}
"""Container, process and the reason that the status gives by victim; a JVM that was killed left no words."""


def ask(url: str, tokens: int = TOKENS, tries: int = 1) -> str:
    """Stream one answer over a connection of its own; return why it ended."""
    with openai.OpenAI(base_url=url, api_key="none", max_retries=tries - 1, timeout=300) as client:
        question = [{"role": "user", "content": "Name a colour and tell a long story about it."}]
        stream: Any = client.chat.completions.create(model="smollm2", messages=question, max_tokens=tokens, temperature=0, stream=True)
        reasons = [choice.finish_reason for piece in stream for choice in piece.choices if choice.finish_reason]
    (reason,) = reasons
    return str(reason)


@contextlib.contextmanager
def crowd(service: Any, size: int) -> Iterator[list[str]]:
    """Keep this many answers streaming; give the list of how each ended, which has an entry more for every answer."""
    url, stop, endings = service.url(), threading.Event(), []

    def client() -> None:
        from lmd_plane.node.network import enter

        enter(service.node.namespace_pid)
        while not stop.is_set():
            try:
                endings.append(ask(url))
            except Exception as error:
                endings.append(f"{type(error).__name__}: {error}")

    threads = [threading.Thread(target=client) for _ in range(size)]
    for thread in threads:
        thread.start()
    try:
        eventually(lambda: len(endings) >= size, "first answers", seconds=RESTARTED_SECONDS)
        yield endings
    finally:
        stop.set()
        for thread in threads:
            thread.join()


@pytest.mark.parametrize("victim", VICTIMS)
def test_a_killed_process_is_replaced(serve: Callable[..., Any], victim: str) -> None:
    service = serve(template=SMALL)
    (pod,) = service.pods()
    container, choose, reason = VICTIMS[victim]
    before = service.processes(pod, container)
    others = {name: service.restarts(pod, name) for name in ("worker", "front-door") if name != container}
    began = time.monotonic()
    choose(before).kill()
    eventually(lambda: service.restarts(pod, container) == 1, "restart of the container", seconds=RESTARTED_SECONDS)
    restarted = time.monotonic() - began
    if reason:
        eventually(lambda: service.condition("Ready").get("reason") == reason, f"cause {reason} in the status", seconds=60)
        print(victim, service.condition("Ready")["message"])
    service.wait_ready()
    print(f"{victim}: restarted after {restarted:.1f} s, serves again after {time.monotonic() - began:.1f} s")
    assert service.node.inside(lambda: ask(service.url())) == "length"
    assert [process for process in before if process.is_running() and process.status() != psutil.STATUS_ZOMBIE] == []
    assert {name: service.restarts(pod, name) for name in others} == others
    assert [each["metadata"]["uid"] for each in service.pods()] == [pod["metadata"]["uid"]], "restarted, not replaced"


def test_another_replica_serves_on(serve: Callable[..., Any]) -> None:
    """Clients that try again once, as OpenAI's do twice by default, see nothing of a replica whose rank dies while they ask."""
    service = serve(replicas=2, template=SMALL)
    first, _ = service.pods()
    ranks(service.processes(first))[1].kill()
    asked = 0
    while service.restarts(first) == 0 or not service.is_ready():
        assert service.node.inside(lambda: ask(service.url(), 4, tries=2)) == "length"
        asked += 1
    print(f"{asked} answers until both replicas served again")
    assert asked > 1
    assert service.restarts(first) == 1


def test_a_hung_rank_is_noticed_within_the_response_timeout(serve: Callable[..., Any]) -> None:
    limits = {"responseTimeoutSeconds": RESPONSE_SECONDS, "startupTimeoutSeconds": 300}
    engine = {"dtype": "float32", "contextTokens": 2048, "concurrency": 8, "torchServe": limits}
    service = serve(template=SMALL, engine=engine)
    (pod,) = service.pods()
    before = service.processes(pod)
    began = time.monotonic()
    ranks(before)[1].send_signal(signal.SIGSTOP)
    with contextlib.suppress(openai.OpenAIError, ValueError):
        service.node.inside(lambda: ask(service.url()))
    eventually(lambda: service.restarts(pod) == 1, "restart of the container", seconds=RESTARTED_SECONDS)
    print(f"SIGSTOP: restarted after {time.monotonic() - began:.1f} s with a response timeout of {RESPONSE_SECONDS} s")
    service.wait_ready()
    assert service.node.inside(lambda: ask(service.url())) == "length"
    assert [process for process in before if process.is_running() and process.status() != psutil.STATUS_ZOMBIE] == []


def test_an_eviction_and_a_rolling_update_lose_no_answer(serve: Callable[..., Any]) -> None:
    service = serve(replicas=2, template=SMALL)
    with crowd(service, CLIENTS) as endings:
        first = service.pods()[0]["metadata"]["name"]
        path = f"/api/v1/namespaces/{service.namespace}/pods/{first}"
        eviction = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": first, "namespace": service.namespace}}
        service.api.create(f"{path}/eviction", eviction)
        eventually(lambda: service.api.request("GET", path).status == 404, "end of the evicted pod", seconds=RESTARTED_SECONDS)
        service.wait_ready()
        evicted = len(endings)
        old = {pod["metadata"]["uid"] for pod in service.pods()}
        service.api.patch(service.path, {"spec": {"restart": "once"}})
        eventually(lambda: not old & {pod["metadata"]["uid"] for pod in service.all_pods()}, "end of the old pods", seconds=400)
        service.wait_ready()
        print(f"{evicted} answers through the eviction, {len(endings) - evicted} through the rolling update: {Counter(endings)}")
    assert set(endings) == {"length"}
