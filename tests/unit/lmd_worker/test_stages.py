"""What transformers' pipeline lacks is put right on each stage, and nowhere else."""

from __future__ import annotations

import types
from typing import Any

import pytest
import torch
import transformers
from transformers.distributed import mixin
from transformers.distributed.pipeline_parallel import PipelineIdentityLayer

from lmd_worker.strategies import stages

WINDOW = 4


@pytest.fixture
def config() -> Any:
    """Layers 0 and 2 have a window, 1 and 3 have none."""
    kinds = ["sliding_attention", "full_attention"] * 2
    return transformers.GptOssConfig(num_hidden_layers=4, sliding_window=WINDOW, layer_types=kinds)


def filled(cache: Any, layers: range, tokens: int) -> Any:
    for layer in layers:
        cache.update(torch.zeros(1, 2, tokens, 8), torch.zeros(1, 2, tokens, 8), layer)
    return cache


def test_a_later_stage_knows_how_much_is_cached(config: Any) -> None:
    cache = filled(stages.StageCache(config, range(2, 4)), range(2, 4), 3)
    assert cache.get_seq_length() == cache.get_seq_length(1) == cache.get_seq_length(3) == 3
    assert filled(transformers.DynamicCache(config=config), range(2, 4), 3).get_seq_length() == 0, "the repair is still needed"


def test_masks_are_as_in_one_process_for_each_kind_of_layer(config: Any) -> None:
    """Of tokens beyond the window, layers with a window keep fewer than the others."""
    whole = filled(transformers.DynamicCache(config=config), range(4), WINDOW + 3)
    for own in (range(2), range(2, 4)):
        cache = filled(stages.StageCache(config, own), own, WINDOW + 3)
        assert [cache.get_mask_sizes(1, layer) for layer in range(4)] == [whole.get_mask_sizes(1, layer) for layer in range(4)]


def test_a_stage_without_layers_of_a_kind_spans_everything_for_it(config: Any) -> None:
    cache = filled(stages.StageCache(config, range(3, 4)), range(3, 4), WINDOW + 3)
    assert cache.get_mask_sizes(2, 0) == (WINDOW + 5, 0)


def of_stage(tiny_llama: Any, rank: int) -> Any:
    model = transformers.AutoModelForCausalLM.from_pretrained(tiny_llama, dtype=torch.float32).eval()
    ranges = [(0, 1), (1, 2)]
    model._pp_stage = types.SimpleNamespace(pp_rank=rank, layer_range_for_rank=lambda stage, layers: ranges[stage])
    return model


def test_the_stage_says_which_layers_are_its_own(tiny_llama: Any) -> None:
    assert [stages.own_layers(of_stage(tiny_llama, rank)) for rank in (0, 1)] == [range(1), range(1, 2)]


def test_every_call_of_generate_has_a_cache_of_its_own(tiny_llama: Any) -> None:
    model = of_stage(tiny_llama, 1)
    given = []
    model.generate = lambda **asked: given.append(asked)
    stages.repair(model)
    model.generate(input_ids="a")
    model.generate(input_ids="b")
    assert [asked["input_ids"] for asked in given] == ["a", "b"]
    first, second = (asked["past_key_values"] for asked in given)
    assert isinstance(first, stages.StageCache)
    assert first is not second


def test_only_the_first_stage_scales_what_it_computes_with(tiny_llama: Any) -> None:
    scales = []
    for rank in (0, 1):
        model = of_stage(tiny_llama, rank)
        model.model.embedding_multiplier = 12.0
        stages.repair(model)
        scales.append(model.model.embedding_multiplier)
    assert scales == [12.0, 1.0]


def test_rules_for_what_another_stage_has_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    cut = {}
    plain = lambda model, mesh, plan: cut.update(plan)  # noqa: E731
    monkeypatch.setattr(mixin, "apply_tensor_parallelism", plain)
    model = torch.nn.Module()
    model.layers = torch.nn.ModuleList([PipelineIdentityLayer(), torch.nn.Linear(2, 2)])
    plan = dict.fromkeys(("layers.0", "layers.0.weight", "layers.1", "layers.1.weight"), "colwise")
    with stages.rules_of_own_stage():
        mixin.apply_tensor_parallelism(model, None, plan)
    assert cut.keys() == {"layers.1", "layers.1.weight"}
    assert mixin.apply_tensor_parallelism is plain


def test_the_library_is_as_before_also_after_a_failure() -> None:
    before = mixin.apply_tensor_parallelism
    with pytest.raises(RuntimeError, match="no"), stages.rules_of_own_stage():
        raise RuntimeError("no")
    assert mixin.apply_tensor_parallelism is before
