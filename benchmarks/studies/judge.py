"""Question 4: how good must DaGRPO's judge be, and which demonstrations help?"""

from studies.declaration import Arm, Study, Tuned
from studies.judge_server import QUALITIES, judge_words

_SECTION = "algorithm.gsd.dagrpo"
_RATE = Tuned("methods", "grpo")
#: The quality of a good judge, as in ``verl-gsd lab``.
_GOOD = 0.9


def _mask(name: str, quality: float, *words: str) -> Arm:
    return Arm(name, ("algo=dagrpo_mask", *judge_words(quality), *words), _RATE)


STUDY = Study(
    name="judge",
    question="How good must DaGRPO's judge be, which delta is best, and which demonstrations help?",
    hypothesis=(
        "DaGRPO (summary) reports +4.7 points over GRPO, with delta 1, 3 and 5 tried. LUFFY reports +4.6 with "
        "demonstrations alone. The judge here knows nothing but the verdict, so that the mask drops pairs at random: "
        "we expect a loss that grows as the judge gets worse and delta larger, a gain on hard prompts with "
        "demonstrations, and no gain of the mask over demonstrations alone."
    ),
    measure=(
        "Exact held-out accuracy, averaged over the second half of a budget of generated tokens. Differences to GRPO, "
        "paired by seed. All arms have GRPO's rate: the mask and demonstrations change the size of the gradient, which "
        "AdamW divides by."
    ),
    spread="As in the study methods: with 16 seeds, a difference of 0.01 is 3.8 standard errors.",
    tasks=("arithmetic",),
    baseline="grpo",
    arms=(
        Arm("grpo", ("algo=grpo",), _RATE),
        *(_mask(f"auc_{quality:g}", quality) for quality in QUALITIES),
        _mask("delta_1", _GOOD, f"{_SECTION}.delta=1"),
        _mask("delta_5", _GOOD, f"{_SECTION}.delta=5"),
        _mask("delta_quantile", _GOOD, f"{_SECTION}.delta={{quantile:0.25}}"),
        Arm("demonstrations", ("algo=dagrpo_anchors",), _RATE),
        Arm("both", ("algo=dagrpo", *judge_words(_GOOD)), _RATE),
        Arm("own_successes", ("algo=dagrpo_anchors", f"{_SECTION}.demonstrations.source=self"), _RATE),
        Arm("always", ("algo=dagrpo_anchors", f"{_SECTION}.demonstrations.mode=always"), _RATE),
        Arm("ratio_one", ("algo=dagrpo_anchors", "actor_rollout_ref.actor.policy_loss.ratio=one"), _RATE),
    ),
    judges=True,
)
