"""HA-DW (arXiv 2601.08521) reweights advantages by how hard a prompt is, compared with the policy's past accuracy.

factor.py     the equations, and how they differ from the paper
anchors.py    the anchor: the running accuracy that separates hard prompts from easy ones
settings.py   the config section ``algorithm.gsd.hadw``
extension.py  the trainer extension: computes the weights, updates the anchor in ``end_step``, and saves it
report.py     record columns, figures per step, and charts
findings.py   problems that a report looks for
audit.py      the description that the config audit prints
lab.py        HA-DW's algorithms in ``verl-gsd lab``
command.py    the command ``verl-gsd audit-bias``; bias.py computes its figures
lab_command.py  the command ``verl-gsd lab bias``; policy_bias.py and policy_bias_page.py compute and show its figures
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
        commands={
            "audit-bias": "verl_gsd.algorithms.hadw.command:audit_bias",
            "lab bias": "verl_gsd.algorithms.hadw.lab_command:lab_bias",
        },
    )
)

#: Public names, imported on first use: the declaration above must not import torch.
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
