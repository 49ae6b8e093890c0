"""A question to a running worker, answered as it is generated."""

from __future__ import annotations

import http.client
import json
from collections.abc import Iterator

from lmd_operator.errors import LocalRunError
from lmd_operator.local.ports import LOOPBACK

MAX_TOKENS = 128


def ask(port: int, model: str, question: str, timeout_seconds: float) -> Iterator[str]:
    """Yield the answer in pieces. Raises `LocalRunError` when the worker refuses or stops answering."""
    connection = http.client.HTTPConnection(LOOPBACK, port, timeout=timeout_seconds)
    body = {"messages": [{"role": "user", "content": question}], "max_tokens": MAX_TOKENS, "stream": True}
    try:
        connection.request("POST", f"/predictions/{model}", json.dumps(body), {"Content-Type": "application/json"})
        response = connection.getresponse()
        if response.status != http.HTTPStatus.OK:
            raise LocalRunError(f"the worker refused the question ({response.status}): {response.read().decode(errors='replace').strip()}")
        yield from _pieces(response)
    except (OSError, http.client.HTTPException) as error:
        raise LocalRunError(f"the worker stopped answering: {error or type(error).__name__}") from error
    finally:
        connection.close()


def _pieces(response: http.client.HTTPResponse) -> Iterator[str]:
    for line in response:
        data = line.decode().strip().removeprefix("data: ")
        if not data or data == "[DONE]":
            continue
        event = json.loads(data)
        if "error" in event:
            raise LocalRunError(f"the worker could not answer: {event['error']['message']}")
        yield event.get("text", "")
