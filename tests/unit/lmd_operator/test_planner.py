"""The planner over 217 published models: counts, degrees, memory, and that it never goes back on itself."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmd_operator.planning.answers import Planned, Unplannable, Wishes
from lmd_operator.planning.cutting import Split, held, illegal
from lmd_operator.planning.families import finding, static_reason
from lmd_operator.planning.memory import (
    GIB,
    Load,
    activation_bytes,
    device_memory,
    host_memory,
    is_paged,
    key_value_bytes,
    part_bytes,
    weight_bytes,
)
from lmd_operator.planning.planner import plan
from lmd_operator.planning.selection import TABLE, Accelerator
from lmd_operator.planning.shapes import ModelShape, ShapeError
from lmd_operator.planning.tensors import Tensor, shape_of, tensors_of

PUBLISHED = json.loads((Path(__file__).parent / "published_models.json").read_text())
NAMES = [entry["name"] for entry in PUBLISHED]
MEASURED = json.loads((Path(__file__).parent / "measured_ranks.json").read_text())
"""Parameters counted on every rank of tiny models under deepspeed 0.19.8 and transformers 5.23, torch 2.13, on gloo."""
DEVICE_GIB = (16, 24, 40, 80, 141)


@cache
def model(name: str) -> ModelShape:
    return shape_of(next(entry["config"] for entry in PUBLISHED if entry["name"] == name))


@cache
def auto(name: str, gib: int, link: Any) -> Planned | Unplannable:
    return plan(model(name), Accelerator(gib * GIB, link=link), Wishes())


def test_two_hundred_models_from_a_tenth_of_a_billion_to_a_thousand() -> None:
    counts = [model(name).parameters for name in NAMES]
    assert len(set(NAMES)) >= 200
    assert min(counts) < 0.1e9
    assert max(counts) > 1e12


@pytest.mark.parametrize("entry", [entry for entry in PUBLISHED if entry["billions"]], ids=lambda entry: entry["name"])
def test_parameters_are_those_that_are_published(entry: dict[str, Any]) -> None:
    assert shape_of(entry["config"]).parameters / 1e9 == pytest.approx(entry["billions"], rel=0.02)


@pytest.mark.parametrize("entry", MEASURED, ids=lambda entry: f"{entry['engine']}-{len(entry['held'])}-{entry['model']}")
def test_every_rank_holds_what_is_predicted(entry: dict[str, Any]) -> None:
    shape, ranks = shape_of(entry["config"]), len(entry["held"])
    splits = {
        "DeepSpeed": Split("DeepSpeed", tensor=ranks),
        "Tensor": Split("Tensor", tensor=ranks),
        "Expert": Split("Expert", tensor=ranks, expert=ranks),
        "Pipeline": Split("Pipeline", pipeline=ranks),
        "PipelineTensor": Split("PipelineTensor", tensor=ranks // 2, pipeline=2),
    }
    split = splits[entry["engine"]]
    predicted = [held(shape, split, stage, rank) for stage in range(split.pipeline) for rank in range(split.tensor)]
    assert predicted == pytest.approx(entry["held"], rel=0.01)
    assert shape.parameters == pytest.approx(entry["total"], rel=0.01)


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("Llama-3.1-70B", 70_553_706_496),
        ("Llama-3.1-405B", 405_853_388_800),
        ("Mistral-7B-v0.1", 7_241_732_096),
        ("Qwen3-8B", 8_190_726_144),
    ],
)
def test_some_counts_are_known_to_the_last_parameter(name: str, parameters: int) -> None:
    assert model(name).parameters == pytest.approx(parameters, rel=1e-5)


@pytest.mark.parametrize("link", ["Fast", "Slow"])
@pytest.mark.parametrize("gib", DEVICE_GIB)
def test_no_model_on_any_device_gets_an_illegal_plan(gib: int, link: Any) -> None:
    fitting = 0
    for name in NAMES:
        shape = model(name)
        found = auto(name, gib, link)
        if isinstance(found, Unplannable):
            assert found.why, name
            assert found.remedy, name
            continue
        fitting += 1
        split = found.split
        assert not illegal(shape, split), name
        assert finding(shape, split.engine).verdict != "wrong", name
        assert found.limit is not None
        assert found.memory.needed <= found.limit, name
        assert split.ranks <= 8 or found.nodes > 1, name
        assert found.largest_context >= found.load.context_tokens, name
        assert found.largest_concurrency >= found.load.concurrency, name
        if split.engine == "Expert":
            assert shape.experts % split.expert == 0, name
        if split.engine in ("Tensor", "PipelineTensor") and shape.latent is None and shape.family != "gpt_oss":
            whole = shape.family in ("granitemoe", "hunyuan_v1_moe", "phimoe")
            assert whole or shape.key_value_heads % split.tensor == 0, name
    assert fitting > 150


def test_every_row_of_the_table_is_taken_by_some_model() -> None:
    answers = [auto(name, gib, link) for name in NAMES for gib in DEVICE_GIB for link in ("Fast", "Slow")]
    reasons = {answer.reasons[0].split(" of ")[0] for answer in answers if isinstance(answer, Planned)}
    assert reasons == {f"row {row.number}" for row in TABLE}


@settings(max_examples=150)
@given(
    name=st.sampled_from(NAMES),
    gib=st.integers(8, 200),
    more=st.integers(1, 200),
    context=st.integers(16, 200_000),
    concurrency=st.integers(1, 128),
    link=st.sampled_from(["Fast", "Slow"]),
)
def test_more_memory_never_makes_a_fitting_plan_unfit(name: str, gib: int, more: int, context: int, concurrency: int, link: Any) -> None:
    shape = model(name)
    wishes = Wishes(context_tokens=min(context, shape.max_positions or context), concurrency=concurrency)
    small, large = (plan(shape, Accelerator(size * GIB, link=link), wishes) for size in (gib, gib + more))
    assert isinstance(small, Unplannable) or isinstance(large, Planned)


@settings(max_examples=300)
@given(
    name=st.sampled_from(NAMES),
    engine=st.sampled_from(["None", "DeepSpeed", "Tensor", "Expert", "Pipeline", "PipelineTensor", "Accelerate", "ZeroInference"]),
    degree=st.integers(2, 8),
    context=st.integers(16, 100_000),
    longer=st.integers(0, 100_000),
    concurrency=st.integers(1, 64),
    scheduler=st.sampled_from(["Continuous", "Static"]),
)
def test_a_larger_context_never_needs_less(
    name: str, engine: Any, degree: int, context: int, longer: int, concurrency: int, scheduler: Any
) -> None:
    shape = model(name)
    tensor = degree if engine in ("DeepSpeed", "Tensor", "Expert", "PipelineTensor") else 1
    split = Split(engine, tensor=tensor, pipeline=degree if engine.startswith("Pipeline") and degree <= shape.layers else 1)
    load = Load(context, concurrency, scheduler=scheduler)
    assert device_memory(shape, split, load).needed <= device_memory(shape, split, replace(load, context_tokens=context + longer)).needed
    assert device_memory(shape, split, load).needed <= device_memory(shape, split, replace(load, concurrency=concurrency + 1)).needed


@pytest.mark.parametrize(
    ("name", "split", "load", "expected"),
    [
        # 2 (keys, values) x 80 layers x 8 heads x 128 x 2 bytes = 320 KiB a token; 8192 tokens are 256 pages of 32, and 2 are kept back
        ("Llama-3.1-70B", Split("None"), Load(8192, 1), 327_680 * 32 * (256 + 2)),
        ("Llama-3.1-70B", Split("DeepSpeed", tensor=8), Load(8192, 32), 40_960 * 32 * (256 * 32 + 2)),
        ("Llama-3.1-70B", Split("DeepSpeed", tensor=3), Load(8192, 1), 327_680 // 8 * 3 * 32 * (256 + 2)),  # 3, 3 and 2 heads
        ("Llama-3.1-70B", Split("Tensor", tensor=4), Load(100, 3, "float32"), 2 * 80 * 2 * 128 * 4 * 32 * (4 * 3 + 2)),
        ("Llama-3.1-70B", Split("None"), Load(8192, 4, scheduler="Static"), 327_680 * 8192 * 4),
        ("Llama-3.1-70B", Split("Pipeline", pipeline=3), Load(1000, 2), 4096 * 28 * 32 * (2 * 32 + 2)),  # 26, 26 and 28 layers
        # multi-query: one head of 256, which no degree makes smaller
        ("Gemma-2B", Split("None"), Load(32, 1), 2 * 18 * 1 * 256 * 2 * 32 * 3),
        # Phi-3 gathers its heads again after the cut, so every rank keeps all ten
        ("Phi-3-medium", Split("Tensor", tensor=2), Load(32, 1), 2 * 40 * 10 * 128 * 2 * 32 * 3),
        ("Llama-3.1-70B", Split("Accelerate"), Load(8192, 1), 327_680 * 32 * (256 + 2)),
        # latent attention: (512 + 64) x 2 bytes x 61 layers, whole on every rank
        ("DeepSeek-V3", Split("Expert", tensor=8, expert=8), Load(4096, 2), 576 * 2 * 61 * 8192),
        # static batches of Gemma 3 keep 1024 tokens in five of six layers: 26 layers of 26 // 6 full ones
        ("Gemma-3-1B", Split("None"), Load(8192, 1, scheduler="Static"), 2 * 1 * 256 * 2 * (22 * 512 + 4 * 8192)),
    ],
)
def test_the_cache_is_exact(name: str, split: Split, load: Load, expected: int) -> None:
    assert key_value_bytes(model(name), split, load) == expected


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("Llama-3.1-8B", ""),
        ("Gemma-3-1B", ""),
        ("BLOOM-7.1B", "attention interface"),
        ("gpt-oss-20B", "sinks"),
        ("DeepSeek-V3", "latents"),
        ("Phi-3-mini-128k", "longest request"),
    ],
)
def test_what_is_decoded_in_static_batches_is_known(name: str, words: str) -> None:
    reason = static_reason(model(name), "None")
    assert words in reason
    assert bool(words) == bool(reason)
    assert is_paged(model(name), Split("None"), Load(64, 1)) == (not words)
    assert static_reason(model(name), "Pipeline") == reason
    assert static_reason(model(name), "ZeroInference") == reason
    assert "each rank decodes requests of its own" in static_reason(model(name), "ZeroInference", ranks=2)


def test_a_turn_gathers_the_pages_of_one_layer_twice() -> None:
    shape, load = model("Llama-3.1-8B"), Load(8192, 8)
    cache = key_value_bytes(shape, Split("None"), load)
    assert activation_bytes(shape, Split("None"), load) > 2 * cache // 32


def test_a_model_larger_than_a_node_is_planned_over_nodes_and_says_that_it_does_not_run() -> None:
    found = plan(model("Llama-3.1-405B"), Accelerator(80 * GIB), Wishes())
    assert isinstance(found, Planned)
    assert (found.split.engine, found.split.tensor, found.split.pipeline, found.nodes) == ("PipelineTensor", 8, 2, 2)
    assert any("does not run" in reason for reason in found.reasons)


def test_a_shape_that_autotp_gets_wrong_is_cut_by_transformers() -> None:
    found = plan(model("Phi-3-medium"), Accelerator(24 * GIB), Wishes())
    assert isinstance(found, Planned)
    assert (found.split.engine, found.split.tensor) == ("Tensor", 2)
    assert next(entry.why for entry in found.rejected if entry.engine == "DeepSpeed").startswith("transformers 5 slices")


def test_a_tied_head_beside_whole_embeddings_is_never_cut() -> None:
    shape = model("GPT-NeoX-20B")
    assert finding(shape, "Tensor").verdict == "right"
    assert finding(replace(shape, is_tied=True), "Tensor").verdict == "wrong"


def test_experts_are_spread_and_never_left_to_autotp() -> None:
    found = plan(model("Mixtral-8x7B"), Accelerator(80 * GIB), Wishes())
    assert isinstance(found, Planned)
    assert (found.split.engine, found.split.expert) == ("Expert", 2)


@pytest.mark.parametrize("tensor", [1, "Auto"])
def test_accelerate_runs_on_one_device_what_is_larger_than_it(tensor: Any) -> None:
    shape = model("Llama-3.1-70B")
    found = plan(shape, Accelerator(24 * GIB), Wishes("Accelerate", tensor=tensor, context_tokens=4096))
    assert isinstance(found, Planned)
    assert (found.split, found.devices) == (Split("Accelerate"), 1)
    assert found.memory.weights == 2 * 128_256 * 8192, "the embedding is larger than a layer"
    assert found.host.held + found.memory.weights > 2 * shape.parameters
    assert any("then on disk" in reason for reason in found.reasons)
    assert isinstance(plan(shape, Accelerator(24 * GIB), Wishes("Accelerate", context_tokens=8192, concurrency=64)), Unplannable)


def test_accelerate_reads_no_experts_from_disk() -> None:
    found = plan(model("Mixtral-8x7B"), Accelerator(24 * GIB), Wishes("Accelerate", tensor=1))
    assert isinstance(found, Planned)
    assert any("host memory, which has to have room for all of it" in reason for reason in found.reasons)
    layer = 8 * 3 * 4096 * 14336 + 2 * (4096 * 4096 + 1024 * 4096) + 8 * 4096
    assert found.memory.weights == 2 * layer


@pytest.mark.parametrize("tensor", [1, "Auto"])
def test_ranks_of_zero_inference_share_parameters_and_requests(tensor: Any) -> None:
    shape, wishes = model("Llama-3.1-70B"), Wishes("ZeroInference", tensor=tensor, context_tokens=4096, concurrency=8)
    one, four = (plan(shape, Accelerator(40 * GIB), replace(wishes, data=count)) for count in (1, 4))
    assert isinstance(one, Planned)
    assert isinstance(four, Planned)
    assert (str(one.split), str(four.split), one.devices, four.devices) == ("ZeroInference", "ZeroInference data 4", 1, 4)
    assert held(shape, four.split, 0, 0) == -(-shape.parameters // 4)
    a_request = 4096 * 2 * 80 * 8 * 128 * 2
    assert (one.memory.key_values, four.memory.key_values) == (a_request * 8 + 64 * 327_680, a_request * 2), "pages, and two rows each"
    assert one.host.load_peak - four.host.load_peak == pytest.approx(2 * shape.parameters * 3 / 4, rel=1e-6)
    assert any("requests of its own" in reason for reason in four.reasons)
    assert not any("requests of its own" in reason for reason in one.reasons)


def test_more_ranks_of_zero_inference_than_a_node_has_are_refused() -> None:
    found = plan(model("Llama-3.1-70B"), Accelerator(40 * GIB, per_node=8), Wishes("ZeroInference", tensor=1, data=16))
    assert isinstance(found, Unplannable)
    assert "16 devices are more than the 8 of a node" in found.why


def test_small_weights_and_a_disk_move_bytes_out_of_host_memory() -> None:
    shape, split = model("Llama-3.1-70B"), Split("ZeroInference", replicas=2)
    full = Load(4096, 8)
    assert part_bytes(shape, split, full) == shape.parameters  # two bytes each, over two ranks
    assert part_bytes(shape, split, replace(full, weights="Int8")) == pytest.approx(shape.parameters * (1 + 4 / 64) / 2, rel=0.001)
    assert part_bytes(shape, split, replace(full, weights="Int4")) == pytest.approx(shape.parameters * (0.5 + 4 / 64) / 2, rel=0.001)
    on_host, on_disk = (host_memory(shape, split, load, java_heap=0, is_fetched=False) for load in (full, replace(full, disk_buffer=10**8)))
    assert on_host.held - on_disk.held == 2 * shape.parameters - 2 * 5 * 10**8 * 2
    assert (on_host.disk, on_disk.disk) == (0, 2 * shape.parameters)
    on_cpu = replace(full, is_cpu=True)
    assert weight_bytes(shape, split, on_cpu) - weight_bytes(shape, split, full) == part_bytes(shape, split, full)


def test_a_slow_link_gets_stages() -> None:
    found = plan(model("Llama-3.1-70B"), Accelerator(141 * GIB, link="Slow"), Wishes())
    assert isinstance(found, Planned)
    assert (found.split.engine, found.split.pipeline) == ("Pipeline", 2)


@pytest.mark.parametrize(
    ("name", "devices", "wishes", "words"),
    [
        ("Llama-3.1-8B", Accelerator(24 * GIB), Wishes(context_tokens=200_000), "131072 positions"),
        ("Llama-3.1-8B", Accelerator(None), Wishes(), "spec.accelerator.memory"),
        ("Llama-3.1-8B", Accelerator(24 * GIB), Wishes("DeepSpeed", tensor=16), "1, 2, 3, 4, 5, 6, 7, 8"),
        ("Phi-3-medium", Accelerator(80 * GIB), Wishes("Tensor", tensor=4), "1, 2, 5, 10"),
        ("Mixtral-8x7B", Accelerator(80 * GIB), Wishes("DeepSpeed", tensor=2), "does not cut experts"),
        ("Llama-3.1-8B", Accelerator(24 * GIB), Wishes("None", context_tokens=8192, concurrency=64), "lower engine.concurrency to"),
        ("Llama-3.1-8B", Accelerator(24 * GIB), Wishes("None", context_tokens=65536, concurrency=8), "lower engine.contextTokens to"),
        ("gpt-oss-120B", Accelerator(16 * GIB), Wishes(), "quantised"),
    ],
)
def test_what_cannot_be_planned_says_what_would_help(name: str, devices: Accelerator, wishes: Wishes, words: str) -> None:
    found = plan(model(name), devices, wishes)
    assert isinstance(found, Unplannable)
    assert words in " ".join([found.why, found.remedy, *(entry.why for entry in found.rejected)])


def test_the_remedy_of_what_does_not_fit_does_fit() -> None:
    wishes = Wishes("None", context_tokens=65536, concurrency=8)
    found = plan(model("Llama-3.1-8B"), Accelerator(24 * GIB), wishes)
    assert isinstance(found, Unplannable)
    context = int(found.remedy.split("contextTokens to ")[1].split(",")[0])
    assert isinstance(plan(model("Llama-3.1-8B"), Accelerator(24 * GIB), replace(wishes, context_tokens=context)), Planned)
    assert isinstance(plan(model("Llama-3.1-8B"), Accelerator(24 * GIB), replace(wishes, context_tokens=context + 32)), Unplannable)


def test_quantised_weights_count_as_stored_unless_loading_unpacks_them() -> None:
    config = {**LLAMA, "quantization_config": {"quant_method": "gptq"}}
    packed = [Tensor("model.layers.0.mlp.up_proj.qweight", "I32", (64, 256))]
    assert weight_bytes(shape_of(config, packed), Split("None"), Load(64, 1)) == 64 * 256 * 4
    unpacked = model("gpt-oss-20B")
    assert weight_bytes(unpacked, Split("None"), Load(64, 1)) == 2 * unpacked.parameters
    assert unpacked.stored_bytes < unpacked.parameters


def test_the_largest_context_fits_and_one_page_more_does_not() -> None:
    found = plan(model("Llama-3.1-70B"), Accelerator(80 * GIB), Wishes())
    assert isinstance(found, Planned)
    load = replace(found.load, context_tokens=found.largest_context)
    assert found.limit is not None
    assert device_memory(model("Llama-3.1-70B"), found.split, load).needed <= found.limit
    more = replace(load, context_tokens=found.largest_context + 32)
    assert device_memory(model("Llama-3.1-70B"), found.split, more).needed > found.limit


def test_ranks_on_cpu_share_one_memory() -> None:
    shape = model("SmolLM2-135M")
    found = plan(shape, Accelerator(8 * GIB, is_cpu=True), Wishes("DeepSpeed", tensor=3, dtype="float32", context_tokens=2048))
    assert isinstance(found, Planned)
    assert found.limit == (int(8 * GIB * 0.94) - GIB // 2) // 3
    assert isinstance(plan(shape, Accelerator(2 * GIB, is_cpu=True), Wishes("DeepSpeed", tensor=3)), Unplannable)


def tensors_of_llama(layers: int) -> list[Tensor]:
    sizes = {"q_proj": (256, 256), "k_proj": (128, 256), "v_proj": (128, 256), "o_proj": (256, 256)}
    found = [
        Tensor("model.embed_tokens.weight", "BF16", (512, 256)),
        Tensor("lm_head.weight", "BF16", (512, 256)),
        Tensor("model.norm.weight", "BF16", (256,)),
    ]
    for layer in range(layers):
        found += [Tensor(f"model.layers.{layer}.self_attn.{name}.weight", "BF16", size) for name, size in sizes.items()]
        found += [Tensor(f"model.layers.{layer}.mlp.{name}.weight", "BF16", (512, 256)) for name in ("gate_proj", "up_proj", "down_proj")]
        found += [Tensor(f"model.layers.{layer}.{name}.weight", "BF16", (256,)) for name in ("input_layernorm", "post_attention_layernorm")]
    return found


LLAMA = {
    "model_type": "llama", "hidden_size": 256, "num_hidden_layers": 2, "num_attention_heads": 8, "num_key_value_heads": 4,
    "intermediate_size": 512, "vocab_size": 512, "max_position_embeddings": 256, "tie_word_embeddings": False,
}  # fmt: skip


def test_headers_and_configuration_count_alike() -> None:
    from_headers, from_config = shape_of(LLAMA, tensors_of_llama(2)), shape_of(LLAMA)
    assert from_headers.elements == from_config.elements
    assert from_headers.stored_bytes == 2 * from_headers.parameters


@given(
    heads=st.integers(1, 16),
    size=st.integers(1, 40),
    odd=st.integers(0, 63),
    degree=st.integers(2, 16),
    engine=st.sampled_from(["DeepSpeed", "Tensor"]),
)
def test_the_pieces_of_all_ranks_are_the_whole(heads: int, size: int, odd: int, degree: int, engine: Any) -> None:
    sizes = {"num_attention_heads": heads, "num_key_value_heads": heads, "hidden_size": heads * 16 * size, "head_dim": 16 * size}
    shape = shape_of({**LLAMA, **sizes, "intermediate_size": 64 * size + odd, "vocab_size": 64 * size + odd})
    split = Split(engine, tensor=min(degree, heads))
    ranks = [held(shape, split, 0, rank) for rank in range(split.tensor)]
    whole = shape.elements.other + (shape.elements.embeddings if engine == "DeepSpeed" else 0)
    assert sum(ranks) - whole * (split.tensor - 1) == pytest.approx(shape.parameters, abs=8 * split.tensor)
    assert all(rank >= 0 for rank in ranks)


def test_layers_that_predict_further_tokens_are_not_counted() -> None:
    assert shape_of(LLAMA, tensors_of_llama(3)) == shape_of(LLAMA, tensors_of_llama(2))


def test_patterns_say_what_the_tensors_say() -> None:
    patterns = [["model.layers.*.mlp.up_proj.weight", "BF16", [512, 256], 2], ["model.embed_tokens.weight", "BF16", [512, 256], 1]]
    shape = shape_of(LLAMA, tensors_of(patterns))
    assert (shape.elements.mlp, shape.elements.embeddings) == (2 * 512 * 256, 512 * 256)
    with pytest.raises(ShapeError, match="same version"):
        tensors_of([["a", "BF16", [1]]])


@pytest.mark.parametrize("missing", ["hidden_size", "num_hidden_layers", "num_attention_heads", "vocab_size"])
def test_a_configuration_without_sizes_is_refused_by_name(missing: str) -> None:
    with pytest.raises(ShapeError, match=missing):
        shape_of({key: value for key, value in LLAMA.items() if key != missing})
