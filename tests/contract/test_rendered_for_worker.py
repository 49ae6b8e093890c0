"""What the operator renders, read by the worker's own parsers and by DeepSpeed's: neither half imports the other."""

from __future__ import annotations

import importlib
import inspect
import json
import os
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from lmd_operator import names
from lmd_operator.api.parse import parse
from lmd_operator.api.v1alpha1 import LargeModelDeployment
from lmd_operator.local.container import LocalContainer, materialise
from lmd_operator.planning import memory
from lmd_operator.rendering import files, weights
from lmd_operator.rendering import front_door as rendering_front_door
from lmd_operator.rendering.layout import POD, Layout
from lmd_operator.resources.desired import Desired, desired, document
from lmd_operator.resources.environment import JAVA_BESIDE_RANKS
from lmd_operator.settings import Settings as OperatorSettings
from lmd_worker import bootstrap, custom, haproxy, mounts, probe_server, probes, rundir
from lmd_worker import environment as worker_environment
from lmd_worker import front_door as worker_front_door
from lmd_worker.__main__ import COMMANDS
from lmd_worker.environment import Environment
from lmd_worker.errors import SettingsError
from lmd_worker.settings import Settings
from lmd_worker.weights import progress, source

ROOT = Path(__file__).parents[2]
EXAMPLES = sorted((ROOT / "crds" / "examples").glob("*.yaml"))
MANIFESTS = [*EXAMPLES, *sorted((ROOT / "tests" / "scenarios").glob("*.yaml"))]
CUSTOM = [path for path in MANIFESTS if path.stem in ("handler-in-a-config-map", "handler-in-an-archive")]
ZERO = [path for path in MANIFESTS if path.stem.startswith("zero-inference")]
CUT = [path for path in MANIFESTS if path.stem in ("llama-70b", "smollm2", "template-with-everything")]


def load(manifest: Path) -> LargeModelDeployment:
    return parse(yaml.safe_load(manifest.read_text()))


def rendered(manifest: Path, layout: Layout = POD) -> Desired:
    return desired(load(manifest), OperatorSettings(), layout)


def pod_variables(built: Desired) -> dict[str, str]:
    """The environment of the worker container, as the kubelet gives it."""
    (deployment,) = [content for content in map(document, built.resources) if content["kind"] == "Deployment"]
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    return {variable["name"]: variable["value"] for variable in container["env"] if "value" in variable}


@pytest.fixture
def materialised(tmp_path: Path) -> Callable[[Path], tuple[Desired, LocalContainer]]:
    """Write an object's files where its pod mounts them, below a folder of the test."""

    def write(manifest: Path) -> tuple[Desired, LocalContainer]:
        built = rendered(manifest, Layout(root=str(tmp_path), models=f"{tmp_path}/models", shared_memory=f"{tmp_path}/shm"))
        (tmp_path / "handler.py").write_text("class A: ...\n")
        return built, materialise(built, {"my-handler": tmp_path})

    return write


@pytest.mark.parametrize("manifest", [path for path in MANIFESTS if path not in CUSTOM], ids=lambda path: path.stem)
def test_the_worker_reads_every_setting_as_it_was_meant(materialised, tmp_path: Path, manifest: Path) -> None:
    owner = load(manifest)
    built, container = materialised(manifest)
    environment = Environment.from_variables(container.environment)
    config = yaml.safe_load((environment.model_directory / mounts.MODEL_CONFIG).read_text())
    engine = owner.spec.engine

    assert Settings.from_model_config(environment.model_name, environment.model_directory, config) == Settings(
        model_name=owner.model_name,
        model_path=Path(weights.model_path(owner, Layout(models=f"{tmp_path}/models"))),
        strategy=built.plan.strategy,
        dtype=engine.dtype,
        device="cuda" if built.plan.gpus_per_replica else "cpu",
        tensor=built.plan.degree,
        pipeline=built.plan.pipeline,
        context_tokens=engine.context_tokens,
        scheduler=engine.scheduler,
        concurrency=engine.concurrency,
        prefix_caching=engine.prefix_caching,
        queue_size=engine.torch_serve.job_queue_size,
        host_memory_bytes=20 * 2**30 if manifest.stem == "accelerate" else None,
        trust_remote_code=owner.spec.model.trust_remote_code,
        collective_timeout_seconds=files.COLLECTIVE_TIMEOUT_SECONDS,
        stall_timeout_seconds=engine.torch_serve.response_timeout_seconds,
        deepspeed_config=environment.model_directory / files.DS_CONFIG if built.plan.strategy in ("DeepSpeed", "ZeroInference") else None,
    )


