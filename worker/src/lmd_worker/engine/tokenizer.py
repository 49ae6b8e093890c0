"""`Text` over the model's own tokenizer and chat template."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, TemplateError, meta
from transformers import AutoTokenizer

from lmd_worker.engine.protocol import Constraint
from lmd_worker.errors import BadRequestError, ModelRefusedError

TOOL_CALL = "<tool_call>"
"""How a template that teaches Hermes' way of writing calls names it."""
_BYTE_PIECE = re.compile(r"<0x([0-9A-Fa-f]{2})>")

log = logging.getLogger(__name__)


class ModelText:
    """Text to tokens and back as the model's files say."""

    def __init__(self, model_path: Path, *, trust_remote_code: bool = False) -> None:
        """Read the tokenizer. Raises `ModelRefusedError` when the directory has none that works."""
        try:
            self._tokenizer: Any = AutoTokenizer.from_pretrained(model_path, trust_remote_code=trust_remote_code, local_files_only=True)
        except (OSError, ValueError, ImportError, KeyError) as error:
            raise ModelRefusedError(
                f"transformers cannot load the tokenizer of {model_path}: {(str(error).splitlines() or [''])[0].rstrip('.: ')}. "
                "Put tokenizer.json and tokenizer_config.json beside the weights."
            ) from error
        own = self._tokenizer.eos_token_id
        self._stop_token_ids = _stop_token_ids(model_path) | ({own} if isinstance(own, int) else set())
        self._spelt: dict[int, bytes] = {}
        self._grammar_tokenizer: Any = None

    @property
    def stop_token_ids(self) -> frozenset[int]:
        """The end-of-sequence tokens of generation_config.json, config.json and the tokenizer together."""
        return self._stop_token_ids

    @cached_property
    def writes_tool_calls(self) -> bool:
        """Whether the template that takes tools speaks of `<tool_call>`."""
        return self._takes_tools and TOOL_CALL in self._template(tools=True)

    def encode(self, prompt: str, *, special_tokens: bool = True) -> list[int]:
        """Token ids of a plain prompt; with the special tokens the model expects at its start, unless told otherwise."""
        return list(self._tokenizer(prompt, add_special_tokens=special_tokens)["input_ids"])

    def encode_chat(self, messages: Sequence[Mapping[str, Any]], *, tools: Sequence[Mapping[str, Any]] = ()) -> list[int]:
        """Token ids of `{"role", "content"}` messages, ending where the assistant speaks.

        Raises `BadRequestError` when the model has no chat template, or the template refuses the messages or takes no tools.
        """
        if not self._tokenizer.chat_template:
            raise BadRequestError("this model has no chat template; send a plain prompt instead.", param="messages")
        if tools and not self._takes_tools:
            raise BadRequestError("tools: this model's chat template takes no tools; leave them out.", param="tools")
        try:
            tokens = self._tokenizer.apply_chat_template(
                [dict(message) for message in messages],
                tools=[dict(tool) for tool in tools] or None,
                add_generation_prompt=True,
                return_dict=False,
            )
        except (TemplateError, ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
            sentence = f"the model's chat template refuses these messages: {(str(error).splitlines() or [''])[0]}"
            raise BadRequestError(sentence, param="messages") from error
        return list(tokens)

    def decode(self, tokens: Sequence[int], *, special_tokens: bool = False) -> str:
        """Text of token ids, without special tokens unless asked; incomplete UTF-8 at the end decodes to U+FFFD."""
        return str(self._tokenizer.decode(list(tokens), skip_special_tokens=not special_tokens, clean_up_tokenization_spaces=False))

    def token_bytes(self, token: int) -> bytes:
        """What one token adds to a text, as UTF-8, which may be half a character; a special token's own name.

        Byte-level and byte-fallback pieces spell their bytes. Any other token is decoded behind itself, so that its leading space
        is seen; the text of a first token would lack it. Ids beyond the tokenizer's own, which models pad with, are nothing.
        """
        if token not in self._spelt:
            self._spelt[token] = self._spell(token)
        return self._spelt[token]

    def _spell(self, token: int) -> bytes:
        piece = self._tokenizer.convert_ids_to_tokens(token)
        if piece is None:
            return b""
        if token in self._special:
            return str(piece).encode()
        if self._decoder == "ByteLevel":
            return _byte_level(piece)
        if self._decoder == "ByteFallback" and (match := _BYTE_PIECE.fullmatch(piece)):
            return bytes([int(match[1], 16)])
        once, twice = self.decode([token]), self.decode([token, token])
        return (twice[len(once) :] if twice.startswith(once) else once).encode()

    def grammar(self, schema: Mapping[str, Any]) -> Callable[[], Constraint]:
        """Return what makes a constraint to the JSON of a schema, one for each answer.

        Raises `BadRequestError` when the schema, or this tokenizer, does not allow it.
        """
        from lmd_worker.engine.grammar import compile_schema

        return compile_schema(self._for_grammars(), schema)

    def prepare(self) -> None:
        """Make what the first constrained answer would wait for; seconds, in which the library holds up this whole process."""
        try:
            self._for_grammars()
        except BadRequestError as error:
            log.info("Constrained answers are not available: reason=%s", error)

    def _for_grammars(self) -> Any:
        """Return the library's view of this tokenizer, made once."""
        if self._grammar_tokenizer is None:
            self._grammar_tokenizer = self._made_for_grammars()
        return self._grammar_tokenizer

    def _made_for_grammars(self) -> Any:
        from llguidance.hf import from_tokenizer

        if not self._stop_token_ids:
            raise BadRequestError("response_format: this model has no token that ends an answer.", param="response_format")
        try:
            return from_tokenizer(self._tokenizer, n_vocab=len(self._tokenizer), eos_token=sorted(self._stop_token_ids))
        except Exception as error:  # the library raises bare ValueError and pyo3's own for kinds it does not know
            raise BadRequestError(
                "response_format: this model's tokenizer is of a kind that cannot be constrained; ask for text.", param="response_format"
            ) from error

    @cached_property
    def _takes_tools(self) -> bool:
        if not self._tokenizer.chat_template:
            return False
        template = self._template(tools=True)
        try:
            return "tools" in meta.find_undeclared_variables(Environment(extensions=["jinja2.ext.loopcontrols"]).parse(template))
        except TemplateError:  # tags of transformers' own, such as generation
            return re.search(r"\btools\b", template) is not None

    def _template(self, *, tools: bool) -> str:
        """Return the chat template; a model may have another one for tools."""
        return str(self._tokenizer.get_chat_template(None, [{}] if tools else None))

    @cached_property
    def _special(self) -> frozenset[int]:
        return frozenset(self._tokenizer.all_special_ids) | {
            token for token, added in self._tokenizer.added_tokens_decoder.items() if added.special
        }

    @cached_property
    def _decoder(self) -> str | None:
        """Which of the decoders of Hugging Face tokenizers writes bytes, if one does."""
        backend = getattr(self._tokenizer, "backend_tokenizer", None)
        decoder = json.loads(backend.to_str()).get("decoder") if backend is not None else None
        kinds = [part["type"] for part in [decoder or {"type": ""}, *(decoder or {}).get("decoders", [])]]
        return next((kind for kind in kinds if kind in ("ByteLevel", "ByteFallback")), None)


@lru_cache(maxsize=1)
def _byte_alphabet() -> Mapping[str, int]:
    """Return the characters that stand for bytes in byte-level pieces, as GPT-2 chose them.

    Printable bytes of Latin-1 stand for themselves, the others in order for characters from U+0100 on.
    """
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + index): byte for index, byte in enumerate(others)}


def _byte_level(piece: str) -> bytes:
    """Return the bytes of a byte-level piece; one that was added as it is, and so is not written in that alphabet, as UTF-8."""
    alphabet = _byte_alphabet()
    return bytes(alphabet[character] for character in piece) if all(character in alphabet for character in piece) else piece.encode()


def _stop_token_ids(model_path: Path) -> frozenset[int]:
    found: set[int] = set()
    for name in ("generation_config.json", "config.json"):
        try:
            ids = json.loads((model_path / name).read_text()).get("eos_token_id")
        except (OSError, ValueError, AttributeError):
            continue  # the first is optional, the second was read before
        found.update([ids] if isinstance(ids, int) else [item for item in ids or () if isinstance(item, int)])
    return frozenset(found)
