"""Question 3: does HA-DW help where groups are small?"""

from studies.declaration import Arm, Study, Tuned

#: Rollouts per step, divided into groups.
_ROLLOUTS = 192
_HADW = "algorithm.gsd.hadw"
#: name -> what is added to ``algo=hadw``; GRPO has none of it.
_ANCHORS = {name: (f"{_HADW}.preset={name}",) for name in ("soft", "hard", "fixed")}
#: The same with groups of 8 alone, because we expect no effect.
_SCALES = {f"soft_{scale:g}": (f"{_HADW}.preset=soft", f"{_HADW}.lambda_scale={scale}") for scale in (0.5, 2.0)}


def _arms(size: int) -> list[Arm]:
    groups = (f"actor_rollout_ref.rollout.n={size}", f"data.train_batch_size={_ROLLOUTS // size}")
    return [
        Arm(f"grpo_n{size}", ("algo=grpo", *groups), Tuned("methods", "grpo"), against=f"grpo_n{size}"),
        *(
            Arm(f"{name}_n{size}", ("algo=hadw", *words, *groups), Tuned("methods", "hadw"), against=f"grpo_n{size}")
            for name, words in (_ANCHORS | (_SCALES if size == 8 else {})).items()
        ),
    ]


STUDY = Study(
    name="few_rollouts",
    question="Does HA-DW gain over GRPO with groups of 2, 4, 8 and 16 at equal rollouts, and with which anchor?",
    hypothesis=(
        "HA-DW (Theorem 1, section 5) says that the group mean is biased most in small groups, and reports gains. Then "
        "HA-DW gains over GRPO with groups of 2 and 4, and less with 16. lambda_scale is a factor on all advantages: "
        "we expect little effect of it under AdamW."
    ),
    measure=(
        "Exact held-out accuracy, averaged over the second half of a budget of tokens. Differences between HA-DW and "
        "GRPO of the same group size, paired by seed."
    ),
    spread="As in the study methods: with 16 seeds, a difference of 0.01 is 3.8 standard errors.",
    tasks=("arithmetic_hard",),
    baseline="grpo_n8",
    validate_every=10,
    arms=tuple(arm for size in (2, 4, 8, 16) for arm in _arms(size)),
)
