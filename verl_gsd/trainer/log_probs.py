"""A patch for verl's log-probabilities where flash-attn is not installed.

verl 0.9.1 computes them by flash-attn's cross entropy. Without that package it loops over the rows of the logits, which
are the tokens of a micro-batch: thousands of small kernels, and for bfloat16 logits a softmax in bfloat16. Here a chunk
of tokens is one call of PyTorch's cross entropy in float32, as flash-attn's is. ``tests/contract/test_log_probs.py``
fails when verl no longer loops over tokens: the patch can then go.
"""

from __future__ import annotations

from typing import Any

import torch

#: Tokens per call. Beyond it a call gains nothing, and its float32 copy of the logits would only be larger.
CHUNK = 1024


def patch(torch_functional: Any) -> None:
    """Replace verl's fallback; ``torch_functional`` is the module ``verl.utils.torch_functional``."""
    torch_functional.logprobs_from_logits_v2 = log_probs


def log_probs(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """log softmax(logits) at the labels.

    Args:
        logits: (..., V), any floating dtype.
        labels: (...), token ids.

    Returns:
        (...), in float32, or in float64 for float64 logits.
    """
    dtype = torch.float64 if logits.dtype == torch.float64 else torch.float32
    rows = logits.reshape(-1, logits.shape[-1])
    # One split, whose backward is one concatenation: a slice per chunk would add up gradients as large as the logits.
    chunks = zip(rows.split(CHUNK), labels.reshape(-1).split(CHUNK), strict=True)
    found = [torch.nn.functional.cross_entropy(of.to(dtype), at, reduction="none") for of, at in chunks]
    return -torch.cat(found).reshape(labels.shape) if found else logits.new_zeros(labels.shape, dtype=dtype)
