"""GVPO (arXiv 2504.19599): a loss that fits a group's centred log-ratios to its centred rewards.

maths.py        the equations, and how they differ from the paper
settings.py     the config section ``algorithm.gsd.gvpo``, and the settings of the loss
extension.py    the trainer extension: places groups into mini-batches and provides the columns that the loss reads
placement.py    the position of each row, and the route that a step takes
replayed.py     earlier responses as a share of each group
rows.py         what the loss reads about each row, and statistics of a mini-batch
worker.py       the worker extension: computes the weights of whole groups
loss.py         the policy loss that verl knows as ``gvpo``
checks.py       checks of a config
conflicts.py    settings that GVPO does not work with
unused_keys.py  keys that have no effect
report.py       charts
findings.py     problems that a report looks for
audit.py        the description that the config audit prints
lab.py          GVPO's algorithms in ``verl-gsd lab``
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
        counts=("gvpo/padding_rows", "gvpo/missing_sessions", "gvpo/missing_updates"),
        settings="verl_gsd.algorithms.gvpo.settings:GvpoSettings",
        worker="verl_gsd.algorithms.gvpo.worker:GvpoWorker",
        loss="verl_gsd.algorithms.gvpo.loss",
        conflicts=CONFLICTS,
        check="verl_gsd.algorithms.gvpo.checks:check_gvpo",
        report=report.REPORT,
        findings="verl_gsd.algorithms.gvpo.findings:FINDERS",
        remedies={"partial_credit": "algo=gvpo  # learned more from partial credit (study methods)"},
        report_order=30,
        unused_keys="verl_gsd.algorithms.gvpo.unused_keys:UNUSED_KEYS",
        audit="verl_gsd.algorithms.gvpo.audit:gvpo_effect",
        lab="verl_gsd.algorithms.gvpo.lab:lab_algorithms",
    )
)

#: Public names, imported on first use: the declaration above must not import torch.
__getattr__ = lazy_names(
    __name__,
    {
        "gvpo_loss": "verl_gsd.algorithms.gvpo.maths",
    },
)
