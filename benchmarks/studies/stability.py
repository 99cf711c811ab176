"""Question 2: which methods stay stable above their best learning rate?"""

from studies.declaration import Arm, Study, Tuned
from studies.judge_server import judge_words

#: name -> words, as in ``methods``. DaGRPO's mask has a good judge: without one it masks hardly anything.
METHODS = {
    "grpo": ("algo=grpo",),
    "dr_grpo": ("algo=dr_grpo",),
    "hadw": ("algo=hadw",),
    "dagrpo_mask": ("algo=dagrpo_mask", *judge_words(0.9)),
    "gvpo": ("algo=gvpo",),
}
#: name -> the arm of ``methods`` whose rate it has, if it has another name.
RATES = {"dagrpo_mask": "grpo"}

STUDY = Study(
    name="stability",
    question="At 1, 2, 4 and 8 times its best rate, how often does a method diverge, and how much does it lose?",
    hypothesis=(
        "GVPO (section 3) and DaGRPO (summary) claim more stable updates than GRPO's. Then fewer of their runs diverge "
        "at 4 and 8 times the best rate, and they lose less."
    ),
    measure=(
        "The share of runs whose mean exact accuracy over the second half of a budget of tokens is below the accuracy "
        "before training, and the accuracy lost against the method's own best rate, paired by seed."
    ),
    spread=(
        "As in the study methods: one difference has a standard deviation of 0.011, so that 8 seeds find a loss of "
        "0.02. A share of 8 runs is known to 0.2 only."
    ),
    tasks=("arithmetic",),
    baseline="grpo_x1",
    arms=tuple(
        Arm(f"{name}_x{times}", words, Tuned("methods", RATES.get(name, name), times), against=f"{name}_x1")
        for name, words in METHODS.items()
        for times in (1, 2, 4, 8)
    ),
    seeds="1..8",
    judges=True,
)
