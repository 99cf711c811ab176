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

import numpy as np

_FORCE, _FORCE_NOT = "TORCH_FORCE_WEIGHTS_ONLY_LOAD", "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"


#: The values that torch takes for true in these variables.
_TRUE = ("1", "y", "yes", "true")


_UINT32: np.dtype[Any] = np.dtype("<u4")


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
        with torch.serialization.safe_globals(_NUMPY_ARRAYS):
            yield
    except (pickle.UnpicklingError, _UnsafeArrayError) as error:
        name = str(error) if isinstance(error, _UnsafeArrayError) else unsafe_name(error)
        if name is None:
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


class _UnsafeArrayError(ValueError):
    """A file describes an array that is not part of a random state."""


class _SavedArray(np.ndarray):
    """An array of unsigned integers with 32 bits, as in numpy's random state, created from a file.

    A file can call ``numpy.ndarray`` and ``numpy.dtype`` with arguments of its author's choice, and so make numpy take
    bytes of the file for addresses of objects. This class stands for ``numpy.ndarray`` while a file is loaded. It
    accepts nothing but the numbers.
    """

    def __new__(cls, *arguments: Any) -> _SavedArray:
        if arguments:
            raise _UnsafeArrayError("numpy.ndarray with arguments")
        return super().__new__(cls, 0, np.uint32)

    def __setstate__(self, state: Any) -> None:
        """Take over the numbers, once: memory that something already refers to is never replaced."""
        if self.size or type(state) is not tuple or [*map(type, state)] != [int, tuple, _SavedType, bool, bytes]:
            raise _UnsafeArrayError("a numpy array with an unknown state")
        version, shape, kind, is_fortran, content = state
        if version != 1 or [*map(type, shape)] != [int] or is_fortran or not kind.is_complete:
            raise _UnsafeArrayError("a numpy array that is not one row of numbers")
        if len(content) != _UINT32.itemsize * shape[0]:
            raise _UnsafeArrayError("a numpy array without its numbers")
        plain: Any = (version, shape, _UINT32, is_fortran, content)
        super().__setstate__(plain)


class _SavedType:
    """Stands for ``numpy.dtype`` while a file is loaded. It accepts unsigned integers with 32 bits only."""

    def __init__(self, *arguments: Any) -> None:
        _check_same(arguments, ("u4", False, True))
        self.is_complete = False

    def __setstate__(self, state: Any) -> None:
        _check_same(state, (3, "<", None, None, None, -1, -1, 0))
        self.is_complete = True


def _check_same(value: Any, expected: tuple[Any, ...]) -> None:
    is_same = type(value) is tuple and [*map(type, value)] == [*map(type, expected)] and value == expected
    if not is_same:
        raise _UnsafeArrayError("a numpy type that is not uint32")


def _create_array(*arguments: Any) -> _SavedArray:
    """Stands for numpy's ``_reconstruct``, which a file calls with (class, shape, type)."""
    if not arguments or arguments[0] is not _SavedArray:
        raise _UnsafeArrayError("a numpy array of another class")
    return _SavedArray()


#: What creates numpy's random state instead of numpy's own functions, which a file could misuse. Versions 1 and 2 of
#: numpy write one function under different names.
_NUMPY_ARRAYS: list[Any] = [
    (_create_array, "numpy.core.multiarray._reconstruct"),
    (_create_array, "numpy._core.multiarray._reconstruct"),
    (_SavedArray, "numpy.ndarray"),
    (_SavedType, "numpy.dtype"),
]
