"""Fields of the API whose behaviour does not exist yet. Each is refused in words; nothing is silently ignored.

The list shrinks as features land; when a feature lands, its line goes.
"""

from __future__ import annotations

from collections.abc import Callable

from lmd_operator.api.v1alpha1 import Spec
from lmd_operator.errors import Problem


def _later(what: str, instead: str) -> str:
    return f"{what} not available in this version: {instead}"


_NOT_BUILT: tuple[tuple[str, Callable[[Spec], bool], str], ...] = (
    (
        "spec.parallelism.expert",
        lambda s: s.parallelism.strategy == "Auto" and s.parallelism.expert > 1,
        _later("above 1 is", "choose strategy Expert, or set it to 1"),
    ),
    (
        "spec.engine.deepspeed.replaceWithKernelInject",
        lambda s: s.engine.deepspeed.replace_with_kernel_inject,
        "cannot work: DeepSpeed 0.19 injects kernels only into models of transformers 4.43 and older, and this worker has 5.23. Remove it",
    ),
    (
        "spec.engine.deepspeed.enableCudaGraph",
        lambda s: s.engine.deepspeed.enable_cuda_graph,
        "cannot work: DeepSpeed's graphs freeze shapes, refuse more than one rank and cannot grow a key-value cache. Remove it",
    ),
    ("spec.autoscaling", lambda s: s.autoscaling is not None, _later("is", "remove it and set spec.replicas")),
)


def unavailable(spec: Spec) -> list[Problem]:
    """Return one problem per field that is set and not built."""
    return [Problem(path, message) for path, is_asked, message in _NOT_BUILT if is_asked(spec)]
