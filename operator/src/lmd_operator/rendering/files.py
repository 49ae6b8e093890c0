"""object + plan -> the texts a worker and its front door read. Pure; same input, same bytes.

TorchServe never rejects a configuration: wrong types and unknown keys are dropped with a warning or none, and the model
then runs at another parallelism than asked. So the keys, their order and their types here follow what its frontend
really parses (torchserve 0.12.0, ModelConfig.java), and tests feed the result to it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import yaml

from lmd_operator.api.engine import CustomHandler
from lmd_operator.api.semantics import quantity
from lmd_operator.api.v1alpha1 import LargeModelDeployment
from lmd_operator.names import CUSTOM_HANDLER_MODULE, HANDLER_FILE, HANDLER_MODULE
from lmd_operator.planning.plan import Plan
from lmd_operator.rendering.front_door import MAX_REQUEST_BYTES, MODEL_VERSION, front_door, places_in_worker
from lmd_operator.rendering.layout import POD, Layout
from lmd_operator.rendering.weights import SOURCE, model_path, needs_fetch, order
from lmd_operator.rendering.zero import zero_config

MANIFEST = "MANIFEST.json"
MODEL_CONFIG = "model-config.yaml"
DS_CONFIG = "ds-config.json"
CONFIG_PROPERTIES = "config.properties"
HAPROXY_CONFIG = "haproxy.cfg"

MODEL_FILES: Mapping[str, str] = {MANIFEST: "MAR-INF/MANIFEST.json", MODEL_CONFIG: MODEL_CONFIG, DS_CONFIG: DS_CONFIG}
"""Files of the model directory: name in the ConfigMap to path in the directory."""

DEFAULT_CONTEXT_TOKENS = 8192
"""Longest context where the spec names none; the worker lowers it to the model's own limit."""
CUSTOM_BATCH_DELAY_MILLISECONDS = 10
"""What a batch waits for more requests; next to nothing beside one step of a large model."""
FRONTEND_QUEUE_SIZE = 1_000_000
"""More requests than come between two exchanges with our handler, at any size of its queue. Beyond, TorchServe would answer by itself: 503,
without the seconds to wait, in a shape that no client of OpenAI reads, and although the handler may have had room for all."""
COLLECTIVE_TIMEOUT_SECONDS = 60
NETTY_BESIDE_RANKS: Mapping[str, object] = {"number_of_netty_threads": 1}
"""For all clients: with one a core, what a turn brings wakes them all, and the ranks on these cores wait that long."""
_PARALLEL_TYPES = {"Pipeline": "pp", "PipelineTensor": "pptp"}
"""The frontend's words for how the ranks of a strategy share their work; for all others it is "tp"."""
REVISION_LENGTH = 10


@dataclass(frozen=True)
class RenderedFiles:
    """Texts by file name."""

    texts: Mapping[str, str]

    @cached_property
    def revision(self) -> str:
        """Content hash: equal texts have equal revisions, and nothing else does."""
        canonical = json.dumps(dict(self.texts), sort_keys=True)
        return hashlib.sha256(canonical.encode()).hexdigest()[:REVISION_LENGTH]

    @property
    def model_files(self) -> dict[str, str]:
        """Path in the model directory by file name, for the files that are there."""
        return {name: path for name, path in MODEL_FILES.items() if name in self.texts}


def render(deployment: LargeModelDeployment, plan: Plan, layout: Layout = POD) -> RenderedFiles:
    """Return every file the worker of this object reads."""
    texts = {
        MANIFEST: _json(_manifest(deployment)),
        MODEL_CONFIG: _yaml(_model_config(deployment, plan, layout)),
        CONFIG_PROPERTIES: _properties(deployment, layout),
        HAPROXY_CONFIG: front_door(deployment, layout),
    }
    if needs_fetch(deployment):
        texts[SOURCE] = _json(order(deployment, layout))
    if plan.strategy == "ZeroInference":
        texts[DS_CONFIG] = _json(zero_config(deployment, layout))
    elif plan.strategy == "DeepSpeed" or deployment.spec.handler is not None:
        texts[DS_CONFIG] = _json(_ds_config(deployment, plan))
    return RenderedFiles(dict(sorted(texts.items())))


