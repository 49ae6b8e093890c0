"""What OpenAI's routes have in common: their fields, and which of them this server need not act upon.

A field that is null counts as absent, as OpenAI's own clients send it.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from lmd_worker.api import documents, fields
from lmd_worker.api.documents import Document, wrong
from lmd_worker.api.fields import Fields
from lmd_worker.api.generation import Call
from lmd_worker.errors import BadRequestError

MODEL_ALIAS = "MODEL"
"""Names the served model whatever it is called, as the URL has named it already."""
MOST_CHOICES = 128
MOST_LOGPROBS = 20
MOST_WEIGHT = 100.0
"""Of a token in `logit_bias`, either way."""

IGNORED: Fields = {
    "user": fields.ignored("a note for the service's own statistics"),
    "safety_identifier": fields.ignored("a note for the service's own statistics"),
    "metadata": fields.ignored("a note for stored answers, and none are stored"),
    "prompt_cache_key": fields.ignored("a hint where to find a cached prompt; the answer is the same"),
    "prompt_cache_options": fields.ignored("a hint how to cache the prompt; the answer is the same"),
    "prompt_cache_retention": fields.ignored("a hint how long to cache the prompt; the answer is the same"),
}
"""Accepted whatever they hold, as no answer depends on them."""

SAMPLING: Fields = {
    "model": fields.raw,
    "n": fields.integer(1, MOST_CHOICES, default=1),
    "stream": fields.boolean(),
    "stream_options": fields.raw,
    "temperature": fields.number(0.0, 2.0, default=1.0),
    "top_p": fields.number(0.0, 1.0, default=1.0, above_low=True),
    "top_k": fields.integer(0, default=0),
    "seed": fields.integer(-(2**63), fields.MOST_SEED),
    "stop": fields.stop_strings,
    "frequency_penalty": fields.number(-2.0, 2.0, default=0.0),
    "presence_penalty": fields.number(-2.0, 2.0, default=0.0),
    "logit_bias": fields.raw,
    "max_tokens": fields.integer(1),
}
SAME_NAME = ("stream", "temperature", "top_p", "top_k", "stop", "frequency_penalty", "presence_penalty")
"""Fields that a `Generation` has under the same name."""


@dataclass(frozen=True, slots=True)
class Request:
    """One request's fields: as they came, without nulls, and as they were read."""

    document: Document
    values: Mapping[str, Any]

    @property
    def include_usage(self) -> bool:
        """Whether a stream ends with an event that counts tokens."""
        if "stream_options" not in self.document:
            return False
        if not self.values["stream"]:
            raise wrong("stream_options", "only together with stream: true.")
        options = documents.members(self.document["stream_options"], "stream_options", "an object with include_usage")
        table: Fields = {
            "include_usage": fields.boolean(),
            "include_obfuscation": fields.ignored("padding that hides the length of tokens; the text is the same"),
        }
        return bool(fields.read(options, table, "stream_options.")["include_usage"])

    @property
    def generation(self) -> dict[str, Any]:
        """What the fields in common say to a `Generation`."""
        seed = self.values["seed"]
        return {
            **{name: self.values[name] for name in SAME_NAME},
            "choices": self.values["n"],
            "seed": None if seed is None else seed % 2**63,
            "token_weights": _token_weights(self.values["logit_bias"]),
        }


def read(call: Call, table: Fields, model_name: str) -> Request:
    """Read one body by a route's whole table of fields; raises `BadRequestError`, 404 for a model that is not served here."""
    whole = documents.json_object(call.content_type, call.body)
    documents.refuse_unknown(whole, table)
    document = {name: value for name, value in whole.items() if value is not None}
    check_model(document, model_name)
    return Request(document, fields.read(document, table))


def check_model(document: Document, model_name: str) -> None:
    """Raise when the body names a model that is not the served one; naming none is fine, as the URL does."""
    if "model" in document:
        named = documents.text(document["model"], "model")
        if named not in (model_name, MODEL_ALIAS):
            raise no_such_model(named, model_name)


def no_such_model(named: str, model_name: str) -> BadRequestError:
    """Return OpenAI's error about an unknown model, with the name that would do."""
    sentence = f"The model `{documents.shown(named)}` does not exist here; this server has `{model_name}`."
    return BadRequestError(sentence, 404, param="model", code="model_not_found")


def one_of(document: Document, name: str, choices: Collection[str]) -> str | None:
    """Return a word out of a few, None when absent."""
    if name not in document:
        return None
    value = documents.text(document[name], name)
    if value not in choices:
        raise wrong(name, f"must be one of {', '.join(choices)}, got {documents.shown(value)}.")
    return value


def _token_weights(value: Any) -> dict[int, float]:
    if value is None:
        return {}
    weights = {}
    for name, weight in documents.members(value, "logit_bias", "an object of token ids and weights").items():
        if not (name.isascii() and name.isdigit()) or len(name) > documents.SHOWN_CHARACTERS:
            raise wrong("logit_bias", f"names must be token ids, got {documents.shown(name)}.")
        reader = fields.number(-MOST_WEIGHT, MOST_WEIGHT, 0.0)
        try:
            weights[int(name)] = reader({name: weight}, name)
        except BadRequestError as error:
            raise wrong("logit_bias", f"the weight of token {error}") from error
    return weights
