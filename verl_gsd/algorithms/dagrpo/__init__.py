"""DaGRPO (arXiv 2512.06337) masks pairs that a judge scores alike, and adds demonstrations to failed groups.

The mask:

pairs.py                   the equations, and how they relate to the paper
settings.py                the config section ``algorithm.gsd.dagrpo``
mask.py                    the trainer extension ``dagrpo``: applies the mask, schedules delta, and reports both
judging.py                 the trainer extension ``dagrpo.judge``: scores groups while others are still generated
reward_model.py            verl's reward model as a judge
worker.py                  the worker extension: measures gradients of positive and negative rows

Demonstrations:

demonstrations.py          the trainer extension ``dagrpo.demonstrations``: adds verified demonstrations to groups
demonstration_settings.py  its config section
pools.py                   the sources of demonstrations
tokens.py                  demonstrations as tokens, and the reasons for which candidates are rejected
demonstration_ratio.py     the policy ratio on a demonstration's tokens
loss.py                    the policy loss that verl knows as ``dagrpo``

Both:

checks.py                  checks of a config
conflicts.py               settings that DaGRPO does not work with
unused_keys.py             keys that have no effect
report.py                  record columns, figures per step, and charts
findings.py                problems that a report looks for
audit.py                   the description that the config audit prints
lab.py                     DaGRPO's algorithms in ``verl-gsd lab``
command.py                 the command ``verl-gsd judge calibrate``; judge_calibration.py and mask_quality.py compute
                           its figures, calibration_tables.py prints them
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from verl_gsd.algorithms.dagrpo import report
from verl_gsd.algorithms.dagrpo.conflicts import DEMONSTRATION_CONFLICTS, JUDGE_CONFLICTS
from verl_gsd.extension import Declaration, Remedy, register
from verl_gsd.lazy_names import lazy_names

if TYPE_CHECKING:
    from verl_gsd.algorithms.dagrpo.pairs import rectified_advantage as rectified_advantage

register(
    Declaration(
        "dagrpo",
        "verl_gsd.algorithms.dagrpo.mask:Dagrpo",
        order=30,
        settings="verl_gsd.algorithms.dagrpo.settings:MaskSettings",
        weighs=False,  # without a judge, the mask keeps all pairs
        saves=True,
        worker="verl_gsd.algorithms.dagrpo.worker:DagrpoWorker",
        loss="verl_gsd.algorithms.dagrpo.loss",
        check="verl_gsd.algorithms.dagrpo.checks:check_dagrpo",
        remedies={
            "unstable": "algo=dagrpo_mask  # drops pairs of responses that are too alike, whose gradients conflict; "
            "with a judge that knows only verdicts it was no more stable (study stability)"
        },
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
# The judge scores a group before a demonstration replaces a response in it.
register(
    Declaration(
        "dagrpo.judge",
        "verl_gsd.algorithms.dagrpo.judging:JudgeExtension",
        order=31,
        findings="verl_gsd.algorithms.dagrpo.findings:JUDGE_FINDERS",
        report_order=70,
        conflicts=JUDGE_CONFLICTS,
        check_files="verl_gsd.algorithms.dagrpo.checks:check_distilled_judge",
        check_services="verl_gsd.algorithms.dagrpo.checks:check_judge_server",
        settings="verl_gsd.judge.settings:JudgeSettings",
        longest_wait="budget_s",
        needs="a judge: a server, the reward model of verl, or a distilled model",
    )
)
register(
    Declaration(
        "dagrpo.demonstrations",
        "verl_gsd.algorithms.dagrpo.demonstrations:DemonstrationExtension",
        order=32,
        findings="verl_gsd.algorithms.dagrpo.findings:DEMONSTRATION_FINDERS",
        remedies={
            "all_wrong": Remedy(
                "algo=dagrpo_anchors  # in place of the run's algo: a verified demonstration for groups in which all "
                "responses failed",
                column="demonstration",
                otherwise="algo=dagrpo_anchors algorithm.gsd.dagrpo.demonstrations.source=self  # in place of the "
                "run's algo: an earlier success of the policy for groups in which all responses failed. If the data "
                "has solutions, name their column in algorithm.gsd.dagrpo.demonstrations.column instead",
                beside={
                    "dagrpo.judge": "algo=dagrpo  # in place of the run's algo: also a verified demonstration for "
                    "groups in which all responses failed. It needs a column with solutions in the data: "
                    "algorithm.gsd.dagrpo.demonstrations.column, or demonstrations.source=self for earlier successes"
                },
            )
        },
        report_order=60,
        weighs=False,  # demonstrations change which responses a group has, and not what becomes of their rewards
        reads_accuracy=True,
        conflicts=DEMONSTRATION_CONFLICTS,
        check_files="verl_gsd.algorithms.dagrpo.checks:check_demonstration_column",
        audit="verl_gsd.algorithms.dagrpo.audit:demonstration_effect",
        settings="verl_gsd.algorithms.dagrpo.demonstration_settings:DemonstrationSettings",
        needs="demonstrations: a column of the data, or earlier right responses of the policy",
    )
)

#: Public names, imported on first use: the declarations above must not import torch.
__getattr__ = lazy_names(
    __name__,
    {
        "rectified_advantage": "verl_gsd.algorithms.dagrpo.pairs",
    },
)
