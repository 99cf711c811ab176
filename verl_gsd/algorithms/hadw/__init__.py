"""HA-DW, arXiv 2601.08521: advantages reweighted by how hard a prompt is for the policy as it was so far.

factor.py     the equations, and how they differ from the paper
audit.py      what it does, in words
anchors.py    the running accuracy against which a prompt is hard or easy
settings.py   the section ``algorithm.gsd.hadw``
extension.py  the weights, and the anchor's memory: updated in ``end_step`` and saved
report.py     record columns, figures per step, charts
findings.py   what can go wrong in a run
lab.py        its rows in ``verl-gsd lab``
command.py    ``verl-gsd audit-bias``, by bias.py
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from verl_gsd.algorithms.hadw import report
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
        record_columns=report.RECORD_COLUMNS,
        step_figures=report.STEP_FIGURES,
        report=report.REPORT,
        findings="verl_gsd.algorithms.hadw.findings:FINDERS",
        report_order=10,
        histograms={"hadw_factor_right": "hadw_factor_right", "hadw_factor_wrong": "hadw_factor_wrong"},
        reads_accuracy=True,
        audit="verl_gsd.algorithms.hadw.audit:hadw_effect",
        settings="verl_gsd.algorithms.hadw.settings:HadwSettings",
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
