"""Which prompts a step visits, and how many rollouts each gets.

sampler.py, sampler_settings.py  ``algorithm.gsd.sampler``: prompts drawn by expected disagreement
budget.py, budget_settings.py    ``algorithm.gsd.budget``: rollouts shared out by what is known of prompts
group_size_weights.py            groups of several sizes in one update
report.py, findings.py           a record column and charts; what can go wrong in a run
conflicts.py, unused_keys.py, audit.py    what they do not work with, what has no effect, what they do in words
"""

from verl_gsd.algorithms.rollouts import report
from verl_gsd.algorithms.rollouts.conflicts import BUDGET_CONFLICTS, SAMPLER_CONFLICTS
from verl_gsd.extension import Declaration, register

register(
    Declaration(
        "budget",
        "verl_gsd.algorithms.rollouts.budget:Budget",
        order=10,
        reads_accuracy=True,
        conflicts=BUDGET_CONFLICTS,
        settings="verl_gsd.algorithms.rollouts.budget_settings:BudgetSettings",
        check="verl_gsd.algorithms.rollouts.budget_settings:budget_wrong",
        record_columns=report.RECORD_COLUMNS,
        report=report.REPORT,
        findings="verl_gsd.algorithms.rollouts.findings:FINDERS",
        report_order=40,
        audit="verl_gsd.algorithms.rollouts.audit:budget_effect",
    )
)
register(
    Declaration(
        "sampler",
        "verl_gsd.algorithms.rollouts.sampler:Drawing",
        order=11,
        settings="verl_gsd.algorithms.rollouts.sampler_settings:SamplerSettings",
        weighs=False,
        reads_accuracy=True,
        conflicts=SAMPLER_CONFLICTS,
        check="verl_gsd.algorithms.rollouts.sampler_settings:sampler_wrong",
        remedies={"silent": "sampler=disagreement  # revisits prompts on which answers differ"},
        report_order=50,
        unused_keys="verl_gsd.algorithms.rollouts.unused_keys:SAMPLER_UNUSED_KEYS",
        audit="verl_gsd.algorithms.rollouts.audit:sampler_effect",
    )
)
