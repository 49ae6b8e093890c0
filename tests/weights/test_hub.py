"""Fetching from a hub: what arrives, what is tried again, what is refused, and what a kill leaves."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import requests

from lmd_worker.errors import FetchError
from lmd_worker.weights import arrival, place
from lmd_worker.weights.fetch import Fetched
from lmd_worker.weights.place import MARKER, Place
from lmd_worker.weights.progress import Meter

COMMIT = "c0ffee" * 6 + "abcd"
Bring = Callable[..., Fetched]


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != MARKER}


def wanted(hub) -> dict[str, bytes]:
    folder = hub.folder / "acme/small"
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.suffix in (".json", ".safetensors")}


@pytest.fixture(autouse=True)
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arrival, "PART_BYTES", 50_000)


def test_a_repository_arrives_whole_at_its_commit_and_nothing_else_of_it(hub, bring: Bring, tmp_path: Path) -> None:
    fetched = bring(hub.order(tmp_path / "model"))
    assert fetched.revision == COMMIT
    assert contents(tmp_path / "model") == wanted(hub)
    assert {path.name for path in tmp_path.iterdir()} == {"model", ".model.lock"}


def test_a_model_that_is_there_is_not_fetched_again(hub, bring: Bring, tmp_path: Path) -> None:
    bring(hub.order(tmp_path / "model"))
    hub.faults()
    bring(hub.order(tmp_path / "model"))
    asked = {entry["path"].rpartition("/")[2] for entry in hub.seen()}
    assert asked == {"main", "model.safetensors.index.json"}


def test_a_pinned_model_that_is_there_asks_nobody(hub, bring: Bring, tmp_path: Path) -> None:
    bring(hub.order(tmp_path / "model", revision=COMMIT))
    hub.faults()
    bring(hub.order(tmp_path / "model", revision=COMMIT))
    assert hub.seen() == []


def test_a_branch_that_moved_replaces_the_model_as_a_whole(hub, bring: Bring, tmp_path: Path) -> None:
    bring(hub.order(tmp_path / "model"))
    hub.faults(commit="d" * 40)
    assert bring(hub.order(tmp_path / "model")).revision == "d" * 40
    assert contents(tmp_path / "model") == wanted(hub)


def test_what_is_in_a_shared_cache_is_not_replaced_under_its_readers(hub, bring: Bring, tmp_path: Path) -> None:
    bring(hub.order(tmp_path / "model", refresh=False))
    hub.faults(commit="d" * 40)
    assert bring(hub.order(tmp_path / "model", refresh=False)).revision == COMMIT
    assert hub.seen() == []


def test_a_model_that_is_there_serves_when_the_hub_is_down(hub, bring: Bring, tmp_path: Path) -> None:
    bring(hub.order(tmp_path / "model"))
    hub.faults(fail=[[503, 100]])
    assert bring(hub.order(tmp_path / "model")).revision == COMMIT


@pytest.mark.parametrize(
    "faults",
    [
        pytest.param({"fail": [[429, 1, 0], [503, 1], [500, 1]]}, id="refusals that pass"),
        pytest.param({"cut_after": 30_000, "cuts": 12}, id="connections that are cut"),
        pytest.param({"expire": True}, id="a signed address that expires"),
    ],
)
def test_what_passes_is_tried_again(hub, bring: Bring, tmp_path: Path, faults) -> None:
    hub.faults(**faults)
    bring(hub.order(tmp_path / "model"))
    assert contents(tmp_path / "model") == wanted(hub)


def test_a_wait_that_the_hub_asks_for_is_kept(hub, bring: Bring, tmp_path: Path) -> None:
    hub.faults(fail=[[429, 1, 1]])
    begun = time.monotonic()
    bring(hub.order(tmp_path / "model"))
    assert time.monotonic() - begun >= 1


@pytest.mark.parametrize("file", ["model-00002-of-00002.safetensors"])
def test_a_flipped_bit_is_refused_and_named(hub, bring: Bring, tmp_path: Path, file: str) -> None:
    hub.faults(flip=file)
    with pytest.raises(FetchError, match=file) as caught:
        bring(hub.order(tmp_path / "model"))
    assert caught.value.reason == "DigestMismatch"
    assert not (tmp_path / "model").exists()
    hub.faults()
    bring(hub.order(tmp_path / "model"))
    assert contents(tmp_path / "model") == wanted(hub)


def test_a_flipped_bit_on_our_disk_is_fetched_once_more_and_not_blamed_on_the_hub(hub, bring: Bring, tmp_path: Path) -> None:
    hub.faults(flip="model-00002-of-00002.safetensors")
    with pytest.raises(FetchError):
        bring(hub.order(tmp_path / "model"))
    part = tmp_path / ".model.partial" / "model-00001-of-00002.safetensors"
    data = bytearray(part.read_bytes())
    data[-5] ^= 1
    part.write_bytes(data)
    hub.faults()
    bring(hub.order(tmp_path / "model"))
    assert contents(tmp_path / "model") == wanted(hub)


def test_the_users_digests_are_checked_too(hub, bring: Bring, tmp_path: Path) -> None:
    with pytest.raises(FetchError, match=r"config\.json") as caught:
        bring(hub.order(tmp_path / "model", sha256={"config.json": "0" * 64}))
    assert caught.value.reason == "DigestMismatch"
    with pytest.raises(FetchError, match=r"absent\.json"):
        bring(hub.order(tmp_path / "model", sha256={"absent.json": "0" * 64}))


@pytest.mark.parametrize(
    ("order", "reason"),
    [
        ({"repository": "acme/absent"}, "SourceNotFound"),
        ({"revision": "gone"}, "RevisionNotFound"),
    ],
)
def test_what_is_not_there_is_told_apart(hub, bring: Bring, tmp_path: Path, order, reason: str) -> None:
    with pytest.raises(FetchError) as caught:
        bring(hub.order(tmp_path / "model", **order))
    assert caught.value.reason == reason


def test_a_hub_that_stays_away_is_given_up_with_a_sentence(hub, bring: Bring, tmp_path: Path) -> None:
    hub.faults(fail=[[503, 1000]])
    with pytest.raises(FetchError, match="answered 503") as caught:
        bring(hub.order(tmp_path / "model"))
    assert caught.value.reason == "EndpointUnreachable"


def test_too_little_space_is_told_before_anything_is_fetched(hub, bring: Bring, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lmd_worker.weights.fetch.SPACE_MARGIN_BYTES", 2**60)
    with pytest.raises(FetchError, match="free") as caught:
        bring(hub.order(tmp_path / "model"))
    assert caught.value.reason == "NoSpace"
    assert not any("safetensors" in entry["path"] and "index" not in entry["path"] for entry in hub.seen())


def test_a_token_opens_a_private_repository_and_does_not_reach_the_store(hub, start_hub, bring: Bring, tmp_path: Path) -> None:
    private = start_hub(hub.folder, "--token", "hf_secret")
    bring(private.order(tmp_path / "model"), {"HF_TOKEN": "hf_secret"})
    assert contents(tmp_path / "model") == wanted(hub)
    for given, reason in (({}, "TokenMissing"), ({"HF_TOKEN": "hf_other"}, "SourceForbidden")):
        with pytest.raises(FetchError) as caught:
            bring(private.order(tmp_path / "other"), given)
        assert caught.value.reason == reason
        assert "hf_" not in str(caught.value)


@pytest.mark.model
def test_a_fetch_killed_ten_times_completes_and_does_not_begin_anew(hub, start_fetch, tmp_path: Path) -> None:
    """Kills at moments of a fixed random sequence, each after some bytes have come."""
    moments = random.Random(7)
    order = hub.order(tmp_path / "model")
    for _ in range(10):
        hub.faults(slow=0.02)
        process = start_fetch(order)
        until = moments.randrange(1, 6)
        while len([entry for entry in hub.seen() if entry["path"].startswith("/cdn")]) < until and process.poll() is None:
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.wait()
    hub.faults()
    process = start_fetch(order)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 0, output
    assert contents(tmp_path / "model") == wanted(hub)
    assert json.loads((tmp_path / "last-words").read_text())["revision"] == COMMIT


def test_two_fetches_of_one_directory_fetch_once(hub, start_fetch, tmp_path: Path) -> None:
    hub.faults(slow=0.01)
    both = [start_fetch(hub.order(tmp_path / "model")) for _ in range(2)]
    outputs = [process.communicate(timeout=60)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0], outputs
    ranges = [(entry["path"], entry["range"]) for entry in hub.seen() if entry["path"].startswith("/cdn")]
    assert len(ranges) == len(set(ranges)) == 2


def test_a_kill_between_any_two_steps_of_the_finish_leaves_no_model_or_a_whole_one(
    hub, bring: Bring, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(BaseException):
        pass

    original = Place.finish
    steps = 0

    def ending_after(count: int):
        def finish(self, marker):
            nonlocal steps
            for number, step in enumerate(original(self, marker)):
                if number == count:
                    raise Killed
                yield step
                steps = max(steps, number + 1)

        return finish

    count = 0
    while True:
        target = tmp_path / f"case-{count}" / "model"
        bring(hub.order(target))  # an older revision is there already
        hub.faults(commit="d" * 40)
        monkeypatch.setattr(Place, "finish", ending_after(count))
        try:
            bring(hub.order(target))
            ended = True
        except Killed:
            ended = False
        monkeypatch.setattr(Place, "finish", original)
        marker = place.Place(target).marker()
        assert marker is not None or not target.exists()
        if marker is not None:
            assert wanted(hub).items() <= contents(target).items()
        assert bring(hub.order(target)).revision == "d" * 40
        assert contents(target) == wanted(hub)
        assert {path.name for path in target.parent.iterdir()} == {"model", ".model.lock"}
        hub.faults()
        count += 1
        if ended:
            break
    assert steps == count - 1 >= 12


def test_progress_is_told_to_whoever_asks(hub, start_fetch, tmp_path: Path, free_port: int) -> None:
    hub.faults(slow=0.1)
    process = start_fetch(hub.order(tmp_path / "model"), LMD_PROGRESS_PORT=str(free_port))
    seen = []
    while process.poll() is None:
        try:
            seen.append(requests.get(f"http://127.0.0.1:{free_port}/progress", timeout=2).json())
        except requests.exceptions.ConnectionError:
            time.sleep(0.02)
    moving = [told for told in seen if told["total"] and told["bytes"]]
    assert moving
    assert moving[-1]["bytes"] <= moving[-1]["total"] == sum(map(len, wanted(hub).values()))
    assert any(told["bytes_per_second"] > 0 for told in moving)


def test_speed_and_rest_follow_from_what_came() -> None:
    now = [0.0]
    meter = Meter(lambda: now[0])
    meter.begin(1000, 200)
    now[0] = 2.0
    meter.add(200)
    told = meter.now()
    assert (told.bytes, told.bytes_per_second, told.remaining_seconds) == (400, 100, 6)
    now[0] = 60.0
    assert meter.now().remaining_seconds is None


def test_nothing_secret_is_in_what_a_fetch_leaves(hub, start_hub, start_fetch, tmp_path: Path) -> None:
    private = start_hub(hub.folder, "--token", "hf_verysecret")
    for token in ("hf_verysecret", "hf_wrongsecret"):
        process = start_fetch(private.order(tmp_path / token[:6]), HF_TOKEN=token)
        arguments = subprocess.run(["ps", "-o", "args=", "-p", str(process.pid)], capture_output=True, text=True, check=False).stdout
        output, _ = process.communicate(timeout=60)
        assert "wrongsecret" not in (told := output + arguments + (tmp_path / "last-words").read_text())
        assert "verysecret" not in told
    assert process.returncode == 1
