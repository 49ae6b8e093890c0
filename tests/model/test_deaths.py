"""What the others notice when a rank dies, stops or refuses; small random models, real processes."""

import json
import os
import signal

import pytest
import tiny_families

from lmd_worker import loading
from lmd_worker.errors import ModelRefusedError
from lmd_worker.strategies import autotp

pytestmark = pytest.mark.model

LONG = [[{"id": "a", "prompt": [5, 6, 7], "sampling": {"max_tokens": 8000}}]]


@pytest.fixture(scope="session")
def even_llama(tmp_path_factory):
    """A random LLaMA whose heads two ranks share evenly, with room for a long answer."""
    directory = tmp_path_factory.mktemp("models") / "even-llama"
    tiny_families.save("llama", directory)
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps({**config, "max_position_embeddings": 8192}))
    return directory


@pytest.fixture
def running(tiny_llama, even_llama, write_scenario, ranks, strategy, scheduler, zero_document):
    """Two ranks in the middle of a long answer; a collective waits at most 5 s."""
    stages = {"pipeline": 2} if strategy == "Pipeline" else {}
    handler = {"collective_timeout_seconds": 5, "strategy": strategy, "scheduler": scheduler, **stages}
    model = tiny_llama if strategy == "DeepSpeed" else even_llama
    document = zero_document() if strategy == "ZeroInference" else None
    ranks.start("watch", write_scenario(model, 2, handler=handler, document=document, waves=LONG), 2)
    for rank in range(2):
        ranks.words("running", rank)
    return ranks


@pytest.mark.parametrize(
    ("strategy", "scheduler", "victim"),
    [
        ("DeepSpeed", "Continuous", 0),
        pytest.param("Tensor", "Continuous", 1, marks=pytest.mark.long),
        pytest.param("DeepSpeed", "Static", 1, marks=pytest.mark.long),
        ("Pipeline", "Continuous", 0),
        ("ZeroInference", "Static", 1),
    ],
)
def test_a_killed_rank_is_the_failure_of_the_other(running, victim):
    running.processes[victim].kill()
    other = 1 - victim
    assert running.words("failed", other).startswith(f"Rank {other}: the engine failed: ")


@pytest.mark.parametrize(
    ("strategy", "scheduler", "victim"),
    [
        ("DeepSpeed", "Continuous", 1),
        pytest.param("Tensor", "Static", 1, marks=pytest.mark.long),
        ("Pipeline", "Continuous", 0),
        ("ZeroInference", "Static", 1),
    ],
)
def test_a_stopped_rank_is_noticed_after_the_collective_timeout(running, victim):
    """The libraries' own groups would wait for half an hour; a later stage waits for what the one before it hands over."""
    os.kill(running.processes[victim].pid, signal.SIGSTOP)
    assert running.words("failed", 1 - victim).startswith(f"Rank {1 - victim}: the engine failed: ")


def test_a_stage_that_stops_before_it_hands_over_is_noticed_after_the_collective_timeout(even_llama, write_scenario, ranks):
    """Only when the engine had stood still for five minutes: what a stage waits for is no collective (seen once in some ten stops)."""
    handler = {"collective_timeout_seconds": 5, "stall_timeout_seconds": 30, "strategy": "Pipeline", "pipeline": 2}
    ranks.start("watch", write_scenario(even_llama, 2, handler=handler, waves=LONG, stops_before_handing_over=0), 2)
    assert ranks.words("failed", 1).startswith("Rank 1: the engine failed: ")


def test_one_ranks_failed_self_test_is_every_ranks_refusal(tiny_llama, write_scenario, ranks):
    ranks.start("load", write_scenario(tiny_llama, 2, break_rank=1), 2)
    assert [ranks.words("loaded", rank) for rank in (0, 1)] == ["SelfTestError: Rank 1: broken on purpose."] * 2


def test_more_ranks_than_the_degree_are_refused_on_all_of_them(tiny_llama, write_scenario, ranks):
    ranks.start("load", write_scenario(tiny_llama, 3), 2)
    for rank in (0, 1):
        assert ranks.words("loaded", rank).startswith(
            f"RankError: Rank {rank}: the launcher started 2 ranks, but the tensor-parallel degree is 3."
        )


def test_a_real_mixtral_is_refused_before_its_weights_are_read(tmp_path, make_settings, monkeypatch):
    import transformers

    sizes = {"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4, "num_key_value_heads": 4}
    config = transformers.MixtralConfig(vocab_size=64, num_local_experts=4, **sizes)
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "mixtral")
    monkeypatch.setattr(autotp, "read_model", lambda settings: pytest.fail("weights were read"))
    with pytest.raises(ModelRefusedError, match="mixtral has 4 experts, and AutoTP does not shard experts of transformers 5"):
        loading.load(make_settings(tmp_path / "mixtral", degree=2))
