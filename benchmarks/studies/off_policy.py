"""Question 6: GVPO with earlier responses, other beta and group sizes, and without its terms."""

from studies.declaration import Arm, Study, Tuned

_GVPO = ("algo=gvpo",)
_LOSS = "actor_rollout_ref.actor.policy_loss"
_RATE = Tuned("methods", "gvpo")

STUDY = Study(
    name="off_policy",
    question="What do earlier responses, beta, the group size and each term of GVPO's loss change?",
    hypothesis=(
        "GVPO says that it does as well with earlier responses in the groups (Figure 4), that beta has little effect "
        "(Figure 2) and that it gains with larger groups (Figure 3). In its Table 2, training diverges without the "
        "variance or without the covariance, and loses several points without both."
    ),
    measure=(
        "Exact held-out accuracy, averaged over the second half of a budget of generated tokens. Earlier responses "
        "cost no tokens. Differences to GVPO's defaults (beta 0.1, groups of 8), paired by seed."
    ),
    spread=(
        "GVPO's runs differ more from seed to seed than GRPO's. The study methods shows by how much at the tuned rate. "
        "With a standard deviation of 0.02, 0.02 is 2.8 standard errors of a difference of 16 pairs."
    ),
    tasks=("arithmetic",),
    baseline="gvpo",
    validate_every=10,
    arms=(
        Arm("gvpo", _GVPO, _RATE),
        *(
            Arm(f"earlier_{share:g}", (*_GVPO, f"algorithm.gsd.gvpo.history_fraction={share}"), _RATE)
            for share in (0.25, 0.5, 0.75)
        ),
        *(Arm(f"beta_{beta:g}", (*_GVPO, f"{_LOSS}.beta={beta}"), _RATE) for beta in (0.01, 0.03, 0.3, 1.0)),
        *(
            Arm(f"k_{k}", (*_GVPO, f"actor_rollout_ref.rollout.n={k}", f"data.train_batch_size={192 // k}"), _RATE)
            for k in (2, 4, 16)
        ),
        Arm("no_variance", (*_GVPO, f"{_LOSS}.var=false"), _RATE),
        Arm("no_covariance", (*_GVPO, f"{_LOSS}.cov=false"), _RATE),
        Arm("neither", (*_GVPO, f"{_LOSS}.var=false", f"{_LOSS}.cov=false"), _RATE),
    ),
)
