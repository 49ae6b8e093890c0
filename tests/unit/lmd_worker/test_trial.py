"""Which families the continuous engine computes right, and that every other one is found out and keeps the static engine."""

import pytest
import torch
import transformers

from lmd_worker.engine import building, paged_attention, pages, trial
from lmd_worker.engine.building import Limits
from lmd_worker.engine.continuous import ContinuousEngine
from lmd_worker.engine.pages import CacheShape, Pages
from lmd_worker.engine.static import StaticEngine
from lmd_worker.errors import ModelRefusedError
from lmd_worker.ranks import Group
from lmd_worker.shape import ModelShape

ALONE = Group(rank=0, size=1, device=torch.device("cpu"))
LLAMA = {
    "vocab_size": 128,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 256,
    "pad_token_id": 0,
}
MANY_HEADS = {**LLAMA, "num_key_value_heads": 4}
GPT = {"vocab_size": 128, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 256}
WINDOW = 8
"""Shorter than the trial's longest prompt."""

CONTINUOUS = {
    "cohere": LLAMA,
    "gemma": LLAMA,
    "gemma2": {**LLAMA, "sliding_window": WINDOW, "query_pre_attn_scalar": 8, "attn_logit_softcapping": 2.0},
    "gemma3_text": {**LLAMA, "sliding_window": WINDOW, "query_pre_attn_scalar": 8},
    "glm4": LLAMA,
    "gpt_neox": {**MANY_HEADS, "rotary_pct": 0.5},
    "gpt2": GPT,
    "granite": LLAMA,
    "llama": LLAMA,
    "mistral": {**LLAMA, "sliding_window": WINDOW},
    "olmo2": LLAMA,
    "opt": {**MANY_HEADS, "ffn_dim": 64, "word_embed_proj_dim": 32},
    "phi": LLAMA,
    "phi3": {**LLAMA, "sliding_window": None, "original_max_position_embeddings": 256},
    "qwen2": LLAMA,
    "qwen3": LLAMA,
    "starcoder2": {**LLAMA, "sliding_window": WINDOW},
}
STATIC = {
    "bloom": {"vocab_size": 128, "hidden_size": 32, "n_layer": 2, "n_head": 4},
    "falcon": {"vocab_size": 128, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "new_decoder_architecture": True},
    "gptj": {**GPT, "rotary_dim": 4},
    "mpt": {"vocab_size": 128, "d_model": 32, "n_layers": 2, "n_heads": 4, "max_seq_len": 256},
    "stablelm": LLAMA,
}


def random_model(family, options, dtype=torch.float32):
    """A model whose scores depend on everything it has read: weights large enough that attention is not flat."""
    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(family, bos_token_id=1, eos_token_id=None, **options)
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=dtype).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.copy_(torch.randn(parameter.shape) * 0.3)
    model.generation_config = transformers.GenerationConfig()
    return model


def cache_for(model, context_tokens=64, concurrency=3):
    config = model.config
    heads = config.num_attention_heads
    key_value_heads = getattr(config, "num_key_value_heads", None) or heads
    size = getattr(config, "head_dim", None) or config.hidden_size // heads
    shape = pages.shape_for(model, (heads, key_value_heads), size, range(2), context_tokens=context_tokens, concurrency=concurrency)
    return Pages(shape, ALONE.device)


@pytest.mark.model
@pytest.mark.parametrize("family", CONTINUOUS)
def test_families_of_the_attention_interface_compute_what_the_plain_model_does(family):
    model = random_model(family, CONTINUOUS[family])
    cache = cache_for(model)
    assert trial.objection(model.config) == ""
    assert trial.compare(model, ALONE, cache, vocabulary_size=128) == ""
    assert cache.used == 0


@pytest.mark.model
@pytest.mark.parametrize("family", STATIC)
def test_families_that_a_packed_row_breaks_are_found_out(family):
    model = random_model(family, STATIC[family])
    cache = cache_for(model)
    before = model.config._attn_implementation
    reason = trial.compare(model, ALONE, cache, vocabulary_size=128)
    assert "its" in reason
    assert "attention" in reason
    assert cache.used == 0
    assert model.config._attn_implementation == before


