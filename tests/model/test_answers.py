"""The real model on 1, 2 and 3 ranks answers as plain transformers does on one; SmolLM2 has 9 heads and 3 key-value heads.

`make test` asks its first five layers, `make test-long` all thirty, in more ways.
"""

import copy

import pytest

pytestmark = pytest.mark.model

CONTEXT_TOKENS = 72
CONCURRENCY = 12
HEAD_BYTES = 49152 * 576 * 4
"""The output head, tied to the embeddings until AutoTP cuts it alone."""
PROMPTS = {
    "france": [1, 9690, 198, 2683, 359, 253, 5356, 5646, 11173, 3365, 3511, 308],
    "short": [504],
    "story": [6403, 2192, 253, 655],
    "numbers": list(range(100, 160)),
    "code": [1604, 4236, 24, 94, 727, 198, 259, 442, 297],
    "mixed": [28120, 905, 28, 1250, 314, 253, 1028, 338, 260, 2470, 282, 260, 905, 30, 339, 1277, 699, 28],
}


def request(name, prompt, max_tokens, **sampling):
    return {"id": name, "prompt": PROMPTS[prompt], "sampling": {"max_tokens": max_tokens, **sampling}}


def seeded(name):
    return request(name, "story", 12, temperature=0.9, top_k=40, top_p=0.95, seed=11)


GREEDY = [
    request("g1", "france", 10),
    request("g2", "short", 14),
    request("g3", "story", 8),
    request("g4", "numbers", 12),
    request("g5", "code", 9),
    request("g6", "mixed", 1),
]
NEIGHBOUR = request("neighbour", "mixed", 12)
AFTER_CANCEL = request("after", "code", 6)
CARRIED = [request("wide", "numbers", 12), request("long", "short", 20)]
CROWD = [
    {
        "id": f"c{index}",
        "prompt": [(index * 31 + place * 17) % 49152 for place in range(1 + index * 13 % 60)],
        "sampling": {"max_tokens": 1 + index * 7 % 6, "logprobs": index % 3},
    }
    for index in range(64)
]
"""Prompts of 1 to 60 tokens, answers of 1 to 6."""
LEAVING = {**request("leaving", "short", 60), "cancel_after": 2}
WAVES = [
    GREEDY,
    [seeded("alone")],
    [
        request("n1", "numbers", 8),
        seeded("among"),
        request("n2", "story", 12, temperature=0.9, seed=12),
        request("n3", "code", 10, temperature=1.0),
    ],
    [{**request("cancelled", "short", 70), "cancel_after": 3}, NEIGHBOUR],
    [AFTER_CANCEL],
    CARRIED,
    [*CROWD, LEAVING],
]


@pytest.fixture(scope="module", params=["short_smollm2", pytest.param("smollm2", marks=pytest.mark.long)])
def model(request):
    return request.getfixturevalue(request.param)


@pytest.fixture(
    scope="module",
    params=[
        pytest.param((1, "DeepSpeed", "Continuous"), id="1-DeepSpeed-Continuous", marks=pytest.mark.long),
        pytest.param((2, "DeepSpeed", "Continuous"), id="2-DeepSpeed-Continuous"),
        pytest.param((3, "DeepSpeed", "Continuous"), id="3-DeepSpeed-Continuous", marks=pytest.mark.long),  # tests/local/test_crowd.py
        pytest.param((3, "Tensor", "Continuous"), id="3-Tensor-Continuous", marks=pytest.mark.long),
        pytest.param((3, "Pipeline", "Continuous"), id="3-Pipeline-Continuous"),
        pytest.param((2, "DeepSpeed", "Static"), id="2-DeepSpeed-Static", marks=pytest.mark.long),
    ],
)
def case(request):
    return request.param


@pytest.fixture(scope="module")
def degree(case):
    return case[0]


@pytest.fixture(scope="module")
def answered(case, model, write_scenario, run_driver):
    degree, strategy, scheduler = case
    handler = {"strategy": strategy, "context_tokens": CONTEXT_TOKENS, "scheduler": scheduler, "concurrency": CONCURRENCY}
    if strategy == "Pipeline":
        handler["pipeline"] = degree
    return run_driver(write_scenario(model, degree, handler=handler, waves=copy.deepcopy(WAVES)), degree)


