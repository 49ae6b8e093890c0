"""What no schema can say: values that contradict what the operator itself writes."""

from __future__ import annotations

from lmd_operator.api.engine import AccelerateOptions, DeepSpeedOptions, ZeroInferenceOptions
from lmd_operator.api.v1alpha1 import Spec
from lmd_operator.errors import Problem
from lmd_operator.names import LABEL_DOMAINS, RESERVED_ENV, RESERVED_ENV_PREFIXES

_SUFFIXES = {
    "m": 1e-3, "": 1.0, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "P": 1e15, "E": 1e18,
    "Ki": 2.0**10, "Mi": 2.0**20, "Gi": 2.0**30, "Ti": 2.0**40, "Pi": 2.0**50, "Ei": 2.0**60,
}  # fmt: skip
_FOR_ANY_HANDLER = ("Auto", "DeepSpeed", "None")
SHARED_MEMORY_MINIMUM_BYTES = 64 * 2**20
"""What a container gets without asking, in bytes; NCCL fails below it."""


def quantity(text: str) -> float:
    """Return the number a Kubernetes quantity stands for: bytes, cores or a count.

    Source: the suffixes of k8s.io/apimachinery resource.Quantity, without exponents.
    """
    number = text.rstrip("mkMGTPEi")
    return float(number) * _SUFFIXES[text[len(number) :]]


def contradictions(spec: Spec) -> list[Problem]:
    """Return what the template asks for that only the operator may decide."""
    return [*_strategy(spec), *_resources(spec), *_environment(spec), *_metadata(spec), *_memory(spec)]


def _strategy(spec: Spec) -> list[Problem]:
    """Options of an engine that does not run, and engines of ours that a handler of the user's own would not run."""
    strategy = spec.parallelism.strategy
    problems = []
    if spec.handler is not None and strategy not in _FOR_ANY_HANDLER:
        problems.append(
            Problem(
                "spec.parallelism.strategy",
                f"is {strategy}, which our handler runs and spec.handler replaces: choose DeepSpeed, None or Auto, or remove spec.handler",
            )
        )
    if spec.handler is not None and strategy == "Auto" and spec.parallelism.tensor == "Auto":
        problems.append(
            Problem(
                "spec.parallelism.strategy",
                "is Auto with a tensor degree of Auto, which may plan an engine that spec.handler does not run: "
                "choose DeepSpeed or None, or write the degree",
            )
        )
    if spec.handler is not None and strategy == "Auto" and spec.parallelism.pipeline > 1:
        problems.append(
            Problem(
                "spec.parallelism.pipeline",
                "is above 1, which our handler runs and spec.handler replaces: set it to 1, or remove spec.handler",
            )
        )
    if strategy not in _FOR_ANY_HANDLER and spec.engine.deepspeed != DeepSpeedOptions():
        problems.append(
            Problem("spec.engine.deepspeed", f"has no meaning under strategy {strategy}: remove it, or choose strategy DeepSpeed")
        )
    if strategy != "Accelerate" and spec.engine.accelerate != AccelerateOptions():
        problems.append(
            Problem("spec.engine.accelerate", f"has no meaning under strategy {strategy}: remove it, or choose strategy Accelerate")
        )
    zero = spec.engine.zero_inference
    if strategy != "ZeroInference" and zero != ZeroInferenceOptions():
        problems.append(
            Problem("spec.engine.zeroInference", f"has no meaning under strategy {strategy}: remove it, or choose strategy ZeroInference")
        )
    if zero.weights != "Full" and spec.engine.dtype == "float16":
        problems.append(
            Problem(
                "spec.engine.zeroInference.weights",
                f"is {zero.weights}, and DeepSpeed computes with such weights in float16 by a kernel that it compiles at run time: "
                "set spec.engine.dtype to bfloat16, or this to Full",
            )
        )
    return problems


def _resources(spec: Spec) -> list[Problem]:
    resource = spec.accelerator.resource_name
    template = spec.template.resources
    problems = [
        Problem(
            f"spec.template.resources.{kind}['{resource}']",
            "derives from spec.parallelism: remove it, the operator requests one device per rank",
        )
        for kind, amounts in (("limits", template.limits), ("requests", template.requests))
        if resource in amounts
    ]
    problems += [
        Problem(
            f"spec.template.resources.requests.{name}",
            f"is {asked}, above the limit of {template.limits[name]}: lower it or raise the limit",
        )
        for name, asked in template.requests.items()
        if name in template.limits and quantity(asked) > quantity(template.limits[name])
    ]
    return problems


def _environment(spec: Spec) -> list[Problem]:
    problems = []
    seen: set[str] = set()
    for index, variable in enumerate(spec.template.env):
        path = f"spec.template.env[{index}].name"
        if variable.name in RESERVED_ENV:
            problems.append(Problem(path, f"cannot be set: {RESERVED_ENV[variable.name]}. Remove it"))
        elif variable.name.startswith(RESERVED_ENV_PREFIXES):
            problems.append(
                Problem(
                    path, "cannot be set: the operator itself sets what starts with " + ", ".join(RESERVED_ENV_PREFIXES) + ". Remove it"
                )
            )
        if variable.name in seen:
            problems.append(Problem(path, "is given twice: keep one"))
        seen.add(variable.name)
    return problems


def _metadata(spec: Spec) -> list[Problem]:
    metadata = spec.template.metadata
    return [
        Problem(f"spec.template.metadata.{kind}['{key}']", "belongs to the operator: use a key of your own domain")
        for kind, entries in (("labels", metadata.labels), ("annotations", metadata.annotations))
        for key in entries
        if key.split("/")[0] in LABEL_DOMAINS and "/" in key
    ]


def _memory(spec: Spec) -> list[Problem]:
    problems = []
    template = spec.template
    shared = quantity(template.shared_memory)
    if shared < SHARED_MEMORY_MINIMUM_BYTES:
        problems.append(Problem("spec.template.sharedMemory", f"is {template.shared_memory}: ranks need at least 64Mi to exchange tensors"))
    limit = template.resources.limits.get("memory")
    if limit and quantity(limit) <= shared:
        problems.append(
            Problem(
                "spec.template.resources.limits.memory",
                f"is {limit}, which /dev/shm alone ({template.shared_memory}) can fill: raise it, or lower template.sharedMemory",
            )
        )
    return problems
