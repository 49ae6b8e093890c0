"""What a source may try: each is refused in one sentence, with a reason, and nothing is written outside the target."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmd_worker.errors import FetchError, SettingsError
from lmd_worker.weights import headers, listing, source
from lmd_worker.weights.listing import Digest, Listing, RemoteFile


def files(*names: str, size: int = 10) -> tuple[RemoteFile, ...]:
    return tuple(RemoteFile(name, size) for name in names)


MODEL = ("config.json", "model.safetensors")

LISTINGS = {
    "a path upwards": (files(*MODEL, "../evil.json"), "SourceInvalid"),
    "a path upwards in the middle": (files(*MODEL, "a/../../evil.json"), "SourceInvalid"),
    "only dots": (files(*MODEL, ".."), "SourceInvalid"),
    "an absolute path": (files(*MODEL, "/etc/passwd.json"), "SourceInvalid"),
    "a backslash": (files(*MODEL, "..\\evil.json"), "SourceInvalid"),
    "a drive": (files(*MODEL, "C:\\evil.json"), "SourceInvalid"),
    "a newline": (files(*MODEL, "a\nb.json"), "SourceInvalid"),
    "a zero byte": (files(*MODEL, "a\0.json"), "SourceInvalid"),
    "an escape sequence": (files(*MODEL, "a\x1b[2J.json"), "SourceInvalid"),
    "a space": (files(*MODEL, "a b.json"), "SourceInvalid"),
    "letters that look like others": (files(*MODEL, "tоkenizer.json"), "SourceInvalid"),  # noqa: RUF001
    "text from right to left": (files(*MODEL, "\u202egnos.json"), "SourceInvalid"),
    "a name too long": (files(*MODEL, "a" * 300 + ".json"), "SourceInvalid"),
    "a shell's letters": (files(*MODEL, "$(reboot).json"), "SourceInvalid"),
    "a dash in front": (files(*MODEL, "-rf.json"), "SourceInvalid"),
    "a name twice": (files(*MODEL, "config.json"), "SourceInvalid"),
    "no configuration": (files("model.safetensors"), "SourceInvalid"),
    "a configuration of a terabyte": ((RemoteFile("config.json", 2**40), *files("model.safetensors")), "SourceInvalid"),
    "a tokenizer of a gigabyte": ((RemoteFile("tokenizer.json", 2**30), *files(*MODEL)), "SourceInvalid"),
    "pickles only": (files("config.json", "pytorch_model.bin"), "PickleRefused"),
    "pickles of another ending": (files("config.json", "consolidated.00.pth"), "PickleRefused"),
    "pickles of training": (files("config.json", "training_args.pt"), "PickleRefused"),
    "a checkpoint": (files("config.json", "model.ckpt"), "PickleRefused"),
    "a plain pickle": (files("config.json", "model.pkl"), "PickleRefused"),
    "another format": (files("config.json", "model.gguf"), "SourceInvalid"),
    "keras": (files("config.json", "tf_model.h5"), "SourceInvalid"),
    "no weights": (files("config.json", "README.md"), "SourceInvalid"),
    "weights in a folder only": (files("config.json", "sub/model.safetensors"), "SourceInvalid"),
    "nothing": ((), "SourceInvalid"),
    "very many files": (files(*MODEL, *(f"{number}.json" for number in range(10_001))), "SourceInvalid"),
}


@pytest.mark.parametrize("case", LISTINGS)
def test_a_listing_is_refused(case: str) -> None:
    found, reason = LISTINGS[case]
    with pytest.raises(FetchError) as caught:
        listing.candidates(Listing("r", found), "the source", remote_code=False)
    assert caught.value.reason == reason
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 700


INDICES = {
    "no JSON": (b"{", "SourceInvalid"),
    "no map": (b"{}", "SourceInvalid"),
    "a list": (b"[]", "SourceInvalid"),
    "a path upwards": (b'{"weight_map": {"a": "../model.safetensors"}}', "SourceInvalid"),
    "a pickle": (b'{"weight_map": {"a": "pytorch_model.bin"}}', "SourceInvalid"),
    "a number": (b'{"weight_map": {"a": 1}}', "SourceInvalid"),
    "a shard that is not there": (b'{"weight_map": {"a": "other.safetensors"}}', "WeightsTruncated"),
    "depth": (b"[" * 100_000, "SourceInvalid"),
}


@pytest.mark.parametrize("case", INDICES)
def test_an_index_is_refused(case: str) -> None:
    index, reason = INDICES[case]
    with pytest.raises(FetchError) as caught:
        listing.shards(files(*MODEL), index, "the source")
    assert caught.value.reason == reason


def one(**changes: Any) -> dict[str, Any]:
    return {"t": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8], **changes}}


HEADERS: dict[str, tuple[bytes, int, str]] = {
    "no JSON": (b"not json", 8, "SourceInvalid"),
    "a list": (b"[]", 8, "SourceInvalid"),
    "depth": (b"[" * 100_000, 8, "SourceInvalid"),
    "an entry that is no object": (b'{"t": 1}', 8, "SourceInvalid"),
    "an unknown type": (json.dumps(one(dtype="F31")).encode(), 8, "SourceInvalid"),
    "a type that is a number": (json.dumps(one(dtype=4)).encode(), 8, "SourceInvalid"),
    "no shape": (b'{"t": {"dtype": "F32", "data_offsets": [0, 8]}}', 8, "SourceInvalid"),
    "a negative size": (json.dumps(one(shape=[-2])).encode(), 8, "SourceInvalid"),
    "a size that is true": (json.dumps(one(shape=[True, 2])).encode(), 8, "SourceInvalid"),
    "a size beyond all memory": (json.dumps(one(shape=[2**64])).encode(), 8, "SourceInvalid"),
    "one offset": (json.dumps(one(data_offsets=[0])).encode(), 8, "SourceInvalid"),
    "offsets backwards": (json.dumps(one(data_offsets=[8, 0])).encode(), 8, "SourceInvalid"),
    "bytes that do not fit the shape": (json.dumps(one(shape=[3])).encode(), 8, "SourceInvalid"),
    "a gap": (json.dumps(one(data_offsets=[8, 16])).encode(), 16, "SourceInvalid"),
    "an overlap": (json.dumps({**one(), "u": {"dtype": "F32", "shape": [2], "data_offsets": [4, 12]}}).encode(), 12, "SourceInvalid"),
    "bytes of nobody": (json.dumps(one()).encode(), 9, "SourceInvalid"),
    "data cut short": (json.dumps(one()).encode(), 7, "WeightsTruncated"),
}


@pytest.mark.parametrize("case", HEADERS)
def test_a_header_is_refused(case: str) -> None:
    header, data_bytes, reason = HEADERS[case]
    with pytest.raises(FetchError) as caught:
        headers.tensors(header, 8 + len(header) + data_bytes, "model.safetensors")
    assert caught.value.reason == reason


@pytest.mark.parametrize(
    ("first", "size", "reason"),
    [
        (b"", 0, "WeightsTruncated"),
        (b"\xff" * 8, 1000, "SourceInvalid"),
        ((1000).to_bytes(8, "little"), 500, "WeightsTruncated"),
        ((200_000_000).to_bytes(8, "little"), 10**9, "SourceInvalid"),
    ],
)
def test_a_header_length_that_lies_is_refused(first: bytes, size: int, reason: str) -> None:
    with pytest.raises(FetchError) as caught:
        headers.header_length(first, size, "model.safetensors")
    assert caught.value.reason == reason


ANSWERS = {
    "no commit": {"siblings": []},
    "a commit that is a path": {"sha": "../../..", "siblings": []},
    "no files": {"sha": "c" * 40},
    "files that are texts": {"sha": "c" * 40, "siblings": ["config.json"]},
    "a file without size": {"sha": "c" * 40, "siblings": [{"rfilename": "config.json"}]},
    "a size below zero": {"sha": "c" * 40, "siblings": [{"rfilename": "config.json", "size": -1}]},
    "a digest that is none": {"sha": "c" * 40, "siblings": [{"rfilename": "a.json", "size": 1, "lfs": {"sha256": "x", "size": 1}}]},
    "a list": [],
    "a path upwards": {"sha": "c" * 40, "siblings": [{"rfilename": "../../a.json", "size": 1}]},
}


@pytest.mark.parametrize("case", ANSWERS)
def test_an_answer_of_a_hub_is_refused_and_nothing_is_written(hub, bring: Callable[..., Any], tmp_path: Path, case: str) -> None:
    hub.faults(answer=ANSWERS[case])
    with pytest.raises(FetchError) as caught:
        bring(hub.order(tmp_path / "inside" / "model"))
    assert caught.value.reason == "SourceInvalid"
    assert [path.name for path in tmp_path.rglob("*")] == ["inside", ".model.lock"]


ORDERS = {
    "an address with a password": {"source": {"kind": "huggingFace", "repository": "a/b", "endpoint": "http://u:p@host"}, "into": "/m"},
    "a repository upwards": {"source": {"kind": "huggingFace", "repository": "../b"}, "into": "/m"},
    "a relative directory": {"source": {"kind": "directory", "path": "m"}, "into": "/m"},
    "no bucket": {"source": {"kind": "s3", "uri": "s3:///a"}, "into": "/m"},
    "an unknown source": {"source": {"kind": "ftp", "uri": "ftp://a"}, "into": "/m"},
    "an unknown field": {"source": {"kind": "directory", "path": "/m"}, "into": "/m", "token": "x"},
}


@pytest.mark.parametrize("case", ORDERS)
def test_an_order_is_refused(tmp_path: Path, case: str) -> None:
    file = tmp_path / "source.json"
    file.write_text(json.dumps(ORDERS[case]))
    with pytest.raises(SettingsError) as caught:
        source.read(file)
    assert "u:p" not in str(caught.value)


def test_of_several_sets_of_weights_the_indexed_one_is_taken() -> None:
    found = files("config.json", "consolidated.safetensors", "a-1.safetensors", "a-2.safetensors")
    index = json.dumps({"weight_map": {"x": "a-1.safetensors", "y": "a-2.safetensors"}}).encode()
    assert [file.name for file in listing.shards(found, index, "the source")] == ["config.json", "a-1.safetensors", "a-2.safetensors"]
    both = files("config.json", "model.safetensors", "consolidated.safetensors")
    assert [file.name for file in listing.shards(both, None, "the source")] == ["config.json", "model.safetensors"]


def test_code_of_the_model_is_taken_only_when_it_may_run() -> None:
    found = Listing("r", files(*MODEL, "modeling_own.py"))
    assert {file.name for file in listing.candidates(found, "the source", remote_code=False)} == set(MODEL)
    assert {file.name for file in listing.candidates(found, "the source", remote_code=True)} == {*MODEL, "modeling_own.py"}


def test_the_users_digest_stands_beside_the_sources_own() -> None:
    (file,) = listing.with_digests([RemoteFile("a", 1, (Digest("git", "0" * 40),))], {"a": "1" * 64}, "the source")
    assert file.digests == (Digest("git", "0" * 40), Digest("sha256", "1" * 64))


@given(st.text(max_size=80))
def test_no_name_of_a_source_leaves_the_directory(name: str) -> None:
    try:
        taken = listing.candidates(Listing("r", files(*MODEL, name)), "the source", remote_code=True)
    except FetchError:
        return
    root = Path("/target")
    assert all((root / file.name).resolve().parent == root for file in taken)


@given(st.binary(max_size=300), st.integers(0, 400))
def test_any_header_is_read_or_refused(header: bytes, size: int) -> None:
    with contextlib.suppress(FetchError):
        headers.tensors(header, size, "model.safetensors")
