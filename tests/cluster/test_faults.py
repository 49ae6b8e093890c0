"""The fault proxy does to requests and watches what its rules say, and records all of them."""

from __future__ import annotations

import http.client
import json
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from lmd_plane.client import Access, Api, eventually
from lmd_plane.faults import (
    CutWatch,
    Delay,
    DelayEvents,
    Drop,
    DropEvents,
    Exchange,
    FailWatch,
    FaultProxy,
    FreezeWatch,
    LoseResponse,
    Match,
    Reply,
    request_of,
)
from lmd_plane.faults.rules import Action
from lmd_plane.plane import Plane

pytestmark = pytest.mark.cluster
LOST = (ConnectionError, http.client.HTTPException)


class Watching:
    """A watch on the ConfigMaps of a namespace; `events` and `ended` are how a client sees it."""

    def __init__(self, access: Access, namespace: str) -> None:
        address = access.server.removeprefix("https://")
        self._connection = http.client.HTTPSConnection(address, timeout=60, context=access.tls())
        self.events: list[tuple[str, str]] = []
        self.ended = ""
        self._connection.request("GET", f"/api/v1/namespaces/{namespace}/configmaps?watch=true&resourceVersion=0")
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        rest = b""
        try:
            response = self._connection.getresponse()
            while chunk := response.read1():
                *lines, rest = (rest + chunk).split(b"\n")
                self.events += [_summary(json.loads(line)) for line in lines]
            self.ended = "end"
        except LOST:
            self.ended = "reset"

    def seen(self, name: str) -> list[str]:
        return [kind for kind, what in self.events if what == name]

    def wait(self, name: str) -> None:
        eventually(lambda: self.seen(name), f"event of {name}")

    def wait_for_end(self) -> str:
        return eventually(lambda: self.ended, "end of the watch")

    def close(self) -> None:
        self._thread.join(timeout=60)
        self._connection.close()


@pytest.fixture
def client(faults: FaultProxy) -> Api:
    """Requests through the proxy."""
    return Api(faults.kubeconfig(), user_agent="operator")


@pytest.fixture
def path(namespace: str) -> str:
    return f"/api/v1/namespaces/{namespace}/configmaps"


@pytest.fixture
def watch(faults: FaultProxy, namespace: str) -> Iterator[Callable[[], Watching]]:
    """Open watches through the proxy; they are closed at the end."""
    opened: list[Watching] = []

    def open_one() -> Watching:
        opened.append(Watching(Access.read(faults.kubeconfig()), namespace))
        return opened[-1]

    yield open_one
    faults.cut_watches()
    for watching in opened:
        watching.close()


def _summary(event: dict[str, Any]) -> tuple[str, str]:
    return event["type"], event["object"]["metadata"].get("name") or str(event["object"].get("code"))


def _config_map(name: str) -> dict[str, Any]:
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}}


@pytest.mark.parametrize(
    ("method", "target", "expected"),
    [
        pytest.param("GET", "/api/v1/pods?watch=1", ("watch", "", "pods", "", "", ""), id="watch everywhere"),
        pytest.param("GET", "/api/v1/namespaces/a/pods", ("list", "", "pods", "", "a", ""), id="list"),
        pytest.param("GET", "/api/v1/namespaces/a", ("get", "", "namespaces", "", "", "a"), id="a namespace itself"),
        pytest.param("PUT", "/api/v1/namespaces/a/finalize", ("update", "", "namespaces", "finalize", "", "a"), id="its subresource"),
        pytest.param(
            "PATCH", "/apis/x.dev/v1/namespaces/a/bs/c/status?force=true", ("patch", "x.dev", "bs", "status", "a", "c"), id="status"
        ),
        pytest.param(
            "DELETE", "/apis/apps/v1/namespaces/a/deployments", ("deletecollection", "apps", "deployments", "", "a", ""), id="all"
        ),
        pytest.param("POST", "/apis/x.dev/v1/namespaces/a/bs?dryRun=All", ("create", "x.dev", "bs", "", "a", ""), id="create"),
        pytest.param("GET", "/version", ("get", "", "", "", "", ""), id="no resource"),
        pytest.param("GET", "/apis/apps/v1", ("get", "", "", "", "", ""), id="discovery"),
    ],
)
def test_a_request_is_read_as_the_server_reads_it(method: str, target: str, expected: tuple[str, ...]) -> None:
    request = request_of(1, method, target, "")
    assert (request.verb, request.group, request.resource, request.subresource, request.namespace, request.name) == expected


def test_requests_pass_and_are_recorded(faults: FaultProxy, client: Api, api: Api, path: str) -> None:
    client.create(path, _config_map("a"))
    assert client.get(f"{path}/a")["metadata"]["uid"] == api.get(f"{path}/a")["metadata"]["uid"]
    assert client.request("GET", f"{path}/b").status == 404
    said = [(each.request.verb, each.request.name, each.status, each.fault) for each in faults.exchanges(Match(user_agent="operator"))]
    assert said == [("create", "", 201, ""), ("get", "a", 200, ""), ("get", "b", 404, "")]


def test_a_token_is_passed_on_alone(faults: FaultProxy, api: Api, namespace: str) -> None:
    account = f"/api/v1/namespaces/{namespace}/serviceaccounts/default/token"
    token = api.create(account, {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {}})["status"]["token"]
    answer = Api(faults.kubeconfig(token=token)).request("GET", f"/api/v1/namespaces/{namespace}/pods")
    assert answer.status == 403
    assert f"system:serviceaccount:{namespace}:default" in answer.message


