"""A model's shape, the devices and what is wished -> the smallest legal plan that fits, and why; or why nothing does. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

from lmd_operator.planning.answers import Planned, Rejected, Unplannable, Wishes
from lmd_operator.planning.cutting import Split
from lmd_operator.planning.families import Engine, finding, static_reason
from lmd_operator.planning.memory import GIB, HEADROOM, DeviceMemory, Load, device_memory, host_memory
from lmd_operator.planning.search import Search
from lmd_operator.planning.selection import TABLE, Accelerator, Place, Row
from lmd_operator.planning.shapes import ModelShape

LEAST_CONTEXT_TOKENS = 16
MOST_CONTEXT_TOKENS = 10_000_000
MOST_CONCURRENCY = 1024
"""Bounds of spec.engine.contextTokens and spec.engine.concurrency."""
PLACES: tuple[Place, ...] = ("one device", "one node", "several nodes", "the host")


def plan(shape: ModelShape, devices: Accelerator, wishes: Wishes) -> Planned | Unplannable:
    """Return the plan that the decision table gives, or why there is none and what would help."""
    load = Load(
        context_tokens=shape.context_tokens(wishes.context_tokens),
        concurrency=wishes.concurrency,
        dtype=wishes.dtype,
        scheduler=wishes.scheduler,
        grain=wishes.grain,
        weights=wishes.weights,
        disk_buffer=wishes.disk_buffer,
        is_cpu=devices.is_cpu,
    )
    if shape.max_positions is not None and load.context_tokens > shape.max_positions:
        return Unplannable(
            f"contextTokens is {load.context_tokens}, and the model has {shape.max_positions} positions",
            f"ask for at most {shape.max_positions}",
        )
    if devices.memory is None and not devices.is_cpu and wishes.tensor == "Auto":
        return Unplannable(
            "the memory of a device is not known", "set spec.accelerator.memory, for example 80Gi, or write the degree as a number"
        )
    search = Search(shape, devices, wishes, load)
    for place in PLACES:
        for proven in (True, False):
            for row in _rows(wishes, place):
                if not row.applies(shape, devices):
                    continue
                for engine in row.engines:
                    split = _try(search, row, engine, proven=proven)
                    if split is not None:
                        return _planned(search, row, split)
    return _nothing(search)


def _rows(wishes: Wishes, place: Place) -> Sequence[Row]:
    """Return the rows of a place; of an engine that was asked for, one row that says so."""
    if wishes.strategy == "Auto":
        return [row for row in TABLE if row.place == place]
    places: dict[Engine, tuple[Place, ...]] = {
        "None": ("one device",),
        "ZeroInference": ("the host",),
        "PipelineTensor": ("one node", "several nodes"),
        "Pipeline": ("one node", "several nodes"),
    }
    if place not in places.get(wishes.strategy, ("one node",)):
        return []
    return [Row(0, "asked for", lambda shape, devices: True, (wishes.strategy,), place, "it was asked for by name")]


def _try(search: Search, row: Row, engine: Engine, *, proven: bool) -> Split | None:
    known = finding(search.shape, engine)
    if known.verdict == "wrong":
        search.rejected.setdefault(engine, known.evidence)
        return None
    if proven and known.verdict == "untried" and row.number:
        search.rejected[engine] = known.evidence
        return None
    split, why = search.first_fitting(engine, row.place)
    if split is None:
        search.rejected[engine] = why
    else:
        search.rejected.pop(engine, None)
    return split


def _planned(search: Search, row: Row, split: Split) -> Planned:
    shape, load, devices = search.shape, search.load, search.devices
    memory, limit = device_memory(shape, split, load), search.limit(split)
    most = shape.max_positions or MOST_CONTEXT_TOKENS
    return Planned(
        split=split,
        load=load,
        memory=memory,
        host=host_memory(shape, split, load, java_heap=search.wishes.java_heap, is_fetched=search.wishes.is_fetched),
        limit=limit,
        nodes=-(-split.ranks // devices.per_node),
        reasons=tuple(_reasons(search, row, split, memory, limit)),
        rejected=tuple(_rejected(search, row, split)),
        largest_context=_largest(lambda count: search.fits(split, replace(load, context_tokens=count)), LEAST_CONTEXT_TOKENS, most),
        largest_concurrency=_largest(lambda count: search.fits(split, replace(load, concurrency=count)), 1, MOST_CONCURRENCY),
    )


def _reasons(search: Search, row: Row, split: Split, memory: DeviceMemory, limit: int | None) -> Iterator[str]:
    shape = search.shape
    yield f"row {row.number} of the table ({row.when}): {row.why}" if row.number else f"{split.engine} was asked for"
    if limit is None:
        yield f"{split} needs {memory.needed / GIB:.1f} GiB a device; what the device has is not known, so that was not compared"
    else:
        which = "is the smallest legal split that fits" if search.wishes.tensor == "Auto" else "has the degrees asked for"
        yield f"{split} {which}: {memory.needed / GIB:.1f} of {limit / GIB:.1f} GiB to use on the fullest rank"
    known = finding(shape, split.engine)
    yield known.evidence + (", so the worker refuses it until somebody has" if known.verdict == "untried" else "")
    if search.load.scheduler == "Continuous" and (why := static_reason(shape, split.engine, split.ranks)):
        yield f"it is decoded in static batches: {why}"
    if row.place == "several nodes":
        yield "one replica spans nodes, which this version plans and does not run"
    if split.engine == "Accelerate":
        yield "weights take what the cache leaves of the device, at least the largest layer; the rest is moved there at every step"
        room = "which has to have room for all of it: experts are not read from disk" if shape.experts else "then on disk"
        yield f"what does not fit the device waits in host memory, {room}"
    if split.engine == "ZeroInference":
        yield "every step moves all weights over the bus: for throughput with large batches, not for waiting clients"


def _rejected(search: Search, row: Row, split: Split) -> Iterator[Rejected]:
    """Yield what failed, then what was never reached because a row before it won."""
    for engine, why in search.rejected.items():
        if engine != split.engine:
            yield Rejected(engine, why)
    if row.number == 0:
        return
    seen = {split.engine, *search.rejected}
    for later in TABLE:
        for engine in later.engines:
            if engine in seen or later.number < row.number:
                continue
            known = finding(search.shape, engine)
            if known.verdict == "wrong":
                seen.add(engine)
                yield Rejected(engine, known.evidence)
            elif later.applies(search.shape, search.devices):
                seen.add(engine)
                before = f"row {row.number} comes before row {later.number} ({later.when})"
                yield Rejected(engine, f"row {row.number} takes {split.engine} first" if later.number == row.number else before)


def _nothing(search: Search) -> Unplannable:
    rejected = tuple(Rejected(engine, why) for engine, why in search.rejected.items())
    asked = "no strategy" if search.wishes.strategy == "Auto" else search.wishes.strategy
    if search.closest is None:
        why = next((entry.why for entry in rejected if entry.engine == search.wishes.strategy), "none of them is right and legal here")
        return Unplannable(
            f"{asked} can run it: {why}" if asked == "no strategy" else f"{asked} cannot run it: {why}", _other(search), rejected
        )
    split, load = search.closest[1], search.load
    needed = device_memory(search.shape, split, load).needed / (1 - HEADROOM)
    context = _largest(lambda count: search.fits(split, replace(load, context_tokens=count)), LEAST_CONTEXT_TOKENS, load.context_tokens)
    concurrency = _largest(lambda count: search.fits(split, replace(load, concurrency=count)), 1, load.concurrency)
    ways = [f"use devices of at least {needed * (split.ranks if load.is_cpu else 1) / GIB:.0f} GiB"]
    if concurrency:
        ways.insert(0, f"lower engine.concurrency to {concurrency}")
    if context:
        ways.insert(0, f"lower engine.contextTokens to {context}")
    why = f"{load.concurrency} requests of {load.context_tokens} tokens fit nowhere: {search.shortfall(split)}"
    return Unplannable(why, ", or ".join(ways), rejected)


def _other(search: Search) -> str:
    right = [engine for row in TABLE for engine in row.engines if finding(search.shape, engine).verdict != "wrong"]
    return f"choose another strategy or degree: {', '.join(dict.fromkeys(right))}, or Auto"


def _largest(holds: Callable[[int], bool], least: int, most: int) -> int:
    """Return the largest number for which it holds, 0 when it never does; it must not hold again above one where it fails."""
    if not holds(least):
        return 0
    while least < most:
        middle = (least + most + 1) // 2
        if holds(middle):
            least = middle
        else:
            most = middle - 1
    return least
