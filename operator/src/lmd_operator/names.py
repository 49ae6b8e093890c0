"""Every label, annotation, port, environment variable and path that is written more than once, or read by somebody else."""

from __future__ import annotations

GROUP = "largemodel.dev"
FIELD_MANAGER = "lmd-operator"
STATUS_MANAGER = "lmd-operator-status"
"""Owner of our fields in server-side apply."""

LABEL_NAME = "app.kubernetes.io/name"
LABEL_INSTANCE = "app.kubernetes.io/instance"
LABEL_MANAGED_BY = "app.kubernetes.io/managed-by"
LABEL_DEPLOYMENT = f"{GROUP}/deployment"
"""On every child and pod: the object's name. Selectors use this one alone, and it never changes."""
LABEL_REVISION = f"{GROUP}/revision"
"""On pods and ConfigMaps: the content hash of the rendered files. On Jobs: a hash of what they are about."""
LABEL_TASK = f"{GROUP}/task"
"""On Jobs and their pods: what they do, one of the tasks below."""
LABEL_TASK_OF = f"{GROUP}/task-of"
"""On the pods of Jobs: the object's name. They do not have `LABEL_DEPLOYMENT`: a Service would send them requests."""
ANNOTATION_ORDER = f"{GROUP}/order"
"""On the pods of Jobs: what `lmd-worker` is told; they read it as a file."""
ANNOTATION_RESTART = f"{GROUP}/restart"
"""On pods: the object's `spec.restart`; a change rolls them."""
ANNOTATION_APPLIED = f"{GROUP}/applied"
"""On every child: hash of what was last applied, so that a restarted operator knows without writing."""
LABEL_DOMAINS = (GROUP, "app.kubernetes.io")
"""Domains whose keys users cannot set in the pod template."""

CONTAINER = "worker"
"""The container that runs TorchServe and the ranks."""
FRONT_DOOR = "front-door"
"""The sidecar that runs HAProxy, through which everything from outside passes."""

FETCH_CONTAINER = "fetch"
"""The init container that brings or verifies the weights."""

TASKS = "tasks"
"""All of them together."""
TASK_FETCH = "fetch"
"""Fill the cache."""
TASK_INSPECT = "inspect"
"""Say what the model is, for a plan."""
TASK_REMOVE = "remove"
"""Give up what is in the cache, once the object is gone."""

PORT_PROGRESS = 8083
"""Where that container tells how far it is; a number, as the operator asks it by the pod's address."""
PROGRESS_PATH = "/progress"
REPORT_PATH = "/report"
"""Where the front door tells what the ranks report, on the port of its probes and metrics."""
PORT_API = "http"
PORT_OPERATIONS = "operations"
"""Probes and metrics of the front door."""

WORKER_COMMAND = "lmd-worker"
"""Console script of the worker image; its subcommands serve, start up and drain."""
LIVENESS_PATH = "/livez"
READINESS_PATH = "/readyz"
COMMAND_FRONT_DOOR = "front-door"
HANDLER_MODULE = "lmd_worker.handler"
"""The handler named in MANIFEST.json, a module of the worker image."""
CUSTOM_HANDLER_MODULE = "lmd_worker.custom"
"""The one named instead when the object brings its own: it calls the user's, and tells how that fails."""
HANDLER_FILE = "handler.py"
"""A ConfigMap's handler, in the model directory."""

ENV_MODEL_NAME = "LMD_MODEL_NAME"
ENV_MODEL_STORE = "LMD_MODEL_STORE"
ENV_CONFIG_DIR = "LMD_CONFIG_DIR"
ENV_RUN_DIR = "LMD_RUN_DIR"
ENV_TERMINATION_MESSAGE = "LMD_TERMINATION_MESSAGE_PATH"
ENV_JAVA_OPTIONS = "LMD_JAVA_OPTIONS"
ENV_DRAIN_SECONDS = "LMD_DRAIN_SECONDS"
ENV_DRAIN_LAG_SECONDS = "LMD_DRAIN_LAG_SECONDS"
ENV_PROBES_ADDRESS = "LMD_PROBES_ADDRESS"
ENV_SOURCE_FILE = "LMD_SOURCE_FILE"
ENV_PROGRESS_PORT = "LMD_PROGRESS_PORT"
ENV_API_KEYS_DIR = "LMD_API_KEYS_DIR"
ENV_LOCAL_SIZE = "LOCAL_SIZE"
"""DeepSpeed's CPU collectives read it; torchrun sets LOCAL_WORLD_SIZE instead (facts: deepspeed 0.19.8)."""

_BY_DEVICE_PLUGIN = "the device plugin assigns devices, and TorchServe counts them by itself"
_BY_TORCHRUN = "torchrun sets it for every rank"
_BY_OPERATOR = "the operator derives it from the spec"
_SCRATCH = "it is the pod's scratch folder"
_FIXED = "the worker's image and its read-only root file system need the operator's value"
RESERVED_ENV: dict[str, str] = {
    "CUDA_VISIBLE_DEVICES": _BY_DEVICE_PLUGIN,
    "NVIDIA_VISIBLE_DEVICES": _BY_DEVICE_PLUGIN,
    "RANK": _BY_TORCHRUN,
    "LOCAL_RANK": _BY_TORCHRUN,
    "WORLD_SIZE": _BY_TORCHRUN,
    "LOCAL_WORLD_SIZE": _BY_TORCHRUN,
    "MASTER_ADDR": _BY_TORCHRUN,
    "MASTER_PORT": _BY_TORCHRUN,
    "LOCAL_SIZE": _BY_OPERATOR,
    "OMP_NUM_THREADS": _BY_OPERATOR,
    "TEMP": _SCRATCH,
    "TMPDIR": _SCRATCH,
    "HOME": _SCRATCH,
    "LOG_LOCATION": _SCRATCH,
    "METRICS_LOCATION": _SCRATCH,
    "TORCH_EXTENSIONS_DIR": _SCRATCH,
    "TORCHINDUCTOR_CACHE_DIR": _SCRATCH,
    "TRITON_CACHE_DIR": _SCRATCH,
    "PYTHONDONTWRITEBYTECODE": _FIXED,
    "TOKENIZERS_PARALLELISM": _FIXED,
    "PYTHONPATH": "the worker image decides what is importable; build an image of your own and set template.image",
    "HF_TOKEN": "a token stands in a Secret: use spec.model.source.huggingFace.tokenSecretRef",
    "AWS_ACCESS_KEY_ID": "keys stand in a Secret: use spec.model.source.s3.credentialsSecretRef",
    "AWS_SECRET_ACCESS_KEY": "keys stand in a Secret: use spec.model.source.s3.credentialsSecretRef",
    "AWS_SESSION_TOKEN": "keys stand in a Secret: use spec.model.source.s3.credentialsSecretRef",
    "HF_HUB_OFFLINE": "a pod never downloads while it loads; weights come from spec.model.source",
    "DS_ACCELERATOR": _BY_OPERATOR,
}
"""Variables users cannot set in the pod template, and why."""
RESERVED_ENV_PREFIXES = ("LMD_", "TS_", "TORCHELASTIC_")
