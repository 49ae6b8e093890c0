"""Whether the continuous engine computes what the plain model does, found out on the loaded model before it says ready.

Some families compute attention in ways that a packed row of tokens breaks, with or without an exception. So a few short prompts of
different lengths run together, cut into chunks and over the edge of a page, and the scores of every step are compared with those of
one plain forward of all of them as rows of their own, on the same shards. What fails is served by the static engine, and the reason is
told. A replica starts later by every forward of this, so there are few of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch

from lmd_worker.engine.continuous import Core
from lmd_worker.engine.messages import Turn
from lmd_worker.engine.pages import Pages
from lmd_worker.engine.schedule import Arrival, Batch, Schedule
from lmd_worker.ranks import Group

_PROMPTS = ((3, 3), (40, 2), (1, 2), (17, 2))
"""Tokens of each prompt, and how many of its answer; with `_CHUNK`, three turns hold all there is: a prompt cut in two, a token of an
answer beside pieces of prompts, requests of different lengths in one bunch and a token that reads what the one before it wrote."""
_CHUNK = 32
_TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.1, torch.float16: 0.05}
"""How far scores may be off, as a part of their spread. Rounding is a tenth of that; a wrong mask or cache is off by about 1."""
_LAYERS = frozenset({"full_attention", "sliding_attention"})
_LENGTH_DEPENDENT = frozenset({"dynamic", "longrope"})


def objection(config: Any) -> str:
    """Return why a model of this config cannot even be tried, or nothing."""
    if getattr(config, "kv_lora_rank", None):
        return "its cache holds latents, which have no pages"
    layers = set(getattr(config, "layer_types", None) or ()) - _LAYERS
    if layers:
        return f"it has layers of kind {', '.join(sorted(layers))}, whose state has no pages"
    rope = getattr(config, "rope_parameters", None) or {}
    kinds = {str(part.get("rope_type")) for part in (rope, *rope.values()) if isinstance(part, Mapping)}
    if found := kinds & _LENGTH_DEPENDENT:
        return f"its positions are scaled by the longest request ({', '.join(sorted(found))}), which would depend on the neighbours"
    return ""


def compare(model: Any, group: Group, pages: Pages, *, vocabulary_size: int) -> str:
    """Return why this model's answers need another engine, the same sentence on every rank, or nothing.

    At most 4 prompts of 40 tokens and 3 more each, computed twice. Leaves the model and the cache as they were. Every rank must call it.
    """
    before = model.config._attn_implementation
    try:
        with torch.inference_mode():
            complaint = _compare(model, group, pages, vocabulary_size)
    except Exception as error:  # any failure of any family's code; the group is told, and the next collective fails where it must
        complaint = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0].rstrip('.')}"
    model.set_attn_implementation(before)
    return next((text for text in group.gather_text(complaint) if text), "")


def _compare(model: Any, group: Group, pages: Pages, vocabulary_size: int) -> str:
    context_tokens = pages.shape.context_tokens
    prompts, answers = [], []
    for number, (length, steps) in enumerate(_PROMPTS):
        steps = min(steps, context_tokens - 1)
        prompts.append([(7 * place + 11 * number + 3) % vocabulary_size for place in range(min(length, context_tokens - steps))])
        answers.append([(5 * place + 13 * number + 2) % vocabulary_size for place in range(steps)])
    expected = _alone(model, prompts, answers, group.device)
    core = Core(model, Schedule(pages, group.device))
    try:
        for number, step, scores in _together(core, prompts, answers):
            off = _distance(scores, expected[number][step])
            if not off <= _TOLERANCE[model.dtype]:
                return (
                    f"step {step + 1} of a prompt of {len(prompts[number])} tokens scores otherwise than alone "
                    f"(off by {off:.2g} of the scores' spread)"
                )
    finally:
        core.schedule.leave(range(len(prompts)))
    return ""


def _alone(model: Any, prompts: Sequence[Sequence[int]], answers: Sequence[Sequence[int]], device: torch.device) -> list[torch.Tensor]:
    """Return what each token of the answers is picked from, by one plain forward without any cache: [steps, vocabulary] float32 each.

    Rows are padded on the right, where nothing that counts looks.
    """
    rows = [[*prompt, *answer[:-1]] for prompt, answer in zip(prompts, answers, strict=True)]
    width = max(map(len, rows))
    tokens = torch.tensor([row + [0] * (width - len(row)) for row in rows], device=device)
    mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows], device=device)
    scores: torch.Tensor = model(input_ids=tokens, attention_mask=mask, use_cache=False).logits
    return [scores[number, len(prompt) - 1 : len(rows[number])].float() for number, prompt in enumerate(prompts)]


def _together(core: Core, prompts: Sequence[Sequence[int]], forced: Sequence[Sequence[int]]) -> Iterator[tuple[int, int, torch.Tensor]]:
    """Run the prompts side by side, as many as fit, with these answers; yield (prompt, step, scores) as they come."""
    waiting = list(range(len(prompts)))
    number_in: dict[int, int] = {}  # by place, the prompt in it
    taken: dict[int, int] = {}  # by place, the steps it has
    turn = Turn({}, [])
    while waiting or number_in:
        leaving = [place for place, number in number_in.items() if taken[place] == len(forced[number])]
        chosen = {place: token for place, token in turn.chosen.items() if place not in leaving}
        for place in leaving:
            del number_in[place]
        free = [place for place in range(core.schedule.pages.shape.concurrency) if place not in number_in]
        arrivals = []
        for place, number in zip(free, waiting[: len(free)], strict=False):
            number_in[place], taken[place] = number, 0
            arrivals.append(Arrival(place, prompts[number]))
        del waiting[: len(arrivals)]
        core.settle(Turn(chosen, leaving))
        core.schedule.begin(arrivals)
        batch = core.schedule.plan(_CHUNK)
        if batch is None:
            continue
        scores = core.scores(batch)
        _check_calls(core, batch)
        for place, row in zip(batch.asking, scores, strict=True):
            yield number_in[place], taken[place], row
            taken[place] += 1
        turn = Turn({place: forced[number_in[place]][taken[place] - 1] for place in batch.asking}, [])


def _check_calls(core: Core, batch: Batch) -> None:
    layers = core.schedule.pages.shape.layers
    if batch.layout.calls != layers:
        raise NotImplementedError(f"{batch.layout.calls} of its {layers} layers use transformers' attention interface")


def _distance(scores: torch.Tensor, expected: torch.Tensor) -> float:
    """Return how far scores are off on average, as a part of the expected ones' spread."""
    return float((scores - expected).square().mean().sqrt() / expected.std().clamp_min(1e-12))
