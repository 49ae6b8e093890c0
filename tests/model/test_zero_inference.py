"""Strategy ZeroInference on real ranks: answers of one process on any number of them, and small weights off by their own steps."""

import copy
import json

import pytest
import tiny_families
import torch
import transformers

from lmd_operator.planning.cutting import Split
from lmd_operator.planning.memory import Load, part_bytes
from lmd_operator.planning.tensors import shape_of
from lmd_worker.strategies import zero

pytestmark = pytest.mark.model

GREEDY = [
    {"id": f"g{index}", "prompt": [(index * 31 + place * 17) % 512 for place in range(length)], "sampling": {"max_tokens": steps}}
    for index, (length, steps) in enumerate([(12, 9), (1, 1), (3, 12), (25, 2), (7, 5)])
]
ALONE = {"id": "only", "prompt": [4, 8, 15], "sampling": {"max_tokens": 5, "logprobs": 2}}
LEAVING = {"id": "leaving", "prompt": [9, 9], "sampling": {"max_tokens": 40}, "cancel_after": 2}


def seeded(name):
    return {"id": name, "prompt": [16, 23, 42], "sampling": {"max_tokens": 8, "temperature": 1.0, "top_k": 40, "seed": 5}}


WAVES = [GREEDY, [ALONE], [seeded("alone")], [seeded("among"), LEAVING, {**GREEDY[0], "id": "neighbour"}]]
HANDLER = {"strategy": "ZeroInference", "context_tokens": 64}
LOGITS_WITHIN = {"Int8": 0.2, "Int4": 3.0}
"""How far log-probabilities may be from those of the full weights of this random model; half of it was measured."""
AS_ROUNDED = 2e-3
"""How far they may be from those of weights that were rounded here the same way."""
PLANNED_WITHIN = 0.02


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    directory = tmp_path_factory.mktemp("models") / "llama"
    tiny_families.save("llama", directory)
    return directory


@pytest.fixture(scope="module")
def expected(model, run_reference):
    return run_reference(model, [*GREEDY, ALONE])


@pytest.fixture(scope="module")
def one_process(model, write_scenario, run_driver):
    handler = {"strategy": "None", "scheduler": "Static", "context_tokens": 64}
    return run_driver(write_scenario(model, 1, handler=handler, waves=copy.deepcopy(WAVES[2:3])), 1)


@pytest.fixture(scope="module", params=[1, 2, 3], ids=lambda degree: f"{degree} ranks")
def degree(request):
    return request.param


@pytest.fixture(scope="module")
def answered(degree, model, write_scenario, run_driver, zero_document):
    scenario = write_scenario(model, degree, handler=HANDLER, document=zero_document(), waves=copy.deepcopy(WAVES))
    return run_driver(scenario, degree)


def tokens(answered, *names):
    return {name: answered["results"][name]["tokens"] for name in names}


def test_greedy_tokens_equal_one_process_on_any_number_of_ranks(answered, expected):
    names = [item["id"] for item in [*GREEDY, ALONE]]
    assert tokens(answered, *names) == {name: expected[name] for name in names}
    assert tokens(answered, "neighbour")["neighbour"] == expected["g0"]
    assert {answered["results"][name]["end"] for name in names} == {"length"}
    assert answered["results"]["leaving"]["end"] == "cancelled"
    assert [step["logprob"] for step in answered["results"]["only"]["logprobs"]] == pytest.approx(expected["only logprobs"], abs=1e-3)


def test_a_seed_reproduces_whatever_the_neighbours_and_the_ranks(answered, one_process):
    alone = tokens(one_process, "alone")["alone"]
    assert tokens(answered, "alone", "among") == {"alone": alone, "among": alone}


def test_every_rank_reports_its_part_and_why_it_is_static(answered, degree, model):
    shape = shape_of(json.loads((model / "config.json").read_text()))
    planned = part_bytes(shape, Split("ZeroInference", replicas=degree), Load(64, 4, "float32"))
    reports = answered["ranks"]
    assert [report["parameter_bytes"] for report in reports] == pytest.approx([planned] * degree, rel=PLANNED_WITHIN)
    assert {(report["world_size"], report["degree"], report["strategy"]) for report in reports} == {(degree, degree, "ZeroInference")}
    assert {(report["heads"], report["key_value_heads"]) for report in reports} == {(8, 4)}, "whole layers on every rank"
    assert {report["scheduler"] for report in reports} == {"Static" if degree > 1 else "Continuous"}
    assert all(("requests of its own" in report["scheduler_reason"]) == (degree > 1) for report in reports)
    assert answered["failure"] is None


def test_bfloat16_takes_half(model, write_scenario, run_driver, zero_document):
    handler, document = {**HANDLER, "dtype": "bfloat16"}, zero_document(dtype="bfloat16")
    answered = run_driver(write_scenario(model, 2, handler=handler, document=document, waves=copy.deepcopy([GREEDY])), 2)
    shape = shape_of(json.loads((model / "config.json").read_text()))
    assert {(report["dtype"], report["parameter_bytes"]) for report in answered["ranks"]} == {("bfloat16", shape.parameters)}
    assert {name: len(result["tokens"]) for name, result in answered["results"].items()} == {
        item["id"]: item["sampling"]["max_tokens"] for item in GREEDY
    }


