"""The environment a worker container is given, name by name, and where it leaves what other processes read.

Imports the standard library only and little of it: the start-up probe is a fresh interpreter every few seconds.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

MODEL_NAME = "LMD_MODEL_NAME"
"""The model's name in URLs, in MANIFEST.json and as the directory in the store. Required."""
MODEL_STORE = "LMD_MODEL_STORE"
"""The directory that holds the model directory. Default /store."""
CONFIG_DIRECTORY = "LMD_CONFIG_DIR"
"""The directory that holds config.properties. Default /etc/lmd."""
RUN_DIRECTORY = "LMD_RUN_DIR"
"""Where a pod's processes leave what the probes, the drain and the status read. Default /tmp/lmd."""
PROBES_ADDRESS = "LMD_PROBES_ADDRESS"
"""HOST:PORT where the container answers its probes; without a host on every address. Default :8406."""
API_KEYS_DIRECTORY = "LMD_API_KEYS_DIR"
"""The mounted Secret of API keys, a file a key; read by the front door. Default: no key is asked for."""
TEMPORARY_DIRECTORY = "TEMP"
"""Where the frontend and the ranks meet on sockets; short, and writable. Default /tmp."""
LOG_LOCATION = "LOG_LOCATION"
"""Where torchrun makes its (empty) log directories. Default: `logs` under the run directory."""
METRICS_LOCATION = "METRICS_LOCATION"
"""Named by the frontend's stock log configuration. Default: the log location."""
JAVA_OPTIONS = "LMD_JAVA_OPTIONS"
"""Options for the JVM, as in a shell, e.g. `-Xmx512m -XX:+ExitOnOutOfMemoryError`. Default: none."""
TERMINATION_MESSAGE_PATH = "LMD_TERMINATION_MESSAGE_PATH"
"""The file whose text Kubernetes shows as the container's last words. Default: none are written."""
DRAIN_LAG_SECONDS = "LMD_DRAIN_LAG_SECONDS"
"""How long a drain waits for the endpoints to forget the pod before it counts requests. Default 3."""
DRAIN_SECONDS = "LMD_DRAIN_SECONDS"
"""The longest a drain waits in all for running answers. Default 50; keep it below the pod's grace period."""


@dataclass(frozen=True, slots=True)
class Environment:
    """The variables above, read once."""

    model_name: str
    model_store: Path
    config_directory: Path
    run_directory: Path
    probes_address: str
    api_keys_directory: Path | None
    temporary_directory: Path
    log_location: Path
    metrics_location: Path
    java_options: str
    termination_message_path: Path | None

    @classmethod
    def from_variables(cls, variables: Mapping[str, str]) -> Environment:
        """Fill in the defaults; an empty variable counts as absent."""

        def path(name: str, default: Path) -> Path:
            return Path(variables.get(name) or default)

        run_directory = path(RUN_DIRECTORY, Path("/tmp/lmd"))
        log_location = path(LOG_LOCATION, run_directory / "logs")
        api_keys = variables.get(API_KEYS_DIRECTORY)
        last_words = variables.get(TERMINATION_MESSAGE_PATH)
        return cls(
            model_name=variables.get(MODEL_NAME, ""),
            model_store=path(MODEL_STORE, Path("/store")),
            config_directory=path(CONFIG_DIRECTORY, Path("/etc/lmd")),
            run_directory=run_directory,
            probes_address=variables.get(PROBES_ADDRESS) or ":8406",
            api_keys_directory=Path(api_keys) if api_keys else None,
            temporary_directory=path(TEMPORARY_DIRECTORY, Path("/tmp")),
            log_location=log_location,
            metrics_location=path(METRICS_LOCATION, log_location),
            java_options=variables.get(JAVA_OPTIONS, ""),
            termination_message_path=Path(last_words) if last_words else None,
        )

    @property
    def model_directory(self) -> Path:
        """The directory TorchServe loads: MAR-INF/MANIFEST.json, model-config.yaml and ds-config.json."""
        return self.model_store / self.model_name

    @property
    def server_config(self) -> Path:
        """TorchServe's own configuration."""
        return self.config_directory / "config.properties"


def seconds(variables: Mapping[str, str], name: str, default: float) -> float:
    """Read a duration; raises `ValueError` with a sentence when it is no number of seconds from 0 up."""
    text = variables.get(name, "").strip()
    if not text:
        return default
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < float("inf"):
        raise ValueError(f"{name} is {text!r}; give a number of seconds, 0 or more.")
    return value