@pytest.mark.parametrize("manifest", MANIFESTS, ids=lambda path: path.stem)
def test_the_worker_reads_the_environment_of_the_pod(manifest: Path) -> None:
    owner = load(manifest)
    variables = pod_variables(rendered(manifest))
    assert Environment.from_variables(variables) == Environment(
        model_name=owner.model_name,
        model_store=Path("/store"),
        config_directory=Path("/etc/lmd"),
        run_directory=Path("/tmp/lmd"),
        probes_address=":8406",
        api_keys_directory=None,
        temporary_directory=Path("/tmp"),
        log_location=Path("/tmp/logs"),
        metrics_location=Path("/tmp/logs"),
        java_options="-Xmx512m -XX:+ExitOnOutOfMemoryError" + (JAVA_BESIDE_RANKS if owner.spec.accelerator.type == "CPU" else ""),
        termination_message_path=Path("/dev/termination-log"),
    )
    limit = owner.spec.engine.torch_serve.response_timeout_seconds
    assert worker_environment.seconds(variables, worker_environment.DRAIN_SECONDS, -1) == limit
    assert worker_environment.seconds(variables, worker_environment.DRAIN_LAG_SECONDS, -1) == 3


@pytest.mark.parametrize("manifest", [path for path in MANIFESTS if path.stem != "handler-in-an-archive"], ids=lambda path: path.stem)
def test_the_worker_finds_nothing_wrong_with_what_is_mounted(materialised, manifest: Path) -> None:
    _, container = materialised(manifest)
    variables = {"PATH": os.environ["PATH"], **container.environment}
    assert mounts.problems(Environment.from_variables(variables), variables) == []


def _without_local_size(directory: Path, variables: dict[str, str]) -> None:
    del variables["LOCAL_SIZE"]


def _another_degree(directory: Path, variables: dict[str, str]) -> None:
    file = directory / files.DS_CONFIG
    file.write_text(file.read_text().replace('"tp_size": 3', '"tp_size": 2'))


def _another_name(directory: Path, variables: dict[str, str]) -> None:
    file = directory / mounts.MANIFEST
    file.write_text(file.read_text().replace("smollm2", "other"))


def _retrying(directory: Path, variables: dict[str, str]) -> None:
    file = directory / mounts.MODEL_CONFIG
    file.write_text(file.read_text().replace("maxRetryTimeoutInSec: 0", "maxRetryTimeoutInSec: 300"))


@pytest.mark.parametrize("spoil", [_without_local_size, _another_degree, _another_name, _retrying])
def test_the_worker_finds_what_is_wrong(materialised, spoil: Callable[[Path, dict[str, str]], None]) -> None:
    _, container = materialised(ROOT / "crds" / "examples" / "smollm2.yaml")
    variables = {"PATH": os.environ["PATH"], **container.environment}
    environment = Environment.from_variables(variables)
    spoil(environment.model_directory, variables)
    assert len(mounts.problems(environment, variables)) == 1


@pytest.mark.parametrize("key", ["handler", "torchrun"])
def test_the_worker_refuses_a_section_that_the_operator_never_writes(materialised, key: str) -> None:
    _, container = materialised(ROOT / "crds" / "examples" / "smollm2.yaml")
    environment = Environment.from_variables(container.environment)
    config = yaml.safe_load((environment.model_directory / mounts.MODEL_CONFIG).read_text())
    config[key] |= {"nproc-per-node": 5}
    with pytest.raises(SettingsError):
        Settings.from_model_config(environment.model_name, environment.model_directory, config)


VARIABLES = {
    names.ENV_MODEL_NAME: worker_environment.MODEL_NAME,
    names.ENV_MODEL_STORE: worker_environment.MODEL_STORE,
    names.ENV_CONFIG_DIR: worker_environment.CONFIG_DIRECTORY,
    names.ENV_RUN_DIR: worker_environment.RUN_DIRECTORY,
    names.ENV_PROBES_ADDRESS: worker_environment.PROBES_ADDRESS,
    names.ENV_TERMINATION_MESSAGE: worker_environment.TERMINATION_MESSAGE_PATH,
    names.ENV_JAVA_OPTIONS: worker_environment.JAVA_OPTIONS,
    names.ENV_API_KEYS_DIR: worker_environment.API_KEYS_DIRECTORY,
    names.ENV_DRAIN_SECONDS: worker_environment.DRAIN_SECONDS,
    names.ENV_DRAIN_LAG_SECONDS: worker_environment.DRAIN_LAG_SECONDS,
    "TEMP": worker_environment.TEMPORARY_DIRECTORY,
    "LOG_LOCATION": worker_environment.LOG_LOCATION,
    "METRICS_LOCATION": worker_environment.METRICS_LOCATION,
}