def on_disk(directory, zero_document, **options):
    """The configuration of parameters on disk below a directory."""
    (directory / "parameters").mkdir()
    return zero_document(root=str(directory), parameters="Disk", **{"bufferParameters": 4_000_000, **options})


@pytest.mark.long
def test_parameters_on_disk_give_the_same_answers(write_scenario, run_driver, run_reference, zero_document, tmp_path):
    """Heads were read off rows that a part on disk does not have, and its bytes counted as half numbers; small parts never go there."""
    if not zero.has_disk_operation():
        pytest.skip("DeepSpeed's operations for it can neither be loaded nor built here: they need libaio")
    wide = tmp_path / "wide"
    tiny_families.save("llama", wide, hidden_size=1024, intermediate_size=2048)
    document = on_disk(tmp_path, zero_document)
    answered = run_driver(write_scenario(wide, 2, handler=HANDLER, document=document, waves=copy.deepcopy([GREEDY])), 2)
    expected = run_reference(wide, GREEDY)
    names = [item["id"] for item in GREEDY]
    assert tokens(answered, *names) == {name: expected[name] for name in names}
    shape = shape_of(json.loads((wide / "config.json").read_text()))
    parts = [sum(file.stat().st_size for file in (tmp_path / "parameters").rglob(f"rank{rank}/*")) for rank in range(2)]
    assert min(parts) > 0.98 * 2 * shape.parameters, "all but norms are there, four bytes each over two ranks"
    assert [report["parameter_bytes"] for report in answered["ranks"]] == pytest.approx([2 * shape.parameters] * 2, rel=PLANNED_WITHIN)


def test_a_disk_without_its_operation_is_refused_before_weights_are_read(model, write_scenario, ranks, zero_document, tmp_path):
    if zero.has_disk_operation():
        pytest.skip("DeepSpeed's operations for it are here")
    ranks.start("load", write_scenario(model, 1, handler=HANDLER, document=on_disk(tmp_path, zero_document)), 1)
    assert ranks.words("loaded", 0).startswith(
        "ModelRefusedError: parameters on disk need DeepSpeed's operations async_io and pin_memory, "
    )


@pytest.fixture(scope="module", params=["Int8", "Int4"])
def weights(request):
    return request.param


@pytest.fixture(scope="module")
def small(weights, model, write_scenario, run_driver, zero_document):
    """Answers of two ranks with small weights."""
    document = zero_document(weights=weights)
    return run_driver(write_scenario(model, 2, handler=HANDLER, document=document, waves=copy.deepcopy([FORCED])), 2)


FORCED = [
    {"id": f"f{index}", "prompt": [(index * 7 + place * 13) % 512 for place in range(9)], "sampling": {"max_tokens": 1, "logprobs": 20}}
    for index in range(8)
]


def rounded(weight, bits, group):
    """Return a weight as small ones give it back: per group of columns, the nearest of 2^bits steps from its minimum to its maximum."""
    rows, columns = weight.shape
    grouped = weight.reshape(rows, columns // group, group)
    least, most = grouped.amin(-1, keepdim=True), grouped.amax(-1, keepdim=True)
    step = (most - least) / (2**bits - 1)
    return (((grouped - least) / step).round() * step + least).reshape(rows, columns)


def log_probabilities(model, bits=None):
    plain = transformers.AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
    if bits is not None:
        with torch.no_grad():
            for module in plain.modules():
                if isinstance(module, (torch.nn.Linear, torch.nn.Embedding)):
                    module.weight.copy_(rounded(module.weight, bits, 64))
    with torch.inference_mode():
        return {item["id"]: plain(torch.tensor([item["prompt"]])).logits[0, -1].log_softmax(-1) for item in FORCED}


def distances(small, log_probabilities):
    """How far each told log-probability is from the one here of the same token."""
    return [
        abs(value - float(log_probabilities[name][token]))
        for name, result in small["results"].items()
        for token, value in result["logprobs"][0]["top"]
    ]


def test_small_weights_are_as_far_off_as_their_steps_make_them(small, weights, model):
    bits = {"Int8": 8, "Int4": 4}[weights]
    as_rounded, from_full = distances(small, log_probabilities(model, bits)), distances(small, log_probabilities(model))
    print(f"{weights}: from weights rounded alike {max(as_rounded):.2e}, from full ones {max(from_full):.3f}")
    assert max(as_rounded) < AS_ROUNDED
    assert max(from_full) < LOGITS_WITHIN[weights]
    assert max(from_full) > 10 * AS_ROUNDED, "the weights are small"


def test_small_weights_take_what_is_planned(small, weights, model):
    shape = shape_of(json.loads((model / "config.json").read_text()))
    planned = part_bytes(shape, Split("ZeroInference", replicas=2), Load(64, 4, "float32", weights=weights))
    assert [report["parameter_bytes"] for report in small["ranks"]] == pytest.approx([planned] * 2, rel=PLANNED_WITHIN)
    assert planned < {"Int8": 0.3, "Int4": 0.17}[weights] * 4 * shape.parameters / 2
