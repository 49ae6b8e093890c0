"""What one rank needs of its device, and a replica of its host, in bytes. Pure.

The cache is exact: the formulas are those of the worker's engines. Weights are exact for the tensors that are known. Activations are
upper bounds by formula; what a GPU's context and libraries take is assumed, and said so.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from lmd_operator.planning.cutting import GRAIN, Split, fullest_rank, heads_of_rank, layers_of_stage
from lmd_operator.planning.families import static_reason
from lmd_operator.planning.shapes import BYTES, ModelShape

MIB = 2**20
GIB = 2**30
PAGE_TOKENS = 32
RESERVED_PAGES = 2
"""As lmd_worker.engine.pages: tokens of a page, and pages that no request gets."""
PROMPT_TOKENS_OF_A_TURN = 512
"""As lmd_worker.engine.pace: most tokens of prompts that one turn reads."""
DEVICE_CONTEXT_BYTES = GIB
"""CUDA context, kernels and library workspaces of one process. Assumed; KAITO's estimator reserves 2.3 GiB for all of it."""
COLLECTIVES_BYTES = GIB // 2
"""Buffers of NCCL where there is more than one rank. Assumed."""
HEADROOM = 0.06
"""Part of a device that is left free: for fragments, and because sizes are rounded up (an L4 sold as 24 GB has 23 034 MiB)."""
RANK_HOST_BYTES = int(1.1 * GIB)
"""Python, torch and its libraries of one rank; measured 0.4 to 1.1 GiB resident."""
SHARED_MEMORY_MINIMUM_BYTES = GIB
"""/dev/shm that NCCL and the ranks want."""
LIVE_PARAMETERS = 1_000_000_000
PREFETCHED_PARAMETERS = 50_000_000
"""Defaults of DeepSpeed stage 3: `stage3_max_live_parameters` and `stage3_prefetch_bucket_size` (deepspeed 0.19.8, runtime/zero)."""

UNPACKED = frozenset({"mxfp4"})
"""Quantisations that transformers 5.23 undoes while loading, as its `kernels` package is not in the worker's image."""

Scheduler = Literal["Continuous", "Static"]
Weights = Literal["Full", "Int8", "Int4"]
BITS: dict[Weights, int] = {"Int8": 8, "Int4": 4}
QUANTIZED_GROUP = 64
"""Columns that share a scale and a minimum where DeepSpeed makes weights smaller."""
BUFFERS = 5
"""Buffers in host memory through which parameters come from disk."""


@dataclass(frozen=True, slots=True)
class Load:
    """What a replica is asked to hold: requests of `context_tokens` side by side, in a data type.

    `weights` and `disk_buffer` are of ZeroInference: the second is the parameters of a buffer where they are on disk, else 0.
    """

    context_tokens: int
    concurrency: int
    dtype: str = "bfloat16"
    scheduler: Scheduler = "Continuous"
    grain: int = GRAIN
    is_cpu: bool = False
    weights: Weights = "Full"
    disk_buffer: int = 0

    @property
    def item(self) -> int:
        """Bytes of one value."""
        return BYTES[self.dtype]


@dataclass(frozen=True, slots=True)
class DeviceMemory:
    """Bytes on the device of the rank that needs most."""

    weights: int
    key_values: int
    activations: int
    runtime: int

    @property
    def needed(self) -> int:
        """The sum."""
        return self.weights + self.key_values + self.activations + self.runtime


@dataclass(frozen=True, slots=True)
class HostMemory:
    """Bytes of host memory and disk of one replica.

    `load_peak` is one rank's while it loads, without the mapped pages of the files, which the ranks of a host share. `held` is what
    stays on the host when it serves: weights of ZeroInference and of CPU ranks are there, and those of Accelerate as far as there is room;
    the rest of these stays on disk.
    """

    load_peak: int
    held: int
    java_heap: int
    shared_memory: int
    disk: int


def device_memory(shape: ModelShape, split: Split, load: Load) -> DeviceMemory:
    """Return what the fullest rank needs."""
    return DeviceMemory(
        weights=weight_bytes(shape, split, load),
        key_values=key_value_bytes(shape, split, load),
        activations=activation_bytes(shape, split, load),
        runtime=RANK_HOST_BYTES if load.is_cpu else DEVICE_CONTEXT_BYTES + (COLLECTIVES_BYTES if split.ranks > 1 else 0),
    )


