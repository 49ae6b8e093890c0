"""Who is in the group."""

import subprocess
import sys

import pytest

from lmd_worker import cores, ranks
from lmd_worker.errors import RankError


def test_one_process_has_no_process_group(make_model_directory, make_settings, monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    brief = []
    monkeypatch.setattr(cores, "let_brief_threads_in", lambda: brief.append("let in"))
    group = ranks.join(make_settings(make_model_directory(), strategy="None"))
    assert brief == ["let in"]
    assert (group.rank, group.size, str(group.device), group.control) == (0, 1, "cpu", None)
    assert group.gather_text("words") == ["words"]
    group.barrier()


def test_another_number_of_ranks_than_the_degree_is_refused(make_model_directory, make_settings, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    with pytest.raises(RankError, match="Rank 1: the launcher started 2 ranks, but the tensor-parallel degree is 3"):
        ranks.join(make_settings(make_model_directory(), degree=3))


def test_ranks_are_counted_over_all_stages(make_model_directory, make_settings, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "4")
    with pytest.raises(RankError, match="the launcher started 4 ranks, but the tensor-parallel degree is 3 and the pipeline's 2"):
        ranks.join(make_settings(make_model_directory(), strategy="PipelineTensor", degree=6, pipeline=2))


def test_a_world_size_that_is_no_number_is_refused(make_model_directory, make_settings, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "two")
    with pytest.raises(RankError, match="WORLD_SIZE is 'two' in the environment, not a number"):
        ranks.join(make_settings(make_model_directory()))


def test_importing_ranks_loads_no_torch():
    code = "import sys, lmd_worker.ranks, lmd_worker.loading; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
