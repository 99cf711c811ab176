"""GVPO, arXiv 2504.19599: the loss that fits a group's centred log-ratios to its centred rewards.

maths.py      the equations, and how they differ from the paper
settings.py   what the loss can be told
extension.py  what the trainer does for it: places groups into mini-batches, gives the loss its columns
placement.py  where each row stands, and which route a step takes
replayed.py   earlier responses as a share of each group
rows.py       what the loss knows of each row and of a mini-batch
worker.py     weights of whole groups in a training worker
loss.py       the loss under verl's name ``gvpo``
checks.py     what can be wrong with a config
lab.py        its rows in ``verl-gsd lab``
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from verl_gsd.extension import Declaration, register
from verl_gsd.lazy_names import lazy_names

if TYPE_CHECKING:
    from verl_gsd.algorithms.gvpo.maths import gvpo_loss as gvpo_loss

register(
    Declaration(
        "gvpo",
        "verl_gsd.algorithms.gvpo.extension:Gvpo",
        order=20,
        worker="verl_gsd.algorithms.gvpo.worker:GvpoWorker",
        loss="verl_gsd.algorithms.gvpo.loss",
        check="verl_gsd.algorithms.gvpo.checks:gvpo_wrong",
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
