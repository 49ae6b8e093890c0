"""Families under strategies: tokens and scores equal those of one process, or there is a refusal that says why.

One start of the ranks serves many models, one after the other. `make matrix` (LMD_MATRIX=1) runs every family of docs/families.md under
every strategy and writes that table anew; the tests of every day run a few of each kind.
"""

import json
import os
from pathlib import Path

import families_table
import pytest
from tiny_families import FAMILIES

from lmd_operator.planning.cutting import Split, heads_of_rank, held
from lmd_operator.planning.families import static_reason
from lmd_operator.planning.shapes import BYTES
from lmd_operator.planning.tensors import shape_of
from lmd_worker.strategies import families

pytestmark = pytest.mark.model

HERE = Path(__file__).parent
IS_WHOLE = bool(os.environ.get("LMD_MATRIX"))
EVERY_DAY = {
    "DeepSpeed": ["llama, 3 key-value heads", "gpt_neox", "bloom"],
    "Accelerate": ["llama, tied", "gpt2", "mixtral"],
    "Expert": ["gpt_oss", "mixtral", "qwen3_moe"],
    "Pipeline": ["llama, tied", "gpt_oss, short window", "qwen3"],
    "PipelineTensor": ["llama", "mixtral", "qwen3"],
    "Tensor": ["llama, odd sizes", "phi3", "gpt_neox", "mixtral"],
    "ZeroInference": ["llama, tied", "gpt_neox", "gpt2", "mixtral"],
}
CASES = [(family, strategy) for strategy, few in EVERY_DAY.items() for family in (FAMILIES if IS_WHOLE else few)]
RANKS = {**dict.fromkeys(EVERY_DAY, 2), "PipelineTensor": 4}
STAGES = {"Pipeline": 2, "PipelineTensor": 2}
TOLERANCE = 1e-3
OTHERS = ("Strategy DeepSpeed cuts", "Strategy Pipeline cuts")
PLANNED_WITHIN = 0.02
"""How far the bytes of a rank may be from those that `lmd plan` counts."""


@pytest.fixture(scope="module")
def results(tmp_path_factory, run_ranks, zero_document):
    """What came of every case, by family and strategy."""
    found = {}
    for degree in sorted(set(RANKS.values())):
        directory = tmp_path_factory.mktemp("matrix")
        cases = [{"family": family, "strategy": strategy} for family, strategy in CASES if RANKS[strategy] == degree]
        (directory / "cases.json").write_text(json.dumps(cases))
        (directory / "zero.json").write_text(json.dumps(zero_document()))
        command = [str(HERE / "matrix_ranks.py"), str(directory / "cases.json"), str(directory / "out.json")]
        run_ranks(command, degree, directory / "log", LMD_MATRIX_MODELS=str(directory), PYTHONPATH=str(HERE))
        found.update({(result["family"], result["strategy"]): result for result in json.loads((directory / "out.json").read_text())})
    return found


@pytest.mark.parametrize(("family", "strategy"), CASES)
def test_a_family_is_computed_as_in_one_process_or_refused(results, family, strategy):
    result = results[family, strategy]
    if not is_served(family, strategy):
        assert result["refused"].startswith("ModelRefusedError: ")
        assert any(words in result["refused"] for words in ("Use strategy ", *OTHERS)), "it says what would work"
        return
    assert "refused" not in result, result["refused"]
    assert [answer["tokens"] for answer in result["made"]] == [answer["tokens"] for answer in result["expected"]]
    for made, expected in zip(result["made"], result["expected"], strict=True):
        assert made["scores"] == pytest.approx(expected["scores"], abs=TOLERANCE)


@pytest.mark.parametrize(("family", "strategy"), [case for case in CASES if case[1] in families.COLUMNS])
def test_every_rank_holds_and_computes_what_is_planned(results, family, strategy):
    result = results[family, strategy]
    if "refused" in result:
        return
    shape, stages = shape_of(result["config"]), STAGES.get(strategy, 1)
    tensor = RANKS[strategy] // stages
    split = Split(strategy, tensor=tensor, pipeline=stages, expert=tensor if strategy == "Expert" else 1)
    if strategy == "ZeroInference":
        tensor, split = 1, Split(strategy, replicas=RANKS[strategy])
    predicted = [held(shape, split, stage, rank) * BYTES["float32"] for stage in range(stages) for rank in range(RANKS[strategy] // stages)]
    assert result["bytes"] == pytest.approx(predicted, rel=PLANNED_WITHIN)
    assert max(heads for heads, _ in result["heads"]) == heads_of_rank(shape, split)[0]
    assert max(heads for _, heads in result["heads"]) == heads_of_rank(shape, split)[1]


@pytest.mark.parametrize(("family", "strategy"), CASES)
def test_the_scheduler_is_the_one_that_is_planned(results, family, strategy):
    result = results[family, strategy]
    if "refused" not in result:
        assert (result["scheduler"] == "Static") == bool(static_reason(shape_of(result["config"]), strategy, RANKS[strategy])), result[
            "reason"
        ]


@pytest.mark.skipif(not IS_WHOLE, reason="LMD_MATRIX=1 runs every family and writes docs/families.md")
def test_the_table_is_written(results):
    families_table.FILE.write_text(families_table.text(results))


def is_served(family: str, strategy: str) -> bool:
    """Whether the worker's own list says so; what is unusual about a family can be why not."""
    if strategy == "Accelerate":
        return family.partition(",")[0] not in families.COLUMNS["Expert"].right
    column = families.COLUMNS[strategy]
    unusual = {
        ("falcon, old", "DeepSpeed"),
        ("gpt_neox, tied", "Tensor"),
        ("gpt_oss, tied", "Expert"),
        ("llama, 3 key-value heads", "PipelineTensor"),
        ("llama, 3 key-value heads", "Tensor"),
    }
    return family.partition(",")[0] in column.right and (family, strategy) not in unusual


def test_every_strategy_that_moves_or_cuts_weights_is_here():
    assert set(EVERY_DAY) == {*families.COLUMNS, "Accelerate"}


def test_there_is_a_tiny_model_of_every_family():
    assert {family.partition(",")[0] for family in FAMILIES} == set(families_table.known())
