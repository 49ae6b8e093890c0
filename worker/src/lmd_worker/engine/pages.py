"""The paged key-value cache: transformers' own, as large as contextTokens x concurrency and no larger.

Every request gets pages as it grows and gives them back when it ends. The cache reserves the context of every request that may run,
so that none is ever pre-empted, and its size is known before the first one comes. Each rank holds the heads it computes, which need
not be as many on every rank; the number of pages is the same on all.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import ContinuousBatchingConfig, PreTrainedConfig
from transformers.generation.continuous_batching.cache import PagedAttentionCache
from transformers.generation.continuous_batching.distributed import DistributedHelper

from lmd_worker.errors import ModelRefusedError

if TYPE_CHECKING:
    from lmd_worker.ranks import Group

PAGE_TOKENS = 32
"""Small, as the last page of a request is half empty on average; large enough that a table of pages stays short."""
_RESERVED_PAGES = 2  # transformers keeps two pages that are never given to a request, for padding
_GIB = 2**30


@dataclass(frozen=True, slots=True)
class CacheShape:
    """What decides a rank's bytes of cache; `heads`, `key_value_heads` and `layers`, from `first_layer` on, are the rank's own.

    `shares_prefixes` says that requests which begin alike have the same pages of their beginning, also after each other.
    """

    layers: int
    heads: int
    key_value_heads: int
    head_dim: int
    dtype: torch.dtype
    context_tokens: int
    concurrency: int
    first_layer: int = 0
    shares_prefixes: bool = True

    @property
    def pages_a_request(self) -> int:
        """Pages one request of full length needs."""
        return -(-self.context_tokens // PAGE_TOKENS)

    @property
    def pages(self) -> int:
        """Pages that requests may have, all together."""
        return self.pages_a_request * self.concurrency

    @property
    def bytes(self) -> int:
        """Keys and values of every layer of every page."""
        page = 2 * self.layers * self.key_value_heads * self.head_dim * PAGE_TOKENS * self.dtype.itemsize
        return page * (self.pages + _RESERVED_PAGES)

    @property
    def working_bytes(self) -> int:
        """What a turn of full-length requests gathers for one layer at a time; padding at most doubles it."""
        return 2 * self.bytes // self.layers


class Pages:
    """One rank's cache and who has which page of it."""

    def __init__(self, shape: CacheShape, device: torch.device) -> None:
        """Allocate it. Raises `ModelRefusedError` when the device has not enough memory."""
        self.shape = shape
        try:
            self.cache = _allocate(shape, device)
        except (MemoryError, torch.OutOfMemoryError) as error:
            raise ModelRefusedError(too_large(shape, free_bytes(device))) from error
        allocators = list(self.cache.cache_allocators.values())
        self._allocator: Any = allocators[0]
        self._pages_a_block = self._allocator.block_physical_stride // PAGE_TOKENS

    @property
    def total(self) -> int:
        """Pages that requests may have, all together."""
        return int(self.cache.num_sectors)

    @property
    def used(self) -> int:
        """Pages that requests have now; those of requests that have left and are kept for others that begin alike do not count."""
        return self.total - self._free - len(self._allocator.ledger.cached_blocks)

    @property
    def _free(self) -> int:
        """Pages that hold nothing."""
        pool = self.cache.pool
        return int(pool.num_free_sectors + pool.count_free_blocks(self._allocator.index))

    def make_room(self, pages: int) -> None:
        """Give up pages that are only kept, the longest unused first, until so many are free."""
        ledger = self._allocator.ledger
        given_up = list(islice(ledger.cached_blocks, max(pages - self._free, 0)))
        for page in given_up:
            del ledger.cached_blocks[page]
            del ledger.hash_to_block[ledger.block_to_hash.pop(page)]
        self.cache.pool.free_blocks(self._allocator.index, given_up)

    def table(self, request_id: str) -> list[int]:
        """Return the request's pages, in the order of its tokens, as indices into `layer`'s first dimension."""
        return [block * self._pages_a_block for block in self._allocator.block_table[request_id]]

    def layer(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return one layer's keys and values, [pages, PAGE_TOKENS, key-value heads, head size]; what is written there stays."""
        keys, values = self._allocator.get_cache_for_block_table(index - self.shape.first_layer)
        return keys, values


def shape_for(
    model: Any,
    heads: tuple[int, int],
    head_dim: int,
    layers: range,
    *,
    context_tokens: int,
    concurrency: int,
    shares_prefixes: bool = True,
) -> CacheShape:
    """Return the cache shape of a loaded model; `heads` are this rank's query and key-value heads, `layers` the numbers of its layers."""
    return CacheShape(
        layers=len(layers),
        heads=heads[0],
        key_value_heads=heads[1],
        head_dim=head_dim,
        dtype=model.dtype,
        context_tokens=context_tokens,
        concurrency=concurrency,
        first_layer=layers.start,
        shares_prefixes=shares_prefixes,
    )


def complaint(shape: CacheShape, group: Group) -> str:
    """Return why the cache does not fit this rank's device beside what is there already, or nothing."""
    free = free_bytes(group.device) // (group.size if group.device.type == "cpu" else 1)  # the ranks of a host share its memory
    return f"Rank {group.rank}: {too_large(shape, free)}" if shape.bytes + shape.working_bytes > free else ""


def too_large(shape: CacheShape, free: int) -> str:
    """The sentence for a cache that does not fit."""
    return (
        f"the key-value cache for {shape.concurrency} requests of {shape.context_tokens} tokens needs {shape.bytes / _GIB:.2f} GiB "
        f"and {shape.working_bytes / _GIB:.2f} GiB to work in, but the device has {free / _GIB:.2f} GiB left beside the weights. "
        "Lower contextTokens or concurrency, or raise the degree."
    )


def free_bytes(device: torch.device) -> int:
    """Return the memory this device has left for us: of a GPU as its driver says, of a host within the container's limit."""
    if device.type == "cuda":
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(torch.cuda.mem_get_info(device)[0] + cached)
    return min(_host_free_bytes(Path("/proc/meminfo").read_text()), _container_free_bytes(Path("/sys/fs/cgroup")))


def _host_free_bytes(meminfo: str) -> int:
    lines = dict(line.split(":", 1) for line in meminfo.splitlines())
    return int(lines["MemAvailable"].split()[0]) * 1024


def _container_free_bytes(directory: Path) -> int:
    """Return what the container's limit leaves (cgroup v2), counting file pages as free; very much without a limit."""
    try:
        limit = (directory / "memory.max").read_text().strip()
        current = int((directory / "memory.current").read_text())
        stat = dict(line.split() for line in (directory / "memory.stat").read_text().splitlines())
    except (OSError, ValueError):
        return 2**63
    return 2**63 if limit == "max" else int(limit) - current + int(stat.get("file", 0))


def _allocate(shape: CacheShape, device: torch.device) -> PagedAttentionCache:
    """Make transformers' cache for the rank's own heads, with one kind of layer: windows are a matter of the mask here."""
    own: Any = PreTrainedConfig()
    own.num_hidden_layers, own.vocab_size = shape.layers, 1
    own.num_attention_heads, own.num_key_value_heads = shape.heads, shape.key_value_heads
    own.head_dim, own.hidden_size = shape.head_dim, shape.heads * shape.head_dim
    own._attn_implementation_internal = "flash_attention_2"  # only for its arithmetic of memory: like flash, ours has no dense mask
    settings = ContinuousBatchingConfig(
        page_size=PAGE_TOKENS,
        num_blocks=shape.pages,
        max_batch_tokens=1,
        max_requests_per_batch=shape.concurrency,
        max_memory_percent=1.0,
        allow_block_sharing=shape.shares_prefixes,
    )
    return PagedAttentionCache(own, settings, device, DistributedHelper(None, None), dtype=shape.dtype)