@pytest.mark.parametrize(("operator", "worker"), VARIABLES.items(), ids=VARIABLES)
def test_both_halves_call_a_variable_the_same(operator: str, worker: str) -> None:
    assert operator == worker


def test_every_variable_the_worker_reads_is_rendered() -> None:
    """A variable that only one half knows has a default in the pod that nobody chose."""
    read = {value for name, value in vars(worker_environment).items() if name.isupper() and isinstance(value, str)}
    assert read == set(VARIABLES.values())
    variables = pod_variables(rendered(EXAMPLES[0]))
    assert read - {worker_environment.API_KEYS_DIRECTORY} <= variables.keys()
    assert {name for name in variables if name.startswith("LMD_")} <= read


def test_both_halves_name_the_front_door_s_files_the_same(tmp_path: Path) -> None:
    assert names.COMMAND_FRONT_DOOR in COMMANDS
    assert files.HAPROXY_CONFIG == worker_front_door.CONFIG
    assert rendering_front_door.BACKEND == haproxy.BACKEND
    assert rendering_front_door.API_KEYS_FILE == worker_front_door.API_KEYS
    layout = Layout(root=str(tmp_path))
    assert Path(layout.front_door_socket) == Path(layout.run) / rundir.FRONT_DOOR_SOCKET


def test_file_names_agree() -> None:
    assert files.MODEL_FILES[files.MODEL_CONFIG] == mounts.MODEL_CONFIG
    assert files.MODEL_FILES[files.MANIFEST] == mounts.MANIFEST
    environment = Environment.from_variables(pod_variables(rendered(EXAMPLES[0])))
    assert environment.server_config == Path(POD.config) / files.CONFIG_PROPERTIES


def test_the_handler_is_a_module_with_one_class() -> None:
    """TorchServe takes the one class that the module itself defines."""
    assert names.HANDLER_MODULE == mounts.HANDLER
    module = importlib.import_module(names.HANDLER_MODULE)
    own = [value for value in vars(module).values() if inspect.isclass(value) and value.__module__ == module.__name__]
    assert len(own) == 1
    assert not hasattr(module, "handle")


def test_the_pod_runs_commands_that_the_worker_has() -> None:
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    assert scripts[names.WORKER_COMMAND] == "lmd_worker.__main__:main"
    (deployment,) = [content for content in map(document, rendered(EXAMPLES[0]).resources) if content["kind"] == "Deployment"]
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    called = [
        container["command"],
        container["startupProbe"]["exec"]["command"],
        container["lifecycle"]["preStop"]["exec"]["command"],
    ]
    assert all(command[0] == names.WORKER_COMMAND and len(command) == 2 for command in called)
    assert {command[1] for command in called} <= COMMANDS.keys()
    probe = container["startupProbe"]
    assert min(probe["periodSeconds"], probe["timeoutSeconds"]) > probes.STARTED_SECONDS, "it ends before it is given up or asked again"


def test_the_kubelet_asks_where_the_worker_answers() -> None:
    (deployment,) = [content for content in map(document, rendered(EXAMPLES[0]).resources) if content["kind"] == "Deployment"]
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    asked = [container[probe]["httpGet"] for probe in ("livenessProbe", "readinessProbe")]
    assert [probe["path"] for probe in asked] == list(probe_server.LOOKS)
    address = Environment.from_variables(pod_variables(rendered(EXAMPLES[0]))).probes_address
    assert {f":{probe['port']}" for probe in asked} == {address} == {Environment.from_variables({}).probes_address}


@pytest.fixture(scope="module")
def deepspeed_config() -> type[Any]:
    """DeepSpeed's own model of ds-config.json; its import, torch's included, warns about things that are not ours."""
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return importlib.import_module("deepspeed.inference.config").DeepSpeedInferenceConfig


