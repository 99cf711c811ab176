"""Question 2, second part: do long runs stay stable?"""

from studies.declaration import Arm, Study, Tuned
from studies.stability import METHODS, RATES

STUDY = Study(
    name="long_runs",
    question="Over 2,000 steps, do accuracy, entropy, response length and gradient norm stay stable?",
    hypothesis=(
        "DaGRPO (summary) reports gradient norms up to 1e10, lengths that collapse and a flat accuracy for GRPO in "
        "long runs, and none of these for its mask. GVPO claims a unique optimum and stable training."
    ),
    measure=(
        "Exact accuracy over the second half of a budget of tokens, and the curves of accuracy, entropy, response "
        "length and gradient norm. A run has diverged if that accuracy is below the one before training."
    ),
    spread="Four runs per method show what can happen, not how often. They say nothing about differences below 0.03.",
    tasks=("arithmetic",),
    baseline="grpo",
    arms=tuple(
        Arm(name, METHODS[name], Tuned("methods", RATES.get(name, name))) for name in ("grpo", "dagrpo_mask", "gvpo")
    ),
    steps=2000,
    validate_every=50,
    seeds="1..4",
    judges=True,
    curves=True,
)
