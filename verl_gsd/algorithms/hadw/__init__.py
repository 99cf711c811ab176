"""HA-DW, arXiv 2601.08521: advantages reweighted by how hard a prompt is for the policy as it was so far.

factor.py     the equations, and how they differ from the paper
anchors.py    the running accuracy against which a prompt is hard or easy
lab.py        its rows in ``verl-gsd lab``
command.py    ``verl-gsd audit-bias``, by bias.py
extension.py  settings; checks of the settings; the anchor is updated in ``end_step`` and
              saved; ``record`` gives the columns of records.py; charts: report/sections/algorithms.py
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from verl_gsd.extension import Declaration, register
from verl_gsd.lazy_names import lazy_names

if TYPE_CHECKING:
    from verl_gsd.algorithms.hadw.anchors import AnchorBank as AnchorBank
    from verl_gsd.algorithms.hadw.anchors import FixedAnchor as FixedAnchor
    from verl_gsd.algorithms.hadw.anchors import HardAnchor as HardAnchor
    from verl_gsd.algorithms.hadw.anchors import SoftAnchor as SoftAnchor
    from verl_gsd.algorithms.hadw.factor import hadw_factor as hadw_factor

register(
    Declaration(
        "hadw",
        "verl_gsd.algorithms.hadw.extension:Hadw",
        order=40,
        saves=True,
        lab="verl_gsd.algorithms.hadw.lab:lab_algorithms",
        commands={"audit-bias": "verl_gsd.algorithms.hadw.command:audit_bias"},
    )
)

#: Public names. The declaration above must be there without torch, so that these are imported when they are used.
__getattr__ = lazy_names(
    __name__,
    {
        "hadw_factor": "verl_gsd.algorithms.hadw.factor",
        "AnchorBank": "verl_gsd.algorithms.hadw.anchors",
        "FixedAnchor": "verl_gsd.algorithms.hadw.anchors",
        "HardAnchor": "verl_gsd.algorithms.hadw.anchors",
        "SoftAnchor": "verl_gsd.algorithms.hadw.anchors",
    },
)
