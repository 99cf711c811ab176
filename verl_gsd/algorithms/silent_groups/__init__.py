"""Silent groups, whose advantages are all 0: their responses can be left out of the denominator of the policy loss.

denominator.py  the equation, and which groups are silent
settings.py     the config section ``algorithm.gsd.silent_groups``
extension.py    the trainer extension: marks the rows of silent groups
worker.py       the worker extension: counts them in each mini-batch, and rescales its advantages
conflicts.py    settings that it does not work with
audit.py        the description that the config audit prints
"""

from verl_gsd.algorithms.silent_groups.conflicts import CONFLICTS, CONTRADICTIONS
from verl_gsd.extension import Declaration, register

# The order is below that of extensions that measure gradients in the workers, so that they measure those of the update.
register(
    Declaration(
        "silent_groups",
        "verl_gsd.algorithms.silent_groups.extension:SilentGroups",
        order=12,
        settings="verl_gsd.algorithms.silent_groups.settings:SilentGroupSettings",
        worker="verl_gsd.algorithms.silent_groups.worker:SilentGroupsWorker",
        conflicts=CONFLICTS,
        contradictions=CONTRADICTIONS,
        audit="verl_gsd.algorithms.silent_groups.audit:silent_groups_effect",
        about="Leaves groups without a gradient out of the denominator of the policy loss.",
    )
)
