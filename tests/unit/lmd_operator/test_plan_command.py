"""`lmd plan`, `lmd why`, and degrees of Auto in the other commands."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from lmd_operator.api.parse import parse
from lmd_operator.api.status import Condition, Status
from lmd_operator.cli import app
from lmd_operator.commands.live import changes
from lmd_operator.errors import InvalidSpecError
from lmd_operator.planning.plan import settle
from lmd_operator.planning.tensors import shape_of
from lmd_operator.status.sentence import sentence

EXAMPLES = Path(__file__).parents[3] / "crds" / "examples"
AUTO = (EXAMPLES / "llama-70b.yaml").read_text().replace("tensor: 8", "tensor: Auto")
PUBLISHED = {entry["name"]: entry["config"] for entry in json.loads((Path(__file__).parent / "published_models.json").read_text())}


def run(*arguments: str, stdin: str = "") -> tuple[int, str, str]:
    result = CliRunner().invoke(app, list(arguments), input=stdin)
    assert result.exception is None or isinstance(result.exception, SystemExit)
    return result.exit_code, result.stdout, result.stderr


@pytest.fixture
def config(tmp_path: Path) -> Any:
    """Write a published model's config.json and return its path."""

    def write(name: str) -> str:
        path = tmp_path / f"{name}.json"
        path.write_text(json.dumps(PUBLISHED[name]))
        return str(path)

    return write


def test_the_table_says_strategy_memory_reasons_and_what_was_rejected(config: Any) -> None:
    status, out, err = run("plan", "-", "--shape", config("Llama-3.1-70B"), stdin=AUTO)
    assert (status, err) == (0, "")
    assert out.startswith("llama-70b: DeepSpeed tensor 4, 4 GPUs a replica\n")
    assert "70.55 billion parameters" in out
    assert "of 75.2 to use" in out
    assert "None           None needs 214.6 GiB on its fullest rank, which has 75.2 GiB to use" in out


def test_kubectl_writes_the_file_as_an_option(config: Any, tmp_path: Path) -> None:
    manifest = tmp_path / "auto.yaml"
    manifest.write_text(AUTO)
    assert run("plan", "-f", str(manifest), "--shape", config("Llama-3.1-70B")) == run(
        "plan", str(manifest), "--shape", config("Llama-3.1-70B")
    )
    assert run("plan")[0] == 2


def test_json_has_the_same_in_bytes(config: Any) -> None:
    status, out, _ = run("plan", "-", "--shape", config("Llama-3.1-70B"), "-o", "json", stdin=AUTO)
    told = json.loads(out)
    assert status == 0
    assert told["plan"]["tensor"] == told["plan"]["gpusPerReplica"] == 4
    assert told["deviceBytes"]["keyValues"] == 2 * 80 * 2 * 128 * 2 * 32 * (256 * 32 + 2)
    assert told["deviceBytes"]["device"] == 80 * 2**30
    assert {entry["strategy"] for entry in told["rejected"]} >= {"None", "Tensor", "Expert"}


def test_what_does_not_fit_ends_with_the_remedy(config: Any) -> None:
    text = AUTO.replace("memory: 80Gi", "memory: 1Gi")
    status, out, err = run("plan", "-", "--shape", config("Llama-3.1-70B"), stdin=text)
    assert status == 1
    assert out.startswith("llama-70b: no plan")
    assert "use devices of at least" in err


@pytest.mark.parametrize(
    ("name", "options", "planned", "note"),
    [
        ("Llama-3.1-405B", (), "llama-70b: PipelineTensor ", "the plan spans 2 nodes, which this version does not run"),
    ],
)
def test_a_plan_that_this_version_cannot_run_is_shown_with_a_note(
    config: Any, name: str, options: tuple[str, ...], planned: str, note: str
) -> None:
    status, out, err = run("plan", "-", "--shape", config(name), *options, stdin=AUTO)
    assert status == 0
    assert out.startswith(planned)
    assert note in err


def test_memory_link_and_node_can_be_given_on_the_command_line(config: Any) -> None:
    arguments = ("plan", "-", "--shape", config("Llama-3.1-70B"), "--memory", "141Gi", "--link", "slow")
    assert "Pipeline pipeline" in run(*arguments, stdin=AUTO.replace("  accelerator:\n    memory: 80Gi\n", ""))[1]
    status, _, err = run("plan", "-", "--shape", config("Llama-3.1-70B"), "--memory", "much", stdin=AUTO)
    assert (status, "is no quantity" in err) == (1, True)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "is no JSON"),
        ("[]", "is not a JSON object"),
        ("{}", "hidden_size"),
        (None, "No such file"),
        ('{"config": {}, "tensors": [1]}', "is not told as its name"),
    ],
)
def test_a_shape_that_cannot_be_read_is_said_in_words(text: str | None, words: str, tmp_path: Path) -> None:
    path = tmp_path / "shape.json"
    if text is not None:
        path.write_text(text)
    status, _, err = run("plan", "-", "--shape", str(path), stdin=AUTO)
    assert status == 1
    assert words in err