@pytest.mark.model
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_rounding_of_short_types_is_not_taken_for_a_fault(dtype):
    model = random_model("llama", LLAMA, dtype)
    assert trial.compare(model, ALONE, cache_for(model), vocabulary_size=128) == ""


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        (lambda arguments: arguments.update(sliding_window=5), "of a prompt of"),
        (lambda arguments: arguments.update(scaling=0.2), "scores otherwise than alone"),
        (lambda arguments: arguments["paged_layout"].written.fill_(64), "scores otherwise than alone"),
    ],
    ids=["sees too little", "scales wrongly", "writes to a wrong place"],
)
def test_a_silent_fault_of_the_attention_is_found(fault, words, monkeypatch):
    right = paged_attention.attend

    def wrong(*tensors, **arguments):
        fault(arguments)
        return right(*tensors, **arguments)

    monkeypatch.setattr(paged_attention, "attend", wrong)
    model = random_model("llama", LLAMA)
    try:
        assert words in trial.compare(model, ALONE, cache_for(model), vocabulary_size=128)
    finally:
        monkeypatch.undo()
        paged_attention.register()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"layer_types": ["full_attention", "linear_attention"]}, "layers of kind linear_attention"),
        ({"layer_types": ["chunked_attention", "full_attention"]}, "layers of kind chunked_attention"),
        ({"kv_lora_rank": 512}, "latents"),
        ({"rope_parameters": {"rope_type": "dynamic", "factor": 2.0}}, "the longest request (dynamic)"),
        ({"rope_parameters": {"full_attention": {"rope_type": "longrope"}}}, "the longest request (longrope)"),
        ({"rope_parameters": {"rope_type": "llama3"}, "layer_types": ["sliding_attention"]}, ""),
    ],
)
def test_what_no_trial_of_short_prompts_shows_is_read_off_the_config(changes, words):
    config = transformers.PretrainedConfig()
    for name, value in changes.items():
        setattr(config, name, value)
    assert words in trial.objection(config)
    assert bool(words) == bool(trial.objection(config))


def test_one_request_of_a_tiny_context_is_enough_for_a_trial():
    model = random_model("llama", LLAMA)
    assert trial.compare(model, ALONE, cache_for(model, context_tokens=2, concurrency=1), vocabulary_size=128) == ""


@pytest.fixture
def built(tmp_path):
    def build(family, options, scheduler="Continuous", objection="", **changes):
        model = random_model(family, options)
        model.save_pretrained(tmp_path)
        shape = ModelShape.read(tmp_path)
        limits = Limits(**{"context_tokens": 64, "concurrency": 2, "queue_size": None, "stall_timeout_seconds": 60.0, **changes})
        return building.build(
            scheduler, model, shape, ALONE, (shape.heads, shape.key_value_heads), limits, layers=range(shape.layers), objection=objection
        )

    return build


def test_a_family_gets_the_engine_it_can_have_and_the_reason_is_told(built, caplog):
    engine, reason = built("llama", LLAMA)
    assert (type(engine), reason) == (ContinuousEngine, "")
    engine, reason = built("gptj", STATIC["gptj"])
    assert type(engine) is StaticEngine
    assert reason.startswith("gptj cannot be decoded continuously: ")
    assert reason in caplog.text
    engine, reason = built("llama", LLAMA, scheduler="Static")
    assert (type(engine), reason) == (StaticEngine, "")
    engine, reason = built("llama", LLAMA, objection="of its strategy")
    assert (type(engine), reason) == (StaticEngine, "llama cannot be decoded continuously: of its strategy")


def test_a_cache_that_does_not_fit_is_refused_with_what_would(built, monkeypatch):
    monkeypatch.setattr(pages, "free_bytes", lambda device: 2**20)
    words = (
        "Rank 0: the key-value cache for 64 requests of 256 tokens needs 0.00 GiB and 0.00 GiB to work in, but the device has 0.00 GiB left"
    )
    with pytest.raises(ModelRefusedError, match=words):
        built("llama", LLAMA, context_tokens=256, concurrency=64)


def test_the_ranks_of_a_host_share_its_memory(monkeypatch):
    monkeypatch.setattr(pages, "free_bytes", lambda device: 3 * 2**20)
    shape = CacheShape(10, 4, 4, 8, torch.float32, context_tokens=400, concurrency=1)
    assert 2**20 < shape.bytes + shape.working_bytes == 1.2 * shape.bytes < 1.5 * 2**20
    assert pages.complaint(shape, Group(0, 2, ALONE.device)) == ""
    assert pages.complaint(shape, Group(0, 3, ALONE.device)).startswith("Rank 0: the key-value cache for 1 requests of 400 tokens")


def test_a_cache_is_as_large_as_its_shape_says():
    shape = CacheShape(3, 6, 2, 16, torch.bfloat16, context_tokens=100, concurrency=5)
    cache = Pages(shape, ALONE.device)
    assert (shape.pages_a_request, shape.pages, cache.total) == (4, 20, 20)
    assert cache.cache.cache_tensor.nbytes == shape.bytes == 2 * 3 * 2 * 16 * 32 * 2 * 22
    keys, values = cache.layer(2)
    assert keys.shape[1:] == values.shape[1:] == (32, 2, 16)


def test_memory_is_what_the_container_may_still_have(tmp_path):
    assert pages._host_free_bytes("MemTotal: 9 kB\nMemAvailable:   77 kB\n") == 77 * 1024
    assert pages._container_free_bytes(tmp_path) > 2**60
    for name, text in (("memory.max", "max\n"), ("memory.current", "700\n"), ("memory.stat", "anon 1\nfile 50\n")):
        (tmp_path / name).write_text(text)
    assert pages._container_free_bytes(tmp_path) > 2**60
    (tmp_path / "memory.max").write_text("1000\n")
    assert pages._container_free_bytes(tmp_path) == 350
