"""The pod against the restricted Pod Security Standard, and what a pod of ranks needs besides it.

Source: kubernetes.io/docs/concepts/security/pod-security-standards, profile Restricted, which includes Baseline.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import Any

import pytest
import yaml

from lmd_operator.api.parse import parse
from lmd_operator.api.semantics import quantity
from lmd_operator.api.v1alpha1 import NAME_MAX_LENGTH
from lmd_operator.names import RESERVED_ENV, RESERVED_ENV_PREFIXES
from lmd_operator.planning.startup import UNKNOWN
from lmd_operator.resources.desired import desired, document
from lmd_operator.settings import Settings

ROOT = Path(__file__).parents[3]
MANIFESTS = sorted([*(ROOT / "crds" / "examples").glob("*.yaml"), *(ROOT / "tests" / "scenarios").glob("*.yaml")])
RESTRICTED_VOLUMES = {"configMap", "csi", "downwardAPI", "emptyDir", "ephemeral", "image", "persistentVolumeClaim", "projected", "secret"}
READ_ONLY_VARIABLES = {"LMD_MODEL_STORE", "LMD_CONFIG_DIR"}
LABEL_MAX_LENGTH = 63

Pod = dict[str, Any]


def children(source: dict[str, Any]) -> dict[str, dict[str, Any]]:
    documents = [document(resource) for resource in desired(parse(source), Settings()).resources]
    return {content["kind"]: content for content in documents if "largemodel.dev/task" not in content["metadata"]["labels"]}


def jobs(source: dict[str, Any]) -> list[dict[str, Any]]:
    """The Jobs of an object, and the policy of their pods last."""
    documents = [document(resource) for resource in desired(parse(source), Settings()).resources]
    return [content for content in documents if "largemodel.dev/task" in content["metadata"]["labels"]]


def violations(pod: Pod) -> set[str]:
    """What the restricted profile forbids in a pod's spec."""
    context = pod.get("securityContext", {})
    found = {name for name in ("hostNetwork", "hostPID", "hostIPC") if pod.get(name)}
    found |= {f"volume {volume['name']}" for volume in pod.get("volumes", []) if not set(volume) - {"name"} <= RESTRICTED_VOLUMES}
    if context.get("sysctls"):
        found.add("sysctls")
    for container in [*pod["containers"], *pod.get("initContainers", [])]:
        own = container.get("securityContext", {})
        both = {**context, **own}
        if both.get("runAsNonRoot") is not True:
            found.add("runAsNonRoot")
        if both.get("runAsUser") == 0:
            found.add("runAsUser")
        if both.get("seccompProfile", {}).get("type") not in ("RuntimeDefault", "Localhost"):
            found.add("seccompProfile")
        if own.get("privileged"):
            found.add("privileged")
        if own.get("allowPrivilegeEscalation") is not False:
            found.add("allowPrivilegeEscalation")
        capabilities = own.get("capabilities", {})
        if "ALL" not in capabilities.get("drop", []) or not set(capabilities.get("add", [])) <= {"NET_BIND_SERVICE"}:
            found.add("capabilities")
        if own.get("procMount", "Default") != "Default":
            found.add("procMount")
        if any(port.get("hostPort") for port in container.get("ports", [])):
            found.add("hostPort")
    return found


@pytest.fixture(params=MANIFESTS, ids=lambda path: path.stem)
def source(request: pytest.FixtureRequest) -> dict[str, Any]:
    return yaml.safe_load(request.param.read_text())


@pytest.fixture
def template(source: dict[str, Any]) -> dict[str, Any]:
    return children(source)["Deployment"]["spec"]["template"]


@pytest.fixture
def pod(template: dict[str, Any]) -> Pod:
    return template["spec"]


@pytest.fixture
def worker(pod: Pod) -> dict[str, Any]:
    (container,) = pod["containers"]
    return container


def variables(worker: dict[str, Any]) -> dict[str, str]:
    return {variable["name"]: variable["value"] for variable in worker["env"] if "value" in variable}


def test_the_pod_is_restricted(pod: Pod) -> None:
    assert violations(pod) == set()


def _set(*path: str | int, value: object) -> Callable[[Pod], None]:
    def spoil(pod: Pod) -> None:
        node: Any = pod
        for key in path[:-1]:
            node = node[key]
        node[path[-1]] = value

    return spoil


