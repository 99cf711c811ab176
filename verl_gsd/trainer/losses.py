"""Policy losses under the names that stand as ``_target_`` in the config of every run."""

from __future__ import annotations

import importlib
from typing import Any

_WHERE = {"GVPOLossConfig": "verl_gsd.algorithms.gvpo.loss", "DagrpoLossConfig": "verl_gsd.algorithms.dagrpo.loss"}


def __getattr__(name: str) -> Any:
    """The class where it is now; looked up when it is asked for, because this package imports no algorithm."""
    if name in _WHERE:
        return getattr(importlib.import_module(_WHERE[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
