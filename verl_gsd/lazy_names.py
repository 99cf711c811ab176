"""Re-exports that are imported when they are first used."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from typing import Any


def lazy_names(offering: str, where: Mapping[str, str]) -> Callable[[str], Any]:
    """The ``__getattr__`` of the module ``offering``.

    Args:
        where: name -> the module that defines it.
    """

    def __getattr__(name: str) -> Any:  # noqa: N807, the name that PEP 562 prescribes
        if name in where:
            return getattr(importlib.import_module(where[name]), name)
        raise AttributeError(f"module {offering!r} has no attribute {name!r}")

    return __getattr__
