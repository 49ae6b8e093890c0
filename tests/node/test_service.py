"""The example on a real node, ours or one of KUBECONFIG: from apply to an answer, who may ask, and what cannot be reached."""

from __future__ import annotations

import contextlib
import http.client
import json
import time
from typing import Any
from urllib.parse import urlsplit

import openai
import pytest
from lmd_plane.client import eventually

pytestmark = pytest.mark.node

QUESTION = "What is the capital of France?"
TOKENS = 24
CLOSED = (7070, 7071, 8080, 8081, 8082, 29500)
NEIGHBOUR = """
import json, socket, sys

found = []
for port in map(int, sys.argv[2:]):
    try:
        socket.create_connection((sys.argv[1], port), timeout=5).close()
    except OSError:
        continue
    found.append(port)
with open("/dev/termination-log", "w") as log:
    json.dump(found, log)
"""
"""What another pod runs: the ports that it reaches are its termination message."""


def stream(url: str, question: str, tokens: int, key: str = "none") -> list[str]:
    """Return the pieces of an answer as OpenAI's client gets them."""
    with openai.OpenAI(base_url=url, api_key=key, max_retries=0, timeout=120) as client:
        messages = [{"role": "user", "content": question}]
        pieces = client.chat.completions.create(model="smollm2", messages=messages, max_tokens=tokens, temperature=0, stream=True)
        return [choice.delta.content for piece in pieces for choice in piece.choices if choice.delta.content]


def open_ports(service, pod: dict[str, Any], ports: tuple[int, ...]) -> list[int]:
    """Return those ports of a pod that another pod of its namespace can reach."""
    path = f"/api/v1/namespaces/{service.namespace}/pods"
    container = {
        "name": "neighbour",
        "image": pod["spec"]["containers"][0]["image"],
        "command": ["python3", "-c", NEIGHBOUR, pod["status"]["podIP"], *map(str, ports)],
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
            "runAsNonRoot": True,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
    }
    spec = {"restartPolicy": "Never", "nodeName": pod["spec"]["nodeName"], "containers": [container]}
    service.api.create(path, {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "neighbour"}, "spec": spec})
    try:

        def ended() -> Any:
            statuses = service.api.get(f"{path}/neighbour")["status"].get("containerStatuses", [{}])
            return statuses[0].get("state", {}).get("terminated")

        return list(json.loads(eventually(ended, "end of the other pod", seconds=120)["message"]))
    finally:
        service.api.delete(f"{path}/neighbour")


def test_the_example_answers_as_one_process_does(serve_anywhere, reference) -> None:
    began = time.monotonic()
    service = serve_anywhere()
    seconds = time.monotonic() - began
    with service.reached() as url:
        pieces = service.inside(lambda: stream(url, QUESTION, TOKENS))
    assert len(pieces) > 3, "piece by piece"
    assert "".join(pieces) == reference(QUESTION, TOKENS)
    print(f"applied to Ready in {seconds:.1f} s")

    verified = service.condition("ParallelismVerified")
    if verified["status"] != "True":
        print(f"not verified with the write that told of Ready: {verified}")
        eventually(lambda: service.condition("ParallelismVerified")["status"] == "True", "verified ranks")
    message = service.condition("ParallelismVerified")["message"]
    print(message)
    assert message.startswith("All 3 ranks run what is planned: DeepSpeed at degree 3, ")

    (pod,) = service.pods()
    assert open_ports(service, pod, (8000, 8405, *CLOSED)) == [8000, 8405]

    def post(path: str) -> int:
        with contextlib.closing(http.client.HTTPConnection(urlsplit(url).netloc, timeout=30)) as connection:
            connection.request("POST", path)
            return connection.getresponse().status

    with service.reached() as url:
        for path in ("/workflows?url=http://10.89.0.1/evil.war", "/models?url=http://10.89.0.1/evil.mar", "/v1/../workflows"):
            assert service.inside(lambda path=path: post(path)) == 404
    first = service.first_process(pod)
    assert "java" in first["Name"]
    assert (first["CapEff"].strip("0"), first["Seccomp"], first["Uid"].split()[0]) == ("", "2", "10001")


def test_keys_change_without_a_restart(serve, secret) -> None:
    """A key that was taken out of the Secret is refused and a new one let in, by the same containers."""
    secret("keys", alice="the-first-key")
    endpoint = {"apiKeysSecretRef": {"name": "keys"}}
    service = serve(endpoint=endpoint, replicas=1)
    (pod,) = service.pods()
    url = service.url()

    def refused(key: str) -> bool:
        def ask() -> bool:
            try:
                stream(url, QUESTION, 1, key)
            except openai.AuthenticationError:
                return True
            return False

        return bool(service.node.inside(ask))

    assert (refused("none"), refused("the-first-key")) == (True, False)
    secret("keys", alice="the-second-key")
    eventually(lambda: refused("the-first-key") and not refused("the-second-key"), "the new key", seconds=300)
    assert (service.restarts(pod), service.restarts(pod, "front-door")) == (0, 0)
    assert [each["metadata"]["uid"] for each in service.pods()] == [pod["metadata"]["uid"]]
