"""DaGRPO, arXiv 2512.06337: pairs that a judge finds alike are masked, and groups that failed get a demonstration.

pairs.py                the equations, and how they differ from the paper
settings.py             the section ``algorithm.gsd.dagrpo``
mask.py                 the mask in a trainer; its delta is saved, recorded and reported there
judging.py              ``dagrpo.judge``: whole groups are judged while others are still generated
reward_model.py         verl's reward model as a judge
demonstrations.py       ``dagrpo.demonstrations``: verified, and put where a group needs them
demonstration_settings.py, pools.py, tokens.py    where they come from, and what may be one
demonstration_ratio.py  the gradient on a demonstration's tokens
loss.py, worker.py      the loss under verl's name ``dagrpo``; the probe of gradients
checks.py               what can be wrong with a config
report.py, findings.py  record columns, figures per step and charts; what can go wrong in a run
conflicts.py, unused_keys.py, audit.py    what it does not work with, what has no effect, what it does in words
lab.py                  its rows in ``verl-gsd lab``
command.py              ``verl-gsd judge calibrate``, by judge_calibration.py, mask_quality.py and calibration_tables.py
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from verl_gsd.algorithms.dagrpo import report
from verl_gsd.algorithms.dagrpo.conflicts import DEMONSTRATION_CONFLICTS, JUDGE_CONFLICTS
from verl_gsd.extension import Declaration, register
from verl_gsd.lazy_names import lazy_names

if TYPE_CHECKING:
    from verl_gsd.algorithms.dagrpo.pairs import rectified_advantage as rectified_advantage

register(
    Declaration(
        "dagrpo",
        "verl_gsd.algorithms.dagrpo.mask:Dagrpo",
        order=30,
        settings="verl_gsd.algorithms.dagrpo.settings:MaskSettings",
        saves=True,
        worker="verl_gsd.algorithms.dagrpo.worker:DagrpoWorker",
        loss="verl_gsd.algorithms.dagrpo.loss",
        check="verl_gsd.algorithms.dagrpo.checks:dagrpo_wrong",
        record_columns=report.RECORD_COLUMNS,
        step_figures=report.STEP_FIGURES,
        report=report.REPORT,
        report_order=20,
        unused_keys="verl_gsd.algorithms.dagrpo.unused_keys:UNUSED_KEYS",
        audit="verl_gsd.algorithms.dagrpo.audit:mask_effect",
        lab="verl_gsd.algorithms.dagrpo.lab:lab_algorithms",
        commands={"judge calibrate": "verl_gsd.algorithms.dagrpo.command:calibrate"},
    )
)
# The judge sees a group before a demonstration takes a response's place in it.
register(
    Declaration(
        "dagrpo.judge",
        "verl_gsd.algorithms.dagrpo.judging:Judging",
        order=31,
        findings="verl_gsd.algorithms.dagrpo.findings:OF_JUDGE",
        report_order=70,
        conflicts=JUDGE_CONFLICTS,
        check_services="verl_gsd.algorithms.dagrpo.checks:judge_absent",
        settings="verl_gsd.judge.settings:JudgeSettings",
        longest_wait="budget_s",
    )
)
register(
    Declaration(
        "dagrpo.demonstrations",
        "verl_gsd.algorithms.dagrpo.demonstrations:Demonstrating",
        order=32,
        findings="verl_gsd.algorithms.dagrpo.findings:OF_DEMONSTRATIONS",
        remedies={"all_wrong": "algo=dagrpo_anchors  # a verified demonstration for groups in which all failed"},
        report_order=60,
        reads_accuracy=True,
        conflicts=DEMONSTRATION_CONFLICTS,
        check_files="verl_gsd.algorithms.dagrpo.checks:demonstrations_absent",
        audit="verl_gsd.algorithms.dagrpo.audit:demonstration_effect",
        settings="verl_gsd.algorithms.dagrpo.demonstration_settings:DemonstrationSettings",
    )
)

#: Public names. The declaration above must be there without torch, so that these are imported when they are used.
__getattr__ = lazy_names(
    __name__,
    {
        "rectified_advantage": "verl_gsd.algorithms.dagrpo.pairs",
    },
)