@pytest.mark.parametrize("manifest", CUT, ids=lambda path: path.stem)
@pytest.mark.model
def test_deepspeed_parses_its_configuration(deepspeed_config, manifest: Path) -> None:
    built, engine = rendered(manifest), load(manifest).spec.engine
    config = deepspeed_config(**json.loads(built.files.texts[files.DS_CONFIG]))
    assert str(config.dtype) == f"torch.{engine.dtype}"
    assert config.tensor_parallel.tp_size == built.plan.tensor
    assert config.tensor_parallel.tp_grain_size == engine.deepspeed.tensor_parallel_grain_size
    assert config.keep_module_on_host is engine.deepspeed.keep_module_on_host
    assert config.max_out_tokens == (engine.context_tokens or files.DEFAULT_CONTEXT_TOKENS)
    assert config.replace_with_kernel_inject is False


@pytest.mark.parametrize(
    "wrong",
    [
        pytest.param({"tensor_paralel": {"tp_size": 3}}, id="misspelt key"),
        pytest.param({"tensor_parallel": {"tp_size": "three"}}, id="text for a number"),
        pytest.param({"keep_module_on_host": "perhaps"}, id="text for a truth value"),
    ],
)
@pytest.mark.model
def test_deepspeed_refuses_what_is_wrong(deepspeed_config, wrong: dict[str, Any]) -> None:
    right = json.loads(rendered(ROOT / "crds" / "examples" / "smollm2.yaml").files.texts[files.DS_CONFIG])
    with pytest.raises(ValueError, match=next(iter(wrong))):
        deepspeed_config(**{**right, **wrong})


def test_only_objects_that_are_cut_or_bring_a_handler_have_a_deepspeed_configuration() -> None:
    assert {path for path in MANIFESTS if files.DS_CONFIG in rendered(path).files.texts} == {*CUT, *CUSTOM, *ZERO}


@pytest.mark.parametrize("manifest", ZERO, ids=lambda path: path.stem)
@pytest.mark.model
def test_deepspeed_parses_its_configuration_of_stage_3(manifest: Path) -> None:
    """By the class that `deepspeed.initialize` makes of the document."""
    module = importlib.import_module("deepspeed.runtime.config")
    built, engine = rendered(manifest), load(manifest).spec.engine
    config = module.DeepSpeedConfig(json.loads(built.files.texts[files.DS_CONFIG]))
    assert (config.bfloat16_config.enabled, config.float16_config.enabled) == (engine.dtype == "bfloat16", engine.dtype == "float16")
    zero, options = config.zero_config, engine.zero_inference
    assert (int(zero.stage), zero.param_persistence_threshold, zero.max_reuse_distance) == (3, 0, 0)
    assert (zero.max_live_parameters, zero.prefetch_bucket_size) == (memory.LIVE_PARAMETERS, memory.PREFETCHED_PARAMETERS)
    assert zero.offload_param.device == {"Host": "cpu", "Disk": "nvme"}[options.parameters]
    assert zero.offload_param.pin_memory == (built.plan.gpus_per_replica > 0)
    if options.parameters == "Disk":
        assert str(zero.offload_param.nvme_path) == POD.parameters
        assert (zero.offload_param.buffer_size, zero.offload_param.buffer_count) == (options.buffer_parameters, memory.BUFFERS)
    quantization = config.weight_quantization_config
    assert (quantization is not None) == zero.memory_efficient_linear == (options.weights != "Full")
    if quantization is not None:
        told = quantization.quantized_initialization
        assert (told["num_bits"], told["group_size"]) == (memory.BITS[options.weights], memory.QUANTIZED_GROUP)


@pytest.mark.parametrize(
    "wrong", [{"stage3_max_live_params": 1}, {"offload_param": {"device": "disk"}}, {"stage": "three"}], ids=lambda wrong: next(iter(wrong))
)
@pytest.mark.model
def test_deepspeed_refuses_what_is_wrong_of_stage_3(wrong: dict[str, Any]) -> None:
    module = importlib.import_module("deepspeed.runtime.config")
    right = json.loads(rendered(ZERO[0]).files.texts[files.DS_CONFIG])
    with pytest.raises(ValueError, match=next(iter(wrong))):
        module.DeepSpeedConfig({**right, "zero_optimization": {**right["zero_optimization"], **wrong}})


@pytest.mark.parametrize("manifest", CUSTOM, ids=lambda path: path.stem)
def test_a_handler_of_the_users_finds_what_torchserves_helpers_read(manifest: Path) -> None:
    built = rendered(manifest)
    config = yaml.safe_load(built.files.texts[files.MODEL_CONFIG])
    assert config["handler"] == {"model_path": "/models/small"}
    assert config["deepspeed"] == {"config": files.DS_CONFIG}
    document = json.loads(built.files.texts[files.DS_CONFIG])
    assert document["tensor_parallel"]["tp_size"] == built.plan.tensor == config.get("torchrun", {}).get("nproc-per-node", 1)
    assert json.loads(built.files.texts[files.MANIFEST])["model"]["handler"] == names.CUSTOM_HANDLER_MODULE == mounts.CUSTOM_HANDLER
    assert len([each for each in vars(custom).values() if inspect.isclass(each) and each.__module__ == custom.__name__]) == 1


