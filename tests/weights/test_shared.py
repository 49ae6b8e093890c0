"""A directory that objects share: looked at without a word to the source, and removed with its last user."""

from __future__ import annotations

import fcntl
import json
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from lmd_worker.errors import FetchError, SettingsError
from lmd_worker.weights import shared
from lmd_worker.weights.fetch import Fetched
from lmd_worker.weights.place import Place

Bring = Callable[..., Fetched]
A, B = "prod.a", "prod.b"


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_a_whole_directory_is_seen_without_asking_the_hub(hub, bring: Bring, tmp_path: Path) -> None:
    brought = bring(hub.order(tmp_path / "model", user=A))
    hub.faults()
    assert bring(hub.order(tmp_path / "model", bring=False)) == brought
    assert hub.seen() == []


@pytest.mark.parametrize("spoil", ["nothing there", "a file is short", "of another source", "no marker"])
def test_what_is_not_whole_is_refused_with_the_way_out(hub, bring: Bring, tmp_path: Path, spoil: str) -> None:
    into = tmp_path / "model"
    if spoil != "nothing there":
        bring(hub.order(into))
    if spoil == "a file is short":
        (into / "config.json").write_bytes(b"{")
    if spoil == "no marker":
        (into / ".lmd-weights.json").unlink()
    order = hub.order(into, bring=False)
    if spoil == "of another source":
        order = order.model_copy(update={"source": order.source.model_copy(update={"revision": "other"})})
    hub.faults()
    with pytest.raises(FetchError, match="delete the object's Job") as caught:
        bring(order)
    assert caught.value.reason == "CacheIncomplete"
    assert hub.seen() == []


def test_a_digest_that_the_cache_does_not_have_is_refused_and_named(hub, bring: Bring, tmp_path: Path) -> None:
    bring(hub.order(tmp_path / "model"))
    with pytest.raises(FetchError, match=r"config\.json") as caught:
        bring(hub.order(tmp_path / "model", bring=False, sha256={"config.json": "0" * 64}))
    assert caught.value.reason == "DigestMismatch"


def test_it_stays_as_long_as_anybody_uses_it(hub, bring: Bring, tmp_path: Path) -> None:
    into = tmp_path / "model"
    for user in (A, B):
        bring(hub.order(into, user=user))
    assert shared.remove(hub.order(into, user=A)) == (False, 1)
    assert bring(hub.order(into, bring=False)).revision
    assert shared.remove(hub.order(into, user=A)) == (False, 1), "a second time changes nothing"
    assert shared.remove(hub.order(into, user=B)) == (True, 0)
    assert names(tmp_path) == {".model.lock"}


def test_what_a_fetch_left_half_is_removed_too(hub, tmp_path: Path) -> None:
    place = Place(tmp_path / "model")
    place.partial.mkdir()
    (place.partial / "model.safetensors.part").write_bytes(b"x")
    assert shared.remove(hub.order(tmp_path / "model", user=A)) == (True, 0)
    assert names(tmp_path) == {".model.lock"}


@pytest.mark.parametrize("count", range(5))
def test_a_removal_that_is_killed_leaves_nothing_that_looks_whole_and_goes_on(hub, bring: Bring, tmp_path: Path, count: int) -> None:
    into = tmp_path / "model"
    order = hub.order(into, user=A)
    bring(order)
    place = Place(into)
    for step, _ in zip(place.remove(), range(count), strict=False):
        step()
    assert place.marker() is None or count <= 1, "whole until it is renamed"
    assert shared.remove(order) == (True, 0)
    assert names(tmp_path) == {".model.lock"}


def test_a_removal_waits_for_the_fetch_and_then_leaves_what_it_brought(hub, bring: Bring, tmp_path: Path) -> None:
    into = tmp_path / "model"
    bring(hub.order(into, user=A))
    done: list[tuple[bool, int]] = []
    with (tmp_path / ".model.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        removal = threading.Thread(target=lambda: done.append(shared.remove(hub.order(into, user=A))))
        removal.start()
        Place(into).note_user(B)  # what the holder of the lock does
        assert not done
    removal.join(30)
    assert done == [(False, 1)]
    assert bring(hub.order(into, bring=False)).revision


def test_an_order_without_a_user_removes_nothing(hub, bring: Bring, tmp_path: Path) -> None:
    bring(hub.order(tmp_path / "model"))
    with pytest.raises(SettingsError, match="different versions"):
        shared.remove(hub.order(tmp_path / "model"))
    assert (tmp_path / "model").is_dir()


def test_the_command_leaves_its_last_words(hub, bring: Bring, tmp_path: Path) -> None:
    order = hub.order(tmp_path / "model", user=A)
    bring(order)
    (tmp_path / "source.json").write_text(order.model_dump_json())
    words = tmp_path / "last-words"
    variables = {"LMD_SOURCE_FILE": str(tmp_path / "source.json"), "LMD_TERMINATION_MESSAGE_PATH": str(words)}
    done = subprocess.run([sys.executable, "-m", "lmd_worker", "remove"], env=variables, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(words.read_text()) == {"removed": True, "users": 0}
    (tmp_path / "source.json").write_text("{}")
    assert shared.run(variables, words) == 1
    assert "different versions" in words.read_text()