@pytest.mark.parametrize(
    ("spoil", "found"),
    [
        pytest.param(_set("hostNetwork", value=True), "hostNetwork", id="host network"),
        pytest.param(_set("hostPID", value=True), "hostPID", id="host processes"),
        pytest.param(_set("hostIPC", value=True), "hostIPC", id="host shared memory"),
        pytest.param(_set("volumes", 0, value={"name": "v", "hostPath": {"path": "/"}}), "volume v", id="host path"),
        pytest.param(_set("securityContext", "runAsNonRoot", value=False), "runAsNonRoot", id="may be root"),
        pytest.param(_set("securityContext", "runAsUser", value=0), "runAsUser", id="is root"),
        pytest.param(_set("securityContext", "seccompProfile", value={"type": "Unconfined"}), "seccompProfile", id="no seccomp"),
        pytest.param(_set("securityContext", "sysctls", value=[{"name": "a", "value": "b"}]), "sysctls", id="sysctls"),
        pytest.param(_set("containers", 0, "securityContext", value={}), "allowPrivilegeEscalation", id="may escalate"),
        pytest.param(_set("containers", 0, "securityContext", "capabilities", value={}), "capabilities", id="keeps capabilities"),
        pytest.param(
            _set("containers", 0, "securityContext", "capabilities", "add", value=["SYS_PTRACE"]), "capabilities", id="adds capabilities"
        ),
        pytest.param(_set("containers", 0, "securityContext", "privileged", value=True), "privileged", id="privileged"),
        pytest.param(_set("containers", 0, "securityContext", "procMount", value="Unmasked"), "procMount", id="unmasked proc"),
        pytest.param(_set("initContainers", 0, "ports", 0, "hostPort", value=80), "hostPort", id="host port"),
    ],
)
def test_the_check_finds_every_violation(spoil: Callable[[Pod], None], found: str) -> None:
    pod = copy.deepcopy(children(yaml.safe_load(MANIFESTS[0].read_text()))["Deployment"]["spec"]["template"]["spec"])
    spoil(pod)
    assert found in violations(pod)


def test_the_root_file_system_is_read_only(worker: dict[str, Any]) -> None:
    assert worker["securityContext"]["readOnlyRootFilesystem"] is True


def test_the_pod_has_no_token_and_learns_no_services(pod: Pod) -> None:
    assert pod["automountServiceAccountToken"] is False
    assert pod["enableServiceLinks"] is False


def test_user_and_group_are_fixed_numbers(pod: Pod) -> None:
    context = pod["securityContext"]
    assert context["runAsUser"] == context["runAsGroup"] == context["fsGroup"] >= 10000


def test_shared_memory_is_memory_with_a_limit(pod: Pod, worker: dict[str, Any]) -> None:
    (mount,) = [mount for mount in worker["volumeMounts"] if mount["mountPath"] == "/dev/shm"]
    (volume,) = [volume for volume in pod["volumes"] if volume["name"] == mount["name"]]
    assert set(volume["emptyDir"]) == {"medium", "sizeLimit"}
    assert volume["emptyDir"]["medium"] == "Memory"
    assert quantity(volume["emptyDir"]["sizeLimit"]) >= 64 * 2**20
    assert not mount.get("readOnly")


def test_scratch_space_is_bounded(pod: Pod) -> None:
    """All but the weights, fetched or rewritten, whose size only the model knows; who writes them looks for space first."""
    bounded = [volume for volume in pod["volumes"] if "emptyDir" in volume and volume["name"] not in ("weights", "parameters")]
    assert all("sizeLimit" in volume["emptyDir"] for volume in bounded)


def test_mounts_and_volumes_belong_together(pod: Pod, worker: dict[str, Any]) -> None:
    names = [volume["name"] for volume in pod["volumes"]]
    paths = [mount["mountPath"] for mount in worker["volumeMounts"]]
    assert sorted(names) == sorted(mount["name"] for mount in worker["volumeMounts"])
    assert len(set(names)) == len(names)
    assert len(set(paths)) == len(paths)


def test_weights_and_files_are_mounted_read_only(pod: Pod, worker: dict[str, Any]) -> None:
    writable = {mount["name"] for mount in worker["volumeMounts"] if not mount.get("readOnly")}
    assert writable == {volume["name"] for volume in pod["volumes"] if "emptyDir" in volume} - {"weights"}


def test_every_path_in_the_environment_is_where_it_should_be(worker: dict[str, Any]) -> None:
    """Nothing but a mount can be written: a cache below another path would fail on its first use."""
    writable = [PurePosixPath(mount["mountPath"]) for mount in worker["volumeMounts"] if not mount.get("readOnly")]
    mounted = [PurePosixPath(mount["mountPath"]) for mount in worker["volumeMounts"]]
    paths = {name: PurePosixPath(value) for name, value in variables(worker).items() if value.startswith("/")}
    assert paths.keys() >= {"TEMP", "TMPDIR", "HOME", "LOG_LOCATION", "METRICS_LOCATION", "LMD_RUN_DIR", *READ_ONLY_VARIABLES}
    for name, path in paths.items():
        if name == "LMD_TERMINATION_MESSAGE_PATH":
            assert str(path) == worker["terminationMessagePath"], "the kubelet mounts this file by itself"
        elif name in READ_ONLY_VARIABLES:
            assert any(mount.is_relative_to(path) for mount in mounted), name
        else:
            assert any(path.is_relative_to(mount) for mount in writable), name


