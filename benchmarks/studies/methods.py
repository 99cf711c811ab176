"""Question 1: which method gains over GRPO, on which task and on which prompts?"""

from studies.declaration import Arm, Study

#: Scores without a judge: the similarity of the text of response and reference. The study ``judge`` has scores of known
#: quality.
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
        "Exact held-out accuracy (on arithmetic_graded the mean held-out reward, which that task trains), averaged "
        "over the second half of a budget of tokens that is the same for all runs of a task. Differences to GRPO are "
        "paired by seed."
    ),
    tuning=(
        "Per arm and task, on two seeds of their own: 6e-5, 1.2e-4 and 2.4e-4, then by factors of 2 beyond the best "
        "one while it is the lowest or the highest tried. The same measure decides."
    ),
    spread=(
        "Six runs each of GRPO and Dr. GRPO on arithmetic at 1.2e-4: the measure of one run has a standard deviation "
        "of 0.012 and 0.009, the difference of one seed 0.011. With 16 seeds, 0.01 is then 3.8 standard errors."
    ),
    tasks=("arithmetic", "arithmetic_hard", "arithmetic_graded"),
    baseline="grpo",
    arms=(
        Arm("grpo", ("algo=grpo",)),
        Arm("dr_grpo", ("algo=dr_grpo",)),
        Arm("gsd_0.5", ("algo=gsd",)),
        # DAPO generates 2.5 times the tokens per step and more, so that fewer steps use up the budget. Its 60 steps on
        # arithmetic were trained before we saw this.
        Arm("dapo", ("algo=dapo",), tasks=("arithmetic",)),
        Arm("dapo", ("algo=dapo",), steps=30, tasks=("arithmetic_hard", "arithmetic_graded")),
        # With one update per step all ratios are 1, so that GSPO's clip has no effect.
        Arm("gspo", ("algo=gspo",), tasks=("arithmetic",)),
        Arm("hadw", ("algo=hadw",)),
        # These scores separate nearly all right responses from wrong ones, so that the mask keeps nearly all pairs.
        Arm("dagrpo_mask", ("algo=dagrpo_mask", _STUB), tasks=("arithmetic",)),
        Arm("gvpo", ("algo=gvpo",)),
    ),
    rates=(6e-5, 1.2e-4, 2.4e-4),
)
