"""What must hold before a rank may say ready: real weights, really cut, computing numbers, the same on every rank.

AutoTP's failures come at the first forward and some make no noise (NaN, nothing cut), so they are looked for here. A rank that
finds something wrong tells the others before it raises, and all raise the same sentence; a rank whose forward raises does so at
once, as its peers may be inside the model's collectives, and the end of its process frees them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch.distributed.tensor import DTensor
from transformers import GenerationConfig

from lmd_worker.errors import ParallelismReason, SelfTestError
from lmd_worker.ranks import Group
from lmd_worker.shape import ModelShape
from lmd_worker.strategies.degrees import heads_of_rank
from lmd_worker.strategies.families import HEADS_LEFT_WHOLE
from lmd_worker.strategies.share import Share

_PROMPT_TOKENS = 8
_SHORT_PROMPT_TOKENS = 5
_STEPS = 2
_SLACK = 1.05
"""Biases, norms and position tables stay whole; measured, they are under 1 % of any served family."""


@dataclass(frozen=True, slots=True)
class Held:
    """Parameters of one rank, in bytes: all it holds, the part no rank's share of which is cut, the whole model's, and the most allowed."""

    held: int
    replicated: int
    whole: int
    allowed: int


def check(model: Any, shape: ModelShape, group: Group, share: Share) -> Held:
    """Raise `SelfTestError` on every rank unless all ranks' models hold; `share` is what the fullest rank may hold."""
    held = measure(model, shape, share)
    _agree(group, _data_complaint(model, group, share))
    _agree(group, _weights_complaint(group, held), "NotSharded")
    logits = _forward(model, shape, group)
    _agree(group, _numbers_complaint(logits, group))
    _agree(group, _divergence_complaint(group.gather(logits.argmax(dim=-1).cpu())))
    return held


def measure(model: Any, shape: ModelShape, share: Share) -> Held:
    """Return what this rank holds against the whole model in the same data type; tied parameters count once."""
    item_bytes = next(model.parameters()).element_size()
    embeddings = {id(module.weight) for module in model.modules() if isinstance(module, torch.nn.Embedding)}
    held = replicated = 0
    for name, parameter in model.named_parameters():
        own = on_this_rank(parameter)
        held += 0 if own.is_meta else _bytes(own, parameter)
        may_be_whole = own.dim() < 2 or share.leaves_whole(name) or (share.embeddings_are_whole and id(parameter) in embeddings)
        if may_be_whole and own.shape == parameter.shape:
            replicated += own.numel() * own.element_size()
    whole = shape.parameters * item_bytes
    head_apart = shape.vocabulary_size * shape.hidden_size * item_bytes if shape.tied_embeddings and share.head_is_apart else 0
    allowed = int((replicated + (whole - replicated + head_apart) * share.part) * _SLACK)
    return Held(held=held, replicated=replicated, whole=whole, allowed=allowed)


def on_this_rank(parameter: torch.Tensor) -> torch.Tensor:
    """Return the part of a parameter that is this process's; its own shape is the whole one's where transformers has cut it.

    DeepSpeed stage 3 keeps that part, flat, as an attribute of a parameter that is otherwise empty.
    """
    if isinstance(parameter, DTensor):
        return parameter.to_local()
    part: torch.Tensor = getattr(parameter, "ds_tensor", parameter)
    return part


def _bytes(part: torch.Tensor, parameter: torch.Tensor) -> int:
    """Return what a part takes; one that DeepSpeed has put on disk is here by its number of elements alone, its data half a number."""
    count = int(getattr(part, "ds_numel", part.numel()))
    return count * (part if count == part.numel() else parameter).element_size()


def held_heads(model: Any, shape: ModelShape, group: Group, strategy: str, stages: int = 1) -> tuple[int, int]:
    """Return (query heads, key-value heads) this rank computes: read off its projections where they tell, or counted.

    Of several stages, each is as many ranks as share its layers. Stage 3 keeps parts without rows, and none where they are on disk.
    """
    if strategy == "DeepSpeed" or (strategy != "ZeroInference" and shape.model_type not in HEADS_LEFT_WHOLE):
        rows = {
            name.rpartition(".")[2]: on_this_rank(module.weight).shape[0]
            for name, module in model.named_modules()
            if name.endswith(("q_proj", "k_proj"))
        }
        if len(rows) == 2:
            return rows["q_proj"] // shape.head_dim, rows["k_proj"] // shape.head_dim
    sharing = group.size // stages
    return heads_of_rank(strategy, shape, group.rank % sharing, sharing)


def _data_complaint(model: Any, group: Group, share: Share) -> str:
    if not share.is_offloaded and (names := [name for name, tensor in _tensors(model) if tensor.is_meta]):
        return f"Rank {group.rank}: {len(names)} tensors have no data, the first is {names[0]}. The weights do not fit the architecture."
    return ""


def _weights_complaint(group: Group, held: Held) -> str:
    if group.size > 1 and held.held > held.allowed:
        return (
            f"Rank {group.rank}: it holds {held.held} bytes of parameters of a model of {held.whole}, more than its share at degree "
            f"{group.size} ({held.allowed} bytes); the model was not cut. Use strategy None, or another model."
        )
    return ""


def _forward(model: Any, shape: ModelShape, group: Group) -> torch.Tensor:
    """Return the last token's logits of each step: [rows * steps, vocabulary], two rows, the second left-padded."""
    tokens = torch.tensor([(7 * place + 3) % shape.vocabulary_size for place in range(_PROMPT_TOKENS)]).repeat(2, 1)
    mask = torch.ones_like(tokens)
    mask[1, : _PROMPT_TOKENS - _SHORT_PROMPT_TOKENS] = 0
    try:
        with torch.inference_mode():
            made = model.generate(
                input_ids=tokens.to(group.device),
                attention_mask=mask.to(group.device),
                generation_config=GenerationConfig(  # type: ignore[no-untyped-call]
                    max_new_tokens=_STEPS, do_sample=False, pad_token_id=0, output_logits=True, return_dict_in_generate=True
                ),
            )
    except Exception as error:
        reason = (str(error).splitlines() or [""])[0].rstrip(".")
        raise SelfTestError(
            f"Rank {group.rank}: the first forward of {shape.model_type} failed at degree {group.size}: {type(error).__name__}: {reason}. "
            "Use another degree, or strategy None."
        ) from error
    return torch.cat(made.logits)


def _numbers_complaint(logits: torch.Tensor, group: Group) -> str:
    bad = int((~torch.isfinite(logits)).any(dim=-1).sum())
    if bad:
        return (
            f"Rank {group.rank}: {bad} of {logits.shape[0]} test positions have logits that are not finite. "
            "Try data type bfloat16 or float32."
        )
    return ""


def _divergence_complaint(choices: list[torch.Tensor]) -> str:
    for rank, choice in enumerate(choices):
        if not torch.equal(choice, choices[0]):
            return (
                f"Rank {rank}: its best tokens for the test prompt, {choice.tolist()}, differ from rank 0's, {choices[0].tolist()}. "
                "The ranks do not compute one model; check that their hosts and libraries are the same."
            )
    return ""


def _agree(group: Group, complaint: str, reason: ParallelismReason | Literal[""] = "") -> None:
    """Raise the first complaint of any rank on every rank."""
    for text in group.gather_text(complaint):
        if text:
            raise SelfTestError(text, reason=reason)


def _tensors(model: Any) -> Iterator[tuple[str, torch.Tensor]]:
    yield from model.named_parameters()
    yield from model.named_buffers()
