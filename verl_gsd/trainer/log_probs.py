"""A patch for verl's log-probabilities if flash-attn is not installed.

verl 0.9.1 computes log-probabilities with flash-attn's cross entropy. Without flash-attn, it loops over the rows of the
logits, which are the tokens of a micro-batch. This launches thousands of small kernels, and bfloat16 logits get a
softmax in bfloat16. The patch calls PyTorch's cross entropy once per chunk of tokens, in float32 like flash-attn.
``tests/contract/test_log_probs.py`` fails when verl no longer loops over tokens. The patch can then be removed.
"""

from __future__ import annotations

from typing import Any

import torch

#: Tokens per call. A larger chunk is not faster, and its float32 copy of the logits needs more memory.
CHUNK = 1024


def patch(torch_functional: Any) -> None:
    """Replace verl's fallback.

    Args:
        torch_functional: the module ``verl.utils.torch_functional``.
    """
    torch_functional.logprobs_from_logits_v2 = log_probs


def log_probs(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """log softmax(logits) at the labels.

    Args:
        logits: (..., V), any floating dtype.
        labels: (...), token ids.

    Returns:
        (...), in float64 for float64 logits and in float32 otherwise.
    """
    dtype = torch.float64 if logits.dtype == torch.float64 else torch.float32
    rows = logits.reshape(-1, logits.shape[-1])
    # The backward of ``split`` is one concatenation. Slices would sum one gradient of the logits' size per chunk.
    chunks = zip(rows.split(CHUNK), labels.reshape(-1).split(CHUNK), strict=True)
    losses = [torch.nn.functional.cross_entropy(part.to(dtype), target, reduction="none") for part, target in chunks]
    return -torch.cat(losses).reshape(labels.shape) if losses else logits.new_zeros(labels.shape, dtype=dtype)
