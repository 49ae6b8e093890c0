"""What transformers' pipeline gets wrong, put right for a model's stage.

transformers 5.23 keeps the layers' numbers of the whole model on every stage. Masks are made from the cache of the first layer, which
later stages do not compute and so find empty; a batch with padding then attends to the wrong places. What is handed over takes the
place of embeddings, which some models scale. And the tensor-parallel plan is written out for all layers before those of other stages go,
so that cutting stops at the first one that is gone. Keyword arguments that a signature does not name do not arrive. And a stage waits for
its neighbour as long as the group was told when it was made, whatever is said later (gloo, torch 2.13): half an hour. The repairs are of
this process's model alone; nothing of the library stays changed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from functools import wraps
from typing import Any

import torch
import torch.distributed as dist
from transformers import DynamicCache, PreTrainedConfig
from transformers.distributed import mixin
from transformers.distributed.pipeline_parallel import PipelineIdentityLayer
from transformers.modeling_outputs import CausalLMOutputWithPast

_SCALE = "embedding_multiplier"
"""What Granite multiplies embeddings by, and on later stages what it is handed: a hidden state, scaled long ago."""


class StageCache(DynamicCache):
    """A key-value cache that one stage fills; asked about a layer of another stage, it answers for one of its own of the same kind."""

    def __init__(self, config: PreTrainedConfig, layers: range) -> None:
        """`layers` are the numbers of the stage's own layers in the whole model."""
        super().__init__(config=config)
        self._own = layers

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Return the tokens that are cached, the same for every layer."""
        return int(super().get_seq_length(layer_idx if layer_idx in self._own else self._own.start))

    def get_mask_sizes(self, query_length: int, layer_idx: int) -> tuple[int, int]:
        """Return the keys that a mask for such a layer spans and the first one's place.

        Layers with a window span less. A stage that has no layer of the kind makes a mask that nothing uses, over everything.
        """
        kinds = self.is_sliding
        alike = [own for own in self._own if kinds[own] == kinds[layer_idx]]
        if not alike:
            return self.get_seq_length() + query_length, 0
        sizes: tuple[int, int] = super().get_mask_sizes(query_length, alike[0])
        return sizes


def own_layers(model: Any) -> range:
    """Return the numbers of the layers that this rank's stage computes."""
    stage, layers = model._pp_stage, getattr(model, model.base_model_prefix).layers
    return range(*stage.layer_range_for_rank(stage.pp_rank, len(layers)))


def repair(model: Any, patience_seconds: int) -> None:
    """Make a loaded model of a stage compute what the same layers compute in one process; it waits so long for its neighbours."""
    layers, base = own_layers(model), getattr(model, model.base_model_prefix)
    if layers.start > 0 and hasattr(base, _SCALE):
        setattr(base, _SCALE, 1.0)
    plain = type(model).forward.__get__(model)
    patience = timedelta(seconds=patience_seconds)
    model.forward = wraps(plain)(lambda **asked: _pass_on(model, plain, asked, patience))
    _generate_with_own_cache(model, layers)


def _pass_on(model: Any, plain: Callable[..., Any], asked: Mapping[str, Any], patience: timedelta) -> CausalLMOutputWithPast:
    """Compute this stage of a forward pass, between what the stage before hands over and what the next one gets; all get the logits.

    transformers' own does the same, but hands keyword arguments that a model's signature does not name on as one, so that none arrives.
    """
    stage, at = model._pp_stage, {"device": model.device, "dtype": model.dtype}
    given, logits = dict(asked), None
    if not stage.pp_is_first_stage:
        shape = (*given.pop("input_ids").shape, model.config.get_text_config().hidden_size)
        given["inputs_embeds"] = _received(stage, shape, patience, **at)
    if stage.pp_is_last_stage:
        made = plain(**given)
        logits = made.logits
    else:
        given.pop("logits_to_keep", None)
        made = getattr(model, model.base_model_prefix)(**given)
        _send(stage, made.last_hidden_state, patience, **at)
    return CausalLMOutputWithPast(logits=stage.broadcast_from_last(logits, **at), past_key_values=made.past_key_values)


def _received(stage: Any, shape: tuple[int, ...], patience: timedelta, *, device: torch.device, dtype: torch.dtype) -> torch.Tensor:
    """Return what the stage before hands over. Raises `RuntimeError` when it does not within `patience`, by NCCL's own watch on GPUs."""
    if not stage.comm_on_cpu:
        handed: torch.Tensor = stage.communicate("recv_forward", shape=shape, device=device, dtype=dtype)
        return handed
    tensor = torch.empty(shape, dtype=dtype)
    work: Any = dist.irecv(tensor, group=stage.pp_group, group_src=stage.pp_prev_rank)
    work.wait(patience)
    return tensor.to(device)


def _send(stage: Any, tensor: torch.Tensor, patience: timedelta, *, device: torch.device, dtype: torch.dtype) -> None:
    """Hand over to the next stage, with the same patience."""
    if not stage.comm_on_cpu:
        stage.communicate("send_forward", tensor=tensor, device=device, dtype=dtype)
        return
    on_cpu = tensor.to(device="cpu", dtype=dtype).contiguous()
    work: Any = dist.isend(on_cpu, group=stage.pp_group, group_dst=stage.pp_next_rank)
    work.wait(patience)


def _generate_with_own_cache(model: Any, layers: range) -> None:
    """Make `model.generate` keep its keys and values in a cache that knows the stage's layers, a new one for every call."""
    plain, config = model.generate, model.config.get_text_config(decoder=True)

    def generate(**asked: Any) -> Any:
        return plain(**asked, past_key_values=StageCache(config, layers))

    model.generate = generate


@contextmanager
def rules_of_own_stage() -> Iterator[None]:
    """While this lasts, models that are loaded are cut by the rules for what their stage has, and not by those for other stages."""
    library: Any = mixin
    apply = library.apply_tensor_parallelism

    def apply_own(model: Any, mesh: Any, plan: Mapping[str, str]) -> Any:
        here = {name for name, module in model.named_modules() if not isinstance(module, PipelineIdentityLayer)}
        here.update(name for name, _ in model.named_parameters())
        return apply(model, mesh, {name: style for name, style in plan.items() if name in here})

    library.apply_tensor_parallelism = apply_own
    try:
        yield
    finally:
        library.apply_tensor_parallelism = apply
