"""HA-DW, arXiv 2601.08521: advantages reweighted by how hard a prompt is for the policy as it was so far.

factor.py     the equations, and how they differ from the paper
anchors.py    the running accuracy against which a prompt is hard or easy
extension.py  settings; where the anchor is updated (``end_step``), saved, recorded and reported
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from verl_gsd.extension import Declaration, register

if TYPE_CHECKING:
    from verl_gsd.algorithms.hadw.anchors import AnchorBank as AnchorBank
    from verl_gsd.algorithms.hadw.anchors import FixedAnchor as FixedAnchor
    from verl_gsd.algorithms.hadw.anchors import HardAnchor as HardAnchor
    from verl_gsd.algorithms.hadw.anchors import SoftAnchor as SoftAnchor
    from verl_gsd.algorithms.hadw.factor import hadw_factor as hadw_factor

register(Declaration("hadw", "verl_gsd.algorithms.hadw.extension:Hadw", order=40, saves=True))

_PUBLIC = {
    "hadw_factor": "factor",
    "AnchorBank": "anchors",
    "FixedAnchor": "anchors",
    "HardAnchor": "anchors",
    "SoftAnchor": "anchors",
}


def __getattr__(name: str) -> Any:
    """A public name, imported when it is asked for: the declaration must be there without torch."""
    if name in _PUBLIC:
        return getattr(importlib.import_module(f"{__name__}.{_PUBLIC[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