def test_the_second_of_its_kind_is_answered_in_the_servers_place(faults: FaultProxy, client: Api, path: str) -> None:
    rule = faults.add(Match(verb="create", resource="configmaps"), Reply(429, retry_after_seconds=7), nth=2)
    answers = [client.request("POST", path, _config_map(name)) for name in ("a", "b", "c")]
    assert [answer.status for answer in answers] == [201, 429, 201]
    assert answers[1].body["reason"] == "TooManyRequests"
    assert answers[1].body["details"] == {"retryAfterSeconds": 7}
    assert (rule.seen, rule.fired) == (3, 1)
    assert client.request("GET", f"{path}/b").status == 404


@pytest.mark.parametrize(("code", "reason"), [(409, "Conflict"), (410, "Expired"), (422, "Invalid"), (500, "InternalError")])
def test_refusals_carry_their_reason(faults: FaultProxy, client: Api, path: str, code: int, reason: str) -> None:
    faults.add(Match(verb="write"), Reply(code), times=1)
    answer = client.request("POST", path, _config_map("a"))
    assert (answer.status, answer.body["reason"]) == (code, reason)
    assert client.request("POST", path, _config_map("a")).status == 201


def test_a_dropped_request_never_arrives(faults: FaultProxy, client: Api, path: str) -> None:
    faults.add(Match(verb="create"), Drop(), times=1)
    with pytest.raises(LOST):
        client.request("POST", path, _config_map("a"))
    assert client.request("GET", f"{path}/a").status == 404


def test_a_lost_response_is_of_a_write_that_happened(faults: FaultProxy, client: Api, path: str) -> None:
    faults.add(Match(verb="create"), LoseResponse(), times=1)
    with pytest.raises(LOST):
        client.request("POST", path, _config_map("a"))
    assert client.request("POST", path, _config_map("a")).status == 409


def test_a_delayed_request_arrives(faults: FaultProxy, client: Api, path: str) -> None:
    faults.add(Match(verb="create"), Delay(0.2))
    assert client.request("POST", path, _config_map("a")).status == 201
    assert [each.fault for each in faults.exchanges(Match(verb="create"))] == ["Delay"]


def test_somebody_is_told_of_every_write_before_the_client_is(faults: FaultProxy, client: Api, api: Api, path: str) -> None:
    told: list[tuple[str, int | None, int]] = []

    def look(exchange: Exchange) -> None:
        told.append((exchange.request.verb, exchange.status, api.request("GET", f"{path}/a").status))

    faults.after_write(look)
    client.create(path, _config_map("a"))
    assert told == [("create", 201, 200)]
    client.get(f"{path}/a")
    client.request("PATCH", f"{path}/a", {"data": {"x": "y"}}, content_type="application/merge-patch+json", query={"dryRun": "All"})
    assert len(told) == 1
    client.delete(f"{path}/a")
    assert told[1:] == [("delete", 200, 404)]


def test_an_open_watch_can_be_cut_ended_and_failed(faults: FaultProxy, api: Api, watch: Callable[[], Watching], path: str) -> None:
    for end, expected in (
        (faults.cut_watches, "reset"),
        (faults.end_watches, "end"),
        (lambda match: faults.fail_watches(410, match), "end"),
    ):
        watching = watch()
        watching.wait("kube-root-ca.crt")
        assert end(Match(resource="configmaps")) == 1
        assert watching.wait_for_end() == expected
        eventually(lambda: not faults.open_watches(), "end of the record")
    assert watching.events[-1] == ("ERROR", "410")


def test_a_frozen_watch_is_silent_and_open_until_it_is_thawed(
    faults: FaultProxy, api: Api, watch: Callable[[], Watching], path: str
) -> None:
    frozen = watch()
    frozen.wait("kube-root-ca.crt")
    assert faults.freeze_watches() == 1
    witness = watch()
    api.create(path, _config_map("a"))
    witness.wait("a")
    assert not frozen.seen("a")
    assert not frozen.ended
    faults.thaw_watches()
    frozen.wait("a")


@pytest.mark.parametrize(("action", "ended"), [(CutWatch(1), "reset"), (FailWatch(500, 1), "end"), (FreezeWatch(1), "")])
def test_a_watch_goes_wrong_after_so_many_events(
    faults: FaultProxy, api: Api, watch: Callable[[], Watching], path: str, action: Action, ended: str
) -> None:
    faults.add(Match(verb="watch", resource="configmaps"), action, nth=1)
    broken = watch()
    broken.wait("kube-root-ca.crt")
    if ended:
        assert broken.wait_for_end() == ended
    sound = watch()
    api.create(path, _config_map("a"))
    sound.wait("a")
    assert not broken.seen("a")
    assert broken.ended == ended


def test_single_events_are_lost_or_late(faults: FaultProxy, api: Api, watch: Callable[[], Watching], path: str) -> None:
    faults.add(Match(resource="configmaps"), DropEvents(name="a", type="ADDED"))
    late = faults.add(Match(resource="configmaps"), DelayEvents(0.2, name="b"))
    watching = watch()
    for name in ("a", "b"):
        api.create(path, _config_map(name))
    api.delete(f"{path}/a")
    eventually(lambda: watching.seen("a"), "event of a")
    assert watching.seen("a") == ["DELETED"]
    assert watching.seen("b") == ["ADDED"]
    assert late.fired == 1


def test_a_dead_server_is_a_dead_connection(own_plane: Plane, faults: FaultProxy, client: Api, path: str) -> None:
    with own_plane.killed("kube-apiserver"):
        with pytest.raises(LOST):
            client.request("GET", path)
        assert [each.fault for each in faults.exchanges()] == ["Unreachable"]
    assert client.request("GET", path).status == 200