def weight_bytes(shape: ModelShape, split: Split, load: Load) -> int:
    """Return the weights on the fullest device; quantised ones as they are stored, all others in the type they are loaded in.

    ZeroInference holds the parameters that are live at a time: DeepSpeed's limit, but never less than the largest matrix, and what is
    fetched ahead. Accelerate fills what is left beside the cache; counted is what it cannot do without, the largest block.
    """
    if split.engine == "Accelerate":
        return largest_block(shape) * (shape.stored_bytes if is_packed(shape) else shape.parameters * load.item) // shape.parameters
    if split.engine == "ZeroInference":
        return _live_bytes(shape, load) + (part_bytes(shape, split, load) if load.is_cpu and not load.disk_buffer else 0)
    if is_packed(shape):
        return shape.stored_bytes * fullest_rank(shape, split, load.grain) // max(shape.parameters, 1)
    return fullest_rank(shape, split, load.grain) * load.item


def _live_bytes(shape: ModelShape, load: Load) -> int:
    """Return what is put together on a device at a time; a weight that was made smaller is also there in full while it is used."""
    live = max(LIVE_PARAMETERS, largest_parameter(shape)) + PREFETCHED_PARAMETERS
    if load.weights == "Full":
        return min(shape.parameters, live) * load.item
    return min(part_bytes(shape, Split("ZeroInference"), load), live * load.item) + largest_parameter(shape) * load.item


