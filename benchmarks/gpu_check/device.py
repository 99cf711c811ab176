"""Where the parts run: the GPU of this machine, or with ``VERL_GSD_CPU=1`` the CPU, for a small drill."""

from __future__ import annotations

import os
import socket
from typing import Any

import torch

_ACTOR, _MODEL = "actor_rollout_ref.actor", "actor_rollout_ref.model"


def is_drill() -> bool:
    """Whether this is a drill on the CPU platform."""
    return os.environ.get("VERL_GSD_CPU") == "1"


def device() -> torch.device:
    """The device to check.

    Raises:
        RuntimeError: torch finds no GPU, and this is no drill.
    """
    if is_drill():
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise RuntimeError(
            f"torch {torch.__version__} finds no GPU. Run this on a machine with an NVIDIA GPU and a CUDA build of "
            "torch, or set VERL_GSD_CPU=1 for a small drill on the CPU."
        )
    return torch.device("cuda", torch.cuda.current_device())


def gpu_gib(where: torch.device) -> float | None:
    """Memory of the GPU in GiB; None of a CPU."""
    return torch.cuda.mem_get_info(where)[1] / 2**30 if where.type == "cuda" else None


def hardware(memory: float | None) -> list[str]:
    """Words of a command line for one GPU of ``memory`` GiB, or for the CPU. Nothing is offloaded: models are small."""
    if memory is None:
        return ["hardware=cpu"]
    return [
        *("hardware=1xh200", f"hardware.gpu_memory_gib={memory:.0f}"),
        f"{_ACTOR}.fsdp_config.offload_policy=false",
        # Compiling takes longer than what it would save here.
        *(f"{_ACTOR}.use_torch_compile=false", f"{_ACTOR}.fsdp_config.use_torch_compile=false"),
    ]


def in_float32() -> list[str]:
    """Words that keep an actor in float32. flash-attn has no float32, so that attention is PyTorch's."""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    return [
        f"{_ACTOR}.fsdp_config.dtype=float32",
        f"++{_ACTOR}.fsdp_config.mixed_precision={{param_dtype:fp32,reduce_dtype:fp32}}",
        f"{_MODEL}.enable_gradient_checkpointing=false",
        f"++{_MODEL}.override_config.attn_implementation=sdpa",
    ]


def packed(is_packed: bool) -> list[str]:
    """The word that makes verl pack the rows of a micro-batch, or pad them."""
    return [f"{_MODEL}.use_remove_padding={str(is_packed).lower()}"]


def compose(*words: str) -> tuple[Any, Any]:
    """(resolved config, parsed line) of a command line's words."""
    from verl_gsd.run.compose import compose_config, parse_line, resolve

    line = parse_line(words)
    return resolve(compose_config(line)), line


def be_the_only_worker() -> None:
    """Make this process the one worker of its process group, as torchrun would."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    os.environ |= {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"}


def synchronize(where: torch.device) -> None:
    """Wait until ``where`` has done what it was given; a CPU has."""
    if where.type == "cuda":
        torch.cuda.synchronize(where)
