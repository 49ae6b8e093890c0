"""Attention over pages, for requests of any length side by side in one row of tokens.

transformers hands every model of its attention interface to the function registered here. It writes the turn's keys and values to
their pages and lets each request attend to its own pages only, so the work of a turn grows with the sum of the requests' lengths.
transformers' own attention over its paged cache masks one dense matrix of all queries against all keys of all requests instead,
which grows with the square of the requests (transformers 5.23, integrations/sdpa_attention.py), unless flash-attn is installed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

from lmd_worker.engine.pages import PAGE_TOKENS, Pages

IMPLEMENTATION = "lmd_paged"
"""Its name for `set_attn_implementation`. Having no mask function of its own, it gets no mask from the models either."""


@dataclass(frozen=True, slots=True)
class Span:
    """What one request adds in a turn: `queries` tokens after `past` ones, and the pages of them all."""

    past: int
    queries: int
    pages: Sequence[int]


@dataclass(frozen=True, slots=True)
class Bunch:
    """Spans that are computed as one: equally many queries each, and about as many pages.

    `tokens`: [spans x queries] int64, places in the turn's row. `pages`: [spans, width] int64, page 0 where a span has fewer.
    `past`: [spans] int64.
    """

    tokens: torch.Tensor
    pages: torch.Tensor
    past: torch.Tensor
    queries: int


@dataclass(slots=True)
class Layout:
    """Where the tokens of one turn are written and what they read; the same for every layer.

    `written`: [tokens] int64, places in the pages laid end to end. `calls` counts the layers that have come by.
    """

    pages: Pages
    written: torch.Tensor
    bunches: Sequence[Bunch]
    calls: int = 0
    _masks: dict[tuple[int, int | None, int], torch.Tensor] = field(default_factory=dict)
    _room: dict[int, tuple[torch.Tensor, torch.Tensor]] = field(default_factory=dict)

    def mask(self, number: int, window: int | None, groups: int, dtype: torch.dtype) -> torch.Tensor:
        """Return the mask of a bunch, [spans, 1, groups x queries or 1, keys]: 0 where a query sees a key, else minus infinity."""
        key = (number, window, groups)
        if key not in self._masks:
            self._masks[key] = _mask(self.bunches[number], window, groups, dtype)
        return self._masks[key]

    def read(self, number: int, keys: torch.Tensor, values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return a layer's keys and values of a bunch, [spans, width, PAGE_TOKENS, key-value heads, head size].

        On CPUs, where an index copies number by number (torch 2.13), whole pages are copied, to memory that the next layer overwrites.
        """
        pages = self.bunches[number].pages
        if keys.device.type != "cpu":
            return keys[pages], values[pages]
        if number not in self._room:
            self._room[number] = keys.new_empty(pages.numel(), *keys.shape[1:]), values.new_empty(pages.numel(), *values.shape[1:])
        room = self._room[number]
        torch.index_select(keys, 0, pages.flatten(), out=room[0])
        torch.index_select(values, 0, pages.flatten(), out=room[1])
        return room[0].view(*pages.shape, *keys.shape[1:]), room[1].view(*pages.shape, *values.shape[1:])


