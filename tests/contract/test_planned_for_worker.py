"""The planner and the worker must say the same: they share no code, so these compare them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmd_operator.planning import families, shapes
from lmd_operator.planning.cutting import Split, legal_tensor_degrees
from lmd_operator.planning.memory import Load, key_value_bytes
from lmd_operator.planning.tensors import shape_of
from lmd_worker import shape as worker_shape
from lmd_worker.strategies import families as worker_families

UNIT = Path(__file__).parents[1] / "unit" / "lmd_operator"
PUBLISHED = json.loads((UNIT / "published_models.json").read_text())


@pytest.mark.parametrize("entry", PUBLISHED, ids=lambda entry: entry["name"])
def test_both_read_the_same_sizes(entry: dict[str, Any]) -> None:
    theirs = worker_shape.ModelShape.of(Path("/m"), entry["config"], names=(), weight_files=(), parameters=0, weight_bytes=0)
    ours = shape_of(entry["config"])
    assert (ours.family, ours.hidden, ours.layers, ours.heads) == (theirs.model_type, theirs.hidden_size, theirs.layers, theirs.heads)
    assert (ours.head_dim, ours.vocabulary, ours.max_positions) == (theirs.head_dim, theirs.vocabulary_size, theirs.max_positions)
    assert (ours.experts, ours.quantization or None) == (theirs.experts, theirs.quantization)
    assert ours.has_old_falcon_attention == theirs.fused_attention
    assert ours.context_tokens(None) == theirs.context_tokens(None)
    if ours.family != "dbrx":  # the worker does not look into attn_config, and the family has no tensor degree anyway
        assert ours.key_value_heads == theirs.key_value_heads
        assert legal_tensor_degrees(ours, "DeepSpeed") == worker_families.legal_degrees(theirs)


def test_both_know_the_same_families_for_autotp() -> None:
    assert families.AUTOTP_RIGHT == worker_families.SUPPORTED
    assert families.AUTOTP_WRONG.keys() == worker_families.REFUSED.keys()
    assert (shapes.DEFAULT_CONTEXT_TOKENS, shapes.UNKNOWN_LIMIT_CONTEXT_TOKENS) == (
        worker_shape.DEFAULT_CONTEXT_TOKENS,
        worker_shape.UNKNOWN_LIMIT_CONTEXT_TOKENS,
    )


@pytest.mark.model
@settings(max_examples=50)
@given(
    entry=st.sampled_from(
        [entry for entry in PUBLISHED if entry["config"]["model_type"] in ("llama", "mistral", "qwen2", "qwen3", "gemma2")]
    ),
    degree=st.integers(1, 8),
    context=st.integers(16, 100_000),
    concurrency=st.integers(1, 300),
    dtype=st.sampled_from(["bfloat16", "float32"]),
)
def test_both_compute_the_same_bytes_of_cache(entry: dict[str, Any], degree: int, context: int, concurrency: int, dtype: str) -> None:
    import torch

    from lmd_worker.engine.pages import CacheShape

    shape = shape_of(entry["config"])
    theirs = worker_shape.ModelShape.of(Path("/m"), entry["config"], names=(), weight_files=(), parameters=0, weight_bytes=0)
    degree = min(degree, shape.key_value_heads)
    heads, key_value_heads = worker_families.heads_of_rank(theirs, 0, degree)
    cache = CacheShape(shape.layers, heads, key_value_heads, shape.head_dim, getattr(torch, dtype), context, concurrency)
    split = Split("DeepSpeed", tensor=degree) if degree > 1 else Split("None")
    assert key_value_bytes(shape, split, Load(context, concurrency, dtype)) == cache.bytes
