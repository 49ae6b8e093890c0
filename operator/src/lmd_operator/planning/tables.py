"""docs/planning.md: the decision table, the families and worked plans, written from the code that plans.

python -m lmd_operator.planning.tables > docs/planning.md
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, get_args

from lmd_operator.planning import families
from lmd_operator.planning.answers import Planned, Wishes
from lmd_operator.planning.asking import DEVICES_OF_A_NODE
from lmd_operator.planning.families import Engine, finding
from lmd_operator.planning.memory import (
    COLLECTIVES_BYTES,
    DEVICE_CONTEXT_BYTES,
    GIB,
    HEADROOM,
    LIVE_PARAMETERS,
    PAGE_TOKENS,
    PROMPT_TOKENS_OF_A_TURN,
    RESERVED_PAGES,
)
from lmd_operator.planning.planner import plan
from lmd_operator.planning.selection import TABLE, Accelerator, Link
from lmd_operator.planning.shapes import ModelShape
from lmd_operator.planning.tensors import shape_of
from lmd_operator.planning.words import gib

CONTEXT_TOKENS = 4096
CONCURRENCY = 8
DEVICES_GIB = (24, 40, 80, 141)


def _llama(hidden: int, layers: int, heads: int, key_value_heads: int, intermediate: int, vocabulary: int, **more: Any) -> dict[str, Any]:
    return {
        "model_type": "llama",
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": key_value_heads,
        "intermediate_size": intermediate,
        "vocab_size": vocabulary,
        "max_position_embeddings": CONTEXT_TOKENS,
        "tie_word_embeddings": False,
        **more,
    }


EXAMPLES: Mapping[str, Mapping[str, Any]] = {
    "7B (Llama 2)": _llama(4096, 32, 32, 32, 11008, 32000),
    "13B (Llama 2)": _llama(5120, 40, 40, 40, 13824, 32000),
    "70B (Llama 3.1)": _llama(8192, 80, 64, 8, 28672, 128256),
    "8x7B (Mixtral)": _llama(4096, 32, 32, 8, 14336, 32000, model_type="mixtral", num_local_experts=8, num_experts_per_tok=2),
    "405B (Llama 3.1)": _llama(16384, 126, 128, 8, 53248, 128256),
}
"""Sizes of published models, with the context cut to what the tables are about."""

_HEAD = f"""# Planning

<!-- Written by `make generate` from lmd_operator.planning; do not edit. -->

`lmd plan FILE` says how a model would be split, what every rank would hold and why it is not split otherwise, from the model's
config.json and the headers of its safetensors; no weights are read. The shape comes from the model's source (`--claim` and `--models`
name local directories, as for `lmd serve`) or from a file by `--shape`: a config.json, a model directory, or what
`lmd inspect SOURCE --outline` printed. `--memory`, `--devices-per-node` (default {DEVICES_OF_A_NODE}) and `--link fast|slow` say what a
manifest does not, `-o json` is for programs, and `--diff` adds what would change in the cluster of the current kubeconfig.
`lmd why NAME` says in one sentence why an object in the cluster is not Ready. Where `kubectl-lmd` is on the PATH, all of it is also
`kubectl lmd plan -f FILE` and `kubectl lmd why NAME`.

`parallelism.tensor: Auto` is settled so by `lmd validate`, `render` and `serve`, and in a cluster: there a Job reads configuration and
headers wherever the model is, once for each revision, and the plan with its sum of memory is in the object's status. An object whose
model fits in no way is refused with that sum (`Accepted=False`, `DoesNotFit`), and what ran before runs on.
"""

_TABLE = """## Who decides

The first row that applies and has a strategy that is right for the family, at legal degrees that fit, wins; in it the fewest devices. The
rows of one place are gone through twice, first with what was measured, then also with what nobody compared, which is shown and not run.
"""

_MEMORY = f"""## What is counted

