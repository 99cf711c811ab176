"""The sampler and the budget: which prompts a step visits, and how many rollouts each of them gets.

sampler.py             the trainer extension ``sampler``: samples prompts by expected disagreement
sampler_settings.py    its config section, and checks of a config under it
budget.py              the trainer extension ``budget``: divides rollouts by what earlier visits tell about prompts
budget_settings.py     its config section, and checks of a config under it
verdicts.py            checks that every response has an accuracy
group_size_weights.py  weights for groups of different sizes in one update
conflicts.py           settings that they do not work with
unused_keys.py         keys that have no effect
report.py              a record column, and charts
findings.py            problems that a report looks for
audit.py               the descriptions that the config audit prints
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
        follows_responses=True,
        conflicts=BUDGET_CONFLICTS,
        settings="verl_gsd.algorithms.rollouts.budget_settings:BudgetSettings",
        check="verl_gsd.algorithms.rollouts.budget_settings:check_budget",
        record_columns=report.RECORD_COLUMNS,
        report=report.REPORT,
        findings="verl_gsd.algorithms.rollouts.findings:FINDERS",
        report_order=40,
        audit="verl_gsd.algorithms.rollouts.audit:budget_effect",
        about="Gives more rollouts to prompts whose responses are expected to differ.",
    )
)
register(
    Declaration(
        "sampler",
        "verl_gsd.algorithms.rollouts.sampler:SamplerExtension",
        order=11,
        settings="verl_gsd.algorithms.rollouts.sampler_settings:SamplerSettings",
        weighs=False,
        reads_accuracy=True,
        follows_responses=True,
        conflicts=SAMPLER_CONFLICTS,
        check="verl_gsd.algorithms.rollouts.sampler_settings:check_sampler",
        remedies={"silent": "sampler=disagreement  # revisits prompts on which answers differ"},
        report_order=50,
        unused_keys="verl_gsd.algorithms.rollouts.unused_keys:SAMPLER_UNUSED_KEYS",
        audit="verl_gsd.algorithms.rollouts.audit:sampler_effect",
        about="Visits prompts more often whose responses are expected to differ.",
    )
)
