"""What each strategy refuses before anything is loaded, and in which words."""

import pytest
import torch

from lmd_worker import loading, strategies
from lmd_worker.engine import pages
from lmd_worker.errors import ModelRefusedError, SettingsError
from lmd_worker.ranks import Group
from lmd_worker.shape import ModelShape
from lmd_worker.strategies import autotp, degrees, expert, families, native, offload, pipeline, reading, single, tensor

STRATEGIES = {"Accelerate": offload, "DeepSpeed": autotp, "Expert": expert, "None": single, "Pipeline": pipeline, "Tensor": tensor}
CPU = Group(rank=0, size=1, device=torch.device("cpu"))
ALONE = "Use strategy None, one process, if it fits one device."
STAGES = "Use strategy Pipeline, or None if it fits one device."
EXPERT = "Use strategy Expert or Pipeline, or None if it fits one device."
EXPERT_OR_TENSOR = "Use strategy Expert, Tensor, Pipeline or PipelineTensor, or None if it fits one device."
TENSOR = "Use strategy Tensor, Pipeline or PipelineTensor, or None if it fits one device."
DEEPSPEED = "Use strategy DeepSpeed, or None if it fits one device."


@pytest.fixture
def guard(make_model_directory, make_settings):
    def run(degree=1, document=None, device=None, **config):
        settings = make_settings(make_model_directory(**config), degree=degree, document=document)
        autotp.guard(ModelShape.read(settings.model_path), settings)

    return run


@pytest.mark.parametrize("family", sorted(families.COLUMNS["DeepSpeed"].right - {"falcon"}))
def test_measured_families_pass(guard, family):
    guard(model_type=family)


def test_new_falcon_passes_and_old_does_not(guard):
    guard(model_type="falcon", new_decoder_architecture=True)
    with pytest.raises(ModelRefusedError, match=r"falcon without new_decoder_architecture \(Falcon 7B and older\) cannot be served"):
        guard(model_type="falcon")


@pytest.mark.parametrize(
    ("family", "reason", "instead"),
    [
        ("gpt2", "DeepSpeed refuses GPT-2 by name", ALONE),
        ("gpt_bigcode", "its single fused key-value head cannot be cut: ranks without one fail", ALONE),
        ("gpt_oss", "AutoTP does not cut its attention sinks", STAGES),
        ("olmo2", "its query norm spans all heads and AutoTP does not cut it", TENSOR),
        ("phi3", "transformers 5 slices its fused projection by the whole model's head count", TENSOR),
    ],
)
def test_families_that_fail_are_refused_with_the_reason_and_what_serves_them(guard, family, reason, instead):
    with pytest.raises(ModelRefusedError) as refused:
        guard(model_type=family)
    assert str(refused.value) == f"{family} cannot be served with DeepSpeed AutoTP: {reason}. {instead}"


@pytest.mark.parametrize(
    ("family", "key", "instead"),
    [
        ("mixtral", "num_local_experts", EXPERT_OR_TENSOR),
        ("qwen3_moe", "num_experts", EXPERT_OR_TENSOR),
        ("deepseek_v3", "n_routed_experts", EXPERT_OR_TENSOR),
        ("gpt_oss", "num_local_experts", EXPERT),
    ],
)
def test_experts_are_refused_whatever_the_family(guard, family, key, instead):
    with pytest.raises(ModelRefusedError) as refused:
        guard(model_type=family, tie_word_embeddings=False, **{key: 8})
    assert str(refused.value) == (
        f"{family} has 8 experts, and AutoTP does not shard experts of transformers 5: every rank would hold all of them. " + instead
    )


def test_unknown_families_are_refused_because_autotp_would_guess(guard):
    with pytest.raises(
        ModelRefusedError, match=r"^lfm2 is not among the families DeepSpeed AutoTP was seen to cut right \(bloom, cohere, "
    ):
        guard(model_type="lfm2")


@pytest.mark.parametrize("degree", [1, 2, 3])
def test_uneven_cuts_are_legal(guard, degree):
    guard(degree=degree)