| part | how |
|---|---|
| weights | every group of tensors as the engine really holds it: AutoTP keeps embeddings whole and cuts the head along the hidden size, \
transformers cuts both by vocabulary; heads, feed-forward columns, experts and layers in the pieces of the engine's own rounding |
| cache | pages of {PAGE_TOKENS} tokens for the whole context of every request, and {RESERVED_PAGES} more: 2 x layers x key-value heads of \
the rank x head size x bytes. Static batches: windows and latents as transformers' cache keeps them |
| activations | a turn of {PROMPT_TOKENS_OF_A_TURN} prompt tokens, or a whole batch where it is static; logits; a layer's gathered pages |
| runtime | {gib(DEVICE_CONTEXT_BYTES)} GiB for context and libraries, {gib(COLLECTIVES_BYTES)} GiB for collectives (assumed) |
| headroom | {HEADROOM:.0%} of the device stays free |
| ZeroInference | {LIVE_PARAMETERS / 1e9:.0f} billion live parameters on the device, all of them on the host |

The weights of every rank are within two percent of what ranks hold, for all families in the tables below that were measured (tiny models,
two to four ranks); `make matrix` compares them again. The cache is the worker's own formula. What a GPU's runtime takes was not measured.
"""


def document() -> str:
    """Return the whole page."""
    legend = (
        "Equal tokens to one process: **yes**; may have a way and was not compared, so the worker refuses it: *untried*; never planned: -."
    )
    parts = (
        _HEAD,
        _TABLE,
        _lines(_decisions()),
        _MEMORY,
        f"## Worked plans\n\n{CONCURRENCY} requests of {CONTEXT_TOKENS} tokens in bfloat16, {DEVICES_OF_A_NODE} devices a node. "
        "GiB are those of the fullest rank, needed of usable.\n\n### Fast link\n",
        _lines(_worked("Fast")),
        "### Slow link\n",
        _lines(_worked("Slow")),
        f"## Families\n\n{legend} One process serves every family.\n",
        _lines(_matrix()),
    )
    return "\n".join(parts)


def _decisions() -> Iterator[str]:
    yield from _row("row", "when", "strategies, in this order", "why")
    yield "|---|---|---|---|"
    for row in TABLE:
        yield from _row(str(row.number), row.when, ", ".join(row.engines), row.why)


def _worked(link: Link) -> Iterator[str]:
    yield from _row("model", "device", "plan", "devices", "GiB", "at most")
    yield "|---|---|---|---|---|---|"
    for name, config in EXAMPLES.items():
        for size in DEVICES_GIB:
            yield from _row(name, f"{size} GiB", *_answer(shape_of(config), size, link))


def _answer(shape: ModelShape, size: int, link: Link) -> Iterable[str]:
    wishes = Wishes(context_tokens=CONTEXT_TOKENS, concurrency=CONCURRENCY)
    answer = plan(shape, Accelerator(size * GIB, link=link), wishes)
    if not isinstance(answer, Planned) or answer.limit is None:
        return ("none", "", "", "")
    where = f" on {answer.nodes} nodes" if answer.nodes > 1 else ""
    memory = f"{gib(answer.memory.needed)} of {gib(answer.limit)}"
    return (f"{answer.split}{where}", str(answer.devices), memory, f"{answer.largest_concurrency} requests")


def _matrix() -> Iterator[str]:
    engines: list[Engine] = [engine for engine in get_args(Engine) if engine not in ("None", "Accelerate")]
    yield from _row("family", *engines)
    yield "|---" * (len(engines) + 1) + "|"
    words = {"right": "**yes**", "untried": "*untried*", "wrong": "-"}
    for family in families.KNOWN:
        yield from _row(family, *(words[finding(_shape(family), engine).verdict] for engine in engines))


def _shape(family: str) -> ModelShape:
    experts = {"num_local_experts": 8} if family in families.MIXTURES else {}
    more = {"new_decoder_architecture": True} if family == "falcon" else {}
    return shape_of(_llama(4096, 32, 32, 8, 14336, 32000, model_type=family, **experts, **more))


def _row(*cells: str) -> Iterator[str]:
    yield f"| {' | '.join(cells)} |"


def _lines(rows: Iterable[str]) -> str:
    return "\n".join(rows) + "\n"


if __name__ == "__main__":
    print(document(), end="")
