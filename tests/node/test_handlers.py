"""A handler of the user's own on a real node: from a ConfigMap, a `.mar` and a model directory, tokens as of one process."""

from __future__ import annotations

import contextlib
import http.client
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

import pytest

pytestmark = pytest.mark.node

FORMS = {
    "ConfigMap": ({"configMapRef": {"name": "mine"}}, 3),
    "archive": ({"archive": "any.mar"}, 3),
    "directory": ({"archive": "any"}, 1),
}
"""The handler and the ranks by its form."""


@pytest.fixture(scope="module")
def _volume(node: Any, namespace: str, make_claim: Callable[..., None], handlers: Any) -> None:
    """The claim and the ConfigMap that the forms name."""
    make_claim(namespace, "classic", handlers.volume)
    data = {"handler.py": (handlers.sources / "handler.py").read_text()}
    document = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "mine"}, "data": data}
    node.plane.api.create(f"/api/v1/namespaces/{namespace}/configmaps", document)


@pytest.mark.usefixtures("_volume")
@pytest.mark.parametrize("form", FORMS)
def test_the_documented_handler_answers_as_one_process_does(serve: Callable[..., Any], handlers: Any, form: str) -> None:
    handler, degree = FORMS[form]
    model = {"source": {"persistentVolumeClaim": {"claimName": "classic", "path": "tiny"}}}
    service = serve(model=model, handler=handler, parallelism={"tensor": degree}, engine={"dtype": "float32"})
    host = urlsplit(service.url()).hostname

    def ask() -> tuple[int, str]:
        with contextlib.closing(http.client.HTTPConnection(host or "", 80, timeout=60)) as connection:
            connection.request("POST", "/predictions/smollm2", handlers.prompt.encode(), {"Content-Type": "text/plain"})
            answer = connection.getresponse()
            return answer.status, answer.read().decode()

    assert service.node.inside(ask) == (200, handlers.answer)
