"""The little of a Kubernetes client that starting a plane and checking its answers takes."""

from __future__ import annotations

import base64
import http.client
import json
import ssl
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlencode, urlsplit

import yaml

from lmd_plane.errors import OverdueError, PlaneError, RefusedError

T = TypeVar("T")
REQUEST_SECONDS = 60.0
POLL_SECONDS = 0.1
RESTRICTED = {"pod-security.kubernetes.io/enforce": "restricted"}
"""Labels of a namespace that enforces the strictest of the pod security standards."""
DEFINITIONS = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
NEW_DEFINITION_SECONDS = 2.0
"""While a definition is newer, the API server holds every creation of its objects up for as long (customresource_handler.go)."""


@dataclass(frozen=True)
class Answer:
    """What the API server said."""

    status: int
    body: Any

    @property
    def message(self) -> str:
        """The words of a refusal."""
        return str(self.body.get("message", "")) if isinstance(self.body, dict) else str(self.body)


@dataclass(frozen=True)
class Access:
    """Server and credentials out of a kubeconfig."""

    server: str
    authority: str | None
    certificate: tuple[bytes, bytes] | None
    token: str | None

    @classmethod
    def read(cls, kubeconfig: Path) -> Access:
        """Return what the current context says. Raises `PlaneError` when there is none."""
        document = yaml.safe_load(kubeconfig.read_text())
        try:
            context = _named(document["contexts"], document["current-context"])["context"]
            cluster = _named(document["clusters"], context["cluster"])["cluster"]
            user = _named(document["users"], context["user"])["user"]
        except (KeyError, StopIteration, TypeError) as error:
            raise PlaneError(f"{kubeconfig} has no complete current context: run kubectl config use-context") from error
        authority = _data(cluster, "certificate-authority", kubeconfig.parent)
        certificate, key = _data(user, "client-certificate", kubeconfig.parent), _data(user, "client-key", kubeconfig.parent)
        pair = (certificate, key) if certificate and key else None
        return cls(cluster["server"], authority.decode() if authority else None, pair, user.get("token"))

    def tls(self, *, with_certificate: bool = True) -> ssl.SSLContext:
        """Return a context that trusts the server, and shows the client's certificate if there is one."""
        context = ssl.create_default_context(cadata=self.authority)
        if self.certificate and with_certificate:
            with tempfile.NamedTemporaryFile(suffix=".pem") as file:  # the module reads certificates from files only
                file.write(b"\n".join(self.certificate))
                file.flush()
                context.load_cert_chain(file.name)
        return context


class Api:
    """Requests to one API server, a connection each."""

    def __init__(self, kubeconfig: Path, *, user_agent: str = "lmd-plane") -> None:
        self._access = Access.read(kubeconfig)
        self._user_agent = user_agent
        self._tls = self._access.tls()
        address = urlsplit(self._access.server)
        self._host, self._port = address.hostname or "", address.port or 443

    def request(
        self,
        method: str,
        path: str,
        body: object = None,
        *,
        content_type: str = "application/json",
        query: Mapping[str, str] | None = None,
        user_agent: str | None = None,
    ) -> Answer:
        """Return the answer, whatever its status. Raises `OSError` or `HTTPException` when there is none."""
        headers = {"Accept": "application/json", "Content-Type": content_type, "User-Agent": user_agent or self._user_agent}
        if self._access.token:
            headers["Authorization"] = f"Bearer {self._access.token}"
        connection = http.client.HTTPSConnection(self._host, self._port, timeout=REQUEST_SECONDS, context=self._tls)
        try:
            target = f"{path}?{urlencode(query)}" if query else path
            connection.request(method, target, None if body is None else json.dumps(body), headers)
            response = connection.getresponse()
            text = response.read().decode()
            is_json = "json" in (response.getheader("Content-Type") or "")
            return Answer(response.status, json.loads(text) if is_json else text)
        finally:
            connection.close()

    def get(self, path: str) -> Any:
        """Return an object or a list. Raises `RefusedError` unless it is there."""
        return self._expect(self.request("GET", path), "GET", path)

    def create(self, path: str, body: object) -> Any:
        """Create an object and return it. Raises `RefusedError` unless it was taken."""
        return self._expect(self.request("POST", path, body), "POST", path)

    def create_namespace(self, name: str, **labels: str) -> None:
        """Create a namespace and wait until pods can be created in it. Raises `RefusedError` unless it was taken."""
        self.create("/api/v1/namespaces", {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}})
        eventually(lambda: self.get(f"/api/v1/namespaces/{name}/serviceaccounts/default"), "default service account")

    def define(self, definition: Mapping[str, Any]) -> dict[str, Any]:
        """Apply a custom resource definition; return it as the server has it, once its objects are taken without delay.

        Raises `RefusedError` unless it was taken, and `PlaneError` when its schema is not structural.
        """
        path = f"{DEFINITIONS}/{definition['metadata']['name']}"
        query = {"fieldManager": "tests", "force": "true", "fieldValidation": "Strict"}
        answer = self.request("PATCH", path, definition, content_type="application/apply-patch+yaml", query=query)
        self._expect(answer, "PATCH", path)

        def established() -> dict[str, Any] | None:
            found: dict[str, Any] = self.get(path)
            conditions = {each["type"]: each for each in found.get("status", {}).get("conditions") or []}
            if "NonStructuralSchema" in conditions:
                raise PlaneError(conditions["NonStructuralSchema"]["message"])
            return found if conditions.get("Established", {}).get("status") == "True" else None

        found = eventually(established, f"establishing {path}")
        if answer.status == http.HTTPStatus.CREATED:
            since = time.monotonic()
            eventually(lambda: time.monotonic() - since > NEW_DEFINITION_SECONDS, f"age of {path}")
        return found

    def patch(self, path: str, body: object, *, content_type: str = "application/merge-patch+json") -> Any:
        """Merge into an object and return it. Raises `RefusedError` unless it was taken."""
        return self._expect(self.request("PATCH", path, body, content_type=content_type), "PATCH", path)

    def delete(self, path: str, body: object = None) -> Any:
        """Delete an object. Raises `RefusedError` unless the server agreed."""
        return self._expect(self.request("DELETE", path, body), "DELETE", path)

    def _expect(self, answer: Answer, method: str, path: str) -> Any:
        if answer.status >= 300:
            raise RefusedError(f"{method} {path} was answered {answer.status}: {answer.message}")
        return answer.body


def eventually(probe: Callable[[], T | None], what: str, *, seconds: float = 60.0) -> T:
    """Return what the probe returns once that is neither None nor False; no answer and a refusal are tried again.

    Raises `OverdueError` naming what was waited for, and the last failure.
    """
    deadline = time.monotonic() + seconds
    while True:
        last: Exception | None = None
        try:
            if found := probe():
                return found
        except (OSError, http.client.HTTPException, RefusedError) as error:
            last = error
        if time.monotonic() > deadline:
            raise OverdueError(f"no {what} within {seconds:.0f} s" + (f": {last}" if last else ""))
        time.sleep(POLL_SECONDS)


def _named(entries: list[dict[str, Any]], name: str) -> dict[str, Any]:
    return next(entry for entry in entries if entry["name"] == name)


def _data(entry: Mapping[str, Any], key: str, folder: Path) -> bytes | None:
    if f"{key}-data" in entry:
        return base64.b64decode(entry[f"{key}-data"])
    return (folder / entry[key]).read_bytes() if key in entry else None
