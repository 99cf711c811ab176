"""Selects the attention implementation of GPU runs.

verl loads the model with ``flash_attention_2`` unless the config names another implementation. flash-attn is a separate
package that must be compiled, and verl's extra ``vllm`` does not install it. The choices of ``hardware=`` for GPUs
therefore use it if it can be imported, and PyTorch's ``scaled_dot_product_attention`` otherwise.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util

FLASH, SDPA = "flash_attention_2", "sdpa"


@functools.cache
def flash_attention_problem() -> str:
    """Why flash-attn cannot be used in this environment; an empty string if it can."""
    if importlib.util.find_spec("flash_attn") is None:
        return "flash-attn is not installed"
    try:
        importlib.import_module("flash_attn")
    except Exception as error:  # a build for another torch or CUDA can raise any error
        return f"flash-attn cannot be imported ({type(error).__name__}: {error})"
    return ""


def attention_here() -> str:
    """The attention implementation of GPU runs in this environment: flash-attn if it can be imported, else SDPA."""
    return SDPA if flash_attention_problem() else FLASH