@pytest.fixture(scope="module")
def one_rank(model, write_scenario, run_driver):
    handler = {"context_tokens": CONTEXT_TOKENS, "strategy": "None", "scheduler": "Static"}
    return run_driver(write_scenario(model, 1, handler=handler, waves=copy.deepcopy(WAVES[1:3])), 1)


@pytest.fixture(scope="module")
def expected(model, run_reference):
    return run_reference(model, [*GREEDY, NEIGHBOUR, AFTER_CANCEL, *CARRIED, *CROWD])


def tokens(answered, *names):
    return {name: answered["results"][name]["tokens"] for name in names}


def test_greedy_tokens_equal_plain_generate(answered, expected):
    names = [item["id"] for item in GREEDY]
    assert tokens(answered, *names) == {name: expected[name] for name in names}
    assert {answered["results"][name]["end"] for name in names} == {"length"}


def test_a_seed_reproduces_whatever_the_neighbours_and_the_ranks(answered, one_rank):
    alone = tokens(one_rank, "alone")["alone"]
    assert tokens(answered, "alone", "among") == {"alone": alone, "among": alone}
    assert tokens(answered, "n2")["n2"] not in (alone, tokens(answered, "n3")["n3"])


def test_cancelling_ends_one_request_and_no_other(answered, expected):
    assert answered["results"]["cancelled"]["end"] == "cancelled"
    assert len(answered["results"]["cancelled"]["tokens"]) < 70
    assert tokens(answered, "neighbour", "after") == {name: expected[name] for name in ("neighbour", "after")}


def test_a_batch_that_outgrew_the_context_went_on(answered, expected):
    assert tokens(answered, "wide", "long") == {name: expected[name] for name in ("wide", "long")}


def test_64_requests_at_once_each_get_what_they_would_get_alone(answered, expected):
    names = [item["id"] for item in CROWD]
    assert tokens(answered, *names) == {name: expected[name] for name in names}
    assert answered["results"]["leaving"]["end"] == "cancelled"


def test_log_probabilities_equal_those_of_plain_scores(answered, expected):
    for item in CROWD:
        told, count = answered["results"][item["id"]]["logprobs"], item["sampling"]["logprobs"]
        assert [step["logprob"] for step in told] == pytest.approx(expected[f"{item['id']} logprobs"], abs=1e-3)
        assert [len(step["top"]) for step in told] == [count] * len(told)
        if count:
            assert [step["top"][0][0] for step in told] == expected[item["id"]]


def test_nothing_is_left_in_the_cache(answered, case):
    stats = answered["stats"]
    assert (stats["running"], stats["waiting"]) == (0, 0)
    assert stats["cache_blocks_used"] == (0 if case[2] == "Continuous" else None)
    assert stats["generation_tokens_total"] >= sum(item["sampling"]["max_tokens"] for item in CROWD)


def test_every_rank_reports_its_share(answered, case, degree):
    assert answered["failure"] is None
    assert {(rank["scheduler"], rank["scheduler_reason"]) for rank in answered["ranks"]} == {(case[2], "")}
    assert [rank["rank"] for rank in answered["ranks"]] == list(range(degree))
    assert {(rank["world_size"], rank["degree"], rank["strategy"], rank["dtype"]) for rank in answered["ranks"]} == {
        (degree, 1 if case[1] == "Pipeline" else degree, case[1], "float32")
    }
    heads = [(9, 3)] * 3 if case[1] == "Pipeline" else {1: [(9, 3)], 2: [(6, 2), (3, 1)], 3: [(3, 1)] * 3}[degree]
    assert [(rank["heads"], rank["key_value_heads"]) for rank in answered["ranks"]] == heads
    head = HEAD_BYTES if degree > 1 and case[1] == "DeepSpeed" else 0
    most = 0.9 if case[1] == "Pipeline" else 0.8  # the last of three stages has three of five layers and the embeddings
    for rank in answered["ranks"]:
        assert (rank["parameter_bytes"] < most * (rank["model_bytes"] + head)) == (degree > 1)
    print(f"ranks={degree} {answered['figures']}")
