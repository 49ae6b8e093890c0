"""A spec -> what the planner is asked. Pure."""

from __future__ import annotations

from lmd_operator.api.semantics import quantity
from lmd_operator.api.v1alpha1 import Spec
from lmd_operator.planning.answers import Wishes
from lmd_operator.planning.selection import Accelerator, Link

DEVICES_OF_A_NODE = 8


def wishes_of(spec: Spec) -> Wishes:
    """Return what an object asks for."""
    engine, parallelism = spec.engine, spec.parallelism
    return Wishes(
        strategy=parallelism.strategy,
        tensor=parallelism.tensor,
        pipeline=parallelism.pipeline,
        expert=parallelism.expert,
        data=parallelism.data,
        context_tokens=engine.context_tokens,
        concurrency=engine.concurrency,
        dtype=engine.dtype,
        scheduler=engine.scheduler,
        grain=engine.deepspeed.tensor_parallel_grain_size,
        weights=engine.zero_inference.weights,
        disk_buffer=engine.zero_inference.buffer_parameters if engine.zero_inference.parameters == "Disk" else 0,
        is_fetched=spec.model.source.hugging_face is not None or spec.model.source.s3 is not None,
    )


def accelerator_of(spec: Spec, per_node: int = DEVICES_OF_A_NODE, link: Link = "Fast", memory: str | None = None) -> Accelerator:
    """Return the devices an object names, with what it does not say; `memory` wins over the object's own."""
    if spec.accelerator.type == "CPU":
        text = memory or spec.template.resources.limits.get("memory")
        return Accelerator(int(quantity(text)) if text else None, per_node, link, is_cpu=True)
    text = memory or spec.accelerator.memory
    return Accelerator(int(quantity(text)) if text else None, per_node, link)
