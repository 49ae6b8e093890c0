"""What a rank must know, read once from the files the operator rendered and from its environment.

The model directory (a ConfigMap volume in a pod) holds `model-config.yaml` and, for DeepSpeed, `ds-config.json`.
TorchServe hands the first to the handler as a mapping; `Settings.from_model_config` checks it and the two files
against each other, so that a rank never starts at a degree nobody asked for. Imports no torch.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from lmd_worker.errors import SettingsError

Strategy = Literal["Accelerate", "DeepSpeed", "Expert", "None", "Pipeline", "PipelineTensor", "Tensor", "ZeroInference"]
_ONE_PROCESS = ("Accelerate", "None")
_IN_STAGES = ("Pipeline", "PipelineTensor")
DataType = Literal["bfloat16", "float16", "float32"]
Scheduler = Literal["Continuous", "Static"]


class HandlerSection(BaseModel):
    """The `handler:` section of model-config.yaml; every key is rendered by the operator."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, protected_namespaces=())

    model_path: str = Field(description="Absolute directory of config.json, tokenizer and safetensors.")
    strategy: Strategy
    dtype: DataType
    context_tokens: int | None = Field(default=None, ge=2, description="Prompt + answer; null: the model's own limit, at most 8192.")
    scheduler: Scheduler = "Continuous"
    concurrency: int = Field(ge=1, description="Requests decoded together.")
    prefix_caching: bool = Field(default=True, description="Requests that begin alike share the pages of their beginning.")
    queue_size: int | None = Field(default=None, ge=0, description="Requests that may wait beyond these; null: any number.")
    host_memory_bytes: int | None = Field(default=None, ge=0, description="Accelerate: host memory for weights; null: what is free.")
    pipeline: int = Field(
        default=1, ge=1, description="Stages of Pipeline and PipelineTensor; the ranks are these times the tensor degree."
    )
    trust_remote_code: bool = False
    collective_timeout_seconds: int = Field(default=60, ge=1, description="After this long a collective without its peers fails.")
    stall_timeout_seconds: int = Field(default=300, ge=1, description="After this long without an engine turn the process ends.")


class Settings(BaseModel):
    """One rank's settings, whole and consistent."""

    model_config = ConfigDict(frozen=True, protected_namespaces=())

    model_name: str
    model_path: Path
    strategy: Strategy
    dtype: DataType
    device: Literal["cpu", "cuda"]
    tensor: int = Field(ge=1, description="The tensor-parallel degree, or ZeroInference's ranks; times `pipeline`, the ranks.")
    pipeline: int = Field(ge=1, description="The number of stages among which the layers are dealt out.")
    context_tokens: int | None
    scheduler: Scheduler
    concurrency: int
    prefix_caching: bool
    queue_size: int | None
    host_memory_bytes: int | None
    trust_remote_code: bool
    collective_timeout_seconds: int
    stall_timeout_seconds: int
    deepspeed_config: Path | None = Field(description="ds-config.json, for the strategies of DeepSpeed.")

    @classmethod
    def from_model_config(cls, model_name: str, model_directory: Path, config: Mapping[str, Any]) -> Settings:
        """Read the mapping TorchServe parsed from model-config.yaml.

        Raises `SettingsError`, naming file and key, when a key is missing, unknown or of the wrong type, when the degree
        in `ds-config.json` differs from `torchrun.nproc-per-node`, when more than one rank lacks a strategy that cuts, or when
        the ranks are no whole number of stages.
        """
        try:
            section = HandlerSection.model_validate(config.get("handler", {}))
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            key = ".".join(["handler", *map(str, first["loc"])])
            raise SettingsError(
                f"model-config.yaml: {key}: {first['msg']}. The operator and the worker image are of different versions; use matching ones."
            ) from error
        degree = config.get("torchrun", {}).get("nproc-per-node", 1)
        path = config.get("deepspeed", {}).get("config")
        deepspeed_config = model_directory / path if path else None
        if section.strategy == "DeepSpeed":
            _check_deepspeed(deepspeed_config, degree)
        elif section.strategy in _ONE_PROCESS and degree != 1:
            raise SettingsError(
                f"model-config.yaml: torchrun.nproc-per-node is {degree}, but handler.strategy {section.strategy} runs one process. "
                "Use a strategy that cuts, or degree 1."
            )
        _check_stages(section, degree)
        return cls(
            model_name=model_name,
            model_path=Path(section.model_path),
            device="cuda" if config.get("deviceType") == "gpu" else "cpu",
            tensor=degree // section.pipeline,
            deepspeed_config=deepspeed_config,
            **section.model_dump(exclude={"model_path"}),
        )

    @property
    def ranks(self) -> int:
        """Processes of one replica = the world's size."""
        return self.tensor * self.pipeline


def read_deepspeed_config(path: Path | None) -> dict[str, Any]:
    """Return ds-config.json as it is. Raises `SettingsError` when it is missing or no JSON object."""
    if path is None:
        raise SettingsError(
            "model-config.yaml: deepspeed.config is missing; the strategies DeepSpeed and ZeroInference are driven by ds-config.json alone."
        )
    try:
        document = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise SettingsError(f"reading {path}: {error}. Mount the rendered ds-config.json beside model-config.yaml.") from error
    if not isinstance(document, dict) or not isinstance(document.get("tensor_parallel", {}), dict):
        raise SettingsError(f"{path}: the document and its tensor_parallel must be JSON objects. Mount the rendered ds-config.json.")
    return document


def _check_deepspeed(path: Path | None, degree: int) -> None:
    tp_size = read_deepspeed_config(path).get("tensor_parallel", {}).get("tp_size")
    if tp_size != degree:
        raise SettingsError(
            f"ds-config.json: tensor_parallel.tp_size is {tp_size}, but model-config.yaml starts {degree} ranks (torchrun.nproc-per-node). "
            "Render both from one object with `lmd render`.",
            reason="DegreeMismatch",
        )


def _check_stages(section: HandlerSection, ranks: int) -> None:
    """Raise `SettingsError` unless the ranks are as many as the stages, times two or more under PipelineTensor."""
    stages = section.pipeline
    if section.strategy not in _IN_STAGES:
        is_right = stages == 1
    elif section.strategy == "Pipeline":
        is_right = ranks == stages
    else:
        is_right = ranks > stages and not ranks % stages
    if not is_right:
        raise SettingsError(
            f"model-config.yaml: handler.pipeline is {stages} and torchrun.nproc-per-node {ranks}, which strategy {section.strategy} "
            "cannot be. Render both from one object with `lmd render`."
        )
