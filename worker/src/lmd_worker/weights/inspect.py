"""`lmd-worker inspect`: what a model is, from its configuration and the headers of its safetensors; no weights are read.

lmd-worker inspect hf:ORGANISATION/NAME[@REVISION] | s3://BUCKET/PREFIX | DIRECTORY [--endpoint URL] [--region NAME] [--json | --outline]
"""

from __future__ import annotations

import argparse
import json
import sys
import threading
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from pydantic import ValidationError

from lmd_worker.errors import FetchError, ModelRefusedError, SettingsError, WorkerError
from lmd_worker.shape import ModelShape
from lmd_worker.weights import headers, listing
from lmd_worker.weights.hub import Hub
from lmd_worker.weights.listing import CONFIG, INDEX, RemoteFile
from lmd_worker.weights.objects import S3
from lmd_worker.weights.outline import outline
from lmd_worker.weights.progress import readable
from lmd_worker.weights.remote import InterruptedReadError, Patience, Remote, patiently
from lmd_worker.weights.source import HUB_TOKEN, PUBLIC_HUB, HubSource, S3Source

LARGEST_CONFIG_BYTES = 10 * 2**20
FIRST_BYTES = 64 * 2**10
"""Read of each shard at once: the header of most, and the length of every one."""


@dataclass(frozen=True, slots=True)
class Facts:
    """What is known of a model without reading its weights. `bytes` are those of the tensors; `experts` is 0 for dense models."""

    revision: str
    family: str
    parameters: int
    bytes: int
    heads: int
    key_value_heads: int
    layers: int
    experts: int
    context_tokens: int
    dtype: str
    quantization: str


