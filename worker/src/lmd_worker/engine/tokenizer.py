"""`Text` over the model's own tokenizer and chat template."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import TemplateError
from transformers import AutoTokenizer

from lmd_worker.errors import BadRequestError, ModelRefusedError


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

    @property
    def stop_token_ids(self) -> frozenset[int]:
        """The end-of-sequence tokens of generation_config.json, config.json and the tokenizer together."""
        return self._stop_token_ids

    def encode(self, prompt: str) -> list[int]:
        """Token ids of a plain prompt, with the special tokens the model expects at its start."""
        return list(self._tokenizer(prompt)["input_ids"])

    def encode_chat(self, messages: Sequence[Mapping[str, str]]) -> list[int]:
        """Token ids of `{"role", "content"}` messages, ending where the assistant speaks.

        Raises `BadRequestError` when the model has no chat template or the template refuses the messages.
        """
        if not self._tokenizer.chat_template:
            raise BadRequestError("this model has no chat template; send a plain prompt instead.")
        try:
            tokens = self._tokenizer.apply_chat_template(
                [dict(message) for message in messages], add_generation_prompt=True, return_dict=False
            )
        except (TemplateError, TypeError, ValueError, KeyError) as error:
            raise BadRequestError(f"the model's chat template refuses these messages: {(str(error).splitlines() or [''])[0]}") from error
        return list(tokens)

    def decode(self, tokens: Sequence[int]) -> str:
        """Text of token ids without special tokens; incomplete UTF-8 at the end decodes to U+FFFD."""
        return str(self._tokenizer.decode(list(tokens), skip_special_tokens=True, clean_up_tokenization_spaces=False))


def _stop_token_ids(model_path: Path) -> frozenset[int]:
    found: set[int] = set()
    for name in ("generation_config.json", "config.json"):
        try:
            ids = json.loads((model_path / name).read_text()).get("eos_token_id")
        except (OSError, ValueError, AttributeError):
            continue  # the first is optional, the second was read before
        found.update([ids] if isinstance(ids, int) else [item for item in ids or () if isinstance(item, int)])
    return frozenset(found)
