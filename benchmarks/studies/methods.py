"""Question 1: which method gains over GRPO, on which task and on which prompts?"""

from studies.declaration import Arm, Study

_STUB = "algorithm.gsd.dagrpo.judge.scorer=stub"

STUDY = Study(
    name="methods",
    question="Which method gains over GRPO at equal generated tokens, on which task, and on which prompts?",
    hypothesis=(
        "HA-DW (Table 1), DaGRPO (Table 1) and GVPO (Table 1) each report gains of one to several points over GRPO; "
        "DAPO reports that dynamic sampling needs fewer steps; GSD predicts that a smaller alpha moves weight from "
        "groups of hard and easy prompts to those between. We expect gains on hard prompts for HA-DW and DAPO, and no "
        "difference above 0.02 between alpha 0 and 1 once the learning rate is tuned."
    ),
    measure=(
        "Exact held-out accuracy, averaged over the last quarter of a budget of tokens that is the same for all runs "
        "of a task. Differences to GRPO are paired by seed."
    ),
    spread="",
    tasks=("arithmetic", "arithmetic_hard", "arithmetic_graded"),
    baseline="grpo",
    arms=(
        Arm("grpo", ("algo=grpo",)),
        Arm("dr_grpo", ("algo=dr_grpo",)),
        Arm("gsd_0.5", ("algo=gsd",)),
        Arm("dapo", ("algo=dapo",)),
        Arm("gspo", ("algo=gspo",)),
        Arm("hadw", ("algo=hadw",)),
        Arm("dagrpo_mask", ("algo=dagrpo_mask", _STUB)),
        Arm("gvpo", ("algo=gvpo",)),
    ),
    rates=(3e-5, 6e-5, 1.2e-4, 2.4e-4, 4.8e-4),
)