def part_bytes(shape: ModelShape, split: Split, load: Load) -> int:
    """Return one rank's part of all parameters under ZeroInference: in host memory or on disk, in the data type or made smaller.

    DeepSpeed 0.19.8 (inference/quantization/utils.py) packs Linear and Embedding weights, and keeps two numbers a group beside them.
    """
    whole = shape.parameters * load.item
    if load.weights != "Full":
        packed = shape.parameters - shape.elements.other - shape.elements.experts - shape.elements.router
        whole = (shape.parameters - packed) * load.item
        whole += packed * BITS[load.weights] // 8 + 2 * packed * load.item // QUANTIZED_GROUP
    return -(-whole // split.replicas)


def rows_of_rank(split: Split, load: Load) -> int:
    """Return how many requests one rank decodes at a time: all of them, or its own under ZeroInference."""
    return -(-load.concurrency // split.replicas)


def is_packed(shape: ModelShape) -> bool:
    """Whether the weights stay quantised on the device."""
    return bool(shape.quantization) and shape.quantization not in UNPACKED


def largest_block(shape: ModelShape) -> int:
    """Return the parameters of the largest part that is computed in one piece: a layer, the embedding or the head."""
    elements, dense = shape.elements, shape.layers - shape.mixture_layers
    attention = (elements.query + elements.key_value + elements.output + elements.latent) // shape.layers
    experts = elements.experts + elements.shared_experts + elements.router
    widest = max(elements.mlp // max(dense, 1), experts // max(shape.mixture_layers, 1))
    return max(attention + widest, elements.embeddings, elements.head)


def largest_parameter(shape: ModelShape) -> int:
    """Return the elements of the largest parameter: the embedding, or a mixture layer's experts, which transformers 5 keeps as one."""
    experts = shape.experts * 2 * shape.hidden * shape.expert_intermediate
    return max(shape.elements.embeddings, experts, shape.hidden * shape.intermediate)


def key_value_bytes(shape: ModelShape, split: Split, load: Load) -> int:
    """Return the cache on the fullest rank, for every request's whole context.

    Paged, as lmd_worker.engine.pages.CacheShape.bytes: 2 x layers x key-value heads x head size x values' bytes for every token of
    every page and of the two reserved ones; windows save nothing there. Otherwise as transformers' DynamicCache, which keeps the window
    of a sliding layer and the latents of latent attention (modeling_deepseek_v3.py), these whole on every rank.
    """
    layers = _cached_layers(shape, split)
    if is_paged(shape, split, load):
        pages = -(-load.context_tokens // PAGE_TOKENS) * rows_of_rank(split, load) + RESERVED_PAGES
        return token_bytes(shape, split, load) * len(layers) * pages * PAGE_TOKENS
    sliding = shape.is_sliding[layers.start : layers.stop].count(True) if shape.window else 0
    windows = sliding * min(load.context_tokens, shape.window or 0)
    return token_bytes(shape, split, load) * rows_of_rank(split, load) * ((len(layers) - sliding) * load.context_tokens + windows)


def token_bytes(shape: ModelShape, split: Split, load: Load) -> int:
    """Return the cache of one token in one layer on the fullest rank."""
    if shape.latent is not None:
        return (shape.latent.key_value_rank + shape.latent.rope_dim) * load.item
    return 2 * heads_of_rank(shape, split)[1] * shape.head_dim * load.item


def is_paged(shape: ModelShape, split: Split, load: Load) -> bool:
    """Whether the worker decodes this model continuously, over pages."""
    return load.scheduler == "Continuous" and not static_reason(shape, split.engine, split.ranks)


def activation_bytes(shape: ModelShape, split: Split, load: Load) -> int:
    """Return an upper bound of what one turn computes with, beside weights and cache.

    A turn of the continuous engine has at most 512 tokens of prompts and one of each running request, and gathers the pages of one
    layer (CacheShape.working_bytes). A static batch reads all prompts at once, repeats the keys and values of one layer for every
    head, copies one layer's cache as it grows, and has a mask of every token against every other.
    """
    query_heads, key_value_heads = heads_of_rank(shape, split)
    part = max(split.tensor, 1)
    widest = max(shape.intermediate, shape.experts_per_token * shape.expert_intermediate + shape.shared_intermediate)
    a_token = 4 * shape.hidden + (query_heads + 2 * key_value_heads) * shape.head_dim + 3 * -(-widest // part)
    rows = rows_of_rank(split, load)
    logits = load.concurrency * shape.vocabulary * (load.item + 2 * BYTES["float32"])
    layers = max(1, len(_cached_layers(shape, split)))
    if is_paged(shape, split, load):
        tokens = PROMPT_TOKENS_OF_A_TURN + load.concurrency
        return tokens * a_token * load.item + logits + 2 * key_value_bytes(shape, split, load) // layers
    tokens = rows * load.context_tokens
    repeated = 2 * tokens * query_heads * _key_dim(shape) * load.item
    mask = rows * load.context_tokens**2
    return tokens * a_token * load.item + logits + repeated + tokens * token_bytes(shape, split, load) + mask


def host_memory(shape: ModelShape, split: Split, load: Load, *, java_heap: int, is_fetched: bool) -> HostMemory:
    """Return what a replica needs of its host.

    AutoTP and one process map the whole files and copy their part (measured 559 MiB for a part of 533), or all of it when the type on
    disk is another. transformers' own cuts read slices (measured 133 MiB of a model of 969): two of the largest matrices at a time.
    """
    whole = shape.parameters * load.item if not shape.quantization else shape.stored_bytes
    own = weight_bytes(shape, split, load)
    if split.engine in ("DeepSpeed", "None", "Accelerate"):
        peak = own if shape.dtype == load.dtype or shape.quantization else whole
    elif split.engine == "ZeroInference":
        peak = (0 if load.disk_buffer else part_bytes(shape, split, load)) + largest_parameter(shape) * load.item
    else:
        peak = min(own, 2 * largest_parameter(shape) * load.item)
    parts = part_bytes(shape, split, load) * split.ranks if split.engine == "ZeroInference" else 0
    buffers = BUFFERS * load.disk_buffer * load.item * split.ranks
    staying = {"ZeroInference": buffers or parts, "Accelerate": whole - own}.get(split.engine, 0)
    if load.is_cpu:
        staying = (own + key_value_bytes(shape, split, load)) * split.ranks + (buffers if split.engine == "ZeroInference" else 0)
    shared = SHARED_MEMORY_MINIMUM_BYTES if split.ranks > 1 else 64 * MIB
    disk = (shape.stored_bytes if is_fetched else 0) + (parts if load.disk_buffer else 0)
    return HostMemory(peak, staying + RANK_HOST_BYTES * split.ranks, java_heap, shared, disk)


def _cached_layers(shape: ModelShape, split: Split) -> range:
    """Return the layers of the stage that has most: the last."""
    return layers_of_stage(shape.layers, split.pipeline, split.pipeline - 1)


def _key_dim(shape: ModelShape) -> int:
    return shape.latent.nope_dim + shape.latent.rope_dim if shape.latent is not None else shape.head_dim
