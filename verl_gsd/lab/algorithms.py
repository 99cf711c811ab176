"""The lab's table of algorithms: each draws its groups in one way and updates in one way.

A further one is a further row.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch

from verl_gsd.algorithms.hadw.anchors import HardAnchor, SoftAnchor
from verl_gsd.dial_settings import check_dial_settings
from verl_gsd.lab.drawing import REDRAWS, ROUNDS, Draw, again, one_each, others
from verl_gsd.lab.updates import JUDGE_AUC, Update, dagrpo, dial, gvpo, hadw

#: The paper's learning rate: what a prompt's logit moves by for a gain of 1.
RATE = 0.5
#: GVPO's, and of the one whose reference stays (large enough for its end, a logit 1/beta higher, to be seen).
BETA, BETA_FIXED = 0.1, 0.5
#: Steps GVPO takes over a batch, as many as the paper's 1024 prompts a step in mini-batches of 256 make.
PASSES = 4
DELTA = 3.0


@dataclass(frozen=True)
class Algorithm:
    """How an algorithm draws and updates.

    Attributes:
        family: of those that share a colour.
        about: what it does, and where the lab is less than the algorithm.
        start: its update for one run, from the (P,) logits at the start and the run's source of chance.
        rate: its learning rate.
    """

    family: str
    about: str
    draw: Draw
    start: Callable[[torch.Tensor, torch.Generator], Update]
    rate: float = RATE


def _dial(alpha: float, about: str) -> Algorithm:
    return Algorithm("dial", about, one_each, lambda logit, generator: dial(alpha))


def _dagrpo(delta: float, demonstrations: bool, about: str) -> Algorithm:
    return Algorithm(
        "dagrpo",
        about,
        one_each,
        lambda logit, generator: dagrpo(generator, delta=delta, demonstrations=demonstrations),
    )


_JUDGE = (
    f"a synthetic judge (AUC {JUDGE_AUC:g}) knows no more of a response than right or wrong, so that what it masks is "
    "chance: the mask's price is seen here, and not what it is for"
)
_DEMONSTRATIONS = (
    "every prompt's demonstration, which takes the place of a response where all failed, with the ratio p/(p + 0.1)"
)

ALGORITHMS: dict[str, Algorithm] = {
    "grpo": _dial(1.0, "Divides by sigma: a prompt's logit moves by its group's sigma."),
    "dr_grpo": _dial(0.0, "Does not divide: a prompt's logit moves by sigma squared, least where groups nearly agree."),
    "alpha=0.5": _dial(0.5, "The dial half-way between GRPO and Dr. GRPO."),
    "alpha=2": _dial(2.0, "The dial where every mixed group weighs the same, one right of 8 like four of 8."),
    "dapo": Algorithm(
        "dapo",
        f"GRPO on mixed groups alone: a silent one makes room for another prompt's, in {ROUNDS} rounds at most. Its "
        "clips do nothing here, where each batch is used once.",
        others,
        lambda logit, generator: dial(1.0),
    ),
    "dapo_redraw": Algorithm(
        "dapo",
        f"The paper's reading of DAPO: a silent group is drawn again from the same prompt, {REDRAWS} draws at most. "
        "That multiplies a prompt's weight by the draws it takes, and most draws go to prompts already mastered.",
        again,
        lambda logit, generator: dial(1.0),
    ),
    "hadw": Algorithm(
        "hadw",
        "GRPO times HA-DW's factor, lambda_scale 1.3, hard anchor (the mean accuracy of the last 10 steps). The 1.3 is "
        "speed here; AdamW would hide it.",
        one_each,
        lambda logit, generator: hadw(HardAnchor()),
    ),
    "hadw_soft": Algorithm(
        "hadw", "The same with the soft anchor.", one_each, lambda logit, generator: hadw(SoftAnchor())
    ),
    "hadw_dr_grpo": Algorithm(
        "hadw",
        "Dr. GRPO times HA-DW's factor, hard anchor.",
        one_each,
        lambda logit, generator: hadw(HardAnchor(), alpha=0.0),
    ),
    "hadw_dapo": Algorithm(
        "hadw",
        "DAPO times HA-DW's factor; the hard anchor sees every group generated.",
        others,
        lambda logit, generator: hadw(HardAnchor()),
    ),
    "dagrpo_mask": _dagrpo(DELTA, False, f"GRPO over the pairs whose scores differ by {DELTA:g}: {_JUDGE}."),
    "dagrpo_anchors": _dagrpo(-math.inf, True, f"GRPO over all pairs, and {_DEMONSTRATIONS}."),
    "dagrpo": _dagrpo(DELTA, True, f"Both: the mask, where {_JUDGE}; and {_DEMONSTRATIONS}."),
    "gvpo": Algorithm(
        "gvpo",
        f"GVPO, beta {BETA:g}, against the policy before the batch, in {PASSES} steps a batch; one alone would be "
        "REINFORCE, since no other prompt's update moves a logit. It divides by G - 1: Dr. GRPO's update times "
        "G/(G - 1), less the pull.",
        one_each,
        lambda logit, generator: gvpo(BETA, passes=PASSES),
        RATE / BETA,
    ),
    "gvpo_ref": Algorithm(
        "gvpo",
        f"GVPO, beta {BETA_FIXED:g}, against the policy at the start, a fixed anchor: every logit ends 1/beta = "
        f"{1 / BETA_FIXED:g} above its start, and a prompt that was hard is not mastered.",
        one_each,
        lambda logit, generator: gvpo(BETA_FIXED, reference=logit),
        RATE / BETA_FIXED,
    ),
}

#: What would be another row's run over again, and why.
SAME = {
    name: f"a sequence of one token has the token's ratio, which is 1 where each batch is used once. Write {as_}"
    for name, as_ in (("gspo", "grpo"), ("hadw_gspo", "hadw"))
} | {
    "hadw_grpo": "this is hadw. Write hadw",
    "gsd": "the dial at the alpha you choose. Write alpha=X, such as alpha=0.5",
}


def algorithm(name: str) -> Algorithm:
    """The algorithm of that name; ``alpha=X`` is the dial at any X.

    Raises:
        ValueError: there is none, or it does nothing here that another does not.
    """
    if name in ALGORITHMS:
        return ALGORITHMS[name]
    if name in SAME:
        raise ValueError(f"{name}: {SAME[name]}")
    setting, _, value = name.partition("=")
    if setting == "alpha":
        try:
            alpha = float(value)
            check_dial_settings(alpha, 0, 0.0)
        except ValueError as error:
            raise ValueError(f"{name}: write alpha=X with a finite number X, such as alpha=0.5") from error
        return _dial(alpha, f"The dial at alpha {alpha:g}: a prompt's logit moves by sigma to the power {2 - alpha:g}.")
    raise ValueError(f"{name}: write one of {', '.join(ALGORITHMS)}, or alpha=X for the dial at any X")
