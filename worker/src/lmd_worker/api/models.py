"""`v1/models` and `v1/models/<id>`: the one model that is served here, in OpenAI's shape."""

from __future__ import annotations

from typing import Any

from lmd_worker.api.generation import Answer, Part, encode


def model_document(name: str, created: int, context_tokens: int) -> dict[str, Any]:
    """Return the model's entry; `created` is when it was loaded, in Unix seconds, and `max_model_len` is vLLM's addition."""
    return {"id": name, "object": "model", "created": created, "owned_by": "lmd", "max_model_len": context_tokens}


def listing(model: dict[str, Any]) -> Answer:
    """Answer with all models, which is one."""
    return Answer(encode({"object": "list", "data": [model]}), Part.ONLY)


def single(model: dict[str, Any]) -> Answer:
    """Answer with the model itself."""
    return Answer(encode(model), Part.ONLY)