def test_a_degree_above_the_key_value_heads_is_refused_with_the_legal_ones(guard):
    with pytest.raises(ModelRefusedError) as refused:
        guard(degree=4)
    assert str(refused.value) == (
        "llama with 9 attention heads and 3 key-value heads cannot be cut to degree 4: "
        "a rank would have no key-value head; legal degrees: 1, 2, 3."
    )


@pytest.mark.parametrize(
    ("heads", "key_value_heads", "degree", "expected"),
    [
        pytest.param(9, 3, 2, [(6, 2), (3, 1)], id="the first rank takes the odd head"),
        pytest.param(9, 3, 3, [(3, 1)] * 3, id="even"),
        pytest.param(7, 7, 2, [(4, 4), (3, 3)], id="without groups"),
    ],
)
def test_every_head_is_on_one_rank(make_model_directory, heads, key_value_heads, degree, expected):
    shape = ModelShape.read(make_model_directory(num_attention_heads=heads, num_key_value_heads=key_value_heads))
    assert [degrees.heads_of_rank("DeepSpeed", shape, rank, degree) for rank in range(degree)] == expected


@pytest.mark.parametrize(("degree", "expected"), [(1, 1.0), (2, 2 / 3), (3, 1 / 3)])
def test_the_largest_part_follows_the_unit_that_cuts_worst(make_model_directory, degree, expected):
    assert degrees.autotp_share(ModelShape.read(make_model_directory()), degree, 64).part == pytest.approx(expected)


def test_quantized_models_are_refused(guard, guard_tensor):
    with pytest.raises(ModelRefusedError, match=r"quantization_config in config\.json\), and strategy Tensor cuts only plain weights\."):
        guard_tensor(quantization_config={"quant_method": "gptq"})
    with pytest.raises(ModelRefusedError, match=r"the model is quantized \(gptq: quantization_config in config\.json\)"):
        guard(quantization_config={"quant_method": "gptq"})


def test_kernel_injection_is_refused(guard):
    with pytest.raises(SettingsError, match="replace_with_kernel_inject is true"):
        guard(document={"replace_with_kernel_inject": True})


def test_a_data_type_other_than_the_models_is_refused(guard):
    with pytest.raises(SettingsError, match=r"ds-config\.json: dtype is bfloat16, but model-config\.yaml loads float32\."):
        guard(document={"dtype": "bfloat16"})


@pytest.fixture
def guard_tensor(make_model_directory, make_settings):
    def run(degree=1, **config):
        settings = make_settings(make_model_directory(**{"tie_word_embeddings": False, **config}), strategy="Tensor", degree=degree)
        tensor.guard(ModelShape.read(settings.model_path), settings)

    return run


@pytest.mark.parametrize("family", sorted(families.COLUMNS["Tensor"].right))
def test_families_measured_under_tensor_pass(guard_tensor, family):
    guard_tensor(degree=3, model_type=family, num_local_experts=8)


@pytest.mark.parametrize(
    ("family", "reason", "instead"),
    [
        ("opt", "transformers 5.23 has no tensor-parallel plan for it", DEEPSPEED),
        ("gpt_bigcode", "transformers 5.23 has no tensor-parallel plan for it", ALONE),
        ("gpt_oss", "its plan cuts the experts only when they are spread, so every rank would hold all of them", EXPERT),
    ],
)
def test_families_that_tensor_does_not_serve_are_refused(guard_tensor, family, reason, instead):
    with pytest.raises(ModelRefusedError) as refused:
        guard_tensor(model_type=family, num_local_experts=8 if family == "gpt_oss" else 0)
    assert str(refused.value) == f"{family} cannot be served with transformers' tensor parallelism: {reason}. {instead}"


def test_a_head_tied_to_embeddings_that_stay_whole_is_refused(guard_tensor, guard_expert):
    guard_tensor(model_type="gpt_neox")
    with pytest.raises(ModelRefusedError, match=r"^gpt_oss with an output head tied to its embeddings cannot "):
        guard_expert(model_type="gpt_oss", tie_word_embeddings=True)
    with pytest.raises(ModelRefusedError, match=r"^gpt_neox with an output head tied to its embeddings cannot .* computes other tokens\. "):
        guard_tensor(model_type="gpt_neox", tie_word_embeddings=True)