CACHED = {"shared-cache": 1, "cache-removed-with-the-object": 2}
"""Scenario to the number of its Jobs."""
FETCHED = [path for path in MANIFESTS if path.stem in ("fetched-from-a-hub", "fetched-from-s3", "shared-cache", "verified-on-a-claim")]


def test_operator_and_fetch_agree_on_names() -> None:
    assert (names.ENV_SOURCE_FILE, names.ENV_PROGRESS_PORT, names.PROGRESS_PATH) == (source.SOURCE_FILE, progress.PORT, progress.PATH)


@pytest.mark.parametrize("manifest", FETCHED, ids=lambda path: path.stem)
def test_the_fetch_reads_what_it_is_told(manifest: Path, tmp_path: Path) -> None:
    owner = load(manifest)
    built = rendered(manifest)
    file = tmp_path / "source.json"
    file.write_text(built.files.texts["source.json"])
    order = source.read(file)
    section = yaml.safe_load(built.files.texts["model-config.yaml"])["handler"]
    assert order.into == section["model_path"], "the worker loads what the fetch brings"
    assert order.sha256 == (dict(owner.spec.model.verify.sha256) if owner.spec.model.verify else {})
    told = built.files.texts["source.json"]
    assert "secret" not in told.lower()
    assert "token" not in told.lower()


@pytest.mark.parametrize("manifest", [path for path in MANIFESTS if path.stem in CACHED], ids=lambda path: path.stem)
def test_the_jobs_of_a_cache_bring_what_replicas_look_for(manifest: Path, tmp_path: Path) -> None:
    """Each reads its order, and runs a command that there is."""
    built = rendered(manifest)
    documents = [document(resource) for resource in built.resources]
    file = tmp_path / "source.json"
    file.write_text(built.files.texts["source.json"])
    looked_for = source.read(file)
    assert not looked_for.bring
    jobs = [content for content in documents if content["kind"] == "Job"]
    for content in jobs:
        template = content["spec"]["template"]
        file.write_text(template["metadata"]["annotations"][names.ANNOTATION_ORDER])
        order = source.read(file)
        assert (order.into, order.source, order.sha256) == (looked_for.into, looked_for.source, looked_for.sha256)
        assert order.user
        (container,) = template["spec"]["containers"]
        assert container["command"][1] in COMMANDS
    assert len(jobs) == CACHED[manifest.stem]


@pytest.mark.parametrize("form", ["default", "no-archive"])
def test_the_worker_starts_with_what_the_real_archiver_makes(tmp_path: Path, form: str) -> None:
    """Composed as `serve` does it; then nothing is wrong with it, and the frontend would be started on the composed store."""
    handler = tmp_path / "mine.py"
    handler.write_text("class Mine: ...\n")
    export = tmp_path / "models"
    export.mkdir()
    command = [Path(sys.executable).with_name("torch-model-archiver"), "--model-name", "own", "--version", "1.0", "--handler", handler]
    subprocess.run([*command, "--export-path", export, "--archive-format", form], check=True, capture_output=True)
    document = yaml.safe_load((ROOT / "tests" / "scenarios" / "handler-in-an-archive.yaml").read_text())
    document["spec"]["handler"]["archive"] = "own.mar" if form == "default" else "own"
    layout = Layout(root=str(tmp_path / "r"), models=str(export), shared_memory=f"{tmp_path}/shm")
    container = materialise(desired(parse(document), OperatorSettings(), layout))
    started: list[list[str]] = []
    variables = {"PATH": os.environ["PATH"], **container.environment}
    here = Path.cwd()
    try:
        environment = Environment.from_variables(variables)
        problems = bootstrap.serve(environment, variables, lambda *given: started.append(given[1]), lambda *_: None)
    finally:
        os.chdir(here)
    assert problems == []
    store = Path(started[0][started[0].index("-s") + 1])
    assert (store / "classic" / "mine.py").read_text() == "class Mine: ...\n"
    assert yaml.safe_load((store / "classic" / "model-config.yaml").read_text())["custom"]["handler"] == "mine.py"
