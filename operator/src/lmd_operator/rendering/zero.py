"""ds-config.json of strategy ZeroInference: DeepSpeed stage 3 without an optimizer. Pure.

Keys of `deepspeed.runtime.config.DeepSpeedConfig` and `deepspeed.runtime.zero.config.DeepSpeedZeroConfig` (0.19.8).
"""

from __future__ import annotations

from typing import Any

from lmd_operator.api.v1alpha1 import LargeModelDeployment
from lmd_operator.planning.memory import BITS, BUFFERS, LIVE_PARAMETERS, PREFETCHED_PARAMETERS, QUANTIZED_GROUP
from lmd_operator.rendering.layout import Layout


def zero_config(deployment: LargeModelDeployment, layout: Layout) -> dict[str, Any]:
    """Return the document: nothing stays on the devices but what a layer needs, whatever its size.

    A parameter is let go when its layer is done, as it is needed again only at the next step, and what fits until then has no need of
    this strategy. Host memory is pinned for GPUs, which copy from it without waiting.
    """
    engine = deployment.spec.engine
    weights = engine.zero_inference.weights
    document: dict[str, Any] = {
        "bf16": {"enabled": engine.dtype == "bfloat16"},
        "fp16": {"enabled": engine.dtype == "float16"},
        "train_micro_batch_size_per_gpu": 1,  # asked for, and without meaning when nothing is trained
        "zero_optimization": {
            "memory_efficient_linear": weights != "Full",  # what makes linear layers smaller stands on it, and nothing else
            "offload_param": _offload(deployment, layout),
            "stage": 3,
            "stage3_max_live_parameters": LIVE_PARAMETERS,
            "stage3_max_reuse_distance": 0,
            "stage3_param_persistence_threshold": 0,
            "stage3_prefetch_bucket_size": PREFETCHED_PARAMETERS,
        },
    }
    if weights != "Full":
        how = {"group_dim": 1, "group_size": QUANTIZED_GROUP, "num_bits": BITS[weights], "symmetric": False}
        document["weight_quantization"] = {"quantized_initialization": how}
    return document


def _offload(deployment: LargeModelDeployment, layout: Layout) -> dict[str, Any]:
    pinned = {"pin_memory": deployment.spec.accelerator.type != "CPU"}
    options = deployment.spec.engine.zero_inference
    if options.parameters == "Host":
        return {"device": "cpu", **pinned}
    disk = {"buffer_count": BUFFERS, "buffer_size": options.buffer_parameters, "nvme_path": layout.parameters}
    return {"device": "nvme", **disk, **pinned}
