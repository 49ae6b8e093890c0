"""What transformers' pipeline lacks is put right on each stage, and nowhere else."""

from __future__ import annotations

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


class Stage:
    """A stage of two in one process: what it hands over and what all get stay where the next one finds them."""

    comm_on_cpu = False

    def __init__(self, rank: int, place: dict[str, Any]) -> None:
        self.pp_rank, self.pp_is_first_stage, self.pp_is_last_stage = rank, rank == 0, rank == 1
        self.place = place

    def layer_range_for_rank(self, rank: int, layers: int) -> tuple[int, int]:
        return [(0, 1), (1, layers)][rank]

    def communicate(self, operation: str, *, tensor: Any = None, shape: Any = None, **_: Any) -> Any:
        if operation == "send_forward":
            self.place["handed over"] = tensor
        else:
            assert shape == self.place["handed over"].shape
        return self.place["handed over"]

    def broadcast_from_last(self, logits: Any, **_: Any) -> Any:
        return logits


def of_stage(tiny_llama: Any, rank: int, place: dict[str, Any] | None = None) -> Any:
    model = transformers.AutoModelForCausalLM.from_pretrained(tiny_llama, dtype=torch.float32).eval()
    model._pp_stage = Stage(rank, {} if place is None else place)
    model.model.layers[1 - rank] = PipelineIdentityLayer()
    if rank == 0:
        model.model.norm = PipelineIdentityLayer()
    return model


def test_the_stage_says_which_layers_are_its_own(tiny_llama: Any) -> None:
    assert [stages.own_layers(of_stage(tiny_llama, rank)) for rank in (0, 1)] == [range(1), range(1, 2)]


def test_every_call_of_generate_has_a_cache_of_its_own(tiny_llama: Any) -> None:
    model = of_stage(tiny_llama, 1)
    given = []
    model.generate = lambda **asked: given.append(asked)
    stages.repair(model, 5)
    model.generate(input_ids="a")
    model.generate(input_ids="b")
    assert [asked["input_ids"] for asked in given] == ["a", "b"]
    first, second = (asked["past_key_values"] for asked in given)
    assert isinstance(first, stages.StageCache)
    assert first is not second


@torch.inference_mode()
def test_stages_one_after_the_other_compute_what_the_whole_does_and_pass_all_arguments_on(tiny_llama: Any) -> None:
    tokens = torch.tensor([[5, 6, 7, 8]])
    whole = transformers.AutoModelForCausalLM.from_pretrained(tiny_llama, dtype=torch.float32).eval()
    expected = whole(input_ids=tokens, logits_to_keep=2).logits
    place: dict[str, Any] = {}
    seen = []
    for rank in (0, 1):
        model = of_stage(tiny_llama, rank, place)
        stages.repair(model, 5)
        assert model._supports_logits_to_keep()
        attention = model.model.layers[rank].self_attn
        attention.register_forward_pre_hook(lambda module, args, named: seen.append(named.get("paged_layout")), with_kwargs=True)
        made = model(input_ids=tokens, use_cache=False, logits_to_keep=2, paged_layout="pages")
    assert torch.equal(made.logits, expected)
    assert seen == ["pages", "pages"]


def test_only_the_first_stage_scales_what_it_computes_with(tiny_llama: Any) -> None:
    scales = []
    for rank in (0, 1):
        model = of_stage(tiny_llama, rank)
        model.model.embedding_multiplier = 12.0
        stages.repair(model, 5)
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
