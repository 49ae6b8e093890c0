"""Fetching from a real S3 server, which checks signatures: the Versity gateway over a folder."""

from __future__ import annotations

import os
import random
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import requests
from lmd_plane.binaries import build

from lmd_worker.errors import FetchError
from lmd_worker.weights import arrival
from lmd_worker.weights.fetch import Fetched
from lmd_worker.weights.place import MARKER
from lmd_worker.weights.source import Order

pytestmark = pytest.mark.model
KEYS = {"AWS_ACCESS_KEY_ID": "lmd-key", "AWS_SECRET_ACCESS_KEY": "lmd-verysecret"}
Bring = Callable[..., Fetched]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    """The address of the server and the folder of its bucket."""
    folder = tmp_path_factory.mktemp("s3")
    (folder / "models").mkdir()
    gateway = build(["versitygw"], say=print)["versitygw"]
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    command = [gateway, "--port", f"127.0.0.1:{port}", "--access", KEYS["AWS_ACCESS_KEY_ID"], "--secret", KEYS["AWS_SECRET_ACCESS_KEY"]]
    environment = {"PATH": os.environ["PATH"], "HOME": str(folder)}
    process = subprocess.Popen([*command, "--quiet", "posix", str(folder)], env=environment, stdout=subprocess.DEVNULL)
    url = f"http://127.0.0.1:{port}"
    deadline = time.monotonic() + 60
    while True:
        try:
            requests.get(url, timeout=5)
            break
        except requests.exceptions.ConnectionError:
            if process.poll() is not None or time.monotonic() > deadline:
                raise
            time.sleep(0.1)
    yield url, folder / "models"
    process.terminate()
    process.wait(timeout=30)


@pytest.fixture(autouse=True)
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arrival, "PART_BYTES", 50_000)


def order(store: tuple[str, Path], into: Path, prefix: str, **more: object) -> Order:
    source = {"kind": "s3", "uri": f"s3://models/{prefix}", "endpoint": store[0], "region": "us-east-1"}
    return Order.model_validate({"source": source, "into": str(into), **more})


def wanted(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.suffix in (".json", ".safetensors")}


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != MARKER}


def test_a_prefix_arrives_whole(store, bring: Bring, make_model: Callable[..., Path], tmp_path: Path) -> None:
    folder = make_model(store[1] / "small")
    first = bring(order(store, tmp_path / "model", "small"), KEYS)
    assert contents(tmp_path / "model") == wanted(folder)
    assert bring(order(store, tmp_path / "model", "small/"), KEYS).revision == first.revision


def test_changed_objects_are_another_revision(store, bring: Bring, make_model: Callable[..., Path], tmp_path: Path) -> None:
    folder = make_model(store[1] / "changing")
    first = bring(order(store, tmp_path / "model", "changing"), KEYS)
    requests_before = contents(tmp_path / "model")
    make_model(folder, shard_bytes=310_000)
    second = bring(order(store, tmp_path / "model", "changing"), KEYS)
    assert second.revision != first.revision
    assert contents(tmp_path / "model") == wanted(folder) != requests_before


@pytest.mark.parametrize(
    ("prefix", "keys", "reason"),
    [
        ("absent", KEYS, "SourceNotFound"),
        ("small", {}, "TokenMissing"),
        ("small", {**KEYS, "AWS_SECRET_ACCESS_KEY": "wrongsecret"}, "SourceForbidden"),
        ("small", {**KEYS, "AWS_ACCESS_KEY_ID": "unknown"}, "SourceForbidden"),
    ],
)
def test_what_cannot_be_read_is_told_apart(store, bring: Bring, make_model, tmp_path: Path, prefix: str, keys, reason: str) -> None:
    make_model(store[1] / "small")
    with pytest.raises(FetchError) as caught:
        bring(order(store, tmp_path / "model", prefix), keys)
    assert caught.value.reason == reason
    assert "secret" not in str(caught.value)
    assert not (tmp_path / "model").exists()


def test_a_bucket_that_is_not_there(store, bring: Bring, tmp_path: Path) -> None:
    wrong = order(store, tmp_path / "model", "small").model_dump()
    wrong["source"]["uri"] = "s3://absent-bucket/small"
    with pytest.raises(FetchError) as caught:
        bring(Order.model_validate(wrong), KEYS)
    assert caught.value.reason == "SourceNotFound"


def test_the_users_digest_is_checked(store, bring: Bring, make_model, tmp_path: Path) -> None:
    make_model(store[1] / "small")
    name = "model-00002-of-00002.safetensors"
    with pytest.raises(FetchError, match=name) as caught:
        bring(order(store, tmp_path / "model", "small", sha256={name: "0" * 64}), KEYS)
    assert caught.value.reason == "DigestMismatch"


def test_a_fetch_killed_several_times_completes(store, start_fetch, make_model, tmp_path: Path) -> None:
    folder = make_model(store[1] / "killed", shard_bytes=60_000_000)
    moments = random.Random(3)
    for _ in range(4):
        process = start_fetch(order(store, tmp_path / "model", "killed"), **KEYS)
        until = moments.uniform(0.2, 1.0) * 120_000_000
        while process.poll() is None and sum(part.stat().st_blocks * 512 for part in tmp_path.glob(".model.partial/*.part")) < until:
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.wait()
    process = start_fetch(order(store, tmp_path / "model", "killed"), **KEYS)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 0, output
    assert contents(tmp_path / "model") == wanted(folder)
    assert "verysecret" not in output