def test_the_pod_does_not_choose_its_devices(worker: dict[str, Any]) -> None:
    """The frontend numbers devices from 0, whatever the variable says."""
    assert not variables(worker).keys() & {"CUDA_VISIBLE_DEVICES", "NVIDIA_VISIBLE_DEVICES"}


def test_variables_are_given_once(worker: dict[str, Any]) -> None:
    names = [variable["name"] for variable in worker["env"]]
    assert len(set(names)) == len(names)


def test_no_variable_of_ours_can_be_set_in_the_template() -> None:
    """Server-side apply refuses a list that names a variable twice."""
    for manifest in MANIFESTS:
        source = yaml.safe_load(manifest.read_text())
        source["spec"].get("template", {}).pop("env", None)
        (container,) = children(source)["Deployment"]["spec"]["template"]["spec"]["containers"]
        free = {name for name in variables(container) if name not in RESERVED_ENV and not name.startswith(RESERVED_ENV_PREFIXES)}
        assert free == set(), manifest.stem


def test_readiness_and_liveness_ask_different_questions(worker: dict[str, Any]) -> None:
    """TorchServe's /ping is 200 before any rank has loaded: it may restart a pod, never make it ready."""
    ready, alive = worker["readinessProbe"], worker["livenessProbe"]
    assert alive["httpGet"] == {"path": "/livez", "port": 8406}
    assert ready["httpGet"] == {"path": "/readyz", "port": 8406}
    assert worker["startupProbe"]["exec"] == {"command": ["lmd-worker", "started"]}


def test_the_startup_probe_waits_as_long_as_the_model_may_load(source: dict[str, Any], worker: dict[str, Any]) -> None:
    probe = worker["startupProbe"]
    seconds = parse(source).spec.engine.torch_serve.startup_timeout_seconds or UNKNOWN.seconds
    assert seconds <= probe["periodSeconds"] * probe["failureThreshold"] < seconds + probe["periodSeconds"]


def test_the_pod_lives_until_its_drain_is_over(pod: Pod, worker: dict[str, Any]) -> None:
    given = variables(worker)
    drain_seconds = int(given["LMD_DRAIN_LAG_SECONDS"]) + int(given["LMD_DRAIN_SECONDS"])
    assert pod["terminationGracePeriodSeconds"] > drain_seconds


def test_selectors_are_one_label_that_pods_have(source: dict[str, Any], template: dict[str, Any]) -> None:
    frozen = {"largemodel.dev/deployment": source["metadata"]["name"]}
    found = children(source)
    assert found["Deployment"]["spec"]["selector"] == {"matchLabels": frozen}
    assert found["Service"]["spec"]["selector"] == frozen
    assert found["NetworkPolicy"]["spec"]["podSelector"] == {"matchLabels": frozen}
    if "PodDisruptionBudget" in found:
        assert found["PodDisruptionBudget"]["spec"]["selector"] == {"matchLabels": frozen}
    assert frozen.items() < template["metadata"]["labels"].items()


def test_only_requests_metrics_and_the_question_for_progress_may_come_in(source: dict[str, Any], pod: Pod) -> None:
    found = children(source)
    policy = found["NetworkPolicy"]["spec"]
    assert policy["policyTypes"] == ["Ingress", "Egress"]
    is_fetched = any(source["spec"]["model"]["source"].get(kind) for kind in ("huggingFace", "s3")) and not source["spec"]["model"].get(
        "cache"
    )
    assert bool(policy["egress"]) is is_fetched, "only a pod that fetches talks to anybody"
    *fetch, front_door = pod["initContainers"]
    asked = [{"port": 8083, "protocol": "TCP"}] if fetch else []
    assert policy["ingress"] == [{"ports": [{"port": 8000, "protocol": "TCP"}, {"port": 8405, "protocol": "TCP"}, *asked]}]
    assert {port["name"]: port["containerPort"] for port in front_door["ports"]} == {"http": 8000, "operations": 8405}
    assert "ports" not in pod["containers"][0]
    assert [port["targetPort"] for port in found["Service"]["spec"]["ports"]] == [8000]


