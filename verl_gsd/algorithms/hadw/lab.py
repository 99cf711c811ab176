"""HA-DW's algorithms in ``verl-gsd lab``, which models each prompt as one Bernoulli logit."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch

from verl_gsd.algorithms.hadw.anchors import Anchor, HardAnchor, SoftAnchor
from verl_gsd.algorithms.hadw.factor import hadw_factor
from verl_gsd.bernoulli import (
    Algorithm,
    BernoulliBatch,
    SameAlgorithm,
    Update,
    ascend,
    dial_advantages,
    one_group_per_prompt,
    replace_silent_groups,
    skip_silent_groups,
)


def lab_algorithms() -> Mapping[str, Algorithm | SameAlgorithm]:
    """HA-DW on GRPO with both kinds of anchor, on Dr. GRPO and on DAPO with the soft one."""
    return {
        "hadw": Algorithm(
            "hadw",
            "GRPO times HA-DW's factor, with lambda_scale 1.3 and the soft anchor (the paper's method). Here the 1.3 "
            "raises the learning rate; AdamW would hide it.",
            one_group_per_prompt,
            lambda logit, generator: hadw_update(SoftAnchor()),
        ),
        "hadw_hard": Algorithm(
            "hadw",
            "The same with the hard anchor of the authors' code (the mean accuracy of the last 10 steps).",
            one_group_per_prompt,
            lambda logit, generator: hadw_update(HardAnchor()),
        ),
        "hadw_dr_grpo": Algorithm(
            "hadw",
            "Dr. GRPO times HA-DW's factor, with the soft anchor.",
            one_group_per_prompt,
            lambda logit, generator: hadw_update(SoftAnchor(), alpha=0.0),
        ),
        "hadw_dapo": Algorithm(
            "hadw",
            "DAPO times HA-DW's factor. The soft anchor observes every generated group.",
            replace_silent_groups,
            lambda logit, generator: hadw_update(SoftAnchor()),
        ),
        "hadw_gspo": SameAlgorithm(
            "a sequence of one token has the ratio of its token, and this ratio is 1 if each batch is used once",
            use="hadw",
        ),
        "hadw_grpo": SameAlgorithm("hadw is HA-DW on GRPO", use="hadw"),
    }


def hadw_update(anchor: Anchor, *, alpha: float = 1.0, lambda_scale: float = 1.3) -> Update:
    """The dial's advantages times HA-DW's factor. The anchor observes a batch after the batch has been weighted."""

    def weigh(logit: torch.Tensor, batch: BernoulliBatch, rate: float) -> torch.Tensor:
        advantages = dial_advantages(batch, alpha)
        accuracy = batch.rewards.mean(dim=1).repeat_interleave(batch.rewards.shape[1])
        value = math.nan if anchor.value is None else anchor.value
        factor = hadw_factor(advantages, accuracy, value, lambda_scale=lambda_scale)
        return rate * ascend(logit, batch, advantages * factor)

    def update(logit: torch.Tensor, batch: BernoulliBatch, rate: float) -> torch.Tensor:
        change = skip_silent_groups(weigh)(logit, batch, rate)
        anchor.observe(batch.right, batch.generated * batch.rewards.shape[1])
        return change

    return update
