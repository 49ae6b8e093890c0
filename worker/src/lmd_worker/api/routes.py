"""Which path below the model's name is answered by what; the one place where a new route is added."""

from __future__ import annotations

import time
from collections.abc import Callable

from lmd_worker.api import chat, completions, models, parameters, plain, tokens
from lmd_worker.api.generation import Answer, Call, Generation, Part, Reply, Route
from lmd_worker.errors import BadRequestError
from lmd_worker.text import Text

Routes = Callable[[str], Route]
"""From what follows `/predictions/<model>/1.0/` in the URL to what answers it."""

MODELS = "v1/models"


def routes(model_name: str, text: Text, *, context_tokens: int, vocabulary_size: int, report: Callable[[], str]) -> Routes:
    """Return every route of a model. `report` gives the ranks' report as JSON."""
    entry = models.model_document(model_name, int(time.time()), context_tokens)

    def generate(call: Call) -> tuple[Generation, Reply]:
        return plain.parse(call), plain.PlainReply(model_name)

    table: dict[str, Route] = {
        "": generate,
        "lmd/report": lambda _: Answer(report().encode(), Part.ONLY),
        MODELS: lambda _: models.listing(entry),
        "v1/completions": lambda call: completions.parse(call, model_name),
        "v1/chat/completions": lambda call: chat.parse(call, model_name, text),
        "v1/embeddings": _embeddings,
        "tokenize": lambda call: tokens.tokenize(call, model_name, text, vocabulary_size, context_tokens),
        "detokenize": lambda call: tokens.detokenize(call, model_name, text, vocabulary_size),
    }

    def model(call: Call) -> Answer:
        parameters.check_model({"model": call.path.removeprefix(f"{MODELS}/")}, model_name)
        return models.single(entry)

    def find(path: str) -> Route:
        return model if path.startswith(f"{MODELS}/") else table.get(path, _nothing)

    return find


def _nothing(_: Call) -> Answer:
    raise BadRequestError("There is no such route.", 404, code="unknown_url")


def _embeddings(_: Call) -> Answer:
    raise BadRequestError("This model generates text and computes no embeddings; ask a server of an embedding model.")
