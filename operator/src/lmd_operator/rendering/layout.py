"""Where the worker's files and ports are: one set in a pod, another in a folder of this machine.

Everything rendered or built takes its paths and ports from a `Layout`, so that a local run differs from a pod in these
values and in nothing else.
"""

from __future__ import annotations

from dataclasses import dataclass

IMAGE_MODELS = "/models"
"""Where the worker image keeps models, and where claims are mounted."""


@dataclass(frozen=True, slots=True)
class Layout:
    """Absolute paths under `root` (empty in a pod) and the ports: the front door's two, the probes', then TorchServe's, on loopback."""

    root: str = ""
    api_port: int = 8000
    operations_port: int = 8405
    probes_host: str = ""
    """Where the worker answers probes; empty for every address, as the kubelet asks a pod's."""
    probes_port: int = 8406
    inference_port: int = 8080
    management_port: int = 8081
    metrics_port: int = 8082
    grpc_inference_port: int = 7070
    grpc_management_port: int = 7071
    models: str = IMAGE_MODELS
    shared_memory: str = "/dev/shm"

    @property
    def store(self) -> str:
        """TorchServe's model store; each model is a directory in it."""
        return f"{self.root}/store"

    @property
    def config(self) -> str:
        """Directory of config.properties and haproxy.cfg."""
        return f"{self.root}/etc/lmd"

    @property
    def temp(self) -> str:
        """Scratch directory; unix sockets live here, so it must be short."""
        return f"{self.root}/tmp"

    @property
    def run(self) -> str:
        """Where the worker's processes leave what probes, drain and status read."""
        return f"{self.temp}/lmd"

    @property
    def front_door_socket(self) -> str:
        """Where HAProxy takes commands from the pod's own processes."""
        return f"{self.run}/front-door.sock"

    @property
    def api_keys(self) -> str:
        """Directory of the mounted Secret of API keys, a file a key."""
        return f"{self.root}/etc/lmd-api-keys"

    @property
    def parameters(self) -> str:
        """Scratch directory of parameters that are read from disk at every step."""
        return f"{self.root}/parameters"

    @property
    def termination_message(self) -> str:
        """File whose text Kubernetes shows as a container's last words."""
        return f"{self.root}/dev/termination-log"

    def model_path(self, image_path: str) -> str:
        """Return where a path of the worker image lies here; other absolute paths stay as they are."""
        if image_path == IMAGE_MODELS or image_path.startswith(f"{IMAGE_MODELS}/"):
            return self.models + image_path.removeprefix(IMAGE_MODELS)
        return image_path


POD = Layout()