@pytest.mark.parametrize(
    ("model_type", "hint"), [("llama", " Strategy DeepSpeed cuts unevenly and can do this one."), ("olmo2", "")], ids=["also", "not"]
)
def test_tensor_cuts_heads_only_evenly_and_says_who_can(guard_tensor, model_type, hint):
    with pytest.raises(ModelRefusedError) as refused:
        guard_tensor(degree=2, model_type=model_type)
    assert str(refused.value) == (
        f"{model_type} with 9 attention heads and 3 key-value heads cannot be cut to degree 2: "
        f"transformers cuts heads only evenly; legal degrees: 1, 3.{hint}"
    )


def test_what_tensor_does_not_cut_does_not_limit_the_degree(make_model_directory):
    shape = ModelShape.read(make_model_directory(model_type="deepseek_v3", n_routed_experts=8))
    assert degrees.legal_degrees("Tensor", shape) == list(range(1, 257))
    assert degrees.heads_of_rank("Tensor", shape, 1, 3) == (9, 3)


def test_the_share_of_tensor_counts_what_does_not_divide(make_model_directory):
    share = degrees.native_share(ModelShape.read(make_model_directory(vocab_size=100, intermediate_size=1536)), 3)
    assert (share.part, share.embeddings_are_whole, share.head_is_apart) == (34 / 100, False, False)
    assert share.leaves_whole("model.layers.1.mlp.gate.weight")
    assert not share.leaves_whole("model.layers.1.mlp.gate_proj.weight")


@pytest.fixture
def guard_expert(make_model_directory, make_settings):
    def run(degree=1, experts=8, **config):
        model = make_model_directory(**{"num_local_experts": experts, "tie_word_embeddings": False, **config})
        settings = make_settings(model, strategy="Expert", degree=degree)
        expert.guard(ModelShape.read(settings.model_path), settings)

    return run


@pytest.mark.parametrize("family", sorted(families.COLUMNS["Expert"].right))
def test_families_measured_under_expert_pass(guard_expert, family):
    guard_expert(degree=3, experts=6, model_type=family)


def test_models_without_experts_are_refused_with_who_serves_them(guard_expert):
    with pytest.raises(ModelRefusedError) as refused:
        guard_expert(experts=0)
    assert str(refused.value) == (
        "llama has no experts that could be spread. "
        "Use strategy DeepSpeed, Tensor, Pipeline or PipelineTensor, or None if it fits one device."
    )


def test_mixtures_nobody_measured_are_refused(guard_expert):
    with pytest.raises(ModelRefusedError, match=r"^dbrx is not among the families transformers' expert parallelism was seen to cut right"):
        guard_expert(model_type="dbrx")


def test_experts_and_heads_are_spread_only_evenly(guard_expert):
    with pytest.raises(ModelRefusedError) as refused:
        guard_expert(degree=3, model_type="mixtral", num_attention_heads=12, num_key_value_heads=6)
    assert str(refused.value) == (
        "mixtral with 8 experts, 12 attention heads and 6 key-value heads cannot be cut to degree 3: "
        "transformers cuts heads and spreads experts only evenly; legal degrees: 1, 2."
    )


@pytest.fixture
def guard_stages(make_model_directory, make_settings):
    def run(strategy="Pipeline", stages=2, degree=1, **config):
        model = make_model_directory(**{"tie_word_embeddings": False, **config})
        settings = make_settings(model, strategy=strategy, degree=stages * degree, pipeline=stages)
        pipeline.guard(ModelShape.read(settings.model_path), settings)

    return run


@pytest.mark.parametrize("family", sorted(families.COLUMNS["Pipeline"].right))
def test_families_measured_under_pipeline_pass(guard_stages, family):
    guard_stages(stages=30, model_type=family)


@pytest.mark.parametrize("family", sorted(families.COLUMNS["PipelineTensor"].right))
def test_families_measured_under_pipeline_tensor_pass(guard_stages, family):
    guard_stages("PipelineTensor", stages=2, degree=3, model_type=family)


def test_more_stages_than_layers_are_refused_with_the_legal_numbers_and_who_can(guard_stages):
    with pytest.raises(ModelRefusedError) as refused:
        guard_stages(stages=31)
    assert str(refused.value) == (
        "llama with 30 layers cannot be dealt out over 31 stages: a stage would have none; legal pipeline degrees: 2 to 30. "
        "Use strategy DeepSpeed or Tensor, or None if it fits one device."
    )
    with pytest.raises(ModelRefusedError, match=r"^llama with 1 layer cannot be dealt out over 2 stages: a stage would have none\. Use "):
        guard_stages(stages=2, num_hidden_layers=1)


