"""Scaled dot-product attention over packed rows, without a mask of T x T.

verl concatenates the sequences of a micro-batch into one row of T tokens (``use_remove_padding``). flash-attn computes
attention within each sequence. With ``attn_implementation=sdpa``, transformers keeps the sequences apart by a mask of T
x T entries, and a mask also rules out PyTorch's flash kernel. A causal mask of blocks is the same as causal attention
on each block, so here the row is split into its sequences and each gets ``scaled_dot_product_attention`` without a
mask. Memory then grows with T, and time with the sum of squares of the sequences' lengths.

``install`` puts this in place of transformers' ``sdpa`` in processes that load verl's FSDP engine. Rows that are not
packed, and masks that do not divide into blocks, go through transformers' own functions. A model that asks transformers
for no mask of the packed row would let its sequences attend to each other without a message: the engine then raises.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, causal_mask_function, sdpa_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from verl_gsd.config.attention import SDPA


@dataclass(frozen=True)
class Blocks:
    """The mask of a packed row as its diagonal blocks, which stands where transformers' layers expect a mask.

    Attributes:
        lengths: tokens of each sequence, in the row's order.
        masks: per sequence of L tokens a bool tensor (1, 1, L, L); None where attention within it is causal.
    """

    lengths: list[int]
    masks: list[torch.Tensor | None]


class NotKeptApartError(RuntimeError):
    """A model computes attention over a packed row without a mask that keeps its sequences apart."""


def install(engine_module: Any) -> None:
    """Replace transformers' attention ``sdpa`` and its mask in this process, and have verl's engine check its models.

    Args:
        engine_module: ``verl.workers.engine.fsdp.transformer_impl``.
    """
    ALL_MASK_ATTENTION_FUNCTIONS.register(SDPA, packed_mask)
    ALL_ATTENTION_FUNCTIONS.register(SDPA, packed_attention)
    engine = engine_module.FSDPEngineWithLMHead
    engine.forward_step = checked(engine.forward_step)


#: How many masks of packed rows this process has made as ``Blocks``.
_made = 0


def checked(forward_step: Callable) -> Callable:
    """verl's ``forward_step`` of one micro-batch, which raises ``NotKeptApartError`` where no ``Blocks`` were made.

    Only for packed micro-batches of several rows under SDPA.
    """
    from verl.utils import tensordict_utils as tu

    @functools.wraps(forward_step)
    def step(self: Any, micro_batch: Any, *args: Any, **kwargs: Any) -> Any:
        before = _made
        result = forward_step(self, micro_batch, *args, **kwargs)
        is_packed = tu.get_non_tensor_data(data=micro_batch, key="use_remove_padding", default=True)
        attention = getattr(self.model_config.hf_config, "_attn_implementation", None)
        if is_packed and attention == SDPA and len(micro_batch) > 1 and _made == before:
            raise NotKeptApartError(
                f"actor_rollout_ref.model.use_remove_padding=true with attn_implementation={SDPA}: this model "
                f"({self.model_config.hf_config.model_type}) makes no mask for packed rows, so that their sequences "
                "would attend to each other. Set actor_rollout_ref.model.use_remove_padding=false, or install "
                "flash-attn on the machines that train."
            )
        return result

    return step


def packed_mask(
    batch_size: int,
    q_length: int,
    kv_length: int,
    q_offset: int = 0,
    kv_offset: int = 0,
    mask_function: Callable = causal_mask_function,
    attention_mask: torch.Tensor | None = None,
    use_vmap: bool = False,
    device: torch.device | str = "cpu",
    **further: Any,
) -> Blocks | torch.Tensor | None:
    """transformers' ``sdpa_mask``, whose arguments these are; ``Blocks`` where the mask divides into several."""
    lengths: list[int] = []
    is_one_row = batch_size == 1 and q_length == kv_length and attention_mask is None
    if is_one_row and not use_vmap and mask_function is not causal_mask_function:
        lengths = _block_lengths(mask_function, q_length, q_offset, device)
    if len(lengths) < 2:
        return sdpa_mask(
            batch_size=batch_size,
            q_length=q_length,
            kv_length=kv_length,
            q_offset=q_offset,
            kv_offset=kv_offset,
            mask_function=mask_function,
            attention_mask=attention_mask,
            use_vmap=use_vmap,
            device=device,
            **further,
        )
    global _made
    _made += 1
    if _is_causal(mask_function, lengths, q_offset, device):
        return Blocks(lengths, [None] * len(lengths))
    masks, start = [], q_offset
    for length in lengths:
        # Such as a sliding window that is shorter than the sequence.
        offset = {"q_offset": start, "kv_offset": start}
        masks.append(
            sdpa_mask(
                1, length, length, **offset, mask_function=mask_function, allow_is_causal_skip=False, device=device
            )
        )
        start += length
    return Blocks(lengths, masks)


def packed_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: Blocks | torch.Tensor | None,
    **further: Any,
) -> tuple[torch.Tensor, None]:
    """transformers' ``sdpa_attention_forward``, sequence by sequence where the mask is ``Blocks``.

    Args:
        query: (1, heads, T, d); key and value alike, with their own number of heads.

    Returns:
        (1, T, heads, d) and None.
    """
    if not isinstance(attention_mask, Blocks):
        return sdpa_attention_forward(module, query, key, value, attention_mask, **further)
    # One split per tensor, whose backward is one concatenation: a slice per sequence would add up T-long gradients.
    parts = zip(*(whole.split(attention_mask.lengths, dim=2) for whole in (query, key, value)), strict=True)
    outputs = [
        sdpa_attention_forward(module, *part, mask, **further)[0]
        for part, mask in zip(parts, attention_mask.masks, strict=True)
    ]
    return torch.cat(outputs, dim=1), None


def _block_lengths(mask_function: Callable, length: int, offset: int, device: torch.device | str) -> list[int]:
    """Where neither of two neighbours sees the other, one block ends and the next begins."""
    later = torch.arange(1, length, device=device) + offset
    joined = _sees(mask_function, later, later - 1) | _sees(mask_function, later - 1, later)
    starts = torch.nonzero(~joined).flatten() + 1
    edges = torch.cat([starts.new_zeros(1), starts, starts.new_full((1,), length)])
    return edges.diff().tolist()


def _is_causal(mask_function: Callable, lengths: list[int], offset: int, device: torch.device | str) -> bool:
    """Whether every token sees its block's first token, itself and not its successor.

    Causal masks of transformers show an interval of earlier tokens: one that has both ends has what is between. An
    overlay that looks ahead, such as an image's, also shows a token its successor.
    """
    sizes = torch.tensor(lengths, device=device)
    query = torch.arange(sum(lengths), device=device) + offset
    first = (sizes.cumsum(0) - sizes).repeat_interleave(sizes) + offset
    earlier = _sees(mask_function, query, first) & _sees(mask_function, query, query)
    later = _sees(mask_function, query[:-1], query[1:])
    return bool(earlier.all() & ~later.any())


def _sees(mask_function: Callable, query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
    """(N,) bool: whether each query position sees the key position beside it."""
    zero = torch.zeros_like(query)
    return torch.as_tensor(mask_function(zero, zero, query, key), device=query.device).expand(query.shape)
