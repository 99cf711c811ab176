"""GVPO, arXiv 2504.19599: the loss that fits a group's centred log-ratios to its centred rewards.

maths.py      the equations, and how they differ from the paper
settings.py   the section ``algorithm.gsd.gvpo``, and the settings of the loss
extension.py  what the trainer does for it: places groups into mini-batches, gives the loss its columns
placement.py  where each row stands, and which route a step takes
replayed.py   earlier responses as a share of each group
rows.py       what the loss knows of each row and of a mini-batch
worker.py     weights of whole groups in a training worker
loss.py       the loss under verl's name ``gvpo``
checks.py     what can be wrong with a config
report.py     charts
findings.py   what can go wrong in a run
conflicts.py, unused_keys.py, audit.py    what it does not work with, what has no effect, what it does in words
lab.py        its rows in ``verl-gsd lab``
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from verl_gsd.algorithms.gvpo import report
from verl_gsd.algorithms.gvpo.conflicts import CONFLICTS
from verl_gsd.extension import Declaration, register
from verl_gsd.lazy_names import lazy_names

if TYPE_CHECKING:
    from verl_gsd.algorithms.gvpo.maths import gvpo_loss as gvpo_loss

register(
    Declaration(
        "gvpo",
        "verl_gsd.algorithms.gvpo.extension:Gvpo",
        order=20,
        counts_groups=True,
        settings="verl_gsd.algorithms.gvpo.settings:GvpoSettings",
        worker="verl_gsd.algorithms.gvpo.worker:GvpoWorker",
        loss="verl_gsd.algorithms.gvpo.loss",
        conflicts=CONFLICTS,
        check="verl_gsd.algorithms.gvpo.checks:gvpo_wrong",
        report=report.REPORT,
        findings="verl_gsd.algorithms.gvpo.findings:FINDERS",
        report_order=30,
        unused_keys="verl_gsd.algorithms.gvpo.unused_keys:UNUSED_KEYS",
        audit="verl_gsd.algorithms.gvpo.audit:gvpo_effect",
        lab="verl_gsd.algorithms.gvpo.lab:lab_algorithms",
    )
)

#: Public names. The declaration above must be there without torch, so that these are imported when they are used.
__getattr__ = lazy_names(
    __name__,
    {
        "gvpo_loss": "verl_gsd.algorithms.gvpo.maths",
    },
)
