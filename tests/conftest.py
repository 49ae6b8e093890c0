"""What several folders of tests share: models, a real small one and tiny random ones, and the documents of bad manifests."""

from __future__ import annotations

import copy
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import hypothesis
import pytest
import yaml

from lmd_operator.local.ports import free_ports

hypothesis.settings.register_profile("the same every time", derandomize=True, database=None, deadline=None)
hypothesis.settings.load_profile("the same every time")

SMOLLM2 = "smollm2-135m-instruct"
BAD_MANIFESTS = Path(__file__).parent / "unit" / "lmd_operator" / "bad_manifests.yaml"


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """The directory of SmolLM2-135M-Instruct; converting it takes about a minute, once."""
    cache = Path(os.environ.get("LMD_CACHE_DIR", "~/.cache/lmd")).expanduser()
    directory = cache / "models" / SMOLLM2
    if not directory.exists():
        subprocess.run([sys.executable, "-m", "lmd_worker.weights.convert", SMOLLM2, "--into", str(directory)], check=True, timeout=600)
    return directory


@pytest.fixture(scope="session")
def short_smollm2(smollm2: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """SmolLM2 cut to its first five layers: its tokenizer, heads and kinds of numbers, in a fifth of the time a token takes."""
    import torch
    import transformers

    directory = tmp_path_factory.mktemp("models") / "short-smollm2"
    model = transformers.AutoModelForCausalLM.from_pretrained(smollm2, dtype=torch.float32, num_hidden_layers=5)
    model.save_pretrained(directory)
    transformers.AutoTokenizer.from_pretrained(smollm2).save_pretrained(directory)
    return directory


@pytest.fixture(scope="session")
def tiny_llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random LLaMA of 2 layers, 6 heads and 3 key-value heads, whose greedy answers do not repeat one token."""
    import torch
    import transformers
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel

    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=512,
        hidden_size=192,
        intermediate_size=384,
        num_hidden_layers=2,
        num_attention_heads=6,
        num_key_value_heads=3,
        max_position_embeddings=8192,
        eos_token_id=None,
    )
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.copy_(torch.randn(parameter.shape) * 0.1)
    directory = tmp_path_factory.mktemp("models") / "tiny-llama"
    model.save_pretrained(directory)
    words = Tokenizer(WordLevel({f"w{index}": index for index in range(512)}, unk_token="w0"))
    transformers.PreTrainedTokenizerFast(tokenizer_object=words).save_pretrained(directory)
    for file in directory.iterdir():
        file.chmod(0o644)  # safetensors writes for the owner alone; a pod's user is another one
    return directory


@dataclass(frozen=True)
class Handlers:
    """A user's own handler in every form, its model beside it, and what it has to answer."""

    sources: Path
    volume: Path
    prompt: str
    answer: str


@pytest.fixture(scope="session")
def handlers(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Handlers:
    """What a claim would hold: the model, a `.mar` made by torch-model-archiver, and a model directory; the answer is one process'."""
    import torch
    import transformers

    root, sources, prompt = tmp_path_factory.mktemp("volume"), Path(__file__).parent / "local" / "handlers", "w5 w17 w200 w3"
    root.chmod(0o755)  # a pod's user is another one
    shutil.copytree(tiny_llama, root / "tiny")
    own = root / "own-config.yaml"
    own.write_text(
        yaml.safe_dump({"minWorkers": 4, "batchSize": 2, "parallelType": "pp", "handler": {"model_path": "elsewhere", "seed": 7}})
    )
    common = ["--model-name", "any", "--version", "2.0", "--handler", str(sources / "handler.py"), "--config-file", str(own)]
    for form in ("default", "no-archive"):
        command = [str(Path(sys.executable).with_name("torch-model-archiver")), *common, "--archive-format", form]
        subprocess.run([*command, "--export-path", str(root)], check=True, capture_output=True)
    tokenizer: Any = transformers.AutoTokenizer.from_pretrained(tiny_llama)
    model: Any = transformers.AutoModelForCausalLM.from_pretrained(tiny_llama, dtype=torch.float32).eval()
    with torch.inference_mode():
        tokens = model.generate(tokenizer([prompt], return_tensors="pt")["input_ids"], max_new_tokens=12, do_sample=False)
    return Handlers(sources, root, prompt, " ".join(map(str, tokens[0].tolist())))


@pytest.fixture
def free_port() -> int:
    """A port that is free now."""
    return free_ports(1)[0]


@pytest.fixture(scope="session")
def wait_until() -> Callable[..., Any]:
    """Return what a condition gives once it is true; fail with its name after a generous deadline."""

    def wait(what: str, condition: Callable[[], Any], seconds: float = 120) -> Any:
        end = time.monotonic() + seconds
        while not (value := condition()):
            if time.monotonic() > end:
                pytest.fail(f"waited {seconds} s for: {what}")
            time.sleep(0.05)
        return value

    return wait


@pytest.fixture
def make_model_directory(tmp_path: Path) -> Callable[..., Path]:
    """Write config.json and one safetensors file that has a header and zeros: enough for all that is read before loading."""

    def make(config: dict[str, Any] | None = None, *, tensors: dict[str, tuple[int, ...]] | None = None, **changes: Any) -> Path:
        directory = tmp_path / "model"
        directory.mkdir(exist_ok=True)
        base = {
            "model_type": "llama",
            "architectures": ["LlamaForCausalLM"],
            "hidden_size": 576,
            "intermediate_size": 1536,
            "num_hidden_layers": 30,
            "num_attention_heads": 9,
            "num_key_value_heads": 3,
            "max_position_embeddings": 8192,
            "vocab_size": 49152,
        }
        (directory / "config.json").write_text(json.dumps({**(base if config is None else config), **changes}))
        header, offset = {}, 0
        for name, shape in (tensors or {"model.embed_tokens.weight": (4, 8), "model.norm.weight": (8,)}).items():
            size = 4
            for length in shape:
                size *= length
            header[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [offset, offset + size]}
            offset += size
        text = json.dumps(header).encode()
        (directory / "model.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + bytes(offset))
        return directory

    return make


@pytest.fixture
def make_settings(tmp_path: Path) -> Callable[..., Any]:
    """Settings as a rank reads them from rendered files, which are written too."""
    from lmd_worker.settings import Settings

    def make(
        model_path: Path, *, strategy: str = "DeepSpeed", degree: int = 1, document: dict[str, Any] | None = None, **handler: Any
    ) -> Settings:
        ds = {"dtype": "float32", "tensor_parallel": {"tp_size": degree, "tp_grain_size": 64}, "max_out_tokens": 8192}
        (tmp_path / "ds-config.json").write_text(json.dumps({**ds, "replace_with_kernel_inject": False, **(document or {})}))
        section = {"model_path": str(model_path), "strategy": strategy, "dtype": "float32", "concurrency": 4, **handler}
        config = {"torchrun": {"nproc-per-node": degree}, "deepspeed": {"config": "ds-config.json"}, "handler": section}
        return Settings.from_model_config("model", tmp_path, config)

    return make


@pytest.fixture(scope="session")
def zero_document() -> Callable[..., dict[str, Any]]:
    """ds-config.json of strategy ZeroInference as the operator renders it, on CPU, with options of the engine."""
    from lmd_operator.api.parse import parse
    from lmd_operator.rendering.layout import Layout
    from lmd_operator.rendering.zero import zero_config

    def make(root: str = "", dtype: str = "float32", **options: Any) -> dict[str, Any]:
        spec = {
            "model": {"source": {"path": {"path": "/models/m"}}},
            "parallelism": {"strategy": "ZeroInference"},
            "engine": {"dtype": dtype, "zeroInference": options},
            "accelerator": {"type": "CPU"},
        }
        document = {"apiVersion": "largemodel.dev/v1alpha1", "kind": "LargeModelDeployment", "metadata": {"name": "m"}, "spec": spec}
        return zero_config(parse(document), Layout(root=root))

    return make


@pytest.fixture(scope="session")
def bad_manifest() -> Callable[[dict[str, Any]], Any]:
    """The document of one case of bad_manifests.yaml: as it stands, or the table's base with pointers removed and set."""
    base = yaml.safe_load(BAD_MANIFESTS.read_text())["base"]

    def build(case: dict[str, Any]) -> Any:
        if "text" in case:
            return yaml.safe_load(case["text"])
        if "document" in case:
            return case["document"]
        document = copy.deepcopy(base)
        for pointer in case.get("remove", []):
            parent, key = _last_step(document, pointer)
            del parent[key]
        for pointer, value in case.get("set", {}).items():
            parent, key = _last_step(document, pointer)
            parent[key] = value
        return document

    return build


def _last_step(document: Any, pointer: str) -> tuple[Any, str]:
    """Return what a JSON pointer's last step is taken in, and that step."""
    *way, key = [step.replace("~1", "/").replace("~0", "~") for step in pointer.removeprefix("/").split("/")]
    for step in way:
        document = document[step]
    return document, key