def test_the_front_door_starts_first_and_ends_last(pod: Pod) -> None:
    front_door = pod["initContainers"][-1]
    assert front_door["restartPolicy"] == "Always", "what Kubernetes takes as a sidecar"
    assert front_door["image"] == pod["containers"][0]["image"]
    assert "startupProbe" not in front_door, "the worker would wait for its success"
    assert front_door["livenessProbe"]["httpGet"] == {"path": "/livez", "port": 8405}
    assert front_door["livenessProbe"]["initialDelaySeconds"] == 30
    assert front_door["readinessProbe"]["httpGet"] == {"path": "/readyz", "port": 8405}


def test_only_the_front_door_sees_the_keys(source: dict[str, Any]) -> None:
    source["spec"]["endpoint"] = {"apiKeysSecretRef": {"name": "keys"}}
    pod = children(source)["Deployment"]["spec"]["template"]["spec"]
    assert {"name": "api-keys", "secret": {"secretName": "keys"}} in pod["volumes"]
    mount = {"name": "api-keys", "mountPath": "/etc/lmd-api-keys", "readOnly": True}
    assert mount in pod["initContainers"][-1]["volumeMounts"]
    assert mount not in pod["containers"][0]["volumeMounts"]
    assert variables(pod["initContainers"][-1])["LMD_API_KEYS_DIR"] == "/etc/lmd-api-keys"


@pytest.mark.parametrize("name", ["m", "m" * NAME_MAX_LENGTH], ids=["shortest", "longest"])
def test_names_and_label_values_fit(source: dict[str, Any], name: str) -> None:
    source["metadata"]["name"] = name
    source["spec"]["replicas"] = 2
    for kind, content in children(source).items():
        assert len(content["metadata"]["name"]) <= LABEL_MAX_LENGTH, kind
        assert all(len(value) <= LABEL_MAX_LENGTH for value in content["metadata"]["labels"].values()), kind
    pod = children(source)["Deployment"]["spec"]["template"]
    assert all(len(value) <= LABEL_MAX_LENGTH for value in pod["metadata"]["labels"].values())
    assert all(len(volume["name"]) <= LABEL_MAX_LENGTH for volume in pod["spec"]["volumes"])
    assert all(len(port["name"]) <= 15 for port in pod["spec"]["initContainers"][0]["ports"])


CACHED = ROOT / "tests" / "scenarios" / "cache-removed-with-the-object.yaml"


def test_pods_of_jobs_are_restricted_and_nobody_takes_them_for_replicas() -> None:
    source = yaml.safe_load(CACHED.read_text())
    policy, *found = jobs(source)
    assert len(found) == 2
    selected = children(source)["Service"]["spec"]["selector"]
    for job in found:
        template = job["spec"]["template"]
        assert violations(template["spec"]) == set()
        assert template["spec"]["automountServiceAccountToken"] is False
        assert template["spec"]["containers"][0]["securityContext"]["readOnlyRootFilesystem"] is True
        assert not selected.items() <= template["metadata"]["labels"].items()
        assert policy["spec"]["podSelector"]["matchLabels"].items() <= template["metadata"]["labels"].items()


def test_only_the_job_that_fetches_sees_the_token_and_the_source() -> None:
    source = yaml.safe_load(CACHED.read_text())
    policy, *found = jobs(source)
    secret = {"name": "hub", "key": "token"}

    def sees(container: dict[str, Any]) -> bool:
        return secret in [variable.get("valueFrom", {}).get("secretKeyRef") for variable in container["env"]]

    assert [sees(job["spec"]["template"]["spec"]["containers"][0]) for job in found] == [False, True]
    pod = children(source)["Deployment"]["spec"]["template"]["spec"]
    assert not any(sees(container) for container in [*pod["initContainers"], *pod["containers"]])
    assert children(source)["NetworkPolicy"]["spec"]["egress"] == []
    assert {"port": 8080, "protocol": "TCP"} in policy["spec"]["egress"][0]["ports"]
    assert {"name": "weights", "mountPath": "/models", "readOnly": True} in pod["initContainers"][0]["volumeMounts"]


@pytest.mark.parametrize("name", ["m", "m" * NAME_MAX_LENGTH], ids=["shortest", "longest"])
def test_names_and_labels_of_jobs_fit(name: str) -> None:
    """Kubernetes writes a Job's name as a label of its pods."""
    source = yaml.safe_load(CACHED.read_text())
    source["metadata"]["name"] = name
    for content in jobs(source):
        labels = {**content["metadata"]["labels"], **content["spec"].get("template", {}).get("metadata", {}).get("labels", {})}
        assert all(len(value) <= LABEL_MAX_LENGTH for value in [content["metadata"]["name"], *labels.values()])