def test_auto_is_validated_and_rendered_where_the_shape_is_known(config: Any) -> None:
    shape = config("Llama-3.1-70B")
    status, out, _ = run("validate", "-", "--shape", shape, stdin=AUTO)
    assert status == 0
    assert "llama-70b runs DeepSpeed at tensor degree 4 (Auto: row 3" in out
    _, out, _ = run("render", "--files", "-", "--shape", shape, stdin=AUTO)
    files = yaml.safe_load(out)["llama-70b"]
    assert yaml.safe_load(files["model-config.yaml"])["torchrun"]["nproc-per-node"] == 4
    assert json.loads(files["ds-config.json"])["tensor_parallel"]["tp_size"] == 4


@pytest.mark.parametrize("command", ["validate", "render"])
def test_auto_without_a_shape_says_how_to_give_one(command: str) -> None:
    status, out, err = run(command, "-", stdin=AUTO)
    assert (status, out) == (1, "")
    assert "--claim models=DIRECTORY; or give --shape" in err


def test_auto_of_a_model_on_this_machine_needs_no_option(tmp_path: Path) -> None:
    sizes = {"hidden_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 100}
    (tmp_path / "config.json").write_text(
        json.dumps({"model_type": "llama", "intermediate_size": 128, "tie_word_embeddings": True, **sizes})
    )
    header = json.dumps({"model.embed_tokens.weight": {"dtype": "BF16", "shape": [100, 64], "data_offsets": [0, 12800]}}).encode()
    (tmp_path / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + bytes(12800))
    manifest = yaml.safe_load(AUTO)
    manifest["spec"]["model"]["source"] = {"path": {"path": str(tmp_path)}}
    status, out, err = run("validate", "-", stdin=yaml.safe_dump(manifest))
    assert (status, err) == (0, "")
    assert "runs None at tensor degree 1" in out


def test_stages_that_are_planned_are_told(config: Any) -> None:
    manifest = yaml.safe_load(AUTO)
    manifest["spec"] |= {"parallelism": {"strategy": "Pipeline", "tensor": "Auto"}, "accelerator": {"memory": "141Gi"}}
    status, out, err = run("validate", "-", "--shape", config("Llama-3.1-70B"), stdin=yaml.safe_dump(manifest))
    assert (status, err) == (0, "")
    assert "runs Pipeline at tensor degree 1 in 2 stages" in out


def test_a_degree_of_auto_is_settled_only_with_a_shape() -> None:
    spec = parse(yaml.safe_load(AUTO)).spec
    with pytest.raises(TypeError):
        settle(spec)
    settled = settle(spec, shape=shape_of(PUBLISHED["Llama-3.1-70B"]))
    assert (settled.strategy, settled.tensor, settled.gpus_per_replica) == ("DeepSpeed", 4, 4)
    mixture = settle(spec, shape=shape_of(PUBLISHED["Mixtral-8x7B"]))
    assert (mixture.strategy, mixture.tensor, mixture.expert, mixture.gpus_per_replica) == ("Expert", 2, 2, 2)
    with pytest.raises(InvalidSpecError, match="plans PipelineTensor tensor 8 pipeline 2 over 2 nodes, which is not available"):
        settle(spec, shape=shape_of(PUBLISHED["Llama-3.1-405B"]))
    larger = spec.accelerator.model_copy(update={"memory": "300Gi"})
    with pytest.raises(InvalidSpecError, match="was not compared with one process for grok-1"):
        settle(
            spec.model_copy(update={"accelerator": larger, "parallelism": spec.parallelism.model_copy(update={"strategy": "Tensor"})}),
            shape=shape_of(PUBLISHED["Grok-1"]),
        )
    with pytest.raises(InvalidSpecError, match="is Auto, but"):
        settle(
            spec.model_copy(update={"accelerator": spec.accelerator.model_copy(update={"memory": "1Gi"})}),
            shape=shape_of(PUBLISHED["Llama-3.1-70B"]),
        )


def test_stages_are_settled_as_asked_or_as_planned() -> None:
    spec = parse(yaml.safe_load(AUTO)).spec
    asked = spec.parallelism.model_copy(update={"strategy": "PipelineTensor", "tensor": 2, "pipeline": 3})
    settled = settle(spec.model_copy(update={"parallelism": asked}), cpu_cores=12)
    assert (settled.strategy, settled.tensor, settled.pipeline, settled.ranks) == ("PipelineTensor", 2, 3, 6)
    assert (settled.gpus_per_replica, settled.threads_per_rank) == (6, 2)
    by_hand = spec.parallelism.model_copy(update={"tensor": 1, "pipeline": 2})
    settled = settle(spec.model_copy(update={"parallelism": by_hand}))
    assert (settled.strategy, settled.ranks, settled.reason[:5]) == ("Pipeline", 2, "Auto:")
    planned = spec.parallelism.model_copy(update={"strategy": "Pipeline"})
    larger = spec.accelerator.model_copy(update={"memory": "141Gi"})
    settled = settle(spec.model_copy(update={"parallelism": planned, "accelerator": larger}), shape=shape_of(PUBLISHED["Llama-3.1-70B"]))
    assert (settled.strategy, settled.tensor) == ("Pipeline", 1)
    assert settled.gpus_per_replica == settled.pipeline == settled.ranks > 1


def test_changes_are_named_by_their_paths() -> None:
    live = {"spec": {"replicas": 1, "limits": {"memory": "1Gi"}, "ports": [{"port": 80, "protocol": "TCP"}]}}
    assert list(changes(live, {"spec": {"replicas": 1, "limits": {"memory": "1024Mi"}, "ports": [{"port": 80}]}})) == []
    assert list(changes(live, {"spec": {"replicas": 2, "ports": [{"port": 81}], "paused": True}})) == [
        "spec.replicas",
        "spec.ports[0].port",
        "spec.paused",
    ]
    assert list(changes(live, {"spec": {"ports": []}})) == ["spec.ports"]


def condition(kind: Any, status: Any, reason: str, message: str = "") -> Condition:
    return Condition(type=kind, status=status, reason=reason, message=message, last_transition_time="2026-01-01T00:00:00Z")


@pytest.mark.parametrize(
    ("conditions", "expected"),
    [
        ([], "a has no status yet: check that the operator runs and looks after this namespace."),
        ([condition("Ready", "True", "ReplicasReady", "Both answer.")], "a is Ready (ReplicasReady): Both answer."),
        (
            [condition("Ready", "False", "PodsPending", "No GPU is free. Add a node.")],
            "a is not Ready (PodsPending): No GPU is free. Add a node.",
        ),
        (
            [condition("Ready", "False", "Suspended", "It is suspended.")],
            "a is not Ready (Suspended): It is suspended. Set spec.suspend to false to start it.",
        ),
        (
            [condition("Ready", "False", "NotAccepted", "x"), condition("Accepted", "False", "IllegalDegree", "tensor must be 8 at most.")],
            "a is refused (IllegalDegree): tensor must be 8 at most.",
        ),
        (
            [
                condition("Ready", "False", "CrashLooping", "x"),
                condition("Stalled", "True", "CrashLooping", "Rank 1: no room. Use degree 4."),
            ],
            "a is stuck (CrashLooping): Rank 1: no room. Use degree 4.",
        ),
        (
            [
                condition("Ready", "True", "ReplicasReady", "x"),
                condition("ParallelismVerified", "False", "RankMissing", "Rank 1 is missing."),
            ],
            "a is Ready, but does not run what was planned (RankMissing): Rank 1 is missing.",
        ),
    ],
)
def test_why_is_one_sentence_with_what_to_do(conditions: list[Condition], expected: str) -> None:
    assert sentence("a", Status(observed_generation=2, conditions=conditions), 2) == expected


def test_why_says_when_the_newest_spec_was_not_seen_yet() -> None:
    status = Status(observed_generation=1, conditions=[condition("Ready", "True", "ReplicasReady", "All answer.")])
    assert "has not looked at the newest spec yet (generation 2, seen 1)" in sentence("a", status, 2)


def test_why_without_a_cluster_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "none"))
    monkeypatch.setattr("kubernetes.config.kube_config.KUBE_CONFIG_DEFAULT_LOCATION", str(tmp_path / "none"))
    status, _, err = run("why", "llama-70b")
    assert status == 1
    assert "no cluster to talk to" in err
    assert "Traceback" not in err