def test_layers_of_stages_are_cut_only_evenly(guard_stages):
    with pytest.raises(ModelRefusedError) as refused:
        guard_stages("PipelineTensor", degree=2)
    assert str(refused.value) == (
        "llama with 9 attention heads and 3 key-value heads cannot be cut to degree 2: transformers cuts heads only evenly; "
        "legal degrees: 1, 3. Strategy Pipeline cuts none."
    )


@pytest.mark.parametrize("strategy", ["Pipeline", "PipelineTensor"])
def test_another_version_of_the_library_than_was_proven_is_refused(guard_stages, monkeypatch, strategy):
    monkeypatch.setattr(pipeline.metadata, "version", lambda name: "5.24.1")
    with pytest.raises(ModelRefusedError) as refused:
        guard_stages(strategy, degree=3 if strategy == "PipelineTensor" else 1)
    assert str(refused.value) == (
        f"strategy {strategy} was proven with transformers 5.23 and this worker has 5.24.1, whose pipeline may compute other tokens. "
        "Use a worker with transformers 5.23. Use strategy DeepSpeed or Tensor, or None if it fits one device."
    )


def test_another_patch_of_the_version_is_not_refused(guard_stages, monkeypatch):
    monkeypatch.setattr(pipeline.metadata, "version", lambda name: "5.23.7")
    guard_stages()


LAYER = {f"model.layers.{number}.mlp.up_proj.weight": (10, 10) for number in range(3)}
ENDS = {"model.embed_tokens.weight": (6, 10), "model.norm.weight": (10,)}


@pytest.mark.parametrize(
    ("stages", "tied", "fullest"),
    [
        pytest.param(2, False, 100 * 2 + 10 + 60, id="the last stage has what does not divide, the norm and the head"),
        pytest.param(3, False, 100 + 10 + 60, id="a layer each"),
        pytest.param(3, True, 100 + 10 + 60, id="embeddings tied to the head are on both ends"),
    ],
)
def test_the_share_is_that_of_the_fullest_stage(make_model_directory, stages, tied, fullest):
    head = {} if tied else {"lm_head.weight": (6, 10)}
    shape = ModelShape.read(make_model_directory(num_hidden_layers=3, tie_word_embeddings=tied, tensors={**LAYER, **ENDS, **head}))
    whole = 300 + 60 + 10 + (0 if tied else 60)
    assert degrees.stage_share(shape, 1, stages).part == pytest.approx(fullest / whole)
    assert degrees.stage_share(shape, 3, stages).part == pytest.approx(fullest / whole * degrees.native_share(shape, 3).part)
    assert not degrees.stage_share(shape, 1, stages).leaves_whole("model.layers.1.mlp.gate.weight")


def test_the_layers_of_a_rank_are_those_of_its_stage(make_model_directory):
    shape = ModelShape.read(make_model_directory())
    ranks = [degrees.layers_of_rank(shape, rank, 2, 4) for rank in range(8)]
    assert ranks == [each for each in (range(7), range(7, 14), range(14, 21), range(21, 30)) for _ in range(2)]
    assert degrees.layers_of_rank(shape, 2, 3, 1) == range(30)


@pytest.mark.parametrize(("family", "words"), [("llama", ""), ("gpt_oss", "attention sinks"), ("stablelm", "keyword arguments")])
def test_what_a_stage_would_stumble_over_is_not_tried(make_model_directory, make_settings, family, words):
    shape = ModelShape.read(make_model_directory(model_type=family))
    staged = make_settings(shape.path, strategy="Pipeline", degree=2, pipeline=2)
    assert words in strategies.static_reason(staged, shape)
    assert bool(words) == bool(strategies.static_reason(staged, shape))
    assert strategies.static_reason(make_settings(shape.path, strategy="Tensor", degree=3), shape) == ""


