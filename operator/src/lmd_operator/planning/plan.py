"""spec -> the parallelism that runs, with its reason. Pure.

The degrees are settled here; the GPU request, torchrun's ranks, DeepSpeed's `tp_size` and the CPU's `LOCAL_SIZE` are all read from
the `Plan`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from lmd_operator.api.v1alpha1 import Spec
from lmd_operator.errors import InvalidSpecError, Problem
from lmd_operator.planning.answers import Planned, Unplannable
from lmd_operator.planning.asking import accelerator_of, wishes_of
from lmd_operator.planning.families import finding
from lmd_operator.planning.memory import DeviceMemory
from lmd_operator.planning.planner import plan
from lmd_operator.planning.shapes import ModelShape
from lmd_operator.planning.startup import UNKNOWN, StartUp, start_up

PlannedStrategy = Literal["Accelerate", "DeepSpeed", "Expert", "Pipeline", "PipelineTensor", "Tensor", "ZeroInference", "None"]


@dataclass(frozen=True, slots=True)
class Plan:
    """What one replica runs.

    `tensor`, `pipeline` and `data` are the degrees, which make the ranks; `expert` repeats `tensor` where the same ranks spread experts.
    `gpus_per_replica` is 0 on CPU. `threads_per_rank` is the size of each rank's OpenMP pool. `memory` is what the fullest rank needs,
    where the model's shape is known, and `limit` what it may use, in bytes, where the device's memory is known too. `startup` is how long
    loading may take.
    """

    strategy: PlannedStrategy
    tensor: int
    gpus_per_replica: int
    threads_per_rank: int
    reason: str
    startup: StartUp = UNKNOWN
    pipeline: int = 1
    expert: int = 1
    data: int = 1
    memory: DeviceMemory | None = None
    limit: int | None = None

    @property
    def ranks(self) -> int:
        """Processes of one replica, and devices where there are any."""
        return self.tensor * self.pipeline * self.data

    @property
    def degree(self) -> int:
        """What every rank reports as its degree: the ranks that share a layer, or under ZeroInference all parameters."""
        return self.tensor * self.data


def settle(spec: Spec, cpu_cores: float | None = None, shape: ModelShape | None = None) -> Plan:
    """Return the plan for a valid spec.

    `cpu_cores` are the cores a replica may use; None when the template does not say, which gives one thread a rank. `shape` is the
    model's, which a tensor degree of Auto needs.
    Raises `InvalidSpecError` when nothing fits, or what fits cannot be run by this version.
    """
    asked, memory, limit = spec.parallelism, None, None
    pipeline = asked.pipeline
    tensor = asked.expert if asked.strategy == "Expert" else asked.tensor
    if isinstance(tensor, int):
        strategy, reason = _strategy(asked.strategy, tensor, pipeline)
    elif shape is not None:
        answer = _planned(spec, shape)
        strategy, reason = _runnable(answer, shape), f"Auto: {'; '.join(answer.reasons)}"
        tensor, pipeline = answer.split.tensor, answer.split.pipeline
        memory, limit = answer.memory, answer.limit
    else:
        raise TypeError("a tensor degree of Auto is planned from the model's shape; find that out first")
    ranks = tensor * pipeline * asked.data
    return Plan(
        strategy=strategy,
        tensor=tensor,
        gpus_per_replica=0 if spec.accelerator.type == "CPU" else ranks,
        threads_per_rank=max(1, int((cpu_cores or 0) // ranks)),
        reason=reason,
        startup=start_up(spec.engine.torch_serve.startup_timeout_seconds, shape.stored_bytes if shape is not None else None),
        pipeline=pipeline,
        expert=tensor if strategy == "Expert" else 1,
        data=asked.data,
        memory=memory,
        limit=limit,
    )


def _planned(spec: Spec, shape: ModelShape) -> Planned:
    """Return what the planner says. Raises `InvalidSpecError` when nothing fits."""
    answer = plan(shape, accelerator_of(spec), wishes_of(spec))
    if isinstance(answer, Unplannable):
        raise InvalidSpecError([Problem("spec.parallelism.tensor", f"is Auto, but {answer.why}: {answer.remedy}")])
    return answer


def _runnable(answer: Planned, shape: ModelShape) -> PlannedStrategy:
    """Return the planned strategy. Raises `InvalidSpecError` for one that is not built, and for families nobody compared under it."""
    if (known := finding(shape, answer.split.engine)).verdict != "right":
        message = f"plans {answer.split}, but {known.evidence}, and the worker refuses what was not: choose larger devices"
        raise InvalidSpecError([Problem("spec.parallelism.strategy", message)])
    found = next((strategy for strategy in get_args(PlannedStrategy) if strategy == answer.split.engine), None)
    if found is None or answer.nodes > 1:
        nodes = f" over {answer.nodes} nodes" if answer.nodes > 1 else ""
        built = ", ".join(get_args(PlannedStrategy))
        message = f"plans {answer.split}{nodes}, which is not available in this version: choose of {built}, or larger devices"
        raise InvalidSpecError([Problem("spec.parallelism.strategy", message)])
    strategy: PlannedStrategy = found
    return strategy


def _strategy(asked: str, tensor: int, pipeline: int) -> tuple[PlannedStrategy, str]:
    origin = "Auto" if asked == "Auto" else "asked for"
    if pipeline > 1 and tensor > 1:
        return "PipelineTensor", f"{origin}: the layers are dealt out over {pipeline} stages, each cut over {tensor} ranks"
    if pipeline > 1:
        return "Pipeline", f"{origin}: the layers are dealt out over {pipeline} ranks, which compute one after the other"
    if asked == "DeepSpeed":
        return "DeepSpeed", f"asked for: DeepSpeed cuts every layer over {tensor} ranks"
    if asked == "Accelerate":
        return "Accelerate", "asked for: one process, with what does not fit its device in host memory and on disk"
    if asked == "Expert":
        return "Expert", f"asked for: each of {tensor} ranks holds its part of the experts, and of every other layer"
    if asked == "ZeroInference":
        return "ZeroInference", "asked for: parameters stay outside the devices and come to them at every step, for large batches"
    if asked == "Tensor":
        return "Tensor", f"asked for: transformers cuts every layer over {tensor} ranks"
    if asked == "None":
        return "None", "asked for: one process holds the whole model"
    if tensor == 1:
        return "None", "Auto: the tensor degree is 1, and one process needs no cutting"
    return "DeepSpeed", f"Auto: the tensor degree is {tensor}, and DeepSpeed cuts every layer over {tensor} ranks of one node"
