"""`tokenize` and `detokenize`: text to token ids and back, without generating, in vLLM's shapes.

Source of the shapes: vLLM's OpenAI-compatible server, its Tokenizer API (v0.11).
"""

from __future__ import annotations

from typing import Any

from lmd_worker.api import documents, fields, messages, parameters, prompts, tools
from lmd_worker.api.documents import wrong
from lmd_worker.api.fields import Fields
from lmd_worker.api.generation import Answer, Call, Part, encode
from lmd_worker.api.prompts import Chat, Plain, Prompt
from lmd_worker.text import Text

_FULL = "only the chat as it is asked to be answered can be shown; leave it out."
TOKENIZE: Fields = {
    "model": fields.raw,
    "prompt": fields.raw,
    "messages": fields.raw,
    "tools": fields.raw,
    "add_special_tokens": fields.boolean(default=True),
    "return_token_strs": fields.boolean(),
    "add_generation_prompt": fields.only(True, _FULL),
    "continue_final_message": fields.only(False, _FULL),
}
DETOKENIZE: Fields = {"model": fields.raw, "tokens": fields.raw}


def tokenize(call: Call, model_name: str, text: Text, vocabulary_size: int, context_tokens: int) -> Answer:
    """Answer with the token ids of a prompt or a chat."""
    request = parameters.read(call, TOKENIZE, model_name)
    found = prompts.tokens(_prompt(request), text, vocabulary_size)
    names = [text.token_bytes(token).decode(errors="replace") for token in found] if request.values["return_token_strs"] else None
    return _answer({"count": len(found), "max_model_len": context_tokens, "tokens": found, "token_strs": names})


def detokenize(call: Call, model_name: str, text: Text, vocabulary_size: int) -> Answer:
    """Answer with the text of token ids, special tokens included."""
    document = parameters.read(call, DETOKENIZE, model_name).document
    given = document.get("tokens")
    if not isinstance(given, list):
        raise wrong("tokens", f"must be a list of token ids, got {documents.kind(given)}.")
    for index, token in enumerate(given):
        if isinstance(token, bool) or not isinstance(token, int) or not 0 <= token < vocabulary_size:
            raise wrong(f"tokens[{index}]", f"must be a token id, an integer from 0 to {vocabulary_size - 1}.")
    return _answer({"prompt": text.decode(given, special_tokens=True)})


def _prompt(request: parameters.Request) -> Prompt:
    document = request.document
    if ("prompt" in document) == ("messages" in document):
        raise wrong("prompt", "give either prompt or messages.")
    if "messages" in document:
        return Chat(messages.read_chat(document["messages"]), tools.definitions(document))
    return Plain(documents.text(document["prompt"], "prompt"), request.values["add_special_tokens"])


def _answer(document: dict[str, Any]) -> Answer:
    return Answer(encode(document), Part.ONLY)
