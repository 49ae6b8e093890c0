"""What the process is configured with: parsed once from the environment, passed down, never read again."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass, fields

from lmd_operator.errors import LmdError
from lmd_operator.version import VERSION

PREFIX = "LMD_OPERATOR_"


class SettingsError(LmdError):
    """The environment holds a value that cannot be used; every one is listed."""


@dataclass(frozen=True, slots=True)
class Settings:
    """Choices of whoever installed the operator. Each is the environment variable LMD_OPERATOR_<NAME>."""

    worker_image: str = f"lmd-worker:{VERSION}"
    """Image of pods whose template names none."""
    java_heap: str = "512m"
    """Largest heap of TorchServe's JVM, as its `-Xmx`; by default it would take a quarter of the container's memory."""
    namespaces: str = ""
    """Namespaces to look after, separated by commas; empty: all of them, which needs a ClusterRole."""
    lease_namespace: str = ""
    """Namespace of the leadership Lease; empty: the one the operator runs in."""
    lease_name: str = "lmd-operator"
    """Name of the Lease; operators that look after different namespaces need different ones."""
    identity: str = ""
    """Who we are in the Lease and in events; empty: the host's name, which is the pod's."""
    host: str = "0.0.0.0"
    """Address of the probes and metrics."""
    port: int = 8080
    """Port of the probes and metrics."""
    workers: int = 32
    """Objects reconciled at the same time. Reconciles mostly wait for the API server."""
    resync_seconds: int = 36000
    """Every object is looked at again at least this often, in seconds; nothing is written when nothing changed."""
    log_level: str = "INFO"
    """Least level that is logged."""

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> Settings:
        """Read the variables. Raises `SettingsError` naming every unknown or unusable one."""
        known = {PREFIX + field.name.upper(): field for field in fields(cls)}
        problems = [f"{name} is not a setting" for name in environment if name.startswith(PREFIX) and name not in known]
        values: dict[str, str | int] = {}
        for name, field in known.items():
            text = environment.get(name)
            if not text:
                continue
            if field.type == "int" and not text.isdecimal():
                problems.append(f"{name} must be a whole number")
            else:
                values[field.name] = int(text) if field.type == "int" else text
        if problems:
            raise SettingsError("; ".join(sorted(problems)))
        return cls(**values)  # type: ignore[arg-type]

    @property
    def watched_namespaces(self) -> list[str | None]:
        """Return the namespaces to watch; None stands for all."""
        given = [name.strip() for name in self.namespaces.split(",") if name.strip()]
        return list(given) or [None]

    @property
    def own_identity(self) -> str:
        """Return who we are."""
        return self.identity or socket.gethostname()
