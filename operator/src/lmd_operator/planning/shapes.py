"""What a model is, in the numbers a plan needs: sizes from config.json, elements by what engines do with them. Pure.

The sizes come from the configuration; the elements from the tensors of the safetensors headers where there are any, and from
the sizes alone where there are none or where the tensors are packed by a quantisation.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lmd_operator.errors import LmdError

DEFAULT_CONTEXT_TOKENS = 8192
UNKNOWN_LIMIT_CONTEXT_TOKENS = 2048
"""As the worker has them: contexts nobody asked for, of models that state their limit and of those that state none."""
BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
"""Bytes of one element of the data types weights are loaded in."""


class ShapeError(LmdError):
    """The configuration states no model that could be planned."""


@dataclass(frozen=True, slots=True)
class Elements:
    """Parameters of a model by what engines do with them, over all layers.

    `latent` are the low-rank projections of latent attention (MLA) that have no heads. `head` is 0 when it is tied to `embeddings`.
    `other` are norms, biases, and towers that are not cut.
    """

    embeddings: int = 0
    positions: int = 0
    head: int = 0
    query: int = 0
    key_value: int = 0
    output: int = 0
    latent: int = 0
    mlp: int = 0
    experts: int = 0
    shared_experts: int = 0
    router: int = 0
    other: int = 0

    @property
    def total(self) -> int:
        """All parameters."""
        return self.embeddings + self.positions + self.head + self.other + self.in_layers

    @property
    def in_layers(self) -> int:
        """Those of the matrices inside layers."""
        attention = self.query + self.key_value + self.output + self.latent
        return attention + self.mlp + self.experts + self.shared_experts + self.router


@dataclass(frozen=True, slots=True)
class Latent:
    """Ranks and head sizes of latent attention (MLA). `query_rank` is 0 where queries are not compressed."""

    query_rank: int
    key_value_rank: int
    rope_dim: int
    nope_dim: int
    value_dim: int


@dataclass(frozen=True, slots=True)
class ModelShape:
    """Sizes of one causal language model.

    `head_dim` is the worker's: config.json's, or hidden size by heads. `intermediate` is the width of dense feed-forward layers,
    `expert_intermediate` that of one expert, `shared_intermediate` that of all shared experts together. `is_mixture` says of each
    layer whether its feed-forward has experts; `is_sliding` whether its attention has the `window`. `max_positions` is None
    where none is stated. `unpaged` says why its configuration alone rules out continuous decoding. `stored_bytes`
    are those of the weight files, `dtype` their type.
    """

    family: str
    hidden: int
    layers: int
    heads: int
    key_value_heads: int
    head_dim: int
    intermediate: int
    vocabulary: int
    max_positions: int | None
    is_tied: bool
    dtype: str
    quantization: str
    stored_bytes: int
    elements: Elements
    experts: int = 0
    experts_per_token: int = 0
    expert_intermediate: int = 0
    shared_intermediate: int = 0
    is_mixture: tuple[bool, ...] = ()
    latent: Latent | None = None
    window: int | None = None
    is_sliding: tuple[bool, ...] = ()
    unpaged: str = ""
    has_old_falcon_attention: bool = False

    @property
    def parameters(self) -> int:
        """All parameters; tied ones count once."""
        return self.elements.total

    @property
    def mixture_layers(self) -> int:
        """Layers with experts."""
        return sum(self.is_mixture)

    def context_tokens(self, asked: int | None) -> int:
        """Return the context a request gets, as the worker would: what was asked, or the model's limit but at most 8192."""
        if asked is not None:
            return asked
        return min(self.max_positions, DEFAULT_CONTEXT_TOKENS) if self.max_positions else UNKNOWN_LIMIT_CONTEXT_TOKENS


def natural(config: Mapping[str, Any], *keys: str) -> int:
    """Return the first of the keys that holds a positive whole number, or 0; the first of a list where there is one a layer."""
    for key in keys:
        value = config.get(key)
        if isinstance(value, list) and value:
            value = value[0]
        if isinstance(value, int) and not isinstance(value, bool) and value > 0:
            return value
    return 0


def text_config(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the language model's part of a configuration; a multimodal one has it nested."""
    nested = config.get("text_config")
    return {**config, **nested} if isinstance(nested, Mapping) else config


def mixture_layers(text: Mapping[str, Any], layers: int) -> tuple[bool, ...]:
    """Return, of each layer, whether its feed-forward has experts.

    Source: the decoder layers of transformers 5.23: deepseek_v3, qwen3_moe, llama4 and ernie4_5_moe; the others have them in all.
    """
    first = natural(text, "first_k_dense_replace")
    every = natural(text, "decoder_sparse_step", "interleave_moe_layer_step", "moe_layer_interval", "moe_layer_freq") or 1
    start = natural(text, "moe_layer_start_index") or first
    plain = text.get("mlp_only_layers") or ()
    if "moe_layer_start_index" in text or first:
        return tuple(index >= start and (index - start) % every == 0 for index in range(layers))
    return tuple(index not in plain and (index + 1) % every == 0 for index in range(layers))


def sliding_layers(text: Mapping[str, Any], layers: int) -> tuple[bool, ...]:
    """Return, of each layer, whether its attention looks back over a window only."""
    kinds = text.get("layer_types")
    if isinstance(kinds, Sequence) and len(kinds) == layers:
        return tuple(kind == "sliding_attention" for kind in kinds)
    pattern = natural(text, "sliding_window_pattern", "_sliding_window_pattern")
    if text.get("model_type") == "gemma2":
        pattern = 2
    if pattern > 1:
        return tuple((index + 1) % pattern != 0 for index in range(layers))
    has_window = natural(text, "sliding_window") > 0 and text.get("use_sliding_window", True) is not False
    return (has_window and text.get("model_type") in _ALL_SLIDING,) * layers


_ALL_SLIDING = frozenset({"mistral", "mixtral", "phi3", "starcoder2", "phimoe"})
