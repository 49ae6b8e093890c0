"""What a loaded model must show before its rank may say ready."""

import copy
import dataclasses

import pytest
import torch
import transformers

from lmd_worker import selftest
from lmd_worker.errors import SelfTestError
from lmd_worker.ranks import Group
from lmd_worker.shape import ModelShape
from lmd_worker.strategies import degrees
from lmd_worker.strategies.share import Share

ALONE = Group(rank=0, size=1, device=torch.device("cpu"))
SECOND_OF_TWO = Group(rank=1, size=2, device=torch.device("cpu"))


@pytest.fixture(scope="module")
def shape(tiny_llama):
    return ModelShape.read(tiny_llama)


@pytest.fixture(scope="module")
def loaded(tiny_llama):
    return transformers.AutoModelForCausalLM.from_pretrained(tiny_llama, dtype=torch.float32).eval()


@pytest.fixture
def model(loaded):
    return copy.deepcopy(loaded)


def test_a_good_model_passes_and_is_measured(model, shape):
    held = selftest.check(model, shape, ALONE, Share())
    assert held.held == held.whole == shape.weight_bytes
    assert selftest.held_heads(model, shape, ALONE, "None") == (6, 3)


def test_weights_that_are_no_numbers_are_found(model, shape):
    with torch.no_grad():
        model.model.norm.weight[0] = torch.nan
    with pytest.raises(SelfTestError, match="Rank 0: 4 of 4 test positions have logits that are not finite"):
        selftest.check(model, shape, ALONE, Share())


def test_weights_without_data_are_found_and_named(model, shape):
    model.model.layers[0].mlp.up_proj.to("meta")
    with pytest.raises(SelfTestError, match=r"Rank 0: 1 tensors have no data, the first is model\.layers\.0\.mlp\.up_proj\.weight"):
        selftest.check(model, shape, ALONE, Share())


def test_a_forward_that_raises_is_reported_in_words(model, shape):
    model.model.layers[0].mlp.up_proj = torch.nn.Linear(7, 7)
    with pytest.raises(SelfTestError, match="Rank 0: the first forward of llama failed at degree 1: RuntimeError: "):
        selftest.check(model, shape, ALONE, Share())


def test_a_model_that_was_not_cut_is_found_at_a_degree_above_one(model, shape):
    held = selftest.measure(model, shape, Share(2 / 3))
    complaint = selftest._weights_complaint(SECOND_OF_TWO, held)
    assert complaint.startswith(
        f"Rank 1: it holds {held.whole} bytes of parameters of a model of {held.whole}, more than its share at degree 2 ("
    )


def test_a_model_cut_to_its_part_is_not_refused(model, shape):
    for layer in model.model.layers:
        for name in ("gate_proj", "up_proj", "down_proj"):
            setattr(layer.mlp, name, torch.nn.Linear(192, 192, bias=False))
        for name in ("q_proj", "o_proj"):
            setattr(layer.self_attn, name, torch.nn.Linear(192, 128, bias=False))
    model.lm_head = torch.nn.Linear(128, 512, bias=False)
    assert selftest._weights_complaint(SECOND_OF_TWO, selftest.measure(model, shape, Share(2 / 3))) == ""


def test_what_a_strategy_cuts_may_not_be_whole(model, shape):
    """Transformers' own plans cut embeddings too, so nothing but the norms may be whole."""
    share = degrees.native_share(shape, 2)
    held = selftest.measure(model, shape, share)
    assert held.replicated == 5 * 192 * 4
    assert selftest._weights_complaint(SECOND_OF_TWO, held).endswith("the model was not cut. Use strategy None, or another model.")
    whole_embeddings = dataclasses.replace(held, held=held.whole // 2 + 512 * 192 * 4 // 2)
    assert selftest._weights_complaint(SECOND_OF_TWO, whole_embeddings)
    assert not selftest._weights_complaint(SECOND_OF_TWO, dataclasses.replace(held, held=held.whole // 2))


def test_weights_that_wait_elsewhere_are_no_fault_and_not_counted(model, shape):
    waiting = model.model.layers[0].mlp.up_proj.to("meta").weight
    share = Share(is_offloaded=True)
    held = selftest.measure(model, shape, share)
    assert held.held == held.whole - waiting.numel() * 4
    assert selftest._data_complaint(model, ALONE, share) == ""
    assert selftest._data_complaint(model, ALONE, Share()) != ""


def test_parts_on_disk_count_by_their_number_in_the_size_of_the_parameter(model, shape):
    """DeepSpeed leaves one half number where a part on disk was."""
    for parameter in model.parameters():
        parameter.ds_tensor = torch.tensor(1).half()
        parameter.ds_tensor.ds_numel = parameter.numel() // 2
    held = selftest.measure(model, shape, Share(1 / 2))
    assert (held.held, held.replicated) == (held.whole // 2, 0)
    assert selftest.held_heads(model, shape, SECOND_OF_TWO, "ZeroInference") == (6, 3)


@pytest.mark.parametrize(("family", "expected"), [("llama", (6, 3)), ("olmo2", (12, 6))])
def test_heads_are_those_that_are_computed(model, shape, family, expected):
    """OLMo 2 gathers what its cut projections give."""
    of_two_ranks = dataclasses.replace(shape, model_type=family, heads=12, key_value_heads=6)
    assert selftest.held_heads(model, of_two_ranks, SECOND_OF_TWO, "Tensor") == expected
    assert selftest.held_heads(model, of_two_ranks, SECOND_OF_TWO, "DeepSpeed") == (6, 3)


def test_heads_of_a_stage_are_those_of_the_ranks_that_share_its_layers(model, shape):
    """Phi-3's one projection does not tell, so they are counted."""
    third_of_four = Group(rank=2, size=4, device=torch.device("cpu"))
    fused = dataclasses.replace(shape, model_type="phi3")
    assert selftest.held_heads(model, fused, third_of_four, "Pipeline", 4) == (6, 3)
    for layer in model.model.layers:
        del layer.self_attn.q_proj
    of_uneven = dataclasses.replace(shape, heads=12, key_value_heads=6)
    assert selftest.held_heads(model, of_uneven, third_of_four, "PipelineTensor", 2) == (6, 3)


def test_ranks_that_choose_other_tokens_are_found_and_named():
    choices = [torch.tensor([1, 2]), torch.tensor([1, 2]), torch.tensor([1, 3])]
    assert selftest._divergence_complaint(choices).startswith(
        "Rank 2: its best tokens for the test prompt, [1, 3], differ from rank 0's, [1, 2]."
    )
    assert selftest._divergence_complaint(choices[:2]) == ""
