"""What is true of whatever valid object is rendered and built."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lmd_operator.api.parse import parse
from lmd_operator.api.v1alpha1 import NAME_MAX_LENGTH
from lmd_operator.resources.desired import Desired, desired, document
from lmd_operator.settings import Settings

KEY_ORDER = [
    "minWorkers",
    "maxWorkers",
    "batchSize",
    "maxBatchDelay",
    "responseTimeout",
    "startupTimeout",
    "maxRetryTimeoutInSec",
    "deviceType",
    "parallelType",
    "parallelLevel",
    "torchrun",
]
"""Read by the frontend in this order; of alternatives the later one wins."""
FORBIDDEN_KEYS = {
    "deviceIds",
    "useVenv",
    "rdzv-conf",
    "node-rank",
    "monitor-interval",
    "max-restarts",
    "asyncCommunication",
    "checkpoint",
    "mp_size",
}
WHOLE_NUMBERS = {
    "minWorkers",
    "maxWorkers",
    "batchSize",
    "maxBatchDelay",
    "responseTimeout",
    "startupTimeout",
    "maxRetryTimeoutInSec",
    "jobQueueSize",
    "nnodes",
    "nproc-per-node",
    "OMP_NUMBER_THREADS",
    "concurrency",
    "pipeline",
    "queue_size",
    "context_tokens",
    "collective_timeout_seconds",
    "stall_timeout_seconds",
}
JAVA_INT_MAX = 2**31 - 1

QUANTITIES = st.sampled_from(["500m", "1", "2.5", "3", "7500m", "16", "96"])
MEMORY = st.sampled_from(["24Gi", "200Gi", "64G"])
NAMES = st.from_regex(rf"\A[a-z][-a-z0-9]{{0,{NAME_MAX_LENGTH - 2}}}[a-z0-9]\Z")
MODEL_NAMES = st.from_regex(r"\A[A-Za-z0-9]([A-Za-z0-9._-]{0,20}[A-Za-z0-9])?\Z")
SECONDS = st.integers(1, 86400)
LABELS = st.dictionaries(st.from_regex(r"\A(example\.com/)?[a-z]{1,8}\Z"), st.from_regex(r"\A[A-Za-z0-9]{0,8}\Z"), max_size=3)
VARIABLE_NAMES = st.from_regex(r"\AMY_[A-Z]{1,8}\Z")
PATHS = st.text(st.characters(exclude_characters="\x00/", exclude_categories=["Cs"]), min_size=1, max_size=12).filter(
    lambda part: part != ".."
)
"""Directories are the only text that is free: quotes, colons, line breaks and other scripts included."""


def optional(**fields: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    return st.fixed_dictionaries({}, optional=fields)


SOURCES = st.one_of(
    PATHS.map(lambda path: {"path": {"path": f"/models/{path}"}}),
    st.builds(
        lambda claim, path: {"persistentVolumeClaim": {"claimName": claim} | ({"path": path} if path else {})},
        NAMES,
        st.one_of(st.just(""), PATHS),
    ),
)
ROLLOUTS = st.one_of(
    optional(strategy=st.sampled_from(["Auto", "Recreate"]), revisionHistoryLimit=st.integers(1, 100)),
    st.builds(
        lambda limits: {"strategy": "RollingUpdate", **limits},
        optional(maxSurge=st.sampled_from([1, 3, "25%"]), maxUnavailable=st.sampled_from([0, 1, "0%", "50%"])),
    ),
)
PARALLELISM = st.one_of(
    st.builds(lambda degree: {"tensor": degree}, st.integers(1, 1024)),
    st.builds(lambda degree: {"tensor": degree, "strategy": "DeepSpeed"}, st.integers(2, 1024)),
    st.builds(lambda degree: {"tensor": degree, "strategy": "Tensor"}, st.integers(2, 1024)),
    st.builds(lambda degree: {"expert": degree, "strategy": "Expert"}, st.integers(2, 256)),
    st.builds(lambda stages: {"pipeline": stages, "strategy": "Pipeline"}, st.integers(2, 256)),
    st.builds(
        lambda degree, stages: {"tensor": degree, "pipeline": stages, "strategy": "PipelineTensor"}, st.integers(2, 64), st.integers(2, 16)
    ),
    st.just({"strategy": "None"}),
    st.just({"strategy": "Accelerate"}),
    st.builds(lambda degree: {"data": degree, "strategy": "ZeroInference"}, st.integers(1, 256)),
    st.just({}),
)
WITH_DEEPSPEED_OPTIONS = ("Auto", "DeepSpeed", "None")
ENGINES = optional(
    dtype=st.sampled_from(["bfloat16", "float32"]),
    contextTokens=st.integers(16, 10_000_000),
    concurrency=st.integers(1, 1024),
    deepspeed=optional(tensorParallelGrainSize=st.integers(1, 65536), keepModuleOnHost=st.booleans()),
    torchServe=optional(responseTimeoutSeconds=SECONDS, startupTimeoutSeconds=SECONDS, jobQueueSize=st.integers(1, 100000)),
)
TEMPLATES = optional(
    metadata=optional(labels=LABELS, annotations=LABELS),
    resources=optional(requests=optional(cpu=QUANTITIES), limits=optional(memory=MEMORY)),
    sharedMemory=st.sampled_from(["64Mi", "1Gi", "16Gi"]),
    nodeSelector=LABELS,
    env=st.lists(VARIABLE_NAMES, unique=True, max_size=3).map(lambda names: [{"name": name, "value": "v"} for name in names]),
)


@st.composite
def specs(draw: st.DrawFn) -> dict[str, Any]:
    """The spec of any object that this version serves."""
    parallelism, engine = draw(PARALLELISM), draw(ENGINES)
    if parallelism.get("strategy", "Auto") not in WITH_DEEPSPEED_OPTIONS:
        engine.pop("deepspeed", None)
    return {
        "model": {"source": draw(SOURCES), **draw(optional(name=MODEL_NAMES, trustRemoteCode=st.booleans()))},
        "parallelism": parallelism,
        "engine": engine,
        "accelerator": {"type": draw(st.sampled_from(["CPU", "Nvidia"]))},
        **draw(
            optional(
                replicas=st.integers(0, 1000),
                rollout=ROLLOUTS,
                template=TEMPLATES,
                restart=st.from_regex(r"\A[a-z0-9]{0,10}\Z"),
                suspend=st.booleans(),
                endpoint=optional(port=st.integers(1, 65535)),
            )
        ),
    }


@st.composite
def sources(draw: st.DrawFn) -> dict[str, Any]:
    """Any object that this version serves, as its document."""
    metadata = {"name": draw(NAMES), **draw(optional(namespace=st.just("team"), uid=st.uuids().map(str)))}
    return {"apiVersion": "largemodel.dev/v1alpha1", "kind": "LargeModelDeployment", "metadata": metadata, "spec": draw(specs())}


def build(source: dict[str, Any]) -> Desired:
    return desired(parse(source), Settings())


def children(built: Desired) -> dict[str, dict[str, Any]]:
    return {content["kind"]: content for content in map(document, built.resources)}


def keys(node: object) -> set[str]:
    """Every key at any depth."""
    if isinstance(node, dict):
        return set(node) | {key for value in node.values() for key in keys(value)}
    return {key for value in node for key in keys(value)} if isinstance(node, list) else set()


relaxed = settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.too_slow])
"""No time is asserted: the machine may be busy."""


@relaxed
@given(sources())
def test_one_degree_is_everywhere_the_same(source) -> None:
    built = build(source)
    asked = parse(source).spec.parallelism
    degree = {"Expert": asked.expert, "ZeroInference": asked.data}.get(asked.strategy, int(asked.tensor) * asked.pipeline)
    config = yaml.safe_load(built.files.texts["model-config.yaml"])
    (container,) = children(built)["Deployment"]["spec"]["template"]["spec"]["containers"]
    amounts = container.get("resources", {})
    devices = [amounts.get(kind, {}).get("nvidia.com/gpu") for kind in ("requests", "limits")]
    local_sizes = [variable["value"] for variable in container["env"] if variable["name"] == "LOCAL_SIZE"]
    on_cpu = source["spec"]["accelerator"]["type"] == "CPU"

    assert devices == ([None, None] if on_cpu else [str(degree)] * 2)
    assert config["deviceType"] == ("cpu" if on_cpu else "gpu")
    assert local_sizes == ([str(degree)] if on_cpu and degree > 1 else [])
    assert ("torchrun" in config) + ("parallelLevel" in config) == int("parallelType" in config), "one or the other, or neither"
    by_deepspeed = config["handler"]["strategy"] in ("DeepSpeed", "ZeroInference")
    assert ("ds-config.json" in built.files.texts) == ("deepspeed" in config) == by_deepspeed
    if degree == 1:
        assert config.get("parallelType") == ("custom" if asked.strategy == "Accelerate" else None)
        assert config.get("parallelLevel") == (1 if asked.strategy == "Accelerate" else None)
        assert config["handler"]["strategy"] == (asked.strategy if asked.strategy in ("Accelerate", "ZeroInference") else "None")
    else:
        assert config["parallelType"] == {"Pipeline": "pp", "PipelineTensor": "pptp"}.get(asked.strategy, "tp")
        assert config["handler"].get("pipeline", 1) == asked.pipeline
        assert config["torchrun"]["nproc-per-node"] == degree
        assert config["torchrun"]["nnodes"] == 1
        if config["handler"]["strategy"] == "DeepSpeed":
            assert json.loads(built.files.texts["ds-config.json"])["tensor_parallel"]["tp_size"] == degree


@relaxed
@given(sources())
def test_the_model_configuration_is_what_the_frontend_parses(source) -> None:
    text = build(source).files.texts["model-config.yaml"]
    config = yaml.safe_load(text)
    assert yaml.safe_dump(config, sort_keys=False, default_flow_style=False) == text
    assert text.isascii()
    assert [key for key in config if key in KEY_ORDER] == [key for key in KEY_ORDER if key in config]
    assert list(config)[-1] in ("handler", "deepspeed"), "the frontend's own keys come first"
    assert keys(config).isdisjoint(FORBIDDEN_KEYS)
    assert all(key.isascii() for key in keys(config))
    numbers = {**config, **config.get("torchrun", {}), **config["handler"]}
    for key in WHOLE_NUMBERS & numbers.keys():
        assert type(numbers[key]) is int, key
        assert 0 <= numbers[key] <= JAVA_INT_MAX, key
    assert config["maxBatchDelay"] >= 1, "0 counts as unset"
    assert config["continuousBatching"] is True
    assert config["maxRetryTimeoutInSec"] == 0
    assert config["minWorkers"] == config["maxWorkers"] == 1


@relaxed
@given(sources())
def test_json_and_properties_say_what_was_meant(source) -> None:
    owner, texts = parse(source), build(source).files.texts
    manifest = json.loads(texts["MANIFEST.json"])
    assert manifest["model"]["modelName"] == owner.model_name
    assert manifest["runtime"] == "python"
    lines = texts["config.properties"].splitlines()
    pairs = dict(line.split("=", 1) for line in lines)
    assert len(pairs) == len(lines)
    assert texts["config.properties"].isascii()
    assert pairs["load_models"] == owner.model_name
    assert keys(json.loads(texts.get("ds-config.json", "{}"))).isdisjoint(FORBIDDEN_KEYS)


@relaxed
@given(sources())
def test_the_path_of_the_weights_arrives_as_it_was_written(source) -> None:
    built = build(source)
    handler = yaml.safe_load(built.files.texts["model-config.yaml"])["handler"]
    kind, given_source = next(iter(source["spec"]["model"]["source"].items()))
    path = given_source["path"] if kind == "path" else f"/models/{given_source.get('path', '')}".rstrip("/")
    assert handler["model_path"] == path


@relaxed
@given(sources())
def test_building_is_deterministic_and_changes_nothing(source) -> None:
    given_source = copy.deepcopy(source)
    owner = parse(source)
    before = owner.model_dump_json()
    first, second = desired(owner, Settings()), build(given_source)
    assert source == given_source
    assert owner.model_dump_json() == before
    assert dict(first.files.texts) == dict(second.files.texts)
    assert [document(resource) for resource in first.resources] == [document(resource) for resource in second.resources]
    assert json.dumps(children(first)) == json.dumps(children(second)), "also in the order of keys"


@relaxed
@given(sources())
def test_children_share_no_mutable_part(source) -> None:
    built = build(source)
    before = {kind: content for kind, content in children(built).items() if kind != "Service"}
    service = next(resource for resource in built.resources if resource.kind == "Service")
    service.metadata.labels["changed"] = "yes"
    service.spec.selector["changed"] = "yes"
    assert {kind: content for kind, content in children(built).items() if kind != "Service"} == before


@relaxed
@given(
    sources(), specs(), st.sets(st.sampled_from(["model", "engine", "replicas", "rollout", "template", "restart", "suspend"]), max_size=3)
)
def test_texts_are_equal_exactly_when_revisions_are(source, spec, replaced) -> None:
    changes = {part: value for part, value in spec.items() if part in replaced}
    first, second = build(source), build({**source, "spec": {**source["spec"], **changes}})
    same = dict(first.files.texts) == dict(second.files.texts)
    assert (first.files.revision == second.files.revision) is same
    assert same or changes, "nothing changed, so nothing may differ"


@relaxed
@given(sources(), specs())
def test_selectors_never_change(source, spec) -> None:
    changed = {**source, "spec": spec}
    before, after = children(build(source)), children(build(changed))
    assert after["Deployment"]["spec"]["selector"] == before["Deployment"]["spec"]["selector"]
    assert after["Service"]["spec"]["selector"] == before["Service"]["spec"]["selector"]
    labels = after["Deployment"]["spec"]["template"]["metadata"]["labels"]
    assert before["Deployment"]["spec"]["selector"]["matchLabels"].items() <= labels.items()


@relaxed
@given(sources())
def test_the_pod_uses_the_config_map_of_its_own_revision(source) -> None:
    built = build(source)
    found = children(built)
    template = found["Deployment"]["spec"]["template"]
    mounted = {volume["configMap"]["name"] for volume in template["spec"]["volumes"] if "configMap" in volume}
    assert mounted == {found["ConfigMap"]["metadata"]["name"]}
    assert template["metadata"]["labels"]["largemodel.dev/revision"] == built.files.revision
    keys_mounted = [item["key"] for volume in template["spec"]["volumes"] if "configMap" in volume for item in volume["configMap"]["items"]]
    assert sorted(keys_mounted) == sorted(found["ConfigMap"]["data"])


@relaxed
@given(sources())
def test_a_rollout_can_always_go_on(source) -> None:
    strategy = children(build(source))["Deployment"]["spec"]["strategy"]
    if strategy["type"] == "RollingUpdate":
        update = strategy["rollingUpdate"]
        assert not (update["maxSurge"] in (0, "0%") and update["maxUnavailable"] in (0, "0%"))


@relaxed
@given(sources())
def test_a_budget_protects_exactly_what_can_be_missed(source) -> None:
    owner = parse(source)
    assert ("PodDisruptionBudget" in children(build(source))) is (owner.spec.replicas > 1 and not owner.spec.suspend)


BASE: dict[str, Any] = {
    "apiVersion": "largemodel.dev/v1alpha1",
    "kind": "LargeModelDeployment",
    "metadata": {"name": "base"},
    "spec": {
        "model": {"source": {"persistentVolumeClaim": {"claimName": "models", "path": "a"}}},
        "parallelism": {"tensor": 2},
        "engine": {"deepspeed": {}, "torchServe": {}},
        "accelerator": {},
        "rollout": {},
        "endpoint": {},
        "template": {"metadata": {}, "resources": {}},
    },
}


def changed(path: str, value: object) -> dict[str, Any]:
    source = copy.deepcopy(BASE)
    *parents, last = path.split(".")
    node = source
    for key in parents:
        node = node[key]
    node[last] = value
    return source


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("spec.model.name", "other"),
        ("spec.model.source", {"persistentVolumeClaim": {"claimName": "models", "path": "b"}}),
        ("spec.model.trustRemoteCode", True),
        ("spec.parallelism.tensor", 4),
        ("spec.engine.dtype", "float16"),
        ("spec.engine.contextTokens", 4096),
        ("spec.engine.concurrency", 9),
        ("spec.engine.prefixCaching", False),
        ("spec.engine.deepspeed.tensorParallelGrainSize", 32),
        ("spec.engine.deepspeed.keepModuleOnHost", True),
        ("spec.engine.torchServe.responseTimeoutSeconds", 299),
        ("spec.engine.torchServe.startupTimeoutSeconds", 1799),
        ("spec.engine.torchServe.jobQueueSize", 99),
        ("spec.accelerator.type", "CPU"),
        ("spec.template.resources.limits", {"cpu": "8"}),
    ],
    ids=lambda value: value if isinstance(value, str) and "." in value else "",
)
def test_a_change_of_what_the_worker_reads_is_another_revision(path: str, value: object) -> None:
    assert build(changed(path, value)).files.revision != build(BASE).files.revision


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("metadata.uid", "6a1f4d0e-6e1c-4a55-9a0e-0d3c0b1f2a77"),
        ("metadata.generation", 7),
        ("metadata.labels", {"team": "a"}),
        ("metadata.annotations", {"note": "b"}),
        ("spec.replicas", 5),
        ("spec.suspend", True),
        ("spec.restart", "again"),
        ("spec.rollout.strategy", "Recreate"),
        ("spec.rollout.revisionHistoryLimit", 1),
        ("spec.endpoint.port", 8000),
        ("spec.endpoint.service", {"type": "NodePort"}),
        ("spec.accelerator.memory", "80Gi"),
        ("spec.accelerator.resourceName", "example.com/gpu"),
        ("spec.model.source", {"persistentVolumeClaim": {"claimName": "other", "path": "a"}}),
        ("spec.template.image", "worker:2"),
        ("spec.template.metadata.labels", {"team": "a"}),
        ("spec.template.nodeSelector", {"pool": "gpu"}),
        ("spec.template.env", [{"name": "NCCL_DEBUG", "value": "INFO"}]),
    ],
    ids=lambda value: value if isinstance(value, str) and "." in value else "",
)
def test_a_change_of_anything_else_keeps_the_revision(path: str, value: object) -> None:
    assert build(changed(path, value)).files.revision == build(BASE).files.revision


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("spec.replicas", 5),
        ("spec.suspend", True),
        ("spec.rollout.strategy", "Recreate"),
        ("spec.endpoint.port", 8000),
        ("metadata.labels", {"team": "a"}),
        ("metadata.uid", "6a1f4d0e-6e1c-4a55-9a0e-0d3c0b1f2a77"),
        ("metadata.generation", 7),
    ],
    ids=lambda value: value if isinstance(value, str) and "." in value else "",
)
def test_scaling_and_publishing_roll_no_pod(path: str, value: object) -> None:
    before, after = (children(build(source))["Deployment"]["spec"]["template"] for source in (BASE, changed(path, value)))
    assert after == before


def test_a_restart_token_rolls_the_pods() -> None:
    before, after = (children(build(source))["Deployment"]["spec"]["template"] for source in (BASE, changed("spec.restart", "again")))
    assert after["metadata"]["annotations"] == {"largemodel.dev/restart": "again"}
    assert after["spec"] == before["spec"]


@relaxed
@given(sources())
def test_every_generated_object_is_one_this_version_serves(source) -> None:
    assert parse(yaml.safe_load(yaml.safe_dump(source))) == parse(source)
