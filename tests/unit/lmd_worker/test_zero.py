"""What strategy ZeroInference refuses before a weight is read, and in which words."""

import pytest

from lmd_worker.errors import ModelRefusedError, SettingsError
from lmd_worker.shape import ModelShape
from lmd_worker.strategies import families, zero

FULL = "Use spec.engine.zeroInference.weights: Full."
HOST = "Use spec.engine.zeroInference.parameters: Host, or strategy Accelerate, which reads from the safetensors themselves."


@pytest.fixture
def guard(make_model_directory, make_settings, zero_document):
    def run(degree=1, document=None, dtype="float32", **config):
        model = make_model_directory(**config)
        rendered = zero_document(dtype=dtype) if document is None else document
        plain = {"tensor_parallel": {}}  # the fixture's own keys are those of init_inference
        settings = make_settings(model, strategy="ZeroInference", degree=degree, document={**plain, **rendered}, dtype=dtype)
        zero.guard(ModelShape.read(settings.model_path), settings)

    return run


@pytest.mark.parametrize("family", sorted(families.COLUMNS["ZeroInference"].right))
def test_measured_families_pass_at_any_degree(guard, family):
    guard(degree=7, model_type=family, num_local_experts=8)


def test_families_nobody_measured_are_refused_with_who_serves_them(guard):
    with pytest.raises(ModelRefusedError) as refused:
        guard(model_type="lfm2")
    assert str(refused.value).startswith("lfm2 is not among the families DeepSpeed stage 3 was seen to cut right (bloom, ")
    assert str(refused.value).endswith(". Use strategy None, one process, if it fits one device.")


def test_quantized_models_are_refused(guard):
    with pytest.raises(ModelRefusedError, match=r"the model is quantized \(gptq: .*, and strategy ZeroInference cuts only plain weights\."):
        guard(quantization_config={"quant_method": "gptq"})


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"zero_optimization": {"stage": 2}}, r"zero_optimization\.stage is 2, and strategy ZeroInference needs 3\."),
        ({"zero_optimization": 3}, r"zero_optimization\.stage is None, and strategy ZeroInference needs 3\."),
        ({"bf16": {"enabled": True}}, r"bf16 and fp16 say bfloat16, but model-config\.yaml loads float32\."),
        ({"zero_optimization": {"stage": 3}}, r"offload_param\.device is None, must be cpu or nvme\."),
    ],
)
def test_a_configuration_of_something_else_is_refused(guard, zero_document, changes, words):
    with pytest.raises(SettingsError, match=words):
        guard(document={**zero_document(), **changes})


def test_there_is_no_float16_on_cpus(guard, zero_document):
    with pytest.raises(ModelRefusedError, match=r"DeepSpeed has no float16 on CPUs\. Use bfloat16 or float32\."):
        guard(dtype="float16", document={**zero_document(), "fp16": {"enabled": True}})


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"hidden_size": 588, "num_attention_heads": 12, "num_key_value_heads": 4}, "its hidden size is 588"),
        ({"intermediate_size": 1000}, "its intermediate size is 1000"),
        ({"head_dim": 40}, "its heads x head size is 360"),
    ],
)
def test_columns_that_make_no_groups_cannot_be_quantized(guard, zero_document, config, words):
    guard(document=zero_document(weights="Int4"))
    with pytest.raises(ModelRefusedError) as refused:
        guard(document=zero_document(weights="Int4"), **config)
    assert str(refused.value) == f"llama cannot be quantized: DeepSpeed does it in groups of 64 columns, and {words}. {FULL}"


def test_what_deepspeed_would_leave_unquantized_is_refused(guard, zero_document):
    with pytest.raises(
        ModelRefusedError, match=r"^mixtral has 8 experts, which DeepSpeed would leave as they are: .* in one tensor\. " + FULL
    ):
        guard(document=zero_document(weights="Int8"), model_type="mixtral", num_local_experts=8)
    with pytest.raises(ModelRefusedError, match=r"^gpt2 cannot be quantized: its layers are Conv1D, "):
        guard(document=zero_document(weights="Int8"), model_type="gpt2")


def test_float16_and_small_weights_are_refused(make_model_directory, make_settings):
    settings = make_settings(make_model_directory(), strategy="ZeroInference", document={}, dtype="float16")
    with pytest.raises(ModelRefusedError, match=r"^weights of 8 bits cannot be computed with in float16: .* Use bfloat16\. Or: " + FULL):
        zero._guard_quantization(ModelShape.read(settings.model_path), settings, {"num_bits": 8, "group_size": 64})


def test_a_disk_is_asked_whether_it_can(guard, zero_document, tmp_path, monkeypatch):
    document = zero_document(root=str(tmp_path), parameters="Disk")
    with pytest.raises(SettingsError, match=r"parameters \(.*nvme_path\) is no directory to write to\. Mount one\.$"):
        guard(document=document)
    (tmp_path / "parameters").mkdir()
    monkeypatch.setattr(zero, "has_disk_operation", lambda: False)
    with pytest.raises(ModelRefusedError) as refused:
        guard(document=document)
    assert str(refused.value) == (
        f"parameters on disk need DeepSpeed's operations async_io and pin_memory, which this image can neither load nor build. {HOST}"
    )
    monkeypatch.setattr(zero, "has_disk_operation", lambda: True)
    guard(document=document)
    monkeypatch.setattr(zero.shutil, "disk_usage", lambda path: zero.shutil._ntuple_diskusage(100, 1, 99))
    with pytest.raises(ModelRefusedError, match=r"^the parameters need 1\.49e-07 GiB at .*, and 9\.22e-08 GiB are free\. Use spec"):
        guard(document=document)


def test_refusal_comes_before_any_weight_is_read(make_model_directory, make_settings, zero_document, monkeypatch):
    from lmd_worker import loading

    monkeypatch.setattr(zero, "read_model", lambda settings: pytest.fail("weights were read"))
    document = zero_document(weights="Int8")
    settings = make_settings(make_model_directory(num_local_experts=8), strategy="ZeroInference", document=document)
    with pytest.raises(ModelRefusedError, match="has 8 experts"):
        loading.load(settings)