def _manifest(deployment: LargeModelDeployment) -> dict[str, Any]:
    return {
        "archiverVersion": "0.12.0",
        "createdOn": "01/01/2025 00:00:00",
        "model": {
            "configFile": MODEL_CONFIG,
            "handler": HANDLER_MODULE if deployment.spec.handler is None else CUSTOM_HANDLER_MODULE,
            "modelName": deployment.model_name,
            "modelVersion": MODEL_VERSION,
        },
        "runtime": "python",
    }


def _model_config(deployment: LargeModelDeployment, plan: Plan, layout: Layout) -> dict[str, Any]:
    """Frontend keys first, then the sections the handler reads.

    A dead rank must end the container, so TorchServe never retries a worker; `nproc-per-node` and `parallelLevel` are
    alternatives: the first for ranks, the second for one process that places the model itself. The frontend's batch holds
    waiting requests too: the worker's engine decides who runs, and only what the worker sees can be counted, cancelled or
    told when to come back.
    """
    engine = deployment.spec.engine
    is_ours = deployment.spec.handler is None
    config: dict[str, Any] = {
        "minWorkers": 1,
        "maxWorkers": 1,
        # one by one to our handler, which batches by itself; in TorchServe's own batches to a user's
        "batchSize": places_in_worker(deployment) if is_ours else engine.concurrency,
        "maxBatchDelay": 1 if is_ours else CUSTOM_BATCH_DELAY_MILLISECONDS,
        "responseTimeout": engine.torch_serve.response_timeout_seconds,
        "startupTimeout": plan.startup.seconds,
        "maxRetryTimeoutInSec": 0,
        "jobQueueSize": FRONTEND_QUEUE_SIZE if is_ours else engine.torch_serve.job_queue_size,
        **({"continuousBatching": True} if is_ours else {}),
        "deviceType": "cpu" if deployment.spec.accelerator.type == "CPU" else "gpu",
    }
    if plan.strategy == "Accelerate":
        config |= {"parallelType": "custom", "parallelLevel": 1}
    if plan.ranks > 1:
        config["parallelType"] = _PARALLEL_TYPES.get(plan.strategy, "tp")
        config["torchrun"] = {
            "nnodes": 1,
            "nproc-per-node": plan.ranks,
            "rdzv-endpoint": "localhost:0",
            "OMP_NUMBER_THREADS": plan.threads_per_rank,
        }
    if deployment.spec.handler is not None:
        return {**config, **_custom(deployment, deployment.spec.handler, layout)}
    config["handler"] = _handler(deployment, plan, layout)
    if plan.strategy in ("DeepSpeed", "ZeroInference"):
        config["deepspeed"] = {"config": DS_CONFIG}
    return config


def _custom(deployment: LargeModelDeployment, handler: CustomHandler, layout: Layout) -> dict[str, Any]:
    """Return the sections for a handler of the user's own: what TorchServe's DeepSpeed helpers read, and how to find the handler.

    Source: `ts.handler_utils.distributed.deepspeed.get_ds_engine` (torchserve 0.12.0) reads `handler.model_path` and `deepspeed.config`.
    """
    custom: dict[str, Any] = {"handler": handler.module or HANDLER_FILE}
    if handler.config_map_ref is not None:
        custom["config_map"] = f"{handler.config_map_ref.name}/{handler.config_map_ref.key}"
    if handler.archive is not None:
        custom["archive"] = f"{_volume_root(deployment, layout)}/{handler.archive}"
    return {"handler": {"model_path": model_path(deployment, layout)}, "deepspeed": {"config": DS_CONFIG}, "custom": custom}


def _volume_root(deployment: LargeModelDeployment, layout: Layout) -> str:
    source = deployment.spec.model.source
    return layout.models if source.path is None else layout.model_path(source.path.path)


