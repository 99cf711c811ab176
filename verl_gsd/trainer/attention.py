"""Scaled dot-product attention over packed rows, without a T x T mask.

verl concatenates the sequences of a micro-batch into one row of T tokens (``use_remove_padding``). flash-attn computes
attention within each sequence. With ``attn_implementation=sdpa``, transformers separates the sequences by a mask of T x
T entries, and PyTorch's flash kernel does not accept a mask. A block-diagonal causal mask is equivalent to causal
attention within each block. This module therefore splits the row into its sequences and calls
``scaled_dot_product_attention`` without a mask for each. Memory then grows with T, and time with the sum of the squared
sequence lengths.

``install`` replaces transformers' ``sdpa`` in processes that load verl's FSDP engine. Rows that are not packed, and
masks that do not divide into blocks, go through transformers' own functions. If a model does not request a mask of the
packed row from transformers, its sequences would silently attend to each other. The engine then raises an error.
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
    """The mask of a packed row as its diagonal blocks. It is passed to transformers' layers instead of a mask tensor.

    Attributes:
        lengths: number of tokens of each sequence, in the row's order.
        masks: for each sequence of L tokens a bool tensor (1, 1, L, L), or None if attention within it is causal.
    """

    lengths: list[int]
    masks: list[torch.Tensor | None]


class NotKeptApartError(RuntimeError):
    """A model computes attention over a packed row without a mask that separates its sequences."""


def install(engine_module: Any) -> None:
    """Replace transformers' attention ``sdpa`` and its mask in this process, and make verl's engine check its models.

    Args:
        engine_module: the module ``verl.workers.engine.fsdp.transformer_impl``.
    """
    ALL_MASK_ATTENTION_FUNCTIONS.register(SDPA, packed_mask)
    ALL_ATTENTION_FUNCTIONS.register(SDPA, packed_attention)
    engine = engine_module.FSDPEngineWithLMHead
    engine.forward_step = with_mask_check(engine.forward_step)


#: Number of ``Blocks`` that this process has created.
_blocks_created = 0


def with_mask_check(forward_step: Callable) -> Callable:
    """verl's ``forward_step`` of one micro-batch, which raises ``NotKeptApartError`` if no ``Blocks`` were created.

    It checks packed micro-batches of several rows under SDPA.
    """
    from verl.utils import tensordict_utils as tu

    @functools.wraps(forward_step)
    def step(self: Any, micro_batch: Any, *args: Any, **kwargs: Any) -> Any:
        created_before = _blocks_created
        result = forward_step(self, micro_batch, *args, **kwargs)
        is_packed = tu.get_non_tensor_data(data=micro_batch, key="use_remove_padding", default=True)
        attention = getattr(self.model_config.hf_config, "_attn_implementation", None)
        if is_packed and attention == SDPA and len(micro_batch) > 1 and _blocks_created == created_before:
            raise NotKeptApartError(
                f"actor_rollout_ref.model.use_remove_padding=true with attn_implementation={SDPA}: this model "
                f"({self.model_config.hf_config.model_type}) creates no mask for packed rows, so their sequences would "
                "attend to each other. Set actor_rollout_ref.model.use_remove_padding=false, or install flash-attn on "
                "the machines that train."
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
    **kwargs: Any,
) -> Blocks | torch.Tensor | None:
    """transformers' ``sdpa_mask``, with the same arguments, but ``Blocks`` if the mask divides into several blocks."""
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
            **kwargs,
        )
    global _blocks_created
    _blocks_created += 1
    if _is_causal(mask_function, lengths, q_offset, device):
        return Blocks(lengths, [None] * len(lengths))
    masks, start = [], q_offset
    for length in lengths:
        # This sequence may need a mask, for example because a sliding window is shorter than the sequence.
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
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """transformers' ``sdpa_attention_forward``, called for each sequence if the mask is ``Blocks``.

    Args:
        query: (1, heads, T, d). Key and value have the same shape, with their own number of heads.

    Returns:
        (1, T, heads, d) and None.
    """
    if not isinstance(attention_mask, Blocks):
        return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)
    # The backward of ``split`` is one concatenation. Slices would sum one gradient of length T per sequence.
    parts = zip(*(tensor.split(attention_mask.lengths, dim=2) for tensor in (query, key, value)), strict=True)
    outputs = [
        sdpa_attention_forward(module, *part, mask, **kwargs)[0]
        for part, mask in zip(parts, attention_mask.masks, strict=True)
    ]
    return torch.cat(outputs, dim=1), None


def _block_lengths(mask_function: Callable, length: int, offset: int, device: torch.device | str) -> list[int]:
    """The lengths of the mask's blocks. A new block begins where neither of two neighbouring tokens sees the other."""
    later = torch.arange(1, length, device=device) + offset
    joined = _sees(mask_function, later, later - 1) | _sees(mask_function, later - 1, later)
    starts = torch.nonzero(~joined).flatten() + 1
    edges = torch.cat([starts.new_zeros(1), starts, starts.new_full((1,), length)])
    return edges.diff().tolist()


def _is_causal(mask_function: Callable, lengths: list[int], offset: int, device: torch.device | str) -> bool:
    """Whether attention within every block is causal.

    It is sufficient that every token sees its block's first token and itself, but not its successor. In transformers'
    causal masks, a token sees an interval of earlier tokens, so it sees all tokens between the two. In an overlay that
    looks ahead, for example for an image, a token also sees its successor.
    """
    sizes = torch.tensor(lengths, device=device)
    query = torch.arange(sum(lengths), device=device) + offset
    first = (sizes.cumsum(0) - sizes).repeat_interleave(sizes) + offset
    earlier = _sees(mask_function, query, first) & _sees(mask_function, query, query)
    later = _sees(mask_function, query[:-1], query[1:])
    return bool(earlier.all() & ~later.any())


def _sees(mask_function: Callable, query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
    """(N,) bool: whether the query at position ``query[i]`` sees the key at position ``key[i]``."""
    zero = torch.zeros_like(query)
    return torch.as_tensor(mask_function(zero, zero, query, key), device=query.device).expand(query.shape)
