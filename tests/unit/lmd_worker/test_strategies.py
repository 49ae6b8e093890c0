"""What each strategy refuses before anything is loaded, and in which words."""

import pytest

from lmd_worker import loading
from lmd_worker.errors import ModelRefusedError, SettingsError
from lmd_worker.shape import ModelShape
from lmd_worker.strategies import autotp, families, reading, single


@pytest.fixture
def guard(make_model_directory, make_settings):
    def run(degree=1, document=None, device=None, **config):
        settings = make_settings(make_model_directory(**config), degree=degree, document=document)
        autotp.guard(ModelShape.read(settings.model_path), settings)

    return run


@pytest.mark.parametrize("family", sorted(families.SUPPORTED - {"falcon"}))
def test_measured_families_pass(guard, family):
    guard(model_type=family)


def test_new_falcon_passes_and_old_does_not(guard):
    guard(model_type="falcon", new_decoder_architecture=True)
    with pytest.raises(ModelRefusedError, match=r"falcon without new_decoder_architecture \(Falcon 7B and older\) cannot be served"):
        guard(model_type="falcon")


@pytest.mark.parametrize(
    ("family", "sentence"),
    [
        ("gpt2", "gpt2 cannot be served with DeepSpeed AutoTP: DeepSpeed refuses GPT-2 by name. "),
        (
            "gpt_bigcode",
            "gpt_bigcode cannot be served with DeepSpeed AutoTP: its single fused key-value head cannot be cut: ranks without one fail. ",
        ),
        ("gpt_oss", "gpt_oss cannot be served with DeepSpeed AutoTP: AutoTP does not cut its attention sinks. "),
        ("olmo2", "olmo2 cannot be served with DeepSpeed AutoTP: its query norm spans all heads and AutoTP does not cut it. "),
        (
            "phi3",
            "phi3 cannot be served with DeepSpeed AutoTP: transformers 5 slices its fused projection by the whole model's head count. ",
        ),
    ],
)
def test_families_that_fail_are_refused_with_the_reason(guard, family, sentence):
    with pytest.raises(ModelRefusedError) as refused:
        guard(model_type=family)
    assert str(refused.value) == sentence + "Use strategy None, one process, if it fits one device."


@pytest.mark.parametrize(
    ("family", "key"),
    [("mixtral", "num_local_experts"), ("qwen3_moe", "num_experts"), ("deepseek_v3", "n_routed_experts"), ("gpt_oss", "num_local_experts")],
)
def test_experts_are_refused_whatever_the_family(guard, family, key):
    with pytest.raises(ModelRefusedError) as refused:
        guard(model_type=family, **{key: 8})
    assert str(refused.value) == (
        f"{family} has 8 experts, and AutoTP does not shard experts of transformers 5: every rank would hold all of them. "
        "Use strategy None, one process, if it fits one device."
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
    assert [families.heads_of_rank(shape, rank, degree) for rank in range(degree)] == expected


@pytest.mark.parametrize(("degree", "expected"), [(1, 1.0), (2, 2 / 3), (3, 1 / 3)])
def test_the_largest_part_follows_the_unit_that_cuts_worst(make_model_directory, degree, expected):
    assert families.largest_part(ModelShape.read(make_model_directory()), degree, 64) == pytest.approx(expected)


def test_quantized_models_are_refused(guard):
    with pytest.raises(ModelRefusedError, match=r"the model is quantized \(gptq: quantization_config in config\.json\)"):
        guard(quantization_config={"quant_method": "gptq"})


def test_kernel_injection_is_refused(guard):
    with pytest.raises(SettingsError, match="replace_with_kernel_inject is true"):
        guard(document={"replace_with_kernel_inject": True})


def test_a_data_type_other_than_the_models_is_refused(guard):
    with pytest.raises(SettingsError, match=r"ds-config\.json: dtype is bfloat16, but model-config\.yaml loads float32\."):
        guard(document={"dtype": "bfloat16"})


@pytest.mark.parametrize("strategy", [autotp, single])
def test_encoders_and_encoder_decoders_are_refused(make_model_directory, make_settings, strategy):
    for changes, words in (
        ({"is_encoder_decoder": True}, "is an encoder-decoder"),
        ({"architectures": ["BertModel"]}, "has no language-model head"),
    ):
        settings = make_settings(make_model_directory(**changes), strategy="DeepSpeed" if strategy is autotp else "None")
        with pytest.raises(ModelRefusedError, match=words):
            strategy.guard(ModelShape.read(settings.model_path), settings)


def test_refusal_comes_before_any_weight_is_read(make_model_directory, make_settings, monkeypatch):
    def read(settings):
        pytest.fail("weights were read")

    for module in (autotp, single, reading):
        monkeypatch.setattr(module, "read_model", read)
    with pytest.raises(ModelRefusedError, match="experts"):
        loading.load(make_settings(make_model_directory(model_type="mixtral", num_local_experts=8)))