@pytest.mark.parametrize(
    ("strategy", "ranks", "stages"),
    [
        pytest.param("Pipeline", 2, 1, id="ranks without a stage"),
        pytest.param("Pipeline", 2, 4, id="stages without a rank"),
        pytest.param("PipelineTensor", 3, 2, id="no whole number of ranks a stage"),
        pytest.param("PipelineTensor", 2, 2, id="one rank a stage"),
        pytest.param("Tensor", 2, 2, id="stages for a strategy that has none"),
    ],
)
def test_ranks_and_stages_that_do_not_fit_each_other_are_refused(make_model_directory, make_settings, strategy, ranks, stages):
    with pytest.raises(SettingsError) as refused:
        make_settings(make_model_directory(), strategy=strategy, degree=ranks, pipeline=stages)
    assert str(refused.value) == (
        f"model-config.yaml: handler.pipeline is {stages} and torchrun.nproc-per-node {ranks}, which strategy {strategy} cannot be. "
        "Render both from one object with `lmd render`."
    )


def test_degrees_of_stages_come_from_one_number(make_model_directory, make_settings):
    settings = make_settings(make_model_directory(), strategy="PipelineTensor", degree=6, pipeline=2)
    assert (settings.tensor, settings.pipeline, settings.ranks) == (3, 2, 6)


def test_a_mixture_that_needs_the_disk_is_refused_before_its_weights_are_read(make_model_directory, make_settings, monkeypatch):
    monkeypatch.setattr(offload, "read_model", lambda settings, **placement: pytest.fail("weights were read"))
    directory = make_model_directory(model_type="mixtral", num_local_experts=8)
    settings = make_settings(directory, strategy="Accelerate", host_memory_bytes=100)
    with pytest.raises(ModelRefusedError) as refused:
        offload.load(settings, CPU)
    assert str(refused.value) == (
        "mixtral has 8 experts and needs 1.5e-07 GiB, but its weights may take only 9.3e-08 GiB of memory, and experts cannot be read from "
        f"disk as they are stored. Raise hostMemory or the pod's memory. {EXPERT_OR_TENSOR}"
    )


def test_weights_leave_room_for_the_cache(make_model_directory, make_settings, monkeypatch):
    free = 2**34
    monkeypatch.setattr(pages, "free_bytes", lambda device: free)
    directory = make_model_directory()
    one, two = (
        offload.budget(ModelShape.read(directory), make_settings(directory, strategy="Accelerate", concurrency=count), CPU)["cpu"]
        for count in (1, 2)
    )
    a_request = 8192 * 2 * 30 * 3 * 64 * 4 * (1 + 2 / 30)  # tokens, keys and values, layers, heads, head size, bytes, room to work in
    assert one - two == pytest.approx(a_request, rel=0.01)
    assert one == pytest.approx(free * 0.9 - a_request, rel=0.01)


@pytest.mark.parametrize("strategy", ["Accelerate", "None"])
def test_one_process_is_one_process(make_model_directory, make_settings, strategy):
    with pytest.raises(SettingsError, match=f"nproc-per-node is 2, but handler.strategy {strategy} runs one process"):
        make_settings(make_model_directory(), strategy=strategy, degree=2)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_encoders_and_encoder_decoders_are_refused(make_model_directory, make_settings, strategy):
    for changes, words in (
        ({"is_encoder_decoder": True}, "is an encoder-decoder"),
        ({"architectures": ["BertModel"]}, "has no language-model head"),
    ):
        settings = make_settings(make_model_directory(**changes), strategy=strategy)
        with pytest.raises(ModelRefusedError, match=words):
            STRATEGIES[strategy].guard(ModelShape.read(settings.model_path), settings)


def test_refusal_comes_before_any_weight_is_read(make_model_directory, make_settings, monkeypatch):
    def read(settings, **placement):
        pytest.fail("weights were read")

    for module in (autotp, native, single, reading):
        monkeypatch.setattr(module, "read_model", read)
    with pytest.raises(ModelRefusedError, match="experts"):
        loading.load(make_settings(make_model_directory(model_type="mixtral", num_local_experts=8)))
    with pytest.raises(ModelRefusedError, match="gpt_neox cannot be served with transformers' pipeline"):
        loading.load(make_settings(make_model_directory(model_type="gpt_neox"), strategy="Pipeline", degree=2, pipeline=2))
