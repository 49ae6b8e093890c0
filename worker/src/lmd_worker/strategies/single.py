"""Strategy None: one process, one device, the model as transformers makes it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lmd_worker.errors import ModelRefusedError
from lmd_worker.settings import Settings
from lmd_worker.shape import ModelShape
from lmd_worker.strategies.reading import read_model
from lmd_worker.strategies.share import Share

if TYPE_CHECKING:
    from lmd_worker.ranks import Group

_CAUSAL = ("ForCausalLM", "LMHeadModel", "ForConditionalGeneration")


def guard(shape: ModelShape, settings: Settings) -> None:
    """Refuse what is no causal language model, before loading anything; raises `ModelRefusedError`."""
    if settings.tensor != 1:
        raise ModelRefusedError(f"strategy None runs one process, not degree {settings.tensor}. Use a strategy that cuts, or degree 1.")
    guard_causal(shape)


def guard_causal(shape: ModelShape) -> None:
    """Raise `ModelRefusedError` for encoders and encoder-decoders, whatever the strategy."""
    if shape.encoder_decoder:
        raise ModelRefusedError(
            f"{shape.model_type} is an encoder-decoder; this worker serves causal language models. Choose a decoder-only model."
        )
    if shape.architectures and not any(name.endswith(_CAUSAL) for name in shape.architectures):
        raise ModelRefusedError(
            f"{shape.model_type} ({', '.join(shape.architectures)}) has no language-model head; this worker serves causal language models. "
            "Choose a model whose architecture ends in ForCausalLM."
        )


def load(settings: Settings, group: Group) -> Any:
    """Return the model on this process's device."""
    return read_model(settings).to(group.device)


def share(shape: ModelShape, settings: Settings) -> Share:
    """Return all of it: nothing is cut."""
    return Share()