def layout(spans: Sequence[Span], pages: Pages, device: torch.device) -> Layout:
    """Return the layout of a turn whose row holds these spans one after the other."""
    starts, row = [], 0
    for span in spans:
        starts.append(row)
        row += span.queries
    written = [
        span.pages[place // PAGE_TOKENS] * PAGE_TOKENS + place % PAGE_TOKENS
        for span in spans
        for place in range(span.past, span.past + span.queries)
    ]
    bunches = [_bunch([spans[index] for index in members], [starts[index] for index in members], device) for members in _bunches(spans)]
    return Layout(pages, torch.tensor(written, device=device), bunches)


def attend(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    paged_layout: Layout | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **others: Any,
) -> tuple[torch.Tensor, None]:
    """Return what the heads of one layer make of a turn: [1, tokens, heads, head size].

    `query`: [1, heads, tokens, head size]; `key` and `value` likewise with key-value heads. Raises `NotImplementedError` for what this
    attention has no way to honour, so that the model is served by another engine instead of wrongly.
    """
    if paged_layout is None:
        raise NotImplementedError("the model does not pass keyword arguments to its attention")
    for name in ("position_bias", "s_aux", "head_mask"):
        if others.get(name) is not None:
            raise NotImplementedError(f"paged attention has no {name}")
    paged_layout.calls += 1
    keys, values = paged_layout.pages.layer(module.layer_idx)  # type: ignore[arg-type]
    keys.flatten(0, 1).index_copy_(0, paged_layout.written, key[0].transpose(0, 1))
    values.flatten(0, 1).index_copy_(0, paged_layout.written, value[0].transpose(0, 1))
    out = query.new_empty(query.shape[2], query.shape[1], value.shape[-1])
    groups = query.shape[1] // key.shape[1]
    for number, bunch in enumerate(paged_layout.bunches):
        mask = paged_layout.mask(number, sliding_window, groups, query.dtype)
        read = paged_layout.read(number, keys, values)
        asking = query[0].index_select(1, bunch.tokens)
        out.index_copy_(0, bunch.tokens, _attend_bunch(asking, *read, mask, bunch, scaling, softcap))
    return out.unsqueeze(0), None


def register() -> None:
    """Make this attention known to transformers by its name; again does nothing."""
    AttentionInterface.register(IMPLEMENTATION, attend)


def _attend_bunch(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    mask: torch.Tensor,
    bunch: Bunch,
    scaling: float | None,
    softcap: float | None,
) -> torch.Tensor:
    """Return [spans x queries, heads, head size].

    The query heads that share a key-value head stand below each other as if they were queries, so that no key is copied for them.
    `query`: [heads, spans x queries, head size]; `keys`, `values`: [spans, pages, PAGE_TOKENS, key-value heads, head size].
    """
    heads, _, size = query.shape
    spans, shared = keys.shape[0], keys.shape[3]
    packed = query.view(heads, spans, bunch.queries, size).transpose(0, 1).reshape(spans, shared, -1, size)
    keys, values = keys.flatten(1, 2).transpose(1, 2), values.flatten(1, 2).transpose(1, 2)
    if softcap is None:
        made = scaled_dot_product_attention(packed, keys, values, attn_mask=mask, scale=scaling)
    else:
        made = _softcapped(packed, keys, values, mask, size**-0.5 if scaling is None else scaling, softcap)
    return made.reshape(spans, heads, bunch.queries, -1).transpose(1, 2).flatten(0, 1)


def _softcapped(
    query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, mask: torch.Tensor, scaling: float, softcap: float
) -> torch.Tensor:
    """Attention whose scores are bent below `softcap` before the mask, in plain operations: no fused kernel of torch does this."""
    scores = torch.tanh(query @ keys.transpose(2, 3) * scaling / softcap) * softcap + mask
    return scores.softmax(dim=-1, dtype=torch.float32).to(values.dtype) @ values


def _mask(bunch: Bunch, window: int | None, groups: int, dtype: torch.dtype) -> torch.Tensor:
    device = bunch.past.device
    places = bunch.past[:, None] + torch.arange(bunch.queries, device=device)  # [spans, queries]
    keys = torch.arange(bunch.pages.shape[1] * PAGE_TOKENS, device=device)
    seen = keys <= places[:, :, None]
    if window is not None:
        seen &= keys > places[:, :, None] - window
    mask = torch.zeros(seen.shape, dtype=dtype, device=device).masked_fill_(~seen, -torch.inf).unsqueeze(1)
    return mask if bunch.queries == 1 else mask.repeat(1, 1, groups, 1)


def _bunches(spans: Sequence[Span]) -> list[list[int]]:
    """Return which spans are computed together: single tokens by their length within a factor of two, and each longer span alone."""
    single: dict[int, list[int]] = {}
    longer = []
    for index, span in enumerate(spans):
        if span.queries == 1:
            single.setdefault((_pages_of(span) - 1).bit_length(), []).append(index)
        else:
            longer.append([index])
    return [*single.values(), *longer]


def _bunch(spans: Sequence[Span], starts: Sequence[int], device: torch.device) -> Bunch:
    width = max(map(_pages_of, spans))
    tokens = [start + place for span, start in zip(spans, starts, strict=True) for place in range(span.queries)]
    table = [[*span.pages[:width], *[0] * (width - len(span.pages))] for span in spans]
    return Bunch(
        torch.tensor(tokens, device=device),
        torch.tensor(table, device=device),
        torch.tensor([span.past for span in spans], device=device),
        spans[0].queries,
    )


def _pages_of(span: Span) -> int:
    """Pages with tokens this turn; a request may own more already."""
    return -(-(span.past + span.queries) // PAGE_TOKENS)
