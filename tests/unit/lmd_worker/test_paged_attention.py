"""Attention over pages against the plain formula, for requests of any length side by side."""

import random
from types import SimpleNamespace

import pytest
import torch

from lmd_worker.engine.paged_attention import Span, attend, layout
from lmd_worker.engine.pages import PAGE_TOKENS, CacheShape, Pages

CPU = torch.device("cpu")
HEADS, SHARED, SIZE, LAYERS = 6, 2, 8, 2
MODULE = SimpleNamespace(layer_idx=1)


@pytest.fixture
def pages():
    return Pages(CacheShape(LAYERS, HEADS, SHARED, SIZE, torch.float32, context_tokens=256, concurrency=8), CPU)


def spans_of(lengths, pages):
    """Spans of requests with so much past and so many new tokens, whose pages lie scattered."""
    free = [page * 2 * LAYERS for page in range(2, pages.total + 2)]
    random.Random(3).shuffle(free)
    return [Span(past, queries, [free.pop() for _ in range(-(-(past + queries) // PAGE_TOKENS))]) for past, queries in lengths]


def test_a_later_stage_has_pages_for_its_own_layers():
    of_stage = Pages(CacheShape(LAYERS, HEADS, SHARED, SIZE, torch.float32, context_tokens=32, concurrency=1, first_layer=5), CPU)
    keys, values = of_stage.layer(6)
    last, _ = Pages(CacheShape(LAYERS, HEADS, SHARED, SIZE, torch.float32, context_tokens=32, concurrency=1), CPU).layer(LAYERS - 1)
    assert keys.shape == values.shape == last.shape
    assert keys.storage_offset() == last.storage_offset()


def plain(query, keys, values, past, window, softcap):
    """One request's attention by the formula: [queries, heads, size]; keys and values [past + queries, shared heads, size]."""
    keys, values = (tensor.repeat_interleave(HEADS // SHARED, dim=1) for tensor in (keys, values))
    scores = torch.einsum("qhd,khd->hqk", query, keys) * SIZE**-0.5
    if softcap:
        scores = softcap * torch.tanh(scores / softcap)
    places = past + torch.arange(query.shape[0])[:, None]
    key = torch.arange(keys.shape[0])
    seen = (key <= places) & (key > places - (window or 10**6))
    return torch.einsum("hqk,khd->qhd", scores.masked_fill(~seen, -torch.inf).softmax(dim=-1), values)


@pytest.mark.parametrize("window", [None, 20])
@pytest.mark.parametrize("softcap", [None, 1.5])
def test_every_request_attends_to_its_own_past_and_nothing_else(pages, window, softcap):
    torch.manual_seed(1)
    lengths = [(0, 1), (31, 1), (32, 1), (33, 1), (200, 1), (0, 40), (50, 70), (96, 32), (7, 1)]
    spans = spans_of(lengths, pages)
    whole = [torch.randn(2, past + queries, SHARED, SIZE) for past, queries in lengths]
    keys, values = (tensor.flatten(0, 1) for tensor in pages.layer(1))
    for span, both in zip(spans, whole, strict=True):
        for place in range(span.past):
            at = span.pages[place // PAGE_TOKENS] * PAGE_TOKENS + place % PAGE_TOKENS
            keys[at], values[at] = both[0, place], both[1, place]
    new = torch.cat([both[:, span.past :] for span, both in zip(spans, whole, strict=True)], dim=1)
    query = torch.randn(new.shape[1], HEADS, SIZE)
    heads_first = [tensor.transpose(0, 1).unsqueeze(0) for tensor in (query, new[0], new[1])]
    made, _ = attend(MODULE, *heads_first, None, paged_layout=layout(spans, pages, CPU), sliding_window=window, softcap=softcap)
    start = 0
    for span, both in zip(spans, whole, strict=True):
        own = slice(start, start + span.queries)
        torch.testing.assert_close(made[0, own], plain(query[own], both[0], both[1], span.past, window, softcap), atol=1e-5, rtol=1e-4)
        start += span.queries


def test_short_requests_beside_a_long_one_read_at_most_twice_their_pages(pages):
    spans = [Span(past, 1, range(-(-(past + 1) // PAGE_TOKENS))) for past in (3, 5, 10_000, 40, 9, 4_000)]
    read = sum(bunch.pages.numel() for bunch in layout(spans, pages, CPU).bunches)
    assert read <= 2 * sum(len(span.pages) for span in spans)


@pytest.mark.parametrize("extra", [{"s_aux": 1}, {"position_bias": 1}])
def test_what_it_cannot_honour_is_refused(pages, extra):
    tensors = [torch.zeros(1, heads, 1, SIZE) for heads in (HEADS, SHARED, SHARED)]
    with pytest.raises(NotImplementedError, match=next(iter(extra))):
        attend(MODULE, *tensors, None, paged_layout=layout(spans_of([(0, 1)], pages), pages, CPU), **extra)
    with pytest.raises(NotImplementedError, match="keyword arguments"):
        attend(MODULE, *tensors, None)
