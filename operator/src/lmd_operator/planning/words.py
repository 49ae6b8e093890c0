"""A plan as people and as programs read it. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from lmd_operator.planning.answers import Planned, Unplannable
from lmd_operator.planning.memory import GIB
from lmd_operator.planning.selection import Accelerator
from lmd_operator.planning.shapes import ModelShape


def told(name: str, shape: ModelShape, devices: Accelerator, answer: Planned | Unplannable) -> str:
    """Return a plan as lines of text."""
    lines = _planned(name, shape, devices, answer) if isinstance(answer, Planned) else _unplannable(name, shape, answer)
    return "\n".join(line.rstrip() for line in lines) + "\n"


def as_data(name: str, shape: ModelShape, devices: Accelerator, answer: Planned | Unplannable) -> dict[str, Any]:
    """Return a plan as plain data, bytes as whole numbers."""
    model = {
        "family": shape.family,
        "parameters": shape.parameters,
        "bytes": shape.stored_bytes,
        "layers": shape.layers,
        "heads": shape.heads,
        "keyValueHeads": shape.key_value_heads,
        "experts": shape.experts,
        "contextTokens": shape.max_positions or 0,
    }
    rejected = [{"strategy": entry.engine, "why": entry.why} for entry in answer.rejected]
    if isinstance(answer, Unplannable):
        return {"name": name, "model": model, "plan": None, "why": answer.why, "remedy": answer.remedy, "rejected": rejected}
    split, memory = answer.split, answer.memory
    return {
        "name": name,
        "model": model,
        "plan": {
            "strategy": split.engine,
            "tensor": split.tensor,
            "pipeline": split.pipeline,
            "expert": split.expert,
            "data": split.replicas,
            "gpusPerReplica": 0 if devices.is_cpu else answer.devices,
            "nodes": answer.nodes,
            "reasons": list(answer.reasons),
        },
        "deviceBytes": {
            "weights": memory.weights,
            "keyValues": memory.key_values,
            "activations": memory.activations,
            "runtime": memory.runtime,
            "needed": memory.needed,
            "usable": answer.limit,
            "device": devices.memory,
        },
        "hostBytes": {_camel(key): value for key, value in asdict(answer.host).items()},
        "largest": {"contextTokens": answer.largest_context, "concurrency": answer.largest_concurrency},
        "rejected": rejected,
    }


def gib(count: float) -> str:
    """Return bytes in GiB."""
    return f"{count / GIB:.1f}"


def _planned(name: str, shape: ModelShape, devices: Accelerator, answer: Planned) -> Iterator[str]:
    memory, host, load = answer.memory, answer.host, answer.load
    unit = "process" if devices.is_cpu else "GPU"
    count = f"{answer.devices} {unit}{'' if answer.devices == 1 else 'es' if devices.is_cpu else 's'} a replica"
    yield f"{name}: {answer.split}, {count}" + (f" on {answer.nodes} nodes" if answer.nodes > 1 else "")
    yield f"  model         {_model(shape)}"
    yield f"  requests      {load.concurrency} of {load.context_tokens} tokens in {load.dtype}"
    if answer.limit is not None:
        most = f"{answer.largest_concurrency} of {load.context_tokens} tokens, or {load.concurrency} of {answer.largest_context}"
        yield f"  at most       {most}"
    yield "  fullest rank, GiB"
    rows = (("weights", memory.weights), ("cache", memory.key_values), ("activations", memory.activations), ("runtime", memory.runtime))
    yield from (f"    {label:<12}{gib(size):>8}" for label, size in rows)
    usable = f" of {gib(answer.limit)} to use" if answer.limit is not None else " of an unknown size: set spec.accelerator.memory"
    yield f"    {'needed':<12}{gib(memory.needed):>8}{usable}"
    yield "  host, GiB"
    on_host = (("load, a rank", host.load_peak), ("stays", host.held), ("JVM heap", host.java_heap), ("/dev/shm", host.shared_memory))
    yield from (f"    {label:<12}{gib(size):>8}" for label, size in (*on_host, ("disk", host.disk)) if size)
    yield "  why"
    yield from (f"    - {reason}" for reason in answer.reasons)
    yield from _rejections(answer)


def _unplannable(name: str, shape: ModelShape, answer: Unplannable) -> Iterator[str]:
    yield f"{name}: no plan"
    yield f"  model         {_model(shape)}"
    yield f"  why           {answer.why}"
    yield f"  what to do    {answer.remedy}"
    yield from _rejections(answer)


def _rejections(answer: Planned | Unplannable) -> Iterator[str]:
    if answer.rejected:
        yield "  why not"
        yield from (f"    {entry.engine:<15}{entry.why}" for entry in answer.rejected)


def _model(shape: ModelShape) -> str:
    experts = f", {shape.experts} experts" if shape.experts else ""
    quantized = f", {shape.quantization}" if shape.quantization else ""
    sizes = (
        f"{shape.parameters / 1e9:.2f} billion parameters, {shape.layers} layers, {shape.heads} heads, {shape.key_value_heads} key-value"
    )
    return f"{shape.family or 'unnamed family'}, {sizes}{experts}{quantized}"


def _camel(name: str) -> str:
    first, *rest = name.split("_")
    return first + "".join(part.capitalize() for part in rest)
