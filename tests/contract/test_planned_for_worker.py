"""The planner and the worker must say the same: they share no code, so these compare them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmd_operator.planning import families, shapes
from lmd_operator.planning.cutting import Split, has_whole_attention, legal_tensor_degrees
from lmd_operator.planning.families import Engine
from lmd_operator.planning.memory import Load, key_value_bytes
from lmd_operator.planning.tensors import shape_of
from lmd_worker import shape as worker_shape
from lmd_worker.strategies import degrees
from lmd_worker.strategies import families as worker_families

UNIT = Path(__file__).parents[1] / "unit" / "lmd_operator"
CUTTING: tuple[Engine, ...] = ("DeepSpeed", "Expert", "Pipeline", "PipelineTensor", "Tensor")
PUBLISHED = json.loads((UNIT / "published_models.json").read_text())
PAGED = ("gemma2", "llama", "mistral", "mixtral", "olmo2", "phi3", "qwen2", "qwen3", "qwen3_moe")


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
        for strategy in CUTTING:
            if has_whole_attention(ours) and worker_families.COLUMNS[strategy].objection(theirs):
                continue  # the worker knows plans of the families it serves alone
            assert legal_tensor_degrees(ours, strategy) == degrees.legal_degrees(strategy, theirs), strategy


@pytest.mark.parametrize("strategy", [*CUTTING, "ZeroInference"])
def test_what_is_planned_is_served_and_what_is_served_is_planned(strategy: Engine) -> None:
    differ = [
        (entry["name"], config.get("tie_word_embeddings"), planned, objection)
        for entry in PUBLISHED
        for config in (entry["config"], *({**entry["config"], "tie_word_embeddings": tied} for tied in (True, False)))
        for planned, objection in [_verdicts(config, strategy)]
        if planned == bool(objection)
    ]
    assert differ == []


def _verdicts(config: dict[str, Any], strategy: Engine) -> tuple[bool, str]:
    """Return whether the planner plans a model under a strategy, and what the worker objects."""
    theirs = worker_shape.ModelShape.of(Path("/m"), config, names=(), weight_files=(), parameters=0, weight_bytes=0)
    planned = families.finding(shape_of({**config, "quantization_config": None}), strategy).verdict == "right"
    return planned, worker_families.COLUMNS[strategy].objection(theirs)


def test_both_have_the_same_families_by_name() -> None:
    columns = worker_families.COLUMNS
    assert {*CUTTING, "ZeroInference"} == columns.keys()
    assert columns["ZeroInference"].right == families.ZERO_RIGHT
    assert columns["DeepSpeed"].right == families.AUTOTP_RIGHT
    assert families.AUTOTP_WRONG.keys() == columns["DeepSpeed"].wrong.keys()
    assert columns["Tensor"].right == families.TENSOR_RIGHT
    assert families.TENSOR_WRONG.keys() >= columns["Tensor"].wrong.keys()
    assert columns["Expert"].right == families.EXPERT_RIGHT
    assert families.EXPERT_WRONG.keys() >= columns["Expert"].wrong.keys()
    assert columns["Pipeline"].right == families.PIPELINE_RIGHT
    assert families.PIPELINE_WRONG.keys() >= columns["Pipeline"].wrong.keys()
    assert columns["PipelineTensor"].right == families.PIPELINE_TENSOR_RIGHT
    assert families.PIPELINE_WRONG.keys() | families.TENSOR_WRONG.keys() >= columns["PipelineTensor"].wrong.keys()


def test_both_leave_the_same_things_whole() -> None:
    served = {family for column in worker_families.COLUMNS.values() for family in column.right}
    assert families.WHOLE_HEADS & served == worker_families.HEADS_LEFT_WHOLE
    assert families.WHOLE_EMBEDDINGS == worker_families.EMBEDDINGS_LEFT_WHOLE


def test_both_take_the_same_context_where_none_is_asked_for() -> None:
    assert (shapes.DEFAULT_CONTEXT_TOKENS, shapes.UNKNOWN_LIMIT_CONTEXT_TOKENS) == (
        worker_shape.DEFAULT_CONTEXT_TOKENS,
        worker_shape.UNKNOWN_LIMIT_CONTEXT_TOKENS,
    )


@pytest.mark.model
@settings(max_examples=100)
@given(
    entry=st.sampled_from([entry for entry in PUBLISHED if entry["config"]["model_type"] in PAGED]),
    strategy=st.sampled_from(CUTTING),
    degree=st.integers(1, 8),
    stages=st.integers(2, 5),
    context=st.integers(16, 100_000),
    concurrency=st.integers(1, 300),
    dtype=st.sampled_from(["bfloat16", "float32"]),
)
def test_both_compute_the_same_bytes_of_cache(
    entry: dict[str, Any], strategy: Engine, degree: int, stages: int, context: int, concurrency: int, dtype: str
) -> None:
    import torch

    from lmd_worker.engine.pages import CacheShape

    shape = shape_of(entry["config"])
    theirs = worker_shape.ModelShape.of(Path("/m"), entry["config"], names=(), weight_files=(), parameters=0, weight_bytes=0)
    degree = max(legal for legal in degrees.legal_degrees(strategy, theirs) if legal <= degree)
    heads, key_value_heads = degrees.heads_of_rank(strategy, theirs, 0, degree)
    stages = stages if strategy.startswith("Pipeline") else 1
    layers = degrees.layers_of_rank(theirs, degree * stages - 1, degree, stages)
    cache = CacheShape(len(layers), heads, key_value_heads, shape.head_dim, getattr(torch, dtype), context, concurrency)
    split = Split(strategy, tensor=degree, pipeline=stages) if degree * stages > 1 else Split("None")
    assert key_value_bytes(shape, split, Load(context, concurrency, dtype)) == cache.bytes
