"""A user's handler by its TorchServe name: a module, optionally with a function, else the module's `handle` or its only class.

The same rules as TorchServe's own loader (torchserve 0.12.0, ts/model_loader.py), with the cause of a failure.
"""

from __future__ import annotations

import importlib
import inspect
import sys
import traceback
from collections.abc import Callable
from types import ModuleType
from typing import Any

from lmd_worker.errors import SettingsError

BASE_DEEPSPEED = "ts.torch_handler.distributed.base_deepspeed_handler"
Handle = Callable[[Any, Any], Any]
Initialize = Callable[[Any], Any]


def load(name: str) -> tuple[Handle, Initialize]:
    """Return how to answer and how to initialize. Raises `SettingsError` with the last line of the traceback."""
    path, _, function = name.partition(":")
    module_name = path.removesuffix(".py").rpartition("/")[2]
    try:
        module = importlib.import_module(module_name)
    except Exception as error:
        raise SettingsError(
            f"the handler {path} cannot be imported: {last_line(error)}. Correct it, or build an image that has it."
        ) from error
    if function or hasattr(module, "handle"):
        return _of_function(module, function or "handle", path)
    return _of_class(module, path)


def last_line(error: BaseException) -> str:
    """Return what a traceback ends with, and where: type, message, file and line of the innermost frame."""
    frames = traceback.extract_tb(error.__traceback__)
    where = f" ({frames[-1].filename.rpartition('/')[2]}, line {frames[-1].lineno})" if frames else ""
    return f"{traceback.format_exception_only(error)[-1].strip()}{where}"


def prepare_for_cpu() -> None:
    """Let handlers that were written for GPUs run on CPUs; changes nothing of what they have not imported.

    DeepSpeed's shared-memory operation would be compiled at run time, and TorchServe's base handler names a GPU as its device.
    """
    if "deepspeed" in sys.modules:
        operations: Any = importlib.import_module("deepspeed.ops")
        operations.__compatible_ops__["deepspeed_shm_comm"] = False
    if BASE_DEEPSPEED in sys.modules:
        base: Any = sys.modules[BASE_DEEPSPEED]
        base.BaseDeepSpeedHandler.initialize = _initialize_on_cpu


def _initialize_on_cpu(handler: Any, context: Any) -> None:
    """Do what `BaseDeepSpeedHandler.initialize` does, with the device that is there."""
    import torch

    handler.device = torch.device("cpu")


def _of_function(module: ModuleType, function: str, path: str) -> tuple[Handle, Initialize]:
    found = getattr(module, function, None)
    if not callable(found):
        raise SettingsError(f"the handler {path} has no function {function}; name one that it has.")
    handle: Handle = found
    return handle, lambda context: handle(None, context)


def _of_class(module: ModuleType, path: str) -> tuple[Handle, Initialize]:
    classes = [each for _, each in inspect.getmembers(module, inspect.isclass) if each.__module__ == module.__name__]
    if len(classes) != 1:
        names = ", ".join(each.__name__ for each in classes) or "none"
        raise SettingsError(f"the handler {path} must define one class or a function handle; it defines {names}. Move helpers elsewhere.")
    instance: Any = classes[0]()
    for method in ("initialize", "handle"):
        if not callable(getattr(instance, method, None)):
            raise SettingsError(f"the class {classes[0].__name__} of the handler {path} has no method {method}.")
    return instance.handle, instance.initialize
