"""Which prompts a step visits, and how many rollouts each gets.

sampler.py, sampler_settings.py  ``algorithm.gsd.sampler``: prompts drawn by expected disagreement
budget.py, budget_settings.py    ``algorithm.gsd.budget``: rollouts shared out by what is known of prompts
group_size_weights.py            groups of several sizes in one update
"""

from verl_gsd.extension import Declaration, register

register(
    Declaration(
        "budget",
        "verl_gsd.algorithms.rollouts.budget:Budget",
        order=10,
        settings="verl_gsd.algorithms.rollouts.budget_settings:BudgetSettings",
        check="verl_gsd.algorithms.rollouts.budget_settings:budget_wrong",
    )
)
register(
    Declaration(
        "sampler",
        "verl_gsd.algorithms.rollouts.sampler:Drawing",
        order=11,
        settings="verl_gsd.algorithms.rollouts.sampler_settings:SamplerSettings",
        weighs=False,
        check="verl_gsd.algorithms.rollouts.sampler_settings:sampler_wrong",
    )
)
