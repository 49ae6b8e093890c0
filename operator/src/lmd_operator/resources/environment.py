"""The worker's environment, every variable with its reason."""

from __future__ import annotations

from kubernetes.client.models.v1_env_var import V1EnvVar

from lmd_operator.api.v1alpha1 import LargeModelDeployment
from lmd_operator.names import (
    ENV_CONFIG_DIR,
    ENV_DRAIN_LAG_SECONDS,
    ENV_DRAIN_SECONDS,
    ENV_JAVA_OPTIONS,
    ENV_LOCAL_SIZE,
    ENV_MODEL_NAME,
    ENV_MODEL_STORE,
    ENV_PROBES_ADDRESS,
    ENV_RUN_DIR,
    ENV_TERMINATION_MESSAGE,
)
from lmd_operator.planning.plan import Plan
from lmd_operator.rendering.layout import Layout
from lmd_operator.settings import Settings

DRAIN_LAG_SECONDS = 3
"""What endpoints need to learn that a pod is going, in seconds."""
JAVA_BESIDE_RANKS = " -XX:TieredStopAtLevel=1"
"""Where ranks compute on the same cores: the JVM's second compiler held one of them for 50 to 100 ms once a second, for minutes."""


def environment(deployment: LargeModelDeployment, plan: Plan, settings: Settings, layout: Layout) -> list[V1EnvVar]:
    """Return the variables, sorted by name. The root file system is read-only: every cache is sent to the scratch volume."""
    on_cpu = deployment.spec.accelerator.type == "CPU"
    variables = {
        ENV_MODEL_NAME: deployment.model_name,
        ENV_MODEL_STORE: layout.store,
        ENV_CONFIG_DIR: layout.config,
        ENV_RUN_DIR: layout.run,
        ENV_PROBES_ADDRESS: f"{layout.probes_host}:{layout.probes_port}",
        ENV_TERMINATION_MESSAGE: layout.termination_message,
        ENV_JAVA_OPTIONS: f"-Xmx{settings.java_heap} -XX:+ExitOnOutOfMemoryError{JAVA_BESIDE_RANKS if on_cpu else ''}",
        ENV_DRAIN_LAG_SECONDS: str(DRAIN_LAG_SECONDS),
        ENV_DRAIN_SECONDS: str(deployment.spec.engine.torch_serve.response_timeout_seconds),
        "TEMP": layout.temp,
        "TMPDIR": layout.temp,
        "HOME": layout.temp,
        "LOG_LOCATION": f"{layout.temp}/logs",
        "METRICS_LOCATION": f"{layout.temp}/logs",
        "TORCH_EXTENSIONS_DIR": f"{layout.temp}/torch-extensions",
        "TORCHINDUCTOR_CACHE_DIR": f"{layout.temp}/inductor",
        "TRITON_CACHE_DIR": f"{layout.temp}/triton",
        "PYTHONDONTWRITEBYTECODE": "1",
        "HF_HUB_OFFLINE": "1",  # weights come from the source, never from the network while loading
        "TOKENIZERS_PARALLELISM": "false",
        "DS_ACCELERATOR": "cpu" if on_cpu else "cuda",  # auto-detection takes whatever torch happens to see
        "OMP_NUM_THREADS": str(plan.threads_per_rank),
    }
    if on_cpu and plan.ranks > 1:
        variables[ENV_LOCAL_SIZE] = str(plan.ranks)
    return [V1EnvVar(name=name, value=value) for name, value in sorted(variables.items())]
