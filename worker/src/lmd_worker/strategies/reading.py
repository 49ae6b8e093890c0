"""Real weights into a transformers model, the same way for every strategy: safetensors only, in the asked type, in evaluation mode."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lmd_worker.errors import ModelRefusedError
from lmd_worker.settings import Settings

if TYPE_CHECKING:
    import torch


def torch_dtype(settings: Settings) -> torch.dtype:
    """Return torch's own name for the asked data type."""
    import torch

    return {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}[settings.dtype]


def read_model(settings: Settings, **placement: Any) -> Any:
    """Return the causal language model of `settings.model_path`: whole and on the CPU, or as `placement` says to `from_pretrained`.

    safetensors are mapped, so that several ranks of one host share the pages as long as the type on disk is the asked one. The model's
    own generation_config is replaced by a neutral one: requests say how to sample, and files must not say otherwise.
    Raises `ModelRefusedError` when transformers cannot make a model of the directory.
    """
    from transformers import AutoModelForCausalLM, GenerationConfig
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    transformers_logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    try:
        model: Any = AutoModelForCausalLM.from_pretrained(
            settings.model_path,
            dtype=torch_dtype(settings),
            use_safetensors=True,
            trust_remote_code=settings.trust_remote_code,
            local_files_only=True,
            **placement,
        )
    except (OSError, ValueError, ImportError, KeyError, RuntimeError) as error:
        reason = (str(error).splitlines() or [""])[0].rstrip(".: ")
        raise ModelRefusedError(
            f"transformers cannot load {settings.model_path}: {type(error).__name__}: {reason}. "
            "Check that the directory is complete and of a causal language model."
        ) from error
    model.generation_config = GenerationConfig()  # type: ignore[no-untyped-call]
    return model.eval()
