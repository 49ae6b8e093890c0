"""A converted model appears whole or not at all."""

import os

import pytest

from lmd_worker.errors import ModelRefusedError
from lmd_worker.weights import convert


def test_a_failed_run_leaves_nothing(tmp_path):
    target = tmp_path / "model"

    def fail():
        with convert._appearing(target) as partial:
            (partial / "config.json").write_text("{}")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert list(tmp_path.iterdir()) == []


def test_a_good_run_takes_the_name_at_the_end(tmp_path):
    target = tmp_path / "models" / "model"
    with convert._appearing(target) as partial:
        (partial / "config.json").write_text("{}")
        assert not target.exists()
    assert [path.name for path in target.iterdir()] == ["config.json"]
    assert [path.name for path in target.parent.iterdir()] == ["model"]


def test_what_a_killed_run_left_is_removed_and_a_living_one_is_not(tmp_path):
    dead, living = tmp_path / ".model.partial-999999999", tmp_path / f".model.partial-{os.getppid()}"
    dead.mkdir()
    living.mkdir()
    with convert._appearing(tmp_path / "model"):
        pass
    assert not dead.exists()
    assert living.exists()


def test_a_second_run_finds_the_model_and_returns(make_model_directory, capsys):
    directory = make_model_directory()
    convert.convert("smollm2-135m-instruct", directory)
    assert capsys.readouterr().out == f"step 4/4 smollm2-135m-instruct is in {directory}\n"


def test_a_directory_with_something_else_is_refused(tmp_path):
    with pytest.raises(ModelRefusedError, match=r"there is no config\.json"):
        convert.convert("smollm2-135m-instruct", tmp_path)


def test_a_missing_package_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(convert.SOURCES, "other", convert.Source("no_such_package", "a.gguf", ()))
    with pytest.raises(ModelRefusedError, match=r"the package no_such_package with a\.gguf is not installed"):
        convert.convert("other", tmp_path / "model")