def _handler(deployment: LargeModelDeployment, plan: Plan, layout: Layout) -> dict[str, Any]:
    engine = deployment.spec.engine
    section: dict[str, Any] = {
        "model_path": model_path(deployment, layout),
        "strategy": plan.strategy,
        "dtype": engine.dtype,
        "scheduler": engine.scheduler,
        "concurrency": engine.concurrency,
        "queue_size": engine.torch_serve.job_queue_size,
        "trust_remote_code": deployment.spec.model.trust_remote_code,
        "collective_timeout_seconds": COLLECTIVE_TIMEOUT_SECONDS,
        "stall_timeout_seconds": engine.torch_serve.response_timeout_seconds,
    }
    if plan.pipeline > 1:
        section["pipeline"] = plan.pipeline
    if not engine.prefix_caching:
        section["prefix_caching"] = False
    if engine.context_tokens is not None:
        section["context_tokens"] = engine.context_tokens
    if engine.accelerate.host_memory is not None:
        section["host_memory_bytes"] = int(quantity(engine.accelerate.host_memory))
    return section


def _ds_config(deployment: LargeModelDeployment, plan: Plan) -> dict[str, Any]:
    """Keys of `deepspeed.inference.config.DeepSpeedInferenceConfig` (0.19.8), which forbids any other."""
    engine = deployment.spec.engine
    return {
        "dtype": engine.dtype,
        "keep_module_on_host": engine.deepspeed.keep_module_on_host,
        "max_out_tokens": engine.context_tokens or DEFAULT_CONTEXT_TOKENS,
        "replace_with_kernel_inject": False,
        "tensor_parallel": {"tp_grain_size": engine.deepspeed.tensor_parallel_grain_size, "tp_size": plan.tensor},
    }


def _properties(deployment: LargeModelDeployment, layout: Layout) -> str:
    """Only loopback, as requests come by the front door; no model can be registered, by URL or by workflow.

    The metrics file is written by the worker when it starts, as it alone knows what it tells. One thread for all connections to ranks: with
    two, the frontend may miss that the last one is made, never send the load command, and kill the ranks with an empty inference
    (WorkerThread.connect, torchserve 0.12.0).
    """
    entries: dict[str, object] = {
        "inference_address": f"http://127.0.0.1:{layout.inference_port}",
        "management_address": f"http://127.0.0.1:{layout.management_port}",
        "metrics_address": f"http://127.0.0.1:{layout.metrics_port}",
        "grpc_inference_address": "127.0.0.1",
        "grpc_inference_port": layout.grpc_inference_port,
        "grpc_management_address": "127.0.0.1",
        "grpc_management_port": layout.grpc_management_port,
        "load_models": deployment.model_name,
        "enable_model_api": "false",
        "allowed_urls": "^$",
        "disable_token_authorization": "true",
        "install_py_dep_per_model": "false",
        "decode_input_request": "false" if deployment.spec.handler is None else "true",
        "disable_system_metrics": "true",
        "metrics_mode": "prometheus",
        "metrics_config": f"{layout.run}/metrics.yaml",
        "netty_client_threads": 1,
        **(NETTY_BESIDE_RANKS if deployment.spec.accelerator.type == "CPU" else {}),
        "max_request_size": MAX_REQUEST_BYTES,
        "max_response_size": MAX_REQUEST_BYTES,
    }
    return "".join(f"{key}={value}\n" for key, value in entries.items())


def _json(value: object) -> str:
    return json.dumps(value, indent=2, sort_keys=True) + "\n"


def _yaml(value: object) -> str:
    """Return YAML by libyaml, which takes a tenth of the time of PyYAML's own emitter and folds long quoted texts elsewhere.

    There is no falling back to the other one: the text is part of the revision.
    """
    text: str = yaml.dump(value, Dumper=yaml.CSafeDumper, sort_keys=False, default_flow_style=False)
    return text
