"""Makes verl load checkpoints without running code that is in them.

verl loads weights, optimizer, scheduler, random states and the place in the data with ``torch.load`` and
``weights_only=False``: a checkpoint of somebody else can run anything. This module makes torch load them with
``weights_only``. Megatron's checkpoints, and the queue of the asynchronous modes, are loaded as before.

A data set or a sampler of the user's own can put other objects into the checkpoint. torch's variable
TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD=1 then switches this off.
"""

from __future__ import annotations

import functools
import os
import pickle
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

_FORCE, _FORCE_NOT = "TORCH_FORCE_WEIGHTS_ONLY_LOAD", "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"


#: The values that torch takes for true in these variables.
_TRUE = ("1", "y", "yes", "true")


class UnsafeCheckpointError(RuntimeError):
    """A file of a checkpoint contains more than data. The message names the folder and the remedy."""


@contextmanager
def weights_only(checkpoint: str) -> Iterator[None]:
    """Make ``torch.load`` load tensors and plain values only, whatever its caller asks for.

    Args:
        checkpoint: the folder that is loaded, for the message.

    Raises:
        UnsafeCheckpointError: a file that is loaded in the context contains other objects. They were not created.
    """
    if os.environ.get(_FORCE_NOT, "").lower() in _TRUE:
        yield
        return
    import torch

    before = os.environ.get(_FORCE)
    os.environ[_FORCE] = "1"  # torch reads it at every load
    try:
        with torch.serialization.safe_globals(_numpy_arrays()):
            yield
    except pickle.UnpicklingError as error:
        if (name := unsafe_name(error)) is None:
            raise
        raise UnsafeCheckpointError(
            f"{checkpoint}: a file in it contains more than weights and plain values ({name}), which can run code. It "
            "was not loaded. Resume from a checkpoint of your own. If your data set or sampler stores such objects, "
            f"and you trust this checkpoint, set {_FORCE_NOT}=1 in the environment."
        ) from None
    finally:
        if before is None:
            del os.environ[_FORCE]
        else:
            os.environ[_FORCE] = before


def unsafe_name(error: Exception) -> str | None:
    """The class or function in a file that torch refused to load with ``weights_only``; None for any other error.

    torch's own message advises to load the file without this protection.
    """
    match = re.search(r"\b[Uu]nsupported (?:global: )?GLOBAL (\S+)", str(error))
    return match[1] if match else None


def install(fsdp_checkpoint_manager: Any) -> None:
    """Patch verl's FSDP checkpoint manager, which every training worker loads its shards with."""
    manager = fsdp_checkpoint_manager.FSDPCheckpointManager
    manager.load_checkpoint = _loading_weights_only(manager.load_checkpoint)


def _loading_weights_only(load: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(load)
    def load_checkpoint(self: Any, local_path: str, *args: Any, **kwargs: Any) -> Any:
        with weights_only(str(local_path)):
            return load(self, local_path, *args, **kwargs)

    return load_checkpoint


def _numpy_arrays() -> list[Any]:
    """What torch must create to load numpy's random state: an array of unsigned integers. None of it runs code."""
    import numpy as np

    core: Any = np._core if hasattr(np, "_core") else np.core
    create = core.multiarray._reconstruct
    # Versions 1 and 2 of numpy write the function under different names.
    names = [(create, f"numpy.{name}.multiarray._reconstruct") for name in ("core", "_core")]
    return [*names, np.ndarray, np.dtype, type(np.dtype(np.uint32))]