class Directory:
    """A local directory, read like a remote one."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def listing(self) -> listing.Listing:
        """Return the files of the directory itself."""
        if not self._path.is_dir():
            raise FetchError("SourceNotFound", f"{self._path} is no directory; name one that holds a model.")
        files = (RemoteFile(path.name, path.stat().st_size) for path in sorted(self._path.iterdir()) if path.is_file())
        return listing.Listing("", tuple(files))

    def read(self, file: RemoteFile, start: int, end: int) -> Iterator[bytes]:
        """Yield a range of one file."""
        with (self._path / file.name).open("rb") as stream:
            stream.seek(start)
            yield stream.read(end - start)


@dataclass(frozen=True, slots=True)
class Read:
    """What was read of a model: its configuration, and the tensors of all its weight files by name."""

    revision: str
    config: Mapping[str, object]
    tensors: Mapping[str, headers.Tensor]
    weight_files: tuple[str, ...]


def inspect(remote: Remote, origin: str, patience: Patience = Patience()) -> Facts:  # noqa: B008 - frozen
    """Return what the files say. Raises `FetchError` or `ModelRefusedError`."""
    return facts_of(read(remote, origin, patience), origin)


def read(remote: Remote, origin: str, patience: Patience = Patience()) -> Read:  # noqa: B008 - frozen
    """Read configuration and headers. Raises `FetchError` or `ModelRefusedError`."""
    found = patiently(remote.listing, patience, threading.Event(), origin)
    files = listing.candidates(found, origin, remote_code=False)
    index = next((file for file in files if file.name == INDEX), None)
    text = _read(remote, index, 0, index.size, patience) if index is not None else None
    weights = [file for file in listing.shards(files, text, origin) if file.is_weights]
    config = _config(remote, next(file for file in files if file.name == CONFIG), origin, patience)
    tensors: dict[str, headers.Tensor] = {}
    for file in weights:
        tensors |= _header(remote, file, patience)
    return Read(found.revision, config, tensors, tuple(file.name for file in weights))


def facts_of(read: Read, origin: str) -> Facts:
    """Return the facts that a configuration and the tensors of all files state. Pure. Raises `ModelRefusedError`."""
    tensors = read.tensors
    shape = ModelShape.of(
        Path(origin),
        read.config,
        names=tensors.keys(),
        weight_files=read.weight_files,
        parameters=sum(tensor.elements for tensor in tensors.values()),
        weight_bytes=sum(tensor.size for tensor in tensors.values()),
    )
    sizes: Counter[str] = Counter()
    for tensor in tensors.values():
        sizes[tensor.dtype] += tensor.size
    return Facts(
        revision=read.revision,
        family=shape.model_type,
        parameters=shape.parameters,
        bytes=shape.weight_bytes,
        heads=shape.heads,
        key_value_heads=shape.key_value_heads,
        layers=shape.layers,
        experts=shape.experts,
        context_tokens=shape.max_positions or 0,
        dtype=sizes.most_common(1)[0][0] if sizes else "",
        quantization=shape.quantization or "",
    )


def main(arguments: Sequence[str], variables: Mapping[str, str]) -> int:
    """Run the command line: 0 when the model could be inspected, 1 with a sentence when not, 2 for a wrong command line."""
    parser = argparse.ArgumentParser(prog="lmd inspect", description="Say what a model is, without fetching its weights.")
    parser.add_argument("source", help="hf:ORGANISATION/NAME[@REVISION], s3://BUCKET/PREFIX or a directory")
    parser.add_argument("--endpoint", help="the address of a mirror or of a store")
    parser.add_argument("--region", help="the region of the bucket")
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="as JSON, for programs")
    form.add_argument("--outline", action="store_true", help="configuration and kinds of tensors as JSON, for the planner")
    options = parser.parse_args(arguments)
    try:
        made = read(_remote(options, variables), options.source)
        found = facts_of(made, options.source)
    except WorkerError as error:
        print(f"lmd: {error}", file=sys.stderr)
        return 1
    if options.outline:
        print(json.dumps({"revision": made.revision, "config": made.config, "tensors": outline(made.tensors, found.layers)}))
    else:
        print(json.dumps(asdict(found)) if options.json else "\n".join(_lines(found)))
    return 0


def _remote(options: argparse.Namespace, variables: Mapping[str, str]) -> Remote:
    source: str = options.source
    try:
        if source.startswith("hf:"):
            repository, _, revision = source.removeprefix("hf:").partition("@")
            endpoint = options.endpoint or variables.get("HF_ENDPOINT") or PUBLIC_HUB
            hub = HubSource(kind="huggingFace", repository=repository, revision=revision or "main", endpoint=endpoint)
            return Hub(hub, variables.get(HUB_TOKEN) or None)
        if source.startswith("s3://"):
            return S3(S3Source(kind="s3", uri=source, endpoint=options.endpoint, region=options.region), variables)
    except ValidationError as error:
        field = error.errors(include_url=False, include_input=False)[0]["loc"][0]
        raise SettingsError(
            f"{source}: its {field} cannot be used; write hf:ORGANISATION/NAME[@REVISION] or s3://BUCKET/PREFIX."
        ) from error
    return Directory(Path(source))


def _read(remote: Remote, file: RemoteFile, start: int, end: int, patience: Patience) -> bytes:
    """Return a range whole, trying again as a fetch does."""

    def whole() -> bytes:
        data = b"".join(bytes(chunk) for chunk in remote.read(file, start, end)) if end > start else b""
        if len(data) < end - start:
            raise InterruptedReadError("it ended early")
        return data[: end - start]

    return patiently(whole, patience, threading.Event(), file.name)


def _config(remote: Remote, file: RemoteFile, origin: str, patience: Patience) -> Mapping[str, object]:
    if file.size > LARGEST_CONFIG_BYTES:
        raise FetchError("SourceInvalid", f"config.json of {origin} has {file.size} bytes; no configuration is that large.")
    try:
        config = json.loads(_read(remote, file, 0, file.size, patience))
    except (ValueError, RecursionError) as error:
        raise ModelRefusedError(f"config.json of {origin} cannot be read: {type(error).__name__}.") from error
    if not isinstance(config, dict):
        raise ModelRefusedError(f"config.json of {origin} is not a JSON object.")
    return config


def _header(remote: Remote, file: RemoteFile, patience: Patience) -> dict[str, headers.Tensor]:
    first = _read(remote, file, 0, min(FIRST_BYTES, file.size), patience)
    end = headers.LENGTH_BYTES + headers.header_length(first, file.size, file.name)
    rest = _read(remote, file, len(first), end, patience) if end > len(first) else b""
    return headers.tensors((first + rest)[headers.LENGTH_BYTES : end], file.size, file.name)


def _lines(found: Facts) -> list[str]:
    rows = {
        "family": found.family,
        "parameters": f"{found.parameters:,}",
        "weights": f"{readable(found.bytes)} of {found.dtype}",
        "layers": str(found.layers),
        "heads": f"{found.heads}, key-value {found.key_value_heads}",
        "experts": str(found.experts) if found.experts else "none",
        "context": f"{found.context_tokens} tokens" if found.context_tokens else "not stated",
        "quantization": found.quantization or "none",
        "revision": found.revision or "none",
    }
    return [f"{name:<14}{value}" for name, value in rows.items()]
