"""Stages under the static scheduler: prompts of unlike lengths are one batch, padded on the left."""

import copy

import pytest
import tiny_families

pytestmark = pytest.mark.model

LENGTHS = [25, 1, 12, 3]
PROMPTS = [
    {"id": f"p{length}", "prompt": [(length * 31 + place * 17) % 512 for place in range(length)], "sampling": {"max_tokens": 6}}
    for length in LENGTHS
]


@pytest.mark.parametrize(
    ("strategy", "ranks", "family"),
    [
        ("Pipeline", 2, "gpt_oss, short window"),
        ("PipelineTensor", 4, "llama"),
        pytest.param("Pipeline", 2, "llama", marks=pytest.mark.long),
        pytest.param("PipelineTensor", 4, "qwen3", marks=pytest.mark.long),
    ],
)
def test_each_prompt_of_a_padded_batch_gets_what_it_would_get_alone(
    strategy, ranks, family, write_scenario, run_driver, run_reference, tmp_path
):
    """Later stages took their masks from a cache of the first layer, which they do not have, and attended to the padding."""
    tiny_families.save(family, tmp_path / "model")
    handler = {"strategy": strategy, "pipeline": 2, "scheduler": "Static", "context_tokens": 64, "concurrency": len(PROMPTS)}
    answered = run_driver(write_scenario(tmp_path / "model", ranks, handler=handler, waves=[copy.deepcopy(PROMPTS)]), ranks)
    expected = run_reference(tmp_path / "model", PROMPTS)
    assert {prompt["id"]: answered["results"][prompt["id"]]["tokens"] for prompt in PROMPTS} == {
        prompt["id"]: expected[prompt["id"]] for prompt in PROMPTS
    }
    assert {rank["scheduler"] for rank in answered["ranks"]} == {"Static"}
    assert answered["stats"]["turns_total"] <= 7, "all four were one batch"
