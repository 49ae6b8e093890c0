"""Which files of a source make a model directory. Pure: names and sizes in, a choice or a refusal out.

Taken are safetensors, configuration and tokenizer files of the top directory. Pickles can run code when they are read; a
source that has its weights only in that form is refused.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from lmd_worker.errors import FetchError

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
CONFIG = "config.json"
LARGEST_TEXT_BYTES = 256 * 2**20
"""A configuration or tokenizer file above this is a mistake or an attack; the largest known tokenizer.json has 33 MiB."""
MOST_FILES = 10_000

_TAKEN = (".safetensors", ".json", ".jinja", ".model", ".tiktoken", "merges.txt", "vocab.txt", "vocab.bpe")
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")
_OTHER_WEIGHTS = (".gguf", ".h5", ".msgpack", ".onnx")
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+-]{0,254}")


@dataclass(frozen=True, slots=True)
class Digest:
    """What a file's bytes must hash to, in lower-case hex. `git` is git's blob hash, SHA-1 over a header and the bytes."""

    algorithm: Literal["sha256", "git"]
    value: str


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """One file of a source. `size` is in bytes; `version` changes when the bytes do, empty where the source has no such mark."""

    name: str
    size: int
    digests: tuple[Digest, ...] = ()
    version: str = ""

    @property
    def is_weights(self) -> bool:
        """Whether it holds tensors."""
        return self.name.endswith(".safetensors")


@dataclass(frozen=True, slots=True)
class Listing:
    """The files of a source at one moment. `revision` names that moment: a commit, or a digest over names and versions."""

    revision: str
    files: tuple[RemoteFile, ...]


def candidates(listing: Listing, origin: str, *, remote_code: bool) -> tuple[RemoteFile, ...]:
    """Return the files that may belong to the model directory. Raises `FetchError` when there can be no model among them."""
    suffixes = (*_TAKEN, ".py") if remote_code else _TAKEN
    if len(listing.files) > MOST_FILES:
        raise FetchError("SourceInvalid", f"{origin} lists {len(listing.files)} files; a model directory has at most {MOST_FILES}.")
    _refuse_paths_that_leave(listing.files, origin)
    top = [file for file in listing.files if "/" not in file.name and not file.name.startswith(".")]
    taken = [file for file in top if file.name.endswith(suffixes)]
    names = [file.name for file in taken]
    for file in taken:
        if not _NAME.fullmatch(file.name):
            raise FetchError(
                "SourceInvalid", f"{origin} has a file called {file.name!a}; rename it to letters, digits, '.', '_', '+' and '-'."
            )
        if not file.is_weights and file.size > LARGEST_TEXT_BYTES:
            raise FetchError("SourceInvalid", f"{file.name} of {origin} has {file.size} bytes; no configuration file is that large.")
    if len(set(names)) < len(names):
        raise FetchError("SourceInvalid", f"{origin} lists {next(name for name in names if names.count(name) > 1)} twice.")
    if not any(file.is_weights for file in taken):
        _refuse_other_weights(top, origin)
    if CONFIG not in names:
        raise FetchError("SourceInvalid", f"{origin} has no config.json; name a directory in the Hugging Face layout.")
    return tuple(sorted(taken, key=lambda file: (file.is_weights, file.name)))


def shards(files: Sequence[RemoteFile], index: bytes | None, origin: str) -> tuple[RemoteFile, ...]:
    """Return the files to take: of several sets of weights the one that the index names, or else model.safetensors.

    Raises `FetchError` when the index cannot be read or names a file that is not there.
    """
    weights = {file.name for file in files if file.is_weights}
    if index is not None:
        wanted = _indexed(index, origin)
        if missing := sorted(wanted - weights):
            raise FetchError("WeightsTruncated", f"{origin} lacks {missing[0]}, which {INDEX} names; upload it, or take another revision.")
    else:
        wanted = {SINGLE} if SINGLE in weights else weights
    return tuple(file for file in files if not file.is_weights or file.name in wanted)


def with_digests(files: Iterable[RemoteFile], sha256: Mapping[str, str], origin: str) -> tuple[RemoteFile, ...]:
    """Return the files with the user's digests beside the source's own. Raises `FetchError` for a digest of a file that is not taken."""
    found = tuple(files)
    if missing := sorted(set(sha256) - {file.name for file in found}):
        raise FetchError(
            "SourceNotFound",
            f"{origin} has no file {missing[0]!a} that is served, but spec.model.verify.sha256 names it; remove it there.",
        )
    return tuple(
        RemoteFile(file.name, file.size, (*file.digests, Digest("sha256", sha256[file.name])), file.version)
        if file.name in sha256
        else file
        for file in found
    )


def _indexed(index: bytes, origin: str) -> set[str]:
    try:
        names = set(json.loads(index)["weight_map"].values())
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise FetchError("SourceInvalid", f"{INDEX} of {origin} cannot be read: {type(error).__name__}. Upload it again.") from error
    for name in names:
        if not isinstance(name, str) or not _NAME.fullmatch(name) or not name.endswith(".safetensors"):
            raise FetchError("SourceInvalid", f"{INDEX} of {origin} names {name!a}, which is no safetensors file beside it.")
    return names


def _refuse_paths_that_leave(files: Iterable[RemoteFile], origin: str) -> None:
    for file in files:
        if file.name.startswith("/") or "\\" in file.name or ".." in file.name.split("/") or any(ord(letter) < 32 for letter in file.name):
            raise FetchError("SourceInvalid", f"{origin} lists {file.name!a}, which is no path inside it; such a source is not trusted.")


def _refuse_other_weights(files: Iterable[RemoteFile], origin: str) -> None:
    names = sorted(file.name for file in files)
    pickles = [name for name in names if name.endswith(_PICKLES)]
    if pickles:
        raise FetchError(
            "PickleRefused",
            f"{origin} has its weights only as pickles ({pickles[0]!a}), which can run code when read; "
            "convert them to safetensors, or take a revision that has them.",
        )
    others = [name for name in names if name.endswith(_OTHER_WEIGHTS)]
    if others:
        raise FetchError("SourceInvalid", f"{origin} has no safetensors, only {others[0]!a}; take a repository that has them.")
    raise FetchError("SourceInvalid", f"{origin} has no safetensors in its top directory; name the directory that holds the model.")
